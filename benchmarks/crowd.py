"""Does a loan cost more when there are thousands of connections and a hundred thousand callers in line?

All connections are lent and the line is as long as it was: whoever is served goes to sleep, and wakes the one that has
held its connection for longest; that one gives it back and goes to the end of the line. So the connections change
hands one after another, and all of them and all callers have their turn.

A hundred thousand suspended tasks are 200 MB that no cache holds, so asyncio itself takes longer to wake one of them
than one of ten, whatever they wait for. What that comes to is measured beside it: the same callers, in line for
nothing but a counter (a deque of futures, the least that asyncio can do).

The four crowds take turns, and the quickest round of each counts. The collector is off, since its work grows with
the objects of the program, whoever's they are.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from benchmarks.figure import Figure
from millpond import AsyncPool
from millpond.testing import AsyncFakeConnector, FakeConnection

__all__ = ["Costs", "Counter", "costs", "figures", "measure"]

LOANS = 20_000
ROUNDS = 15
MOVING = 5
"""How many connections are on their way from one caller to another, at any time."""
GOAL = 1.2
SIZES = ((10, 10), (10_000, 100_000))


class _Lends(Protocol):
    def connection(self) -> AbstractAsyncContextManager[object]: ...


class Counter:
    """Lets so many in at a time, and the others in the order of their coming; cancellation is not provided for."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.line: deque[asyncio.Future[None]] = deque()

    def connection(self) -> AbstractAsyncContextManager[object]:
        """Let somebody in for the time of an `async with` block."""
        return _Turn(self)


class _Turn:
    __slots__ = ("_counter",)

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    async def __aenter__(self) -> None:
        counter = self._counter
        if counter.free:
            counter.free -= 1
            return
        future = asyncio.get_running_loop().create_future()
        counter.line.append(future)
        await future

    async def __aexit__(self, *_: object) -> None:
        line = self._counter.line
        while line:
            future = line.popleft()
            if not future.done():
                future.set_result(None)
                return
        self._counter.free += 1


class _Crowd:
    """Callers in line."""

    def __init__(self, lender: _Lends, connections: int, waiting: int) -> None:
        self._lender = lender
        self._size = connections
        self._callers = connections + waiting
        self._left = 0
        self._over = asyncio.Event()
        self._go_on = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._holding: deque[asyncio.Future[None]] = deque()
        self.best = float("inf")

    async def _call(self) -> None:
        loop, holding = asyncio.get_running_loop(), self._holding
        while True:
            async with self._lender.connection():
                mine = loop.create_future()
                holding.append(mine)
                if len(holding) > self._size - MOVING:
                    holding.popleft().set_result(None)
                await mine
                self._left -= 1
                if self._left <= 0:
                    self._over.set()
                    await self._go_on.wait()

    async def gather(self) -> None:
        """Have everybody come, and the first turns be over."""
        self._tasks = [asyncio.create_task(self._call()) for _ in range(self._callers)]
        await self._turns(2 * self._size)

    async def _turns(self, loans: int) -> float:
        self._left = loans
        self._over.clear()
        start = time.perf_counter()
        self._go_on.set()
        self._go_on = asyncio.Event()
        await self._over.wait()
        return (time.perf_counter() - start) / loans

    async def round(self) -> None:
        """Take many turns, and note what one took if that is less than ever."""
        self.best = min(self.best, await self._turns(LOANS))

    async def part(self) -> None:
        """Send everybody home."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Costs(NamedTuple):
    """Seconds: of a loan, and of a bare hand-over, among 10 and 10, and among 10,000 and 100,000."""

    few: float
    many: float
    bare_few: float
    bare_many: float

    @property
    def ratio(self) -> float:
        """How much dearer a loan is in the large crowd."""
        return self.many / self.few

    @property
    def bare_ratio(self) -> float:
        """How much dearer a bare hand-over is in the large crowd."""
        return self.bare_many / self.bare_few

    @property
    def excess(self) -> float:
        """What of `ratio` is the pool's doing, and not asyncio's."""
        return self.ratio / self.bare_ratio


async def costs(rounds: int = ROUNDS, sizes: Sequence[tuple[int, int]] = SIZES) -> Costs:
    """Measure all four; `sizes` are the connections and those who wait of a small crowd and of a large one."""
    pools = [
        AsyncPool[FakeConnection](AsyncFakeConnector(), max_size=size, max_opening=size, timeout=3600)
        for size, _ in sizes
    ]
    crowds = [_Crowd(pool, *size) for pool, size in zip(pools, sizes, strict=True)]
    crowds += [_Crowd(Counter(size[0]), *size) for size in sizes]
    gc.disable()
    try:
        for crowd in crowds:
            await crowd.gather()
        for _ in range(rounds):
            for crowd in crowds:
                await crowd.round()
        for crowd in crowds:
            await crowd.part()
    finally:
        gc.enable()
    for pool in pools:
        await pool.close()
    return Costs(*(crowd.best for crowd in crowds))


def figures(found: Costs, sizes: Sequence[tuple[int, int]] = SIZES) -> Iterator[Figure]:
    """Yield the ratio, and what of it is the pool's doing."""
    (few_size, few_waiting), (many_size, many_waiting) = sizes
    many, few = found.many * 1e6, found.few * 1e6
    case = (
        f"{many_size:,} connections and {many_waiting:,} waiting ({many:.1f} us) "
        f"/ {few_size} and {few_waiting} ({few:.1f} us)"
    )
    yield Figure("borrow and return in a crowd", case, found.ratio, " x", GOAL)
    many, few = found.bare_many * 1e6, found.bare_few * 1e6
    case = f"divided by the same for bare futures ({many:.1f} us / {few:.1f} us = {found.bare_ratio:.2f})"
    yield Figure("borrow and return in a crowd", case, found.excess, " x", GOAL)


def measure() -> Iterator[Figure]:
    """Yield both figures."""
    yield from figures(asyncio.run(costs()))
