"""What the attempts of a run add up to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Final

from demo.workload import Attempt, Blow, Run

__all__ = ["NOTICE", "Verdict", "hit", "percentile", "recovery"]

NOTICE: Final = 0.010
"""Seconds within which millpond promises to know of a death; who asks later and gets what has died was lent it dead."""


@dataclass(frozen=True)
class Verdict:
    """The figures of a run; times are seconds, and None is what cannot be told."""

    title: str
    throughput: float
    p50: float
    p99: float
    opened: int
    errors: int
    in_a_row: int
    """The most errors that one caller had without a success between."""
    lent_dead: int | None
    """Loans of a connection whose death should have been known."""
    after_kill: float | None
    after_restart: float | None

    @classmethod
    def of(cls, run: Run) -> Verdict:
        """Add up a run that has ended."""
        attempts = run.attempts()
        latencies = sorted(latency(attempt) for attempt in attempts if not attempt.error)
        after = {blow.kind: recovery(run, blow) for blow in run.blows}
        return cls(
            title=run.title,
            throughput=len(latencies) / (run.ended - run.began),
            p50=percentile(latencies, 50),
            p99=percentile(latencies, 99),
            opened=run.opened,
            errors=len(attempts) - len(latencies),
            in_a_row=max(_longest_row(met) for met in run.callers),
            lent_dead=sum(_lent_dead(attempt, run.blows) for attempt in attempts) if run.pooled else None,
            after_kill=after.get("kill"),
            after_restart=after.get("restart"),
        )

    @property
    def broken(self) -> bool:
        """Whether millpond has lent what it knew to be dead, or the same caller met two broken connections running."""
        return self.lent_dead is not None and (self.lent_dead > 0 or self.in_a_row > 1)


def latency(attempt: Attempt) -> float:
    """Return how long a caller was about it, the wait for a connection included."""
    return attempt.finished - attempt.asked


def percentile(ordered: list[float], percent: float) -> float:
    """Return the value that so many percent of all do not exceed; not a number if there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


def recovery(run: Run, blow: Blow) -> float | None:
    """Return the seconds from when the server could serve again until a caller was served; None if none ever was."""
    served = [
        attempt.finished
        for attempt in run.attempts()
        if not attempt.error and attempt.finished > blow.down and attempt.backend not in blow.gone
    ]
    return max(0.0, min(served) - blow.back) if served else None


def hit(run: Run, blow: Blow) -> int:
    """Return how many callers met an error on a connection that the blow ended."""
    return sum(1 for attempt in run.attempts() if attempt.error and attempt.backend in blow.gone)


def _lent_dead(attempt: Attempt, blows: list[Blow]) -> bool:
    return bool(attempt.error) and any(
        attempt.backend in blow.gone and attempt.asked > blow.gone[attempt.backend] + NOTICE for blow in blows
    )


def _longest_row(met: list[Attempt]) -> int:
    return max((len(list(row)) for failed, row in groupby(met, lambda attempt: bool(attempt.error)) if failed), default=0)
