"""What a client gets is what it gets from the library's own transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest

from millpond import events

from .conftest import Caller
from .server import Server

pytestmark = pytest.mark.anyio

Make = Callable[..., Caller]


async def test_one_connection_serves_requests_that_come_one_after_the_other(make: Make, server: Server) -> None:
    caller = make()
    before = server.accepted
    for word in ("one", "two", "three"):
        await caller.say(f"{server.url}/say/{word}")
    assert server.accepted == before + 1
    stats = caller.stats()
    assert (stats.size, stats.idle, stats.borrows) == (1, 1, 3)


async def test_requests_at_the_same_time_have_a_connection_each(make: Make, server: Server) -> None:
    caller = make()
    before = server.accepted
    async with anyio.create_task_group() as group:
        for word in range(8):
            group.start_soon(caller.say, f"{server.url}/meet/8/{word}")
    assert server.accepted == before + 8


async def test_a_body_is_sent_whole_or_in_parts(make: Make, server: Server) -> None:
    caller = make()
    parts = [b"first ", b"", b"second ", b"third"]

    def some() -> Iterator[bytes]:
        yield from parts

    async def some_async() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    for _ in range(2):  # the first request connects and goes httpcore's way, the second does not
        whole = await caller.request("POST", f"{server.url}/echo", content=b"".join(parts))
        assert whole.content == b"".join(parts)
        in_parts = await caller.request(
            "PUT", f"{server.url}/echo", content=some() if caller.way == "threads" else some_async()
        )
        assert in_parts.content == b"".join(parts)
    assert caller.stats().opens == 1


async def test_a_body_that_fails_to_come_ends_its_connection_and_no_other(make: Make, server: Server) -> None:
    caller = make()
    await caller.say(f"{server.url}/say/before")

    def some() -> Iterator[bytes]:
        yield b"first"
        raise LookupError("no more")

    async def some_async() -> AsyncIterator[bytes]:
        yield b"first"
        raise LookupError("no more")

    for _ in range(2):
        with pytest.raises(LookupError):
            await caller.request(
                "PUT", f"{server.url}/echo", content=some() if caller.way == "threads" else some_async()
            )
        await caller.say(f"{server.url}/say/after")


@pytest.mark.parametrize("times", [1, 3, 400])
async def test_a_body_is_received_as_it_comes(make: Make, server: Server, times: int) -> None:
    caller = make()
    for _ in range(3):
        response = await caller.get(f"{server.url}/chunked/{times}/{'word' * 300}")
        assert response.text == "word" * 300 * times
        assert response.http_version == "HTTP/1.1"
        assert response.reason_phrase == "OK"
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert response.extensions["network_stream"].get_extra_info("server_addr") == ("127.0.0.1", server.port)
    assert caller.stats().opens == 1


async def test_a_head_has_no_body(make: Make, server: Server) -> None:
    caller = make()
    await caller.say(f"{server.url}/say/before")
    response = await caller.request("HEAD", f"{server.url}/body")
    assert (response.status_code, response.content) == (200, b"")
    # The body that came all the same is nobody's answer.
    await caller.say(f"{server.url}/say/after")


async def test_the_connection_of_a_server_that_closes_is_not_lent_again(make: Make, server: Server) -> None:
    caller = make()
    for word in range(5):
        await caller.say(f"{server.url}/close/{word}")
    stats = await caller.until(lambda stats: stats.size == 0)
    assert stats.opens == 5


async def test_the_end_of_a_client_is_told_as_that_of_its_pools(make: Make, server: Server) -> None:
    caller = make()
    await caller.say(f"{server.url}/say/word")
    told: list[events.Event] = []
    caller.pools[0].listen(told.append)
    await caller.close()
    assert [type(event) for event in told].count(events.PoolClosed) == 1


async def test_a_unix_socket(make: Make, tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    with Server(uds=path):
        caller = make(uds=path)
        for word in range(3):
            await caller.say(f"http://localhost/say/{word}")
        assert caller.stats().opens == 1


async def test_tls(make: Make, tls_server: Server) -> None:
    caller = make()
    for word in range(3):
        await caller.say(f"{tls_server.url}/say/{word}")
    response = await caller.get(f"{tls_server.url}/chunked/300/{'word' * 300}")
    assert len(response.content) == 300 * 1200
    assert response.extensions["network_stream"].get_extra_info("ssl_object").version().startswith("TLSv1")
    assert caller.stats().opens == 1


async def test_a_certificate_that_is_not_trusted_is_refused(make: Make, tls_server: Server) -> None:
    caller = make(verify=True)
    with pytest.raises(caller.httpx.ConnectError) as refused:
        await caller.get(f"{tls_server.url}/say/word")
    assert "certificate" in str(refused.value).lower() or caller.way == "trio"  # httpcore says nothing there
    await caller.until(lambda stats: stats.size == 0)


async def test_debug_logs_and_traces_are_what_they_are_without_us(make: Make, server: Server) -> None:
    caller = make()
    seen: list[str] = []

    def note(name: str, info: dict[str, Any]) -> None:
        seen.append(name)

    async def note_async(name: str, info: dict[str, Any]) -> None:
        seen.append(name)

    trace = note if caller.way == "threads" else note_async
    await caller.say(f"{server.url}/say/before")
    await caller.say(f"{server.url}/say/traced", extensions={"trace": trace})
    await caller.say(f"{server.url}/say/after")
    assert seen[0] == "http11.send_request_headers.started"
    assert seen[-1] == "http11.response_closed.complete"
    assert caller.stats().opens == 1
