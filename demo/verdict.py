"""What the attempts of a run add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from demo.workload import Attempt, Fault, Run
from millpond.testing import ServerError

__all__ = ["Throughput", "Verdict", "errors_since", "recovery"]


class Throughput:
    """The transactions of a run over time, counted a few at a time, so that looking does not slow the callers down.

    `width` is the length of a slice of time, in seconds.
    """

    def __init__(self, run: Run, width: float) -> None:
        self._run = run
        self._width = width
        self._counts: list[int] = []
        self._read = [0] * len(run.callers)
        self.done = 0
        self.errors = 0

    def update(self) -> Self:
        """Count what has come since the last time."""
        for number, met in enumerate(self._run.callers):
            new = met[self._read[number] :]
            self._read[number] += len(new)
            for attempt in new:
                if attempt.error:
                    self.errors += 1
                else:
                    self.done += 1
                    self._count(int((attempt.finished - self._run.began) / self._width))
        return self

    def rates(self, until: float) -> list[float]:
        """Return the transactions per second of each slice that was over at that moment."""
        over = max(0, int((until - self._run.began) / self._width))
        return [count / self._width for count in [*self._counts, *[0] * over][:over]]

    def _count(self, place: int) -> None:
        self._counts += [0] * (place + 1 - len(self._counts))
        self._counts[place] += 1


@dataclass(frozen=True)
class Verdict:
    """The figures of a run; times are seconds."""

    run: Run
    throughput: float
    """Transactions per second over the whole run, the outage included."""
    p50: float
    p99: float
    errors: int
    in_a_row: int
    """The most errors that one caller had without a success between."""
    lent_dead: int | None
    """Loans of connections that the pool had had the time to know dead; None without a pool."""
    recoveries: dict[str, float | None]
    """For each kind of fault, how long it took until somebody was served again; None if nobody ever was."""

    @classmethod
    def of(cls, run: Run) -> Self:
        """Add up a run that has ended; raise ServerError if nothing succeeded in it."""
        attempts = [attempt for attempt in run.attempts() if attempt.finished <= run.ended]
        latencies = sorted(attempt.finished - attempt.asked for attempt in attempts if not attempt.error)
        if not latencies:
            raise ServerError(
                f"{run.title}: no transaction succeeded; {attempts[-1].error if attempts else 'none ended'}"
            )
        return cls(
            run=run,
            throughput=len(latencies) / (run.ended - run.began),
            p50=_percentile(latencies, 50),
            p99=_percentile(latencies, 99),
            errors=len(attempts) - len(latencies),
            in_a_row=max(_longest_row(met) for met in run.callers),
            lent_dead=sum(_lent_dead(attempt, run.faults) for attempt in attempts) if run.pooled else None,
            recoveries={fault.kind: recovery(run, fault) for fault in run.faults},
        )

    @property
    def breaches(self) -> list[str]:
        """What millpond has promised and not kept."""
        if not self.run.pooled:
            return []
        breaches = []
        if self.lent_dead:
            breaches.append(f"{self.lent_dead} loans were of connections that had been dead for long enough to know")
        if self.in_a_row > 1:
            breaches.append(f"a caller met {self.in_a_row} errors, one after the other")
        breaches += [f"nobody was served after the {kind}" for kind, took in self.recoveries.items() if took is None]
        return [f"{self.run.title}: {breach}" for breach in breaches]


def recovery(run: Run, fault: Fault) -> float | None:
    """Return the seconds from when callers could be served again until one was; None if none has been so far."""
    served = (
        attempt.finished - fault.back
        for attempt in run.attempts()
        if not attempt.error and attempt.finished > fault.back and attempt.backend not in fault.gone
    )
    return min(served, default=None)


def errors_since(run: Run, fault: Fault) -> int:
    """Return how many errors callers have met since a fault."""
    return sum(1 for attempt in run.attempts() if attempt.error and attempt.finished > fault.at)


def _lent_dead(attempt: Attempt, faults: Sequence[Fault]) -> bool:
    # By when the caller asked: when it got the connection is not known as exactly, for it may be slow to wake up.
    return attempt.error is not None and any(
        attempt.backend in fault.gone and attempt.asked > fault.known for fault in faults
    )


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the least value that so many percent of all do not exceed."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def _longest_row(met: Sequence[Attempt]) -> int:
    rows = (len([*row]) for failed, row in groupby(met, lambda attempt: attempt.error is not None) if failed)
    return max(rows, default=0)
