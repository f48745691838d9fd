"""What psycopg's connections are asked, and told, the same for threads and for tasks.

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
import contextlib
import inspect
import math
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from time import monotonic
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast
from urllib.parse import unquote

from millpond import _watcher
from millpond._extras import extra
from millpond.connector import Condition
from millpond.connectors._client_state import ClientState
from millpond.connectors._postgresql_url import FOREIGN, fault_of
from millpond.connectors._url_text import InvalidURL, beside, expect_encoded, pairs_of, place, strange
from millpond.connectors.factory import cut_number

with extra("psycopg"):
    import psycopg
    from psycopg import pq
    from psycopg.adapt import AdaptersMap
    from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo
    from psycopg.types import TypesRegistry

if TYPE_CHECKING:
    from psycopg.abc import AdaptContext, ConnDict, Dumper, Loader, PQGen, PQGenConn
    from psycopg.types import TypeInfo

__all__ = [
    "BROKEN",
    "FAREWELL",
    "GLANCE",
    "TICK",
    "Inspection",
    "is_psycopgs_own",
    "lost_cancellation",
    "parsed",
    "twin_of",
    "until",
]

C = TypeVar("C", bound="psycopg.Connection[Any] | psycopg.AsyncConnection[Any]")
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

# What a borrower can set: the properties of a connection, as it keeps them, and what it and libpq's connection show.
_SETTINGS = (
    "_autocommit",
    "_isolation_level",
    "_read_only",
    "_deferrable",
    "row_factory",
    "cursor_factory",
    "server_cursor_factory",
    "_prepared.prepare_threshold",
    "_prepared.prepared_max",
    "_notice_handlers",
    "_notify_handlers",
    "_adapters.registered",
    "_adapters.types.added",
)

# As libpq tells them from connection strings.
_URLS = ("postgresql://", "postgres://")
_PAIR = re.compile(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)", re.DOTALL)
_PAIRS = re.compile(rf"\s*(?:{_PAIR.pattern}(?:\s+|$))*", re.DOTALL)
_SETTING = "; if it is a setting of the server, say options=-cname%3Dvalue"
_FOREIGN = {
    **FOREIGN,
    **beside(
        ("autocommit", "connection_class", "context", "cursor_factory", "prepare_threshold", "reset", "row_factory")
    ),
    "search_path": FOREIGN["schema"],
    "pgbouncer": "leave it out; PgBouncer before 1.21 needs the argument prepare_threshold=None",
    "database": "say dbname",
}

_DEFAULTS = {"autocommit": False, "prepare_threshold": 5}

# Under these names a connection knows its socket's descriptor, and who hears of libpq's notices and notifications. To
# compare these two at each return would cost every loan, for what hardly anybody sets: a reset puts them back.
_SOCKET = "_millpond_socket"
_HANDLERS = "_millpond_handlers"

TICK = 0.05
"""How often psycopg's waits look up from the socket, and so does the deadline; seconds."""
FAREWELL = 0.5
"""How long a server is waited for that was told goodbye; seconds."""
GLANCE = 0.002
"""How often a task looks whether it has hung up; seconds."""

# The server's words for a refusal. libpq keeps no SQLSTATE of a failed connection attempt, so its text is all there is.
_REFUSALS = (
    "authentication failed for user",  # 28P01, 28000: password, peer, ident, LDAP, PAM, RADIUS, certificate, ...
    "no pg_hba.conf entry for",  # 28000
    "pg_hba.conf rejects connection for",  # 28000
    "is not permitted to log in",  # 28000
    "permission denied for database",  # 42501
    "is not currently accepting connections",  # 55000
    "unrecognized configuration parameter",  # 42704
    "invalid value for parameter",  # 22023
)


def twin_of(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> int | None:
    """Return another descriptor of the connection's socket, which outlives it; None if there is none to be had."""
    try:
        return None if conn.closed else os.dup(conn.pgconn.socket)
    except OSError:
        return None  # the process has no descriptor left


def until(
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


def lost_cancellation() -> Callable[[], None]:
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


class _Types(TypesRegistry):
    """What a connection knows of types, which counts what is added."""

    added = 0

    def add(self, info: TypeInfo) -> None:
        self.added += 1
        super().add(info)


class _Adapters(AdaptersMap):
    """The adapters of a connection, which count what is registered with them."""

    registered = 0

    def __init__(self, template: AdaptersMap) -> None:
        super().__init__(template)
        self.types: TypesRegistry = _Types(self.types)
        self.as_opened = AdaptersMap(template)

    def register_dumper(self, cls: type | str | None, dumper: type[Dumper]) -> None:
        self.registered += 1
        super().register_dumper(cls, dumper)

    def register_loader(self, oid: int | str, loader: type[Loader]) -> None:
        self.registered += 1
        super().register_loader(oid, loader)


def is_psycopgs_own(connection_class: type) -> bool:
    """Tell whether `connect` is as psycopg has written it, and not overridden, nor wrapped by what traces it."""
    # By type and globals, for what wraps a thing passes itself off as that (`functools.wraps`, wrapt).
    found = inspect.getattr_static(connection_class, "connect")
    written = found.__func__ if type(found) is classmethod else None
    return type(written) is FunctionType and written.__globals__["__name__"] in _WITH_CONNECT


_WITH_CONNECT = ("psycopg.connection", "psycopg.connection_async")


def parsed(conninfo: str) -> ConnDict:
    """Return what a URL or a connection string says; raises `InvalidURL`, which tells what libpq cannot read of it."""
    expect_encoded(conninfo)
    # libpq's own words quote what it could not read, and that may be the password.
    with contextlib.suppress(psycopg.ProgrammingError, UnicodeError):
        return conninfo_to_dict(conninfo)
    fault = None
    if conninfo.startswith(_URLS):
        names = [unquote(name) for name, _, _ in pairs_of(conninfo)]
        fault = fault_of(conninfo) or strange("libpq", names, _PARAMETERS, _FOREIGN, or_else=_SETTING)
    elif _PAIRS.fullmatch(conninfo):
        # Here nothing is percent-encoded.
        said = {name: way.replace("%3D", "=") for name, way in _FOREIGN.items()}
        hidden = "a parameter behind the password, which is quoted if it has a space: password='...'"
        names = [name for name, _ in _PAIR.findall(conninfo)]
        setting = _SETTING.replace("%3D", "=")
        fault = strange("libpq", names, _PARAMETERS, said, hidden=hidden, or_else=setting)
    elif "://" in conninfo:
        fault = "libpq reads no such URL: expected postgresql://user:password@host:port/database, without a +driver"
    raise InvalidURL(fault or "conninfo is neither a PostgreSQL URL nor key=value pairs that libpq can read")


class Inspection(Generic[C]):
    """What needs no waiting, and psycopg's generators, which are the same for threads and tasks."""

    provable = True

    def __init__(
        self,
        connection_class: type[C],
        conninfo: str | Callable[[], object],
        reset: Literal["transaction", "session"],
        settings: Mapping[str, Any],
        factories: Mapping[str, Any],
        context: AdaptContext | None,
        kwargs: Mapping[str, object],
    ) -> None:
        if reset not in ("transaction", "session"):
            raise ValueError(f'reset must be "transaction" or "session", not {reset!r}')
        self._class = connection_class
        self._conninfo = conninfo
        self._kwargs = kwargs
        self._settings = settings
        # A factory that was not given stays what the connection class says.
        self._given: dict[str, Any] = {
            name: value for name, value in {**factories, "context": context}.items() if value is not None
        }
        self._session = reset == "session"
        self._state = ClientState(*_SETTINGS)
        unknown = kwargs.keys() - _PARAMETERS
        if unknown:
            raise TypeError(f"neither the pool nor libpq knows the parameter {min(unknown)!r}")
        known = {**({} if callable(conninfo) else parsed(conninfo)), **kwargs}
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
        if (
            conn._notifies_backlog  # the session listens
            or self._state.is_changed(conn)
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
        if isinstance(error, (TypeError, ValueError, psycopg.ProgrammingError)):
            return True  # a connection string that is none, or cannot be parsed
        if not isinstance(error, psycopg.OperationalError):
            return False
        if error.sqlstate is not None:
            return error.sqlstate.startswith("28") or error.sqlstate in ("22023", "3D000", "42501", "42704")
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
            if value is not None:  # as if it were not given, for psycopg, too
                yield name, value() if callable(value) else value

    def _attempts(
        self, attempts: Sequence[ConnDict], deadline: float, heed: Callable[[], object] = lambda: None
    ) -> Iterator[PQGenConn[C]]:
        """Start one attempt after the other; each gets an equal share of the time that is left."""
        for left, attempt in zip(range(len(attempts), 0, -1), attempts, strict=True):
            now = monotonic()
            share = min((deadline - now) / left, timeout_from_conninfo(attempt))
            steps = cast("PQGenConn[C]", self._class._connect_gen(make_conninfo("", **attempt)))
            yield until(now + share, steps, heed)

    def _arguments(self, conninfo: str, params: ConnDict, timeout: float) -> dict[str, Any]:
        """Return what a `connect` that is not psycopg's own is called with; psycopg limits each host in whole seconds.

        What was left to its default is left to that of the class, too.
        """
        limit = min(timeout, timeout_from_conninfo({**parsed(conninfo), **params}))
        settings = {name: value for name, value in self._settings.items() if value != _DEFAULTS[name]}
        return {**params, "connect_timeout": max(1, math.ceil(limit)), **settings, **self._given}

    def _set_up(self, conn: C) -> C:
        """Do what `connect` does after the login."""
        conn._autocommit = self._settings["autocommit"]
        conn.prepare_threshold = self._settings["prepare_threshold"]
        for name, value in self._given.items():
            if name == "context":
                conn._adapters = AdaptersMap(value.adapters)
            else:
                setattr(conn, name, value)
        return self._adopt(conn)

    def _expect_idle(self, made: Any) -> C:  # noqa: ANN401
        """Decline what a `connect` that is not psycopg's own has returned if it is none, or in a transaction."""
        where = f"{self._class.__qualname__}.connect()"
        if inspect.iscoroutine(made):
            made.close()
        if not isinstance(made, (psycopg.Connection, psycopg.AsyncConnection)):
            raise TypeError(f"{where} has returned no connection, but {type(made).__name__}")
        if made.pgconn.transaction_status == _IDLE:
            return self._adopt(cast("C", made))
        made.pgconn.finish()
        raise psycopg.ProgrammingError(
            f"{where} has left a transaction open, which the pool would roll back; end it with commit()"
        )

    def _adopt(self, conn: C) -> C:
        """Note how the connection was opened."""
        conn._adapters = _Adapters(conn.adapters)
        setattr(conn, _HANDLERS, (conn.pgconn.notice_handler, conn.pgconn.notify_handler))
        setattr(conn, _SOCKET, _watcher.identify(self.descriptor(conn)))
        self._state.note(conn)
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
            yield from conn._exec_command(b"DISCARD ALL")
            conn._prepared = type(conn._prepared)()
        elif conn._notifies_backlog:
            yield from conn._exec_command(b"UNLISTEN *")
        while conn.pgconn.notifies():
            pass
        if conn._notifies_backlog:
            conn._notifies_backlog.clear()
        adapters = cast("_Adapters", conn._adapters)
        if adapters.registered or cast("_Types", adapters.types).added:
            conn._adapters = _Adapters(adapters.as_opened)
        self._state.restore(conn)
        conn.pgconn.notice_handler, conn.pgconn.notify_handler = getattr(conn, _HANDLERS)
        conn._begin_statement = b""
