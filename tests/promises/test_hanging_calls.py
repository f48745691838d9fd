"""A call that hangs costs the place of its own connection, and nothing else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from benchmarks.idle_pools import Asking, silent

from millpond import Pool
from millpond.testing import FakeConnection, FakeConnector

from .patience import until


class Hanging(FakeConnector):
    """A connector whose calls of one kind hang until they may go on."""

    def __init__(self, call: str, times: int) -> None:
        super().__init__()
        self.over = threading.Event()
        self.hung = threading.Semaphore(0)
        self._times = times
        plain = getattr(self, call)

        def hang(*args: Any) -> Any:
            if self._times > 0:
                self._times -= 1
                self.hung.release()
                self.over.wait(60)
            return plain(*args)

        setattr(self, call, hang)


@contextmanager
def hanging(call: str, times: int, **options: Any) -> Iterator[tuple[Hanging, Pool[FakeConnection]]]:
    connector = Hanging(call, times)
    with Pool(connector, **options) as pool:
        try:
            yield connector, pool
        finally:
            connector.over.set()


@pytest.mark.parametrize("call", ["close", "reset", "ping"])
def test_calls_that_hang_hold_up_no_other_connection(call: str) -> None:
    """More of them than a pool has threads for that usually."""
    with hanging(call, 8, max_size=10, max_opening=10) as (connector, pool):
        with ExitStack() as loans:
            lent = [loans.enter_context(pool.connection(30)) for _ in range(8)]
            if call == "reset":
                for conn in lent:
                    conn.dirty = True
        if call == "close":
            pool.refresh()
        elif call == "ping":
            pool._step(pool._core.suspect)
            pool._bell.ring()
        for _ in range(8):
            assert connector.hung.acquire(timeout=30)
        for _ in range(20):
            with pool.connection(5) as conn, pool.connection(5):
                conn.dirty = True
        stats = pool.stats()
        assert stats.closing + stats.checking + stats.resetting >= 8


def test_opens_that_hang_longer_than_they_may_hold_up_no_other() -> None:
    with hanging("open", 3, max_size=5, max_opening=3, connect_timeout=0.5) as (connector, pool):
        callers = [threading.Thread(target=lambda: pool.release(pool.acquire(30))) for _ in range(3)]
        for caller in callers:
            caller.start()
        for _ in range(3):
            assert connector.hung.acquire(timeout=30)
        began = time.monotonic()
        with pool.connection(10), pool.connection(10):
            assert pool.stats().opening == 3
        assert time.monotonic() - began < 5.0
        connector.over.set()
        for caller in callers:
            caller.join()


def test_a_pool_full_of_connections_that_died_silently_lends_a_new_one_soon() -> None:
    """With default settings but the size, which is full; all are doubted, as after a standstill."""
    with silent() as (port, taken):
        connector = Asking("127.0.0.1", port)
        with Pool(connector, max_size=20) as pool:
            with ExitStack() as loans:
                connector.dead = frozenset(loans.enter_context(pool.connection(30)) for _ in range(20))
            pool._step(pool._core.suspect)
            began = time.monotonic()
            with pool.connection() as conn:
                waited = time.monotonic() - began
                assert conn not in connector.dead
            # A check that has not come back after half a second is given up with the next tick.
            assert waited < 3.0
            assert pool.stats().closes["check failed"] >= 1
            # Those whom nobody needs the places of have the whole time that they may take.
            assert pool.stats().checking >= 10
            until(lambda: len(taken) == 21)
            for end in taken:
                end.close()


def test_a_check_that_takes_no_longer_than_an_open_is_not_given_up() -> None:
    """A server far away: to open another would take longer than to wait for the answer."""

    class Far(Asking):
        def open(self, timeout: float) -> socket.socket:
            time.sleep(1.5)
            return super().open(timeout)

        def ping(self, conn: socket.socket, timeout: float) -> None:
            time.sleep(1.1)

    with silent() as (port, _), Pool(Far("127.0.0.1", port), max_size=1) as pool:
        with pool.connection() as first:
            pass
        pool._step(pool._core.suspect)
        with pool.connection() as again:
            assert again is first
        assert pool.stats().closes == {}
