"""The laws of the core, on a clock that the test moves."""

from __future__ import annotations

import copy
import gc
import math
from collections import deque
from collections.abc import Callable, Iterator

import pytest

from millpond._core.core import Core, Fitness, Job, Task
from millpond._core.entry import TRANSITIONS, Claim, Entry, Reason, State, _Guard
from millpond._core.line import Line, Refusal, Waiter
from millpond._core.outage import Outage
from millpond._core.settings import Settings
from millpond.connector import Condition

from .conftest import Bench, Caller

# The line


def test_callers_are_served_in_the_order_they_came() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    callers = [bench.enrol(name) for name in "abc"]
    served = []
    for _ in callers:
        bench.give(claim)
        (caller,) = [caller for caller in callers if caller.claim is not None]
        served.append(caller.name)
        assert caller.woken == 0, "the shell wakes, not the core"
        assert caller.claim is not None
        claim = caller.claim
        caller.claim = None
    assert served == ["a", "b", "c"]
    assert bench.core.wakes == callers


def test_one_who_leaves_before_enrolling_disturbs_nobody() -> None:
    bench = Bench(max_size=1)
    bench.fill(1)
    for waiting in (0, 1):
        stranger = Caller("stranger", bench.now, 5.0)
        bench.core.cancel(stranger, bench.now)
        assert len(bench.core.line) == waiting
        bench.check()
        bench.enrol("caller")


def test_nobody_overtakes_a_waiter() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    first = bench.enrol("first")
    # The connection lies there for a moment, and somebody who has not waited comes by.
    bench.core.idle.append(claim)
    claim.entry.state = State.IDLE
    assert bench.lease().enter() is None
    assert first.claim is claim
    assert [waiter.name for waiter in bench.core.line] == ["lease"]  # type: ignore[attr-defined]


def test_who_does_not_wait_gets_what_is_only_idle_for_long_and_not_what_is_doubted() -> None:
    bench = Bench(max_size=2, check_after=5.0)
    bench.stock(2)
    bench.tick(60.0)
    caller = bench.enrol("hasty", timeout=0.0)
    assert caller.claim is not None
    assert not bench.core.chores, "it was to be asked"
    bench.give(caller.claim)
    bench.core.suspect(bench.now)
    assert bench.enrol("hasty", timeout=0.0).refusal is Refusal.TIMEOUT
    assert bench.core.chores, "one is to be asked, for who comes later"


def test_a_lease_is_not_copied() -> None:
    with pytest.raises(TypeError, match="a lease cannot be copied or pickled"):
        copy.copy(Bench().lease())


def test_a_connection_is_never_handed_to_a_caller_whose_deadline_has_passed() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    late, patient = bench.enrol("late", timeout=1.0), bench.enrol("patient", timeout=5.0)
    bench.now += 1.0
    bench.give(claim)
    assert (late.claim, late.refusal) == (None, Refusal.TIMEOUT)
    assert patient.claim is claim
    assert late in bench.core.wakes, "it learns of it at once"


def test_to_expire_after_being_served_changes_nothing() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    caller = bench.enrol("caller", timeout=1.0)
    bench.give(claim)
    bench.core.expire(caller, bench.now)
    assert (caller.claim, caller.refusal) == (claim, None)


def test_an_expired_caller_is_out_of_line() -> None:
    bench = Bench(max_size=1)
    bench.fill(1)
    caller = bench.enrol("caller", timeout=1.0)
    bench.now += 1.0
    bench.core.expire(caller, bench.now)
    assert (caller.refusal, len(bench.core.line), bench.core.timeouts) == (Refusal.TIMEOUT, 0, 1)
    assert not bench.core.gate


def test_a_caller_without_time_gets_what_is_idle_and_does_not_wait() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    assert bench.enrol("hasty", timeout=0.0).refusal is Refusal.TIMEOUT
    bench.give(claim)
    assert bench.enrol("hasty", timeout=0.0).claim is claim


def test_the_line_is_as_long_as_it_may_be() -> None:
    bench = Bench(max_size=1, max_waiting=1)
    bench.fill(1)
    assert bench.enrol("first").refusal is None
    assert bench.enrol("second").refusal is Refusal.FULL
    assert bench.core.refusals == 1


def test_those_for_whom_a_connection_can_be_opened_do_not_count_as_waiting() -> None:
    bench = Bench(max_size=3, max_waiting=0)
    (claim,) = bench.fill(1)
    assert [bench.enrol(name).refusal for name in ("second", "third", "fourth")] == [None, None, Refusal.FULL]
    bench.give(claim)
    assert bench.enrol("fourth").refusal is None


def test_cancel_undoes_whatever_had_happened() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    waiting, next_in_line = bench.enrol("waiting"), bench.enrol("next")
    bench.core.cancel(waiting, bench.now)
    assert len(bench.core.line) == 1
    bench.give(claim)
    assert next_in_line.claim is claim
    bench.core.cancel(next_in_line, bench.now)  # served, and gone before it saw that
    assert [claim.entry for claim in bench.core.idle] == [claim.entry]
    assert claim.entry.uses == 1, "the loan that was undone does not count"
    bench.core.cancel(waiting, bench.now)  # once more, as a second cancellation would
    assert bench.core.cancelled == 2
    bench.check()


def test_a_cancelled_grant_goes_to_the_next_in_line() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    first, second = bench.enrol("first"), bench.enrol("second")
    bench.give(claim)
    bench.core.cancel(first, bench.now)
    assert second.claim is claim


def test_leaving_the_line_from_anywhere_costs_no_walk_and_leaves_no_gaps() -> None:
    line: Line[str] = Line()
    callers = [Caller(str(number), 0.0, 1.0) for number in range(200)]
    for caller in callers:
        line.enrol(caller)
    for caller in callers[1:150]:
        line.leave(caller)
    assert len(line) == 51
    assert len(line._queue) < 105
    assert line.head() is callers[0]
    line.leave(callers[0])
    assert line.head() is callers[150]
    assert list(line) == callers[150:]


# Growth


def test_a_connection_is_opened_for_each_caller_in_line_up_to_the_gate() -> None:
    bench = Bench(max_size=10, max_opening=3)
    for number in range(5):
        bench.enrol(str(number))
    opening = [bench.start() for _ in range(3)]
    assert bench.core.next_open(bench.now) is None
    bench.finish(opening[0])
    assert bench.core.opening == 2
    assert bench.core.opens_wanted(bench.now) == 1


def test_an_open_that_is_not_needed_any_more_does_not_begin() -> None:
    bench = Bench(max_size=2)
    (claim,) = bench.fill(1)
    bench.enrol("caller")
    assert bench.core.opens_wanted(bench.now) == 1
    bench.give(claim)
    assert bench.core.next_open(bench.now) is None


def test_a_connection_that_comes_back_serves_the_caller_and_the_open_becomes_a_spare() -> None:
    bench = Bench(max_size=2)
    (claim,) = bench.fill(1)
    caller = bench.enrol("caller")
    opening = bench.start()
    bench.give(claim)
    assert caller.claim is claim
    bench.finish(opening)
    assert len(bench.core.idle) == 1


def test_a_caller_who_gives_up_does_not_end_the_open() -> None:
    bench = Bench(max_size=1)
    caller = bench.enrol("caller")
    opening = bench.start()
    bench.core.cancel(caller, bench.now)
    bench.finish(opening)
    assert len(bench.core.idle) == 1


def test_min_size_is_opened_without_callers_and_kept() -> None:
    bench = Bench(min_size=2, max_size=4, max_idle=10.0)
    bench.open()
    bench.open()
    assert bench.core.opens_wanted(bench.now) == 0
    bench.tick(60.0)
    assert bench.work() == []
    assert len(bench.core.idle) == 2


def test_there_are_never_more_than_max_size_those_being_closed_included() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    bench.enrol("caller")
    bench.give(claim, Fitness.CUT)
    assert bench.core.opens_wanted(bench.now) == 0, "its place is not free before it is really closed"
    assert bench.work() == ["abandon"]
    assert bench.core.opens_wanted(bench.now) == 1


# Returning


def test_what_comes_back_dirty_is_reset_before_it_is_lent_again() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    caller = bench.enrol("caller")
    job = bench.give(claim, Fitness.DIRTY)
    assert job is not None and job.task is Task.RESET
    assert caller.claim is None
    bench.core.post(job, bench.now)
    assert bench.core.chores == 1
    assert bench.work() == ["reset"]
    assert caller.claim is claim


def test_what_cannot_be_reset_is_closed() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    job = bench.give(claim, Fitness.DIRTY)
    assert job is not None
    bench.core.post(job, bench.now)
    assert bench.work(sound=False) == ["reset", "abandon"]
    assert bench.core.closes == {Reason.RESET_FAILED: 1}
    bench.check()


def test_a_dirty_connection_of_a_closing_pool_is_not_reset_but_closed() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    bench.core.close(bench.now)
    assert bench.give(claim, Fitness.DIRTY) is None
    assert bench.work() == ["close"]


def test_a_dead_connection_makes_those_on_loan_suspect_too() -> None:
    """Its query may have been answered just before the server went."""
    bench = Bench(max_size=3)
    dead, alive, idle = bench.fill(3)
    bench.give(idle)
    bench.give(dead, Fitness.DEAD)
    assert bench.work() == ["abandon", "check"]
    bench.give(alive)
    caller = bench.enrol("caller")
    assert caller.claim is not None
    bench.give(caller.claim)
    caller.claim = None
    other = bench.enrol("other"), bench.enrol("third")
    assert bench.work() == ["check"]
    assert all(each.claim is not None for each in other)


@pytest.mark.parametrize(("size", "checks"), [(3, 1), (1000, 0)])
def test_each_of_a_few_deaths_arouses_suspicion_and_of_many_at_once_the_first(size: int, checks: int) -> None:
    bench = Bench(max_size=size, max_opening=size)
    claims = bench.fill(size)
    bench.give(claims[0], Fitness.DEAD)
    bench.give(claims[1])
    bench.enrol("caller", timeout=0.0)
    assert bench.work().count("check") == 1
    bench.now += 0.01
    bench.give(claims[2], Fitness.DEAD)
    assert bench.work().count("check") == checks


def test_what_is_being_opened_during_a_standstill_is_checked_before_it_is_lent() -> None:
    bench = Bench(max_size=1)
    caller = bench.enrol("caller")
    opening = bench.start()
    bench.now += 5
    bench.core.tick(bench.now)
    bench.finish(opening)
    assert caller.claim is None
    assert bench.work() == ["check"]
    assert caller.claim is not None


def test_what_is_being_checked_during_a_standstill_is_checked_again() -> None:
    bench = Bench(max_size=1)
    bench.stock(1)
    bench.core.suspect(bench.now)
    bench.core.sweep(bench.now)
    job = bench.core.next_chore(bench.now)
    assert job is not None
    bench.now += 5
    bench.core.tick(bench.now)
    bench.core.tended(job, True, bench.now)
    caller = bench.enrol("caller")
    assert caller.claim is None
    assert bench.work() == ["check"]
    assert caller.claim is not None


def test_whoever_is_first_after_a_standstill_finds_nothing_unchecked() -> None:
    """A return that meets a caller in line may come before the ticker, too."""
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    waiting = bench.enrol("waiting")
    bench.now += 5
    bench.give(claim)
    assert waiting.claim is None
    assert bench.work() == ["check"]
    assert waiting.claim is claim


def test_uses_are_counted_to_the_last_under_suspicion_too() -> None:
    bench = Bench(max_size=1, max_uses=2)
    bench.stock(1)
    lease = bench.lease()
    assert lease.enter() is not None
    bench.core.suspect(bench.now)
    lease.leave(None, None, None)
    assert bench.work() == ["close"]


def test_a_close_that_was_cut_short_sends_everybody_away_with_the_next_change() -> None:
    bench = Bench(max_size=1)
    bench.fill(1)
    waiting = bench.enrol("waiting")
    bench.core.closing = True
    bench.core.audit(bench.now)
    assert waiting.refusal is Refusal.CLOSED


def test_a_refresh_that_was_cut_short_is_completed_by_the_audit() -> None:
    bench = Bench(max_size=1)
    bench.stock(1)
    bench.core.generation += 1
    bench.core.audit(bench.now)
    bench.core.sweep(bench.now)
    assert bench.work() == ["close"]
    assert bench.core.stats(bench.now).closes == {"refreshed": 1}


def test_a_dead_connection_makes_the_others_suspect() -> None:
    bench = Bench(max_size=3)
    claims = bench.fill(3)
    for claim in claims[1:]:
        bench.give(claim)
    bench.give(claims[0], Fitness.DEAD)
    assert not bench.core.idle, "all are being checked, at the same time"
    assert sorted(bench.work()) == ["abandon", "check", "check"]
    assert len(bench.core.idle) == 2


def test_the_deaths_of_one_batch_arouse_suspicion_once() -> None:
    bench = Bench(max_size=3)
    claims = bench.fill(3)
    bench.give(claims[2])
    bench.give(claims[0], Fitness.DEAD)
    bench.work()
    bench.give(claims[1], Fitness.DEAD)
    assert bench.work() == ["abandon"]


def test_a_connection_lent_by_the_parent_of_a_fork_is_not_taken_back() -> None:
    bench, child = Bench(max_size=1), Bench(max_size=1)
    (claim,) = bench.fill(1)
    claim.entry.good_until = 0.0
    assert child.give(claim) is None
    assert not child.core.idle and not child.core.entries
    del claim
    assert not bench.lost


# Lifetimes


def test_a_connection_lives_no_longer_than_its_lifetime_less_its_jitter() -> None:
    bench = Bench(max_size=2, max_lifetime=100.0)
    one, two = bench.fill(2)
    assert one.entry.expires == bench.now + 100.0
    (opening,) = (bench.core.next_open(bench.now) for _ in range(1))
    assert opening is None
    bench.give(one)
    bench.tick(99.0)
    assert bench.work() == []
    bench.tick(1.0)
    assert bench.work() == ["close"], "the idle one goes now"
    assert two.entry.state is State.LENT
    bench.give(two)
    assert bench.work() == ["close"], "the lent one when it comes back"
    assert bench.core.closes == {Reason.MAX_LIFETIME: 2}


def test_lifetimes_are_spread_by_a_tenth() -> None:
    bench = Bench(min_size=1, max_lifetime=100.0)
    entry = bench.finish(bench.start(), jitter=1.0)
    assert entry.expires == pytest.approx(bench.now + 90.0)


def test_a_connection_that_expires_between_two_ticks_is_not_handed_to_a_waiter() -> None:
    bench = Bench(max_size=1, max_lifetime=10.0)
    (claim,) = bench.fill(1)
    bench.tick(9.9)
    caller = bench.enrol("caller")
    bench.now += 0.2
    bench.give(claim)
    assert caller.claim is None
    assert bench.work() == ["close"]


def test_the_idle_beyond_min_size_go_after_max_idle_the_longest_idle_first() -> None:
    bench = Bench(min_size=1, max_size=3, max_idle=10.0)
    entries = bench.stock(3)
    bench.tick(5.0)
    lease = bench.lease()
    lease.enter()
    lease.leave(None, None, None)
    bench.tick(5.5)
    assert bench.work() == ["close", "close"]
    (left,) = bench.core.idle
    assert left.entry is entries[2], "the one that was used meanwhile stays"
    bench.tick(60.0)
    assert len(bench.core.idle) == 1
    assert bench.core.closes == {Reason.MAX_IDLE: 2}


def test_a_connection_is_lent_no_more_often_than_max_uses() -> None:
    bench = Bench(max_size=1, max_uses=3)
    entry = bench.stock(1)[0]
    for _ in range(2):
        lease = bench.lease()
        assert lease.enter() is not None
        lease.leave(None, None, None)
    assert entry.uses == 3
    assert bench.work() == ["close"]
    assert bench.core.closes == {Reason.MAX_USES: 1}
    assert bench.core.stats(bench.now).borrows == 3


def test_an_idle_connection_is_asked_every_so_often() -> None:
    bench = Bench(max_size=1, keepalive=10.0, max_idle=math.inf)
    bench.stock(1)
    bench.tick(9.0)
    assert bench.work() == []
    bench.tick(1.5)
    assert bench.work() == ["check"]
    bench.tick(9.0)
    assert bench.work() == []
    assert len(bench.core.idle) == 1


def test_a_connection_idle_for_long_is_asked_before_it_is_lent() -> None:
    bench = Bench(max_size=1, check_after=10.0)
    (entry,) = bench.stock(1)
    bench.tick(10.0)
    caller = bench.enrol("in time")
    assert caller.claim is not None
    bench.core.cancel(caller, bench.now)
    bench.tick(10.0)
    bench.now += 0.001
    assert bench.lease().enter() is None
    assert bench.core.opens_wanted(bench.now) == 0, "the check will bring a connection"
    assert bench.work() == ["check"]
    assert entry.state is State.LENT


def test_only_as_many_idle_connections_are_asked_as_callers_need() -> None:
    bench = Bench(max_size=5, check_after=10.0, max_idle=math.inf)
    bench.stock(5)
    bench.tick(20.0)
    callers = [bench.enrol("one"), bench.enrol("two")]
    assert bench.core.chores <= 3
    bench.work()
    assert all(caller.claim is not None for caller in callers)


def test_a_check_that_stalls_does_not_keep_the_pool_from_opening() -> None:
    bench = Bench(max_size=2, check_after=10.0)
    bench.stock(1)
    bench.tick(11.0)
    bench.enrol("caller")
    job = bench.core.next_chore(bench.now)
    assert job is not None and bench.core.opens_wanted(bench.now) == 0
    bench.tick(1.0)
    assert bench.core.opens_wanted(bench.now) == 1


def test_check_after_zero_asks_every_time() -> None:
    bench = Bench(max_size=1, check_after=0.0)
    bench.stock(1)
    bench.now += 0.001
    assert bench.lease().enter() is None
    assert bench.work() == ["check"]


def test_a_short_check_window_counts_from_the_moment_of_return() -> None:
    bench = Bench(max_size=1, check_after=0.3)
    (claim,) = bench.fill(1)
    bench.give(claim)
    bench.now += 0.2
    lease = bench.lease()
    assert lease.enter() is not None
    lease.leave(None, None, None)
    bench.now += 0.4
    assert bench.lease().enter() is None
    assert bench.work() == ["check"]


def test_a_failed_check_closes_the_connection_and_opens_another_for_the_caller() -> None:
    bench = Bench(max_size=1, check_after=10.0)
    bench.stock(1)
    bench.tick(11.0)
    caller = bench.enrol("caller")
    assert bench.work(sound=False) == ["check", "abandon"]
    assert bench.core.closes == {Reason.CHECK_FAILED: 1}
    bench.open()
    assert caller.claim is not None


def test_a_process_that_stood_still_doubts_what_it_knew() -> None:
    bench = Bench(max_size=2)
    entries = bench.stock(2)
    bench.now += 60.0
    bench.core.tick(bench.now)
    assert [entry.state for entry in entries] == [State.CHECKING, State.CHECKING]
    assert bench.work() == ["check", "check"]


def test_what_was_on_loan_during_a_standstill_is_checked_before_it_is_lent_again() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    bench.now += 60
    bench.core.tick(bench.now)
    assert claim.entry.suspect
    bench.give(claim)
    caller = bench.enrol("caller")
    assert caller.claim is None
    assert bench.work() == ["check"]
    assert caller.claim is not None


def test_a_caller_who_is_back_before_the_ticker_after_a_standstill_gets_nothing_unchecked() -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    bench.now += 60.0
    assert bench.lease().enter() is None
    assert entry.state is State.CHECKING


def test_a_machine_that_was_suspended_doubts_too() -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    bench.suspend()
    bench.core.tick(bench.now)
    assert entry.state is State.CHECKING


def test_a_loan_is_dated_to_the_moment() -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    bench.tick(0.3)
    lease = bench.lease()
    lease.enter()
    began = bench.now
    bench.tick(3.0)
    assert entry.since == began


def test_a_loan_that_was_waited_for_knows_where_it_was_made() -> None:
    bench = Bench(max_size=1)
    code = test_a_loan_that_was_waited_for_knows_where_it_was_made.__code__
    caller = Caller("caller", bench.now, 5.0)
    caller.site = (code, 4)
    bench.core.enrol(caller, bench.now)
    entry = bench.open()
    assert entry.site == (1, code, 4)


# The watcher


def test_what_dies_between_its_return_and_the_ticker_is_found_by_the_ticker() -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    entry.doom, entry.good_until = Reason.HUNG_UP, 0.0  # told while it was lent, just before it was laid by
    bench.tick(0.5)
    assert bench.work() == ["abandon"]


def test_a_hang_up_ends_an_idle_connection_and_doubts_the_others() -> None:
    bench = Bench(max_size=2)
    dead, other = bench.stock(2)
    bench.core.hung_up(dead, bench.now)
    bench.core.sweep(bench.now)
    assert sorted(bench.work()) == ["abandon", "check"]
    assert [claim.entry for claim in bench.core.idle] == [other]


def test_a_hang_up_ends_a_lent_connection_when_it_comes_back() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    bench.core.hung_up(claim.entry, bench.now)
    bench.core.hung_up(claim.entry, bench.now)
    bench.core.sweep(bench.now)
    assert claim.entry.state is State.LENT
    bench.give(claim)
    assert bench.work() == ["abandon"]
    assert bench.core.closes == {Reason.HUNG_UP: 1}


def test_a_borrower_who_comes_before_the_sweep_does_not_get_the_dead_one() -> None:
    bench = Bench(max_size=2)
    old, new = bench.stock(2)
    bench.core.condemn(new, Reason.HUNG_UP, bench.now)
    lease = bench.lease()
    assert lease.enter() == old.conn
    assert bench.work() == ["abandon"]


def test_a_connection_that_dies_while_it_is_checked_is_closed_afterwards() -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    bench.suspend()
    bench.tick(0.1)
    job = bench.core.next_chore(bench.now)
    assert job is not None
    bench.core.condemn(entry, Reason.HUNG_UP, bench.now)
    bench.core.tended(job, True, bench.now)
    assert bench.work() == ["abandon"]


# Outage


def test_nothing_stood_still_when_nobody_ticks_any_more() -> None:
    bench = Bench(max_size=2, check_after=100.0)
    bench.stock(2)
    bench.pulse.stop()
    bench.now += 50.0
    assert bench.enrol("late").claim is not None
    assert not bench.core.chores, "nobody is there to check it"
    bench.core.tick(bench.now)
    assert not bench.core.chores


def test_callers_learn_at_once_that_nobody_can_begin_the_open_that_they_wait_for() -> None:
    bench = Bench(max_size=1)
    error = RuntimeError("can't start new thread")
    bench.core.give_up_open(error, 0.0, bench.now)
    assert bench.core.outage is None, "none was wanted"
    caller = bench.enrol("caller")
    bench.core.give_up_open(error, 0.0, bench.now)
    assert caller.refusal is Refusal.DOWN
    assert bench.core.outage is not None
    assert bench.core.outage.cause is error
    assert not bench.core.opens_wanted(bench.now)
    bench.check()


def test_callers_learn_at_once_that_an_open_failed_when_nothing_else_can_serve_them() -> None:
    bench = Bench(max_size=2)
    callers = [bench.enrol("one"), bench.enrol("two")]
    error = ConnectionRefusedError("down")
    bench.fail(bench.start(), error)
    assert [caller.refusal for caller in callers] == [Refusal.DOWN, Refusal.DOWN]
    assert bench.core.wakes == callers
    assert bench.core.outage is not None and bench.core.outage.cause is error
    assert bench.core.stats(bench.now).outage == "ConnectionRefusedError"


def test_callers_wait_on_for_a_connection_that_is_out_on_loan() -> None:
    bench = Bench(max_size=2)
    (claim,) = bench.fill(1)
    caller = bench.enrol("caller")
    bench.fail(bench.start())
    assert caller.refusal is None
    late = bench.enrol("late")
    assert late.refusal is None
    bench.give(claim)
    assert caller.claim is claim


def test_callers_who_ride_out_wait_until_the_server_is_back() -> None:
    bench = Bench(max_size=2, ride_out=True)
    caller = bench.enrol("caller")
    bench.fail(bench.start())
    assert caller.refusal is None
    assert bench.enrol("late").refusal is None
    assert bench.core.next_open(bench.now) is None, "not before the pause is over"
    bench.now += 1.0
    bench.open()
    assert caller.claim is not None
    assert bench.core.outage is None


def test_one_prober_at_a_time() -> None:
    bench = Bench(max_size=5, max_opening=5, ride_out=True)
    for number in range(5):
        bench.enrol(str(number))
    bench.fail(bench.start())
    bench.now += 1.0
    assert bench.core.opens_wanted(bench.now) == 1
    prober = bench.start()
    assert bench.core.opens_wanted(bench.now) == 0
    assert bench.enrol("late").refusal is None, "the attempt under way is worth waiting for"
    bench.finish(prober)
    assert bench.core.opens_wanted(bench.now) > 1


def test_a_caller_during_an_outage_is_refused_at_once_or_brings_an_attempt_about() -> None:
    bench = Bench(max_size=5)
    bench.enrol("first")
    bench.fail(bench.start())
    bench.now += 0.01
    assert bench.enrol("at once").refusal is Refusal.DOWN
    bench.now += 0.1
    later = bench.enrol("later")
    assert later.refusal is None
    assert bench.enrol("together").refusal is None
    bench.open()
    assert later.claim is not None


def test_the_pause_between_attempts_doubles_up_to_its_limit() -> None:
    outage = Outage(0.0)
    pauses = []
    for _ in range(8):
        now = outage.next_try
        outage.failed(now, OSError(), False, 0.0)
        pauses.append(round(outage.next_try - now, 3))
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 0.8, 0.8, 0.8]
    outage.failed(100.0, OSError(), False, 1.0)
    assert outage.next_try == 100.4


@pytest.mark.parametrize("refused", [True, False])
def test_attempts_that_were_under_way_together_and_fail_together_are_one(refused: bool) -> None:
    outage = Outage(0.0)
    outage.failed(1.0, OSError(), refused, 0.0)
    due = outage.next_try
    for _ in range(3):
        outage.failed(1.01, OSError(), refused, 0.0)
    assert (outage.next_try, outage.attempts) == (due, 1)


def test_a_refusal_stops_the_attempts_in_the_background() -> None:
    bench = Bench(min_size=1, max_size=1, ride_out=True)
    caller = bench.enrol("caller")
    bench.fail(bench.start(), PermissionError("wrong password"), refused=True)
    assert caller.refusal is Refusal.DOWN, "riding it out would not help"
    bench.tick(60.0)
    assert bench.core.next_open(bench.now) is None
    assert bench.enrol("later").refusal is None
    bench.fail(bench.start(), PermissionError("wrong password"), refused=True)
    assert bench.enrol("at once").refusal is Refusal.DOWN
    bench.now += 0.9
    assert bench.enrol("a second later").refusal is Refusal.DOWN


def test_the_pause_after_refusals_doubles_up_to_its_limit() -> None:
    outage = Outage(0.0)
    pauses = []
    for _ in range(6):
        now = outage.next_try
        outage.failed(now, PermissionError(), True, 0.9)
        pauses.append(outage.next_try - now)
        assert not outage.hasten(outage.next_try - 0.01)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_refresh_allows_another_attempt_after_a_refusal() -> None:
    bench = Bench(min_size=1, max_size=1)
    bench.fail(bench.start(), PermissionError("wrong password"), refused=True)
    bench.core.refresh(bench.now)
    bench.open()
    assert bench.core.outage is None


def test_a_lost_server_is_probed_for_the_sake_of_min_size() -> None:
    bench = Bench(min_size=1, max_size=1)
    bench.fail(bench.start())
    outage = bench.core.outage
    assert outage is not None
    assert bench.core.due(bench.now) == outage.next_try
    bench.now = outage.next_try
    assert bench.core.opens_wanted(bench.now) == 1


def test_the_ticker_comes_twice_a_second() -> None:
    bench = Bench()
    assert bench.core.due(bench.now) == bench.now + 0.5


def test_the_first_in_line_hastens_the_next_attempt() -> None:
    bench = Bench(max_size=5, ride_out=True)
    first = bench.enrol("first")
    for _ in range(5):
        bench.now += 1.0
        bench.fail(bench.start())
    bench.core.cancel(first, bench.now)
    bench.now += 0.1
    assert bench.core.opens_wanted(bench.now) == 0
    bench.enrol("second")
    assert bench.core.opens_wanted(bench.now) == 1


# The whole pool


def test_refresh_replaces_every_connection() -> None:
    bench = Bench(max_size=3)
    lent, idle = bench.fill(2)
    caller = bench.enrol("caller")
    opening = bench.start()
    bench.core.cancel(caller, bench.now)
    bench.give(idle)
    bench.core.refresh(bench.now)
    assert bench.core.closes == {Reason.REFRESHED: 1}, "the idle one goes now"
    bench.give(lent)
    bench.finish(opening)
    assert bench.core.closes == {Reason.REFRESHED: 3}
    bench.work()
    bench.enrol("another")
    assert bench.open().generation == 1


def test_a_paused_pool_lends_nothing_and_serves_the_line_first_when_it_goes_on() -> None:
    bench = Bench(max_size=1)
    bench.stock(1)
    bench.core.pause(bench.now)
    caller = bench.enrol("caller")
    assert bench.lease().enter() is None
    assert caller.claim is None and caller.refusal is None
    assert bench.core.opens_wanted(bench.now) == 0
    bench.core.resume(bench.now)
    assert caller.claim is not None


def test_a_smaller_pool_closes_the_idle_now_and_the_lent_when_they_come_back() -> None:
    bench = Bench(max_size=3)
    one, two, three = bench.fill(3)
    bench.give(three)
    bench.core.resize(Settings(max_size=1), bench.now)
    assert bench.work() == ["close"]
    bench.give(two)
    assert bench.work() == ["close"]
    bench.give(one)
    assert bench.work() == []
    assert bench.core.closes == {Reason.SURPLUS: 2}
    assert len(bench.core.idle) == 1


def test_the_hot_path_sees_that_the_pool_has_shrunk() -> None:
    bench = Bench(max_size=2)
    bench.stock(2)
    leases = [bench.lease(), bench.lease()]
    for lease in leases:
        lease.enter()
    bench.core.resize(Settings(max_size=1), bench.now)
    for lease in leases:
        lease.leave(None, None, None)
    assert bench.work() == ["close"]
    assert not bench.core.gate


def test_close_turns_the_line_away_and_closes_what_it_can() -> None:
    bench = Bench(max_size=2)
    lent, other = bench.fill(2)
    caller = bench.enrol("caller")
    bench.core.close(bench.now)
    assert caller.refusal is Refusal.CLOSED
    bench.give(other)
    assert bench.enrol("late").refusal is Refusal.CLOSED
    drain = Caller("drain", bench.now, 5.0)
    bench.core.drain(drain, bench.now)
    bench.work()
    assert not drain.done
    bench.give(lent)
    bench.work()
    assert drain.done and drain in bench.core.wakes
    assert bench.core.opens_wanted(bench.now) == 0
    bench.core.close(bench.now)


def test_a_connection_that_opens_for_a_closed_pool_is_closed() -> None:
    bench = Bench(max_size=1)
    bench.enrol("caller")
    opening = bench.start()
    bench.core.close(bench.now)
    drain = Caller("drain", bench.now, 5.0)
    bench.core.drain(drain, bench.now)
    bench.finish(opening)
    assert bench.work() == ["close"]
    assert drain.done


def test_an_open_that_fails_for_a_closed_pool_lets_it_end() -> None:
    bench = Bench(max_size=1)
    bench.enrol("caller")
    opening = bench.start()
    bench.core.close(bench.now)
    drain = Caller("drain", bench.now, 5.0)
    bench.core.drain(drain, bench.now)
    bench.fail(opening)
    assert drain.done


def test_the_hot_path_sees_that_the_pool_has_closed() -> None:
    bench = Bench(max_size=1)
    bench.stock(1)
    lease = bench.lease()
    lease.enter()
    bench.core.close(bench.now)
    lease.leave(None, None, None)
    assert bench.work() == ["close"]
    assert bench.lease().enter() is None


def test_a_caller_of_warm_waits_until_min_size_is_open() -> None:
    bench = Bench(min_size=2, max_size=2)
    caller = Caller("warm", bench.now, 5.0)
    bench.core.warm(caller, bench.now)
    bench.open()
    assert not caller.done
    bench.open()
    assert caller.done and caller.refusal is None
    again = Caller("again", bench.now, 5.0)
    bench.core.warm(again, bench.now)
    assert again.done


def test_a_caller_of_warm_learns_of_an_outage_and_of_the_end() -> None:
    bench = Bench(min_size=1, max_size=1)
    caller = Caller("warm", bench.now, 5.0)
    bench.core.warm(caller, bench.now)
    bench.fail(bench.start())
    assert caller.refusal is Refusal.DOWN
    bench.core.close(bench.now)
    late = Caller("late", bench.now, 5.0)
    bench.core.warm(late, bench.now)
    assert late.refusal is Refusal.CLOSED


def test_a_caller_of_warm_who_rides_it_out_goes_on_waiting_until_it_desists() -> None:
    bench = Bench(min_size=1, max_size=1, ride_out=True)
    caller = Caller("warm", bench.now, 5.0)
    bench.core.warm(caller, bench.now)
    bench.fail(bench.start())
    assert not caller.done
    bench.core.desist(caller, bench.now)
    bench.now += 1.0
    bench.open()
    assert not caller.done and caller not in bench.core.wakes


# Lost claims and interrupted changes


def test_a_claim_that_dies_gives_its_place_back_and_closes_its_connection() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    entry = claim.entry
    del claim
    assert bench.lost == [entry]
    assert bench.reap() == 1
    assert bench.work() == ["abandon"]
    assert bench.core.closes == {Reason.LOST: 1}
    bench.check()


def test_the_claim_of_an_open_that_dies_gives_its_place_back() -> None:
    bench = Bench(max_size=1)
    bench.enrol("caller")
    claim = bench.start()
    del claim
    assert bench.reap() == 1
    bench.check()
    assert not bench.core.entries
    bench.open()


def test_a_hang_up_that_is_told_late_casts_no_suspicion() -> None:
    bench = Bench(max_size=2)
    (sound,) = bench.stock(1)
    (claim,) = bench.fill(1)
    entry = claim.entry
    bench.give(claim, Fitness.CUT)
    bench.core.hung_up(entry, bench.now)
    assert not sound.suspect
    assert bench.work() == ["abandon"]


def test_a_loss_that_is_reported_late_changes_nothing() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    entry = claim.entry
    bench.give(claim, Fitness.CUT)
    bench.core.lost(entry, bench.now)
    bench.work()
    bench.core.lost(entry, bench.now)
    assert bench.core.closes == {Reason.BROKEN: 1}
    bench.check()


def test_what_is_idle_and_cannot_be_parked_is_given_out_for_closing_before_a_fork() -> None:
    bench = Bench(max_size=3)
    bare, other, parkable = bench.stock(3)
    parkable.descriptor = "a descriptor"
    assert [job.entry for job in bench.core.part(bench.now)] == [bare, other]
    assert bench.core.chores == 0
    assert [claim.entry for claim in bench.core.idle] == [parkable]
    for entry in (bare, other):
        bench.core.closed(entry, bench.now)
    bench.check()
    assert bench.core.closes == {Reason.FORKED: 2}


def test_nothing_is_opened_until_a_fork_is_over() -> None:
    bench = Bench(max_size=3, min_size=1)
    (entry,) = bench.stock(1)
    assert [job.entry for job in bench.core.part(bench.now)] == [entry]
    bench.core.closed(entry, bench.now)
    bench.enrol("caller")
    assert bench.core.opens_wanted(bench.now) == 0
    assert bench.core.next_open(bench.now) is None
    bench.core.rejoin(bench.now)
    assert bench.core.opens_wanted(bench.now) == 1
    bench.core.rejoin(bench.now)
    assert bench.core.opens_wanted(bench.now) == 1
    bench.check()


def test_before_a_fork_every_borrow_looks_further_until_it_is_over() -> None:
    bench = Bench(max_size=1)
    bench.stock(1)
    bench.core.shut(bench.now)
    assert bench.core.gate
    bench.core.settle(bench.now)
    assert bench.core.gate
    bench.core.rejoin(bench.now)
    assert not bench.core.gate
    bench.check()


def test_a_fork_whose_end_nobody_tells_is_over_after_two_ticks() -> None:
    bench = Bench(max_size=1)
    bench.core.part(bench.now)
    bench.enrol("caller")
    wanted = []
    for _ in range(2):
        wanted.append(bench.core.opens_wanted(bench.now))
        bench.tick()
    assert wanted == [0, 0]
    assert bench.core.opens_wanted(bench.now) == 1
    bench.check()


def test_borrowers_may_come_while_a_fork_is_prepared() -> None:
    bench = Bench(max_size=1)

    class Shrinking(deque["Claim[str]"]):
        def __len__(self) -> int:
            return super().__len__() + 1

    (entry,) = bench.stock(1)
    bench.core.idle = Shrinking(bench.core.idle)
    assert [job.entry for job in bench.core.part(bench.now)] == [entry]


def test_an_open_that_was_cut_short_leaves_no_trace_and_no_outage() -> None:
    bench = Bench(max_size=1)
    bench.enrol("caller")
    bench.core.forgo(bench.start(), bench.now)
    assert bench.core.outage is None
    assert bench.core.opens_wanted(bench.now) == 1
    bench.check()


def test_who_of_those_in_line_is_among_the_borrowers_is_told() -> None:
    bench = Bench(max_size=1)
    bench.fill(1)
    waiters = [bench.enrol(name) for name in ("one", "other")]
    assert bench.core.waiting_of({waiters[0].owner}, bench.now) == sum(w.owner == waiters[0].owner for w in waiters)
    assert bench.core.waiting_of(set(), bench.now) == 0


def test_a_claim_that_was_cut_in_the_making_dies_quietly() -> None:
    guard: _Guard[str] = _Guard.__new__(_Guard)
    del guard


def test_a_finaliser_that_is_struck_has_a_twin_that_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(max_size=1)
    struck: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", struck.append)

    def strike_once(entry: Entry[str]) -> None:
        if not struck:
            raise KeyboardInterrupt
        bench.note_lost(entry)

    entry: Entry[str] = Entry(1, 0, bench.now)
    claim = Claim(entry, strike_once)
    del claim
    assert len(struck) == 1
    assert bench.lost == [entry]


@pytest.mark.parametrize("claim_is_older", [True, False])
def test_a_generator_closed_by_the_collector_returns_its_loan_and_reports_nothing(claim_is_older: bool) -> None:
    """The collector finalises all that is in a cycle, in the order of its making, and only then looks what lives."""
    bench = Bench(max_size=1)
    itself: list[object] = []

    def borrow(itself: list[object]) -> Iterator[None]:
        if not claim_is_older:
            bench.stock(1)
        lease = bench.lease()
        lease.enter()
        try:
            yield
        finally:
            lease.leave(None, None, None)
        itself.clear()

    if claim_is_older:
        bench.stock(1)
    borrowing = borrow(itself)
    next(borrowing)
    itself.append(borrowing)
    del borrowing, itself
    gc.collect()
    assert not bench.lost
    (claim,) = bench.core.idle
    entry = claim.entry
    bench.core.idle.clear()
    del claim
    assert bench.lost == [entry], "its death is reported, when it comes"


def test_a_caller_who_dies_with_its_grant_loses_the_connection_not_the_place() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    caller = bench.enrol("caller")
    bench.give(claim)
    bench.core.wakes.clear()
    del caller, claim
    assert bench.reap() == 1


def test_audit_finds_nothing_when_nothing_happened() -> None:
    bench = Bench(max_size=3)
    bench.fill(1)
    bench.stock(1)
    bench.enrol("caller")
    bench.enrol("other")
    bench.check()


def test_audit_sends_on_a_caller_who_had_its_answer() -> None:
    bench = Bench(max_size=1)
    bench.fill(1)
    served, refused = bench.enrol("served"), bench.enrol("refused")
    entry: Entry[str] = Entry(99, 0, bench.now)
    served.claim = Claim(entry, lambda _: None)
    refused.refusal = Refusal.TIMEOUT
    assert len(bench.core.audit(bench.now)) == 2
    assert bench.core.wakes == [served, refused]
    assert len(bench.core.line) == 0


def test_audit_counts_anew() -> None:
    bench = Bench(max_size=3)
    bench.fill(1)
    bench.core._n_opening = 7
    bench.core.by_conn.clear()
    assert len(bench.core.audit(bench.now)) == 2
    bench.check()


def test_audit_closes_what_nobody_was_closing() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    bench.give(claim, Fitness.CUT)
    bench.core._jobs.clear()
    assert len(bench.core.audit(bench.now)) == 1
    assert bench.work() == ["abandon"]


def test_audit_leaves_alone_what_somebody_is_closing() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    bench.give(claim, Fitness.CUT)
    job = bench.core.next_chore(bench.now)
    assert job is not None
    assert bench.core.audit(bench.now) == []
    bench.core.closed(job.entry, bench.now)
    bench.core.closed(job.entry, bench.now)
    bench.check()


def test_the_end_of_a_connection_leaves_its_successor_at_the_same_address_alone() -> None:
    bench = Bench(max_size=2)
    (claim,) = bench.fill(1)
    other: Entry[str] = Entry(99, 0, bench.now)
    bench.core.by_conn[id(claim.entry.conn)] = other
    bench.give(claim, Fitness.CUT)
    bench.work()
    assert list(bench.core.by_conn.values()) == [other]


def test_audit_strikes_off_what_is_closed() -> None:
    bench = Bench(max_size=1)
    (claim,) = bench.fill(1)
    bench.give(claim, Fitness.CUT)
    bench.work()
    bench.core.entries[claim.entry] = None
    assert bench.core.audit(bench.now) != []
    bench.check()


def test_a_job_that_comes_back_after_its_entry_has_ended_changes_nothing() -> None:
    bench = Bench(max_size=1)
    bench.stock(1)
    bench.suspend()
    bench.tick(0.1)
    job = bench.core.next_chore(bench.now)
    assert job is not None
    bench.core.lost(job.entry, bench.now)
    bench.core.tended(job, True, bench.now)
    assert bench.work() == ["abandon"]
    bench.check()


def test_an_open_that_comes_back_to_another_pool_is_not_taken_in() -> None:
    bench, child = Bench(max_size=1), Bench(max_size=1)
    bench.enrol("caller")
    claim = bench.start()
    child.core.opened(claim, "connection", None, 0.0, child.now)
    child.core.open_failed(claim, OSError(), False, 0.0, child.now)
    assert not child.core.entries


def test_a_change_of_state_that_is_not_in_the_table_is_a_defect() -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    with pytest.raises(AssertionError, match="defect"):
        bench.core._move(entry, State.OPENING)


def test_every_state_is_in_the_table_and_only_the_last_is_final() -> None:
    assert set(TRANSITIONS) == set(State)
    assert [state for state, after in TRANSITIONS.items() if not after] == [State.CLOSED]


def test_a_sweep_among_borrowers_takes_what_is_there() -> None:
    bench = Bench(max_size=3)

    class Shrinking(deque["Claim[str]"]):
        """A deque from which somebody pops while it is swept."""

        def __len__(self) -> int:
            return super().__len__() + 1

    for entry in bench.stock(3):
        bench.core.condemn(entry, Reason.HUNG_UP, bench.now)
    bench.core.idle = Shrinking(bench.core.idle)
    bench.core.sweep(bench.now)
    assert bench.work() == ["abandon"] * 3


# The hot path


def test_the_last_returned_is_lent_first() -> None:
    bench = Bench(max_size=3, order="lifo")
    entries = bench.stock(3)
    lease = bench.lease()
    assert lease.enter() == entries[2].conn
    lease.leave(None, None, None)
    assert bench.lease().enter() == entries[2].conn


def test_in_fifo_order_the_first_returned_is_lent_first() -> None:
    bench = Bench(max_size=3, order="fifo")
    entries = bench.stock(3)
    leases = [bench.lease() for _ in range(4)]
    assert [lease.enter() for lease in leases[:3]] == [entry.conn for entry in entries]
    leases[1].leave(None, None, None)
    leases[0].leave(None, None, None)
    assert leases[3].enter() == entries[1].conn


def test_a_lease_is_left_once_for_each_time_it_is_entered() -> None:
    bench = Bench(max_size=2)
    bench.stock(1)
    lease = bench.lease()
    with pytest.raises(ValueError, match="not entered"):
        lease.leave(None, None, None)
    lease.enter()
    lease.leave(None, None, None)
    with pytest.raises(ValueError, match="not entered"):
        lease.leave(None, None, None)
    assert len(bench.core.idle) == 1
    assert not bench.lost


@pytest.mark.parametrize("idle", [0, 1])
def test_a_lease_that_is_entered_is_not_entered_again_and_keeps_its_loan(idle: int) -> None:
    bench = Bench(max_size=2)
    bench.stock(1 + idle)
    lease = bench.lease()
    conn = lease.enter()
    with pytest.raises(ValueError, match="asked to enter a lease that is entered"):
        lease.enter()
    assert len(bench.core.idle) == idle
    lease.leave(None, None, None)
    assert not bench.lost
    assert bench.lease().enter() == conn


def test_a_lease_that_is_entered_keeps_its_loan_whatever_strikes_one_who_enters_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(max_size=1)
    bench.stock(1)
    lease = bench.lease()
    lease.enter()

    def struck() -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bench.core, "whoami", struck)
        with pytest.raises(KeyboardInterrupt):
            lease.enter()
    lease.leave(None, None, None)
    assert len(bench.core.idle) == 1
    assert not bench.lost


def test_an_error_of_the_inspection_is_let_through_and_costs_the_connection() -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    bench.core.inspect = lambda conn, error: 1 / 0  # type: ignore[assignment,return-value]
    lease = bench.lease()
    lease.enter()
    with pytest.raises(ZeroDivisionError):
        lease.leave(None, None, None)
    assert bench.lost == [entry]


def test_an_attribute_error_of_the_inspection_is_not_taken_for_misuse() -> None:
    bench = Bench(max_size=1)
    bench.stock(1)
    bench.core.inspect = lambda conn, error: conn.nonsense  # type: ignore[attr-defined]
    lease = bench.lease()
    lease.enter()
    with pytest.raises(AttributeError, match="nonsense"):
        lease.leave(None, None, None)


@pytest.mark.parametrize(
    ("inspect", "error", "outcome"),
    [
        (lambda conn, error: Condition.CLEAN, None, []),
        (lambda conn, error: Condition.DIRTY, None, ["returned"]),
        (None, None, []),
        (None, KeyboardInterrupt(), ["returned"]),
    ],
)
def test_only_what_is_proved_clean_is_laid_by_at_once(
    inspect: Callable[[str, BaseException | None], Condition] | None, error: BaseException | None, outcome: list[str]
) -> None:
    bench = Bench(max_size=1)
    bench.stock(1)
    bench.core.inspect = inspect
    returned: list[str] = []
    bench._return = lambda claim, error: returned.append("returned")  # type: ignore[method-assign]
    lease = bench.lease()
    lease.enter()
    lease.leave(None, error, None)
    assert returned == outcome


def test_an_exception_in_the_middle_of_a_borrow_costs_the_connection_and_not_its_place() -> None:
    bench = Bench(max_size=1)
    bench.stock(1)

    class Interrupting(Entry["str"]):
        """An entry at whose first touch a signal arrives."""

        @property
        def good_until(self) -> float:
            raise KeyboardInterrupt

        @good_until.setter
        def good_until(self, value: float) -> None: ...

    entry = Interrupting(1, 0, bench.now)
    (claim,) = bench.core.idle
    claim.dissolve()
    bench.core.idle.clear()
    bench.core.idle.append(Claim(entry, bench.note_lost))
    with pytest.raises(KeyboardInterrupt) as caught:
        bench.lease().enter()
    assert bench.lost == [entry], "although the traceback is still kept"
    del caught


def test_an_exception_in_the_middle_of_a_return_costs_the_connection_and_not_its_place() -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)

    def interrupted(conn: str, error: BaseException | None) -> Condition:
        raise KeyboardInterrupt

    bench.core.inspect = interrupted
    lease = bench.lease()
    lease.enter()
    with pytest.raises(KeyboardInterrupt) as caught:
        lease.leave(None, None, None)
    assert bench.lost == [entry], "although the traceback is still kept"
    del caught


def test_a_lease_notes_where_it_was_borrowed() -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    lease = bench.lease()
    code = test_a_lease_notes_where_it_was_borrowed.__code__
    lease._claim = None
    lease._note((code, 0))
    lease.enter()
    lease._note(None)
    assert entry.site is None
    lease._note((code, 0))
    assert entry.site == (entry.uses, code, 0)
    lease.leave(None, None, None)


def test_a_lease_that_dies_gives_its_place_back() -> None:
    bench = Bench(max_size=1)
    (entry,) = bench.stock(1)
    lease = bench.lease()
    lease.enter()
    del lease
    assert bench.lost == [entry]


def test_the_parts_that_shells_fill_in_are_not_there_without_one() -> None:
    from millpond._core.lease import Lease

    with pytest.raises(NotImplementedError):
        Lease[str]()._wait()
    with pytest.raises(NotImplementedError):
        Waiter[str](1, 0.0, 0.0, None).wake()


def test_a_job_names_its_task() -> None:
    entry: Entry[str] = Entry(1, 0, 0.0)
    assert Job(Task.CLOSE, entry, None).task.value == "close"
    assert repr(entry) == "<Entry 1 opening, 0 uses>"
    assert isinstance(Core, type)


def test_a_borrower_who_finds_nothing_idle_gets_in_line() -> None:
    bench = Bench(max_size=1)
    assert bench.lease().enter() is None
    assert len(bench.core.line) == 1


def test_a_type_checker_s_subscript_costs_nothing_when_it_runs() -> None:
    from millpond._core.lease import Lease

    assert Lease[str] is Lease
    assert Lease.__mro__ == (Lease, object)
