"""All schedules up to so many preemptions, then random ones."""

from __future__ import annotations

import gc
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from proof.threads.scenes import NAMED, Scene
from proof.threads.schedule import Grain, Point, Schedule

__all__ = ["Played", "Turns", "play", "play_all", "play_random"]

Turns = dict[int, int]


@dataclass
class Played:
    """What has come of a scene."""

    schedules: int = 0
    points: int = 0
    """How many points the longest schedule has."""
    complete: bool = True
    """Whether these are all, up to the bound."""
    seconds: float = 0.0
    broken: str | None = None
    """What must not be."""
    turns: Turns = field(default_factory=dict)
    """The schedule that leads to it."""


FORGETFUL = sys.version_info >= (3, 13)
"""Whether code that has run without being traced does not tell of all its instructions when it is traced again."""


def play(scene: Scene, turns: Turns, grain: Grain, tell: Callable[[str], object] | None = None) -> list[Point]:
    """Play a scene by one schedule; return its points, or raise what is wrong."""
    # A collection in the midst of it would end what is left of earlier pools, and add points that are not this one's.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _played(scene, turns, grain, tell)
    finally:
        if collecting:
            gc.enable()


def _played(scene: Scene, turns: Turns, grain: Grain, tell: Callable[[str], object] | None) -> list[Point]:
    forgotten = FORGETFUL
    while True:
        schedule = Schedule(turns, grain, tell)
        try:
            _play_once(scene, schedule)
        except AssertionError:
            if not (schedule.fresh or forgotten):
                raise
        if not (schedule.fresh or forgotten):
            return schedule.points
        forgotten = False


def _play_once(scene: Scene, schedule: Schedule) -> None:
    with scene.on(schedule) as stage:
        schedule.run()
        stage.check()


def play_all(name: str, grain: Grain, preemptions: int, seconds: float = math.inf, most: float = math.inf) -> Played:
    """Play a scene by every schedule that has so many preemptions at most, as far as there is time."""
    played = Played()
    began = time.perf_counter()
    chance = random.Random(name)
    level = [_Branch({}, 0, preemptions)]
    while level and played.broken is None and played.complete:
        # Those with the fewest turns come first: what breaks a law is as short as can be. Of those that have as many,
        # any may be left out when the time is over.
        chance.shuffle(level)
        following: list[_Branch] = []
        for branch in level:
            if time.perf_counter() - began > seconds or played.schedules >= most:
                played.complete = False
                break
            points = _play_into(played, name, branch.turns, grain)
            if not points:
                break
            following.extend(_branches(branch, points))
        level = following
    played.seconds = time.perf_counter() - began
    return played


def play_random(name: str, grain: Grain, turns: int, seconds: float = math.inf, most: float = math.inf) -> Played:
    """Play a scene by random schedules of so many turns at most, from the same seed each time."""
    played = Played(complete=False)
    began = time.perf_counter()
    chance = random.Random(name)
    _play_into(played, name, {}, grain)
    while played.broken is None and time.perf_counter() - began < seconds and played.schedules < most:
        # The threads of no scene are more than four; a turn that nobody can take is passed over.
        chosen = {chance.randint(1, played.points): chance.randint(-4, 3) for _ in range(chance.randint(1, turns))}
        _play_into(played, name, chosen, grain)
    played.seconds = time.perf_counter() - began
    return played


def _play_into(played: Played, name: str, turns: Turns, grain: Grain) -> list[Point]:
    played.schedules += 1
    try:
        points = play(NAMED[name], turns, grain)
    except AssertionError as error:
        played.broken, played.turns = str(error), turns
        return []
    if points:
        played.points = max(played.points, points[-1].number)
    return points


class _Branch(NamedTuple):
    """A schedule, and how it may be continued."""

    turns: Turns
    last: int
    preemptions: int


def _branches(branch: _Branch, points: list[Point]) -> Iterator[_Branch]:
    """Return the schedules that have one turn more, after the last."""
    turns, last, preemptions = branch
    for point in points:
        if point.number <= last:
            continue
        if point.free or preemptions:
            left = preemptions - (not point.free)
            for other in point.others:
                yield _Branch({**turns, point.number: other}, point.number, left)
