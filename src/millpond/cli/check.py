"""`millpond check`: opens a connection to a URL, and tells what it costs and which settings fit its server."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from millpond.cli._servers import Findings, of_postgresql, of_redis
from millpond.connectors.urls import InvalidURL, async_connector_for, connector_for

__all__ = ["main"]

PINGS: Final = 9
"""Round trips, of which the median is told."""
DEAR: Final = 20
"""So many round trips make an open dear."""
PORTS: Final = {"postgres": 5432, "postgresql": 5432, "redis": 6379, "rediss": 6379, "valkey": 6379, "valkeys": 6379}


class _Failed(Exception):
    """What was tried, and what came back."""


@dataclass
class _Report:
    target: str
    seconds: dict[str, float] = field(default_factory=dict)
    found: Findings | None = None


def main(argv: list[str]) -> int:
    """Check one URL; return 0, 1 if there is no connection to it, 2 if it is none."""
    parser = argparse.ArgumentParser(
        prog="millpond check",
        description="Opens a connection to a URL, and tells what it costs and which settings fit its server.",
    )
    parser.add_argument("url", metavar="URL", help="as Pool.from_url and AsyncPool.from_url take it")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds for each step (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object; times are in seconds")
    arguments = parser.parse_args(argv)
    try:
        client = _client(arguments.url)
    except (ValueError, TypeError, ImportError) as error:
        print(f"millpond check: {error}", file=sys.stderr)
        return 2
    report = _Report(client.target)
    try:
        _check(client, arguments.url, arguments.timeout, report)
    except _Failed as failure:
        print(f"millpond check: {report.target}: {_without_password(str(failure), arguments.url)}", file=sys.stderr)
        return 1
    print(json.dumps(_as_json(report)) if arguments.json else _as_text(report))
    return 0


def _check(client: _Client, url: str, timeout: float, report: _Report) -> None:
    scheme = url.partition("://")[0].lower()
    product = scheme.partition("+")[0]
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or PORTS.get(product)
    except ValueError:
        host = port = None  # several hosts, which the driver goes through
    if host and port and product != "unix":
        _reach(host, port, timeout, report)
    with _timed(report, "open", "it cannot be opened"):
        client.open(timeout)
    try:
        laps = []
        for _ in range(PINGS):
            with _timed(report, "round trip", "it does not answer"):
                client.ping(timeout)
            laps.append(report.seconds["round trip"])
        report.seconds["round trip"] = median(laps)
        with _told("it does not tell about itself"):
            if product in ("postgres", "postgresql"):
                report.found = of_postgresql(client.row, client.backend())
            elif product in ("redis", "rediss", "unix", "valkey", "valkeys"):
                report.found = of_redis(client.command)
    finally:
        client.close()
    _advise(report)


def _reach(host: str, port: int, timeout: float, report: _Report) -> None:
    """Find the host and connect to it, as the driver will once more."""
    with _timed(report, "name", f"the name {host} cannot be looked up"):
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    with _timed(report, "connect", f"{host} does not take connections at port {port}"):
        _try(addresses, timeout)


def _try(addresses: list[Any], timeout: float) -> None:
    """Connect to the first that takes a connection; one may be of a family that this machine does not have."""
    failure: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as wire:
                wire.settimeout(timeout)
                wire.connect(address)
                return
        except OSError as error:
            failure = error
    assert failure is not None
    raise failure


@contextmanager
def _timed(report: _Report, step: str, failing: str) -> Iterator[None]:
    began = time.perf_counter()
    with _told(failing):
        yield
    report.seconds[step] = time.perf_counter() - began


@contextmanager
def _told(failing: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise _Failed(f"{failing}: {type(error).__name__}{said and ': '}{said}") from None


class _Client:
    """A connection of a connector for threads."""

    def __init__(self, connector: Any) -> None:  # noqa: ANN401
        self._connector = connector
        self._conn: Any = None
        self.target: str = connector.target

    def open(self, timeout: float) -> None:
        self._conn = self._connector.open(timeout)

    def ping(self, timeout: float) -> None:
        self._connector.ping(self._conn, timeout)

    def close(self) -> None:
        self._connector.close(self._conn)

    def row(self, sql: str) -> list[Any]:
        row = list(self._conn.execute(sql).fetchone())
        self._conn.rollback()
        return row

    def backend(self) -> int | None:
        pid: int = self._conn.info.backend_pid
        return pid

    def command(self, *command: str) -> Any:  # noqa: ANN401
        self._conn.send_command(*command)
        return self._conn.read_response()


class _AsyncClient(_Client):
    """A connection of a connector for tasks: asyncpg's, and what other packages bring."""

    def __init__(self, connector: Any) -> None:  # noqa: ANN401
        super().__init__(connector)
        self._runner = asyncio.Runner()

    def open(self, timeout: float) -> None:
        self._conn = self._runner.run(self._connector.open(timeout))

    def ping(self, timeout: float) -> None:
        self._runner.run(self._connector.ping(self._conn, timeout))

    def close(self) -> None:
        self._runner.run(self._connector.close(self._conn))
        self._runner.close()

    def row(self, sql: str) -> list[Any]:
        return list(self._runner.run(self._conn.fetchrow(sql)))

    def backend(self) -> int | None:
        pid: int = self._conn.get_server_pid()
        return pid


def _client(url: str) -> _Client:
    try:
        return _Client(connector_for(url))
    except InvalidURL as error:
        try:
            connector = async_connector_for(url)
        except InvalidURL:
            raise error from None
        return _AsyncClient(connector)


def _advise(report: _Report) -> None:
    found = report.found
    if found is None:
        return
    if found.limit is not None and found.used is not None:
        free = max(0, found.limit - found.used)
        why = f"{found.used} of {found.limit} connections are in use"
        share = "where several processes need them, budget=HostBudget(name, limit) or FleetBudget moves them about"
        found.advice.insert(0, (f"max_size times processes <= {free}", f"{why}; {share}"))
    opening, lap = report.seconds["open"], report.seconds["round trip"]
    if opening > DEAR * lap:
        found.advice.append(
            ("min_size above 0", f"to open one takes as long as {opening / lap:.0f} round trips: keep some ready")
        )


def _as_json(report: _Report) -> dict[str, object]:
    found = report.found or Findings("")
    return {
        "target": report.target,
        "seconds": report.seconds,
        "server": found.server or None,
        "limit": found.limit,
        "used": found.used,
        "pooler": found.pooler,
        "facts": found.facts,
        "advice": [{"setting": setting, "why": why} for setting, why in found.advice],
    }


_STEPS: Final = {
    "name": "to look the name up",
    "connect": "to connect by TCP",
    "open": "to connect, and for TLS and login where there are any",
    "round trip": f"to ask and be answered, the median of {PINGS}",
}


def _as_text(report: _Report) -> str:
    rows = [
        (step, f"{report.seconds[step] * 1000:.2f} ms", about)
        for step, about in _STEPS.items()
        if step in report.seconds
    ]
    found = report.found
    if found is not None:
        rows.append(("server", found.server, ""))
        if found.limit is not None:
            rows.append(("connections", f"{found.used} of {found.limit}", "without this one"))
        if found.pooler is not None:
            rows.append(("pooler", "yes" if found.pooler else "none", "as process numbers tell"))
        rows += [(name, value, "") for name, value in found.facts.items()]
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [
        report.target,
        *(f"  {name:{names}}  {value:>{values}}  {about}".rstrip() for name, value, about in rows),
    ]
    if found is not None and found.advice:
        lines += ["settings", *(f"  {setting}: {why}" for setting, why in found.advice)]
    return "\n".join(lines)


def _without_password(text: str, url: str) -> str:
    """Take out of a driver's words what it should not have said."""
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        password = url.rpartition("@")[0].rpartition(":")[2]
    for secret in {password, unquote(password)} - {""}:
        text = text.replace(secret, "***")
    return text
