"""Connections of aiosqlite to SQLite, for asyncio.

aiosqlite runs each connection in a thread of its own. A cancelled call goes on in that thread, unseen; so the calls that
have begun and ended are counted, and a connection whose thread is at work is interrupted and waited for by `reset`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from typing import Any

from millpond.connector import Condition
from millpond.connectors.sqlite import IsolationLevel, Sqlite

try:
    import aiosqlite
    from aiosqlite.core import _STOP_RUNNING_SENTINEL
except ImportError as exc:
    raise ImportError('aiosqlite 0.22 is not installed: pip install "millpond[aiosqlite]"') from exc

__all__ = ["Aiosqlite"]


class _Connection(aiosqlite.Connection):
    """aiosqlite's connection, which also knows whether its thread is at work, and can be stopped by anyone."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], close: Callable[[sqlite3.Connection], None]) -> None:
        super().__init__(self._open, iter_chunk_size=64)
        # A pool that nobody closed must not keep the interpreter from ending.
        self._thread.daemon = True
        self._connect_raw = connect
        self._close_raw = close
        self._raw: sqlite3.Connection | None = None
        self._begun = self._ended = 0  # written by the loop's thread and by ours, one each

    @property
    def busy(self) -> bool:
        return self._begun != self._ended

    def _open(self) -> sqlite3.Connection:
        # Known here, and not only to the future: nobody waits for that any more if the open was cancelled.
        self._raw = self._connect_raw()
        return self._raw

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        def call() -> object:
            try:
                return fn(*args, **kwargs)
            finally:
                self._ended += 1

        self._begun += 1
        return await super()._execute(call)  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Have the thread close the connection and end, once it has done what is in its queue.

        aiosqlite's own makes a future of whichever loop runs, and its thread dies of a traceback if that loop has been
        closed by then.
        """
        self._running = False
        self._connection = None

        def close_and_stop() -> object:
            raw, self._raw = self._raw, None
            if raw is not None:
                self._close_raw(raw)
            return _STOP_RUNNING_SENTINEL

        self._tx.put_nowait((None, close_and_stop))


class Aiosqlite:
    """Connections of aiosqlite to one SQLite database, for an `AsyncPool` on asyncio; trio is not supported by it.

    Arguments and what is cleaned between loans are those of `millpond.connectors.sqlite.Sqlite`. A connection lent while
    its thread still works for a cancelled call is interrupted and waited for before it is lent again.
    """

    provable = True

    def __init__(
        self,
        database: str | os.PathLike[str],
        *,
        wal: bool = True,
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
        self.target = self._sqlite.target

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
        """Look as `Sqlite` does, if the connection's thread is at rest."""
        if not isinstance(conn, _Connection) or conn._connection is None:
            return Condition.BROKEN
        return Condition.DIRTY if conn.busy else self._sqlite.inspect(conn._connection, error)

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
        """Interrupt what the thread is still at, wait for it, roll back; raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            if isinstance(conn, _Connection) and conn.busy:
                conn._conn.interrupt()
            await conn._execute(self._sqlite.reset, conn._conn, timeout)  # type: ignore[no-untyped-call]

    async def close(self, conn: aiosqlite.Connection) -> None:
        """Have the thread end after what is in its queue, and close the connection; it does not wait for that."""
        conn.stop()

    def abandon(self, conn: aiosqlite.Connection) -> None:
        """Interrupt what the thread is at, and have it close the connection and end; works without a loop, too."""
        if conn._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                conn._connection.interrupt()
        conn.stop()

    def refused(self, error: BaseException) -> bool:
        """Tell whether the file is not a database, or may not be read."""
        return self._sqlite.refused(error)
