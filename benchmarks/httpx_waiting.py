"""100 workers on 10 connections of httpx: how long does the unluckiest wait, and who is woken by `close()`?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx

import millpond.httpx
from benchmarks.figure import Figure
from benchmarks.urllib3_server import serving

__all__ = ["WAYS", "longest_wait", "measure", "time_to_wake"]

WAYS = "threads", "asyncio", "trio"
WORKERS = 100
CONNECTIONS = 10
WORK = 0.020
SECONDS = 2.0
ATTEMPTS = 3
WAIT_GOAL = 1.3
WAKE_GOAL = 50.0


def _options(connections: int) -> dict[str, Any]:
    return {"trust_env": False, "limits": httpx.Limits(max_connections=connections)}


def _in_threads(transport: Any, work: Callable[[int, httpx.Client], None], meanwhile: Callable[[Any], None]) -> None:
    with httpx.Client(transport=transport, timeout=None, trust_env=False) as client:
        threads = [threading.Thread(target=work, args=(number, client)) for number in range(WORKERS)]
        for thread in threads:
            thread.start()
        meanwhile(client)
        for thread in threads:
            thread.join()


def longest_wait(way: str, faces: Any, seconds: float = SECONDS) -> float:
    """Return the longest time that a request waited for its turn, in fair waits.

    A fair wait is that everybody else in line has one turn first, as long as turns take at the rate that is reached.
    """
    longest = [0.0] * WORKERS
    turns = [0] * WORKERS
    end = 0.0

    def note(number: int, came: float) -> None:
        longest[number] = max(longest[number], time.monotonic() - came)
        turns[number] += 1

    def take_turns(number: int, client: httpx.Client) -> None:
        gate.wait()
        while (came := time.monotonic()) < end:
            client.get(url)
            note(number, came)

    def open_gate(client: httpx.Client) -> None:
        nonlocal end
        with ThreadPoolExecutor(CONNECTIONS) as connecting:
            list(connecting.map(client.get, [url] * CONNECTIONS))
        end = time.monotonic() + seconds
        gate.wait()

    async def main() -> None:
        nonlocal end
        transport = faces.AsyncHTTPTransport(**_options(CONNECTIONS))
        async with httpx.AsyncClient(transport=transport, timeout=None, trust_env=False) as client:

            async def take_turns(number: int) -> None:
                while (came := time.monotonic()) < end:
                    await client.get(url)
                    note(number, came)

            async with anyio.create_task_group() as group:
                for _ in range(CONNECTIONS):
                    group.start_soon(client.get, url)
            end = time.monotonic() + seconds
            async with anyio.create_task_group() as group:
                for number in range(WORKERS):
                    group.start_soon(take_turns, number)

    with serving() as port:
        url = f"http://127.0.0.1:{port}/{WORK}"
        if way == "threads":
            gate = threading.Barrier(WORKERS + 1)
            _in_threads(faces.HTTPTransport(**_options(CONNECTIONS)), take_turns, open_gate)
        else:
            anyio.run(main, backend=way)
    turn = seconds * CONNECTIONS / sum(turns)
    return (max(longest) - turn) / ((WORKERS / CONNECTIONS - 1) * turn)


def time_to_wake(way: str) -> float:
    """Return the milliseconds after `close()` in which the last of those in line gets its answer."""
    woken: list[float] = []
    closed = 0.0

    def ask(number: int, client: httpx.Client) -> None:
        try:
            client.get(url)
        except (RuntimeError, httpx.TransportError):  # that it has been closed; and the one that was being served
            woken.append(time.monotonic())

    def close(client: httpx.Client) -> None:
        nonlocal closed
        while _waiting(transport) < WORKERS - 1:
            time.sleep(0.001)
        closed = time.monotonic()
        client.close()

    async def main() -> None:
        nonlocal closed
        async with httpx.AsyncClient(transport=transport, timeout=None, trust_env=False) as client:

            async def ask() -> None:
                try:
                    await client.get(url)
                except (RuntimeError, httpx.TransportError):
                    woken.append(time.monotonic())

            async with anyio.create_task_group() as group:
                for _ in range(WORKERS):
                    group.start_soon(ask)
                while _waiting(transport) < WORKERS - 1:  # noqa: ASYNC110 nobody tells
                    await anyio.sleep(0.001)
                closed = time.monotonic()
                await client.aclose()

    with serving() as port:
        url = f"http://127.0.0.1:{port}/0.9999"
        transport: Any
        if way == "threads":
            transport = millpond.httpx.HTTPTransport(**_options(1))
            _in_threads(transport, ask, close)
        else:
            transport = millpond.httpx.AsyncHTTPTransport(**_options(1))
            anyio.run(main, backend=way)
    assert len(woken) == WORKERS
    return (max(woken) - closed) * 1e3


def _waiting(transport: Any) -> int:
    return sum(stats.waiting for stats in transport.stats().values())


def measure() -> Iterator[Figure]:
    """Yield both figures for each way; httpx's own transport beside."""
    for way in WAYS:
        theirs = longest_wait(way, httpx)
        # What else the machine does makes it longer, never shorter.
        ours = min(longest_wait(way, millpond.httpx) for _ in range(ATTEMPTS))
        case = f"httpx {way} (its own transport: {theirs:.1f})"
        yield Figure("100 workers, 10 connections: longest wait / fair wait", case, ours, "", WAIT_GOAL)
    for way in WAYS:
        what = "close() with 99 callers in line: all woken after"
        yield Figure(what, f"httpx {way}", time_to_wake(way), " ms", WAKE_GOAL, digits=1)
