"""Connections of sqlite3 that can be closed while others still have them.

What sqlite3 frees with `close()` must not be in use: under a thread that is in a statement the process dies. So a
connection is first ended for all who have it: it takes no statement any more, and the one under way is interrupted. It
is closed when no cursor of it is left, for whoever is in a statement has one.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import sqlite3
import sys
import weakref
from collections.abc import Callable
from time import sleep
from typing import Any, Final, Literal, NoReturn, cast

from millpond import _fork
from millpond.connectors._watchdog import Limit
from millpond.connectors.factory import bare

__all__ = [
    "FAILED",
    "OPEN",
    "PATIENCE",
    "Connection",
    "abandon",
    "close",
    "close_what_waits",
    "end_what_has_begun",
    "is_half_read",
    "roll_back",
    "stop",
]

FAILED: Final = sqlite3.Error, SystemError, UnicodeError
"""What sqlite3 raises: the last two if another thread, on the same connection, has overwritten the error."""
PATIENCE: Final = 0.1
"""Seconds that a rollback waits for a statement that somebody is in, before that is interrupted."""
GRACE: Final = 3
"""Milliseconds that whoever was interrupted has to come out of a statement."""

# Whatever this process has open, or is about to open: which database, and a number that tells one from another.
OPEN: Final[set[tuple[str, int]]] = set()
# What has been ended, and cannot be closed yet.
_unclosed: Final[weakref.WeakValueDictionary[int, Connection]] = weakref.WeakValueDictionary()
# Statements that do no harm.
_OUR_OWN: Final = ("PRAGMA query_only=1", "ROLLBACK", "SELECT 1")


def _refuse(*_: object, **__: object) -> NoReturn:
    raise sqlite3.ProgrammingError("the pool has closed this connection")


class Connection(sqlite3.Connection):
    """A connection that can be closed while others have it."""

    inode: tuple[int, int] | None = None
    opened: tuple[str, int] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (as sqlite3 has it)
        self.inside: set[object] = set()
        self.callbacks: set[str] = set()
        self.interrupted = False
        super().__init__(*args, **kwargs)

    def __exit__(self, *error: Any) -> Literal[False]:  # noqa: ANN401 (as sqlite3 has it)
        # It is looked up at the beginning of a block, in which the connection may be ended.
        if isinstance(self, _Ended):
            _refuse()
        _exit(self, *error)
        return False

    def __del__(self) -> None:
        _close(self)


def _seen(name: str) -> Callable[..., Any]:
    """Return a method that is at work without a cursor; while it is, that is seen."""
    method = getattr(sqlite3.Connection, name)

    @functools.wraps(method)
    def seen(conn: Connection, *args: object, **kwargs: object) -> object:
        token = object()
        try:
            conn.inside.add(token)
            return method(conn, *args, **kwargs)
        finally:
            conn.inside.discard(token)

    return seen


def _noted(name: str) -> Callable[..., Any]:
    """Return a method by which a callback is set, or taken back with None; that is remembered."""
    method = getattr(sqlite3.Connection, name)

    @functools.wraps(method)
    def noted(conn: Connection, *args: object, **kwargs: object) -> object:
        result = method(conn, *args, **kwargs)
        (conn.callbacks.discard if None in (*args[:1], *kwargs.values()) else conn.callbacks.add)(name)
        return result

    return noted


_exit = _seen("__exit__")
for _name in (
    *("backup", "blobopen", "commit", "deserialize"),
    *("executemany", "executescript", "load_extension", "rollback", "serialize"),
):
    if hasattr(sqlite3.Connection, _name):  # SQLite may have been built without
        setattr(Connection, _name, _seen(_name))
for _name in ("set_authorizer", "set_progress_handler", "set_trace_callback"):
    setattr(Connection, _name, _noted(_name))


class _Ended(Connection):
    """What a connection becomes: neither it nor a cursor of it takes another statement."""

    def __call__(self, sql: str, /) -> Any:  # noqa: ANN401 (a statement, by which sqlite3 prepares it)
        return super().__call__(sql) if sql in _OUR_OWN else _refuse()

    def close(self) -> None:
        """Do nothing: it is closed, as far as it can be."""


for _name in (*(name for name in dir(sqlite3.Connection) if name[0] != "_"), "__enter__"):
    if _name not in vars(_Ended) and callable(getattr(sqlite3.Connection, _name)):
        setattr(_Ended, _name, _refuse)


def roll_back(conn: sqlite3.Connection) -> None:
    """Roll back, whatever `autocommit` is: with True, sqlite3's own rollback does nothing."""
    if getattr(conn, "autocommit", None) is not True:  # it is there from Python 3.12 on
        conn.rollback()
    elif conn.in_transaction:
        conn.execute("ROLLBACK").close()


def end_what_has_begun(conn: sqlite3.Connection) -> None:
    """End the transaction that an `autocommit=False` of the borrower's has begun, once that is put back."""
    if conn.in_transaction and getattr(conn, "autocommit", None) is not False:
        conn.execute("ROLLBACK").close()


def close(conn: sqlite3.Connection) -> None:
    """Close a connection, unless somebody is in a statement or a cursor is half read: then when that is gone.

    A cursor at rest does not keep it open, and is closed with it.
    """
    ended = _end(_own(conn))
    for _ in range(GRACE):
        if not _users(ended):
            break
        sleep(0.001)
    if all(_is_at_rest(user, ended) for user in _users(ended)):
        _close(ended)
    else:
        _close_later(ended)
    close_what_waits()


def abandon(conn: sqlite3.Connection) -> None:
    """Close a connection, unless there is a cursor of it: then when that is gone."""
    conn = _own(conn)
    if conn.callbacks:
        close(conn)  # it could not be rolled back, and would keep others out
        return
    ended = _end(conn)
    if _users(ended):
        _close_later(ended)
    else:
        _close(ended)
    close_what_waits()


def _own(conn: sqlite3.Connection) -> Connection:
    return cast("Connection", bare(conn))  # what wraps it lists no cursors


def stop(conn: sqlite3.Connection) -> None:
    """Keep everybody from beginning another statement, and from writing; whoever closes it must not do so meanwhile."""
    _end(_own(conn))


def close_what_waits() -> None:
    """Close the connections whose cursors are gone meanwhile."""
    for ref in _unclosed.valuerefs():
        conn = ref()
        # Whoever takes it out closes it.
        if conn is not None and not _users(conn) and _unclosed.pop(id(conn), None) is not None:
            _close(conn)


def _end(conn: sqlite3.Connection) -> Connection:
    """Keep everybody from beginning another statement, roll back, and interrupt what is under way."""
    conn.__class__ = _Ended
    ended = cast("Connection", conn)
    if _users(ended):
        # Its borrower has closed it; or it is half read; or no thread can be had for the limit.
        with contextlib.suppress(*FAILED, RuntimeError):
            _stop(ended)
        for user in _users(ended):
            # A blob that is kept keeps others out. In a call, or a block, there is another reference to it.
            if isinstance(user, sqlite3.Blob) and sys.getrefcount(user) <= _KEPT:
                user.close()
    return ended


_KEPT: Final = 4
"""References to an object in a list that one goes through, if there is one more."""


def _stop(conn: Connection) -> None:
    interrupt = functools.partial(sqlite3.Connection.interrupt, conn)
    conn.interrupted = True
    if conn.callbacks:
        # A statement of ours would call it, and wait with SQLite's lock for Python's; who is inside may do the reverse.
        interrupt()
        return
    if not conn.in_transaction:
        interrupt()
    # That stays in force while a cursor is half read, and a rollback would be refused. So the rollback comes first.
    with Limit(PATIENCE, interrupt):
        for part in gc.get_referents(conn):
            if isinstance(part, functools._lru_cache_wrapper):
                part.cache_clear()  # a cursor executes without asking what it finds there
        cursor = sqlite3.Connection.cursor(conn)
        # What goes on after the rollback, as `executemany` and scripts do, would be committed.
        cursor.execute("PRAGMA query_only=1")
        if conn.in_transaction:
            cursor.execute("ROLLBACK")
    interrupt()


def _users(conn: Connection) -> list[object]:
    """Return what shows that somebody may be inside: cursors, blobs, the names of methods."""
    return [*conn.inside, *_cursors(conn)] if _can_tell() else [conn]


def _is_at_rest(user: object, conn: Connection) -> bool:
    """Tell whether nobody is inside of a cursor, and close it if so."""
    if not isinstance(user, sqlite3.Cursor) or (not conn.callbacks and is_half_read(conn)):
        return False
    try:
        sqlite3.Cursor.close(user)
    except sqlite3.ProgrammingError as error:
        return "Recursive" not in str(error)  # the connection is closed
    return True


def _cursors(conn: sqlite3.Connection) -> list[object]:
    """Return the cursors and blobs of a connection, which it lists by weak references."""
    lists = [part for part in gc.get_referents(conn) if type(part) is list]
    return [user for part in lists for ref in part if type(ref) is weakref.ref and (user := ref()) is not None]


@functools.cache
def _can_tell() -> bool:
    """Whether this Python's connections list their cursors."""
    with contextlib.closing(_own(sqlite3.connect(":memory:"))) as conn:
        cursor = conn.cursor()
        return _cursors(conn) == [cursor]


def is_half_read(conn: sqlite3.Connection) -> bool:
    """Interrupt what is under way, and tell whether it stays so."""
    try:
        sqlite3.Connection.interrupt(conn)
        sqlite3.Connection.cursor(conn).execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return False  # closed
    except FAILED:
        return True
    return False


def _close(conn: Connection) -> None:
    if conn.interrupted:
        is_half_read(conn)  # takes up an interrupt that met nobody: it would keep the log from being written back
    with contextlib.suppress(sqlite3.Error):  # it was never open
        sqlite3.Connection.close(conn)
    if conn.opened is not None:
        OPEN.discard(conn.opened)


def _close_later(conn: Connection) -> None:
    # Who forks may have no descriptor left to import with.
    _fork.prepare_pins()
    _unclosed[id(conn)] = conn


def _in_child() -> None:
    """Leave to the parent what is still open."""
    for ref in _unclosed.valuerefs():
        if (conn := ref()) is not None:
            _fork.disown(conn, None)


if hasattr(os, "register_at_fork"):
    for _time in range(2):  # as in millpond._fork
        os.register_at_fork(before=close_what_waits, after_in_child=_in_child)
