"""The pool for tasks, of asyncio and trio."""

from __future__ import annotations

import heapq
import math
import sys
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from millpond import _maintenance, events
from millpond._extras import extra

with extra("async"):
    import anyio

from millpond._backends import AsyncioBackend, AsyncWaiter, Backend, current_backend
from millpond._by_url import parted
from millpond._core.core import BEAT, Job, Task
from millpond._core.entry import Claim
from millpond._core.lease import Lease, let_go
from millpond._core.line import Waiter
from millpond._core.settings import Options, Settings, expect_seconds
from millpond._core.stats import Stats
from millpond._lent import C
from millpond._shell import CLOSED, Shell, leave_and_tell, log, looks_fit
from millpond._whereabouts import call_site
from millpond.connector import AsyncConnector
from millpond.errors import PoolClosed
from millpond.records import LeaseRecord

__all__ = ["AsyncPool", "TaskLease"]

TENDERS: Final = 64
"""How many tasks of a pool may check, reset and close at once."""


class TaskLease(Lease[C]):
    """The lease of a task: `async with pool.connection() as conn`."""

    __slots__ = ()

    _pool: AsyncPool[C]  # pyright: ignore[reportIncompatibleVariableOverride]

    async def __aenter__(self) -> C:
        conn = self.enter()
        if conn is not None:
            return conn
        # Not a coroutine of its own, which every waiting task would keep as well.
        pool = self._pool
        waiter = pool._waiter(self._timeout)
        try:
            pool._enrol(waiter)
            if not waiter.done:
                await waiter.sleep()
            if self._claim is not None:
                # Another task has entered it meanwhile.
                raise self._entered()
            claim = self._claim = waiter.claim
            if claim is not None:
                # Another than when the lease was made, if that was before a fork.
                self._core = pool._core
                return claim.entry.conn
            refusal = pool._refusal_of(waiter)
        except BaseException:
            if self._claim is waiter.claim:
                self._claim = None
            pool._call_off(waiter)
            raise
        raise refusal

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nothing is awaited: a cancellation finds no place to cut this.
        self.leave(kind, error, trace)

    def _wait(self) -> None:
        return None


class _LookingLease(TaskLease[C]):
    """A lease that looks at a connection before it is lent again: whether nothing has come that nobody asked for."""

    __slots__ = ()

    async def __aenter__(self) -> C:
        asked = monotonic()
        conn = self.enter()
        if conn is None:
            conn = await TaskLease.__aenter__(self)
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
        return await self._borrow_another(asked)

    async def _borrow_another(self, asked: float) -> C:
        pool = self._pool
        limit = pool._settings.timeout if self._timeout is None else self._timeout
        # Another thread or task may enter this one meanwhile, so it has none of its claims before the end.
        lease: TaskLease[C] = TaskLease()
        lease._pool = pool
        lease._core = pool._core
        lease._claim = None
        try:
            conn = await _look_on(lease, asked + limit)
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


async def _look_on(lease: TaskLease[C], deadline: float) -> C:
    """Borrow until it is a connection that can be lent. What has come, has come on one that was lent before."""
    while True:
        lease._timeout = max(0.0, deadline - monotonic())
        conn = await lease.__aenter__()
        if looks_fit(lease, conn):
            return conn


class _TracedLease(_LookingLease[C]):
    """A lease that tells of itself, for pools that look for leaks or that somebody listens to."""

    __slots__ = ("told",)

    told: bool
    """Whether this loan is told of."""

    async def __aenter__(self) -> C:
        asked = monotonic()
        conn = await super().__aenter__()
        try:
            self._pool._tell_lent(self, self.told, asked, sys._getframe(1))
            return conn
        except BaseException as cut:
            self._claim = None
            let_go(cut)
            raise

    leave = leave_and_tell


class _AsyncBell:
    """Wakes the keeper's task."""

    def __init__(self) -> None:
        self.backend: Backend | None = None
        self._event: anyio.Event | None = None
        self._rung = False

    def ring(self) -> None:
        if not self._rung and self.backend is not None:
            self._rung = True
            self.backend.call(self._strike)

    def _strike(self) -> None:
        if self._event is not None:
            self._event.set()

    async def wait(self, seconds: float) -> None:
        self._event = anyio.Event()
        if not self._rung:
            with anyio.move_on_after(seconds):
                await self._event.wait()
        self._event = None
        self._rung = False


class _Deadlines:
    """When the callers in line give up, soonest first.

    Most callers have the same timeout, so that their deadlines come in order: for them a deque does. A heap has those
    that come out of order. Whoever has left the line drops out as others come, so that nothing is done at length.
    """

    def __init__(self) -> None:
        self._ordered: deque[AsyncWaiter[Any]] = deque()
        self._others: list[tuple[float, int, AsyncWaiter[Any]]] = []
        self._serial = count()

    def add(self, waiter: AsyncWaiter[Any], waiting: int) -> bool:
        """Add one; `waiting` is how many stand in line. Tell whether it is now the first to give up."""
        ordered, others = self._ordered, self._others
        for _ in range(2):
            if ordered and ordered[0].done:
                ordered.popleft()
        if not ordered or waiter.deadline >= ordered[-1].deadline:
            ordered.append(waiter)
            return ordered[0] is waiter and not (others and others[0][0] < waiter.deadline)
        if len(others) > 64 and len(others) > 2 * waiting:
            others = self._others = [item for item in others if not item[2].done]
            heapq.heapify(others)
        heapq.heappush(others, (waiter.deadline, next(self._serial), waiter))
        return waiter.deadline <= self.next()

    def due(self, now: float) -> AsyncWaiter[Any] | None:
        """Take out one whose time has come, if there is one."""
        ordered, others = self._ordered, self._others
        while ordered and (ordered[0].done or ordered[0].deadline <= now):
            waiter = ordered.popleft()
            if not waiter.done:
                return waiter
        while others and (others[0][2].done or others[0][0] <= now):
            waiter = heapq.heappop(others)[2]
            if not waiter.done:
                return waiter
        return None

    def next(self) -> float:
        """Return when the first gives up."""
        return min(
            self._ordered[0].deadline if self._ordered else math.inf,
            self._others[0][0] if self._others else math.inf,
        )


async def _keep(ref: weakref.ref[AsyncPool[Any]], bell: _AsyncBell) -> None:
    """Be the keeper of a pool: the task that does what time brings and starts the work."""
    pool = ref()
    if pool is None or not pool._employ_keeper(bell):
        return
    del pool
    try:
        await _keep_on(ref, bell)
    finally:
        # Whether the pool is done or its loop is: another loop may not go on with it, but another keeper might have to.
        pool = ref()
        if pool is not None and pool._bell is bell:
            pool._kept = False


async def _keep_on(ref: weakref.ref[AsyncPool[Any]], bell: _AsyncBell) -> None:
    while (pool := ref()) is not None:
        try:
            pause = pool._manage()
        except Exception:
            log.exception("pool %r: its keeper stumbled and goes on", pool.name)
            pause = BEAT
        del pool
        if pause is None:
            return
        await bell.wait(pause)


class AsyncPool(Shell[C]):
    """A pool of connections for tasks.

    `source` says how connections are made: a connector of `millpond.connectors`, one of your own, or any async callable
    that returns a new connection. For a callable, `close`, `ping` and `reset` tell how a connection is closed (its own
    `close` method if not said), asked whether it lives, and cleaned after a loan. The settings are those of `Settings`.
    Connections are opened by the pool's own tasks, up to `min_size` and then when callers need more.

    The pool belongs to the event loop that first uses it, and opens nothing before. Raises `ValueError` or `TypeError`
    for settings that cannot work. Nothing is awaited here.
    """

    _bell: _AsyncBell

    def __init__(
        self,
        source: AsyncConnector[C] | Callable[[], Awaitable[C]],
        *,
        close: Callable[[C], object] | None = None,
        ping: Callable[[C], object] | None = None,
        reset: Callable[[C], object] | None = None,
        **settings: Unpack[Options],
    ) -> None:
        self._made = False
        checked = Settings.of(settings)
        self._expect(source, "Pool", tasks=True)
        connector: AsyncConnector[C]
        if callable(source):
            from millpond.connectors.factory import AsyncFactory

            connector = AsyncFactory(source, close=close, ping=ping, reset=reset)
        elif close or ping or reset:
            raise TypeError("close, ping and reset go with a callable; a connector has its own")
        else:
            connector = source
        self._connector = connector
        super().__init__(connector, checked)
        self._made = True

    @classmethod
    def from_url(cls, url: str, **options: object) -> Self:
        """Make a pool of connections to a URL.

        Known are `postgresql://` (psycopg), `postgresql+asyncpg://`, `redis://`, `rediss://`, `unix://` (redis-py),
        `sqlite:///` (aiosqlite), `tcp://`, `tls://`, and what installed packages add by the entry point group
        `millpond.async_connectors`. Options that are not settings of the pool go to the connector.
        `AsyncPool[asyncpg.Connection].from_url(...)` tells type checkers what is lent.

        Raises `ValueError` for a URL that cannot work, which says why and quotes no password; TypeError for what is no
        str, and for an option that neither knows; `ImportError` for a driver that is not installed.
        """
        from millpond.connectors.urls import async_connector_for

        connector, settings = parted(url, options, async_connector_for)
        return cls(connector, **settings)  # type: ignore[arg-type]

    # Borrowing and returning.

    def connection(self, timeout: float | None = None) -> TaskLease[C]:
        """Lend a connection to a `with` block: `async with pool.connection() as conn`.

        Entering waits up to `timeout` seconds (the pool's own by default, 0 or less for not at all) and raises
        `PoolTimeout`, `ConnectFailed`, `PoolFull` or `PoolClosed`. Leaving returns the connection, or closes it if it
        cannot be proved clean; it never waits for a network that is down. An exception at any point gives the place
        back. A timeout that is no number raises TypeError or `ValueError` at once.
        """
        if timeout is not None:
            expect_seconds(timeout)
        lease: TaskLease[C] = self._special_lease() if self._special else TaskLease()
        lease._core = self._core
        lease._pool = self
        lease._timeout = timeout
        lease._claim = None
        return lease

    def _special_lease(self) -> TaskLease[C]:
        told = bool(self._loan_listeners) and self._sample.takes()
        if not told and not self._noted:
            return TaskLease() if self._core.silent is None else _LookingLease()
        lease: _TracedLease[C] = _TracedLease()
        lease.told = told
        return lease

    async def acquire(self, timeout: float | None = None) -> C:
        """Lend a connection until `release` or `discard`; `connection` is safer wherever a `with` block fits.

        It waits and raises as entering `connection` does.
        """
        lease = self.connection(timeout)
        conn = await lease.__aenter__()
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

    async def _lend(self, timeout: float | None = None) -> C:
        """Lend a connection that owns its own loan, for those who borrow without a `with` block and may not return it.

        The pool refers to it weakly until `_take_back`: if its borrower drops it, it dies, and with it lease and claim.
        Its class has an attribute `loan`, and frees what it holds when it dies.
        """
        lease = self.connection(timeout)
        conn = await lease.__aenter__()
        try:
            lease._claim.entry.conn = weakref.proxy(conn)  # type: ignore[union-attr]
            conn.loan = lease  # type: ignore[attr-defined]
            return conn
        except BaseException as cut:
            self._drop(lease)
            let_go(cut)
            raise

    # The whole pool.

    async def warm(self, timeout: float | None = None) -> None:
        """Wait until `min_size` connections are open, up to `timeout` seconds (the pool's own by default).

        Raises `PoolTimeout`, `ConnectFailed` or `PoolClosed`; the pool goes on opening all the same.
        """
        if timeout is not None:
            expect_seconds(timeout)
        limit = self._settings.timeout if timeout is None else timeout
        waiter = self._waiter(limit)
        await self._await_all(self._core.warm, waiter)
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

    async def close(self, timeout: float = 5.0) -> None:
        """Close the pool: callers in line get `PoolClosed` at once, idle connections are closed, loans may end.

        Waits up to `timeout` seconds for the loans. Connections still on loan then are named in a warning to the log,
        and closed when they come back. Closing twice is closing once.
        """
        expect_seconds(timeout)
        if not self._core.entries and (self._core.closing or self._backend is None):
            self._close_down()
            return
        if self._backend is not None and self._backend.ended():
            self._close_down()
            self._bury()
            return
        self._core.whoami()
        self._close_down()
        if not self._core.entries:
            return
        waiter = self._waiter(timeout)
        await self._await_all(self._core.drain, waiter)
        if not waiter.done:
            self._tell_unreturned()

    def _bury(self) -> None:
        """Close at once, without goodbyes, since the loop has ended that the pool's tasks and borrowers lived in."""
        core = self._core
        for entry in list(core.entries):
            self._step(core.lost, entry)
        while (job := self._step(core.next_chore)) is not None:
            self._unwatch(job.entry)
            with suppress(Exception):
                self._connector.abandon(job.entry.conn)
            self._step(core.closed, job.entry)

    # Looking.

    def stats(self) -> Stats:
        """Look at the pool: what it has, and what it has counted since it was made."""
        return self._step(self._core.stats)

    def leases(self) -> tuple[LeaseRecord, ...]:
        """Tell who has which connection on loan, longest first."""
        return self._records()

    async def __aenter__(self) -> Self:
        self._core.whoami()
        if self._settings.min_size:
            self._kick()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Waiting.

    def _waiter(self, timeout: float | None) -> AsyncWaiter[C]:
        self._after_fork_in_child()  # if the hooks were cut short
        now = monotonic()
        limit = self._settings.timeout if timeout is None else timeout
        owner = self._core.whoami()
        assert self._backend is not None
        return self._backend.waiter(owner, now, now + limit, call_site(sys._getframe(2)))

    def _enrol(self, waiter: AsyncWaiter[C]) -> None:
        """Put a caller in line, unless it is served at once."""
        self._put_in_line(waiter)
        if not waiter.done and waiter.deadline < math.inf and self._deadlines.add(waiter, len(self._core.line)):
            # The keeper has to be there, and to look at its watch anew.
            self._kick()
            self._bell.ring()

    async def _await_all(self, enrol: Callable[[Waiter[C], float], None], waiter: AsyncWaiter[C]) -> None:
        """Wait for a state of the whole pool, until the waiter's deadline."""
        try:
            self._step(enrol, waiter)
            with anyio.move_on_after(waiter.deadline - waiter.since):
                if not waiter.done:
                    await waiter.sleep()
        finally:
            self._step(self._core.desist, waiter)

    # Working.

    def _begin(self) -> None:
        self._kept = False
        self._backend: Backend | None = None
        self._deadlines = _Deadlines()
        self._keepers: set[object] = set()
        self._openers: set[object] = set()
        self._tenders: set[object] = set()
        self._tending = 0
        """How many of the tenders have begun."""
        super()._begin()

    def _hang_bell(self) -> _AsyncBell:
        return _AsyncBell()

    def _identify(self) -> Callable[[], int]:
        return _weakly(self._settle_down)

    def _settle_down(self) -> int:
        """Make the running loop the pool's own, at the first call."""
        backend = current_backend(_weakly(self._strange))
        if getattr(self._connector, "asyncio_only", False) and not isinstance(backend, AsyncioBackend):
            raise self._misused(
                f"was used in trio, and the driver of {self._connector.target} knows asyncio only",
                "run the program by asyncio, or borrow from a millpond.Pool in threads (trio.to_thread.run_sync)",
            )
        owner = backend.whoami()
        self._backend = self._bell.backend = backend
        self._core.whoami = backend.whoami
        return owner

    def _strange(self) -> Exception:
        if self._core.closing and not self._core.entries:
            return self._error(PoolClosed, *CLOSED)
        if self._backend is None:
            what, hint = "was used outside of an event loop", "use it in a coroutine run by asyncio or trio"
        elif self._backend.ended():
            what = "belongs to the event loop that first used it, which has ended"
            hint = "make a pool within each asyncio.run() or trio.run(), or use millpond.Pool from threads"
        else:
            what = "belongs to the event loop that first used it, and this is not that loop"
            hint = "make a pool for each loop, or use millpond.Pool from threads"
        return self._misused(what, hint)

    def _kick(self) -> None:
        backend = self._backend
        if backend is None:
            # Nothing to work in yet; the first borrow brings it.
            return
        if not backend.running():
            self._bell.ring()
            return
        if not self._kept:
            backend.spawn(_keep, weakref.ref(self), self._bell, crew=self._keepers, revive=_unless_gone(self._kick))
        core = self._core
        # Those that were started and have not begun will take what there is to do.
        for _ in range(core.opens_wanted(monotonic()) - (len(self._openers) - core.opening)):
            backend.spawn(self._open_all, crew=self._openers, revive=_unless_gone(self._kick))
        for _ in range(min(core.chores - (len(self._tenders) - self._tending), TENDERS - len(self._tenders))):
            backend.spawn(self._tend_all, crew=self._tenders, revive=_unless_gone(self._kick))

    def _employ_keeper(self, bell: _AsyncBell) -> bool:
        if self._kept or bell is not self._bell:
            return False
        self._kept = True
        return True

    def _manage(self) -> float | None:
        """Do what is due and start the work; return the seconds until something will be, or None when all is over."""
        while (waiter := self._deadlines.due(monotonic())) is not None:
            self._step(self._core.expire, waiter)
        _maintenance.pulse.look(monotonic())
        pause = self._attend()
        self._kick()
        if self._core.closing and not self._core.entries:
            return None
        # Nobody else may look whether the process stands still.
        return max(0.0, min(pause, BEAT, self._deadlines.next() - monotonic()))

    async def _open_all(self) -> None:
        """Open connections as long as they are wanted."""
        while (claim := self._step(self._core.next_open)) is not None:
            await self._open(claim)

    async def _open(self, claim: Claim[C]) -> None:
        core, limit = self._core, self._settings.exchange_limit
        try:
            conn = await _within(limit, self._connector.open, limit)
            self._accept(conn)
        except Exception as error:
            self._fail(claim, error)
        except BaseException:
            # This task was cancelled: most likely its loop ends, and nothing is wrong with the server.
            self._step(core.forgo, claim)
            raise
        else:
            self._install(claim, conn)

    async def _tend_all(self) -> None:
        """Check, reset and close as long as there is something to."""
        self._tending += 1
        try:
            await self._tend_on()
        finally:
            self._tending -= 1

    async def _tend_on(self) -> None:
        while (job := self._step(self._core.next_chore)) is not None:
            if job.claim is None:
                await self._end(job)
            else:
                await self._tend(job)

    async def _tend(self, job: Job[C]) -> None:
        conn, limit = job.entry.conn, self._settings.exchange_limit
        sound = False
        try:
            if job.task is Task.CHECK:
                await _within(limit, self._connector.ping, conn, limit)
            else:
                await _within(limit, self._connector.reset, conn, limit)
                self._watch_anew(job.entry)
            sound = job.task is Task.CHECK or self._is_clean(conn)
        except Exception as error:
            log.debug("pool %r: %s failed: %r", self.name, job.task.value, error)
        finally:
            self._tended(job, sound)

    async def _end(self, job: Job[C]) -> None:
        entry = job.entry
        self._unwatch(entry)
        try:
            if job.task is Task.CLOSE:
                await _within(self._settings.exchange_limit, self._connector.close, entry.conn)
            else:
                self._connector.abandon(entry.conn)
        except BaseException as error:
            # Not closed in time, or not at all: then without goodbye.
            with suppress(Exception):
                self._connector.abandon(entry.conn)
            if not isinstance(error, Exception):
                raise
            log.debug("pool %r: %s failed: %r", self.name, job.task.value, error)
        finally:
            self._closed(entry)

    def _current(self) -> object:
        return None if self._backend is None else self._backend.current()

    def _find(self, owner: int) -> object:
        return None if self._backend is None else self._backend.find(owner)

    def _describe(self, borrower: object) -> tuple[str, str | None]:
        return ("a task", None) if self._backend is None else self._backend.describe(borrower)

    def __del__(self) -> None:
        if self.__dict__.get("_made"):
            if not (self._droppable or self._core.closing):
                self._warn_unclosed()
            self._scuttle()


T = TypeVar("T")


def _weakly(method: Callable[[], T]) -> Callable[[], T]:
    """Return what calls a pool's method and does not keep the pool alive: it is called by the pool only."""
    ref = weakref.WeakMethod(method)

    def call() -> T:
        living = ref()
        assert living is not None
        return living()

    return call


def _unless_gone(method: Callable[[], object]) -> Callable[[], None]:
    """Return what calls a pool's method as long as there is the pool, which it does not keep alive."""
    ref = weakref.WeakMethod(method)

    def call() -> None:
        living = ref()
        if living is not None:
            living()

    return call


async def _within(limit: float, work: Callable[..., Awaitable[T]], *args: object) -> T:
    with anyio.fail_after(limit):
        return await work(*args)
