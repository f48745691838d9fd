"""What millpond promises of every pool, kept by those for redis-py: fairness, forks, loops, push messages."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest
import redis
import redis.asyncio

import millpond
import millpond.redis
import millpond.redis.asyncio
from millpond.connectors.redis import AsyncRedis
from millpond.testing import Proxy, Valkey

from .conftest import Face
from .test_proof import PARSERS, make


def test_those_who_wait_are_served_in_the_order_in_which_they_came(face: Face) -> None:
    pool = face.pool("BlockingConnectionPool", max_connections=1, timeout=60)
    conn = face.borrow(pool)
    order: list[int] = []
    if face.world == "threads":

        def borrow(number: int) -> None:
            got = pool.get_connection()
            order.append(number)
            pool.release(got)

        threads = [threading.Thread(target=borrow, args=(number,)) for number in range(10)]
        for number, thread in enumerate(threads):
            thread.start()
            face.until(lambda number=number: pool.stats().waiting == number + 1)  # type: ignore[misc]
        face.give_back(pool, conn)
        for thread in threads:
            thread.join()
    else:

        async def borrow_in_a_task(number: int) -> None:
            got = await pool.get_connection()
            order.append(number)
            await pool.release(got)

        async def borrow_all() -> None:
            tasks = [asyncio.create_task(borrow_in_a_task(number)) for number in range(10)]
            while pool.stats().waiting < 10:
                await asyncio.sleep(0)
            await pool.release(conn)
            await asyncio.gather(*tasks)

        face.run(borrow_all())
    assert order == list(range(10))


# Push messages.


@pytest.mark.parametrize("options", [each for each in PARSERS if "resp3" in str(each.id)])
def test_push_messages_are_no_dirt(face: Face, options: dict[str, Any]) -> None:
    heard: list[Any] = []

    def log_in(conn: Any) -> None:
        conn.on_connect()
        conn.send_command("CLIENT", "TRACKING", "ON", "BCAST")
        conn.read_response()
        conn._parser.set_invalidation_push_handler(heard.append)

    async def log_in_async(conn: Any) -> None:
        async def hear(message: Any) -> None:
            heard.append(message)

        await conn.on_connect()
        await conn.send_command("CLIENT", "TRACKING", "ON", "BCAST")
        await conn.read_response()
        conn._parser.set_invalidation_push_handler(hear)

    pool = make(face, options, redis_connect_func=log_in if face.world == "threads" else log_in_async)
    client = face.client(pool)
    number = face.run(client.client_id())
    with redis.Redis(host=face.server.host, port=face.server.port) as other:
        for turn in range(20):
            other.set("pushed", turn)  # in the socket of an idle connection
            assert face.run(client.get("pushed")) == b"%d" % turn
            pipe = client.pipeline(transaction=False)
            pipe.set("pushed", "mine").echo("x").set("pushed", "again").echo(turn)  # behind the last reply, maybe
            assert face.run(pipe.execute())[-1] == b"%d" % turn
    assert face.run(client.client_id()) == number
    face.until(lambda: len(heard) > 20)
    assert pool.stats().closes == {}


def test_an_answer_that_nobody_asked_for_is_no_push_message(face: Face) -> None:
    pool = face.pool(max_connections=1)
    conn = face.borrow(pool)
    number = face.number(conn)
    # Two answers to what is taken for one command.
    face.run(conn.send_packed_command([b"*1\r\n$4\r\nPING\r\n", b"*1\r\n$4\r\nPING\r\n"]))
    conn._asked -= 1
    if face.world == "threads":
        face.until(lambda: len(conn._sock.recv(100, socket.MSG_PEEK)) == len("+PONG..+PONG.."))
    face.read(conn)
    face.until(lambda: conn._unread())
    face.give_back(pool, conn)
    del conn
    conn = face.borrow(pool)
    assert face.ask(conn, "ECHO", "mine") == b"mine"
    assert face.number(conn) != number
    face.give_back(pool, conn)


# Forks.

FORKING = """
import json, os, sys, redis, millpond.redis
pool = millpond.redis.BlockingConnectionPool(host=sys.argv[1], port=int(sys.argv[2]), max_connections=3, timeout=10)
client = redis.Redis(connection_pool=pool)
lone = redis.Redis(connection_pool=pool, single_connection_client=True)
mine = [client.client_id(), lone.client_id()]
reader, writer = os.pipe()
child = os.fork()
if not child:
    ids = [client.client_id(), client.echo("child").decode()]
    pool.release(lone.connection)
    lone.connection = None
    client.close()
    pool.close()
    os.write(writer, json.dumps(ids).encode())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
theirs = json.loads(os.read(reader, 1000))
print(json.dumps({"before": mine, "child": theirs, "after": [client.client_id(), lone.client_id()]}))
lone.close()
pool.close()
"""


def test_a_forked_child_has_connections_of_its_own(valkey: Valkey) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING, valkey.host, str(valkey.port)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert said["after"] == said["before"]
    assert said["child"][0] not in said["before"]
    assert said["child"][1] == "child"


# Loops.


def test_a_pool_is_used_in_one_loop_after_the_other(valkey: Valkey) -> None:
    pool = millpond.redis.asyncio.ConnectionPool(host=valkey.host, port=valkey.port)
    client: Any = redis.asyncio.Redis(connection_pool=pool)
    numbers: set[int] = set()

    async def close() -> None:
        await client.ping()
        await pool.aclose()

    with warnings.catch_warnings():
        # Nobody has closed the connections of a loop that ended, and asyncio says so.
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(3):
            numbers.add(asyncio.run(client.client_id()))
        asyncio.run(close())
        gc.collect()
    assert len(numbers) == 3


def test_a_pool_of_a_loop_that_runs_is_not_for_another(valkey: Valkey) -> None:
    pool = millpond.redis.asyncio.ConnectionPool(host=valkey.host, port=valkey.port)

    async def main() -> None:
        client: Any = redis.asyncio.Redis(connection_pool=pool)
        assert await client.ping()

        def elsewhere() -> None:
            with pytest.raises(millpond.Misuse, match="belongs to the event loop that first used it"):
                asyncio.run(client.ping())

        await asyncio.to_thread(elsewhere)
        await pool.aclose()

    asyncio.run(main())


class Own(redis.asyncio.Connection):
    """One with a way of its own to send."""

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        await super().send_packed_command(command, check_health)


@pytest.mark.parametrize("kind", [redis.asyncio.Connection, Own])
@pytest.mark.parametrize("packed", [False, True])
def test_a_command_on_a_connection_that_was_just_reset_leaves_nothing_with_the_loop(
    valkey: Valkey, kind: type[redis.asyncio.Connection], *, packed: bool
) -> None:
    """What it left would be taken for that of the next socket of this number, whose connecting would never end."""

    async def main(connector: AsyncRedis, proxy: Proxy) -> None:
        conn = await connector.open(60)
        writer = conn._writer
        assert writer is not None
        number = writer.get_extra_info("socket").fileno()
        proxy.reset()  # in the loop's own thread, which hears of it afterwards
        while not writer.transport.is_closing():
            await asyncio.sleep(0)
        assert writer.get_extra_info("socket").fileno() == number, "it is to be lost, and not closed yet"
        with pytest.raises(redis.ConnectionError):
            if packed:
                await conn.send_packed_command(conn.pack_command("PING"))
            else:
                await conn.send_command("PING")
        while writer.get_extra_info("socket").fileno() >= 0:
            await asyncio.sleep(0)
        assert not asyncio.get_running_loop().remove_writer(number)
        connector.abandon(conn)

    with Proxy("127.0.0.1", valkey.port) as proxy:
        asyncio.run(main(AsyncRedis(lambda: kind(host=proxy.host, port=proxy.port)), proxy))
