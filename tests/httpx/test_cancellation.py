"""A request cancelled at any await loses no connection, and leaves nobody its answer: every await is enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from ..promises.patience import LOOPS, Loop, run, until_seen
from ..promises.test_cancellation_at_any_await import WAYS, Attempt, every_cut
from .conftest import LIBRARIES, Caller
from .server import Http2Server, Server

# httpx and httpcore leave generators of their own behind when they are cut, which trio tells.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http(x|core)2?[.]:ResourceWarning")

words = itertools.count()

Ask = Callable[[Caller, str], Coroutine[Any, Any, None]]


async def small(caller: Caller, url: str) -> None:
    await caller.say(f"{url}/say/{next(words)}")


async def twice(caller: Caller, url: str) -> None:
    await caller.say(f"{url}/say/{next(words)}")
    await caller.say(f"{url}/say/{next(words)}")


async def late(caller: Caller, url: str) -> None:
    await caller.say(f"{url}/after/1/{next(words)}")


async def in_parts(caller: Caller, url: str) -> None:
    async with caller.client.stream("GET", f"{url}/chunked/20/word") as response:
        assert b"".join([part async for part in response.aiter_bytes()]) == b"word" * 20


async def half_read(caller: Caller, url: str) -> None:
    async with caller.client.stream("GET", f"{url}/chunked/200/{'word' * 100}") as response:
        parts = response.aiter_raw()
        async for _ in parts:
            break
        with anyio.CancelScope(shield=True):
            await parts.aclose()


class Parts:
    def __init__(self) -> None:
        self._parts = [b"three", b"two", b"one"]

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self._parts:
            raise StopAsyncIteration
        return self._parts.pop()


async def upload(caller: Caller, url: str) -> None:
    response = await caller.client.put(f"{url}/echo", content=Parts())
    assert response.content == b"onetwothree"


async def refused(caller: Caller, url: str) -> None:
    try:
        await caller.get(f"{url}/drop")
    except caller.httpx.RemoteProtocolError:
        await anyio.lowlevel.checkpoint()


ASKS: tuple[Ask, ...] = (small, twice, late, in_parts, half_read, upload, refused)


@pytest.fixture
def server() -> Iterator[Server]:
    """One of this test's own: what others have left open is not to be counted."""
    with Server() as server:
        yield server


@pytest.fixture
def tls_server() -> Iterator[Server]:
    with Server(tls=True) as server:
        yield server


def caller_of(loop: Loop, library: str, **options: Any) -> Caller:
    return Caller(loop, library, limits={"max_connections": 1}, **options)


async def look_over(caller: Caller, url: str, open_connections: Callable[[], int] | None = None) -> None:
    """The only place can be had, by one after the other, with the right answers; and what was cut is closed."""
    for _ in range(2):
        await caller.say(f"{url}/say/{next(words)}")
    await until_seen(lambda: all(pool.stats().lent == pool.stats().waiting == 0 for pool in caller.pools))
    assert caller.audit() == []
    if open_connections is not None:
        size = sum(pool.stats().size for pool in caller.pools)
        await until_seen(lambda: open_connections() <= size)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("when", ["idle", "new", "waiting"])
@pytest.mark.parametrize("ask", ASKS, ids=lambda ask: ask.__name__)
def test_a_request_cancelled_anywhere(
    server: Server, loop: Loop, library: str, when: str, ask: Ask, thorough: bool
) -> None:
    async def main() -> None:
        # Both libraries are one code of millpond's.
        for way in WAYS if thorough else WAYS[["httpx", "httpx2"].index(library) :: 2]:
            async with anyio.create_task_group() as group:
                callers: list[Caller] = []

                async def make(group: Any = group, callers: list[Caller] = callers) -> Attempt:
                    if when == "new" or not callers:
                        for former in callers:
                            await former.close()
                        callers[:] = [caller_of(loop, library)]
                    (caller,) = callers
                    if when == "idle":
                        await caller.say(f"{server.url}/say/{next(words)}")
                    elif when == "waiting":
                        group.start_soon(caller.say, f"{server.url}/after/3/{next(words)}")
                        await until_seen(lambda: any(pool.stats().lent for pool in caller.pools))
                    return ask(caller, server.url), lambda: look_over(caller, server.url, lambda: server.open)

                assert await every_cut(make, *way) >= 1
                await callers[0].close()
        await until_seen(lambda: server.open == 0)

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("new", [True, False])
def test_a_request_over_tls_cancelled_anywhere(
    tls_server: Server, loop: Loop, library: str, new: bool, thorough: bool
) -> None:
    async def main() -> None:
        caller = caller_of(loop, library)
        for way in WAYS if thorough or not new else WAYS[["httpx", "httpx2"].index(library) :: 2]:

            async def make() -> Attempt:
                nonlocal caller
                if new:
                    await caller.close()
                    caller = caller_of(loop, library)
                else:
                    await caller.say(f"{tls_server.url}/say/{next(words)}")
                return twice(caller, tls_server.url), lambda: look_over(caller, tls_server.url, lambda: tls_server.open)

            assert await every_cut(make, *way) >= 2
        await caller.close()
        await until_seen(lambda: tls_server.open == 0)

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("new", [True, False])
def test_a_request_over_http2_cancelled_anywhere(
    http2_server: Http2Server, loop: Loop, library: str, new: bool, thorough: bool
) -> None:
    """Others on the same connection get their own answers, or are told that it has ended; and it goes on."""
    url = http2_server.url

    async def beside(caller: Caller) -> None:
        try:
            await caller.say(f"{url}/after/10/{next(words)}")
        except caller.httpx.TransportError:
            pass

    async def main() -> None:
        caller = caller_of(loop, library, http2=True, timeout=5.0)
        # Handshakes take their time, and there are sixty awaits on trio.
        step = (1 if thorough else 2) * (4 if new else 1)
        for way in WAYS[["httpx", "httpx2"].index(library) :: step]:
            async with anyio.create_task_group() as group:

                async def make(group: Any = group) -> Attempt:
                    nonlocal caller
                    if new:
                        await caller.close()
                        caller = caller_of(loop, library, http2=True, timeout=5.0)
                    else:
                        await caller.say(f"{url}/say/{next(words)}")
                    group.start_soon(beside, caller)
                    return late(caller, url), lambda: look_over(caller, url)

                assert await every_cut(make, *way) >= 1
        await caller.close()

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_request_that_is_cancelled_before_it_begins(server: Server, loop: Loop, library: str) -> None:
    async def main() -> None:
        caller = caller_of(loop, library)
        for _ in range(5):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await small(caller, server.url)
        await look_over(caller, server.url)
        await caller.close()

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_enumeration_would_notice_a_connection_that_is_lost(server: Server, loop: Loop) -> None:
    kept: list[Any] = []

    async def forgetful(caller: Caller) -> None:
        response = await caller.send(f"{server.url}/chunked/300/{'word' * 300}")
        kept.append(response)
        await anyio.lowlevel.checkpoint()
        await response.aclose()

    async def main() -> None:
        caller = caller_of(loop, "httpx", timeout=0.2)

        async def make() -> Attempt:
            return forgetful(caller), lambda: look_over(caller, server.url)

        try:
            with pytest.raises(caller.httpx.PoolTimeout):
                await every_cut(make, "before", 1)
        finally:
            await caller.close()

    run(loop, main)
