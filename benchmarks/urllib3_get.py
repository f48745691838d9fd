"""How long does a GET take on an open connection, beside urllib3's own pool, and beside requests' own adapter?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import requests
import urllib3

import millpond.requests
import millpond.urllib3
from benchmarks.figure import Figure
from benchmarks.race import Contestant, race
from benchmarks.urllib3_server import serving

__all__ = ["measure"]

GOALS = {"urllib3": 1.1, "requests": 1.05}


@contextmanager
def _pool(kind: Callable[..., urllib3.HTTPConnectionPool], port: int, size: int) -> Iterator[Any]:
    with kind("127.0.0.1", port, maxsize=size, block=True) as pool:
        yield partial(pool.request, "GET", "/")


@contextmanager
def _session(install: Callable[..., None] | None, port: int, size: int) -> Iterator[Any]:
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=size, pool_block=True))
        if install is not None:
            install(session)
        yield partial(session.get, f"http://127.0.0.1:{port}/")


def measure() -> Iterator[Figure]:
    """Yield four figures: each library, with the body read at once and as a stream."""
    opened: dict[str, tuple[Callable[..., Any], Any, Any]] = {
        "urllib3": (_pool, millpond.urllib3.HTTPConnectionPool, urllib3.HTTPConnectionPool),
        "requests": (_session, millpond.requests.install, None),
    }
    ways = {
        ("urllib3", "at once"): "pool().data",
        ("urllib3", "as a stream"): "pool(preload_content=False).read()",
        ("requests", "at once"): "pool().content",
        ("requests", "as a stream"): "b''.join(pool(stream=True).iter_content(4096))",
    }
    with serving() as port:
        for (library, way), loan in ways.items():
            opening, ours, theirs = opened[library]
            contestants = [
                Contestant(f"millpond.{library}", loan, partial(opening, ours, port)),
                Contestant(library, loan, partial(opening, theirs, port)),
            ]
            outcome = race(contestants, rounds=200)
            mine, its = (outcome.of(one.name, one.lends) for one in contestants)
            assert mine is not None and its is not None, outcome.left_out
            yield Figure(f"beside {library} itself", f"a GET, read {way}", mine.over(its), " x", GOALS[library])
