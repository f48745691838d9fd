"""HTTP clients: on one connection, on millpond's pools where it has some for them, on their own.

Nothing is read from the environment (proxies, .netrc), and no client follows redirects that do not come.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks.race import Contestant

__all__ = ["clients", "clients_of_tasks"]


def _single(manager: Any) -> None:
    """Have a pool manager of urllib3's keep one connection without any pool."""
    import urllib3

    class Single(urllib3.HTTPConnectionPool):
        _one: Any = None

        def _get_conn(self, timeout: float | None = None) -> Any:
            if self._one is None:
                self._one = self._new_conn()
            return self._one

        def _put_conn(self, conn: object) -> None:
            pass

    manager.pool_classes_by_scheme = {"http": Single}


@contextmanager
def _urllib3(size: int, *, single: bool = False) -> Iterator[Any]:
    import urllib3

    with urllib3.PoolManager(maxsize=size) as manager:
        if single:
            _single(manager)
        yield manager


@contextmanager
def _millpond_urllib3(size: int) -> Iterator[Any]:
    import millpond.urllib3

    with millpond.urllib3.PoolManager(maxsize=size) as manager:
        yield manager


@contextmanager
def _requests(size: int, *, single: bool = False, ours: bool = False) -> Iterator[Any]:
    import requests

    with requests.Session() as session:
        session.trust_env = False
        if ours:
            import millpond.requests

            millpond.requests.install(session)
        if single:
            adapter: Any = session.get_adapter("http://")
            _single(adapter.poolmanager)
        yield session


@contextmanager
def _httpx2(size: int, *, ours: bool = False) -> Iterator[Any]:
    import httpx2

    transport = import_module("millpond.httpx2").HTTPTransport() if ours else None
    with httpx2.Client(trust_env=False, transport=transport) as client:
        yield client


@contextmanager
def _httpcore2(size: int) -> Iterator[Any]:
    import httpcore2

    with httpcore2.ConnectionPool(max_connections=size) as pool:
        yield pool


@asynccontextmanager
async def _async_httpx2(size: int, *, ours: bool = False) -> AsyncIterator[Any]:
    import httpx2

    transport = import_module("millpond.httpx2").AsyncHTTPTransport() if ours else None
    async with httpx2.AsyncClient(trust_env=False, transport=transport) as client:
        yield client


@asynccontextmanager
async def _async_httpcore2(size: int) -> AsyncIterator[Any]:
    import httpcore2

    async with httpcore2.AsyncConnectionPool(max_connections=size) as pool:
        yield pool


@asynccontextmanager
async def _aiohttp(size: int) -> AsyncIterator[Any]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=size)) as session:
        yield session


REQUEST = 'pool.request("GET", "{url}")'
GET = 'pool.get("{url}")'
ASYNC_READ = 'async with pool.get("{url}") as response:\n    await response.read()'


def _at(url: str, name: str, request: str, opening: Callable[[int], Any], library: str) -> Contestant:
    return Contestant(name, request.format(url=url), opening, library)


def clients(url: str) -> Sequence[Contestant]:
    """Return those for threads, who ask for the page at a URL."""
    return (
        _at(url, "floor: one connection", REQUEST, partial(_urllib3, single=True), "urllib3"),
        _at(url, "millpond.urllib3", REQUEST, _millpond_urllib3, "urllib3"),
        _at(url, "urllib3", REQUEST, _urllib3, "urllib3"),
        _at(url, "floor: one connection", GET, partial(_requests, single=True), "requests"),
        _at(url, "millpond.requests", GET, partial(_requests, ours=True), "requests"),
        _at(url, "requests", GET, _requests, "requests"),
        _at(url, "millpond.httpx2", GET, partial(_httpx2, ours=True), "httpx2"),
        _at(url, "httpx2", GET, _httpx2, "httpx2"),
        _at(url, "httpcore2", REQUEST, _httpcore2, "httpcore2"),
    )


def clients_of_tasks(url: str) -> Sequence[Contestant]:
    """Return those for tasks."""
    return (
        _at(url, "millpond.httpx2", f"await {GET}", partial(_async_httpx2, ours=True), "httpx2, asyncio"),
        _at(url, "httpx2", f"await {GET}", _async_httpx2, "httpx2, asyncio"),
        _at(url, "httpcore2", f"await {REQUEST}", _async_httpcore2, "httpcore2, asyncio"),
        _at(url, "aiohttp", ASYNC_READ, _aiohttp, "aiohttp"),
    )
