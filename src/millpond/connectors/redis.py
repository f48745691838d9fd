"""Connections of redis-py 8, to Redis and Valkey, for threads (`Redis`) and for asyncio (`AsyncRedis`).

What makes a connection provably clean without a round trip: as many replies have been read to their end as commands
were sent, the parser has nothing left, and none of the commands left something behind in the session (`_tally` keeps
the record). A reply that comes later is seen before the next loan, by a look at the socket (`silent`), as redis-py's
own pools take one. What may have come then is a push message of RESP3, which goes to its handler, or a record of TLS
with nothing in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import ssl
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from urllib.parse import unquote_plus, urlsplit

from millpond import _watcher
from millpond._extras import extra
from millpond.connector import Condition
from millpond.connectors._url_text import InvalidURL, beside, expect_encoded, pairs_of, place, shown_names, strange

with extra("redis"):
    import redis
    import redis.asyncio

from redis import exceptions
from redis.asyncio.connection import AbstractConnection as AsyncConnection
from redis.asyncio.connection import parse_url as async_parse_url
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection as Connection
from redis.connection import parse_url
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from millpond.connectors._tally import stray, tallied

if TYPE_CHECKING:
    from redis.auth.token import TokenInterface

__all__ = ["AsyncRedis", "Redis", "decline_maintenance", "expect_makeable", "options_of", "target_of"]

C = TypeVar("C", bound="Connection | AsyncConnection")

# A member of an Enum takes 50 ns to look up, and this is the hot path.
CLEAN, UNPROVED, DIRTY, BROKEN = Condition

_PASSING: Final = (
    exceptions.ClusterDownError,  # of which MASTERDOWN is one
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
)
"""The words of a server that will think better of it."""

_OBJECTS: Final = frozenset({"connection_class", "credential_provider", "driver_info", "parser_class", "retry"})
"""What redis-py is given as objects, which no URL has."""
_FOREIGN: Final = {
    "ssl": "rediss:// is TLS",
    "tls": "rediss:// is TLS",
    **beside(_OBJECTS),
}
"""What other programs write in such a URL, and what to write instead."""


def decline_maintenance(config: object) -> MaintNotificationsConfig:
    """Return a config that switches maintenance notifications off; raise `RedisError` for one that demands them.

    redis-py's own default is "auto": to have them where the server offers them, and to do without where it does not.
    """
    if isinstance(config, MaintNotificationsConfig) and config.enabled is True:
        raise redis.RedisError(
            "millpond does not follow maintenance notifications (MOVING, MIGRATING, ...): a server that moves closes "
            "its connections, and the pool opens others. Leave maint_notifications_config out, or use redis-py's pool"
        )
    return MaintNotificationsConfig(enabled=False)


def target_of(connection_class: object, options: Mapping[str, Any]) -> str:
    """Return where connections of this class with these options lead, without secrets."""
    if "path" in options:
        return place("unix", user=options.get("username"), path=options["path"].lstrip("/"))
    secure = (redis.SSLConnection, redis.asyncio.SSLConnection)
    return place(
        "rediss" if isinstance(connection_class, type) and issubclass(connection_class, secure) else "redis",
        user=options.get("username"),
        host=options.get("host", "localhost"),
        port=options.get("port", 6379),
        path=options.get("db", 0),
    )


def options_of(url: str, parse: Callable[[str], Mapping[str, Any]]) -> dict[str, Any]:
    """Return what redis-py reads in a URL; raises `InvalidURL` for one that it would not, or read wrongly."""
    expect_encoded(url)
    scheme, _, rest = url.partition("://")
    scheme = {"valkey": "redis", "valkeys": "rediss"}.get(scheme.lower(), scheme.lower())
    if scheme == "unix" and not (rest.startswith("/") or rest.partition("/")[0].endswith("@")):
        raise InvalidURL("expected unix://user:password@/path/of/the/socket?db=0")
    fault = f"expected {scheme}://user:password@host:port/database; the host or the port cannot be read"
    with contextlib.suppress(ValueError):
        urlsplit(url).port  # noqa: B018 - raises, and quotes what may be a password
        fault = ""
    if not fault:
        try:
            return dict(parse(f"{scheme}://{rest}"))
        except ValueError as error:
            fault = str(error)  # redis-py's own: it quotes the name of a parameter that it knows
    raise InvalidURL(fault)


def _strange(url: str, connection_class: object) -> str | None:
    """Return what is to be said of a parameter of a URL that connections of this class do not know."""
    made_by = [vars(one).get("__init__") for one in getattr(connection_class, "__mro__", ())]
    parameters = [each for init in made_by if init for each in inspect.signature(init).parameters.values()]
    known = {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)} - {"self"}
    return strange("redis-py", _names_in(url), known - _OBJECTS, _FOREIGN)


def _names_in(url: str) -> list[str]:
    return [unquote_plus(name) for name, _, _ in pairs_of(url.partition("#")[0])]


def _fails(made: Callable[..., object], options: Mapping[str, Any]) -> bool:
    try:
        made(**options)
    except Exception:
        return True
    return False


def expect_makeable(url: str, made: Callable[..., object], options: Mapping[str, Any]) -> None:
    """Raise `InvalidURL` if no connection can be made of what a URL says, which names the parameter."""
    names = _names_in(url)
    said = ""
    try:
        if not _OBJECTS.intersection(names):
            made(**options)
            return
    except Exception as error:
        if not names or _fails(made, {name: value for name, value in options.items() if name not in names}):
            raise
        password = options.get("password")
        if isinstance(error, redis.RedisError) and not (password and str(password) in str(error)):
            said = str(error)
    said = said or ", ".join(shown for _, shown in shown_names(names))
    raise InvalidURL(_strange(url, made) or f"redis-py makes no connection of what the URL's query says: {said}")


class _Inspection(Generic[C]):
    """What threads and tasks have in common."""

    provable = True

    def __init__(
        self,
        source: str | Callable[[], C],
        target: str | None,
        options: dict[str, Any],
        parse: Callable[[str], Mapping[str, Any]],
        connection_class: Callable[..., C],
    ) -> None:
        self._make: Callable[[], C]
        self.target: str
        self.token: TokenInterface | None = None
        """What a connection has to be authenticated with before it is lent; None if its login is enough."""
        if callable(source):
            if options:
                raise TypeError(f"{min(options)!r} goes with a URL; a callable that makes connections has its own")
            self._make = source
            self.target = target or "redis:"
            return
        given = options_of(source, parse)
        # A class that somebody names wins over the one that the URL's scheme stands for; redis-py does it so.
        made = options.pop("connection_class", given.pop("connection_class", connection_class))
        options = {**options, **given}
        decline_maintenance(options.pop("maint_notifications_config", None))
        expect_makeable(source, made, options)
        self._make = lambda: made(**options)
        self.target = target or target_of(made, options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"

    def refused(self, error: BaseException) -> bool:
        """Tell whether the server said no for good (a wrong password, no such database), or redis-py for it."""
        if isinstance(error, (redis.AuthenticationError, exceptions.AuthorizationError)):
            return True
        if isinstance(error, redis.ResponseError):
            return not isinstance(error, _PASSING)
        if isinstance(error.__context__, ssl.SSLCertVerificationError):
            return True  # redis-py raises an error of its own instead
        # Nothing but a change of the program mends these.
        return isinstance(error, (redis.DataError, TypeError, ValueError))

    def _new(self) -> C:
        """Make a connection that keeps its record."""
        conn: Any = self._make()
        conn.__class__ = tallied(conn)
        conn.note_packer()
        made: C = conn
        return made


class Redis(_Inspection[Connection]):
    """Connections of redis-py to Redis or Valkey, for a `Pool`.

    `source` is a URL as redis-py knows them (`redis://`, `rediss://`, `unix://`), or with `valkey://` or `valkeys://`,
    or a callable that returns a new connection, not yet connected; `target` tells people where that leads. The keyword
    arguments are those of `redis.Connection`; what the URL says comes first. `connection_class` wins over its scheme.

    What is lent is the raw connection: `send_command`, then `read_response`. It comes back clean if all replies have
    been read and the session is as it was. It is closed if an exchange was cut, if it subscribes, watches or monitors,
    is in MULTI, or was given another login or database. If redis-py had to connect it anew, it is kept.

    The pool does not use redis-py's retries; to its borrowers they are as they were. Raises redis-py's own exceptions.
    """

    def __init__(self, source: str | Callable[[], Connection], *, target: str | None = None, **options: object) -> None:
        super().__init__(source, target, options, parse_url, redis.Connection)

    def open(self, timeout: float) -> Connection:
        """Connect and log in within `timeout` seconds, or raise redis-py's exception.

        It may take as long for each address of the host, and for each answer of a server that is slow at the login.
        """
        conn = self._new()
        # redis-py does not say of which types its members are.
        tally: Any = conn
        token = self.token
        retry = getattr(tally, "retry", None)
        tally.retry = Retry(NoBackoff(), 0)
        tally._deadline = monotonic() + timeout
        try:
            tally.connect()
            tally.limit(None)
            if tally._unread() or not self.silent(conn):
                raise stray()
        except BaseException:
            tally.disconnect()
            raise
        finally:
            tally.retry = retry
            tally._deadline = None
        tally.note_socket()
        tally._token = token
        return conn

    def inspect(self, conn: Connection, error: BaseException | None) -> Condition:
        """Tell by its record what the connection is fit for; see the module for why that is proof."""
        tally: Any = conn
        if tally._asked == tally._answered and not tally._session and not tally._unread():
            return CLEAN
        if not tally.is_settled():
            return BROKEN
        if tally._unread():
            # With RESP3 it may be a push message.
            return DIRTY if tally.get_protocol() in (3, "3") else BROKEN
        return CLEAN if tally.is_known() else DIRTY

    def alive(self, conn: Connection) -> bool:
        """Tell whether the server has not hung up; of a connection that redis-py has closed nobody can tell."""
        descriptor = self.descriptor(conn)
        return descriptor is None or not _watcher.hung_up(descriptor)

    def silent(self, conn: Connection) -> bool:
        """Tell whether nothing has come since the last answer was read, but push messages."""
        tally: Any = conn
        return not tally._look(0) or tally.is_expected()

    def descriptor(self, conn: Connection) -> int | None:
        """Return the socket's descriptor, or None if the connection is closed."""
        tally: Any = conn
        sock = tally._sock
        return sock.fileno() if isinstance(sock, socket.socket) and sock.fileno() >= 0 else None

    def ping(self, conn: Connection, timeout: float) -> None:
        """Do one round trip within `timeout` seconds, a PING, or an AUTH if there is a new token; raise if it fails."""
        tally: Any = conn
        token = self.token
        if not tally.is_open():
            raise redis.ConnectionError("it was closed while it was idle")
        tally.limit(timeout)
        try:
            if token is None or token is tally._token:
                tally.send_command("PING", check_health=False)
                tally.read_response()
            else:
                tally.send_command("AUTH", token.try_get("oid"), token.get_value(), check_health=False)
                tally.read_response()
                tally.note_login(token)
        except redis.ResponseError:
            pass  # it has answered
        tally.limit(None)
        self.reset(conn, timeout)

    def reset(self, conn: Connection, timeout: float) -> None:
        """Take note of the socket if it is a new one, and hand on the push messages that have come; it never waits."""
        tally: Any = conn
        tally.hand_on_pushes()
        tally.note_socket()
        if self.inspect(conn, None) is not CLEAN:
            raise stray()

    def close(self, conn: Connection) -> None:
        """Close the socket; the protocol has no goodbye."""
        self.abandon(conn)

    def abandon(self, conn: Connection) -> None:
        """Close the socket."""
        tally: Any = conn
        tally.disconnect()


class AsyncRedis(_Inspection[AsyncConnection]):
    """Connections of redis-py to Redis or Valkey, for an `AsyncPool` on asyncio; trio is not supported by redis-py.

    As `Redis`, with the keyword arguments of `redis.asyncio.Connection`.
    """

    asyncio_only = True

    def __init__(
        self, source: str | Callable[[], AsyncConnection], *, target: str | None = None, **options: object
    ) -> None:
        super().__init__(source, target, options, async_parse_url, redis.asyncio.Connection)

    async def open(self, timeout: float) -> AsyncConnection:
        """Connect and log in within `timeout` seconds, or raise redis-py's exception, or TimeoutError."""
        conn = self._new()
        tally: Any = conn
        token = self.token
        retry = getattr(tally, "retry", None)
        tally.retry = AsyncRetry(NoBackoff(), 0)
        try:
            async with asyncio.timeout(timeout):
                await tally.connect()
            if not self.silent(conn):
                raise stray()
        except BaseException:
            tally.let_go()
            raise
        finally:
            tally.retry = retry
        tally.note_socket()
        tally._token = token
        return conn

    def inspect(self, conn: AsyncConnection, error: BaseException | None) -> Condition:
        """Tell by its record what the connection is fit for; see the module for why that is proof."""
        tally: Any = conn
        if tally._asked == tally._answered and not tally._session and not tally._unread():
            return CLEAN
        if not tally.is_settled():
            return BROKEN
        if tally._unread():
            # With RESP3 it may be a push message.
            return DIRTY if tally.get_protocol() in (3, "3") else BROKEN
        return CLEAN if tally.is_known() else DIRTY

    def alive(self, conn: AsyncConnection) -> bool:
        """Tell whether the server has not hung up; of a connection that redis-py has closed nobody can tell."""
        descriptor = self.descriptor(conn)
        if descriptor is None:
            writer = conn._writer
            # It is closed, or has no socket: somebody's own.
            return writer is None or writer.get_extra_info("socket") is None
        return not _watcher.hung_up(descriptor)

    def silent(self, conn: AsyncConnection) -> bool:
        """Tell whether the loop has read nothing since the last answer, but push messages."""
        tally: Any = conn
        return not tally._unread() or tally.is_expected()

    def descriptor(self, conn: AsyncConnection) -> int | None:
        """Return the socket's descriptor, or None if the connection is closed."""
        writer = conn._writer
        sock = None if writer is None else writer.get_extra_info("socket")
        return None if sock is None or sock.fileno() < 0 else sock.fileno()

    async def ping(self, conn: AsyncConnection, timeout: float) -> None:
        """Do one round trip within `timeout` seconds, a PING, or an AUTH if there is a new token; raise if it fails."""
        tally: Any = conn
        token = self.token
        if not tally.is_open():
            raise redis.ConnectionError("it was closed while it was idle")
        async with asyncio.timeout(timeout):
            try:
                if token is None or token is tally._token:
                    await conn.send_command("PING", check_health=False)
                    await conn.read_response()
                else:
                    await conn.send_command("AUTH", token.try_get("oid"), token.get_value(), check_health=False)
                    await conn.read_response()
                    tally.note_login(token)
            except redis.ResponseError:
                pass  # it has answered
        await self.reset(conn, timeout)

    async def reset(self, conn: AsyncConnection, timeout: float) -> None:
        """Take note of the socket if it is a new one, and hand on the push messages that have come."""
        tally: Any = conn
        async with asyncio.timeout(timeout):
            await tally.hand_on_pushes()
        tally.note_socket()
        if self.inspect(conn, None) is not CLEAN:
            raise stray()

    async def close(self, conn: AsyncConnection) -> None:
        """Close the socket; the protocol has no goodbye."""
        await conn.disconnect()

    def abandon(self, conn: AsyncConnection) -> None:
        """Close the socket, also if the event loop is closed already."""
        tally: Any = conn
        tally.let_go()
