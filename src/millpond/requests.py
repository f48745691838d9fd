"""requests on millpond's pools: one line for a session that exists.

    import requests
    from millpond.requests import install

    session = requests.Session()
    install(session, pool_maxsize=10, pool_block=True, pool_timeout=2.0)

The session stays requests' own; what keeps its connections is `millpond.urllib3`.
"""

from __future__ import annotations

import logging
from typing import Any, Final, NamedTuple, TypedDict, Unpack

from millpond._extras import extra
from millpond.budget import Budget
from millpond.urllib3 import MAX_IDLE, MAX_LIFETIME, Options, PoolManager, ProxyManager, through_socks

with extra("requests"):
    import requests
    import urllib3
    from requests import adapters
    from requests.utils import get_auth_from_url
    from urllib3 import Retry
    from urllib3.exceptions import EmptyPoolError

__all__ = ["HTTPAdapter", "install"]

log: Final = logging.getLogger("millpond")

_SIZES: Final = ("maxsize", "block")
"""What requests gives a pool manager of the adapter's own arguments."""


class AdapterOptions(TypedDict, total=False):
    """The keyword arguments of an adapter; `HTTPAdapter` tells what each means."""

    pool_connections: int
    pool_maxsize: int
    max_retries: int | Retry
    pool_block: bool
    pool_timeout: float | None
    max_idle: float
    max_lifetime: float
    budget: Budget | None


class HTTPAdapter(adapters.HTTPAdapter):
    """requests' adapter, to mount on a session, on millpond's pools.

    Takes what `requests.adapters.HTTPAdapter` takes, and means the same by it. With `pool_block`, a request waits in
    line for one of `pool_maxsize` connections to its host, for up to `pool_timeout` seconds (default None: as long as
    it takes); then it raises `requests.ConnectTimeout`, whose causes tell what the connections are at. `max_idle`
    (default 50 s) and `max_lifetime` (default 3,600 s) are how long a connection may lie idle, and how old it may
    become. `budget` limits the connections to all hosts and proxies together; when it is used up, requests wait
    also without `pool_block`. Closing the session wakes those who wait: they raise `requests.ConnectionError`.

    An adapter can be pickled, as requests' can; the copy has a budget of its own, as large.
    """

    poolmanager: urllib3.PoolManager

    def __init__(
        self,
        pool_connections: int = adapters.DEFAULT_POOLSIZE,
        pool_maxsize: int = adapters.DEFAULT_POOLSIZE,
        max_retries: int | Retry = adapters.DEFAULT_RETRIES,
        pool_block: bool = adapters.DEFAULT_POOLBLOCK,
        pool_timeout: float | None = None,
        *,
        max_idle: float = MAX_IDLE,
        max_lifetime: float = MAX_LIFETIME,
        budget: Budget | None = None,
    ) -> None:
        self._pools = Options(pool_timeout=pool_timeout, max_idle=max_idle, max_lifetime=max_lifetime, budget=budget)
        super().__init__(pool_connections, pool_maxsize, max_retries, pool_block)
        if not isinstance(self.poolmanager, (PoolManager, ProxyManager)):
            log.warning(
                "%s.%s makes a pool manager of urllib3's own: its init_poolmanager() does not call millpond's",
                type(self).__module__,
                type(self).__qualname__,
            )

    def __getstate__(self) -> dict[str, Any]:
        budget = self._pools["budget"]
        return {**super().__getstate__(), "_pools": {**self._pools, "budget": budget and budget.limit}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        limit = state["_pools"]["budget"]
        super().__setstate__({**state, "_pools": {**state["_pools"], "budget": limit and Budget(limit)}})

    def init_poolmanager(
        self,
        connections: int,
        maxsize: int,
        block: bool = adapters.DEFAULT_POOLBLOCK,
        **pool_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Make the manager of pools for hosts that are reached without a proxy; for subclasses."""
        self._pool_connections = connections
        self._pool_maxsize = maxsize
        self._pool_block = block
        self.poolmanager = PoolManager(connections, maxsize=maxsize, block=block, **self._pools, **pool_kwargs)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> urllib3.PoolManager:  # noqa: ANN401
        """Return the manager of pools for hosts that are reached by way of a proxy; for subclasses."""
        manager: urllib3.PoolManager | None = self.proxy_manager.get(proxy)
        if manager is not None:
            return manager
        proxy_kwargs |= {
            "num_pools": self._pool_connections,
            "maxsize": self._pool_maxsize,
            "block": self._pool_block,
        }
        if proxy.lower().startswith("socks"):
            username, password = get_auth_from_url(proxy)
            try:
                manager = through_socks(proxy, self._pools, username=username, password=password, **proxy_kwargs)
            except ImportError as missing:
                raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.") from missing
        else:
            manager = ProxyManager(proxy, proxy_headers=self.proxy_headers(proxy), **self._pools, **proxy_kwargs)
        self.proxy_manager[proxy] = manager
        return manager

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: str | tuple[str, str] | None = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        """Send a request and return its response; raises as requests does.

        A wait for a connection that took too long raises `requests.ConnectTimeout`: it may be tried again.
        """
        try:
            return super().send(request, stream, timeout, verify, cert, proxies)
        except EmptyPoolError as error:
            raise requests.ConnectTimeout(error, request=request) from error


class _Told(NamedTuple):
    """What an adapter was told, as far as another one can be told the same."""

    options: AdapterOptions
    manager: dict[str, Any]
    """Arguments of its pool manager, beyond those that the options are for."""
    kinds: tuple[Any, Any] | None
    """The classes of its pools and how they are told apart, by scheme."""

    def adapter(self, options: AdapterOptions) -> HTTPAdapter:
        """Make one of millpond's, told the same unless the options say otherwise."""
        told: AdapterOptions = {**self.options, **options}
        adapter = HTTPAdapter(**told)
        if self.manager:
            size = adapter._pool_connections, adapter._pool_maxsize, adapter._pool_block
            adapter.init_poolmanager(*size, **self.manager)
        if self.kinds is not None:
            adapter.poolmanager.pool_classes_by_scheme, adapter.poolmanager.key_fn_by_scheme = self.kinds
        return adapter


def _told(prefix: str, former: Any) -> _Told:  # noqa: ANN401
    """Find out what an adapter was told; raise `TypeError` if it cannot be known."""
    if former is None:
        return _Told({}, {}, None)
    kind = type(former)
    if kind not in (adapters.HTTPAdapter, HTTPAdapter):
        raise _refusal(prefix, former, "it is of another class than requests' own adapters")
    sizes = former._pool_connections, former._pool_maxsize, adapters.DEFAULT_RETRIES, former._pool_block
    pools: Any = former._pools if kind is HTTPAdapter else {}
    twin = kind(*sizes, **pools)
    options: AdapterOptions = {
        "pool_connections": former._pool_connections,
        "pool_maxsize": former._pool_maxsize,
        "pool_block": former._pool_block,
    }
    options.update(pools)
    own = sorted(vars(former).keys() - vars(twin).keys())
    if own:
        raise _refusal(prefix, former, f"it has attributes of its own: {', '.join(own)}")
    manager = former.poolmanager
    if _nature(manager) != _nature(twin.poolmanager):
        raise _refusal(prefix, former, "its pool manager is not the one that requests has made for it")
    if any(_all_of(proxied) != _all_of(twin.proxy_manager_for(url)) for url, proxied in former.proxy_manager.items()):
        raise _refusal(prefix, former, "one of its proxy managers is not as requests has made it")
    if type(former.max_retries) is not Retry or vars(former.max_retries) != vars(twin.max_retries):
        options["max_retries"] = former.max_retries
    given = {name: value for name, value in manager.connection_pool_kw.items() if name not in _SIZES}
    if manager.headers:
        given["headers"] = manager.headers
    return _Told(options, given, (manager.pool_classes_by_scheme, manager.key_fn_by_scheme))


def _nature(manager: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Say what of a pool manager cannot be handed on to another one."""
    sizes = {name: manager.connection_pool_kw.get(name) for name in _SIZES}
    pools = type(manager.pools), manager.pools._maxsize, manager.pools.dispose_func
    return type(manager), vars(manager).keys(), pools, sizes, getattr(manager, "_options", None)


def _all_of(manager: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Say all that a pool manager was told."""
    told = manager.connection_pool_kw, manager.headers, getattr(manager, "proxy_headers", None)
    return _nature(manager), *told, manager.pool_classes_by_scheme, manager.key_fn_by_scheme


def _refusal(prefix: str, former: object, reason: str) -> TypeError:
    name = f"{type(former).__module__}.{type(former).__qualname__}"
    return TypeError(
        f"{prefix} has a {name} mounted, and install() cannot keep what it does: {reason}. Derive its class from "
        "millpond.requests.HTTPAdapter and mount that; or, to do without it, mount requests' own HTTPAdapter first"
    )


def install(session: requests.Session, **options: Unpack[AdapterOptions]) -> None:
    """Have a session use millpond's pools: mounts an `HTTPAdapter` for http:// and https://.

    The options are those of `HTTPAdapter`. What is not given stays as the adapters that serve these were told: retries,
    sizes, and whatever their pool managers were given (a TLS context, a pinned certificate, a source address). They are
    closed; responses that are being read go on. If both were told the same, one adapter serves both.

    Raises `TypeError`, and changes nothing, if an adapter of another class serves there, or one whose managers were
    exchanged: its doing cannot be kept. One whose class derives from `HTTPAdapter` stays, and takes no options.
    Adapters for longer prefixes stay. What was set on a single pool of a manager is not seen, and ends with that pool.
    """
    formers: dict[str, Any] = {}
    told: dict[str, _Told] = {}
    for prefix in ("https://", "http://"):
        # The longest come first. An adapter for a shorter prefix would be passed by from now on.
        serving = (adapter for start, adapter in session.adapters.items() if prefix.startswith(start.lower()))
        former = formers[prefix] = next(serving, None)
        if options or type(former) is HTTPAdapter or not isinstance(former, HTTPAdapter):
            told[prefix] = _told(prefix, former)
    made: dict[str, HTTPAdapter] = {}
    for prefix, what in told.items():
        same = (adapter for other, adapter in made.items() if told[other] == what)
        made[prefix] = next(same, None) or what.adapter(options)
    for prefix, adapter in made.items():
        session.mount(prefix, adapter)
    for prefix in made:
        former = formers[prefix]
        if former is not None and former not in session.adapters.values():
            former.close()
