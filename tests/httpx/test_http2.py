"""One HTTP/2 connection for as many requests at once as the server takes, and no more connections than are needed."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import Any

import anyio
import h2.connection
import pytest

from ..promises.patience import until_seen
from .conftest import Caller, in_thread
from .server import Http2Server, Server

pytestmark = [
    pytest.mark.anyio,
    # httpx and httpcore leave generators of their own behind when they are cut, which trio tells.
    pytest.mark.filterwarnings("ignore:Async generator 'http(x|core)2?[.]:ResourceWarning"),
]

Make = Callable[..., Caller]


@contextlib.asynccontextmanager
async def serving(server: Http2Server, make: Make, **options: Any) -> AsyncIterator[tuple[Http2Server, Caller]]:
    """Run a server of one test's own, and have its client be gone before it."""
    with server:
        caller = make(**options)
        try:
            yield server, caller
        finally:
            await caller.close()


async def ask_many(caller: Caller, server: Http2Server, times: int, path: str = "after/30") -> None:
    async with anyio.create_task_group() as group:
        for word in range(times):
            group.start_soon(caller.say, f"{server.url}/{path}/{word}")


def new(server: Http2Server) -> None:
    """Begin to count."""
    server.requests = Counter()
    server.most = Counter()


async def test_many_requests_at_once_share_one_connection(make: Make, http2_server: Http2Server) -> None:
    """Also the very first: they wait to see whether the one connection that is being made can be shared."""
    caller = make(http2=True)
    new(http2_server)
    await ask_many(caller, http2_server, 40, "meet/40")
    await ask_many(caller, http2_server, 40, "meet/40")
    assert list(http2_server.requests.values()) == [80]
    stats = await caller.until(lambda stats: stats.idle == 1)
    assert stats.opens == 1


async def test_no_more_requests_at_once_than_the_server_takes(make: Make) -> None:
    async with serving(Http2Server(streams=5), make, http2=True, limits={"max_connections": 3}) as (server, caller):
        for _ in range(2):
            await ask_many(caller, server, 40)
        assert max(server.most.values()) <= 5
        assert len(server.requests) == 3
        assert (await caller.until(lambda stats: stats.lent == 0)).opens == 3


async def test_a_server_without_http2_makes_nobody_wait_for_long(make: Make) -> None:
    with Server(tls=True) as server:
        caller = make(http2=True)
        # One connects, then all the others do, while its request is still under way.
        async with anyio.create_task_group() as group:
            for word in range(10):
                group.start_soon(caller.say, f"{server.url}/meet/10/{word}")
        assert server.accepted == 10
        await caller.close_transport()


async def test_a_server_of_http2_alone_may_be_spoken_to_without_tls(make: Make) -> None:
    async with serving(Http2Server(tls=False, protocols=("h2",)), make, http1=False, http2=True) as (server, caller):
        new(server)
        await ask_many(caller, server, 20)
        assert list(server.requests.values()) == [20]


async def test_bodies_are_sent_and_received(make: Make, http2_server: Http2Server, library: str) -> None:
    caller = make(http2=True)
    # Up to httpcore2 2.15, and in httpcore, one who waits for room to send may miss that another has read of it.
    mended = library == "httpx2" and tuple(map(int, version("httpcore2").split(".")[:2])) >= (2, 16)
    body = b"word" * 100_000

    async def echo() -> None:
        response = await caller.request("POST", f"{http2_server.url}/echo", content=body)
        assert response.content == body
        assert response.http_version == "HTTP/2"

    async with anyio.create_task_group() as group:
        for _ in range(4 if mended else 1):
            group.start_soon(echo)
    assert caller.stats().opens == 1


async def test_who_waits_for_a_stream_for_too_long_is_told_so(make: Make) -> None:
    async with (
        serving(Http2Server(streams=1), make, http2=True, limits={"max_connections": 1}, timeout=None) as (
            server,
            caller,
        ),
        anyio.create_task_group() as group,
    ):
        group.start_soon(caller.say, f"{server.url}/hold/first")
        await until_seen(lambda: server.holding == 1)
        with pytest.raises(caller.httpx.PoolTimeout, match="no stream of HTTP/2 free"):
            await caller.get(f"{server.url}/say/second", timeout=caller.httpx.Timeout(30, pool=0.05))
        server.let_go()
        await caller.say(f"{server.url}/say/third")


async def until_in_line(caller: Caller, count: int) -> None:
    """Wait until so many stand in line for a stream."""
    await until_seen(lambda: sum(len(pool.sharing._line) for pool in caller.pools) == count)


async def test_who_waits_for_a_stream_is_served_in_order(make: Make) -> None:
    async with serving(Http2Server(streams=1), make, http2=True, limits={"max_connections": 1}) as (server, caller):
        await caller.say(f"{server.url}/say/before")
        server.asked.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(caller.say, f"{server.url}/hold/0")
            await until_seen(lambda: server.holding == 1)
            for word in range(1, 12):
                group.start_soon(caller.say, f"{server.url}/say/{word}")
                await until_in_line(caller, word)
            server.let_go()
        assert server.asked == ["/hold/0", *(f"/say/{word}" for word in range(1, 12))]


async def test_closing_sends_those_who_wait_for_a_stream_away_at_once(make: Make) -> None:
    async with serving(Http2Server(streams=1), make, http2=True, limits={"max_connections": 1}, timeout=None) as (
        server,
        caller,
    ):
        ended: list[type[Exception]] = []

        async def ask(word: int) -> None:
            try:
                await caller.transport_get(f"{server.url}/hold/{word}")
            except Exception as error:
                ended.append(type(error))

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for word in range(5):
                    group.start_soon(ask, word)
                await until_seen(lambda: server.holding == 1)
                await until_in_line(caller, 4)
                await caller.close()
        assert ended.count(RuntimeError) == 4


async def test_streams_that_are_not_read_to_their_end_do_not_use_up_the_connection(
    make: Make, http2_server: Http2Server
) -> None:
    """httpcore forgets them, and h2 goes on counting: with it, the hundredth and first request fails."""
    caller = make(http2=True)
    new(http2_server)
    async with anyio.create_task_group() as group:
        group.start_soon(caller.say, f"{http2_server.url}/after/800/beside")
        await until_seen(lambda: sum(http2_server.busy.values()) == 1)
        for _ in range(110):
            response = await caller.send(f"{http2_server.url}/many/3000")
            await caller.end(response)
        await caller.say(f"{http2_server.url}/say/after")
    assert list(http2_server.requests.values()) == [112]


async def test_responses_that_are_dropped_end_their_connection_and_lose_no_place(
    make: Make, http2_server: Http2Server
) -> None:
    caller = make(http2=True, limits={"max_connections": 1})
    for _ in range(2):
        kept: Any = await caller.send(f"{http2_server.url}/many/400000")
        dropped: Any = await caller.send(f"{http2_server.url}/many/400000")
        del dropped
        await in_thread(gc.collect)  # there, since anyio's worker thread keeps what it last returned
        assert len(await caller.read(kept)) == 400_000
        await caller.end(kept)
        await caller.say(f"{http2_server.url}/say/after")
        del kept
        await in_thread(gc.collect)
    await caller.until(lambda stats: stats.lent == 0)


async def test_a_server_that_says_goodbye_gets_no_more_requests_on_that_connection(make: Make) -> None:
    async with serving(Http2Server(goodbye_after=10), make, http2=True) as (server, caller):
        for word in range(25):
            try:
                await caller.say(f"{server.url}/say/{word}")
            except caller.httpx.RemoteProtocolError as error:
                # httpcore ends with it also a response whose end has not come yet.
                assert "ConnectionTerminated" in str(error)  # noqa: PT017
        assert len(server.requests) == 3
        assert sum(server.requests.values()) == 25


async def test_a_connection_that_is_always_in_use_is_replaced_when_it_is_too_old(
    make: Make, http2_server: Http2Server
) -> None:
    caller = make(http2=True, max_lifetime=0.3)
    new(http2_server)

    async def keep_busy() -> None:
        while len(http2_server.requests) < 2:
            await caller.say(f"{http2_server.url}/after/20/word")

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(keep_busy)
    assert len(http2_server.requests) == 2


async def test_many_threads_on_one_http2_connection(make: Make, way: str) -> None:
    """httpcore's own state is not made for it, nor is OpenSSL's: see `guard.py`."""
    if way != "threads":
        pytest.skip("for threads")
    async with serving(Http2Server(streams=20), make, http2=True, limits={"max_connections": 2}) as (server, caller):
        async with anyio.create_task_group() as group:

            async def keep_asking(number: int) -> None:
                for turn in range(12):
                    await caller.say(f"{server.url}/after/{number % 3}/{number}-{turn}")

            for number in range(40):
                group.start_soon(keep_asking, number)
        assert sum(server.requests.values()) == 480


def test_what_is_read_of_httpcores_insides_is_there(library: str) -> None:
    """Else connections would be taken for what they are not."""
    import importlib

    core = importlib.import_module(library.replace("httpx", "httpcore"))
    origin = core.URL("https://localhost").origin
    with contextlib.closing(core.MockStream([])) as stream:
        eleven, two = core.HTTP11Connection(origin, stream), core.HTTP2Connection(origin, stream)
        assert eleven._h11_state.trailing_data == (b"", False)
        assert not hasattr(eleven, "_h2_state")
        assert isinstance(two._h2_state, h2.connection.H2Connection)
        assert two._events == {}
        direct = core.HTTPConnection(origin)
        assert direct._connection is None
        pool = core.ConnectionPool()
        assert pool._network_backend is not None
        two._state = None  # it has never been connected
