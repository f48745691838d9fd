"""An exception at any moment of a request: nobody gets another's reply, and no slot is lost."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from urllib3.connection import HTTPConnection

from millpond.urllib3 import HTTPConnectionPool

from ..promises.alarms import Alarm
from .conftest import Make
from .patience import settled, until
from .servers import Request, Server, Wire, chunked, echo

ROUNDS = 700
SIZE = 3

# A socket that http.client is struck while closing is closed by its finaliser, with a warning.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def swept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have nobody keep the exceptions that strike finalisers, as pytest does; and collect what is left at the end."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    yield
    gc.collect()


class Struck(BaseException):
    """What the handler raises."""


class Wrong(AssertionError):
    """Somebody else's reply."""


def interrupt() -> None:
    raise Struck


def answer(request: Request, wire: Wire) -> None:
    if request.target.startswith("/chunked"):
        body = request.target.encode()
        wire.send(chunked(body[:7], body[7:]))
    else:
        echo(request, wire)


def whole(http: urllib3.HTTPConnectionPool, target: str) -> bytes:
    return http.request("GET", target, retries=False, pool_timeout=30).data


def streamed(http: urllib3.HTTPConnectionPool, target: str) -> bytes:
    response = http.request("GET", target, retries=False, pool_timeout=5, preload_content=False)
    return b"".join(response.stream(3))


def in_chunks(http: urllib3.HTTPConnectionPool, target: str) -> bytes:
    return streamed(http, "/chunked" + target).removeprefix(b"/chunked")


def half_read(http: urllib3.HTTPConnectionPool, target: str) -> bytes:
    response = http.request("GET", target, retries=False, pool_timeout=5, preload_content=False)
    if not target.encode().startswith(response.read(2)):
        raise Wrong
    response.release_conn()
    return target.encode()


WAYS = (whole, streamed, in_chunks, half_read)


def storm(http: urllib3.HTTPConnectionPool, rounds: int) -> None:
    """Make requests until so many have been struck."""
    struck = number = 0
    # What is imported when it is first used, such as an encoding, is imported now: an import that is struck may leave
    # its lock taken.
    for ask in WAYS:
        ask(http, "/first")
    with Alarm(interrupt) as alarm:
        while struck < rounds:
            ask = random.choice(WAYS)
            number += 1
            target = f"/{number}"
            try:
                alarm.set(random.uniform(1e-6, 1.2e-3))
                body = ask(http, target)
                alarm.set(0)
            except Struck:
                struck += 1
            else:
                if body != target.encode():
                    raise Wrong(f"{body!r} instead of {target!r}")


def test_interrupted_requests_give_nobody_a_wrong_reply_and_lose_no_slot(make: Make) -> None:
    http = make(answer, maxsize=SIZE, block=True)
    storm(http, ROUNDS)
    gc.collect()
    until(lambda: settled(http).lent == 0)
    held = [http.request("GET", f"/{number}", preload_content=False, pool_timeout=30) for number in range(SIZE)]
    assert [response.read() for response in held] == [b"/0", b"/1", b"/2"]


def test_an_exception_that_is_kept_keeps_no_slot(make: Make) -> None:
    strikes: list[str] = []

    class Breaking(HTTPConnection):
        """Struck when it is lent, asked, or returned."""

        def strike(self, place: str) -> None:
            if strikes and strikes[-1] == place:
                strikes.pop()
                raise Struck

        @property
        def is_connected(self) -> bool:
            self.strike("lent")
            return super().is_connected

        def putrequest(self, *args: Any, **kwargs: Any) -> None:
            self.strike("asked")
            super().putrequest(*args, **kwargs)

    class Pool(HTTPConnectionPool):
        ConnectionCls = Breaking

        @property
        def block(self) -> bool:
            if strikes and strikes[-1] == "returned":
                strikes.pop()
                raise Struck
            return True

        @block.setter
        def block(self, block: bool) -> None: ...

    kept: list[Struck] = []
    with Server(answer) as server, Pool(server.host, server.port, maxsize=1, block=True, pool_timeout=30) as http:
        for place in ("lent", "asked", "returned"):
            assert whole(http, "/well") == b"/well"
            settled(http)
            strikes.append(place)
            with pytest.raises(Struck) as struck:
                whole(http, "/kept")
            kept.append(struck.value)
        assert whole(http, "/free") == b"/free"


def test_an_exception_after_the_return_does_not_close_what_another_has_by_then(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = make(maxsize=1, block=True)
    pool = http.pool
    assert pool is not None
    take_back = pool._take_back
    others: list[urllib3.BaseHTTPResponse] = []

    def strike(conn: Any) -> None:
        take_back(conn)
        if not others:
            others.append(http.request("GET", "/other", preload_content=False))
            raise Struck

    monkeypatch.setattr(pool, "_take_back", strike)
    with pytest.raises(Struck):
        whole(http, "/mine")
    assert others[0].read() == b"/other"
    assert settled(http).closes == {}


def test_interrupted_downloads_in_other_threads_are_not_disturbed(make: Make, server: Server) -> None:
    http = make(answer, maxsize=SIZE, block=True)
    over = threading.Event()
    wrong: list[bytes] = []

    def ask(name: str) -> None:
        number = 0
        while not over.is_set():
            number += 1
            target = f"/{name}-{number}"
            body = whole(http, target)
            if body != target.encode():
                wrong.append(body)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    try:
        storm(http, 300)
    finally:
        over.set()
        for thread in threads:
            thread.join(10)
    assert wrong == []
    assert isinstance(http, HTTPConnectionPool)
