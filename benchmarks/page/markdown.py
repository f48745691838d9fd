"""The page's text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

from benchmarks.figure import Figure
from benchmarks.page.machine import machine, versions
from benchmarks.page.section import Section, Table

__all__ = ["page", "section"]

FOREWORD = """\
# millpond beside its peers

The same work in the same run: the contestants take turns, in many short rounds, forwards and backwards. A time is the
median over the rounds, with the middle half of them beside it; a ratio is the median of the ratios within each round.
Each pool is set up as its documentation recommends for speed, with as many connections as it may have, all open before
the first round; what it checks and resets is said with each table, with the code that was run, and
[benchmarks/peers](../../benchmarks/peers) has how each is made. Rows that millpond loses, and goals that it misses, are
there like the others. A peer that could not take part is named, with the reason.

Not compared are httpx and httpcore 1, whose last releases are of December 2024 and April 2025: httpx2 and httpcore2,
which go on with them, are.

This page is written by a command, which takes a quarter of an hour on a machine that does nothing else:

```sh
make bench                                # everything, into docs/benchmarks
make bench ARGS='one-thread --quick'      # a part, roughly, into build/benchmarks
```
"""


def page(sections: Sequence[Section]) -> str:
    """Return the whole page."""
    parts = [FOREWORD, "\n".join(_circumstances()), *(section(each) for each in sections)]
    return "\n".join(parts)


def _circumstances() -> Iterator[str]:
    yield f"Measured on {date.today():%d %B %Y}, {machine()}.\n"
    yield ", ".join(f"{name} {number}" for name, number in versions()) + ".\n"


def section(section: Section) -> str:
    """Return one part of it."""
    parts = [f"## {section.title}\n", section.text.strip() + "\n"]
    parts += [f"![{chart.title}]({chart.name}.svg)\n" for chart in section.charts]
    parts += [table(each) for each in section.tables]
    if section.figures:
        parts.append(_goals(section.figures))
    if section.why:
        parts.append(section.why.strip() + "\n")
    parts += [
        f"Left out: {out.contestant.name}, lends {out.contestant.lends} ({out.reason}).\n" for out in section.left_out
    ]
    if section.contestants:
        parts.append(_code(section))
    return "\n".join(parts)


def table(table: Table) -> str:
    """Return a table."""
    lines = [table.caption + "\n"] if table.caption else []
    lines.append(_cells(table.head))
    lines.append("|" + "|".join("---" if place < table.words else "---:" for place in range(len(table.head))) + "|")
    lines += [_cells(row) for row in table.rows]
    return "\n".join(lines) + "\n"


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _goals(figures: Sequence[Figure]) -> str:
    rows = [
        (f"{each.measure}, {each.case}", each.shown, each.shown_goal, "kept" if each.kept else "**missed**")
        for each in figures
    ]
    return table(Table(("goal", "measured", "wanted", ""), rows))


def _code(section: Section) -> str:
    lines = ["<details><summary>What was run</summary>\n", "```python"]
    for contestant in section.contestants:
        lines += [f"# {contestant.name}, lends {contestant.lends}", contestant.loan, ""]
    return "\n".join([*lines[:-1], "```", "", "</details>", ""])
