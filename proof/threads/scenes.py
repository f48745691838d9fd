"""What the threads do to a pool, and what has to hold whatever the order."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

from millpond import Pool, PoolClosed, PoolTimeout, _fork, _maintenance, _shell, pool
from millpond._core import line
from millpond._core.core import Fitness
from millpond._core.entry import State
from millpond._core.pulse import Pulse
from proof.threads.schedule import Lock, Schedule

__all__ = ["NAMED", "Scene", "Stage"]


class Connection:
    """Knows who has it."""

    def __init__(self) -> None:
        self.held = False
        self.closed = False


class Silent:
    """A bell that nobody hears: the process's own maintenance is no thread of the schedule."""

    def __init__(self, pool: object) -> None:
        pass

    def ring(self) -> None:
        pass


class Broken(AssertionError):
    """A law is broken."""


class Stage:
    """A real pool whose locks, clock and workers are the schedule's."""

    def __init__(self, schedule: Schedule, **settings: Any) -> None:
        self.schedule = schedule
        self.opened = 0
        self.most = int(settings.get("max_size", 10))
        self.enrolled: list[object] = []
        self.served: list[object] = []
        self.pool: Pool[Connection] = Pool(self._open, close=self._close, **settings)
        self.pool._droppable = True
        # It is none of the process's: threads that a defect leaves standing keep it for ever.
        _fork._pools.pop(id(self.pool))
        # Another of the schedule's threads does the work of the maintenance.
        self.pool._kick = lambda: None  # type: ignore[method-assign]
        self.pool._lock = Lock(schedule)  # type: ignore[assignment]
        self.live: set[Connection] = set()

    def _open(self) -> Connection:
        conn = Connection()
        self.opened += 1
        self.live.add(conn)
        if len(self.live) > self.most:
            raise Broken(f"{len(self.live)} connections, and there may be {self.most}")
        return conn

    def _close(self, conn: Connection) -> None:
        if conn.held:
            raise Broken("a connection was closed that somebody has")
        conn.closed = True
        self.live.discard(conn)

    def borrow(self, timeout: float = math.inf, *, times: int = 1) -> None:
        """Borrow and return, and see that nobody else has it meanwhile.

        Without a timeout, since one who has been forgotten must not get away by it.
        """
        for _ in range(times):
            with suppress(PoolTimeout, PoolClosed), self.pool.connection(timeout) as conn:
                if conn.held or conn.closed:
                    raise Broken("a connection was lent that somebody has, or that was closed")
                conn.held = True
                self.schedule.point()
                if self.pool._core.by_conn[id(conn)].state is not State.LENT:
                    raise Broken("a connection that is on loan is not on the books as such")
                conn.held = False

    def stock(self, count: int) -> None:
        """Have idle connections before it begins."""
        leases = [self.pool.connection() for _ in range(count)]
        waiters = []
        for _ in leases:
            waiter = self.pool._waiter(math.inf)
            self.pool._step(self.pool._core.enrol, waiter)
            waiters.append(waiter)
            while self.pool._open_one():
                pass
        for waiter in waiters:
            claim, waiter.claim = waiter.claim, None
            assert claim is not None
            self.pool._step(self.pool._core.release, claim, Fitness.CLEAN)
        self.enrolled.clear()
        self.served.clear()

    def labour(self) -> None:
        """Do the pool's work as its workers and its keeper would, as long as anybody else is there."""
        pool, core = self.pool, self.pool._core
        others = self.schedule.actors[:-1]

        def wanted() -> bool:
            return bool(core.chores) or core.opens_wanted(self.schedule.now) > 0

        while True:
            self.schedule.pause(lambda: wanted() or all(actor.done for actor in others))
            if not wanted():
                return
            while pool._open_one() or pool._tend_one():
                pass

    def check(self) -> None:
        """Hold what is left against the laws."""
        core = self.pool._core
        for actor in self.schedule.actors:
            if actor.error is not None:
                raise Broken(f"{actor.name} met {actor.error!r}") from actor.error
        while core.chores:
            self.pool._tend_one()
        found = self.pool._step(core.audit)
        if found:
            raise Broken(f"the books were wrong: {found}")
        stats = self.pool.stats()
        if stats.waiting or stats.lent:
            raise Broken(f"{stats.waiting} still wait, {stats.lent} are still lent")
        if len(core.entries) != len(self.live):
            raise Broken(f"{len(core.entries)} connections on the books, {len(self.live)} open")
        places = {waiter: place for place, waiter in enumerate(self.enrolled)}
        order = [places[waiter] for waiter in self.served if waiter in places]
        if order != sorted(order):
            raise Broken("somebody was served before one who had come first")


@dataclass(frozen=True)
class Scene:
    """What is played."""

    name: str
    about: str
    play: Callable[[Stage], dict[str, Callable[[], object]]]
    """Returns what each thread does."""
    size: int = 1
    stock: int = 1
    """How many connections are idle when it begins."""

    @contextmanager
    def on(self, schedule: Schedule) -> Iterator[Stage]:
        """Set the stage."""

        def make_lock() -> Lock:
            return Lock(schedule)

        clock = schedule.clock
        locks = SimpleNamespace(**{**vars(threading), "Lock": make_lock})
        times = SimpleNamespace(**{**vars(time), "monotonic": clock})
        with (
            patch.object(pool, "threading", locks),
            patch.object(pool, "monotonic", clock),
            patch.object(_shell, "time", times),
            patch.object(_shell.log, "disabled", True),
            patch.object(_maintenance, "pulse", Pulse(schedule.now, lambda: 0.0)),
            patch.object(_maintenance, "Bell", Silent),
            patch.object(_maintenance, "attends", lambda _: True),
            # One who has been forgotten must not get away by looking again.
            patch.object(pool, "PATIENCE", math.inf),
        ):
            stage = Stage(schedule, max_size=self.size, check_after=float("inf"))
            enrol, leave = line.Line.enrol, line.Line.leave

            def note_enrolled(self: Any, waiter: Any) -> None:
                stage.enrolled.append(waiter)
                enrol(self, waiter)

            def note_left(self: Any, waiter: Any) -> None:
                if waiter.claim is not None:
                    stage.served.append(waiter)
                leave(self, waiter)

            with patch.object(line.Line, "enrol", note_enrolled), patch.object(line.Line, "leave", note_left):
                stage.stock(self.stock)
                for name, work in self.play(stage).items():
                    schedule.spawn(name, work)
                schedule.spawn("worker", stage.labour)
                yield stage


def _two_for_one(stage: Stage) -> dict[str, Callable[[], object]]:
    return {"one": stage.borrow, "other": stage.borrow}


def _three_for_one(stage: Stage) -> dict[str, Callable[[], object]]:
    return {"one": stage.borrow, "other": stage.borrow, "third": stage.borrow}


def _again(stage: Stage) -> dict[str, Callable[[], object]]:
    return {"one": lambda: stage.borrow(times=2), "other": lambda: stage.borrow(times=2)}


def _one_gives_up(stage: Stage) -> dict[str, Callable[[], object]]:
    return {"one": stage.borrow, "hasty": lambda: stage.borrow(0.1), "third": stage.borrow}


def _nick_of_time(stage: Stage) -> dict[str, Callable[[], object]]:
    return {"hasty": lambda: stage.borrow(0.1), "other": stage.borrow}


def _close(stage: Stage) -> dict[str, Callable[[], object]]:
    return {"one": stage.borrow, "other": stage.borrow, "closer": lambda: stage.pool._close_down()}


def _resize(stage: Stage) -> dict[str, Callable[[], object]]:
    def shrink() -> None:
        stage.pool.resize(max_size=1)

    return {"one": stage.borrow, "other": stage.borrow, "resizer": shrink}


def _refresh(stage: Stage) -> dict[str, Callable[[], object]]:
    return {"one": stage.borrow, "other": stage.borrow, "refresher": lambda: stage.pool.refresh()}


def _pause(stage: Stage) -> dict[str, Callable[[], object]]:
    def pause() -> None:
        stage.pool.pause()
        stage.pool.resume()

    return {"one": stage.borrow, "other": stage.borrow, "pauser": pause}


def _discard(stage: Stage) -> dict[str, Callable[[], object]]:
    def discard() -> None:
        with suppress(PoolTimeout), stage.pool.connection() as conn:
            stage.pool.discard(conn)

    return {"one": stage.borrow, "other": stage.borrow, "discarder": discard}


_SCENES: Final = (
    Scene("two-for-one", "two borrow one connection", _two_for_one),
    Scene("three-for-one", "three do", _three_for_one),
    Scene("again", "two do, twice each", _again),
    Scene("gives-up", "one of three gives up", _one_gives_up),
    Scene("opens", "it has to be opened first", _two_for_one, stock=0),
    Scene("nick-of-time", "one gives up while it is served", _nick_of_time, stock=0),
    Scene("close", "the pool is closed", _close),
    Scene("resize", "it shrinks", _resize, size=2, stock=2),
    Scene("refresh", "it is refreshed", _refresh),
    Scene("pause", "it is paused and goes on", _pause),
    Scene("discard", "one is discarded", _discard),
)

NAMED: Final = {scene.name: scene for scene in _SCENES}
