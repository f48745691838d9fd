"""What the exploration of the core has found (`make proof`, docs/proof.md), each as the shortest way to it."""

from __future__ import annotations

import math
from unittest.mock import Mock

import pytest

from millpond._core.core import BEAT, Task
from millpond._core.entry import Reason, State
from millpond._core.ledger import Ledger
from millpond._core.settings import Settings

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
            bench.core.tick(bench.now)
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


def test_a_connection_whose_closer_is_gone_is_closed_by_another() -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    bench.core.condemn(entry, Reason.DISCARDED, bench.now)
    bench.tick()
    job = bench.core.next_chore(bench.now)
    assert job is not None and job.task is Task.CLOSE
    bench.tick(0.5)
    assert bench.core.chores == 0, "somebody is at it"
    del job
    bench.tick(0.5)
    assert bench.work() == ["abandon"]
    assert not bench.core.entries


def test_a_close_that_is_cut_short_before_anybody_has_the_job_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    with monkeypatch.context() as patched:
        patched.setattr("millpond._core.core.Job", Mock(side_effect=Struck))
        with pytest.raises(Struck):
            bench.core.condemn(entry, Reason.DISCARDED, bench.now)
            bench.tick()
    assert "nobody was closing <Entry 1 closing, 1 uses>" in bench.core.audit(bench.now)
    assert bench.work() == ["abandon"]
    assert not bench.core.entries


def test_a_fork_that_is_cut_short_leaves_nothing_half_closed() -> None:
    bench = Bench(max_size=1)
    bench.stock(1)
    bench.core.part(bench.now).clear()
    assert bench.core.audit(bench.now) == ["nobody was closing <Entry 1 closing, 1 uses>"]
    assert bench.work() == ["abandon"]


def test_the_keeper_is_not_called_again_at_once_for_an_attempt_that_nobody_wants() -> None:
    paused = Bench(max_size=1, ride_out=True)
    paused.enrol("caller")
    paused.fail(paused.start())
    paused.core.pause(paused.now)
    refused = Bench(min_size=1, max_size=1)
    refused.fail(refused.start(), refused=True)
    shrunk = Bench(max_size=2, ride_out=True)
    shrunk.fill(1)
    shrunk.enrol("caller")
    shrunk.fail(shrunk.start())
    shrunk.core.resize(Settings(max_size=1), shrunk.now)
    for bench in (paused, refused, shrunk):
        bench.tick(10.0)
        assert bench.core.due(bench.now) == bench.now + BEAT
    paused.core.resume(paused.now)
    assert paused.core.due(paused.now) == paused.now
