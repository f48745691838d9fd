"""What the exploration of the core has found (`make proof`, docs/proof.md), each as the shortest way to it."""

from __future__ import annotations

import math

import pytest

from millpond._core.entry import State
from millpond._core.ledger import Ledger

from .conftest import Bench, Fitness
from .test_shared import Sharing


class Struck(BaseException):
    """What a signal handler raises."""


def test_a_tick_that_is_cut_short_after_a_standstill_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    bench.now += 5.0

    def struck(entry: object) -> None:
        raise Struck

    with monkeypatch.context() as patched:
        patched.setattr(type(bench.core), "_doubt", lambda self, entry: struck(entry))
        with pytest.raises(Struck):
            bench.core.tick(False, bench.now)
    bench.core.audit(bench.now)
    assert bench.lease().enter() is None
    assert entry.state is State.CHECKING, "nobody has asked it since the process stood still"


def test_to_be_asked_is_not_to_be_used() -> None:
    bench = Bench(max_size=1, max_idle=100.0, keepalive=10.0)
    bench.stock(1)
    work = []
    for _ in range(11):
        bench.tick(10.0)
        work += bench.work()
    assert work == ["check"] * 9 + ["close"]


def test_a_stalled_check_that_ends_is_not_counted_as_stalled_any_more() -> None:
    bench = Bench(max_size=3, check_after=1.0, max_idle=math.inf)
    bench.stock(1)
    bench.tick(2.0)
    caller = bench.enrol("caller")
    job = bench.core.next_chore(bench.now)
    assert job is not None
    bench.tick(1.0)
    assert bench.core.opens_wanted(bench.now) == 1
    bench.core.tended(job, True, bench.now)
    assert caller.claim is not None
    bench.enrol("another")
    bench.start()
    assert bench.core.opens_wanted(bench.now) == 0


def test_a_pool_that_uses_the_place_it_has_just_freed_tells_those_who_counted_on_it() -> None:
    """The ledger calls for nothing where a connection is being closed; if its place is used again, it has to call."""
    ledger = Ledger(2)
    rich, poor = Sharing(ledger, max_size=2), Sharing(ledger)
    callers = [rich.enrol("first"), rich.enrol("second")]
    rich.settle()
    rich.open(), rich.open()
    first, second = (caller.claim for caller in callers)
    assert first is not None and second is not None
    rich.give(second, Fitness.CUT)
    rich.enrol("third")
    rich.settle()
    poor.enrol("caller")
    poor.settle()
    assert not ledger.calls, "a connection is being closed"
    rich.share.stirred = False
    rich.work()
    rich.core.declare(rich.share, rich.now)
    assert rich.share.stirred
    rich.open()
    ledger.balance()
    assert len(ledger.calls) == 1
    rich.give(first)
    assert rich.work() == ["close"]
