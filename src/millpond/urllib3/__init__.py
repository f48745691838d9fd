"""urllib3's pools with millpond's behaviour: one changed import.

    from millpond.urllib3 import PoolManager

    http = PoolManager(maxsize=10, block=True, pool_timeout=2.0)
    http.request("GET", "https://example.org/")

Requests, retries, redirects, timeouts, proxies, TLS and exceptions stay urllib3's own; what keeps the connections is
millpond's. So callers who wait are served in order, and woken when the pool closes; a connection goes back only if
its reply was read to the end and nothing came after it; one whose response was dropped is found again.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, cast

from millpond._extras import extra

with extra("urllib3"):
    import urllib3
    from urllib3.exceptions import ClosedPoolError, EmptyPoolError
    from urllib3.util.timeout import _DEFAULT_TIMEOUT, _TYPE_DEFAULT
    from urllib3.util.url import Url

from millpond.budget import Budget
from millpond.connectors._derived import derived
from millpond.errors import ConnectFailed, Misuse, PoolClosed, PoolTimeout
from millpond.urllib3._connections import LentConnection, disconnect, is_usable, lie_down, part
from millpond.urllib3._lending import Connector, Lender

if TYPE_CHECKING:
    from urllib3._base_connection import BaseHTTPConnection

    from millpond._core.lease import Lease

__all__ = ["HTTPConnectionPool", "HTTPSConnectionPool", "PoolManager", "ProxyManager"]

log: Final = logging.getLogger("urllib3.connectionpool")

MAX_IDLE: Final = 50.0
"""Seconds. Most load balancers drop what has been idle for 60, and say nothing of it."""
MAX_LIFETIME: Final = 3600.0
"""Seconds, after which the name of the host is looked up again."""
PORTS: Final = 65_535
"""What `block=False` means by no limit: there are no more near ends for connections to one server."""
MAKING: Final = 0.1
"""Seconds that the making of a connection object, which does no I/O, may take another thread."""


class Options(TypedDict):
    """What a pool takes besides what urllib3's does; `HTTPConnectionPool` tells what each means."""

    pool_timeout: float | None
    max_idle: float
    max_lifetime: float
    budget: Budget | None


DEFAULTS: Final = Options(pool_timeout=None, max_idle=MAX_IDLE, max_lifetime=MAX_LIFETIME, budget=None)


def _expect_waiting(pool_timeout: float | None, block: bool, budget: Budget | None) -> None:
    if pool_timeout is not None and not block and budget is None:
        raise ValueError("pool_timeout goes with block=True or a budget: without them nobody waits")


class HTTPConnectionPool(urllib3.HTTPConnectionPool):
    """urllib3's pool for one host, on millpond's.

    Takes what `urllib3.HTTPConnectionPool` takes, and means the same by it. `block=True`: no more than `maxsize`
    connections at a time, for which callers wait in line. `block=False`: any number, of which `maxsize` are kept.

    `pool_timeout` is how many seconds a request waits in line (default None: as long as it takes) unless it says so
    itself; then it raises `EmptyPoolError`. `max_idle` (default 50 s) and `max_lifetime` (default 3,600 s) are how
    long a connection may lie idle, and how old it may become; if a server says that it waits less (`Keep-Alive:
    timeout=5`), that is heeded. `budget` is a limit for several pools together; when it is used up, callers wait in
    line also without `block`.

    `pool` is the `millpond.Pool`, for its `stats()` and `leases()`; None when closed.

    A response that is not read at once holds its connection until it has been read, closed or dropped. After
    `release_conn()` before that it can still be read if all of it has come, is at most 64 KiB, and no other thread has
    read from it, or if the server closes after it. Else to read on raises `ProtocolError`; the rest is read beside the
    line if it comes within 0.25 s, and if it does not, the connection is closed.

    `ConnectionCls` is looked up whenever a connection is made, as in urllib3, and one that was made of another class
    is not lent any more.
    """

    pool: Lender | None  # type: ignore[assignment]

    def __init__(
        self,
        host: str,
        port: int | None = None,
        timeout: urllib3.Timeout | float | _TYPE_DEFAULT | None = _DEFAULT_TIMEOUT,
        maxsize: int = 1,
        block: bool = False,
        headers: Mapping[str, str] | None = None,
        retries: urllib3.Retry | bool | int | None = None,
        _proxy: Url | None = None,
        _proxy_headers: Mapping[str, str] | None = None,
        *,
        pool_timeout: float | None = None,
        max_idle: float = MAX_IDLE,
        max_lifetime: float = MAX_LIFETIME,
        budget: Budget | None = None,
        **conn_kw: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(
            host,
            port,
            timeout=timeout,
            maxsize=maxsize,
            block=block,
            headers=headers,
            retries=retries,
            _proxy=_proxy,
            _proxy_headers=_proxy_headers,
            **conn_kw,
        )
        # A class of one's own may have said something else. It stands behind this one, and urllib3's behind both.
        maxsize, block = getattr(self.pool, "maxsize", maxsize), self.block
        _expect_waiting(pool_timeout, block, budget)
        self._kept: float = maxsize or math.inf
        connector = Connector(self)
        self.pool = Lender(
            connector,
            name=connector.target,
            max_size=maxsize if block else PORTS,
            timeout=math.inf if pool_timeout is None else pool_timeout,
            max_idle=max_idle,
            max_lifetime=max_lifetime,
            check_after=math.inf,  # `_get_conn` looks every time
            budget=budget,
        )

    def _get_conn(self, timeout: float | None = None) -> BaseHTTPConnection:
        while True:
            conn = self._borrow(timeout)
            try:
                usage = conn._millpond
                if usage.kind is self.ConnectionCls or self._makes(usage.kind):
                    if conn.sock is not None and not is_usable(conn):
                        log.debug("Resetting dropped connection: %s", self.host)
                        disconnect(conn)
                    usage.answered = False
                    usage.held = conn.loan
                    return cast("BaseHTTPConnection", conn)
            except BaseException:
                # The exception keeps this frame.
                conn.close()
                raise
            # Another class was set since it was made; or one was for a while, as recorders do.
            conn.close()

    def _makes(self, kind: Any) -> bool:  # noqa: ANN401
        """Tell whether connections are made by this now, though it is not the same object."""
        now = self.ConnectionCls
        # The last: it is another one whenever it is asked for.
        return bool(kind == now or now != self.ConnectionCls)

    def _borrow(self, timeout: float | None) -> LentConnection:
        pool = self.pool
        if pool is None:
            raise ClosedPoolError(self, "Pool is closed.")
        try:
            try:
                return pool._lend(timeout)
            except PoolTimeout:
                # No time to wait is time enough to make a connection object, if there is room for one.
                if timeout is None or timeout >= MAKING or pool.stats().lent >= pool.settings.max_size:
                    raise
            return pool._lend(MAKING)
        except PoolClosed as error:
            raise ClosedPoolError(self, "Pool is closed.") from error
        except PoolTimeout as error:
            raise EmptyPoolError(
                self, "Pool is empty and a new connection can't be opened due to blocking mode."
            ) from error
        except ConnectFailed as error:
            # Nothing was connected to: the arguments do not suit the connection's class.
            raise error.__cause__ or error from None

    def _put_conn(self, conn: BaseHTTPConnection | None) -> None:
        # None is what `urlopen` gives for one that it has closed, and that has given its place back itself.
        if isinstance(conn, LentConnection) and conn.loan is not None:
            # At once, for two threads may give it back: one that reads to the end, and one that has read enough.
            loan = vars(conn._millpond).pop("held", None)
            if loan is None:
                return
            try:
                self._take_back(conn, loan)
            except Misuse:
                if conn.loan is loan:
                    raise
                # Another thread has closed it meanwhile, which ends the loan as well.
            except BaseException:
                # The exception keeps this frame, and `urlopen`'s. But the connection may be another's already.
                if conn.loan is loan:
                    conn.close()
                raise
        elif conn is not None:
            conn.close()

    def _take_back(self, conn: LentConnection, loan: Lease[LentConnection]) -> None:
        lender = cast("Lender", loan._pool)
        usage = conn._millpond
        response = usage.response()
        if response is not None:
            if response._connection is None and not response.isclosed():
                # `urlopen(preload_content=False, release_conn=True)`: it may yet be read.
                usage.held = loan
                response._pool, response._connection = self, conn
                return
            part(conn, response)
        lie_down(conn)
        if conn.sock is not usage.noted:
            lender.note(conn)
        size = 0 if self.block else lender.unlent
        if size >= self._kept:
            log.warning("Connection pool is full, discarding connection: %s. Connection pool size: %s", self.host, size)
            lender.condemn(conn)
        lender._take_back(conn)

    def close(self) -> None:
        """Close the pool: callers in line get `ClosedPoolError` at once, connections on loan are closed afterwards."""
        pool = self.pool
        self.pool = None  # pyright: ignore[reportIncompatibleVariableOverride]
        if pool is not None:
            pool._close_down()


class HTTPSConnectionPool(  # pyright: ignore[reportIncompatibleVariableOverride]
    HTTPConnectionPool, urllib3.HTTPSConnectionPool
):
    """urllib3's pool for one host, with TLS, on millpond's; see `HTTPConnectionPool`.

    Takes what `urllib3.HTTPSConnectionPool` takes besides; certificates are verified unless told otherwise.
    """


def _lending(kind: Any) -> Any:  # noqa: ANN401
    """Return millpond's counterpart of a class of urllib3's pools, or of a partial of one; None if it is neither."""
    if isinstance(kind, partial):
        made = _lending(kind.func)
        return None if made is None else partial(made, *kind.args, **kind.keywords)
    if not (isinstance(kind, type) and issubclass(kind, urllib3.HTTPConnectionPool)):
        return None
    if issubclass(kind, HTTPConnectionPool):
        return kind
    own = HTTPSConnectionPool if issubclass(kind, urllib3.HTTPSConnectionPool) else HTTPConnectionPool
    if issubclass(own, kind):
        return own
    return derived(kind, "_millpond_lending", lambda: type(kind.__name__, (own, kind), {"__module__": kind.__module__}))


class _Managed(urllib3.PoolManager):
    """What both managers have in common."""

    pool_classes_by_scheme: dict[str, type[urllib3.HTTPConnectionPool]]
    _options: Options

    def _manage(self, options: Options) -> None:
        """Note what the pools are to be given besides what urllib3's are."""
        _expect_waiting(options["pool_timeout"], self.connection_pool_kw.get("block", False), options["budget"])
        self._options = options
        # urllib3's managers share the dictionary until somebody sets another one.
        self.pool_classes_by_scheme = dict(self.pool_classes_by_scheme)

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> urllib3.HTTPConnectionPool:
        # Now, for it may have been set after the manager was made.
        lending = _lending(self.pool_classes_by_scheme[scheme])
        if lending is None:
            self._expect_no_options(scheme)
            return super()._new_pool(scheme, host, port, request_context)
        context = self.connection_pool_kw if request_context is None else request_context
        said = lending.keywords if isinstance(lending, partial) else {}
        options = {name: value for name, value in self._options.items() if name not in said}
        # What urllib3's method looks up, in place of the manager: others may be asking that at the moment.
        view: Any = SimpleNamespace(pool_classes_by_scheme={scheme: lending})
        return urllib3.PoolManager._new_pool(view, scheme, host, port, {**context, **options})

    def _expect_no_options(self, scheme: str) -> None:
        given = [name for name, value in self._options.items() if value != DEFAULTS.get(name)]
        if given:
            raise TypeError(
                f"the pools for {scheme}:// are none of urllib3's, and do not know {' and '.join(given)}: in "
                "pool_classes_by_scheme, set a class that derives from urllib3's, or a partial of one"
            )

    def _pools(self) -> list[Any]:
        return [self.pools[key] for key in self.pools.keys()]  # noqa: SIM118 it cannot be iterated over

    def clear(self) -> None:
        """Close all pools. Responses that are being read are not affected; callers in line get `ClosedPoolError`."""
        with self.pools.lock:
            pools = self._pools()
            super().clear()
        for pool in pools:
            pool.close()


class PoolManager(_Managed):
    """urllib3's manager of pools for any number of hosts, each on millpond's.

    Takes what `urllib3.PoolManager` takes, and means the same by it; a pool that has to make room for another
    (`num_pools`) finishes what it is at. `pool_timeout`, `max_idle`, `max_lifetime` and `budget` are those of
    `HTTPConnectionPool`, for each host: `maxsize` limits one host, `budget` all hosts together.
    """

    def __init__(
        self,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        *,
        pool_timeout: float | None = None,
        max_idle: float = MAX_IDLE,
        max_lifetime: float = MAX_LIFETIME,
        budget: Budget | None = None,
        **connection_pool_kw: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(num_pools, headers, **connection_pool_kw)
        self._manage(Options(pool_timeout=pool_timeout, max_idle=max_idle, max_lifetime=max_lifetime, budget=budget))


class ProxyManager(_Managed, urllib3.ProxyManager):
    """urllib3's manager of pools for what is reached by way of a proxy, each on millpond's; see `PoolManager`.

    Takes what `urllib3.ProxyManager` takes, and means the same by it: HTTP goes through one pool of connections to
    the proxy, HTTPS through a pool of CONNECT tunnels for each host.
    """

    def __init__(
        self,
        proxy_url: str,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        proxy_headers: Mapping[str, str] | None = None,
        proxy_ssl_context: ssl.SSLContext | None = None,
        use_forwarding_for_https: bool = False,
        proxy_assert_hostname: str | Literal[False] | None = None,
        proxy_assert_fingerprint: str | None = None,
        *,
        pool_timeout: float | None = None,
        max_idle: float = MAX_IDLE,
        max_lifetime: float = MAX_LIFETIME,
        budget: Budget | None = None,
        **connection_pool_kw: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(
            proxy_url,
            num_pools,
            headers,
            proxy_headers,
            proxy_ssl_context,
            use_forwarding_for_https,
            proxy_assert_hostname,
            proxy_assert_fingerprint,
            **connection_pool_kw,
        )
        self._manage(Options(pool_timeout=pool_timeout, max_idle=max_idle, max_lifetime=max_lifetime, budget=budget))


def through_socks(proxy_url: str, options: Options, **manager_kw: Any) -> urllib3.PoolManager:  # noqa: ANN401
    """Make a manager of pools for what is reached by way of a SOCKS proxy. Raises `ImportError` without PySocks."""
    from urllib3.contrib.socks import SOCKSProxyManager

    name = SOCKSProxyManager.__name__
    kind: Any = derived(SOCKSProxyManager, "_millpond_managed", lambda: type(name, (_Managed, SOCKSProxyManager), {}))
    manager = kind(proxy_url, **manager_kw)
    manager._manage(options)
    return cast("urllib3.PoolManager", manager)
