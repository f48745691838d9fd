"""The pool for threads."""

from __future__ import annotations

import _thread
import atexit
import math
import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import random
from threading import get_ident
from time import monotonic, sleep
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from millpond import _maintenance, events
from millpond._by_url import parted
from millpond._core.core import BEAT, Fitness, Job, Task
from millpond._core.entry import Claim
from millpond._core.lease import LENT, Lease, let_go
from millpond._core.line import Waiter
from millpond._core.settings import Options, Settings, expect_seconds
from millpond._core.stats import Stats
from millpond._lent import C
from millpond._shell import Shell, leave_and_tell, log, looks_fit
from millpond._whereabouts import call_site, described, thread_of
from millpond.connector import Connector
from millpond.records import LeaseRecord

__all__ = ["Pool", "ThreadLease"]

LINGER: Final = 5.0
"""Seconds that a worker without work stays."""
FAREWELL: Final = 1.0
"""Seconds that the end of the program waits for workers that are still at work."""
PATIENCE: Final = 5.0
"""Seconds after which one who waits sees to it again that the pool is looked after."""
REPORTS: Final = 1000
"""So many outages, leaks and losses are kept for a listener that does not come back; the oldest are dropped."""
GROWTH: Final = 4
"""So many workers are hired at once. They may be done with all there is before more would have begun; each that takes
something asks for more if there is more."""


class ThreadLease(Lease[C]):
    """The lease of a thread: `with pool.connection() as conn`."""

    __slots__ = ()

    _pool: Pool[C]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __enter__(self) -> C:
        # `Lease.enter` written out, with the clock and the thread looked up where it is quickest: that and the call
        # would cost a tenth of a borrow. (test: the_hot_path_of_threads_is_that_of_the_core)
        core = self._core
        claim = None
        try:
            if not core.gate:
                owner = get_ident()
                now = monotonic()
                try:
                    claim = core.idle.pop()
                except IndexError:
                    pass
                else:
                    # Nobody else has a turn between this question and the next statement.
                    if self._claim is None:
                        self._claim = claim
                        entry = claim.entry
                        if now <= entry.good_until:
                            entry.state = LENT
                            entry.owner = owner
                            entry.since = now
                            entry.uses += 1
                            return entry.conn
                        self._claim = None
                    # The slow way begins by settling what this puts back, and that is not this one's any more.
                    back, claim = claim, None
                    core.idle.append(back)
            if self._claim is None:
                return self._wait()
        except BaseException as cut:
            if self._claim is claim:
                self._claim = None
            back = claim = None  # type: ignore[assignment]
            let_go(cut)
            raise
        back = None  # type: ignore[assignment]
        raise self._entered()

    if TYPE_CHECKING:

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None: ...

    else:
        __exit__ = Lease.leave

    def _wait(self) -> C:
        pool = self._pool
        claim = pool._wait(self._timeout)
        if self._claim is not None:
            # Another thread has entered it meanwhile.
            pool._step(pool._core.release, claim, Fitness.CLEAN)
            raise self._entered()
        try:
            self._claim = claim
            # Another than when the lease was made, if that was before a fork.
            self._core = pool._core
            return claim.entry.conn
        except BaseException:
            if self._claim is claim:
                self._claim = None
            raise


class _LookingLease(ThreadLease[C]):
    """A lease that looks at a connection before it is lent again: whether nothing has come that nobody asked for."""

    __slots__ = ()

    def __enter__(self) -> C:
        asked = monotonic()
        conn = ThreadLease.__enter__(self)
        claim = self._claim
        try:
            if looks_fit(self, conn):
                return conn
        except BaseException as cut:
            if self._claim is claim:
                self._claim = None
            claim = None
            let_go(cut)
            raise
        claim = None
        return self._borrow_another(asked)

    def _borrow_another(self, asked: float) -> C:
        pool = self._pool
        limit = pool._settings.timeout if self._timeout is None else self._timeout
        # Another thread or task may enter this one meanwhile, so it has none of its claims before the end.
        lease: ThreadLease[C] = ThreadLease()
        lease._pool = pool
        lease._core = pool._core
        lease._claim = None
        try:
            conn = _look_on(lease, asked + limit)
            if self._claim is None:
                self._claim, lease._claim = lease._claim, None
                self._core = lease._core
                return conn
        except BaseException as cut:
            lease._claim = None
            let_go(cut)
            raise
        lease.leave(None, None, None)
        raise self._entered()


def _look_on(lease: ThreadLease[C], deadline: float) -> C:
    """Borrow until it is a connection that can be lent. What has come, has come on one that was lent before."""
    while True:
        lease._timeout = max(0.0, deadline - monotonic())
        conn = lease.__enter__()
        if looks_fit(lease, conn):
            return conn


class _TracedLease(_LookingLease[C]):
    """A lease that tells of itself, for pools that look for leaks or that somebody listens to."""

    __slots__ = ("told",)

    told: bool
    """Whether this loan is told of."""

    def __enter__(self) -> C:
        asked = monotonic()
        conn = super().__enter__()
        try:
            self._pool._tell_lent(self, self.told, asked, sys._getframe(1))
            return conn
        except BaseException as cut:
            self._claim = None
            let_go(cut)
            raise

    leave = __exit__ = leave_and_tell


class _ThreadWaiter(Waiter[C]):
    """A caller who sleeps on a raw lock."""

    __slots__ = ("_signal",)

    def __init__(self, owner: int, since: float, deadline: float, site: tuple[CodeType, int] | None) -> None:
        super().__init__(owner, since, deadline, site)
        self._signal = threading.Lock()
        self._signal.acquire()

    def wake(self) -> None:
        with suppress(RuntimeError):
            self._signal.release()

    def sleep(self, until: float = math.inf) -> None:
        """Wait until done, until the deadline, or until a moment that comes before it."""
        end = min(self.deadline, until)
        while not self.done and (left := end - monotonic()) > 0:
            self._signal.acquire(timeout=-1 if left > threading.TIMEOUT_MAX else left)


class _Crew:
    """A few threads that come when there is work and go when there has been none for a while.

    `work` does one piece and tells whether there was one; `wanted` tells how many there are, `size` how many threads
    there may be.
    """

    def __init__(
        self,
        pool: Pool[C],
        title: str,
        work: Callable[[Pool[C]], bool],
        wanted: Callable[[Pool[C]], int],
        size: Callable[[Pool[C]], int],
    ) -> None:
        self._pool = weakref.ref(pool)
        self._name = f"millpond-{pool.name}-{title}"
        self._work = work
        self._wanted = wanted
        self._size = size
        self._dismissed = False
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._present: dict[threading.Thread, None] = {}
        """Those that have been hired and have not gone."""
        self._coming: dict[threading.Thread, None] = {}
        """Those of them that have not begun: they will look for work."""
        self._resting: dict[threading.Thread, None] = {}
        # Not a WeakSet: iterating over one raises if somebody is hired meanwhile.
        self._threads: weakref.WeakValueDictionary[int, threading.Thread] = weakref.WeakValueDictionary()
        self._linger = LINGER
        _crews[id(self)] = self

    @property
    def present(self) -> int:
        """How many there are."""
        return len(self._present)

    def call(self) -> bool:
        """Call one who rests; False if nobody will hear of the work and one more could be hired."""
        if self._resting:
            self._calls.put(None)
            return True
        # Those who are at work will look for more when they are done.
        return bool(self._coming) or len(self._present) >= self._limit(self._pool())

    def muster(self) -> None:
        """See to it that all work finds somebody, within the size of the crew."""
        pool = self._pool()
        count = 0 if pool is None else self._wanted(pool)
        with self._lock:
            self._reckon()
            resting = min(count, len(self._resting))
            hired = min(count - resting - len(self._coming), self._limit(pool) - len(self._present), GROWTH)
        for _ in range(resting):
            self._calls.put(None)
        for _ in range(hired):
            self._hire()

    def _limit(self, pool: Pool[Any] | None) -> int:
        return 0 if pool is None or self._dismissed else self._size(pool)

    def _reckon(self) -> None:
        """Strike off those who were struck before they could say so."""
        for thread in list(self._present):
            if thread.ident is not None and not thread.is_alive():
                self._strike_off(thread)

    def _strike_off(self, thread: threading.Thread) -> None:
        for those in (self._coming, self._resting, self._present):
            those.pop(thread, None)

    def _hire(self) -> None:
        thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        with self._lock:
            self._present[thread] = None
            self._coming[thread] = None
        # Before it begins: it may have done its work, and have ended a wait for it, before this goes on.
        # (test: all_that_closing_does_is_told_before_it_returns)
        self._threads[id(thread)] = thread
        try:
            thread.start()
        except BaseException:
            if thread.ident is None:
                with self._lock:
                    self._strike_off(thread)
            raise

    def dismiss(self) -> None:
        """Send everybody home; the pool is closed."""
        self._dismissed = True
        for _ in range(len(self._present)):
            self._calls.put(None)

    def disperse(self) -> None:
        """Have everybody go who finds nothing to do; who is hired from now on does not stay either."""
        self._linger = 0.0
        for _ in range(len(self._present)):
            self._calls.put(None)

    def join(self, deadline: float) -> None:
        """Wait until they have gone, those too who are hired meanwhile."""
        while (left := deadline - monotonic()) > 0:
            hired = [thread for ref in self._threads.valuerefs() if (thread := ref()) is not None]
            others = [thread for thread in hired if thread.is_alive() and thread is not threading.current_thread()]
            if others:
                others[0].join(min(left, threading.TIMEOUT_MAX))
            elif self._coming:
                # Hired, and not begun: it may still find something to do.
                sleep(0.001)
            else:
                break

    def _serve(self) -> None:
        me = threading.current_thread()
        try:
            with self._lock:
                self._present[me] = None
                self._coming.pop(me, None)
            self._work_on(me)
        except BaseException as cut:
            # A driver's SystemExit: what this thread was about to do is another's from now on.
            let_go(cut)
            raise
        finally:
            with self._lock:
                self._strike_off(me)
            # Work that came between the last look and the farewell is given out anew in the pool's next turn.
            pool = self._pool()
            if pool is not None:
                pool._bell.ring()

    def _work_on(self, me: threading.Thread) -> None:
        """Do what there is to do, as long as there is any, and a little longer."""
        while True:
            pool = self._pool()
            if pool is None or self._dismissed:
                break
            while self._work(pool):
                pass
            if not self._linger:
                break
            try:
                with self._lock:
                    self._resting[me] = None
                # It looks once more, now that it can be called.
                if self._wanted(pool) > 0:
                    continue
                # A resting worker must not keep alive a pool that everybody else has dropped.
                del pool
                self._calls.get(timeout=self._linger)
            except queue.Empty:
                break
            finally:
                with self._lock:
                    self._resting.pop(me, None)


def _max_size(pool: Pool[Any]) -> int:
    return pool._settings.max_size


def _one(pool: Pool[Any]) -> int:
    return 1


# Not a WeakSet: iterating over one raises if another thread makes a pool meanwhile.
_crews: Final[weakref.WeakValueDictionary[int, _Crew]] = weakref.WeakValueDictionary()


@atexit.register
def _disperse_all() -> None:
    """Let no thread of ours that does anything outlive the interpreter.

    A thread that runs on then is ended where it stands. With it ends what a library keeps for each thread: OpenSSL
    crashes if that comes while the main thread takes OpenSSL itself down. And what it referred to is never finalised,
    which is the pool and with it, by its callable, perhaps all of the program.
    (tests: no_worker_outlives_the_interpreter, what_a_program_refers_to_is_finalised)
    """
    crews = [crew for ref in _crews.valuerefs() if (crew := ref()) is not None]
    for crew in crews:
        crew.disperse()
    _maintenance.end()
    deadline = monotonic() + FAREWELL
    for crew in crews:
        crew.join(deadline)
    _maintenance.join(max(0.0, deadline - monotonic()))


class Pool(Shell[C]):
    """A pool of connections for threads.

    `source` says how connections are made: a connector of `millpond.connectors`, one of your own, or any callable that
    returns a new connection. For a callable, `close`, `ping` and `reset` tell how a connection is closed (its own
    `close` method if not said), asked whether it lives, and cleaned after a loan. The settings are those of `Settings`.
    Connections are opened by the pool's own threads, from now on up to `min_size`, and then when callers need more.

    Raises `ValueError` or `TypeError` for settings that cannot work. Nothing is awaited here.
    """

    _bell: _maintenance.Bell

    def __init__(
        self,
        source: Connector[C] | Callable[[], C],
        *,
        close: Callable[[C], object] | None = None,
        ping: Callable[[C], object] | None = None,
        reset: Callable[[C], object] | None = None,
        **settings: Unpack[Options],
    ) -> None:
        self._made = False
        checked = Settings.of(settings)
        self._expect(source, "AsyncPool", tasks=False)
        if callable(source):
            from millpond.connectors.factory import Factory

            connector: Connector[C] = Factory(source, close=close, ping=ping, reset=reset)
        elif close or ping or reset:
            raise TypeError("close, ping and reset go with a callable; a connector has its own")
        else:
            connector = source
        self._connector = connector
        super().__init__(connector, checked)
        self._made = True
        if checked.min_size:
            self._kick()

    @classmethod
    def from_url(cls, url: str, **options: object) -> Self:
        """Make a pool of connections to a URL.

        Known are `postgresql://` (psycopg), `redis://`, `rediss://`, `unix://` (redis-py), `sqlite:///`, `tcp://`,
        `tls://`, and what installed packages add by the entry point group `millpond.connectors`. Options that are not
        settings of the pool go to the connector. `Pool[psycopg.Connection].from_url(...)` tells a type checker what is
        lent.

        Raises `ValueError` for a URL that cannot work, which says why and quotes no password; TypeError for what is no
        str, and for an option that neither knows; `ImportError` for a driver that is not installed.
        """
        from millpond.connectors.urls import connector_for

        connector, settings = parted(url, options, connector_for)
        return cls(connector, **settings)  # type: ignore[arg-type]

    # Borrowing and returning.

    def connection(self, timeout: float | None = None) -> ThreadLease[C]:
        """Lend a connection to a `with` block: `with pool.connection() as conn`.

        Entering waits up to `timeout` seconds (the pool's own by default, 0 or less for not at all) and raises
        `PoolTimeout`, `ConnectFailed`, `PoolFull` or `PoolClosed`. Leaving returns the connection, or closes it if it
        cannot be proved clean; it never waits for a network that is down. An exception at any point gives the place
        back. A timeout that is no number raises TypeError or `ValueError` at once.
        """
        if timeout is not None:
            expect_seconds(timeout)
        lease: ThreadLease[C] = self._special_lease() if self._special else ThreadLease()
        lease._core = self._core
        lease._pool = self
        lease._timeout = timeout
        lease._claim = None
        return lease

    def _special_lease(self) -> ThreadLease[C]:
        told = bool(self._loan_listeners) and self._sample.takes()
        if not told and not self._noted:
            return ThreadLease() if self._core.silent is None else _LookingLease()
        lease: _TracedLease[C] = _TracedLease()
        lease.told = told
        return lease

    def acquire(self, timeout: float | None = None) -> C:
        """Lend a connection until `release` or `discard`; `connection` is safer wherever a `with` block fits.

        It waits and raises as entering `connection` does.
        """
        lease = self.connection(timeout)
        conn = lease.__enter__()
        try:
            self._held[id(conn)] = lease
            self._note_borrower(lease)
            return conn
        except BaseException as cut:
            self._drop(lease)
            let_go(cut)
            raise

    def release(self, conn: C) -> None:
        """Return a connection that `acquire` lent.

        Raises `Misuse`, and loses nothing, if it is not on loan or not of this pool.
        """
        lease = self._lease_of(conn, "release")
        if lease is not None:
            lease.leave(None, None, None)

    def discard(self, conn: C) -> None:
        """Have a connection that is on loan closed instead of lent again; inside a `with` block, when it is left.

        Raises `Misuse`, and loses nothing, if it is not on loan or not of this pool.
        """
        self._discard(conn)

    def _lend(self, timeout: float | None = None) -> C:
        """Lend a connection that owns its own loan, for those who borrow without a `with` block and may not return it.

        The pool refers to it weakly until `_take_back`: if its borrower drops it, it dies, and with it lease and claim.
        Its class has an attribute `loan`, and frees what it holds when it dies.
        """
        lease = self.connection(timeout)
        conn = lease.__enter__()
        try:
            lease._claim.entry.conn = weakref.proxy(conn)  # type: ignore[union-attr]
            conn.loan = lease  # type: ignore[attr-defined]
            return conn
        except BaseException as cut:
            self._drop(lease)
            let_go(cut)
            raise

    # The whole pool.

    def warm(self, timeout: float | None = None) -> None:
        """Wait until `min_size` connections are open, up to `timeout` seconds (the pool's own by default).

        Raises `PoolTimeout`, `ConnectFailed` or `PoolClosed`; the pool goes on opening all the same.
        """
        if timeout is not None:
            expect_seconds(timeout)
        limit = self._settings.timeout if timeout is None else timeout
        waiter: _ThreadWaiter[C] = self._waiter(limit)
        self._await_all(self._core.warm, waiter)
        if not waiter.done:
            raise self._cold(limit)
        if waiter.refusal is not None:
            raise self._refused(waiter, limit, monotonic() - waiter.since)

    def resize(self, *, min_size: int | None = None, max_size: int | None = None) -> None:
        """Change the size. What is too many is closed: the idle now, the lent when they come back.

        Raises `ValueError` for sizes that cannot work; the pool then stays as it was.
        """
        self._resize(min_size, max_size)

    def refresh(self) -> None:
        """Replace every connection, as after a move or a new password: the idle now, the lent when they come back."""
        self._step(self._core.refresh)
        self._tell(events.PoolRefreshed)

    def pause(self) -> None:
        """Lend nothing until `resume`; callers wait in line, and loans go on."""
        self._step(self._core.pause)
        self._tell(events.PoolPaused)

    def resume(self) -> None:
        """Lend again, to those in line first."""
        self._step(self._core.resume)
        self._tell(events.PoolResumed)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool: callers in line get `PoolClosed` at once, idle connections are closed, loans may end.

        Waits up to `timeout` seconds for the loans. Connections still on loan then are named in a warning to the log,
        and closed when they come back. Closing twice is closing once.
        """
        expect_seconds(timeout)
        self._close_down()
        deadline = monotonic() + timeout
        waiter: _ThreadWaiter[C] = self._waiter(timeout)
        self._await_all(self._core.drain, waiter)
        if waiter.done:
            for crew in (self._openers, self._tenders):
                crew.dismiss()
                crew.join(deadline)
            self._reporters.disperse()
            self._reporters.join(deadline)
        else:
            self._tell_unreturned()

    # Looking.

    def stats(self) -> Stats:
        """Look at the pool: what it has, and what it has counted since it was made."""
        return self._step(self._core.stats)

    def leases(self) -> tuple[LeaseRecord, ...]:
        """Tell who has which connection on loan, longest first."""
        return self._records()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Waiting.

    def _waiter(self, timeout: float | None, site: tuple[CodeType, int] | None = None) -> _ThreadWaiter[C]:
        now = monotonic()
        limit = self._settings.timeout if timeout is None else timeout
        return _ThreadWaiter(get_ident(), now, now + limit, site)

    def _wait(self, timeout: float | None) -> Claim[C]:
        """Borrow by way of the line."""
        # The frame of whoever entered the lease: one that is asked for stays in memory as long as it runs.
        waiter = self._waiter(timeout, call_site(sys._getframe(3)))
        try:
            self._put_in_line(waiter)
            if not waiter.done:
                self._sit_out(waiter)
            if waiter.claim is not None:
                return waiter.claim
        except BaseException:
            self._call_off(waiter)
            raise
        if waiter.refusal is None:
            # It stood in the line of a parent whose child this is.
            return self._wait(waiter.deadline - monotonic())
        raise self._refusal_of(waiter)

    def _sit_out(self, waiter: _ThreadWaiter[C]) -> None:
        if not sys.is_finalizing():  # when no other thread gets a turn
            self._sleep(waiter)
        if not waiter.done:
            # Nothing changes for one who has been served in the nick of time.
            self._step(self._core.expire, waiter)

    def _sleep(self, waiter: _ThreadWaiter[C]) -> None:
        """Wait until done or until the deadline, and see to it that the pool is looked after.

        CPython gives a thread that is being made the number of its maker: an exception thrown at a caller who hires may
        strike the one that is hired, which is then none.
        (test: a_caller_is_served_though_what_was_thrown_at_him_struck_the_thread_he_was_starting)
        """
        while True:
            attended = _maintenance.attends(self._bell)
            waiter.sleep(monotonic() + (PATIENCE if attended else BEAT))
            if waiter.done or monotonic() >= waiter.deadline:
                return
            if not attended:
                self._kick()

    def _await_all(self, enrol: Callable[[Waiter[C], float], None], waiter: _ThreadWaiter[C]) -> None:
        """Wait for a state of the whole pool, until the waiter's deadline."""
        try:
            self._step(enrol, waiter)
            self._sleep(waiter)
        finally:
            self._step(self._core.desist, waiter)

    # Working.

    def _begin(self) -> None:
        super()._begin()
        self._reports: deque[Callable[[], None]] = deque(maxlen=REPORTS)
        """What is to be told beside the maintenance, where nobody else's code runs."""
        # One for each connection that needs one: a call that hangs holds up nothing but its own.
        self._openers = _Crew(self, "opener", Pool._open_one, Pool._opens_wanted, _max_size)
        self._tenders = _Crew(self, "tender", Pool._tend_one, Pool._chores, _max_size)
        self._reporters = _Crew(self, "reporter", Pool._report_one, Pool._unreported, _one)

    def _before_fork(self) -> None:
        # If a signal handler forks in the middle of a change, the child will do without what it cannot park.
        if not (self._core.forking or self._lock._is_owned()):  # type: ignore[attr-defined]
            for job in self._step(self._core.part):
                self._end(job)
        super()._before_fork()

    def _identify(self) -> Callable[[], int]:
        return get_ident

    def _hang_bell(self) -> _maintenance.Bell:
        return _maintenance.Bell(self)

    def _kick(self) -> None:
        core = self._core
        if sys.is_finalizing():
            return
        if not _maintenance.attends(self._bell):
            try:
                _maintenance.call(self._bell)
            except RuntimeError as error:
                self._fail_open(error)
        unheard = core.chores > 0 and not self._tenders.call()
        if self._opens_wanted() and not self._openers.call():
            unheard = True
        # In its own turn it would find at once what it has just found nobody for.
        if unheard and not _maintenance.is_current():
            self._bell.ring()

    def _manage(self) -> float | None:
        """Do what is due and call the crews; return the seconds until something will be, or None when all is over."""
        # Who is called here for what is due now looks for more when that is done.
        pause = self._attend() or BEAT
        core = self._core
        try:
            self._openers.muster()
        except RuntimeError as error:
            self._fail_open(error)
        # Where no thread is to be had, what is to be closed waits for the next turn.
        with suppress(RuntimeError):
            self._tenders.muster()
        if self._reports:
            # Whoever was to tell them was struck, or could not be had.
            self._call_reporter()
            pause = min(pause, BEAT)
        if core.closing and not core.entries:
            # Those who call `close` do so, too, when the pool is not looked after any more.
            self._openers.dismiss()
            self._tenders.dismiss()
            self._reporters.disperse()
            return None
        return None if self._may_leave() else pause

    def _may_leave(self) -> bool:
        """Whether there is nothing to keep, or the program ends and nobody waits."""
        core = self._core
        if core.closing and not core.entries:
            return True
        if _maintenance.ends():
            return not (core.line or core.warming or core.draining)
        return self._is_unused() and core.outage is None and not self._reports

    def _report(self, level: int, what: Callable[[], str], kind: Callable[..., events.Event], **facts: object) -> None:
        # Whoever logs or listens may never come back, and the maintenance has other pools to look after.
        self._report_soon(partial(self._report_at, monotonic(), level, what, kind, facts))

    def _stumbled(self, error: Exception) -> None:
        self._report_soon(
            partial(log.error, "pool %r: its maintenance stumbled and goes on", self.name, exc_info=error)
        )

    def _report_soon(self, report: Callable[[], None]) -> None:
        self._reports.append(report)
        self._call_reporter()

    def _call_reporter(self) -> None:
        # Where no thread is to be had, it waits for the next turn.
        with suppress(RuntimeError):
            self._reporters.muster()

    def _unreported(self) -> int:
        return len(self._reports)

    def _report_one(self) -> bool:
        """Tell what happened first, if anything has; tell whether it did."""
        try:
            report = self._reports.popleft()
        except IndexError:
            return False
        try:
            report()
        except Exception:
            # An error of a driver's that cannot say what it says, for one.
            log.exception("pool %r: something that happened could not be told", self.name)
        return True

    def _fail_open(self, error: Exception) -> None:
        """Tell callers that the system gives no thread to open a connection in, or none any more: the program ends.

        On Python 3.12 it begins none from the moment on when its functions for the end are called.
        """
        # Only if one is wanted: else whoever has other work done would be called for that, which ends here again.
        if not self._openers.present and self._opens_wanted():
            self._step(self._core.give_up_open, error, random())

    def _opens_wanted(self) -> int:
        return self._core.opens_wanted(monotonic())

    def _chores(self) -> int:
        return self._core.chores

    def _open_one(self) -> bool:
        """Open a connection, if one is wanted; tell whether it was."""
        core = self._core
        claim = self._step(core.next_open)
        if claim is None:
            return False
        try:
            conn = self._connector.open(self._settings.exchange_limit)
            self._accept(conn)
        except BaseException as error:
            self._fail(claim, error)
            return True
        self._install(claim, conn)
        return True

    def _tend_one(self) -> bool:
        """Do one check, reset or close, if there is one to do; tell whether there was."""
        job = self._step(self._core.next_chore)
        if job is None:
            return False
        if job.claim is None:
            self._end(job)
        else:
            self._tend(job)
        return True

    def _tend(self, job: Job[C]) -> None:
        connector, conn, limit = self._connector, job.entry.conn, self._settings.exchange_limit
        try:
            if job.task is Task.CHECK:
                connector.ping(conn, limit)
            else:
                connector.reset(conn, limit)
                self._watch_anew(job.entry)
            sound = job.task is Task.CHECK or self._is_clean(conn)
        except Exception as error:
            log.debug("pool %r: %s failed: %r", self.name, job.task.value, error)
            sound = False
        self._tended(job, sound)

    def _end(self, job: Job[C]) -> None:
        entry = job.entry
        self._unwatch(entry)
        try:
            if job.task is Task.CLOSE:
                self._connector.close(entry.conn)
            else:
                self._connector.abandon(entry.conn)
        except Exception as error:
            log.debug("pool %r: %s failed: %r", self.name, job.task.value, error)
        self._closed(entry)

    def _current(self) -> object:
        # Not `current_thread()`: of one that `threading` has not made it would keep a likeness for good.
        return threading._active.get(get_ident())  # type: ignore[attr-defined]

    def _find(self, owner: int) -> object:
        return thread_of(owner)

    def _describe(self, borrower: object) -> tuple[str, str | None]:
        return described(borrower)

    def __del__(self) -> None:
        if not self.__dict__.get("_made"):
            return
        if _maintenance.is_current() and not sys.is_finalizing():
            # What it warns, tells and frees may take long. It lives on for that, and is not finalised again.
            with suppress(RuntimeError):
                _thread.start_new_thread(self._dispose, ())
                return
        self._dispose()

    def _dispose(self) -> None:
        """End a pool that was dropped."""
        try:
            if not (self._droppable or self._core.closing):
                self._warn_unclosed()
            if not sys.is_finalizing():  # when nobody is left to be told
                self._report_all()
        finally:
            self._free()

    def _report_all(self) -> None:
        while self._report_one():
            pass

    def _free(self) -> None:
        self._scuttle()
        for crew in (self._openers, self._tenders, self._reporters):
            crew.dismiss()
        self._bell.ring()
