"""What Prometheus is told of pools, by real scrapes of prometheus_client's own server."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import psycopg
import pytest
from prometheus_client import CollectorRegistry

import millpond
from millpond import events, prometheus
from millpond.testing import AsyncFakeConnector, FakeConnection, FakeConnector, Postgres, Proxy

from .conftest import Page, Scrape

Wire = Callable[[str, int], Proxy]


def shards() -> millpond.KeyedPool[int, FakeConnection]:
    return millpond.KeyedPool(lambda key: FakeConnector(), name="shard", max_size=1)


def until(scrape: Scrape, fact: Callable[[Page], bool]) -> Page:
    deadline = time.monotonic() + 10
    while not fact(page := scrape()):
        assert time.monotonic() < deadline, page.text
        time.sleep(0.01)
    return page


def test_a_scrape_tells_what_a_pool_has(postgres: Postgres, scrape: Scrape) -> None:
    with millpond.Pool[psycopg.Connection].from_url(postgres.url, name="orders", max_size=2, min_size=1) as pool:
        pool.warm(10)
        page = scrape()
        assert page("connections", pool="orders", state="idle") == 1
        assert page("connections", pool="orders", state="lent") == 0
        assert page("min_connections", pool="orders") == 1
        assert page("max_connections", pool="orders") == 2
        with ThreadPoolExecutor(1) as threads:
            with pool.connection(), pool.connection():
                waiting = threads.submit(lambda: pool.release(pool.acquire(10)))
                page = until(scrape, lambda page: page("waiting_callers", pool="orders") == 1)
                assert page("connections", pool="orders", state="lent") == 2
            waiting.result(10)
        pool.pause()
        page = scrape()
        assert page("paused", pool="orders") == 1
        assert page("outage", pool="orders") == 0
        assert page("waiting_callers", pool="orders") == 0


def test_a_scrape_tells_what_a_pool_has_counted(postgres: Postgres, scrape: Scrape) -> None:
    with millpond.Pool[psycopg.Connection].from_url(postgres.url, name="orders", max_size=1) as pool:
        with pool.connection() as conn:
            conn.execute("select 1")  # begins a transaction
            with pytest.raises(millpond.PoolTimeout):
                pool.acquire(0.02)
        with pool.connection(10) as conn:
            pool.discard(conn)
        page = until(scrape, lambda page: page("closes_total", pool="orders", reason="discarded") == 1)
        assert page("loans_total", pool="orders") == 2
        assert page("timeouts_total", pool="orders") == 1
        assert page("resets_total", pool="orders") == 1
        assert page("opens_total", pool="orders") == 1
        assert page("open_failures_total", pool="orders") == 0


def test_a_server_that_is_down_is_seen(postgres: Postgres, proxy: Wire, scrape: Scrape) -> None:
    wire = proxy(postgres.host, postgres.port)
    with millpond.Pool[psycopg.Connection].from_url(wire.url_for(postgres.url), name="orders") as pool:
        wire.close()
        with pytest.raises(millpond.ConnectFailed):
            pool.acquire(10)
        page = until(scrape, lambda page: page("outage", pool="orders") == 1)
        assert page("open_failures_total", pool="orders") >= 1  # type: ignore[operator]
        assert page("outages_total", pool="orders") == 1
        assert page("refusals_total", pool="orders") == 1


def test_the_histograms_hold_how_long_opens_waits_and_loans_took(scrape: Scrape) -> None:
    with millpond.Pool(FakeConnector(open_time=0.06), name="orders", max_size=1) as pool:
        for _ in range(10):
            with pool.connection():
                time.sleep(0.011)
        page = scrape()
        assert page("open_seconds_count", pool="orders") == 1
        assert page("open_seconds_bucket", pool="orders", le="0.05") == 0
        assert page("wait_seconds_count", pool="orders") == page("use_seconds_count", pool="orders") == 10
        assert page("wait_seconds_bucket", pool="orders", le="0.05") == 9
        assert page("use_seconds_bucket", pool="orders", le="0.01") == 0
        assert page("use_seconds_bucket", pool="orders", le="+Inf") == 10
        assert 0.11 <= page("use_seconds_sum", pool="orders") < 10  # type: ignore[operator]
        assert page.kinds["millpond_use_seconds"] == "histogram"


def test_the_histograms_count_right_when_many_threads_return_at_once() -> None:
    collector = prometheus._Collector()
    event = events.ConnectionReturned(pool="orders", at=0.0, connection=1, held=0.003, error=None)
    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: deque(map(collector.hear, [event] * 5000)), range(8)))
    finally:
        sys.setswitchinterval(interval)
    counts, total = collector._times["use_seconds"]["orders"].look()
    assert counts[-1] == ("+Inf", 40_000)
    assert total == pytest.approx(40_000 * 0.003)


def test_no_counter_ever_falls_while_pools_of_its_name_come_and_go(scrape: Scrape) -> None:
    before: dict[object, float] = {}

    def look() -> Page:
        page = scrape()
        for key, value in page.samples.items():
            if key[0].endswith(("_total", "_count", "_bucket", "_sum")):
                assert value >= before.get(key, 0.0), key
                before[key] = value
        assert all(key in page.samples for key in before)
        return page

    with millpond.Pool(FakeConnector(), name="orders") as lasting:
        for _ in range(3):
            with millpond.Pool(FakeConnector(), name="orders") as pool:
                with pool.connection(), lasting.connection():
                    pass
                assert look()("connections", pool="orders", state="idle") == 2
            look()
        assert look()("loans_total", pool="orders") == 6
        assert look()("connections", pool="orders", state="idle") == 1


def test_a_pool_that_is_dropped_or_closed_vanishes(scrape: Scrape) -> None:
    dropped = shards()
    pool = dropped[7]
    with pool.connection():
        pass
    with millpond.Pool(FakeConnector(), name="orders") as closed:
        with closed.connection():
            pass
        assert scrape().pools == {"shard[7]", "orders"}
    dropped.close()
    assert scrape().pools == set()
    del pool, dropped
    gc.collect()
    with millpond.Pool(FakeConnector(), name="orders"):
        assert scrape()("loans_total", pool="orders") == 0
        assert scrape()("use_seconds_count", pool="orders") == 0


def test_an_unclosed_pool_is_not_kept_alive(scrape: Scrape) -> None:
    pool = shards()[7]
    assert scrape().pools == {"shard[7]"}
    del pool
    gc.collect()
    assert scrape().pools == set()


def test_pools_for_tasks_are_seen_from_the_thread_that_is_asked(scrape: Scrape) -> None:
    async def main() -> None:
        async with millpond.AsyncPool(AsyncFakeConnector(), name="orders", max_size=1) as pool:
            async with pool.connection():
                page = await anyio.to_thread.run_sync(scrape)
                assert page("connections", pool="orders", state="lent") == 1
            page = await anyio.to_thread.run_sync(scrape)
            assert page("connections", pool="orders", state="idle") == 1
            assert page("use_seconds_count", pool="orders") == 1

    anyio.run(main)


def test_a_scrape_while_pools_are_made_and_used_breaks_neither(scrape: Scrape) -> None:
    ended = threading.Event()

    def work() -> int:
        loans = 0
        with shards() as pools:
            while not ended.is_set():
                with pools.connection(loans % 10, 10):
                    loans += 1
        return loans

    with ThreadPoolExecutor(2) as threads:
        works = [threads.submit(work) for _ in range(2)]
        for _ in range(6):
            scrape()
        ended.set()
        assert all(work.result(10) for work in works)


def test_installing_twice_in_one_registry_raises_and_changes_nothing() -> None:
    registry = CollectorRegistry()
    before = events.everywhere()
    uninstall = prometheus.install(registry)
    with pytest.raises(ValueError, match="millpond_connections"):
        prometheus.install(registry)
    uninstall()
    assert events.everywhere() == before
    assert list(registry.collect()) == []
    prometheus.install(registry)()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_tells_of_its_own_doings() -> None:
    program = """
import os, sys
from prometheus_client import CollectorRegistry
import millpond
from millpond import prometheus

registry = CollectorRegistry()
prometheus.install(registry)
pool = millpond.Pool(dict, close=dict.clear, name="orders")
for _ in range(3):
    with pool.connection(5):
        pass
if not (child := os.fork()):
    with pool.connection(5):
        pass
labels = {"pool": "orders"}
names = ("millpond_loans_total", "millpond_use_seconds_count")
said = child > 0, *(int(registry.get_sample_value(name, labels)) for name in names)
os.write(1, f"{said}\\n".encode())  # at once, as both write to one pipe
pool.close()
if child:
    sys.exit(os.waitpid(child, 0)[1])
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert sorted(said.stdout.splitlines()) == ["(False, 1, 1)", "(True, 3, 3)"]
