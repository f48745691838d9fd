"""Callers give up in the order of their deadlines, and those who have left cost nothing."""

from __future__ import annotations

import math
import random

from millpond._backends import AsyncWaiter
from millpond.aio import _Deadlines


def caller(deadline: float) -> AsyncWaiter[object]:
    return AsyncWaiter(0, 0.0, deadline, None)


def test_callers_give_up_in_the_order_of_their_deadlines() -> None:
    chance = random.Random(7)
    deadlines = _Deadlines()
    callers = [caller(chance.choice([1.0, 5.0, chance.random() * 10])) for _ in range(500)]
    soonest = math.inf
    for each in callers:
        first = deadlines.add(each, 500)
        assert first == (each.deadline < soonest) or each.deadline == soonest
        soonest = min(soonest, each.deadline)
        assert deadlines.next() == soonest
    gone = chance.sample(callers, 200)
    for each in gone:
        each.done = True
    expired = []
    now = 0.0
    while now < 11.0:
        now += 0.1
        while (due := deadlines.due(now)) is not None:
            assert now - 0.1 <= due.deadline <= now
            expired.append(due)
    assert set(expired) == set(callers) - set(gone)
    assert deadlines.next() == math.inf


def test_those_who_have_left_do_not_pile_up() -> None:
    deadlines = _Deadlines()
    chance = random.Random(7)
    for number in range(20_000):
        each = caller(30.0 + number if number % 2 else chance.random())
        deadlines.add(each, 1)
        each.done = True
    assert len(deadlines._ordered) + len(deadlines._others) < 200
