"""A request that is interrupted anywhere loses no connection, and leaves nobody its answer."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ..promises import places
from ..promises.patience import until
from .conftest import LIBRARIES, TRUST
from .server import Http2Server, Server

SIZE = 2
words = itertools.count()

Ask = Callable[[Any, str], None]


def say(client: Any, url: str) -> None:
    word = f"{next(words)}"
    assert client.get(f"{url}/say/{word}").text == word


def in_parts(client: Any, url: str) -> None:
    with client.stream("GET", f"{url}/chunked/3/word") as response:
        assert response.read() == b"word" * 3


def half_read(client: Any, url: str) -> None:
    with client.stream("GET", f"{url}/chunked/300/{'word' * 300}") as response:
        assert next(response.iter_raw()).startswith(b"word")


def upload(client: Any, url: str) -> None:
    assert client.put(f"{url}/echo", content=iter([b"one", b"two"])).content == b"onetwo"


def closed_by_the_server(client: Any, url: str) -> None:
    assert client.get(f"{url}/close/word").text == "word"


def connect(client: Any, url: str) -> None:
    for pool in list(client._transport._pools._used.values()):
        pool.refresh()
    say(client, url)


def strike() -> None:
    raise places.Stop


@pytest.fixture
def struck_everywhere(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have exceptions strike also within httpcore."""
    core = sys.modules[library.replace("httpx", "httpcore")]
    ours = (places.PACKAGE, str(Path(str(core.__file__)).parent))
    monkeypatch.setattr(places, "_is_ours", lambda code: code.co_filename.startswith(ours))
    if sys.version_info >= (3, 12):
        sys.monitoring.restart_events()  # what was none of ours is now


def strike_everywhere(client: Any, url: str, ask: Ask, step: int = 1) -> None:
    """Do what is asked for again and again, each time interrupted one place further, or so many."""

    def look_over() -> None:
        with client.stream("GET", f"{url}/say/{next(words)}"):
            say(client, url)
        say(client, url)

    look_over()
    number = 1 - step
    reached = True
    while reached:
        number += step
        place = places.Places(number, strike)
        with places.finalisers_cut(places.Stop), suppress(places.Stop), place:
            ask(client, url)
        if any(pool.stats().lent for pool in client._transport._pools._used.values()):
            gc.collect()  # a response of httpx that is dropped is part of a cycle
        look_over()
        reached = place.reached
    assert number > 50, "how many places there are"
    gc.collect()
    for pool in client._transport._pools._used.values():
        assert pool._step(pool._core.audit) == []
        until(lambda pool=pool: pool.stats().lent == 0)  # type: ignore[misc]


@pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")  # httpcore, struck, may drop a socket
@pytest.mark.parametrize("ask", [say, in_parts, half_read, upload, closed_by_the_server, connect])
@pytest.mark.usefixtures("struck_everywhere")
def test_an_exception_at_any_place_of_httpcores_code_or_millponds(
    server: Server, library: str, ask: Ask, thorough: bool
) -> None:
    httpx, face = LIBRARIES[library]
    transport = face.HTTPTransport(limits=httpx.Limits(max_connections=SIZE), verify=TRUST)
    with httpx.Client(transport=transport, timeout=5) as client:
        strike_everywhere(client, server.url, ask, step=1 if thorough else 11 if library == "httpx" else 12)


def many(client: Any, url: str) -> None:
    assert len(client.get(f"{url}/many/3000").content) == 3000


@pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")  # httpcore, struck, may drop a socket
@pytest.mark.parametrize("ask", [many, connect])
@pytest.mark.usefixtures("struck_everywhere")
def test_an_exception_at_any_place_of_a_request_over_http2(
    http2_server: Http2Server, library: str, ask: Ask, thorough: bool
) -> None:
    httpx, face = LIBRARIES[library]
    transport = face.HTTPTransport(limits=httpx.Limits(max_connections=SIZE), verify=TRUST, http2=True)
    with httpx.Client(transport=transport, timeout=5) as client:
        # Each time a new connection has to be made: not every place of so many, but other ones for each library.
        step = (1 if thorough else 5) * (7 if library == "httpx" else 8)
        strike_everywhere(client, http2_server.url, ask, step)


def test_a_request_that_is_struck_keeps_no_lock(http2_server: Http2Server, library: str) -> None:
    httpx, face = LIBRARIES[library]
    transport = face.HTTPTransport(limits=httpx.Limits(max_connections=SIZE), verify=TRUST, http2=True)
    with httpx.Client(transport=transport, timeout=5) as client:
        say(client, http2_server.url)
        (pool,) = client._transport._pools._used.values()
        (link,) = pool.sharing._shared or [claim.entry.conn for claim in pool._core.idle]
        say(client, http2_server.url)
        inner = link.inner

        def left_without_its_end(request: object) -> None:
            # As CPython 3.13 does when an exception strikes a loop within a `with` as it jumps back.
            inner._state_lock.acquire()
            inner._read_lock.acquire()
            raise places.Stop

        inner._read_incoming_data = left_without_its_end
        with suppress(places.Stop):
            say(client, http2_server.url)
        with ThreadPoolExecutor(1) as another:
            for lock in (inner._state_lock, inner._read_lock, inner._write_lock):
                assert another.submit(lock.acquire, timeout=5).result(10)
        say(client, http2_server.url)
