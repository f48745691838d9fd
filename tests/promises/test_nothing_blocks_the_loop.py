"""Nothing that millpond does for tasks blocks their loop: whatever may wait is awaited, or done in a thread.

blockbuster watches: within a task of asyncio, what may block raises where it is called. What it strikes is seen
whatever becomes of it, since it is noted here before it is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from urllib.parse import urlsplit

import anyio
import blockbuster
import pytest
import redis.asyncio

import millpond.redis.asyncio
from millpond import AsyncPool, PoolError
from millpond.testing import AsyncFakeConnector, FakeConnection, Postgres, Proxy, Valkey

from ..httpx.conftest import LIBRARIES, Caller
from ..httpx.server import Http2Server, Server
from .drivers import DRIVERS, Servers, echo_server
from .patience import until_seen

ALLOWED = {
    "logging/__init__.py": "callHandlers",  # where a log goes is the program's choice
    "millpond/connectors/sqlite.py": "inspect",  # a statement that reads no file, when nobody else is at the connection
    "asyncpg/connect_utils.py": "_parse_connect_arguments",  # looks for certificates at every connect
    "redis/utils.py": "get_lib_version",  # looks for its own version at every connect
}
"""What may block, or is the driver's own doing."""


@pytest.fixture(scope="module")
def servers(postgres: Postgres, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with echo_server() as port:
        yield Servers(postgres.url, valkey.url, port, tmp_path_factory.mktemp("drivers"))


@contextlib.contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Have blockbuster watch what comes out of millpond's code; yield what it strikes."""
    struck: list[str] = []

    class Noted(blockbuster.BlockingError):
        def __init__(self, func: str) -> None:
            super().__init__(func)
            struck.append(func)

    monkeypatch.setattr("blockbuster.blockbuster.BlockingError", Noted)
    with blockbuster.blockbuster_ctx("millpond", excluded_modules=["millpond.testing"]) as watch:
        for call in watch.functions.values():
            for file, functions in ALLOWED.items():
                call.can_block_in(file, functions)
        yield struck


async def crowd(ask: Callable[[int], Coroutine[Any, Any, None]], size: int) -> None:
    async with anyio.create_task_group() as group:
        for number in range(size):
            group.start_soon(ask, number)


@pytest.mark.parametrize("name", DRIVERS)
def test_a_pools_whole_life_blocks_nothing(servers: Servers, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = DRIVERS[name]
    connector = driver.connector(servers)

    async def main() -> None:
        pool = AsyncPool[Any](connector, min_size=1, max_size=2, check_after=0.0)

        async def ask(number: int) -> None:
            async with pool.connection() as conn:
                assert await driver.ask(conn, number) == number

        await pool.warm(5)
        await crowd(ask, 6)
        for seconds in (0.0, 0.0005):
            with anyio.move_on_after(seconds):
                await ask(7)
        with contextlib.suppress(ZeroDivisionError):
            async with pool.connection() as conn:
                pool.discard(conn)
                raise ZeroDivisionError
        pool.refresh()
        await crowd(ask, 6)
        await until_seen(lambda: not pool.stats().closing)
        await pool.close()

    with watched(monkeypatch) as struck:
        asyncio.run(main())
    assert struck == []


@pytest.mark.parametrize("name", ["psycopg", "asyncpg", "redis"])
def test_an_outage_blocks_nothing(servers: Servers, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = DRIVERS[name]
    url = servers.valkey if name == "redis" else servers.postgres

    async def main(proxy: Proxy) -> None:
        there = proxy.url_for(url)
        connector = driver.connector(servers._replace(postgres=there, valkey=there))
        async with AsyncPool[Any](connector, min_size=2, max_size=2) as pool:

            async def ask(number: int) -> None:
                with contextlib.suppress(PoolError):
                    async with pool.connection(0.2) as conn:
                        assert await driver.ask(conn, number) == number

            await pool.warm(5)
            for fault in (proxy.refuse, proxy.reset):
                await asyncio.to_thread(fault)
            await until_seen(lambda: pool.stats().idle == 0)
            await crowd(ask, 4)
            await until_seen(lambda: pool.stats().outage)
            await asyncio.to_thread(proxy.heal)
            await pool.warm(10)
            await crowd(ask, 4)

    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    with Proxy(parts.hostname, parts.port) as proxy, watched(monkeypatch) as struck:
        asyncio.run(main(proxy))
    assert struck == []


def test_a_client_of_redis_blocks_nothing(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        pool = millpond.redis.asyncio.BlockingConnectionPool.from_url(servers.valkey, max_connections=2, timeout=5)
        async with redis.asyncio.Redis(connection_pool=pool) as client:

            async def ask(number: int) -> None:
                assert await client.echo(str(number)) == b"%d" % number

            await crowd(ask, 6)
            with anyio.move_on_after(0.0005):
                await client.blpop(["nothing"], timeout=1)
            async with client.pubsub() as subscriber:
                await subscriber.subscribe("one")
                await subscriber.get_message(timeout=1)
            await crowd(ask, 6)
        await pool.aclose()

    with watched(monkeypatch) as struck:
        asyncio.run(main())
    assert struck == []


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_requests_of_httpx_block_nothing(library: str, http2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(url: str) -> None:
        caller = Caller("asyncio", library, limits={"max_connections": 2}, http2=http2)

        async def ask(number: int) -> None:
            await caller.say(f"{url}/say/{number}")

        await crowd(ask, 6)
        with anyio.move_on_after(0.001):
            await ask(7)
        await crowd(ask, 6)
        await caller.close()

    with Http2Server() if http2 else Server() as server, watched(monkeypatch) as struck:
        asyncio.run(main(server.url))
    assert struck == []


def test_a_call_that_blocks_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blocking(AsyncFakeConnector):
        async def close(self, conn: FakeConnection) -> None:
            time.sleep(0.0)  # noqa: ASYNC251
            await super().close(conn)

    async def main() -> None:
        async with AsyncPool(Blocking(), min_size=1, max_size=1) as pool:
            await pool.warm(5)
            pool.refresh()

    with watched(monkeypatch) as struck:
        asyncio.run(main())
    assert struck == ["time.sleep"]
