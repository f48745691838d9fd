"""What it takes to begin: the import, and the time to the first query of a pool whose connections are slow to open."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from statistics import median
from typing import Any

from benchmarks.figure import Figure
from benchmarks.page.section import Bar, Bars, Section, Table, time_of
from benchmarks.peers.objects import ENDLESS
from benchmarks.race import Contestant, LeftOut, reason_of
from millpond import Pool
from millpond.testing import Postgres

__all__ = ["run"]

MIN_SIZE = 10
CONNECT = 0.1
IMPORT_GOAL = 15.0
START_GOAL = 0.15
MODULES = (
    "millpond",
    "millpond.aio",
    "connpool",
    "generic_connection_pool.threading",
    "dbutils.pooled_db",
    "psycopg_pool",
    "asyncpg",
    "sqlalchemy.pool",
    "redis",
    "urllib3",
    "requests",
    "httpcore2",
    "aiohttp",
)
IMPORT = """
import sys, time
before = set(sys.modules)
began = time.perf_counter()
import {module}
took = time.perf_counter() - began
brought = {{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names
# Cython and sysconfig bring modules that have no package.
print(took, *sorted(name for name in brought if not name.startswith(("_", "cython_"))))
"""

TEXT = """
An import is timed within a fresh interpreter, so what the interpreter itself takes is not in it; a driver that a pool
cannot do without is. Then a pool is made that is to have 10 connections at least, each of which takes 100 ms to open,
and one caller asks for `select 1`: the time from making the pool to the answer.
"""
WHY = ""


def run(quick: bool) -> Section:
    """Measure both."""
    rounds = 2 if quick else 9
    left_out: list[LeftOut] = []
    imports = _imports(rounds, left_out)
    starts = _starts(rounds, left_out)
    rows = [(f"**{name}**" if name.startswith("millpond") else name, *cells) for name, cells in imports[1].items()]
    tables = [
        Table(("import", "takes", "brings besides the standard library"), rows),
        Table(
            ("a pool of at least 10", "first query after"),
            [(f"**{name}**" if name.startswith("millpond") else name, time_of(took)) for name, took in starts.items()],
        ),
    ]
    bars = [
        Bar("psycopg or asyncpg", name, took, took, took, "ours" if name.startswith("millpond") else "peer")
        for name, took in starts.items()
    ]
    took, foreign = imports[0]
    figures = [
        Figure("import millpond", "beyond the interpreter", took * 1e3, " ms", IMPORT_GOAL, digits=1),
        Figure("import millpond", "modules of others imported", len(foreign), "", 0, digits=0),
        *(
            Figure("first query", name, took, " s", START_GOAL)
            for name, took in starts.items()
            if name.startswith("millpond")
        ),
    ]
    chart = Bars("start", "From making the pool to the first answer, connects take 0.1 s", "s", bars)
    return Section("Start", TEXT, tables, [chart], figures, left_out, why=WHY)


Imports = tuple[tuple[float, set[str]], dict[str, tuple[str, str]]]


def _imports(rounds: int, left_out: list[LeftOut]) -> Imports:
    times: dict[str, list[float]] = {}
    brought: dict[str, list[str]] = {}
    # The first time writes what is compiled, and does not count.
    for number in range(rounds + 1):
        for module in MODULES:
            command = [sys.executable, "-c", IMPORT.format(module=module)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                if not number:
                    left_out.append(LeftOut(_nameless(module), done.stderr.strip().splitlines()[-1]))
            elif number:
                took, *foreign = done.stdout.split()
                times.setdefault(module, []).append(float(took))
                brought[module] = [name for name in foreign if name != module.partition(".")[0]]
    cells = {
        module: (time_of(median(times[module])), ", ".join(brought[module]) or "nothing")
        for module in MODULES
        if module in times
    }
    return (median(times["millpond"]), set(brought["millpond"])), cells


def _nameless(name: str) -> Contestant:
    return Contestant(name, "", lambda size: _nothing())


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _millpond(url: str) -> Iterator[Any]:
    from millpond.connectors.psycopg import Psycopg

    class Slow(Psycopg[Any]):
        def open(self, timeout: float) -> Any:
            time.sleep(CONNECT)
            return super().open(timeout)

    with Pool(Slow(url, autocommit=True), min_size=MIN_SIZE, max_size=MIN_SIZE) as pool, pool.connection() as conn:
        yield conn.execute("select 1").fetchone()


@contextmanager
def _psycopg_pool(url: str) -> Iterator[Any]:
    import psycopg
    from psycopg_pool import ConnectionPool

    class Slow(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *arguments: Any, **options: Any) -> Any:
            time.sleep(CONNECT)
            return super().connect(*arguments, **options)

    with (
        ConnectionPool(
            url, connection_class=Slow, kwargs={"autocommit": True}, min_size=MIN_SIZE, max_size=MIN_SIZE, open=False
        ) as pool,
        pool.connection() as conn,
    ):
        yield conn.execute("select 1").fetchone()


@contextmanager
def _connpool(url: str) -> Iterator[Any]:
    from connpool import ConnectionPool, PoolConfig

    config = PoolConfig(min_size=MIN_SIZE, max_size=MIN_SIZE, acquire_timeout=ENDLESS)
    with ConnectionPool.from_callables(lambda: _connect(url), config=config) as pool, pool.connection() as conn:
        yield conn.execute("select 1").fetchone()


@contextmanager
def _sqlalchemy(url: str) -> Iterator[Any]:
    from sqlalchemy.pool import QueuePool

    creator: Any = lambda: _connect(url)  # noqa: E731
    pool = QueuePool(creator, pool_size=MIN_SIZE, max_overflow=0)
    conn: Any = pool.connect()
    try:
        yield conn.execute("select 1").fetchone()
    finally:
        conn.close()
        pool.dispose()


def _connect(url: str) -> Any:
    import psycopg

    time.sleep(CONNECT)
    return psycopg.connect(url, autocommit=True)


@contextmanager
def _by_task(start: Callable[[str], Any], url: str) -> Iterator[Any]:
    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
        opening = start(url)
        yield runner.run(opening.__aenter__())
        runner.run(opening.__aexit__(None, None, None))


@asynccontextmanager
async def _millpond_asyncpg(url: str) -> AsyncIterator[Any]:
    from millpond import AsyncPool
    from millpond.connectors.asyncpg import Asyncpg

    class Slow(Asyncpg):
        async def open(self, timeout: float) -> Any:
            await asyncio.sleep(CONNECT)
            return await super().open(timeout)

    async with AsyncPool(Slow(url), min_size=MIN_SIZE, max_size=MIN_SIZE) as pool, pool.connection() as conn:
        yield await conn.fetchval("select 1")


@asynccontextmanager
async def _asyncpg(url: str) -> AsyncIterator[Any]:
    import asyncpg

    async def connect(*arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(CONNECT)
        return await asyncpg.connect(*arguments, **options)

    opening = asyncpg.create_pool(url, min_size=MIN_SIZE, max_size=MIN_SIZE, connect=connect)
    async with opening as pool, pool.acquire() as conn:
        yield await conn.fetchval("select 1")


STARTS: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "millpond, psycopg": _millpond,
    "psycopg_pool": _psycopg_pool,
    "SQLAlchemy QueuePool, psycopg": _sqlalchemy,
    "connpool, psycopg": _connpool,
    "millpond, asyncpg": lambda url: _by_task(_millpond_asyncpg, url),
    "asyncpg's pool": lambda url: _by_task(_asyncpg, url),
}


def _starts(rounds: int, left_out: list[LeftOut]) -> dict[str, float]:
    times: dict[str, list[float]] = {}
    with Postgres() as server:
        for _ in range(rounds + 1):
            for name, start in STARTS.items():
                try:
                    starting = start(server.url)
                    began = time.perf_counter()
                    with starting:
                        times.setdefault(name, []).append(time.perf_counter() - began)
                except Exception as error:
                    if all(out.contestant.name != name for out in left_out):
                        left_out.append(LeftOut(_nameless(name), reason_of(error)))
    # The first time imports.
    return {name: median(each[1:]) for name, each in times.items() if len(each) > 1}
