"""What is logged of pools."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest

import millpond
from millpond import events, logs
from millpond.records import LeaseRecord
from millpond.testing import FakeConnector, Postgres, Proxy

from ..promises.patience import until

Wire = Callable[[str, int], Proxy]
Lines = Callable[[str], list[dict[str, Any]]]
# What every record has.
OWN = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}

LEASE = LeaseRecord(connection=1, age=2.0, uses=3, owner="thread 'a'", borrowed_at="a.py:1", now_at=None)
SAMPLES: dict[str, object] = {
    "age": 1.5,
    "borrowed_at": "a.py:1",
    "connection": 1,
    "error": OSError("no\nroute"),
    "held": 0.1,
    "lease": LEASE,
    "max_size": 5,
    "min_size": 1,
    "reason": "broken",
    "refused": False,
    "seconds": 0.1,
    "sound": True,
    "uses": 3,
    "waited": 0.1,
}
KINDS = [kind for kind in vars(events).values() if isinstance(kind, type) and kind in events.Event.__subclasses__()]


class Json(logging.Handler):
    """Writes each record as a line of JSON, as people's formatters do."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        facts = {name: value for name, value in vars(record).items() if name not in OWN}
        facts |= {"level": record.levelname, "message": record.getMessage()}
        self.lines.append(json.loads(json.dumps(facts)))


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Json()
    logger = logging.getLogger("millpond")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda event: [line for line in handler.lines if line.get("event") == event]
    logger.removeHandler(handler)
    logger.setLevel(level)


def sample(kind: type[events.Event]) -> events.Event:
    fields = kind.__dataclass_fields__.keys() - {"pool", "at"}
    return kind(pool="orders", at=1000.0, **{name: SAMPLES[name] for name in fields})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_fact_can_be_an_attribute_of_a_record(kind: type[events.Event]) -> None:
    facts = sample(kind).facts()
    assert not facts.keys() & OWN
    assert facts["pool"] == "orders"
    json.dumps(facts)


def test_facts_are_plain_values_with_constant_names() -> None:
    assert sample(events.OpenFailed).facts() == {
        "event": "open_failed",
        "pool": "orders",
        "error": "OSError: no route",
        "refused": False,
        "seconds": 0.1,
    }
    assert sample(events.LeakSuspected).facts() == {
        "event": "leak_suspected",
        "pool": "orders",
        "connection": 1,
        "age": 2.0,
        "uses": 3,
        "owner": "thread 'a'",
        "borrowed_at": "a.py:1",
        "now_at": None,
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_fact_is_logged_once(kind: type[events.Event], lines: Lines) -> None:
    event = sample(kind)
    name = str(event.facts()["event"])
    logs._Lines().write(event)
    by_the_pool_itself = {"connection_lost", "leak_suspected", "outage_began", "outage_ended"}
    assert len(lines(name)) == (0 if name in by_the_pool_itself else 1)


def test_the_life_of_a_pool_is_logged_with_its_facts(lines: Lines) -> None:
    uninstall = logs.install()
    with millpond.Pool(FakeConnector(), name="orders", max_size=1) as pool:
        with pool.connection():
            pass
        pool.resize(max_size=2)
    uninstall()
    with millpond.Pool(FakeConnector(), name="more", max_size=1) as pool, pool.connection():
        pass
    (opened,) = lines("connection_opened")
    assert (opened["pool"], opened["connection"], opened["level"]) == ("orders", 1, "DEBUG")
    assert opened["message"] == f"pool 'orders': connection 1 opened in {opened['seconds']:.3f} s"
    (resized,) = lines("pool_resized")
    assert (resized["max_size"], resized["level"]) == (2, "INFO")
    assert len(lines("pool_closed")) == len(lines("connection_closed")) == 1
    assert lines("connection_lent") == lines("connection_returned") == []


def test_loans_are_logged_at_debug_if_asked_for(lines: Lines) -> None:
    with millpond.Pool(FakeConnector(), name="orders", max_size=1) as pool:
        uninstall = logs.install(pool, loans=True)
        for _ in range(300):
            with pool.connection():
                pass
        assert len(lines("connection_lent")) == len(lines("connection_returned")) == 300
        assert {line["level"] for line in lines("connection_lent")} == {"DEBUG"}
        uninstall()


def test_logs_without_loans_make_loans_no_slower() -> None:
    with millpond.Pool(FakeConnector(), max_size=1) as pool:
        plain = type(pool.connection())
        uninstall = logs.install(pool)
        assert type(pool.connection()) is plain
        uninstall()


def test_logs_of_one_pool_are_of_no_other(lines: Lines) -> None:
    with millpond.Pool(FakeConnector(), name="one") as one, millpond.Pool(FakeConnector(), name="other") as other:
        uninstall = logs.install(one)
        one.pause()
        other.pause()
        uninstall()
        one.resume()
    assert [line["pool"] for line in lines("pool_paused")] == ["one"]
    assert lines("pool_resumed") == []


def test_an_outage_is_logged_once_with_its_facts_installed_or_not(
    postgres: Postgres, proxy: Wire, lines: Lines
) -> None:
    for install in (True, False):
        wire = proxy(postgres.host, postgres.port)
        url = wire.url_for(postgres.url)
        with millpond.Pool[psycopg.Connection].from_url(url, name=f"orders {install}", ride_out=True) as pool:
            uninstall = logs.install(pool) if install else None
            wire.refuse()
            with suppress(millpond.PoolError):
                pool.acquire(0.3)
            until(lambda name=pool.name: name in [line["pool"] for line in lines("outage_began")])  # type: ignore[misc]
            if uninstall is not None:
                uninstall()
    began = lines("outage_began")
    assert [line["pool"] for line in began] == ["orders True", "orders False"]
    assert all(line["level"] == "WARNING" and "Error" in line["error"] for line in began)
    assert {line["pool"] for line in lines("open_failed")} == {"orders True"}


def test_callers_who_get_nothing_are_counted_in_one_line_every_so_often(lines: Lines) -> None:
    lines_of = logs._Lines()

    def time_out(at: float, pool: str = "orders") -> None:
        lines_of.write(events.CallerTimedOut(pool=pool, at=at, waited=1.0, error=millpond.PoolTimeout("too late")))

    time_out(100.0)
    for number in range(50):
        time_out(101.0 + number / 10)
    time_out(104.0, "more")
    time_out(110.0)
    assert [(line["pool"], line["callers"]) for line in lines("caller_timed_out")] == [
        ("orders", 1),
        ("more", 1),
        ("orders", 51),
    ]


def test_a_level_that_is_not_logged_takes_no_work(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("millpond").setLevel(logging.WARNING)
    monkeypatch.setattr(events.Event, "facts", lambda self: sys.exit("not needed"))
    logs._Lines().write(sample(events.ConnectionOpened))
