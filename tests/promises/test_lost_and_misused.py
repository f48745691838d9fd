"""What callers do wrong costs them an error and nobody a connection."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from millpond import AsyncPool, Misuse, Pool, PoolClosed, PoolTimeout
from millpond.connector import Condition
from millpond.testing import AsyncFakeConnector, FakeConnection, FakeConnector

from .patience import LOOPS, Loop, assert_whole, assert_whole_async, run, until, until_seen

FakePool = AsyncPool[FakeConnection]


@pytest.fixture
def pool() -> Iterator[Pool[FakeConnection]]:
    with Pool(FakeConnector(), max_size=2, timeout=30) as pool:
        yield pool


def connector_of(pool: Pool[FakeConnection] | FakePool) -> Any:
    return pool._connector


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Loans whose borrower is gone


def rows(pool: Pool[FakeConnection]) -> Iterator[FakeConnection]:
    with pool.connection() as conn:
        yield conn
        yield conn


def test_a_generator_closed_by_the_collector_gives_its_connection_back(pool: Pool[FakeConnection]) -> None:
    """In a cycle the collector may call the finaliser of what the block holds first, and leave the block afterwards."""

    class Holder:
        def __init__(self) -> None:
            self.rows = rows(pool)
            self.me = self

    next(Holder().rows)
    gc.collect()
    # The connection may have been closed or returned, but not both: the next borrower would have one that is closed.
    with pool.connection() as conn, conn.use():
        until(lambda: pool.stats().lent == 1)
        until(lambda: not pool._lost)
    assert_whole(pool, 2)
    assert connector_of(pool).mistakes == []


def test_a_dropped_generator_whose_connection_was_cut_gives_the_place_back(pool: Pool[FakeConnection]) -> None:
    stream = rows(pool)
    next(stream).broken = True
    del stream
    assert_whole(pool, 2)


@pytest.mark.parametrize("how", ["dropped", "collected"])
def test_a_lease_that_dies_without_being_left_frees_its_slot(
    pool: Pool[FakeConnection], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    lease = pool.connection()
    conn = lease.__enter__()
    if how == "collected":
        cycle: list[object] = [lease]
        cycle.append(cycle)
        del cycle
    del lease
    gc.collect()
    until(lambda: conn.parted)
    assert conn.parted == "abandoned"
    assert_whole(pool, 2)
    until(lambda: any("never returned" in message and "'pool'" in message for message in warned(caplog)))


def test_a_lease_that_dies_while_somebody_waits_serves_him(pool: Pool[FakeConnection]) -> None:
    leases = [pool.connection() for _ in range(2)]
    for lease in leases:
        lease.__enter__()
    del lease
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(pool.acquire)
        until(lambda: pool.stats().waiting)
        leases.pop()
        pool.release(waiting.result(timeout=30))
    leases.clear()
    assert_whole(pool, 2)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_tasks_lease_that_dies_frees_its_slot(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        pool = FakePool(AsyncFakeConnector(), max_size=2)
        lease = pool.connection()
        conn = await lease.__aenter__()
        del lease
        gc.collect()
        await until_seen(lambda: conn.parted)
        await assert_whole_async(pool, 2)
        await pool.close()

    run(loop, main)
    assert any("never returned" in message for message in warned(caplog))


def test_an_async_generator_that_was_dropped_gives_its_connection_back() -> None:
    async def main() -> None:
        pool = FakePool(AsyncFakeConnector(), max_size=1)

        async def stream() -> Any:
            async with pool.connection() as conn:
                yield conn
                yield conn

        numbers = stream()
        await anext(numbers)
        del numbers
        gc.collect()
        await until_seen(lambda: pool.stats().lent == 0)
        await assert_whole_async(pool, 1)
        await pool.close()

    asyncio.run(main())


def test_a_thread_that_ends_with_a_lease_frees_its_slot(pool: Pool[FakeConnection]) -> None:
    def leave() -> None:
        local = pool.connection()
        local.__enter__()

    threads = [threading.Thread(target=leave) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_whole(pool, 2)


def test_a_loop_that_ends_with_loans_leaves_a_pool_that_says_so() -> None:
    pool = FakePool(AsyncFakeConnector(), max_size=1)

    async def borrow() -> None:
        await pool.acquire()

    asyncio.run(borrow())

    async def later() -> None:
        with pytest.raises(Misuse, match="event loop"):
            await pool.acquire()
        await pool.close(0)

    asyncio.run(later())


# Misuse


def test_releasing_twice_is_misuse(pool: Pool[FakeConnection]) -> None:
    conn = pool.acquire()
    pool.release(conn)
    for wrong in (pool.release, pool.discard):
        with pytest.raises(Misuse, match="not on loan"):
            wrong(conn)
    assert_whole(pool, 2)


def test_releasing_a_stranger_is_misuse(pool: Pool[FakeConnection]) -> None:
    with Pool(FakeConnector(), max_size=2) as other:
        conn = other.acquire()
        for wrong in (pool.release, pool.discard):
            with pytest.raises(Misuse, match="did not lend"):
                wrong(conn)
        other.release(conn)
        assert_whole(other, 2)
    with pytest.raises(Misuse):
        pool.release(FakeConnection(1, FakeConnector(), None))
    assert_whole(pool, 2)


def test_releasing_a_connection_of_a_block_is_misuse_and_the_block_returns_it(pool: Pool[FakeConnection]) -> None:
    with pool.connection() as conn, pytest.raises(Misuse, match="`with`"):
        pool.release(conn)
    assert conn.parted == ""
    assert_whole(pool, 2)


@pytest.mark.parametrize("traced", [False, True])
def test_entering_a_lease_that_is_entered_is_misuse_and_the_first_loan_goes_on(*, traced: bool) -> None:
    settings: Any = {"leak_after": 60} if traced else {}
    with Pool(FakeConnector(), max_size=2, **settings) as pool, ThreadPoolExecutor(1) as executor:
        assert_whole(pool, 2)
        lease = pool.connection()
        with lease as conn:
            for enter in (lease.__enter__, executor.submit(lease.__enter__).result):
                with pytest.raises(Misuse, match="asked to enter a lease that is entered"):
                    enter()
            assert pool.stats().lent == 1
            # Also where there is nothing idle, at once.
            with pool.connection(), pytest.raises(Misuse, match="ask for one for each block"):
                lease.__enter__()
            assert not conn.parted
        assert pool.stats().closes == {}
        # It may be entered again when it has been left.
        with lease as again:
            assert not again.parted
        assert_whole(pool, 2)


def test_a_kept_misuse_keeps_nothing_of_others() -> None:
    with Pool(FakeConnector(), max_size=2) as pool:
        assert_whole(pool, 2)
        lease = pool.connection()
        with lease:
            with pytest.raises(Misuse) as kept:
                lease.__enter__()
            # It is lent what the misuse has put back, and is lost.
            other = pool.connection()
            other.__enter__()
            del other
            until(lambda: pool.stats().closes == {"lost": 1})
        assert "entered" in str(kept.value)
        assert_whole(pool, 2)


def test_who_fails_to_enter_a_lease_takes_nothing_from_who_has_entered_it_meanwhile() -> None:
    with Pool(FakeConnector(), max_size=1) as pool, ThreadPoolExecutor(1) as executor:
        assert_whole(pool, 1)
        lease = pool.connection(0.2)
        # One is about to wait, after it has put back what needed another look.
        (claim,) = pool._core.idle
        claim.entry.good_until = 0.0
        del claim
        wait = pool._wait
        asked: list[float | None] = []
        entered: list[FakeConnection] = []

        def late(timeout: float | None) -> Any:
            asked.append(timeout)
            if len(asked) == 1:
                entered.append(executor.submit(lease.__enter__).result(30))
            return wait(timeout)

        pool._wait = late  # type: ignore[method-assign]
        with pytest.raises((Misuse, PoolTimeout)):
            lease.__enter__()
        assert not entered[0].parted
        lease.__exit__(None, None, None)
        del pool._wait
        assert_whole(pool, 1)
        assert pool.stats().closes == {}


def looked_at(pool: Any) -> None:
    """Let something have come on every connection that is lent again."""
    pool._core.silent = lambda conn: False
    pool._heed()


def test_a_caller_who_finds_nothing_fit_to_lend_waits_as_long_as_it_said() -> None:
    connector = FakeConnector()
    with Pool(connector, max_size=1) as pool:
        assert_whole(pool, 1)
        looked_at(pool)
        connector.hold()
        began = time.monotonic()
        with pytest.raises(PoolTimeout), pool.connection(timeout=0.1):
            pass
        assert time.monotonic() - began < 10
        connector.let_go()
        assert_whole(pool, 1)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_task_that_finds_nothing_fit_to_lend_waits_as_long_as_it_said(loop: Loop) -> None:
    async def main() -> None:
        connector = AsyncFakeConnector()
        async with AsyncPool(connector, max_size=1) as pool:
            await assert_whole_async(pool, 1)
            looked_at(pool)
            connector.hold()
            began = time.monotonic()
            with pytest.raises(PoolTimeout):
                async with pool.connection(timeout=0.1):
                    pass
            assert time.monotonic() - began < 10
            connector.let_go()
            await assert_whole_async(pool, 1)

    run(loop, main)


def test_who_has_entered_a_lease_while_another_looks_for_a_connection_loses_nothing() -> None:
    connector: Any = FakeConnector()
    with Pool(connector, max_size=3) as pool:
        assert_whole(pool, 3)
        lease = pool.connection()
        entered: list[FakeConnection] = []
        looks = 0

        def silent(conn: FakeConnection) -> bool:
            nonlocal looks
            looks += 1
            if looks == 2:
                # The first was sent back, and the lease has nothing: another enters it now.
                entered.append(lease.__enter__())
            return looks > 1

        pool._core.silent = silent
        pool._heed()
        lease = pool.connection()
        with pytest.raises(Misuse, match="asked to enter a lease that is entered"):
            lease.__enter__()
        assert not entered[0].parted
        lease.__exit__(None, None, None)
        assert_whole(pool, 3)
        assert len(connector.abandoned) == 1


def test_who_fails_to_leave_a_lease_takes_nothing_from_who_has_entered_it_meanwhile() -> None:
    strikes: list[Callable[[], object]] = []

    class Connector(FakeConnector):
        def inspect(self, conn: FakeConnection, error: BaseException | None) -> Condition:
            if strikes:
                strikes.pop()()
                raise KeyboardInterrupt
            return super().inspect(conn, error)

    with Pool(Connector(), max_size=2) as pool, ThreadPoolExecutor(1) as executor:
        assert_whole(pool, 2)
        lease = pool.connection()
        lease.__enter__()
        strikes.append(lambda: executor.submit(lease.__enter__).result(30))
        with pytest.raises(KeyboardInterrupt):
            lease.__exit__(None, None, None)
        # What was being returned is lost, and what was entered meanwhile is not.
        until(lambda: pool.stats().closes == {"lost": 1})
        lease.__exit__(None, None, None)
        assert pool.stats().closes == {"lost": 1}
        assert_whole(pool, 2)


def test_two_threads_that_wait_to_enter_one_lease_are_served_one_after_the_other() -> None:
    with Pool(FakeConnector(), max_size=1) as pool, ThreadPoolExecutor(2) as executor:
        held = pool.acquire()
        lease = pool.connection(60)
        entering = [executor.submit(lease.__enter__) for _ in range(2)]
        until(lambda: pool.stats().waiting == 2)
        pool.release(held)
        until(lambda: any(future.done() for future in entering))
        lease.__exit__(None, None, None)
        # Whoever comes second finds it entered, or left.
        errors = [error for future in entering if (error := future.exception(30)) is not None]
        assert all(isinstance(error, Misuse) for error in errors)
        if not errors:
            lease.__exit__(None, None, None)
        assert_whole(pool, 1)
        assert pool.stats().closes == {}


@pytest.mark.parametrize("loop", LOOPS)
def test_entering_a_lease_that_a_task_has_entered_is_misuse_and_the_first_loan_goes_on(loop: Loop) -> None:
    async def main() -> None:
        async with FakePool(AsyncFakeConnector(), max_size=2) as pool:
            await assert_whole_async(pool, 2)
            lease = pool.connection()
            async with lease as conn:
                with pytest.raises(Misuse, match="asked to enter a lease that is entered"):
                    await lease.__aenter__()
                async with pool.connection():
                    with pytest.raises(Misuse, match="ask for one for each block"):
                        await lease.__aenter__()
                assert not conn.parted
            assert pool.stats().closes == {}
            held = [await pool.acquire() for _ in range(2)]
            outcomes: list[object] = []

            async def enter() -> None:
                try:
                    outcomes.append(await lease.__aenter__())
                except Misuse as error:
                    outcomes.append(error)

            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(enter)
                await until_seen(lambda: pool.stats().waiting == 2)
                for each in held:
                    pool.release(each)
            assert [isinstance(outcome, Misuse) for outcome in outcomes] == [False, True]
            await lease.__aexit__(None, None, None)
            await assert_whole_async(pool, 2)
            assert pool.stats().closes == {}

    run(loop, main)


def test_leaving_a_lease_that_is_not_entered_is_misuse(pool: Pool[FakeConnection]) -> None:
    lease = pool.connection()
    with lease:
        pass
    for left in (lease, pool.connection()):
        with pytest.raises(Misuse, match="not entered"):
            left.__exit__(None, None, None)
    assert_whole(pool, 2)


@pytest.mark.parametrize("loop", LOOPS)
def test_tasks_misuse_is_told_and_loses_nothing(loop: Loop) -> None:
    async def main() -> None:
        pool, other = (FakePool(AsyncFakeConnector(), max_size=2) for _ in range(2))
        conn = await pool.acquire()
        with pytest.raises(Misuse):
            other.release(conn)
        pool.release(conn)
        with pytest.raises(Misuse):
            pool.release(conn)
        async with pool.connection() as conn:
            with pytest.raises(Misuse):
                pool.release(conn)
        await assert_whole_async(pool, 2)
        await assert_whole_async(other, 2)
        await pool.close()
        await other.close()

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("other", LOOPS)
@pytest.mark.parametrize("idle", [True, False])
def test_borrowing_from_another_event_loop_is_misuse(loop: Loop, other: Loop, idle: bool) -> None:
    async def main() -> None:
        pool = FakePool(AsyncFakeConnector(), max_size=2)
        conn = await pool.acquire()
        if idle:
            pool.release(conn)

        async def borrow() -> None:
            async with pool.connection():
                pass

        async def elsewhere() -> None:
            with pytest.raises(Misuse, match="not that loop"):
                await borrow()
            with pytest.raises(Misuse, match="not that loop"):
                await pool.acquire()

        with ThreadPoolExecutor(1) as executor:
            executor.submit(run, other, elsewhere).result()
        if not idle:
            pool.release(conn)
        await assert_whole_async(pool, 2)
        await pool.close()

    run(loop, main)


def test_borrowing_outside_of_a_loop_is_misuse() -> None:
    pool = FakePool(AsyncFakeConnector())
    borrowing = pool.acquire()
    with pytest.raises(Misuse, match="outside of an event loop"):
        borrowing.send(None)
    asyncio.run(pool.close())


# Closing


def test_a_closed_pool_lends_nothing(pool: Pool[FakeConnection]) -> None:
    with pool.connection():
        pass
    pool.close()
    for _ in range(2):
        with pytest.raises(PoolClosed), pool.connection():
            pass
        with pytest.raises(PoolClosed):
            pool.acquire()
        with pytest.raises(PoolClosed):
            pool.warm()
    assert connector_of(pool).live == []
    assert pool.stats().size == 0


@pytest.mark.usefixtures("without_ticks")
def test_threads_in_line_when_the_pool_closes_are_woken_at_once(pool: Pool[FakeConnection]) -> None:
    conns = [pool.acquire() for _ in range(2)]
    told: list[float] = []

    def wait() -> None:
        with pytest.raises(PoolClosed):
            pool.acquire()
        told.append(time.monotonic())

    threads = [threading.Thread(target=wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    until(lambda: pool.stats().waiting == 20)
    start = time.monotonic()
    closer = threading.Thread(target=pool.close)
    closer.start()
    for thread in threads:
        thread.join()
    assert max(told) - start < 10  # and not their timeout
    # It waits for the loans, and then all is closed.
    assert closer.is_alive()
    for conn in conns:
        pool.release(conn)
    closer.join(30)
    assert not closer.is_alive()
    assert connector_of(pool).live == []


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.usefixtures("without_ticks")
def test_tasks_in_line_when_the_pool_closes_are_woken_at_once(loop: Loop) -> None:
    async def main() -> None:
        pool = FakePool(AsyncFakeConnector(), max_size=1)
        conn = await pool.acquire()
        told: list[float] = []

        async def wait() -> None:
            with pytest.raises(PoolClosed):
                await pool.acquire()
            told.append(time.monotonic())

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(wait)
            await until_seen(lambda: pool.stats().waiting == 20)
            start = time.monotonic()
            group.start_soon(pool.close)
            await until_seen(lambda: len(told) == 20)
            assert max(told) - start < 10  # and not their timeout
            pool.release(conn)
        assert connector_of(pool).live == []

    run(loop, main)


def test_what_is_on_loan_when_the_pool_has_closed_is_closed_when_it_comes_back(
    pool: Pool[FakeConnection], caplog: pytest.LogCaptureFixture
) -> None:
    with pool.connection() as conn:
        pool.close(timeout=0)
        assert conn.parted == ""
        assert any("still on loan" in message for message in warned(caplog))
    until(lambda: conn.parted == "closed")
    assert pool._step(pool._core.audit) == []
