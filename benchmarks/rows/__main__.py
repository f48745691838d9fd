"""Has millpond and its peers do the same work, and writes what came of it, as Markdown and pictures.

python -m benchmarks.rows [--quick] [ROW ...]

A whole run goes to docs/benchmarks; one of some rows, or a quick one, which is good for nothing but to see that
everything works, goes to build/benchmarks.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.page.markdown import page, section
from benchmarks.page.picture import draw
from benchmarks.page.section import Section

ROWS = ("one-thread", "one-task", "threads", "tasks", "sizes", "memory", "queries", "resets", "start")
"""Each is a module of this package."""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of {', '.join(ROWS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a few short rounds, to see that it works")
    arguments = parser.parse_args()
    unknown = set(arguments.rows) - set(ROWS)
    if unknown:
        parser.error(f"no row is called {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    # Outages are told to the log; some peers tell more.
    logging.basicConfig(level=logging.CRITICAL)
    whole = not arguments.quick and not arguments.rows
    directory = Path("docs" if whole else "build", "benchmarks")
    directory.mkdir(parents=True, exist_ok=True)
    sections = []
    for name in arguments.rows or ROWS:
        began = time.monotonic()
        made: Section = import_module(f"benchmarks.rows.{name.replace('-', '_')}").run(arguments.quick)
        print(section(made), flush=True)
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
        sections.append(made)
    for old in directory.glob("*.svg"):
        old.unlink()
    for made in sections:
        for chart in made.charts:
            (directory / f"{chart.name}.svg").write_bytes(draw(chart))
    (directory / "README.md").write_text(page(sections))
    print(f"written to {directory}/README.md", file=sys.stderr)


if __name__ == "__main__":
    main()
