"""What a pool promises, whichever way it runs: threads, asyncio, trio."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import math
import pickle
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import millpond
from millpond import Stats
from millpond._core import outage
from millpond.testing import AsyncFakeConnector, FakeConnection, FakeConnector

from ..promises.patience import until
from .conftest import Shell, in_thread

pytestmark = pytest.mark.anyio
Make = Callable[..., Shell]


async def test_a_connection_is_lent_raw_and_comes_back(make: Make) -> None:
    shell = make()
    async with shell.lent() as conn:
        assert type(conn) is FakeConnection
        assert shell.pool.stats().lent == 1
    async with shell.lent() as again:
        assert again is conn
    stats = shell.pool.stats()
    assert (stats.size, stats.idle, stats.borrows, stats.opens) == (1, 1, 2, 1)


async def test_acquire_and_release_do_the_same(make: Make) -> None:
    shell = make()
    conn = await shell.acquire()
    shell.pool.release(conn)
    assert await shell.acquire() is conn
    shell.pool.release(conn)


def _waiting(number: int) -> Callable[[Stats], bool]:
    return lambda stats: stats.waiting == number


async def test_callers_are_served_in_the_order_they_came(make: Make) -> None:
    shell = make(max_size=1)
    conn = await shell.acquire()
    served: list[int] = []

    def caller(number: int) -> Callable[[], Any]:
        async def borrow() -> None:
            got = await shell.acquire()
            served.append(number)
            shell.pool.release(got)

        return borrow

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(caller(number))
            await shell.until(_waiting(number + 1))
        shell.pool.release(conn)
    assert served == [0, 1, 2, 3, 4]


async def test_a_caller_waits_no_longer_than_its_timeout_and_learns_why(make: Make) -> None:
    shell = make(max_size=1, name="orders")
    conn = await shell.acquire()
    started = time.monotonic()
    with pytest.raises(millpond.PoolTimeout) as caught:
        await shell.acquire(0.05)
    assert 0.05 <= time.monotonic() - started < 10  # and not the pool's own 30 s
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert (error.pool, error.stats and error.stats.lent) == ("orders", 1)
    assert error.oldest is not None and error.oldest.connection == 1
    text = str(error)
    assert "pool 'orders' lent no connection within 0.05 s: all connections are on loan" in text
    assert "1 of 1 lent, 0 idle, 0 opening; 0 callers wait; oldest loan" in text
    assert "hint: " in text
    shell.pool.release(conn)
    assert shell.pool.stats().timeouts == 1


async def test_a_timeout_of_zero_takes_what_is_idle_and_does_not_wait(make: Make) -> None:
    shell = make(max_size=1)
    conn = await shell.acquire()
    with pytest.raises(millpond.PoolTimeout):
        await shell.acquire(0)
    shell.pool.release(conn)
    assert await shell.acquire(0) is conn
    shell.pool.release(conn)


async def test_an_open_that_takes_too_long_is_named_as_the_reason(make: Make) -> None:
    shell = make(max_size=2)
    shell.fake.hold()
    async with anyio.create_task_group() as group:

        async def caller() -> None:
            shell.pool.release(await shell.acquire(60))

        group.start_soon(caller)
        await shell.until(lambda stats: stats.opening == 1)
        with pytest.raises(
            millpond.PoolTimeout, match="connections take too long to open: the oldest attempt has lasted"
        ):
            await shell.acquire(0.05)
        shell.fake.let_go()


async def test_a_paused_pool_is_named_as_the_reason(make: Make) -> None:
    shell = make()
    shell.pool.pause()
    with pytest.raises(millpond.PoolTimeout, match="it is paused"):
        await shell.acquire(0.02)
    shell.pool.resume()
    shell.pool.release(await shell.acquire())


async def test_no_more_than_max_waiting_wait(make: Make) -> None:
    shell = make(max_size=1, max_waiting=1)
    conn = await shell.acquire()
    async with anyio.create_task_group() as group:

        async def caller() -> None:
            shell.pool.release(await shell.acquire())

        group.start_soon(caller)
        await shell.until(lambda stats: stats.waiting == 1)
        with pytest.raises(millpond.PoolFull, match="lets no more than max_waiting=1 callers wait for others"):
            await shell.acquire()
        shell.pool.release(conn)


async def test_callers_learn_at_once_that_the_server_is_down_with_the_cause(make: Make) -> None:
    shell = make(max_size=1, timeout=30.0)
    shell.fake.hold()
    learned: list[float] = []
    causes: list[BaseException | None] = []

    async def caller() -> None:
        with pytest.raises(millpond.ConnectFailed) as caught:
            await shell.acquire()
        learned.append(time.monotonic())
        causes.append(caught.value.__cause__)

    refused = ConnectionRefusedError("nobody there")
    shell.fake.fail_next(1, refused)
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(caller)
        await shell.until(lambda stats: stats.waiting == 5)
        failed = time.monotonic()
        shell.fake.let_go()
    assert causes == [refused] * 5
    assert max(learned) - failed < 10  # and not their timeout
    assert refused.__traceback__ is None, "its frames would keep the driver's variables"


async def test_the_pool_finds_the_server_again(make: Make) -> None:
    shell = make(max_size=1)
    down = True
    shell.fake.fail_until(lambda: not down)
    with pytest.raises(millpond.ConnectFailed, match="scripted outage"):
        await shell.acquire()
    with pytest.raises(millpond.ConnectFailed):
        await shell.acquire()
    down = False
    served = False
    with anyio.fail_after(30):
        while not served:
            with contextlib.suppress(millpond.ConnectFailed):  # an attempt from before, or the pause between two
                shell.pool.release(await shell.acquire())
                served = True
    assert shell.pool.stats().outage is None


async def test_callers_may_ride_an_outage_out(make: Make) -> None:
    shell = make(max_size=1, ride_out=True)
    down = True
    shell.fake.fail_until(lambda: not down)
    async with anyio.create_task_group() as group:

        async def caller() -> None:
            shell.pool.release(await shell.acquire(60))

        group.start_soon(caller)
        await shell.until(lambda stats: stats.open_failures >= 2)
        down = False
    down = True
    shell.fake.fail_until(lambda: not down)
    shell.pool.refresh()
    async with anyio.create_task_group() as group:
        group.start_soon(caller)
        await shell.until(lambda stats: stats.outage)
        with pytest.raises(millpond.PoolTimeout, match="the server cannot be reached") as caught:
            await shell.acquire(0.1)
        down = False
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_a_refused_login_is_not_tried_again_in_the_background(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "FIRST_REFUSED_PAUSE", 60.0)
    shell = make(max_size=1, ride_out=True)
    shell.fake.fail_until(lambda: False, PermissionError("wrong password"))
    shell.pool.resize(min_size=1)
    with pytest.raises(millpond.ConnectFailed, match="is not let in") as caught:
        await shell.acquire()
    assert isinstance(caught.value.__cause__, PermissionError)
    tries = len(shell.fake.failures)
    with pytest.raises(millpond.ConnectFailed):
        await shell.acquire()
    assert len(shell.fake.failures) == tries


async def test_what_is_dirty_is_reset_beside_the_line(make: Make) -> None:
    shell = make(max_size=1)
    async with shell.lent() as conn:
        conn.dirty = True
    async with shell.lent() as again:
        assert again is conn
    assert shell.fake.resets == [conn]


async def test_what_is_broken_is_closed_and_replaced(make: Make) -> None:
    shell = make(max_size=1)
    async with shell.lent() as conn:
        conn.broken = True
    async with shell.lent() as other:
        assert other is not conn
    assert shell.fake.abandoned == [conn]


async def test_a_reset_that_fails_closes_the_connection(make: Make) -> None:
    shell = make(max_size=1)
    shell.fake.fail_next(step="reset")
    async with shell.lent() as conn:
        conn.dirty = True
    async with shell.lent() as other:
        assert other is not conn
    assert shell.fake.abandoned == [conn]


async def test_a_reset_that_leaves_a_connection_as_it_was_closes_it(make: Make) -> None:
    """Whatever a connector's reset believes: what comes out of it is inspected."""

    class Stained(FakeConnection):
        dirty = property(lambda _: True, lambda _, __: None)

    shell = make(max_size=1)
    async with shell.lent() as conn:
        conn.__class__ = Stained
    async with shell.lent() as other:
        assert other is not conn
    assert shell.pool.stats().closes == {"reset failed": 1}
    assert shell.fake.abandoned == [conn]


async def test_of_what_cannot_be_proved_an_error_is_proof_enough_to_close_it(make: Make) -> None:
    shell = make(max_size=1, provable=False)
    with pytest.raises(RuntimeError, match="in the block"):
        async with shell.lent() as conn:
            raise RuntimeError("in the block")
    async with shell.lent() as other:
        assert other is not conn


async def test_an_error_in_the_block_leaves_a_proved_connection_alone(make: Make) -> None:
    shell = make(max_size=1)
    with pytest.raises(RuntimeError, match="in the block"):
        async with shell.lent() as conn:
            raise RuntimeError("in the block")
    async with shell.lent() as again:
        assert again is conn


async def test_discard_closes_what_is_on_loan(make: Make) -> None:
    shell = make(max_size=2)
    conn = await shell.acquire()
    shell.pool.discard(conn)
    async with shell.lent() as other:
        assert other is not conn
        shell.pool.discard(other)
        with pytest.raises(millpond.Misuse):
            shell.pool.release(other)
    await shell.until(lambda stats: stats.size == 0)
    assert set(shell.fake.closed) == {conn, other}


async def test_misuse_is_a_clear_error_and_loses_nothing(make: Make) -> None:
    shell, other = make(max_size=1, name="one"), make(max_size=1, name="other")
    conn, stranger = await shell.acquire(), await other.acquire()
    with pytest.raises(millpond.Misuse, match="pool 'one' was asked to release something that it did not lend"):
        shell.pool.release(stranger)
    with pytest.raises(millpond.Misuse, match="did not lend"):
        shell.pool.discard(object())
    shell.pool.release(conn)
    with pytest.raises(millpond.Misuse, match="not on loan"):
        shell.pool.release(conn)
    with pytest.raises(millpond.Misuse, match="not on loan"):
        shell.pool.discard(conn)
    other.pool.release(stranger)
    async with shell.lent() as conn:
        with pytest.raises(millpond.Misuse, match="lent to a `with` block"):
            shell.pool.release(conn)
    for each in (shell, other):
        stats = each.pool.stats()
        assert (stats.idle, stats.lent, stats.size) == (1, 0, 1)


async def test_a_lease_that_dies_unreturned_gives_its_place_back(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    shell = make(max_size=1)
    lease = shell.pool.connection()
    conn = await enter(shell, lease)
    with caplog.at_level(logging.WARNING, "millpond"):
        del lease
        gc.collect()
        other = await shell.acquire()
        await shell.until(lambda stats: "was never returned" in caplog.text)
    assert other is not conn
    assert shell.fake.abandoned == [conn]
    shell.pool.release(other)


async def enter(shell: Shell, lease: Any) -> FakeConnection:
    conn: FakeConnection = lease.__enter__() if shell.way == "threads" else await lease.__aenter__()
    return conn


async def test_min_size_is_open_without_being_asked_and_warm_waits_for_it(make: Make) -> None:
    shell = make(min_size=3)
    await shell.call("warm")
    assert len(shell.fake.opened) == 3


async def test_warm_says_when_it_took_too_long(make: Make) -> None:
    shell = make()
    shell.fake.hold()
    shell.pool.resize(min_size=1)
    with pytest.raises(millpond.PoolTimeout, match="has 0 of min_size=1 connections open"):
        await shell.call("warm", 0.02)
    shell.fake.let_go()
    await shell.call("warm")


async def test_warm_says_that_the_server_is_down(make: Make) -> None:
    shell = make()
    shell.fake.fail_next(100)
    shell.pool.resize(min_size=1)
    with pytest.raises(millpond.ConnectFailed):
        await shell.call("warm")


async def test_resize_to_more_serves_who_waits(make: Make) -> None:
    shell = make(max_size=1)
    one = await shell.acquire()
    async with anyio.create_task_group() as group:

        async def caller() -> None:
            shell.pool.release(await shell.acquire())

        group.start_soon(caller)
        await shell.until(lambda stats: stats.waiting == 1)
        shell.pool.resize(max_size=2)
    shell.pool.release(one)
    assert shell.pool.settings.max_size == 2


async def test_resize_to_less_closes_what_is_too_much(make: Make) -> None:
    shell = make(max_size=3)
    conns = await shell.fill(3)
    shell.pool.release(conns[0])
    shell.pool.resize(max_size=1)
    await shell.until(lambda stats: stats.size == 2)
    shell.pool.release(conns[1])
    shell.pool.release(conns[2])
    await shell.until(lambda stats: (stats.size, stats.idle) == (1, 1))
    with pytest.raises(ValueError, match="max_size=0"):
        shell.pool.resize(max_size=0)
    assert shell.pool.settings.max_size == 1


async def test_refresh_replaces_every_connection(make: Make) -> None:
    shell = make(max_size=2)
    lent, idle = await shell.fill(2)
    shell.pool.release(idle)
    shell.pool.refresh()
    await shell.until(lambda stats: stats.size == 1)
    shell.pool.release(lent)
    await shell.until(lambda stats: stats.size == 0)
    assert set(shell.fake.closed) == {lent, idle}
    assert shell.pool.stats().closes == {"refreshed": 2}


async def test_close_wakes_who_waits_at_once(make: Make) -> None:
    shell = make(max_size=1)
    conn = await shell.acquire()
    woken: list[float] = []

    async def caller() -> None:
        with pytest.raises(millpond.PoolClosed):
            await shell.acquire()
        woken.append(time.monotonic())

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(caller)
        await shell.until(lambda stats: stats.waiting == 3)
        closed = time.monotonic()
        await shell.call("close", 0.0)
    assert max(woken) - closed < 10  # and not their timeout
    with pytest.raises(millpond.PoolClosed, match="is closed"):
        await shell.acquire()
    shell.pool.release(conn)
    await shell.until(lambda stats: stats.size == 0)
    assert shell.fake.closed == [conn]


async def test_close_waits_for_loans_and_names_those_that_stay_out(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    shell = make(max_size=2)
    conn = await shell.acquire()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: shell.call("close", 5.0))
        await shell.until(lambda stats: stats.closed)
        shell.pool.release(conn)
    assert shell.pool.stats().size == 0
    late = make(max_size=1, name="late")
    conn = await late.acquire()
    with caplog.at_level(logging.WARNING, "millpond"):
        await late.call("close", 0.01)
    assert "pool 'late' was closed while a connection is still on loan" in caplog.text
    late.pool.release(conn)


async def test_idle_connections_end_with_the_pool_in_good_order(make: Make) -> None:
    shell = make(max_size=3)
    for conn in await shell.fill(3):
        shell.pool.release(conn)
    await shell.call("close")
    assert len(shell.fake.closed) == 3
    assert not shell.fake.live
    await shell.call("close")


async def test_a_connection_idle_for_too_long_is_asked_before_it_is_lent(make: Make) -> None:
    shell = make(max_size=1, check_after=0.0)
    conn = await shell.acquire()
    shell.pool.release(conn)
    assert await shell.acquire() is conn
    assert shell.fake.pings == [conn]
    shell.pool.release(conn)
    shell.fake.die(conn, silently=True)
    other = await shell.acquire()
    assert other is not conn
    shell.pool.release(other)


async def test_a_hang_up_is_known_before_anybody_borrows(make: Make) -> None:
    shell = make(max_size=3, watchable=True)
    conns = await shell.fill(3)
    for conn in conns:
        shell.pool.release(conn)
    shell.fake.die(conns[2])
    await shell.until(lambda stats: stats.closes.get("hung up") == 1)
    # The others are asked, since one was found dead.
    await shell.until(lambda stats: set(shell.fake.pings) == set(conns[:2]) and stats.size == 2 and stats.idle == 2)
    assert shell.fake.abandoned == [conns[2]]


async def test_a_hang_up_on_loan_is_known_when_it_comes_back(make: Make) -> None:
    shell = make(max_size=1, watchable=True)
    conn = await shell.acquire()
    shell.fake.die(conn)
    shell.pool.release(conn)
    other = await shell.acquire()
    assert other is not conn
    shell.pool.release(other)


async def test_a_burst_opens_no_more_than_it_needs(make: Make) -> None:
    shell = make(max_size=50)
    shell.fake.hold()
    served = 0

    async def caller() -> None:
        nonlocal served
        async with shell.lent(60):
            served += 1

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(caller)
        await shell.until(lambda stats: stats.waiting == 50 and stats.opening == 3)
        shell.fake.let_go(3)
        await shell.until(lambda stats: served == 50)
        # While those three serve everybody, no more are begun than take the place of those three.
        assert shell.fake.most_opening <= 3
        stats = shell.pool.stats()
        assert stats.opens + stats.opening <= 6
        shell.fake.let_go()


@pytest.mark.parametrize("way", ["asyncio", "trio"])  # a thread cannot be cancelled
async def test_a_cancelled_caller_loses_nothing(make: Make) -> None:
    shell = make(max_size=1)
    conn = await shell.acquire()
    for _ in range(3):
        with anyio.move_on_after(0.01):
            await shell.acquire()
    assert shell.pool.stats().waiting == 0
    shell.pool.release(conn)
    assert await shell.acquire() is conn
    shell.pool.release(conn)


async def test_a_factory_that_returns_the_same_connection_twice_is_found_out(way: str) -> None:
    conn = FakeConnection(1, None, None)  # type: ignore[arg-type]

    def close(conn: FakeConnection) -> None: ...

    if way == "threads":
        with (
            millpond.Pool(lambda: conn, close=close, max_size=2) as pool,
            pool.connection(),
            pytest.raises(millpond.PoolTimeout) as caught,
            pool.connection(timeout=0.5),
        ):
            ...
    else:

        async def same() -> FakeConnection:
            return conn

        async with millpond.AsyncPool(same, close=close, max_size=2) as apool, apool.connection():
            with pytest.raises(millpond.PoolTimeout) as caught:
                async with apool.connection(timeout=0.5):
                    ...
    assert isinstance(caught.value.__cause__, millpond.Misuse)
    assert "was given a connection that it already has" in str(caught.value)


async def test_a_factory_that_returns_nothing_is_found_out(way: str) -> None:
    def nothing() -> Any:
        return None

    async def anothing() -> Any:
        return None

    if way == "threads":
        with millpond.Pool(nothing) as pool, pytest.raises(millpond.ConnectFailed, match="None instead of"):
            pool.acquire()
    else:
        async with millpond.AsyncPool(anothing) as apool:
            with pytest.raises(millpond.ConnectFailed, match="None instead of"):
                await apool.acquire()


async def test_leases_name_the_borrower_and_the_place(make: Make) -> None:
    shell = make(max_size=2, leak_after=math.nextafter(math.inf, 0))
    async with shell.lent():
        (record,) = shell.pool.leases()
        assert record.connection == 1 and record.uses == 1
        if shell.way != "threads":
            assert record.owner.startswith("task ")
            assert record.borrowed_at is not None and record.borrowed_at.startswith("conftest.py:")
        else:
            assert record.owner.startswith("thread ")
    assert shell.pool.leases() == ()


async def test_a_loan_that_lasts_too_long_is_logged_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    shell = make(max_size=1, leak_after=0.3)
    with caplog.at_level(logging.WARNING, "millpond"):
        conn = await shell.acquire()
        with anyio.fail_after(5.0):
            while "a loan has lasted" not in caplog.text:
                await anyio.sleep(0.01)
        shell.pool.release(conn)
    assert caplog.text.count("a loan has lasted") == 1


async def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    shell = make(max_size=1, ride_out=True)
    down = True
    shell.fake.fail_until(lambda: not down)
    with caplog.at_level(logging.INFO, "millpond"):
        async with anyio.create_task_group() as group:

            async def caller() -> None:
                shell.pool.release(await shell.acquire())

            group.start_soon(caller)
            await shell.until(lambda stats: stats.open_failures > 2)
            down = False
        with anyio.fail_after(5.0):
            while "again" not in caplog.text:
                await anyio.sleep(0.01)
    assert caplog.text.count("cannot connect to") == 1
    assert caplog.text.count("connected to fake://nowhere again") == 1


async def test_one_who_holds_a_connection_and_waits_for_another_is_told_so(make: Make) -> None:
    shell = make(max_size=1)

    def borrow_twice() -> str:
        with shell.pool.connection(), pytest.raises(millpond.PoolTimeout) as caught:
            shell.pool.acquire(0.01)
        return str(caught.value)

    async def borrow_twice_in_a_task() -> str:
        async with shell.pool.connection():
            with pytest.raises(millpond.PoolTimeout) as caught:
                await shell.pool.acquire(0.01)
        return str(caught.value)

    said = await (in_thread(borrow_twice) if shell.way == "threads" else borrow_twice_in_a_task())
    assert "all connections are on loan, 1 of them to this very caller" in said
    assert "hint: borrow once for the whole of the work, and pass the connection on" in said


async def test_those_who_hold_a_connection_and_wait_for_another_are_counted(make: Make) -> None:
    shell = make(max_size=2)

    def borrow_twice() -> None:
        with shell.pool.connection(5):
            until(lambda: shell.pool.stats().lent == 2)
            shell.pool.release(shell.pool.acquire(5))

    async def borrow_twice_in_a_task() -> None:
        async with shell.pool.connection(5):
            await shell.until(lambda stats: stats.lent == 2)
            shell.pool.release(await shell.pool.acquire(5))

    async def call() -> None:
        await (in_thread(borrow_twice) if shell.way == "threads" else borrow_twice_in_a_task())

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(call)
        await shell.until(lambda stats: (stats.lent, stats.waiting) == (2, 2))
        with pytest.raises(millpond.PoolTimeout, match="2 of those who wait have one already"):
            await shell.acquire(0.01)
        shell.pool.resize(max_size=3)  # which lets one go on, and then the other


async def test_an_unclosed_pool_is_a_warning_that_names_where_it_was_made(way: str) -> None:
    gc.collect()  # not the warnings of others
    with pytest.warns(ResourceWarning, match=r"pool 'forgotten', made at conftest\.py:\d+, was never closed") as caught:
        Shell(way, name="forgotten")  # type: ignore[arg-type]
        gc.collect()
    assert [warning.source for warning in caught] == [None], "whoever collects warnings brings it back to life"


async def test_errors_survive_pickling(make: Make) -> None:
    shell = make(max_size=1)
    conn = await shell.acquire()
    with pytest.raises(millpond.PoolTimeout) as caught:
        await shell.acquire(0.01)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.stats, copy.oldest) == (str(caught.value), caught.value.stats, caught.value.oldest)
    shell.pool.release(conn)


async def test_a_pool_tells_what_it_is(make: Make) -> None:
    shell = make(name="orders", max_size=4)
    shell.pool.release(await shell.acquire())
    kind = "Pool" if shell.way == "threads" else "AsyncPool"
    assert repr(shell.pool) == f"<millpond.{kind} 'orders' to fake://nowhere: 1 of 4 open, 1 idle>"
    assert shell.pool.name == "orders"


async def test_a_callable_comes_with_its_own_ways(way: str) -> None:
    with pytest.raises(TypeError, match="go with a callable"):
        Shell(way, close=print)  # type: ignore[arg-type]


async def _awaited() -> object:
    return object()


@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [
        (millpond.Pool, "postgresql://app:secret@db/app", r"for a URL, use Pool\.from_url\(\)$"),
        (millpond.AsyncPool, "postgresql://app:secret@db/app", r"for a URL, use AsyncPool\.from_url\(\)$"),
        (millpond.Pool, object(), "takes a connector, or a callable that returns a new connection; object is neither"),
        (millpond.AsyncPool, 5, "takes a connector, or a callable that returns a new connection; int is neither"),
        (millpond.Pool, AsyncFakeConnector(), "for AsyncPool, not for Pool"),
        (millpond.Pool, _awaited, "for AsyncPool, not for Pool"),
        (millpond.AsyncPool, FakeConnector(), "for Pool, not for AsyncPool"),
    ],
)
def test_what_cannot_open_connections_is_refused_with_what_could(
    kind: Callable[[object], object], source: object, expected: str
) -> None:
    with pytest.raises(TypeError, match=expected) as refused:
        kind(source)
    assert "secret" not in str(refused.value)


def test_both_shells_have_the_same_methods_in_the_same_order_with_the_same_docstrings() -> None:
    def face(shell: type) -> dict[str, Any]:
        return {
            name: member.__func__ if isinstance(member, classmethod) else member
            for name, member in vars(shell).items()
            if not name.startswith("_") and callable(getattr(shell, name))
        }

    threads, tasks = face(millpond.Pool), face(millpond.AsyncPool)
    assert list(threads) == list(tasks)
    for name, method in threads.items():
        twin = tasks[name]
        assert [str(parameter) for parameter in inspect.signature(method).parameters.values()] == [
            str(parameter) for parameter in inspect.signature(twin).parameters.values()
        ]
        if name != "from_url":  # it lists the drivers
            assert inspect.getdoc(method) == (inspect.getdoc(twin) or "").replace("async with", "with"), name
        assert asyncio.iscoroutinefunction(twin) == (name in {"acquire", "warm", "close"})
