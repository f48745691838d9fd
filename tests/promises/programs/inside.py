"""Ends loans in every way there is while another thread, or task, is still inside of their connection.

`inside.py threads|tasks DRIVER POSTGRES VALKEY ECHO FOLDER` prints, as JSON: by way, what became of the four who borrow
next and of who was inside; and how many descriptors more there are at the end.

Each driver is imported where it is needed: together they take longer than all else.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from millpond import AsyncPool, Pool

SLEEP: Final = "select pg_sleep(60)"
COPY: Final = "copy (select pg_sleep(60)) to stdout"
ENDLESS: Final = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
PATIENCE: Final = 10.0
SOCKET: Final = ("returned", "released")
"""A socket does not tell that a thread waits on it."""
REDIS: Final = ("lost_before",)
"""redis-py connects anew, by itself."""
MOMENTS: Final = ("returned", "released", "failed")
"""Between two statements SQLite knows of nobody."""

postgres, valkey, echo, folder = sys.argv[3:]
Found = dict[str, tuple[list[str], str]]


class Driver(NamedTuple):
    """A connector, how one has its connections answer 42, and how one stays inside of one for a minute."""

    connector: Callable[[], Any]
    ask: Callable[[Any], Any]
    linger: Callable[[Any], Any]
    but: tuple[str, ...] = ()
    """The ways in which nothing can be told, or promised."""


def told(error: BaseException | None) -> str:
    """Tell what became of who was inside."""
    return "done" if error is None else f"failed: {type(error).__name__}"


# Threads


def sql(statement: str) -> Callable[[Any], Any]:
    def ask(conn: Any) -> Any:
        cursor = conn.cursor()
        cursor.execute(statement)
        return cursor.fetchone()[0]

    return ask


def copy(conn: Any) -> None:
    with conn.cursor().copy(COPY) as reader:
        reader.read()


def command(*words: object) -> Callable[[Any], Any]:
    def ask(conn: Any) -> Any:
        conn.send_command(*words)
        return conn.read_response()

    return ask


def say(conn: Any) -> bytes:
    conn.sendall(b"42\n")
    answer: bytes = conn.recv(16)
    return answer


def hear(conn: Any) -> None:
    if not conn.recv(1):
        raise ConnectionError("the connection is at its end")


count = sql(ENDLESS)


def write(conn: Any) -> None:
    conn.execute("create table if not exists notes (x)")
    conn.execute("insert into notes values (1)")
    # The number of an error is the connection's and not the statement's: who is interrupted may see no row instead.
    count(conn)


BUSY: Final = (count, write)
"""Those who keep a processor busy while they are inside."""


def go_on(conn: Any) -> None:
    cursor = conn.cursor()
    while True:
        cursor.execute("select 42").fetchall()
        conn.execute("select count(*) from sqlite_schema").fetchall()
        conn.executescript("select 1; select 2;")
        conn.serialize()


def psycopg() -> object:
    from millpond.connectors.psycopg import Psycopg

    return Psycopg(postgres)


def psycopg_own() -> object:
    from psycopg import Connection

    from millpond.connectors.psycopg import Psycopg

    class Own(Connection[Any]):
        """A connection with a goodbye of its own, for which it needs psycopg's lock."""

        def close(self) -> None:
            if not self.closed:
                self.execute("select 'goodbye'")
            super().close()

    return Psycopg(postgres, connection_class=Own)


def psycopg2() -> object:
    from psycopg2 import connect

    from millpond.connectors.dbapi import DBAPI

    return DBAPI(connect, postgres)


def redis() -> object:
    from millpond.connectors.redis import Redis

    return Redis(valkey)


def sqlite() -> object:
    from millpond.connectors.sqlite import Sqlite

    return Sqlite(Path(folder) / "inside.db", busy_timeout=1)


def stream() -> object:
    from millpond.connectors.sockets import Socket

    return Socket("127.0.0.1", int(echo))


THREADS: Final = {
    "psycopg": Driver(psycopg, sql("select 42"), sql(SLEEP)),
    "psycopg-copy": Driver(psycopg, sql("select 42"), copy),
    "psycopg-own": Driver(psycopg_own, sql("select 42"), sql(SLEEP)),
    "psycopg2": Driver(psycopg2, sql("select 42"), sql(SLEEP)),
    "redis": Driver(redis, command("ECHO", "42"), command("BLPOP", "nothing", 60), but=REDIS),
    "sqlite": Driver(sqlite, sql("select 42"), count),
    "sqlite-writing": Driver(sqlite, sql("select 42"), write),
    "sqlite-moments": Driver(sqlite, sql("select 42"), go_on, but=MOMENTS),
    "socket": Driver(stream, say, hear, but=SOCKET),
}


def seconds_of(thread: int | None) -> float:
    """How long a thread has used a processor."""
    try:
        told = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


class Inside(threading.Thread):
    """Somebody who is inside of a connection."""

    def __init__(self, linger: Callable[[Any], Any], conn: Any) -> None:
        super().__init__(daemon=True)
        self.linger, self.conn = linger, conn
        self.ended = "hangs"
        self.start()
        time.sleep(0.05)
        if linger in BUSY:
            # What comes before takes less. Between two statements SQLite knows of nobody.
            until(lambda: not self.is_alive() or seconds_of(self.native_id) >= 0.02)

    def run(self) -> None:
        error: Exception | None = None
        try:
            self.linger(self.__dict__.pop("conn"))
        except Exception as raised:
            error = raised
        self.ended = told(error)


class Ways:
    """Every way in which a loan can end, or a connection thereafter."""

    def returned(self, pool: Any, enter: Callable[[Any], None]) -> None:
        with pool.connection() as conn:
            enter(conn)

    def released(self, pool: Any, enter: Callable[[Any], None]) -> None:
        conn = pool.acquire()
        enter(conn)
        pool.release(conn)

    def failed(self, pool: Any, enter: Callable[[Any], None]) -> None:
        with contextlib.suppress(LookupError), pool.connection() as conn:
            enter(conn)
            raise LookupError

    def discarded(self, pool: Any, enter: Callable[[Any], None]) -> None:
        with pool.connection() as conn:
            enter(conn)
            pool.discard(conn)

    def lost(self, pool: Any, enter: Callable[[Any], None]) -> None:
        """Its lease is gone while it is in use."""
        leases = [pool.connection()]
        enter(leases[0].__enter__())
        del leases[0]

    def lost_before(self, pool: Any, enter: Callable[[Any], None]) -> None:
        """Its lease is gone before it is used: the pool has ended it."""
        conn = pool.connection().__enter__()
        until(lambda: pool.stats().size == 0)
        enter(conn)

    def late(self, pool: Any, enter: Callable[[Any], None]) -> None:
        """It is used when it has long been returned, and is closed for its age."""
        with pool.connection() as conn:
            pass
        enter(conn)
        pool.refresh()

    def closed(self, pool: Any, enter: Callable[[Any], None]) -> None:
        """Its pool is closed."""
        with pool.connection() as conn:
            enter(conn)
            pool.close(0.1)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < end:
        time.sleep(0.001)


def borrow(pool: Any, ask: Callable[[Any], Any], answers: list[str]) -> None:
    try:
        with pool.connection(timeout=PATIENCE) as conn:
            answers.append(str(int(ask(conn))))
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")


def in_threads(driver: Driver, ways: list[str]) -> Found:
    found: Found = {}
    with Pool(driver.connector(), max_size=4) as others:
        for name in ways:
            with Pool(driver.connector(), max_size=4) as pool:
                found[name] = in_threads_one_way(getattr(Ways(), name), driver, pool, others)
    return found


def in_threads_one_way(
    end: Callable[[Any, Callable[[Any], None]], None], driver: Driver, pool: Any, others: Any
) -> tuple[list[str], str]:
    inside: list[Inside] = []
    end(pool, lambda conn: inside.append(Inside(driver.linger, conn)))
    answers: list[str] = []
    innocents = [threading.Thread(target=borrow, args=(each, driver.ask, answers)) for each in lenders(pool, others)]
    for innocent in innocents:
        innocent.start()
    for innocent in innocents:
        innocent.join()
    inside[0].join(PATIENCE)
    return answers, inside[0].ended


# Tasks


def async_sql(statement: str) -> Callable[[Any], Any]:
    async def ask(conn: Any) -> Any:
        return (await (await conn.execute(statement)).fetchone())[0]

    return ask


async def async_copy(conn: Any) -> None:
    async with conn.cursor().copy(COPY) as reader:
        await reader.read()


def async_command(*words: object) -> Callable[[Any], Any]:
    async def ask(conn: Any) -> Any:
        await conn.send_command(*words)
        return await conn.read_response()

    return ask


async def async_say(conn: Any) -> bytes:
    await conn.send(b"42\n")
    answer: bytes = await conn.receive(16)
    return answer


def async_psycopg() -> object:
    from millpond.connectors.psycopg import AsyncPsycopg

    return AsyncPsycopg(postgres)


def asyncpg() -> object:
    from millpond.connectors.asyncpg import Asyncpg

    return Asyncpg(postgres)


def aiosqlite() -> object:
    from millpond.connectors.aiosqlite import Aiosqlite

    return Aiosqlite(Path(folder) / "inside.db")


def async_redis() -> object:
    from millpond.connectors.redis import AsyncRedis

    return AsyncRedis(valkey)


def async_stream() -> object:
    from millpond.connectors.sockets import AsyncSocket

    return AsyncSocket("127.0.0.1", int(echo))


TASKS: Final = {
    "psycopg": Driver(async_psycopg, async_sql("select 42"), async_sql(SLEEP)),
    "psycopg-copy": Driver(async_psycopg, async_sql("select 42"), async_copy),
    "asyncpg": Driver(asyncpg, lambda conn: conn.fetchval("select 42"), lambda conn: conn.fetchval(SLEEP)),
    "aiosqlite": Driver(aiosqlite, async_sql("select 42"), async_sql(ENDLESS)),
    "redis": Driver(async_redis, async_command("ECHO", "42"), async_command("BLPOP", "nothing", 60), but=REDIS),
    "socket": Driver(async_stream, async_say, lambda conn: conn.receive()),
}

Enter = Callable[[Any], Awaitable[None]]


class AsyncWays:
    """The same."""

    async def returned(self, pool: Any, enter: Enter) -> None:
        async with pool.connection() as conn:
            await enter(conn)

    async def released(self, pool: Any, enter: Enter) -> None:
        conn = await pool.acquire()
        await enter(conn)
        pool.release(conn)

    async def failed(self, pool: Any, enter: Enter) -> None:
        with contextlib.suppress(LookupError):
            async with pool.connection() as conn:
                await enter(conn)
                raise LookupError

    async def discarded(self, pool: Any, enter: Enter) -> None:
        async with pool.connection() as conn:
            await enter(conn)
            pool.discard(conn)

    async def lost(self, pool: Any, enter: Enter) -> None:
        leases = [pool.connection()]
        await enter(await leases[0].__aenter__())
        del leases[0]

    async def lost_before(self, pool: Any, enter: Enter) -> None:
        conn = await pool.connection().__aenter__()
        while pool.stats().size:
            await asyncio.sleep(0.001)
        await enter(conn)

    async def late(self, pool: Any, enter: Enter) -> None:
        async with pool.connection() as conn:
            pass
        await enter(conn)
        pool.refresh()

    async def closed(self, pool: Any, enter: Enter) -> None:
        async with pool.connection() as conn:
            await enter(conn)
            await pool.close(0.1)


async def borrow_async(pool: Any, ask: Callable[[Any], Awaitable[Any]]) -> str:
    try:
        async with pool.connection(timeout=PATIENCE) as conn:
            return str(int(await ask(conn)))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def in_tasks(driver: Driver, ways: list[str]) -> Found:
    found: Found = {}
    async with AsyncPool(driver.connector(), max_size=4) as others:
        for name in ways:
            async with AsyncPool(driver.connector(), max_size=4) as pool:
                found[name] = await in_tasks_one_way(getattr(AsyncWays(), name), driver, pool, others)
    return found


async def in_tasks_one_way(
    end: Callable[[Any, Enter], Awaitable[None]], driver: Driver, pool: Any, others: Any
) -> tuple[list[str], str]:
    inside: list[asyncio.Task[Any]] = []

    async def enter(conn: Any) -> None:
        inside.append(asyncio.ensure_future(driver.linger(conn)))
        await asyncio.sleep(0.05)

    await end(pool, enter)
    answers = await asyncio.gather(*(borrow_async(each, driver.ask) for each in lenders(pool, others)))
    done, _ = await asyncio.wait(inside, timeout=PATIENCE)
    return list(answers), told(inside[0].exception()) if done else "hangs"


# Both


def lenders(pool: Any, others: Any) -> list[Any]:
    """Return of whom the four borrow: also of another pool, and only of that if this one is closed."""
    return [others, others, others, others] if pool._core.closing else [pool, others, pool, others]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def main(kind: str, name: str) -> None:
    driver = (THREADS if kind == "threads" else TASKS)[name]
    ways = [way for way in vars(Ways) if not way.startswith("_") and way not in driver.but]

    def run(ways: list[str]) -> Found:
        return in_threads(driver, ways) if kind == "threads" else asyncio.run(in_tasks(driver, ways))

    run(["failed"])  # which opens what stays for good, such as the watcher's
    before = descriptors()
    found = run(ways)
    gc.collect()
    until(lambda: descriptors() <= before)
    print(json.dumps({"ways": found, "descriptors": descriptors() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:3])
