"""What the transports for threads and for tasks have in common."""

from __future__ import annotations

import math
import ssl
import sys
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeAlias, TypeVar

from millpond._core.settings import Options
from millpond._core.stats import Stats
from millpond._httpcore.library import Library
from millpond._httpcore.pools import Terms
from millpond._keyed import Keyed

__all__ = ["Face", "Key", "LimitsT", "PoolT", "ProxyT", "RequestT", "ResponseT", "SocketOption", "pool_timeout"]

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
LimitsT = TypeVar("LimitsT")
ProxyT = TypeVar("ProxyT")
PoolT = TypeVar("PoolT", bound=Any)

SocketOption: TypeAlias = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
Key: TypeAlias = tuple[bytes, bytes, int | None]
"""Scheme, host and port of an origin, as httpx has them."""

SCHEMES: Final = (b"http", b"https", b"ws", b"wss")
SECURE: Final = (b"https", b"wss")
A_MOMENT: Final = 0.001
"""Seconds that a connection may lie idle if it may not: a pool wants more than none."""


class Route(NamedTuple):
    """How connections to an origin come about."""

    origin: Any
    layers: int
    """How many layers of TLS they have."""
    shared: bool
    """Whether they may turn out to be of HTTP/2."""


class Face(Generic[RequestT, ResponseT, LimitsT, ProxyT, PoolT]):
    """A transport without its ways of waiting."""

    _library: ClassVar[Library]
    _own: ClassVar[str]
    """The name of the library's own transport."""

    def __init__(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: str | tuple[str, str] | tuple[str, str, str] | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: LimitsT | None = None,
        proxy: ProxyT | None = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[SocketOption] | None = None,
        *,
        max_per_host: int | None = None,
        max_lifetime: float = 3600.0,
        name: str = "httpx",
    ) -> None:
        wanted: Any = limits
        if wanted is None:
            wanted = self._library.httpx.Limits(max_connections=100, max_keepalive_connections=20)
        # The library's own transport reads the arguments, and its pool knows how to make connections by them. Neither
        # is used for anything else.
        own = getattr(self._library.httpx, self._own)(
            verify=verify,
            cert=cert,
            trust_env=trust_env,
            http1=http1,
            http2=http2,
            limits=wanted,
            proxy=proxy,
            uds=uds,
            local_address=local_address,
            retries=retries,
            socket_options=socket_options,
        )
        self._plan: Any = own._pool
        self._http1, self._http2 = http1, http2
        total: int | None = wanted.max_connections
        spare: int | None = wanted.max_keepalive_connections
        expiry = math.inf if wanted.keepalive_expiry is None else wanted.keepalive_expiry
        self._terms = Terms(sys.maxsize if spare is None else spare, expiry)
        self._name = name
        self._settings: Options = {
            "name": name,
            "max_size": min((limit for limit in (total, max_per_host) if limit is not None), default=sys.maxsize),
            "max_opening": sys.maxsize,
            "max_idle": max(expiry, A_MOMENT),
            "max_lifetime": max_lifetime,
            # Each link is looked at when it is lent (`Link.fresh`).
            "check_after": math.inf,
        }
        self._total = total
        self._pools = self._begin()

    def stats(self) -> dict[str, Stats]:
        """Look at the pools in use, by the origin to which their connections lead (`"https://example.org:443"`)."""
        return {str(self._origin(key)): stats for key, stats in self._pools.stats().items()}

    def _begin(self) -> Keyed[Key, PoolT]:
        return Keyed(self._make, self._total, {**self._settings})

    def _make(self, key: Key, options: Options) -> PoolT:
        """Make the pool of an origin."""
        raise NotImplementedError

    def _origin(self, key: Key) -> Any:
        scheme, host, port = key
        return self._library.httpcore.URL(scheme=scheme, host=host, port=port).origin

    def _route(self, key: Key) -> Route:
        """Find out how connections to an origin come about; raise what httpx does for a scheme that is not HTTP."""
        scheme = key[0]
        if scheme not in SCHEMES:
            raise self._library.httpx.UnsupportedProtocol(
                f"Request URL has an unsupported protocol '{scheme.decode()}://'."
                if scheme
                else "Request URL is missing an 'http://' or 'https://' protocol."
            )
        origin = self._origin(key)
        proxy: bytes | None = getattr(getattr(self._plan, "_proxy_url", None), "scheme", None)
        tunnelled = proxy in (b"http", b"https") and scheme != b"http"
        layers = (scheme in SECURE or tunnelled) + (proxy == b"https")
        forwarded = proxy in (b"http", b"https") and not tunnelled
        shared = self._http2 and not forwarded and (layers > 0 or not self._http1)
        return Route(origin, layers, shared)


def pool_timeout(extensions: Mapping[str, Any]) -> float:
    """Return how long a request may wait for a connection."""
    timeout: float | None = extensions.get("timeout", NOTHING).get("pool")
    return math.inf if timeout is None else timeout


NOTHING: Final[Mapping[str, Any]] = {}
