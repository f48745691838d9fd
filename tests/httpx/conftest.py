"""One face for both libraries and the three ways to use them, so that one suite holds for all of them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import anyio
import anyio.to_thread
import pytest

import millpond

from .server import Http2Server, Server, trusting

Way = Literal["threads", "asyncio", "trio"]
WAYS = ["threads", "asyncio", "trio"]
TRUST = trusting()
# httpx2 is not there where the oldest versions are tested: it wants newer ones of others.
LIBRARIES: dict[str, tuple[ModuleType, ModuleType]] = {
    name: (import_module(name), import_module(f"millpond.{name}")) for name in ("httpx", "httpx2") if find_spec(name)
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Try each library with every other way to use it: both are one code of millpond's.

    Python 3.13 has those that 3.11 has not; where there is one library, it has all.
    """
    if len(LIBRARIES) < 2 or config.getoption("--thorough"):
        return
    left = [item for item in items if Path(__file__).parent in item.path.parents and not _is_tried(item)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def _is_tried(item: pytest.Item) -> bool:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    way = params.get("loop", params.get("way"))
    if way is None or "library" not in params:
        return True
    turn = list(LIBRARIES).index(str(params["library"])) + WAYS.index(str(way)) + sys.version_info.minor // 2
    return turn % 2 == 0


async def in_thread(function: Callable[..., Any], *args: object) -> Any:
    """Run what may block in a thread; if the waiting is given up, the thread goes on."""
    limiter = anyio.CapacityLimiter(1)
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=limiter)


class Caller:
    """A client on one of millpond's transports; what waits is awaited, for threads in a thread."""

    def __init__(self, way: Way, library: str, *, timeout: Any = 30.0, base_url: str = "", **options: Any) -> None:
        self.way = way
        self.httpx, faces = LIBRARIES[library]
        options.setdefault("verify", TRUST)
        if "limits" in options:
            options["limits"] = self.httpx.Limits(**options["limits"])
        self.transport: Any
        if way == "threads":
            self.transport = faces.HTTPTransport(**options)
            self.client: Any = self.httpx.Client(transport=self.transport, timeout=timeout, base_url=base_url)
        else:
            self.transport = faces.AsyncHTTPTransport(**options)
            self.client = self.httpx.AsyncClient(transport=self.transport, timeout=timeout, base_url=base_url)

    async def request(self, method: str, url: str, **options: Any) -> Any:
        if self.way == "threads":
            return await in_thread(lambda: self.client.request(method, url, **options))
        return await self.client.request(method, url, **options)

    async def get(self, url: str, **options: Any) -> Any:
        return await self.request("GET", url, **options)

    async def say(self, url: str, **options: Any) -> str:
        """Return the word that is said, having made sure that it is the one that was asked for."""
        response = await self.get(url, **options)
        assert response.status_code == 200
        assert response.text == url.rsplit("/", 1)[1], "somebody else's answer"
        return str(response.text)

    async def send(self, url: str) -> Any:
        """Return a response whose body is to be read."""
        request = self.client.build_request("GET", url)
        if self.way == "threads":
            return await in_thread(lambda: self.client.send(request, stream=True))
        return await self.client.send(request, stream=True)

    async def read(self, response: Any) -> bytes:
        data: bytes = await (in_thread(response.read) if self.way == "threads" else response.aread())
        return data

    async def end(self, response: Any) -> None:
        await (in_thread(response.close) if self.way == "threads" else response.aclose())

    async def first(self, response: Any) -> bytes:
        """Return the first part of a body."""
        if self.way == "threads":
            return await in_thread(lambda: next(response.iter_raw()))  # type: ignore[no-any-return]
        parts = response.aiter_raw()
        try:
            async for part in parts:
                return part  # type: ignore[no-any-return]
        finally:
            with contextlib.suppress(AttributeError):
                await parts.aclose()
        raise AssertionError("there is no body")

    async def transport_get(self, url: str) -> Any:
        """Ask the transport itself, which does not know whether its client is closed."""
        timeout = {"connect": 5.0, "read": None, "write": 5.0, "pool": None}
        request = self.httpx.Request("GET", url, extensions={"timeout": timeout})
        if self.way == "threads":
            response = await in_thread(self.transport.handle_request, request)
        else:
            response = await self.transport.handle_async_request(request)
        return await self.read(response)

    async def close_transport(self) -> None:
        await (in_thread(self.transport.close) if self.way == "threads" else self.transport.aclose())

    async def close(self) -> None:
        await (in_thread(self.client.close) if self.way == "threads" else self.client.aclose())

    @property
    def pools(self) -> list[Any]:
        return list(self.transport._pools._used.values())

    @property
    def pool(self) -> Any:
        (pool,) = self.pools
        return pool

    def stats(self) -> millpond.Stats:
        return self.pool.stats()  # type: ignore[no-any-return]

    async def until(self, fact: Callable[[millpond.Stats], object], seconds: float = 30.0) -> millpond.Stats:
        with anyio.fail_after(seconds):
            while not (self.pools and fact(self.stats())):
                await anyio.sleep(0.001)
            return self.stats()

    def audit(self) -> list[str]:
        return [line for pool in self.pools for line in pool._step(pool._core.audit)]


@pytest.fixture(params=["threads", "asyncio", "trio"])
def way(request: pytest.FixtureRequest) -> Way:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=list(LIBRARIES))
def library(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def anyio_backend(way: Way) -> str:
    return "trio" if way == "trio" else "asyncio"


@pytest.fixture
async def make(way: Way, library: str, anyio_backend: str) -> AsyncIterator[Callable[..., Caller]]:
    """Make clients; each is closed afterwards, and its pools must have kept their books."""
    callers: list[Caller] = []

    def make(**options: Any) -> Caller:
        callers.append(Caller(way, library, **options))
        return callers[-1]

    yield make
    for caller in callers:
        assert caller.audit() == []
        await caller.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def tls_server() -> Iterator[Server]:
    with Server(tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def http2_server() -> Iterator[Http2Server]:
    with Http2Server() as server:
        yield server
