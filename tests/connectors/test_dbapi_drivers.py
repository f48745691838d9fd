"""`DBAPI` with drivers as they are: psycopg2, pg8000, PyMySQL, mysql-connector, each with its server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit

import mysql.connector
import pg8000.dbapi
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pymysql
import pymysql.converters
import pymysql.cursors
import pytest
from opentelemetry.instrumentation.dbapi import get_traced_connection_proxy

from millpond import Pool
from millpond.connectors.dbapi import DBAPI
from millpond.testing import Postgres
from millpond.testing.proxy import Proxy

from ..promises.alarms import Alarm
from .mariadb import INSTALL, PROGRAM, MariaDB

Wire = Callable[[str, int], Proxy]

needs_mariadb = pytest.mark.skipif(
    not (PROGRAM and INSTALL), reason="MariaDB is not installed (Debian's mariadb-server-core, mariadb-client-core)"
)


@dataclass
class Driver:
    """A driver, and where its server is."""

    name: str
    connect: Callable[..., Any]
    arguments: dict[str, Any]

    def connector(self, port: int | None = None) -> DBAPI[Any]:
        given = self.arguments if port is None else {**self.arguments, "port": port}
        return DBAPI(self.connect, **given)

    def pool(self, port: int | None = None) -> Pool[Any]:
        return Pool(self.connector(port), max_size=1)

    @property
    def port(self) -> int:
        return int(self.arguments["port"])

    def one(self, sql: str) -> Any:
        """Ask the server by itself."""
        conn = self.connect(**self.arguments)
        try:
            return ask(conn, sql)
        finally:
            conn.close()


def run(conn: Any, sql: str) -> None:
    cursor = conn.cursor()
    cursor.execute(sql)
    cursor.close()


def ask(conn: Any, sql: str) -> Any:
    cursor = conn.cursor()
    cursor.execute(sql)
    (row,) = cursor.fetchall()
    cursor.close()
    return next(iter(row.values())) if isinstance(row, dict) else row[0]


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaDB]:
    with MariaDB() as server:
        yield server


POSTGRES = ["psycopg2", "pg8000"]
MYSQL = [pytest.param(name, marks=needs_mariadb) for name in ("pymysql", "mysql-connector")]


def postgres_driver(name: str, postgres: Postgres) -> Driver:
    where = urlsplit(postgres.url)
    given = {"host": where.hostname, "port": where.port, "user": "app", "password": where.password, "database": "app"}
    return Driver(name, {"psycopg2": psycopg2.connect, "pg8000": pg8000.dbapi.connect}[name], given)


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    name = request.param
    if name in POSTGRES:
        driver = postgres_driver(name, request.getfixturevalue("postgres"))
    else:
        mariadb: MariaDB = request.getfixturevalue("mariadb")
        where = {
            "host": mariadb.host,
            "port": mariadb.port,
            "user": "app",
            "password": mariadb.password,
            "database": "app",
        }
        plain = partial(mysql.connector.connect, use_pure=True, ssl_disabled=True)
        driver = Driver(name, pymysql.connect if name == "pymysql" else plain, where)
    with driver.pool() as pool, pool.connection() as conn:
        run(conn, "create table work (x int)")
        run(conn, "insert into work values (1)")
        run(conn, "insert into work values (2)")
        conn.commit()
    yield driver
    with driver.pool() as pool, pool.connection() as conn:
        run(conn, "drop table work")
        conn.commit()


def drivers(*names: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("driver", [*names], indirect=True)


every = drivers(*POSTGRES, *MYSQL)
mysqls = drivers(*MYSQL)


def set_autocommit(conn: Any) -> None:
    if callable(conn.autocommit):
        conn.autocommit(True)
    else:
        conn.autocommit = True


@every
@pytest.mark.parametrize("failing", [False, True])
def test_that_a_borrower_committed_at_once_does_not_hold_for_the_next(driver: Driver, failing: bool) -> None:
    with driver.pool() as pool:
        for _ in range(2):
            with suppress(Exception), pool.connection() as conn:
                set_autocommit(conn)
                if failing:
                    run(conn, "select no_such_thing")
            with pytest.raises(LookupError), pool.connection() as conn:
                run(conn, "insert into work values (3)")
                raise LookupError
        assert pool.stats().lent == 0
    assert driver.one("select count(*) from work") == 2


@every
def test_an_autocommit_that_the_connector_was_told_is_kept(driver: Driver) -> None:
    given: dict[str, Any] = {"autocommit": True} if driver.name in ("pymysql", "mysql-connector") else {}

    def connect(**arguments: Any) -> Any:
        conn = driver.connect(**arguments)
        if not given:
            conn.autocommit = True
        return conn

    errors = driver.connector()._errors
    with Pool(DBAPI(connect, errors=errors, **driver.arguments, **given), max_size=1) as pool:
        for value in range(3):
            with pool.connection() as conn:
                run(conn, f"insert into work values ({value})")
        assert pool.stats().opens == 1
    assert driver.one("select count(*) from work") == 5


@drivers(*MYSQL[:1])
def test_an_autocommit_that_was_set_by_a_statement_does_not_hold_for_the_next(driver: Driver) -> None:
    with driver.pool() as pool:
        with pool.connection() as conn:
            run(conn, "set autocommit = 1")
        with pool.connection() as conn:
            run(conn, "insert into work values (3)")
        assert pool.stats().opens == 1
    assert driver.one("select count(*) from work") == 2


SETTINGS: dict[str, tuple[str, Any]] = {
    "psycopg2": ("cursor_factory", psycopg2.extras.DictCursor),
    "psycopg2, readonly": ("readonly", True),
    "psycopg2, deferrable": ("deferrable", True),
    "psycopg2, isolation_level": ("isolation_level", psycopg2.extensions.ISOLATION_LEVEL_SERIALIZABLE),
    "pg8000": ("py_types", {}),
    "pymysql": ("cursorclass", pymysql.cursors.DictCursor),
    "pymysql, decoders": ("decoders", {}),
    "mysql-connector": ("raise_on_warnings", True),
    "mysql-connector, use_unicode": ("use_unicode", False),
    "mysql-connector, can_consume_results": ("can_consume_results", True),
}


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        pytest.param(which.partition(",")[0], which, marks=[needs_mariadb] if "sql" in which.partition("c")[0] else [])
        for which in SETTINGS
    ],
    indirect=["driver"],
)
def test_what_a_borrower_has_set_is_put_back(driver: Driver, name: str) -> None:
    setting, value = SETTINGS[name]
    with driver.pool() as pool:
        with pool.connection() as conn:
            opened = getattr(conn, setting)
            setattr(conn, setting, value)
            assert getattr(conn, setting) != opened
        with pool.connection() as conn:
            assert getattr(conn, setting) == opened
            assert ask(conn, "select count(*) from work") == 2
        assert pool.stats().opens == 1


def as_text(oid: int) -> Any:
    return psycopg2.extensions.new_type((oid,), "text", lambda value, _: f"not {value}")


@drivers("psycopg2")
def test_a_conversion_for_one_connection_is_put_back(driver: Driver) -> None:
    with driver.pool() as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert ask(conn, "select 1") == 1
                psycopg2.extensions.register_type(as_text(23), conn)
                assert ask(conn, "select 1") == "not 1"
        assert pool.stats().opens == 1


@drivers("psycopg2")
@pytest.mark.parametrize("given", [{"readonly": True}, {"isolation_level": "SERIALIZABLE"}, {"deferrable": True}])
def test_what_a_session_was_opened_with_holds_for_the_next(driver: Driver, given: dict[str, Any]) -> None:
    """psycopg2 tells the server anew what `autocommit` had it forget only if the value is another."""

    def connect(**arguments: Any) -> Any:
        conn = psycopg2.connect(**arguments)
        conn.set_session(autocommit=True, **given)
        return conn

    name = {"readonly": "read_only"}.get(*given) or next(iter(given))
    shown = f"show default_transaction_{name.removesuffix('_level')}"
    with Pool(DBAPI(connect, errors=psycopg2.Error, **driver.arguments), max_size=1) as pool:
        with pool.connection() as conn:
            opened = ask(conn, shown)
            assert opened in ("on", "serializable")
            conn.autocommit = False
            ask(conn, "select 1")
        with pool.connection() as conn:
            assert ask(conn, shown) == opened


@drivers(*MYSQL[:1])
def test_a_table_of_the_borrowers_own_is_given_back_as_it_was(driver: Driver) -> None:
    mine = {str: lambda value, mapping: "'mine'"}
    with driver.pool() as pool:
        for _ in range(2):
            with pool.connection() as conn:
                conn.encoders = mine
            assert list(mine) == [str]
        with pool.connection() as conn:
            assert conn.encoders is not mine
        assert list(mine) == [str]


@drivers("psycopg2", *MYSQL[:1])
def test_an_encoding_that_was_changed_reaches_nobody(driver: Driver) -> None:
    with driver.pool() as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert ask(conn, "select 'é'") == "é"
                if driver.name == "psycopg2":
                    conn.set_client_encoding("LATIN1")
                else:
                    conn.set_character_set("latin1")
        assert pool.stats().closes == {"reset failed": 2} or pool.stats().opens == 2


@drivers(*MYSQL[:1])
def test_what_is_wrapped_to_be_traced_is_the_same(driver: Driver) -> None:
    def connect(**arguments: Any) -> Any:
        return get_traced_connection_proxy(pymysql.connect(**arguments), None)

    with Pool(DBAPI(connect, errors=pymysql.Error, **driver.arguments), max_size=1) as pool:
        with pool.connection() as conn:
            conn.autocommit(True)
        with pytest.raises(LookupError), pool.connection() as conn:
            conn.__wrapped__.query("insert into work values (3)")
            raise LookupError
    assert driver.one("select count(*) from work") == 2


@drivers("pg8000")
def test_what_is_changed_within_a_table_of_conversions_is_put_back(driver: Driver) -> None:
    with driver.pool() as pool:
        with pool.connection() as conn:
            conn.register_in_adapter(23, lambda text: f"not {text}")
            assert ask(conn, "select 1") == "not 1"
        with pool.connection() as conn:
            assert ask(conn, "select 1") == 1
        assert pool.stats().opens == 1


@pytest.mark.filterwarnings("ignore:Previous unbuffered result was left incomplete")  # PyMySQL's own
@every
@pytest.mark.parametrize("commits", [False, True])
def test_a_result_that_was_read_in_part_reaches_nobody(driver: Driver, commits: bool) -> None:
    unbuffered = {"cursor": pymysql.cursors.SSCursor} if driver.name == "pymysql" else {}
    with driver.pool() as pool:
        for _ in range(2):
            with suppress(Exception), pool.connection() as conn:
                if commits:
                    set_autocommit(conn)
                cursor = conn.cursor(**unbuffered)
                cursor.execute("select x from work order by x")
                assert cursor.fetchone() == (1,)
            for value in (501, 502):
                with pool.connection() as conn:
                    assert ask(conn, f"select {value}") == value


@mysqls
@pytest.mark.parametrize("read", [0, 1])
def test_a_result_of_a_procedure_that_was_not_read_reaches_nobody(driver: Driver, read: int) -> None:
    with driver.pool() as pool:
        with pool.connection() as conn:
            run(conn, "create or replace procedure two() begin select 1 as a; select 2 as b; end")
        for _ in range(2):
            with suppress(Exception), pool.connection() as conn:
                cursor = conn.cursor()
                cursor.execute("call two()")
                for _ in range(read):
                    cursor.fetchall()
            for value in (501, 502):
                with pool.connection() as conn:
                    assert ask(conn, f"select {value}") == value


@drivers("pg8000", *MYSQL)
def test_a_proof_takes_two_round_trips(driver: Driver, proxy: Wire) -> None:
    wire = proxy(driver.arguments["host"], driver.port)
    connector = driver.connector(wire.port)
    conn = connector.open(5)
    connector.reset(conn, 5)
    before = len(wire.sent_by_client()[0])
    connector.reset(conn, 5)
    sent = wire.sent_by_client()[0][before:].lower()
    assert sent.count(b"select") == 1
    assert sent.count(b"rollback") == 1
    connector.close(conn)


@mysqls
def test_an_answer_may_come_as_any_kind_of_number(driver: Driver) -> None:
    if driver.name == "pymysql":
        given: dict[str, Any] = {"conv": {**pymysql.converters.conversions, 3: float, 8: float}}
    else:
        given = {"raw": True}
    with Pool(DBAPI(driver.connect, errors=driver.connector()._errors, **driver.arguments, **given)) as pool:
        for _ in range(3):
            with pool.connection():
                pass
        assert (pool.stats().opens, pool.stats().closes) == (1, {})


@every
def test_a_connection_that_its_borrower_closed_reaches_nobody(driver: Driver) -> None:
    with driver.pool() as pool:
        with pool.connection() as conn:
            conn.close()
        with pool.connection() as conn:
            assert ask(conn, "select 501") == 501
        assert pool.stats().opens == 2


@every
def test_a_connection_that_was_cut_while_it_was_idle_reaches_nobody(driver: Driver, proxy: Wire) -> None:
    wire = proxy(driver.arguments["host"], driver.port)
    with driver.pool(wire.port) as pool:
        with pool.connection() as conn:
            assert ask(conn, "select 501") == 501
        wire.cut()
        wire.heal()
        deadline = monotonic() + 10
        while pool.stats().idle and monotonic() < deadline:
            sleep(0.001)
        with pool.connection() as conn:
            assert ask(conn, "select 502") == 502


@mysqls
def test_a_transaction_that_a_failed_statement_has_opened_is_rolled_back(driver: Driver) -> None:
    """MySQL's error says nothing of the transaction, so mysql-connector believes that there is none."""
    with driver.pool() as pool:
        with pool.connection() as conn:
            run(
                conn,
                "create or replace procedure fails() begin insert into work values (3); signal sqlstate '45000'; end",
            )
        with suppress(Exception), pool.connection() as conn:
            run(conn, "call fails()")
        with pool.connection() as conn:
            run(conn, "insert into work values (4)")
            conn.commit()
        assert pool.stats().opens == 1
    assert driver.one("select count(*) from work where x = 3") == 0


class Interruption(Exception):
    pass


def interrupt() -> None:
    raise Interruption


SLOW = {"psycopg2": "select 99, pg_sleep(0.3)", "pg8000": "select 99, pg_sleep(0.3)"}


@every
@pytest.mark.parametrize("commits", [False, True])
def test_what_was_interrupted_and_swallowed_answers_nobody_elses_question(driver: Driver, commits: bool) -> None:
    with Alarm(interrupt) as alarm, driver.pool() as pool:
        for _ in range(2):
            with pool.connection() as conn:
                if commits:
                    set_autocommit(conn)
                with suppress(Exception):
                    alarm.set(0.1)
                    run(conn, SLOW.get(driver.name, "select 99 + sleep(0.3)"))
            for value in (501, 502, 503):
                with pool.connection() as conn:
                    assert ask(conn, f"select {value}") == value
        assert alarm.fired == 2


@drivers("pg8000", *MYSQL)
def test_what_was_interrupted_in_the_driver_is_not_waited_for(driver: Driver) -> None:
    with Alarm(interrupt) as alarm, driver.pool() as pool:
        with pytest.raises(Interruption), pool.connection() as conn:
            alarm.set(0.1)
            run(conn, SLOW.get(driver.name, "select 99 + sleep(0.3)").replace("0.3", "30"))
        with pool.connection(timeout=5) as conn:
            assert ask(conn, "select 501") == 501


@drivers("pg8000")
@pytest.mark.parametrize("commits", [False, True])
def test_a_reply_that_the_driver_could_not_read_answers_nobody_elses_question(driver: Driver, commits: bool) -> None:
    with driver.pool() as pool:
        with pool.connection() as conn:
            if commits:
                set_autocommit(conn)
            with pytest.raises(ValueError):  # noqa: PT011
                run(conn, "select '24:00:00'::time")
        for value in (501, 502, 503):
            with pool.connection() as conn:
                assert ask(conn, f"select {value}") == value
                assert ask(conn, f"select {value} + 1000") == value + 1000


@mysqls
def test_a_transaction_that_is_open_at_the_end_is_rolled_back(driver: Driver) -> None:
    with driver.pool() as pool:
        with pool.connection() as conn:
            run(conn, "insert into work values (3)")
        with pool.connection() as conn:
            conn.commit()
        assert pool.stats().opens == 1
    assert driver.one("select count(*) from work") == 2


@drivers("psycopg2")
def test_what_is_proved_costs_no_round_trip(driver: Driver, proxy: Wire) -> None:
    wire = proxy(driver.arguments["host"], driver.port)
    with driver.pool(wire.port) as pool:
        with pool.connection() as conn:
            assert ask(conn, "select 501") == 501
            conn.commit()
        sent = wire.bytes_from_client
        for _ in range(10):
            with pool.connection():
                pass
        assert wire.bytes_from_client == sent
        assert pool.stats().resets == 0


@every
def test_an_exception_of_the_programs_costs_no_connection(driver: Driver) -> None:
    with driver.pool() as pool:
        for _ in range(5):
            with pytest.raises(LookupError), pool.connection() as conn:
                run(conn, "insert into work values (3)")
                raise LookupError
        with pool.connection() as conn:
            assert ask(conn, "select count(*) from work") == 2
        assert pool.stats().opens == 1


@pytest.fixture(scope="module")
def two_phases() -> Iterator[Postgres]:
    with Postgres(max_prepared_transactions=2) as server:
        yield server


@pytest.mark.parametrize("name", POSTGRES)
@pytest.mark.parametrize("prepared", [False, True])
def test_a_transaction_in_two_phases_is_nobody_elses_to_end(two_phases: Postgres, name: str, prepared: bool) -> None:
    driver = postgres_driver(name, two_phases)
    two_phases.execute("create table work (x int); grant all on work to app")
    with driver.pool() as pool:
        with pool.connection() as conn:
            conn.tpc_begin(conn.xid(1, "global", "branch"))
            run(conn, "insert into work values (3)")
            if prepared:
                conn.tpc_prepare()
        with pool.connection() as conn:
            assert ask(conn, "select count(*) from work") == 0
            with suppress(Exception):
                conn.tpc_commit()
    assert two_phases.execute("select count(*) from pg_prepared_xacts") == [[str(int(prepared))]]
    if prepared:
        conn = driver.connect(**driver.arguments)
        conn.tpc_rollback(conn.tpc_recover()[0])
        conn.close()
    assert two_phases.execute("select count(*) from work") == [["0"]]
    two_phases.execute("drop table work")
