"""Pools that lend anything, and here an object that leads nowhere: what is measured is the pool alone.

Nothing can be asked of such an object, so no pool checks it; what a pool does on each return of its own accord is left
on only where its documentation does not offer to leave it out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from benchmarks.race import Contestant
from millpond import AsyncPool, Pool

__all__ = [
    "CONNECT",
    "EMPTY",
    "EMPTY_OF_TASKS",
    "ENDLESS",
    "OURS",
    "OURS_OF_TASKS",
    "TASKS",
    "THREADS",
    "WITH",
    "Connection",
    "queue_pool",
]

ENDLESS = 3600.0
"""Seconds that a caller waits at most, where a pool wants to know."""


class Connection:
    """Leads nowhere."""

    def close(self) -> None:
        """Do nothing."""

    def rollback(self) -> None:
        """Do nothing."""

    def commit(self) -> None:
        """Do nothing."""

    def cursor(self) -> None:
        """Do nothing: DBUtils wants it to be there."""


class Empty:
    """A context manager that does nothing."""

    __slots__ = ()

    def __enter__(self) -> Empty:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        pass

    async def __aenter__(self) -> Empty:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        pass


@contextmanager
def _empty(size: int) -> Iterator[type[Empty]]:
    yield Empty


@contextmanager
def _deque(size: int) -> Iterator[deque[Connection]]:
    yield deque(Connection() for _ in range(size))


@contextmanager
def _lifo_queue(size: int) -> Iterator[Any]:
    import queue

    pool: queue.LifoQueue[Connection] = queue.LifoQueue()
    for _ in range(size):
        pool.put(Connection())
    yield pool


@contextmanager
def _millpond(size: int, **settings: Any) -> Iterator[Any]:
    with Pool(Connection, min_size=size, max_size=size, timeout=ENDLESS, **settings) as pool:
        pool.warm()
        yield pool


@contextmanager
def _noting(size: int) -> Iterator[Any]:
    with _millpond(size, leak_after=ENDLESS) as pool:
        yield pool


@contextmanager
def queue_pool(connect: Any, size: int, **options: Any) -> Iterator[Any]:
    """Make SQLAlchemy's own pool, which lends whatever looks like a connection of a DB-API."""
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(connect, pool_size=size, max_overflow=0, timeout=ENDLESS, use_lifo=True, **options)
    for conn in [pool.connect() for _ in range(size)]:
        conn.close()
    yield pool
    pool.dispose()


@contextmanager
def _sqlalchemy(size: int) -> Iterator[Any]:
    with queue_pool(Connection, size, reset_on_return=None) as pool:
        yield pool


@contextmanager
def _dbutils(size: int) -> Iterator[Any]:
    from dbutils.pooled_db import PooledDB

    class Module:
        """A DB-API module, as far as DBUtils looks at one."""

        threadsafety = 1
        OperationalError = InterfaceError = InternalError = ConnectionError

        @staticmethod
        def connect() -> Connection:
            return Connection()

    pool = PooledDB(Module, mincached=size, maxcached=size, maxconnections=size, blocking=True, reset=False, ping=0)
    yield pool
    pool.close()


@contextmanager
def _connpool(size: int) -> Iterator[Any]:
    from connpool import ConnectionPool, PoolConfig

    config = PoolConfig(min_size=size, max_size=size, acquire_timeout=ENDLESS, validate_after_idle=None)
    with ConnectionPool.from_callables(Connection, config=config) as pool:
        yield pool


@contextmanager
def _generic(size: int) -> Iterator[Any]:
    from generic_connection_pool.threading import BaseConnectionManager, ConnectionPool

    class Manager(BaseConnectionManager[str, Connection]):
        def create(self, endpoint: str, timeout: float | None = None) -> Connection:
            return Connection()

        def dispose(self, endpoint: str, conn: Connection, timeout: float | None = None) -> None:
            conn.close()

    pool = ConnectionPool[str, Connection](
        Manager(), min_idle=size, max_size=size, total_max_size=size, background_collector=True
    )
    for conn in [pool.acquire("db") for _ in range(size)]:
        pool.release(conn, "db")
    yield pool
    pool.close()


@asynccontextmanager
async def _millpond_of_tasks(size: int) -> AsyncIterator[Any]:
    async def connect() -> Connection:
        return Connection()

    async with AsyncPool[Connection](connect, min_size=size, max_size=size, timeout=ENDLESS) as pool:
        await pool.warm()
        yield pool


@asynccontextmanager
async def _lifo_queue_of_tasks(size: int) -> AsyncIterator[Any]:
    import asyncio

    pool: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    for _ in range(size):
        pool.put_nowait(Connection())
    yield pool


@asynccontextmanager
async def _connpool_of_tasks(size: int) -> AsyncIterator[Any]:
    from connpool import AsyncConnectionPool, PoolConfig

    config = PoolConfig(min_size=size, max_size=size, acquire_timeout=ENDLESS, validate_after_idle=None)
    pool: AsyncConnectionPool[Connection] = AsyncConnectionPool.from_callables(Connection, config=config)
    async with pool:
        yield pool


@asynccontextmanager
async def _generic_of_tasks(size: int) -> AsyncIterator[Any]:
    from generic_connection_pool.asyncio import BaseConnectionManager, ConnectionPool

    class Manager(BaseConnectionManager[str, Connection]):
        async def create(self, endpoint: str, timeout: float | None = None) -> Connection:
            return Connection()

        async def dispose(self, endpoint: str, conn: Connection, timeout: float | None = None) -> None:
            conn.close()

    pool = ConnectionPool[str, Connection](
        Manager(), min_idle=size, max_size=size, total_max_size=size, background_collector=True
    )
    for conn in [await pool.acquire("db") for _ in range(size)]:
        await pool.release(conn, "db")
    yield pool
    await pool.close()


CONNECT = "conn = pool.connect()\ntry:\n    WORK\nfinally:\n    conn.close()"
WITH = "with pool.connection() as conn:\n    WORK"
QUEUE = "conn = pool.get()\ntry:\n    WORK\nfinally:\n    pool.put(conn)"

EMPTY = Contestant("floor: an empty with", "with pool() as conn:\n    WORK", _empty)
OURS = Contestant("millpond", WITH, _millpond)
THREADS = (
    EMPTY,
    Contestant("floor: deque.pop, append", "conn = pool.pop()\nWORK\npool.append(conn)", _deque),
    OURS,
    Contestant("millpond, call sites noted", WITH, _noting),
    Contestant("queue.LifoQueue", QUEUE, _lifo_queue),
    Contestant(
        "SQLAlchemy QueuePool", "conn = pool.connect()\ntry:\n    WORK\nfinally:\n    conn.close()", _sqlalchemy
    ),
    Contestant("DBUtils PooledDB", "with pool.connection() as conn:\n    WORK", _dbutils),
    Contestant("connpool", WITH, _connpool),
    Contestant("generic-connection-pool", 'with pool.connection("db") as conn:\n    WORK', _generic),
)

EMPTY_OF_TASKS = Contestant("floor: an empty async with", "async with pool() as conn:\n    WORK", _empty)
OURS_OF_TASKS = Contestant("millpond", f"async {WITH}", _millpond_of_tasks)
TASKS = (
    EMPTY_OF_TASKS,
    OURS_OF_TASKS,
    Contestant(
        "asyncio.LifoQueue",
        QUEUE.replace("pool.get()", "await pool.get()").replace("pool.put(", "pool.put_nowait("),
        _lifo_queue_of_tasks,
    ),
    Contestant("connpool", f"async {WITH}", _connpool_of_tasks),
    Contestant("generic-connection-pool", 'async with pool.connection("db") as conn:\n    WORK', _generic_of_tasks),
)
