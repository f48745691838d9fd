"""One pool for every connection a Python program opens.

    with millpond.Pool.from_url("postgresql://app@db/app", max_size=20) as pool:
        with pool.connection() as conn:
            conn.execute("select 1")
"""

from __future__ import annotations

from millpond._core.settings import Settings
from millpond._core.stats import Stats
from millpond.connector import AsyncConnector, Condition, Connector
from millpond.errors import ConnectFailed, Misuse, PoolClosed, PoolError, PoolFull, PoolTimeout
from millpond.pool import Pool, ThreadLease
from millpond.records import LeaseRecord

__version__ = "0.1.0"

__all__ = [
    "AsyncConnector",
    "Condition",
    "ConnectFailed",
    "Connector",
    "LeaseRecord",
    "Misuse",
    "Pool",
    "PoolClosed",
    "PoolError",
    "PoolFull",
    "PoolTimeout",
    "Settings",
    "Stats",
    "ThreadLease",
]
