"""What `with pool.connection()` costs beside an empty `with` on a fresh object.

Many short rounds, one after the other in turn, and the quickest of each: on a shared machine the rest is noise.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator

from benchmarks.figure import Figure
from millpond import Pool

__all__ = ["costs", "measure"]

LOOPS = 2_000
ROUNDS = 400
GOAL = 2.5


class Connection:
    """Leads nowhere, and nothing can be asked of it."""

    def close(self) -> None:
        """Do nothing."""


class Empty:
    """A context manager that does nothing."""

    def __enter__(self) -> Empty:
        """Do nothing."""
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Do nothing."""


def costs(rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the seconds of an empty `with`, and of one on a pool with an idle connection."""
    with Pool(Connection) as pool:
        with pool.connection():
            pass

        def empty() -> None:
            with Empty():
                pass

        def borrow() -> None:
            with pool.connection():
                pass

        works: tuple[Callable[[], None], ...] = (empty, borrow)
        timers = [timeit.Timer(work) for work in works]
        best = [float("inf")] * len(works)
        for _ in range(rounds):
            for number, timer in enumerate(timers):
                best[number] = min(best[number], timer.timeit(LOOPS) / LOOPS)
    return best[0], best[1]


def measure() -> Iterator[Figure]:
    """Yield the ratio."""
    empty, borrow = costs()
    case = f"with pool.connection() ({borrow * 1e6:.3f} us) / empty with ({empty * 1e6:.3f} us)"
    yield Figure("an idle connection, borrowed and returned", case, borrow / empty, " x", GOAL)
