"""`math.inf` is a legal duration for a pool, whatever it connects to."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond import AsyncPool, Pool
from millpond.testing import Postgres, Valkey

SCHEMES = ["postgresql", "redis", "sqlite", "tcp"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def url(request: pytest.FixtureRequest, postgres: Postgres, valkey: Valkey, tmp_path: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        urls = {
            "postgresql": postgres.url,
            "postgresql+asyncpg": postgres.url.replace("postgresql:", "postgresql+asyncpg:"),
            "redis": valkey.url,
            "sqlite": f"sqlite:///{tmp_path}/app.db",
            "tcp": f"tcp://127.0.0.1:{server.getsockname()[1]}",
        }
        yield urls[request.param]


@pytest.mark.parametrize("url", SCHEMES, indirect=True)
def test_a_pool_whose_exchanges_and_close_have_no_limit_works(url: str) -> None:
    pool: Pool[Any] = Pool.from_url(url, connect_timeout=math.inf, check_after=0)
    for _ in range(2):
        with pool.connection():
            pass
    assert pool.stats().opens == 1
    pool.close(timeout=math.inf)


@pytest.mark.anyio
@pytest.mark.parametrize("url", [*SCHEMES, "postgresql+asyncpg"], indirect=True)
async def test_a_pool_for_tasks_whose_exchanges_and_close_have_no_limit_works(url: str) -> None:
    pool: AsyncPool[Any] = AsyncPool.from_url(url, connect_timeout=math.inf, check_after=0)
    for _ in range(2):
        async with pool.connection():
            pass
    assert pool.stats().opens == 1
    await pool.close(timeout=math.inf)
