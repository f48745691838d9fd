"""A primary is demoted and goes on answering, while its name moves to another: who writes fails once at most for each
connection, and the pool finds the new one by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import psycopg
import pytest
import redis
import redis.asyncio

import millpond
import millpond.redis
import millpond.redis.asyncio
from millpond.testing import Postgres, Proxy, Valkey

from .patience import until

SIZE = 3


@contextmanager
def demoted(server: Postgres) -> Iterator[None]:
    """Have a server take no writes any more, in any session."""
    server.execute("alter system set default_transaction_read_only = on")
    server.execute("select pg_reload_conf()")
    until(lambda: server.execute("show default_transaction_read_only") == [["on"]])
    time.sleep(0.5)  # the sessions that are there are told by a signal, too, each by its own
    try:
        yield
    finally:
        server.execute("alter system reset default_transaction_read_only")
        server.execute("select pg_reload_conf()")


def demote(old: Valkey, new: Valkey) -> None:
    """Make one the replica of the other."""
    with redis.Redis.from_url(old.url, single_connection_client=True) as client:
        client.execute_command("REPLICAOF", new.host, new.port)


@pytest.fixture(scope="module")
def clusters() -> Iterator[tuple[Postgres, Postgres]]:
    with Postgres() as old, Postgres() as new:
        for server in (old, new):
            server.execute("create table notes (text text); grant insert on notes to app")
        yield old, new


@pytest.fixture
def way(clusters: tuple[Postgres, Postgres]) -> Iterator[Proxy]:
    old, _ = clusters
    with Proxy(old.host, old.port) as proxy:
        yield proxy


def test_who_writes_with_psycopg_is_led_to_the_new_primary(clusters: tuple[Postgres, Postgres], way: Proxy) -> None:
    old, new = clusters
    pool: millpond.Pool[Any] = millpond.Pool.from_url(way.url_for(old.url), max_size=SIZE)
    with pool:

        def write() -> None:
            with pool.connection() as conn:
                conn.execute("insert into notes values ('a')")
                conn.commit()

        for conn in [pool.acquire() for _ in range(SIZE)]:
            pool.release(conn)
        with demoted(old):
            way.lead_to(new.host, new.port)
            for _ in range(SIZE):
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    write()
            write()


def test_who_writes_with_asyncpg_is_led_to_the_new_primary(clusters: tuple[Postgres, Postgres], way: Proxy) -> None:
    old, new = clusters
    url = way.url_for(old.url).replace("postgresql", "postgresql+asyncpg")

    async def main() -> None:
        pool: millpond.AsyncPool[Any] = millpond.AsyncPool.from_url(url, max_size=SIZE)
        async with pool:

            async def write() -> None:
                async with pool.connection() as conn:
                    await conn.execute("insert into notes values ('a')")

            for conn in [await pool.acquire() for _ in range(SIZE)]:
                pool.release(conn)
            with demoted(old):
                way.lead_to(new.host, new.port)
                for _ in range(SIZE):
                    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                        await write()
                await write()

    asyncio.run(main())


def test_who_writes_with_redis_is_led_to_the_new_primary() -> None:
    with Valkey() as old, Valkey() as new, Proxy(old.host, old.port) as way:
        pool = millpond.redis.ConnectionPool.from_url(way.url_for(old.url), max_connections=SIZE)
        with redis.Redis(connection_pool=pool) as client:
            for conn in [pool.get_connection() for _ in range(SIZE)]:
                pool.release(conn)
            demote(old, new)
            way.lead_to(new.host, new.port)
            for _ in range(SIZE):
                with pytest.raises(redis.ReadOnlyError):
                    client.set("a", 1)
            client.set("a", 1)
        pool.close()


def test_who_writes_with_redis_on_asyncio_is_led_to_the_new_primary() -> None:
    async def main() -> None:
        pool = millpond.redis.asyncio.ConnectionPool.from_url(way.url_for(old.url), max_connections=SIZE)
        async with redis.asyncio.Redis(connection_pool=pool) as client:
            for conn in [await pool.get_connection() for _ in range(SIZE)]:
                await pool.release(conn)
            demote(old, new)
            way.lead_to(new.host, new.port)
            for _ in range(SIZE):
                with pytest.raises(redis.ReadOnlyError):
                    await client.set("a", 1)
            await client.set("a", 1)
        await pool.aclose()

    with Valkey() as old, Valkey() as new, Proxy(old.host, old.port) as way:
        asyncio.run(main())
