"""What it costs to be observed: a pool with an exporter on, or exposed, against the same one without, by turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from benchmarks.figure import Figure
from millpond import Pool, _looking, expose, opentelemetry, prometheus
from millpond.testing import FakeConnector

__all__ = ["measure"]

ROUNDS = 11
LOANS = 1000
WORK = 0.001
SECONDS = 0.6

Install = Callable[[], Callable[[], None]]


def measure() -> Iterator[Figure]:
    """Measure the bare hot path, and callers who do something with what they borrow."""
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    exporters: dict[str, Install] = {
        "OpenTelemetry": lambda: opentelemetry.install(provider),
        "Prometheus": lambda: prometheus.install(CollectorRegistry()),
        "exposed": exposed,
    }
    for name, install in exporters.items():
        with Pool(FakeConnector(), max_size=8) as pool:
            yield Figure("metrics, bare hot path", name, _by_turns(install, lambda: hot_path(pool)), " times", 1.5)
            for threads in (1, 8):
                share = _by_turns(install, lambda: working(pool, threads))  # noqa: B023 - called at once
                case = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
                yield Figure("metrics, throughput lost at 1 ms of work", case, 100 * (1 - 1 / share), " %", 2)
    provider.shutdown()


def exposed() -> Callable[[], None]:
    """Expose the pools, and have somebody look at them every second."""
    end, over = expose(), threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            _looking.look()

    looking = threading.Thread(target=look)
    looking.start()

    def stop() -> None:
        over.set()
        looking.join()
        end()

    return stop


def hot_path(pool: Pool[Any]) -> float:
    """Return how many seconds a loan takes that finds an idle connection."""
    loans = 0
    began = now = time.perf_counter()
    while now < began + SECONDS:
        for _ in range(LOANS):
            with pool.connection():
                pass
        loans += LOANS
        now = time.perf_counter()
    return (now - began) / loans


def working(pool: Pool[Any], threads: int) -> float:
    """Return how many seconds a loan takes of threads that each work for a millisecond with it."""
    loans: list[int] = []
    end = time.perf_counter() + SECONDS

    def work() -> None:
        count = 0
        while time.perf_counter() < end:
            with pool.connection():
                time.sleep(WORK)
            count += 1
        loans.append(count)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return SECONDS / sum(loans)


def _by_turns(install: Install, lap: Callable[[], float]) -> float:
    """Return how many times as long a lap takes with metrics on."""

    def turn() -> float:
        lap()
        off = lap()
        uninstall = install()
        lap()  # at first more loans are told of, until the pool knows how many there are
        on = lap()
        uninstall()
        return on / off

    return median(turn() for _ in range(ROUNDS))
