"""Callers who all come at once: how many connections does that open? (HikariCP's own test of elision.)"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator

import anyio

from benchmarks.figure import Figure
from millpond import AsyncPool, Pool
from millpond.testing import AsyncFakeConnector, FakeConnector

__all__ = ["measure", "opened_by_tasks", "opened_by_threads"]

CALLERS = 50
OPEN_TIME = 0.15
WORK = 0.002
GOAL = 6


def opened_by_threads() -> tuple[int, int]:
    """Return how many callers were served, and how many connections were opened for them."""
    connector = FakeConnector(open_time=OPEN_TIME)
    served: list[bool] = []
    with Pool(connector, max_size=CALLERS) as pool:
        gate = threading.Barrier(CALLERS)

        def call() -> None:
            gate.wait()
            with pool.connection():
                time.sleep(WORK)
            served.append(True)

        threads = [threading.Thread(target=call) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # What was being opened for somebody who was served meanwhile counts too.
        connector.wait_until(lambda: not connector.opening)
    return len(served), len(connector.opened)


def opened_by_tasks(backend: str) -> tuple[int, int]:
    """Return the same for tasks."""
    served: list[bool] = []

    async def main() -> int:
        connector = AsyncFakeConnector(open_time=OPEN_TIME)
        async with AsyncPool(connector, max_size=CALLERS) as pool:

            async def call() -> None:
                async with pool.connection():
                    await anyio.sleep(WORK)
                served.append(True)

            async with anyio.create_task_group() as group:
                for _ in range(CALLERS):
                    group.start_soon(call)
            await connector.wait_until(lambda: not connector.opening)
        return len(connector.opened)

    opened = anyio.run(main, backend=backend)
    return len(served), opened


def measure() -> Iterator[Figure]:
    """Yield the median of five bursts, each on a new pool."""
    for shell, burst in (
        ("threads", opened_by_threads),
        ("asyncio", lambda: opened_by_tasks("asyncio")),
        ("trio", lambda: opened_by_tasks("trio")),
    ):
        bursts = [burst() for _ in range(5)]
        yield Figure("50 callers at once, served", shell, min(served for served, _ in bursts), "", CALLERS, ">=", 0)
        opened = statistics.median(opened for _, opened in bursts)
        yield Figure("50 callers at once, connections opened", shell, opened, "", GOAL, "<=", 0)
