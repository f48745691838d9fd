"""OpenTelemetry's instrumentors for the libraries see what is done on millpond's pools."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
import redis
import requests
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import millpond
import millpond.redis
import millpond.redis.asyncio
from millpond.connectors.psycopg import AsyncPsycopg, Psycopg
from millpond.connectors.sqlite import Sqlite
from millpond.requests import install
from millpond.testing import Postgres, Valkey
from millpond.urllib3 import PoolManager

from ..urllib3.servers import Server

INSTRUMENTORS: dict[str, Any] = {
    "asyncpg": AsyncPGInstrumentor,
    "psycopg": PsycopgInstrumentor,
    "redis": RedisInstrumentor,
    "redis.asyncio": RedisInstrumentor,
    "requests": RequestsInstrumentor,
    "sqlite3": SQLite3Instrumentor,
    "urllib3": URLLib3Instrumentor,
}


@pytest.fixture
def spans(library: str) -> Iterator[InMemorySpanExporter]:
    """What is traced while the library is instrumented."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    instrumentor = INSTRUMENTORS[library]()
    # psycopg's instrumentor leaves a method in their place, by which every subclass makes connections of its base.
    connects = {kind: vars(kind)["connect"] for kind in (psycopg.Connection, psycopg.AsyncConnection)}
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    yield spans
    instrumentor.uninstrument()
    for kind, connect in connects.items():
        kind.connect = connect  # type: ignore[method-assign]
    provider.shutdown()


def names(spans: InMemorySpanExporter) -> list[str]:
    return [span.name for span in spans.get_finished_spans()]


@pytest.mark.parametrize("library", ["urllib3"])
def test_urllib3(spans: InMemorySpanExporter) -> None:
    with Server() as server:
        http = PoolManager(timeout=10)
        assert http.request("GET", server.url).data == b"/"
        assert names(spans) == ["GET"]
        assert "traceparent" in server.requests[0].headers
        http.clear()


@pytest.mark.parametrize("library", ["requests"])
def test_requests(spans: InMemorySpanExporter) -> None:
    with Server() as server, requests.Session() as session:
        session.trust_env = False
        install(session)
        assert session.get(server.url, timeout=10).text == "/"
        assert names(spans) == ["GET"]
        assert "traceparent" in server.requests[0].headers


@pytest.mark.parametrize("library", ["redis"])
def test_redis(spans: InMemorySpanExporter, valkey: Valkey) -> None:
    pool = millpond.redis.ConnectionPool.from_url(valkey.url)
    client = redis.Redis(connection_pool=pool)
    assert client.echo("hello") == b"hello"
    with client.pipeline(transaction=False) as pipe:
        pipe.echo("a")
        pipe.echo("b")
        assert pipe.execute() == [b"a", b"b"]
    assert names(spans) == ["ECHO", "ECHO ECHO"]
    pool.close()


@pytest.mark.parametrize("library", ["redis.asyncio"])
def test_redis_for_tasks(spans: InMemorySpanExporter, valkey: Valkey) -> None:
    async def main() -> None:
        pool = millpond.redis.asyncio.ConnectionPool.from_url(valkey.url)
        client = redis.asyncio.Redis(connection_pool=pool)
        assert await client.echo("hello") == b"hello"
        await pool.aclose()

    anyio.run(main)
    assert names(spans) == ["ECHO"]


@pytest.mark.parametrize("library", ["asyncpg"])
def test_asyncpg(spans: InMemorySpanExporter, postgres: Postgres) -> None:
    async def main() -> None:
        pool: millpond.AsyncPool[Any] = millpond.AsyncPool.from_url(
            postgres.url.replace("postgresql:", "postgresql+asyncpg:")
        )
        async with pool:
            for _ in range(2):
                async with pool.connection() as conn:
                    assert await conn.fetchval("select 42") == 42

    anyio.run(main)
    assert len(names(spans)) == 2


@pytest.mark.parametrize("library", ["psycopg"])
def test_psycopg(spans: InMemorySpanExporter, postgres: Postgres) -> None:
    with millpond.Pool(Psycopg(postgres.url), max_size=1) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert conn.execute("select 42").fetchone() == (42,)
        assert pool.stats().opens == 1
    assert names(spans) == ["select"] * 2


@pytest.mark.parametrize("library", ["psycopg"])
def test_psycopg_for_tasks(spans: InMemorySpanExporter, postgres: Postgres) -> None:
    async def main() -> None:
        async with millpond.AsyncPool(AsyncPsycopg(postgres.url), max_size=1) as pool:
            for _ in range(2):
                async with pool.connection() as conn:
                    cursor = await conn.execute("select 42")
                    assert await cursor.fetchone() == (42,)
            assert pool.stats().opens == 1

    anyio.run(main)
    assert names(spans) == ["select"] * 2


@pytest.mark.parametrize("library", ["sqlite3"])
def test_sqlite3_by_url(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with millpond.Pool(Sqlite(path), max_size=1) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert conn.row_factory is None
                conn.row_factory = sqlite3.Row
                cursor = conn.cursor()
                assert tuple(cursor.execute("select 42").fetchone()) == (42,)
        assert (pool.stats().opens, pool.stats().closes) == (1, {})
    assert names(spans) == ["select"] * 2
    descriptors = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert str(path) not in descriptors


@pytest.mark.parametrize("library", ["sqlite3"])
def test_sqlite3(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    pool: millpond.Pool[sqlite3.Connection]
    with millpond.Pool(lambda: sqlite3.connect(tmp_path / "a.db", check_same_thread=False)) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert conn.cursor().execute("select 42").fetchone() == (42,)
    assert names(spans) == ["select"] * 2
