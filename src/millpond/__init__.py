"""One pool for every connection a Python program opens.

with millpond.Pool.from_url("postgresql://app@db/app", max_size=20) as pool:
    with pool.connection() as conn:
        conn.execute("select 1")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from millpond._core.settings import Settings
from millpond._core.stats import Stats
from millpond.budget import Budget
from millpond.connector import AsyncConnector, Condition, Connector
from millpond.errors import ConnectFailed, Misuse, PoolClosed, PoolError, PoolFull, PoolTimeout
from millpond.keyed import KeyedPool
from millpond.pool import Pool, ThreadLease
from millpond.records import LeaseRecord

if TYPE_CHECKING:
    from millpond.aio import AsyncPool, TaskLease
    from millpond.aio_keyed import AsyncKeyedPool

__version__ = "0.1.0"

__all__ = [
    "AsyncConnector",
    "AsyncKeyedPool",
    "AsyncPool",
    "Budget",
    "Condition",
    "ConnectFailed",
    "Connector",
    "KeyedPool",
    "LeaseRecord",
    "Misuse",
    "Pool",
    "PoolClosed",
    "PoolError",
    "PoolFull",
    "PoolTimeout",
    "Settings",
    "Stats",
    "TaskLease",
    "ThreadLease",
]


def __getattr__(name: str) -> object:
    # The async shell needs anyio, and is imported when it is first asked for: threads need nothing but Python.
    if name in ("AsyncKeyedPool", "AsyncPool", "TaskLease"):
        try:
            from millpond import aio, aio_keyed
        except ImportError as error:
            raise ImportError(
                f'millpond.{name} needs anyio, which is not installed: pip install "millpond[async]"', name=error.name
            ) from error
        return getattr(aio_keyed if name == "AsyncKeyedPool" else aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
