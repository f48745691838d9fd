"""Connections of psycopg 3 to PostgreSQL, for threads (`Psycopg`) and for asyncio (`AsyncPsycopg`).

What makes a connection provably clean without a round trip: libpq reports a transaction status other than ACTIVE
only when the server's ReadyForQuery has been read for everything that was sent, so a status of IDLE says at once that
no request is in flight, that no reply is unread and that no transaction is open. What can still be in the socket then
is unasked-for only (a notification, a notice); `alive` looks for that.

An exception in mid-query needs no case of its own, and could not have one (`asyncio.timeout` turns a cancellation
into a `TimeoutError`, and a borrower may swallow both). psycopg 3.3 answers KeyboardInterrupt, SystemExit and
CancelledError in mid-query with a cancel request: it waits until the server has delivered it, then reads the
connection up to ReadyForQuery; if that fails, or is interrupted in its turn (anyio's cancellation always is), it
closes the connection. Any other exception from a signal handler or `PyThreadState_SetAsyncExc` leaves it ACTIVE. The
status tells these apart.

A connection may have to go while a thread or a task that outlived its loan is still inside of it. libpq's memory is not
freed under them, nor is the number of the socket on which they wait, for the next connection would get it. The socket
is shut down, which ends their wait, and the last one who refers to the connection frees it. Whoever is inside holds
psycopg's lock, all through a COPY or a stream, too.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from operator import attrgetter
from time import monotonic
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

from millpond import _watcher
from millpond._extras import extra
from millpond.connector import Condition
from millpond.connectors.factory import cut_number
from millpond.connectors.urls import expect_encoded, place

with extra("psycopg"):
    import psycopg
    from psycopg import pq, waiting
    from psycopg.adapt import AdaptersMap
    from psycopg.conninfo import (
        conninfo_attempts,
        conninfo_attempts_async,
        conninfo_to_dict,
        make_conninfo,
        timeout_from_conninfo,
    )

if TYPE_CHECKING:
    from psycopg.abc import AdaptContext, ConnDict, ConnParam, PQGen, PQGenConn
    from psycopg.rows import AsyncRowFactory, RowFactory, TupleRow

__all__ = ["AsyncPsycopg", "Psycopg"]

C = TypeVar("C", bound="psycopg.Connection[Any] | psycopg.AsyncConnection[Any]")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

# This is the hot path: an IntEnum takes three times as long to compare, and a member of an Enum 50 ns to look up.
CLEAN, UNPROVED, DIRTY, BROKEN = Condition
_IDLE = int(pq.TransactionStatus.IDLE)
_OPEN = (int(pq.TransactionStatus.INTRANS), int(pq.TransactionStatus.INERROR))
# SQLSTATE read_only_sql_transaction. A primary that was demoted goes on answering, and its name may lead elsewhere by
# now: a connection on which a borrower failed so is not kept.
_READ_ONLY = "25006"

_PARAMETERS = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}

# What a borrower may change on the client's side, and the next one would inherit.
_SETTINGS = (
    "_autocommit",
    "_isolation_level",
    "_read_only",
    "_deferrable",
    "row_factory",
    "cursor_factory",
    "server_cursor_factory",
    "prepare_threshold",
)
_settings = attrgetter(*_SETTINGS)

# Under this name a connection knows its socket's descriptor.
_SOCKET = "_millpond_socket"

# psycopg's waits look up from the socket this often, and so does the deadline; seconds.
_TICK = 0.05
# How long a server is waited for that was told goodbye, and how often a task looks; seconds.
_FAREWELL = 0.5
_GLANCE = 0.002

# The server's words for a refusal. libpq keeps no SQLSTATE of a failed connection attempt, so its text is all there is.
_REFUSALS = (
    "authentication failed for user",  # 28P01, 28000: password, peer, ident, LDAP, PAM, RADIUS, certificate, ...
    "no pg_hba.conf entry for",  # 28000
    "pg_hba.conf rejects connection for",  # 28000
    "is not permitted to log in",  # 28000
    "permission denied for database",  # 42501
    "is not currently accepting connections",  # 55000
)


def _twin_of(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> int | None:
    """Return another descriptor of the connection's socket, which outlives it; None if there is none to be had."""
    try:
        return None if conn.closed else os.dup(conn.pgconn.socket)
    except OSError:
        return None  # the process has no descriptor left


def _until(
    deadline: float, steps: Generator[S, Any, T], heed: Callable[[], object] = lambda: None
) -> Generator[S, Any, T]:
    """Run psycopg's generator under a deadline; psycopg before 3.3.9 has no limit for its waits."""
    try:
        step = next(steps)
        while True:
            ready = yield step
            heed()
            if monotonic() >= deadline:
                raise psycopg.errors.ConnectionTimeout("the server did not answer in time")
            step = steps.send(ready)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


def _lost_cancellation() -> Callable[[], None]:
    """Make what raises a cancellation that came during a wait and was lost there.

    psycopg before 3.3.8 waits with `asyncio.wait_for`, and that of Python 3.11 forgets a cancellation that comes
    together with what it waits for (github.com/python/cpython/issues/86296).
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()

    def heed() -> None:
        if task.cancelling() > before:
            raise asyncio.CancelledError

    return heed


def _copy(adapters: AdaptersMap | None) -> AdaptersMap | None:
    return None if adapters is None else AdaptersMap(adapters)


def _parsed(conninfo: str) -> ConnDict:
    # No exception of libpq's own: it quotes what it could not read, and that may be the password.
    try:
        params = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        raise ValueError("conninfo is neither a PostgreSQL URL nor key=value pairs that libpq can read") from None
    expect_encoded(conninfo)
    return params


class _Inspection(Generic[C]):
    """What needs no waiting, and psycopg's generators, which are the same for threads and tasks."""

    provable = True

    def __init__(
        self,
        connection_class: type[C],
        conninfo: str | Callable[[], object],
        reset: Literal["transaction", "session"],
        settings: Mapping[str, object],
        factories: Mapping[str, object],
        context: AdaptContext | None,
        kwargs: Mapping[str, object],
    ) -> None:
        if reset not in ("transaction", "session"):
            raise ValueError(f'reset must be "transaction" or "session", not {reset!r}')
        self._class = connection_class
        self._conninfo = conninfo
        self._kwargs = kwargs
        # A factory that was not given stays what the connection class says.
        self._given = {**settings, **{name: factory for name, factory in factories.items() if factory is not None}}
        self._context = context
        self._session = reset == "session"
        # How a connection is just after it was opened: known from the first open on, the same for all.
        self._opened: tuple[object, ...] = ()
        self._handlers = (0, 0)
        self._adapters: AdaptersMap | None = None
        strange = kwargs.keys() - _PARAMETERS
        if strange:
            raise TypeError(f"neither the pool nor libpq knows the parameter {min(strange)!r}")
        known = {**({} if callable(conninfo) else _parsed(conninfo)), **kwargs}
        known = {name: value for name, value in known.items() if not callable(value)}
        user, host, port, database = (known.get(name) for name in ("user", "host", "port", "dbname"))
        self.target: str = place("postgresql", user=user, host=host or known.get("hostaddr"), port=port, path=database)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"

    def inspect(self, conn: C, error: BaseException | None) -> Condition:
        """Tell by libpq's own protocol state what the connection is fit for; see the module for why that is proof."""
        pgconn = conn.pgconn
        status = pgconn.transaction_status
        if (
            conn.lock.locked()  # a task, a thread, or a half-read notifies() or stream() still holds it
            # When it is collected, a transaction() that was never left rolls back whatever is open by then.
            or conn._num_transactions
            or conn._tpc is not None
            or pgconn.pipeline_status
        ):
            return BROKEN
        if error is not None and getattr(error, "sqlstate", None) == _READ_ONLY:
            return BROKEN
        if status != _IDLE:
            return DIRTY if status in _OPEN else BROKEN
        autocommit, isolation, read_only, deferrable, rows, cursors, server_cursors, threshold = self._opened
        if (
            conn._notifies_backlog  # the session listens
            or conn._autocommit is not autocommit
            or conn._isolation_level is not isolation
            or conn._read_only is not read_only
            or conn._deferrable is not deferrable
            or conn.row_factory is not rows
            or conn.cursor_factory is not cursors
            or conn.server_cursor_factory is not server_cursors
            or conn._prepared.prepare_threshold != threshold
            or (conn._notice_handlers and len(conn._notice_handlers) != self._handlers[0])
            or (conn._notify_handlers and len(conn._notify_handlers) != self._handlers[1])
        ):
            return DIRTY
        # Nobody can tell what a session was told.
        return UNPROVED if self._session else CLEAN

    def alive(self, conn: C) -> bool:
        """Tell whether the connection is idle and nothing, not even a hang-up, waits to be read."""
        pgconn = conn.pgconn
        if pgconn.transaction_status != _IDLE:
            return False
        # Only the socket can hold something: libpq drains the TLS layer whenever it reads, and has read up to
        # ReadyForQuery. What it may have parsed beyond that is a notification.
        return not _watcher.readable(pgconn.socket) and pgconn.notifies() is None

    def descriptor(self, conn: C) -> int | None:
        """Return libpq's socket, or None once the connection is closed."""
        pgconn = conn.pgconn
        return pgconn.socket if pgconn.status == pq.ConnStatus.OK else None

    def refused(self, error: BaseException) -> bool:
        """Tell whether the server, or libpq before it asked the server, said no for good.

        By SQLSTATE where there is one; libpq keeps none for a failed attempt, so then by what it knows of the attempt
        (no password was given, but one was wanted) and by the server's words. A server that speaks another language
        than English is understood only in the first two cases: its other refusals are tried again.
        """
        if isinstance(error, (ValueError, psycopg.ProgrammingError)):
            return True  # a connection string that cannot be parsed
        if not isinstance(error, psycopg.OperationalError):
            return False
        if error.sqlstate is not None:
            return error.sqlstate.startswith("28") or error.sqlstate in ("3D000", "42501")
        if error.pgconn is not None and error.pgconn.needs_password:
            return True
        text = str(error)
        return any(words in text for words in _REFUSALS) or any(
            f'FATAL:  {kind} "' in text and '" does not exist' in text for kind in ("database", "role")
        )

    def _values(self) -> Iterator[tuple[str, Any]]:
        """Yield the connection string and the parameters by name; what is callable is called anew for every open."""
        yield "", self._conninfo() if callable(self._conninfo) else self._conninfo
        for name, value in self._kwargs.items():
            yield name, value() if callable(value) else value

    def _attempts(
        self, attempts: Sequence[ConnDict], deadline: float, heed: Callable[[], object] = lambda: None
    ) -> Iterator[PQGenConn[C]]:
        """Start one attempt after the other; each gets an equal share of the time that is left."""
        for left, attempt in zip(range(len(attempts), 0, -1), attempts, strict=True):
            now = monotonic()
            share = min((deadline - now) / left, timeout_from_conninfo(attempt))
            steps = cast("PQGenConn[C]", self._class._connect_gen(make_conninfo("", **attempt)))
            yield _until(now + share, steps, heed)

    def _adopt(self, conn: C) -> C:
        for name, value in self._given.items():
            setattr(conn, name, value)
        if self._context is not None:
            conn._adapters = AdaptersMap(self._context.adapters)
        self._adapters = _copy(conn._adapters)
        self._handlers = len(conn._notice_handlers), len(conn._notify_handlers)
        self._opened = _settings(conn)
        setattr(conn, _SOCKET, _watcher.identify(self.descriptor(conn)))
        return conn

    def _cut(self, conn: C) -> None:
        """End the connection for everybody, and leave it to the last one who refers to it to free it."""
        # psycopg then does not complain of a connection that nobody has closed.
        conn._pool = None
        if (descriptor := getattr(conn, _SOCKET)) is not None:
            cut_number(descriptor.number, descriptor.inode)

    def _ping(self, conn: C) -> PQGen[None]:
        # Not through a cursor: that would begin a transaction.
        yield from conn._exec_command(b"SELECT 1")

    def _reset(self, conn: C) -> PQGen[None]:
        yield from conn._rollback_gen()
        if self._session:
            # DISCARD ALL takes the prepared statements with it. psycopg must forget them, or it would name them again.
            threshold, most = conn._prepared.prepare_threshold, conn._prepared.prepared_max
            yield from conn._exec_command(b"DISCARD ALL")
            conn._prepared = type(conn._prepared)()
            conn._prepared.prepare_threshold, conn._prepared.prepared_max = threshold, most
            conn._adapters = _copy(self._adapters)
        elif conn._notifies_backlog:
            yield from conn._exec_command(b"UNLISTEN *")
        while conn.pgconn.notifies():
            pass
        if conn._notifies_backlog:
            conn._notifies_backlog.clear()
        for name, value in zip(_SETTINGS, self._opened, strict=True):
            setattr(conn, name, value)
        conn._begin_statement = b""
        notice_handlers, notify_handlers = self._handlers
        del conn._notice_handlers[notice_handlers:]
        del conn._notify_handlers[notify_handlers:]


class Psycopg(_Inspection["psycopg.Connection[R]"], Generic[R]):
    """Connections of psycopg to PostgreSQL, for a `Pool`.

    `conninfo` and the keyword arguments are those of `psycopg.connect`; each may also be a callable without
    arguments, which is called anew for every open (a rotated password, an IAM token). `autocommit`,
    `prepare_threshold`, `row_factory`, `cursor_factory` and `context` are psycopg's own; `connection_class` is what
    `connect` is called on.

    `reset="transaction"`, the default, rolls back what is open, and also undoes what the borrower changed on the
    client's side: `autocommit`, `isolation_level`, `read_only`, `deferrable`, `prepare_threshold`, the row and cursor
    factories, added notice and notify handlers; a session that has been notified is told to UNLISTEN. There is no
    round trip if no transaction is open. `reset="session"` sends DISCARD ALL (and restores `adapters`) after every
    loan, so that settings, advisory locks, temporary tables, held cursors, prepared statements and LISTEN are gone too.

    The limits are kept to within 0.05 s, over all hosts of the connection string together; only looking up a host's
    name cannot be cut short. Raises psycopg's own exceptions, or ValueError for a connection string that is none.
    """

    @overload
    def __init__(
        self: Psycopg[TupleRow],
        conninfo: str | Callable[[], str] = "",
        *,
        reset: Literal["transaction", "session"] = "transaction",
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        row_factory: None = None,
        cursor_factory: type[psycopg.Cursor[Any]] | None = None,
        connection_class: type[psycopg.Connection[Any]] = psycopg.Connection,
        context: AdaptContext | None = None,
        **kwargs: ConnParam | Callable[[], ConnParam],
    ) -> None: ...
    @overload
    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        reset: Literal["transaction", "session"] = "transaction",
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        row_factory: RowFactory[R],
        cursor_factory: type[psycopg.Cursor[Any]] | None = None,
        connection_class: type[psycopg.Connection[Any]] = psycopg.Connection,
        context: AdaptContext | None = None,
        **kwargs: ConnParam | Callable[[], ConnParam],
    ) -> None: ...
    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        reset: Literal["transaction", "session"] = "transaction",
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        row_factory: RowFactory[R] | None = None,
        cursor_factory: type[psycopg.Cursor[Any]] | None = None,
        connection_class: type[psycopg.Connection[Any]] = psycopg.Connection,
        context: AdaptContext | None = None,
        **kwargs: ConnParam | Callable[[], ConnParam],
    ) -> None:
        factories = {"row_factory": row_factory, "cursor_factory": cursor_factory}
        settings = {"_autocommit": autocommit, "prepare_threshold": prepare_threshold}
        super().__init__(connection_class, conninfo, reset, settings, factories, context, kwargs)

    def open(self, timeout: float) -> psycopg.Connection[R]:
        """Connect and authenticate within `timeout` seconds; raise the last host's `psycopg.Error` if not."""
        deadline = monotonic() + timeout
        values = dict(self._values())
        params = self._class._get_connection_params("", **{**_parsed(values.pop("")), **values})
        failure: psycopg.Error | None = None
        for attempt in self._attempts(conninfo_attempts(params), deadline):
            try:
                return self._adopt(waiting.wait_conn(attempt, _TICK))
            except psycopg.Error as exc:
                failure = exc.with_traceback(None)
            except BaseException as exc:
                clear_frames(exc.__traceback__)  # the half-open connection goes now, whoever keeps the exception
                raise
            finally:
                attempt.close()
        assert failure is not None
        raise failure

    def ping(self, conn: psycopg.Connection[R], timeout: float) -> None:
        """Do one round trip within `timeout` seconds, outside any transaction; raise `psycopg.Error` if not."""
        self._wait(conn, self._ping(conn), timeout)

    def reset(self, conn: psycopg.Connection[R], timeout: float) -> None:
        """Clean as far as `reset` says within `timeout` seconds: one round trip for each statement that is needed."""
        self._wait(conn, self._reset(conn), timeout)

    def close(self, conn: psycopg.Connection[R]) -> None:
        """Say goodbye, close, and wait up to 0.5 s until the server has hung up: only then is its place free there."""
        twin = _twin_of(conn)
        try:
            self._close(conn)
            if twin is not None:
                _watcher.hung_up(twin, _FAREWELL)
        finally:
            if twin is not None:
                os.close(twin)

    def _close(self, conn: psycopg.Connection[R]) -> None:
        if not conn.lock.acquire(blocking=False):
            self._cut(conn)
            return
        # A close() of a class's own may have something to say, for which it needs the lock.
        plain = type(conn).close is psycopg.Connection.close
        try:
            if plain:
                conn.close()
        finally:
            conn.lock.release()
        if not plain:
            conn.close()

    def abandon(self, conn: psycopg.Connection[R]) -> None:
        """Close the socket at once; libpq's goodbye is sent only if the socket takes it without waiting.

        A thread that is still in a query fails at once with `psycopg.OperationalError`.
        """
        if conn.lock.acquire(blocking=False):
            try:
                conn.pgconn.finish()
            finally:
                conn.lock.release()
        else:
            self._cut(conn)

    def _wait(self, conn: psycopg.Connection[R], steps: PQGen[None], timeout: float) -> None:
        # Not conn.wait: if interrupted it would spend up to 10 s on a cancel request, for a connection to be abandoned.
        if not conn.lock.acquire(blocking=False):
            raise psycopg.OperationalError("somebody still uses the connection")
        try:
            waiting.wait(_until(monotonic() + timeout, steps), conn.pgconn.socket, _TICK)
        finally:
            conn.lock.release()


class AsyncPsycopg(_Inspection["psycopg.AsyncConnection[R]"], Generic[R]):
    """Connections of psycopg to PostgreSQL, for an `AsyncPool` on asyncio; trio is not supported by psycopg.

    As `Psycopg`, and the callables may also be async. A cancellation in mid-query leaves the connection broken, or
    drained by psycopg; one during `open`, `ping` or `reset` is passed on at once and leaves it broken.
    """

    @overload
    def __init__(
        self: AsyncPsycopg[TupleRow],
        conninfo: str | Callable[[], str | Awaitable[str]] = "",
        *,
        reset: Literal["transaction", "session"] = "transaction",
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        row_factory: None = None,
        cursor_factory: type[psycopg.AsyncCursor[Any]] | None = None,
        connection_class: type[psycopg.AsyncConnection[Any]] = psycopg.AsyncConnection,
        context: AdaptContext | None = None,
        **kwargs: ConnParam | Callable[[], ConnParam | Awaitable[ConnParam]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        conninfo: str | Callable[[], str | Awaitable[str]] = "",
        *,
        reset: Literal["transaction", "session"] = "transaction",
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        row_factory: AsyncRowFactory[R],
        cursor_factory: type[psycopg.AsyncCursor[Any]] | None = None,
        connection_class: type[psycopg.AsyncConnection[Any]] = psycopg.AsyncConnection,
        context: AdaptContext | None = None,
        **kwargs: ConnParam | Callable[[], ConnParam | Awaitable[ConnParam]],
    ) -> None: ...
    def __init__(
        self,
        conninfo: str | Callable[[], str | Awaitable[str]] = "",
        *,
        reset: Literal["transaction", "session"] = "transaction",
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        row_factory: AsyncRowFactory[R] | None = None,
        cursor_factory: type[psycopg.AsyncCursor[Any]] | None = None,
        connection_class: type[psycopg.AsyncConnection[Any]] = psycopg.AsyncConnection,
        context: AdaptContext | None = None,
        **kwargs: ConnParam | Callable[[], ConnParam | Awaitable[ConnParam]],
    ) -> None:
        factories = {"row_factory": row_factory, "cursor_factory": cursor_factory}
        settings = {"_autocommit": autocommit, "prepare_threshold": prepare_threshold}
        super().__init__(connection_class, conninfo, reset, settings, factories, context, kwargs)

    def inspect(self, conn: psycopg.AsyncConnection[R], error: BaseException | None) -> Condition:
        """As for threads; and a task that has still to begin its query, since another has only just ended, is seen."""
        return BROKEN if conn.lock._waiters else super().inspect(conn, error)

    async def open(self, timeout: float) -> psycopg.AsyncConnection[R]:
        """Connect and authenticate within `timeout` seconds; raise the last host's `psycopg.Error` if not.

        A `TimeoutError` means that a callable, or looking up the host, took all the time.
        """
        deadline = monotonic() + timeout
        async with asyncio.timeout(timeout):
            values = {name: await v if inspect.isawaitable(v) else v for name, v in self._values()}
            params = await self._class._get_connection_params("", **{**_parsed(values.pop("")), **values})
            attempts = await conninfo_attempts_async(params)
        failure: psycopg.Error | None = None
        for attempt in self._attempts(attempts, deadline, _lost_cancellation()):
            try:
                return self._adopt(await waiting.wait_conn_async(attempt, _TICK))
            except psycopg.Error as exc:
                failure = exc.with_traceback(None)
            except BaseException as exc:
                clear_frames(exc.__traceback__)  # as above
                raise
            finally:
                attempt.close()
        assert failure is not None
        raise failure

    async def ping(self, conn: psycopg.AsyncConnection[R], timeout: float) -> None:
        """Do one round trip within `timeout` seconds, outside any transaction; raise `psycopg.Error` if not."""
        await self._wait(conn, self._ping(conn), timeout)

    async def reset(self, conn: psycopg.AsyncConnection[R], timeout: float) -> None:
        """Clean as far as `reset` says within `timeout` seconds: one round trip for each statement that is needed."""
        await self._wait(conn, self._reset(conn), timeout)

    async def close(self, conn: psycopg.AsyncConnection[R]) -> None:
        """Say goodbye, close, and wait up to 0.5 s until the server has hung up: only then is its place free there."""
        twin = _twin_of(conn)
        try:
            if conn.lock.locked():
                self._cut(conn)
            else:
                await conn.close()
            end = monotonic() + _FAREWELL
            while twin is not None and not _watcher.hung_up(twin) and monotonic() < end:  # noqa: ASYNC110
                await asyncio.sleep(_GLANCE)
        finally:
            if twin is not None:
                os.close(twin)

    def abandon(self, conn: psycopg.AsyncConnection[R]) -> None:
        """Close the socket at once; libpq's goodbye is sent only if the socket takes it without waiting.

        A task that is still in a query fails at once with `psycopg.OperationalError`.
        """
        if conn.lock.locked():
            self._cut(conn)
        else:
            conn.pgconn.finish()

    async def _wait(self, conn: psycopg.AsyncConnection[R], steps: PQGen[None], timeout: float) -> None:
        # Not conn.wait: if cancelled it would spend up to 10 s on a cancel request, for a connection to be abandoned.
        if conn.lock.locked() or conn.lock._waiters:
            raise psycopg.OperationalError("somebody still uses the connection")
        steps = _until(monotonic() + timeout, steps, _lost_cancellation())
        async with conn.lock:
            await waiting.wait_async(steps, conn.pgconn.socket, _TICK)
