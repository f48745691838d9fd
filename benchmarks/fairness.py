"""Many workers and few connections: does everybody have the same turns, and how long does the unluckiest wait?"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import anyio

from benchmarks.figure import Figure
from millpond import AsyncPool, Pool
from millpond.testing import AsyncFakeConnector, FakeConnector

__all__ = ["Turns", "jain", "measure", "turns_of_tasks", "turns_of_threads"]

WORKERS = 100
CONNECTIONS = 10
WORK = 0.020
SECONDS = 5.0
WAIT_GOAL = 1.3
JAIN_GOAL = 0.99


def jain(counts: Sequence[int]) -> float:
    """Return Jain's index of counts: 1 if all are equal."""
    return sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))


class Turns(NamedTuple):
    """What came of it."""

    waits: list[list[float]]
    """How long each worker waited, each time."""

    @property
    def longest(self) -> float:
        """The longest wait, in fair waits: what it takes if each of the others in line has one turn first."""
        fair = (WORKERS / CONNECTIONS - 1) * WORK
        return max(max(waits) for waits in self.waits) / fair

    @property
    def jain(self) -> float:
        """Jain's index of the numbers of turns."""
        return jain([len(waits) for waits in self.waits])


def turns_of_threads(seconds: float = SECONDS) -> Turns:
    """Let threads take turns."""
    waits: list[list[float]] = [[] for _ in range(WORKERS)]
    with Pool(FakeConnector(), min_size=CONNECTIONS, max_size=CONNECTIONS, max_opening=CONNECTIONS) as pool:
        pool.warm()
        gate = threading.Barrier(WORKERS + 1)
        end = time.monotonic() + 3600

        def take_turns(mine: list[float]) -> None:
            gate.wait()
            while (came := time.monotonic()) < end:
                with pool.connection():
                    served = time.monotonic()
                    time.sleep(WORK)
                mine.append(served - came)

        threads = [threading.Thread(target=take_turns, args=(mine,)) for mine in waits]
        for thread in threads:
            thread.start()
        gate.wait()
        end = time.monotonic() + seconds
        for thread in threads:
            thread.join()
    return Turns(waits)


def turns_of_tasks(backend: str, seconds: float = SECONDS) -> Turns:
    """Let tasks take turns."""
    waits: list[list[float]] = [[] for _ in range(WORKERS)]

    async def main() -> None:
        async with AsyncPool(
            AsyncFakeConnector(), min_size=CONNECTIONS, max_size=CONNECTIONS, max_opening=CONNECTIONS
        ) as pool:
            await pool.warm()
            end = time.monotonic() + seconds

            async def take_turns(mine: list[float]) -> None:
                while (came := time.monotonic()) < end:
                    async with pool.connection():
                        served = time.monotonic()
                        await anyio.sleep(WORK)
                        mine.append(served - came)

            async with anyio.create_task_group() as group:
                for mine in waits:
                    group.start_soon(take_turns, mine)

    anyio.run(main, backend=backend)
    return Turns(waits)


def measure() -> Iterator[Figure]:
    """Yield both figures for each shell."""
    for shell, turns in (
        ("threads", turns_of_threads()),
        ("asyncio", turns_of_tasks("asyncio")),
        ("trio", turns_of_tasks("trio")),
    ):
        yield Figure("100 workers, 10 connections: longest wait / fair wait", shell, turns.longest, "", WAIT_GOAL)
        yield Figure("100 workers, 10 connections: Jain's index of turns", shell, turns.jain, "", JAIN_GOAL, ">=", 4)
