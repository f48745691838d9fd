"""Does a loan cost more when there are thousands of connections and a hundred thousand callers in line?

Every connection is always lent and the line is always as long as it was: whoever is served gives back at the loop's
next turn and goes to the end of the line. The two sizes take turns, in rounds that begin with everybody in line, and
the quickest round of each counts. The collector is off, since its work grows with the objects of the program, whoever's
they are.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator

from benchmarks.figure import Figure
from millpond import AsyncPool
from millpond.testing import AsyncFakeConnector, FakeConnection

__all__ = ["cost", "measure"]

LOANS = 20_000
ROUNDS = 12
GOAL = 1.2


class _Crowd:
    """Callers in line for the connections of a pool."""

    def __init__(self, connections: int, waiting: int) -> None:
        self._size = connections
        self._callers = connections + waiting
        self._pool = AsyncPool[FakeConnection](
            AsyncFakeConnector(), max_size=connections, max_opening=connections, timeout=3600
        )
        self._left = 0
        self._done = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def _call(self) -> None:
        pool = self._pool
        while True:
            async with pool.connection():
                await asyncio.sleep(0)
                self._left -= 1
                if self._left <= 0:
                    self._done.set()
                    await self._go_on.wait()

    async def gather(self) -> None:
        """Have everybody come, and the first turns be over."""
        self._go_on = asyncio.Event()
        self._tasks = [asyncio.create_task(self._call()) for _ in range(self._callers)]
        # Nobody is served until all the connections are open, and then everybody goes round once.
        await self._turns(2 * self._size)

    async def _turns(self, loans: int) -> float:
        self._left = loans
        self._done.clear()
        start = time.perf_counter()
        self._go_on.set()
        self._go_on = asyncio.Event()
        await self._done.wait()
        return (time.perf_counter() - start) / loans

    async def round(self) -> float:
        """Return the seconds of one loan, over many."""
        return await self._turns(LOANS)

    async def part(self) -> None:
        """Send everybody home."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._pool.close()


async def cost(rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the seconds of a loan among 10 connections and 10 who wait, and among 10,000 and 100,000."""
    few, many = _Crowd(10, 10), _Crowd(10_000, 100_000)
    await few.gather()
    await many.gather()
    gc.collect()
    gc.disable()
    try:
        costs = [(await few.round(), await many.round()) for _ in range(rounds)]
    finally:
        gc.enable()
    await few.part()
    await many.part()
    return min(small for small, _ in costs), min(large for _, large in costs)


def measure() -> Iterator[Figure]:
    """Yield the ratio."""
    small, large = asyncio.run(cost())
    case = f"10,000 connections, 100,000 waiting ({large * 1e6:.2f} us) / 10 and 10 ({small * 1e6:.2f} us)"
    yield Figure("borrow and return in a crowd", case, large / small, " x", GOAL)
