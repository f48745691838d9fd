"""Plays the scenes, and prints how many schedules each was played by, and the schedule that breaks a law.

python -m proof threads [--seconds S] [--workers N] [SCENE ...]
python -m proof threads --replay SCENE TURNS
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Final, NamedTuple

from proof.threads.scenes import NAMED
from proof.threads.schedule import Grain
from proof.threads.search import Played, Turns, play, play_all, play_random
from proof.verdict import Verdict

__all__ = ["main"]

SECONDS: Final = 6.0
"""How long each scene is played in each way, if it does not end before."""


class Way(NamedTuple):
    """How a scene is played."""

    about: str
    grain: Grain
    turns: int
    random: bool = False


WAYS: Final = (
    Way("2 preemptions", Grain.PLACES, 2),
    Way("1 preemption at any instruction", Grain.OPCODES, 1),
    Way("6 turns at random", Grain.PLACES, 6, random=True),
    Way("6 turns at any instruction", Grain.OPCODES, 6, random=True),
)


def main(argv: list[str]) -> Verdict:
    """Play and print."""
    parser = argparse.ArgumentParser(prog="python -m proof threads", description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=f"one of {', '.join(NAMED)}; all by default")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="how long each, in each way")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes")
    parser.add_argument("--replay", nargs=2, metavar=("SCENE", "TURNS"), help="play a schedule again that was printed")
    arguments = parser.parse_args(argv)
    asked = arguments.replay[:1] if arguments.replay else arguments.scenes
    unknown = set(asked) - set(NAMED)
    if unknown:
        parser.error(f"no scene is called {', '.join(sorted(unknown))}; there are {', '.join(NAMED)}")
    started = time.monotonic()
    if arguments.replay:
        tried, broken = "one schedule", replay(asked[0], arguments.replay[1])
    else:
        tried, broken = run(
            [name for name in NAMED if not asked or name in asked], arguments.seconds, arguments.workers
        )
    return Verdict(tried, broken, time.monotonic() - started)


def run(names: list[str], seconds: float, workers: int) -> tuple[str, list[str]]:
    """Play scenes in all ways; return how much that was, and in which of them a law is broken."""
    print(
        f"{'scene':14} {'what happens':40} {'played with':34} {'schedules':>9} {'points':>6} {'all':>4} {'seconds':>7}"
    )
    total = 0
    broken: list[str] = []
    with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=1) as executor:
        for future in as_completed([executor.submit(explore, name, way, seconds) for name in names for way in WAYS]):
            name, way, played = future.result()
            print_played(name, way, played)
            total += played.schedules
            if played.broken is not None:
                broken.append(f"{name}, {way.about}: {played.broken}")
    return f"{total:,} schedules of {len(names)} scenes", broken


def explore(name: str, way: Way, seconds: float) -> tuple[str, Way, Played]:
    """Play a scene in one way, in a process of its own."""
    played = (play_random if way.random else play_all)(name, way.grain, way.turns, seconds)
    return name, way, played


def print_played(name: str, way: Way, played: Played) -> None:
    """Print how many schedules there were, and the one that breaks a law."""
    every = "yes" if played.complete else "no"
    print(
        f"{name:14} {NAMED[name].about:40} {way.about:34} {played.schedules:9,} {played.points:6} {every:>4} "
        f"{played.seconds:7.1f}",
        flush=True,
    )
    if played.broken is not None:
        turns = json.dumps([way.grain.value, sorted(played.turns.items())])
        print(f"VIOLATED in {name}: {played.broken}")
        print(f"again: python -m proof threads --replay {name} '{turns}'", flush=True)


def replay(name: str, text: str) -> list[str]:
    """Play one schedule, and print every point where it changes; return the law that it breaks."""
    grain, pairs = json.loads(text)
    turns: Turns = dict(pairs)
    try:
        play(NAMED[name], turns, Grain(grain), tell=print)
    except AssertionError as error:
        print(f"VIOLATED: {error}")
        return [str(error)]
    print("every law holds")
    return []
