"""Metrics of every pool of this process for OpenTelemetry, by the names and units of its semantic conventions.

    from millpond import opentelemetry

    opentelemetry.install()  # by the global MeterProvider, or by the one that is given

Pools of HTTP connections tell `http.client.*`, with the server's address and port; all others `db.client.connection.*`,
with the pool's name. What pools have is read when a reader collects, and costs borrowers nothing. How long things take
is noted as it happens, of every open and close, and of a sample of the loans (see `millpond.events`), and recorded when
a reader collects: OpenTelemetry's own recording takes far longer than a loan, and locks, which a loan that ends in a
signal handler or in the garbage collector must not wait for.

Pools of the same name are added up.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from millpond import __version__, events
from millpond._core.stats import Stats
from millpond._extras import extra
from millpond._shell import Shell, pools

with extra("opentelemetry"):
    from opentelemetry import metrics

__all__ = ["install"]

SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the conventions from which the names are."""

BUCKETS: Final = (0.00001, 0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LIFETIMES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the histograms, in seconds; those of lifetimes are the conventions' own."""

BACKLOG: Final = 100_000
"""So many facts are kept for a reader that collects too seldom, or never; the oldest go first."""

Attributes: TypeAlias = tuple[tuple[str, str | int], ...]


class Gauge(NamedTuple):
    """What a pool has, by the attributes that are added to its own."""

    name: str
    unit: str
    what: str
    http: bool
    read: Callable[[Stats], dict[Attributes, int]]


class Times(NamedTuple):
    """How long something took that is told of."""

    name: str
    what: str
    http: bool
    kind: type[events.Event]
    field: str
    bounds: tuple[float, ...]


def _database_states(stats: Stats) -> dict[Attributes, int]:
    # The conventions have names for the first two, and allow others.
    counts = {
        "idle": stats.idle,
        "used": stats.lent,
        "opening": stats.opening,
        "checking": stats.checking,
        "resetting": stats.resetting,
        "closing": stats.closing,
    }
    return {(("db.client.connection.state", state),): count for state, count in counts.items()}


def _http_states(stats: Stats) -> dict[Attributes, int]:
    # One that is being opened or closed is not open.
    counts = {"idle": stats.idle + stats.checking, "active": stats.lent + stats.resetting}
    return {(("http.connection.state", state),): count for state, count in counts.items()}


GAUGES: Final = (
    Gauge(
        "db.client.connection.count",
        "{connection}",
        "The number of connections that are currently in state described by the `state` attribute.",
        False,
        _database_states,
    ),
    Gauge(
        "db.client.connection.idle.max",
        "{connection}",
        "The maximum number of idle open connections allowed.",
        False,
        lambda stats: {(): stats.max_size},
    ),
    Gauge(
        "db.client.connection.idle.min",
        "{connection}",
        "The minimum number of idle open connections allowed.",
        False,
        lambda stats: {(): stats.min_size},
    ),
    Gauge(
        "db.client.connection.max",
        "{connection}",
        "The maximum number of open connections allowed.",
        False,
        lambda stats: {(): stats.max_size},
    ),
    Gauge(
        "db.client.connection.pending_requests",
        "{request}",
        "The number of current pending requests for an open connection.",
        False,
        lambda stats: {(): stats.waiting},
    ),
    Gauge(
        "http.client.open_connections",
        "{connection}",
        "Number of outbound HTTP connections that are currently active or idle on the client.",
        True,
        _http_states,
    ),
)

TIMES: Final = (
    Times(
        "db.client.connection.create_time",
        "The time it took to create a new connection.",
        False,
        events.ConnectionOpened,
        "seconds",
        BUCKETS,
    ),
    Times(
        "db.client.connection.wait_time",
        "The time it took to obtain an open connection from the pool.",
        False,
        events.ConnectionLent,
        "waited",
        BUCKETS,
    ),
    Times(
        "db.client.connection.use_time",
        "The time between borrowing a connection and returning it to the pool.",
        False,
        events.ConnectionReturned,
        "held",
        BUCKETS,
    ),
    Times(
        "http.client.connection.duration",
        "The duration of the successfully established outbound HTTP connections.",
        True,
        events.ConnectionClosed,
        "age",
        LIFETIMES,
    ),
)

_exporters: Final[WeakKeyDictionary[metrics.MeterProvider, _Exporter]] = WeakKeyDictionary()


def install(meter_provider: metrics.MeterProvider | None = None) -> Callable[[], None]:
    """Tell of all pools of this process, those to come included; return what ends that.

    By the global `MeterProvider`, unless another is given. Raises `ValueError` if it is told of them already.
    """
    provider = metrics.get_meter_provider() if meter_provider is None else meter_provider
    exporter = _exporters.get(provider)
    if exporter is None:
        exporter = _exporters[provider] = _Exporter(provider)
    return exporter.start()


class _Pool(NamedTuple):
    """What a pool is, as far as the conventions care."""

    http: bool
    attributes: Attributes


class _Note(NamedTuple):
    """How to record a kind of fact."""

    record: Callable[[float, dict[str, str | int]], None]
    value: Callable[[Any], float]


class _Exporter:
    """The instruments of one provider. They cannot be taken back, so they stay, and are silent when it has ended."""

    def __init__(self, provider: metrics.MeterProvider) -> None:
        meter = provider.get_meter("millpond", __version__, SCHEMA)
        self._stop: Callable[[], None] | None = None
        self._known: dict[str, _Pool] = {}
        self._heard: deque[tuple[_Note, float, Attributes]] = deque(maxlen=BACKLOG)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._heard.clear)
        timeouts = meter.create_counter(
            "db.client.connection.timeouts",
            "{timeout}",
            "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
        )
        self._notes: dict[tuple[bool, type[events.Event]], _Note] = {
            (False, events.CallerTimedOut): _Note(timeouts.add, lambda event: 1)
        }
        for name, what, http, kind, field, bounds in TIMES:
            histogram = meter.create_histogram(name, "s", what, explicit_bucket_boundaries_advisory=bounds)
            self._notes[http, kind] = _Note(histogram.record, attrgetter(field))
        for gauge in GAUGES:
            look = partial(self._look, gauge)
            meter.create_observable_up_down_counter(gauge.name, [look], gauge.unit, gauge.what)

    def start(self) -> Callable[[], None]:
        if self._stop is not None:
            raise ValueError("millpond's pools are told of by this MeterProvider already")
        self._stop = events.listen(self._hear, loans="some")
        return self._end

    def _end(self) -> None:
        if self._stop is not None:
            self._stop()
            self._stop = None

    def _hear(self, event: events.Event) -> None:
        pool = self._known.get(event.pool)
        if pool is None:
            for living in pools():
                self._known[living.name] = _as_told(living)
            pool = self._known.get(event.pool)
        if pool is not None and (note := self._notes.get((pool.http, type(event)))):
            self._heard.append((note, note.value(event), pool.attributes))

    def _record_all(self) -> None:
        for _ in range(len(self._heard)):
            note, value, attributes = self._heard.popleft()
            note.record(value, dict(attributes))

    def _look(self, gauge: Gauge, options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
        """Read the pools; called before a reader collects the instruments for times."""
        with suppress(IndexError):  # another reader may collect as well
            self._record_all()
        if self._stop is None:
            return
        living = [(pool, self._known.get(pool.name) or _as_told(pool)) for pool in pools()]
        self._known = {pool.name: told for pool, told in living}
        counts: Counter[Attributes] = Counter()
        for pool, told in living:
            stats = pool._step(pool._core.stats)
            if told.http == gauge.http and (stats.size or not stats.closed):
                counts.update({(*told.attributes, *more): count for more, count in gauge.read(stats).items()})
        for attributes, count in counts.items():
            yield metrics.Observation(count, dict(attributes))


def _as_told(pool: Shell[Any]) -> _Pool:
    try:
        target = urlsplit(pool._inspector.target)
        if target.scheme in ("http", "https"):
            port = target.port or (443 if target.scheme == "https" else 80)
            return _Pool(True, (("server.address", target.hostname or ""), ("server.port", port)))
    except ValueError:
        pass  # a target is for people, and may be anything
    return _Pool(False, (("db.client.connection.pool.name", pool.name),))
