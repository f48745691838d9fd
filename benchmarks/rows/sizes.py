"""Does a loan cost more when the pool is large, or the line is long?"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from benchmarks import crowd
from benchmarks.figure import Figure
from benchmarks.page.section import Section, Table, time_of
from benchmarks.peers import objects
from benchmarks.race import LAP, ROUNDS, Contestant, race

__all__ = ["run"]

SIZES = (10, 1_000, 10_000)
GOAL = 1.2

TEXT = """
Pools of 10 to 10,000 idle connections that lead nowhere, and one caller. Then all connections are lent and the line is
as long as it was; whoever is served goes to sleep, and wakes the one that has held its connection for longest. 100,000
suspended tasks are 200 MB, which no cache holds, so what asyncio itself takes longer to wake one of them is measured
beside it, with a counter and a line of futures.
"""
WHY = ""


def run(quick: bool) -> Section:
    """Race in pools of all sizes, and measure crowds."""
    rounds, lap = (3, LAP / 10) if quick else (ROUNDS // 2, LAP)
    sizes = SIZES[:2] if quick else SIZES
    kinds = [each for each in (*objects.THREADS, *objects.TASKS) if not each.floor and "noted" not in each.name]
    found = race([_sized(each, size) for each in kinds for size in sizes], rounds=rounds, lap=lap)
    rows, figures = [], []
    for kind in kinds:
        times = [found.of(kind.name, _lends(kind, size)) for size in sizes]
        first, last = times[0], times[-1]
        cells = [time_of(each.median) if each else "left out" for each in times]
        growth = last.over(first) if first and last else None
        name = f"**{kind.name}**" if kind.ours else kind.name
        rows.append((name, _caller(kind), *cells, f"{growth:.2f} x" if growth else ""))
        if kind.ours and growth:
            case = f"{sizes[-1]:,} idle connections beside {sizes[0]}"
            figures.append(Figure(f"borrow and return, {_caller(kind)}", case, growth, " x", GOAL))
    head = ("", "", *(f"{size:,} connections" for size in sizes), "growth")
    crowds = ((10, 10), (100, 1_000)) if quick else crowd.SIZES
    figures += crowd.figures(asyncio.run(crowd.costs(1 if quick else crowd.ROUNDS, crowds)), crowds)
    return Section("Sizes", TEXT, [Table(head, rows, words=2)], [], figures, found.left_out, why=WHY)


def _caller(kind: Contestant) -> str:
    return "one task" if kind in objects.TASKS else "one thread"


def _lends(kind: Contestant, size: int) -> str:
    return f"one of {size:,} to {_caller(kind)}"


def _sized(kind: Contestant, size: int) -> Contestant:
    return replace(kind, open=lambda _: kind.open(size), lends=_lends(kind, size))
