"""A core that counts its connections against a budget."""

from __future__ import annotations

import math

from millpond._core.ledger import Ledger
from millpond._core.ledger import _last_used as ledger_last_used

from .conftest import Bench, Fitness, Refusal


class Sharing(Bench):
    """A core on a bench, with a share."""

    def __init__(self, ledger: Ledger, **options: object) -> None:
        self.ledger = ledger
        self.share = ledger.join(int(str(options.get("min_size", 0))))
        super().__init__(share=self.share, **options)

    def settle(self) -> None:
        """Do what a shell does after a change."""
        self.core.declare(self.share, self.now)
        self.ledger.balance()

    def borrow(self) -> object:
        """Open a connection for a caller, and give it back."""
        caller = self.enrol("caller")
        self.settle()
        if caller.claim is None:
            self.open()
        claim, caller.claim = caller.claim, None
        assert claim is not None
        self.give(claim)
        self.settle()
        return claim.entry


def test_nothing_is_opened_beyond_the_quota() -> None:
    ledger = Ledger(1)
    bench = Sharing(ledger)
    bench.enrol("first"), bench.enrol("second")
    assert bench.core.opens_wanted(bench.now) == 0
    bench.settle()
    assert bench.core.opens_wanted(bench.now) == 1
    bench.open()
    assert bench.core.next_open(bench.now) is None
    bench.check()


def test_nothing_is_opened_with_permits_that_have_lapsed() -> None:
    ledger = Ledger(2)
    bench = Sharing(ledger)
    bench.enrol("caller")
    bench.settle()
    ledger.good_until = bench.now
    assert bench.core.opens_wanted(bench.now) == 0
    assert bench.core.next_open(bench.now) is None
    ledger.good_until = bench.now + 0.1
    assert bench.core.opens_wanted(bench.now) == 1


def test_an_idle_connection_is_closed_for_another_pool_and_its_place_goes_over() -> None:
    ledger = Ledger(1)
    rich, poor = Sharing(ledger), Sharing(ledger)
    rich.borrow()
    poor.enrol("caller")
    poor.settle()
    assert poor.core.opens_wanted(poor.now) == 0
    rich.core.sweep(rich.now)
    rich.settle()
    assert poor.core.opens_wanted(poor.now) == 0, "it is not closed yet"
    assert rich.work() == ["close"]
    rich.settle()
    assert poor.core.opens_wanted(poor.now) == 1
    assert rich.core.stats(rich.now).closes == {"made room": 1}
    rich.check()


def test_all_that_comes_back_is_looked_at_while_another_pool_is_in_want() -> None:
    ledger = Ledger(1)
    rich, poor = Sharing(ledger), Sharing(ledger)
    rich.borrow()
    lease = rich.lease()
    assert lease.enter() is not None
    caller = poor.enrol("caller")
    poor.settle()
    rich.core.sweep(rich.now)
    assert rich.core.gate
    assert rich.share.alert
    lease.leave(None, None, None)
    assert rich.work() == ["close"]
    rich.settle()
    poor.open()
    assert caller.claim is not None
    poor.settle()
    rich.core.sweep(rich.now)
    assert not rich.core.gate


def test_a_connection_opened_for_a_caller_serves_at_least_that_one() -> None:
    ledger = Ledger(1)
    rich, poor = Sharing(ledger), Sharing(ledger)
    poor.enrol("early")
    rich.now += 1
    mine = rich.enrol("late")
    rich.settle()
    claim = rich.start()
    poor.settle()
    rich.finish(claim)
    assert mine.claim is not None
    rich.enrol("later")
    assert mine.claim is not None
    claim, mine.claim = mine.claim, None
    rich.give(claim)
    assert rich.work() == ["close"], "the other has waited for longer"


def test_those_who_have_been_idle_for_longest_are_to_give() -> None:
    ledger = Ledger(4)
    young, old, sure, busy, poor = (Sharing(ledger, min_size=size) for size in (0, 0, 1, 0, 0))
    for number, pool in enumerate((sure, old, young, busy)):
        pool.now += number
        pool.borrow()
    lease = busy.lease()
    lease.enter()
    poor.enrol("first")
    poor.settle()
    assert ledger.givers() == [old.share, young.share], "one of them more than needed, and not who is sure of it"
    poor.enrol("second"), poor.enrol("third")
    poor.settle()
    assert set(ledger.givers()) == {young.share, old.share, sure.share, busy.share}, "there are not enough"
    young.core.idle.clear()
    assert ledger_last_used(young.share) == math.inf
    lease.leave(None, None, None)


def test_min_size_is_not_given_away() -> None:
    ledger = Ledger(1)
    sure, poor = Sharing(ledger, min_size=1), Sharing(ledger)
    sure.settle()
    sure.open()
    sure.settle()
    poor.enrol("caller")
    poor.settle()
    sure.core.sweep(sure.now)
    assert sure.work() == []
    sure.core.close(sure.now)
    assert sure.share.minimum == 0
    assert sure.work() == ["close"]


def test_a_pool_in_want_asks_again_with_every_tick() -> None:
    ledger = Ledger(1)
    ledger.join(1)
    poor = Sharing(ledger)
    caller = poor.enrol("caller", timeout=0.6)
    poor.settle()
    poor.share.stirred = False
    poor.tick(0.5)
    assert poor.share.stirred
    poor.now += 0.2
    poor.core.expire(caller, poor.now)
    assert caller.refusal is Refusal.TIMEOUT
    poor.settle()
    assert (poor.share.wants, poor.share.since) == (0, math.inf)


def test_a_pool_that_was_dropped_tells_which_connections_nobody_is_at() -> None:
    ledger = Ledger(4)
    dropped, other = Sharing(ledger, max_size=4, check_after=1.0), Sharing(ledger)
    callers = [dropped.enrol(f"caller {number}") for number in range(4)]
    claims = []
    for caller in callers:
        dropped.settle()
        dropped.open()
        claims.append(caller.claim)
        caller.claim = None
    lent, closing, checked, idle = claims
    assert lent and closing and checked and idle
    dropped.give(closing, Fitness.CUT)
    dropped.give(checked)
    dropped.tick(2.0)
    dropped.core.expire(dropped.enrol("caller"), dropped.now)
    dropped.give(idle)
    assert dropped.core.chores == 2
    assert set(dropped.core.forsake()) == {closing.entry, checked.entry, idle.entry}
    assert dropped.core.chores == 0
    assert not dropped.core.idle
    other.enrol("caller")
    other.settle()
    assert other.core.opens_wanted(other.now) == 1
    del claims[:], lent, closing, checked, idle
    assert len(dropped.lost) == 1, "the one on loan; the others are given up in good order"
    alone = Bench()
    assert set(alone.stock(2)) == set(alone.core.forsake())


def test_what_a_finaliser_gives_back_while_a_dropped_pool_is_cleared_is_given_up_too() -> None:
    dropped = Bench()
    first, second = dropped.stock(2)
    late = dropped.core.idle.pop()

    class Claim:
        """Another loan dies with this one."""

        entry = dropped.core.idle[0].entry

        def dissolve(self) -> None:
            dropped.core.idle.append(late)

    dropped.core.idle[0].dissolve()
    dropped.core.idle[0] = Claim()  # type: ignore[assignment]
    assert set(dropped.core.forsake()) == {first, second}
