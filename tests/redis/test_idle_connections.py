"""What comes on a connection that nobody has borrowed is nobody's answer."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from millpond import Pool
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


def wait_for(face: Face, conn: Any) -> None:
    """Wait until what the server has said is there."""
    if face.world == "threads":
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
        wait_for(face, conn)
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
    wait_for(face, conn)
    del conn
    conn = face.borrow(pool)
    assert face.ask(conn, "ECHO", "mine") == b"mine"
    assert (face.number(conn) == former) is resp3, "RESP2 has no push messages"
    assert len(heard) == resp3
    face.give_back(pool, conn)


def test_a_caller_is_not_kept_waiting_by_many_such_connections(face: Face) -> None:
    with Front(face.server, tls=False) as front:
        pool = face.pool("BlockingConnectionPool", host="localhost", port=front.port, max_connections=5, timeout=5)
        conns = [face.borrow(pool) for _ in range(5)]
        for conn in conns:
            face.give_back(pool, conn)
        front.say(ANSWER)
        for conn in conns:
            wait_for(face, conn)
        del conn, conns
        assert face.run(face.client(pool).echo("mine")) == b"mine"
        assert pool.stats().closes == {"broken": 5}
        assert pool.stats().timeouts == 0
        face.close_all()


def test_a_listener_hears_of_one_loan_when_something_had_come(valkey: Valkey) -> None:
    with Front(valkey, tls=False) as front, Pool(Redis(f"redis://localhost:{front.port}"), max_size=1) as pool:
        heard: list[str] = []
        with pool.connection() as conn:
            pass
        pool.listen(lambda event: heard.append(type(event).__name__))
        front.say(ANSWER)
        assert select.select([conn._sock], [], [], 10)[0]
        with pool.connection() as other:
            assert other is not conn
        assert [name for name in heard if name in ("ConnectionLent", "ConnectionReturned")] == [
            "ConnectionLent",
            "ConnectionReturned",
        ]


def test_a_server_that_hung_up_is_noticed_by_the_look_before_the_watcher_tells(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millpond._watcher.watch", lambda *_: None)
    with Pool(Redis(valkey.url), max_size=1) as pool, redis.Redis(host=valkey.host, port=valkey.port) as boss:
        with pool.connection() as conn:
            conn.send_command("CLIENT", "ID")
            number = conn.read_response()
        boss.client_kill_filter(_id=number)
        assert select.select([conn._sock], [], [], 10)[0]
        with pool.connection() as other:
            assert other is not conn
            other.send_command("PING")
            assert other.read_response() == b"PONG"
