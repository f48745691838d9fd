from __future__ import annotations

import contextlib
import functools
import math
import socket
import sqlite3
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest

from millpond import ConnectFailed, Pool
from millpond.connector import Condition, Connector
from millpond.connectors import dbapi
from millpond.connectors.dbapi import DBAPI
from millpond.testing import Postgres
from millpond.testing.proxy import Proxy

CLEAN, UNPROVED, DIRTY, BROKEN = Condition

Wire = Callable[[str, int], Proxy]


class Mute:
    """A DB-API connection that tells nothing of its state, as PyMySQL's and most others."""

    def __init__(self, **kwargs: Any) -> None:
        self._conn = psycopg.connect(**kwargs)
        self.statements: list[str] = []

    def cursor(self) -> psycopg.Cursor[Any]:
        return self._conn.cursor()

    def rollback(self) -> None:
        self.statements.append("rollback")
        self._conn.rollback()

    def close(self) -> None:
        self._conn.close()


class MuteWithSocket(Mute):
    def fileno(self) -> int:
        return self._conn.fileno()


@pytest.fixture
def mute(postgres: Postgres) -> DBAPI[Mute]:
    return DBAPI(Mute, conninfo=postgres.url, errors=psycopg.Error)


@contextlib.contextmanager
def opened(connector: DBAPI[Any]) -> Iterator[Any]:
    conn = connector.open(5)
    try:
        yield conn
    finally:
        connector.abandon(conn)


def count(postgres: Postgres) -> list[list[str]]:
    return postgres.execute("select count(*) from work")


@pytest.fixture
def table(postgres: Postgres) -> Iterator[None]:
    postgres.execute("create table work (x int); grant all on work to app")
    yield
    postgres.execute("drop table work")


@pytest.mark.usefixtures("table")
def test_a_connection_that_tells_nothing_is_rolled_back_after_every_loan(postgres: Postgres, mute: DBAPI[Mute]) -> None:
    connector: Connector[Mute] = mute
    assert connector.provable
    with opened(mute) as conn:
        for number in (1, 2):
            conn.cursor().execute("insert into work values (1)")
            assert connector.inspect(conn, None) is UNPROVED
            connector.reset(conn, 5)
            assert len(conn.statements) == number
    assert count(postgres) == [["0"]]


def test_an_error_of_the_driver_does_not_break_the_connection(mute: DBAPI[Mute]) -> None:
    with opened(mute) as conn:
        with pytest.raises(psycopg.Error) as failure:
            conn.cursor().execute("select 1 / 0")
        assert mute.inspect(conn, failure.value) is UNPROVED
        mute.reset(conn, 5)
        assert conn.cursor().execute("select 1") is not None


@pytest.mark.parametrize(("error", "proof"), [(KeyboardInterrupt(), "SELECT {}"), (ValueError(), "SELECT 1")])
def test_a_strange_exception_that_is_not_followed_by_a_proof_breaks_the_connection(
    postgres: Postgres, error: BaseException, proof: str
) -> None:
    """It may have come between a request and its reply."""
    mute = DBAPI(Mute, ping=proof, conninfo=postgres.url, errors=psycopg.Error)
    with opened(mute) as conn:
        mute.reset(conn, 5)
        assert mute.inspect(conn, error) is BROKEN


def test_a_connection_that_tells_its_transaction_is_rolled_back_only_if_there_is_one(postgres: Postgres) -> None:
    connector = DBAPI(psycopg.connect, postgres.url)
    with opened(connector) as conn:
        assert connector.inspect(conn, None) is CLEAN
        conn.execute("select 1")
        assert connector.inspect(conn, None) is DIRTY
        connector.reset(conn, 5)
        assert connector.inspect(conn, None) is CLEAN
        rows = conn.cursor().stream("select generate_series(1, 100000)")
        next(rows)
        assert connector.inspect(conn, None) is BROKEN
        rows.close()
        conn.close()
        assert connector.inspect(conn, None) is BROKEN


def test_autocommit_proves_nothing(postgres: Postgres) -> None:
    connector = DBAPI(psycopg.connect, postgres.url, autocommit=True)
    with opened(connector) as conn:
        conn.execute("begin")
        assert connector.inspect(conn, None) is DIRTY


def test_in_transaction_is_asked(tmp_path: Path) -> None:
    connector = DBAPI(sqlite3.connect, tmp_path / "app.db", check_same_thread=False)
    with opened(connector) as conn:
        assert connector.inspect(conn, None) is CLEAN
        conn.execute("create table work (x int)")
        conn.execute("insert into work values (1)")
        assert connector.inspect(conn, None) is DIRTY
        connector.reset(conn, 5)
        assert connector.inspect(conn, None) is CLEAN
        assert connector.alive(conn)
        connector.ping(conn, 5)
        assert connector.inspect(conn, None) is CLEAN
        conn.close()
        assert connector.inspect(conn, None) is BROKEN


@pytest.mark.usefixtures("table")
def test_a_ping_leaves_no_transaction(postgres: Postgres) -> None:
    connector = DBAPI(psycopg.connect, postgres.url, ping="insert into work values (1) returning 1")
    with opened(connector) as conn:
        connector.ping(conn, 5)
        assert connector.inspect(conn, None) is CLEAN
    assert count(postgres) == [["0"]]


@pytest.mark.parametrize("what", ["ping", "reset"])
def test_a_black_hole_holds_up_no_longer_than_the_limit(postgres: Postgres, proxy: Wire, what: str) -> None:
    wire = proxy(postgres.host, postgres.port)
    connector = DBAPI(MuteWithSocket, conninfo=wire.url_for(postgres.url), errors=psycopg.Error)
    with opened(connector) as conn:
        conn.cursor().execute("select 1")
        assert connector.descriptor(conn) == conn.fileno()
        wire.black_hole()
        begin = monotonic()
        with pytest.raises(psycopg.OperationalError):
            getattr(connector, what)(conn, 0.3)
        assert 0.3 <= monotonic() - begin < 4


def test_a_ping_in_time_cuts_nothing(postgres: Postgres) -> None:
    connector = DBAPI(MuteWithSocket, conninfo=postgres.url, errors=psycopg.Error)
    with opened(connector) as conn:
        for _ in range(20):
            connector.ping(conn, 0.5)
        assert connector.alive(conn)


def test_a_socket_that_is_kept_in_a_known_place_is_found() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for name in ("_sock", "_usock"):  # PyMySQL, pg8000
            conn = types.SimpleNamespace(**{name: ours})
            assert DBAPI(Mute, errors=psycopg.Error).descriptor(conn) == ours.fileno()


def test_credentials_are_asked_for_at_every_open() -> None:
    seen: list[tuple[object, ...]] = []
    passwords = iter(["first", "second"])

    def connect(place: object, *, host: str, password: str, connect_timeout: int) -> Mute:
        seen.append((place, host, password, connect_timeout))
        return Mute.__new__(Mute)

    connector = DBAPI(connect, repr, host=lambda: "db", password=lambda: next(passwords), errors=psycopg.Error)
    for timeout in (0.2, 4.5):
        connector.open(timeout)
    assert seen == [(repr, "db", "first", 1), (repr, "db", "second", 5)]


def test_a_type_or_function_that_is_an_argument_of_connects_is_handed_on(tmp_path: Path) -> None:
    class Mine(sqlite3.Connection):
        pass

    def on_login(conn: object) -> None:
        raise AssertionError("it was called")

    def connect(path: Path, *, factory: type[Mine], session_callback: Any, **options: Any) -> Mine:
        assert session_callback is on_login
        return sqlite3.connect(path, factory=factory, **options)

    connector = DBAPI(
        connect,
        tmp_path / "app.db",
        factory=Mine,
        session_callback=on_login,
        check_same_thread=False,
        errors=sqlite3.Error,
    )
    with Pool(connector, max_size=1) as pool, pool.connection() as conn:
        assert type(conn) is Mine


@pytest.mark.parametrize("close", [DBAPI, None])
def test_a_connection_for_one_thread_only_is_refused_by_name(tmp_path: Path, close: object) -> None:
    path = tmp_path / "app.db"
    made: list[sqlite3.Connection] = []

    def connect(path: Path) -> sqlite3.Connection:
        made.append(sqlite3.connect(path))
        return made[-1]

    source: Any = DBAPI(connect, path, errors=sqlite3.Error) if close else lambda: connect(path)
    began = monotonic()
    with (
        Pool(source) as pool,
        pytest.raises(ConnectFailed, match="check_same_thread=False") as refusal,
        pool.connection(),
    ):
        pass
    assert "sqlite:///path" in str(refusal.value)
    assert "cannot make a connection" in str(refusal.value)
    assert monotonic() - began < 5
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        made[0].in_transaction  # noqa: B018


def test_a_mistake_in_the_arguments_is_told_at_once() -> None:
    with (
        Pool(DBAPI(sqlite3.connect, ":memory:", no_such_argument=1)) as pool,
        pytest.raises(ConnectFailed, match=r"(?s)cannot make a connection.*no_such_argument"),
        pool.connection(),
    ):
        pass
    assert pool.stats().open_failures == 1


def test_an_endless_limit_is_none() -> None:
    seen: list[dict[str, object]] = []

    def connect(*, connect_timeout: int | None = None) -> Mute:
        seen.append({"connect_timeout": connect_timeout})
        return Mute.__new__(Mute)

    DBAPI(connect, errors=psycopg.Error).open(math.inf)
    assert seen == [{"connect_timeout": None}]


class Methodical:
    """`closed` and `opened` are methods, as vertica-python's."""

    def __init__(self) -> None:
        self.autocommit = False

    def closed(self) -> bool:
        return False

    def open(self) -> bool:
        return False

    def rollback(self) -> None:
        pass

    def close(self) -> None:
        pass

    def cursor(self) -> Any:
        raise NotImplementedError


def test_what_is_a_method_is_not_taken_for_a_state() -> None:
    with Pool(DBAPI(Methodical, ping="", errors=sqlite3.Error), max_size=1) as pool:
        for _ in range(20):
            with pool.connection() as conn:
                assert conn.autocommit is False
                conn.autocommit = True
        assert pool.stats().opens == 1


class Settable(sqlite3.Connection):
    """Has whatever any driver's connections let a borrower set."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in NAMES:
            setattr(self, name, [name])


NAMES = [name for name in dbapi._SETTINGS if not hasattr(sqlite3.Connection, name)]


@pytest.mark.parametrize("name", dbapi._SETTINGS)
def test_what_any_drivers_connections_let_a_borrower_set_is_put_back(tmp_path: Path, name: str) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as plain:
        expected = [name] if name in NAMES else getattr(plain, name)
    connector = DBAPI(sqlite3.connect, tmp_path / "app.db", factory=Settable, check_same_thread=False)
    with Pool(connector, max_size=1) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert getattr(conn, name) == expected
                setattr(conn, name, None if name == "isolation_level" else bytes)
        assert (pool.stats().opens, pool.stats().closes) == (1, {})


if sys.version_info >= (3, 12):

    @pytest.mark.parametrize("autocommit", [True, False, sqlite3.LEGACY_TRANSACTION_CONTROL])
    @pytest.mark.parametrize("changed", [True, False, sqlite3.LEGACY_TRANSACTION_CONTROL])
    def test_a_transaction_of_sqlite_is_rolled_back_whatever_controls_it(
        tmp_path: Path, autocommit: Any, changed: Any
    ) -> None:
        path = tmp_path / "app.db"
        with contextlib.closing(sqlite3.connect(path)) as conn:
            conn.execute("create table work (x int)")
        with Pool(DBAPI(sqlite3.connect, path, autocommit=autocommit, check_same_thread=False), max_size=1) as pool:
            for _ in range(3):
                with pool.connection() as conn:
                    if not conn.in_transaction:
                        conn.execute("begin")
                    conn.commit()
                    conn.autocommit = changed
                    if not conn.in_transaction:
                        conn.execute("begin")
                    conn.execute("insert into work values (1)")
                with pool.connection() as conn:
                    assert conn.autocommit == autocommit
                    assert conn.execute("select count(*) from work").fetchone() == (0,)
                    conn.commit()
            assert (pool.stats().opens, pool.stats().closes) == (1, {})


def test_a_half_read_cursor_of_sqlite_reaches_nobody(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("pragma journal_mode = wal")
        conn.execute("create table work (x int)")
        conn.executemany("insert into work values (?)", [(1,), (2,), (3,)])
    with Pool(DBAPI(sqlite3.connect, path, check_same_thread=False), max_size=1) as pool:
        with pool.connection() as conn:
            half = conn.execute("select x from work")
            half.fetchone()
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("delete from work")
        with pool.connection() as conn:
            assert conn.execute("select count(*) from work").fetchone() == (0,)


def test_the_drivers_error_is_found_beside_its_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = types.ModuleType("somedriver")
    driver.Error = psycopg.Error  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somedriver", driver)
    monkeypatch.setattr(Mute, "__module__", "somedriver.connections")
    connector = DBAPI(functools.partial(Mute, password="hunter2"), user="me", password="hunter2", host="db", port=5)
    assert connector.inspect(types.SimpleNamespace(), psycopg.OperationalError()) is UNPROVED  # type: ignore[arg-type]
    assert connector.target == "somedriver://me@db:5"
    assert "hunter2" not in repr(connector)


def test_a_driver_without_an_error_is_declined() -> None:
    with pytest.raises(ValueError, match="errors="):
        DBAPI(lambda: sqlite3.connect(":memory:"))


class DriverError(Exception):
    sqlstate: str | None = None
    pgcode: str | None = None

    def __init__(self, *args: object, **known: str) -> None:
        super().__init__(*args)
        vars(self).update(known)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (DriverError(1045, "Access denied for user"), True),  # MySQL
        (DriverError(1049, "Unknown database"), True),
        (DriverError(1040, "Too many connections"), False),
        (DriverError(2003, "Can't connect to MySQL server"), False),
        (DriverError({"S": "FATAL", "C": "28P01"}), True),  # pg8000
        (DriverError({"S": "FATAL", "C": "57P03"}), False),
        (DriverError("no", sqlstate="3D000"), True),
        (DriverError("no", pgcode="28000"), True),
        (DriverError("no", sqlstate="53300"), False),
        (DriverError('FATAL:  password authentication failed for user "me"'), True),  # psycopg2
        (DriverError("28 connections"), False),
        (DriverError(), False),
        (ValueError('password authentication failed for user "me"'), False),
    ],
)
def test_a_refusal_is_told_from_a_failure(error: Exception, refused: bool) -> None:
    assert DBAPI(Mute, errors=DriverError).refused(error) is refused


if sys.version_info >= (3, 12):

    @pytest.mark.parametrize("autocommit", [True, False, sqlite3.LEGACY_TRANSACTION_CONTROL])
    def test_sqlite_is_kept_whatever_controls_its_transactions(tmp_path: Path, autocommit: Any) -> None:
        path = tmp_path / "app.db"
        with contextlib.closing(sqlite3.connect(path)) as conn:
            conn.execute("create table work (x int)")
        connector = DBAPI(sqlite3.connect, path, autocommit=autocommit, check_same_thread=False)
        with Pool(connector, max_size=1) as pool:
            for _ in range(5):
                with pool.connection() as conn:
                    conn.execute("insert into work values (1)")
            assert (pool.stats().opens, pool.stats().closes) == (1, {})
            with pool.connection() as conn:
                (rows,) = conn.execute("select count(*) from work").fetchone()
                assert rows == (5 if autocommit is True else 0)
