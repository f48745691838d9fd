"""What redis-py's pools need of a pool of millpond's: the same for threads and for tasks."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final, TypeVar, cast

import redis
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.observability.attributes import (
    DB_CLIENT_CONNECTION_POOL_NAME,
    DB_CLIENT_CONNECTION_STATE,
    AttributeBuilder,
    ConnectionState,
    get_pool_name,
)
from redis.retry import Retry

from millpond._core.entry import Reason, State
from millpond._core.settings import Options
from millpond._shell import Shell
from millpond.connector import Inspector
from millpond.connectors.redis import decline_maintenance
from millpond.errors import ConnectFailed, PoolClosed, PoolError, PoolFull, PoolTimeout

__all__ = [
    "ASYNC_NEVER",
    "NEVER",
    "REFUSALS",
    "close_idle",
    "counts",
    "doubt_all",
    "forsake_demoted",
    "maker",
    "order_of",
    "ours",
    "passing",
    "translated",
    "which_are",
]

C = TypeVar("C")

NEVER: Final = Retry(NoBackoff(), 0)
ASYNC_NEVER: Final = AsyncRetry(NoBackoff(), 0)
"""How often a connection is tried again that does not say."""
REFUSALS: Final = (ConnectFailed, PoolClosed, PoolFull, PoolTimeout)
"""What a caller may get instead of a connection."""


def translated(refusal: PoolError) -> Exception:
    """Return what redis-py raises in such a case. What millpond has to say about it is to be its cause."""
    if isinstance(refusal, PoolFull):
        return exceptions.MaxConnectionsError("Too many connections")
    if isinstance(refusal, PoolTimeout):
        return redis.ConnectionError("No connection available.")
    if isinstance(refusal, PoolClosed):
        return redis.ConnectionError("The pool was closed.")
    cause = refusal.__cause__
    if cause is None or isinstance(cause, TimeoutError):
        return redis.TimeoutError("Timeout connecting to server")
    try:
        # Each caller gets an error of its own, with a traceback of its own.
        return cast("Exception", copy.copy(cause))
    except Exception:
        return redis.ConnectionError(str(cause))


def passing(connector: Inspector[C]) -> Callable[[Exception], bool]:
    """Return what tells whether to try again after an error: if it could not connect, and was not refused."""
    return lambda error: isinstance(error.__cause__, ConnectFailed) and not connector.refused(error)


def ours(options: dict[str, Any], fixed: Options) -> Options:
    """Take out of a pool's options what is for millpond; refuse or decline what does not go with it."""
    for name in ("cache", "cache_config", "cache_factory"):
        if options.get(name) is not None:
            raise redis.RedisError(
                f"millpond does not support {name}: to learn what is out of date, redis-py's client-side cache reads "
                "from connections that others have borrowed, and takes their replies. Use redis-py's own pool"
            )
    options["maint_notifications_config"] = decline_maintenance(options.get("maint_notifications_config"))
    names = Options.__annotations__.keys() - {"max_size", "timeout", *fixed}
    taken = {name: options.pop(name) for name in list(options) if name in names}
    return cast("Options", {"name": "redis", **taken, **fixed})


def order_of(queue_class: type, queues: ModuleType) -> str:
    """Return the order that a class of queues stands for."""
    if queue_class is queues.LifoQueue:
        return "lifo"
    if queue_class is queues.Queue:
        return "fifo"
    raise TypeError(f"queue_class={queue_class!r} must be {queues.__name__}.LifoQueue or {queues.__name__}.Queue")


def maker(pool: object) -> Callable[[], Any]:
    """Return what makes a connection as the pool says at that time, and does not keep the pool alive."""
    ref = weakref.ref(pool)

    def make() -> object:
        living: Any = ref()
        if living is None:
            raise redis.ConnectionError("The pool is gone.")
        return living.make_connection()

    return make


def which_are(state: State, lender: Shell[C] | None) -> Iterator[C]:
    """Yield the connections that are in that state: idle, or lent."""
    if lender is None:
        return
    core = lender._core

    def look(now: float) -> list[Any]:
        return [entry.conn for entry in core.entries if entry.state is state]

    for conn in lender._step(look):
        try:
            # What is lent owns its loan, and the pool refers to it weakly.
            yield conn.disconnect.__self__
        except ReferenceError:
            pass  # its borrower has just dropped it


def close_idle(lender: Shell[C], which: Callable[[C], bool] = lambda conn: True) -> None:
    """Close what is idle, or some of it, and let be what is lent."""
    core = lender._core

    def close(now: float) -> None:
        for entry in core.entries:
            if entry.state is State.IDLE and which(entry.conn):
                core.condemn(entry, Reason.REFRESHED, now)
        core.sweep(now)

    lender._step(close)


def forsake_demoted(lender: Shell[C] | None, conn: Any) -> None:  # noqa: ANN401
    """If a connection to a master was told that this is none any more, close the idle ones that lead to the same place.

    redis-py, too, drops all that are idle when it learns of another master.
    """
    if lender is not None and getattr(conn, "demoted", False):
        former = _address_of(conn)
        close_idle(lender, lambda other: _address_of(other) == former)


def _address_of(conn: object) -> tuple[object, object]:
    return getattr(conn, "host", None), getattr(conn, "port", None)


def doubt_all(lender: Shell[C]) -> None:
    """Have every connection pinged before it is lent again: the idle now, the others when they have come back."""
    core = lender._core

    def doubt(now: float) -> None:
        for entry in core.entries:
            core._doubt(entry)
        core.sweep(now)

    lender._step(doubt)


def counts(pool: Any, idle: int, used: int) -> list[tuple[int, dict[str, Any]]]:  # noqa: ANN401
    """Return how many connections a pool has, with redis-py's attributes for its metrics."""
    attributes: Mapping[str, Any] = AttributeBuilder.build_base_attributes()
    named = {**attributes, DB_CLIENT_CONNECTION_POOL_NAME: get_pool_name(pool)}
    return [
        (idle, {**named, DB_CLIENT_CONNECTION_STATE: ConnectionState.IDLE.value}),
        (used, {**named, DB_CLIENT_CONNECTION_STATE: ConnectionState.USED.value}),
    ]
