"""A connection is lent again only if its last reply was read to the end and nothing came after it."""

from __future__ import annotations

import gc
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from millpond.urllib3 import HTTPConnectionPool
from millpond.urllib3._replies import LEFTOVER

from .conftest import Make
from .patience import settled, stats, until
from .servers import Request, Server, Wire, chunked, echo, plain

STOLEN = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"


def ask(http: HTTPConnectionPool, target: str = "/right") -> bytes:
    """Make a request on whatever connection the pool has; it may not fail, nor be tried twice."""
    response = http.request("GET", target, retries=False, pool_timeout=30)
    assert response.status == 200
    return response.data


def once(first: bytes, gate: threading.Event | None = None, then: bytes = b"") -> Callable[[Request, Wire], None]:
    """Answer the first request so; when the gate is open, send more unasked. Echo the other requests."""
    asked = iter([True])

    def answer(request: Request, wire: Wire) -> None:
        if next(asked, False):
            wire.send(first)
            if gate is not None:
                gate.wait(60)
                wire.send(then)
        else:
            echo(request, wire)

    return answer


# Responses that are not read to their end


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a rest be waited for, however busy the machine is."""
    monkeypatch.setattr("millpond.urllib3._connections.PATIENCE", 60.0)


def test_a_response_dropped_unread_gives_its_place_back(make: Make, server: Server) -> None:
    http = make(maxsize=1, block=True)
    for _ in range(3):
        http.request("GET", "/", preload_content=False)
        gc.collect()
        assert ask(http) == b"/right"


def test_a_closed_response_gives_its_place_back_at_once(make: Make, server: Server) -> None:
    http = make(maxsize=1, block=True)
    for _ in range(3):
        response = http.request("GET", "/", preload_content=False)
        response.close()
        assert ask(http) == b"/right"
        response.close()
        response.release_conn()
        assert ask(http) == b"/right"
    assert server.accepted == 4, "a second close does not harm who has the connection now"


def test_a_dropped_response_is_no_news(make: Make, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    http = make()
    with caplog.at_level(logging.INFO, "millpond"):
        http.request("GET", "/", preload_content=False)
        gc.collect()
        settled(http)
    assert not caplog.records


@pytest.mark.parametrize("read", [0, 4])
@pytest.mark.parametrize(
    "reply",
    [plain(b"x" * 1000), plain(b"x" * LEFTOVER), chunked(b"x" * 1000, b"\r\n\r\n", b"y" * 9), chunked()],
    ids=["short", "long", "chunks", "no chunk"],
)
@pytest.mark.usefixtures("patient")
def test_the_rest_of_a_released_response_is_read_beside_the_line(
    make: Make, server: Server, reply: bytes, read: int
) -> None:
    http = make(once(reply), maxsize=1, block=True)
    response = http.request("GET", "/", preload_content=False)
    if read:
        response.read(read)
    response.release_conn()
    assert ask(http) == b"/right"
    assert server.accepted == 1


@pytest.mark.usefixtures("patient")
def test_the_rest_of_chunks_that_urllib3_has_begun_to_read_is_read_too(make: Make, server: Server) -> None:
    for amount in (2, 5, 100):
        http = make(once(chunked(b"12345", b"67890", b"abcde")), maxsize=1, block=True)
        response = http.request("GET", "/", preload_content=False)
        chunks = response.stream(amount)
        next(chunks)
        response.release_conn()
        assert ask(http) == b"/right"
        del chunks
        assert ask(http) == b"/right"
        http.close()
    assert server.accepted == 3


@pytest.mark.usefixtures("patient")
def test_a_rest_that_comes_in_pieces_is_waited_for(make: Make, server: Server) -> None:
    trap = chunked(b"what looks like the end\r\n\r\n", b"and is not", trailer=b"Sum: 1\r\n")
    cut = trap.index(b"and") - 5
    for pieces in (
        [plain(b"x" * 3000)[start : start + 333] for start in range(0, 3040, 333)],
        [chunked(b"x" * 1000, b"y" * 2000)[start : start + 333] for start in range(0, 3070, 333)],
        [trap[:cut], trap[cut:-3], trap[-3:]],
    ):

        def slowly(request: Request, wire: Wire, pieces: list[bytes] = pieces) -> None:
            if request.target == "/right":
                echo(request, wire)
                return
            for piece in pieces:
                wire.send(piece)
                time.sleep(0.005)

        http = make(slowly, maxsize=1, block=True)
        http.request("GET", "/", preload_content=False).release_conn()
        assert ask(http) == b"/right"
        http.close()
    assert server.accepted == 3


@pytest.mark.parametrize(
    "reply",
    [plain(b"x" * (LEFTOVER + 9)), plain(b"x" * 100)[:-1], chunked(b"x" * (LEFTOVER + 9)), chunked(b"xyz")[:-2]],
    ids=["too long", "stalled", "too many chunks", "stalled chunks"],
)
def test_a_rest_that_is_too_long_or_too_late_costs_the_connection(make: Make, server: Server, reply: bytes) -> None:
    http = make(once(reply), maxsize=1, block=True)
    http.request("GET", "/", preload_content=False).release_conn()
    assert ask(http) == b"/right"
    assert server.accepted == 2


def test_a_rest_that_drips_for_ever_is_not_waited_for(make: Make, server: Server) -> None:
    over = threading.Event()

    def drip(request: Request, wire: Wire) -> None:
        if request.target == "/right":
            echo(request, wire)
            return
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not over.wait(0.01):
            wire.send(b".")

    http = make(drip, maxsize=1, block=True)
    http.request("GET", "/", preload_content=False).release_conn()
    assert ask(http) == b"/right"
    over.set()


def test_what_is_released_before_it_is_read_can_still_be_read(make: Make, server: Server) -> None:
    http = make(maxsize=1, block=True)
    for _ in range(3):
        response = http.request("GET", "/body", preload_content=False, release_conn=True)
        assert stats(http).lent == 1
        assert response.read() == b"/body"
        assert settled(http).lent == 0
    assert server.accepted == 1


def test_a_read_that_timed_out_costs_the_connection(make: Make, server: Server) -> None:
    gate = threading.Event()
    http = make(once(plain(b"x" * 10)[:-5], gate, b"x" * 5), maxsize=1, block=True)
    response = http.request("GET", "/", preload_content=False, timeout=30)
    response.connection.sock.settimeout(0.05)  # type: ignore[union-attr]
    with pytest.raises(ReadTimeoutError):
        response.read()
    gate.set()
    assert ask(http) == b"/right"
    assert server.accepted == 2


# Servers that say more than they should


@pytest.mark.parametrize("read", ["preloaded", "streamed", "released"])
@pytest.mark.parametrize(
    "reply", [plain(b"right"), chunked(b"right"), b"HTTP/1.1 204 No Content\r\n\r\n"], ids=["plain", "chunks", "204"]
)
def test_more_than_was_announced_costs_the_connection(make: Make, server: Server, reply: bytes, read: str) -> None:
    http = make(once(reply + STOLEN), maxsize=1, block=True)
    response = http.request("GET", "/", preload_content=read == "preloaded")
    if read == "streamed":
        list(response.stream())
    response.release_conn()
    settled(http)
    assert ask(http) == b"/right"
    assert server.accepted == 2


def test_more_than_can_be_read_ahead_costs_the_connection(make: Make, server: Server) -> None:
    http = make(once(plain(b"") + b"x" * 20_000 + STOLEN), maxsize=1, block=True)
    http.request("GET", "/")
    assert ask(http) == b"/right"
    assert server.accepted == 2


def test_what_a_server_says_unasked_is_not_an_answer(make: Make, server: Server) -> None:
    gate = threading.Event()
    http = make(once(plain(b"first"), gate, STOLEN), maxsize=1, block=True)
    http.request("GET", "/")
    assert settled(http).idle == 1
    gate.set()
    conn: Any = http._get_conn()
    http._put_conn(conn)
    until(lambda: conn.sock is None or not conn.is_connected)
    assert ask(http) == b"/right"
    assert server.accepted == 2


def test_the_body_of_a_head_costs_the_connection(make: Make, server: Server) -> None:
    http = make(once(plain(b"right")), maxsize=1, block=True)
    http.request("HEAD", "/")
    assert ask(http) == b"/right"
    assert server.accepted == 2


@pytest.mark.parametrize("status", ["103 Early Hints", "102 Processing", "101 Switching Protocols"])
def test_a_reply_after_which_more_comes_costs_the_connection(make: Make, server: Server, status: str) -> None:
    gate = threading.Event()
    http = make(once(f"HTTP/1.1 {status}\r\n\r\n".encode(), gate, STOLEN), maxsize=1, block=True)
    assert http.request("GET", "/", retries=False).status == int(status[:3])
    assert ask(http) == b"/right"
    gate.set()
    assert server.accepted == 2


def test_urllib3s_own_pool_hands_out_the_stolen_reply(server: Server) -> None:
    """So that the tests above are known to test something."""
    gate = threading.Event()
    server.answer = once(b"HTTP/1.1 103 Early Hints\r\n\r\n", gate, STOLEN)
    with urllib3.HTTPConnectionPool(server.host, server.port) as http:
        http.request("GET", "/", retries=False)

        class Asking(HTTPConnection):
            def putrequest(self, *args: Any, **options: Any) -> None:
                super().putrequest(*args, **options)
                gate.set()

        (conn,) = [conn for conn in http.pool.queue if conn is not None]  # type: ignore[union-attr]
        conn.__class__ = Asking
        assert http.request("GET", "/right", retries=False).data == b"stolen"


# Requests that were not finished


def test_a_request_without_its_reply_costs_the_connection(make: Make, server: Server) -> None:
    http = make(maxsize=1, block=True)
    for half in (True, False):
        conn: Any = http._get_conn(5)
        if half:
            conn.putrequest("GET", "/left")
            conn.putheader("X", "y")
        else:
            conn.request("GET", "/left")
        http._put_conn(conn)
        del conn
        assert ask(http) == b"/right"


def test_a_body_that_fails_half_way_costs_the_connection(make: Make, server: Server) -> None:
    def body() -> Iterator[bytes]:
        yield b"some"
        raise LookupError

    http = make(maxsize=1, block=True)
    for _ in range(3):
        with pytest.raises(LookupError):
            http.request("POST", "/", body=body())
        assert ask(http) == b"/right"


def test_a_request_in_another_threads_connection_is_not_disturbed_by_a_response_that_had_it(
    make: Make, server: Server
) -> None:
    http = make(maxsize=1, block=True)
    response = http.request("GET", "/first", preload_content=False)
    conn = response.connection
    assert conn is not None
    # As after an exception between the return of the connection and the response's forgetting it.
    http._put_conn(conn)
    response.read()
    settled(http)
    with HTTPConnectionPool(server.host, server.port):
        held = http.request("GET", "/second", preload_content=False)
        response.close()
        del response
        gc.collect()
        assert held.read() == b"/second"
    assert server.accepted == 1


# Connections that died, or should have


def test_connections_that_the_server_closed_while_idle_are_not_used(make: Make, server: Server) -> None:
    http = make(maxsize=3)
    held = [http.request("GET", "/", preload_content=False) for _ in range(3)]
    for response in held:
        response.read()
    assert settled(http).idle == 3
    server.hang_up()
    for _ in range(6):
        assert ask(http) == b"/right"
    until(lambda: settled(http).size == 1)


def test_no_request_fails_after_a_restart(make: Make, server: Server) -> None:
    http = make(maxsize=2, block=True)
    for _ in range(5):
        assert ask(http) == b"/right"
        server.stop()
        server.start()
    assert ask(http) == b"/right"


def test_idle_connections_expire(make: Make, server: Server) -> None:
    http = make(max_idle=0.3)
    assert ask(http) == b"/right"
    until(lambda: stats(http).size == 0)
    assert stats(http).closes == {"max_idle": 1}
    until(lambda: not server.connected)
    assert ask(http) == b"/right"


@pytest.mark.parametrize(("said", "seconds"), [("timeout=5, max=100", 4.0), ("max=3, Timeout=1", 0.75)])
def test_a_server_that_says_how_long_it_waits_is_believed(
    make: Make, server: Server, monkeypatch: pytest.MonkeyPatch, said: str, seconds: float
) -> None:
    passed = time.monotonic()
    monkeypatch.setattr("millpond.urllib3._connections.monotonic", lambda: passed)
    http = make(lambda request, wire: wire.send(plain(b"right", headers={"Keep-Alive": said})))
    for _ in range(2):
        ask(http)
    passed += seconds - 0.5
    ask(http)
    assert server.accepted == 1
    passed += seconds
    ask(http)
    assert server.accepted == 2
    server.answer = echo
    for _ in range(2):
        ask(http)
        passed += 1000
    assert server.accepted == 2


def test_old_connections_are_replaced(make: Make, server: Server) -> None:
    http = make(max_lifetime=0.3)
    assert ask(http) == b"/right"
    until(lambda: settled(http).closes.get("max_lifetime") == 1)
    assert ask(http) == b"/right"


def test_a_connection_closed_by_the_client_side_of_the_network_is_replaced(make: Make, server: Server) -> None:
    http = make(maxsize=1, block=True)
    assert ask(http) == b"/right"
    conn: Any = http._get_conn()
    conn.sock.shutdown(socket.SHUT_RDWR)
    http._put_conn(conn)
    del conn
    assert ask(http) == b"/right"


def test_a_server_that_breaks_off_costs_its_connection_only(make: Make, server: Server) -> None:
    http = make(once(plain(b"x" * 100)[:-50]), maxsize=1, block=True)
    response = http.request("GET", "/", preload_content=False)
    server.hang_up()
    with pytest.raises(ProtocolError):
        response.read()
    assert ask(http) == b"/right"
