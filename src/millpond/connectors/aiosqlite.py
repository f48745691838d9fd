"""Connections of aiosqlite to SQLite, for asyncio.

aiosqlite runs each connection in a thread of its own. A cancelled call goes on in that thread, unseen; so the calls
that have begun and ended are counted, and `reset` interrupts a connection whose thread is at work and waits for it. Of
what was waiting behind such a call nothing begins any more once it was cancelled, or the loan is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any

from millpond._extras import extra
from millpond.connector import Condition
from millpond.connectors import _sqlite_connection
from millpond.connectors._sqlite_connection import PATIENCE
from millpond.connectors.sqlite import IsolationLevel, Sqlite

with extra("aiosqlite"):
    import aiosqlite
    from aiosqlite.core import _STOP_RUNNING_SENTINEL, set_exception, set_result

__all__ = ["Aiosqlite"]


# How often a thread is looked at that is to end what it is at; seconds.
_GLANCE = 0.002


class _Connection(aiosqlite.Connection):
    """aiosqlite's connection, which also knows whether its thread is at work, and can be stopped by anyone."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], close: Callable[[sqlite3.Connection], None]) -> None:
        super().__init__(self._open, iter_chunk_size=64)
        # Not aiosqlite's: that one dies of a traceback, its connection open, if the loop of a cancelled call has been
        # closed when the call ends. And a pool that nobody closed must not keep the interpreter from ending.
        self._thread = threading.Thread(target=_work, args=(self._tx,), name="aiosqlite", daemon=True)
        self._connect_raw = connect
        self._close_raw = close
        self._raw: sqlite3.Connection | None = None
        self._begun = self._ended = 0  # written by the loop's thread and by ours, one each
        self._over = 0  # so many had been asked for when the last loan ended
        # Under whoever runs a statement the connection must not be freed.
        self.ending = threading.Lock()

    @property
    def busy(self) -> bool:
        return self._begun != self._ended

    def _open(self) -> sqlite3.Connection:
        # Known here, and not only to the future: nobody waits for that any more if the open was cancelled.
        self._raw = self._connect_raw()
        return self._raw

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        # As aiosqlite's own.
        if not self._running or self._connection is None:
            raise ValueError("Connection closed")
        future = asyncio.get_running_loop().create_future()
        self._begun += 1
        number = self._begun

        def call() -> object:
            try:
                if future.cancelled() or number <= self._over:
                    raise sqlite3.ProgrammingError("the loan of this connection ended before the call began")
                return fn(*args, **kwargs)
            finally:
                self._ended += 1

        self._tx.put_nowait((future, call))
        return await future

    def forgo(self) -> None:
        """Have nothing begin any more of what was asked for until now."""
        self._over = self._begun

    def close_raw(self) -> None:
        """Close sqlite3's connection, in its thread."""
        with self.ending:
            raw, self._raw = self._raw, None
            if raw is not None:
                self._close_raw(raw)

    def stop(self) -> None:
        """Have the thread close the connection and end, once it has done what is in its queue; needs no loop."""
        self._running = False
        self._connection = None
        self.forgo()

        def close_and_stop() -> object:
            self.close_raw()
            return _STOP_RUNNING_SENTINEL

        self._tx.put_nowait((None, close_and_stop))


def _work(calls: SimpleQueue[tuple[asyncio.Future[object] | None, Callable[[], object]]]) -> None:
    while True:
        future, call = calls.get()
        result: object = None
        try:
            result = call()
        except BaseException as exc:
            _answer(future, set_exception, exc)
        else:
            _answer(future, set_result, result)
        if result is _STOP_RUNNING_SENTINEL:
            return
        del future, call, result  # a cursor among them would stay open until the next call


def _answer(future: asyncio.Future[object] | None, answer: Callable[..., None], value: object) -> None:
    if future is not None:
        try:
            future.get_loop().call_soon_threadsafe(answer, future, value)
        except RuntimeError:
            pass  # the loop is closed, and with it the call was given up


async def _stop(conn: aiosqlite.Connection) -> None:
    """Interrupt what the thread is at, and wait for it; raises TimeoutError for what goes on all the same.

    `executemany` does, for one: whoever interrupts it has Python's lock, so that it always is between two statements.
    """
    if not isinstance(conn, _Connection):
        return
    conn.forgo()
    deadline = monotonic() + PATIENCE
    while conn.busy:
        conn._conn.interrupt()
        await asyncio.sleep(_GLANCE)
        if monotonic() > deadline:
            raise TimeoutError("the thread of this connection goes on with what its last borrower has begun")


class Aiosqlite:
    """Connections of aiosqlite to one SQLite database, for an `AsyncPool` on asyncio; trio is not supported by it.

    Arguments and what is cleaned between loans are those of `millpond.connectors.sqlite.Sqlite`. If a connection comes
    back while its thread still works for a cancelled call, that is interrupted and waited for before the next loan. A
    call that has not begun when it is cancelled, or when its loan ends, never does.
    """

    asyncio_only = True
    provable = True

    def __init__(
        self,
        database: str | os.PathLike[str],
        *,
        wal: bool = False,
        busy_timeout: float = 5.0,
        isolation_level: IsolationLevel = "DEFERRED",
        autocommit: bool | None = None,
        row_factory: Callable[[sqlite3.Cursor, Any], object] | None = None,
        detect_types: int = 0,
    ) -> None:
        self._sqlite = Sqlite(
            database,
            wal=wal,
            busy_timeout=busy_timeout,
            isolation_level=isolation_level,
            autocommit=autocommit,
            row_factory=row_factory,
            detect_types=detect_types,
        )
        self.target: str = self._sqlite.target

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"

    async def open(self, timeout: float) -> aiosqlite.Connection:
        """Open the database, waiting at most `timeout` seconds; raises `sqlite3.Error` or TimeoutError.

        If it is cancelled, its thread closes what it opens and ends.
        """
        conn = _Connection(lambda: self._sqlite.open(timeout), self._sqlite.close)
        async with asyncio.timeout(timeout):
            return await conn

    def inspect(self, conn: aiosqlite.Connection, error: BaseException | None) -> Condition:
        """Look as `Sqlite` does, if the connection's thread is at rest; if not, what it has not begun is dropped."""
        if not isinstance(conn, _Connection) or conn._connection is None:
            return Condition.BROKEN
        if not conn.busy:
            return self._sqlite.inspect(conn._connection, error)
        conn.forgo()
        return Condition.BROKEN if conn._connection.inside else Condition.DIRTY  # type: ignore[attr-defined]

    def alive(self, conn: aiosqlite.Connection) -> bool:
        """Tell whether the path still leads to the file that the connection has open."""
        return conn._connection is not None and conn._thread.is_alive() and self._sqlite.alive(conn._connection)

    def descriptor(self, conn: aiosqlite.Connection) -> int | None:
        """Return None: there is no peer to hang up."""
        return None

    async def ping(self, conn: aiosqlite.Connection, timeout: float) -> None:
        """Ask the connection's thread within `timeout` seconds; raises TimeoutError if it does not answer."""
        async with asyncio.timeout(timeout):
            await conn._execute(self._sqlite.ping, conn._conn, timeout)  # type: ignore[no-untyped-call]

    async def reset(self, conn: aiosqlite.Connection, timeout: float) -> None:
        """Interrupt what the thread is still at and roll back; raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            await _stop(conn)
            await conn._execute(self._sqlite.reset, conn._conn, timeout)  # type: ignore[no-untyped-call]

    async def close(self, conn: aiosqlite.Connection) -> None:
        """Interrupt what the thread is still at, and wait until it has closed the connection."""
        try:
            await _stop(conn)
            await conn._execute(conn.close_raw)  # type: ignore[no-untyped-call, attr-defined]
        finally:
            conn.stop()

    def abandon(self, conn: aiosqlite.Connection) -> None:
        """Interrupt what the thread is at, and have it close the connection and end; works without a loop, too."""
        conn.stop()
        raw = conn._raw if isinstance(conn, _Connection) else None
        # Only then: an interrupt that nothing receives would keep the close from writing the log back.
        if isinstance(conn, _Connection) and conn.busy and raw is not None:
            with contextlib.suppress(sqlite3.Error):
                raw.interrupt()
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._end, args=(conn, raw), name="aiosqlite-end", daemon=True).start()

    def _end(self, conn: _Connection, raw: sqlite3.Connection) -> None:
        """Keep what goes on after an interrupt, as a script does, from writing; it may have to be waited for."""
        deadline = monotonic() + PATIENCE
        while conn.busy and monotonic() < deadline:
            sleep(_GLANCE)
        with conn.ending:
            if conn.busy:
                _sqlite_connection.stop(raw)

    def refused(self, error: BaseException) -> bool:
        """Tell whether the file is not a database, or may not be read."""
        return self._sqlite.refused(error)
