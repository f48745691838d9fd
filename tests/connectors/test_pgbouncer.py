"""A pooler stands between: PgBouncer in transaction mode, which gives each transaction whichever server is free."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from signal import Signals
from typing import Any
from urllib.parse import urlsplit

import pytest

import millpond
from millpond.cli import main as command
from millpond.connectors.asyncpg import Asyncpg
from millpond.connectors.psycopg import Psycopg
from millpond.testing import Postgres, Server

PROGRAM = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
SIZE = 6
BEHIND = 2
"""Servers that PgBouncer has for them."""

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed (Debian's package pgbouncer)")


class PgBouncer(Server):
    """In front of a PostgreSQL, for the same user."""

    def __init__(self, behind: Postgres) -> None:
        super().__init__({})
        self._behind = behind

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return self._behind.url.replace(f":{self._behind.port}/", f":{self.port}/")

    def stop(self) -> None:
        """Stop it at once, as its own SIGTERM does."""
        self._signal(Signals.SIGTERM, 10)

    def _user(self) -> tuple[int, int] | None:
        return self._behind._user()

    def _prepare(self, directory: Path) -> None:
        parts = urlsplit(self._behind.url)
        (directory / "users.txt").write_text(f'"{parts.username}" "{parts.password}"\n')
        (directory / "pgbouncer.ini").write_text(
            f"""
            [databases]
            app = host={self._behind.host} port={self._behind.port}
            [pgbouncer]
            listen_addr = {self.host}
            listen_port = {self.port}
            unix_socket_dir =
            auth_type = scram-sha-256
            auth_file = {directory / "users.txt"}
            pool_mode = transaction
            default_pool_size = {BEHIND}
            """
        )

    def _command(self, directory: Path) -> list[str | Path]:
        assert PROGRAM is not None
        return [PROGRAM, directory / "pgbouncer.ini"]

    def _ready(self, pid: int) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True


@pytest.fixture(scope="module")
def bouncer() -> Iterator[PgBouncer]:
    with Postgres() as server, PgBouncer(server) as bouncer:
        yield bouncer


def pool_of(bouncer: PgBouncer, **settings: Any) -> millpond.Pool[Any]:
    # The one thing that a program has to say: PgBouncer before 1.21 does not know what was prepared elsewhere.
    connector = Psycopg(bouncer.url, prepare_threshold=None)
    return millpond.Pool(connector, max_size=SIZE, **settings)


def test_each_caller_is_told_what_he_asked_though_transactions_change_servers(bouncer: PgBouncer) -> None:
    wrong: list[object] = []
    served: list[int] = []

    def work(number: int) -> None:
        for turn in range(40):
            with pool.connection() as conn:
                (heard,) = conn.execute("select %s", [f"{number}-{turn}"]).fetchone() or (None,)
                if heard != f"{number}-{turn}":
                    wrong.append(heard)
            # Nobody commits: the pool rolls back, or a server would stay with one who has gone.
        served.append(number)

    with pool_of(bouncer) as pool:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert (len(served), wrong) == (12, [])
        assert pool.stats().size <= SIZE


def test_what_a_borrower_left_open_holds_no_server_of_the_pooler(bouncer: PgBouncer) -> None:
    with pool_of(bouncer) as pool:
        for _ in range(5 * BEHIND):
            with pool.connection() as conn:
                conn.execute("create temporary table mine (n int) on commit drop")
        with pool.connection() as first, pool.connection() as second:
            for conn in (first, second):
                assert conn.execute("select to_regclass('mine')").fetchone() == (None,)


def test_a_pooler_that_is_restarted_is_found_again(bouncer: PgBouncer) -> None:
    with pool_of(bouncer, min_size=3, ride_out=True) as pool:
        pool.warm(timeout=10)
        bouncer.restart()
        deadline = time.monotonic() + 10
        # Known to be dead before anybody borrows: the watcher sees them end.
        while sum(pool.stats().closes.values()) < 3:
            assert time.monotonic() < deadline, pool.stats()
            time.sleep(0.01)
        for _ in range(SIZE):
            with pool.connection() as conn:
                assert conn.execute("select 1").fetchone() == (1,)


def test_asyncpg_works_if_it_is_told_to_keep_no_statements(bouncer: PgBouncer) -> None:
    async def ask(pool: millpond.AsyncPool[Any], number: int) -> None:
        for turn in range(20):
            async with pool.connection() as conn, conn.transaction():
                assert await conn.fetchval("select $1::text", f"{number}-{turn}") == f"{number}-{turn}"

    async def main() -> None:
        pool = millpond.AsyncPool(Asyncpg(bouncer.url, statement_cache_size=0), max_size=SIZE)
        async with asyncio.timeout(60), pool, asyncio.TaskGroup() as group:
            for number in range(12):
                group.create_task(ask(pool, number))

    asyncio.run(main())


def test_check_tells_that_a_pooler_stands_between(bouncer: PgBouncer, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["check", "--json", bouncer.url]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pooler"] is True
    assert "prepare_threshold=None" in [advice["setting"] for advice in found["advice"]]
