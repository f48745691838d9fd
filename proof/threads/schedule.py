"""Threads that run one at a time, and change places only where a schedule says so.

CPython, with its GIL, changes threads where a function begins, after a call, and where a loop goes back (3.11 to 3.13);
`PLACES` are these. `OPCODES` are all instructions that others could take notice of, which are some three times as many:
nothing is then left to when CPython looks.
"""

from __future__ import annotations

import dis
import enum
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

import millpond

__all__ = ["Actor", "Grain", "Lock", "Point", "Schedule", "Stuck"]

PACKAGE: Final = str(Path(millpond.__file__).parent)
PATIENCE: Final = 60.0
"""Seconds after which a thread must have left the schedule: one takes some thousandths."""
_traced: Final[set[CodeType]] = set()
"""What has been traced in this process before."""
EPOCH: Final = 1000.0
"""What time it is when a schedule begins."""
VISIBLE: Final = ("ATTR", "METHOD", "CALL", "SUBSCR", "GLOBAL", "DEREF", "CONTAINS", "ITER", "WITH")
"""What the names of instructions have in them that others could take notice of, or that depend on others."""


class Grain(enum.Enum):
    """Where threads may change places."""

    PLACES = "places"
    OPCODES = "opcodes"


class Stuck(AssertionError):
    """Somebody waits, and nobody can go on."""


class Point(NamedTuple):
    """One point of a schedule at which it could have gone on otherwise."""

    number: int
    chosen: int
    others: tuple[int, ...]
    """Who else could have gone on. One who would have to be told that its time is over counts from -1 downwards."""
    free: bool
    """Whether it had to go on with somebody else anyway."""


class Actor:
    """One of the threads."""

    def __init__(self, schedule: Schedule, number: int, name: str, work: Callable[[], object]) -> None:
        self.name = name
        self.number = number
        self.done = False
        self.error: BaseException | None = None
        self.ready: Callable[[], bool] | None = None
        """What it waits for, if it waits."""
        self.deadline: float | None = None
        self.late = False
        """Whether its time was over before it got what it waits for."""
        self._schedule = schedule
        self._work = work
        self.turn = threading.Lock()
        self.turn.acquire()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def able(self) -> bool:
        """Whether it can go on."""
        return self.ready is None or self.ready()

    def _run(self) -> None:
        self.turn.acquire()
        try:
            sys.settrace(self._schedule.trace)
            self._work()
        except BaseException as error:
            self.error = error
        finally:
            sys.settrace(None)
            self.done = True
            self._schedule.leave()


class Schedule:
    """One run: `turns` says at which point who is to go on instead of the one who would by default.

    By default whoever runs goes on as long as it can, then the next who can, and time passes when nobody can.
    """

    def __init__(self, turns: dict[int, int], grain: Grain, tell: Callable[[str], object] | None = None) -> None:
        self.turns = turns
        self._tell = tell
        self.points: list[Point] = []
        self.now = EPOCH
        self.actors: list[Actor] = []
        self.current: Actor
        self.stuck: Stuck | None = None
        self.fresh = False
        """Whether something was traced for the first time. Python 3.12 and 3.13 do not tell of all its instructions
        then, so its points are not those that it has from then on."""
        self._grain = grain
        self._count = 0
        self._over = threading.Event()
        self._after_call: set[int] = set()
        self._choosing = False

    def clock(self) -> float:
        """Tell what time it is: always the same, unless everybody waits."""
        return self.now

    def spawn(self, name: str, work: Callable[[], object]) -> Actor:
        """Add a thread."""
        actor = Actor(self, len(self.actors), name, work)
        self.actors.append(actor)
        return actor

    def run(self) -> None:
        """Run all threads to their end; raise `Stuck` if they do not come to it."""
        for actor in self.actors:
            actor.thread.start()
        self.current = self.actors[0]
        self.current.turn.release()
        if not self._over.wait(PATIENCE):
            raise Stuck("a thread has left the schedule: it waits for something that is none of it")
        if self.stuck is not None:
            raise self.stuck

    # What the threads call.

    def pause(self, ready: Callable[[], bool], deadline: float | None = None) -> bool:
        """Have the running thread wait; tell whether it got what it waited for before its time was over."""
        actor = self.current
        actor.ready, actor.deadline, actor.late = ready, deadline, False
        self._go_on()
        actor.ready = actor.deadline = None
        return not actor.late

    def leave(self) -> None:
        """Have others go on, as the running thread has ended."""
        if all(actor.done for actor in self.actors):
            self._over.set()
        else:
            self._go_on(ended=True)

    def trace(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        """Be what `sys.settrace` calls."""
        code = frame.f_code
        if self._choosing or not code.co_filename.startswith(PACKAGE):
            return None
        if code not in _traced:
            _traced.add(code)
            self.fresh = True
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._after_call.discard(id(frame))
        self.point()
        return self._trace_fine if self._grain is Grain.OPCODES else self._trace_places

    def _trace_fine(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if event == "opcode" and frame.f_lasti in _visible(frame.f_code):
            self.point()
        return self._trace_fine

    def _trace_places(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if event == "opcode":
            identity = id(frame)
            if identity in self._after_call:
                self._after_call.discard(identity)
                self.point()
            if frame.f_lasti in _looking(frame.f_code):
                self._after_call.add(identity)
        return self._trace_places

    def point(self) -> None:
        """Pass a point where the running thread may have to stand back."""
        self._count += 1
        current = self.current
        others = tuple(self._others(current))
        wanted = self.turns.get(self._count)
        if others:
            self.points.append(Point(self._count, current.number, others, free=False))
        if wanted is not None and wanted in others:
            self._hand_over(current, wanted)

    def _others(self, current: Actor | None) -> list[int]:
        # What somebody waits for is asked of the pool, which is nobody's step.
        self._choosing = True
        able = {actor: actor.able for actor in self.actors if not actor.done}
        self._choosing = False
        others = [actor.number for actor in able if actor is not current and able[actor]]
        others += [-1 - actor.number for actor in able if actor.deadline is not None and not able[actor]]
        return others

    def _go_on(self, *, ended: bool = False) -> None:
        """Choose who goes on now that the running thread cannot."""
        self._count += 1
        current = self.current
        candidates = self._others(None)
        if not candidates:
            self.stuck = Stuck(f"nobody can go on: {', '.join(a.name for a in self.actors if not a.done)} wait")
            self._over.set()
            if not ended:
                current.turn.acquire()  # for ever; a daemon
            return
        # Whoever can go on comes before those for whom time would have to pass, and of those the first whose time ends.
        default = next((number for number in candidates if number >= 0), None)
        if default is None:
            default = min(candidates, key=lambda number: self.actors[-1 - number].deadline or 0.0)
        wanted = self.turns.get(self._count, default)
        if wanted not in candidates:
            wanted = default
        self.points.append(Point(self._count, default, tuple(n for n in candidates if n != default), free=True))
        self._hand_over(current, wanted, ended=ended)

    def _hand_over(self, current: Actor, wanted: int, *, ended: bool = False) -> None:
        if wanted < 0:
            chosen = self.actors[-1 - wanted]
            assert chosen.deadline is not None
            self.now = max(self.now, chosen.deadline)
            chosen.late = True
            chosen.ready = None
        else:
            chosen = self.actors[wanted]
        if chosen is current:
            return
        if self._tell is not None:
            self._tell(
                f"{self._count:5} {current.name} at {where()}; on with {chosen.name}{', too late' * chosen.late}"
            )
        self.current = chosen
        chosen.turn.release()
        if not ended:
            current.turn.acquire()


class Lock:
    """A lock of the schedule: what `threading.Lock` and `threading.RLock` are to threads."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._owner: Actor | None = None
        self._locked = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As `threading.Lock`'s."""
        schedule = self._schedule
        if self._locked:
            deadline = None if timeout < 0 else schedule.now + timeout
            if not blocking or not schedule.pause(lambda: not self._locked, deadline):
                return False
        self._locked = True
        self._owner = getattr(schedule, "current", None)
        return True

    def locked(self) -> bool:
        """As `threading.Lock`'s."""
        return self._locked

    def release(self) -> None:
        """As `threading.Lock`'s."""
        if not self._locked:
            raise RuntimeError("release unlocked lock")
        self._locked = False
        self._owner = None

    def _is_owned(self) -> bool:
        return self._locked and self._owner is getattr(self._schedule, "current", None)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def where() -> str:
    """Tell at which line of millpond's the running thread is."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return "its beginning or end" if frame is None else f"{frame.f_code.co_qualname}, line {frame.f_lineno}"


@cache
def _visible(code: CodeType) -> frozenset[int]:
    return frozenset(i.offset for i in dis.get_instructions(code) if any(part in i.opname for part in VISIBLE))


@cache
def _looking(code: CodeType) -> frozenset[int]:
    return frozenset(i.offset for i in dis.get_instructions(code) if "CALL" in i.opname or "BACKWARD" in i.opname)
