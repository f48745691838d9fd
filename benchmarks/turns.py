"""Many callers who take turns at few connections: how many turns, how long the waits, how even?

The limit is what the best of the floors gets done in the same run: as many callers as there are connections, without
any pool; for tasks also a counter and a line of futures. Sleeping for 0.1 ms takes longer than that, and how much
longer depends on the system. A fair wait is what it takes, at the limit, if each of the others in line has one turn
first.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from itertools import repeat
from statistics import median
from typing import NamedTuple

from benchmarks.fairness import jain
from benchmarks.figure import Figure
from benchmarks.page.section import Line, Lines, Section, Table, kind_of
from benchmarks.peers.objects import EMPTY
from benchmarks.race import Contestant, LeftOut, compiled, opened, reason_of

__all__ = ["NO_POOL", "Crowds", "take_turns"]

NO_POOL = Contestant("floor: no pool", "WORK", EMPTY.open)

BUSY = """
{kind} take_turns(clock, crowd, waits):
    turns = 0
    while True:
        for _ in repeat(None, stretch):
            {loan}
        turns += stretch
        if clock() >= crowd.end:
            return turns
"""
"""For callers who do nothing: threads do not read the clock in each turn, so as to measure nothing but the pool."""
STRETCH = 20

WORKING = """
{kind} take_turns(clock, crowd, waits):
    turns = 0
    came = clock()
    while True:
        {loan}
        turns += 1
        if (came := clock()) >= crowd.end:
            return turns
"""
NOTE = "waits.append(clock() - came)\n"

EFFICIENCY_GOAL = 0.97
WAIT_GOAL = 1.3
JAIN_GOAL = 0.99


class Outcome(NamedTuple):
    """What came of one round."""

    rate: float
    """Turns in a second."""
    p99: float
    """The wait, in seconds, that one in a hundred exceeded."""
    longest: float
    """The longest wait, in seconds: who hardly ever comes in has waits that are few and long."""
    jain: float


@dataclass
class _Crowd:
    end: float = math.inf


@dataclass
class Crowds:
    """What came of all rounds."""

    connections: int
    sizes: Sequence[int]
    works: Mapping[str, str]
    """Names of what is done with a connection, and its code."""
    caller: str
    """What callers are called."""
    outcomes: dict[tuple[Contestant, str, int], list[Outcome]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    def rate(self, contestant: Contestant, work: str, size: int) -> float:
        """Return the median rate, or NaN if it did not take part."""
        found = self.outcomes.get((contestant, work, size))
        return median(outcome.rate for outcome in found) if found else math.nan

    def efficiency(self, contestant: Contestant, work: str, size: int) -> float:
        """Return the rate as a part of the limit."""
        return self.rate(contestant, work, size) / self._limit(work, size)

    def wait(self, contestant: Contestant, work: str, size: int) -> float:
        """Return the wait that one in a hundred exceeded, in fair waits."""
        return median(each.p99 for each in self.outcomes[contestant, work, size]) / self._fair(work, size)

    def longest(self, contestant: Contestant, work: str, size: int) -> float:
        """Return the longest wait, in fair waits."""
        return median(each.longest for each in self.outcomes[contestant, work, size]) / self._fair(work, size)

    def _fair(self, work: str, size: int) -> float:
        return (size - self.connections) / self._limit(work, size)

    def jain(self, contestant: Contestant, work: str, size: int) -> float:
        """Return Jain's index of the numbers of turns: 1 if all are equal."""
        return median(outcome.jain for outcome in self.outcomes[contestant, work, size])

    def _limit(self, work: str, size: int) -> float:
        return max(self.rate(each, work, size) for each in self.contestants if each.floor)

    @property
    def contestants(self) -> list[Contestant]:
        """Those who took part."""
        return list(dict.fromkeys(contestant for contestant, _, _ in self.outcomes))

    @property
    def ours(self) -> Contestant:
        """millpond, lending nothing but objects."""
        return next(contestant for contestant in self.contestants if contestant.ours)

    def section(self, title: str, text: str, name: str, why: str) -> Section:
        """Return the section of the page, but for the goals that are not about work."""
        tables = [self._rates(work) for work in self.works]
        tables += [self._fairness(work) for work in self.working]
        panels = [(work, [self._line(each, work) for each in self._drawn(work)]) for work in self.works]
        chart = Lines(name, title, "turns in a second", self.caller, self.sizes, panels)
        figures = [figure for work in self.working for figure in self._figures(work)]
        return Section(title, text, tables, [chart], figures, self.left_out, self.contestants, why)

    @property
    def working(self) -> list[str]:
        """The works that take time."""
        return [work for work, code in self.works.items() if _takes_time(code)]

    @property
    def _standing(self) -> list[int]:
        """The sizes of the crowds who stand in line."""
        return [size for size in self.sizes if size > self.connections]

    def _figures(self, work: str) -> Iterator[Figure]:
        ours, everybody = self.ours, ", ".join(f"{size:,}" for size in self.sizes)
        least = min(self.efficiency(ours, work, size) for size in self.sizes)
        case = f"{work}, the least of {everybody} {self.caller}"
        yield Figure("turns, of the limit", case, least * 100, " %", EFFICIENCY_GOAL * 100, ">=", 1)
        standing = ", ".join(f"{size:,}" for size in self._standing)
        longest = max(self.wait(ours, work, size) for size in self._standing)
        case = f"{work}, the most of {standing} {self.caller}"
        yield Figure("99th percentile of the waits / fair wait", case, longest, "", WAIT_GOAL)
        even = min(self.jain(ours, work, size) for size in self._standing)
        yield Figure("Jain's index of their turns", case.replace("the most", "the least"), even, "", JAIN_GOAL, ">=", 4)

    def _drawn(self, work: str) -> list[Contestant]:
        # Those who neither work nor lend are beyond all others.
        return [each for each in self.contestants if not each.floor or work in self.working]

    def _line(self, contestant: Contestant, work: str) -> Line:
        rates = [self.rate(contestant, work, size) for size in self.sizes]
        return Line(_name(contestant), rates, kind_of(contestant))

    def _rates(self, work: str) -> Table:
        rows = [
            (_bold(contestant), *(self._rate(contestant, work, size) for size in self.sizes))
            for contestant in self.contestants
        ]
        head = (f"{work}: turns in a second", *(f"{size:,} {self.caller}" for size in self.sizes))
        return Table(head, rows)

    def _rate(self, contestant: Contestant, work: str, size: int) -> str:
        found = self.outcomes.get((contestant, work, size))
        if not found:
            return "left out"
        rates = [outcome.rate for outcome in found]
        if len(rates) == 1:
            return f"{rates[0]:,.0f}"
        spread = (max(rates) - min(rates)) / 2 / median(rates)
        return f"{median(rates):,.0f} ± {spread * 100:.0f} %"

    def _fairness(self, work: str) -> Table:
        rows = []
        for contestant in self.contestants:
            if contestant.floor:
                continue
            cells = [_bold(contestant)]
            for size in self._standing:
                if (contestant, work, size) not in self.outcomes:
                    cells.append("left out")
                    continue
                efficiency, wait = self.efficiency(contestant, work, size), self.wait(contestant, work, size)
                longest, even = self.longest(contestant, work, size), self.jain(contestant, work, size)
                cells.append(f"{efficiency * 100:.0f} %, {wait:.2f}, {longest:.2f}, {even:.3f}")
            rows.append(cells)
        head = (
            f"{work}: of the limit, p99 of waits / fair wait, Jain",
            *(f"{n:,} {self.caller}" for n in self._standing),
        )
        return Table(head, rows)


def _name(contestant: Contestant) -> str:
    return contestant.name if contestant.lends == "an object" else f"{contestant.name} ({contestant.lends})"


def _bold(contestant: Contestant) -> str:
    return f"**{_name(contestant)}**" if contestant.ours else _name(contestant)


def _takes_time(code: str) -> bool:
    return "sleep(" in code and "sleep(0)" not in code


def take_turns(
    contestants: Sequence[Contestant],
    crowds: Crowds,
    *,
    rounds: Callable[[int], int],
    seconds: Callable[[str, int], float],
) -> Crowds:
    """Have crowds of all sizes do all works.

    `rounds` says how often, by size, and `seconds` how long each does it in a round, by work and size.
    """
    asyncio.run(_take_turns(contestants, crowds, rounds, seconds))
    return crowds


async def _take_turns(
    contestants: Sequence[Contestant],
    crowds: Crowds,
    rounds: Callable[[int], int],
    seconds: Callable[[str, int], float],
) -> None:
    async def attempt(contestant: Contestant, pool: object) -> object:
        await _round(contestant, pool, "pass", 1, 0.01)
        return pool

    async with opened(contestants, crowds.connections, attempt) as (able, left_out):
        crowds.left_out = left_out
        for work, code in crowds.works.items():
            for size in crowds.sizes:
                for number in range(rounds(size)):
                    for contestant, pool in able[:: -1 if number % 2 else 1]:
                        # Without a pool there are only as many callers as there are connections.
                        callers = min(size, crowds.connections) if contestant is NO_POOL else size
                        try:
                            outcome = await _round(contestant, pool, code, callers, seconds(work, size))
                        except Exception as error:
                            reason = f"{work}, {size:,} {crowds.caller}: {reason_of(error)}"
                            left_out.append(LeftOut(contestant, reason))
                            continue
                        crowds.outcomes.setdefault((contestant, work, size), []).append(outcome)


async def _round(contestant: Contestant, pool: object, code: str, callers: int, seconds: float) -> Outcome:
    tasks = "await " in code
    names = {"pool": pool, "sleep": asyncio.sleep if tasks else time.sleep, "repeat": repeat}
    if _takes_time(code):
        function = compiled(WORKING, contestant, NOTE + code, **names)
    else:
        # Each of 10,000 tasks has to end its stretch when the time is over.
        function = compiled(BUSY, contestant, code, stretch=1 if tasks else STRETCH, **names)
    waits: list[list[float]] = [[] for _ in range(callers)]
    if iscoroutinefunction(function):
        elapsed, turns = await _by_tasks(function, waits, seconds)
    else:
        elapsed, turns = _by_threads(function, waits, seconds)
    every = sorted(wait for each in waits for wait in each)
    p99, longest = (every[int(0.99 * (len(every) - 1))], every[-1]) if every else (math.nan, math.nan)
    return Outcome(sum(turns) / elapsed, p99, longest, jain(turns))


def _by_threads(function: Callable[..., int], waits: list[list[float]], seconds: float) -> tuple[float, list[int]]:
    crowd, turns = _Crowd(), [0] * len(waits)
    failures: list[BaseException] = []
    gate = threading.Barrier(len(waits) + 1)

    def call(number: int) -> None:
        gate.wait()
        try:
            turns[number] = function(time.perf_counter, crowd, waits[number])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(waits))]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.perf_counter()
    crowd.end = began + seconds
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - began, turns


async def _by_tasks(
    function: Callable[..., Awaitable[int]], waits: list[list[float]], seconds: float
) -> tuple[float, list[int]]:
    crowd, gate = _Crowd(), asyncio.Event()

    async def call(mine: list[float]) -> int:
        await gate.wait()
        return await function(time.perf_counter, crowd, mine)

    tasks = [asyncio.create_task(call(mine)) for mine in waits]
    await asyncio.sleep(0)
    gate.set()
    began = time.perf_counter()
    crowd.end = began + seconds
    spinning = asyncio.create_task(_spin())
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    elapsed = time.perf_counter() - began
    spinning.cancel()
    turns = []
    for end in ends:
        if isinstance(end, BaseException):
            raise end
        turns.append(end)
    return elapsed, turns


async def _spin() -> None:
    """Keep the loop awake: it sleeps in whole milliseconds, and those who do least would lose most by that."""
    turn = asyncio.sleep
    while True:
        await turn(0)
