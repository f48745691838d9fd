"""Pools that lend connections of redis-py, for threads and for asyncio, and clients that use them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from benchmarks.peers.objects import ENDLESS, WITH
from benchmarks.race import Contestant
from millpond import AsyncPool, Pool

__all__ = ["ASYNC_REDIS", "REDIS", "clients", "clients_of_tasks", "tasks", "threads"]

REDIS, ASYNC_REDIS = "redis-py", "redis-py, asyncio"
"""What is lent."""


def _own(blocking: bool) -> type[Any]:
    import redis

    return redis.BlockingConnectionPool if blocking else redis.ConnectionPool


def _ours(blocking: bool) -> type[Any]:
    import millpond.redis

    return millpond.redis.BlockingConnectionPool if blocking else millpond.redis.ConnectionPool


def _own_of_tasks(blocking: bool) -> type[Any]:
    import redis.asyncio

    return redis.asyncio.BlockingConnectionPool if blocking else redis.asyncio.ConnectionPool


def _ours_of_tasks(blocking: bool) -> type[Any]:
    import millpond.redis.asyncio

    return millpond.redis.asyncio.BlockingConnectionPool if blocking else millpond.redis.asyncio.ConnectionPool


Kind = Callable[[bool], type[Any]]


@contextmanager
def _millpond(url: str, size: int) -> Iterator[Any]:
    with Pool[Any].from_url(url, min_size=size, max_size=size, max_opening=size, timeout=ENDLESS) as pool:
        pool.warm()
        yield pool


@contextmanager
def _pool(kind: Kind, blocking: bool, url: str, size: int) -> Iterator[Any]:
    patience = {"timeout": ENDLESS} if blocking else {}
    pool = kind(blocking).from_url(url, max_connections=size, **patience)
    for conn in [pool.get_connection() for _ in range(size)]:
        pool.release(conn)
    yield pool
    pool.close()


@contextmanager
def _client(kind: Kind, url: str, size: int) -> Iterator[Any]:
    import redis

    with _pool(kind, False, url, size) as pool, redis.Redis(connection_pool=pool) as client:
        yield client


@contextmanager
def _single(url: str, size: int) -> Iterator[Any]:
    import redis

    with redis.Redis.from_url(url, single_connection_client=True) as client:
        yield client


@asynccontextmanager
async def _millpond_of_tasks(url: str, size: int) -> AsyncIterator[Any]:
    async with AsyncPool[Any].from_url(url, min_size=size, max_size=size, max_opening=size, timeout=ENDLESS) as pool:
        await pool.warm()
        yield pool


@asynccontextmanager
async def _pool_of_tasks(kind: Kind, blocking: bool, url: str, size: int) -> AsyncIterator[Any]:
    patience = {"timeout": ENDLESS} if blocking else {}
    pool = kind(blocking).from_url(url, max_connections=size, **patience)
    for conn in [await pool.get_connection() for _ in range(size)]:
        await pool.release(conn)
    yield pool
    await pool.aclose()


@asynccontextmanager
async def _client_of_tasks(kind: Kind, url: str, size: int) -> AsyncIterator[Any]:
    import redis.asyncio

    async with _pool_of_tasks(kind, False, url, size) as pool, redis.asyncio.Redis(connection_pool=pool) as client:
        yield client


@asynccontextmanager
async def _single_of_tasks(url: str, size: int) -> AsyncIterator[Any]:
    import redis.asyncio

    async with redis.asyncio.Redis.from_url(url, single_connection_client=True) as client:
        yield client


GET = "conn = pool.get_connection()\ntry:\n    WORK\nfinally:\n    pool.release(conn)"
ASYNC_GET = GET.replace("pool.", "await pool.")


def threads(url: str, *, blocking: bool = False) -> Sequence[Contestant]:
    """Return those that lend to threads, on the server at a URL; `blocking` says that callers have to wait."""
    return (
        Contestant("millpond", WITH, partial(_millpond, url), REDIS),
        Contestant("millpond.redis", GET, partial(_pool, _ours, blocking, url), REDIS),
        Contestant("redis-py", GET, partial(_pool, _own, blocking, url), REDIS),
    )


def tasks(url: str, *, blocking: bool = False) -> Sequence[Contestant]:
    """Return those that lend to tasks."""
    return (
        Contestant("millpond", f"async {WITH}", partial(_millpond_of_tasks, url), ASYNC_REDIS),
        Contestant("millpond.redis", ASYNC_GET, partial(_pool_of_tasks, _ours_of_tasks, blocking, url), ASYNC_REDIS),
        Contestant("redis-py", ASYNC_GET, partial(_pool_of_tasks, _own_of_tasks, blocking, url), ASYNC_REDIS),
    )


def clients(url: str) -> Sequence[Contestant]:
    """Return redis-py's clients: on one connection, on millpond's pool, on its own."""
    get = 'pool.get("key")'
    return (
        Contestant("floor: one connection", get, partial(_single, url), REDIS),
        Contestant("millpond.redis", get, partial(_client, _ours, url), REDIS),
        Contestant("redis-py", get, partial(_client, _own, url), REDIS),
    )


def clients_of_tasks(url: str) -> Sequence[Contestant]:
    """Return the same for asyncio."""
    get = 'await pool.get("key")'
    return (
        Contestant("floor: one connection", get, partial(_single_of_tasks, url), ASYNC_REDIS),
        Contestant("millpond.redis", get, partial(_client_of_tasks, _ours_of_tasks, url), ASYNC_REDIS),
        Contestant("redis-py", get, partial(_client_of_tasks, _own_of_tasks, url), ASYNC_REDIS),
    )
