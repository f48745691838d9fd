"""The state machine of a budget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond._core.ledger import Ledger, Share


def declare(share: Share, size: int, wanted: int = 0, since: float = math.inf, closing: int = 0) -> None:
    share.declare(size, closing, wanted, since)


def test_what_is_free_goes_to_who_asks() -> None:
    ledger = Ledger(3)
    first, second = ledger.join(0), ledger.join(0)
    declare(first, 0, 2, since=5.0)
    assert (first.wants, first.stirred) == (2, True)
    assert ledger.balance() == [first]
    assert (first.quota, first.wants, second.quota, ledger.held) == (2, 0, 0, 2)
    assert ledger.limit == 3


def test_the_caller_who_has_waited_longest_is_first() -> None:
    ledger = Ledger(1)
    late, early = ledger.join(0), ledger.join(0)
    declare(late, 0, 1, since=2.0)
    declare(early, 0, 1, since=1.0)
    assert ledger.balance() == [early]
    assert (late.quota, early.quota) == (0, 1)
    assert (ledger.oldest, ledger.next_has, len(ledger.calls)) == (2.0, 0, 1)


def test_what_is_not_needed_any_more_is_returned() -> None:
    ledger = Ledger(2)
    share = ledger.join(0)
    declare(share, 0, 2, since=0.0)
    ledger.balance()
    share.stirred = False
    declare(share, 1)  # another's return has served the second caller
    assert (share.quota, share.stirred) == (1, True)
    share.stirred = False
    declare(share, 1)
    assert not share.stirred, "nothing has changed, and the ledger need not look"


def test_a_minimum_is_kept_free_and_cannot_be_promised_twice() -> None:
    ledger = Ledger(3)
    sure, other = ledger.join(2), ledger.join(0)
    with pytest.raises(ValueError, match=r"min_size=2 cannot be guaranteed: the budget is 3 .* have 2 for their own"):
        ledger.join(2)
    declare(other, 0, 3, since=0.0)
    assert ledger.balance() == [other]
    assert other.quota == 1
    declare(sure, 0, 2)
    assert ledger.balance() == [sure]
    assert (sure.quota, ledger.held) == (2, 3)
    with pytest.raises(ValueError, match="min_size=4 cannot be guaranteed"):
        ledger.check(sure, 4)
    ledger.leave(sure)
    ledger.balance()
    assert other.quota == 3


def test_as_many_are_called_for_as_are_wanting() -> None:
    ledger = Ledger(2)
    rich, poor = ledger.join(0), ledger.join(0)
    declare(rich, 0, 2, since=0.0)
    ledger.balance()
    declare(rich, 2)
    declare(poor, 0, 3, since=1.0)
    ledger.balance()
    assert len(ledger.calls) == 3
    assert rich.called
    declare(rich, 2, closing=1)
    ledger.balance()
    assert len(ledger.calls) == 2, "one is being closed already"
    assert rich.answer(math.inf)
    declare(poor, 0)
    ledger.balance()
    assert not rich.called
    assert not rich.answer(math.inf)


def test_a_call_that_was_answered_is_paid_when_the_connection_is_closed_and_not_before() -> None:
    ledger = Ledger(1)
    rich, poor = ledger.join(0), ledger.join(0)
    declare(rich, 0, 1, since=0.0)
    ledger.balance()
    declare(rich, 1)
    declare(poor, 0, 1, since=1.0)
    ledger.balance()
    assert rich.answer(math.inf)
    declare(rich, 1, 1, since=2.0, closing=1)
    assert ledger.balance() == []
    declare(rich, 0, 1, since=2.0)  # closed; its own caller, who came later, has to wait
    assert ledger.balance() == [poor]
    assert (rich.quota, rich.wants) == (0, 1)


@pytest.mark.parametrize(
    ("mine", "theirs", "since", "given"),
    [
        (3, 1, 9.0, True),  # it has more, and another has waited for longer
        (3, 1, 0.5, False),  # its own caller has
        (2, 1, 9.0, False),  # they would take it from each other again and again
        (1, 0, 9.0, True),  # the other has nothing
        (1, 0, math.inf, True),  # nobody waits here
    ],
)
def test_a_pool_with_callers_of_its_own_gives_only_to_those_who_are_worse_off(
    mine: int, theirs: int, since: float, given: bool
) -> None:
    ledger = Ledger(mine + theirs)
    giver, taker = ledger.join(0), ledger.join(0)
    declare(giver, 0, mine, since=0.0)
    declare(taker, 0, theirs, since=0.0)
    ledger.balance()
    declare(giver, mine)
    declare(taker, theirs, 1, since=1.0)
    ledger.balance()
    assert giver.answer(since) is given


def test_a_lowered_limit_is_called_for() -> None:
    ledger = Ledger(4)
    share = ledger.join(1)
    declare(share, 0, 4, since=0.0)
    ledger.balance()
    declare(share, 4)
    with pytest.raises(ValueError, match="limit=0 is less than the min_size of all pools together, which is 1"):
        ledger.resize(0)
    ledger.resize(2)
    assert ledger.balance() == []
    assert len(ledger.excess) == 2
    declare(share, 4, 2, since=0.0)
    ledger.balance()
    assert [share.answer(0.0) for _ in range(3)] == [True, True, False], "though its own callers wait"


def test_a_lowered_limit_is_told_to_those_too_whose_own_callers_wait() -> None:
    ledger = Ledger(4)
    busy, other = ledger.join(0), ledger.join(0)
    for share in (busy, other):
        declare(share, 0, 2, since=0.0)
        ledger.balance()
        declare(share, 2, 1, since=1.0)
    ledger.resize(3)
    ledger.balance()
    assert (len(ledger.excess), ledger.givers()) == (1, [busy, other])
    busy.alert = True
    assert ledger.givers() == [other], "the first knows already"


class Pool:
    """As much of a pool as a ledger sees."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.size = self.closing = self.callers = 0

    def declare(self, now: float) -> None:
        self.share.declare(self.size, self.closing, self.callers, now if self.callers else math.inf)


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["come", "open", "go", "give", "closed"])), max_size=80),
)
def test_there_are_never_more_connections_than_the_limit_and_none_is_withheld(
    limit: int, events: list[tuple[int, str]]
) -> None:
    ledger = Ledger(limit)
    pools = [Pool(ledger.join(0)) for _ in range(3)]
    for now, (number, event) in enumerate(events):
        pool = pools[number]
        if event == "come":
            pool.callers += 1
        elif event == "open" and pool.size < pool.share.quota and pool.callers:
            pool.size += 1
            pool.callers -= 1
        elif event == "go" and pool.callers:
            pool.callers -= 1
        elif event == "give" and pool.size > pool.closing and pool.share.answer(math.inf):
            pool.closing += 1
        elif event == "closed" and pool.closing:
            pool.closing -= 1
            pool.size -= 1
        pool.declare(now)
        ledger.balance()
        assert sum(pool.size for pool in pools) <= sum(share.quota for share in ledger.shares) <= limit
        assert all(pool.size <= pool.share.quota for pool in pools)
        if any(share.wants for share in ledger.shares):
            assert ledger.held == limit, "a permit is free, and somebody wants one"


def test_a_pool_that_is_no_more_has_returned_everything() -> None:
    ledger = Ledger(2)
    gone, other = ledger.join(1), ledger.join(0)
    declare(gone, 0, 1, since=0.0)
    declare(other, 0, 2, since=0.0)
    ledger.balance()
    assert other.wants == 1
    assert other.exhausted
    gone.forsake()
    assert not other.exhausted
    assert ledger.balance() == [other]
