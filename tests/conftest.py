"""What holds for all tests. The fixtures `postgres`, `valkey` and `proxy` come from `millpond.testing.plugin`."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from millpond import pool
from millpond._core import core

# The same examples on every run of CI; new ones on every run at a desk. No deadlines: the machine may be busy.
BUSY = (HealthCheck.too_slow,)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True, suppress_health_check=BUSY)
settings.register_profile("desk", deadline=None, suppress_health_check=BUSY)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

# Python leaves Ctrl-C ignored where its parent did, as a shell does for what it runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough",
        action="store_true",
        help="try every place, where otherwise a fixed part of them is tried; `make proof` does",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--thorough"):
        long = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether all is to be tried, however long it takes."""
    return bool(request.config.getoption("--thorough"))


@pytest.fixture
def without_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing be found by looking again after a while: what happens is told by those who do it, or never."""
    monkeypatch.setattr(core, "BEAT", 3600.0)


OF_THE_PROCESS = ("millpond-maintenance", "millpond-watcher", "millpond-watchdog")
"""Threads of all pools, which no pool takes with it."""


@pytest.fixture(autouse=True)
def no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Workers go because they are sent home, not because they have found nothing to do for long enough.
    monkeypatch.setattr(pool, "LINGER", 600.0)
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 20.0
    while True:
        left = [
            thread
            for thread in set(threading.enumerate()) - before
            if thread.name.startswith("millpond-") and thread.name not in OF_THE_PROCESS
        ]
        if not left or time.monotonic() > deadline:
            break
        with contextlib.suppress(RuntimeError):  # one that has not begun yet
            left[0].join(0.2)
        if left[0].is_alive():
            gc.collect()  # a pool that was dropped may be part of a cycle
    assert not left


@pytest.fixture(autouse=True)
def no_turn_stumbles(request: pytest.FixtureRequest) -> Iterator[None]:
    """What goes wrong in a pool's maintenance is only logged, since it goes on; but nothing should."""
    stumbles: list[logging.LogRecord] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "stumbled" in str(record.msg):
                stumbles.append(record)

    logger, noting = logging.getLogger("millpond"), Noting()
    logger.addHandler(noting)
    yield
    logger.removeHandler(noting)
    assert not stumbles or request.node.get_closest_marker("stumbles")


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A host whose first address is of a family that this kernel does not have, as IPv6 in many containers."""
    look_up = socket.getaddrinfo

    def found(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if host not in ("two.test", b"two.test"):
            return look_up(host, port, *args, **kwargs)
        strange = (3, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))  # AX.25, of radio amateurs
        return [strange, *look_up("127.0.0.1", port, type=socket.SOCK_STREAM)]

    with pytest.raises(OSError, match="not supported"):
        socket.socket(3, socket.SOCK_STREAM, 6)
    monkeypatch.setattr(socket, "getaddrinfo", found)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield "two.test", server.getsockname()[1]
