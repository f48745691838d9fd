"""After a fork the child has connections of its own, and the parent's are unharmed: the server hears no goodbye."""

from __future__ import annotations

import json
import os
import select
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from millpond import ConnectFailed, Pool, _fork
from millpond.connectors.sqlite import Sqlite
from millpond.testing import FakeConnector, Postgres, Proxy

from .children import forked as forked_here
from .patience import assert_whole, until

PROGRAM = Path(__file__).parent / "programs" / "forking.py"
WAYS = ["exit", "_exit", "close", "leave", "pool", "process", "use"]
TERMINATE = b"X\0\0\0\4"

Wire = Callable[[str, int], Proxy]


@pytest.fixture(scope="module")
def encrypted() -> Iterator[Postgres]:
    with Postgres(tls=True) as server:
        yield server


@contextmanager
def forked(kind: str, target: str, way: str) -> Iterator[dict[str, Any]]:
    """Run the program up to the point where the child has ended and the parent has used all it had."""
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), kind, target, way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stderr is not None
            line = program.stdout.readline()
            assert line, program.stderr.read()
            yield json.loads(line)
            _, said = program.communicate("\n", timeout=10)
            assert said == ""
            assert program.returncode == 0
        finally:
            program.kill()


def assert_unharmed(told: dict[str, Any]) -> None:
    assert told["child"] == 0
    assert told["before"] == told["after"] == told["again"]
    assert told["opens"] == len(told["before"])


def goodbyes(postgres: Postgres, told: dict[str, Any]) -> list[str]:
    """What the server has logged of the ends of these connections."""
    return [line for pid in told["before"] for line in last_life_of(pid, postgres.log()) if "disconnection" in line]


def last_life_of(pid: int, log: str) -> list[str]:
    """What the last process with this number has logged: a busy system has soon given out all numbers once."""
    lines = [line for line in log.splitlines() if f"[{pid}]" in line]
    began = [place for place, line in enumerate(lines) if "connection authorized" in line]
    return lines[began[-1] :]


@pytest.mark.parametrize("way", WAYS)
def test_the_parents_postgres_connections_outlive_the_child(postgres: Postgres, proxy: Wire, way: str) -> None:
    wire = proxy(postgres.host, postgres.port)
    with forked("psycopg", wire.url_for(postgres.url) + "?sslmode=disable&gssencmode=disable", way) as told:
        assert_unharmed(told)
        assert goodbyes(postgres, told) == []
        sent = wire.sent_by_client()
        # The first five are the parent's; the child's own says goodbye.
        assert [TERMINATE in each for each in sent[:5]] == [False] * 5
        assert wire.live >= 5


@pytest.mark.parametrize("way", WAYS)
def test_the_parents_encrypted_connections_outlive_the_child(encrypted: Postgres, way: str) -> None:
    with forked("psycopg", encrypted.url, way) as told:
        assert_unharmed(told)
        assert goodbyes(encrypted, told) == []


def test_the_connections_of_a_parent_that_is_a_loop_outlive_the_child(postgres: Postgres) -> None:
    with forked("asyncpg", postgres.url, "") as told:
        assert_unharmed(told)
        assert goodbyes(postgres, told) == []


@pytest.fixture
def registrar() -> Iterator[int]:
    """A server that tells each connection its number; returns its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop, stopping = socket.socketpair()

        def serve() -> None:
            numbers: dict[socket.socket, int] = {}
            while True:
                ready, _, _ = select.select([listener, stop, *numbers], [], [])
                if stop in ready:
                    break
                for each in ready:
                    if each is listener:
                        numbers[listener.accept()[0]] = len(numbers) + 1
                        continue
                    try:
                        said = each.recv(100)
                    except OSError:
                        said = b""
                    if said:
                        each.sendall(b"%d" % numbers[each])
                    else:
                        del numbers[each]
                        each.close()
            for each in numbers:
                each.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        stopping.send(b"!")
        thread.join()
        stop.close()
        stopping.close()


@pytest.mark.parametrize("way", WAYS)
def test_the_parents_sockets_outlive_the_child(registrar: int, proxy: Wire, way: str) -> None:
    wire = proxy("127.0.0.1", registrar)
    with forked("socket", f"{wire.host}:{wire.port}", way) as told:
        assert_unharmed(told)
        # Each of the parent's has asked three times (before, after, again): nobody has said anything else.
        assert wire.sent_by_client()[:5] == [b"who\n" * 3] * 5


@pytest.mark.parametrize("way", WAYS)
def test_the_parents_sqlite_connections_outlive_the_child(tmp_path: Path, way: str) -> None:
    """Some were on loan at the fork, so the child is lent none: see `connectors.sqlite`."""
    file = tmp_path / "visits.db"
    with forked("sqlite", str(file), way) as told:
        assert told["child"] == 0
    # By 5 connections, by the 2 that were on loan again, and by 5 again.
    assert rows(file) == [(1,)] * 12


def rows(file: Path) -> list[tuple[int]]:
    with closing(sqlite3.connect(file)) as conn:
        assert conn.execute("pragma integrity_check").fetchone() == ("ok",)
        return conn.execute("select * from visits order by 1").fetchall()


def test_a_child_is_refused_a_file_of_which_its_parent_had_lent_a_connection(tmp_path: Path) -> None:
    """SQLite's notes of the locks that a process holds come across a fork, and the locks do not."""
    file = tmp_path / "visits.db"
    with Pool(Sqlite(file)) as pool, Pool(Sqlite(tmp_path / "other.db")) as other:
        with pool.connection() as conn:
            conn.execute("create table visits (number integer)")
            conn.commit()

            def child() -> None:
                with pytest.raises(ConnectFailed) as refused, pool.connection():
                    pass
                assert "fork" in str(refused.value.__cause__)
                with other.connection() as conn:
                    conn.execute("select 1")

            with forked_here(child) as status:
                assert status() == 0
            conn.execute("insert into visits values (1)")
            conn.commit()
        with pool.connection() as conn:
            conn.execute("insert into visits values (2)")
            conn.commit()
    assert rows(file) == [(1,), (2,)]


def test_what_a_child_writes_to_sqlite_outlives_the_parents_pool(tmp_path: Path) -> None:
    """No connection was on loan at the fork: the idle ones are closed before it, so nothing of theirs is inherited."""
    file = tmp_path / "visits.db"
    pool = Pool(Sqlite(file))
    conns = [pool.acquire() for _ in range(2)]
    conns[0].execute("create table visits (number integer)")
    conns[0].commit()
    for conn in conns:
        pool.release(conn)
    wrote, write = os.pipe()
    closed, close = os.pipe()

    def child() -> None:
        with pool.connection() as conn:
            conn.execute("insert into visits values (1)")
            conn.commit()
            os.write(write, b"!")
            os.read(closed, 1)
            conn.execute("insert into visits values (2)")
            conn.commit()
        pool.close()

    with forked_here(child) as status:
        try:
            os.close(write)
            os.read(wrote, 1)
            with pool.connection() as conn:
                conn.execute("insert into visits values (0)")
                conn.commit()
            pool.close()
        finally:
            os.write(close, b"!")
        assert status() == 0
    for end in (wrote, closed, close):
        os.close(end)
    assert rows(file) == [(0,), (1,), (2,)]


def test_callers_in_line_at_the_fork_are_the_parents_only() -> None:
    """The child has none of the parent's waiters, threads or locks; the parent's caller is served."""
    pool = Pool(FakeConnector(), max_size=1, timeout=60)
    conn = pool.acquire()
    served = threading.Event()

    def wait() -> None:
        with pool.connection():
            served.set()

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: pool.stats().waiting)

    def child() -> None:
        assert pool.stats().waiting == 0
        assert_whole(pool, 1)
        pool.release(conn)  # the parent's: it does nothing here
        assert_whole(pool, 1)
        pool.close()

    with forked_here(child) as status:
        assert status() == 0
    assert not served.is_set()
    pool.release(conn)
    thread.join(60)
    assert served.is_set()
    assert_whole(pool, 1)
    pool.close()


CLOSING = """
    import os, sys, threading
    from millpond import Pool
    from millpond.connectors.sockets import Socket

    begun, go_on = threading.Event(), threading.Event()

    class Slow(Socket):
        def close(self, conn):
            begun.set()
            go_on.wait(60)
            conn.close()

    pool = Pool(Slow("127.0.0.1", int(sys.argv[1])))
    with pool.connection() as conn:
        pool.discard(conn)
    begun.wait(60)
    del conn
    child = os.fork()
    if child == 0:
        sys.stdin.read()
        os._exit(0)
    go_on.set()
    pool.close()
    os.waitpid(child, 0)
"""


def test_a_connection_that_is_being_closed_at_the_fork_ends_though_the_child_lives() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", textwrap.dedent(CLOSING), str(listener.getsockname()[1])]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as program:
            try:
                conn, _ = listener.accept()
                conn.settimeout(60)
                with conn:
                    assert conn.recv(1) == b""
                assert program.poll() is None, "the child lives"
            finally:
                program.communicate(timeout=60)
        assert program.returncode == 0


def test_a_fork_while_other_threads_borrow_and_open() -> None:
    """Forked fifty times, at any moment of theirs: the child's pool works each time, the parent's all the time."""
    pool = Pool(FakeConnector(open_time=0.0005), max_size=3, max_uses=20, timeout=60)
    over = threading.Event()
    errors: list[BaseException] = []

    def borrow() -> None:
        try:
            while not over.is_set():
                with pool.connection():
                    pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=borrow) for _ in range(5)]
    for thread in threads:
        thread.start()

    def child() -> None:
        conns = [pool.acquire() for _ in range(3)]
        for conn in conns:
            pool.release(conn)

    for _ in range(50):
        with forked_here(child) as status:
            assert status() == 0
    over.set()
    for thread in threads:
        thread.join(60)
    assert errors == []
    pool.close()


def test_pools_are_found_while_other_threads_make_some() -> None:
    ended = threading.Event()

    def make() -> None:
        pools: deque[Pool[Any]] = deque(maxlen=100)
        while not ended.is_set():
            with Pool(FakeConnector()) as pool:
                pools.append(pool)

    interval = sys.getswitchinterval()
    maker = threading.Thread(target=make)
    maker.start()
    try:
        sys.setswitchinterval(1e-6)
        deadline = monotonic() + 1
        while monotonic() < deadline:
            _fork.pools()
    finally:
        sys.setswitchinterval(interval)
        ended.set()
        maker.join()
