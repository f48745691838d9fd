"""Connection pools for `redis.asyncio`: `Redis(connection_pool=millpond.redis.asyncio.ConnectionPool(...))`.

What `millpond.redis` has for threads. A pool belongs to the event loop that first uses it; when that has ended, it can
be used in another.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import redis.asyncio.sentinel
from redis.asyncio.connection import AbstractConnection, Connection

from millpond import AsyncPool
from millpond._core.entry import State
from millpond._core.settings import Options, Settings
from millpond._core.stats import Stats
from millpond.connectors.redis import AsyncRedis, decline_maintenance, target_of
from millpond.connectors.urls import place
from millpond.errors import ConnectFailed, Misuse
from millpond.records import LeaseRecord
from millpond.redis._lending import (
    ASYNC_NEVER,
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
    from redis.asyncio.retry import Retry
    from redis.auth.token import TokenInterface
    from redis.maint_notifications import MaintNotificationsConfig


__all__ = ["BlockingConnectionPool", "ConnectionPool", "SentinelConnectionPool"]

FAREWELL: Final = 1.0
"""Seconds that `aclose` waits at most for idle connections to be closed."""
MAINTAINED: Final = "maint_notifications_config" in inspect.signature(redis.asyncio.ConnectionPool).parameters
"""Whether this redis-py has maintenance notifications for tasks; 8.0 has none."""


class _Lender(AsyncPool[AbstractConnection]):
    """A pool that may be closed only to begin anew."""

    replaced = False
    """Whether it was: whom it sends away stands in the line of the next."""


class _Pooled(redis.asyncio.ConnectionPool):
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
        if not MAINTAINED:
            del options["maint_notifications_config"]
        super().__init__(*arguments, **options)
        self._settings["max_size"] = self.max_connections
        Settings.of(self._settings)  # raises for what cannot work
        self._connector = AsyncRedis(maker(self), target=self._target())

    def _hire(self) -> _Lender:
        if self._lender is None:
            self._lender = _Lender(self._connector, **self._settings)
        return self._lender

    def _target(self) -> str:
        return target_of(self.connection_class, self.connection_kwargs)

    def _dismiss(self, *, replaced: bool = False) -> _Lender | None:
        """Send away those who wait; close what is idle, and what is lent when it comes back. The next caller hires."""
        lender, self._lender = self._lender, None
        if lender is not None:
            lender.replaced = replaced
            lender._close_down()
        return lender

    # What clients call.

    async def get_connection(self, command_name: object = None, *keys: object, **options: object) -> AbstractConnection:
        """Lend a connection that is connected and clean, until `release`; the arguments are ignored.

        It waits as its pool does, and can be cancelled. Raises `redis.ConnectionError`, of which `MaxConnectionsError`
        is one, if it gets none, and what redis-py raises if it cannot connect: after as many attempts as the `retry` of
        the pool says.
        """
        try:
            return await self._borrow()
        except ConnectFailed as failure:
            return await self._persist(failure)

    async def _borrow(self) -> AbstractConnection:
        timeout = self.timeout
        deadline = math.inf if timeout is None else monotonic() + timeout
        closes = self._closes
        while True:
            lender = self._lender or self._hire()
            try:
                return await lender._lend(max(0.0, deadline - monotonic()))
            except ConnectFailed:
                raise
            except REFUSALS as refusal:
                if not lender.replaced or self._closes != closes:
                    raise translated(refusal) from refusal
            except Misuse:
                if lender._backend is None or not lender._backend.ended():
                    raise
                # The loop that it belongs to has ended, and with it what it lent.
                self._dismiss()
                lender._bury()

    async def _persist(self, failure: ConnectFailed) -> AbstractConnection:
        """Try again as often as redis-py would."""
        if isinstance(failure.__cause__, TypeError):
            # A mistake of the program's own: what is made is no connection, or knows none of the options.
            raise translated(failure) from failure
        failures = [failure]

        async def attempt() -> AbstractConnection:
            try:
                if failures:
                    raise failures.pop()
                return await self._borrow()
            except ConnectFailed as refusal:
                raise translated(refusal) from refusal

        retry = getattr(self.make_connection(), "retry", ASYNC_NEVER)
        return await retry.call_with_retry(attempt, lambda error: asyncio.sleep(0), passing(self._connector))

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back; nothing happens if it is not on loan. It never waits, and cannot be cancelled."""
        loan = getattr(connection, "loan", None)
        if loan is not None:
            loan._pool._take_back(connection)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the idle connections, and disconnect those in use as well, unless told not to."""
        lender = self._lender
        if lender is None:
            return
        if not inuse_connections:
            close_idle(lender)
            return
        lender.refresh()
        await asyncio.gather(*(conn.disconnect() for conn in which_are(State.LENT, lender)))

    async def aclose(self) -> None:
        """Close the pool and all its connections; callers in line get `redis.ConnectionError` at once.

        It waits until the idle ones are closed, and not for those in use. The pool can be used again.
        """
        self._closes += 1
        lender = self._dismiss()
        used = list(which_are(State.LENT, lender))
        await asyncio.gather(*(conn.disconnect() for conn in used))
        if lender is not None and not used:
            await lender.close(FAREWELL)

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

    async def re_auth_callback(self, token: TokenInterface) -> None:
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

    def make_connection(self) -> AbstractConnection:
        """Make a connection, not yet connected."""
        return self.connection_class(**self.connection_kwargs)

    def can_get_connection(self) -> bool:
        """Tell whether a connection is idle, or can be opened."""
        stats = self.stats()
        return stats.idle > 0 or stats.size < stats.max_size

    def get_connection_count(self) -> list[tuple[int, dict[str, Any]]]:
        """Return how many connections are idle, and how many in use, with the attributes of redis-py's metrics."""
        stats = self.stats()
        return counts(self, stats.idle, stats.lent)

    async def update_maint_notifications_config(
        self,
        maint_notifications_config: MaintNotificationsConfig,
        oss_cluster_maint_notifications_handler: object = None,
    ) -> None:
        """Raise `redis.RedisError` if maintenance notifications are demanded, else do without."""
        decline_maintenance(maint_notifications_config)

    async def update_active_connections_for_reconnect(self) -> None:
        """Have the connections in use closed when they come back."""
        for conn in self._get_in_use_connections():
            conn.mark_for_reconnect()

    def _get_free_connections(self) -> list[AbstractConnection]:
        return list(which_are(State.IDLE, self._lender))

    def _get_in_use_connections(self) -> list[AbstractConnection]:
        return list(which_are(State.LENT, self._lender))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # What millpond's pools have besides.

    def stats(self) -> Stats:
        """Look at the pool: what it has, and what it has counted since it was made or last closed."""
        return (self._lender or self._hire()).stats()

    def leases(self) -> tuple[LeaseRecord, ...]:
        """Tell who has which connection on loan, longest first."""
        return (self._lender or self._hire()).leases()


class ConnectionPool(_Pooled):
    """A `redis.asyncio.ConnectionPool`: it raises `MaxConnectionsError` at once if `max_connections` (100) are in use.

    The arguments are those of `redis.asyncio.ConnectionPool`, and as keywords the settings of `millpond.Settings`,
    except for `max_size` and `max_waiting`. A caller for whom a connection can be opened waits for that, or for one
    that comes back meanwhile, up to `timeout` seconds (default None: as long as the opening takes).

    Where credentials are streamed, the client has to be given the `credential_provider`, too: it is the client that
    passes new tokens on.
    """

    _fixed: ClassVar[Options] = {"max_waiting": 0}

    def __init__(
        self,
        connection_class: Callable[..., AbstractConnection] = Connection,
        max_connections: int | None = None,
        maint_notifications_config: MaintNotificationsConfig | None = None,
        *,
        timeout: float | None = None,
        **options: object,
    ) -> None:
        self.timeout: float | None = timeout
        super().__init__(
            connection_class, max_connections, maint_notifications_config=maint_notifications_config, **options
        )


class BlockingConnectionPool(_Pooled, redis.asyncio.BlockingConnectionPool):
    """A `redis.asyncio.BlockingConnectionPool`: callers wait in order, up to `timeout` seconds (20; None is any time).

    The arguments are those of `redis.asyncio.BlockingConnectionPool`, `max_connections` (50) among them, and as
    keywords the settings of `millpond.Settings`, except for `max_size`. `queue_class` says in which order idle
    connections are lent: `asyncio.LifoQueue`, the default, or `asyncio.Queue`. The `timeout` includes the opening of a
    connection.

    For the rest see `ConnectionPool`.
    """

    timeout: float | None

    def __init__(
        self,
        max_connections: int = 50,
        timeout: float | None = 20,
        connection_class: Callable[..., AbstractConnection] = Connection,
        queue_class: type[asyncio.Queue[Any]] = asyncio.LifoQueue,
        **options: object,
    ) -> None:
        options.setdefault("order", order_of(queue_class, asyncio))
        super().__init__(max_connections, timeout, connection_class, queue_class, **options)


class SentinelConnectionPool(_Pooled, redis.asyncio.sentinel.SentinelConnectionPool):
    """A `redis.asyncio.sentinel.SentinelConnectionPool`, for `Sentinel.master_for(..., connection_pool_class=...)`.

    The arguments are those of `redis.asyncio.sentinel.SentinelConnectionPool`; for the rest see `ConnectionPool`.
    """

    _fixed: ClassVar[Options] = {"max_waiting": 0}

    def __init__(
        self,
        service_name: str,
        sentinel_manager: redis.asyncio.sentinel.Sentinel,
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

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back; it is closed if it leads to a former master, as are those that lie idle then."""
        if self.is_master:
            forsake_demoted(self._lender, connection)
        if not self.owns_connection(connection):
            connection.mark_for_reconnect()
        await super().release(connection)

    def reset(self) -> None:
        """Forget all connections, and which is the master."""
        super().reset()
        self.master_address: tuple[str, int] | None = None
        self.slave_rr_counter: int | None = None
