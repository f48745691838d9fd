"""Everything that redis-py's clients do with a pool works on millpond's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from .conftest import Face


@pytest.fixture
def pool(face: Face) -> Iterator[Any]:
    made = face.pool("BlockingConnectionPool", max_connections=3, timeout=20)
    yield made
    face.until(lambda: made.stats().lent == 0)
    face.until(lambda: made.stats().resetting + made.stats().closing == 0)


def assert_sound(face: Face, pool: Any) -> None:
    """Have all connections answer."""
    conns = [face.borrow(pool) for _ in range(pool.max_connections)]
    for number, conn in enumerate(conns):
        assert face.ask(conn, "ECHO", number) == b"%d" % number
    for conn in conns:
        face.give_back(pool, conn)


def test_commands(face: Face, pool: Any) -> None:
    client = face.client(pool)
    assert face.run(client.set("key", "value"))
    assert face.run(client.get("key")) == b"value"
    assert face.run(client.mget(["key", "none"])) == [b"value", None]
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        face.run(client.lpush("key", "x"))
    assert pool.stats().opens == 1


def test_pipelines(face: Face, pool: Any) -> None:
    client = face.client(pool)
    for transaction in (True, False):
        pipe = client.pipeline(transaction=transaction)
        pipe.set("n", 1).incr("n").lpush("n", "x").get("n")
        with pytest.raises(redis.ResponseError, match="Command # 3"):
            face.run(pipe.execute())
        pipe.set("n", 1).incr("n").lpush("n", "x").get("n")
        replies = face.run(pipe.execute(raise_on_error=False))
        assert replies[:2] == [True, 2] and isinstance(replies[2], redis.ResponseError) and replies[3] == b"2"
    pipe = client.pipeline()
    for number in range(5_000):
        pipe.set("n", f"{number:0100}")
    assert len(face.run(pipe.execute())) == 5_000
    assert pool.stats().opens == 1


def test_optimistic_transactions(face: Face, pool: Any) -> None:
    client = face.client(pool)
    face.run(client.set("watched", 1))
    pipe = client.pipeline()
    face.run(pipe.watch("watched"))
    face.run(client.set("watched", 2))
    pipe.multi()
    pipe.set("watched", 3)
    with pytest.raises(redis.WatchError):
        face.run(pipe.execute())
    assert face.run(client.get("watched")) == b"2"
    face.run(pipe.watch("watched"))
    face.run(pipe.reset())
    assert_sound(face, pool)


def test_an_abandoned_watch(face: Face, pool: Any) -> None:
    if face.world == "tasks":
        pytest.skip("redis-py itself complains of it")
    client = face.client(pool)
    pipe = client.pipeline()
    face.run(pipe.watch("watched"))
    del pipe
    face.until(lambda: pool.stats().lent == 0)
    assert_sound(face, pool)


def test_locks(face: Face, pool: Any) -> None:
    client = face.client(pool)
    lock = client.lock("lock", timeout=5)
    assert face.run(lock.acquire())
    assert not face.run(client.lock("lock").acquire(blocking=False))
    face.run(lock.extend(1))
    face.run(lock.release())
    assert pool.stats().opens == 1


def test_scripts(face: Face, pool: Any) -> None:
    client = face.client(pool)
    script = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    face.run(client.delete("counter"))
    assert face.run(script(keys=["counter"], args=[3])) == 3
    face.run(client.script_flush())
    pipe = client.pipeline()
    face.run(script(keys=["counter"], args=[4], client=pipe))
    assert face.run(pipe.execute()) == [7]
    assert pool.stats().opens == 1


def test_blocking_commands(face: Face, pool: Any) -> None:
    client = face.client(pool)
    assert face.run(client.blpop(["nothing"], timeout=0.01)) is None
    face.run(client.rpush("something", "x"))
    assert face.run(client.blpop(["something"], timeout=1)) == (b"something", b"x")
    assert pool.stats().opens == 1


@pytest.mark.parametrize("protocol", [2, 3])
def test_subscribers(face: Face, protocol: int) -> None:
    pool = face.pool(protocol=protocol, max_connections=2)
    client = face.client(pool)
    for _ in range(3):
        subscriber = client.pubsub(ignore_subscribe_messages=True)
        face.run(subscriber.subscribe("news"))
        face.run(subscriber.psubscribe("n*s"))
        messages: list[Any] = []

        def look(subscriber: Any = subscriber, messages: list[Any] = messages) -> bool:
            message = face.run(subscriber.get_message(timeout=0.01))
            if message is not None:
                messages.append(message["data"])
            elif not messages:
                face.run(client.publish("news", "hear"))
            return len(messages) > 2

        face.until(look)
        assert set(messages) == {b"hear"}
        face.run(subscriber.close() if face.world == "threads" else subscriber.aclose())
        assert face.run(client.get("nothing")) is None
    assert_sound(face, pool)


def test_a_subscriber_takes_up_its_subscriptions_again(face: Face) -> None:
    pool = face.pool(retry=face.retry(3))
    client = face.client(pool)
    subscriber = client.pubsub(ignore_subscribe_messages=True)
    face.run(subscriber.subscribe("news"))
    face.until(lambda: face.run(client.pubsub_numsub("news")) == [(b"news", 1)])
    number = next(each["id"] for each in face.run(client.client_list(_type="pubsub")))
    face.run(client.client_kill_filter(_id=number))
    heard: list[Any] = []

    def look() -> bool:
        face.run(client.publish("news", "again"))
        heard.append(face.run(subscriber.get_message(timeout=0.01)))
        return bool(heard[-1]) and heard[-1]["data"] == b"again"

    face.until(look)
    face.run(subscriber.close() if face.world == "threads" else subscriber.aclose())
    assert_sound(face, face.pool(max_connections=1))


def test_a_subscriber_in_a_thread(face: Face) -> None:
    if face.world == "tasks":
        pytest.skip("tasks have none")
    pool = face.pool()
    client = face.client(pool)
    heard = threading.Event()
    subscriber = client.pubsub()
    subscriber.subscribe(news=lambda message: heard.set())
    thread = subscriber.run_in_thread(sleep_time=0.01, daemon=True)
    while not heard.is_set():
        client.publish("news", "x")
        time.sleep(0.001)
    thread.stop()
    thread.join(5)
    face.until(lambda: pool.stats().lent == 0)
    assert client.ping()


def test_monitors(face: Face, pool: Any) -> None:
    client = face.client(pool)
    monitor = client.monitor()
    face.run(monitor.__enter__() if face.world == "threads" else monitor.__aenter__())
    face.run(client.set("seen", "x"))
    commands = []
    while "SET seen x" not in commands:
        commands.append(face.run(monitor.next_command())["command"])
    face.run(monitor.__exit__(None, None, None) if face.world == "threads" else monitor.__aexit__(None, None, None))
    del monitor
    assert_sound(face, pool)


def test_a_client_of_one_connection(face: Face, pool: Any) -> None:
    client = face.client(pool, single_connection_client=True)
    number = face.run(client.client_id())
    face.run(client.client_setname("alone"))
    assert face.run(client.client_id()) == number
    assert pool.stats().lent == 1
    face.run(client.close() if face.world == "threads" else client.aclose())
    assert pool.stats().lent == 0
    other = face.client(pool)
    assert face.run(other.client_getname()) == "alone", "as in redis-py's own pools, a name stays"


def test_a_client_that_owns_its_pool_closes_it(face: Face) -> None:
    pool = face.pool()
    client = face.theirs.Redis.from_pool(pool)
    assert face.run(client.ping())
    assert pool.stats().idle == 1
    face.run(client.close() if face.world == "threads" else client.aclose())
    face.until(lambda: pool.stats().size == 0)
    assert face.run(client.ping())


def test_a_client_retries_what_it_was_told_to(face: Face, proxy: Any) -> None:
    wire = proxy(face.server.host, face.server.port)
    pool = face.pool(port=wire.port, retry=face.retry(2), max_connections=1)
    client = face.client(pool)
    assert face.run(client.ping())
    for _ in range(3):
        wire.reset()
        assert face.run(client.echo("still here")) == b"still here"
    wire.refuse()
    wire.reset()
    face.until(lambda: pool.stats().size == 0)
    began = time.monotonic()
    with pytest.raises(redis.ConnectionError, match="Error 111 connecting"):
        face.run(client.ping())
    assert 0.1 < time.monotonic() - began < 5
    wire.heal()
    assert face.run(client.ping())
    client.set_retry(face.retry(7))
    conn = face.borrow(pool)
    assert conn.retry.get_retries() == 7
    face.give_back(pool, conn)
    assert pool.connection_kwargs["retry"].get_retries() == 7


def test_health_checks_of_redis_pys_own(face: Face, proxy: Any) -> None:
    wire = proxy(face.server.host, face.server.port)
    pool = face.pool(port=wire.port, max_connections=1, health_check_interval=60, retry=face.retry(2))
    client = face.client(pool)
    assert face.run(client.ping())
    [conn] = pool._get_free_connections()
    conn.next_health_check = 0.001
    before = face.run(client.info("commandstats"))["cmdstat_ping"]["calls"]
    conn.next_health_check = 0.001
    face.run(client.get("x"))
    assert face.run(client.info("commandstats"))["cmdstat_ping"]["calls"] == before + 1
    assert pool.stats().opens == 1
    assert pool.stats().idle == 1
