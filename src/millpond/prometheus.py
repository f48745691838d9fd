"""Metrics of every pool of this process for Prometheus.

    from prometheus_client import start_http_server
    from millpond import prometheus

    prometheus.install()
    start_http_server(8000)

What a pool has, and what it has counted, is read when Prometheus asks, and costs borrowers nothing. How long things
take is noted as it happens: of every open, and of a sample of the loans (see `millpond.events`). So the histograms of
waits and loans say how long they take, and `millpond_loans_total` how many there were.

Pools of the same name are added up. A pool that is dropped, or closed and empty, vanishes, and if no other has its
name, so do the figures of that name.
"""

from __future__ import annotations

import os
import weakref
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from threading import Lock
from typing import Any, Final, TypeAlias

from millpond import events
from millpond._core.stats import Stats
from millpond._extras import extra
from millpond._shell import Shell, pools

with extra("prometheus"):
    import prometheus_client
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

__all__ = ["install"]

BUCKETS: Final = (
    0.00001,
    0.0001,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
"""The upper bounds of the histograms, in seconds."""

BOUNDS: Final = (*(str(bound) for bound in BUCKETS), "+Inf")

STATES: Final = ("idle", "lent", "opening", "checking", "resetting", "closing")

GAUGES: Final[dict[str, tuple[str, Callable[[Stats], int]]]] = {
    "max_connections": ("Connections that the pool may have at once", lambda stats: stats.max_size),
    "min_connections": ("Connections that the pool keeps open at least", lambda stats: stats.min_size),
    "waiting_callers": ("Callers in line for a connection", lambda stats: stats.waiting),
    "paused": ("Pools that are paused", lambda stats: stats.paused),
    "outage": ("Pools that cannot open connections", lambda stats: stats.outage is not None),
}

COUNTERS: Final[dict[str, tuple[str, Callable[[Stats], int]]]] = {
    "loans": ("Connections lent", lambda stats: stats.borrows),
    "waits": ("Loans that were waited for in line", lambda stats: stats.waits),
    "timeouts": ("Callers who waited as long as they would, and got nothing", lambda stats: stats.timeouts),
    "refusals": ("Callers turned away: line full, server down, or pool closed", lambda stats: stats.refusals),
    "cancelled_waits": ("Callers who stopped waiting of their own accord", lambda stats: stats.cancelled),
    "opens": ("Connections opened", lambda stats: stats.opens),
    "open_failures": ("Connections that could not be opened", lambda stats: stats.open_failures),
    "checks": ("Round trips to see whether an idle connection is alive", lambda stats: stats.checks),
    "resets": ("Returned connections that had to be cleaned", lambda stats: stats.resets),
    "outages": ("Times at which connections could not be opened any more", lambda stats: stats.outages),
}

TIMES: Final = {
    "open_seconds": "How long it took to open a connection",
    "wait_seconds": "How long it took to get a connection, for a sample of the loans",
    "use_seconds": "How long a connection was on loan, for a sample of the loans",
}


def install(registry: prometheus_client.CollectorRegistry = prometheus_client.REGISTRY) -> Callable[[], None]:
    """Have a registry tell of all pools of this process, those to come included; return what ends that.

    The registry is prometheus_client's own by default. Raises `ValueError` if it tells of them already.
    """
    collector = _Collector()
    registry.register(collector)
    end = events.listen(collector.hear, loans="some")

    def uninstall() -> None:
        end()
        registry.unregister(collector)

    return uninstall


class _Times:
    """A histogram that takes no lock: listeners are called wherever a loan ends, in signal handlers too."""

    def __init__(self) -> None:
        self._counts = [0] * len(BOUNDS)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        number = bisect_left(BUCKETS, seconds)
        # Nothing is called from here on, so CPython lets no other thread, and no signal handler, in between.
        self._counts[number] += 1
        self._sum += seconds

    def look(self) -> tuple[list[tuple[str, float]], float]:
        return list(zip(BOUNDS, accumulate(self._counts), strict=True)), self._sum


Counts: TypeAlias = Counter[tuple[str, str]]
"""What has been counted, by metric and reason."""


class _Collector:
    """Reads the pools when the registry is asked."""

    def __init__(self) -> None:
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Start with nothing: at first, and again in a forked child, whose pools begin anew too."""
        self._lock = Lock()
        self._times: dict[str, dict[str, _Times]] = {name: {} for name in TIMES}
        self._seen: dict[weakref.ref[Shell[Any]], Stats] = {}
        self._gone: dict[str, Counts] = {}
        """What pools had counted that have vanished, by name: the sum over those of a name must not fall."""

    def hear(self, event: events.Event) -> None:
        """Note how long something took."""
        if isinstance(event, events.ConnectionLent):
            self._note("wait_seconds", event.pool, event.waited)
        elif isinstance(event, events.ConnectionReturned):
            self._note("use_seconds", event.pool, event.held)
        elif isinstance(event, events.ConnectionOpened):
            self._note("open_seconds", event.pool, event.seconds)

    def _note(self, name: str, pool: str, seconds: float) -> None:
        times = self._times[name]
        (times.get(pool) or times.setdefault(pool, _Times())).add(seconds)

    def describe(self) -> Iterable[Metric]:
        """Name the metrics, so that a registry takes them once."""
        return _metrics({}, {}, self._times)

    def collect(self) -> Iterable[Metric]:
        """Read all pools."""
        with self._lock:
            return self._read()

    def _read(self) -> list[Metric]:
        seen = {weakref.ref(pool): pool._step(pool._core.stats) for pool in pools()}
        seen = {pool: stats for pool, stats in seen.items() if stats.size or not stats.closed}
        for pool, last in self._seen.items():
            if pool not in seen:
                self._gone.setdefault(last.name, Counter()).update(_counts(last))
        self._seen = seen
        named: dict[str, list[Stats]] = {}
        for stats in seen.values():
            named.setdefault(stats.name, []).append(stats)
        figures: tuple[dict[str, Any], ...] = (self._gone, *self._times.values())
        for by_name in figures:
            for name in set(by_name) - set(named):
                del by_name[name]
        counts = {name: Counter(self._gone.get(name)) for name in named}
        for stats in seen.values():
            counts[stats.name].update(_counts(stats))
        return list(_metrics(named, counts, self._times))


def _counts(stats: Stats) -> Counts:
    counts: Counts = Counter({(name, ""): count(stats) for name, (_, count) in COUNTERS.items()})
    counts.update({("closes", reason): count for reason, count in stats.closes.items()})
    return counts


def _metrics(
    pools: dict[str, list[Stats]], counts: dict[str, Counts], times: dict[str, dict[str, _Times]]
) -> Iterator[Metric]:
    connections = GaugeMetricFamily("millpond_connections", "Connections, by state", labels=["pool", "state"])
    for pool, those in pools.items():
        for state in STATES:
            connections.add_metric([pool, state], sum(getattr(stats, state) for stats in those))
    yield connections
    for name, (what, value) in GAUGES.items():
        gauge = GaugeMetricFamily(f"millpond_{name}", what, labels=["pool"])
        for pool, those in pools.items():
            gauge.add_metric([pool], sum(map(value, those)))
        yield gauge
    for name, (what, _) in COUNTERS.items():
        counter = CounterMetricFamily(f"millpond_{name}", what, labels=["pool"])
        for pool in pools:
            counter.add_metric([pool], counts[pool][name, ""])
        yield counter
    closes = CounterMetricFamily("millpond_closes", "Connections closed, by reason", labels=["pool", "reason"])
    for pool in pools:
        for (name, reason), count in counts[pool].items():
            if name == "closes":
                closes.add_metric([pool, reason], count)
    yield closes
    for name, what in TIMES.items():
        histogram = HistogramMetricFamily(f"millpond_{name}", what, labels=["pool"])
        for pool in pools:
            histogram.add_metric([pool], *(times[name].get(pool) or _Times()).look())
        yield histogram
