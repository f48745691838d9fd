from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import select
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from time import monotonic
from typing import Any, Literal

import anyio
import asyncpg
import pytest

from millpond import AsyncPool
from millpond.connector import AsyncConnector, Condition
from millpond.connectors.asyncpg import Asyncpg, _awaited
from millpond.testing import Postgres
from millpond.testing.proxy import Proxy

CLEAN, UNPROVED, DIRTY, BROKEN = Condition

Conn = Any  # asyncpg tells a type checker little
Wire = Callable[[str, int], Proxy]

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def opened(connector: Asyncpg) -> AsyncIterator[Conn]:
    conn = await connector.open(5)
    try:
        yield conn
    finally:
        connector.abandon(conn)


@pytest.fixture
def connector(postgres: Postgres) -> Asyncpg:
    return Asyncpg(postgres.url)


@pytest.fixture
async def conn(connector: Asyncpg) -> AsyncIterator[Conn]:
    async with opened(connector) as conn:
        yield conn


async def wait_until_busy(postgres: Postgres, conn: Conn) -> None:
    """Wait until the server is at work for a connection."""
    query = f"select 1 from pg_stat_activity where pid = {conn.get_server_pid()} and wait_event = 'PgSleep'"
    while not await asyncio.to_thread(postgres.execute, query):
        pass


@contextlib.contextmanager
def within(least: float, most: float) -> Iterator[None]:
    begin = monotonic()
    yield
    assert least <= monotonic() - begin <= most


# What is proved about a connection that comes back


async def test_a_new_connection_is_clean_and_alive(connector: AsyncConnector[Conn], conn: Conn) -> None:
    assert connector.provable
    assert connector.inspect(conn, None) is CLEAN
    assert connector.alive(conn)
    descriptor = connector.descriptor(conn)
    assert descriptor is not None
    with socket.socket(fileno=socket.dup(descriptor)) as twin:
        assert twin.getpeername()[1] == conn._addr[1]


async def test_a_query_leaves_it_clean(connector: Asyncpg, conn: Conn) -> None:
    assert await conn.fetchval("select $1::int", 1) == 1
    await conn.executemany("select $1::int", [(1,), (2,)])
    with pytest.raises(asyncpg.DivisionByZeroError) as failure:
        await conn.fetchval("select 1 / 0")
    assert connector.inspect(conn, failure.value) is CLEAN


async def test_an_open_transaction_is_dirty_until_it_is_rolled_back(connector: Asyncpg, conn: Conn) -> None:
    await conn.execute("create temporary table work (x int)")
    await conn.transaction().start()
    await conn.execute("insert into work values (1)")
    assert connector.inspect(conn, None) is DIRTY
    await connector.reset(conn, 5)
    assert connector.inspect(conn, None) is CLEAN
    assert await conn.fetch("select * from work") == []
    async with conn.transaction():  # asyncpg has forgotten the old one, too
        await conn.execute("insert into work values (1)")
    assert connector.inspect(conn, None) is CLEAN


async def test_a_failed_transaction_is_dirty_until_it_is_rolled_back(connector: Asyncpg, conn: Conn) -> None:
    await conn.execute("begin")
    with pytest.raises(asyncpg.DivisionByZeroError) as failure:
        await conn.execute("select 1 / 0")
    assert connector.inspect(conn, failure.value) is DIRTY
    await connector.reset(conn, 5)
    assert connector.inspect(conn, failure.value) is CLEAN


async def test_a_clean_return_costs_no_round_trip(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = Asyncpg(wire.url_for(postgres.url))
    async with opened(connector) as conn:
        await conn.execute("select 1")
        sent = wire.bytes_from_client
        assert connector.inspect(conn, None) is CLEAN
        assert connector.alive(conn)
        await connector.ping(conn, 5)
        assert wire.bytes_from_client > sent


async def test_a_connection_that_its_borrower_closed_is_broken(connector: Asyncpg, conn: Conn) -> None:
    await conn.close()
    assert connector.inspect(conn, None) is BROKEN
    assert not connector.alive(conn)
    assert connector.descriptor(conn) is None


async def test_a_connection_that_somebody_still_uses_is_broken(
    postgres: Postgres,
    connector: Asyncpg,
    conn: Conn,
) -> None:
    query = asyncio.create_task(conn.fetchval("select pg_sleep(60)"))
    await wait_until_busy(postgres, conn)
    assert connector.inspect(conn, None) is BROKEN
    connector.abandon(conn)
    with pytest.raises(asyncpg.PostgresConnectionError):
        await query


# Interrupted in mid-query


@pytest.mark.parametrize("transaction", [False, True])
async def test_after_a_cancellation_in_mid_query_no_reply_and_no_cancel_request_is_left(
    postgres: Postgres,
    connector: Asyncpg,
    conn: Conn,
    transaction: bool,
) -> None:
    for number in range(10):
        if transaction:
            await conn.execute("begin")
        query = asyncio.create_task(conn.fetchval("select pg_sleep(60)"))
        await wait_until_busy(postgres, conn)
        query.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await query
        assert connector.inspect(conn, cancelled.value) is DIRTY
        await connector.reset(conn, 5)
        assert connector.inspect(conn, None) is CLEAN
        for _ in range(50):
            assert await conn.fetchval("select $1::int", number) == number


async def test_what_a_task_of_the_borrowers_had_waiting_behind_a_cancelled_query_reaches_nobody(
    postgres: Postgres,
) -> None:
    """It begins when the cancellation is over, which is when the reset is."""
    async with AsyncPool[Conn](Asyncpg(postgres.url), max_size=1) as pool:
        async with pool.connection() as conn:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await conn.execute("select pg_sleep(60)")
            left = asyncio.create_task(conn.fetchval("select pg_sleep(60)"))
            await asyncio.sleep(0)
        for _ in range(3):
            async with pool.connection() as conn:
                assert await conn.fetchval("select 'mine'") == "mine"
        assert pool.stats().closes == {"reset failed": 1}
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
            await left


async def test_a_task_between_two_steps_of_its_query_reaches_nobody(postgres: Postgres) -> None:
    """The reply to the first step is here, and the task has not yet been resumed to send the second."""
    async with AsyncPool[Conn](Asyncpg(postgres.url), max_size=1) as pool:
        for number in range(5):
            async with pool.connection() as conn:
                left = asyncio.create_task(conn.fetchval(f"select {number}"))
                await asyncio.sleep(0)
                while _awaited(conn._protocol):
                    await asyncio.sleep(0)
                assert not left.done()
            async with pool.connection() as conn:
                assert await conn.fetchval("select 'mine'") == "mine"
            with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
                await left
        assert pool.stats().closes == {"broken": 5}


async def test_a_copy_whose_sink_is_slow_reaches_nobody(postgres: Postgres) -> None:
    """asyncpg then waits for the sink and not for the server, and has only stopped to read."""
    taken = asyncio.Event()

    async def sink(data: bytes) -> None:
        taken.set()
        await asyncio.sleep(60)

    async with AsyncPool[Conn](Asyncpg(postgres.url), max_size=1) as pool:
        async with pool.connection() as conn:
            left = asyncio.create_task(
                conn.copy_from_query("select generate_series(1, 100000)", output=sink, timeout=60)
            )
            await taken.wait()
        async with pool.connection() as conn:
            assert await conn.fetchval("select 'mine'") == "mine"
        assert pool.stats().closes == {"broken": 1}
        left.cancel()
        await asyncio.wait([left], timeout=5)
        assert left.exception()  # asyncpg's own AttributeError: it wants to go on reading, and its transport is gone


async def test_a_swallowed_timeout_in_mid_query_is_noticed(connector: Asyncpg, conn: Conn) -> None:
    with contextlib.suppress(TimeoutError):
        await conn.fetchval("select pg_sleep(60)", timeout=0.05)
    assert connector.inspect(conn, None) is DIRTY
    await connector.reset(conn, 5)
    assert connector.inspect(conn, None) is CLEAN
    with anyio.move_on_after(0.05):
        await conn.fetchval("select pg_sleep(60)")
    assert connector.inspect(conn, None) is DIRTY
    await connector.reset(conn, 5)
    assert connector.inspect(conn, None) is CLEAN


async def test_a_cancelled_query_that_the_server_does_not_end_fails_the_reset(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = Asyncpg(wire.url_for(postgres.url))
    async with opened(connector) as conn:
        query = asyncio.create_task(conn.fetchval("select pg_sleep(60)"))
        await wait_until_busy(postgres, conn)
        wire.black_hole()
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        with within(0.3, 4), pytest.raises(TimeoutError):
            await connector.reset(conn, 0.3)
        assert connector.inspect(conn, None) is not CLEAN


# What a borrower leaves behind


async def test_listeners_and_loggers_do_not_reach_the_next(
    postgres: Postgres,
    connector: Asyncpg,
    conn: Conn,
) -> None:
    heard: list[object] = []

    def hear(*what: object) -> None:
        heard.append(what)

    await conn.add_listener("news", hear)
    assert connector.inspect(conn, None) is DIRTY
    await connector.reset(conn, 5)
    assert connector.inspect(conn, None) is CLEAN
    assert await conn.fetch("select pg_listening_channels()") == []
    for add in (conn.add_log_listener, conn.add_query_logger, conn.add_termination_listener):
        add(hear)
        assert connector.inspect(conn, None) is DIRTY
        await connector.reset(conn, 5)
        assert connector.inspect(conn, None) is CLEAN
    await conn.execute("select 1")
    assert heard == []


async def test_a_logger_that_is_changed_for_another_does_not_reach_the_next(postgres: Postgres) -> None:
    """What a class has put there for itself stays."""
    logged: list[object] = []

    class Mine(asyncpg.Connection):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_query_logger(logged.append)

    connector = Asyncpg(postgres.url, connection_class=Mine)
    async with opened(connector) as conn:
        assert connector.inspect(conn, None) is CLEAN
        conn.remove_query_logger(logged.append)
        conn.add_query_logger(print)
        assert connector.inspect(conn, None) is DIRTY
        await connector.reset(conn, 5)
        assert connector.inspect(conn, None) is CLEAN
        await conn.execute("select 501")
        await asyncio.sleep(0)  # it is told of it by the loop
        assert len(logged) == 1


@pytest.mark.parametrize("reset", ["transaction", "session"])
@pytest.mark.parametrize("statement", ["deallocate all", "discard all"])
async def test_what_a_borrower_has_dropped_of_the_session_fails_one_query_at_most(
    postgres: Postgres, reset: Literal["transaction", "session"], statement: str
) -> None:
    async with AsyncPool(Asyncpg(postgres.url, reset=reset), max_size=1) as pool:
        async with pool.connection() as conn:
            assert await conn.fetchval("select 41 + $1::int", 1) == 42
            await conn.execute(statement)
        failures = 0
        for _ in range(5):
            try:
                async with pool.connection() as conn:
                    assert await conn.fetchval("select 41 + $1::int", 1) == 42
            except asyncpg.InvalidSQLStatementNameError:
                failures += 1
        assert failures == (1 if reset == "transaction" else 0)


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InvalidSQLStatementNameError(),
        asyncpg.InvalidCachedStatementError(),
        asyncpg.ProtocolViolationError(),
        asyncpg.InternalClientError(),
    ],
)
async def test_a_connection_at_odds_with_its_server_is_broken(
    connector: Asyncpg, conn: Conn, error: BaseException
) -> None:
    assert connector.inspect(conn, error) is BROKEN
    assert connector.inspect(conn, asyncpg.UniqueViolationError()) is CLEAN


async def test_with_session_reset_a_temporary_table_may_be_made_anew(postgres: Postgres) -> None:
    async with AsyncPool(Asyncpg(postgres.url, reset="session"), max_size=1) as pool:
        for columns, row in (("x int", (1,)), ("x text, y int", ("1", 1)), ("y int", (1,))):
            async with pool.connection() as conn, conn.transaction():
                await conn.execute(f"create temporary table work ({columns})")
                await conn.execute("insert into work values (" + ", ".join("1" * len(row)) + ")")
                assert tuple(await conn.fetchrow("select * from work")) == row
        async with pool.connection() as conn:
            assert await conn.fetchval("select count(*) from pg_prepared_statements") == 1
        assert pool.stats().opens == 1


async def test_what_outlives_its_loan_does_not_work_in_the_next(connector: Asyncpg, conn: Conn) -> None:
    statement = await conn.prepare("select 1")
    assert connector.inspect(conn, None) is CLEAN
    with pytest.raises(asyncpg.InterfaceError):
        await statement.fetchval()


LEFT = """
    select current_setting('statement_timeout'), current_user::text,
        (select count(*) from pg_listening_channels()),
        (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
        to_regclass('pg_temp.work')::text,
        (select count(*) from pg_cursors where name = 'held')
"""


async def test_a_session_reset_leaves_nothing_of_the_session(postgres: Postgres) -> None:
    postgres.execute("grant pg_read_all_data to app")
    connector = Asyncpg(postgres.url, reset="session")
    async with opened(connector) as conn:
        fresh = await conn.fetchrow(LEFT)
        await conn.execute("set statement_timeout = 12345")
        await conn.execute("set role pg_read_all_data")
        await conn.execute("listen news")
        await conn.execute("select pg_advisory_lock(42)")
        await conn.execute("create temporary table work (x int)")
        await conn.execute("declare held cursor with hold for select 1")
        await conn.execute("begin")
        spoilt = await conn.fetchrow(LEFT)
        assert all(before != after for before, after in zip(fresh, spoilt, strict=True))
        assert connector.inspect(conn, None) is DIRTY
        await connector.reset(conn, 5)
        assert await conn.fetchrow(LEFT) == fresh


async def test_with_session_reset_no_borrower_sees_what_another_has_set(postgres: Postgres) -> None:
    async with AsyncPool(Asyncpg(postgres.url, reset="session"), max_size=1) as pool:
        for _ in range(4):
            async with pool.connection() as conn:
                assert await conn.fetchval("show statement_timeout") == "0"
                await conn.execute("set statement_timeout = 12345")
        assert pool.stats().opens == 1


# Whether it works, and for how long one waits to know


async def test_a_connection_that_the_server_ended_is_not_alive_and_does_not_answer(
    postgres: Postgres,
    connector: Asyncpg,
    conn: Conn,
) -> None:
    descriptor = connector.descriptor(conn)
    assert descriptor is not None
    await connector.ping(conn, 5)
    postgres.execute(f"select pg_terminate_backend({conn.get_server_pid()})")
    assert select.select([descriptor], [], [], 10)[0]  # the loop has not seen it yet
    assert not connector.alive(conn)
    with pytest.raises((asyncpg.PostgresError, ConnectionError, asyncpg.InterfaceError)):
        await connector.ping(conn, 5)
    assert connector.inspect(conn, None) is BROKEN


@pytest.mark.parametrize("what", ["ping", "reset"])
async def test_a_black_hole_holds_up_no_longer_than_the_limit(postgres: Postgres, proxy: Wire, what: str) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = Asyncpg(wire.url_for(postgres.url))
    async with opened(connector) as conn:
        await conn.execute("begin")
        wire.black_hole()
        with within(0.3, 4), pytest.raises(TimeoutError):
            await getattr(connector, what)(conn, 0.3)
        assert connector.inspect(conn, None) is not CLEAN
        with within(0, 4):
            connector.abandon(conn)
        assert connector.inspect(conn, None) is BROKEN


async def test_opening_ends_in_time_in_a_black_hole(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    wire.black_hole()
    connector = Asyncpg(wire.url_for(postgres.url))
    with within(0.3, 4), pytest.raises(TimeoutError) as failure:
        await connector.open(0.3)
    assert not connector.refused(failure.value)


async def test_closing_says_goodbye(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = Asyncpg(wire.url_for(postgres.url))
    conn = await connector.open(5)
    await connector.close(conn)
    assert conn.is_closed()
    assert wire.sent_by_client()[-1].endswith(b"X\0\0\0\4")


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_connection_can_be_abandoned_after_its_loop(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = Asyncpg(wire.url_for(postgres.url))
    with asyncio.Runner() as runner:
        conn = runner.run(connector.open(5))
    wire.wait_until_live(1)
    connector.abandon(conn)
    assert connector.inspect(conn, None) is BROKEN
    wire.wait_until_live(0)
    del conn
    gc.collect()


# Opening


async def test_the_password_is_asked_for_at_every_open(postgres: Postgres) -> None:
    postgres.execute("create role rotated_for_asyncpg login password 'first'")
    passwords = iter(["first", "second"])

    async def password() -> str:
        await asyncio.sleep(0)
        return next(passwords)

    connector = Asyncpg(
        lambda: f"postgresql://{postgres.host}:{postgres.port}/app", user="rotated_for_asyncpg", password=password
    )
    async with opened(connector):
        postgres.execute("alter role rotated_for_asyncpg password 'second'")
        async with opened(connector) as conn:
            assert await conn.fetchval("select current_user::text") == "rotated_for_asyncpg"


async def test_a_connection_class_is_not_called_for_a_value(postgres: Postgres) -> None:
    class Mine(asyncpg.Connection):  # type: ignore[misc]
        pass

    async with opened(Asyncpg(postgres.url, connection_class=Mine)) as conn:
        assert type(conn) is Mine


async def test_a_refusal_is_told_from_a_failure(postgres: Postgres) -> None:
    postgres.execute("create role crowd_for_asyncpg login password 'x' connection limit 0")
    postgres.execute("create role locked_for_asyncpg nologin password 'x'")
    for changes, refused in (
        ({"password": "wrong"}, True),
        ({"user": "nobody_of_that_name"}, True),
        ({"user": "locked_for_asyncpg", "password": "x"}, True),
        ({"database": "no_such_database"}, True),
        ({"user": "crowd_for_asyncpg", "password": "x"}, False),
        ({"host": "127.0.0.1", "port": 1}, False),
    ):
        connector = Asyncpg(postgres.url, **changes)
        with pytest.raises((asyncpg.PostgresError, OSError)) as failure:
            await connector.open(5)
        assert connector.refused(failure.value) is refused, changes
    postgres.execute("drop role crowd_for_asyncpg, locked_for_asyncpg")


# Secrets and drivers


def test_the_password_is_not_shown() -> None:
    for connector in (
        Asyncpg("postgresql://me:hunter2@db:5/app?password=hunter2"),
        Asyncpg(user="me", password="hunter2", host="db", port=5, database="app"),
        Asyncpg(lambda: "hunter2", user="me", password=lambda: "hunter2", host="db", port=5, database="app"),
    ):
        assert connector.target == "postgresql://me@db:5/app"
        assert repr(connector) == "<Asyncpg postgresql://me@db:5/app>"


def test_reset_has_two_values() -> None:
    with pytest.raises(ValueError, match="'everything'"):
        Asyncpg(reset="everything")  # type: ignore[arg-type]


def test_a_missing_driver_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "millpond.connectors.asyncpg")
    with pytest.raises(ImportError, match=r'pip install "millpond\[asyncpg\]"'):
        importlib.import_module("millpond.connectors.asyncpg")
