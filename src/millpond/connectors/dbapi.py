"""Connections of any driver that follows DB-API 2 (PEP 249)."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from millpond.connector import Condition
from millpond.connectors._watchdog import Limit
from millpond.connectors.factory import Factory, cut
from millpond.connectors.urls import place

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


class DBAPI(Factory[C]):
    """Connections that a DB-API 2 driver's `connect` makes, for a `Pool`.

    All arguments but those named here go to `connect`; each may also be a callable without arguments, which is called
    anew for every open (a rotated password, an IAM token). `ping` is the statement that asks whether a connection
    works. `errors` is the driver's `Error`; by default it is looked up where `connect` is defined.

    DB-API knows no protocol state. So an exception that is not the driver's own closes the connection, for it may have
    come between a request and its reply; after any other loan there is a rollback, one round trip, unless the
    connection itself tells that no transaction is open (`in_transaction`, or psycopg2's `info.transaction_status`).
    That `autocommit` is on tells nothing: a BEGIN opens a transaction all the same. Session settings stay.

    `timeout` is given to `connect` as `connect_timeout` if it takes that by name (whole seconds). A `ping` or `reset`
    that takes too long is ended by cutting the socket, if the driver shows it (`fileno()`; PyMySQL, pg8000).
    """

    def __init__(
        self,
        connect: Callable[..., C],
        *args: object,
        ping: str = "SELECT 1",
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
        known = {name: value for name, value in kwargs.items() if not callable(value)}
        user, host, port = (known.get(name) for name in ("user", "host", "port"))
        database = known.get("database", known.get("dbname", known.get("db")))
        driver = self.target.partition(".")[0].lstrip("_")
        self.target: str = place(driver, user=user, host=host, port=port, path=database)

    def open(self, timeout: float) -> C:
        """Call `connect` with its arguments; raises what it raises."""
        arguments = [value() if callable(value) else value for value in self._arguments]
        keywords = {name: value() if callable(value) else value for name, value in self._keywords.items()}
        if self._limited:
            keywords["connect_timeout"] = max(1, math.ceil(timeout))
        conn: C = self._connect(*arguments, **keywords)
        return conn

    def inspect(self, conn: C, error: BaseException | None) -> Condition:
        """Ask the connection for its state, as far as it tells; an exception that is not the driver's has broken it."""
        if error is not None and not isinstance(error, self._errors):
            return Condition.BROKEN
        try:
            if getattr(conn, "closed", False) or getattr(conn, "open", True) is False:
                return Condition.BROKEN
            status = getattr(getattr(conn, "info", None), "transaction_status", None)
            in_transaction = getattr(conn, "in_transaction", None)
        except self._errors:
            return Condition.BROKEN
        if isinstance(status, int):
            return {0: Condition.CLEAN, 2: Condition.DIRTY, 3: Condition.DIRTY}.get(status, Condition.BROKEN)
        if isinstance(in_transaction, bool):
            sqlite3 = sys.modules.get("sqlite3")
            if sqlite3 and isinstance(conn, sqlite3.Connection) and getattr(conn, "autocommit", None) is False:
                return Condition.UNPROVED  # there always is a transaction
            return Condition.DIRTY if in_transaction else Condition.CLEAN
        return Condition.UNPROVED

    def descriptor(self, conn: object) -> int | None:
        """Return the socket's descriptor, or None if the driver does not show it."""
        for holder in (conn, getattr(conn, "_sock", None), getattr(conn, "_usock", None)):  # PyMySQL, pg8000
            if (descriptor := super().descriptor(holder)) is not None:
                return descriptor
        return None

    def ping(self, conn: C, timeout: float) -> None:
        """Execute the `ping` statement and roll back: two round trips."""
        with _limit(self.descriptor(conn), timeout):
            cursor = conn.cursor()
            cursor.execute(self._statement)
            cursor.fetchone()
            cursor.close()
            conn.rollback()

    def reset(self, conn: C, timeout: float) -> None:
        """Roll back: one round trip."""
        with _limit(self.descriptor(conn), timeout):
            conn.rollback()

    def close(self, conn: C) -> None:
        """Close the connection; the socket is cut, if the driver shows it, when that takes longer than a second."""
        try:
            with _limit(self.descriptor(conn), _GOODBYE):
                conn.close()
        except (OSError, RuntimeError):
            self.abandon(conn)  # no descriptor is left for the limit, or no thread, as at the end of the interpreter

    def refused(self, error: BaseException) -> bool:
        """Tell a refusal by its SQLSTATE, by MySQL's number for it, or by PostgreSQL's words."""
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
