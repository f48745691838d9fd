"""What one row of measurements comes to: a text, tables, charts, and figures with their goals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.figure import Figure
from benchmarks.race import Contestant, LeftOut, Race, Times

__all__ = ["Bar", "Bars", "Line", "Lines", "Section", "Table", "gains", "kind_of", "standings", "time_of"]


@dataclass(frozen=True)
class Table:
    """Columns of words, and then columns of numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    caption: str = ""


@dataclass(frozen=True)
class Bar:
    """A bar with the spread of what it stands for."""

    group: str
    name: str
    value: float
    low: float
    high: float
    kind: str
    """"ours", "peer" or "floor"."""


@dataclass(frozen=True)
class Bars:
    """A chart of bars, in groups; less is better."""

    name: str
    """Its file is called so."""
    title: str
    unit: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Line:
    """One contestant's values."""

    name: str
    values: Sequence[float]
    kind: str


@dataclass(frozen=True)
class Lines:
    """A chart of several panels of lines; more is better."""

    name: str
    title: str
    unit: str
    along: str
    places: Sequence[int]
    panels: Sequence[tuple[str, Sequence[Line]]]


@dataclass
class Section:
    """One part of the page."""

    title: str
    text: str
    tables: list[Table] = field(default_factory=list)
    charts: list[Bars | Lines] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    contestants: list[Contestant] = field(default_factory=list)
    why: str = ""
    """The reason for what is missed or lost, known so far."""


def kind_of(contestant: Contestant) -> str:
    """Return how a contestant is drawn."""
    return "ours" if contestant.ours else "floor" if contestant.floor else "peer"


def time_of(seconds: float) -> str:
    """Return a time with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def standings(races: Iterable[Race], title: str, name: str) -> tuple[Table, Bars]:
    """Return the table and the chart of races: each contestant beside millpond, where it lends the same."""
    rows, bars = [], []
    for run in races:
        for times in run:
            contestant = times.contestant
            low, high = times.quartiles
            rows.append(
                (
                    contestant.lends,
                    f"**{contestant.name}**" if contestant.ours else contestant.name,
                    time_of(times.median),
                    f"{time_of(low)} to {time_of(high)}",
                    _beside(times, run),
                )
            )
            spread = (times.median * 1e6, low * 1e6, high * 1e6)
            bars.append(Bar(contestant.lends, contestant.name, *spread, kind_of(contestant)))
    head = ("lends", "", "median", "the middle half of the rounds", "beside millpond")
    return Table(head, rows, words=2), Bars(name, title, "µs", bars)


def gains(found: Race, goals: Iterable[tuple[str, str, float]]) -> Iterator[Figure]:
    """Yield how much quicker than each of these peers millpond is, where it lends the same."""
    for name, lends, goal in goals:
        ours, theirs = found.ours(lends), found.of(name, lends)
        if ours and theirs:
            yield Figure(f"quicker than {name}", f"lends {lends}", theirs.over(ours), " x", goal, ">=")


def _beside(times: Times, run: Race) -> str:
    ours = run.ours(times.contestant.lends)
    if ours is None:
        return ""
    return "1" if ours is times else f"{times.over(ours):.2f} x"
