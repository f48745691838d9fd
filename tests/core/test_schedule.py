"""What is due when."""

from __future__ import annotations

import math
import random

from millpond._core.schedule import SPARE, Schedule


def test_what_is_due_is_taken_in_its_order_and_once() -> None:
    schedule: Schedule[str] = Schedule()
    assert schedule.next() == math.inf and schedule.take(1e9) is None
    for thing, due in (("late", 3.0), ("soon", 1.0), ("never", math.inf), ("then", 2.0)):
        schedule.put(thing, due)
    assert len(schedule) == 4
    assert (schedule.next(), schedule.take(0.9)) == (1.0, None)
    assert [schedule.take(3.0) for _ in range(4)] == ["soon", "then", "late", None]
    assert len(schedule) == 1 and schedule.next() == math.inf


def test_a_time_may_change_either_way_or_be_forgotten() -> None:
    schedule: Schedule[str] = Schedule()
    for thing in ("one", "two", "three"):
        schedule.put(thing, 5.0)
    schedule.put("one", 9.0)
    schedule.put("two", 1.0)
    schedule.put("three", math.inf)
    assert [schedule.take(5.0) for _ in range(2)] == ["two", None]
    assert (schedule.next(), len(schedule)) == (9.0, 2)
    schedule.remove("one")
    schedule.remove("unknown")
    assert (schedule.next(), len(schedule)) == (math.inf, 1)


def test_it_agrees_with_a_dictionary_and_does_not_grow_with_changes() -> None:
    chance = random.Random(7)
    schedule: Schedule[int] = Schedule()
    dues: dict[int, float] = {}
    now = 0.0
    for _ in range(20_000):
        thing = chance.randrange(20)
        if chance.random() < 0.1:
            schedule.remove(thing)
            dues.pop(thing, None)
        else:
            due = math.inf if chance.random() < 0.1 else now + chance.random() * 10
            schedule.put(thing, due)
            dues[thing] = due
        now += chance.random() * 0.1
        first = min(dues.values(), default=math.inf)
        assert schedule.next() == first
        taken = schedule.take(now)
        assert (taken is not None) == (first <= now)
        if taken is not None:
            assert dues.pop(taken) == first
        assert len(schedule) == len(dues)
        assert len(schedule._heap) <= 2 * 20 + SPARE + 1
