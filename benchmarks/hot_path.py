"""How much longer than an empty `with` does a loan take, when a connection is idle and nobody waits?

It is the median over many pairs of laps, one right after the other and each far shorter than the system's turns: what
else a machine does, and how quick it happens to be, concerns both or spoils few.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figure import Figure
from benchmarks.peers import objects
from benchmarks.race import Contestant, race

__all__ = ["measure"]

CONTESTS = {
    "threads": (objects.EMPTY, objects.OURS),
    "tasks": (objects.EMPTY_OF_TASKS, objects.OURS_OF_TASKS),
}
GOAL = 2.5


def _ratio(contest: tuple[Contestant, Contestant]) -> float:
    floor, ours = race(contest, rounds=600, lap=0.0003).times
    return ours.over(floor)


def measure() -> Iterator[Figure]:
    """Yield one figure for threads and one for tasks."""
    for who, contest in CONTESTS.items():
        yield Figure("a loan / an empty with", who, _ratio(contest), " x", GOAL)
