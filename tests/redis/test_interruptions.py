"""A command that is interrupted anywhere gives nobody another's reply and loses no slot."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from benchmarks import redis_interruptions

import millpond.redis
import millpond.redis.asyncio
from millpond.testing import Valkey

from ..promises import places
from ..promises.test_cancellation_at_any_await import WAYS, Cut

SIZE = 2


@pytest.mark.parametrize("kind", [millpond.redis.ConnectionPool, millpond.redis.BlockingConnectionPool])
@pytest.mark.parametrize("protocol", [2, 3])
def test_commands_interrupted_by_signals(kind: Any, protocol: int) -> None:
    outcome = redis_interruptions.interrupt(kind, 300, protocol=protocol)
    assert outcome.wrong == 0
    assert outcome.usable == redis_interruptions.SIZE


def struck_command(client: redis.Redis) -> None:
    assert client.echo("struck") == b"struck"


def struck_transaction(client: redis.Redis) -> None:
    with client.pipeline() as pipe:
        queue_up(pipe)
        assert pipe.execute() == [True, b"1", 2]


def struck_pipeline(client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipe:
        queue_up(pipe)
        assert pipe.execute() == [True, b"1", 2]


def struck_watch(client: redis.Redis) -> None:
    with client.pipeline() as pipe:
        pipe.watch("watched")
        pipe.multi()
        pipe.set("watched", "1")
        pipe.execute()


def struck_login(client: redis.Redis) -> None:
    conn = client.connection_pool.get_connection()
    try:
        conn.disconnect()
        conn.send_command("ECHO", "struck")
        assert conn.read_response() == b"struck"
    finally:
        client.connection_pool.release(conn)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # redis-py, struck, may drop a socket
@pytest.mark.parametrize(
    ("work", "protocol"),
    [
        (struck_command, 2),
        (struck_command, 3),
        (struck_transaction, 3),
        (struck_pipeline, 2),
        (struck_watch, 3),
        (struck_login, 3),
    ],
)
def test_an_exception_at_any_place_of_redis_pys_code_or_millponds(
    valkey: Valkey, work: Callable[[redis.Redis], None], protocol: int, monkeypatch: pytest.MonkeyPatch, thorough: bool
) -> None:
    ours = (places.PACKAGE, str(Path(redis.__file__).parent))
    monkeypatch.setattr(places, "_is_ours", lambda code: code.co_filename.startswith(ours))
    if sys.version_info >= (3, 12):
        sys.monitoring.restart_events()  # what was none of ours is now
    pool = millpond.redis.BlockingConnectionPool(
        host=valkey.host, port=valkey.port, max_connections=SIZE, timeout=30, protocol=protocol
    )
    client = redis.Redis(connection_pool=pool)

    def strike() -> None:
        raise places.Stop

    def verify() -> None:
        for turn in range(2):
            conns = [pool.get_connection() for _ in range(SIZE)]
            for number, conn in enumerate(conns):
                conn.send_command("ECHO", f"{turn} {number}")
                assert conn.read_response() == f"{turn} {number}".encode()
            for conn in conns:
                pool.release(conn)

    verify()
    step = 1 if thorough else 4 + protocol
    number = 1 - step
    reached = True
    while reached:
        number += step
        place = places.Places(number, strike)
        with places.finalisers_cut(places.Stop), suppress(places.Stop), place:
            work(client)
        verify()
        reached = place.reached
    assert number > 50
    pool.close()


Work = Callable[[redis.asyncio.Redis], Awaitable[object]]


async def command(client: redis.asyncio.Redis) -> None:
    assert await client.echo("cut") == b"cut"


def queue_up(pipe: Any) -> None:
    pipe.set("cut", "1").get("cut").incr("cut")


async def transaction(client: redis.asyncio.Redis) -> None:
    async with client.pipeline() as pipe:
        queue_up(pipe)
        assert await pipe.execute() == [True, b"1", 2]


async def pipeline(client: redis.asyncio.Redis) -> None:
    async with client.pipeline(transaction=False) as pipe:
        queue_up(pipe)
        assert await pipe.execute() == [True, b"1", 2]


async def watch(client: redis.asyncio.Redis) -> None:
    async with client.pipeline() as pipe:
        await pipe.watch("watched")
        await pipe.get("watched")
        pipe.multi()
        pipe.set("watched", "1")
        await pipe.execute()


async def pubsub(client: redis.asyncio.Redis) -> None:
    async with client.pubsub() as subscriber:
        await subscriber.subscribe("one", "two")
        await subscriber.get_message(timeout=1)


async def lock(client: redis.asyncio.Redis) -> None:
    async with client.lock("lock", timeout=0.05, blocking_timeout=1):
        pass


async def blocking(client: redis.asyncio.Redis) -> None:
    await client.blpop(["nothing"], timeout=0.005)


async def verify(client: redis.asyncio.Redis) -> None:
    """Have every connection answer twice."""

    async def ask(number: int) -> None:
        assert await client.echo(f"{number}") == b"%d" % number

    for _ in range(2):
        await asyncio.gather(*(ask(number) for number in range(SIZE)))


@pytest.mark.parametrize("work", [command, transaction, pipeline, watch, pubsub, lock, blocking])
@pytest.mark.parametrize(("when", "times"), WAYS)
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_a_command_cancelled_at_any_await(valkey: Valkey, work: Work, when: str, times: int, warm: bool) -> None:
    async def main() -> None:
        suspension = 0
        seen = 1
        while seen > suspension:
            suspension += 1
            pool = millpond.redis.asyncio.BlockingConnectionPool(
                host=valkey.host, port=valkey.port, max_connections=SIZE, timeout=5
            )
            client = redis.asyncio.Redis(connection_pool=pool)
            if warm:
                await verify(client)
            cut = Cut(work(client), when, range(suspension, suspension + times))  # type: ignore[arg-type]

            async def drive(cut: Cut = cut) -> None:
                await cut

            task = asyncio.create_task(drive())
            with suppress(asyncio.CancelledError, redis.RedisError):
                await task
            seen = cut.seen
            await verify(client)
            stats = pool.stats()
            assert (stats.lent, stats.waiting) == (0, 0)
            await pool.aclose()

    asyncio.run(asyncio.wait_for(main(), 100))


def test_a_storm_of_cancellations(valkey: Valkey) -> None:
    async def main() -> None:
        async with millpond.redis.asyncio.BlockingConnectionPool(
            host=valkey.host, port=valkey.port, max_connections=5
        ) as pool:
            client = redis.asyncio.Redis(connection_pool=pool)

            async def ask(number: int) -> None:
                assert await client.echo(f"{number}") == b"%d" % number

            for _ in range(20):
                tasks = [asyncio.create_task(ask(number)) for number in range(50)]
                for task in tasks:
                    if random.random() < 0.7:
                        asyncio.get_running_loop().call_later(random.uniform(0, 0.005), task.cancel)
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    assert outcome is None or isinstance(outcome, asyncio.CancelledError)
            conns = [await pool.get_connection() for _ in range(5)]
            for conn in conns:
                await pool.release(conn)

    asyncio.run(asyncio.wait_for(main(), 100))
