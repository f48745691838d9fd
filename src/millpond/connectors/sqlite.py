"""Connections of the standard library's sqlite3.

SQLite runs in the process: a call into it has ended before Python can be interrupted, so no reply is ever outstanding.
What a borrower can leave behind is an open transaction, and a cursor that was read only in part: it keeps its read
transaction open although `in_transaction` is False, so the next borrower would see an old snapshot and hold up
checkpoints.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import sys
import weakref
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from millpond.connector import Condition
from millpond.connectors import _sqlite_connection
from millpond.connectors._sqlite_connection import FAILED, OPEN, PATIENCE, Connection
from millpond.connectors._watchdog import Limit

__all__ = ["InheritedDatabase", "Sqlite"]

# A member of an Enum takes 50 ns to look up, and this is the hot path.
CLEAN, UNPROVED, DIRTY, BROKEN = Condition

IsolationLevel: TypeAlias = Literal["DEFERRED", "IMMEDIATE", "EXCLUSIVE"] | None

_numbers = itertools.count(1)

# The databases that were open in a process of which this one is a fork.
_inherited: Final[set[str]] = set()


class InheritedDatabase(sqlite3.OperationalError):
    """A database that was open when this process was forked, and is its parent's."""


def _in_child() -> None:
    _inherited.update(database for database, _ in OPEN)
    OPEN.clear()


if hasattr(os, "register_at_fork"):
    for _time in range(2):  # as in millpond._fork
        os.register_at_fork(after_in_child=_in_child)


class Sqlite:
    """Connections to one SQLite database, for a `Pool`.

    `database` is a path, or a `file:` URI. `":memory:"` is one database that all connections share and that lives as
    long as the connector (SQLite's `memdb`, for SQLite 3.36 or later; unlike a shared cache it honours
    `busy_timeout`). A database that each connection would have to itself raises ValueError.

    A file is put in WAL mode, in which readers and a writer do not wait for each other; the mode stays with the file.
    `wal=False` leaves its mode alone. A statement waits up to `busy_timeout` seconds (default 5) for another
    connection's lock. `autocommit` is that of Python 3.12 and later; `isolation_level`, `row_factory` and
    `detect_types` are sqlite3's own.

    Between loans the open transaction is rolled back, and `row_factory`, `text_factory`, `isolation_level` and
    `autocommit` are restored; a connection that still has a half-read cursor is closed. PRAGMAs, ATTACH, temporary
    tables, functions and callbacks stay. A connection whose file has been replaced or deleted is not alive.

    A thread that is still in a statement when the loan ends is interrupted. What the pool has closed says so, in an
    `sqlite3.ProgrammingError`. With a cursor that was read in part it keeps its file and the cursor's snapshot, until
    that is dropped and another connection is opened or closed.

    What has a connection to a file when it forks must leave that file to its parent. SQLite notes per process which
    locks it holds; the child inherits the note and not the locks, and would write unlocked: the parent may then throw
    away what the child has committed (sqlite.org/howtocorrupt.html, 2.6). A pool closes its idle connections before a
    fork; if one was on loan, a child that asks for another is refused.
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
        if autocommit is not None and sys.version_info < (3, 12):
            raise ValueError("autocommit needs Python 3.12; before it, use isolation_level")
        self._path = os.fspath(database)
        self._busy_timeout = busy_timeout
        self._autocommit = autocommit
        # As sqlite3 says it when it is asked.
        self._isolation_level: Any = isolation_level.upper() if isinstance(isolation_level, str) else isolation_level
        self._row_factory = row_factory
        self._detect_types = detect_types
        self.target: str = f"sqlite:///{_file_of(self._path)}"  # without the query, which may hold a key
        query = parse_qs(self._path.partition("?")[2]) if self._path.startswith("file:") else {}
        memory = "memory" in query.get("mode", ()) or "memdb" in query.get("vfs", ())
        if self._path == ":memory:":
            if sqlite3.sqlite_version_info < (3, 36):
                raise ValueError(f"sharing :memory: needs SQLite 3.36; this is {sqlite3.sqlite_version}")
            self._path = f"file:/millpond-{os.getpid()}-{next(_numbers)}?vfs=memdb"
            memory = True
        elif not self._path or self._path.startswith("file::memory:"):
            raise ValueError(f"each connection to {self._path!r} would have a database of its own; use ':memory:'")
        elif "memory" in query.get("mode", ()) and "shared" not in query.get("cache", ()):
            raise ValueError("each connection to mode=memory has a database of its own unless there is cache=shared")
        self._wal = wal and not memory and "ro" not in query.get("mode", ()) and "immutable" not in query
        # The file to watch for being replaced.
        self._file = None if memory else _file_of(self._path)
        self._database = self._path if self._file is None else os.path.realpath(self._file)
        if memory:
            # Shared memory lives as long as a connection to it: this one, until the connector is collected.
            weakref.finalize(self, self._connect(busy_timeout).close)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"

    def open(self, timeout: float) -> sqlite3.Connection:
        """Open the database, waiting at most `timeout` seconds for a lock; raises `sqlite3.Error`."""
        _sqlite_connection.close_what_waits()
        if self._database in _inherited:
            raise InheritedDatabase(
                f"{self.target}: a connection to it was open when this process was forked, and SQLite's locks do not "
                "come across a fork; fork while none is on loan or half read, or start the child with spawn"
            )
        deadline = monotonic() + timeout
        opened = self._database, next(_numbers)
        OPEN.add(opened)
        try:
            conn = self._connect(timeout)
            try:
                if self._wal:
                    _use_wal(conn, deadline)
                conn.execute("PRAGMA schema_version").close()  # reads the file, so what is no database fails here
                conn.execute(f"PRAGMA busy_timeout = {int(self._busy_timeout * 1000)}").close()
                self._restore(conn)
            except BaseException:
                conn.close()
                raise
        except BaseException:
            OPEN.discard(opened)
            raise
        conn.inode, conn.opened = self._inode(), opened
        return conn

    def inspect(self, conn: sqlite3.Connection, error: BaseException | None) -> Condition:
        """Look for an open transaction, a half-read cursor and changed attributes; takes about 1 µs."""
        try:
            # With autocommit=False there always is a transaction.
            condition = UNPROVED if self._autocommit is False else CLEAN
            if (
                (conn.in_transaction and condition is CLEAN)
                or conn.row_factory is not self._row_factory
                or conn.text_factory is not str
                or conn.isolation_level != self._isolation_level
                or _autocommit(conn) != (_LEGACY if self._autocommit is None else self._autocommit)
            ):
                return DIRTY
            # An interrupt does nothing if no statement is under way; but if one is, every statement fails from now on
            # until that one is gone. Only its owner can make it go, so the connection cannot be mended.
            conn.interrupt()
            conn.execute("SELECT 1").close()
        except FAILED:
            return BROKEN  # closed, or a half-read cursor
        return condition

    def alive(self, conn: sqlite3.Connection) -> bool:
        """Tell whether the path still leads to the file that the connection has open."""
        return isinstance(conn, Connection) and conn.inode == self._inode()

    def descriptor(self, conn: sqlite3.Connection) -> int | None:
        """Return None: there is no peer to hang up."""
        return None

    def ping(self, conn: sqlite3.Connection, timeout: float) -> None:
        """Run a statement that reads nothing, so that no snapshot begins; `timeout` is not needed."""
        conn.execute("SELECT 1").close()

    def reset(self, conn: sqlite3.Connection, timeout: float) -> None:
        """Roll back and restore the attributes; a statement that somebody is still in is interrupted after 0.1 s."""
        with Limit(PATIENCE, conn.interrupt):
            if _autocommit(conn) is not True:
                conn.rollback()
            elif conn.in_transaction:
                conn.execute("ROLLBACK").close()  # with autocommit=True sqlite3's own rollback() does nothing
        self._restore(conn)
        if conn.in_transaction and self._autocommit is not False:
            conn.execute("ROLLBACK").close()  # the borrower's autocommit=False had begun another

    def close(self, conn: sqlite3.Connection) -> None:
        """Close the connection; the last one to a WAL file writes its log back, which may take a while.

        A thread that is in a statement is interrupted. While it does not come out, or a cursor is half read, the file
        stays open.
        """
        _sqlite_connection.close(conn)

    def abandon(self, conn: sqlite3.Connection) -> None:
        """Close the connection if nobody has a cursor of it; if somebody has, do so when that is gone."""
        _sqlite_connection.abandon(conn)

    def refused(self, error: BaseException) -> bool:
        """Tell whether the file is not a database, may not be read, or was inherited open by a fork."""
        return isinstance(error, InheritedDatabase) or getattr(error, "sqlite_errorcode", None) in (
            sqlite3.SQLITE_NOTADB,
            sqlite3.SQLITE_AUTH,
            sqlite3.SQLITE_PERM,
        )

    def _connect(self, timeout: float) -> Connection:
        return sqlite3.connect(
            self._path,
            factory=Connection,
            timeout=timeout,
            detect_types=self._detect_types,
            isolation_level=self._isolation_level,
            # The pool lends a connection to one thread at a time.
            check_same_thread=False,
            uri=self._path.startswith("file:"),
        )

    def _restore(self, conn: sqlite3.Connection) -> None:
        conn.row_factory = self._row_factory
        conn.text_factory = str
        conn.isolation_level = self._isolation_level
        if sys.version_info >= (3, 12):
            conn.autocommit = _LEGACY if self._autocommit is None else self._autocommit

    def _inode(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        try:
            status = os.stat(self._file)
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _file_of(path: str) -> str:
    return unquote(urlsplit(path).path) if path.startswith("file:") else path


def _use_wal(conn: sqlite3.Connection, deadline: float) -> None:
    while True:
        try:
            conn.execute("PRAGMA journal_mode = wal").close()
        except sqlite3.OperationalError as exc:
            # While another connection makes the same change, SQLite does not wait as it does for other locks.
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() >= deadline:
                raise
            sleep(0.001)
        else:
            return


_LEGACY: Any = getattr(sqlite3, "LEGACY_TRANSACTION_CONTROL", None)
"""What `autocommit` is unless it is given: from Python 3.12 on; before that there is none."""


def _autocommit(conn: sqlite3.Connection) -> object:
    return getattr(conn, "autocommit", None)  # it is there from Python 3.12 on
