"""One fault strikes pools at work; what their callers saw."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final, NamedTuple

from proof.atlas.crowd import Call, CrossedError, Crowd, Work, served_at_once
from proof.atlas.places import Address, Place
from proof.atlas.rows import Row
from proof.atlas.subjects import PATIENCE, SIZE, SUBJECTS, WAIT, Subject

__all__ = ["AGAIN", "Cell", "strike"]

STEADY: Final = 0.4
"""Seconds of undisturbed work before a fault, and after it."""
PATIENT: Final = 8.0
"""Seconds that we wait for a pool to recover."""
AGAIN: Final = 1.0
"""Goal: seconds after the end of a fault within which every caller is served again."""
SLACK: Final = 1.0
"""Goal: seconds by which a call may outlast what it was told to wait for: a borrow, and an answer."""
HOT: Final = 12
"""Goal: how often a server is asked that refuses, each second."""


class Cell(NamedTuple):
    """What callers of one pool saw of one fault."""

    subject: Subject
    saw: Counter[str]
    """Errors of calls that began before its end."""
    example: str
    longest: float
    """Seconds that the longest of them took."""
    late: int
    """Errors of calls that began after its end."""
    again: float | None
    """Seconds from its end until each caller was served, and none failed any more; None for never."""
    lost: int
    """Places that could not be used afterwards."""
    crossed: int
    """Answers to another's question."""
    tries: int
    """Connections that were opened, or asked for, while it lasted."""
    short: tuple[str, ...]
    """Goals that were missed."""


def strike(row: Row, places: dict[str, Place]) -> list[Cell]:
    """Have one fault strike all pools that can meet it, at the same time."""
    struck = [places[kind] for kind in row.places]
    subjects = [subject for subject in SUBJECTS if subject.place in row.places and subject.installed]
    with ExitStack() as stack:
        for place in struck:
            stack.callback(place.close)
        addresses = [places[subject.place].address() for subject in subjects]
        if row.early:
            _each(row.strike, struck)
        opened = zip(subjects, addresses, strict=True)
        trials = [_Trial(subject, at, stack.enter_context(subject.open(at))) for subject, at in opened]
        crew = stack.enter_context(ThreadPoolExecutor(len(trials)))
        list(crew.map(lambda trial: trial.settle(idle=row.idle), trials))
        if not row.early:
            time.sleep(STEADY)
        for trial in trials:
            trial.tries = -trial.at.proxy.accepted
        began = time.monotonic()
        if not row.early:
            _each(row.strike, struck)
        time.sleep(max(0.0, began + row.hold - time.monotonic()))
        for trial in trials:
            trial.tries += trial.at.proxy.accepted
        _each(row.mend, struck)
        ended = time.monotonic()
        for trial in trials:
            trial.resume(idle=row.idle)
        while time.monotonic() < ended + PATIENT and not all(trial.crowd.served_since(ended) for trial in trials):
            time.sleep(0.02)
        time.sleep(STEADY)
        return list(crew.map(lambda trial: trial.end(row, began, ended), trials))


def _each(change: Callable[[Place], None], places: list[Place]) -> None:
    for place in places:
        change(place)


class _Trial:
    """One pool and its callers."""

    def __init__(self, subject: Subject, at: Address, work: Work) -> None:
        self.subject = subject
        self.at = at
        self.work = work
        self.crowd = Crowd(work, SIZE)
        self.tries = 0

    def settle(self, *, idle: bool) -> None:
        """Have all connections open, and in use or idle."""
        if idle:
            served_at_once(self.work, SIZE, 0.05, PATIENT)
        else:
            self.crowd.start()

    def resume(self, *, idle: bool) -> None:
        """Have callers come, if they have not yet."""
        if idle:
            self.crowd.start()

    def end(self, row: Row, struck: float, ended: float) -> Cell:
        """Stop, and tell what came of it."""
        stuck = self.crowd.stop(WAIT + PATIENCE)
        met = [call for call in self.crowd.calls if call.ended > struck and call.began <= ended]
        after = [call for call in self.crowd.calls if call.began > ended]
        failed = [call for call in met if call.error is not None]
        late = [call for call in after if call.error is not None]
        again = _recovery(met, after, ended) if not stuck and self.crowd.served_since(ended) else None
        longest = max((call.ended - call.began for call in (*met, *late)), default=0.0)
        lost = SIZE - served_at_once(self.work, SIZE, 0.2, WAIT + PATIENCE + SLACK)
        crossed = sum(isinstance(call.error, CrossedError) for call in (*failed, *late))
        # A login that fails in a loop locks accounts: it is tried the more seldom the longer it has failed. The pauses
        # double from 0.5 s, so the one that was begun last may be by that much longer than all before it.
        waits = (ended - struck if row.refusal else 0.0) + (PATIENCE if row.silent and row.idle else 0.0)
        soon = AGAIN + waits
        goals = {
            f"{lost} places lost": lost == 0,
            f"{crossed} answers were another's": crossed == 0,
            f"not all were served again after {soon:.1f} s": again is not None and again <= soon,
            f"{len(late)} callers met a dead connection": not (
                row.idle and late and (self.subject.sounding or not row.silent)
            ),
            f"a call took {longest:.1f} s": not self.subject.patient or longest <= WAIT + PATIENCE + SLACK,
            f"the server was asked {self.tries} times": not row.refusal or self.tries <= SIZE + HOT * (ended - struck),
        }
        saw = Counter(type(call.error).__name__ for call in failed)
        saw.update(f"{type(call.error).__name__} (after)" for call in late)
        shown = [str(call.error).strip().partition("\n")[0] for call in (*failed, *late)]
        example = max(shown, key=len, default="")
        for own in (self.at.user, f"{self.at.host}:{self.at.port}", self.at.host, str(self.at.port)):
            example = example.replace(own, "...")
        short = tuple(missed for missed, kept in goals.items() if not kept)
        return Cell(self.subject, saw, example, longest, len(late), again, lost, crossed, self.tries, short)


def _recovery(met: list[Call], after: list[Call], ended: float) -> float:
    """Return the seconds until each caller was served, and none failed any more.

    They count from the end of the fault or, for a caller who then waited for what was lost, from the end of that.
    """
    waited = {call.caller: max(ended, call.ended) for call in met}
    took = 0.0
    for caller in {call.caller for call in after}:
        calls = [call for call in after if call.caller == caller]
        failures = [call.ended for call in calls if call.error is not None]
        first = next(call.ended for call in calls if call.error is None)
        took = max(took, max([first, *failures]) - waited.get(caller, ended))
    return took
