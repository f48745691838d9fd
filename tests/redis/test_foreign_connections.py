"""Connections that are somebody's own serve as they do in redis-py's pools."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import Any

import fakeredis
import fakeredis.aioredis
import pytest
import redis

import millpond
import millpond.redis
from millpond.connectors.redis import AsyncRedis, Redis
from millpond.testing import Valkey

from .conftest import Face

KINDS = pytest.mark.parametrize("kind", ["ConnectionPool", "BlockingConnectionPool"])
FAKES = {"threads": fakeredis.FakeRedisConnection, "tasks": fakeredis.aioredis.FakeAsyncRedisConnection}


def faked(face: Face, kind: str = "ConnectionPool", **options: Any) -> Any:
    return face.pool(kind, connection_class=FAKES[face.world], server=fakeredis.FakeServer(), **options)


@KINDS
def test_fakeredis(face: Face, kind: str) -> None:
    pool = faked(face, kind)
    client = face.client(pool)
    assert face.run(client.set("key", 1))
    assert face.run(client.incr("key")) == 2
    pipe = client.pipeline()
    pipe.incr("key").incr("key")
    assert face.run(pipe.execute()) == [3, 4]
    with pytest.raises(redis.ResponseError, match="not an integer"):
        face.run(client.incr("key", "no number"))
    assert face.run(client.get("key")) == b"4"
    stats = pool.stats()
    assert (stats.opens, stats.idle, stats.closes) == (1, 1, {})


@KINDS
def test_subscribers_of_fakeredis(face: Face, kind: str) -> None:
    pool = faked(face, kind)
    client = face.client(pool)
    listener = client.pubsub()
    face.run(listener.subscribe("news"))
    assert face.run(client.publish("news", "first")) == 1
    heard = [face.run(listener.get_message(timeout=5)) for _ in range(2)]
    assert [message["type"] for message in heard] == ["subscribe", "message"]
    face.run(listener.close() if face.world == "threads" else listener.aclose())
    assert face.run(client.ping())
    assert pool.stats().lent == 0


def test_what_a_borrower_leaves_behind_in_fakeredis_reaches_nobody(
    face: Face, caplog: pytest.LogCaptureFixture
) -> None:
    pool = faked(face, max_connections=1)
    for words in (("SELECT", 1), ("MULTI",)):
        conn = face.borrow(pool)
        face.ask(conn, *words)
        face.give_back(pool, conn)
        del conn
        assert face.run(face.client(pool).set("key", "mine"))
    conn = face.borrow(pool)
    face.send(conn, "PING")
    face.give_back(pool, conn)
    del conn
    assert face.run(face.client(pool).get("key")) == b"mine"
    assert pool.stats().closes == {"broken": 3}
    assert caplog.records == []


class Wrapped:
    """A connection that is none of redis-py's: it has what a pool and a client call, and no more."""

    def __init__(self, **options: Any) -> None:
        self._inner: Any = redis.Connection(host=options["host"], port=options["port"])
        self.readable = False

    def connect(self) -> None:
        self._inner.connect()

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        self._inner.disconnect()

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        self._inner.send_command(*args, **kwargs)

    def read_response(self, **kwargs: Any) -> Any:
        return self._inner.read_response(**kwargs)

    def can_read(self) -> bool:
        return self.readable


class WrappedForTasks:
    """As `Wrapped`."""

    def __init__(self, **options: Any) -> None:
        self._inner: Any = redis.asyncio.Connection(host=options["host"], port=options["port"])
        self.leaving = False

    async def connect(self) -> None:
        await self._inner.connect()

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        await self._inner.disconnect(nowait=True)

    async def send_command(self, *args: Any, **kwargs: Any) -> None:
        await self._inner.send_command(*args, **kwargs)

    async def read_response(self, **kwargs: Any) -> Any:
        return await self._inner.read_response(**kwargs)

    def should_reconnect(self) -> bool:
        return self.leaving

    def __del__(self) -> None:
        self._inner._close()


WRAPPED: dict[str, type] = {"threads": Wrapped, "tasks": WrappedForTasks}


def wrapped(face: Face) -> type:
    """Make a class that nobody knows yet."""
    return type("OfSomebody", (WRAPPED[face.world],), {})


@KINDS
def test_a_class_that_is_none_of_redis_pys_serves_and_it_is_said_once_what_cannot_be_proved(
    face: Face, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = face.pool(kind, connection_class=wrapped(face), max_connections=2)
    conns = [face.borrow(pool) for _ in range(2)]
    for conn in conns:
        assert face.ask(conn, "ECHO", "mine") == b"mine"
        face.give_back(pool, conn)
    first = conns[1]
    del conn, conns
    again = face.borrow(pool)
    assert again is first
    assert [record.getMessage() for record in caplog.records] == [
        "tests.redis.test_foreign_connections.OfSomebody is none of redis-py's connections: that a loan left nothing "
        "behind cannot be proved"
    ]
    number = face.number(again)
    face.give_back(pool, again)
    if face.world == "threads":
        again.readable = True
    else:
        again = face.borrow(pool)
        again.leaving = True
        face.give_back(pool, again)
    del first, again
    other = face.borrow(pool)
    assert face.number(other) != number
    face.give_back(pool, other)
    assert pool.stats().closes == {"broken": 1}


def test_such_a_connection_is_asked_before_it_is_lent_after_a_while(face: Face) -> None:
    pool = face.pool(connection_class=wrapped(face), max_connections=1, check_after=0)
    for _ in range(2):
        conn = face.borrow(pool)
        face.give_back(pool, conn)
    assert pool.stats().checks == 1


def test_such_a_connection_that_is_dropped_gives_its_place_back(face: Face) -> None:
    pool = face.pool("BlockingConnectionPool", connection_class=wrapped(face), max_connections=1, timeout=20)
    face.borrow(pool)
    conn = face.borrow(pool)
    assert face.ask(conn, "ECHO", "mine") == b"mine"
    face.give_back(pool, conn)


class Delegating:
    """A connection that has nothing of its own."""

    def __init__(self, **options: Any) -> None:
        self._inner = redis.Connection(host=options["host"], port=options["port"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_class_whose_methods_are_anothers_serves(valkey: Valkey) -> None:
    with millpond.redis.ConnectionPool(host=valkey.host, port=valkey.port, connection_class=Delegating) as pool:  # type: ignore[arg-type]
        client = redis.Redis(connection_pool=pool)
        for _ in range(3):
            assert client.echo("mine") == b"mine"
        assert pool.stats().opens == 1


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, **options: Any) -> None: ...
    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def send_command(self) -> None: ...
    def read_response(self) -> None: ...


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (object, "object is no connection: it has no connect()"),
        (Slotted, "Slotted cannot own a loan, since it has __slots__"),
    ],
)
def test_what_can_be_no_connection_is_refused_by_name(cls: type, why: str) -> None:
    with millpond.Pool(Redis(lambda: cls())) as pool:
        with pytest.raises(millpond.ConnectFailed, match="cannot make a connection") as caught:
            pool.acquire()
        assert str(caught.value.__cause__) == why
        assert "password" not in str(caught.value)


def test_a_class_that_fails_is_not_said_to_be_refused_by_the_server(face: Face) -> None:
    class Failing(redis.Connection):
        def __init__(self, **options: Any) -> None:
            raise TypeError("made to fail")

    pool = face.pool(connection_class=Failing)
    with pytest.raises(TypeError, match="made to fail") as caught:
        face.borrow(pool)
    assert "cannot make a connection to redis://" in str(caught.value.__cause__)
    assert "password" not in str(caught.value.__cause__)


def test_a_parser_that_another_thread_takes_away_while_it_connects_harms_nobody(face: Face) -> None:
    struck: list[object] = []

    def strike(conn: Any) -> None:
        conn.on_connect()
        if not struck:
            struck.append(conn)
            conn.disconnect()

    async def strike_async(conn: Any) -> None:
        await conn.on_connect()
        if not struck:
            struck.append(conn)
            await conn.disconnect()

    pool = face.pool(max_connections=1, redis_connect_func=strike if face.world == "threads" else strike_async)
    for _ in range(3):
        assert face.run(face.client(pool).echo("mine")) == b"mine"
    assert len(struck) == 1


def test_classes_that_are_made_while_a_program_runs_are_not_kept(face: Face) -> None:
    def use() -> weakref.ref[type]:
        base = redis.Connection if face.world == "threads" else redis.asyncio.Connection
        made = type("Recording", (base,), {})
        pool = face.pool(connection_class=made)
        assert face.run(face.client(pool).ping())
        face.close_all()
        return weakref.ref(made)

    def are_gone() -> bool:
        # A worker of the closed pool may be about to leave, and still have one in a frame.
        gc.collect()
        return [ref() for ref in refs] == [None] * 3

    refs = [use() for _ in range(3)]
    face.until(are_gone)


@pytest.mark.parametrize("connector", [Redis, AsyncRedis])
def test_an_own_class_goes_with_a_url_as_well(connector: Any) -> None:
    cls = fakeredis.FakeRedisConnection if connector is Redis else fakeredis.aioredis.FakeAsyncRedisConnection
    made = connector("redis://somewhere/1", connection_class=cls, server=fakeredis.FakeServer())
    assert isinstance(made._new(), cls)
    assert made.target == "redis://somewhere:6379/1"


def test_raw_connections_of_fakeredis() -> None:
    server = fakeredis.FakeServer()
    url = "redis://somewhere/1"
    with millpond.Pool[Any].from_url(url, connection_class=fakeredis.FakeRedisConnection, server=server) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                conn.send_command("SET", "key", "mine")
                assert conn.read_response() == b"OK"
        assert pool.stats().opens == 1

    async def main() -> None:
        fake = fakeredis.aioredis.FakeAsyncRedisConnection
        async with millpond.AsyncPool[Any].from_url(url, connection_class=fake, server=server) as pool:
            for _ in range(3):
                async with pool.connection() as conn:
                    await conn.send_command("GET", "key")
                    assert await conn.read_response() == b"mine"
            assert pool.stats().opens == 1

    asyncio.run(main())


def test_closing_a_fake_connection_takes_the_watch_from_no_real_one(valkey: Valkey) -> None:
    """A socket of fakeredis has a number, too, which may be a real one's."""
    with millpond.Pool(Redis(valkey.url)) as pool:
        with pool.connection() as conn:
            descriptor = pool._connector.descriptor(conn)
        fake: Any = Redis("redis://x", connection_class=fakeredis.FakeRedisConnection, server=fakeredis.FakeServer())
        other = fake.open(5)
        other._sock._fileno = descriptor
        fake.close(other)
        with redis.Redis(host=valkey.host, port=valkey.port) as boss:
            boss.client_kill_filter(_type="normal", skipme=True)
        deadline = time.monotonic() + 20
        while pool.stats().closes != {"hung up": 1}:
            assert time.monotonic() < deadline, "nobody watched it any more"
            time.sleep(0.001)


class Knowing:
    """What a sentinel would know."""

    def __init__(self, server: Valkey) -> None:
        self._address = server.host, server.port

    def discover_master(self, name: str) -> tuple[str, int]:
        return self._address


class Watched(Delegating):
    """A connection to whatever the sentinel tells."""

    def __init__(self, connection_pool: Any, **options: Any) -> None:
        host, port = connection_pool.get_master_address()
        super().__init__(host=host, port=port)


def test_a_sentinels_pool_takes_back_what_is_none_of_its_own_or_of_redis_pys(valkey: Valkey) -> None:
    pool = millpond.redis.SentinelConnectionPool("main", Knowing(valkey), connection_class=Watched)  # type: ignore[arg-type]
    with pool:
        client = redis.Redis(connection_pool=pool)
        for _ in range(3):
            assert client.echo("mine") == b"mine"
        pool.release(redis.Connection(host=valkey.host, port=valkey.port))
        assert (pool.stats().lent, pool.stats().size) == (0, 1)


def test_a_time_limit_that_strikes_while_such_a_connection_is_asked_is_not_lost(valkey: Valkey) -> None:
    class Struck(Wrapped):
        def can_read(self) -> bool:
            if self.readable:
                raise TimeoutError
            return False

    options = {"host": valkey.host, "port": valkey.port}
    with millpond.redis.ConnectionPool(connection_class=Struck, max_connections=1, **options) as pool:  # type: ignore[arg-type]
        conn: Any = pool.get_connection()
        conn.readable = True
        pool.release(conn)
        del conn
        with pytest.raises(TimeoutError):
            pool.get_connection()
