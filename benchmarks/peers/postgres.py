"""Pools that lend connections to PostgreSQL: of psycopg, psycopg2 and asyncpg, for threads and for asyncio.

All connections commit by themselves where the driver has that (`autocommit`), so that no pool has a transaction to end
unless the row is about that. Every pool keeps the checks and the reset that it does by default.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal

from benchmarks.peers.objects import CONNECT, ENDLESS, WITH, queue_pool
from benchmarks.race import Contestant
from millpond import AsyncPool, Pool

__all__ = ["ASYNCPG", "ASYNC_PSYCOPG", "PSYCOPG", "QUERIES", "resets", "tasks", "threads"]

PSYCOPG, ASYNC_PSYCOPG, ASYNCPG = "psycopg", "psycopg, asyncio", "asyncpg"
"""What is lent."""

QUERIES = {
    PSYCOPG: 'conn.execute("select 1").fetchone()',
    ASYNC_PSYCOPG: 'await (await conn.execute("select 1")).fetchone()',
    ASYNCPG: 'await conn.fetchval("select 1")',
}
"""How each asks for the least."""

Reset = Literal["transaction", "session"]


@contextmanager
def _bare(url: str, size: int) -> Iterator[Any]:
    import psycopg

    with psycopg.connect(url, autocommit=True) as conn:
        yield conn


@contextmanager
def _millpond(url: str, reset: Reset, size: int) -> Iterator[Any]:
    from millpond.connectors.psycopg import Psycopg

    connector = Psycopg(url, autocommit=True, reset=reset)
    with Pool(connector, min_size=size, max_size=size, max_opening=size, timeout=ENDLESS) as pool:
        pool.warm()
        yield pool


@contextmanager
def _psycopg_pool(url: str, size: int) -> Iterator[Any]:
    from psycopg_pool import ConnectionPool

    with ConnectionPool(
        url, kwargs={"autocommit": True}, min_size=size, max_size=size, timeout=ENDLESS, open=False
    ) as pool:
        pool.wait()
        yield pool


@contextmanager
def _sqlalchemy(url: str, size: int) -> Iterator[Any]:
    import psycopg

    with queue_pool(lambda: psycopg.connect(url, autocommit=True), size) as pool:
        yield pool


@contextmanager
def _psycopg2(url: str, size: int) -> Iterator[Any]:
    from psycopg2.pool import ThreadedConnectionPool

    pool = ThreadedConnectionPool(size, size, url)
    yield pool
    pool.closeall()


@asynccontextmanager
async def _async_bare(url: str, size: int) -> AsyncIterator[Any]:
    import psycopg

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        yield conn


@asynccontextmanager
async def _async_millpond(url: str, size: int) -> AsyncIterator[Any]:
    from millpond.connectors.psycopg import AsyncPsycopg

    connector = AsyncPsycopg(url, autocommit=True)
    async with AsyncPool(connector, min_size=size, max_size=size, max_opening=size, timeout=ENDLESS) as pool:
        await pool.warm()
        yield pool


@asynccontextmanager
async def _async_psycopg_pool(url: str, size: int) -> AsyncIterator[Any]:
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(
        url, kwargs={"autocommit": True}, min_size=size, max_size=size, timeout=ENDLESS, open=False
    ) as pool:
        await pool.wait()
        yield pool


@asynccontextmanager
async def _asyncpg_bare(url: str, size: int) -> AsyncIterator[Any]:
    import asyncpg

    conn = await asyncpg.connect(url)
    yield conn
    await conn.close()


@asynccontextmanager
async def _asyncpg_millpond(url: str, reset: Reset, size: int) -> AsyncIterator[Any]:
    from millpond.connectors.asyncpg import Asyncpg

    connector = Asyncpg(url, reset=reset)
    async with AsyncPool(connector, min_size=size, max_size=size, max_opening=size, timeout=ENDLESS) as pool:
        await pool.warm()
        yield pool


@asynccontextmanager
async def _asyncpg_pool(url: str, size: int, **options: Any) -> AsyncIterator[Any]:
    import asyncpg

    async with asyncpg.create_pool(url, min_size=size, max_size=size, **options) as pool:
        yield pool


async def _nothing_more(conn: object) -> None:
    """Have asyncpg's pool do no more on a return than to roll back what is open."""


@asynccontextmanager
async def _async_sqlalchemy(url: str, size: int) -> AsyncIterator[Any]:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://"), pool_size=size, max_overflow=0, pool_timeout=ENDLESS
    )
    conns = [await engine.connect() for _ in range(size)]
    for conn in conns:
        await conn.close()
    yield engine
    await engine.dispose()


BARE = "conn = pool\nWORK"
GET = "conn = pool.getconn()\ntry:\n    WORK\nfinally:\n    pool.putconn(conn)"
ACQUIRE = "async with pool.acquire() as conn:\n    WORK"


def threads(url: str) -> Sequence[Contestant]:
    """Return those for threads, on the server at a URL."""
    return (
        Contestant("floor: one connection", BARE, partial(_bare, url), PSYCOPG),
        Contestant("millpond", WITH, partial(_millpond, url, "transaction"), PSYCOPG),
        Contestant("psycopg_pool", WITH, partial(_psycopg_pool, url), PSYCOPG),
        Contestant("SQLAlchemy QueuePool", CONNECT, partial(_sqlalchemy, url), PSYCOPG),
        Contestant("psycopg2.pool", GET, partial(_psycopg2, url), "psycopg2"),
    )


def tasks(url: str) -> Sequence[Contestant]:
    """Return those for tasks."""
    return (
        Contestant("floor: one connection", BARE, partial(_async_bare, url), ASYNC_PSYCOPG),
        Contestant("millpond", f"async {WITH}", partial(_async_millpond, url), ASYNC_PSYCOPG),
        Contestant("psycopg_pool", f"async {WITH}", partial(_async_psycopg_pool, url), ASYNC_PSYCOPG),
        Contestant("floor: one connection", BARE, partial(_asyncpg_bare, url), ASYNCPG),
        Contestant("millpond", f"async {WITH}", partial(_asyncpg_millpond, url, "transaction"), ASYNCPG),
        Contestant('millpond, reset="session"', f"async {WITH}", partial(_asyncpg_millpond, url, "session"), ASYNCPG),
        Contestant("asyncpg's pool", ACQUIRE, partial(_asyncpg_pool, url), ASYNCPG),
        Contestant(
            "asyncpg's pool, no session reset", ACQUIRE, partial(_asyncpg_pool, url, reset=_nothing_more), ASYNCPG
        ),
        Contestant(
            "SQLAlchemy async", "async with pool.connect() as conn:\n    WORK", partial(_async_sqlalchemy, url), ASYNCPG
        ),
    )


def resets(url: str) -> Sequence[Contestant]:
    """Return those that reset what comes back, in different ways."""
    millpond = Contestant("millpond", WITH, partial(_millpond, url, "transaction"), PSYCOPG)
    session = Contestant('millpond, reset="session"', WITH, partial(_millpond, url, "session"), PSYCOPG)
    bare = next(each for each in threads(url) if each.floor)
    pool = next(each for each in threads(url) if each.name == "psycopg_pool")
    others = [each for each in tasks(url) if each.lends == ASYNCPG and each.name != "SQLAlchemy async"]
    return (bare, millpond, session, pool, *others)
