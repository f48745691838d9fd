"""A race: contestants do the same work in the same run, by turns, in many short laps.

What each does is given as the text of its loan, as its documentation writes it, and compiled into the loop that is
timed: so nobody pays for a call that the others do not make, and the page can show what was run.
"""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from inspect import isawaitable
from itertools import repeat
from statistics import median, quantiles
from types import MappingProxyType
from typing import Any, TypeAlias

__all__ = ["Contestant", "LeftOut", "Race", "Times", "compiled", "opened", "race", "race_on", "reason_of"]

Opened: TypeAlias = AbstractContextManager[Any] | AbstractAsyncContextManager[Any]

LAP = 0.01
"""Seconds that a lap takes, about."""
ROUNDS = 60

LOOP = """
{kind} lap(clock, loops):
    began = clock()
    for _ in loops:
        {loan}
    return clock() - began
"""


@dataclass(frozen=True)
class Contestant:
    """A way to borrow and return."""

    name: str
    loan: str
    """Its code: `pool` is what `open` gives, WORK stands for what is done with what is lent."""
    open: Callable[[int], Opened]
    """Makes a pool with so many connections, all of them open, and closes it in the end."""
    lends: str = "an object"
    """What it lends: contestants are compared with those that lend the same."""

    @property
    def floor(self) -> bool:
        """Whether it is not a pool, but the least that one could do."""
        return self.name.startswith("floor: ")

    @property
    def ours(self) -> bool:
        """Whether it is millpond's."""
        return self.name.startswith("millpond")


@dataclass(frozen=True)
class LeftOut:
    """Who does not take part, and why."""

    contestant: Contestant
    reason: str


@dataclass(frozen=True)
class Times:
    """What the laps of one contestant took: seconds for one loan."""

    contestant: Contestant
    laps: list[float]

    @property
    def median(self) -> float:
        """The lap in the middle."""
        return median(self.laps)

    @property
    def quickest(self) -> float:
        """The lap that was disturbed least."""
        return min(self.laps)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The laps a quarter and three quarters through."""
        if len(self.laps) < 2:
            return self.laps[0], self.laps[0]
        low, _, high = quantiles(self.laps, n=4, method="inclusive")
        return low, high

    def over(self, other: Times) -> float:
        """Return how many times as long as another this takes: the median over the rounds."""
        return median(mine / its for mine, its in zip(self.laps, other.laps, strict=True))


@dataclass
class Race:
    """What came of it."""

    times: list[Times] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def __iter__(self) -> Iterator[Times]:
        return iter(self.times)

    def of(self, name: str, lends: str) -> Times | None:
        """Return the times of one, or None if it was left out."""
        whose = ((times, times.contestant) for times in self.times)
        return next((times for times, one in whose if one.name == name and one.lends == lends), None)

    def ours(self, lends: str) -> Times | None:
        """Return the times of millpond, where it lends this."""
        return next((times for times in self.times if times.contestant.ours and times.contestant.lends == lends), None)


def compiled(frame: str, contestant: Contestant, work: str, **names: object) -> Callable[..., Any]:
    """Put a contestant's loan, with the work in it, into a function, and compile that."""
    loan = _filled(contestant.loan, "WORK", work)
    kind = "async def" if "await " in loan or "async " in loan else "def"
    source = _filled(frame, "{loan}", loan).replace("{kind}", kind)
    made: dict[str, Any] = {}
    exec(compile(source, f"<{contestant.name}>", "exec"), dict(names), made)
    function: Callable[..., Any] = made.popitem()[1]
    return function


def _filled(frame: str, blank: str, text: str) -> str:
    lines = []
    for line in frame.strip("\n").splitlines():
        head, found, _ = line.partition(blank)
        lines.append(textwrap.indent(text, head) if found else line)
    return "\n".join(lines)


@asynccontextmanager
async def opened(
    contestants: Sequence[Contestant], size: int, attempt: Callable[[Contestant, Any], Awaitable[Any]]
) -> AsyncIterator[tuple[list[tuple[Contestant, Any]], list[LeftOut]]]:
    """Open all who can be opened, have each make an attempt, and give those who managed it with what it returned.

    The others are given with the reason.
    """
    able: list[tuple[Contestant, Any]] = []
    left_out: list[LeftOut] = []
    async with AsyncExitStack() as stack:
        for contestant in contestants:
            try:
                entering = contestant.open(size)
                if isinstance(entering, AbstractAsyncContextManager):
                    pool = await stack.enter_async_context(entering)
                else:
                    pool = stack.enter_context(entering)
                able.append((contestant, await attempt(contestant, pool)))
            except Exception as error:
                left_out.append(LeftOut(contestant, reason_of(error)))
        yield able, left_out


def reason_of(error: BaseException) -> str:
    """Return on one line why somebody is left out."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


async def _lap(lap: Callable[..., Any], loops: int) -> float:
    took = lap(time.perf_counter, repeat(None, loops))
    seconds: float = await took if isawaitable(took) else took
    return seconds / loops


async def race_on(
    contestants: Sequence[Contestant], *, works: Mapping[str, str], size: int, rounds: int, lap: float
) -> Race:
    """Race on the loop that runs; see `race`."""

    async def attempt(contestant: Contestant, pool: object) -> tuple[Callable[..., Any], int]:
        function = compiled(LOOP, contestant, works.get(contestant.lends, "pass"), pool=pool)
        await _lap(function, 20)
        return function, max(5, int(lap / await _lap(function, 50)))

    async with opened(contestants, size, attempt) as (able, left_out):
        times = [Times(contestant, []) for contestant, _ in able]
        for number in range(rounds):
            # Forwards and backwards, so that nobody always follows the same one.
            for place in range(len(able))[:: -1 if number % 2 else 1]:
                times[place].laps.append(await _lap(*able[place][1]))
    return Race(times, left_out)


def race(
    contestants: Sequence[Contestant],
    *,
    works: Mapping[str, str] = MappingProxyType({}),
    size: int = 10,
    rounds: int = ROUNDS,
    lap: float = LAP,
) -> Race:
    """Have everybody borrow and return, one after the other, on pools of `size` idle connections.

    `works` says what is done with what is lent; nothing if it does not say.
    """
    return asyncio.run(race_on(contestants, works=works, size=size, rounds=rounds, lap=lap))
