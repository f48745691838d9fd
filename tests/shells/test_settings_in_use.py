"""What callers and operators say in numbers, and where they say it from: timeouts, sizes, event loops, sources."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import anyio
import pytest
import trio

import millpond
from millpond.testing import AsyncFakeConnector, FakeConnector

from .conftest import Shell, in_thread

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("wrong", ["5", b"5", [], True, 5j])
async def test_a_timeout_that_is_no_number_is_refused_at_once(make: Callable[..., Shell], wrong: Any) -> None:
    """Not only when there is nothing idle, under load."""
    shell = make(max_size=2)
    shell.pool.release(await shell.acquire())
    for call in ("acquire", "warm", "close"):
        with pytest.raises(TypeError, match="must be a number of seconds"):
            await shell.call(call, wrong)
    with pytest.raises(TypeError, match=r"timeout=.* must be a number of seconds \(math.inf for no limit\)"):
        shell.pool.connection(wrong)
    assert not shell.pool.stats().closed, "it was closed, and then refused"
    shell.pool.release(await shell.acquire(5))


async def test_a_timeout_that_is_not_a_number_is_refused(make: Callable[..., Shell]) -> None:
    shell = make(max_size=1)
    with pytest.raises(ValueError, match="must be a number of seconds"):
        shell.pool.connection(float("nan"))
    with pytest.raises(TypeError, match="timeout=None must be a number of seconds"):
        await shell.call("close", None)
    assert not shell.pool.stats().closed


@pytest.mark.parametrize("timeout", [5, 0.5, Fraction(1, 2), float("inf")])
async def test_any_real_number_is_a_timeout(make: Callable[..., Shell], timeout: Any) -> None:
    shell = make(max_size=1)
    shell.pool.release(await shell.acquire(timeout))


@pytest.mark.parametrize("timeout", [0, -1, -1e9])
async def test_a_timeout_that_is_over_is_as_zero(make: Callable[..., Shell], timeout: float) -> None:
    """Callers count what is left until a deadline of theirs."""
    shell = make(max_size=1)
    conn = await shell.acquire(5)
    with pytest.raises(millpond.PoolTimeout, match="lent no connection within 0 s"):
        await shell.acquire(timeout)
    shell.pool.release(conn)
    shell.pool.release(await shell.acquire(timeout))


async def test_a_keyed_pool_refuses_a_timeout_before_it_closes(way: str) -> None:
    pools: Any = millpond.KeyedPool(lambda _: FakeConnector())
    if way != "threads":
        pools = millpond.AsyncKeyedPool(lambda _: AsyncFakeConnector())
    pool = pools["key"]
    with pytest.raises(TypeError, match="timeout=None must be a number of seconds"):
        await (in_thread(lambda: pools.close(None)) if way == "threads" else pools.close(None))
    assert pools["key"] is pool
    await (in_thread(pools.close) if way == "threads" else pools.close())


async def test_who_does_not_wait_gets_what_has_been_idle_for_long(make: Callable[..., Shell]) -> None:
    shell = make(max_size=3, min_size=3, check_after=0.0001)
    await shell.call("warm", 20)
    await shell.until(lambda stats: stats.idle == 3)
    await anyio.sleep(0.01)
    conn = await shell.acquire(0)
    assert shell.pool.stats().checks == 0, "it was asked, which it would have had to wait for"
    shell.pool.release(conn)
    await anyio.sleep(0.01)
    shell.pool.release(await shell.acquire(5))
    assert shell.pool.stats().checks, "who waits gets what has been asked"


async def test_who_does_not_wait_gets_nothing_that_shows_a_hang_up(make: Callable[..., Shell]) -> None:
    shell = make(max_size=2, min_size=2, check_after=0.0001, watchable=False)
    await shell.call("warm", 20)
    await shell.until(lambda stats: stats.idle == 2)
    for conn in list(shell.fake.live):
        conn.dead = True
    await anyio.sleep(0.01)
    with pytest.raises(millpond.PoolTimeout, match="lent no connection within 0 s"):
        await shell.acquire(0)
    await shell.until(lambda stats: stats.closes.get("broken"))


async def test_who_does_not_wait_is_told_that_what_is_idle_is_checked(make: Callable[..., Shell]) -> None:
    shell = make(max_size=2, min_size=2)
    await shell.call("warm", 20)
    await shell.until(lambda stats: stats.idle == 2)
    answer = threading.Event()
    shell.fake.ping = (wait_for if shell.way == "threads" else wait_for_as_a_task)(answer)  # type: ignore[method-assign]
    shell.pool._step(shell.pool._core.suspect)
    with pytest.raises(millpond.PoolTimeout, match="what is idle is checked first, since a connection was found dead"):
        await shell.acquire(0)
    answer.set()
    shell.pool.release(await shell.acquire(20))


def wait_for(answer: threading.Event) -> Any:
    def ping(conn: object, timeout: float) -> None:
        assert answer.wait(20)

    return ping


def wait_for_as_a_task(answer: threading.Event) -> Any:
    async def ping(conn: object, timeout: float) -> None:
        while not answer.is_set():
            await anyio.sleep(0.001)

    return ping


async def test_of_two_who_resize_at_once_neither_is_lost(make: Callable[..., Shell]) -> None:
    shell = make(max_size=10)
    resized = shell.pool._resize
    once = [lambda: shell.pool.resize(max_size=20)]
    replace = shell.pool._exchange

    def beaten(former: millpond.Settings, settings: millpond.Settings, now: float) -> bool:
        """Another thread resizes between the look at the sizes and their change."""
        if once:
            shell.pool._torn = False
            other = dataclasses.replace(former, max_size=20)
            once.clear()
            replace(former, other, now)
        return replace(former, settings, now)  # type: ignore[no-any-return]

    shell.pool._exchange = beaten
    resized(5, None)
    assert (shell.pool.settings.min_size, shell.pool.settings.max_size) == (5, 20)
    assert shell.pool._core.settings is shell.pool.settings


async def test_of_two_who_resize_at_once_the_budget_knows_who_has_won(way: str) -> None:
    """The one who loses the race may be refused on its second try, and has told the budget by then."""
    budget = millpond.Budget(10)
    shell = Shell(way, max_size=10, budget=budget)  # type: ignore[arg-type]
    pool, replace = shell.pool, shell.pool._exchange

    def beaten(former: millpond.Settings, settings: millpond.Settings, now: float) -> bool:
        pool._exchange = replace
        pool._settings = dataclasses.replace(former, min_size=0, max_size=3)
        return replace(former, settings, now)  # type: ignore[no-any-return]

    pool._exchange = beaten
    with pytest.raises(ValueError, match="min_size=5 does not fit max_size=3"):
        pool.resize(min_size=5)
    assert pool._core.share.minimum == pool.settings.min_size == 0
    await shell.call("close", 1.0)


# Loops


@pytest.mark.parametrize(
    "url", ["postgresql://127.0.0.1:1/app", "postgresql+asyncpg://127.0.0.1:1/app", "redis://127.0.0.1:1", "sqlite://"]
)
@pytest.mark.parametrize("min_size", [0, 1])
def test_a_driver_that_knows_asyncio_only_says_so_in_trio_at_once(url: str, min_size: int) -> None:
    async def main() -> None:
        pool = millpond.AsyncPool[Any].from_url(url, min_size=min_size, timeout=20)
        with pytest.raises(millpond.Misuse, match=r"was used in trio, and the driver of .* knows asyncio only"):
            await pool.acquire()
        with pytest.raises(millpond.Misuse, match=r"trio\.to_thread\.run_sync"):
            async with pool:
                pass
        assert pool.stats().open_failures == 0
        await pool.close()

    trio.run(main)


def test_a_pool_whose_loop_has_ended_says_so_and_is_closed_from_another() -> None:
    pool = millpond.AsyncPool(AsyncFakeConnector())

    async def borrow() -> None:
        async with pool.connection():
            pass

    asyncio.run(borrow())
    with pytest.raises(millpond.Misuse, match="belongs to the event loop that first used it, which has ended"):
        asyncio.run(borrow())
    asyncio.run(pool.close())
    asyncio.run(pool.close())
    with pytest.raises(millpond.PoolClosed, match="is closed"):
        asyncio.run(borrow())


# What is lent from


def test_a_connection_is_not_taken_for_a_callable_that_makes_them() -> None:
    with sqlite3.connect(":memory:") as conn:
        for kind in (millpond.Pool, millpond.AsyncPool):
            with pytest.raises(TypeError, match=r"a callable that returns a new connection, and this Connection is a"):
                kind(conn)  # type: ignore[arg-type]
    conn.close()
