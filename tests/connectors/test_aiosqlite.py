from __future__ import annotations

import asyncio
import contextlib
import importlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import pytest

from millpond import AsyncPool
from millpond.connector import AsyncConnector, Condition
from millpond.connectors.aiosqlite import Aiosqlite

CLEAN, UNPROVED, DIRTY, BROKEN = Condition

SOME = "with recursive n(x) as (select 1 union all select x + 1 from n where x < {}) select x from n"
# Runs until it is interrupted.
ENDLESS = "with recursive n(x) as (select 1 union all select x + 1 from n) select count(*) from n"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def connector(tmp_path: Path) -> Aiosqlite:
    return Aiosqlite(tmp_path / "app.db", wal=True)


@pytest.fixture
async def conn(connector: Aiosqlite) -> AsyncIterator[aiosqlite.Connection]:
    conn = await connector.open(5)
    await conn.execute("create table work (x int)")
    await conn.executemany("insert into work values (?)", [(x,) for x in range(10)])
    await conn.commit()
    yield conn
    connector.abandon(conn)
    await asyncio.to_thread(conn._thread.join, 10)
    assert not conn._thread.is_alive()


async def begun(conn: aiosqlite.Connection) -> asyncio.Task[Any]:
    """Begin a statement that does not end by itself, and return once the thread is in it."""
    running = threading.Event()
    await conn.create_function("running", 0, running.set)
    task = asyncio.ensure_future(
        conn.execute_fetchall(ENDLESS.replace("select 1", "select 1 + coalesce(running(), 0)"))
    )
    await asyncio.to_thread(running.wait, 10)
    return task


async def test_a_new_connection_is_clean_and_alive(
    connector: AsyncConnector[aiosqlite.Connection], conn: aiosqlite.Connection
) -> None:
    assert connector.provable
    assert connector.inspect(conn, None) is CLEAN
    assert connector.alive(conn)
    assert connector.descriptor(conn) is None
    await connector.ping(conn, 5)
    assert connector.inspect(conn, None) is CLEAN


async def test_an_open_transaction_is_dirty_until_it_is_rolled_back(
    connector: Aiosqlite, conn: aiosqlite.Connection
) -> None:
    await conn.execute("delete from work")
    assert connector.inspect(conn, None) is DIRTY
    await connector.reset(conn, 5)
    assert connector.inspect(conn, None) is CLEAN
    assert list(await conn.execute_fetchall("select count(*) from work")) == [(10,)]


async def test_a_half_read_cursor_breaks_the_connection(connector: Aiosqlite, conn: aiosqlite.Connection) -> None:
    cursor = await conn.execute("select * from work")
    await cursor.fetchone()
    assert connector.inspect(conn, None) is BROKEN
    await cursor.close()
    assert connector.inspect(conn, None) is CLEAN


async def test_a_half_read_cursor_behind_another_change_reaches_nobody(
    tmp_path: Path, conn: aiosqlite.Connection
) -> None:
    """Its snapshot of the database would be the next borrower's, who could not write either."""
    async with AsyncPool(Aiosqlite(tmp_path / "app.db", wal=True), max_size=1) as pool:
        async with pool.connection() as lent:
            lent.row_factory = sqlite3.Row
            await lent.execute(f"insert into work {SOME.format(500)}")
            held = await lent.execute("select * from work")
            await held.fetchone()
        await conn.execute("insert into work values (99)")
        await conn.commit()
        for number in range(3):
            async with pool.connection() as lent:
                assert list(await lent.execute_fetchall("select count(*) from work")) == [(11 + number,)]
                await lent.execute("insert into work values (100)")
                await lent.commit()
        assert pool.stats().closes == {"reset failed": 1}
        with pytest.raises(ValueError, match="Connection closed"):
            await held.close()


async def test_what_a_borrower_changed_does_not_reach_the_next(
    connector: Aiosqlite, conn: aiosqlite.Connection
) -> None:
    conn.row_factory = sqlite3.Row
    assert connector.inspect(conn, None) is DIRTY
    await connector.reset(conn, 5)
    assert connector.inspect(conn, None) is CLEAN
    assert conn.row_factory is None


async def test_a_cancelled_statement_goes_on_in_its_thread(connector: Aiosqlite, conn: aiosqlite.Connection) -> None:
    """Why the calls are counted; the day this fails, they need not be."""
    task = await begun(conn)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        await connector.ping(conn, 0.2)


async def test_a_connection_cancelled_in_mid_query_is_waited_out(
    connector: Aiosqlite, conn: aiosqlite.Connection
) -> None:
    for _ in range(5):
        await conn.execute("delete from work")
        task = await begun(conn)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert connector.inspect(conn, cancelled.value) is DIRTY
        assert connector.inspect(conn, None) is DIRTY
        await connector.reset(conn, 5)
        assert connector.inspect(conn, None) is CLEAN
        assert list(await conn.execute_fetchall("select count(*) from work")) == [(10,)]


@pytest.mark.parametrize("ending", ["cancelled", "returned", "lost"])
async def test_nothing_of_a_loan_begins_after_it_has_ended(
    tmp_path: Path, conn: aiosqlite.Connection, ending: str
) -> None:
    async with AsyncPool(Aiosqlite(tmp_path / "app.db", wal=True), max_size=1) as pool:
        lease = pool.connection()
        lent = await lease.__aenter__()
        tasks = [await begun(lent)]
        tasks += [asyncio.ensure_future(call) for call in (lent.execute("insert into work values (99)"), lent.commit())]
        await asyncio.sleep(0)
        if ending == "cancelled":
            for task in tasks:
                task.cancel()
        if ending == "lost":
            del lease
        else:
            await lease.__aexit__(None, None, None)
        del lent

        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, (sqlite3.Error, asyncio.CancelledError)) for result in results)
        async with pool.connection() as again:
            assert list(await again.execute_fetchall("select count(*) from work")) == [(10,)]


@pytest.mark.parametrize("many", ["script", "rows", "rows of a cursor"])
async def test_what_takes_many_statements_is_stopped_with_its_loan(tmp_path: Path, many: str) -> None:
    path = tmp_path / "app.db"
    async with AsyncPool(Aiosqlite(path, wal=True), max_size=1) as pool:
        async with pool.connection() as conn:
            await conn.execute("create table work (x int)")
            await conn.commit()
        with pytest.raises(TimeoutError):
            async with pool.connection() as conn, asyncio.timeout(0.1):
                if many == "script":
                    await conn.executescript("insert into work values (7);" * 300_000)
                else:
                    at = await conn.cursor() if "cursor" in many else conn
                    await at.executemany("insert into work values (?)", ((x,) for x in range(30_000_000)))
        async with pool.connection(timeout=5) as conn:
            counts = [-1, 0]
            while counts[-2] != counts[-1]:  # it ends within a moment
                ((count,),) = await conn.execute_fetchall("select count(*) from work")
                counts.append(count)
                await asyncio.sleep(0.2)
            assert len(counts) < 10
            assert counts[-1] < 300_000
            assert many == "script" or counts[-1] == 0
            await conn.execute("insert into work values (8)")
            await conn.commit()


async def test_a_call_that_was_cancelled_before_it_began_is_not_done(
    connector: Aiosqlite, conn: aiosqlite.Connection
) -> None:
    slow = await begun(conn)
    behind = asyncio.ensure_future(conn.execute("insert into work values (99)"))
    await asyncio.sleep(0)
    behind.cancel()
    await conn.interrupt()
    await asyncio.gather(slow, behind, return_exceptions=True)
    assert list(await conn.execute_fetchall("select count(*) from work")) == [(10,)]
    assert connector.inspect(conn, None) is CLEAN


async def test_a_thread_that_cannot_be_interrupted_fails_the_reset(
    connector: Aiosqlite, conn: aiosqlite.Connection
) -> None:
    go_on = threading.Event()
    await conn.create_function("hang", 0, lambda: go_on.wait(10) and None)
    with anyio.move_on_after(0.05):
        await conn.execute_fetchall("select hang()")
    with pytest.raises(TimeoutError):
        await connector.reset(conn, 0.1)
    assert connector.inspect(conn, None) is DIRTY
    go_on.set()


async def test_a_connection_that_its_borrower_closed_is_broken(
    connector: Aiosqlite, conn: aiosqlite.Connection
) -> None:
    await conn.close()
    assert connector.inspect(conn, None) is BROKEN
    assert not connector.alive(conn)


async def test_abandoning_ends_the_thread_in_mid_query(connector: Aiosqlite, conn: aiosqlite.Connection) -> None:
    task = await begun(conn)
    connector.abandon(conn)
    assert connector.inspect(conn, None) is BROKEN
    await asyncio.to_thread(conn._thread.join, 10)
    assert not conn._thread.is_alive()
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        await task


async def test_closing_waits_for_the_file_to_be_closed(connector: Aiosqlite, tmp_path: Path) -> None:
    conn = await connector.open(5)
    await conn.execute("create table work (x int)")
    assert (tmp_path / "app.db-wal").exists()
    await connector.close(conn)
    assert not (tmp_path / "app.db-wal").exists()
    conn._thread.join(10)
    assert not conn._thread.is_alive()


async def test_a_cancelled_open_leaves_no_thread_and_no_connection(tmp_path: Path) -> None:
    connector = Aiosqlite(tmp_path / "app.db")
    blocker = sqlite3.connect(tmp_path / "app.db", isolation_level=None)
    blocker.execute("begin exclusive")
    before = set(threading.enumerate())
    with anyio.move_on_after(0.05) as scope:
        await connector.open(60)
    assert scope.cancelled_caught
    blocker.close()
    for thread in set(threading.enumerate()) - before:
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()
    assert not (tmp_path / "app.db-wal").exists()


async def test_opening_ends_in_time(tmp_path: Path) -> None:
    connector = Aiosqlite(tmp_path / "app.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db", isolation_level=None)) as blocker:
        blocker.execute("begin exclusive")
        with pytest.raises((TimeoutError, sqlite3.OperationalError)):
            await connector.open(0.1)


async def test_connections_to_memory_share_one_database() -> None:
    connector = Aiosqlite(":memory:")
    first = await connector.open(5)
    await first.execute("create table work (x int)")
    await connector.close(first)
    second = await connector.open(5)
    assert list(await second.execute_fetchall("select count(*) from work")) == [(0,)]
    await connector.close(second)


def test_a_connection_can_be_abandoned_after_its_loop(tmp_path: Path) -> None:
    connector = Aiosqlite(tmp_path / "app.db")

    async def leave() -> aiosqlite.Connection:
        conn = await connector.open(5)
        await conn.execute("create table work (x int)")
        return conn

    conn = asyncio.run(leave())
    connector.abandon(conn)
    conn._thread.join(10)
    assert not conn._thread.is_alive()
    assert not (tmp_path / "app.db-wal").exists()


def test_a_connection_that_nobody_closed_does_not_keep_the_interpreter(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from millpond.connectors.aiosqlite import Aiosqlite\n"
        "kept = asyncio.run(Aiosqlite(sys.argv[1]).open(5))\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "app.db"], check=True, timeout=30, capture_output=True)


async def test_what_is_no_database_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "app.db").write_text("hello, hello, hello" * 100)
    connector = Aiosqlite(tmp_path / "app.db")
    with pytest.raises(sqlite3.DatabaseError) as failure:
        await connector.open(5)
    assert connector.refused(failure.value)


def test_the_target_names_the_file() -> None:
    assert repr(Aiosqlite("a.db")) == f"<Aiosqlite sqlite:///{Path.cwd()}/a.db>"


def test_a_missing_driver_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    monkeypatch.delitem(sys.modules, "millpond.connectors.aiosqlite")
    with pytest.raises(ImportError, match=r'pip install "millpond\[aiosqlite\]"'):
        importlib.import_module("millpond.connectors.aiosqlite")
