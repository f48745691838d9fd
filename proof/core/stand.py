"""A core with all that surrounds it: callers, borrowers, openers and tenders, who do as they are told."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final
from weakref import ref

from millpond._core.core import SUSPICION_PAUSE, Core, Fitness, Job, Task
from millpond._core.entry import Claim, Entry, Reason, State
from millpond._core.lease import Lease
from millpond._core.ledger import Share
from millpond._core.line import Line, Refusal, Waiter
from millpond._core.outage import Outage
from millpond._core.pulse import Pulse
from millpond._core.settings import Settings
from proof.core.case import Case

__all__ = [
    *("CALLERS", "CLOSE", "FLIGHTS", "IDLE", "JOBS", "LINE", "LOANS", "LOST", "OPENS", "POSTING", "STRAYS", "WORKING"),
    *("CUT", "ENROL", "GHOST", "LOOK", "NOW", "SETTLE", "WAITS", "WITHOUT_LOCK"),
    *("Caller", "Row", "Stand", "Violation"),
]

Row = tuple[Any, ...]
"""What is remembered of something: numbers, and rows of what it has."""

Telling = Callable[..., Row]
"""Tells an entry, and notes that it has been told."""

NOW: Final = 64.0
"""It is always this late. When time passes, all that is dated becomes so much older."""
PAST: Final = NOW - 0.5
"""Any moment that is only compared with now, once it has passed."""

STATES: Final = tuple(State)
CODES: Final = {state: code for code, state in enumerate(STATES)}
"""How a picture tells a state."""

WAITS: Final = 0
"""A caller who waits, or has its answer and has not seen it yet."""
CUT: Final = 1
"""A caller whom an exception has struck: it will cancel."""
GHOST: Final = 2
"""A waiter whose caller was struck while it cancelled, and has gone."""

POP, COMPARE, LEND, ENROL, LAY, APPEND, LOOK, SETTLE = range(1, 9)
"""The next step of one who is on the hot path."""
WITHOUT_LOCK: Final = frozenset({POP, COMPARE, LEND, LAY, APPEND, LOOK})

UNCHECKED_SINCE_STANDSTILL: Final = 1
UNCHECKED_SINCE_DEATH: Final = 2

# The places of a picture that hold rows of connections or callers.
IDLE, JOBS, LINE, CALLERS, OPENS, LOANS, WORKING, POSTING, LOST, STRAYS, FLIGHTS, GHOSTS = range(5, 17)

CHECK, RESET, CLOSE = range(3)
"""Tasks, as a picture tells them: the two that end a connection are one."""

CONNECTION: Final = "a connection"
TASKS: Final = {Task.CHECK: CHECK, Task.RESET: RESET, Task.CLOSE: CLOSE, Task.ABANDON: CLOSE}
REFUSALS: Final = (None, Refusal.TIMEOUT, Refusal.DOWN)
FITNESS: Final = {fitness.value: fitness for fitness in Fitness}
NOTHING: Final[Row] = ()


def nobody() -> None:
    """Return the job of closing an entry, if nobody has it."""


class Violation(Exception):
    """Something that may never be."""


class Token(Claim[str]):
    """A claim without finalisers: whether its entry has an owner is seen when the state is looked at."""

    __slots__ = ("dissolved",)

    def __init__(self, entry: Entry[str]) -> None:
        self.entry = entry
        self.dissolved = False

    def dissolve(self) -> None:
        self.dissolved = True


class Caller(Waiter[str]):
    """One who waits in line, for `warm` or for `close`."""

    __slots__ = ("fate", "woken")

    def __init__(self, since: float, deadline: float) -> None:
        self.owner = 0
        self.since = since
        self.deadline = deadline
        self.site = None
        self.claim = None
        self.refusal = None
        self.done = False
        self.enrolled = False
        self.fate = WAITS
        self.woken = False

    def wake(self) -> None:
        """Let it go on."""
        self.woken = True


class Loan(Lease[str]):
    """A lease whose slow way is that of the stand."""

    __slots__ = ()

    _pool: Stand

    def __init__(self, stand: Stand, claim: Claim[str] | None, timeout: float) -> None:
        self._core = stand.core
        self._pool = stand
        self._claim = claim
        self._timeout = timeout

    def _wait(self) -> str | None:
        assert self._timeout is not None
        self._pool.enrol(self._timeout)
        return None


class Stand:
    """One core, and what it has to do with.

    It carries the core as `Shell._step` does. Its lists say who holds which claim. While a change is under way, they
    say what they would if an exception struck just then: a claim that only the frames of the change hold has died, and
    one who had called has to cancel.
    """

    def __init__(self, case: Case, settings: tuple[Settings, ...], share: Share | None) -> None:
        self.case = case
        self.settings = settings
        first = settings[0]
        self.suspended = 0.0
        self.pulse = Pulse(NOW, lambda: self.suspended)
        self.core: Core[str] = Core(
            first,
            NOW,
            lost=lambda _: None,
            whoami=lambda: 0,
            clock=lambda: NOW,
            inspect=None,
            pulse=self.pulse,
            share=share,
        )
        self.share = share
        self.watch: Callable[[], None] | None = None
        """Looks at what would be left if an exception struck here."""
        self.balance: Callable[[], None] = lambda: None
        self.ranks: dict[float, float] = {}
        """What is told instead of a moment since when somebody has waited."""
        self.fitness = Fitness.CLEAN
        self._most_uses = 1 if first.max_uses is None else first.max_uses
        ages = [age for age in (first.check_after, first.max_idle, first.keepalive) if age < math.inf]
        self._dated = bool(case.steps)
        self._aging = self._dated and bool(ages)
        self._floor = NOW - max([1.5, *ages]) - 0.5
        self.torn = False
        self.dropped = False
        """Whether nobody has the pool any more."""
        self._clear()

    def _clear(self) -> None:
        self.callers: list[Caller] = []
        self.warming: list[Caller] = []
        self.draining: list[Caller] = []
        self.opens: list[Claim[str]] = []
        self.loans: list[Claim[str]] = []
        self.working: list[Job[str]] = []
        self.posting: list[Job[str]] = []
        self.flights: list[tuple[int, Claim[str] | None]] = []
        """Borrowers and returners on the hot path, by the step that they take next."""
        self.lost: list[Entry[str]] = []
        self.line_before: list[Caller] = []
        self.callers_before = 0
        self.size_before = self.closing_before = self.uses_before = 0
        self.torn_before = self.flown = False
        self.undone = False
        """Whether a loan has been cancelled."""
        self.lent: Claim[str] | None = None
        self.tokens: list[Token] = []

    # Carrying the core.

    def step(self, change: Callable[..., Any], *arguments: object) -> Any:
        """Make one change of the core, as a shell does under its lock."""
        core, watch = self.core, self.watch
        if self.torn:
            core.audit(NOW)
        self.torn = True
        outcome = change(*arguments, NOW)
        if core.wakes:
            self._wake()
        share = self.share
        if share is not None:
            core.declare(share, NOW)
        core.roused = False
        self.torn = False
        if watch is not None:
            watch()
        if share is not None and share.stirred:
            share.stirred = False
            if watch is not None:
                watch()
            self.balance()
        return outcome

    def _wake(self) -> None:
        wakes, watch = self.core.wakes, self.watch
        while wakes:
            if watch is not None:
                watch()
            wakes[-1].wake()
            if watch is not None:
                watch()
            wakes.pop()

    # What a lease needs of a pool.

    def _settle(self) -> None:
        self.step(self.core.settle)

    def _return(self, claim: Claim[str], error: BaseException | None) -> None:
        job = self.step(self.core.release, claim, self.fitness)
        if job is not None:
            self.posting.append(job)

    def _misused(self, what: str, hint: str) -> Exception:
        return Violation(what)

    # What happens.

    def enrol(self, timeout: float) -> None:
        """Have a caller come the slow way."""
        caller = Caller(NOW, NOW + timeout)
        caller.fate = CUT
        self.callers.append(caller)
        self.step(self.core.enrol, caller)
        caller.fate = WAITS
        if caller.done:
            caller.woken = True

    def acquire(self, timeout: float) -> None:
        """Have a caller come: by the hot path, and the slow way if that leads nowhere."""
        lease = Loan(self, None, timeout)
        if lease.enter() is not None:
            assert lease._claim is not None
            self.lent = lease._claim
            self.loans.append(lease._claim)

    def look(self) -> None:
        """Have a caller begin on the hot path, which it goes step by step."""
        if not self.core.gate:
            self.flights.append((POP, None))

    def leave(self, index: int) -> None:
        """Have a borrower begin to return what it has on the hot path, which it goes step by step."""
        if self.loans[index].entry.good_until:
            self.flights.append((LAY, self.loans.pop(index)))

    def fly(self, index: int) -> None:
        """Have one who is on the hot path take a step: what `Lease.enter` and `Lease.leave` do to what others see."""
        phase, claim = self.flights.pop(index)
        core = self.core
        if phase == POP:
            if core.idle:
                self.flights.append((COMPARE, core.idle.pop()))
            else:
                self.flights.append((ENROL, None))
        elif phase == ENROL:
            self.enrol(self.case.timeouts[0])
        elif phase == LOOK:
            if core.gate:
                self.flights.append((SETTLE, None))
        elif phase == SETTLE:
            self._settle()
        else:
            assert claim is not None
            self._handle(phase, claim)

    def fly_on(self, index: int) -> None:
        """Have one who is on the hot path go as far as it can without the lock."""
        flights = self.flights
        while len(flights) > index and flights[index][0] in WITHOUT_LOCK:
            flights.append(flights.pop(index))
            count = len(flights)
            self.fly(count - 1)
            if len(flights) < count:
                break
            flights.insert(index, flights.pop())

    def _handle(self, phase: int, claim: Claim[str]) -> None:
        core, entry = self.core, claim.entry
        if phase == COMPARE and entry.good_until >= NOW:
            self.flights.append((LEND, claim))
        elif phase == COMPARE:
            core.idle.append(claim)
            self.flights.append((ENROL, None))
        elif phase == LEND:
            entry.state = State.LENT
            entry.since = NOW
            entry.uses += 1
            self.loans.append(claim)
            self.flown = True
        elif phase == LAY:
            entry.state = State.IDLE
            self.flights.append((APPEND, claim))
        else:
            if core.fifo:
                core.idle.appendleft(claim)
            else:
                core.idle.append(claim)
            self.flights.append((LOOK, None))

    def take(self, index: int) -> None:
        """Have a caller go on who has been served."""
        caller = self.callers.pop(index)
        if caller.claim is not None:
            self.loans.append(caller.claim)

    def cancel(self, index: int) -> None:
        """Have a caller give up, whatever has become of its request."""
        caller = self.callers[index]
        caller.fate = GHOST
        self.undone = caller.claim is not None
        self.step(self.core.cancel, caller)
        self.callers.remove(caller)

    def expire(self, index: int) -> None:
        """Have a caller find that its time is over."""
        caller = self.callers[index]
        caller.fate = CUT
        self.step(self.core.expire, caller)
        caller.fate = WAITS
        caller.woken = True

    def release(self, index: int, fitness: str) -> None:
        """Have a borrower return what it has."""
        lease = Loan(self, self.loans.pop(index), 0.0)
        if fitness == "dead":
            self._alarm()
        self.fitness = FITNESS[fitness]
        error = None if fitness == "clean" else ERROR
        lease.leave(None if error is None else Exception, error, None)

    def post(self, index: int) -> None:
        """Have a borrower leave a connection to be reset."""
        self.step(self.core.post, self.posting.pop(index))

    def open(self) -> None:
        """Have an opener look for work."""
        claim = self.step(self.core.next_open)
        if claim is not None:
            self.opens.append(claim)

    def opened(self, index: int, jitter: float) -> None:
        """Have an open succeed."""
        self.step(self.core.opened, self.opens.pop(index), CONNECTION, None, jitter)

    def failed(self, index: int, refused: bool) -> None:
        """Have an open fail."""
        self.step(self.core.open_failed, self.opens.pop(index), ERROR, refused, 0.0)

    def forgo(self, index: int) -> None:
        """Have an opener be cancelled."""
        self.step(self.core.forgo, self.opens.pop(index))

    def chore(self) -> None:
        """Have a tender look for work."""
        job = self.step(self.core.next_chore)
        if job is not None:
            self.working.append(job)

    def tended(self, index: int, sound: bool) -> None:
        """Have a check or reset end."""
        job = self.working.pop(index)
        if sound:
            job.entry.leak_told = 0
        else:
            self._alarm()
        self.step(self.core.tended, job, sound)

    def closed(self, index: int) -> None:
        """Have a connection be closed."""
        # Whoever has closed it has the job until that is noted.
        job = self.working.pop(index)
        self.step(self.core.closed, job.entry)

    def hang_up(self, place: str, index: int) -> None:
        """Have the watcher see that a connection has died."""
        holder: Any
        if place == "idle":
            holder = self.core.idle[index]
        elif place == "jobs":
            holder = self.core._jobs[index]
        elif place == "callers":
            holder = self.callers[index].claim
        else:
            holder = getattr(self, place)[index]
        self._alarm()
        self.step(self.core.hung_up, holder.entry)

    def _alarm(self) -> None:
        # If this is struck, it may be that nobody has been told.
        if self.watch is None and NOW - self.core._suspected >= SUSPICION_PAUSE:
            for entry in self.core.entries:
                if entry.state is State.IDLE:
                    entry.leak_told |= UNCHECKED_SINCE_DEATH

    def discard(self, index: int) -> None:
        """Have a borrower say that what it has is to be closed."""
        self.step(self.core.condemn, self.loans[index].entry, Reason.DISCARDED)

    def lose(self, index: int, place: str) -> None:
        """Have somebody die who holds a claim."""
        holders: list[Any] = getattr(self, place)
        holders.pop(index)

    def find(self, index: int) -> None:
        """Have the keeper learn of a claim that has died."""
        entry = self.lost.pop(index)
        self.step(self.core.lost, entry)

    def tick(self, slept: bool) -> None:
        """Have the keeper do what time brings."""
        if slept:
            self.suspended += 60.0
        self.step(self.core.tick)
        self.step(self.core.rest)

    def sweep(self) -> None:
        """Have the keeper look at what is idle."""
        self.step(self.core.sweep)

    def resize(self, index: int) -> None:
        """Have somebody change the size."""
        self.step(self.core.resize, self.settings[index])

    def warm(self) -> None:
        """Have somebody wait until `min_size` connections are open."""
        self._wait_for(self.warming, self.core.warm)

    def drain(self) -> None:
        """Have somebody wait until the last connection is closed."""
        self._wait_for(self.draining, self.core.drain)

    def _wait_for(self, waiting: list[Caller], enrol: Callable[[Waiter[str], float], None]) -> None:
        caller = Caller(NOW, math.inf)
        caller.fate = CUT
        waiting.append(caller)
        self.step(enrol, caller)
        caller.fate = WAITS

    def desist(self, place: str) -> None:
        """Have somebody wait no longer for the whole pool."""
        waiting: list[Caller] = getattr(self, place)
        caller = next(caller for caller in waiting if caller.fate != GHOST)
        caller.fate = GHOST
        self.step(self.core.desist, caller)
        waiting.remove(caller)

    def fork(self) -> None:
        """Have the process prepare to fork."""
        self.working += self.step(self.core.part)

    def pause(self) -> None:
        """Have somebody pause the pool."""
        self.step(self.core.pause)

    def resume(self) -> None:
        """Have somebody resume the pool."""
        self.step(self.core.resume)

    def refresh(self) -> None:
        """Have somebody replace all connections."""
        self.step(self.core.refresh)

    def close(self) -> None:
        """Have somebody close the pool."""
        self.step(self.core.close)

    def rejoin(self) -> None:
        """Have the fork be over."""
        self.step(self.core.rejoin)

    def drop(self) -> None:
        """Have everybody drop the pool: what is idle or waits to be tended is given up."""
        core = self.core
        given_up = core.forsake()
        if len(given_up) != len(core.entries) or set(given_up) != set(core.entries):
            raise Violation("not every connection of a dropped pool is given up once")
        if any(not token.dissolved for token in self.tokens):
            raise Violation("a connection of a dropped pool will be reported as lost")
        core.entries.clear()
        core.by_conn.clear()
        self.dropped = True

    @property
    def may_be_dropped(self) -> bool:
        """Whether nobody waits, has anything on loan, or is at work: those have the pool."""
        busy = (
            self.callers,
            self.opens,
            self.loans,
            self.working,
            self.posting,
            self.flights,
            self.warming,
            self.draining,
        )
        return not (any(busy) or self.lost or self.torn)

    def part(self, place: str) -> None:
        """Have somebody go on who has waited for the whole pool."""
        waiting: list[Caller] = getattr(self, place)
        waiting.remove(next(caller for caller in waiting if caller.fate != GHOST))

    def has_spares(self) -> bool:
        """Whether it has connections that will end by themselves if nobody comes."""
        settings = self.core.settings
        return self._dated and settings.max_idle < math.inf and len(self.core.entries) > settings.min_size

    def pass_time(self, seconds: float) -> None:
        """Make everything older; what is old enough becomes no older."""
        core, floor = self.core, self._floor
        core._ticked -= seconds
        standstill = seconds > 1.0
        if core.quiet_until is None:
            self.pulse._looked -= seconds
        else:
            # Nothing has to be done for the pool, and somebody looks all the same.
            core._ticked = NOW
            core.quiet_until = max(core.quiet_until - seconds, NOW)
            self.pulse._looked = NOW - seconds
            self.pulse.look(NOW)
        core._suspected -= seconds
        if NOW - core._suspected >= 1.0:
            core._suspected = -math.inf
        for entry in core.entries:
            entry.since = max(entry.since - seconds, floor)
            entry.idle_since = max(entry.idle_since - seconds, floor)
            entry.asked = max(entry.asked - seconds, floor)
            entry.expires = max(entry.expires - seconds, PAST)
            if entry.good_until > 0.0:
                entry.good_until = max(entry.good_until - seconds, PAST)
            if standstill and entry.state in (State.IDLE, State.LENT):
                entry.leak_told |= UNCHECKED_SINCE_STANDSTILL
        outage = core.outage
        if outage is not None:
            outage.last = max(outage.last - seconds, NOW - 5.5)
            outage.next_try = max(outage.next_try - seconds, NOW)
        for caller in self.callers:
            caller.deadline = max(caller.deadline - seconds, NOW)

    # Looking at it and putting it back.

    def _row(self, entry: Entry[str], more: int = 0) -> Row:
        """Tell all of an entry that could ever matter."""
        code = CODES[entry.state]
        if code >= 5:
            return (code,)
        fresh = entry.generation == self.core.generation
        if code == 0:
            return code, fresh
        uses = min(entry.uses, self._most_uses + more)
        began = NOW
        if self._dated:
            # What a check or reset takes is dated, and what an idle one was used for since the last tick.
            if code == 3:
                began = max(entry.asked, NOW - 0.5)
            elif code == 4:
                began = max(entry.since, NOW - 0.5)
        if entry.doom is not None:
            return code, True, uses, began, entry.stalled
        common = (
            code, False, uses, began, entry.stalled, entry.suspect, entry.good_until, entry.expires, fresh,
            entry.leak_told,
        )  # fmt: skip
        if self._aging:
            used = entry.since if entry.since > entry.idle_since else self._floor
            return *common, used, entry.idle_since, entry.asked
        return common

    def _entry(self, row: Row) -> Entry[str]:
        core = self.core
        entry: Entry[str] = Entry.__new__(Entry)
        code = row[0]
        entry.state = STATES[code]
        entry.serial = core._serial = core._serial + 1
        entry.owner = 0
        entry.site = None
        entry.descriptor = None
        entry.leak_told = 0
        entry.stalled = False
        entry.doom = None
        entry.end = nobody
        entry.suspect = False
        entry.good_until = 0.0
        entry.uses = 0
        entry.generation = 1
        entry.since = entry.idle_since = entry.asked = NOW
        entry.expires = math.inf
        if code == 0:
            entry.generation = int(row[1])
        else:
            entry.conn = CONNECTION
            entry.key = entry.serial
            core.by_conn[entry.serial] = entry
            if code == 5:
                entry.doom = Reason.BROKEN
            elif code < 5:
                self._fill(entry, row)
        core.entries[entry] = None
        return entry

    def _fill(self, entry: Entry[str], row: Row) -> None:
        code, doomed, entry.uses, began, entry.stalled, *others = row
        if doomed:
            entry.doom = Reason.HUNG_UP
        else:
            entry.suspect, entry.good_until, entry.expires, fresh, entry.leak_told, *ages = others
            entry.generation = int(fresh)
            if ages:
                entry.since, entry.idle_since, entry.asked = ages
        if code == 3:
            entry.asked = began
        elif code == 4:
            entry.since = began

    def _claim(self, row: Row) -> Token:
        token = Token(self._entry(row))
        self.tokens.append(token)
        return token

    def _job(self, row: Row) -> Job[str]:
        code, held = row
        if code == CLOSE:
            entry = self._entry(held)
            job = Job(Task.CLOSE, entry, None)
            entry.end = ref(job)
            return job
        claim = self._claim(held)
        return Job(Task.CHECK if code == CHECK else Task.RESET, claim.entry, claim)

    def _caller(self, row: Row) -> Caller:
        fate, woken, waking, done, enrolled, refused, deadline, since, held = row
        caller = Caller(since, deadline)
        caller.fate = fate
        caller.woken = woken
        caller.done = done
        caller.enrolled = enrolled
        if refused:
            caller.refusal = REFUSALS[refused]
        if held:
            caller.claim = self._claim(held)
        if waking:
            self.core.wakes.append(caller)
        self.callers.append(caller)
        return caller

    def picture(self) -> Row:
        """Tell all that could ever matter, so that two states that will behave alike are told alike."""
        core = self.core
        seen: set[Entry[str]] = set()

        def told(entry: Entry[str], more: int = 0) -> Row:
            if entry in seen:
                raise Violation(f"two have {entry!r}")
            seen.add(entry)
            return self._row(entry, more)

        def told_jobs(jobs: Iterable[Job[str]]) -> list[Row]:
            return [(TASKS[job.task], told(job.entry)) for job in jobs]

        idle = tuple([told(claim.entry) for claim in core.idle])
        jobs = tuple(told_jobs(core._jobs))
        line, callers = self._told_callers(told)
        opens = sorted([told(claim.entry) for claim in self.opens])
        loans = sorted([told(claim.entry) for claim in self.loans])
        working = sorted(told_jobs(self.working))
        posting = sorted([told(job.entry) for job in self.posting])
        flights = sorted([(phase, NOTHING if claim is None else told(claim.entry)) for phase, claim in self.flights])
        ghosts = self._told_ghosts(seen, told)
        unseen = [] if len(seen) == len(core.entries) else [entry for entry in core.entries if entry not in seen]
        if len(seen) + len(unseen) != len(core.entries):
            raise Violation(f"somebody has a connection that is not on the books: {seen - set(core.entries)}")
        lost = sorted([self._row(entry) for entry in unseen if CODES[entry.state] < 5])
        strays = sorted([self._row(entry) for entry in unseen if CODES[entry.state] >= 5])
        outage = core.outage
        return (
            (
                core.gate, core.paused, core.closing, self.torn, core._sweep_due, core.forking, self._size(),
                self.dropped,
            ),
            # Whoever finds a change cut short counts anew.
            (0, 0, 0, core._n_stalled, 0) if self.torn else
            (core._n_opening, core._n_tending, core._n_closing, core._n_stalled, core.line._gaps),
            (core._ticked, self.pulse._looked, self.pulse.standstills != core._seen, core.quiet_until or 0.0),
            core._suspected,
            NOTHING if outage is None else self._told_outage(outage),
            idle, jobs, line, callers, tuple(opens), tuple(loans), tuple(working), tuple(posting),
            tuple(lost), tuple(strays), tuple(flights), tuple(ghosts),
            self._told_others(self.warming, core.warming), self._told_others(self.draining, core.draining),
            self._told_share(),
        )  # fmt: skip

    def _told_callers(self, told: Telling) -> tuple[Row, Row]:
        """Tell who stands in line, in order, with the gaps; and which other callers there are."""
        queue = self.core.line._queue
        line = [NOTHING if waiter.done else self._told_caller(waiter, told) for waiter in queue]
        standing = [waiter for waiter in queue if not waiter.done]
        callers = [
            self._told_caller(caller, told)
            for caller in self.callers
            if caller not in standing
            and caller.fate != GHOST
            and not (caller.refusal is not None and (caller.woken or caller.fate))
        ]
        return tuple(line), tuple(sorted(callers))

    def _told_ghosts(self, seen: set[Entry[str]], told: Telling) -> list[Row]:
        """Tell what those have been given who are gone.

        They are held by those who wake them, and with them what they were given, unless it has been passed on since.
        """
        ghosts = []
        for waiter in self.core.wakes:
            claim = waiter.claim
            if claim is not None and waiter.done and claim.entry not in seen and claim.entry in self.core.entries:
                ghosts.append(told(claim.entry))
        return sorted(ghosts)

    def _told_caller(self, waiter: Waiter[str], told: Telling) -> Row:
        claim, refusal = waiter.claim, waiter.refusal
        assert isinstance(waiter, Caller)
        return (
            waiter.fate if waiter in self.callers else GHOST, waiter.woken, waiter in self.core.wakes, waiter.done,
            waiter.enrolled or waiter.done, 0 if refusal is None else 1 if refusal is Refusal.TIMEOUT else 2,
            waiter.deadline, self.ranks[waiter.since] if self.share is not None else NOW,
            NOTHING if claim is None else told(claim.entry, 1),
        )  # fmt: skip

    def _told_others(self, callers: list[Caller], waiting: list[Waiter[str]]) -> Row:
        told = []
        for caller in callers:
            waits, waking = caller in waiting, caller in self.core.wakes
            if waits or waking or caller.fate != GHOST:
                told.append((caller.fate, caller.woken, waking, caller.done, waits))
        return tuple(told)

    def _told_share(self) -> Row:
        share = self.share
        if share is None:
            return NOTHING
        return (
            share.quota, share.demand, self.ranks[share.since], share.closing, share.owing, share.alert, share.stirred,
            share.minimum,
        )  # fmt: skip

    def _told_outage(self, outage: Outage) -> Row:
        last = max(outage.last, NOW - (5.5 if outage.refused else 0.5))
        return outage.refused, min(outage.attempts, 5), round(last, 6), round(outage.next_try, 6)

    def _size(self) -> int:
        settings = self.core.settings
        return next(number for number, known in enumerate(self.settings) if known is settings)

    def put(self, picture: Row) -> None:
        """Make everything as it was when the picture was taken."""
        core = self.core
        (
            flags, counts, times, suspected, outage, idle, jobs, line, callers, opens, loans, working, posting, lost,
            strays, flights, ghosts, warming, draining, share,
        ) = picture  # fmt: skip
        core.gate, core.paused, core.closing, self.torn, core._sweep_due, core.forking, size, self.dropped = flags
        core._n_opening, core._n_tending, core._n_closing, core._n_stalled, gaps = counts
        core._ticked, self.pulse._looked, stood_still, quiet_until = times
        core.quiet_until = quiet_until or None
        self.pulse.standstills = 1
        core._seen = 0 if stood_still else 1
        core._suspected = suspected
        core.configure(self.settings[size])
        core.generation = 1
        core._serial = 0
        core.entries = {}
        core.by_conn = {}
        core.wakes = []
        core.closes.clear()
        core.retired_uses = core.waits = core.timeouts = core.refusals = core.cancelled = 0
        core.opens = core.open_failures = core.checks = core.resets = core.outages = 0
        core.waited = core.open_seconds = 0.0
        self._clear()
        claim, job, caller = self._claim, self._job, self._caller
        core.idle = deque([claim(row) for row in idle])
        core._jobs = deque([job(row) for row in jobs])
        core.line = Line()
        core.line._gaps = gaps
        queue = core.line._queue
        for row in line:
            if row:
                queue.append(caller(row))
            else:
                gap = Caller(NOW, NOW)
                gap.done = gap.enrolled = True
                queue.append(gap)
        self.line_before = [caller for caller in self.callers if caller.claim is None and caller.refusal is None]
        for row in callers:
            caller(row)
        self.callers_before = len(self.callers)
        self.opens = [claim(row) for row in opens]
        self.loans = [claim(row) for row in loans]
        self.working = [job(row) for row in working]
        for row in posting:
            held = claim(row)
            self.posting.append(Job(Task.RESET, held.entry, held))
        self.lost = [self._entry(row) for row in lost]
        for row in strays:
            self._entry(row)
        self.flights = [(phase, claim(row) if row else None) for phase, row in flights]
        for row in ghosts:
            ghost = Caller(NOW, NOW)
            ghost.done = True
            ghost.claim = claim(row)
            core.wakes.append(ghost)
        self.size_before = len(core.entries)
        self.closing_before = core._n_closing
        self.uses_before = sum([entry.uses for entry in core.entries])
        self.torn_before = self.torn
        core.warming = []
        core.draining = []
        if warming:
            self._put_other(warming, self.warming, core.warming)
        if draining:
            self._put_other(draining, self.draining, core.draining)
        if self.share is not None:
            self._put_share(self.share, share)
        core.outage = None
        if outage:
            core.outage = Outage(NOW)
            core.outage.refused, core.outage.attempts, core.outage.last, core.outage.next_try = outage
            core.outage.cause = ERROR

    def _put_share(self, share: Share, row: Row) -> None:
        (
            share.granted, share.demand, share.since, share.closing, share.owing, share.alert, share.stirred,
            share.minimum,
        ) = row  # fmt: skip
        share.returned = 0

    def _put_other(self, rows: Row, callers: list[Caller], waiting: list[Waiter[str]]) -> None:
        for fate, woken, waking, done, waits in rows:
            caller = Caller(NOW, math.inf)
            caller.fate, caller.woken, caller.done = fate, woken, done
            callers.append(caller)
            if waits:
                waiting.append(caller)
            if waking:
                self.core.wakes.append(caller)


ERROR: Final = ConnectionError("no")
