"""What OpenTelemetry is told of pools, by the SDK's own reader."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import psycopg
import pytest
import redis
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import millpond
from millpond import events, opentelemetry
from millpond.httpx import HTTPTransport
from millpond.redis import BlockingConnectionPool
from millpond.testing import FakeConnection, FakeConnector, Postgres, Valkey
from millpond.urllib3 import PoolManager

from ..promises.alarms import Alarm

NAME = "db.client.connection.pool.name"


class Told:
    """What one collection has brought: `told("db.client.connection.max", pool)` is a value, or a histogram's point."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        gc.collect()
        data = reader.get_metrics_data()
        found = data.resource_metrics[0].scope_metrics[0].metrics if data is not None else []
        self.metrics = {metric.name: metric for metric in found if metric.data.data_points}

    def __call__(self, name: str, **attributes: object) -> Any:
        wanted = {name.replace("__", "."): value for name, value in attributes.items()}
        points: list[Any] = list(self.metrics[name].data.data_points) if name in self.metrics else []
        chosen = [point for point in points if wanted.items() <= dict(point.attributes).items()]
        assert len(chosen) <= 1
        return getattr(chosen[0], "value", chosen[0]) if chosen else None


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    gc.collect()  # the pools of other tests
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    uninstall = opentelemetry.install(provider)
    try:
        yield reader
    finally:
        uninstall()
        provider.shutdown()


def test_a_pool_of_a_database_is_told_of_by_the_conventions(postgres: Postgres, reader: InMemoryMetricReader) -> None:
    with millpond.Pool[psycopg.Connection].from_url(postgres.url, name="orders", max_size=2, min_size=1) as pool:
        pool.warm(10)
        with pool.connection(10), pool.connection(10):
            with pytest.raises(millpond.PoolTimeout):
                pool.acquire(0.02)
            told = Told(reader)
            of_pool = {"db__client__connection__pool__name": "orders"}
            count = "db.client.connection.count"
            assert told(count, db__client__connection__state="used", **of_pool) == 2
            assert told(count, db__client__connection__state="idle", **of_pool) == 0
            assert told("db.client.connection.max", **of_pool) == 2
            assert told("db.client.connection.idle.max", **of_pool) == 2
            assert told("db.client.connection.idle.min", **of_pool) == 1
            assert told("db.client.connection.pending_requests", **of_pool) == 0
            assert told("db.client.connection.timeouts", **of_pool) == 1
            assert told("db.client.connection.create_time", **of_pool).count == 2
            assert told("db.client.connection.wait_time", **of_pool).count == 2
            assert told("db.client.connection.use_time", **of_pool) is None
        used = Told(reader)("db.client.connection.use_time", **of_pool)
        assert used.count == 2
        assert used.sum > 2 * 0.02
        assert set(used.attributes) == {NAME}


def test_names_units_and_kinds_are_those_of_the_conventions(reader: InMemoryMetricReader, web: str) -> None:
    with millpond.Pool(FakeConnector(), name="orders", max_size=1) as pool, PoolManager() as http:
        with pool.connection(), pytest.raises(millpond.PoolTimeout):
            pool.acquire(0.0)
        http.request("GET", web)
        told = Told(reader).metrics
    told |= Told(reader).metrics
    found = {name: (metric.unit, type(metric.data).__name__) for name, metric in told.items()}
    assert found == {
        "db.client.connection.count": ("{connection}", "Sum"),
        "db.client.connection.create_time": ("s", "Histogram"),
        "db.client.connection.idle.max": ("{connection}", "Sum"),
        "db.client.connection.idle.min": ("{connection}", "Sum"),
        "db.client.connection.max": ("{connection}", "Sum"),
        "db.client.connection.pending_requests": ("{request}", "Sum"),
        "db.client.connection.timeouts": ("{timeout}", "Sum"),
        "db.client.connection.use_time": ("s", "Histogram"),
        "db.client.connection.wait_time": ("s", "Histogram"),
        "http.client.connection.duration": ("s", "Histogram"),
        "http.client.open_connections": ("{connection}", "Sum"),
    }
    monotonic = {name for name, metric in told.items() if getattr(metric.data, "is_monotonic", False)}
    assert monotonic == {"db.client.connection.timeouts"}


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_pools_of_http_connections_are_told_of_by_the_conventions_for_http(
    reader: InMemoryMetricReader, web: str
) -> None:
    port = int(web.split(":")[2].strip("/"))
    of_server = {"server__address": "127.0.0.1", "server__port": port}
    count = "http.client.open_connections"
    with PoolManager() as http, httpx.Client(transport=HTTPTransport()) as client:
        response = http.request("GET", web, preload_content=False)
        client.get(web)
        told = Told(reader)
        assert told(count, http__connection__state="active", **of_server) == 1
        assert told(count, http__connection__state="idle", **of_server) == 1
        response.read()
        told = Told(reader)
        assert told(count, http__connection__state="idle", **of_server) == 2
        assert told("http.client.connection.duration", **of_server) is None
        assert not [name for name in told.metrics if name.startswith("db.")]
    deadline = time.monotonic() + 30
    while Told(reader)("http.client.connection.duration", **of_server) is None:
        assert time.monotonic() < deadline


def test_the_pool_of_a_redis_client_is_told_of_by_its_name(reader: InMemoryMetricReader, valkey: Valkey) -> None:
    pool = BlockingConnectionPool.from_url(valkey.url, name="cache", max_connections=3)
    with redis.Redis(connection_pool=pool) as client:
        client.set("a", "b")
        told = Told(reader)
        assert told("db.client.connection.max", db__client__connection__pool__name="cache") == 3
        assert told("db.client.connection.use_time", db__client__connection__pool__name="cache").count >= 1
    pool.disconnect()


def test_pools_of_one_name_are_added_up_and_a_dropped_one_is_forgotten(reader: InMemoryMetricReader) -> None:
    of_pool = {"db__client__connection__pool__name": "shard[7]"}
    one, other = shards(), shards()
    pool, another = one[7], other[7]
    assert Told(reader)("db.client.connection.max", **of_pool) == 2
    other.close()
    assert Told(reader)("db.client.connection.max", **of_pool) == 1
    del pool
    one.close()
    assert Told(reader)("db.client.connection.max", **of_pool) is None
    assert another.name == "shard[7]"


def shards() -> millpond.KeyedPool[int, FakeConnection]:
    return millpond.KeyedPool(lambda key: FakeConnector(), name="shard", max_size=1)


def test_it_can_be_ended_and_installed_again_but_not_twice() -> None:
    before = events.everywhere()
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
    with millpond.Pool(FakeConnector(), name="orders"):
        for _ in range(2):
            uninstall = opentelemetry.install(provider)
            with pytest.raises(ValueError, match="already"):
                opentelemetry.install(provider)
            assert Told(reader)("db.client.connection.max", db__client__connection__pool__name="orders") == 10
            uninstall()
            uninstall()
            assert Told(reader)("db.client.connection.max", db__client__connection__pool__name="orders") is None
    assert events.everywhere() == before
    provider.shutdown()


def test_what_nobody_collects_does_not_pile_up() -> None:
    provider = MeterProvider(shutdown_on_exit=False)
    uninstall = opentelemetry.install(provider)
    exporter = opentelemetry._exporters[provider]
    with millpond.Pool(FakeConnector(), name="orders"):
        for _ in range(opentelemetry.BACKLOG + 10):
            exporter._hear(events.ConnectionLent(pool="orders", at=0.0, connection=1, waited=0.1))
    assert len(exporter._heard) == opentelemetry.BACKLOG
    uninstall()
    provider.shutdown()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers that send signals")
def test_a_signal_handler_may_borrow_while_a_reader_collects(reader: InMemoryMetricReader) -> None:
    borrowed = 0

    def borrow() -> None:
        nonlocal borrowed
        # The reader may be looking at the pool just now: then a handler gets an idle connection, or Misuse.
        with suppress(millpond.Misuse), other.connection(30):
            borrowed += 1
        if borrowed < 100:
            alarm.set(0.0005)

    with (
        millpond.Pool(FakeConnector(), name="orders") as pool,
        millpond.Pool(FakeConnector(), name="more") as other,
        Alarm(borrow) as alarm,
    ):
        with other.connection():
            pass
        alarm.set(0.0005)
        while borrowed < 100:
            with pool.connection():
                pass
            reader.collect()


@pytest.mark.parametrize("name", ["prometheus", "opentelemetry", "logs"])
def test_importing_millpond_imports_no_exporter(name: str) -> None:
    program = f"import sys, millpond; sys.exit('millpond.{name}' in sys.modules or 'opentelemetry' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
