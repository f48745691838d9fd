"""A GET of a small page through urllib3 and requests: with millpond's pools, and with their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

import requests
import urllib3

import millpond.requests
import millpond.urllib3
from benchmarks.figure import Figure
from benchmarks.urllib3_server import serving

__all__ = ["Costs", "costs_of_requests", "costs_of_urllib3", "measure"]

ROUNDS = 60
LOOPS = 50
GOAL = 1.03


class Costs(NamedTuple):
    """Seconds that one GET takes."""

    ours: float
    theirs: float
    ratio: float
    """The median of the ratios of rounds that followed each other."""


def _costs(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> Costs:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        # By turns first and second, so that neither always follows the other.
        for which in (0, 1) if number % 2 else (1, 0):
            get = (ours, theirs)[which]
            get()
            began = time.perf_counter()
            for _ in range(LOOPS):
                get()
            times[which].append((time.perf_counter() - began) / LOOPS)
    return Costs(median(times[0]), median(times[1]), median(own / other for own, other in zip(*times, strict=True)))


def costs_of_urllib3(rounds: int = ROUNDS) -> Costs:
    """Measure urllib3's managers."""
    with serving() as port, millpond.urllib3.PoolManager() as ours, urllib3.PoolManager() as theirs:
        url = f"http://127.0.0.1:{port}/"
        return _costs(lambda: ours.request("GET", url), lambda: theirs.request("GET", url), rounds)


def costs_of_requests(rounds: int = ROUNDS) -> Costs:
    """Measure requests' sessions."""
    with serving() as port, requests.Session() as ours, requests.Session() as theirs:
        millpond.requests.install(ours)
        ours.trust_env = theirs.trust_env = False
        url = f"http://127.0.0.1:{port}/"
        return _costs(lambda: ours.get(url), lambda: theirs.get(url), rounds)


def measure() -> Iterator[Figure]:
    """Yield what millpond's pools cost or save."""
    for library, costs in (("urllib3", costs_of_urllib3()), ("requests", costs_of_requests())):
        case = f"{library} ({costs.ours * 1e6:.0f} us; own pool {costs.theirs * 1e6:.0f})"
        yield Figure("GET of a small page, time / that with its own pool", case, costs.ratio, " x", GOAL)
