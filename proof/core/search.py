"""Breadth first through all states, then on from each as a fair world would go."""

from __future__ import annotations

import gc
import math
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from marshal import loads
from typing import Final

from proof.core import laws
from proof.core.case import Case
from proof.core.stand import CALLERS, LINE, Row, Violation
from proof.core.world import Event, World

__all__ = ["Found", "Search", "explore", "replay", "why"]

UNKNOWN: Final = 1 << 40
"""A state that has not been reached."""
WAITING: Final = 1
"""Somebody waits in a state."""
TIME: Final = 2
"""Only time brings a state forward."""

SPARES: Final = 4
"""There are connections that `max_idle` will end."""


@dataclass
class Found:
    """What the exploration of one case has come to."""

    case: Case
    states: array[int] = field(default_factory=lambda: array("Q"))
    """The states, by what is as good as their identity; equal in cases that differ in what happens only."""
    transitions: int = 0
    cuts: int = 0
    """How many of the transitions end with an exception in the middle of a change."""
    depth: int = 0
    """How many events every path of the explored has, or fewer."""
    complete: bool = True
    """Whether there are no other states."""
    seconds: float = 0.0
    waits: int = 0
    """How often time has to pass at most until everybody is served, from any state, if the world is fair."""
    violations: dict[str, list[Event]] = field(default_factory=dict)
    """What must not be, and a shortest path to it."""


class Search:
    """The exploration of one case, up to so many transitions and seconds."""

    def __init__(self, case: Case, transitions: float = math.inf, seconds: float = math.inf) -> None:
        self.found = Found(case)
        self._world = World(case)
        self._key = blake2b(repr((case.all_settings(), case.pools, case.budget, bool(case.steps))).encode()).digest()
        self._most = transitions
        self._seconds = seconds
        self._known: dict[int, int] = {}
        self._parents = array("q")
        self._via = array("q")
        self._events: dict[Event, int] = {}
        self._fair = array("q")
        self._marks = bytearray()
        self._following: deque[tuple[int, bytes]] = deque()

    def run(self) -> Found:
        """Explore."""
        started = time.perf_counter()
        found, following = self.found, self._following
        data = self._world.told(self._world.picture())
        self._arrive(-1, ("begin", 0), self._hash(data), data)
        level_ends = 1
        while following:
            index, data = following.popleft()
            if found.transitions >= self._most or time.perf_counter() - started > self._seconds:
                found.complete = False
            if index == level_ends:
                found.depth += found.complete
                level_ends = len(self._known)
            self._expand(index, loads(data))
        found.states = array("Q", self._known)
        self._follow()
        found.seconds = time.perf_counter() - started
        return found

    def _expand(self, index: int, picture: Row) -> None:
        """Have all happen that may happen next, or only what does in a fair world if there is no time for more."""
        world, case = self._world, self.found.case
        world.put(picture)
        events, is_fair = world.enabled(picture)
        rests = not is_fair or events[0][0] == "pass_time"
        if rests:
            try:
                laws.check_calm(world)
            except Violation as violation:
                self._note(violation, index)
        waiting = any(row[CALLERS] or any(row[LINE]) for row in picture[: case.pools])
        spares = any(stand.has_spares() for stand in world.stands)
        self._marks.append(waiting * WAITING | (is_fair and rests) * TIME | spares * SPARES)
        self._fair.append(index)
        step = self._step
        if not self.found.complete:
            del events[int(is_fair) :]
        elif case.cut:
            step = self._step_and_cut
        elif case.preempted:
            step = self._step_and_fly
        for number, event in enumerate(events):
            reached = step(index, event, picture)
            if number == 0 and is_fair:
                self._fair[index] = reached

    def _step(self, index: int, event: Event, picture: Row) -> int:
        world = self._world
        world.put(picture)
        self.found.transitions += 1
        try:
            world.apply(event)
            return self._reach(index, event, event, picture)
        except Exception as error:
            self._note(error, index, event)
            return UNKNOWN

    def _reach(self, index: int, step: Event, event: Event, picture: Row) -> int:
        """Look at what has come of an event, which is what the step consists of, or the greater part of it."""
        world = self._world
        after = world.picture()
        laws.check_change(world, event, after, picture)
        data = world.told(after)
        key = self._hash(data)
        reached = self._known.get(key, -1)
        if reached < 0:
            reached = self._arrive(index, step, key, data)
            laws.check_state(world, event, after)
        return reached

    def _step_and_cut(self, index: int, event: Event, picture: Row) -> int:
        """Have something happen, and look at every place what would be left if an exception struck there."""
        world = self._world
        world.put(picture)
        if not world.may_be_cut(event):
            return self._step(index, event, picture)
        left: dict[bytes, int] = {}
        place = 0
        violations: list[tuple[int, Violation]] = []

        def look() -> None:
            nonlocal place
            place += 1
            try:
                laws.check_cut(world)
                left.setdefault(world.told(world.picture()), place)
            except Violation as violation:
                violations.append((place, violation))

        try:
            world.apply_watched(event, look)
        except Exception as error:
            self._note(error, index, event)
            return UNKNOWN
        for number, violation in violations:
            self._note(violation, index, ("cut", number, event))
        for data, number in left.items():
            self.found.cuts += 1
            key = self._hash(data)
            if key not in self._known:
                self._arrive(index, ("cut", number, event), key, data)
        self.found.transitions += len(left)
        return self._step(index, event, picture)

    def _step_and_fly(self, index: int, event: Event, picture: Row) -> int:
        """Have something happen, while at one place within it somebody on the hot path takes a step, or all it can."""
        world = self._world
        if not world.may_be_cut(event):
            return self._step(index, event, picture)
        for others in world.flights(picture):
            place, passed = 0, 1
            while place < passed:
                place += 1
                passed = self._preempt(index, event, picture, place, others)
        return self._step(index, event, picture)

    def _preempt(self, index: int, event: Event, picture: Row, place: int, others: tuple[Event, ...]) -> int:
        """Have others take their steps at the place with that number; return how many places there are."""
        self._world.put(picture)
        preempted = ("preempted", place, event, others)
        try:
            passed = self._world.apply_preempted(event, place, others)
            self.found.transitions += 1
            self._reach(index, preempted, event, picture)
        except Exception as error:
            self._note(error, index, preempted)
            return 0
        return passed

    def _hash(self, data: bytes) -> int:
        return int.from_bytes(blake2b(data, digest_size=8, key=self._key).digest())

    def _arrive(self, index: int, event: Event, key: int, data: bytes) -> int:
        number = self._known[key] = len(self._known)
        self._parents.append(index)
        self._via.append(self._events.setdefault(event, len(self._events)))
        self._following.append((number, data))
        return number

    def _note(self, error: Exception, index: int, *events: Event) -> None:
        self.found.violations.setdefault(why(error), [*self._path(index), *events])

    def _path(self, index: int) -> list[Event]:
        """Return what led to a state."""
        names = list(self._events)
        path = []
        while index > 0:
            path.append(names[self._via[index]])
            index = self._parents[index]
        return path[::-1]

    def _follow(self) -> None:
        """Go on from each state that was expanded as a fair world does: nobody may wait for ever."""
        fair, marks = self._fair, self._marks
        reached = len(fair)
        # How often time passes until nobody waits; -1 where nobody has been yet, -2 on the way that is being gone.
        waits = array("q", [-1]) * reached
        for start in range(reached):
            trail = []
            index = start
            while index < reached and waits[index] == -1:
                waits[index] = -2
                trail.append(index)
                index = fair[index]
            passed = 0 if index >= reached else waits[index]
            if passed == -2:
                circle = trail[trail.index(index) :]
                del trail[-len(circle) :]
                for other in circle:
                    waits[other] = passed = 0
                    if marks[other] & WAITING:
                        self._note(Violation("a caller waits for ever"), start)
                if all(marks[other] & SPARES for other in circle):
                    self._note(Violation("connections beyond min_size are kept for ever"), start)
            for index in reversed(trail):
                passed += marks[index] & (WAITING | TIME) == WAITING | TIME
                waits[index] = passed
        self.found.waits = max(waits, default=0)


def why(error: Exception) -> str:
    """Say what is wrong, for people."""
    return str(error) if isinstance(error, Violation) else f"{type(error).__name__} was raised: {error}"


def explore(case: Case, transitions: float) -> Found:
    """Explore a case, up to so many transitions, in a process of its own."""
    # There is no garbage in cycles, and a great deal that lives.
    gc.disable()
    return Search(case, transitions).run()


def replay(case: Case, path: Iterable[Event]) -> Iterator[tuple[Event, str, Row]]:
    """Go a path again, and on as a fair world does until nothing new happens.

    Yields each event, where it was cut if it was, and what it has led to. Raises `Violation` where a law is broken.
    """
    world = World(case)
    picture: Row = loads(world.told(world.picture()))
    seen = set()
    for event in path:
        where, picture = _repeat(world, event, picture)
        yield event, where, picture
    while picture not in seen:
        seen.add(picture)
        world.put(picture)
        events, is_fair = world.enabled(picture)
        if not is_fair or events[0][0] == "pass_time":
            laws.check_calm(world)
        if is_fair:
            where, picture = _repeat(world, events[0], picture)
            yield events[0], where, picture


def _repeat(world: World, event: Event, before: Row) -> tuple[str, Row]:
    """Have something happen again; return where it was cut, and what it has led to."""
    world.put(before)
    if event[0] == "cut":
        return _repeat_cut(world, *event[1:])
    if event[0] == "preempted":
        _, place, main, others = event
        world.apply_preempted(main, place, others)
    else:
        main = event
        world.apply(main)
    after = world.picture()
    told = world.told(after)
    laws.check_change(world, main, after, before)
    laws.check_state(world, main, after)
    return "", loads(told)


def _repeat_cut(world: World, number: int, event: Event) -> tuple[str, Row]:
    place, told = 0, b""
    where = ""

    def look() -> None:
        nonlocal place, told, where
        place += 1
        if place == number:
            laws.check_cut(world)
            told = world.told(world.picture())
            assert world.places is not None
            where = world.places.where

    world.apply_watched(event, look)
    return where, loads(told)
