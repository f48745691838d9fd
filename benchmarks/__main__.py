"""Measures everything, or what is named, and prints each figure beside its goal; exits with 1 if one falls short.

python -m benchmarks [--markdown] [NAME ...]
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from importlib import import_module

from benchmarks.figure import Figure

MEASURES = (
    "burst",
    "fairness",
    "recovery",
    "failed-open",
    "fleet",
    "crowd",
    "hot-path",
    "httpx-cancellations",
    "httpx-get",
    "httpx-waiting",
    "idle-pools",
    "observed",
    "redis-fairness",
    "redis-interruptions",
    "redis-loans",
    "redis-rotation",
    "urllib3-get",
    "urllib3-interruptions",
    "urllib3-waiting",
)
"""Each is a module of this package."""


def figures(name: str) -> Iterator[Figure]:
    """Measure, and yield one figure after the other."""
    yield from import_module(f"benchmarks.{name.replace('-', '_')}").measure()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(MEASURES)}; all by default")
    parser.add_argument("--markdown", action="store_true", help="print a table for docs/measurements.md")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(MEASURES)
    if unknown:
        parser.error(f"no measure is called {', '.join(sorted(unknown))}; there are {', '.join(MEASURES)}")
    if arguments.markdown:
        print("| measure | case | measured | goal | |\n|---|---|---:|---:|---|", flush=True)
    # Outages are told to the log; here they are made on purpose.
    logging.getLogger("millpond").addHandler(logging.NullHandler())
    short = 0
    for name in arguments.names or MEASURES:
        start = time.monotonic()
        for figure in figures(name):
            short += not figure.kept
            verdict = "kept" if figure.kept else "**missed**" if arguments.markdown else "MISSED"
            cells = figure.measure, figure.case, figure.shown, figure.shown_goal, verdict
            if arguments.markdown:
                print("|", " | ".join(cells), "|", flush=True)
            else:
                measure, case, shown, goal, _ = cells
                print(f"{name:12} {measure + ', ' + case:74} {shown:>10}   goal {goal:<10} {verdict}", flush=True)
        print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
