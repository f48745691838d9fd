"""Pools for threads, one for each key: for each host, shard or tenant."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Generic, Self, Unpack

from millpond._core.settings import Options, expect_seconds
from millpond._keyed import Keyed, named
from millpond._lent import C, K
from millpond.connector import Connector
from millpond.pool import Pool, ThreadLease

__all__ = ["KeyedPool"]


class KeyedPool(Keyed[K, Pool[C]], Generic[K, C]):
    """Pools for many targets, each with its own limit, and a total over all.

    `source` takes a key and returns what a `Pool` takes: a connector, or a callable that returns a new connection. The
    settings are those of each pool; `total` is how many connections there may be in all (a `Budget` of its own; give
    `budget=` instead to share one with other pools). A pool is made when its key is first asked for, and vanishes when
    it has no connection and no caller any more; `max_idle` says when that is.

    `pools[key]` is the `Pool` of a key, and has all that a pool has. Raises as `Pool` and `Budget` do.
    """

    def __init__(
        self,
        source: Callable[[K], Connector[C] | Callable[[], C]],
        *,
        total: int | None = None,
        **settings: Unpack[Options],
    ) -> None:
        def make(key: K, options: Options) -> Pool[C]:
            found = source(key)
            return Pool(found, **named(options, key, found))

        super().__init__(make, total, settings)

    def connection(self, key: K, timeout: float | None = None) -> ThreadLease[C]:
        """Lend a connection to a key's target to a `with` block, as `Pool.connection` does."""
        return self[key].connection(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pools of all keys, as `Pool.close` does, within `timeout` seconds in all."""
        expect_seconds(timeout)
        deadline = monotonic() + timeout
        pools = self._end()
        # All callers in line learn of it before the first loan is waited for.
        for pool in pools:
            pool._close_down()
        for pool in pools:
            pool.close(max(0.0, deadline - monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
