"""A pool does what urllib3's does: requests, responses, errors, and connections that are used again."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3
from urllib3 import Timeout
from urllib3.connection import HTTPConnection
from urllib3.exceptions import MaxRetryError, NewConnectionError, ProtocolError, ReadTimeoutError

from millpond.testing import ReservedPort
from millpond.urllib3 import HTTPConnectionPool

from .conftest import Make
from .patience import settled, stats, until
from .servers import Request, Server, Wire, chunked, echo, plain


def test_one_connection_serves_many_requests(make: Make, server: Server) -> None:
    http = make()
    for number in range(20):
        response = http.request("GET", f"/{number}")
        assert (response.status, response.data) == (200, f"/{number}".encode())
    assert server.accepted == 1
    assert stats(http).borrows == 20


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def test_every_method_and_body_arrives(make: Make, server: Server, method: str) -> None:
    http = make()
    for body in (b"", b"all at once", iter([b"in ", b"chunks"])):
        assert http.request(method, "/here", body=body).headers["X-Method"] == method
    assert [request.body for request in server.requests] == [b"", b"all at once", b"in chunks"]
    assert server.accepted == 1


@pytest.mark.parametrize("preload", [True, False])
def test_responses_without_a_body_leave_their_connection_usable(make: Make, server: Server, preload: bool) -> None:
    def bodiless(request: Request, wire: Wire) -> None:
        match request.target:
            case "/204":
                wire.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            case "/304":
                wire.send(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\n\r\n")
            case "/empty":
                wire.send(plain(b""))
            case "/chunked":
                wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")  # a HEAD of what would be chunked
            case _:
                echo(request, wire)

    http = make(bodiless)
    for method, target in (("GET", "/204"), ("GET", "/304"), ("GET", "/empty"), ("HEAD", "/x"), ("HEAD", "/chunked")):
        response = http.request(method, target, preload_content=preload)
        response.release_conn()
        assert response.read() == b""
        settled(http)
    assert server.accepted == 1


def test_chunks_are_read_in_every_way(make: Make, server: Server) -> None:
    chunks = [b"one", b"two", b"three" * 1000]
    http = make(lambda request, wire: wire.send(chunked(*chunks, trailer=b"X-Sum: 3\r\n")))
    whole = b"".join(chunks)
    assert http.request("GET", "/").data == whole
    response = http.request("GET", "/", preload_content=False)
    assert list(response.stream()) == chunks
    response = http.request("GET", "/", preload_content=False)
    assert b"".join(iter(lambda: response.read(7), b"")) == whole
    if hasattr(response, "read1"):
        response = http.request("GET", "/", preload_content=False)
        assert b"".join(iter(lambda: response.read1(7), b"")) == whole
    response = http.request("GET", "/", preload_content=False)
    assert response.data == whole
    settled(http)
    assert server.accepted == 1


def test_a_long_response_is_streamed_and_its_connection_used_again(make: Make, server: Server) -> None:
    whole = bytes(range(256)) * 4000
    http = make(lambda request, wire: wire.send(plain(whole)))
    response = http.request("GET", "/", preload_content=False)
    assert stats(http).lent == 1
    assert b"".join(response.stream(10_000)) == whole
    assert settled(http).lent == 0
    assert http.request("GET", "/").data == whole
    assert server.accepted == 1


def test_an_interim_100_is_passed_over(make: Make, server: Server) -> None:
    http = make(lambda request, wire: wire.send(b"HTTP/1.1 100 Continue\r\n\r\n" + plain(b"go")))
    for _ in range(3):
        assert http.request("POST", "/", body=b"x", headers={"Expect": "100-continue"}).data == b"go"
    assert server.accepted == 1


def test_redirects_and_retries_need_one_connection(make: Make, server: Server) -> None:
    tries = iter(range(100))

    def detour(request: Request, wire: Wire) -> None:
        if request.target == "/from":
            wire.send(plain(b"elsewhere" * 100, "302 Found", {"Location": "/to"}))
        elif request.target == "/busy" and next(tries) % 3 != 2:
            wire.send(plain(b"busy", "503 Busy", {"Retry-After": "0"}))
        else:
            echo(request, wire)

    http = make(detour, maxsize=1, block=True, pool_timeout=5)
    for preload in (True, False):
        assert http.request("GET", "/from", preload_content=preload).data == b"/to"
        response = http.request("GET", "/busy", retries=urllib3.Retry(5), preload_content=preload)
        assert response.data == b"/busy"
    assert server.accepted == 1


def test_a_server_that_always_closes_is_reached_again_and_again(make: Make, server: Server) -> None:
    http = make(lambda request, wire: wire.send(plain(b"bye", headers={"Connection": "close"})), maxsize=1, block=True)
    for preload in (True, False) * 5:
        response = http.request("GET", "/", preload_content=preload, pool_timeout=5)
        assert response.data == b"bye"
    assert server.accepted == 10
    assert settled(http).opens == 1, "the connection object serves again"


def test_http_1_0_is_spoken(make: Make, server: Server) -> None:
    def old(request: Request, wire: Wire) -> None:
        if request.target == "/keep":
            wire.send(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nkept")
        else:
            wire.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
            wire.hang_up()

    http = make(old)
    assert [http.request("GET", "/keep").data for _ in range(3)] == [b"kept"] * 3
    assert server.accepted == 1
    assert [http.request("GET", "/").data for _ in range(3)] == [b"until the end"] * 3


def test_failures_are_urllib3s_own(make: Make, server: Server) -> None:
    reserved = ReservedPort()
    with HTTPConnectionPool("127.0.0.1", reserved.number, maxsize=1, block=True) as nowhere:
        for _ in range(3):
            with pytest.raises(MaxRetryError) as refused:
                nowhere.request("GET", "/", retries=1, pool_timeout=5)
            assert isinstance(refused.value.reason, NewConnectionError)
            with pytest.raises(NewConnectionError, match=r"HTTPConnection\b.*Failed to establish a new connection"):
                nowhere.request("GET", "/", retries=False)
        assert settled(nowhere).lent == 0
    reserved.close()

    http = make(maxsize=1, block=True, pool_timeout=5)
    with pytest.raises(ReadTimeoutError, match="Read timed out"):
        http.request("GET", "/?1", timeout=Timeout(connect=30, read=0.05), retries=False)
    server.answer = lambda request, wire: wire.hang_up()
    with pytest.raises(ProtocolError, match="Connection aborted"):
        http.request("GET", "/", retries=False)

    def break_off(request: Request, wire: Wire) -> None:
        wire.send(plain(b"123456")[:-3])
        wire.hang_up()

    server.answer = break_off
    with pytest.raises(ProtocolError, match="IncompleteRead"):
        http.request("GET", "/", retries=False)
    server.answer = echo
    assert http.request("GET", "/at-last").data == b"/at-last"


def test_arguments_that_do_not_suit_fail_as_they_do_with_urllib3(server: Server) -> None:
    with HTTPConnectionPool(server.host, server.port, no_such_thing=1) as http:
        for _ in range(2):
            with pytest.raises(TypeError, match="no_such_thing"):
                http.request("GET", "/")


def test_a_connection_class_of_ones_own_is_used(server: Server) -> None:
    class Counted(HTTPConnection):
        made = 0

        def connect(self) -> None:
            Counted.made += 1
            super().connect()

    class Pool(HTTPConnectionPool):
        ConnectionCls = Counted

    with Pool(server.host, server.port) as http:
        assert http.request("GET", "/mine").data == b"/mine"
        assert http.request("GET", "/mine").data == b"/mine"
    assert Counted.made == 1


def test_an_ipv6_host_is_reached(server: Server) -> None:
    with Server(host="::1") as six, HTTPConnectionPool("[::1]", six.port) as http:
        assert http.request("GET", "/six").data == b"/six"
        assert f"http://[::1]:{six.port}" in repr(http.pool)


def test_without_block_there_is_no_limit_and_maxsize_are_kept(
    make: Make, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    ready = threading.Barrier(8)

    def meet(request: Request, wire: Wire) -> None:
        ready.wait(60)
        echo(request, wire)

    http = make(meet, maxsize=3)
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(8) as executor:
        for _ in range(3):
            list(executor.map(lambda number: http.request("GET", f"/{number}"), range(8)))
            until(lambda: settled(http).idle <= 3)
    assert any("Connection pool is full, discarding connection" in record.getMessage() for record in caplog.records)


def test_a_response_of_a_closed_pool_can_still_be_read(make: Make, server: Server) -> None:
    http = make(maxsize=1, block=True)
    response = http.request("GET", "/still-here", preload_content=False)
    http.close()
    assert http.pool is None
    assert response.read() == b"/still-here"
    until(lambda: not server.connected)
    http.close()
