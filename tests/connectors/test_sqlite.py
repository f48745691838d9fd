from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from millpond import ConnectFailed, Pool
from millpond.connector import Condition, Connector
from millpond.connectors.sqlite import Sqlite
from millpond.connectors.urls import InvalidURL, connector_for

CLEAN, UNPROVED, DIRTY, BROKEN = Condition


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def connector(path: Path) -> Sqlite:
    return Sqlite(path, wal=True)


@pytest.fixture
def conn(connector: Sqlite) -> Iterator[sqlite3.Connection]:
    conn = connector.open(5)
    conn.execute("create table work (x int)")
    conn.executemany("insert into work values (?)", [(x,) for x in range(10)])
    conn.commit()
    yield conn
    connector.close(conn)


def test_a_new_connection_is_clean_and_alive(
    connector: Connector[sqlite3.Connection], conn: sqlite3.Connection
) -> None:
    assert connector.provable
    assert connector.inspect(conn, None) is CLEAN
    assert connector.alive(conn)
    assert connector.descriptor(conn) is None
    connector.ping(conn, 5)
    assert connector.inspect(conn, None) is CLEAN


@pytest.mark.parametrize("error", [None, ValueError()])
def test_an_open_transaction_is_dirty_until_it_is_rolled_back(
    connector: Sqlite, conn: sqlite3.Connection, error: Exception | None
) -> None:
    conn.execute("delete from work")
    assert connector.inspect(conn, error) is DIRTY
    connector.reset(conn, 5)
    assert connector.inspect(conn, error) is CLEAN
    assert conn.execute("select count(*) from work").fetchone() == (10,)


def test_a_half_read_cursor_breaks_the_connection(connector: Sqlite, conn: sqlite3.Connection) -> None:
    cursor = conn.execute("select * from work")
    cursor.fetchone()
    assert not conn.in_transaction
    assert connector.inspect(conn, None) is BROKEN
    del cursor
    assert connector.inspect(conn, None) is CLEAN


def test_a_cursor_that_was_read_to_its_end_does_no_harm(connector: Sqlite, conn: sqlite3.Connection) -> None:
    cursor = conn.execute("select * from work")
    cursor.fetchall()
    one = conn.execute("select x from work where x = 1")
    one.fetchone()
    assert connector.inspect(conn, None) is CLEAN


def test_a_half_read_cursor_would_show_an_old_snapshot(connector: Sqlite, conn: sqlite3.Connection) -> None:
    """Why a half-read cursor matters; the day this fails, it does not."""
    cursor = conn.execute("select * from work")
    cursor.fetchone()
    other = connector.open(5)
    other.execute("delete from work")
    other.commit()
    connector.close(other)
    assert conn.execute("select count(*) from work").fetchone() == (10,)


def test_a_connection_that_its_borrower_closed_is_broken(connector: Sqlite, conn: sqlite3.Connection) -> None:
    conn.close()
    assert connector.inspect(conn, None) is BROKEN


CHANGES: dict[str, Callable[[sqlite3.Connection], object]] = {
    "row_factory": lambda conn: setattr(conn, "row_factory", sqlite3.Row),
    "text_factory": lambda conn: setattr(conn, "text_factory", bytes),
    "isolation_level": lambda conn: setattr(conn, "isolation_level", None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_borrower_changed_does_not_reach_the_next(
    connector: Sqlite, conn: sqlite3.Connection, name: str
) -> None:
    before = getattr(conn, name)
    CHANGES[name](conn)
    assert connector.inspect(conn, None) is DIRTY
    connector.reset(conn, 5)
    assert connector.inspect(conn, None) is CLEAN
    assert getattr(conn, name) == before


@pytest.mark.parametrize("level", ["deferred", "IMMEDIATE", "", None])
def test_sqlites_own_words_for_an_isolation_level_are_no_change(path: Path, level: Any) -> None:
    with Pool(Sqlite(path, isolation_level=level), max_size=1) as pool:
        for _ in range(5):
            with pool.connection() as conn:
                conn.row_factory = sqlite3.Row
        assert (pool.stats().opens, pool.stats().closes) == (1, {})


HIDDEN: dict[str, Callable[[sqlite3.Connection], object]] = {
    "row_factory": lambda conn: setattr(conn, "row_factory", sqlite3.Row),
    "text_factory": lambda conn: setattr(conn, "text_factory", bytes),
    "an open transaction": lambda conn: conn.execute("insert into work values (7)"),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_a_half_read_cursor_behind_another_change_reaches_nobody(
    path: Path, conn: sqlite3.Connection, what: str
) -> None:
    """Its snapshot of the database would be the next borrower's, who could not write either."""
    with Pool(Sqlite(path, wal=True), max_size=1) as pool:
        with pool.connection() as lent:
            HIDDEN[what](lent)
            held = lent.execute("select * from work")
            held.fetchone()
        conn.execute("insert into work values (99)")
        conn.commit()
        for number in range(3):
            with pool.connection() as lent:
                assert lent.execute("select count(*) from work").fetchone() == (11 + number,)
                lent.execute("insert into work values (100)")
                lent.commit()
        assert pool.stats().closes == {"reset failed": 1}
    with pytest.raises(sqlite3.Error):
        held.fetchone()


def test_what_the_connector_was_told_is_not_taken_for_a_change(path: Path) -> None:
    connector = Sqlite(path, row_factory=sqlite3.Row, isolation_level=None, detect_types=sqlite3.PARSE_COLNAMES)
    conn = connector.open(5)
    assert connector.inspect(conn, None) is CLEAN
    assert conn.execute("select 1 as one").fetchone()["one"] == 1
    conn.execute("begin")
    assert connector.inspect(conn, None) is DIRTY
    connector.reset(conn, 5)
    assert connector.inspect(conn, None) is CLEAN
    connector.close(conn)


if sys.version_info >= (3, 12):

    @pytest.mark.parametrize("autocommit", [True, False])
    def test_the_transaction_control_of_python_3_12_is_known(
        path: Path, conn: sqlite3.Connection, autocommit: bool
    ) -> None:
        connector = Sqlite(path, autocommit=autocommit)
        at_rest = CLEAN if autocommit else UNPROVED  # without autocommit a transaction is always open
        ours = connector.open(5)
        assert ours.autocommit is autocommit
        if autocommit:
            ours.execute("begin")
        ours.execute("delete from work")
        assert connector.inspect(ours, None) is (DIRTY if autocommit else UNPROVED)
        connector.reset(ours, 5)
        assert connector.inspect(ours, None) is at_rest
        assert conn.execute("select count(*) from work").fetchone() == (10,)
        ours.autocommit = not autocommit
        assert connector.inspect(ours, None) is DIRTY
        connector.reset(ours, 5)
        assert connector.inspect(ours, None) is at_rest
        assert ours.autocommit is autocommit
        connector.close(ours)

    @pytest.mark.parametrize("autocommit", [True, False])
    def test_the_transaction_control_of_a_borrower_does_not_reach_the_next(path: Path, autocommit: bool) -> None:
        with Pool(Sqlite(path), max_size=1) as pool:
            for _ in range(3):
                with pool.connection() as conn:
                    assert conn.autocommit == sqlite3.LEGACY_TRANSACTION_CONTROL
                    conn.autocommit = autocommit
            assert (pool.stats().opens, pool.stats().closes) == (1, {})

    def test_an_implicit_transaction_takes_no_snapshot_before_the_loan(path: Path, conn: sqlite3.Connection) -> None:
        connector = Sqlite(path, autocommit=False)
        ours = connector.open(5)
        connector.ping(ours, 5)
        conn.execute("delete from work")
        conn.commit()
        assert ours.execute("select count(*) from work").fetchone() == (0,)
        assert connector.inspect(ours, None) is UNPROVED
        connector.close(ours)

else:

    def test_autocommit_needs_python_3_12() -> None:
        with pytest.raises(ValueError, match=r"3\.12"):
            Sqlite(":memory:", autocommit=True)


@pytest.mark.parametrize("mode", ["delete", "truncate", "wal"])
def test_a_file_keeps_its_journal_mode_unless_told_otherwise(path: Path, mode: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.execute(f"pragma journal_mode = {mode}")
        conn.execute("create table work (x int)")
    before = path.read_bytes()
    connector = Sqlite(path)
    connector.close(connector.open(5))
    assert path.read_bytes() == before
    connector = Sqlite(path, wal=True)
    conn = connector.open(5)
    assert conn.execute("pragma journal_mode").fetchone() == ("wal",)
    connector.close(conn)


def test_many_can_open_a_new_file_at_once(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def use(connector: Sqlite, ready: threading.Barrier) -> None:
        ready.wait()
        try:
            connector.close(connector.open(5))
        except BaseException as exc:
            failures.append(exc)

    for number in range(10):
        connector, ready = Sqlite(tmp_path / str(number), wal=True), threading.Barrier(8)
        threads = [threading.Thread(target=use, args=(connector, ready)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_statement_waits_for_a_lock_as_long_as_it_was_told(path: Path, conn: sqlite3.Connection) -> None:
    connector = Sqlite(path, busy_timeout=0.25)
    ours = connector.open(5)
    assert ours.execute("pragma busy_timeout").fetchone() == (250,)
    connector.close(ours)


def test_opening_waits_for_a_lock_no_longer_than_its_limit(path: Path) -> None:
    with sqlite3.connect(path, isolation_level=None) as blocker:
        blocker.execute("begin exclusive")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            Sqlite(path, busy_timeout=60).open(0.1)
    blocker.close()


def test_a_connection_may_come_back_in_another_thread(connector: Sqlite, conn: sqlite3.Connection) -> None:
    conn.execute("delete from work")
    conditions: list[Condition] = []

    def give_back() -> None:
        conditions.append(connector.inspect(conn, None))
        connector.reset(conn, 5)
        conditions.append(connector.inspect(conn, None))

    thread = threading.Thread(target=give_back)
    thread.start()
    thread.join()
    assert conditions == [DIRTY, CLEAN]


def test_connections_to_memory_share_one_database() -> None:
    connector = Sqlite(":memory:", busy_timeout=0)
    first = connector.open(5)
    first.execute("create table work (x int)")
    connector.close(first)
    second, third = connector.open(5), connector.open(5)
    second.execute("insert into work values (1)")
    second.commit()
    assert third.execute("select * from work").fetchall() == [(1,)]
    assert connector.alive(third)
    for conn in (second, third):
        connector.close(conn)


def test_two_connectors_to_memory_have_two_databases() -> None:
    connectors = Sqlite(":memory:"), Sqlite(":memory:")
    conns = [connector.open(5) for connector in connectors]
    conns[0].execute("create table work (x int)")
    assert conns[1].execute("select * from sqlite_schema").fetchall() == []
    for connector, conn in zip(connectors, conns, strict=True):
        connector.close(conn)


def tables(connector: Sqlite, statement: str = "select 1") -> int:
    """Count what a connection finds, in one of its own, after the statement."""
    conn = connector.open(5)
    conn.execute(statement)
    (count,) = conn.execute("select count(*) from sqlite_schema").fetchone()
    connector.close(conn)
    return int(count)


@pytest.mark.parametrize("uri", ["file:shared-by-name?mode=memory&cache=shared", "file::memory:?cache=shared"])
def test_shared_memory_is_one_database_and_is_freed_with_its_connector(uri: str) -> None:
    connector = Sqlite(uri)
    assert tables(connector, "create table work (x int)") == 1
    assert tables(connector) == 1
    del connector
    gc.collect()
    assert tables(Sqlite(uri)) == 0


@pytest.mark.parametrize(
    "database",
    ["", "file:", "file:x?mode=memory", "file::memory:", "file:x?vfs=memdb", "file:?mode=memory&cache=shared"],
)
def test_databases_that_cannot_be_shared_are_declined(database: str) -> None:
    with pytest.raises(ValueError, match="each connection"):
        Sqlite(database)


def test_a_connection_to_a_replaced_file_is_not_alive(
    connector: Sqlite, conn: sqlite3.Connection, path: Path, tmp_path: Path
) -> None:
    assert connector.alive(conn)
    (tmp_path / "new.db").touch()
    os.replace(tmp_path / "new.db", path)
    assert not connector.alive(conn)
    path.unlink()
    assert not connector.alive(conn)


def test_a_read_only_database_can_be_opened(path: Path) -> None:
    with sqlite3.connect(path) as conn:
        conn.execute("create table work (x int)")
        conn.executemany("insert into work values (?)", [(x,) for x in range(10)])
    conn.close()
    connector = Sqlite(f"file:{path}?mode=ro")
    ours = connector.open(5)
    assert ours.execute("select count(*) from work").fetchone() == (10,)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        ours.execute("delete from work")
    assert connector.alive(ours)
    connector.reset(ours, 5)
    connector.close(ours)


READING = """
import os, sqlite3, sys
from millpond import ConnectFailed, Pool
from millpond.connectors.sqlite import Sqlite
path = sys.argv[1]
if os.geteuid() == 0:  # who may write anything
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for source in (Sqlite(path), Sqlite(f"file:{path}?mode=ro")):
    with Pool(source) as pool, pool.connection() as conn:
        print(conn.execute("select x from work").fetchall())
try:
    with Pool(Sqlite(path, wal=True)) as pool, pool.connection():
        pass
except ConnectFailed as failure:
    print(failure)
"""


def test_a_file_that_may_only_be_read_is_read() -> None:
    # Where everybody may go.
    folder = Path(tempfile.gettempdir()) / f"millpond-{os.getpid()}"
    folder.mkdir(mode=0o755)
    path = folder / "data.db"
    try:
        with contextlib.closing(sqlite3.connect(path)) as conn, conn:
            conn.execute("create table work (x int)")
            conn.execute("insert into work values (7)")
        path.chmod(0o444)
        done = subprocess.run([sys.executable, "-c", READING, path], capture_output=True, text=True, timeout=60)
    finally:
        shutil.rmtree(folder)
    assert done.stdout.count("[(7,)]") == 2, done.stderr
    assert "wal=True changes the file, which may not be written; leave wal out" in done.stdout
    assert "cannot make a connection to sqlite:///" in done.stdout


def test_a_database_that_cannot_be_put_in_wal_mode_says_so(path: Path) -> None:
    with (
        Pool(Sqlite(f"file:{path}?nolock=1", wal=True)) as pool,
        pytest.raises(ConnectFailed, match=r"stays in mode 'delete'; leave wal out"),
        pool.connection(),
    ):
        pass


def broken(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("create table work (x int)")
    content = bytearray(path.read_bytes())
    content[100:108] = b"\xff" * 8  # where the first page of the schema begins
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("hello, hello, hello" * 100), "file is not a database"),
        (broken, "database disk image is malformed"),
    ],
)
def test_what_is_no_database_or_a_broken_one_is_told_at_once(
    path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(path)
    with Pool(Sqlite(path)) as pool, pytest.raises(ConnectFailed, match=words) as failure, pool.connection():
        pass
    assert f"cannot make a connection to sqlite:///{path}" in str(failure.value)
    assert "password" not in str(failure.value)
    assert pool.stats().open_failures == 1


def test_a_relative_path_leads_where_it_led_when_the_connector_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(sqlite3.connect("a b.db")) as conn, conn:
        conn.execute("create table work (x int)")
    connectors = [Sqlite("a b.db"), Sqlite(Path("a b.db")), Sqlite("file:a%20b.db?mode=rw"), Sqlite(b"a b.db")]  # type: ignore[arg-type]
    monkeypatch.chdir(other)
    for connector in connectors:
        with Pool(connector) as pool, pool.connection() as one, pool.connection() as two:
            for conn in (one, two):
                assert conn.execute("select count(*) from work").fetchone() == (0,)
            assert connector.alive(one)
        assert connector.target == f"sqlite:///{tmp_path}/a b.db"
    assert list(other.iterdir()) == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("mdoe=ro", "no query parameter 'mdoe'; there are mode, cache, immutable"),
        ("timeout=0.2", "no query parameter 'timeout'; say busy_timeout=... as a keyword"),
        ("wal=1", "no query parameter 'wal'; say wal=... as a keyword"),
        ("mode=ro&check_same_thread=false", "may be used in any thread"),
        ("hexkey=0123", "no query parameter 'hexkey'; it reads no encrypted files"),
        ("mode=read", "'mode' of SQLite must be one of ro, rw, rwc, memory"),
        ("cache=", "'cache' of SQLite must be one of shared, private"),
    ],
)
def test_what_sqlite_would_pass_over_in_a_uri_is_refused(path: Path, query: str, words: str) -> None:
    with pytest.raises(InvalidURL, match=re.escape(words)):
        Sqlite(f"file:{path}?{query}")
    with pytest.raises(InvalidURL, match=re.escape(words)):
        connector_for(f"sqlite:///{path}?{query}")
    assert not path.exists()


@pytest.mark.parametrize("query", ["mode=ro&uri=true", "uri=true&mode=rwc", "uri=true"])
@pytest.mark.parametrize(
    "form", ["app.db", "./app.db", "{}/app.db", "file:app.db", "file:./app.db", "file:{}/app.db", "file://{}/app.db"]
)
def test_a_uri_as_sqlalchemy_has_it_leads_to_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, query: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(sqlite3.connect("app.db")) as conn, conn:
        conn.execute("create table work (x int)")
    pool: Pool[sqlite3.Connection]
    with Pool.from_url(f"sqlite:///{form.format(tmp_path)}?{query}") as pool, pool.connection() as conn:
        assert conn.execute("select count(*) from work").fetchone() == (0,)
    assert [file.name for file in tmp_path.iterdir()] == ["app.db"]


def test_what_stands_behind_a_link_is_the_systems_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "releases" / "v1").mkdir(parents=True)
    (tmp_path / "current").symlink_to(tmp_path / "releases" / "v1")
    with contextlib.closing(sqlite3.connect(tmp_path / "releases" / "app.db")) as conn, conn:
        conn.execute("create table work (x int)")
    monkeypatch.chdir(tmp_path)
    pool: Pool[sqlite3.Connection]
    for url in ("sqlite:///current/../app.db", "sqlite:///file:current/../app.db?mode=rw"):
        with Pool.from_url(url) as pool, pool.connection() as conn:
            assert conn.execute("select count(*) from work").fetchone() == (0,)
    assert not (tmp_path / "app.db").exists()


NAMES = [b"a b.db", b"50%.db", b"what?.db", b"a#b.db", "ü.db".encode(), b"\xfe.db"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", [b"plain", b"a#b?c%20", b"\xfe"])
def test_a_name_may_be_of_any_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bytes, name: bytes
) -> None:
    place = os.path.join(os.fsencode(tmp_path), folder)
    os.mkdir(place)
    monkeypatch.chdir(os.fsdecode(place))
    with contextlib.closing(sqlite3.connect(name)) as conn, conn:
        conn.execute("create table work (x int)")
    quoted = quote(name)
    connectors: list[Any] = [
        Sqlite(os.fsdecode(name)),
        Sqlite(f"file:{quoted}"),
        Sqlite(f"file:{quoted}?mode=rw#a-fragment"),
        connector_for(f"sqlite:///{quoted}"),
        connector_for(f"sqlite:///{quoted}?mode=rw"),
        connector_for(f"sqlite:///{quote(os.path.join(place, name))}?mode=rw"),
    ]
    monkeypatch.chdir(tmp_path)
    for connector in connectors:
        conn = connector.open(5)
        assert conn.execute("select count(*) from work").fetchone() == (0,)
        assert connector.alive(conn)
        connector.close(conn)
        connector.target.encode()
    assert os.listdir(place) == [name]


def test_an_absolute_path_needs_no_place_to_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for connector in (Sqlite(tmp_path / "app.db"), Sqlite(f"file:{tmp_path}/app.db?mode=rwc")):
        connector.close(connector.open(5))


def test_an_absolute_path_may_begin_with_more_than_one_slash(tmp_path: Path) -> None:
    for query in ("", "?mode=rwc"):
        connector = connector_for(f"sqlite:////{tmp_path}/app.db{query}")
        connector.close(connector.open(5))
    assert (tmp_path / "app.db").exists()


def test_a_home_directory_is_not_guessed() -> None:
    with pytest.raises(InvalidURL, match="write the path out"):
        connector_for("sqlite:///~/app.db")


def test_a_missing_directory_is_no_refusal(tmp_path: Path) -> None:
    connector = Sqlite(tmp_path / "not yet mounted" / "app.db")
    with pytest.raises(sqlite3.OperationalError) as failure:
        connector.open(5)
    assert not connector.refused(failure.value)


def test_an_interrupted_loan_leaves_a_sound_connection(connector: Sqlite, conn: sqlite3.Connection) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    conn.create_function("interrupt", 0, interrupt)
    with pytest.raises(sqlite3.OperationalError) as failure:
        conn.execute("insert into work select interrupt()")
    assert connector.inspect(conn, failure.value) is DIRTY
    connector.reset(conn, 5)
    assert connector.inspect(conn, failure.value) is CLEAN


# What the pool closes while its borrower still refers to it

USES: dict[str, Callable[[sqlite3.Connection, sqlite3.Cursor], object]] = {
    "execute": lambda conn, cursor: conn.execute("select 1"),
    "cursor": lambda conn, cursor: conn.cursor(),
    "commit": lambda conn, cursor: conn.commit(),
    "with": lambda conn, cursor: conn.__enter__(),
    "a cursor of before": lambda conn, cursor: cursor.execute("select 2"),
    "a statement of before": lambda conn, cursor: cursor.execute("select x from work"),
    "a write of before": lambda conn, cursor: cursor.execute("insert into work values (5)"),
    "a new table": lambda conn, cursor: cursor.execute("create table lost (x)"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("isolation_level", ["DEFERRED", None])
def test_what_the_pool_has_closed_says_so_and_does_nothing(path: Path, use: str, isolation_level: Any) -> None:
    with Pool(Sqlite(path, isolation_level=isolation_level)) as pool, pool.connection() as conn:
        conn.execute("create table work (x int)")
        cursor = conn.cursor()
        cursor.execute("insert into work values (5)")
        conn.commit()
        cursor.execute("select x from work").fetchall()
    with pytest.raises(sqlite3.DatabaseError, match=r"the pool has closed this connection|closed (database|cursor)"):
        USES[use](conn, cursor)
    conn.close()  # as often as one likes
    with Pool(Sqlite(path)) as pool, pool.connection() as other:
        assert other.execute("select count(*) from work").fetchone() == (1,)


@pytest.mark.parametrize("end", [Sqlite.close, Sqlite.abandon])
def test_a_block_in_which_the_connection_was_closed_does_not_end_as_if_it_were_committed(
    connector: Sqlite, conn: sqlite3.Connection, end: Callable[[Sqlite, sqlite3.Connection], None]
) -> None:
    ours = connector.open(5)
    cursor = ours.cursor()
    with pytest.raises(sqlite3.ProgrammingError), ours:
        cursor.execute("insert into work values (1)")
        end(connector, ours)
    assert conn.execute("select count(*) from work").fetchone() == (10,)


@pytest.mark.parametrize("end", [Sqlite.close, Sqlite.abandon])
def test_what_goes_on_after_its_connection_was_ended_commits_nothing(
    connector: Sqlite, conn: sqlite3.Connection, end: Callable[[Sqlite, sqlite3.Connection], None]
) -> None:
    ours = connector.open(5)

    def rows() -> Iterator[tuple[int]]:
        yield (100,)
        end(connector, ours)
        yield (101,)
        yield (102,)

    with pytest.raises(sqlite3.Error):
        ours.executemany("insert into work values (?)", rows())
    assert conn.execute("select count(*) from work").fetchone() == (10,)


def test_a_cursor_takes_no_statement_of_before_while_it_keeps_its_connection_open(
    connector: Sqlite, conn: sqlite3.Connection
) -> None:
    ours = connector.open(5)
    cursor = ours.cursor()
    cursor.execute("select x from work").fetchall()
    connector.abandon(ours)
    with pytest.raises(sqlite3.ProgrammingError, match="the pool has closed this connection"):
        cursor.execute("select x from work")


@pytest.mark.parametrize("end", [Sqlite.close, Sqlite.abandon])
def test_a_commit_under_way_keeps_its_connection_from_being_freed(
    connector: Sqlite, conn: sqlite3.Connection, end: Callable[[Sqlite, sqlite3.Connection], None]
) -> None:
    ours = connector.open(5)
    ours.execute("insert into work values (100)").close()
    open_still: list[int] = []

    def strike(statement: str) -> None:
        if statement == "COMMIT":
            end(connector, ours)
            open_still.append(ours.total_changes)  # raises if it is closed

    ours.set_trace_callback(strike)
    with contextlib.suppress(sqlite3.Error):  # it may have been interrupted
        ours.commit()
    assert len(open_still) == 1
    assert conn.execute("select count(*) from work").fetchone() in [(10,), (11,)]


@pytest.mark.parametrize("end", [Sqlite.close, Sqlite.abandon])
def test_a_parameter_that_takes_long_keeps_its_connection_from_being_freed(
    connector: Sqlite, conn: sqlite3.Connection, end: Callable[[Sqlite, sqlite3.Connection], None]
) -> None:
    ours = connector.open(5)

    class Slow:
        def __conform__(self, protocol: object) -> int:
            end(connector, ours)
            return 100

    with contextlib.suppress(sqlite3.Error):
        ours.execute("insert into work values (?)", (Slow(),))
    assert conn.execute("select count(*) from work").fetchone() == (10,)


CALLBACKS: dict[str, Callable[[sqlite3.Connection], None]] = {
    "trace": lambda conn: conn.set_trace_callback(lambda _: None),
    "authorizer": lambda conn: conn.set_authorizer(lambda *_: sqlite3.SQLITE_OK),
    "progress": lambda conn: conn.set_progress_handler(lambda: 0, 1),
}


@pytest.mark.parametrize("end", [Sqlite.close, Sqlite.abandon])
@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_connection_with_a_callback_and_a_cursor_that_is_kept_locks_nobody_out(
    connector: Sqlite,
    conn: sqlite3.Connection,
    callback: str,
    end: Callable[[Sqlite, sqlite3.Connection], None],
) -> None:
    ours = connector.open(5)
    CALLBACKS[callback](ours)
    cursor = ours.execute("insert into work values (7)")
    end(connector, ours)
    conn.execute("insert into work values (99)")
    conn.commit()
    assert conn.execute("select count(*) from work").fetchone() == (11,)
    with pytest.raises(sqlite3.ProgrammingError):
        cursor.execute("select 1")


@pytest.mark.parametrize("end", [Sqlite.close, Sqlite.abandon])
def test_a_blob_that_was_kept_locks_nobody_out(
    connector: Sqlite, conn: sqlite3.Connection, end: Callable[[Sqlite, sqlite3.Connection], None]
) -> None:
    conn.execute("insert into work values (zeroblob(10))")
    conn.commit()
    ours = connector.open(5)
    blob = ours.blobopen("work", "x", 11)
    blob.write(b"12")
    end(connector, ours)
    conn.execute("insert into work values (99)")
    conn.commit()
    with pytest.raises(sqlite3.ProgrammingError):
        blob.write(b"34")


def test_a_backup_of_a_connection_that_the_pool_closes_meanwhile_goes_on(
    connector: Sqlite, conn: sqlite3.Connection
) -> None:
    ours = connector.open(5)
    conn.execute("insert into work values (zeroblob(100000))")
    conn.commit()
    with contextlib.closing(sqlite3.connect(":memory:")) as copy:
        ours.backup(copy, pages=1, progress=lambda *_: connector.close(ours))
        assert copy.execute("select count(*) from work").fetchone() == (11,)


def test_a_closed_pool_has_its_files_closed_and_its_log_written_back(path: Path, tmp_path: Path) -> None:
    with Pool(Sqlite(path)) as pool, pool.connection() as conn:
        conn.execute("create table work (x int)")
        conn.execute("attach ? as another", (str(tmp_path / "another.db"),))
        conn.execute("create table another.work (x int)")
        conn.commit()
    assert {file.name for file in tmp_path.iterdir()} == {"app.db", "another.db"}
    links = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    assert not [link for link in links if link.startswith(str(tmp_path))]
    del conn


def test_an_interrupt_that_met_nobody_does_not_keep_the_log_from_being_written_back(path: Path) -> None:
    connector = Sqlite(path)
    ours = connector.open(5)
    ours.set_trace_callback(lambda _: None)
    cursor = ours.execute("create table work (x int)")
    connector.close(ours)
    assert {file.name for file in path.parent.iterdir()} == {"app.db"}
    del cursor


def test_what_was_half_read_keeps_its_file_until_it_is_dropped_and_locks_nobody_out(path: Path) -> None:
    connector = Sqlite(path, wal=True)
    conns = [connector.open(5), connector.open(5)]
    conns[0].execute("create table work (x int)")
    conns[0].executemany("insert into work values (?)", [(x,) for x in range(10)])
    conns[0].commit()
    cursor = conns[0].execute("select * from work")
    cursor.fetchone()
    connector.close(conns[0])
    conns[1].execute("insert into work values (99)")
    conns[1].commit()
    connector.close(conns[1])
    assert {file.name for file in path.parent.iterdir()} == {"app.db", "app.db-wal", "app.db-shm"}
    del cursor
    conns.clear()
    connector.close(connector.open(5))
    assert {file.name for file in path.parent.iterdir()} == {"app.db"}


def test_a_write_that_was_left_open_is_undone_though_its_cursor_is_half_read(
    connector: Sqlite, conn: sqlite3.Connection
) -> None:
    ours = connector.open(5)
    ours.execute("insert into work values (7)")
    cursor = ours.execute("select * from work")
    cursor.fetchone()
    connector.close(ours)
    conn.execute("insert into work values (99)")
    conn.commit()
    assert conn.execute("select count(*) from work").fetchone() == (11,)
    with pytest.raises(sqlite3.Error):
        cursor.fetchone()


@pytest.mark.parametrize("wal", [True, False])
@pytest.mark.parametrize("many", ["script", "rows"])
def test_what_takes_many_statements_is_stopped_with_its_loan(path: Path, many: str, wal: bool) -> None:
    def work(conn: sqlite3.Connection) -> None:
        try:
            if many == "script":
                conn.executescript("insert into work values (7);" * 300_000)
            else:
                conn.executemany("insert into work values (?)", ((x,) for x in range(30_000_000)))
        except Exception:
            pass  # or none, since the number of an error is the connection's, and may be overwritten by ours

    with Pool(Sqlite(path, wal=wal), max_size=1) as pool:
        with pool.connection() as conn:
            conn.execute("create table work (x int)")
            conn.commit()
        with pool.connection() as conn:
            thread = threading.Thread(target=work, args=(conn,))
            thread.start()
            while not conn.inside:  # type: ignore[attr-defined]
                time.sleep(0.001)
            time.sleep(0.02)
            first = conn
        with pool.connection() as conn:
            assert conn is not first
            thread.join(10)
            assert not thread.is_alive()
            with pytest.raises(sqlite3.ProgrammingError, match="the pool has closed"):
                first.commit()
            conn.execute("begin immediate")
            (count,) = conn.execute("select count(*) from work").fetchone()
            assert count < 300_000
            assert many == "script" or count == 0
            conn.rollback()


def test_what_is_closed_is_freed_without_the_garbage_collector(path: Path) -> None:
    connector = Sqlite(path)
    gc.collect()
    gc.disable()
    # By its type: a proxy of another library's may be dead, and is asked for its class otherwise.
    before = sum(issubclass(type(each), sqlite3.Connection) for each in gc.get_objects())
    try:
        for _ in range(20):
            conn = connector.open(5)
            cursor = conn.execute("select 1 union select 2")
            cursor.fetchone()
            connector.close(conn)
            del conn, cursor
        alive = sum(issubclass(type(each), sqlite3.Connection) for each in gc.get_objects())
        assert alive <= 2 + before
        links = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        assert sum(link.startswith(str(path)) for link in links) < 10
    finally:
        gc.enable()


def test_a_connection_that_its_borrower_has_closed_is_forgotten(path: Path) -> None:
    with Pool(Sqlite(path), max_size=1) as pool:
        with pool.connection() as conn:
            conn.close()
        with pool.connection():
            pass
        assert pool.stats().closes == {"broken": 1}
    assert in_child(lambda: Pool(Sqlite(path)).warm(5)) == 0


# Forks: sqlite.org/howtocorrupt.html, 2.6


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; return the status it ends with, 0 unless it raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_what_a_child_commits_is_kept_after_its_parent_has_closed(path: Path) -> None:
    """Were a connection open across the fork, the parent would unlink the log that the child writes."""
    pool = Pool(Sqlite(path), min_size=2)
    pool.warm(5)
    with pool.connection() as conn:
        conn.execute("create table work (x int)")
        conn.commit()
    to_child, from_parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.read(to_child, 1)
            with pool.connection() as conn:
                conn.execute("insert into work values (1)")
                conn.commit()
        finally:
            os._exit(0)
    pool.close()
    os.write(from_parent, b".")
    os.waitpid(pid, 0)
    os.close(to_child)
    os.close(from_parent)
    with Pool(Sqlite(path)) as again, again.connection() as conn:
        assert conn.execute("select count(*) from work").fetchone() == (1,)


@pytest.mark.parametrize("name", ["app.db", "file:app%2Edb?mode=rwc", "link.db"])
def test_a_child_is_refused_what_its_parent_had_on_loan_at_the_fork(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    path.with_name("link.db").symlink_to(path)
    pool = Pool(Sqlite(path), timeout=5)

    def work() -> None:
        for mine in (pool, Pool(Sqlite(name), timeout=5)):
            with pytest.raises(ConnectFailed, match="forked") as failure, mine.connection():
                pass
            assert isinstance(failure.value.__cause__, sqlite3.OperationalError)
        with Pool(Sqlite("other.db")) as others, others.connection() as conn:
            conn.execute("create table work (x int)")

    with pool, pool.connection() as conn:
        conn.execute("create table if not exists work (x int)")
        conn.commit()
        assert in_child(work) == 0
        conn.execute("insert into work values (1)")
        conn.commit()
    with Pool(Sqlite(path)) as again:
        assert in_child(lambda: again.warm(5)) == 0  # what is closed may be opened by anyone


@pytest.mark.parametrize("wal", [True, False])
def test_a_child_leaves_alone_what_its_parent_is_still_reading(path: Path, wal: bool) -> None:
    """The pool has closed it; the parent has a cursor that was read in part, and the child has it too."""
    connector = Sqlite(path, wal=wal)
    with Pool(connector) as pool:
        with pool.connection() as conn:
            conn.execute("create table work (x int)")
            conn.executemany("insert into work values (?)", [(x,) for x in range(10)])
            conn.commit()
        held = [conn.execute("select * from work")]
        held[0].fetchone()
        left = weakref.ref(conn)
        del conn
        pool.refresh()
        while pool.stats().size:
            time.sleep(0.001)

        def work() -> None:
            held.clear()
            gc.collect()
            assert left() is not None  # it would be closed, and SQLite's locks are the parent's
            with pytest.raises(ConnectFailed, match="forked"), Pool(connector, timeout=5).connection():
                pass

        assert in_child(work) == 0
        held.clear()
        with pool.connection():
            pass
    assert in_child(lambda: Pool(connector).warm(5)) == 0


def test_a_child_of_a_child_is_refused_too(path: Path) -> None:
    pool = Pool(Sqlite(path))

    def borrow() -> None:
        with pytest.raises(ConnectFailed, match="forked"), pool.connection():
            pass

    def work() -> None:
        assert in_child(borrow) == 0

    with pool, pool.connection():
        assert in_child(work) == 0


def test_the_target_names_the_file(connector: Sqlite, path: Path) -> None:
    assert connector.target == f"sqlite:///{path}"
    assert Sqlite(":memory:").target == "sqlite:///:memory:"
    factory: Any = lambda cursor, row: row  # noqa: E731
    assert repr(Sqlite("a.db", row_factory=factory)) == f"<Sqlite sqlite:///{Path.cwd()}/a.db>"
