"""Many workers and few connections to Redis: the longest wait with millpond's blocking pool, and with redis-py's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis
import redis.asyncio

import millpond.redis
import millpond.redis.asyncio
from benchmarks.fairness import CONNECTIONS, WAIT_GOAL, WORK, WORKERS, Turns
from benchmarks.figure import Figure
from millpond.testing import Valkey

__all__ = ["measure", "turns_of_tasks", "turns_of_threads"]

SECONDS = 3.0


def turns_of_threads(make: Callable[..., Any], seconds: float = SECONDS) -> Turns:
    """Let threads take turns."""
    waits: list[list[float]] = [[] for _ in range(WORKERS)]
    with Valkey() as server:
        pool = make(host=server.host, port=server.port, max_connections=CONNECTIONS)
        conns = [pool.get_connection() for _ in range(CONNECTIONS)]
        for conn in conns:
            pool.release(conn)
        gate = threading.Barrier(WORKERS + 1)
        end = time.monotonic() + 3600

        def take_turns(mine: list[float]) -> None:
            gate.wait()
            while (came := time.monotonic()) < end:
                conn = pool.get_connection()
                served = time.monotonic()
                time.sleep(WORK)
                pool.release(conn)
                mine.append(served - came)

        threads = [threading.Thread(target=take_turns, args=(mine,)) for mine in waits]
        for thread in threads:
            thread.start()
        gate.wait()
        end = time.monotonic() + seconds
        for thread in threads:
            thread.join()
        pool.close()
    return Turns(waits)


def turns_of_tasks(make: Callable[..., Any], seconds: float = SECONDS) -> Turns:
    """Let tasks take turns."""
    waits: list[list[float]] = [[] for _ in range(WORKERS)]

    async def main(host: str, port: int) -> None:
        pool = make(host=host, port=port, max_connections=CONNECTIONS)
        conns = [await pool.get_connection() for _ in range(CONNECTIONS)]
        for conn in conns:
            await pool.release(conn)
        end = time.monotonic() + seconds

        async def take_turns(mine: list[float]) -> None:
            while (came := time.monotonic()) < end:
                conn = await pool.get_connection()
                served = time.monotonic()
                await asyncio.sleep(WORK)
                await pool.release(conn)
                mine.append(served - came)

        await asyncio.gather(*(take_turns(mine) for mine in waits))
        await pool.aclose()

    with Valkey() as server:
        asyncio.run(main(server.host, server.port))
    return Turns(waits)


def measure() -> Iterator[Figure]:
    """Yield the longest wait for threads and for tasks, beside that with redis-py's own pools."""
    for world, turns, ours, theirs in (
        ("threads", turns_of_threads, millpond.redis.BlockingConnectionPool, redis.BlockingConnectionPool),
        (
            "asyncio",
            turns_of_tasks,
            millpond.redis.asyncio.BlockingConnectionPool,
            redis.asyncio.BlockingConnectionPool,
        ),
    ):
        case = f"redis {world}; redis-py's own pool {turns(theirs).longest:.1f}"
        measure = f"{WORKERS} workers, {CONNECTIONS} connections: longest wait / fair wait"
        yield Figure(measure, case, turns(ours).longest, "", WAIT_GOAL)
