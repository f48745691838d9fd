"""What a GET costs through redis-py's client: on its own pool, on millpond's, and on one connection without any pool.

Many short rounds, one after the other in turn, and the quickest of each: on a shared machine the rest is noise.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import redis
import redis.asyncio

import millpond.redis
import millpond.redis.asyncio
from benchmarks.figure import Figure
from millpond.testing import Valkey

__all__ = ["Costs", "costs_of_tasks", "costs_of_threads", "measure"]

LOOPS = 100
ROUNDS = 200
OVERHEAD_GOAL = 1.05
GAIN_GOAL = 1.25
ASYNC_GAIN_GOAL = 1.1


class Costs(NamedTuple):
    """Seconds of one GET."""

    theirs: float
    ours: float
    bare: float
    """On a connection of the client's own: the limit."""


def costs_of_threads(rounds: int = ROUNDS) -> Costs:
    """Measure for threads."""
    with Valkey() as server:
        place: dict[str, Any] = {"host": server.host, "port": server.port}
        clients = [
            redis.Redis(**place),
            redis.Redis(connection_pool=millpond.redis.ConnectionPool(**place)),
            redis.Redis(**place, single_connection_client=True),
        ]
        best = [float("inf")] * len(clients)
        for _ in range(rounds):
            for number, client in enumerate(clients):
                get = client.get
                began = time.perf_counter()
                for _ in range(LOOPS):
                    get("key")
                best[number] = min(best[number], (time.perf_counter() - began) / LOOPS)
        for client in clients:
            client.close()
    return Costs(*best)


def costs_of_tasks(rounds: int = ROUNDS) -> Costs:
    """Measure for tasks."""

    async def main() -> list[float]:
        pool = millpond.redis.asyncio.ConnectionPool(**place)
        clients = [
            redis.asyncio.Redis(**place),
            redis.asyncio.Redis(connection_pool=pool),
            redis.asyncio.Redis(**place, single_connection_client=True),
        ]
        best = [float("inf")] * len(clients)
        for _ in range(rounds):
            for number, client in enumerate(clients):
                get = client.get
                began = time.perf_counter()
                for _ in range(LOOPS):
                    await get("key")
                best[number] = min(best[number], (time.perf_counter() - began) / LOOPS)
        for client in clients:
            await client.aclose()
        await pool.aclose()
        return best

    with Valkey() as server:
        place: dict[str, Any] = {"host": server.host, "port": server.port}
        return Costs(*asyncio.run(main()))


def measure() -> Iterator[Figure]:
    """Yield how far the limit is, and what is gained, for threads and for tasks."""
    for world, costs, gain in (
        ("threads", costs_of_threads(), GAIN_GOAL),
        ("asyncio", costs_of_tasks(), ASYNC_GAIN_GOAL),
    ):
        case = f"{world} ({costs.ours * 1e6:.1f} us; own pool {costs.theirs * 1e6:.1f}, no pool {costs.bare * 1e6:.1f})"
        yield Figure("GET, time / that of single_connection_client", case, costs.ours / costs.bare, " x", OVERHEAD_GOAL)
        yield Figure("GET, throughput / that of redis-py's pool", case, costs.theirs / costs.ours, " x", gain, ">=")
