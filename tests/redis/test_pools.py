"""The pools keep the promises of redis-py's, and those of millpond."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio

import millpond
import millpond.redis
import millpond.redis.asyncio
from millpond.testing import Valkey

from .conftest import Face

KINDS = pytest.mark.parametrize("kind", ["ConnectionPool", "BlockingConnectionPool"])


def gone(face: Face, pool: Any, number: int) -> Callable[[], bool]:
    """Return what tells whether the server has lost a client."""
    witness = redis.Redis(host=face.server.host, port=face.server.port)

    def look() -> bool:
        try:
            return number not in {int(client["id"]) for client in witness.client_list()}
        finally:
            witness.close()

    return look


# What redis-py's pools are.


@KINDS
def test_a_pool_is_one_of_redis_pys(face: Face, kind: str) -> None:
    pool = face.pool(kind, db=3, password=None)
    assert isinstance(pool, getattr(face.theirs, kind))
    assert isinstance(pool, face.theirs.ConnectionPool)
    assert repr(pool).startswith(f"<{face.module.__name__}.{kind}(<redis.")
    assert pool.connection_kwargs["db"] == 3
    assert pool.get_encoder().encode("a") == b"a"
    assert pool.get_protocol() is None
    conn = face.borrow(pool)
    assert isinstance(conn, face.theirs.Connection)
    assert (
        repr(conn) == f"<{face.theirs.Connection.__module__}.Connection(host=127.0.0.1,port={face.server.port},db=3)>"
    )
    face.give_back(pool, conn)


@KINDS
def test_a_pool_is_true(face: Face, kind: str) -> None:
    assert face.pool(kind)


@KINDS
def test_a_pool_is_made_from_a_url(face: Face, kind: str) -> None:
    url = f"{face.server.url[:-1]}5?decode_responses=1"
    pool = getattr(face.module, kind).from_url(url, max_connections=7, max_idle=60.0, client_name="nameless")
    face.pools.append(pool)
    client = face.client(pool)
    face.run(client.set("where", "here"))
    assert face.run(client.get("where")) == "here"
    assert face.run(client.client_info())["db"] == 5
    assert pool.max_connections == 7
    assert pool.stats().max_size == 7
    assert face.run(client.client_getname()) == "nameless"


def test_what_a_connection_is_made_of_may_change(face: Face) -> None:
    pool = face.pool()
    pool.connection_kwargs["client_name"] = "later"
    client = face.client(pool)
    assert face.run(client.client_getname()) == "later"


def test_a_connection_may_be_of_any_class(face: Face) -> None:
    class Own(face.theirs.Connection):  # type: ignore[misc, name-defined]
        pass

    pool = face.pool(connection_class=Own)
    conn = face.borrow(pool)
    assert isinstance(conn, Own)
    face.give_back(pool, conn)
    other = face.pool(connection_class=lambda **options: Own(client_name="made", **options))
    assert face.run(face.client(other).client_getname()) == "made"


def test_what_is_no_connection_of_redis_pys_is_refused_by_name(face: Face) -> None:
    class Telephone:
        def __init__(self, **options: object) -> None: ...

    pool = face.pool(connection_class=Telephone)
    for _ in range(2):
        with pytest.raises(TypeError, match=r"Telephone is no connection: it has no connect\(\)"):
            face.borrow(pool)


def test_a_class_with_its_own_way_to_send_is_heeded(face: Face) -> None:
    sent: list[Any] = []

    class Sync(redis.Connection):
        def send_command(self, *args: Any, **kwargs: Any) -> None:
            sent.append(args[0])
            super().send_command(*args, **kwargs)  # type: ignore[no-untyped-call]

    class Async(redis.asyncio.Connection):
        async def send_command(self, *args: Any, **kwargs: Any) -> None:
            sent.append(args[0])
            await super().send_command(*args, **kwargs)

    pool = face.pool(connection_class=Sync if face.world == "threads" else Async, max_connections=1)
    conn = face.borrow(pool)
    number = face.number(conn)
    face.give_back(pool, conn)
    conn = face.borrow(pool)
    assert face.number(conn) == number
    face.ask(conn, "SELECT", 1)
    face.give_back(pool, conn)
    conn = face.borrow(pool)
    assert face.number(conn) != number
    face.give_back(pool, conn)
    assert "SELECT" in sent


def test_a_connection_that_the_pool_did_not_lend_is_left_alone(face: Face) -> None:
    pool, other = face.pool(), face.pool()
    stranger = face.theirs.Connection(host=face.server.host, port=face.server.port)
    face.run(pool.release(stranger))
    assert not pool.owns_connection(stranger)
    conn = face.borrow(pool)
    assert pool.owns_connection(conn)
    assert not other.owns_connection(conn)
    face.run(other.release(conn))
    assert pool.stats().idle == 1
    face.run(pool.release(conn))
    assert pool.stats().idle == 1


def test_how_many_are_idle_and_in_use_can_be_counted(face: Face) -> None:
    pool = face.pool()
    conns = [face.borrow(pool) for _ in range(3)]
    face.give_back(pool, conns.pop())
    [(idle, idles), (used, useds)] = pool.get_connection_count()
    assert (idle, used) == (1, 2)
    assert idles.keys() == useds.keys()
    assert set(pool._get_in_use_connections()) == set(conns)
    assert len(list(pool._get_free_connections())) == 1
    for conn in conns:
        face.give_back(pool, conn)


# How many there may be, and who waits.


def test_the_maximum_is_an_error_at_once(face: Face) -> None:
    pool = face.pool(max_connections=2)
    conns = [face.borrow(pool) for _ in range(2)]
    with pytest.raises(redis.exceptions.MaxConnectionsError, match="Too many connections") as caught:
        face.borrow(pool)
    assert isinstance(caught.value.__cause__, millpond.PoolFull)
    face.give_back(pool, conns.pop())
    conns.append(face.borrow(pool))
    for conn in conns:
        face.give_back(pool, conn)


def test_a_blocking_pool_gives_up_after_its_timeout(face: Face) -> None:
    pool = face.pool("BlockingConnectionPool", max_connections=1, timeout=0.05)
    conn = face.borrow(pool)
    began = time.monotonic()
    with pytest.raises(redis.ConnectionError, match="No connection available") as caught:
        face.borrow(pool)
    assert 0.04 < time.monotonic() - began < 10  # and not redis-py's own 20 s
    assert isinstance(caught.value.__cause__, millpond.PoolTimeout)
    face.give_back(pool, conn)
    pool.timeout = None
    face.give_back(pool, face.borrow(pool))


def test_the_class_of_the_queue_says_which_is_lent(face: Face) -> None:
    queues: Any = queue if face.world == "threads" else asyncio
    for queue_class, first in ((queues.LifoQueue, 1), (queues.Queue, 0)):
        pool = face.pool("BlockingConnectionPool", queue_class=queue_class)
        conns = [face.borrow(pool) for _ in range(2)]
        for conn in conns:
            face.give_back(pool, conn)
        assert face.borrow(pool) is conns[first]
        face.give_back(pool, conns[first])
    with pytest.raises(TypeError, match=r"queue_class=.*PriorityQueue.* must be .*LifoQueue or .*Queue"):
        face.pool("BlockingConnectionPool", queue_class=queues.PriorityQueue)


def test_settings_of_millponds_are_taken(face: Face) -> None:
    pool = face.pool("BlockingConnectionPool", name="orders", max_waiting=1, max_lifetime=5.0, connect_timeout=1.0)
    settings = pool._hire().settings
    assert (settings.name, settings.max_waiting, settings.max_lifetime) == ("orders", 1, 5.0)
    with pytest.raises(ValueError, match="max_idle=-1"):
        face.pool(max_idle=-1)


# When connections end.


def test_idle_connections_are_closed_on_demand(face: Face) -> None:
    pool = face.pool()
    conn, other = face.borrow(pool), face.borrow(pool)
    lent, idle = face.number(conn), face.number(other)
    face.give_back(pool, other)
    del other
    face.run(pool.disconnect(inuse_connections=False))
    face.until(gone(face, pool, idle))
    assert face.number(conn) == lent
    face.give_back(pool, conn)
    assert face.number(face.borrow(pool)) == lent


def test_connections_in_use_are_closed_on_demand(face: Face) -> None:
    pool = face.pool()
    conn, other = face.borrow(pool), face.borrow(pool)
    numbers = face.number(conn), face.number(other)
    face.give_back(pool, other)
    face.run(pool.disconnect())
    for number in numbers:
        face.until(gone(face, pool, number))
    # Its borrower goes on with another socket, as redis-py would have it. The pool does not keep that.
    number = face.number(conn)
    face.give_back(pool, conn)
    face.until(gone(face, pool, number))
    assert face.number(face.borrow(pool)) not in (*numbers, number)


@KINDS
def test_a_closed_pool_can_be_used_again(face: Face, kind: str) -> None:
    pool = face.pool(kind)
    lent, idle = face.borrow(pool), face.borrow(pool)
    numbers = face.number(lent), face.number(idle)
    face.give_back(pool, idle)
    for _ in range(2):
        face.close_pool(pool)
        for number in numbers:
            face.until(gone(face, pool, number))
    assert face.run(face.client(pool).ping())
    face.give_back(pool, lent)
    assert pool.stats().size == 1


def test_a_reset_pool_forgets_all(face: Face) -> None:
    pool = face.pool()
    lent, idle = face.borrow(pool), face.borrow(pool)
    numbers = face.number(lent), face.number(idle)
    face.give_back(pool, idle)
    pool.reset()
    face.until(lambda: pool.stats().size == 0)
    face.until(gone(face, pool, numbers[1]))
    assert face.number(lent) == numbers[0]
    face.give_back(pool, lent)
    face.until(gone(face, pool, numbers[0]))


def test_who_waits_while_a_pool_is_reset_is_served_by_what_comes_after(valkey: Valkey) -> None:
    pool = millpond.redis.BlockingConnectionPool(host=valkey.host, port=valkey.port, max_connections=1, timeout=30)
    with pool, ThreadPoolExecutor(3) as executor:
        conn = pool.get_connection()
        waiting = [executor.submit(redis.Redis(connection_pool=pool).echo, "mine") for _ in range(3)]
        while pool.stats().waiting < 3:
            time.sleep(0.001)
        pool.reset()
        assert [each.result(20) for each in waiting] == [b"mine"] * 3
        pool.release(conn)


def test_which_task_waits_while_a_pool_is_reset_is_served_by_what_comes_after(valkey: Valkey) -> None:
    async def main() -> None:
        pool = millpond.redis.asyncio.BlockingConnectionPool(
            host=valkey.host, port=valkey.port, max_connections=1, timeout=30
        )
        async with pool:
            conn = await pool.get_connection()
            client = redis.asyncio.Redis(connection_pool=pool)
            waiting: list[Any] = [asyncio.ensure_future(client.echo("mine")) for _ in range(3)]
            while pool.stats().waiting < 3:
                await asyncio.sleep(0)
            pool.reset()
            assert await asyncio.wait_for(asyncio.gather(*waiting), 20) == [b"mine"] * 3
            await pool.release(conn)

    asyncio.run(main())


def test_who_waits_while_a_pool_is_reset_and_closed_gets_nothing(valkey: Valkey) -> None:
    pool = millpond.redis.BlockingConnectionPool(host=valkey.host, port=valkey.port, max_connections=1, timeout=30)
    with ThreadPoolExecutor(5) as executor:
        for _ in range(20):
            conn = pool.get_connection()
            waiting = [executor.submit(pool.get_connection) for _ in range(5)]
            while pool.stats().waiting < 5:
                time.sleep(0.001)
            pool.reset()
            pool.close()
            for each in waiting:
                with pytest.raises(redis.ConnectionError, match="was closed"):
                    each.result(20)
            assert pool._lender is None
            pool.release(conn)


def test_which_task_waits_while_a_pool_is_reset_and_closed_gets_nothing(valkey: Valkey) -> None:
    async def main() -> None:
        pool = millpond.redis.asyncio.BlockingConnectionPool(
            host=valkey.host, port=valkey.port, max_connections=1, timeout=30
        )
        conn = await pool.get_connection()
        waiting = [asyncio.create_task(pool.get_connection()) for _ in range(5)]
        while pool.stats().waiting < 5:
            await asyncio.sleep(0)
        pool.reset()
        await pool.aclose()
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, redis.ConnectionError)
        assert pool._lender is None
        await pool.release(conn)

    asyncio.run(main())


def test_close_wakes_those_who_wait() -> None:
    with (
        Valkey() as server,
        millpond.redis.BlockingConnectionPool(host=server.host, port=server.port, max_connections=1) as pool,
    ):
        conn = pool.get_connection()
        woken: list[float] = []

        def wait() -> None:
            with pytest.raises(redis.ConnectionError, match="was closed"):
                pool.get_connection()
            woken.append(time.monotonic())

        threads = [threading.Thread(target=wait) for _ in range(20)]
        for thread in threads:
            thread.start()
        while pool.stats().waiting < 20:
            time.sleep(0.001)
        began = time.monotonic()
        pool.close()
        for thread in threads:
            thread.join(30)
        assert len(woken) == 20
        assert max(woken) - began < 10  # and not their timeout
        pool.release(conn)


@pytest.mark.usefixtures("without_ticks")
def test_aclose_wakes_those_who_wait() -> None:
    async def main() -> None:
        pool = millpond.redis.asyncio.BlockingConnectionPool(host=server.host, port=server.port, max_connections=1)
        conn = await pool.get_connection()
        woken: list[float] = []

        async def wait() -> None:
            with pytest.raises(redis.ConnectionError, match="was closed"):
                await pool.get_connection()
            woken.append(time.monotonic())

        tasks = [asyncio.create_task(wait()) for _ in range(20)]
        while pool.stats().waiting < 20:
            await asyncio.sleep(0)
        began = time.monotonic()
        await pool.aclose()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        assert max(woken) - began < 10  # and not their timeout
        await pool.release(conn)

    with Valkey() as server:
        asyncio.run(main())


def test_a_dropped_pool_closes_its_connections(face: Face) -> None:
    if face.world == "tasks":
        pytest.skip("redis-py's own pools for tasks warn of it, and so does millpond's")
    pool = millpond.redis.ConnectionPool(host=face.server.host, port=face.server.port)
    conn = pool.get_connection()
    number = face.number(conn)
    pool.release(conn)
    del conn
    alive = weakref.ref(pool)
    del pool
    assert alive() is None
    face.until(gone(face, None, number))


def test_a_connection_that_redis_py_has_connected_anew_is_kept_and_watched(face: Face) -> None:
    pool = face.pool(max_connections=1)
    conn = face.borrow(pool)
    former = face.number(conn)
    face.send(conn, "ECHO", "never read")
    face.run(conn.disconnect())
    number = face.number(conn)
    assert number != former
    face.give_back(pool, conn)
    face.until(lambda: pool.stats().idle == 1)
    assert face.borrow(pool) is conn
    assert face.number(conn) == number
    assert pool.stats().resets == 1
    face.give_back(pool, conn)
    with redis.Redis(host=face.server.host, port=face.server.port) as witness:
        witness.client_kill_filter(_id=str(number))
    face.until(lambda: pool.stats().closes.get("hung up") == 1)


def test_a_connection_that_subscribes_whenever_it_is_connected_is_not_kept(face: Face) -> None:
    class Sync:
        def subscribe(self, conn: Any) -> None:
            conn.send_command("SUBSCRIBE", "news")
            conn.read_response(push_request=True)

    class Async:
        async def subscribe(self, conn: Any) -> None:
            await conn.send_command("SUBSCRIBE", "news")
            await conn.read_response(push_request=True)

    pool = face.pool(max_connections=1)
    conn = face.borrow(pool)
    subscriber = Sync() if face.world == "threads" else Async()
    conn.register_connect_callback(subscriber.subscribe)
    face.run(conn.disconnect())
    face.run(conn.connect())
    conn._asked = conn._answered = 0  # as if somebody had read it otherwise
    conn.deregister_connect_callback(subscriber.subscribe)
    face.give_back(pool, conn)
    del conn
    face.until(lambda: pool.stats().closes == {"broken": 1})


def test_a_borrower_who_hangs_up_arouses_no_suspicion(face: Face) -> None:
    pool = face.pool(max_connections=3)
    idle = [face.borrow(pool) for _ in range(3)]
    for conn in idle:
        face.give_back(pool, conn)
    for _ in range(20):
        conn = face.borrow(pool)
        face.run(conn.disconnect())
        face.give_back(pool, conn)
        del conn
    face.pause(0.01)
    stats = pool.stats()
    assert stats.closes == {"broken": 20}
    assert stats.checks == 0


def test_a_connection_that_its_borrower_drops_gives_its_place_back(face: Face) -> None:
    pool = face.pool(max_connections=1)
    conn = face.borrow(pool)
    number = face.number(conn)
    del conn
    gc.collect()
    face.until(lambda: pool.stats().closes.get("lost") == 1 and pool.stats().size == 0)
    face.until(gone(face, pool, number))
    face.give_back(pool, face.borrow(pool))


def test_a_server_that_restarts_costs_a_client_nothing(face: Face) -> None:
    with Valkey() as server:
        pool = face.pool("BlockingConnectionPool", host=server.host, port=server.port, max_connections=5)
        client = face.client(pool)
        conns = [face.borrow(pool) for _ in range(5)]
        for conn in conns:
            face.give_back(pool, conn)
        server.restart()
        face.until(lambda: sum(pool.stats().closes.values()) == 5)
        assert face.run(client.ping())
        server.restart()
        face.close_pool(pool)
