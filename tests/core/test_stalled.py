"""What takes too long is not counted on, and a check that does is given up when somebody needs the place."""

from __future__ import annotations

import math
from typing import Any

import pytest

from millpond._core.core import Fitness, Job, Task
from millpond._core.entry import Entry, Reason, State

from .conftest import Bench

AGELESS: dict[str, Any] = {
    "max_idle": math.inf,
    "max_lifetime": math.inf,
    "keepalive": math.inf,
    "check_after": math.inf,
}


def checking(bench: Bench, count: int, *, watched: bool = True) -> tuple[list[Entry[str]], list[Job[str]]]:
    """Have all connections be checked, by somebody who gets no answer."""
    entries = bench.stock(count)
    for entry in entries:
        entry.descriptor = entry.serial if watched else None
    bench.core.suspect(bench.now)
    bench.core.sweep(bench.now)
    jobs = []
    while (job := bench.core.next_chore(bench.now)) is not None:
        jobs.append(job)
    assert {entry.state for entry in entries} == {State.CHECKING}
    return entries, jobs


def full(size: int = 2, **options: Any) -> Bench:
    return Bench(max_size=size, max_opening=size, **AGELESS, **options)


def test_a_check_without_an_answer_is_given_up_for_a_caller_who_needs_the_place() -> None:
    bench = full(3)
    entries, jobs = checking(bench, 3)
    caller = bench.enrol("caller")
    bench.tick(0.4)
    assert not bench.core.cuts
    bench.tick(0.5)
    assert list(bench.core.cuts) == entries[:1]
    assert entries[0].state is State.CHECKING, "whoever is at it has it"
    bench.core.tended(jobs[0], False, bench.now)
    assert bench.core.closes == {Reason.CHECK_FAILED: 1}
    bench.tick(0.5)
    assert len(bench.core.cuts) == 1, "its place is about to be free"
    assert bench.work() == ["abandon"]
    bench.open()
    assert caller.claim is not None
    bench.check()


def test_an_answer_that_comes_in_the_moment_in_which_it_is_given_up_saves_nothing() -> None:
    bench = full(1)
    (entry,), (job,) = checking(bench, 1)
    caller = bench.enrol("caller")
    bench.tick(1.0)
    assert list(bench.core.cuts) == [entry]
    bench.core.tended(job, True, bench.now)
    assert caller.claim is None, "it has been cut"
    assert sorted(bench.work()) == ["close"]
    assert bench.core.opens_wanted(bench.now) == 1


@pytest.mark.parametrize("way", ["nobody waits", "room", "one comes back", "down", "far away", "unwatched", "paused"])
def test_a_check_is_not_given_up_for_nothing(way: str) -> None:
    bench = full(2 if way != "room" else 3)
    if way == "far away":
        for claim in bench.fill(2):
            bench.give(claim)
        bench.core.open_seconds = 200.0
    _, jobs = checking(bench, 2, watched=way != "unwatched")
    if way != "nobody waits":
        bench.enrol("caller")
    if way == "one comes back":
        bench.core.tended(jobs[0], True, bench.now)
    elif way == "down":
        bench.core.resize(type(bench.core.settings)(max_size=3, max_opening=2, **AGELESS), bench.now)
        bench.tick(1.0)
        bench.fail(bench.start())
        bench.core.resize(type(bench.core.settings)(max_size=2, max_opening=2, **AGELESS), bench.now)
    elif way == "paused":
        bench.core.pause(bench.now)
    bench.tick(5.0)
    assert not bench.core.cuts


def test_so_many_are_given_up_as_may_be_opened_at_once() -> None:
    bench = Bench(max_size=10, max_opening=3, **AGELESS)
    checking(bench, 10)
    for number in range(10):
        bench.enrol(f"caller {number}")
    bench.tick(0.5)
    assert len(bench.core.cuts) == 3


def test_opens_that_take_longer_than_they_may_make_way_for_others() -> None:
    bench = Bench(max_size=5, max_opening=2, connect_timeout=10.0, **AGELESS)
    callers = [bench.enrol(f"caller {number}", 1e6) for number in range(3)]
    hung = [bench.start(), bench.start()]
    assert bench.core.opens_wanted(bench.now) == 0
    bench.keep(9.9)
    assert bench.core.opens_wanted(bench.now) == 0
    bench.keep(0.6)
    assert bench.core.opens_wanted(bench.now) == 2
    assert bench.core.audit(bench.now) == []
    assert bench.core.opens_wanted(bench.now) == 2
    bench.open(), bench.open()
    assert [caller.claim is not None for caller in callers] == [True, True, False]
    bench.open()
    assert bench.core.opens_wanted(bench.now) == 0, "everybody is served"
    for claim in hung:
        bench.finish(claim)
    bench.check()
    assert len(bench.core.idle) == 2


def test_an_open_that_hangs_holds_its_own_place() -> None:
    bench = Bench(max_size=1, max_opening=1, connect_timeout=10.0, **AGELESS)
    caller = bench.enrol("caller", 1e6)
    claim = bench.start()
    bench.keep(60.0)
    assert bench.core.opens_wanted(bench.now) == 0
    bench.fail(claim)
    assert caller.refusal is not None


def test_in_an_outage_an_open_that_hangs_is_no_attempt_under_way() -> None:
    bench = Bench(max_size=3, max_opening=1, connect_timeout=10.0, ride_out=True, **AGELESS)
    bench.enrol("caller", 1e6)
    bench.start()
    bench.keep(10.5)
    bench.fail(bench.start())
    bench.keep(2.0)
    assert bench.core.opens_wanted(bench.now) == 1


def test_what_frees_a_place_comes_first() -> None:
    bench = full(3)
    bench.stock(2)
    (claim,) = bench.fill(1)
    caller = bench.enrol("caller")
    bench.give(claim)
    lent, caller.claim = caller.claim, None
    assert lent is not None
    bench.core.suspect(bench.now)
    bench.core.sweep(bench.now)
    assert bench.core.chores >= 1
    bench.give(lent, Fitness.CUT)
    del claim, lent
    job = bench.core.next_chore(bench.now)
    assert job is not None and job.task is Task.ABANDON
    rest = bench.core.next_chore(bench.now)
    assert rest is not None and rest.task is Task.CHECK
