"""Connections of asyncpg to PostgreSQL, for asyncio.

asyncpg's own pool pays a round trip for every return; here one is paid only for what is found. asyncpg answers the
cancellation (or the timeout) of a query with a cancel request from a background task and refuses to start another
query until the server has both taken the request and ended the query, so such a connection is not broken: `reset` waits
for that. What asyncpg does not tell is whether a query is under way for somebody else, a task that outlived its loan.
The protocol then refers to a future, and that is looked for; a task whose future is done, and which has not yet been
resumed for the next step of its query, holds asyncpg's guard against two queries at once. Not seen are those few steps
that no guard covers: from the description of a statement to what `prepare()`, `cursor()` or a COPY does with it.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
from asyncio import isfuture
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit
from weakref import WeakKeyDictionary

from millpond import _watcher
from millpond._extras import extra
from millpond.connector import Condition
from millpond.connectors._client_state import ClientState
from millpond.connectors._postgresql_url import FOREIGN, NO_VALUE
from millpond.connectors._url_text import InvalidURL, address_of, beside, expect_encoded, pairs_of, place, strange
from millpond.connectors.factory import cut_number

with extra("asyncpg"):
    import asyncpg

__all__ = ["Asyncpg"]

# A member of an Enum takes 50 ns to look up, and this is the hot path.
CLEAN, UNPROVED, DIRTY, BROKEN = Condition
# SQLSTATE read_only_sql_transaction. A primary that was demoted goes on answering, and its name may lead elsewhere by
# now: a connection on which a borrower failed so is not kept.
_READ_ONLY = "25006"
# What a query fails of when client and server disagree about what is prepared (after a borrower's DISCARD ALL, or
# behind a pooler): every later one would fail as well.
_AT_ODDS = (
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.ProtocolViolationError,
    asyncpg.InternalClientError,
)
# What stands in a URL goes to the server as a setting, if asyncpg does not know it; these are arguments of `connect`.
_ARGUMENTS = inspect.signature(asyncpg.connect).parameters.keys() - {
    *("dsn", "host", "port", "user", "password", "passfile", "database", "service", "target_session_attrs"),
    *("krbsrvname", "gsslib", "ssl"),
}
_FOREIGN = {
    **FOREIGN,
    **beside({*_ARGUMENTS, "reset"}),
    "pgbouncer": "leave it out; PgBouncer before 1.21 needs the argument statement_cache_size=0",
}


class Asyncpg:
    """Connections of asyncpg to PostgreSQL, for an `AsyncPool` on asyncio; trio is not supported by asyncpg.

    `dsn` and the keyword arguments are those of `asyncpg.connect`; each may also be a callable without arguments, async
    or not, which is called anew for every open (a rotated password, an IAM token).

    `reset="transaction"`, the default, rolls back what is open, waits for the end of a cancelled query, and removes the
    borrower's listeners and loggers; there is no round trip if there is nothing of the kind. `reset="session"` also
    resets, after every loan and in one round trip, settings and role, and drops advisory locks, temporary tables, held
    cursors, prepared statements (asyncpg's cache is then empty, and each query prepared anew), sequence caches and
    LISTEN. Type codecs always stay.

    A connection on which a query failed because client and server disagree about what is prepared is closed, if the
    exception leaves the loan.

    Cursors, prepared statements and transactions that outlive their loan raise `asyncpg.InterfaceError` when used.
    """

    asyncio_only = True
    provable = True

    def __init__(
        self,
        dsn: str | Callable[[], str | Awaitable[str]] | None = None,
        *,
        reset: Literal["transaction", "session"] = "transaction",
        **kwargs: object,
    ) -> None:
        if reset not in ("transaction", "session"):
            raise ValueError(f'reset must be "transaction" or "session", not {reset!r}')
        unknown = kwargs.keys() - inspect.signature(asyncpg.connect).parameters.keys()
        if unknown:
            raise TypeError(f"neither the pool nor asyncpg.connect() knows the argument {min(unknown)!r}")
        self._arguments = {"dsn": dsn, **kwargs}
        self._session = reset == "session"
        self._state = ClientState("_log_listeners", "_query_loggers", "_termination_listeners")
        self._descriptors: WeakKeyDictionary[asyncpg.Connection, _watcher.Descriptor] = WeakKeyDictionary()
        self.target: str
        if dsn and not callable(dsn):
            _expect_readable(dsn)
        self.target = _target_of(dsn if isinstance(dsn, str) else "", kwargs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"

    async def open(self, timeout: float) -> asyncpg.Connection:
        """Connect and authenticate within `timeout` seconds; raise TimeoutError or the last host's exception if not."""
        async with asyncio.timeout(timeout):
            arguments: dict[str, Any] = {}
            for name, value in self._arguments.items():
                if callable(value) and not isinstance(value, type):  # connection_class and record_class are types
                    value = value()
                arguments[name] = await value if inspect.isawaitable(value) else value
            # One that is called anew may give nothing by mistake, and then asyncpg would go to this machine.
            if arguments["dsn"] or (callable(self._arguments["dsn"]) and "host" not in arguments):
                _expect_readable(arguments["dsn"])
            arguments["timeout"] = timeout
            conn: asyncpg.Connection = await asyncpg.connect(**arguments)
        # asyncpg reads idle connections, too, and closes them before others can look: so it is to tell of a hang-up.
        descriptor = _watcher.identify(self.descriptor(conn))
        if descriptor is not None:
            self._descriptors[conn] = descriptor
        conn.add_termination_listener(self._hung_up)
        self._state.note(conn)
        return conn

    def inspect(self, conn: asyncpg.Connection, error: BaseException | None) -> Condition:
        """Tell by asyncpg's protocol state what the connection is fit for; takes about 2 µs."""
        # asyncpg's own guard: cursors, statements and transactions of this loan do not work in the next.
        conn._pool_release_ctr += 1
        if conn.is_closed():
            return BROKEN
        protocol: Any = conn._protocol
        if _awaited(protocol):
            return DIRTY if protocol._is_cancelling() else BROKEN
        if conn._stmt_exclusive_section._acquired or not conn._transport.is_reading():
            return BROKEN  # a task is between two steps of its query, or a COPY waits for its sink
        if error is not None and (isinstance(error, _AT_ODDS) or getattr(error, "sqlstate", None) == _READ_ONLY):
            return BROKEN
        if (
            protocol.is_in_transaction()
            or conn._top_xact is not None
            or conn._listeners
            or self._state.is_changed(conn)
        ):
            return DIRTY
        # Nobody can tell what a session was told.
        return UNPROVED if self._session else CLEAN

    def alive(self, conn: asyncpg.Connection) -> bool:
        """Tell whether the connection is open and nothing, not even a hang-up, waits to be read by the loop."""
        descriptor = self.descriptor(conn)
        if descriptor is None:
            return False
        return not _watcher.readable(descriptor)

    def descriptor(self, conn: asyncpg.Connection) -> int | None:
        """Return the socket's descriptor, or None once the connection is closed."""
        if conn.is_closed():
            return None
        descriptor: int = conn._transport.get_extra_info("socket").fileno()
        return descriptor if descriptor >= 0 else None

    async def ping(self, conn: asyncpg.Connection, timeout: float) -> None:
        """Do one round trip within `timeout` seconds; raise TimeoutError or asyncpg's exception if not."""
        await conn.execute("SELECT 1", timeout=timeout)

    async def reset(self, conn: asyncpg.Connection, timeout: float) -> None:
        """Clean as far as `reset` says, in at most one round trip and `timeout` seconds."""
        async with asyncio.timeout(timeout):
            protocol: Any = conn._protocol
            if awaited := _awaited(protocol):
                # What a task of the borrower's had waiting behind that begins now, and is found when this is inspected.
                done, _ = await asyncio.wait(awaited)
                for future in done:
                    future.result()  # raises what became of the cancel request, if it failed
            conn._top_xact = None
            statements = ["ROLLBACK"] if protocol.is_in_transaction() else []
            if self._session:
                # What asyncpg's reset leaves: the role (RESET ALL does not touch it), temporary tables, sequences, and
                # statements, which may be about those tables. All of it is DISCARD ALL, which must be sent alone.
                more = ["SET SESSION AUTHORIZATION DEFAULT", "DISCARD TEMP", "DISCARD SEQUENCES", "DEALLOCATE ALL"]
                statements += [*more, conn.get_reset_query()]
            elif conn._listeners:
                statements.append("UNLISTEN *")
            if statements:
                await conn.execute(";\n".join(statements))
            if self._session:
                conn._mark_stmts_as_closed()
            conn._listeners.clear()
            self._state.restore(conn)

    def _hung_up(self, conn: asyncpg.Connection) -> None:
        if conn in self._descriptors:
            _watcher.report(self._descriptors.pop(conn))

    async def close(self, conn: asyncpg.Connection) -> None:
        """Say goodbye and wait until the server has hung up; if cancelled, the connection is closed at once."""
        self._state.forget(conn)
        await conn.close()

    def abandon(self, conn: asyncpg.Connection) -> None:
        """Close the socket at once, also if the event loop is closed already."""
        self._state.forget(conn)
        descriptor = self.descriptor(conn)
        try:
            conn.terminate()
        except RuntimeError:
            # The loop is closed. The socket goes with its transport; the server need not wait for that.
            if descriptor is not None:
                cut_number(descriptor)

    def refused(self, error: BaseException) -> bool:
        """Tell by its SQLSTATE whether the server said no for good, or whether asyncpg cannot read the arguments."""
        state = getattr(error, "sqlstate", None)
        if isinstance(error, asyncpg.PostgresError) and isinstance(state, str):
            return state.startswith("28") or state in ("22023", "3D000", "42501", "42704", "55000")
        return isinstance(error, (TypeError, ValueError))


def _expect_readable(dsn: str) -> None:
    """Raise `InvalidURL`, which says why, for what asyncpg could not read; its own words may quote a password."""
    expect_encoded(dsn)
    fault = _fault_of(dsn)
    if fault is not None:
        raise InvalidURL(fault)


def _fault_of(dsn: str) -> str | None:
    if not dsn.lower().startswith(("postgresql://", "postgres://")):
        return "asyncpg's dsn is a URL: expected postgresql://user:password@host:port/database"
    pairs = [(unquote_plus(name), equals, value) for name, equals, value in pairs_of(dsn.partition("#")[0])]
    fault = strange("asyncpg", [name for name, _, _ in pairs], None, _FOREIGN)
    if fault is not None:
        return fault
    if not all(equals for _, equals, _ in pairs):
        return NO_VALUE
    hosts = None
    with suppress(ValueError):  # its text quotes what it could not read
        hosts = urlsplit(dsn).netloc.rpartition("@")[2]
    if hosts is None:
        return "an address in [ ] is none of IPv6, or what is no letter of ASCII is not percent-encoded"
    given = {name: unquote_plus(value) for name, _, value in pairs if value}
    hosts = hosts or given.get("host", "")
    if hosts and not all(one and (one[0] == "/" or address_of(one)) for one in hosts.split(",")):
        return "a host is missing beside a comma, or no host:port can be read in the parameter 'host'"
    if not all(re.fullmatch(r"\s*\+?\d*\s*", port) for port in given.get("port", "").split(",")):
        return "the parameter 'port' is no number, nor several with commas between them"
    return None


def _target_of(dsn: str, arguments: Mapping[str, object]) -> str:
    """Return where asyncpg would go: what an argument says comes first, then what stands before the query."""
    parts = urlsplit(dsn)
    said = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    userinfo, _, before = parts.netloc.rpartition("@")
    given = {name: value for name, value in arguments.items() if not callable(value)}
    hosts, ports = given.get("host"), given.get("port")
    if not hosts:
        found = [
            (one, "") if one.startswith("/") else address_of(one) or ("", "")
            for one in (before or said.get("host", "")).split(",")
        ]
        hosts = [unquote(host) for host, _ in found]
        ports = ports or [port for _, port in found]
        if not before and "port" in said:
            ports = given.get("port") or said["port"]
    database = unquote(parts.path[1:]) if parts.path else said.get("dbname") or said.get("database")
    return place(
        "postgresql",
        user=given.get("user") or unquote(userinfo.partition(":")[0]) or said.get("user"),
        host=_listed(hosts),
        port=_listed(ports),
        path=given.get("database") or database or None,
    )


def _listed(values: object) -> str | None:
    """Write one value, or several, as libpq lists them; None if there is nothing in it."""
    text = ",".join(map(str, values)) if isinstance(values, (list, tuple)) else str(values or "")
    return text if text.strip(",") else None


def _awaited(protocol: object) -> list[asyncio.Future[object]]:
    """Return what the protocol waits for: the end of a query, of a cancelled query, or of a cancel request."""
    return [future for future in gc.get_referents(protocol) if isfuture(future) and not future.done()]
