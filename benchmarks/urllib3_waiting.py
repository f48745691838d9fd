"""100 workers on 10 connections of urllib3 with `block=True`: how long does the unluckiest wait, and who is woken?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import urllib3

import millpond.urllib3
from benchmarks.figure import Figure
from benchmarks.urllib3_server import serving

__all__ = ["longest_wait", "measure", "time_to_wake"]

WORKERS = 100
CONNECTIONS = 10
WORK = 0.020
SECONDS = 3.0
WAIT_GOAL = 1.3
WAKE_GOAL = 50.0


def longest_wait(make: Callable[..., urllib3.HTTPConnectionPool], seconds: float = SECONDS) -> float:
    """Return the longest time that a request took beyond the server's, in fair waits."""
    longest = [0.0] * WORKERS
    gate = threading.Barrier(WORKERS + 1)
    end = time.monotonic() + 3600

    def take_turns(number: int) -> None:
        gate.wait()
        while (came := time.monotonic()) < end:
            http.request("GET", f"/{WORK}")
            longest[number] = max(longest[number], time.monotonic() - came - WORK)

    with serving() as port, make("127.0.0.1", port, maxsize=CONNECTIONS, block=True) as http:
        threads = [threading.Thread(target=take_turns, args=(number,)) for number in range(WORKERS)]
        for thread in threads:
            thread.start()
        gate.wait()
        end = time.monotonic() + seconds
        for thread in threads:
            thread.join()
    return max(longest) / ((WORKERS / CONNECTIONS - 1) * WORK)


def time_to_wake() -> float:
    """Return the milliseconds after `close()` in which the last of the callers in line gets its answer."""
    woken: list[float] = []

    def wait() -> None:
        try:
            http.request("GET", "/")
        except urllib3.exceptions.ClosedPoolError:
            woken.append(time.monotonic())

    with serving() as port:
        http = millpond.urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=1, block=True)
        pool = http.pool
        assert pool is not None
        held = http.request("GET", "/", preload_content=False)
        threads = [threading.Thread(target=wait) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()
        while pool.stats().waiting < WORKERS:
            time.sleep(0.001)
        closed = time.monotonic()
        http.close()
        for thread in threads:
            thread.join()
        held.close()
    assert len(woken) == WORKERS
    return (max(woken) - closed) * 1e3


def measure() -> Iterator[Figure]:
    """Yield both figures; urllib3's own pool wakes nobody."""
    theirs = longest_wait(urllib3.HTTPConnectionPool)
    ours = longest_wait(millpond.urllib3.HTTPConnectionPool)
    case = f"urllib3 (its own pool: {theirs:.1f})"
    yield Figure("100 workers, 10 connections: longest wait / fair wait", case, ours, "", WAIT_GOAL)
    yield Figure(
        "close() with 100 callers in line: all woken after", "urllib3", time_to_wake(), " ms", WAKE_GOAL, digits=1
    )
