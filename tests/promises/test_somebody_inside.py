"""A loan ends while a thread, or a task, is still inside of its connection, and that harms nobody else.

A query that was not joined when the block ended; `asyncio.gather`, one of whose calls has failed; a lease that was
lost. To free the connection at once would have the process die, or give the number of a socket to the next connection
while the event loop still watches it for the former.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from millpond.testing import Postgres, Valkey

from .drivers import echo_server

PROGRAM = Path(__file__).parent / "programs" / "inside.py"
DRIVERS = {
    "threads": (
        *("psycopg", "psycopg-copy", "psycopg-own", "psycopg2", "redis", "socket"),
        *("sqlite", "sqlite-writing", "sqlite-moments"),
    ),
    "tasks": ("psycopg", "psycopg-copy", "asyncpg", "aiosqlite", "redis", "socket"),
}


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    with echo_server() as port:
        yield port


@pytest.mark.parametrize(
    ("kind", "driver"), [(kind, driver) for kind, drivers in DRIVERS.items() for driver in drivers]
)
def test_whoever_borrows_next_is_served_and_who_was_inside_is_told(
    kind: str, driver: str, postgres: Postgres, valkey: Valkey, echo: int, tmp_path: Path
) -> None:
    if driver == "psycopg2":
        pytest.importorskip("psycopg2", reason="psycopg2 is not installed (the group `bench`)")
    command = [sys.executable, str(PROGRAM), kind, driver, postgres.url, valkey.url, str(echo), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    for answers, ended in found["ways"].values():
        assert answers == ["42"] * 4, found
        assert ended.startswith("failed"), found
    assert found["descriptors"] <= 0
