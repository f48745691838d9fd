"""Crowds: a burst opens few connections, everybody has the same turns, and the line's length costs nothing."""

from __future__ import annotations

import asyncio
import threading

import pytest
from benchmarks import burst, crowd, fairness

from millpond import AsyncPool, Pool
from millpond.testing import AsyncFakeConnector, FakeConnection, FakeConnector

from .patience import measured, until

SHELLS = ["threads", "asyncio", "trio"]
NOISE = 1.25
"""The goals are for a machine that does nothing else (`make measure`); these tests run on any."""


@pytest.mark.parametrize("shell", SHELLS)
def test_fifty_callers_at_once_open_at_most_six_connections(shell: str) -> None:
    bursts = [burst.opened_by_threads() if shell == "threads" else burst.opened_by_tasks(shell) for _ in range(3)]
    assert [served for served, _ in bursts] == [50] * 3
    assert sorted(opened for _, opened in bursts)[1] <= burst.GOAL


# Takes 5 s for each shell.
@pytest.mark.parametrize("shell", SHELLS)
def test_a_hundred_workers_have_the_same_turns_at_ten_connections(shell: str) -> None:
    def measure() -> fairness.Turns:
        return fairness.turns_of_threads() if shell == "threads" else fairness.turns_of_tasks(shell)

    limit = NOISE * fairness.WAIT_GOAL
    turns = measured(measure, lambda turns: turns.longest <= limit and turns.jain >= fairness.JAIN_GOAL)
    assert turns.longest <= limit
    assert turns.jain >= fairness.JAIN_GOAL


def test_nobody_overtakes_those_who_wait() -> None:
    """A caller who gives back and asks again at once goes to the end of the line."""
    order: list[int] = []
    with Pool(FakeConnector(), max_size=1) as pool:
        conn = pool.acquire()

        def call(number: int) -> None:
            with pool.connection():
                order.append(number)

        threads = []
        for number in range(20):
            threads.append(threading.Thread(target=call, args=(number,)))
            threads[-1].start()
            until(lambda number=number: pool.stats().waiting == number + 1)  # type: ignore[misc]
        pool.release(conn)
        with pool.connection():
            order.append(20)
        for thread in threads:
            thread.join()
    assert order == list(range(21))


def test_leaving_a_long_line_from_anywhere_is_quick_and_loses_nothing() -> None:
    """100,000 tasks wait and leave, in another order than that of their coming; those who stay are served in theirs."""

    async def main() -> None:
        order: list[int] = []
        pool = AsyncPool[FakeConnection](AsyncFakeConnector(), max_size=1, timeout=600)
        conn = await pool.acquire()

        async def call(number: int) -> None:
            async with pool.connection():
                order.append(number)

        tasks = [asyncio.create_task(call(number)) for number in range(100_000)]
        await asyncio.sleep(0)
        assert pool.stats().waiting == len(tasks)
        stay = range(0, 100_000, 1000)
        for step in (7, 3, 1):
            for number in range(0, 100_000, step):
                if number not in stay:
                    tasks[number].cancel()
            await asyncio.sleep(0)
        while pool.stats().waiting > len(stay):
            await asyncio.sleep(0)
        assert len(pool._core.line._queue) < 1000
        pool.release(conn)
        await asyncio.gather(*(tasks[number] for number in stay))
        assert order == list(stay)
        assert pool._step(pool._core.audit) == []
        await pool.close()

    asyncio.run(main())


# Takes half a minute: 220,000 tasks are made and ended.
def test_a_loan_costs_no_more_among_ten_thousand_connections_and_a_hundred_thousand_waiters() -> None:
    """Beyond what asyncio itself takes longer to wake one of a hundred thousand tasks than one of ten."""

    def measure() -> float:
        return asyncio.run(crowd.costs()).excess

    assert measured(measure, lambda excess: excess <= crowd.GOAL, attempts=2) <= crowd.GOAL
