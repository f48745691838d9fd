"""What comes on a connection that nobody has borrowed is nobody's answer."""

from __future__ import annotations

import asyncio
import fcntl
import select
import sys
import termios
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from millpond import Misuse, Pool
from millpond.connectors._tally.pushes import has_only_pushes
from millpond.connectors.redis import Redis
from millpond.testing import Valkey

from .conftest import Face, Front
from .test_proof import PARSERS, make

ANSWER = b"$5\r\nEXTRA\r\n"
PUSH = b">2\r\n$10\r\nsomething\n\r\n$3\r\nnew\r\n"


@pytest.fixture(params=["plain", "tls"])
def front(request: pytest.FixtureRequest, face: Face) -> Iterator[Front]:
    with Front(face.server, tls=request.param == "tls") as front:
        yield front
        # What still leads here would wait for its end.
        face.close_all()


def pool_of(face: Face, front: Front, options: dict[str, Any], **more: Any) -> Any:
    wire: dict[str, Any] = {"host": "localhost", "port": front.port}
    if front.tls:
        kind = redis.SSLConnection if face.world == "threads" else redis.asyncio.SSLConnection
        wire |= {"connection_class": kind, "ssl_ca_data": front.ca}
    return make(face, options, **wire, **more)


def wait_for(conn: Any, face: Face | None = None) -> None:
    """Wait until what the server has said is there."""
    if face is None or face.world == "threads":
        assert select.select([conn._sock], [], [], 10)[0]
    else:
        face.until(lambda: conn._reader._buffer)


@pytest.mark.parametrize("options", PARSERS)
def test_an_answer_that_nobody_asked_for_is_lent_to_nobody(face: Face, front: Front, options: dict[str, Any]) -> None:
    pool = pool_of(face, front, options)
    client = face.client(pool)
    for number in range(3):
        conn = face.borrow(pool)
        former = face.number(conn)
        face.give_back(pool, conn)
        front.say(ANSWER)
        wait_for(conn, face)
        del conn
        assert face.run(client.echo(f"mine {number}")) == f"mine {number}".encode()
        assert face.run(client.client_id()) != former
    assert pool.stats().closes == {"broken": 3}
    assert pool.stats().size == 1


@pytest.mark.parametrize("options", PARSERS)
def test_a_push_message_that_comes_unasked_costs_nothing(face: Face, front: Front, options: dict[str, Any]) -> None:
    heard: list[Any] = []

    async def hear_async(message: Any) -> None:
        heard.append(message)

    pool = pool_of(face, front, options)
    conn = face.borrow(pool)
    resp3 = str(conn.get_protocol()) == "3"
    if resp3:
        conn._parser.set_pubsub_push_handler(heard.append if face.world == "threads" else hear_async)
    former = face.number(conn)
    face.give_back(pool, conn)
    front.say(PUSH)
    wait_for(conn, face)
    del conn
    conn = face.borrow(pool)
    assert face.ask(conn, "ECHO", "mine") == b"mine"
    assert (face.number(conn) == former) is resp3, "RESP2 has no push messages"
    assert len(heard) == resp3
    face.give_back(pool, conn)


TLS_RECORD = 5 + 1 + 16
"""Bytes that a record of TLS 1.3 adds to what it carries."""


@pytest.mark.parametrize("protocol", [{}, {"python": True, "protocol": 3}])
def test_an_answer_that_comes_after_a_push_message_is_lent_to_nobody(
    face: Face, front: Front, protocol: dict[str, Any]
) -> None:
    pool = pool_of(face, front, protocol)
    conn = face.borrow(pool)
    face.give_back(pool, conn)
    front.say(PUSH)
    front.say(ANSWER)
    wanted = len(PUSH + ANSWER)
    if face.world == "threads":
        wanted += 2 * TLS_RECORD if front.tls else 0
        face.until(lambda: unread(conn) >= wanted)
    else:
        face.until(lambda: len(conn._reader._buffer) >= wanted)
    assert face.run(face.client(pool).echo("mine")) == b"mine"


def unread(conn: Any) -> int:
    """Tell how many bytes wait in a socket."""
    return int.from_bytes(fcntl.ioctl(conn._sock, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("protocol", [{}, {"python": True, "protocol": 3}])
def test_an_answer_behind_a_push_message_is_lent_to_nobody(face: Face, front: Front, protocol: dict[str, Any]) -> None:
    pool = pool_of(face, front, protocol)
    for message in (PUSH + ANSWER, PUSH + PUSH + ANSWER[:3]):
        conn = face.borrow(pool)
        face.give_back(pool, conn)
        front.say(message)
        wait_for(conn, face)
        del conn
        assert face.run(face.client(pool).echo("mine")) == b"mine"


def test_an_answer_that_tls_has_decrypted_and_nobody_has_read_is_lent_to_nobody(face: Face) -> None:
    with Front(face.server, tls=True) as front:
        pool = pool_of(face, front, {"protocol": 2}, socket_read_size=1)
        conn = face.borrow(pool)
        front.say(ANSWER + ANSWER)
        assert face.read(conn) == b"EXTRA"
        conn._asked += 1  # as if it had asked for that, and for no more
        face.give_back(pool, conn)
        del conn
        assert face.run(face.client(pool).echo("mine")) == b"mine"
        face.close_all()


class Talkative(asyncio.Protocol):
    """A server that knows one answer, and says too much after a login."""

    logins = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        Talkative.logins += b"SELECT" in data
        # In one piece: what comes later would be for the look before the second loan.
        self._transport.write(b"+OK\r\n" * data.count(b"*") + b"+STRAY\r\n" * (b"SELECT" in data))


@pytest.fixture
def talkative() -> Iterator[int]:
    Talkative.logins = 0
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Talkative, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()


def test_a_server_that_says_too_much_at_the_login_is_an_error_and_not_an_answer(face: Face, talkative: int) -> None:
    pool = face.pool(host="127.0.0.1", port=talkative, protocol=2, db=1, retry=face.retry(1))
    with pytest.raises(redis.ConnectionError, match="nobody asked for"):
        face.borrow(pool)
    assert Talkative.logins < 5
    face.close_all()


def test_a_lease_keeps_its_own_timeout_and_the_loans_are_counted_right(valkey: Valkey) -> None:
    with Front(valkey, tls=False) as front, Pool(Redis(f"redis://localhost:{front.port}"), max_size=1) as pool:
        lease = pool.connection(timeout=20)
        with lease as conn:
            pass
        front.say(ANSWER)
        wait_for(conn)
        with lease as other:
            assert other is not conn
            with pytest.raises(Misuse):
                lease.__enter__()
        assert lease._timeout == 20
        assert pool.stats().borrows == 2
        assert pool.stats().lent == 0


@pytest.mark.parametrize("place", ["_take_in", "hand_on_pushes"])
@pytest.mark.parametrize("options", [{}, {"parser_class": redis._parsers._RESP3Parser}])
def test_a_connection_that_another_thread_closes_during_the_look_is_not_lent(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, place: str, options: dict[str, Any]
) -> None:
    with (
        Front(valkey, tls=False) as front,
        Pool(Redis(f"redis://localhost:{front.port}", **options), max_size=1) as pool,
    ):
        with pool.connection() as conn:
            pass
        front.say(PUSH)
        wait_for(conn)
        method, wire = getattr(conn, place), conn._sock
        assert wire is not None

        def close_first() -> None:
            if place == "_take_in":
                wire.close()
            else:
                conn.disconnect()
            method()

        monkeypatch.setattr(conn, place, close_first)
        with pool.connection() as other:
            assert other is not conn


@pytest.mark.parametrize("place", ["_look", "_take_in"])
def test_a_time_limit_that_strikes_during_the_look_is_not_lost(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def strike(*_: object) -> None:
        raise TimeoutError

    with Front(valkey, tls=False) as front, Pool(Redis(f"redis://localhost:{front.port}"), max_size=1) as pool:
        with pool.connection() as conn:
            pass
        front.say(PUSH)
        wait_for(conn)
        monkeypatch.setattr(conn, place, strike)
        with pytest.raises(TimeoutError), pool.connection():
            pass
        with pool.connection(timeout=20) as other:
            assert other is not conn
            other.send_command("PING")
            assert other.read_response() == b"PONG"


@pytest.mark.parametrize(
    ("data", "pushes"),
    [
        (b"", True),
        (PUSH, True),
        (PUSH * 3, True),
        (PUSH[:5], True),
        (PUSH + b"$", False),
        (PUSH + ANSWER, False),
        (ANSWER, False),
        (b">3\r\n+a\r\n:1\r\n*2\r\n$-1\r\n%1\r\n#t\r\n_\r\n", True),
        (b">1\r\n|1\r\n+k\r\n,1.5\r\n=5\r\ntxt:a\r\n", True),
        (b">1\r\n|1\r\n+k\r\n,1.5\r\n=5\r\ntxt:a\r\n+OK\r\n", False),
        (b">1\r\n!5\r\nERR a\r\n>1\r\n~1\r\n(12345678901234567890\r\n", True),
        (b">x\r\n", False),
        (b">1\r\nwhat\r\n", False),
    ],
)
def test_push_messages_are_told_from_answers(data: bytes, pushes: bool) -> None:
    assert has_only_pushes(data) is pushes


def test_a_caller_is_not_kept_waiting_by_many_such_connections(face: Face) -> None:
    with Front(face.server, tls=False) as front:
        pool = face.pool("BlockingConnectionPool", host="localhost", port=front.port, max_connections=5, timeout=5)
        conns = [face.borrow(pool) for _ in range(5)]
        for conn in conns:
            face.give_back(pool, conn)
        front.say(ANSWER)
        for conn in conns:
            wait_for(conn, face)
        del conn, conns
        assert face.run(face.client(pool).echo("mine")) == b"mine"
        assert pool.stats().closes == {"broken": 5}
        assert pool.stats().timeouts == 0
        face.close_all()


@pytest.mark.parametrize("kind", ["ConnectionPool", "BlockingConnectionPool"])
def test_a_listener_hears_of_one_loan_when_something_had_come(face: Face, kind: str) -> None:
    with Front(face.server, tls=False) as front:
        pool = face.pool(kind, host="localhost", port=front.port, max_connections=1)
        heard: list[str] = []
        conn = face.borrow(pool)
        pool._lender.listen(lambda event: heard.append(type(event).__name__))
        face.give_back(pool, conn)
        front.say(ANSWER)
        wait_for(conn, face)
        del conn
        assert face.run(face.client(pool).echo("mine")) == b"mine"
        assert [name for name in heard if name in ("ConnectionLent", "ConnectionReturned")] == [
            "ConnectionLent",
            "ConnectionReturned",
        ]
        face.close_all()


def test_a_server_that_hung_up_is_noticed_by_the_look_before_the_watcher_tells(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millpond._watcher.watch", lambda *_: None)
    with Pool(Redis(valkey.url), max_size=1) as pool, redis.Redis(host=valkey.host, port=valkey.port) as boss:
        with pool.connection() as conn:
            conn.send_command("CLIENT", "ID")
            number = conn.read_response()
        boss.client_kill_filter(_id=number)
        wait_for(conn)
        with pool.connection() as other:
            assert other is not conn
            other.send_command("PING")
            assert other.read_response() == b"PONG"
