"""What both shells have in common: carrying the core under a lock, and telling people about it.

The lock is held for one change of the core at a time. Nothing is awaited, called back or logged under it. The async
shell needs it too, since the watcher and finalisers speak to the core from other threads.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from inspect import iscoroutinefunction
from random import random
from types import FrameType, TracebackType
from typing import Any, Final, Generic, NoReturn, Protocol, TypeVar, cast

from millpond import _fork, _maintenance, _watcher, events
from millpond._core.core import Core, Fitness, Job, Task
from millpond._core.entry import Claim, Entry, Reason, State
from millpond._core.lease import Lease, let_go
from millpond._core.ledger import Share
from millpond._core.line import Refusal, Waiter
from millpond._core.settings import Settings
from millpond._core.stats import Stats
from millpond._sample import Sample
from millpond._whereabouts import call_site, line_of
from millpond.budget import Budget
from millpond.connector import Condition, Inspector
from millpond.errors import ConnectFailed, Misuse, PoolClosed, PoolError, PoolFull, PoolTimeout
from millpond.records import LeaseRecord

__all__ = ["CLOSED", "Bell", "Shell", "leave_and_tell", "log", "looks_fit", "pools"]

C = TypeVar("C")
T = TypeVar("T")

log: Final = logging.getLogger("millpond")

RESET: Final = frozenset({Condition.CLEAN, Condition.UNPROVED})
"""What a connection may be after a reset."""
CLOSED: Final = ("is closed", "make a new pool; a closed one does not open again")
"""What is said of a closed pool, and what to do."""
CONNECTOR: Final = (*(name for name in vars(Inspector) if name[0] != "_"), "open", "ping", "reset", "close")
"""What a connector has."""


class Bell(Protocol):
    """Wakes whoever looks after a pool, and does what is due."""

    def ring(self) -> None:
        """Wake it. It takes no lock, so that finalisers and signal handlers may call it, in any thread."""
        ...


class Shell(ABC, Generic[C]):
    """A pool without its ways of waiting and working."""

    _droppable = False
    """Whether it may be dropped unclosed and nobody is warned: a keyed pool or a client has made it for its own use."""

    def __init__(self, inspector: Inspector[C], settings: Settings) -> None:
        self._inspector = inspector
        self._inspect = inspector.inspect if inspector.provable else None
        self._settings = settings
        site = call_site(sys._getframe(1))
        self._made_at = line_of(*site) if site else "an unknown place"
        self._inherited: dict[int, C] = {}
        self._own_listeners: tuple[tuple[events.Listener, events.Loans], ...] = ()
        self._listeners: tuple[events.Listener, ...] = ()
        self._loan_listeners: tuple[events.Listener, ...] = ()
        self._noted = settings.leak_after != math.inf
        """Whether it is noted where each loan is made."""
        self._faulty: dict[int, list[events.Listener]] = {}
        """Those who have raised, which is told once."""
        self._begin()
        self._pid = os.getpid()
        """The process that it has begun in."""
        _fork.adopt(self)
        self._heed()

    @classmethod
    def _expect(cls, source: object, twin: str, *, tasks: bool) -> None:
        """Raise `TypeError` for a source that a pool of this kind cannot open connections with."""
        name = cls.__name__
        if isinstance(source, str):
            raise TypeError(f"{name}() takes a connector or a callable; for a URL, use {name}.from_url()")
        way = source if callable(source) else getattr(source, "open", None)
        is_connector = all(hasattr(source, member) for member in CONNECTOR)
        if not (callable(source) or is_connector):
            raise TypeError(
                f"{name}() takes a connector, or a callable that returns a new connection; "
                f"{type(source).__qualname__} is neither"
            )
        if not is_connector and hasattr(type(source), "cursor") and hasattr(type(source), "commit"):
            made = type(source).__qualname__
            raise TypeError(f"{name}() takes a callable that returns a new connection, and this {made} is a connection")
        if iscoroutinefunction(way) and not tasks:
            raise TypeError(f"connections that are awaited are for {twin}, not for {name}")
        if tasks and not callable(source) and not iscoroutinefunction(way):
            raise TypeError(f"connections that are not awaited are for {twin}, not for {name}")

    def _begin(self) -> None:
        """Start with nothing open: when the pool is made, and again in a forked child."""
        # Reentrant only so that it knows its owner from the first moment on: nobody takes it twice (see `_step`).
        self._lock = threading.RLock()
        self._torn = False
        """Whether a change of the core is under way; left standing if it was cut short."""
        self._bell = bell = self._hang_bell()
        self._lost = lost = deque[Entry[C]]()

        def note_lost(entry: Entry[C]) -> None:
            # Called by finalisers: anywhere, at any time. An append and a ring are safe there. It does not refer to
            # the pool, so that a pool nobody holds any more goes at once.
            lost.append(entry)
            bell.ring()

        self._held: dict[int, Lease[C]] = {}
        """The leases of connections lent by `acquire`, by the connection's identity."""
        self._core: Core[C] = Core(
            self._settings,
            time.monotonic(),
            lost=note_lost,
            whoami=self._identify(),
            clock=time.monotonic,
            inspect=self._inspect,
            pulse=_maintenance.pulse,
            silent=getattr(self._inspector, "silent", None),
            share=self._join(),
        )
        self._sample = Sample()
        self._outage_since: float | None = None
        """When the outage began that was told of last, if it is not over."""

    def _join(self) -> Share | None:
        budget = self._settings.budget
        if budget is None:
            return None
        if not isinstance(budget, Budget):
            raise TypeError(f"budget={budget!r} must be a millpond.Budget")
        return budget._join(self, self._settings.min_size)

    def _before_fork(self) -> None:
        """Have the child be born shut, and close what is idle and could not be parked there."""
        core = self._core
        if self._lock._is_owned():  # type: ignore[attr-defined]
            # A signal handler forks in the middle of a change, whose end sees this.
            core.shut(0.0)
        else:
            self._step(core.shut)
        if any(entry.descriptor is None for entry in list(self._core.entries)):
            _fork.prepare_pins()

    def _after_fork_in_parent(self) -> None:
        """Go on as before."""
        if self._core.forking and not self._lock._is_owned():  # type: ignore[attr-defined]
            self._step(self._core.rejoin)

    def _shut(self) -> None:
        """Have every borrow look further, and so begin anew, in a child: the parent's core lends nothing any more."""
        if self._pid != os.getpid():
            self._core.gate = True

    def _after_fork_in_child(self) -> None:
        """Begin anew in a child: what the parent had is the parent's, and is kept from saying goodbye."""
        if self._pid == os.getpid():
            return
        self._shut()
        for entry in list(self._core.entries):
            # A lease of the forking thread may still come back; it finds the entry doomed, and no longer on the books.
            entry.good_until = 0.0
            if entry.state is not State.CLOSED and hasattr(entry, "conn"):
                # Also what is being closed: its server would not hear of that while the child has a handle on it.
                self._inherited[id(entry.conn)] = entry.conn
                self._disown(entry)
        for waiter in [*self._core.line, *self._core.warming, *self._core.draining]:
            # A signal handler has forked while the forking thread waited: it asks the child's core.
            waiter.done = True
            waiter.wake()
        with _fork.beginning:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Begin, in a child, with `_fork.beginning` held; a nested call would join a budget a second time."""
        if os.getpid() == self._pid:
            # A signal handler has used the pool meanwhile.
            return
        self._begin()
        self._heed()
        # Last: whoever is struck before that has not begun.
        self._pid = os.getpid()

    def _disown(self, entry: Entry[C]) -> None:
        descriptor = entry.descriptor
        if not isinstance(descriptor, _watcher.Descriptor) or not descriptor.current():
            # Its driver has connected anew, perhaps.
            descriptor = self._descriptor_of(entry.conn)
        _fork.disown(entry.conn, descriptor)

    def _begun_anew(self, change: Callable[..., T]) -> Callable[..., T]:
        """Begin anew in a child whose hooks were cut short; return the same change, of the core that there is now."""
        former = self._core
        if _fork.beginning._is_owned() and self._is_beginning():  # type: ignore[attr-defined]
            raise self._interrupted()
        with _fork.beginning:
            self._after_fork_in_child()
        is_former = getattr(change, "__self__", None) is former
        return cast("Callable[..., T]", getattr(self._core, change.__name__)) if is_former else change

    def _is_beginning(self) -> bool:
        """Whether this thread is in the midst of beginning this pool anew. The stack tells, whatever has struck."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame.f_code is Shell._begin_anew.__code__ and frame.f_locals["self"] is self:
                return True
            frame = frame.f_back
        return False

    # Carrying the core.

    def _step(self, change: Callable[..., T], *args: object) -> T:
        """Make one change of the core, wake-ups included; if the last one was cut short, audit first."""
        if self._pid != os.getpid():
            change = self._begun_anew(change)
        lock = self._lock
        if lock._is_owned():  # type: ignore[attr-defined]
            raise self._interrupted()
        try:
            with lock:
                core = self._core
                now = time.monotonic()
                if self._torn:
                    # It may have been `resize` that was cut short.
                    core.configure(self._settings)
                    core.audit(now)
                self._torn = True
                outcome = change(*args, now)
                if core.wakes:
                    _wake(core.wakes)
                share = core.share
                if share is not None:
                    core.declare(share, now)
                work = core.chores or core.opens_wanted(now) or (share is not None and share.wants)
                roused = core.roused
                if roused:
                    self._bell.ring()
                    core.roused = False
                self._torn = False
        except BaseException as cut:
            # What was cut short is gone on with in the next turn, which may not be due for long.
            self._bell.ring()
            let_go(cut)
            raise
        if share is not None and share.stirred:
            share.stirred = False
            cast("Budget", self._settings.budget)._settle()
        if work or roused:
            self._kick()
        return outcome

    @abstractmethod
    def _kick(self) -> None:
        """See to it that the core's work is done: soon, and elsewhere."""

    @abstractmethod
    def _identify(self) -> Callable[[], int]:
        """Return what tells the number of the running thread or task; it does not refer to the pool."""

    @abstractmethod
    def _hang_bell(self) -> Bell:
        """Make what wakes whoever looks after the pool."""

    def _hung_up(self, entry: Entry[C]) -> None:
        self._step(self._core.hung_up, entry)
        self._bell.ring()

    def _attend(self) -> float:
        """Do what is due; return the seconds until something will be."""
        core = self._core
        while self._lost:
            entry = self._lost[0]
            if self._step(core.lost, entry):
                self._report(
                    logging.WARNING,
                    lambda: "a connection on loan was never returned; its borrower is gone, and it was closed",
                    events.ConnectionLost,
                    connection=entry.serial,
                    borrowed_at=_site_of(entry),
                )
            self._lost.popleft()
        now = time.monotonic()
        if now >= core.due(now):
            self._step(core.tick)
            self._step(core.rest)
            if self._noted:
                self._tell_leaks(now)
            if self._sample.wanted:
                self._sample.pace(now, core.borrows)
        else:
            self._step(core.sweep)
        while core.cuts:
            self._cut(core.cuts.popleft())
        self._tell_outage()
        return max(0.0, core.due(now) - time.monotonic())

    def _cut(self, entry: Entry[C]) -> None:
        """Have whoever waits for an answer on a connection fail at once."""
        descriptor = entry.descriptor
        if isinstance(descriptor, _watcher.Descriptor):
            from millpond.connectors.factory import cut_number

            cut_number(descriptor.number, descriptor.inode)

    def _tell_outage(self) -> None:
        outage, since = self._core.outage, self._outage_since
        if outage is not None and since is None:
            self._outage_since = outage.since
            cause = _bare(outage.cause)
            self._report(
                logging.WARNING,
                lambda: f"cannot connect to {self._inspector.target}: {events.brief(cause)}",
                events.OutageBegan,
                error=cause,
            )
        elif outage is None and since is not None:
            self._outage_since = None
            self._report(
                logging.INFO,
                lambda: f"connected to {self._inspector.target} again",
                events.OutageEnded,
                seconds=time.monotonic() - since,
            )

    def _tell_leaks(self, now: float) -> None:
        for entry in list(self._core.entries):
            overdue = entry.state is State.LENT and now - entry.since > self._settings.leak_after
            if overdue and entry.leak_told != entry.uses:
                entry.leak_told = entry.uses
                self._tell_leak(self._record(entry, now))

    def _tell_leak(self, record: LeaseRecord) -> None:
        self._report(logging.WARNING, lambda: f"a loan has lasted {record}", events.LeakSuspected, lease=record)

    # Listening.

    def listen(self, listener: events.Listener, *, loans: events.Loans = "all") -> Callable[[], None]:
        """Have a listener hear of what happens in this pool; return what ends that. See `millpond.events`."""
        seat = events.enlist(listener, loans)
        self._own_listeners = (*self._own_listeners, seat)
        self._heed()
        return partial(self._part_with, seat)

    def _part_with(self, seat: tuple[events.Listener, events.Loans]) -> None:
        self._own_listeners = tuple(other for other in self._own_listeners if other is not seat)
        self._heed()

    def _heed(self) -> None:
        """Note who listens from now on."""
        audience = (*self._own_listeners, *events.everywhere())
        self._listeners = tuple(listener for listener, _ in audience)
        self._loan_listeners = tuple(listener for listener, loans in audience if loans != "none")
        self._sample.begin(wanted=bool(self._loan_listeners) and all(loans != "all" for _, loans in audience))
        self._special = bool(self._loan_listeners) or self._noted or self._core.silent is not None
        """Whether a loan is more than the hot path."""

    def _tell(self, kind: Callable[..., events.Event], **facts: object) -> None:
        """Tell those who listen, if anybody does."""
        if self._listeners:
            self._pass_on(self._listeners, kind(pool=self._settings.name, at=time.monotonic(), **facts))

    def _tell_loan(self, kind: Callable[..., events.Event], **facts: object) -> None:
        """Tell those who listen to loans."""
        if self._loan_listeners:
            self._pass_on(self._loan_listeners, kind(pool=self._settings.name, at=time.monotonic(), **facts))

    def _report(self, level: int, what: Callable[[], str], kind: Callable[..., events.Event], **facts: object) -> None:
        """Log what should be known even if nobody listens, and tell those who do."""
        self._report_at(time.monotonic(), level, what, kind, facts)

    def _report_at(
        self,
        at: float,
        level: int,
        what: Callable[[], str],
        kind: Callable[..., events.Event],
        facts: dict[str, object],
    ) -> None:
        event = kind(pool=self._settings.name, at=at, **facts)
        # The text is put together here, too: an error of a driver says what it says.
        log.log(level, "pool %r: %s", self._settings.name, what(), extra=event.facts())
        self._pass_on(self._listeners, event)

    def _pass_on(self, listeners: tuple[events.Listener, ...], event: events.Event) -> None:
        for listener in listeners:
            try:
                listener(event)
            except Exception:
                first = [listener]
                # One step, since two threads may tell it something at once.
                if self._faulty.setdefault(id(listener), first) is first:
                    log.exception("pool %r: %r raised; it goes on being told", self._settings.name, listener)

    def _tell_lent(self, lease: Lease[C], told: bool, asked: float, frame: FrameType) -> None:
        """Tell of a loan that has just begun, and note where."""
        assert lease._claim is not None
        if self._noted:
            lease._note(call_site(frame))
            self._note_borrower(lease)
        if told:
            waited = time.monotonic() - asked
            self._tell_loan(events.ConnectionLent, connection=lease._claim.entry.serial, waited=waited)

    def _is_unused(self) -> bool:
        """Whether there is nothing to keep: no connection, and nobody who wants one."""
        core = self._core
        return not (core.entries or core.line or core.warming or core.chores or core.settings.min_size or self._lost)

    # Opening.

    def _accept(self, conn: C) -> None:
        """Raise `Misuse` if what was opened cannot be told from other connections."""
        if conn is None:
            raise self._misused("was given None instead of a connection", "return the connection that was opened")
        entry = self._core.by_conn.get(id(conn))
        if entry is not None and entry.conn is conn:
            raise self._misused("was given a connection that it already has", "open a new connection with each call")

    def _install(self, claim: Claim[C], conn: C) -> None:
        """Take in a new connection and have it watched."""
        descriptor = self._descriptor_of(conn)
        began = claim.entry.since
        self._step(self._core.opened, claim, conn, descriptor, random())
        self._tell(events.ConnectionOpened, connection=claim.entry.serial, seconds=claim.entry.born - began)
        if descriptor is not None:
            # Afterwards, since a hang-up can be told of an open entry only; one that came before is told at once.
            _watcher.watch(descriptor, self, claim.entry)

    def _fail(self, claim: Claim[C], error: BaseException) -> None:
        """Give an open up, since the server cannot be reached, or lets nobody in."""
        refused = self._is_refusal(error)
        error = _without_text(error)
        self._step(self._core.open_failed, claim, error, refused, random())
        self._bell.ring()
        self._tell(events.OpenFailed, error=_bare(error), refused=refused, seconds=time.monotonic() - claim.entry.since)

    def _tended(self, job: Job[C], sound: bool) -> None:
        """Take back a connection that has been checked or reset."""
        self._step(self._core.tended, job, sound)
        kind = events.ConnectionChecked if job.task is Task.CHECK else events.ConnectionReset
        self._tell(kind, connection=job.entry.serial, sound=sound)

    def _closed(self, entry: Entry[C]) -> None:
        """Strike off a connection that is closed."""
        self._step(self._core.closed, entry)
        if self._core.closing:
            self._bell.ring()
        self._tell_closed(entry)

    def _tell_closed(self, entry: Entry[C]) -> None:
        self._tell(
            events.ConnectionClosed,
            connection=entry.serial,
            reason=(entry.doom or Reason.POOL_CLOSED).value,
            age=time.monotonic() - entry.born,
            uses=entry.uses,
        )

    def _descriptor_of(self, conn: C) -> _watcher.Descriptor | None:
        try:
            return _watcher.identify(self._inspector.descriptor(conn))
        except Exception:
            return None

    def _watch_anew(self, entry: Entry[C]) -> None:
        """Have a connection watched that has been reset and may have another descriptor since."""
        descriptor = self._descriptor_of(entry.conn)
        if descriptor != entry.descriptor:
            self._unwatch(entry)
            entry.descriptor = descriptor
            if descriptor is not None:
                _watcher.watch(descriptor, self, entry)

    def _is_refusal(self, error: BaseException) -> bool:
        try:
            return self._inspector.refused(error)
        except Exception:
            return False

    def _unwatch(self, entry: Entry[C]) -> None:
        if isinstance(entry.descriptor, _watcher.Descriptor):
            _watcher.forget(entry.descriptor)

    def _warn_unclosed(self) -> None:
        # Without `source=self`: whoever collects warnings would bring the pool back to life.
        warnings.warn(f"pool {self.name!r}, made at {self._made_at}, was never closed", ResourceWarning, stacklevel=2)

    def _scuttle(self) -> None:
        """Free the connections of a pool that nobody can use any more, or that was closed and then dropped at once."""
        # In a child whose hooks were cut short they are the parent's.
        self._after_fork_in_child()
        for entry in self._core.forsake():
            with suppress(Exception):
                self._unwatch(entry)
                self._inspector.abandon(entry.conn)
            self._tell_closed(entry)
        # What is on loan goes with its last reference: nobody is to hold it who hears of hang-ups for the pool.
        for entry in list(self._core.entries):
            self._unwatch(entry)
        # As a program ends, somebody's finaliser may come after this one, and would wait for nobody.
        self._core.closing = True

    def _put_in_line(self, waiter: Waiter[C]) -> None:
        """Put a caller in line, unless it is served at once or refused."""
        self._step(self._core.enrol, waiter)
        while (claim := waiter.claim) is not None and waiter.deadline <= waiter.since:
            # It does not wait, so nobody was asked whether it lives. What shows without asking is looked at.
            if self._inspector.alive(claim.entry.conn):
                break
            waiter.claim, waiter.done = None, False
            claim.entry.uses -= 1
            self._step(self._core.release, claim, Fitness.DEAD)
            self._step(self._core.enrol, waiter)

    # Returning.

    def _return(self, claim: Claim[C], error: BaseException | None) -> None:
        """Take back a connection that is not known to be clean.

        It is reset beside the line and never here, in the caller's thread or task: there an exception of the caller's
        own (a time limit, a cancellation) could not be told from one of the driver's.
        """
        job = self._step(self._core.release, claim, self._fitness(claim.entry, error))
        if job is not None:
            self._step(self._core.post, job)

    def _fitness(self, entry: Entry[C], error: BaseException | None) -> Fitness:
        if self._inspect is None:
            condition = Condition.CLEAN if error is None else Condition.BROKEN
        else:
            condition = self._inspect(entry.conn, error)
        if condition is Condition.CLEAN:
            return Fitness.CLEAN
        if condition is Condition.DIRTY or condition is Condition.UNPROVED:
            return Fitness.DIRTY
        return Fitness.CUT if self._inspector.alive(entry.conn) else Fitness.DEAD

    def _is_clean(self, conn: C) -> bool:
        """Whether what comes out of a reset can be lent: it is looked at as what comes out of a loan."""
        return self._inspect is None or self._inspect(conn, None) in RESET

    def _lease_of(self, conn: C, verb: str) -> Lease[C] | None:
        """Find the lease of a connection lent by `acquire`; None for one inherited from before a fork."""
        lease = self._held.pop(id(conn), None)
        if lease is not None:
            return lease
        if id(conn) in self._inherited:
            return None
        entry = self._core.by_conn.get(id(conn))
        if entry is None or entry.conn is not conn:
            what, hint = (
                f"was asked to {verb} something that it did not lend",
                "give each connection back once, to its own pool",
            )
        elif entry.state is State.LENT:
            what = f"was asked to {verb} a connection that is lent to a `with` block"
            hint = "leaving the block returns it"
        else:
            what, hint = f"was asked to {verb} a connection that is not on loan", "it has been returned before"
        raise self._misused(what, hint)

    def _take_back(self, conn: C) -> None:
        """Return what `_lend` has lent. Raises `Misuse`, and loses nothing, if it is not on loan."""
        lease = conn.loan  # type: ignore[attr-defined]
        if lease is None or lease._pool is not self or lease._claim is None:
            raise self._misused("got back a connection that is not on loan from it", "give each connection back once")
        # From here on this frame owns the loan: if it is cut, that dies, and the pool learns of it.
        conn.loan = None  # type: ignore[attr-defined]
        lease._claim.entry.conn = conn
        lease.leave(None, None, None)

    def _drop(self, lease: Lease[C]) -> None:
        """Lose a lease that `acquire` could not hand out, and with it its claim."""
        for number, held in list(self._held.items()):
            if held is lease:
                del self._held[number]
        lease._claim = None

    def _misused(self, what: str, hint: str) -> Misuse:
        return self._error(Misuse, what, hint)

    def _interrupted(self) -> Misuse:
        return self._misused(
            "was used by a signal handler or a finaliser that interrupted the pool itself",
            "let the handler set a flag or an event, and use the pool outside of it",
        )

    def _settle(self) -> None:
        self._step(self._core.settle)

    def _discard(self, conn: C) -> None:
        entry = self._core.by_conn.get(id(conn))
        if entry is None or entry.conn is not conn or entry.state is not State.LENT:
            lease = self._lease_of(conn, "discard")
        else:
            self._step(self._core.condemn, entry, Reason.DISCARDED)
            lease = self._held.pop(id(conn), None)
        if lease is not None:
            lease.leave(None, None, None)

    # Telling people.

    @property
    def name(self) -> str:
        """The name of the pool."""
        return self._settings.name

    @property
    def settings(self) -> Settings:
        """The settings of the pool as they are now."""
        return self._settings

    def __repr__(self) -> str:
        core = self._core
        idle = len(core.idle)
        state = "closed" if core.closing else f"{len(core.entries)} of {self._settings.max_size} open, {idle} idle"
        return f"<millpond.{type(self).__name__} {self._settings.name!r} to {self._inspector.target}: {state}>"

    @abstractmethod
    def _find(self, owner: int) -> object:
        """Return the thread or task of a number; None if there is none, or whatever has the number by now."""

    @abstractmethod
    def _describe(self, borrower: object) -> tuple[str, str | None]:
        """Return the name of a thread or task, and where it is now; None stands for one that is no more."""

    @abstractmethod
    def _current(self) -> object:
        """Return the running thread or task; None if there is none."""

    def _note_borrower(self, lease: Lease[C]) -> None:
        """Note who has made a loan that may outlive it: its number is another's by then, who would be blamed."""
        borrower, claim = self._current(), lease._claim
        if borrower is not None and claim is not None:
            claim.entry.borrower = (claim.entry.uses, weakref.ref(borrower))

    def _record(self, entry: Entry[C], now: float) -> LeaseRecord:
        uses, borrower = entry.borrower
        owner, now_at = self._describe(borrower() if uses == entry.uses else self._find(entry.owner))
        return LeaseRecord(
            connection=entry.serial,
            age=max(0.0, now - entry.since),
            uses=entry.uses,
            owner=owner,
            borrowed_at=_site_of(entry),
            now_at=now_at,
        )

    def _lent(self) -> list[Entry[C]]:
        def lent(now: float) -> list[Entry[C]]:
            lent = [entry for entry in self._core.entries if entry.state is State.LENT]
            return sorted(lent, key=lambda entry: entry.since)

        return self._step(lent)

    def _records(self) -> tuple[LeaseRecord, ...]:
        now = time.monotonic()
        return tuple(self._record(entry, now) for entry in self._lent())

    def _error(
        self, kind: type[E], what: str, hint: str, *, numbers: str = "", cause: BaseException | None = None
    ) -> E:
        lines = [f"pool {self._settings.name!r} {what}"]
        lines += [
            f"  {line}" for line in (numbers, cause and f"last error: {events.brief(cause)}", f"hint: {hint}") if line
        ]
        error = kind("\n".join(lines))
        error.pool = self._settings.name
        error.__cause__ = cause
        return error

    def _refusal_of(self, waiter: Waiter[C]) -> PoolError:
        """Explain to a caller who has waited in line why it gets nothing."""
        waited = time.monotonic() - waiter.since
        error = self._refused(waiter, waiter.deadline - waiter.since, waited)
        kind = events.CallerTimedOut if waiter.refusal is Refusal.TIMEOUT else events.CallerRefused
        self._tell(kind, waited=waited, error=error)
        return error

    def _close_down(self) -> None:
        """Begin to close: those in line are sent away, and nothing is lent any more."""
        closed = self._core.closing
        self._step(self._core.close)
        if not closed:
            self._tell(events.PoolClosed)

    def _call_off(self, waiter: Waiter[C]) -> None:
        """Undo what a caller wanted who was struck or cancelled."""
        self._step(self._core.cancel, waiter)
        self._tell(events.CallerCancelled, waited=time.monotonic() - waiter.since)

    def _refused(self, waiter: Waiter[C], timeout: float, waited: float) -> PoolError:
        """Explain to a caller why it gets nothing."""
        refusal = waiter.refusal
        stats = self._step(self._core.stats)
        outage = self._core.outage
        cause = None if outage is None else _bare(outage.cause)
        numbers = (
            f"{stats.lent} of {stats.max_size} lent, {stats.idle} idle, {stats.opening} opening"
            + (f", {stats.checking + stats.resetting} being checked" if stats.checking + stats.resetting else "")
            + (f", {stats.closing} closing" if stats.closing else "")
            + f"; {stats.waiting} {'caller waits' if stats.waiting == 1 else 'callers wait'}"
        )
        error: PoolError
        if refusal is Refusal.CLOSED:
            error = self._error(PoolClosed, *CLOSED)
        elif refusal is Refusal.FULL:
            error = self._error(
                PoolFull,
                f"lets no more than max_waiting={self._settings.max_waiting} callers wait for others",
                "shed load before it gets here, or raise max_waiting or max_size",
                numbers=numbers,
            )
        elif refusal is Refusal.DOWN and outage is not None and outage.refused:
            what = f"is not let in by {self._inspector.target}"
            hint = "check user, password and database"
            if _asks_nobody(cause):
                what, hint = f"cannot make a connection to {self._inspector.target}", "see the last error"
            error = self._error(
                ConnectFailed,
                what,
                f"{hint}; the pool tries again when it is asked for a connection, "
                "but not more often than every 0.5 s, and at last every 5 s",
                cause=cause,
            )
        elif refusal is Refusal.DOWN:
            since = 0.0 if outage is None else time.monotonic() - outage.since
            attempts = 1 if outage is None else outage.attempts
            tried = f"tried {attempts} times in {_seconds(since)}" if attempts > 1 else "tried once"
            error = self._error(
                ConnectFailed,
                f"cannot connect to {self._inspector.target}",
                "the pool goes on trying; set ride_out=True to have callers wait for the server up to their timeout",
                numbers=tried,
                cause=cause,
            )
        else:
            error = self._timed_out(waiter, stats, numbers, timeout, waited, cause)
        error.stats = stats
        return error

    def _timed_out(
        self,
        waiter: Waiter[C],
        stats: Stats,
        numbers: str,
        timeout: float,
        waited: float,
        cause: BaseException | None,
    ) -> PoolTimeout:
        now = time.monotonic()
        lent = self._lent()
        oldest = self._record(lent[0], now) if lent else None
        if oldest is not None:
            numbers += f"; oldest loan {oldest}"
        # Whoever holds one and waits for another may wait for somebody who does the same.
        holders = {entry.owner for entry in lent}
        own = sum(entry.owner == waiter.owner for entry in lent)
        stuck = self._step(self._core.waiting_of, holders)
        if stuck:
            numbers += f"; {stuck} of those who wait {'has' if stuck == 1 else 'have'} one already"
        opening = [now - e.since for e in list(self._core.entries) if e.state is State.OPENING]
        outage, share = self._core.outage, self._core.share
        if outage is not None and outage.refused:
            why, hint = "the server refuses the pool", "check user, password and database"
            if _asks_nobody(outage.cause):
                why, hint = "no connection can be made", "see the last error"
        elif outage is not None:
            why, hint = "the server cannot be reached", f"see why {self._inspector.target} is down"
        elif stats.paused:
            why, hint = "it is paused", "call resume()"
        elif share is not None and share.exhausted and stats.size < stats.max_size:
            why, hint = cast("Budget", self._settings.budget)._exhausted()
        elif own and stats.lent >= stats.max_size:
            why = f"all connections are on loan, {own} of them to this very caller"
            hint = "borrow once for the whole of the work, and pass the connection on"
        elif stats.lent >= stats.max_size:
            why = "all connections are on loan"
            hint = "raise max_size, or find the slow borrower with pool.leases()"
        elif opening:
            why = f"connections take too long to open: the oldest attempt has lasted {_seconds(max(opening))}"
            hint = f"see why {self._inspector.target} is slow; keep connections ready with min_size, or raise timeout"
        else:
            why, hint = _why_not(timeout, stats)
        what = f"lent no connection within {_seconds(max(0.0, timeout))}: {why}"
        error = self._error(PoolTimeout, what, hint, numbers=numbers, cause=cause)
        error.waited = waited
        error.oldest = oldest
        return error

    def _cold(self, timeout: float) -> PoolTimeout:
        stats = self._step(self._core.stats)
        ready = stats.size - stats.opening - stats.closing
        outage = self._core.outage
        error = self._error(
            PoolTimeout,
            f"has {ready} of min_size={stats.min_size} connections open after {_seconds(timeout)}",
            f"it goes on opening them; see whether {self._inspector.target} is slow, or wait longer",
            numbers=f"{stats.opening} opening",
            cause=None if outage is None else _bare(outage.cause),
        )
        error.stats = stats
        return error

    def _tell_unreturned(self) -> None:
        for record in self._records():
            log.warning("pool %r was closed while a connection is still on loan: %s", self._settings.name, record)

    def _resize(self, min_size: int | None, max_size: int | None) -> None:
        """Change the sizes, or raise `ValueError`."""
        # Another thread may resize meanwhile, whose size is not to be lost.
        while not self._resize_once(min_size, max_size):
            pass
        settings = self._settings
        self._tell(events.PoolResized, min_size=settings.min_size, max_size=settings.max_size)

    def _resize_once(self, min_size: int | None, max_size: int | None) -> bool:
        former, share = self._settings, self._core.share
        settings = replace(
            former,
            min_size=former.min_size if min_size is None else min_size,
            max_size=former.max_size if max_size is None else max_size,
        )
        if share is None:
            return self._step(self._exchange, former, settings)
        budget, done = cast("Budget", settings.budget), False
        budget._guarantee(share, settings.min_size)
        try:
            done = self._step(self._exchange, former, settings)
        finally:
            if not done:
                budget._guarantee(share, self._settings.min_size)
        return done

    def _exchange(self, former: Settings, settings: Settings, now: float) -> bool:
        if self._settings is not former:
            return False
        self._settings = settings
        self._core.resize(settings, now)
        return True

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"this {type(self).__name__} cannot be copied or pickled, for two would have the same connections: "
            "hand it on as it is within a process, and make one in each process"
        )


E = TypeVar("E", bound=PoolError)


def pools() -> list[Shell[Any]]:
    """Return the pools of this process, of threads and of tasks, those of keyed pools and drop-ins included."""
    return [pool for pool in _fork.pools() if isinstance(pool, Shell)]


def _why_not(timeout: float, stats: Stats) -> tuple[str, str]:
    """Say why somebody got nothing whom neither the server nor those who have connections kept from it, and a hint."""
    if sys.is_finalizing():
        return "the program ends, and nobody opens connections any more", "borrow in what `atexit` calls, not later"
    if timeout > 0:
        return "others were served first", "raise timeout or max_size"
    if stats.checking:
        return "what is idle is checked first, since a connection was found dead", "give it a timeout above 0 to wait"
    return "none was idle", "give it a timeout above 0 to let it open one"


def _asks_nobody(cause: BaseException | None) -> bool:
    """Whether no server has refused a login: the program has given what makes no connection, or it is a file."""
    if any(kind.__module__ == "sqlite3" for kind in type(cause).__mro__):
        return True
    # A certificate that is not trusted is an OSError, too.
    return isinstance(cause, (TypeError, ValueError)) and not isinstance(cause, OSError)


def looks_fit(lease: Lease[C], conn: C) -> bool:
    """Tell whether nothing has come on what was just borrowed that nobody asked for; if something has, close it.

    A new connection is fit: nobody has left it before an answer came, and in some protocols the server speaks first.
    """
    claim = lease._claim
    silent = lease._core.silent
    if silent is None or claim is None or claim.entry.uses == 1 or silent(conn):
        return True
    pool = cast("Shell[C]", lease._pool)
    log.debug("pool %r: something has come on an idle connection, which is closed", pool.name)
    fitness = Fitness.CUT if pool._inspector.alive(conn) else Fitness.DEAD
    claim.entry.uses -= 1
    lease._claim = None
    pool._step(pool._core.release, claim, fitness)
    return False


def leave_and_tell(
    self: Lease[C], kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """Return what a traced lease has, and tell of it: the way out of those of both shells."""
    claim = self._claim
    try:
        told: bool = self.told  # type: ignore[attr-defined]
        entry = claim.entry if told and claim is not None else None
        held = 0.0 if entry is None else time.monotonic() - entry.since
        claim = None
        Lease.leave(self, kind, error, trace)
    except BaseException as cut:
        if claim is not None and self._claim is claim:
            self._claim = None
        claim = None
        let_go(cut)
        raise
    if entry is not None:
        pool = cast("Shell[C]", self._pool)
        pool._tell_loan(events.ConnectionReturned, connection=entry.serial, held=held, error=error)


def _site_of(entry: Entry[C]) -> str | None:
    """Where the loan began that an entry is in, if that was noted."""
    site = entry.site
    return line_of(site[1], site[2]) if site is not None and site[0] == entry.uses else None


def _wake(waiters: list[Waiter[C]]) -> None:
    # Not a loop inside of a `with`: CPython 3.13 can raise a signal handler's exception at a loop's jump back, and then
    # calls no __exit__. (test: no_protection_is_left_by_the_jump_back_of_a_loop)
    while waiters:
        # Struck off after it is woken: if this is cut in between, the next change wakes it again.
        waiters[-1].wake()
        waiters.pop()


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.1f} ms" if 0 < seconds < 0.01 else f"{seconds:.2g} s"


def _bare(error: BaseException | None) -> BaseException | None:
    """Take the traceback off a kept error: its frames hold the driver's variables, passwords among them."""
    seen = error
    while seen is not None and seen.__traceback__ is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    return error


_WITH_TEXT: Final = (UnicodeEncodeError, UnicodeDecodeError, UnicodeTranslateError)


def _without_text(error: BaseException) -> BaseException:
    """Return an error without what could not be encoded: a `UnicodeError` keeps the whole of it, as a password."""
    if isinstance(error, _WITH_TEXT):
        return ValueError(f"a name or a password cannot be encoded or decoded: {error.reason}")
    seen: dict[int, BaseException] = {}
    left = [error]
    while left:
        one = left.pop()
        if id(one) in seen:  # an error may be its own cause
            continue
        seen[id(one)] = one
        members = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        if any(isinstance(each, _WITH_TEXT) for each in (*members, *one.args)):
            return ValueError(f"{type(error).__name__}: a name or a password cannot be encoded or decoded")
        with suppress(AttributeError):  # of one that lets nothing be set
            if isinstance(one.__cause__, _WITH_TEXT):
                one.__cause__ = None
            if isinstance(one.__context__, _WITH_TEXT):
                one.__context__ = None
        left += [each for each in (one.__cause__, one.__context__, *members) if each is not None]
    return error
