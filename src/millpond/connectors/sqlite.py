"""Connections of the standard library's sqlite3.

SQLite runs in the process: a call into it has ended before Python can be interrupted, so no reply is ever outstanding.
What a borrower can leave behind is an open transaction, and a cursor that was read only in part: it keeps its read
transaction open although `in_transaction` is False, so the next borrower would see an old snapshot and hold up
checkpoints.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sqlite3
import sys
import weakref
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import parse_qs, quote, unquote_to_bytes, urlsplit

from millpond.connector import Condition
from millpond.connectors import _sqlite_connection
from millpond.connectors._client_state import ClientState
from millpond.connectors._sqlite_connection import FAILED, OPEN, PATIENCE, Connection
from millpond.connectors._url_text import InvalidURL, printable
from millpond.connectors._watchdog import Limit

__all__ = ["InheritedDatabase", "NoWAL", "Sqlite"]

# A member of an Enum takes 50 ns to look up, and this is the hot path.
CLEAN, UNPROVED, DIRTY, BROKEN = Condition

IsolationLevel: TypeAlias = Literal["DEFERRED", "IMMEDIATE", "EXCLUSIVE"] | None

# What SQLite reads of a URI's query, and of what may be said there only some values (sqlite.org/uri.html).
_PARAMETERS: Final = ("mode", "cache", "immutable", "nolock", "psow", "vfs", "modeof")
_VALUES: Final = {"mode": ("ro", "rw", "rwc", "memory"), "cache": ("shared", "private")}
# What an SQLite that was built to read encrypted files takes the key from; any other would pass over it.
_KEYS: Final = ("key", "hexkey", "textkey")
# What others write there, and how it is said here.
_ELSEWHERE: Final = {
    "timeout": "say busy_timeout=... as a keyword",
    "check_same_thread": "a pool's connections may be used in any thread",
    **dict.fromkeys(_KEYS, "it reads no encrypted files"),
    **{
        name: f"say {name}=... as a keyword"
        for name in ("autocommit", "busy_timeout", "detect_types", "isolation_level", "row_factory", "wal")
    },
}

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


class NoWAL(sqlite3.OperationalError):
    """A file that was to be put in WAL mode, and cannot be."""


class Sqlite:
    """Connections to one SQLite database, for a `Pool`.

    `database` is a path, or a `file:` URI; where it leads is settled now, and a later `os.chdir` changes nothing.
    `":memory:"` is one database that all connections share and that lives as long as the connector (SQLite's `memdb`,
    for SQLite 3.36 or later; unlike a shared cache it honours `busy_timeout`). A database that each connection would
    have to itself raises ValueError, and a query that SQLite would pass over `InvalidURL`, which is one.

    `wal=True` puts the file in WAL mode, in which readers and a writer do not wait for each other; the mode stays with
    the file, for every program. Else the mode is left alone. A statement waits up to `busy_timeout` seconds (default 5)
    for another connection's lock. `autocommit` is that of Python 3.12 and later; `isolation_level`, `row_factory` and
    `detect_types` are sqlite3's own.

    Between loans the open transaction is rolled back, and `row_factory`, `text_factory`, `isolation_level` and
    `autocommit` are restored; a connection that still has a half-read cursor is closed. PRAGMAs, limits, ATTACH,
    temporary tables, functions and callbacks stay. A connection whose file has been replaced or deleted is not alive,
    which is seen when it has been idle for the pool's `check_after`.

    A thread that is still in a statement when the loan ends is interrupted. What the pool has closed says so, in an
    `sqlite3.ProgrammingError`. With a cursor that was read in part it keeps its file and the cursor's snapshot (and,
    but for WAL mode, others from writing), until that is dropped and another connection is opened or closed.

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
        wal: bool = False,
        busy_timeout: float = 5.0,
        isolation_level: IsolationLevel = "DEFERRED",
        autocommit: bool | None = None,
        row_factory: Callable[[sqlite3.Cursor, Any], object] | None = None,
        detect_types: int = 0,
    ) -> None:
        if autocommit is not None and sys.version_info < (3, 12):
            raise ValueError("autocommit needs Python 3.12; before it, use isolation_level")
        self._path = _settled(os.fsdecode(database))
        self._busy_timeout = busy_timeout
        self._autocommit = autocommit
        # As sqlite3 says it when it is asked.
        self._isolation_level: Any = isolation_level.upper() if isinstance(isolation_level, str) else isolation_level
        self._row_factory = row_factory
        self._detect_types = detect_types
        # Without the query, which may hold a key; and with names of any bytes so that they can be printed.
        name = os.fsencode(_file_of(self._path)).decode(errors="backslashreplace")
        self.target: str = f"sqlite:///{printable(name)}"
        query = _query_of(self._path)
        name = self._path[5:].partition("?")[0] if self._path.startswith("file:") else self._path
        memory = "memory" in query.get("mode", ()) or "memdb" in query.get("vfs", ()) or name == ":memory:"
        # As SQLite shares them: by a cache of that name, or by a name that begins with a slash.
        is_shared = name.startswith("/") if "memdb" in query.get("vfs", ()) else "shared" in query.get("cache", ())
        if self._path == ":memory:":
            if sqlite3.sqlite_version_info < (3, 36):
                raise ValueError(f"sharing :memory: needs SQLite 3.36; this is {sqlite3.sqlite_version}")
            self._path = f"file:/millpond-{os.getpid()}-{next(_numbers)}?vfs=memdb"
            memory = True
        elif not name or (memory and not is_shared):
            raise ValueError(
                f"each connection to {self._path!r} would have a database of its own; use ':memory:', "
                "a name and cache=shared, or with vfs=memdb a name that begins with a slash"
            )
        self._wal = wal and not memory and "ro" not in query.get("mode", ()) and "immutable" not in query
        # The file to watch for being replaced.
        self._file = None if memory else _file_of(self._path)
        self._database = self._path if self._file is None else os.path.realpath(self._file)
        # autocommit is there from Python 3.12 on.
        self._state = ClientState(
            *("row_factory", "text_factory", "isolation_level"),
            *(("autocommit",) if sys.version_info >= (3, 12) else ()),
        )
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
                # It reads the file and its schema: what is no database, or a broken one, fails here.
                conn.execute("SELECT 1 FROM sqlite_master LIMIT 1").close()
                conn.execute(f"PRAGMA busy_timeout = {int(self._busy_timeout * 1000)}").close()
                if sys.version_info >= (3, 12) and self._autocommit is not None:
                    conn.autocommit = self._autocommit  # False begins a transaction, which then has read nothing yet
                self._state.note(conn)
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
            if conn.inside:  # type: ignore[attr-defined]
                return BROKEN  # somebody is in a script, of which only the statement under way could be interrupted
            if (conn.in_transaction and condition is CLEAN) or self._state.is_changed(conn):
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
            _sqlite_connection.roll_back(conn)
        self._state.restore(conn)
        _sqlite_connection.end_what_has_begun(conn)

    def close(self, conn: sqlite3.Connection) -> None:
        """Close the connection; the last one to a WAL file writes its log back, which may take a while.

        A thread that is in a statement is interrupted. While it does not come out, or a cursor is half read, the file
        stays open.
        """
        self._state.forget(conn)
        _sqlite_connection.close(conn)

    def abandon(self, conn: sqlite3.Connection) -> None:
        """Close the connection if nobody has a cursor of it; if somebody has, do so when that is gone."""
        self._state.forget(conn)
        _sqlite_connection.abandon(conn)

    def refused(self, error: BaseException) -> bool:
        """Tell whether the file is no database, broken, may not be read or made WAL, or was inherited by a fork."""
        # The low byte is the kind of the error, the others say more.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return isinstance(error, (InheritedDatabase, NoWAL)) or code in (
            sqlite3.SQLITE_NOTADB,
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_AUTH,
            sqlite3.SQLITE_PERM,
        )

    def _connect(self, timeout: float) -> Connection:
        conn = sqlite3.connect(
            self._path,
            factory=Connection,
            timeout=timeout,
            detect_types=self._detect_types,
            isolation_level=self._isolation_level,
            # The pool lends a connection to one thread at a time.
            check_same_thread=False,
            uri=self._path.startswith("file:"),
        )
        conn.row_factory = self._row_factory
        return conn

    def _inode(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        try:
            status = os.stat(self._file)
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _file_of(path: str) -> str:
    return os.fsdecode(unquote_to_bytes(urlsplit(path).path)) if path.startswith("file:") else path


def _settled(path: str) -> str:
    """Return the path, or the URI, with the place that it leads to by now."""
    # Not normalised: where `..` leads behind a link is the system's to say.
    if not path.startswith("file:"):
        return path if path in ("", ":memory:") or os.path.isabs(path) else os.path.join(os.getcwd(), path)
    path = path.partition("#")[0]
    rest, separator, query = path[5:].partition("?")
    given = _query_of(path)
    if (
        rest in ("", ":memory:")
        or rest[0] == "/"
        or "memory" in given.get("mode", ())
        or "memdb" in given.get("vfs", ())
    ):
        return path
    return f"file:{quote(os.fsencode(os.path.join(os.getcwd(), '')))}{rest}{separator}{query}"


@functools.cache
def _reads_encrypted_files() -> bool:
    with contextlib.closing(sqlite3.connect(":memory:")) as conn:
        return ("HAS_CODEC",) in conn.execute("PRAGMA compile_options").fetchall()


def _query_of(path: str) -> dict[str, list[str]]:
    """Return the query of a `file:` URI; raises `InvalidURL` if there is something that SQLite would pass over."""
    query = parse_qs(path.partition("?")[2], keep_blank_values=True) if path.startswith("file:") else {}
    strange = [] if "vfs" in query else [name for name in query if name not in _PARAMETERS]  # a vfs may have its own
    if strange and not (strange[0] in _KEYS and _reads_encrypted_files()):
        meant = _ELSEWHERE.get(strange[0], f"there are {', '.join(_PARAMETERS)}")
        raise InvalidURL(f"SQLite knows no query parameter {strange[0]!r}; {meant}")
    for name, values in _VALUES.items():
        if any(value not in values for value in query.get(name, ())):
            raise InvalidURL(f"the query parameter {name!r} of SQLite must be one of {', '.join(values)}")
    return query


def _use_wal(conn: sqlite3.Connection, deadline: float) -> None:
    mode = None
    while mode is None:
        try:
            (mode,) = conn.execute("PRAGMA journal_mode = wal").fetchone()
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
                raise NoWAL("wal=True changes the file, which may not be written; leave wal out") from exc
            # While another connection makes the same change, SQLite does not wait as it does for other locks.
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or monotonic() >= deadline:
                raise
            sleep(0.001)
    if mode != "wal":
        raise NoWAL(f"the file cannot be put in WAL mode, and stays in mode {mode!r}; leave wal out")
