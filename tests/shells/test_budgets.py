"""Several pools under one limit: one suite of scenarios for all shells."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

import millpond
from millpond.testing import AsyncFakeConnector, FakeConnector

from .conftest import Shell, in_thread

pytestmark = pytest.mark.anyio

Make = Callable[..., Shell]


def live(*shells: Shell) -> int:
    return sum(len(shell.fake.live) for shell in shells)


async def test_pools_together_never_have_more_connections_than_their_budget(make: Make) -> None:
    budget = millpond.Budget(3)
    shells = [make(name=name, max_size=10, budget=budget, open_time=0.002) for name in ("one", "two", "three")]
    most = 0
    served = [0, 0, 0]

    async def call(number: int) -> None:
        nonlocal most
        for _ in range(20):
            async with shells[number].lent():
                most = max(most, live(*shells))
                await anyio.sleep(0.001)
            served[number] += 1

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(call, number % 3)
    assert served == [80, 80, 80]
    assert 2 <= most <= 3


async def test_an_idle_connection_of_one_pool_makes_room_for_a_caller_of_another(make: Make) -> None:
    budget = millpond.Budget(2)
    rich, poor = make(budget=budget), make(budget=budget)
    for conn in await rich.fill(2):
        rich.pool.release(conn)
    with anyio.fail_after(30):
        conn = await poor.acquire()
    assert rich.pool.stats().closes == {"made room": 1}
    assert (live(rich), live(poor), budget.used) == (1, 1, 2)
    poor.pool.release(conn)


async def test_a_pool_that_has_nothing_gets_what_comes_back_to_a_busy_one(make: Make) -> None:
    budget = millpond.Budget(1)
    busy, poor = make(budget=budget), make(budget=budget)
    order: list[str] = []

    async def call(name: str, shell: Shell) -> None:
        async with shell.lent():
            order.append(name)

    conn = await busy.acquire()
    async with anyio.create_task_group() as group:
        for name, shell in [("poor", poor), ("busy", busy), ("poor", poor)]:
            group.start_soon(call, name, shell)
            await anyio.wait_all_tasks_blocked()
            waiting = len(order) + busy.pool.stats().waiting + poor.pool.stats().waiting
            with anyio.fail_after(30):
                while waiting <= len(order):
                    await anyio.sleep(0.001)
                    waiting = busy.pool.stats().waiting + poor.pool.stats().waiting
        await poor.until(lambda stats: stats.waiting == 2)
        await busy.until(lambda stats: stats.waiting == 1)
        with anyio.fail_after(30):
            busy.pool.release(conn)
            while len(order) < 3:
                await anyio.sleep(0.001)
    assert order[0] == "poor"
    assert sorted(order) == ["busy", "poor", "poor"]


async def test_a_pool_is_sure_of_its_min_size(make: Make) -> None:
    budget = millpond.Budget(3)
    greedy, sure = make(budget=budget), make(budget=budget, min_size=2)
    conns = [await greedy.acquire()]
    with pytest.raises(millpond.PoolTimeout, match="the budget of 3 connections is used up"):
        await greedy.acquire(0.05)
    with anyio.fail_after(30):
        await sure.call("warm")
    assert (live(greedy), live(sure)) == (1, 2)
    with pytest.raises(ValueError, match="min_size=2 cannot be guaranteed"):
        make(budget=budget, min_size=2)
    with pytest.raises(ValueError, match="min_size=4 cannot be guaranteed"):
        sure.pool.resize(min_size=4)
    assert sure.pool.settings.min_size == 2
    for conn in conns:
        greedy.pool.release(conn)


async def test_a_lowered_limit_holds_though_callers_wait_for_every_connection(make: Make) -> None:
    budget = millpond.Budget(3)
    shell = make(max_size=3, budget=budget)
    over = False

    async def call() -> None:
        while not over:
            async with shell.lent():
                await anyio.sleep(0.001)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(call)
        await shell.until(lambda stats: stats.lent == 3)
        budget.resize(1)
        with anyio.fail_after(30):
            while budget.used > 1:
                await anyio.sleep(0.01)
        over = True


async def test_a_pool_that_is_closed_or_dropped_gives_its_places_back(way: Any, make: Make) -> None:
    budget = millpond.Budget(1)
    first, then = make(budget=budget), make(budget=budget)
    first.pool.release(await first.acquire())
    await first.call("close", 1.0)
    with anyio.fail_after(30):
        then.pool.release(await then.acquire())
    await then.call("close", 1.0)
    assert budget.used == 0
    dropped = Shell(way, budget=budget)
    # Not in a worker thread, which may keep what it has worked on.
    lent = dropped.pool.acquire()
    dropped.pool.release(lent if way == "threads" else await lent)
    assert budget.used == 1
    del lent
    with pytest.warns(ResourceWarning, match="never closed"), anyio.fail_after(5):
        del dropped
        while budget.used:
            await anyio.sleep(0.01)  # a task or thread may still hold it for a moment
            gc.collect()
    last = make(budget=budget)
    with anyio.fail_after(30):
        last.pool.release(await last.acquire())


async def test_a_budget_that_is_made_smaller_is_kept_as_soon_as_connections_are_idle(make: Make) -> None:
    budget = millpond.Budget(4)
    shell = make(budget=budget)
    conns = await shell.fill(4)
    budget.resize(2)
    for conn in conns:
        shell.pool.release(conn)
    await shell.until(lambda stats: stats.size == 2)
    assert budget.used == 2
    budget.resize(4)
    for conn in await shell.fill(4):
        shell.pool.release(conn)


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_a_limit_that_cannot_work_is_refused(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"limit={limit!r}"):
        millpond.Budget(limit)
    budget = millpond.Budget(1)
    with pytest.raises(error, match=f"limit={limit!r}"):
        budget.resize(limit)
    assert budget.limit == 1


def test_what_is_no_budget_is_refused(way: Any) -> None:
    with pytest.raises(TypeError, match="budget=5 must be a Budget or None"):
        Shell(way, budget=5)


def test_a_signal_handler_that_interrupts_the_budget_gets_an_error_and_no_deadlock() -> None:
    budget = millpond.Budget(1)
    with budget._lock, pytest.raises(millpond.Misuse, match="interrupted the budget"):
        budget.resize(2)


class Keyed:
    """A keyed pool of fake connections, whichever way it runs."""

    def __init__(self, way: Any, **settings: Any) -> None:
        self.way = way
        self.fakes: dict[str, FakeConnector | AsyncFakeConnector] = {}
        self.pool: Any
        if way == "threads":
            self.pool = millpond.KeyedPool(self.connector_of, **settings)
        else:
            self.pool = millpond.AsyncKeyedPool(self.connector_of, **settings)

    def connector_of(self, key: str) -> Any:
        return self.fakes.setdefault(key, FakeConnector() if self.way == "threads" else AsyncFakeConnector())

    async def acquire(self, key: str) -> Any:
        lend = self.pool[key].acquire
        return await (in_thread(lend) if self.way == "threads" else lend())

    async def close(self) -> None:
        await (in_thread(self.pool.close) if self.way == "threads" else self.pool.close())


@pytest.fixture
async def keyed(way: Any) -> AsyncIterator[Keyed]:
    keyed = Keyed(way, name="hosts", total=3, max_size=2, max_idle=0.2)
    yield keyed
    await keyed.close()


async def test_each_key_has_connections_of_its_own_under_one_total(keyed: Keyed) -> None:
    conns = {key: await keyed.acquire(key) for key in "abc"}
    assert {key: list(fake.live) for key, fake in keyed.fakes.items()} == {key: [conns[key]] for key in "abc"}
    assert sorted(keyed.pool) == ["a", "b", "c"]
    assert len(keyed.pool) == 3
    assert keyed.pool["a"] is keyed.pool["a"]
    assert keyed.pool["a"].name == "hosts[a]"
    assert repr(keyed.pool) == f"<millpond.{type(keyed.pool).__name__} 'hosts': 3 keys, 3 connections in all>"
    keyed.pool["a"].release(conns["a"])
    conns["d"] = await keyed.acquire("d")
    assert not keyed.fakes["a"].live, "the idle one made room"
    for key in "bcd":
        keyed.pool[key].release(conns[key])


async def test_a_key_without_connections_and_callers_vanishes(keyed: Keyed) -> None:
    pool = keyed.pool["a"]
    pool.release(await keyed.acquire("a"))
    assert list(keyed.pool.stats()) == ["a"]
    with anyio.fail_after(30):
        while list(keyed.pool):
            await anyio.sleep(0.01)
    assert keyed.pool["a"] is pool, "somebody still holds it, and a key never has two"
    for number in range(1000):
        keyed.pool[str(number)]
    assert len(keyed.pool._used) < 20


async def test_a_keyed_pool_lends_to_with_blocks(keyed: Keyed) -> None:
    if keyed.way == "threads":

        def borrow() -> None:
            with keyed.pool.connection("a") as conn:
                assert conn in keyed.fakes["a"].live

        await in_thread(borrow)
    else:
        async with keyed.pool.connection("a") as conn:
            assert conn in keyed.fakes["a"].live


async def test_a_closed_keyed_pool_wakes_all_callers_and_makes_no_pool_any_more(way: Any) -> None:
    keyed = Keyed(way, total=2)
    conns = [await keyed.acquire(key) for key in "ab"]
    told = threading.Semaphore(0)

    async def call(key: str) -> None:
        with pytest.raises(millpond.PoolClosed):
            await keyed.acquire(key)
        told.release()

    async with anyio.create_task_group() as group:
        for key in "abc":
            group.start_soon(call, key)
        with anyio.fail_after(30):
            while sum(stats.waiting for stats in keyed.pool.stats().values()) < 3:
                await anyio.sleep(0.001)
        pools = [keyed.pool[key] for key in "ab"]
        group.start_soon(keyed.close)
        for _ in range(3):
            with anyio.fail_after(30):
                await in_thread(told.acquire)
        for pool, conn in zip(pools, conns, strict=True):
            pool.release(conn)
    with pytest.raises(millpond.PoolClosed, match="keyed pool 'pool' is closed"):
        keyed.pool["a"]


async def test_closing_a_keyed_pool_closes_its_connections_in_good_order(way: Any) -> None:
    keyed = Keyed(way)
    for key in "abc":
        keyed.pool[key].release(await keyed.acquire(key))
    gc.collect()
    await keyed.close()
    assert [(len(fake.closed), len(fake.abandoned)) for fake in keyed.fakes.values()] == [(1, 0)] * 3


async def test_a_keyed_pool_that_was_never_closed_says_so(way: Any) -> None:
    keyed = Keyed(way, name="forgotten")
    lent = keyed.pool["a"].acquire()
    keyed.pool["a"].release(lent if way == "threads" else await lent)
    del lent
    ref = weakref.ref(keyed.pool)
    with pytest.warns(ResourceWarning, match="keyed pool 'forgotten' was never closed"), anyio.fail_after(5):
        del keyed
        while ref() is not None:
            await anyio.sleep(0.01)
            gc.collect()


def test_total_and_budget_are_not_both_given(way: Any) -> None:
    with pytest.raises(TypeError, match="total and budget say the same"):
        Keyed(way, total=2, budget=millpond.Budget(2))
