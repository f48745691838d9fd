"""A GET of a small page through httpx and httpx2: on millpond's transports, on their own, and with aiohttp beside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import aiohttp
import httpx
import httpx2

import millpond.httpx
import millpond.httpx2
from benchmarks.figure import Figure
from benchmarks.urllib3_server import serving

__all__ = ["CONNECTIONS", "Rates", "fall", "measure", "rates", "rates_of_threads"]

CONNECTIONS = 20, 100, 300
ROUNDS = 3
SECONDS = 0.35
LOOPS = 15
MANY_GOAL = {20: 1.5, 100: 2.0, 300: 3.0}
"""Times the rate of httpx2's own transport, by connections: what that does for a request grows with their number."""
FALL_GOAL = 0.9
"""The part of the rate at 20 connections that is there at 300, at least: no fall, chance aside."""
TASKS_GOAL = 1.5
"""Times the rate of httpx's own transport, one request at a time."""
THREADS_GOAL = 1.2
"""The same in threads, where the client and the round trip to the server are three quarters of it."""

Get = Callable[[], Awaitable[object]]
Rates = dict[str, list[float]]
"""Requests a second by whom they are made, round by round."""


def _options(library: Any, connections: int) -> dict[str, Any]:
    limits = library.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=60)
    return {"trust_env": False, "limits": limits}


async def _gets(url: str, connections: int, stack: AsyncExitStack) -> dict[str, Get]:
    """Make the clients."""

    def get(client: Any) -> Get:
        return lambda: client.get(url)

    made: dict[str, Get] = {}
    libraries: tuple[tuple[str, Any, Any], ...] = (
        ("httpx", httpx, millpond.httpx),
        ("httpx2", httpx2, millpond.httpx2),
    )
    for name, library, face in libraries:
        for title, module in ((name, library), (f"millpond, {name}", face)):
            transport = module.AsyncHTTPTransport(**_options(library, connections))
            client = library.AsyncClient(transport=transport, timeout=60, trust_env=False)
            made[title] = get(await stack.enter_async_context(client))
    session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)))

    async def read() -> None:
        async with session.get(url) as response:
            await response.read()

    made["aiohttp"] = read
    return made


async def _rate(get: Get, connections: int, seconds: float) -> float:
    end = time.perf_counter() + seconds
    count = 0

    async def keep_on() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await get()
            count += 1

    began = time.perf_counter()
    await asyncio.gather(*(keep_on() for _ in range(connections)))
    return count / (time.perf_counter() - began)


async def _rates(port: int, connections: int, rounds: int, seconds: float) -> Rates:
    async with AsyncExitStack() as stack:
        gets = await _gets(f"http://127.0.0.1:{port}/", connections, stack)
        for get in gets.values():  # connect
            await asyncio.gather(*(get() for _ in range(connections)))
        rates: Rates = {name: [] for name in gets}
        for number in range(rounds):
            names = list(gets) if number % 2 else list(gets)[::-1]
            for name in names:
                rates[name].append(await _rate(gets[name], connections, seconds))
        return rates


def rates(connections: int, rounds: int = ROUNDS, seconds: float = SECONDS) -> Rates:
    """Measure all clients by turns, each with so many tasks and connections."""
    with serving() as port:
        return asyncio.run(_rates(port, connections, rounds, seconds))


async def _fall(port: int, rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    few, many = CONNECTIONS[0], CONNECTIONS[-1]
    url = f"http://127.0.0.1:{port}/"
    measured: tuple[list[float], list[float]] = ([], [])
    transport = millpond.httpx2.AsyncHTTPTransport(**_options(httpx2, many))
    async with httpx2.AsyncClient(transport=transport, timeout=60, trust_env=False) as client:
        await asyncio.gather(*(client.get(url) for _ in range(many)))
        for _ in range(rounds):
            for connections, each in zip((few, many), measured, strict=True):
                each.append(await _rate(lambda: client.get(url), connections, seconds))
    return measured


def fall(rounds: int = 15, seconds: float = SECONDS) -> tuple[float, float, float]:
    """Return millpond's rates at 20 connections and at 300, by turns, and the ratio of the latter to the former."""
    with serving() as port:
        few, many = asyncio.run(_fall(port, rounds, seconds))
    return median(few), median(many), median(last / first for first, last in zip(few, many, strict=True))


def rates_of_threads(rounds: int = 100) -> Rates:
    """Measure `httpx.Client` by turns on both transports, one request at a time."""
    measured: Rates = {"millpond, httpx": [], "httpx": []}
    options = _options(httpx, 1)
    with (
        serving() as port,
        httpx.Client(transport=millpond.httpx.HTTPTransport(**options), trust_env=False) as ours,
        httpx.Client(transport=httpx.HTTPTransport(**options), trust_env=False) as own,
    ):
        url = f"http://127.0.0.1:{port}/"
        for number in range(rounds):
            turns = list(zip(measured, (ours, own), strict=True))
            for name, client in turns if number % 2 else turns[::-1]:
                client.get(url)
                began = time.perf_counter()
                for _ in range(LOOPS):
                    client.get(url)
                measured[name].append(LOOPS / (time.perf_counter() - began))
    return measured


def _ratio(rates: Rates, one: str, other: str) -> float:
    """Return the median of the ratios of rounds that followed each other."""
    return median(mine / theirs for mine, theirs in zip(rates[one], rates[other], strict=True))


def _micros(rates: Rates, name: str) -> str:
    return f"{1e6 / median(rates[name]):.0f}"


def measure() -> Iterator[Figure]:
    """Yield what millpond's transports bring."""
    what = "one GET at a time, rate / that on the own transport"
    threads = rates_of_threads()
    case = f"httpx, threads ({_micros(threads, 'millpond, httpx')} us; own {_micros(threads, 'httpx')})"
    yield Figure(what, case, _ratio(threads, "millpond, httpx", "httpx"), " x", THREADS_GOAL, ">=")
    one = rates(1)
    case = f"httpx, asyncio ({_micros(one, 'millpond, httpx')} us; own {_micros(one, 'httpx')}"
    case += f"; aiohttp {_micros(one, 'aiohttp')})"
    yield Figure(what, case, _ratio(one, "millpond, httpx", "httpx"), " x", TASKS_GOAL, ">=")
    many = {connections: rates(connections) for connections in CONNECTIONS}
    for connections, each in many.items():
        ours, *others = (f"{median(each[name]):.0f}" for name in ("millpond, httpx2", "httpx2", "httpx", "aiohttp"))
        case = f"{connections} connections ({ours}/s; own {others[0]}, httpx {others[1]}, aiohttp {others[2]})"
        goal = MANY_GOAL[connections]
        ratio = _ratio(each, "millpond, httpx2", "httpx2")
        yield Figure("GET at once, rate / that on httpx2's own transport", case, ratio, " x", goal, ">=")
    first, last, ratio = fall()
    case = f"millpond, httpx2 ({last:.0f}/s; {first:.0f})"
    yield Figure("GET at once, rate at 300 connections / rate at 20", case, ratio, " x", FALL_GOAL, ">=")
