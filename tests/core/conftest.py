"""A shell for the core that does nothing by itself: the test says what happens, and when."""

from __future__ import annotations

from typing import Any

import pytest

from millpond._core.core import Core, Fitness, Job
from millpond._core.entry import Claim, Entry, State
from millpond._core.lease import Lease
from millpond._core.ledger import Share
from millpond._core.line import Refusal, Waiter
from millpond._core.pulse import Pulse
from millpond._core.settings import Options, Settings
from millpond.connector import Condition


class Caller(Waiter["str"]):
    """A caller whose wake-ups are counted."""

    def __init__(self, name: str, now: float, timeout: float) -> None:
        super().__init__(hash(name), now, now + timeout, None)
        self.name = name
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    def __repr__(self) -> str:
        return f"<Caller {self.name}>"


class BenchLease(Lease["str"]):
    """A lease whose slow way is an ordinary one, served at once or not at all."""

    def _wait(self) -> str | None:
        caller = self._pool.enrol("lease")  # type: ignore[attr-defined]
        if caller.claim is None:
            return None
        self._claim = caller.claim
        caller.claim = None
        return self._claim.entry.conn


class Bench:
    """A core on a bench: time stands still until a test moves it."""

    def __init__(self, share: Share | None = None, **options: Any) -> None:
        self.now = 1000.0
        self.lost: list[Entry[str]] = []
        self.suspended = 0.0
        self.pulse = Pulse(self.now, lambda: self.suspended)
        self.core: Core[str] = Core(
            Settings(**options),
            self.now,
            lost=self.note_lost,
            whoami=lambda: 7,
            clock=lambda: self.now,
            inspect=None,
            pulse=self.pulse,
            share=share,
        )
        self.made = 0

    def note_lost(self, entry: Entry[str]) -> None:
        """Note a loss, which a claim may report more than once."""
        if entry not in self.lost:
            self.lost.append(entry)

    # What a lease needs of a pool.

    def _settle(self) -> None:
        self.core.settle(self.now)

    def _return(self, claim: Claim[str], error: BaseException | None) -> None:
        self.give(claim, Fitness.CLEAN if error is None else Fitness.CUT)

    def _misused(self, what: str, hint: str) -> Exception:
        return ValueError(what)

    # The events.

    def lease(self) -> BenchLease:
        lease = BenchLease()
        lease._core = self.core
        lease._pool = self
        lease._timeout = None
        lease._claim = None
        return lease

    def enrol(self, name: str, timeout: float = 30.0) -> Caller:
        caller = Caller(name, self.now, timeout)
        self.core.enrol(caller, self.now)
        return caller

    def start(self) -> Claim[str]:
        claim = self.core.next_open(self.now)
        assert claim is not None, "no open is wanted"
        return claim

    def open(self) -> Entry[str]:
        """Open the connection that is wanted."""
        return self.finish(self.start())

    def finish(self, claim: Claim[str], jitter: float = 0.0) -> Entry[str]:
        self.made += 1
        entry = claim.entry
        self.core.opened(claim, f"connection {self.made}", None, jitter, self.now)
        return entry

    def fail(self, claim: Claim[str], error: BaseException | None = None, refused: bool = False) -> None:
        self.core.open_failed(claim, error or ConnectionRefusedError("no"), refused, 0.0, self.now)

    def give(self, claim: Claim[str], fit: Fitness = Fitness.CLEAN) -> Job[str] | None:
        return self.core.release(claim, fit, self.now)

    def work(self, *, sound: bool = True) -> list[str]:
        """Do all checks, resets and closes; tell which."""
        done = []
        while (job := self.core.next_chore(self.now)) is not None:
            done.append(job.task.value)
            if job.claim is None:
                self.core.closed(job.entry, self.now)
            else:
                self.core.tended(job, sound, self.now)
        return done

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass, with a ticker that is never late."""
        until = self.now + seconds
        while self.now + 0.5 < until:
            self.now += 0.5
            self.core.tick(self.now)
        self.now = until
        self.core.tick(self.now)

    def keep(self, seconds: float) -> int:
        """Let time pass as a shell does: it ticks when a tick is due, and looks at the pulse; count the ticks."""
        until, ticks = self.now + seconds, 0
        while self.now < until:
            self.now = min(self.now + 0.5, until)
            self.pulse.look(self.now)
            if self.now >= self.core.due(self.now):
                self.core.tick(self.now)
                self.core.rest(self.now)
                ticks += 1
        return ticks

    def suspend(self) -> None:
        """Have the machine be suspended for a minute, which the clock does not show."""
        self.suspended += 60.0

    def fill(self, count: int) -> list[Claim[str]]:
        """Lend that many connections, newly opened."""
        claims = []
        for number in range(count):
            caller = self.enrol(f"filler {number}")
            if caller.claim is None:
                self.open()
            assert caller.claim is not None
            claims.append(caller.claim)
            caller.claim = None
        self.core.wakes.clear()
        return claims

    def stock(self, count: int) -> list[Entry[str]]:
        """Have that many idle connections."""
        claims = self.fill(count)
        entries = [claim.entry for claim in claims]
        for claim in claims:
            self.give(claim)
        return entries

    def reap(self) -> int:
        """Report the lost, as a keeper does; tell how many they were."""
        lost, self.lost[:] = list(self.lost), []
        for entry in lost:
            self.core.lost(entry, self.now)
        return len(lost)

    def check(self) -> None:
        """Hold the derived against the truth."""
        assert self.core.quiet_until is None or not self.core.line
        assert self.core.audit(self.now) == []
        stats = self.core.stats(self.now)
        assert stats.size == len(self.core.entries)
        assert stats.idle + stats.lent + stats.opening + stats.checking + stats.resetting + stats.closing == stats.size
        assert stats.size <= stats.max_size or stats.closed or stats.size - stats.closing >= 0


@pytest.fixture
def bench() -> type[Bench]:
    return Bench


__all__ = ["Bench", "Caller", "Condition", "Fitness", "Options", "Refusal", "State"]
