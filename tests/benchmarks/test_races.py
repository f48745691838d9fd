"""The comparison with peers is fair to all, and says what it leaves out and what is missed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
from benchmarks.figure import Figure
from benchmarks.page.markdown import section
from benchmarks.page.section import Section, standings
from benchmarks.peers import objects
from benchmarks.race import Contestant, Race, Times, race
from benchmarks.turns import NO_POOL, Crowds, take_turns


@contextmanager
def _broken(size: int) -> Iterator[None]:
    raise ImportError("No module named 'peer'")
    yield


BROKEN = Contestant("a broken peer", "with pool.connection() as conn:\n    WORK", _broken)


def test_a_peer_that_cannot_take_part_is_named_with_the_reason() -> None:
    found = race([objects.OURS, BROKEN], rounds=2, lap=0.0001)
    assert [times.contestant for times in found] == [objects.OURS]
    text = section(Section("Title", "Text.", left_out=found.left_out))
    assert "Left out: a broken peer, lends an object (ImportError: No module named 'peer')." in text


def test_everybody_does_the_same_number_of_rounds_forwards_and_backwards() -> None:
    laps: list[str] = []
    names = ("first", "second", "third")
    contestants = [Contestant(name, f'pool.append("{name}")', lambda size: nullcontext(laps)) for name in names]
    found = race(contestants, rounds=4, lap=0.0)
    assert [len(times.laps) for times in found] == [4] * 3
    changes = [name for name, before in zip(laps, [None, *laps], strict=False) if name != before]
    # Each is tried alone before the first round; whoever ends a round begins the next.
    assert changes[-9:] == ["first", "second", "third", "second", "first", "second", "third", "second", "first"]


def test_what_is_done_is_done_with_what_is_lent_by_threads_and_tasks() -> None:
    for contestant in (*objects.THREADS[:3], *objects.TASKS[:2]):
        found = race(
            [contestant], works={"an object": "assert conn is not None and not isinstance(conn, type)"}, rounds=1
        )
        assert not found.left_out


def test_a_ratio_is_that_of_laps_in_the_same_round() -> None:
    """The machine is three times as slow in the second round: that is nobody's fault."""
    one, other = Times(objects.OURS, [2.0, 6.0, 2.2]), Times(BROKEN, [4.0, 12.0, 4.4])
    assert other.over(one) == pytest.approx(2.0)
    assert "| 2.00 x |" in section(Section("Title", "Text.", [standings([Race([one, other])], "", "")[0]]))


def test_a_goal_that_is_missed_is_told() -> None:
    figures = [Figure("a loan", "quick", 1.0, " x", 2.0), Figure("a loan", "slow", 3.0, " x", 2.0)]
    text = section(Section("Title", "Text.", figures=figures, why="It is **slow** since."))
    assert "| a loan, quick | 1.00 x | <= 2 x | kept |" in text
    assert "| a loan, slow | 3.00 x | <= 2 x | **missed** |" in text
    assert "It is **slow** since." in text


def test_crowds_of_all_sizes_take_turns_and_who_stands_in_line_has_as_many_as_the_others() -> None:
    crowds = Crowds(2, (1, 6), {"no work": "pass", "1 ms": "sleep(0.001)"}, "threads")
    take_turns([NO_POOL, objects.OURS, BROKEN], crowds, rounds=lambda size: 2, seconds=lambda work, size: 0.2)
    assert [out.contestant for out in crowds.left_out] == [BROKEN]
    assert crowds.contestants == [NO_POOL, objects.OURS]
    assert {len(outcomes) for outcomes in crowds.outcomes.values()} == {2}
    assert crowds.jain(objects.OURS, "1 ms", 6) > 0.9
    text = section(crowds.section("Title", "Text.", "picture", ""))
    assert "| turns, of the limit, 1 ms, the least of 1, 6 threads |" in text


@pytest.mark.parametrize("work", ["pool.add(1)", "pool.add(1)\nawait sleep(0)"])
def test_a_peer_that_fails_in_a_crowd_is_named_and_the_others_go_on(work: str) -> None:
    failing = Contestant("a failing peer", "WORK", lambda size: nullcontext(frozenset()))
    other = Contestant("another", "WORK", lambda size: nullcontext(set()))
    crowds = Crowds(2, (1, 3), {"no work": work}, "callers")
    take_turns([failing, other], crowds, rounds=lambda size: 1, seconds=lambda work, size: 0.01)
    assert [out.contestant for out in crowds.left_out] == [failing] * 2
    assert crowds.left_out[1].reason.startswith("no work, 3 callers: AttributeError: 'frozenset' object has no")
    assert crowds.contestants == [other]
    assert len(crowds.outcomes) == 2
