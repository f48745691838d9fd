"""A signal handler that uses the pool it has interrupted is served or told off: it never hangs, and loses nothing."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from millpond import Misuse, Pool, PoolTimeout
from millpond.testing import FakeConnection, FakeConnector

from .alarms import Alarm
from .patience import assert_whole
from .places import Places

FakePool = Pool[FakeConnection]


class Handler:
    """Borrows, and counts what came of it."""

    def __init__(self, pool: FakePool) -> None:
        self._pool = pool
        self.served = self.told_off = self.in_vain = 0

    def __call__(self, *_: object) -> None:
        try:
            with self._pool.connection(timeout=0.02) as conn, conn.use():
                self.served += 1
        except Misuse:
            self.told_off += 1
        except PoolTimeout:
            # Whom it has interrupted may have the only connection, or be the one whose turn it is.
            self.in_vain += 1


def idle(pool: FakePool) -> None:
    with pool.connection() as conn, conn.use():
        pass


def dirty(pool: FakePool) -> None:
    with pool.connection() as conn, conn.use():
        conn.dirty = True


def broken(pool: FakePool) -> None:
    with pool.connection() as conn, conn.use():
        conn.broken = True


def refreshed(pool: FakePool) -> None:
    pool.refresh()
    with pool.connection() as conn, conn.use():
        pass


def by_hand(pool: FakePool) -> None:
    pool.release(pool.acquire())


def looking(pool: FakePool) -> None:
    pool.stats()
    pool.leases()


def changing(pool: FakePool) -> None:
    pool.resize(max_size=1)
    pool.pause()
    pool.resume()
    pool.resize(max_size=2)


WAYS: tuple[Callable[[FakePool], None], ...] = (idle, dirty, broken, refreshed, by_hand, looking, changing)


@pytest.mark.parametrize("work", WAYS, ids=lambda work: work.__name__)
def test_a_handler_that_borrows_at_any_place_does_not_hang(work: Callable[[FakePool], None]) -> None:
    """Enumerated: it runs at the first place where a signal may be handled, at the second, and so on."""
    connector = FakeConnector()
    with Pool(connector, max_size=2) as pool:
        assert_whole(pool, 2)
        handler = Handler(pool)
        for number in range(1, 1000):
            with Places(number, handler) as places:
                work(pool)
            assert_whole(pool, 2)
            if not places.reached:
                break
        assert connector.mistakes == []
    assert handler.served > 0
    assert handler.served + handler.told_off + handler.in_vain == number - 1


# Takes 2 s: it waits for interruptions of whatever kind there is, those in line too.
@pytest.mark.parametrize("competitors", [0, 3])
def test_a_handler_that_borrows_at_any_moment_does_not_hang(competitors: int) -> None:
    connector = FakeConnector()
    over = threading.Event()

    def compete() -> None:
        while not over.is_set():
            with pool.connection() as conn, conn.use():
                time.sleep(0.0005)

    def interrupt() -> None:
        handler()
        alarm.set(random.uniform(1e-6, 300e-6))

    with Pool(connector, max_size=2) as pool, ThreadPoolExecutor(3) as executor:
        handler = Handler(pool)
        others = [executor.submit(compete) for _ in range(competitors)]
        try:
            with Alarm(interrupt) as alarm:
                alarm.set(0.0001)
                end, deadline = time.monotonic() + 0.5, time.monotonic() + 60
                while time.monotonic() < end or (handler.served <= 10 and time.monotonic() < deadline):
                    random.choice(WAYS)(pool)
        finally:
            over.set()
        for other in others:
            other.result()
        assert_whole(pool, 2)
        assert connector.mistakes == []
    assert handler.served > 10
