"""A body that is read after `release_conn()` is the body, or an error that says so; never a short one."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import socket
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import requests
import urllib3
from urllib3.exceptions import ProtocolError

from millpond.requests import HTTPAdapter
from millpond.urllib3 import HTTPConnectionPool
from millpond.urllib3._replies import Reply, _end_of_chunks, _Noted

from .conftest import Make
from .patience import settled, until
from .servers import Request, Server, Wire, chunked, echo, plain

BODY = json.dumps({"rows": list(range(100))}).encode()
PACKED = gzip.compress(BODY)
CLOSE = {"Connection": "close"}
HEAD = b"HTTP/1.1 200 OK\r\n"

REPLIES = {
    "length": plain(BODY),
    "chunks": chunked(BODY[:9], BODY[9:]),
    "trailers": chunked(BODY[:9], BODY[9:], trailer=b"Sum: 1\r\nOther: 2\r\n"),
    "extensions": HEAD + b"Transfer-Encoding: chunked\r\n\r\n%X;a=b\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "gzip": plain(PACKED, headers={"Content-Encoding": "gzip"}),
    "closed after it": plain(BODY, headers=CLOSE),
    "ended by the close": HEAD + b"Connection: close\r\n\r\n" + BODY,
}


def by(read: Callable[[int], bytes]) -> bytes:
    return b"".join(iter(lambda: read(7), b""))


def into(response: Any) -> bytes:
    room = bytearray(7)
    return b"".join(iter(lambda: bytes(room[: response.readinto(room)]), b""))


def copied(response: Any) -> bytes:
    to = io.BytesIO()
    shutil.copyfileobj(response, to, 7)
    return to.getvalue()


READINGS: dict[str, Callable[[Any], bytes]] = {
    "read": lambda response: response.read(),
    "read(n)": lambda response: by(response.read),
    "read1": lambda response: by(response.read1),
    "readinto": into,
    "stream": lambda response: b"".join(response.stream(7)),
    "data": lambda response: response.data,
    "json": lambda response: json.dumps(response.json()).encode(),
    "lines": lambda response: b"".join(response),
    "copyfileobj": copied,
}
if not hasattr(urllib3.HTTPResponse, "read1"):  # before 2.1
    del READINGS["read1"]


_unpacked = urllib3.HTTPResponse(io.BytesIO(PACKED), {"Content-Encoding": "gzip"}, preload_content=False)
FINISHES = _unpacked.read(5) + _unpacked.read() == BODY
"""Whether urllib3's `read()` after `read(5)` has all the rest; before 2.1 it forgot what it had unpacked."""


def fetch(http: HTTPConnectionPool) -> urllib3.HTTPResponse:
    response = http.request("GET", "/", preload_content=False, retries=False, pool_timeout=30)
    assert isinstance(response, urllib3.HTTPResponse)
    return response


def answer_with(reply: bytes, rest: threading.Event | None = None, cut: int = 40) -> Callable[[Request, Wire], None]:
    """Answer "/" so, and hang up if the reply says so; all but the last bytes at once, these when the event is set."""

    def answer(request: Request, wire: Wire) -> None:
        if request.target != "/":
            echo(request, wire)
            return
        wire.send(reply if rest is None else reply[:-cut])
        if rest is not None:
            rest.wait(60)
            wire.send(reply[-cut:])
        if b"Connection: close" in reply:
            wire.hang_up()

    return answer


@pytest.mark.parametrize("kind", REPLIES)
@pytest.mark.parametrize("begun", [0, 5], ids=["unread", "begun"])
def test_a_body_that_has_come_can_be_read_after_its_connection_was_given_back(
    make: Make, server: Server, kind: str, begun: int
) -> None:
    reply = REPLIES[kind]
    closes = b"Connection: close" in reply
    http = make(answer_with(reply), maxsize=1, block=True)
    for reading, read in READINGS.items():
        if begun and (reading == "json" or (reading in ("stream", "lines") and b"chunked" in reply)):
            continue  # urllib3 cannot do this either
        if begun and kind == "gzip" and reading in ("read", "data") and not FINISHES:
            continue
        response = fetch(http)
        start = response.read(begun) if begun else b""
        response.release_conn()
        # The connection serves others meanwhile.
        assert http.request("GET", "/other", retries=False, pool_timeout=30).data == b"/other"
        assert start + read(response) == BODY, reading
        assert settled(http).lent == 0
        if not closes:
            assert server.accepted == 1, reading


@pytest.mark.parametrize("kind", [kind for kind, reply in REPLIES.items() if b"Connection: close" not in reply])
def test_a_body_that_is_cut_is_an_error(make: Make, server: Server, kind: str) -> None:
    for reading, read in READINGS.items():
        rest = threading.Event()
        http = make(answer_with(REPLIES[kind], rest), maxsize=1, block=True)
        response = fetch(http)
        response.release_conn()
        try:
            with pytest.raises(ProtocolError, match="gave the connection back before the body had been read"):
                pytest.fail(f"{reading}: {read(response)!r}")
        finally:
            rest.set()
        assert http.request("GET", "/other", retries=False, pool_timeout=30).data == b"/other"


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut"])
@pytest.mark.parametrize("amount", [4, 9, 100])
def test_a_stream_that_has_begun_goes_on_or_says_that_it_is_cut(
    make: Make, server: Server, amount: int, whole: bool
) -> None:
    rest = threading.Event()
    http = make(answer_with(REPLIES["trailers"], None if whole else rest), maxsize=1, block=True)
    response = http.request("GET", "/", preload_content=False)
    pieces = response.stream(amount)
    start = next(pieces)
    response.release_conn()
    try:
        if whole:
            assert start + b"".join(pieces) == BODY
            assert http.request("GET", "/other", retries=False, pool_timeout=30).data == b"/other"
            assert server.accepted == 1
        else:
            with pytest.raises(ProtocolError, match="gave the connection back"):
                b"".join(pieces)
    finally:
        rest.set()


@pytest.mark.parametrize("come", [True, False])
def test_a_body_is_given_back_between_its_last_chunk_and_its_trailers(come: bool) -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nSum: 1\r\n")
        reply = Reply(near)
        reply.begin()
        reply.note_readers()
        assert [reply.fp.readline() for _ in range(3)] == [b"5\r\n", b"hello\r\n", b"0\r\n"]
        if come:
            far.sendall(b"\r\n")
        rest = reply.part(0)
        assert rest is not None
        assert (rest.clean, rest.hopeful) == (come, not come)
        if not come:
            far.sendall(b"\r\n")
            rest.take()
        assert rest.clean


def test_a_response_that_was_given_back_takes_nothing_of_the_next_one(make: Make, server: Server) -> None:
    rest, asked, told = threading.Event(), threading.Event(), threading.Event()

    def answer(request: Request, wire: Wire) -> None:
        if request.target == "/":
            answer_with(REPLIES["length"], rest)(request, wire)
        else:
            asked.set()
            told.wait(60)
            echo(request, wire)

    http = make(answer, maxsize=1, block=True)
    first = http.request("GET", "/", preload_content=False)
    first.release_conn()
    rest.set()
    bodies: list[bytes] = []
    other = threading.Thread(target=lambda: bodies.append(http.request("GET", "/2", pool_timeout=30).data))
    other.start()
    asked.wait(60)
    with pytest.raises(ProtocolError, match="gave the connection back"):
        first.read()
    first.close()
    told.set()
    other.join(60)
    assert bodies == [b"/2"]


def test_a_response_can_be_given_back_while_another_thread_reads_it(make: Make, server: Server) -> None:
    rest = threading.Event()
    http = make(answer_with(REPLIES["length"], rest), maxsize=1, block=True)
    for _ in range(20):
        rest.clear()
        response = fetch(http)
        told: list[object] = []

        def read(response: Any = response, told: list[object] = told) -> None:
            try:
                told.append(response.read())
            except ProtocolError:
                told.append("cut")

        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: response._original_response.fp.reader is not None)  # type: ignore[union-attr]  # noqa: B023
        response.release_conn()  # it waits for nobody
        assert http.request("GET", "/other", retries=False, pool_timeout=30).data == b"/other"
        rest.set()
        reader.join(60)
        assert told in ([BODY], ["cut"])


@pytest.mark.parametrize("order", ["read, then stream", "stream, then read"])
@pytest.mark.parametrize("inside", [b"abc2\r\nXX\r\n0\r\n\r\n", b"abc0\r\n\r\n"], ids=["a chunk", "none"])
def test_a_chunk_that_two_readers_share_is_an_error_and_no_reply_of_the_next(
    make: Make, server: Server, order: str, inside: bytes
) -> None:
    # What a user may have stored: within one chunk it looks like another, the end of the body, and a reply.
    body = inside + plain(b"stolen")

    def answer(request: Request, wire: Wire) -> None:
        if request.target == "/":
            wire.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (len(body), inside))
            asked.wait(60)
            wire.send(body[len(inside) :] + b"\r\n0\r\n\r\n")
        else:
            asked.set()
            echo(request, wire)

    asked = threading.Event()
    http = make(answer, maxsize=1, block=True)
    response = fetch(http)
    # What urllib3 takes for the last chunk, nobody asks http.client about. That costs the connection.
    unseen = order == "read, then stream" and inside == b"abc0\r\n\r\n"
    with nullcontext() if unseen else pytest.raises(ProtocolError, match="have both begun to read one chunk"):
        if order == "read, then stream":
            assert response.read(3) == b"abc"
            list(response.stream())
        else:
            pieces = response.stream(3)
            assert next(pieces) == b"abc"
            response.read()
    asked.set()
    assert http.request("GET", "/right", retries=False, pool_timeout=30).data == b"/right"
    assert server.accepted == 2


def test_what_is_not_known_of_a_body_is_no_proof() -> None:
    def begun(data: bytes) -> tuple[Any, Any]:
        far.sendall(HEAD + data)
        reply = Reply(near)
        reply.begin()
        reply.note_readers()
        return reply, reply.fp

    for data in (b"Content-Length: 0\r\n\r\nmore", b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc\r\n"):
        near, far = socket.socketpair()
        with near, far:
            reply, noted = begun(data)
            if reply.chunked:
                assert reply.read(3) == b"abc"
                rest = reply.part(0)  # urllib3 says that it has seen the last chunk
            else:
                noted.reader = -1  # another thread
                rest = reply.part(None)
            assert not rest.clean
            assert not rest.hopeful
            with pytest.raises(ConnectionError, match="gave the connection back"):
                noted.read(1)


def test_a_file_that_somebody_has_put_in_its_place_is_no_proof(make: Make, server: Server) -> None:
    http = make(maxsize=1, block=True)
    response: Any = fetch(http)
    response._fp.fp = io.BufferedReader(response._fp.fp.file)
    response.release_conn()
    with pytest.raises(ProtocolError, match="gave the connection back"):
        response.read()
    assert http.request("GET", "/other", retries=False, pool_timeout=30).data == b"/other"
    assert server.accepted == 2


def test_the_file_of_a_body_can_be_used_as_one(make: Make) -> None:
    http = make(answer_with(plain(b"one\ntwo\n", headers=CLOSE)), maxsize=1, block=True)
    response: Any = fetch(http)
    assert [*response._original_response.fp] == [b"one\n", b"two\n"]
    assert response.fileno() >= 0
    response.close()
    with _Noted(io.BufferedReader(io.BytesIO(b"one"))) as file:
        assert (file.readable(), file.peek(1), file.read1(2), file.readinto(bytearray(2))) == (True, b"one", b"on", 1)
    assert file.closed


def test_another_protocol_is_no_reply_that_has_ended(make: Make, server: Server) -> None:
    def answer(request: Request, wire: Wire) -> None:
        wire.send(b"HTTP/1.1 101 Switching\r\n\r\n" if request.target == "/" else plain(b"/right"))

    http = make(answer, maxsize=1, block=True)
    http.request("GET", "/", preload_content=False).release_conn()
    assert http.request("GET", "/right", retries=False, pool_timeout=30).data == b"/right"
    assert server.accepted == 2


def test_chunks_may_be_read_by_one_reader_after_the_other(make: Make, server: Server) -> None:
    http = make(answer_with(REPLIES["chunks"]), maxsize=1, block=True)
    for _ in range(2):
        response = fetch(http)
        pieces = response.stream(100)
        assert next(pieces) + response.read() == BODY
    assert server.accepted == 1


@pytest.mark.parametrize("head", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_the_reply_to_a_head_has_nothing_left(make: Make, server: Server, head: bytes) -> None:
    http = make(lambda _, wire: wire.send(HEAD + head + b"\r\n\r\n"), maxsize=1, block=True)
    for _ in range(3):
        response = http.request("HEAD", "/", preload_content=False)
        response.release_conn()
        assert response.read() == b""
    assert server.accepted == 1


def test_what_follows_a_body_costs_the_connection_and_not_the_body(make: Make, server: Server) -> None:
    http = make(answer_with(plain(BODY) + plain(b"stolen")), maxsize=1, block=True)
    response = http.request("GET", "/", preload_content=False)
    response.release_conn()
    assert response.read() == BODY
    assert http.request("GET", "/other", retries=False, pool_timeout=30).data == b"/other"
    assert server.accepted == 2


@pytest.mark.parametrize("kind", ["closed after it", "ended by the close"])
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_body_after_which_the_server_closes_is_the_responses_own(
    make: Make, server: Server, kind: str, size: int
) -> None:
    rest = threading.Event()
    reply = REPLIES[kind].replace(BODY, b"x" * size).replace(b"%d" % len(BODY), b"%d" % size)
    http = make(answer_with(reply, rest, size // 2), maxsize=1, block=True)
    response = fetch(http)
    response.release_conn()
    assert http.request("GET", "/other", retries=False, pool_timeout=30).data == b"/other"
    rest.set()
    assert response.read() == b"x" * size


@pytest.mark.parametrize("kind", ["length", "chunks"])
def test_requests_learns_of_it_too(server: Server, kind: str) -> None:
    rest = threading.Event()
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", HTTPAdapter(pool_maxsize=1, pool_block=True, pool_timeout=30))
        server.answer = answer_with(REPLIES[kind])
        response = session.get(server.url, stream=True)
        response.raw.release_conn()
        assert response.content == BODY
        server.answer = answer_with(REPLIES[kind], rest)
        response = session.get(server.url, stream=True)
        response.raw.release_conn()
        with pytest.raises(requests.exceptions.ChunkedEncodingError, match="gave the connection back"):
            response.content  # noqa: B018
        rest.set()


CHUNKS = b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\nSum: 1\r\n\r\n"


def test_the_end_of_chunks_is_found_when_all_have_come_and_not_before() -> None:
    for length in range(len(CHUNKS)):
        assert _end_of_chunks(CHUNKS[:length], None) is None
    assert _end_of_chunks(CHUNKS, None) == len(CHUNKS)
    assert _end_of_chunks(CHUNKS + b"HTTP/1.1 200 OK\r\n", None) == len(CHUNKS)
    # In the midst of a chunk, and at its end.
    assert _end_of_chunks(CHUNKS[5:], 3) == len(CHUNKS) - 5
    assert _end_of_chunks(CHUNKS[8:], 0) == len(CHUNKS) - 8


@pytest.mark.parametrize(
    "chunks",
    [
        b"0\n\n",
        b"0\r\n\n",
        b"+0\r\n\r\n",
        b"0x0\r\n\r\n",
        b"-1\r\n\r\n0\r\n\r\n",
        b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b" 0\r\n\r\n",
        b"fffffffff\r\n",
        b"0\r\nSum: 1\n\r\n",
    ],
)
def test_chunks_that_two_readers_may_take_for_two_things_prove_nothing(chunks: bytes) -> None:
    assert _end_of_chunks(chunks, None) is None
