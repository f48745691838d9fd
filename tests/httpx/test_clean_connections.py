"""An answer never reaches a request that it was not for; what cannot be proved clean is closed."""

from __future__ import annotations

import gc
import select
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from ..promises.patience import until_seen
from .conftest import Caller, in_thread
from .server import Server

pytestmark = [
    pytest.mark.anyio,
    # httpx leaves its own generator behind, which trio tells.
    pytest.mark.filterwarnings("ignore:Async generator 'httpx2?._client.BoundAsyncStream:ResourceWarning"),
]

Make = Callable[..., Caller]


@pytest.fixture(params=["plain", "tls"])
def peer(request: pytest.FixtureRequest, server: Server, tls_server: Server) -> Server:
    return server if request.param == "plain" else tls_server


async def test_an_answer_too_many_is_nobodys(make: Make, peer: Server) -> None:
    caller = make()
    for word in range(4):
        await caller.say(f"{peer.url}/twice/{word}")
    assert caller.stats().opens == 4


def heard_more(caller: Caller) -> bool:
    """Whether the idle connection has got something that nobody asked for, or has ended of it."""
    look = select.poll()
    idle = [claim.entry for claim in caller.pool._core.idle]
    for entry in idle:
        look.register(entry.descriptor.number, select.POLLIN)
    return not idle or bool(look.poll(0))


@pytest.mark.parametrize("word", ["short", "long" * 4_000])
async def test_an_answer_that_comes_later_is_nobodys(make: Make, peer: Server, word: str) -> None:
    caller = make()
    for _ in range(3):
        await caller.say(f"{peer.url}/again/20/{word}")
        await until_seen(lambda: heard_more(caller))
    assert caller.stats().opens == 3


async def test_the_rest_of_an_answer_that_was_not_read_is_nobodys(make: Make, peer: Server) -> None:
    caller = make()
    await caller.say(f"{peer.url}/say/before")
    for _ in range(2):
        response = await caller.send(f"{peer.url}/chunked/3000/{'word' * 300}")
        assert (await caller.first(response)).startswith(b"word")
        await caller.end(response)
        await caller.say(f"{peer.url}/say/after")
    await caller.until(lambda stats: stats.size == 1)


async def test_an_answer_that_was_read_but_not_closed_is_closed_by_its_end(make: Make, server: Server) -> None:
    caller = make()
    for _ in range(3):
        response = await caller.send(f"{server.url}/chunked/100/word")
        assert caller.way != "threads" or caller.stats().lent <= 1
        assert await caller.read(response) == b"word" * 100
        stats = caller.stats()
        assert (stats.lent, stats.idle) == (0, 1)
    assert caller.stats().opens == 1


async def test_a_timeout_closes_the_connection_whose_answer_is_still_to_come(make: Make, server: Server) -> None:
    caller = make()
    await caller.say(f"{server.url}/say/before")
    for word in range(3):
        with pytest.raises(caller.httpx.ReadTimeout):
            await caller.get(f"{server.url}/after/2000/late", timeout=caller.httpx.Timeout(30, read=0.05))
        await caller.say(f"{server.url}/say/{word}")
    stats = await caller.until(lambda stats: stats.size == 1)
    assert stats.opens == 4


@pytest.mark.parametrize("first", [True, False])
async def test_a_server_that_breaks_off_is_told_as_the_library_tells_it(
    make: Make, server: Server, first: bool
) -> None:
    caller = make()
    for path, error in (
        ("drop", "Server disconnected without sending a response."),
        ("garbage", "illegal status line"),
    ):
        if not first:
            await caller.say(f"{server.url}/say/before")
        with pytest.raises(caller.httpx.RemoteProtocolError, match=error):
            await caller.get(f"{server.url}/{path}")
    with pytest.raises(caller.httpx.ReadTimeout):
        await caller.get(f"{server.url}/half/100", timeout=caller.httpx.Timeout(30, read=0.1))
    await caller.until(lambda stats: stats.size == 0)


async def test_a_server_that_breaks_off_in_the_middle_of_a_body(make: Make) -> None:
    with Server() as server:
        caller = make()
        for _ in range(2):
            await caller.say(f"{server.url}/say/before")
            response = await caller.send(f"{server.url}/half/100")
            server.hang_up()
            with pytest.raises((caller.httpx.RemoteProtocolError, caller.httpx.ReadError)):
                await caller.read(response)
            await caller.end(response)
            await caller.until(lambda stats: stats.size == 0)


async def test_a_connection_that_the_server_has_closed_is_not_lent(make: Make) -> None:
    with Server() as server:
        caller = make()
        for word in range(20):
            await caller.say(f"{server.url}/bye/1/{word}")
            with anyio.fail_after(10):
                while server.open:
                    await anyio.sleep(0.005)
        assert server.accepted == 20
        await caller.say(f"{server.url}/say/idle")
        server.hang_up()
        await caller.until(lambda stats: stats.size == 0)


async def test_a_connection_that_has_been_idle_for_too_long_is_not_lent(make: Make, server: Server) -> None:
    caller = make(limits={"max_connections": 2, "keepalive_expiry": 0.05})
    for word in range(3):
        await caller.say(f"{server.url}/say/{word}")
        await caller.until(lambda stats: stats.size == 0)
    assert caller.stats().opens == 3
    assert caller.stats().closes == {"max_idle": 3}


@pytest.mark.usefixtures("without_ticks")
async def test_a_connection_that_has_been_idle_for_too_long_is_not_lent_though_nobody_has_looked(
    make: Make, server: Server
) -> None:
    caller = make(limits={"max_connections": 2, "keepalive_expiry": 0.05})
    for word in range(3):
        await caller.say(f"{server.url}/say/{word}")
        await anyio.sleep(0.1)
    assert caller.stats().opens == 3


async def test_no_more_connections_lie_idle_than_are_wanted(make: Make, server: Server) -> None:
    caller = make(limits={"max_connections": 10, "max_keepalive_connections": 3})
    async with anyio.create_task_group() as group:
        for word in range(10):
            group.start_soon(caller.say, f"{server.url}/meet/10/{word}")
    stats = await caller.until(lambda stats: stats.size == 3)
    assert (stats.idle, stats.closes) == (3, {"surplus": 7})


async def test_a_response_that_is_dropped_gives_its_place_back(make: Make, server: Server) -> None:
    caller = make(limits={"max_connections": 1})
    for path in ("half/100", "chunked/3000/" + "word" * 300):
        for _ in range(2):
            response: Any = await caller.send(f"{server.url}/{path}")
            assert caller.stats().lent == 1
            del response
            await in_thread(gc.collect)  # there, since anyio's worker thread keeps what it last returned
            await caller.until(lambda stats: stats.size == 0)
            await caller.say(f"{server.url}/say/after")
