"""Connection pools for redis-py 8: `redis.Redis(connection_pool=millpond.redis.ConnectionPool(...))`.

They are redis-py's own pools, with the same arguments and members, but a pool of millpond's keeps the connections:
callers wait in order, a connection is lent only if it is proved that nothing is left of its last loan, a server's
hang-up is noticed at once, and lifetimes, outages, forks and statistics are as in every pool of millpond's.

`millpond.redis.asyncio` has the same for `redis.asyncio`.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from millpond._extras import extra

with extra("redis"):
    import redis
    import redis.sentinel

from redis.connection import AbstractConnection, Connection, ConnectionInterface

from millpond import _fork
from millpond._core.entry import State
from millpond._core.settings import Options, Settings
from millpond._core.stats import Stats
from millpond.connectors.redis import Redis, decline_maintenance, target_of
from millpond.connectors.urls import place
from millpond.errors import ConnectFailed
from millpond.pool import Pool
from millpond.records import LeaseRecord
from millpond.redis._lending import (
    NEVER,
    REFUSALS,
    close_idle,
    counts,
    doubt_all,
    forsake_demoted,
    maker,
    order_of,
    ours,
    passing,
    translated,
    which_are,
)

if TYPE_CHECKING:
    from redis.auth.token import TokenInterface
    from redis.cache import CacheFactoryInterface
    from redis.maint_notifications import MaintNotificationsConfig, OSSMaintNotificationsHandler
    from redis.retry import Retry

    from millpond.connector import Connector

__all__ = ["BlockingConnectionPool", "ConnectionPool", "SentinelConnectionPool"]


def _close_up(lender: Pool[Connection]) -> None:
    """Close now, and in this thread, what is to be closed: whoever asks for it may be gone before others come to it."""
    while lender._tend_one():
        pass


class _Lender(Pool[Connection]):
    """A pool that nobody has to close, for nobody has to close one of redis-py's."""

    _droppable = True
    replaced = False
    """Whether it was closed only to begin anew: whom it sends away stands in the line of the next."""


class _Pooled(redis.ConnectionPool):
    """What the pools here have in common: in front of redis-py's own class, it replaces how connections are kept."""

    timeout: float | None
    """Seconds that a caller waits for a connection; None is any time."""
    _fixed: ClassVar[Options] = {}
    """The settings of millpond's that make the pool what it is."""
    _lender: _Lender | None = None
    """Who keeps the connections: None until one is wanted, and after it was closed."""
    _closes = 0
    """How often it was closed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        self._settings = ours(options, self._fixed)
        super().__init__(*arguments, **options)
        _fork.renew(self)
        self._settings["max_size"] = self.max_connections
        Settings.of(self._settings)  # raises for what cannot work
        self._connector = Redis(maker(self), target=self._target())
        if self._settings.get("min_size"):
            self._hire()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.RLock()

    def _hire(self) -> _Lender:
        with self._lock:
            if self._lender is None:
                connector = cast("Connector[Connection]", self._connector)
                self._lender = _Lender(connector, **self._settings)
            return self._lender

    def _target(self) -> str:
        return target_of(self.connection_class, self.connection_kwargs)

    def _dismiss(self, *, replaced: bool = False) -> _Lender | None:
        """Send away those who wait; close what is idle, and what is lent when it comes back. The next caller hires."""
        with self._lock:
            lender, self._lender = self._lender, None
        if lender is not None:
            lender.replaced = replaced
            lender._close_down()
            _close_up(lender)
        return lender

    # What clients call.

    def get_connection(self, command_name: object = None, *keys: object, **options: object) -> Connection:
        """Lend a connection that is connected and clean, until `release`; the arguments are ignored.

        It waits as its pool does. Raises `redis.ConnectionError`, of which `MaxConnectionsError` is one, if it gets
        none, and what redis-py raises if it cannot connect: after as many attempts as the `retry` of the pool says.
        """
        try:
            return self._borrow()
        except ConnectFailed as failure:
            return self._persist(failure)

    def _borrow(self) -> Connection:
        timeout = self.timeout
        deadline = math.inf if timeout is None else monotonic() + timeout
        closes = self._closes
        while True:
            lender = self._lender or self._hire()
            try:
                return lender._lend(max(0.0, deadline - monotonic()))
            except ConnectFailed:
                raise
            except REFUSALS as refusal:
                if not lender.replaced or self._closes != closes:
                    raise translated(refusal) from refusal

    def _persist(self, failure: ConnectFailed) -> Connection:
        """Try again as often as redis-py would."""
        if isinstance(failure.__cause__, TypeError):
            # A mistake of the program's own: what is made is no connection, or knows none of the options.
            raise translated(failure) from failure
        failures = [failure]

        def attempt() -> Connection:
            try:
                if failures:
                    raise failures.pop()
                return self._borrow()
            except ConnectFailed as refusal:
                raise translated(refusal) from refusal

        retry = getattr(self.make_connection(), "retry", NEVER)
        return retry.call_with_retry(attempt, lambda error: None, passing(self._connector))

    def release(self, connection: ConnectionInterface) -> None:
        """Take a connection back; nothing happens if it is not on loan. It never waits."""
        known: Any = connection
        try:
            loan = known.loan
        except AttributeError:
            return
        if loan is None:
            return
        lender = loan._pool
        lender._take_back(connection)
        if lender is not self._lender:
            _close_up(lender)

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the idle connections, and disconnect those in use as well, unless told not to."""
        lender = self._lender
        if lender is None:
            return
        if inuse_connections:
            lender.refresh()
            for conn in which_are(State.LENT, lender):
                conn.disconnect()
        else:
            close_idle(lender)
        _close_up(lender)

    def close(self) -> None:
        """Close the pool and all its connections; callers in line get `redis.ConnectionError` at once.

        The pool can be used again.
        """
        self._closes += 1
        lender = self._dismiss()
        for conn in which_are(State.LENT, lender):
            conn.disconnect()

    def reset(self) -> None:
        """Forget all connections: the idle are closed now, those in use when they come back.

        Who waits goes on waiting, but perhaps no longer in the same order.
        """
        self._dismiss(replaced=True)

    def set_retry(self, retry: Retry) -> None:
        """Have all connections, and those that are yet to be made, retry like this."""
        self.connection_kwargs["retry"] = retry
        for conn in (*self._get_free_connections(), *self._get_in_use_connections()):
            conn.retry = retry

    def re_auth_callback(self, token: TokenInterface) -> None:
        """Have every connection authenticated with a new token before it is lent again; it never waits.

        The idle are taken out of use for that at once, the others when they have come back.
        """
        self._connector.token = token
        if self._lender is not None:
            doubt_all(self._lender)

    def owns_connection(self, connection: AbstractConnection) -> bool:
        """Tell whether a connection is on loan from this pool."""
        loan = getattr(connection, "loan", None)
        return loan is not None and loan._pool is self._lender

    # What redis-py's pools have besides.

    @property
    def pid(self) -> int:  # type: ignore[override]
        """The process that the pool serves: whichever asks, for a forked child has connections of its own."""
        return os.getpid()

    def make_connection(self) -> Connection:
        """Make a connection, not yet connected."""
        made: Connection = self.connection_class(**self.connection_kwargs)
        return made

    def get_connection_count(self) -> list[tuple[int, dict[str, Any]]]:
        """Return how many connections are idle, and how many in use, with the attributes of redis-py's metrics."""
        stats = self.stats()
        return counts(self, stats.idle, stats.lent)

    def update_maint_notifications_config(
        self,
        maint_notifications_config: MaintNotificationsConfig,
        oss_cluster_maint_notifications_handler: OSSMaintNotificationsHandler | None = None,
    ) -> None:
        """Raise `redis.RedisError` if maintenance notifications are demanded, else do without."""
        decline_maintenance(maint_notifications_config)

    def disconnect_free_connections(self, moving_address_src: str | None = None) -> None:
        """Close the idle connections."""
        self.disconnect(inuse_connections=False)

    def _get_free_connections(self) -> Any:  # noqa: ANN401
        return list(which_are(State.IDLE, self._lender))

    def _get_in_use_connections(self) -> set[Connection]:
        return set(which_are(State.LENT, self._lender))

    def _checkpid(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What millpond's pools have besides.

    def stats(self) -> Stats:
        """Look at the pool: what it has, and what it has counted since it was made or last closed."""
        return (self._lender or self._hire()).stats()

    def leases(self) -> tuple[LeaseRecord, ...]:
        """Tell who has which connection on loan, longest first."""
        return (self._lender or self._hire()).leases()


class ConnectionPool(_Pooled):
    """A `redis.ConnectionPool`: it raises `MaxConnectionsError` at once if `max_connections` (100) are in use.

    The arguments are those of `redis.ConnectionPool`, and as keywords the settings of `millpond.Settings`, except for
    `max_size` and `max_waiting`. A caller for whom a connection can be opened waits for that, or for one that comes
    back meanwhile, up to `timeout` seconds (default None: as long as the opening takes).

    It can be dropped without being closed. Where credentials are streamed, the client has to be given the
    `credential_provider`, too: it is the client that passes new tokens on.
    """

    _fixed: ClassVar[Options] = {"max_waiting": 0}

    def __init__(
        self,
        connection_class: Callable[..., AbstractConnection] = Connection,
        max_connections: int | None = None,
        cache_factory: CacheFactoryInterface | None = None,
        maint_notifications_config: MaintNotificationsConfig | None = None,
        *,
        timeout: float | None = None,
        **options: object,
    ) -> None:
        self.timeout: float | None = timeout
        super().__init__(
            connection_class,
            max_connections,
            cache_factory=cache_factory,
            maint_notifications_config=maint_notifications_config,
            **options,
        )


class BlockingConnectionPool(_Pooled, redis.BlockingConnectionPool):
    """A `redis.BlockingConnectionPool`: callers wait in order, up to `timeout` seconds (20; None is any time).

    The arguments are those of `redis.BlockingConnectionPool`, `max_connections` (50) among them, and as keywords the
    settings of `millpond.Settings`, except for `max_size`. `queue_class` says in which order idle connections are
    lent: `queue.LifoQueue`, the default, or `queue.Queue`. The `timeout` includes the opening of a connection.

    For the rest see `ConnectionPool`.
    """

    timeout: float | None

    def __init__(
        self,
        max_connections: int = 50,
        timeout: float | None = 20,
        connection_class: Callable[..., AbstractConnection] = Connection,
        queue_class: type[queue.Queue[Any]] = queue.LifoQueue,
        **options: object,
    ) -> None:
        options.setdefault("order", order_of(queue_class, queue))
        super().__init__(max_connections, timeout, connection_class, queue_class, **options)


class SentinelConnectionPool(_Pooled, redis.sentinel.SentinelConnectionPool):
    """A `redis.sentinel.SentinelConnectionPool`, for `Sentinel.master_for(..., connection_pool_class=...)`.

    The arguments are those of `redis.sentinel.SentinelConnectionPool`; for the rest see `ConnectionPool`.
    """

    _fixed: ClassVar[Options] = {"max_waiting": 0}

    def __init__(
        self,
        service_name: str,
        sentinel_manager: redis.sentinel.Sentinel,
        *,
        timeout: float | None = None,
        **options: object,
    ) -> None:
        self.timeout: float | None = timeout
        super().__init__(service_name, sentinel_manager, **options)

    def _target(self) -> str:
        return place("sentinel", host=self.service_name)

    def owns_connection(self, connection: AbstractConnection) -> bool:
        """Tell whether a connection is on loan from this pool, and leads to where the master is now."""
        known: Any = connection
        leads = not self.is_master or self.master_address == (known.host, known.port)
        return leads and super().owns_connection(connection)

    def release(self, connection: ConnectionInterface) -> None:
        """Take a connection back; it is closed if it leads to a former master, as are those that lie idle then."""
        known: Any = connection
        if self.is_master:
            forsake_demoted(self._lender, known)
        if not self.owns_connection(known):
            known.disconnect()
        super().release(connection)

    def reset(self) -> None:
        """Forget all connections, and which is the master."""
        super().reset()
        self.proxy.reset()
