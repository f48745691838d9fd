"""Waiting for what must come, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

from millpond import Stats
from millpond.urllib3 import HTTPConnectionPool

__all__ = ["settled", "stats", "until"]


def until(seen: Callable[[], object], timeout: float = 30.0) -> float:
    """Ask again and again until it is so; return the seconds that took, or fail."""
    start = time.monotonic()
    while not seen():
        assert time.monotonic() - start < timeout, f"not seen within {timeout} s"
        time.sleep(0.0005)
    return time.monotonic() - start


def stats(http: HTTPConnectionPool) -> Stats:
    assert http.pool is not None
    return http.pool.stats()


def settled(http: HTTPConnectionPool) -> Stats:
    """Look at a pool when nothing is being opened, reset or closed."""

    def still() -> bool:
        now = stats(http)
        return now.size == now.idle + now.lent

    until(still)
    return stats(http)
