"""A part of the schedules that `make proof` plays; and that playing them finds what it is there to find."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import pytest
from proof.threads import schedule
from proof.threads.scenes import NAMED
from proof.threads.schedule import Grain
from proof.threads.search import play, play_all, play_random

from millpond import Pool
from millpond._core.core import Core
from millpond._core.entry import Claim
from millpond._core.lease import CLEAN, IDLE, Lease
from millpond._shell import Shell
from millpond.pool import ThreadLease


@pytest.fixture
def thresholds() -> Iterator[Iterable[int]]:
    """After how many new objects garbage is collected: somewhere, one after the other."""
    former = gc.get_threshold()
    yield range(20, 820, 40)
    gc.set_threshold(*former)


class Remains:
    """Garbage that calls millpond when it is collected, as what is left of a pool does."""

    def __init__(self, pool: Pool[object]) -> None:
        self.itself = self
        self.pool = pool

    def __del__(self) -> None:
        _ = self.pool.name


@pytest.mark.parametrize("name", NAMED)
def test_threads_keep_the_laws_wherever_one_is_preempted(name: str) -> None:
    played = play_all(name, Grain.PLACES, preemptions=1, most=60)
    assert played.broken is None
    # How many there are depends on what a Python tells of its places; all of them, or as many as were asked for.
    assert played.schedules > (20 if played.complete else 50)


@pytest.mark.parametrize("name", NAMED)
def test_threads_keep_the_laws_in_random_schedules(name: str) -> None:
    played = play_random(name, Grain.OPCODES, turns=6, most=20)
    assert played.broken is None


def test_a_schedule_is_the_same_when_it_is_played_again(thresholds: Iterable[int]) -> None:
    points = []
    with Pool(object) as pool:
        for threshold in thresholds:
            gc.set_threshold(threshold)
            Remains(pool)
            points.append(play(NAMED["close"], {30: 1, 45: 2}, Grain.PLACES))
    assert points == points[:1] * len(points)


# Classic defects of pools for threads, each as a change of the shell or the hot path that has it.

Defect = Callable[[pytest.MonkeyPatch], None]
DEFECTS: dict[str, tuple[Defect, str, int]] = {}


def defect(scene: str, preemptions: int) -> Callable[[Defect], Defect]:
    """Note a defect, and by which scene and how many preemptions it has to be found."""

    def note(seed: Defect) -> Defect:
        DEFECTS[seed.__name__] = seed, scene, preemptions
        return seed

    return note


@defect("two-for-one", 1)
def a_returner_looks_whether_anybody_waits_before_it_returns(patch: pytest.MonkeyPatch) -> None:
    def leave(
        self: Lease[Any], kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        claim, self._claim = self._claim, None
        assert claim is not None
        core = self._core
        inspect = core.inspect
        if error is None and claim.entry.good_until and (inspect is None or inspect(claim.entry.conn, None) is CLEAN):
            somebody_waits = core.gate
            claim.entry.idle_since = core.clock()
            claim.entry.state = IDLE
            core.idle.append(claim)
            if somebody_waits:
                self._pool._settle()
        else:
            self._pool._return(claim, error)

    patch.setattr(ThreadLease, "__exit__", leave)


@defect("two-for-one", 2)
def a_waiter_looks_before_it_raises_the_gate(patch: pytest.MonkeyPatch) -> None:
    original = Core._fetch

    def fetch(core: Core[Any], now: float, **how: bool) -> Claim[Any] | None:
        core.gate = False
        return original(core, now, **how)

    patch.setattr(Core, "_fetch", fetch)


@defect("two-for-one", 2)
def a_returner_notes_that_it_has_returned_afterwards(patch: pytest.MonkeyPatch) -> None:
    def leave(
        self: Lease[Any], kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        claim, self._claim = self._claim, None
        assert claim is not None
        core = self._core
        core.idle.append(claim)
        claim.entry.state = IDLE
        if core.gate:
            self._pool._settle()

    patch.setattr(ThreadLease, "__exit__", leave)


@defect("three-for-one", 2)
def changes_are_made_without_the_lock(patch: pytest.MonkeyPatch) -> None:
    def step(shell: Shell[Any], change: Callable[..., Any], *arguments: object) -> Any:
        core = shell._core
        outcome = change(*arguments, core.clock())
        while core.wakes:
            core.wakes.pop().wake()
        return outcome

    patch.setattr(Shell, "_step", step)


@pytest.mark.parametrize("name", DEFECTS)
def test_playing_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed, scene, preemptions = DEFECTS[name]
    seed(monkeypatch)
    # What a defect puts into the code is code of millpond's.
    monkeypatch.setattr(schedule, "PACKAGE", (schedule.PACKAGE, __file__))
    played = play_all(scene, Grain.PLACES, preemptions=preemptions, most=3000)
    assert played.broken is not None
    with pytest.raises(AssertionError):
        play(NAMED[scene], played.turns, Grain.PLACES)
