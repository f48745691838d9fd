"""Who waits for a connection, for how long, and in which order."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import pytest

import millpond

from ..promises.patience import until_seen
from .conftest import Caller
from .server import Server

pytestmark = pytest.mark.anyio

Make = Callable[..., Caller]


async def in_line(caller: Caller, number: int) -> None:
    """Wait until so many have been served, or wait."""
    await caller.until(lambda stats: stats.borrows + stats.waiting > number)


async def test_requests_that_wait_are_served_in_the_order_in_which_they_came(make: Make, server: Server) -> None:
    caller = make(limits={"max_connections": 1})
    del server.asked[:]
    async with anyio.create_task_group() as group:
        for word in range(10):
            group.start_soon(caller.say, f"{server.url}/after/30/{word}")
            await in_line(caller, word)
    assert server.asked == [f"/after/30/{word}" for word in range(10)]
    assert caller.stats().opens == 1


async def test_who_waits_for_too_long_is_told_so_as_the_library_tells_it(make: Make, server: Server) -> None:
    caller = make(limits={"max_connections": 1}, timeout=None)
    async with anyio.create_task_group() as group:
        group.start_soon(caller.say, f"{server.url}/hold/first")
        await until_seen(lambda: server.holding == 1)
        with pytest.raises(caller.httpx.PoolTimeout, match="1 of 1 lent") as late:
            await caller.get(f"{server.url}/say/second", timeout=caller.httpx.Timeout(30, pool=0.05))
        server.let_go()
        assert isinstance(late.value.__cause__, millpond.PoolTimeout)
        assert late.value.request.url == f"{server.url}/say/second"
    await caller.say(f"{server.url}/say/third")
    assert caller.stats().opens == 1


async def test_who_does_not_want_to_wait_gets_a_new_connection_all_the_same(make: Make, server: Server) -> None:
    caller = make()
    await caller.say(f"{server.url}/say/word", timeout=caller.httpx.Timeout(5, pool=0))


async def test_sixty_workers_share_ten_connections(make: Make, server: Server) -> None:
    caller = make(limits={"max_connections": 10}, timeout=60)

    async def take_turns() -> None:
        for _ in range(6):
            await caller.say(f"{server.url}/say/word")

    async with anyio.create_task_group() as group:
        for _ in range(60):
            group.start_soon(take_turns)
    assert caller.stats().opens == 10


async def test_a_limit_for_each_host_beside_the_total(make: Make, server: Server) -> None:
    with Server() as other:
        caller = make(limits={"max_connections": 3}, max_per_host=2, timeout=60)
        before = server.accepted, other.accepted
        async with anyio.create_task_group() as group:
            for word in range(4):
                group.start_soon(caller.say, f"{server.url}/hold/{word}")
                group.start_soon(caller.say, f"{other.url}/hold/{word}")
            await until_seen(lambda: server.holding + other.holding == 3)
            sizes = sorted(pool.stats().size for pool in caller.pools)
            assert sizes == [1, 2]

            def served() -> bool:
                server.let_go()
                other.let_go()
                return not any(pool.stats().lent or pool.stats().waiting for pool in caller.pools)

            await until_seen(served, pause=0.005)
        # The idle connection of one host makes room for the other.
        async with anyio.create_task_group() as group:
            for word in range(2):
                group.start_soon(caller.say, f"{server.url}/after/50/{word}")
        async with anyio.create_task_group() as group:
            for word in range(2):
                group.start_soon(caller.say, f"{other.url}/after/50/{word}")
        assert sum(pool.stats().size for pool in caller.pools) <= 3
        assert server.accepted > before[0]
        assert other.accepted > before[1]


async def test_closing_sends_those_who_wait_away_at_once(make: Make, server: Server) -> None:
    caller = make(limits={"max_connections": 1}, timeout=None)
    began = 0.0
    ended: list[tuple[float, type[Exception]]] = []

    async def ask(word: int) -> None:
        try:
            await caller.transport_get(f"{server.url}/hold/{word}")
        except Exception as error:
            ended.append((time.monotonic() - began, type(error)))

    async with anyio.create_task_group() as group:
        for word in range(8):
            group.start_soon(ask, word)
        await caller.until(lambda stats: stats.lent == 1 and stats.waiting == 7)
        began = time.monotonic()
        await caller.close()
    assert len(ended) == 8
    # Those who waited are told that the client is closed; the one whose connection was cut, that it was.
    (cut,) = [kind for _, kind in ended if kind is not RuntimeError]
    assert issubclass(cut, (caller.httpx.NetworkError, caller.httpx.RemoteProtocolError))
    assert max(after for after, _ in ended) < 10  # and not when it is answered
    assert (caller.stats().size if caller.pools else 0) == 0


async def test_a_transport_serves_one_client_after_the_other(make: Make, server: Server) -> None:
    """As the library's own does: closing a client closes what is open, and no more than that."""
    caller = make()
    for word in range(3):
        await caller.transport_get(f"{server.url}/say/{word}")
        await caller.close_transport()
        assert caller.pools == []


async def test_a_storm_of_cancellations_loses_no_connection(make: Make, server: Server) -> None:
    """httpcore's issue 1093: after it, every request ends with PoolTimeout."""
    caller = make(limits={"max_connections": 10}, timeout=30)
    if caller.way == "threads":
        pytest.skip("threads are not cancelled")

    async def cut(number: int) -> None:
        with anyio.move_on_after(number % 17 / 1000):
            await caller.say(f"{server.url}/after/{number % 11}/{number}")

    for _ in range(5):
        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(cut, number)
    response = await caller.get(f"{server.url}/say/probe")
    assert (response.status_code, response.text) == (200, "probe")
    stats = await caller.until(lambda stats: stats.lent == 0)
    assert stats.waiting == 0
    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(caller.say, f"{server.url}/meet/10/{number}")
    assert caller.stats().size == 10
