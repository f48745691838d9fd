"""Connections of any driver that follows DB-API 2 (PEP 249)."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import random
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from millpond.connector import Condition
from millpond.connectors._client_state import ClientState
from millpond.connectors._url_text import place
from millpond.connectors._watchdog import Limit
from millpond.connectors.factory import Factory, bare, cut, expect_any_thread, is_sqlite

if TYPE_CHECKING:
    import sqlite3

__all__ = ["DBAPI"]


class _Cursor(Protocol):
    def execute(self, operation: str, /) -> object: ...
    def fetchone(self) -> object: ...
    def close(self) -> object: ...


class _Connection(Protocol):
    def cursor(self) -> _Cursor: ...
    def rollback(self) -> object: ...
    def close(self) -> object: ...


C = TypeVar("C", bound=_Connection)

# How long a goodbye may take; seconds.
_GOODBYE = 1.0

# Arguments that are text or numbers for every driver, so that a function is not for the driver.
_CREDENTIALS = frozenset(
    ("user", "username", "password", "passwd", "host", "hostname", "port", "database", "dbname", "db", "dsn")
)
# What connections let a borrower set, by the names that drivers have for it (psycopg2, pg8000, PyMySQL, mysqlclient,
# mysql-connector, sqlite3, pyodbc, oracledb).
_SETTINGS = (
    *("isolation_level", "readonly", "deferrable", "timeout", "call_timeout"),
    *("read_timeout", "write_timeout", "_read_timeout", "_write_timeout", "autocommit_mode"),
    *("row_factory", "text_factory", "cursor_factory", "cursorclass", "buffered", "raw"),
    *("raise_on_warnings", "get_warnings", "can_consume_results", "notices", "notifies"),
    *("use_unicode", "converter_str_fallback", "converter", "decoders", "encoders", "pg_types", "py_types"),
    *("string_types", "binary_types", "inputtypehandler", "outputtypehandler"),
)
# What client and server have agreed on: it cannot be put back on one side.
_AGREED = ("encoding", "charset")
# Of psycopg2, what the server is told when it is set, and forgets when `autocommit` is.
_CHARACTERISTICS = ("isolation_level", "readonly", "deferrable")
# What psycopg2's `status` is between the two phases of a commit.
_PREPARED = 5


class DBAPI(Factory[C]):
    """Connections that a DB-API 2 driver's `connect` makes, for a `Pool`.

    All arguments but those named here go to `connect`. A function given as `user`, `password`, `host`, `port`,
    `database` or `dsn` (or by another driver's name for one of these) is called anew for every open: for a rotated
    password, an IAM token. `errors` is the driver's `Error`; by default it is looked up where `connect` is defined.
    `ping` is the statement that asks whether a connection works. For `{}` in it stands a number, which must come back:
    Oracle wants `"SELECT {} FROM DUAL"`.

    psycopg2 and sqlite3 prove themselves whether a transaction is open, or a reply on its way. Of other drivers' word
    nothing is believed (mysql-connector's `in_transaction` is False after a failed statement that has opened one), nor
    of `autocommit`, for a BEGIN opens a transaction all the same. After a loan `ping` asks for a number: were the reply
    to something else on its way, that would come. Then there is a rollback. These are two round trips, made beside the
    line. An exception that has struck the driver itself, or is no `Exception` (Ctrl-C), closes the connection at once.
    Without `{}` in `ping` there is only the rollback, and any exception but the driver's own closes the connection.

    What a borrower sets on the connection object is as it was when it was opened: `autocommit`, `isolation_level`,
    `readonly`, `deferrable`, factories of rows and cursors, conversions, time limits. Session settings stay.

    `timeout` is given to `connect` as `connect_timeout` if it takes that by name (whole seconds). A `ping` or `reset`
    that takes too long is ended by cutting the socket, if the driver shows it (`fileno()`; PyMySQL, pg8000,
    mysql-connector in Python).
    """

    def __init__(
        self,
        connect: Callable[..., C],
        *args: object,
        ping: str = "SELECT {}",
        errors: type[Exception] | tuple[type[Exception], ...] | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(connect)
        self.provable: bool = True
        self._arguments = args
        self._keywords = kwargs
        self._statement = ping
        self._errors = _error_of(connect) if errors is None else errors
        self._limited = "connect_timeout" not in kwargs and _takes(connect, "connect_timeout")
        # By the class of the connection: what it lets a borrower set.
        self._settings: dict[type, _Settings] = {}
        known = {name: value for name, value in kwargs.items() if not callable(value)}
        user, host, port = (known.get(name) for name in ("user", "host", "port"))
        database = known.get("database", known.get("dbname", known.get("db")))
        driver = self.target.partition(".")[0].lstrip("_")
        self.target: str = place(driver, user=user, host=host, port=port, path=database)

    def open(self, timeout: float) -> C:
        """Call `connect` with its arguments; raises what it raises, and TypeError for what only one thread may use."""
        keywords = {
            name: value() if name in _CREDENTIALS and callable(value) else value
            for name, value in self._keywords.items()
        }
        if self._limited and timeout < math.inf:
            keywords["connect_timeout"] = max(1, math.ceil(timeout))
        conn: C = self._connect(*self._arguments, **keywords)
        expect_any_thread(conn)
        try:
            settings = self._settings.get(type(conn)) or self._settings.setdefault(type(conn), _settings_of(conn))
            for state in settings:
                state.note(conn)
        except BaseException:
            self.abandon(conn)
            raise
        return conn

    def inspect(self, conn: C, error: BaseException | None) -> Condition:
        """Ask the connection for its state, as far as it can prove it; else ask what the exception may have cut."""
        try:
            condition = _proved(conn)
            if condition is None:
                is_cut = error is not None and self._may_have_cut(conn, error)
                return Condition.BROKEN if is_cut else Condition.UNPROVED
            settings = self._settings.get(type(conn), ())
            if condition is Condition.CLEAN and any(state.is_changed(conn) for state in settings):
                return Condition.DIRTY
        except Exception:
            return Condition.BROKEN
        return condition

    def _may_have_cut(self, conn: C, error: BaseException) -> bool:
        """Tell whether an exception may have come between a request and its reply.

        What is raised elsewhere has not, and if it has, that is found by the proof; but that would wait for the reply.
        """
        if isinstance(error, self._errors):
            return False
        if not isinstance(error, Exception) or "{}" not in self._statement:
            return True
        driver = type(bare(conn)).__module__.partition(".")[0]
        frames = traceback.walk_tb(error.__traceback__)
        return any(frame.f_globals.get("__name__", "").partition(".")[0] == driver for frame, _ in frames)

    def descriptor(self, conn: object) -> int | None:
        """Return the socket's descriptor, or None if the driver does not show it."""
        # PyMySQL, pg8000, mysql-connector.
        wrapped = getattr(getattr(conn, "_socket", None), "sock", None)
        for holder in (conn, getattr(conn, "_sock", None), getattr(conn, "_usock", None), wrapped):
            if (descriptor := super().descriptor(holder)) is not None:
                return descriptor
        return None

    def ping(self, conn: C, timeout: float) -> None:
        """Execute the `ping` statement, look at what comes, and roll back: two round trips."""
        with _limit(self.descriptor(conn), timeout):
            self._ask(conn)
            conn.rollback()

    def reset(self, conn: C, timeout: float) -> None:
        """Prove that no reply is on its way, roll back, and put back what was set: see `DBAPI` for the round trips.

        Raises what the driver raises, or ConnectionError.
        """
        settings = self._settings.get(type(conn), _NO_SETTINGS)
        _expect_restorable(conn, settings)
        with _limit(self.descriptor(conn), timeout):
            if "{}" in self._statement and _proved(conn) is None:
                settings.others.restore(conn)  # the answer is to be read as it would be just after the open
                self._ask_anyway(conn)
            # In this order: within a transaction psycopg2 takes no setting, and MySQL would commit it.
            if sqlite := is_sqlite(conn):
                _sqlite().roll_back(conn)
            else:
                conn.rollback()
            settings.autocommit.restore(conn)
            settings.others.restore(conn)
            if sqlite:
                _sqlite().end_what_has_begun(conn)

    def _ask_anyway(self, conn: C) -> None:
        try:
            self._ask(conn)
        except self._errors:
            # In a transaction that has failed, or with a result that is unread, nothing else is taken.
            conn.rollback()
            self._ask(conn)

    def _ask(self, conn: C) -> None:
        number = random.getrandbits(31)
        cursor = conn.cursor()
        cursor.execute(self._statement.replace("{}", str(number)))
        row: Any = cursor.fetchone()
        cursor.close()
        if "{}" not in self._statement:
            return
        answer = next(iter(row.values())) if isinstance(row, Mapping) else row and row[0]
        if not _is_number(answer, number):
            raise ConnectionError(f"{self.target}: what came was not the number that was asked for")

    def close(self, conn: C) -> None:
        """Close the connection; the socket is cut, if the driver shows it, when that takes longer than a second."""
        self._forget(conn)
        try:
            with _limit(self.descriptor(conn), _GOODBYE):
                conn.close()
        except (OSError, RuntimeError):
            self.abandon(conn)  # no descriptor is left for the limit, or no thread, as at the end of the interpreter

    def abandon(self, conn: C) -> None:
        """Cut the socket, if the driver shows it, and close what is left."""
        self._forget(conn)
        super().abandon(conn)

    def _forget(self, conn: C) -> None:
        for state in self._settings.get(type(conn), ()):
            state.forget(conn)

    def refused(self, error: BaseException) -> bool:
        """Tell a refusal by SQLSTATE, by MySQL's number, or by PostgreSQL's words; a TypeError is the program's own."""
        if super().refused(error):
            return True
        first = error.args[0] if error.args else None
        if isinstance(first, dict):  # pg8000
            first = first.get("C")
        state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or first
        if isinstance(state, int):
            return state in (1044, 1045, 1049, 1698)  # access denied to the database, to the user; no such database
        words = isinstance(error, self._errors) and "authentication failed for user" in str(error)
        return words or (isinstance(state, str) and (state[:2] == "28" or state == "3D000") and len(state) == 5)


@contextlib.contextmanager
def _limit(descriptor: int | None, timeout: float) -> Iterator[None]:
    """Cut the socket if what is done in the `with` takes longer than `timeout` seconds."""
    if descriptor is None:
        yield
        return
    # A descriptor of our own: by the time the limit has passed, the driver's number may be somebody else's.
    with socket.socket(fileno=os.dup(descriptor)) as twin, Limit(timeout, functools.partial(cut, twin)):
        yield


def _proved(conn: object) -> Condition | None:
    """Tell what a connection is fit for if it can prove it, whatever has become of the last exchange; None if not."""
    closed, is_open = getattr(conn, "closed", None), getattr(conn, "open", None)
    # A number for some drivers; for others `closed` and `open` are methods, of which nothing is known.
    if (isinstance(closed, int) and closed) or (isinstance(is_open, int) and not is_open):
        return Condition.BROKEN
    if getattr(conn, "_xid", None) is not None:
        return Condition.BROKEN  # pg8000: a transaction in two phases, which the next borrower's `tpc_commit` would end
    status = getattr(getattr(conn, "info", None), "transaction_status", None)
    if isinstance(status, int):  # libpq's: see millpond.connectors._psycopg
        if getattr(conn, "status", None) == _PREPARED:
            return Condition.BROKEN
        return {0: Condition.CLEAN, 2: Condition.DIRTY, 3: Condition.DIRTY}.get(status, Condition.BROKEN)
    return _proved_by_sqlite(conn) if is_sqlite(conn) else None


def _sqlite() -> ModuleType:
    from millpond.connectors import _sqlite_connection  # not for those who have no sqlite3

    return _sqlite_connection


def _proved_by_sqlite(conn: sqlite3.Connection) -> Condition:
    condition = Condition.CLEAN
    if conn.in_transaction:
        if getattr(conn, "autocommit", None) is not False:
            return Condition.DIRTY
        condition = Condition.UNPROVED  # there always is a transaction
    return Condition.BROKEN if _sqlite().is_half_read(bare(conn)) else condition


def _is_number(answer: object, number: int) -> bool:
    """Tell whether a driver's answer is that number, whatever it makes of numbers: they are exact up to 2**53."""
    try:
        return float(answer.decode() if isinstance(answer, (bytes, bytearray)) else answer) == number  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


class _Settings(NamedTuple):
    """What a driver's connections let a borrower set: of `autocommit` the server has to be told, as a rule."""

    autocommit: ClientState
    others: ClientState


_NO_SETTINGS = _Settings(ClientState(), ClientState())


def _settings_of(conn: object) -> _Settings:
    others = ClientState(*(name for name in (*_SETTINGS, *_AGREED) if _has(conn, name, method=False)))
    if _has(conn, "autocommit", method=True):
        # Without this method beside it, nobody can tell how it is.
        readings = {"autocommit": "get_autocommit()"} if _has(conn, "get_autocommit", method=True) else {}
    elif "_autocommit" in getattr(conn, "__dict__", {}):
        readings = {"autocommit": "_autocommit"}  # mysql-connector's property asks the server
    else:
        readings = {"autocommit": "autocommit"} if _has(conn, "autocommit", method=False) else {}
    return _Settings(ClientState(**readings), others)


def _has(conn: object, name: str, *, method: bool) -> bool:
    try:
        value = getattr(conn, name)
    except Exception:  # not with this server, this client, ...
        return False
    owner = getattr(value, "__self__", None)
    return (owner is not None and (owner is conn or owner is bare(conn))) is method


def _expect_restorable(conn: object, settings: _Settings) -> None:
    """Raise ConnectionError for a change that cannot be undone from here."""
    noted = settings.others.noted(conn)
    if any(name in noted and getattr(conn, name) != noted[name] for name in _AGREED):
        raise ConnectionError("the encoding of the session was changed")
    # psycopg2 does not tell the server again.
    is_special = any(noted.get(name) is not None for name in _CHARACTERISTICS) and hasattr(conn, "set_session")
    if is_special and settings.autocommit.is_changed(conn):
        raise ConnectionError("autocommit was changed, and with it what the session was opened with")


def _takes(connect: Callable[..., object], name: str) -> bool:
    try:
        return name in inspect.signature(connect).parameters
    except (TypeError, ValueError):  # some that are written in C have no signature
        return False


def _error_of(connect: Callable[..., object]) -> type[Exception]:
    while isinstance(connect, functools.partial):
        connect = connect.func
    module = connect.__module__
    while module:
        error = getattr(sys.modules.get(module), "Error", None)
        if isinstance(error, type) and issubclass(error, Exception):
            return error
        module = module.rpartition(".")[0]
    raise ValueError("the driver's Error is not found beside its connect; give it as errors=...")
