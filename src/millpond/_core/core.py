"""The state machine of a pool."""

from __future__ import annotations

import enum
import math
from collections import Counter, deque
from collections.abc import Callable, Hashable, Set
from typing import Final, Generic, TypeVar
from weakref import ref

from millpond._core.entry import TRANSITIONS, Claim, Entry, Reason, State
from millpond._core.ledger import Share
from millpond._core.line import Line, Refusal, Waiter
from millpond._core.outage import Outage
from millpond._core.pulse import BEAT, GRACE, Pulse
from millpond._core.settings import Settings
from millpond._core.stats import Stats
from millpond.connector import Condition

__all__ = ["BEAT", "Core", "Fitness", "Job", "Task"]

C = TypeVar("C")

QUIET_AFTER: Final = 1.0
"""Seconds after which a pool whose connections are all idle needs no ticks until one of them is due."""
STALLED: Final = 0.5
"""A check or reset that has taken so long no longer counts as a connection that is about to come."""
SUSPICION_PAUSE: Final = 0.001
"""Seconds for each connection, until another death arouses suspicion: not each of a thousand deaths at once does."""
FORK_TICKS: Final = 2
"""Ticks after which a fork counts as over though nobody has said so: its second hook may have been cut short."""
LIFETIME_SPREAD: Final = 0.1
"""The part of `max_lifetime` by which one connection's may be shorter than another's."""

IDLE: Final = State.IDLE
LENT: Final = State.LENT
TENDING: Final = frozenset({State.CHECKING, State.RESETTING})
OPEN: Final = frozenset({State.IDLE, State.LENT, State.CHECKING, State.RESETTING})


class Task(enum.Enum):
    """What is to be done with a connection beside the line."""

    CHECK = "check"
    RESET = "reset"
    CLOSE = "close"
    ABANDON = "abandon"


class Fitness(enum.Enum):
    """What a returned connection is good for."""

    CLEAN = "clean"
    """To be lent again as it is."""
    DIRTY = "dirty"
    """To be reset."""
    CUT = "cut"
    """For nothing: an exchange was interrupted."""
    DEAD = "dead"
    """For nothing: the server has gone, and may have taken the others with it."""


class Job(Generic[C]):
    """One task on one entry. It holds the claim, but for the two that end the connection.

    Those are given to another if whoever has the job drops it before its end.
    """

    __slots__ = ("__weakref__", "claim", "entry", "task")

    def __init__(self, task: Task, entry: Entry[C], claim: Claim[C] | None) -> None:
        self.task = task
        self.entry = entry
        self.claim = claim


class Core(Generic[C]):
    """All that a pool knows, and every decision.

    The truth is `entries`, and who holds each one's claim. Everything else is derived, and `audit` derives it anew. An
    exception that cuts a change short (Ctrl-C, `PyThreadState_SetAsyncExc`) leaves the shell's mark standing, and the
    shell audits before the next change. The statements inside each change are in the order that this needs: an
    outcome is stored before the record that led to it is removed, and a claim that is dropped reports itself.

    A shell calls every method under its lock. After each it wakes those in `wakes`, and
    sees to it that somebody works off `next_open` and `next_chore`. All are O(1) in connections and waiters, but for
    those that concern the whole pool: `audit`, `tick`, `sweep`, `refresh`, `close`, `resize` and a failed open.
    """

    __slots__ = (
        "_jobs",
        "_lost",
        "_n_closing",
        "_n_opening",
        "_n_overdue",
        "_n_stalled",
        "_n_tending",
        "_seen",
        "_serial",
        "_suspected",
        "_sweep_due",
        "_ticked",
        "by_conn",
        "cancelled",
        "checks",
        "clock",
        "closes",
        "closing",
        "cuts",
        "draining",
        "entries",
        "fifo",
        "forking",
        "gate",
        "generation",
        "idle",
        "inspect",
        "line",
        "open_failures",
        "open_seconds",
        "opens",
        "outage",
        "outages",
        "paused",
        "pulse",
        "quiet_until",
        "refusals",
        "resets",
        "retired_uses",
        "roused",
        "settings",
        "share",
        "silent",
        "timeouts",
        "waited",
        "waits",
        "wakes",
        "warming",
        "whoami",
    )

    def __init__(
        self,
        settings: Settings,
        now: float,
        *,
        lost: Callable[[Entry[C]], None],
        whoami: Callable[[], int],
        clock: Callable[[], float],
        inspect: Callable[[C, BaseException | None], Condition] | None,
        pulse: Pulse,
        silent: Callable[[C], bool] | None = None,
        share: Share | None = None,
    ) -> None:
        # For the hot path, which has no shell around it.
        self.whoami = whoami
        self.clock = clock
        self.inspect = inspect
        self.silent = silent
        self.share = share
        """The pool's part of a budget, if there is one."""
        self.pulse = pulse
        # A dictionary in place of a set: it takes a third of the memory, and has an order.
        self.entries: dict[Entry[C], None] = {}
        self.by_conn: dict[int, Entry[C]] = {}
        self.idle: deque[Claim[C]] = deque()
        """Lent from the right end. The order of lending is that of returning: to the right end, or to the left."""
        if share is not None:
            share.idle = self.idle
        self.line: Line[C] = Line()
        self.warming: list[Waiter[C]] = []
        self.draining: list[Waiter[C]] = []
        self.wakes: list[Waiter[C]] = []
        self.cuts: deque[Entry[C]] = deque()
        """Those whose connection the shell has to cut for whoever is at it, who may be waiting for its server."""
        self.gate = False
        """Whether a borrow or return has to look further: someone waits, or the pool is paused, closed or too large."""
        self.paused = False
        self.closing = False
        self.forking = 0
        """Ticks for which nothing is to be opened yet, as a fork is under way."""
        self.generation = 0
        self.outage: Outage | None = None
        self._jobs: deque[Job[C]] = deque()
        self._lost = lost
        self._serial = 0
        self._n_opening = self._n_tending = self._n_closing = self._n_stalled = self._n_overdue = 0
        self._ticked = now
        self._seen = pulse.look(now)
        """How often the process had stood still when it was last asked which connections may be dead of that."""
        self.quiet_until: float | None = None
        """When the next tick is due though nothing happens until then; None if something might unnoticed."""
        self.roused = False
        """Whether ticks have to come again, which the shell tells whoever ticks."""
        self._sweep_due = False
        self._suspected = -math.inf

        self.retired_uses = self.waits = self.timeouts = self.refusals = self.cancelled = 0
        self.opens = self.open_failures = self.checks = self.resets = self.outages = 0
        self.waited = self.open_seconds = 0.0
        self.closes: Counter[Reason] = Counter()
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Note the settings to go by."""
        self.settings = settings
        self.fifo = settings.order == "fifo"

    # Borrowing, the slow way.

    def enrol(self, waiter: Waiter[C], now: float) -> None:
        """Serve a caller at once, refuse it, or put it in line: `waiter.claim`, `waiter.refusal` or neither is set."""
        if self.quiet_until is not None:
            self._rouse()
            if self.pulse.look(now) == self._seen:
                # No tick has been missed.
                self._ticked = now
        self.settle(now)
        if not (self.closing or self.paused) and self.line.head() is None:
            claim = self._fetch(now, unasked=waiter.deadline <= waiter.since)
            if claim is not None:
                waiter.done = True
                self._lend(claim, waiter, now)
                return
        refusal = self._objection(waiter, now)
        if refusal is None:
            self.line.enrol(waiter)
            self.settle(now)
        else:
            self._refuse(waiter, refusal)
            waiter.done = True

    def _objection(self, waiter: Waiter[C], now: float) -> Refusal | None:
        """Why a caller may not even wait, if there is a reason."""
        limit = self.settings.max_waiting
        if self.closing:
            return Refusal.CLOSED
        if waiter.deadline <= now:
            return Refusal.TIMEOUT
        if limit is not None and len(self.line) + self._n_lent >= self.settings.max_size + limit:
            return Refusal.FULL
        if self.outage is not None and not self._worth_waiting(self.outage, now):
            return Refusal.DOWN
        return None

    @property
    def _n_lent(self) -> int:
        # By what is left over, since the hot path counts nothing.
        return len(self.entries) - len(self.idle) - self._n_opening - self._n_tending - self._n_closing

    def _worth_waiting(self, outage: Outage, now: float) -> bool:
        """Whether one who comes during an outage may wait: for the attempt under way, or for a connection on loan."""
        if self._n_opening > self._n_overdue:
            return True
        if (self.settings.ride_out and not outage.refused) or self._any_sound():
            if not self.line:
                outage.hasten(now)
            return True
        return outage.hasten(now)

    def _any_sound(self) -> bool:
        return any(entry.state in OPEN and entry.doom is None for entry in self.entries)

    def _refuse(self, waiter: Waiter[C], refusal: Refusal) -> None:
        waiter.refusal = refusal
        if refusal is Refusal.TIMEOUT:
            self.timeouts += 1
        else:
            self.refusals += 1

    def _dismiss(self, waiter: Waiter[C], refusal: Refusal) -> None:
        """Refuse one who stands in line."""
        # In this order: whoever is woken has an answer, and whoever has one is in line until it is to be woken.
        self._refuse(waiter, refusal)
        self.wakes.append(waiter)
        self.line.leave(waiter)

    def expire(self, waiter: Waiter[C], now: float) -> None:
        """End the waiting of one whose deadline has come, unless it has just been served."""
        if not waiter.done:
            self._dismiss(waiter, Refusal.TIMEOUT)
            self._set_gate()

    def cancel(self, waiter: Waiter[C], now: float) -> None:
        """Undo a caller's request, whatever has become of it: in line, served or refused."""
        claim = waiter.claim
        if claim is not None:
            self.cancelled += 1
            claim.entry.uses -= 1
            self._shelve(claim, now)
            waiter.claim = None
        elif not waiter.done:
            self.cancelled += 1
            self.line.leave(waiter)
            self._set_gate()

    def _lend(self, claim: Claim[C], waiter: Waiter[C], now: float) -> None:
        entry = claim.entry
        self._move(entry, LENT)
        entry.owner = waiter.owner
        entry.uses += 1
        entry.since = now
        if waiter.site is not None:
            entry.site = (entry.uses, *waiter.site)
        waiter.claim = claim

    def _fetch(self, now: float, *, unasked: bool = False) -> Claim[C] | None:
        """Take the next idle connection that can be lent now; deal with those that come before it and cannot.

        One who does not wait gets it unasked, if there is no more than its idleness against it.
        """
        while True:
            try:
                claim = self.idle.pop()
            except IndexError:
                return None
            entry = claim.entry
            if now <= entry.good_until:
                return claim
            if entry.doom is not None or now >= entry.expires:
                self._close(claim, entry.doom or Reason.MAX_LIFETIME)
            elif entry.suspect or (
                not unasked and now - max(entry.idle_since, entry.asked) > self.settings.check_after
            ):
                if self._n_tending - self._n_stalled > len(self.line):
                    # Enough are being checked for those who wait; the others need not be troubled.
                    self.idle.append(claim)
                    return None
                self._check(claim, now)
            else:
                self._renew(entry, now)
                return claim

    def settle(self, now: float) -> None:
        """Hand what is idle to those who wait; close what is idle when it may not be."""
        if self.quiet_until is None and (now - self._ticked > BEAT + GRACE or self.pulse.standstills != self._seen):
            # The process stood still and whoever calls is back before the ticker; or nobody ticks.
            self.roused = True
            self.tick(now)
        if self.closing:
            self._send_away()
        while self.closing or len(self.entries) - self._n_closing > self.settings.max_size:
            try:
                claim = self.idle.popleft()
            except IndexError:
                break
            self._close(claim, claim.entry.doom or (Reason.POOL_CLOSED if self.closing else Reason.SURPLUS))
        if self.share is not None and self.share.called:
            self._make_room(self.share)
        self.gate = True
        while not self.paused and (waiter := self.line.head()) is not None:
            if waiter.deadline <= now:
                self._dismiss(waiter, Refusal.TIMEOUT)
                continue
            claim_or_none = self._fetch(now)
            if claim_or_none is None:
                break
            self._lend(claim_or_none, waiter, now)
            self.wakes.append(waiter)
            self.line.leave(waiter)
            self.waits += 1
            self.waited += now - waiter.since
        self._set_gate()

    def _make_room(self, share: Share) -> None:
        """Close what is idle, so that other pools of the budget can open as many."""
        head = self.line.head()
        since = math.inf if head is None else head.since
        while len(self.entries) - self._n_closing > self.settings.min_size:
            try:
                claim = self.idle.popleft()
            except IndexError:
                break
            # What was opened for one who waits here serves at least that one.
            if (head is not None and not claim.entry.uses) or not share.answer(since):
                self.idle.appendleft(claim)
                break
            self._close(claim, claim.entry.doom or Reason.MADE_ROOM)

    def _set_gate(self) -> None:
        alert = False
        if self.share is not None:
            alert = self.share.alert = self.share.called
        self.gate = (
            alert
            or self.forking > 0
            or self.paused
            or self.closing
            or self.line.head() is not None
            or len(self.entries) - self._n_closing > self.settings.max_size
        )

    def declare(self, share: Share, now: float) -> None:
        """Tell the share what the pool has and wants."""
        head = self.line.head()
        since = math.inf if head is None else head.since
        share.declare(len(self.entries), self._n_closing, self._wanted(now), since)

    def waiting_of(self, owners: Set[int], now: float) -> int:
        """Tell how many of these threads or tasks stand in line."""
        return sum(waiter.owner in owners for waiter in self.line)

    # Returning, the slow way.

    def release(self, claim: Claim[C], fit: Fitness, now: float) -> Job[C] | None:
        """Take a connection back; return the job of resetting it, if that is what it needs."""
        entry = claim.entry
        if entry not in self.entries:
            # Lent by the parent of this process: it stays the parent's.
            claim.dissolve()
        elif fit is Fitness.DEAD or fit is Fitness.CUT:
            self._close(claim, entry.doom or Reason.BROKEN, abandon=True)
            if fit is Fitness.DEAD:
                self.suspect(now)
                self.sweep(now)
        elif entry.doom is not None or self.closing:
            self._close(claim, entry.doom or Reason.POOL_CLOSED)
        elif fit is Fitness.CLEAN:
            entry.idle_since = now
            self._shelve(claim, now)
        else:
            self._move(entry, State.RESETTING)
            entry.since = now
            return Job(Task.RESET, entry, claim)
        return None

    def post(self, job: Job[C], now: float) -> None:
        """Leave a job to those who work beside the line."""
        self._jobs.append(job)

    def _shelve(self, claim: Claim[C], now: float) -> None:
        """Lay a clean connection by: for the next in line, or idle; or end it if its time has come."""
        entry = claim.entry
        doom = entry.doom
        if doom is None:
            if self.closing:
                doom = Reason.POOL_CLOSED
            elif self.settings.max_uses is not None and entry.uses >= self.settings.max_uses:
                doom = Reason.MAX_USES
            elif now >= entry.expires:
                doom = Reason.MAX_LIFETIME
            elif entry.generation != self.generation:
                doom = Reason.REFRESHED
        if doom is not None:
            self._close(claim, doom)
            return
        self._move(entry, IDLE)
        self._renew(entry, now)
        if self.fifo:
            self.idle.appendleft(claim)
        else:
            self.idle.append(claim)
        self.settle(now)

    def condemn(self, entry: Entry[C], reason: Reason, now: float) -> None:
        """Mark an open connection for closing: now if it is idle, else when its present holder is done with it."""
        if entry.state in OPEN and entry.doom is None:
            entry.doom = reason
            entry.good_until = 0.0
            self._sweep_due = True

    def hung_up(self, entry: Entry[C], now: float) -> None:
        """Note that a connection is known to be dead."""
        if entry.state in OPEN:
            self.condemn(entry, Reason.HUNG_UP, now)
            self.suspect(now)

    def suspect(self, now: float) -> None:
        """Doubt every connection, since one was found dead: each is checked before it is lent again."""
        if now - self._suspected < SUSPICION_PAUSE * len(self.entries):
            return
        self._suspected = now
        for entry in self.entries:
            if entry.state is IDLE or entry.state is LENT:
                self._doubt(entry)

    def _doubt(self, entry: Entry[C]) -> None:
        if entry.doom is None:
            entry.suspect = True
            # Not 0 unless it has to be: with that the return, too, would have to look.
            entry.good_until = -math.inf if self.settings.max_uses is None else 0.0
            self._sweep_due = True

    def lost(self, entry: Entry[C], now: float) -> bool:
        """Close a connection whose claim has died: whoever owned it is gone. Tell whether there was one to close."""
        opened = entry in self.entries and entry.state in OPEN
        if entry.state is State.OPENING:
            self._forgo(entry)
            self._greet_drained()
        elif opened:
            self._end(entry, entry.doom or Reason.LOST, abandon=True)
        self._set_gate()
        return opened

    # What is done beside the line.

    def opens_wanted(self, now: float) -> int:
        """How many more opens should begin now."""
        wanted = self._wanted(now)
        if self.share is not None:
            wanted = max(0, min(wanted, self.share.room(len(self.entries), now)))
        return wanted

    def _wanted(self, now: float) -> int:
        """How many more opens should begin now, were it not for the budget."""
        settings = self.settings
        if self.closing or self.forking:
            return 0
        size = len(self.entries)
        waiting = 0 if self.paused else len(self.line)
        opening = self._n_opening - self._n_overdue
        demand = max(
            waiting - opening - self._n_tending + self._n_stalled,
            settings.min_size - size + self._n_closing,
        )
        wanted = min(demand, settings.max_size - size, settings.max_opening - opening)
        if wanted <= 0:
            return 0
        outage = self.outage
        if outage is None:
            return wanted
        if opening or now < outage.next_try or (outage.refused and not waiting):
            return 0
        return 1

    def next_open(self, now: float) -> Claim[C] | None:
        """Begin an open, if one is wanted. It ends with `opened` or `open_failed`, or when its claim dies."""
        if self.opens_wanted(now) <= 0:
            return None
        self._serial += 1
        claim: Claim[C] = Claim(Entry(self._serial, self.generation, now), self._lost)
        self._n_opening += 1
        self.entries[claim.entry] = None
        return claim

    def opened(self, claim: Claim[C], conn: C, descriptor: Hashable | None, jitter: float, now: float) -> None:
        """Take in a connection that has been opened. `jitter` is random, from 0 up to 1."""
        entry = claim.entry
        if entry not in self.entries:
            return
        entry.conn = conn
        entry.key = id(conn)
        entry.descriptor = descriptor
        self.by_conn[entry.key] = entry
        self.opens += 1
        self.open_seconds += now - entry.since
        self.outage = None
        entry.born = entry.asked = entry.idle_since = now
        entry.expires = now + self.settings.max_lifetime * (1 - LIFETIME_SPREAD * jitter)
        self._shelve(claim, now)
        self._greet_warm()

    def open_failed(self, claim: Claim[C], error: BaseException, refused: bool, jitter: float, now: float) -> None:
        """Note that an open has failed, and tell those who wait for nothing else. `jitter` is from 0 up to 1."""
        self._forgo(claim.entry)
        claim.dissolve()
        self.open_failures += 1
        if self.outage is None:
            self.outages += 1
            self.outage = Outage(now)
        self.outage.failed(now, error, refused, jitter)
        if refused or not self.settings.ride_out:
            if not self._any_sound():
                while (waiter := self.line.head()) is not None:
                    self._dismiss(waiter, Refusal.DOWN)
            self._wake_all(self.warming, Refusal.DOWN)
        self._set_gate()
        self._greet_drained()

    def give_up_open(self, error: BaseException, jitter: float, now: float) -> None:
        """Note that nobody can be had to begin an open, if one is wanted. `jitter` is random, from 0 up to 1."""
        claim = self.next_open(now)
        if claim is not None:
            self.open_failed(claim, error, False, jitter, now)

    def shut(self, now: float) -> None:
        """Get ready for a fork: the gate is up, so that a child is born with it up, and nothing is opened.

        It lasts until `rejoin` tells that the fork is over, or until a second tick, in case nobody is left to tell.
        """
        self.forking = FORK_TICKS
        self.gate = True

    def part(self, now: float) -> list[Job[C]]:
        """Get ready, and give out for closing all idle connections that a fork would share and that cannot be parked.

        None is opened in their stead as long as it lasts.
        """
        self.shut(now)
        parted = []
        for _ in range(len(self.idle)):
            try:
                claim = self.idle.popleft()
            except IndexError:
                break
            entry = claim.entry
            if entry.descriptor is None:
                self._end(entry, Reason.FORKED, abandon=False)
                parted.append(self._jobs.popleft())
                claim.dissolve()
            else:
                self.idle.append(claim)
        self.settle(now)
        return parted

    def rejoin(self, now: float) -> None:
        """Go on as before the fork."""
        self.forking = 0
        self.settle(now)

    def forgo(self, claim: Claim[C], now: float) -> None:
        """Give an open up that was cut short by no fault of the server's."""
        self._forgo(claim.entry)
        claim.dissolve()
        self._greet_drained()

    def _forgo(self, entry: Entry[C]) -> None:
        """Strike off an entry that will never have a connection."""
        if entry in self.entries:
            self._move(entry, State.CLOSED)
            del self.entries[entry]

    def next_chore(self, now: float) -> Job[C] | None:
        """Give out the next check, reset or close. It ends with `tended` or `closed`."""
        return self._jobs.popleft() if self._jobs else None

    def forsake(self) -> list[Entry[C]]:
        """Return the connections that nobody has on loan or is at: the pool was dropped, and nobody else has it."""
        ownerless: list[Entry[C]] = []
        # Taken out one by one: a finaliser may put something in meanwhile, a loan that died with the pool.
        while self.idle:
            claim = self.idle.pop()
            ownerless.append(claim.entry)
            claim.dissolve()
        while self._jobs:
            job = self._jobs.popleft()
            ownerless.append(job.entry)
            if job.claim is not None:
                job.claim.dissolve()
        if self.share is not None:
            self.share.forsake()
        return ownerless

    @property
    def borrows(self) -> int:
        """How often a connection was lent; it may be asked for without the lock."""
        return self.retired_uses + sum(entry.uses for entry in list(self.entries))

    @property
    def opening(self) -> int:
        """How many opens are under way."""
        return self._n_opening

    @property
    def chores(self) -> int:
        """How many checks, resets and closes wait for somebody to do them."""
        return len(self._jobs)

    def _check(self, claim: Claim[C], now: float) -> None:
        entry = claim.entry
        self._move(entry, State.CHECKING)
        entry.suspect = False
        # To be asked is not to be used.
        entry.asked = now
        self._jobs.append(Job(Task.CHECK, entry, claim))

    def tended(self, job: Job[C], sound: bool, now: float) -> None:
        """Take back a connection that has been checked or reset."""
        entry, claim = job.entry, job.claim
        if claim is None or entry.state not in TENDING:
            return
        if job.task is Task.CHECK:
            self.checks += 1
        else:
            self.resets += 1
            entry.idle_since = now
        if sound:
            entry.asked = now
            self._shelve(claim, now)
            return
        self._close(
            claim,
            entry.doom or (Reason.CHECK_FAILED if job.task is Task.CHECK else Reason.RESET_FAILED),
            abandon=True,
        )
        self.suspect(now)

    def _close(self, claim: Claim[C], reason: Reason, *, abandon: bool = False) -> None:
        self._end(claim.entry, reason, abandon=abandon)
        # Last, because a claim that is dropped before that reports its entry as lost, which ends it too.
        claim.dissolve()

    def _end(self, entry: Entry[C], reason: Reason, *, abandon: bool) -> None:
        entry.doom = reason
        entry.good_until = 0.0
        self._move(entry, State.CLOSING)
        self.closes[reason] += 1
        dead = abandon or reason in (Reason.HUNG_UP, Reason.BROKEN)
        self._post_end(Task.ABANDON if dead else Task.CLOSE, entry)

    def _post_end(self, task: Task, entry: Entry[C]) -> None:
        job = Job(task, entry, None)
        entry.end = ref(job)
        # What frees a place comes before what may wait for the network.
        self._jobs.appendleft(job)

    def _end_anew(self) -> list[Entry[C]]:
        """Have those entries closed whose close has come to nothing, as whoever had the job is gone; return them."""
        if not self._n_closing:
            return []
        left = [entry for entry in self.entries if entry.state is State.CLOSING and entry.end() is None]
        for entry in left:
            self._post_end(Task.ABANDON, entry)
        return left

    def closed(self, entry: Entry[C], now: float) -> None:
        """Strike off a connection that is really closed; its place is free from now on."""
        if entry.state is not State.CLOSING:
            return
        self._move(entry, State.CLOSED)
        self.retired_uses += entry.uses
        if self.by_conn.get(entry.key) is entry:
            del self.by_conn[entry.key]
        self.entries.pop(entry, None)
        self._set_gate()
        self._greet_drained()

    def _move(self, entry: Entry[C], state: State) -> None:
        """Change an entry's state, with the counters that follow from it."""
        old = entry.state
        if state not in TRANSITIONS[old]:
            raise AssertionError(
                f"{entry!r} cannot become {state.value}: this is a defect of millpond, please report it"
            )
        entry.state = state
        if self.quiet_until is not None:
            self._rouse()
        if old is State.OPENING:
            self._n_opening -= 1
            self._n_overdue -= entry.stalled
            entry.stalled = False
        elif old in TENDING:
            self._n_tending -= 1
            self._n_stalled -= entry.stalled
            entry.stalled = False
        elif old is State.CLOSING:
            self._n_closing -= 1
        if state in TENDING:
            self._n_tending += 1
        elif state is State.CLOSING:
            self._n_closing += 1

    # Time.

    def due(self, now: float) -> float:
        """When the ticker has to come again."""
        if self.pulse.standstills != self._seen:
            return now
        if self.quiet_until is not None and not self.forking:
            return self.quiet_until
        due = self._ticked + BEAT
        outage = self.outage
        if outage is not None and outage.next_try < due and self.opens_wanted(outage.next_try):
            due = max(now, outage.next_try)
        return due

    def tick(self, now: float) -> None:
        """Do what time brings: samples, lifetimes, idle limits, keepalives, and suspicion after a standstill."""
        settings, ticked = self.settings, self._ticked
        seen = self.pulse.look(now)
        standstill = seen != self._seen
        self.quiet_until = None
        self.forking = max(0, self.forking - 1)
        self._ask_again()
        spare = len(self.entries) - self._n_closing - settings.min_size
        for entry in self.entries:
            state = entry.state
            if standstill:
                # Also what is being opened or checked: it may have had its answer before, and be dead by now.
                self._doubt(entry)
            if state is IDLE:
                if entry.since > entry.idle_since:
                    # It was lent and returned since the last tick; when is not known, so the longest time is assumed.
                    entry.idle_since = max(ticked, entry.since)
                if entry.doom is not None:
                    self._sweep_due = True
                elif now >= entry.expires:
                    self.condemn(entry, Reason.MAX_LIFETIME, now)
                    spare -= 1
                elif spare > 0 and now - entry.idle_since >= settings.max_idle:
                    self.condemn(entry, Reason.MAX_IDLE, now)
                    spare -= 1
                elif now - max(entry.idle_since, entry.asked) >= settings.keepalive:
                    self._doubt(entry)
                else:
                    self._renew(entry, now)
            elif state is LENT:
                entry.idle_since = now
                if now >= entry.expires:
                    self.condemn(entry, Reason.MAX_LIFETIME, now)
                else:
                    self._renew(entry, now)
            else:
                entry.stalled = self._takes_too_long(entry, now)
        self._count_stalled()
        # Not before, since whoever is cut short has not done it.
        self._seen = seen
        self._ticked = now
        if self._n_stalled and self.line and not self.paused and self.outage is None:
            self._give_up_stalled(now)
        self.sweep(now)

    def _takes_too_long(self, entry: Entry[C], now: float) -> bool:
        """Whether what is under way can no longer be counted on."""
        if entry.state is State.OPENING:
            return now - entry.since >= self.settings.connect_timeout
        return (
            entry.state in TENDING and now - (entry.asked if entry.state is State.CHECKING else entry.since) >= STALLED
        )

    def _count_stalled(self) -> None:
        self._n_stalled = sum(entry.stalled for entry in self.entries if entry.state in TENDING)
        self._n_overdue = sum(entry.stalled for entry in self.entries if entry.state is State.OPENING)

    def _give_up_stalled(self, now: float) -> None:
        """Have as many cut whose check takes too long as callers wait for the places of, and could be opened in their
        stead. Then the check fails, and whoever is at it closes the connection, as after any other.

        Too long is as long as it takes to open one, by what opens have taken so far.
        """
        settings = self.settings
        opening = self._n_opening - self._n_overdue
        coming = opening + self._n_tending - self._n_stalled + self._n_closing
        places = settings.max_size - len(self.entries)
        short = min(len(self.line) - coming - places, settings.max_opening - opening - self._n_closing)
        patience = max(STALLED, self.open_seconds / max(1, self.opens))
        stalled = [
            entry
            for entry in self.entries
            if entry.state is State.CHECKING
            and entry.doom is None
            and entry.descriptor is not None
            and now - entry.asked >= patience
        ]
        for entry in stalled[: max(0, short)]:
            entry.doom = Reason.CHECK_FAILED
            self.cuts.append(entry)

    def rest(self, now: float) -> None:
        """Need no ticks for a while, if nothing happens that only a tick would see. It is for whoever ticks to ask for:
        nobody else knows when to come again.

        From here on no connection can be lent without the core's knowing: none is good until any time.
        """
        settings = self.settings
        waiting = self.line or self.warming or self.draining or self._jobs or self.outage is not None
        if waiting or self.closing or self.forking or self._wanted(now) > 0 or len(self.idle) < len(self.entries):
            return
        spare = len(self.entries) > settings.min_size
        due = math.inf
        for entry in self.entries:
            since = entry.idle_since
            if now - since < QUIET_AFTER:
                return
            due = min(due, entry.expires, max(since, entry.asked) + settings.keepalive)
            if spare:
                due = min(due, since + settings.max_idle)
        for entry in self.entries:
            if entry.good_until > 0.0:
                entry.good_until = -math.inf
        # One who had read that time before has taken its claim before; then ticks go on.
        if len(self.idle) == len(self.entries):
            self.quiet_until = due

    def _rouse(self) -> None:
        """Need ticks again: something has happened that is not over by itself."""
        self.roused = True
        self.quiet_until = None

    def _ask_again(self) -> None:
        """Have the budget look for what nobody tells of: a pool that was dropped, a call that was lost."""
        if self.share is not None and self.share.wants:
            self.share.stirred = True

    def _renew(self, entry: Entry[C], now: float) -> None:
        """Say until when an entry may be lent without another look: a little longer than until the next tick.

        It is called for what has just been moved, so that ticks do come.
        """
        if entry.doom is None and not entry.suspect and self.settings.max_uses is None:
            entry.good_until = min(
                now + BEAT + GRACE,
                entry.expires,
                max(entry.idle_since, entry.asked) + self.settings.check_after,
            )

    def sweep(self, now: float) -> None:
        """Take those out of the idle that were condemned or doubted there, and serve whom that leaves to be served.

        What is being closed by somebody who is gone is given to another.
        """
        if self._sweep_due:
            self._sweep_due = False
            for _ in range(len(self.idle)):
                try:
                    claim = self.idle.popleft()
                except IndexError:
                    # Borrowers pop at the same time.
                    break
                entry = claim.entry
                if entry.doom is not None:
                    self._close(claim, entry.doom)
                elif entry.suspect:
                    self._check(claim, now)
                else:
                    self.idle.append(claim)
        self._end_anew()
        self.settle(now)

    # The whole pool.

    def warm(self, waiter: Waiter[C], now: float) -> None:
        """Have a caller wait until `min_size` connections are open."""
        self.warming.append(waiter)
        if self.closing:
            self._wake_all(self.warming, Refusal.CLOSED)
        self._greet_warm()

    def _greet_warm(self) -> None:
        if self.warming and len(self.entries) - self._n_opening - self._n_closing >= self.settings.min_size:
            self._wake_all(self.warming, None)

    def drain(self, waiter: Waiter[C], now: float) -> None:
        """Have a caller wait until a closing pool has closed its last connection."""
        self.draining.append(waiter)
        self._greet_drained()

    def _greet_drained(self) -> None:
        if self.closing and not self.entries:
            self._wake_all(self.draining, None)

    def desist(self, waiter: Waiter[C], now: float) -> None:
        """Have a caller of `warm` or `close` wait no longer."""
        for waiters in (self.warming, self.draining):
            if waiter in waiters:
                waiters.remove(waiter)

    def _wake_all(self, waiters: list[Waiter[C]], refusal: Refusal | None) -> None:
        while waiters:
            waiter = waiters[-1]
            waiter.refusal = refusal
            self.wakes.append(waiter)
            waiter.done = True
            waiters.pop()

    def resize(self, settings: Settings, now: float) -> None:
        """Go by other settings; what is idle beyond a smaller `max_size` is closed, what is lent when it comes back."""
        self.configure(settings)
        self._rouse()
        self.settle(now)
        self._greet_warm()

    def refresh(self, now: float) -> None:
        """Replace every connection: the idle now, the lent when they come back."""
        self.generation += 1
        for entry in self.entries:
            self.condemn(entry, Reason.REFRESHED, now)
        if self.outage is not None:
            self.outage.next_try = now
            self.outage.refused = False
        self.sweep(now)

    def pause(self, now: float) -> None:
        """Lend nothing; callers wait in line."""
        self.paused = True
        self._set_gate()

    def resume(self, now: float) -> None:
        """Lend again, to those in line first."""
        self.paused = False
        self.settle(now)

    def close(self, now: float) -> None:
        """Lend nothing any more: send those who wait away, close what is idle, and what is lent when it comes back."""
        self.closing = True
        if self.share is not None:
            self.share.minimum = 0
        self.settle(now)
        self._greet_drained()

    def _send_away(self) -> None:
        while (waiter := self.line.head()) is not None:
            self._dismiss(waiter, Refusal.CLOSED)
        self._wake_all(self.warming, Refusal.CLOSED)

    def audit(self, now: float) -> list[str]:
        """Derive everything anew from the entries and the line; tell what was found to be wrong."""
        found: list[str] = []
        # What was cut short may have left anything to the next tick.
        self._rouse()
        for waiter in list(self.line):
            if waiter.claim is not None or waiter.refusal is not None:
                found.append("a caller in line already had its answer")
                waiter.done = True
                self.wakes.append(waiter)
        self.line.rebuild()
        states = Counter(entry.state for entry in self.entries)
        counted = (
            states[State.OPENING],
            states[State.CHECKING] + states[State.RESETTING],
            states[State.CLOSING],
        )
        if counted != (self._n_opening, self._n_tending, self._n_closing):
            found.append(
                "opening, tending, closing were counted as "
                f"{(self._n_opening, self._n_tending, self._n_closing)} and are {counted}"
            )
        self._n_opening, self._n_tending, self._n_closing = counted
        self._count_stalled()
        for entry in [entry for entry in self.entries if entry.state is State.CLOSED]:
            found.append(f"{entry!r} was still on the books")
            del self.entries[entry]
        for entry in self.entries:
            if entry.generation != self.generation:
                # `refresh` may have been cut short.
                self.condemn(entry, Reason.REFRESHED, now)
        found += [f"nobody was closing {entry!r}" for entry in self._end_anew()]
        present = sorted((entry for entry in self.entries if entry.state is not State.OPENING), key=lambda e: e.serial)
        # The later has the key of one that owned its loan, and has died with it.
        by_conn = {entry.key: entry for entry in present}
        if by_conn != self.by_conn:
            found.append("the index of connections was wrong")
            self.by_conn = by_conn
        self.settle(now)
        self._greet_warm()
        self._greet_drained()
        return found

    def stats(self, now: float) -> Stats:
        """Look at the pool, and sum up what the entries have counted."""
        idle = len(self.idle)
        states = Counter(entry.state for entry in self.entries)
        outage = self.outage
        return Stats(
            name=self.settings.name,
            min_size=self.settings.min_size,
            max_size=self.settings.max_size,
            size=len(self.entries),
            idle=idle,
            lent=states[IDLE] + states[LENT] - idle,
            opening=states[State.OPENING],
            checking=states[State.CHECKING],
            resetting=states[State.RESETTING],
            closing=states[State.CLOSING],
            waiting=len(self.line),
            generation=self.generation,
            paused=self.paused,
            closed=self.closing,
            outage=None if outage is None else type(outage.cause).__name__,
            borrows=self.borrows,
            waits=self.waits,
            waited=self.waited,
            timeouts=self.timeouts,
            refusals=self.refusals,
            cancelled=self.cancelled,
            opens=self.opens,
            open_seconds=self.open_seconds,
            open_failures=self.open_failures,
            checks=self.checks,
            resets=self.resets,
            outages=self.outages,
            closes={reason.value: count for reason, count in self.closes.items()},
        )
