"""One pool for every connection a Python program opens.

with millpond.Pool.from_url("postgresql://app@db/app", max_size=20) as pool:
    with pool.connection() as conn:
        conn.execute("select 1")
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from millpond import _fork
from millpond._core.settings import Settings
from millpond._core.stats import Stats
from millpond.budget import Budget
from millpond.connector import AsyncConnector, Condition, Connector
from millpond.errors import ConnectFailed, Misuse, PoolClosed, PoolError, PoolFull, PoolTimeout
from millpond.keyed import KeyedPool
from millpond.pool import Pool, ThreadLease
from millpond.records import LeaseRecord

if TYPE_CHECKING:
    from millpond._expose import expose
    from millpond.aio import AsyncPool, TaskLease
    from millpond.aio_keyed import AsyncKeyedPool
    from millpond.fleet_budget import FleetBudget
    from millpond.host_budget import HostBudget

__version__ = "0.1.0"

__all__ = [
    "AsyncConnector",
    "AsyncKeyedPool",
    "AsyncPool",
    "Budget",
    "Condition",
    "ConnectFailed",
    "Connector",
    "FleetBudget",
    "HostBudget",
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
    "expose",
]

if not TYPE_CHECKING:
    # What needs more than Python is left out of `import *` where that is not installed.
    for _module, _names in {
        "anyio": ("AsyncKeyedPool", "AsyncPool", "TaskLease"),
        "fcntl": ("HostBudget",),
        "redis": ("FleetBudget",),
    }.items():
        if find_spec(_module) is None:
            __all__ = [_name for _name in __all__ if _name not in _names]


def __getattr__(name: str) -> object:
    # The async shell needs anyio, and is imported when it is first asked for: threads need nothing but Python.
    if name in ("AsyncKeyedPool", "AsyncPool", "TaskLease"):
        from millpond import aio, aio_keyed

        return getattr(aio_keyed if name == "AsyncKeyedPool" else aio, name)
    if name == "HostBudget":
        # Where there is no `fcntl` (Windows), there is no such budget.
        from millpond.host_budget import HostBudget

        return HostBudget
    if name == "FleetBudget":
        # It needs redis-py.
        from millpond.fleet_budget import FleetBudget

        return FleetBudget
    if name == "expose":
        # What it takes to be looked at, only those load who want it.
        from millpond._expose import expose

        return expose
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _heed_environment() -> None:
    if os.environ.get("MILLPOND_EXPOSE") == "1":
        from millpond._expose import expose_as_told

        expose_as_told()


_fork.at_first_pool(_heed_environment)
