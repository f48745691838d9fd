"""Connections of psycopg 3 to PostgreSQL, for threads (`Psycopg`) and for asyncio (`AsyncPsycopg`)."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable
from time import monotonic
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from millpond import _watcher
from millpond._extras import extra
from millpond.connector import Condition
from millpond.connectors._psycopg import (
    BROKEN,
    FAREWELL,
    GLANCE,
    TICK,
    Inspection,
    is_psycopgs_own,
    lost_cancellation,
    parsed,
    twin_of,
    until,
)

with extra("psycopg"):
    import psycopg
    from psycopg import waiting
    from psycopg.conninfo import conninfo_attempts, conninfo_attempts_async

if TYPE_CHECKING:
    from psycopg.abc import AdaptContext, ConnParam, PQGen
    from psycopg.rows import AsyncRowFactory, RowFactory, TupleRow

__all__ = ["AsyncPsycopg", "Psycopg"]

R = TypeVar("R")


class Psycopg(Inspection["psycopg.Connection[R]"], Generic[R]):
    """Connections of psycopg to PostgreSQL, for a `Pool`.

    `conninfo` and the keyword arguments are those of `psycopg.connect`; each may also be a callable without
    arguments, which is called anew for every open (a rotated password, an IAM token). `autocommit`,
    `prepare_threshold`, `row_factory`, `cursor_factory` and `context` are psycopg's own; `connection_class` is what
    `connect` is called on. A `connect` that a class has overridden (to fetch a token, to set up a session), or that
    something that traces has wrapped, is called as psycopg's would be.

    `reset="transaction"`, the default, rolls back what is open, and also undoes what the borrower changed on the
    client's side: `autocommit`, `isolation_level`, `read_only`, `deferrable`, `prepare_threshold`, `prepared_max`, the
    row and cursor factories, `adapters`, notice and notify handlers; a session that has been notified is told to
    UNLISTEN. All of it is then as it was when the connection was opened (handlers set on `pgconn` itself are put back
    when there is something else to reset). There is no round trip if no transaction is open. `reset="session"` also
    sends DISCARD ALL after every loan, so that settings, advisory locks, temporary tables, held cursors, prepared
    statements and LISTEN are gone too.

    The limits are kept to within 0.05 s, over all hosts of the connection string together; only looking up a host's
    name cannot be cut short. A `connect` that is not psycopg's own is given `connect_timeout`, which psycopg keeps for
    each host, in whole seconds. Raises psycopg's own exceptions, or ValueError for a connection string that is none.
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
        settings = {"autocommit": autocommit, "prepare_threshold": prepare_threshold}
        super().__init__(connection_class, conninfo, reset, settings, factories, context, kwargs)

    def open(self, timeout: float) -> psycopg.Connection[R]:
        """Connect and authenticate within `timeout` seconds; raise the last host's `psycopg.Error` if not."""
        deadline = monotonic() + timeout
        values = dict(self._values())
        conninfo = values.pop("")
        if not is_psycopgs_own(self._class):
            given = self._arguments(conninfo, values, timeout)
            try:
                return self._expect_idle(self._class.connect(conninfo, **given))
            except BaseException as exc:
                clear_frames(exc.__traceback__)  # as below
                raise
        params = self._class._get_connection_params("", **{**parsed(conninfo), **values})
        failure: psycopg.Error | None = None
        for attempt in self._attempts(conninfo_attempts(params), deadline):
            try:
                return self._set_up(waiting.wait_conn(attempt, TICK))
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
        self._state.forget(conn)
        twin = twin_of(conn)
        try:
            self._close(conn)
            if twin is not None:
                _watcher.hung_up(twin, FAREWELL)
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
        self._state.forget(conn)
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
            waiting.wait(until(monotonic() + timeout, steps), conn.pgconn.socket, TICK)
        finally:
            conn.lock.release()


class AsyncPsycopg(Inspection["psycopg.AsyncConnection[R]"], Generic[R]):
    """Connections of psycopg to PostgreSQL, for an `AsyncPool` on asyncio; trio is not supported by psycopg.

    As `Psycopg`, and the callables may also be async. A cancellation in mid-query leaves the connection broken, or
    drained by psycopg; one during `open`, `ping` or `reset` is passed on at once and leaves it broken.
    """

    asyncio_only = True

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
        settings = {"autocommit": autocommit, "prepare_threshold": prepare_threshold}
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
            conninfo = values.pop("")
            if not is_psycopgs_own(self._class):
                given = self._arguments(conninfo, values, timeout)
                try:
                    return self._expect_idle(await self._class.connect(conninfo, **given))
                except BaseException as exc:
                    clear_frames(exc.__traceback__)  # as for threads
                    raise
            params = await self._class._get_connection_params("", **{**parsed(conninfo), **values})
            attempts = await conninfo_attempts_async(params)
        failure: psycopg.Error | None = None
        for attempt in self._attempts(attempts, deadline, lost_cancellation()):
            try:
                return self._set_up(await waiting.wait_conn_async(attempt, TICK))
            except psycopg.Error as exc:
                failure = exc.with_traceback(None)
            except BaseException as exc:
                clear_frames(exc.__traceback__)  # as for threads
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
        self._state.forget(conn)
        twin = twin_of(conn)
        try:
            if conn.lock.locked():
                self._cut(conn)
            else:
                await conn.close()
            end = monotonic() + FAREWELL
            while twin is not None and not _watcher.hung_up(twin) and monotonic() < end:  # noqa: ASYNC110
                await asyncio.sleep(GLANCE)
        finally:
            if twin is not None:
                os.close(twin)

    def abandon(self, conn: psycopg.AsyncConnection[R]) -> None:
        """Close the socket at once; libpq's goodbye is sent only if the socket takes it without waiting.

        A task that is still in a query fails at once with `psycopg.OperationalError`.
        """
        self._state.forget(conn)
        if conn.lock.locked():
            self._cut(conn)
        else:
            conn.pgconn.finish()

    async def _wait(self, conn: psycopg.AsyncConnection[R], steps: PQGen[None], timeout: float) -> None:
        # Not conn.wait: if cancelled it would spend up to 10 s on a cancel request, for a connection to be abandoned.
        if conn.lock.locked() or conn.lock._waiters:
            raise psycopg.OperationalError("somebody still uses the connection")
        steps = until(monotonic() + timeout, steps, lost_cancellation())
        async with conn.lock:
            await waiting.wait_async(steps, conn.pgconn.socket, TICK)
