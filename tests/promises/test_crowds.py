"""Crowds: everybody has the same turns, and the line's length costs nothing. `make measure` has the figures."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import deque

import anyio
import anyio.lowlevel
import pytest

from millpond import AsyncPool, Pool
from millpond.testing import AsyncFakeConnector, FakeConnection, FakeConnector

from .instructions import instructions
from .patience import LOOPS, Loop, run, until

WORKERS, CONNECTIONS, TURNS = 100, 10, 20


@pytest.mark.parametrize("loop", LOOPS)
def test_a_hundred_tasks_have_the_same_turns_at_ten_connections(loop: Loop) -> None:
    turns = [0] * WORKERS

    async def main() -> None:
        async with AsyncPool(AsyncFakeConnector(), max_size=CONNECTIONS) as pool, anyio.create_task_group() as group:

            async def take_turns(mine: int) -> None:
                while sum(turns) < WORKERS * TURNS:
                    async with pool.connection(60):
                        await anyio.lowlevel.checkpoint()
                        turns[mine] += 1

            for mine in range(WORKERS):
                group.start_soon(take_turns, mine)

    run(loop, main)
    # In the last round some come before, and some after it is over.
    assert max(turns) - min(turns) <= 2


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
    """10,000 tasks wait and leave, in another order than that of their coming; those who stay are served in theirs."""

    async def main() -> None:
        order: list[int] = []
        pool = AsyncPool[FakeConnection](AsyncFakeConnector(), max_size=1, timeout=3600)
        conn = await pool.acquire()

        async def call(number: int) -> None:
            async with pool.connection():
                order.append(number)

        tasks = [asyncio.create_task(call(number)) for number in range(10_000)]
        await asyncio.sleep(0)
        assert pool.stats().waiting == len(tasks)
        stay = range(0, 10_000, 100)
        for step in (7, 3, 1):
            for number in range(0, 10_000, step):
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


def instructions_of_a_loan(connections: int, waiting: int) -> float:
    """Tell how many instructions it takes to hand a connection on from one to the next."""
    loans = 100

    async def main() -> int:
        pool = AsyncPool[FakeConnection](AsyncFakeConnector(), max_size=connections, max_opening=connections)
        held = deque([await pool.acquire() for _ in range(connections)])
        arrived: list[FakeConnection] = []

        async def call() -> None:
            arrived.append(await pool.acquire(3600))

        tasks = [asyncio.create_task(call()) for _ in range(waiting)]
        await asyncio.sleep(0)
        assert pool.stats().waiting == waiting

        async def hand_on() -> None:
            for _ in range(loans):
                tasks.append(asyncio.create_task(call()))
                pool.release(held.popleft())
                while not arrived:
                    await asyncio.sleep(0)
                held.append(arrived.pop())

        handing = hand_on()
        count = 0
        over = False
        while not over:
            # A step at a time, as the loop itself is none of millpond's.
            def step() -> None:
                nonlocal over
                try:
                    handing.send(None)
                except StopIteration:
                    over = True

            count += instructions(step)
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for conn in held:
            pool.release(conn)
        await pool.close()
        return count

    return asyncio.run(main()) / loans


def test_the_finalisers_of_what_others_have_dropped_are_not_counted() -> None:
    def drop() -> None:
        pool = AsyncPool(AsyncFakeConnector())
        pool._droppable = True
        cycle: list[object] = [pool]
        cycle.append(cycle)

    for _ in range(40):
        drop()
    assert instructions(lambda: [[] for _ in range(300_000)]) == 0
    gc.collect()


@pytest.mark.usefixtures("without_ticks")
def test_a_loan_takes_no_more_instructions_among_a_thousand_connections_and_ten_thousand_waiters() -> None:
    """What it takes in time, among ten times as many, `make measure ARGS=crowd` tells."""
    few, many = instructions_of_a_loan(10, 10), instructions_of_a_loan(1000, 10_000)
    assert 0 < many <= 1.05 * few
