"""requests on millpond's pools: one line for a session that exists.

    import requests
    from millpond.requests import install

    session = requests.Session()
    install(session, pool_maxsize=10, pool_block=True, pool_timeout=2.0)

The session stays requests' own; what keeps its connections is `millpond.urllib3`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from millpond._extras import extra
from millpond.budget import Budget
from millpond.urllib3 import MAX_IDLE, MAX_LIFETIME, Options, PoolManager, ProxyManager, through_socks

with extra("requests"):
    import requests
    from requests import adapters
    from requests.utils import get_auth_from_url
    from urllib3.exceptions import EmptyPoolError

if TYPE_CHECKING:
    import urllib3
    from urllib3 import Retry

__all__ = ["HTTPAdapter", "install"]


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


def install(session: requests.Session, **options: Unpack[AdapterOptions]) -> None:
    """Have a session use millpond's pools: mounts one `HTTPAdapter` for http:// and https://.

    The options are those of `HTTPAdapter`. What was mounted for these is closed; responses that are being read go on.
    Adapters for longer prefixes stay.
    """
    adapter = HTTPAdapter(**options)
    for scheme in ("https://", "http://"):
        former = session.adapters.get(scheme)
        session.mount(scheme, adapter)
        if former is not None:
            former.close()
