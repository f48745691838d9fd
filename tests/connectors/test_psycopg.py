from __future__ import annotations

import asyncio
import contextlib
import importlib
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from operator import attrgetter
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import anyio
import psycopg
import pytest
from psycopg.rows import DictRow, TupleRow, dict_row

from millpond import AsyncPool, Pool
from millpond.connector import AsyncConnector, Condition, Connector
from millpond.connectors.psycopg import AsyncPsycopg, Psycopg
from millpond.testing import Postgres
from millpond.testing.proxy import Proxy

CLEAN, UNPROVED, DIRTY, BROKEN = Condition

Conn = psycopg.Connection[TupleRow]
Wire = Callable[[str, int], Proxy]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.contextmanager
def opened(connector: Psycopg[Any]) -> Iterator[psycopg.Connection[Any]]:
    conn = connector.open(5)
    try:
        yield conn
    finally:
        connector.abandon(conn)


@contextlib.asynccontextmanager
async def aopened(connector: AsyncPsycopg[Any]) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    conn = await connector.open(5)
    try:
        yield conn
    finally:
        connector.abandon(conn)


@pytest.fixture
def connector(postgres: Postgres) -> Psycopg[TupleRow]:
    return Psycopg(postgres.url)


@pytest.fixture
def conn(connector: Psycopg[TupleRow]) -> Iterator[Conn]:
    with opened(connector) as conn:
        yield conn


def wait_until_busy(postgres: Postgres, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Wait until the server is at work for a connection."""
    query = f"select 1 from pg_stat_activity where pid = {conn.info.backend_pid} and wait_event = 'PgSleep'"
    while not postgres.execute(query):
        pass


def wait_until_readable(conn: psycopg.Connection[Any]) -> None:
    assert select.select([conn.fileno()], [], [], 10)[0]


# What is proved about a connection that comes back


def test_a_new_connection_is_clean_and_alive(connector: Connector[Conn], conn: Conn) -> None:
    assert connector.provable
    assert connector.inspect(conn, None) is CLEAN
    assert connector.alive(conn)
    assert connector.descriptor(conn) == conn.fileno()


def test_an_open_transaction_is_dirty_until_it_is_rolled_back(connector: Psycopg[TupleRow], conn: Conn) -> None:
    conn.execute("create temporary table work (x int) on commit preserve rows")
    conn.commit()
    conn.execute("insert into work values (1)")
    assert connector.inspect(conn, None) is DIRTY
    connector.reset(conn, 5)
    assert connector.inspect(conn, None) is CLEAN
    assert conn.execute("select * from work").fetchall() == []


def test_a_failed_transaction_is_dirty_until_it_is_rolled_back(connector: Psycopg[TupleRow], conn: Conn) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero) as failure:
        conn.execute("select 1 / 0")
    assert connector.inspect(conn, failure.value) is DIRTY
    connector.reset(conn, 5)
    assert connector.inspect(conn, failure.value) is CLEAN


def test_looking_costs_no_round_trip(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = Psycopg(wire.url_for(postgres.url))
    with opened(connector) as conn:
        conn.execute("select 1")
        conn.commit()
        sent = wire.bytes_from_client
        assert connector.inspect(conn, None) is CLEAN
        assert connector.alive(conn)
        connector.ping(conn, 5)
        assert wire.bytes_from_client > sent  # the ping: what was counted does count


def test_a_connection_that_its_borrower_closed_is_broken(connector: Psycopg[TupleRow], conn: Conn) -> None:
    conn.close()
    assert connector.inspect(conn, None) is BROKEN
    assert not connector.alive(conn)
    assert connector.descriptor(conn) is None
    connector.abandon(conn)


def test_a_half_read_stream_breaks_the_connection(connector: Psycopg[TupleRow], conn: Conn) -> None:
    rows = conn.cursor().stream("select generate_series(1, 100000)")
    next(rows)
    assert connector.inspect(conn, None) is BROKEN


@pytest.mark.parametrize("statement", ["copy (select generate_series(1, 100000)) to stdout", "copy work from stdin"])
def test_a_copy_in_progress_breaks_the_connection(connector: Psycopg[TupleRow], conn: Conn, statement: str) -> None:
    conn.execute("create temporary table work (x int)")
    conn.commit()
    with contextlib.suppress(psycopg.Error), conn.cursor().copy(statement):
        assert connector.inspect(conn, None) is BROKEN
        connector.abandon(conn)


def test_a_pipeline_that_is_still_on_breaks_the_connection(connector: Psycopg[TupleRow], conn: Conn) -> None:
    with conn.pipeline():
        assert connector.inspect(conn, None) is BROKEN
    assert connector.inspect(conn, None) is CLEAN
    conn.pgconn.enter_pipeline_mode()
    assert connector.inspect(conn, None) is BROKEN


def test_a_transaction_block_that_was_never_left_breaks_the_connection(
    connector: Psycopg[TupleRow], conn: Conn
) -> None:
    block = conn.transaction()
    block.__enter__()
    conn.execute("rollback")
    assert connector.inspect(conn, None) is BROKEN  # or its destructor would roll back what the next one does
    block.__exit__(None, None, None)


def test_a_two_phase_transaction_breaks_the_connection(connector: Psycopg[TupleRow], conn: Conn) -> None:
    conn.tpc_begin("work")
    conn.execute("rollback")
    assert connector.inspect(conn, None) is BROKEN


def test_a_connection_that_somebody_still_uses_is_broken(connector: Psycopg[TupleRow], conn: Conn) -> None:
    with conn.lock:
        assert connector.inspect(conn, None) is BROKEN
    conn.autocommit = True
    conn.execute("listen news")
    conn.execute("notify news")
    notifications = conn.notifies()
    next(notifications)
    assert connector.inspect(conn, None) is BROKEN
    notifications.close()


# Interrupted in mid-query


class SoftLimit(Exception):
    """Such as Celery's SoftTimeLimitExceeded."""


@contextlib.contextmanager
def struck_by(handler: Callable[..., Any], postgres: Postgres, conn: Conn) -> Iterator[None]:
    """Send this thread a signal as soon as the server is at work for the connection, and this thread waits for it.

    Before that it is in the generator of the query: one that is struck has ended, and psycopg can drain nothing by it.
    """

    def waits() -> bool:
        frame = sys._current_frames()[main]
        while frame.f_back is not None and "psycopg" not in Path(frame.f_code.co_filename).parts:
            frame = frame.f_back
        return Path(frame.f_code.co_filename).name in ("waiting.py", "connection.py")  # the latter with psycopg-c

    def strike() -> None:
        wait_until_busy(postgres, conn)
        end = monotonic() + 30
        while not waits() and monotonic() < end:
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGUSR1)

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handler)
    striker = threading.Thread(target=strike)
    striker.start()
    try:
        yield
    finally:
        striker.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_connection_interrupted_in_mid_query_is_broken(
    postgres: Postgres, connector: Psycopg[TupleRow], conn: Conn, swallowed: bool
) -> None:
    def handler(*_: object) -> None:
        raise SoftLimit

    with struck_by(handler, postgres, conn), pytest.raises(SoftLimit) as interruption:
        conn.execute("select pg_sleep(60)")
    assert connector.inspect(conn, None if swallowed else interruption.value) is BROKEN


@pytest.mark.parametrize("autocommit", [False, True])
def test_after_ctrl_c_in_mid_query_no_reply_and_no_cancel_request_is_left(postgres: Postgres, autocommit: bool) -> None:
    connector = Psycopg(postgres.url, autocommit=autocommit)
    with opened(connector) as conn:
        for number in range(10):
            with struck_by(signal.default_int_handler, postgres, conn), pytest.raises(KeyboardInterrupt) as struck:
                conn.execute("select pg_sleep(60)")
            condition = connector.inspect(conn, struck.value)
            assert condition is (CLEAN if autocommit else DIRTY)  # psycopg drained it
            if condition is DIRTY:
                connector.reset(conn, 5)
            for _ in range(50):
                assert conn.execute("select %s", [number]).fetchone() == (number,)
            conn.rollback()


def test_a_second_ctrl_c_in_mid_query_breaks_the_connection(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = Psycopg(wire.url_for(postgres.url))

    main = threading.get_ident()

    def strike_again() -> None:
        wire.wait_until_accepted(2)  # the cancel request, to which there is no answer
        time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGINT)

    def handler(*_: object) -> None:
        wire.black_hole(accept=True)
        threading.Thread(target=strike_again).start()
        raise KeyboardInterrupt

    with (
        opened(connector) as conn,
        struck_by(handler, postgres, conn),
        pytest.raises(KeyboardInterrupt) as interruption,
    ):
        conn.execute("select pg_sleep(60)")
    assert connector.inspect(conn, interruption.value) is BROKEN


@pytest.mark.anyio
@pytest.mark.parametrize("autocommit", [False, True])
async def test_after_a_cancellation_in_mid_query_no_reply_and_no_cancel_request_is_left(
    postgres: Postgres, autocommit: bool
) -> None:
    connector = AsyncPsycopg(postgres.url, autocommit=autocommit)
    async with aopened(connector) as conn:
        for number in range(10):
            query = asyncio.create_task(conn.execute("select pg_sleep(60)"))
            await asyncio.to_thread(wait_until_busy, postgres, conn)
            query.cancel()
            with pytest.raises(asyncio.CancelledError):
                await query
            condition = connector.inspect(conn, None)
            assert condition is (CLEAN if autocommit else DIRTY)
            if condition is DIRTY:
                await connector.reset(conn, 5)
            for _ in range(50):
                assert await (await conn.execute("select %s", [number])).fetchone() == (number,)
            await conn.rollback()


@pytest.mark.anyio
async def test_a_connection_whose_scope_was_cancelled_in_mid_query_is_broken(postgres: Postgres) -> None:
    connector = AsyncPsycopg(postgres.url)
    async with aopened(connector) as conn, anyio.create_task_group() as tasks:
        tasks.start_soon(conn.execute, "select pg_sleep(60)")
        await anyio.to_thread.run_sync(wait_until_busy, postgres, conn)
        tasks.cancel_scope.cancel()
    assert connector.inspect(conn, None) is BROKEN


# What a borrower leaves behind


CHANGES: dict[str, Callable[[Any], object]] = {
    "autocommit": lambda conn: conn.set_autocommit(True),
    "isolation_level": lambda conn: conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE),
    "read_only": lambda conn: conn.set_read_only(True),
    "deferrable": lambda conn: conn.set_deferrable(True),
    "row_factory": lambda conn: setattr(conn, "row_factory", dict_row),
    "cursor_factory": lambda conn: setattr(conn, "cursor_factory", type("Mine", (conn.cursor_factory,), {})),
    "server_cursor_factory": lambda conn: setattr(conn, "server_cursor_factory", object),
    "prepare_threshold": lambda conn: setattr(conn, "prepare_threshold", None),
    "prepared_max": lambda conn: setattr(conn, "prepared_max", 3),
    "_notice_handlers": lambda conn: conn.add_notice_handler(print),
    "_notify_handlers": lambda conn: conn.add_notify_handler(print),
}


def what(conn: object, name: str) -> object:
    value = attrgetter(name)(conn)
    return list(value) if isinstance(value, list) else value


@pytest.mark.parametrize("reset", ["transaction", "session"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_a_borrower_changed_does_not_reach_the_next(
    postgres: Postgres, name: str, reset: Literal["transaction", "session"]
) -> None:
    connector = Psycopg(postgres.url, reset=reset)
    with opened(connector) as conn:
        before = what(conn, name)
        for _ in range(2):
            CHANGES[name](conn)
            assert connector.inspect(conn, None) is DIRTY
            connector.reset(conn, 5)
            assert connector.inspect(conn, None) is (CLEAN if reset == "transaction" else UNPROVED)
            assert what(conn, name) == before


@pytest.mark.anyio
@pytest.mark.parametrize("name", CHANGES)
async def test_what_a_task_changed_does_not_reach_the_next(postgres: Postgres, name: str) -> None:
    connector = AsyncPsycopg(postgres.url)
    async with aopened(connector) as conn:
        before = what(conn, name)
        changed = CHANGES[name](conn)
        if asyncio.iscoroutine(changed):
            await changed
        assert connector.inspect(conn, None) is DIRTY
        await connector.reset(conn, 5)
        assert connector.inspect(conn, None) is CLEAN
        assert what(conn, name) == before


@pytest.mark.parametrize("name", ["notice_handler", "notify_handler"])
def test_a_reset_puts_back_what_was_set_on_libpqs_connection(postgres: Postgres, name: str) -> None:
    with Pool(Psycopg(postgres.url, reset="session"), max_size=1) as pool:
        with pool.connection() as conn:
            before = getattr(conn.pgconn, name)
            setattr(conn.pgconn, name, None)
        with pool.connection() as conn:
            assert getattr(conn.pgconn, name) is before


def test_a_changed_isolation_level_does_not_reach_the_next_transaction(
    connector: Psycopg[TupleRow], conn: Conn
) -> None:
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    assert conn.execute("show transaction_isolation").fetchone() == ("serializable",)
    connector.reset(conn, 5)
    assert conn.execute("show transaction_isolation").fetchone() == ("read committed",)


def test_what_the_connector_was_told_is_not_taken_for_a_change(postgres: Postgres) -> None:
    class Cursor(psycopg.Cursor[Any]):
        pass

    connector = Psycopg(
        postgres.url, autocommit=True, row_factory=dict_row, cursor_factory=Cursor, prepare_threshold=None
    )
    with opened(connector) as conn:
        assert connector.inspect(conn, None) is CLEAN
        assert conn.autocommit
        assert conn.prepare_threshold is None
        cursor = conn.execute("select 1 as one")
        assert isinstance(cursor, Cursor)
        assert cursor.fetchone() == {"one": 1}
        connector.reset(conn, 5)
        assert conn.autocommit


@pytest.mark.parametrize("reset", ["transaction", "session"])
def test_a_connection_class_makes_the_connections(postgres: Postgres, reset: Literal["transaction", "session"]) -> None:
    class Mine(psycopg.Connection[Any]):
        def __init__(self, pgconn: psycopg.pq.abc.PGconn) -> None:
            super().__init__(pgconn)
            self.row_factory = dict_row
            self.add_notice_handler(print)
            self.adapters.register_loader("int4", psycopg.types.string.TextLoader)

    connector = Psycopg(postgres.url, connection_class=Mine, reset=reset)
    with opened(connector) as conn:
        assert isinstance(conn, Mine)
        connector.reset(conn, 5)
        left = UNPROVED if reset == "session" else CLEAN
        assert connector.inspect(conn, None) is left
        conn.add_notice_handler(lambda diagnostic: None)
        conn.execute("select 1")
        connector.reset(conn, 5)
        assert connector.inspect(conn, None) is left
        assert conn._notice_handlers == [print]
        assert conn.execute("select 1 as one").fetchone() == {"one": "1"}


def test_a_notified_session_listens_no_more(postgres: Postgres) -> None:
    connector = Psycopg(postgres.url, autocommit=True)
    with opened(connector) as conn:
        conn.execute("listen news")
        assert connector.inspect(conn, None) is CLEAN
        conn.execute("notify news")
        assert connector.inspect(conn, None) is DIRTY
        connector.reset(conn, 5)
        assert connector.inspect(conn, None) is CLEAN
        assert conn.execute("select pg_listening_channels()").fetchall() == []
        assert list(conn.notifies(timeout=0)) == []


def test_a_connection_with_an_unread_notification_is_not_alive(
    postgres: Postgres, connector: Psycopg[TupleRow], conn: Conn
) -> None:
    conn.execute("listen news")
    conn.commit()
    assert connector.alive(conn)
    postgres.execute("notify news")
    wait_until_readable(conn)
    assert not connector.alive(conn)
    conn.pgconn.consume_input()  # now it is in libpq, no longer in the socket
    assert not connector.alive(conn)


def spoil(conn: Conn) -> None:
    conn.execute("set statement_timeout = 12345")
    conn.execute("set role pg_read_all_data")
    conn.execute("listen news")
    conn.execute("select pg_advisory_lock(42)")
    conn.execute("create temporary table work (x int)")
    conn.execute("declare held cursor with hold for select 1")
    for _ in range(10):
        conn.execute("select 1 + %s", [1])
    conn.commit()


LEFT = """
    select current_setting('statement_timeout'), current_user,
        (select count(*) from pg_listening_channels()),
        (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
        to_regclass('pg_temp.work')::text,
        (select count(*) from pg_cursors where name = 'held'),
        (select count(*) from pg_prepared_statements)
"""


@pytest.fixture
def reader(postgres: Postgres) -> None:
    postgres.execute("grant pg_read_all_data to app")


@pytest.mark.usefixtures("reader")
def test_a_session_reset_leaves_nothing_of_the_session(postgres: Postgres) -> None:
    connector = Psycopg(postgres.url, reset="session")
    with opened(connector) as conn:
        fresh = conn.execute(LEFT, prepare=False).fetchone()
        spoil(conn)
        spoilt = conn.execute(LEFT, prepare=False).fetchone()
        conn.commit()  # a rollback would make psycopg forget its prepared statements
        assert fresh is not None
        assert spoilt is not None
        assert all(before != after for before, after in zip(fresh, spoilt, strict=True))
        connector.reset(conn, 5)
        assert conn.execute(LEFT, prepare=False).fetchone() == fresh
        for _ in range(10):  # psycopg has forgotten its prepared statements, too
            assert conn.execute("select 1 + %s", [1]).fetchone() == (2,)


def test_with_session_reset_every_loan_ends_unproved(postgres: Postgres) -> None:
    connector = Psycopg(postgres.url, reset="session")
    with opened(connector) as conn:
        for _ in range(3):
            assert connector.inspect(conn, None) is UNPROVED
            connector.reset(conn, 5)


def test_with_session_reset_no_borrower_sees_what_another_has_set(postgres: Postgres) -> None:
    with Pool(Psycopg(postgres.url, reset="session"), max_size=1) as pool:
        for _ in range(4):
            with pool.connection() as conn:
                assert conn.execute("show statement_timeout").fetchone() == ("0",)
                conn.execute("set statement_timeout = 12345")
                conn.commit()
        assert pool.stats().opens == 1


class Context:
    """Where adapters are taken from; psycopg asks for no more."""

    connection = None

    def __init__(self, adapters: psycopg.adapt.AdaptersMap) -> None:
        self.adapters = adapters


class Text(psycopg.types.string.StrDumper):
    def dump(self, obj: Any) -> bytes:
        return b"dumped"


@pytest.mark.parametrize("reset", ["transaction", "session"])
def test_adapters_that_a_borrower_registered_do_not_reach_the_next(
    postgres: Postgres, reset: Literal["transaction", "session"]
) -> None:
    context = psycopg.adapt.AdaptersMap(psycopg.adapters)
    context.register_loader("bool", psycopg.types.string.TextLoader)
    connector = Psycopg(postgres.url, reset=reset, context=Context(context))
    with opened(connector) as conn:
        for _ in range(2):
            assert conn.execute("select 1, true, %s::text", ["x"]).fetchone() == (1, "t", "x")
            conn.rollback()
            conn.adapters.register_loader("int4", psycopg.types.string.TextLoader)
            conn.adapters.register_dumper(str, Text)
            assert conn.execute("select 1, true, %s::text", ["x"]).fetchone() == ("1", "t", "dumped")
            conn.rollback()
            assert connector.inspect(conn, None) is DIRTY
            connector.reset(conn, 5)
            assert connector.inspect(conn, None) is (CLEAN if reset == "transaction" else UNPROVED)
        assert conn.execute("select 1, true, %s::text", ["x"]).fetchone() == (1, "t", "x")


@pytest.mark.parametrize("reset", ["transaction", "session"])
def test_a_type_that_a_borrower_added_does_not_reach_the_next(
    postgres: Postgres, reset: Literal["transaction", "session"]
) -> None:
    with Pool(Psycopg(postgres.url, reset=reset), max_size=1) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert conn.adapters.types["int4"].oid == 23
                conn.adapters.types.add(psycopg.types.TypeInfo("int4", 25, 0))
        assert pool.stats().opens == 1


def test_what_is_registered_for_a_cursor_or_elsewhere_is_no_change(connector: Psycopg[TupleRow], conn: Conn) -> None:
    cursor = conn.cursor()
    cursor.adapters.register_loader("int4", psycopg.types.string.TextLoader)
    assert cursor.execute("select 1").fetchone() == ("1",)
    conn.rollback()
    assert connector.inspect(conn, None) is CLEAN


class Differing(psycopg.Connection[Any]):
    def __init__(self, pgconn: psycopg.pq.abc.PGconn) -> None:
        super().__init__(pgconn)
        self.row_factory = self.first = lambda cursor: lambda values: [*values]


def test_a_connection_class_may_make_each_connection_differ(postgres: Postgres) -> None:
    """Each comes back as it was, and not as another."""
    connector = Psycopg(postgres.url, connection_class=Differing)
    with opened(connector) as one, opened(connector) as other:
        for conn, changed in ((one, dict_row), (other, dict_row), (other, one.row_factory), (one, other.row_factory)):
            assert connector.inspect(conn, None) is CLEAN
            conn.row_factory = changed
            assert connector.inspect(conn, None) is DIRTY
            connector.reset(conn, 5)
            assert conn.row_factory is conn.first  # type: ignore[attr-defined]
            assert connector.inspect(conn, None) is CLEAN


@pytest.mark.anyio
@pytest.mark.usefixtures("reader")
async def test_a_session_reset_by_a_task_leaves_nothing_of_the_session(postgres: Postgres) -> None:
    connector = AsyncPsycopg(postgres.url, reset="session")
    async with aopened(connector) as conn:
        await conn.execute("set statement_timeout = 12345")
        await conn.execute("select pg_advisory_lock(42)")
        await conn.commit()
        assert connector.inspect(conn, None) is UNPROVED
        await connector.reset(conn, 5)
        left = await (await conn.execute(LEFT)).fetchone()
        assert left is not None
        assert (left[0], left[3]) == ("0", 0)


class Raising:
    def __eq__(self, other: object) -> bool:
        raise KeyError

    __hash__ = None  # type: ignore[assignment]


def test_what_cannot_be_compared_is_a_change(connector: Psycopg[TupleRow], conn: Conn) -> None:
    before = conn.row_factory
    conn.row_factory = Raising()  # type: ignore[assignment]
    assert connector.inspect(conn, None) is DIRTY
    connector.reset(conn, 5)
    assert connector.inspect(conn, None) is CLEAN
    assert conn.row_factory is before


@pytest.mark.parametrize("ending", ["close", "abandon"])
def test_what_was_noted_of_a_connection_goes_with_it(postgres: Postgres, ending: str) -> None:
    connector = Psycopg(postgres.url, connection_class=Differing)
    conns = [connector.open(5) for _ in range(3)]
    assert len(connector._state._unusual) == 2  # the first is what is usual
    for conn in conns:
        getattr(connector, ending)(conn)
    assert connector._state._unusual == {}


# Whether it works, and for how long one waits to know


def test_a_ping_leaves_the_connection_idle(connector: Psycopg[TupleRow], conn: Conn) -> None:
    connector.ping(conn, 5)
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert connector.inspect(conn, None) is CLEAN


@pytest.mark.anyio
async def test_a_ping_by_a_task_leaves_the_connection_idle(postgres: Postgres) -> None:
    connector = AsyncPsycopg(postgres.url)
    async with aopened(connector) as conn:
        await connector.ping(conn, 5)
        assert connector.inspect(conn, None) is CLEAN
        assert connector.alive(conn)
        await connector.close(conn)
        assert conn.closed


def test_a_connection_that_the_server_ended_is_not_alive_and_does_not_answer(
    postgres: Postgres, connector: Psycopg[TupleRow], conn: Conn
) -> None:
    postgres.execute(f"select pg_terminate_backend({conn.info.backend_pid})")
    wait_until_readable(conn)
    assert not connector.alive(conn)
    with pytest.raises(psycopg.OperationalError):
        connector.ping(conn, 5)
    assert connector.inspect(conn, None) is BROKEN


def test_a_reset_connection_is_not_alive(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = Psycopg(wire.url_for(postgres.url))
    with opened(connector) as conn:
        assert connector.alive(conn)
        wire.reset()
        assert not connector.alive(conn)


@contextlib.contextmanager
def within(least: float, most: float) -> Iterator[None]:
    begin = monotonic()
    yield
    assert least <= monotonic() - begin <= most


@pytest.mark.parametrize("what", ["ping", "reset"])
def test_a_black_hole_holds_up_no_longer_than_the_limit(postgres: Postgres, proxy: Wire, what: str) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = Psycopg(wire.url_for(postgres.url))
    with opened(connector) as conn:
        if what == "reset":
            conn.execute("select 1")
        wire.black_hole()
        with within(0.3, 4), pytest.raises(psycopg.OperationalError):
            getattr(connector, what)(conn, 0.3)
        assert connector.inspect(conn, None) is BROKEN
        with within(0, 4):
            connector.abandon(conn)


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["ping", "reset"])
async def test_a_black_hole_holds_up_no_task_longer_than_the_limit(postgres: Postgres, proxy: Wire, what: str) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = AsyncPsycopg(wire.url_for(postgres.url))
    async with aopened(connector) as conn:
        if what == "reset":
            await conn.execute("select 1")
        wire.black_hole()
        with within(0.3, 4), pytest.raises(psycopg.OperationalError):
            await getattr(connector, what)(conn, 0.3)
        assert connector.inspect(conn, None) is BROKEN


@pytest.mark.anyio
async def test_a_cancelled_ping_ends_at_once(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = AsyncPsycopg(wire.url_for(postgres.url))
    async with aopened(connector) as conn:
        wire.black_hole()
        ping = asyncio.create_task(connector.ping(conn, 60))
        await asyncio.sleep(0)
        with within(0, 4):  # psycopg's own wait would try to cancel the query first
            ping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ping
        assert connector.inspect(conn, None) is BROKEN


def test_a_full_socket_does_not_hold_up_abandoning(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = Psycopg(wire.url_for(postgres.url))
    conn = connector.open(5)
    wire.black_hole()
    conn.pgconn.send_query(b"select '" + b"x" * 40_000_000 + b"'")
    conn.pgconn.flush()
    with within(0, 4):
        connector.abandon(conn)


def test_a_server_that_waits_to_send_more_is_told_while_a_reader_that_pauses_still_has_the_connection(
    postgres: Postgres,
) -> None:
    """It would keep its snapshot and its locks until then."""
    with Pool(Psycopg(postgres.url), max_size=1) as pool:
        with pool.connection() as conn:
            state = f"select wait_event from pg_stat_activity where pid = {conn.info.backend_pid}"
            rows = conn.cursor().stream("select repeat('x', 1000) from generate_series(1, 1000000)")
            next(rows)
            end, waits = monotonic() + 60, 0
            while waits < 20:  # both ends' buffers are full
                assert monotonic() < end
                waits = waits + 1 if postgres.execute(state) == [["ClientWrite"]] else 0
                time.sleep(0.01)
        end = monotonic() + 10
        while postgres.execute(state):
            assert monotonic() < end
    with pytest.raises(psycopg.Error):
        list(rows)


# Opening


def test_the_password_is_asked_for_at_every_open(postgres: Postgres) -> None:
    postgres.execute("create role rotated login password 'first'")
    passwords = iter(["first", "second"])
    connector = Psycopg(
        postgres.url.partition("@")[0].partition("//")[0] + "//" + postgres.url.partition("@")[2],
        user=lambda: "rotated",
        password=lambda: next(passwords),
    )
    with opened(connector):
        postgres.execute("alter role rotated password 'second'")
        with opened(connector) as conn:
            assert conn.execute("select current_user").fetchone() == ("rotated",)


def test_the_connection_string_is_asked_for_at_every_open(postgres: Postgres) -> None:
    asked: list[str] = []

    def conninfo() -> str:
        asked.append(postgres.url)
        return postgres.url

    connector = Psycopg(conninfo, application_name="mine")
    for number in (1, 2):
        with opened(connector) as conn:
            assert conn.execute("show application_name").fetchone() == ("mine",)
        assert len(asked) == number


@pytest.mark.anyio
async def test_a_task_that_is_next_in_line_for_a_connection_reaches_nobody(postgres: Postgres) -> None:
    """psycopg's lock is free at that moment: one task has ended its query, and the other has not been resumed yet."""
    async with AsyncPool[Any](AsyncPsycopg(postgres.url), max_size=1) as pool:
        async with pool.connection() as conn:
            first, second = (asyncio.create_task(conn.execute("select pg_sleep(0.01)")) for _ in range(2))
            while not first.done():
                await asyncio.sleep(0)
            assert not conn.lock.locked()
        async with pool.connection() as conn:
            assert await (await conn.execute("select 1")).fetchone() == (1,)
        assert pool.stats().closes == {"broken": 1}
        with pytest.raises(psycopg.OperationalError):
            await second


def test_a_connection_class_of_any_kind_is_lent(postgres: Postgres) -> None:
    class Equal(psycopg.Connection[Any]):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

    with Pool[Any](Psycopg(postgres.url, connection_class=Equal), max_size=1) as pool, pool.connection() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


@pytest.mark.anyio
async def test_an_async_callable_is_awaited_at_every_open(postgres: Postgres) -> None:
    names = iter(["first", "second"])

    async def name() -> str:
        await asyncio.sleep(0)
        return next(names)

    connector = AsyncPsycopg(postgres.url, application_name=name)
    for expected in ("first", "second"):
        async with aopened(connector) as conn:
            assert await (await conn.execute("show application_name")).fetchone() == (expected,)


@pytest.mark.anyio
async def test_an_async_callable_that_hangs_does_not_hold_up_the_open() -> None:
    connector = AsyncPsycopg("host=127.0.0.1", password=asyncio.Event().wait)
    with within(0.05, 4), pytest.raises(TimeoutError):
        await connector.open(0.1)


@pytest.mark.parametrize("accept", [True, False])
def test_opening_ends_in_time_in_a_black_hole(postgres: Postgres, proxy: Wire, accept: bool) -> None:
    wire = proxy(postgres.host, postgres.port)
    wire.black_hole(accept=accept)
    connector = Psycopg(wire.url_for(postgres.url))
    with within(0.3, 4), pytest.raises(psycopg.errors.ConnectionTimeout) as failure:
        connector.open(0.3)
    assert not connector.refused(failure.value)
    if accept:
        wire.heal()
        wire.wait_until_live(0)  # the half-open one was closed


@pytest.mark.anyio
@pytest.mark.parametrize("accept", [True, False])
async def test_opening_by_a_task_ends_in_time_in_a_black_hole(postgres: Postgres, proxy: Wire, accept: bool) -> None:
    wire = proxy(postgres.host, postgres.port)
    wire.black_hole(accept=accept)
    connector = AsyncPsycopg(wire.url_for(postgres.url))
    with within(0.3, 4), pytest.raises(psycopg.errors.ConnectionTimeout):
        await connector.open(0.3)


def test_a_host_in_a_black_hole_leaves_time_for_the_next(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    wire.black_hole()
    two = f"{wire.host}:{wire.port},{postgres.host}:{postgres.port}"
    connector = Psycopg(postgres.url.replace(f"{postgres.host}:{postgres.port}", two))
    with within(3, 5.9):
        conn = connector.open(6)
    assert conn.info.port == postgres.port
    connector.close(conn)


def role(postgres: Postgres, **changes: str) -> Psycopg[TupleRow]:
    known = {"user": "app", "password": "x", "dbname": "app", **changes}
    return Psycopg(" ".join(f"{key}={value}" for key, value in known.items()), host=postgres.host, port=postgres.port)


def failure_of(connector: Psycopg[Any]) -> BaseException:
    with pytest.raises(psycopg.OperationalError) as failure:
        connector.open(5)
    return failure.value


@pytest.fixture
def roles(postgres: Postgres) -> Iterator[None]:
    postgres.execute("create role locked nologin password 'x'")
    postgres.execute("create role outsider login password 'x'")
    postgres.execute("create role crowd login password 'x' connection limit 0")
    postgres.execute("create database closed")
    postgres.execute("revoke connect on database closed from public")
    yield
    postgres.execute("drop database closed")
    postgres.execute("drop role locked, outsider, crowd")


@pytest.mark.usefixtures("roles")
def test_a_refusal_is_told_from_a_failure(postgres: Postgres) -> None:
    for changes in (
        {"password": "wrong"},
        {"user": "nobody_of_that_name"},
        {"user": "locked"},
        {"user": "outsider", "dbname": "closed"},
        {"user": "outsider", "dbname": "no_such_database"},
    ):
        connector = role(postgres, **changes)
        assert connector.refused(failure_of(connector)), changes
    connector = Psycopg(host=postgres.host, port=postgres.port, user="app", dbname="app", passfile="/dev/null")
    assert connector.refused(failure_of(connector))

    connector = role(postgres, user="crowd")
    assert not connector.refused(failure_of(connector))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        connector = Psycopg(host="127.0.0.1", port=nobody.getsockname()[1])
        assert not connector.refused(failure_of(connector))
    assert not connector.refused(OSError())


@pytest.mark.parametrize(
    ("state", "words", "refused"),
    [
        ("57P03", "the database system is starting up", False),
        ("57P03", "the database system is not yet accepting connections", False),
        ("53300", "sorry, too many clients already", False),
        ("53300", "remaining connection slots are reserved for roles with the SUPERUSER attribute", False),
        ("53300", 'too many connections for role "me"', False),
        ("58000", 'could not open file "base/1"', False),
        ("28000", 'role "me" does not exist', True),
        ("28000", 'no pg_hba.conf entry for host "10.0.0.1", user "me", database "app", no encryption', True),
        ("28000", 'pg_hba.conf rejects connection for host "10.0.0.1", user "me", database "app"', True),
        ("28000", 'Peer authentication failed for user "me"', True),
        ("55000", 'database "app" is not currently accepting connections', True),
    ],
)
def test_the_server_is_taken_at_its_word(state: str, words: str, refused: bool) -> None:
    """A stand-in speaks as PostgreSQL does: these states pass too quickly, or need a server of their own."""

    def serve() -> None:
        client = server.accept()[0]
        with client:
            client.recv(4096)
            fields = f"SFATAL\0VFATAL\0C{state}\0M{words}\0\0".encode()
            client.sendall(b"E" + struct.pack("!i", len(fields) + 4) + fields)

    with socket.create_server(("127.0.0.1", 0)) as server:
        speaker = threading.Thread(target=serve)
        speaker.start()
        connector = Psycopg(host="127.0.0.1", port=server.getsockname()[1], sslmode="disable", gssencmode="disable")
        failure = failure_of(connector)
        speaker.join()
    assert words in str(failure)
    assert connector.refused(failure) is refused


# Secrets, types, drivers


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://me:hunter2@db:5/app?sslpassword=hunter2",
        "host=db user=me password=hunter2 dbname=app port=5",
        "postgresql://db:5/app?user=me&password=hunter2",
    ],
)
def test_the_password_is_not_shown(conninfo: str) -> None:
    for connector in (Psycopg(conninfo), AsyncPsycopg(conninfo)):
        assert connector.target == "postgresql://me@db:5/app"
        assert repr(connector) == f"<{type(connector).__name__} postgresql://me@db:5/app>"
        assert "hunter2" not in str(connector)


@pytest.mark.parametrize("conninfo", ["postgresql://me:hun/ter2@db/app", "host=db password = hun ter2", "ter2"])
def test_a_connection_string_that_is_none_is_not_quoted(conninfo: str) -> None:
    with pytest.raises(ValueError, match=r"conninfo|percent-encoded") as failure:
        Psycopg(conninfo)
    assert "ter2" not in str(failure.value)
    assert failure.value.__context__ is None or failure.value.__suppress_context__
    connector = Psycopg(lambda: conninfo)
    with pytest.raises(ValueError, match=r"conninfo|percent-encoded") as failure:
        connector.open(1)
    assert connector.refused(failure.value)


def test_reset_has_two_values() -> None:
    with pytest.raises(ValueError, match="'everything'"):
        Psycopg(reset="everything")  # type: ignore[call-overload]


def test_the_type_of_rows_reaches_the_caller(postgres: Postgres) -> None:
    rows: Connector[psycopg.Connection[DictRow]] = Psycopg(postgres.url, row_factory=dict_row)
    tuples: Connector[psycopg.Connection[TupleRow]] = Psycopg(postgres.url)
    tasks: AsyncConnector[psycopg.AsyncConnection[TupleRow]] = AsyncPsycopg(postgres.url)
    assert rows.target == tuples.target == tasks.target


def test_a_missing_driver_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "millpond.connectors.psycopg")
    with pytest.raises(ImportError, match=r'pip install "millpond\[psycopg\]"'):
        importlib.import_module("millpond.connectors.psycopg")


@pytest.mark.anyio
async def test_a_cancelled_open_leaves_no_socket(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    wire.black_hole()
    connector = AsyncPsycopg(wire.url_for(postgres.url))
    opening = asyncio.create_task(connector.open(60))
    await asyncio.to_thread(wire.wait_until_accepted, 1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await opening
    wire.heal()
    await asyncio.to_thread(wire.wait_until_live, 0)
    assert isinstance(cancelled.value, asyncio.CancelledError)  # still held, and with it its traceback


def test_an_interrupted_open_leaves_no_socket(postgres: Postgres, proxy: Wire) -> None:
    wire = proxy(postgres.host, postgres.port)
    wire.black_hole()
    connector = Psycopg(wire.url_for(postgres.url))

    def strike() -> None:
        wire.wait_until_accepted(1)
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    striker = threading.Thread(target=strike)
    striker.start()
    with pytest.raises(KeyboardInterrupt) as struck:
        connector.open(60)
    striker.join()
    wire.heal()
    wire.wait_until_live(0)
    assert isinstance(struck.value, KeyboardInterrupt)  # still held, and with it its traceback


def test_closing_is_quiet(connector: Psycopg[TupleRow]) -> None:
    conn = connector.open(5)
    connector.close(conn)
    assert conn.closed
    assert not conn.broken
