"""A pool to which nothing happens needs no ticks until something is due, and misses nothing for it."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import pytest

from millpond._core.core import BEAT, QUIET_AFTER, Fitness
from millpond._core.entry import Claim, State
from millpond._core.pulse import GRACE, Pulse

from .conftest import Bench

AGELESS: dict[str, Any] = {
    "max_idle": math.inf,
    "max_lifetime": math.inf,
    "keepalive": math.inf,
    "check_after": math.inf,
}


def quiet(bench: Bench, seconds: float = 2.0) -> Bench:
    """Have nothing happen for long enough."""
    bench.keep(seconds)
    assert bench.core.quiet_until is not None
    bench.core.roused = False
    return bench


def test_connections_that_are_idle_need_no_ticks() -> None:
    bench = Bench(max_size=3, min_size=1, **AGELESS)
    bench.stock(3)
    assert bench.keep(3600.0) <= 1 + QUIET_AFTER / BEAT
    assert bench.core.due(bench.now) == math.inf
    bench.check()


@pytest.mark.parametrize(
    ("setting", "did"),
    [({"max_idle": 90.0}, ["close"]), ({"max_lifetime": 90.0}, ["close"]), ({"keepalive": 90.0}, ["check"])],
    ids=["max_idle", "max_lifetime", "keepalive"],
)
def test_what_time_brings_comes_in_time_though_nothing_happens(setting: dict[str, float], did: list[str]) -> None:
    bench = Bench(max_size=1, **{**AGELESS, **setting})
    bench.stock(1)
    ticks = bench.keep(89.0)
    assert bench.work() == []
    assert ticks <= 3
    assert bench.core.due(bench.now) == 1090.0
    bench.keep(1.5)
    assert bench.work() == did


def test_what_is_kept_open_is_never_idle_for_too_long() -> None:
    bench = Bench(max_size=2, min_size=1, **{**AGELESS, "max_idle": 90.0})
    bench.stock(1)
    assert bench.keep(600.0) <= 3
    assert bench.work() == []


def test_a_borrower_brings_the_ticks_back_and_is_lent_what_is_idle() -> None:
    bench = Bench(max_size=1, **AGELESS)
    (entry,) = bench.stock(1)
    quiet(bench, 60.0)
    lease = bench.lease()
    assert lease.enter() == entry.conn
    assert bench.core.roused, "the shell has to tell whoever ticks"
    assert bench.core.chores == 0
    assert bench.core.due(bench.now) == bench.now + BEAT
    lease.leave(None, None, None)
    again = bench.lease()
    assert again.enter() == entry.conn, "lent the quick way"
    assert bench.keep(5.0) == 10
    again.leave(None, None, None)
    bench.check()


def test_nothing_is_lent_the_quick_way_from_the_moment_on_when_ticks_cease() -> None:
    bench = Bench(max_size=1, **AGELESS)
    (entry,) = bench.stock(1)
    quiet(bench)
    lease = bench.lease()
    assert lease.enter() == entry.conn
    assert bench.core.quiet_until is None


def test_who_has_to_tick_for_want_of_a_ticker_calls_for_one() -> None:
    bench = Bench(max_size=2, **AGELESS)
    (claim,) = bench.fill(1)
    bench.now += 2.0
    bench.pulse.look(bench.now - 0.5)
    bench.enrol("caller")
    assert bench.core.roused
    bench.give(claim)


def test_a_standstill_of_a_pool_without_ticks_is_noticed_by_whoever_is_back_first() -> None:
    bench = quiet(Bench(max_size=1, **AGELESS))
    bench.stock(1)
    for seen_by_another in (False, True):
        quiet(bench, 60.0)
        bench.now += 60.0
        if seen_by_another:
            bench.pulse.look(bench.now)
            assert bench.core.due(bench.now) == bench.now
        caller = bench.enrol("back first")
        assert caller.claim is None
        assert bench.work() == ["check"]
        assert caller.claim is not None
        bench.core.cancel(caller, bench.now)


def test_a_suspension_of_the_machine_is_noticed_by_a_pool_without_ticks() -> None:
    bench = Bench(max_size=1, **AGELESS)
    bench.stock(1)
    quiet(bench)
    bench.suspend()
    assert bench.enrol("back first").claim is None
    assert bench.work() == ["check"]


def test_two_who_look_at_once_count_what_stood_still_and_nothing_else() -> None:
    pulse = Pulse(0.0, lambda: 0.0)
    assert [pulse.look(now) for now in (0.5, 1.5, 1.2, 2.5)] == [0, 0, 0, 0]
    assert pulse.look(2.5 + BEAT + GRACE + 0.1) == 1
    pulse.stop()
    assert pulse.look(1e6) == 1


def test_a_tick_goes_on_if_somebody_takes_a_connection_in_that_very_moment() -> None:
    class Contested(deque[Claim[str]]):
        """Idle connections of which one is taken between the two looks at how many they are."""

        looks = 0

        def __len__(self) -> int:
            self.looks += 1
            return super().__len__() - (self.looks == 2)

    bench = Bench(max_size=1, **AGELESS)
    bench.stock(1)
    bench.keep(0.9)
    taken = Contested(bench.core.idle)
    bench.core.idle = taken
    bench.now += 0.5
    bench.core.rest(bench.now)
    assert taken.looks == 2
    assert bench.core.quiet_until is None
    bench.core.rest(bench.now)
    assert bench.core.quiet_until == math.inf


def test_ticks_go_on_while_anything_is_under_way() -> None:
    def lent(bench: Bench) -> object:
        return bench.fill(1)

    def checking(bench: Bench) -> object:
        (entry,) = bench.stock(1)
        bench.suspend()
        bench.core.tick(bench.now)
        assert entry.state is State.CHECKING
        return None

    def down(bench: Bench) -> object:
        bench.stock(1)
        bench.core.resize(bench.core.settings, bench.now)
        caller, lent = bench.enrol("one"), bench.enrol("other")
        bench.fail(bench.start())
        bench.core.cancel(lent, bench.now)
        bench.core.cancel(caller, bench.now)
        return None

    def waiting(bench: Bench) -> object:
        bench.stock(1)
        bench.core.pause(bench.now)
        return bench.enrol("caller", 1e6)

    def forking(bench: Bench) -> object:
        bench.stock(1)
        bench.core.shut(bench.now)
        bench.core.forking = 1000
        return None

    for situation in (lent, checking, down, waiting, forking):
        bench = Bench(max_size=2, **AGELESS)
        kept = situation(bench)
        assert bench.keep(5.0) == 10, situation.__name__
        assert bench.core.quiet_until is None
        del kept


def test_a_pool_that_is_paused_needs_ticks_no_more_than_another() -> None:
    bench = Bench(max_size=1, **AGELESS)
    bench.stock(1)
    bench.core.pause(bench.now)
    quiet(bench)
    assert bench.enrol("caller").claim is None
    assert bench.core.due(bench.now) == bench.now + BEAT


def test_what_is_missing_of_min_size_is_opened_at_once() -> None:
    bench = Bench(max_size=3, min_size=1, **AGELESS)
    bench.stock(1)
    quiet(bench)
    bench.core.resize(type(bench.core.settings)(max_size=3, min_size=2), bench.now)
    assert bench.core.roused
    assert bench.core.opens_wanted(bench.now) == 1
    bench.core.tick(bench.now)
    assert bench.core.quiet_until is None


def test_a_smaller_min_size_is_heeded_by_a_pool_without_ticks() -> None:
    bench = Bench(max_size=2, min_size=2, **{**AGELESS, "max_idle": 60.0})
    bench.stock(2)
    quiet(bench, 600.0)
    bench.core.resize(type(bench.core.settings)(max_size=2, min_size=0, max_idle=60.0), bench.now)
    assert bench.core.roused
    bench.keep(1.0)
    assert bench.work() == ["close", "close"]


def test_a_fork_whose_end_nobody_tells_is_over_though_the_pool_has_no_ticks() -> None:
    bench = Bench(max_size=1, **AGELESS)
    bench.stock(1)
    quiet(bench)
    bench.core.shut(bench.now)
    assert bench.core.due(bench.now) <= bench.now + BEAT
    bench.keep(2.0)
    assert not bench.core.forking


def test_one_that_dies_while_the_pool_has_no_ticks_is_found_when_it_is_told() -> None:
    bench = Bench(max_size=2, **AGELESS)
    dead, _ = bench.stock(2)
    quiet(bench)
    bench.core.hung_up(dead, bench.now)
    bench.core.sweep(bench.now)
    assert sorted(bench.work()) == ["abandon", "check"]
    assert bench.core.roused


def test_nobody_waits_in_a_pool_without_ticks() -> None:
    """Not even who comes first, and long after the pool was made."""
    bench = Bench(max_size=1, **AGELESS)
    bench.now += 60.0
    bench.enrol("caller")
    assert bench.core.quiet_until is None
    assert bench.core.due(bench.now) <= bench.now + BEAT


@pytest.mark.parametrize("fit", list(Fitness))
def test_a_loan_that_ends_in_any_way_leaves_a_pool_that_can_be_without_ticks_again(fit: Fitness) -> None:
    bench = Bench(max_size=1, **AGELESS)
    bench.stock(1)
    quiet(bench)
    (claim,) = bench.fill(1)
    job: Any = bench.give(claim, fit)
    if job is not None:
        bench.core.post(job, bench.now)
    del claim, job
    bench.work()
    bench.keep(3.0)
    assert (bench.core.quiet_until is not None) == (len(bench.core.entries) == len(bench.core.idle))
    bench.check()


def test_with_a_number_of_uses_at_most_every_loan_is_looked_at_all_the_same() -> None:
    bench = Bench(max_size=1, max_uses=3, **AGELESS)
    (entry,) = bench.stock(1)
    quiet(bench)
    assert entry.good_until == 0.0
    (claim,) = bench.fill(1)
    bench.give(claim)
    assert bench.core.quiet_until is None
