"""An exception at any place of a borrow or a return loses no slot: every place of every way is enumerated."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import anyio
import pytest
import trio

from millpond import AsyncPool, ConnectFailed, Misuse, Pool, PoolError, PoolTimeout
from millpond.testing import AsyncFakeConnector, FakeConnection, FakeConnector

from .patience import LOOPS, Loop, assert_whole, assert_whole_async, run, until, until_seen
from .places import KINDS, Places, Stop, finalisers_cut

FakePool = Pool[FakeConnection]
AsyncFakePool = AsyncPool[FakeConnection]

# Threads


Case = Callable[[FakePool, FakeConnector, Places], None]
CASES: dict[str, tuple[Case, dict[str, Any]]] = {}


def case(**settings: Any) -> Callable[[Case], Case]:
    """Note a way of borrowing and returning, and the settings of the pool that it wants."""

    def note(work: Case) -> Case:
        CASES[work.__name__] = work, settings
        return work

    return note


@case()
def an_idle_connection(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with places, pool.connection():
        pass


@case(order="fifo")
def the_oldest_idle_connection(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with places, pool.connection():
        pass


@case(max_uses=10**9)
def a_connection_whose_uses_are_counted(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with places, pool.connection():
        pass


@case(leak_after=60)
def a_traced_loan(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with places, pool.connection():
        pass


@case()
def a_loan_that_somebody_hears_of(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    stop = pool.listen(repr)
    try:
        with places, pool.connection():
            pass
    finally:
        stop()


@case()
def two_connections(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with places, pool.connection(), pool.connection():
        pass


@case()
def a_dirty_connection(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with places, pool.connection() as conn:
        conn.dirty = True


@case()
def a_broken_connection(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with places, pool.connection() as conn:
        conn.broken = True


@case()
def a_dead_connection(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with places, pool.connection() as conn:
        conn.dead = True


def let_come(pool: Any) -> None:
    """Let something come on the connection that would be lent next."""
    stray = pool._core.idle[-1].entry.conn
    pool._core.silent = lambda conn: conn is not stray
    pool._heed()


@case()
def a_connection_on_which_something_has_come(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    let_come(pool)
    with places, pool.connection():
        pass


@case(leak_after=60)
def a_traced_one_on_which_something_has_come(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    let_come(pool)
    with places, pool.connection():
        pass


@case()
def a_discarded_connection(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with places, pool.connection() as conn:
        pool.discard(conn)


@case()
def a_block_that_fails(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with suppress(LookupError), places, pool.connection():
        raise LookupError


@case()
def a_connection_that_is_opened(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    pool.refresh()
    until(lambda: pool.stats().size == 0)
    with places, pool.connection():
        pass


@case()
def a_connection_that_is_checked(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    for entry in pool._core.entries:
        pool._core._doubt(entry)
    with places, pool.connection():
        pass


@case()
def a_connection_that_is_waited_for(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    conns = [pool.acquire() for _ in range(2)]
    over = threading.Event()

    def give_back() -> None:
        until(lambda: pool._core.line or over.is_set())
        for conn in conns:
            pool.release(conn)

    with ThreadPoolExecutor(1) as executor:
        giving_back = executor.submit(give_back)
        try:
            with places, pool.connection():
                pass
        finally:
            over.set()
    giving_back.result()


@case()
def a_connection_that_others_wait_for(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    other = pool.acquire()
    over = threading.Event()

    def borrow() -> None:
        until(lambda: not pool._core.idle or over.is_set())
        pool.release(pool.acquire(timeout=3))

    with ThreadPoolExecutor(1) as executor:
        borrowing = executor.submit(borrow)
        try:
            with places, pool.connection():
                # Asked without millpond's help, which would be counted too.
                until(lambda: pool._core.line._queue)
        finally:
            over.set()
            pool.release(other)
    borrowing.result()


@case()
def a_timeout(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    conns = [pool.acquire() for _ in range(2)]
    try:
        with suppress(PoolTimeout), places, pool.connection(timeout=0.001):
            pass
    finally:
        for conn in conns:
            pool.release(conn)


def be_quiet(pool: Any) -> None:
    """Have what is idle be so for longer than `check_after`."""
    for entry in pool._core.entries:
        entry.good_until = entry.idle_since = entry.asked = -math.inf


@case()
def one_who_does_not_wait(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    be_quiet(pool)
    with places, pool.connection(timeout=0):
        pass


@case()
def one_who_does_not_wait_for_what_is_dead(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    be_quiet(pool)
    conn = pool._core.idle[-1].entry.conn
    conn.dead = True
    try:
        with suppress(PoolTimeout), places, pool.connection(timeout=0):
            pass
    finally:
        # If it was lent and called off, it counts as just used, and would be lent once more.
        conn.dead = False


@case()
def an_outage(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    pool.refresh()
    until(lambda: pool.stats().size == 0)
    connector.fail_next()
    try:
        with suppress(ConnectFailed), places, pool.connection():
            pass
    finally:
        # The attempt may still be to come, if the caller was struck before it asked.
        connector._script["open"].clear()
        until(lambda: pool.stats().opening == 0)
        pool.refresh()


@case()
def a_loan_by_hand(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with places:
        conn = pool.acquire()
        try:
            pool.release(conn)
        except BaseException:
            # Whoever was struck in there cannot know how far it came.
            with suppress(Misuse):
                pool.release(conn)
            raise


@case()
def a_lease_that_is_dropped(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with places:
        lease = pool.connection()
        lease.__enter__()
        del lease


@case()
def a_look_at_the_pool(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    with pool.connection(), places:
        pool.stats()
        pool.leases()


@case(min_size=1)
def a_change_of_size(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    try:
        with places:
            pool.resize(max_size=1)
            pool.warm()
    finally:
        pool.resize(max_size=2)


@case()
def a_pause(pool: FakePool, connector: FakeConnector, places: Places) -> None:
    try:
        with places:
            pool.pause()
            pool.resume()
    finally:
        pool.resume()


@pytest.fixture
def connector() -> FakeConnector:
    return FakeConnector()


def raiser(kind: type[BaseException]) -> Callable[[], NoReturn]:
    def act() -> NoReturn:
        raise kind

    return act


@contextmanager
def struck_at(places: Places) -> Iterator[None]:
    """Have a failure tell where the exception struck."""
    try:
        yield
    except Exception as error:
        error.add_note(f"struck at {places.where}")
        raise


def may_keep(places: Places) -> bool:
    """Whether it struck at the one place, told of in docs/design.md, where an exception keeps a connection."""
    return places.at_start and places.where.split(",")[0] in ("Lease.leave", "TaskLease.__aexit__", "leave_and_tell")


def assert_sound(pool: FakePool, connector: FakeConnector, timeout: float) -> None:
    assert_whole(pool, 2, timeout)
    assert connector.mistakes == []
    assert len(connector.live) == 2


def strike_everywhere(
    pool: FakePool, connector: FakeConnector, work: Case, kind: type[BaseException], timeout: float = 30.0
) -> int:
    """Strike at the first place, the second and so on, until the work ends unstruck; look the pool over each time."""
    keeping: list[str] = []
    for number in range(1, 1000):
        places = Places(number, raiser(kind))
        with struck_at(places), finalisers_cut(kind) as swallowed:
            try:
                work(pool, connector, places)
            except kind as error:
                # The exception is alive: it has a traceback, that has the frames, and those have what they worked on.
                if not may_keep(places):
                    try:
                        assert_whole(pool, 2, timeout)
                    except PoolTimeout:
                        keeping.append(places.where)
                swallowed.append(type(error))
            assert bool(swallowed) == places.reached, "the exception was lost"
            assert_sound(pool, connector, timeout)
        if not places.reached:
            assert keeping == []
            return number - 1
    raise AssertionError("there is no end to it")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_an_exception_at_any_place_loses_no_connection(
    connector: FakeConnector, name: str, kind: type[BaseException]
) -> None:
    work, settings = CASES[name]
    with Pool(connector, max_size=2, **settings) as pool:
        assert_whole(pool, 2)
        assert strike_everywhere(pool, connector, work, kind) >= 5


@pytest.mark.parametrize("lent", [False, True])
def test_a_close_that_is_struck_at_any_place_can_be_repeated(lent: bool) -> None:
    for number in range(1, 1000):
        connector = FakeConnector()
        pool = Pool(connector, max_size=2)
        assert_whole(pool, 2)
        conn = pool.acquire() if lent else None
        places = Places(number, raiser(Stop))
        with struck_at(places), finalisers_cut(Stop):
            try:
                with places:
                    pool.close(timeout=0.001 if lent else 5)
            except Stop:
                pool.close(timeout=0)
            if conn is not None:
                pool.release(conn)
            until(lambda: not pool.stats().size)  # noqa: B023
            assert connector.live == []
            assert connector.mistakes == []
        if not places.reached:
            break
    assert number > 5


def test_the_enumeration_would_notice_a_slot_that_is_lost(connector: FakeConnector) -> None:
    """A caller who does not give back what it has when it is struck is found out."""

    def forget(pool: FakePool, connector: FakeConnector, places: Places) -> None:
        conn = pool.acquire()
        with places:
            pool.stats()
        pool.release(conn)

    with Pool(connector, max_size=2) as pool:
        with pytest.raises(PoolError):
            strike_everywhere(pool, connector, forget, Stop, timeout=0.1)
        for conn in list(connector.live):
            with suppress(Misuse):
                pool.release(conn)


# Tasks

Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]
AsyncCase = Callable[[AsyncFakePool, Places, Spawn], Awaitable[None]]


async def an_idle_one(pool: AsyncFakePool, places: Places, spawn: Spawn) -> None:
    with places:
        async with pool.connection():
            pass


async def a_dirty_one(pool: AsyncFakePool, places: Places, spawn: Spawn) -> None:
    with places:
        async with pool.connection() as conn:
            conn.dirty = True


async def a_broken_one(pool: AsyncFakePool, places: Places, spawn: Spawn) -> None:
    with places:
        async with pool.connection() as conn:
            conn.broken = True


async def one_on_which_something_has_come(pool: AsyncFakePool, places: Places, spawn: Spawn) -> None:
    let_come(pool)
    with places:
        async with pool.connection():
            pass


async def a_failing_block(pool: AsyncFakePool, places: Places, spawn: Spawn) -> None:
    with suppress(LookupError), places:
        async with pool.connection():
            raise LookupError


async def one_that_is_opened(pool: AsyncFakePool, places: Places, spawn: Spawn) -> None:
    pool.refresh()
    await until_seen(lambda: pool.stats().size == 0)
    with places:
        async with pool.connection():
            pass


async def one_that_is_waited_for(pool: AsyncFakePool, places: Places, spawn: Spawn) -> None:
    conns = [await pool.acquire() for _ in range(2)]
    over = False

    async def give_back() -> None:
        await until_seen(lambda: pool._core.line or over)
        for conn in conns:
            pool.release(conn)

    spawn(give_back)
    try:
        with places:
            async with pool.connection():
                pass
    finally:
        over = True


async def one_that_others_wait_for(pool: AsyncFakePool, places: Places, spawn: Spawn) -> None:
    other = await pool.acquire()

    async def borrow() -> None:
        async with pool.connection(timeout=3):
            pass

    try:
        with places:
            async with pool.connection():
                spawn(borrow)
                await until_seen(lambda: pool._core.line._queue)
    finally:
        pool.release(other)


async def one_by_hand(pool: AsyncFakePool, places: Places, spawn: Spawn) -> None:
    with places:
        conn = await pool.acquire()
        try:
            pool.release(conn)
        except BaseException:
            with suppress(Misuse):
                pool.release(conn)
            raise


def running_task() -> object:
    """Return the task that runs, in either loop; None in a callback."""
    try:
        return asyncio.current_task() if asyncio._get_running_loop() else trio.lowlevel.current_task()
    except RuntimeError:
        return None


# A coroutine can be struck dead between its making and its first step.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "work",
    [
        an_idle_one,
        a_dirty_one,
        a_broken_one,
        one_on_which_something_has_come,
        a_failing_block,
        one_that_is_opened,
        one_that_is_waited_for,
        one_that_others_wait_for,
        one_by_hand,
    ],
    ids=lambda work: work.__name__,
)
def test_an_exception_at_any_place_of_a_task_loses_no_connection(loop: Loop, work: AsyncCase) -> None:
    """What a handler raises while the loop is in the pool's code, Ctrl-C for one."""

    async def main() -> int:
        connector = AsyncFakeConnector()
        me = running_task()
        keeping: list[str] = []
        async with AsyncFakePool(connector, max_size=2) as pool, anyio.create_task_group() as group:
            await assert_whole_async(pool, 2)
            for number in range(1, 1000):
                places = Places(number, raiser(Stop), lambda: running_task() is me)
                with struck_at(places), finalisers_cut(Stop) as swallowed:
                    try:
                        await work(pool, places, group.start_soon)
                    except Stop as error:
                        if not may_keep(places):
                            try:
                                await assert_whole_async(pool, 2, timeout=10)
                            except PoolTimeout:
                                keeping.append(places.where)
                        swallowed.append(type(error))
                    assert bool(swallowed) == places.reached, "the exception was lost"
                    await assert_whole_async(pool, 2)
                    assert connector.mistakes == []
                    assert len(connector.live) == 2
                if not places.reached:
                    break
        assert keeping == []
        return number

    assert run(loop, main) > 5
