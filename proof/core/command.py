"""Explores the core, and prints how far each case was explored, and the path to whatever breaks a law.

python -m proof core [--transitions N] [--workers N] [CASE ...]
python -m proof core --replay CASE PATH
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from proof.core.case import Case
from proof.core.cases import CASES
from proof.core.search import Found, explore
from proof.core.telling import parse_path, tell_path, write_path
from proof.verdict import Verdict

__all__ = ["main"]

TRANSITIONS = 125_000
"""How many each case is explored for, if it does not end before."""


def main(argv: list[str]) -> Verdict:
    """Explore and print."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m proof core", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(names)}; all by default")
    parser.add_argument("--transitions", type=float, default=TRANSITIONS, metavar="N", help="how many for each case")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    parser.add_argument("--replay", nargs=2, metavar=("CASE", "PATH"), help="go a path again that was printed")
    arguments = parser.parse_args(argv)
    asked = arguments.replay[:1] if arguments.replay else arguments.cases
    unknown = set(asked) - set(names)
    if unknown:
        parser.error(f"no case is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    cases = [case for case in CASES if not asked or case.name in asked]
    started = time.monotonic()
    if arguments.replay:
        print(*tell_path(cases[0], parse_path(arguments.replay[1])), sep="\n")
        return Verdict(f"one path in {cases[0].name}", [], time.monotonic() - started)
    tried, broken = run(cases, arguments.transitions, arguments.workers)
    return Verdict(tried, broken, time.monotonic() - started)


def run(cases: list[Case], most: float, workers: int) -> tuple[str, list[str]]:
    """Explore cases and print what has come of them; return how much that was, and in which laws are broken."""
    print(f"{'case':16} {'what happens':54} {'states':>8} {'transitions':>11} {'cut':>8} {'events':>9} {'seconds':>7}")
    states: set[int] = set()
    explored: list[Found] = []
    # Processes of their own, which give back their memory.
    with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=1) as executor:
        for future in as_completed([executor.submit(explore, case, most) for case in cases]):
            found = future.result()
            print_found(found)
            states.update(found.states)
            explored.append(found)
    tried = (
        f"{len(states):,} distinct states, {sum(found.transitions for found in explored):,} transitions "
        f"({sum(found.cuts for found in explored):,} end within a change), "
        f"{sum(found.complete for found in explored)} of {len(cases)} cases to their end"
    )
    return tried, [f"{found.case.name}: {', '.join(found.violations)}" for found in explored if found.violations]


def print_found(found: Found) -> None:
    """Print how far a case was explored, and which laws are broken in it, each with a shortest path to there."""
    case = found.case
    depth = "all" if found.complete else f"up to {found.depth}"
    print(
        f"{case.name:16} {case.about:54} {len(found.states):8,} {found.transitions:11,} {found.cuts:8,} {depth:>9} "
        f"{found.seconds:7.1f}",
        flush=True,
    )
    for law, path in found.violations.items():
        print(f"VIOLATED in {case.name}: {law}, after {len(path)} events:")
        print(*tell_path(case, path), sep="\n")
        print(f"again: python -m proof core --replay {case.name} '{write_path(path)}'", flush=True)
