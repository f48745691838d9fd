"""Events and pictures in words, and events as text from which a path can be gone again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from proof.core.case import Case
from proof.core.search import replay, why
from proof.core.stand import (
    CALLERS,
    FLIGHTS,
    IDLE,
    JOBS,
    LINE,
    LOANS,
    LOST,
    OPENS,
    POSTING,
    WORKING,
    Row,
    Stand,
)
from proof.core.world import WORLDLY, Event, World

__all__ = ["parse_path", "tell_path", "write_path"]

PLACES: Final = {
    "idle": IDLE, "jobs": JOBS, "in line": LINE, "served": CALLERS, "opening": OPENS, "on loan": LOANS,
    "being tended": WORKING, "to be reset": POSTING, "on the hot path": FLIGHTS, "lost": LOST,
}  # fmt: skip
FLAGS: Final = ("gate up", "paused", "closing", "torn", "sweep due")


def write_path(path: Iterable[Event]) -> str:
    """Write a path down as one line of JSON."""
    return json.dumps(list(path))


def parse_path(text: str) -> list[Event]:
    """Read a path that `write_path` has written."""
    return [_as_event(step) for step in json.loads(text)]


def _as_event(step: list[Any]) -> Event:
    return tuple([_as_event(part) if isinstance(part, list) else part for part in step])


def tell_path(case: Case, path: Iterable[Event]) -> Iterator[str]:
    """Go a path again, and on as a fair world does; tell each step, what it has led to, and which law it breaks."""
    try:
        for number, (event, where, picture) in enumerate(replay(case, path), 1):
            yield f"{number:3}. {_tell_event(event)}{where and f', struck in {where}'}"
            for row in picture[: case.pools]:
                yield f"     {_tell_picture(row)}"
    except Exception as error:
        yield f"     VIOLATED: {why(error)}"


def _tell_event(event: Event) -> str:
    name, *arguments = event
    if name == "cut":
        return f"{_tell_event(arguments[1])}, cut at its place {arguments[0]}"
    if name == "preempted":
        place, main, others = arguments
        return f"{_tell_event(main)}; at its place {place}: {', '.join(map(_tell_event, others))}"
    number, *others = arguments
    owner = World if name in WORLDLY else Stand
    what = (getattr(owner, name).__doc__ or "").partition(".")[0]
    return f"{name}({', '.join(map(str, others))}){'' if owner is World else f' in pool {number}'}: {what}"


def _tell_picture(row: Row) -> str:
    flags = [flag for flag, up in zip(FLAGS, row[0], strict=False) if up]
    places = [f"{len(row[place])} {name}" for name, place in PLACES.items() if row[place]]
    return "; ".join([*places, *flags]) or "nothing"
