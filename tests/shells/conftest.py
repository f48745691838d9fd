"""One face for the three ways to run a pool, so that one suite of scenarios holds for all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

import millpond
from millpond.testing import AsyncFakeConnector, FakeConnection, FakeConnector

Way = Literal["threads", "asyncio", "trio"]


class Shell:
    """A pool of fake connections, whichever way it runs; what may wait is awaited."""

    def __init__(self, way: Way, **settings: Any) -> None:
        script = {name: settings.pop(name) for name in ("open_time", "provable", "watchable") if name in settings}
        self.way = way
        self.fake: FakeConnector | AsyncFakeConnector
        self.pool: Any
        if way == "threads":
            self.fake = FakeConnector(**script)
            self.pool = millpond.Pool(self.fake, **settings)
        else:
            self.fake = AsyncFakeConnector(**script)
            self.pool = millpond.AsyncPool(self.fake, **settings)

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the pool that may wait: in a thread of its own, or in this task."""
        function = getattr(self.pool, method)
        if self.way == "threads":
            return await in_thread(lambda: function(*args, **kwargs))
        return await function(*args, **kwargs)

    async def acquire(self, timeout: float | None = None) -> FakeConnection:
        conn: FakeConnection = await self.call("acquire", timeout)
        return conn

    @contextlib.asynccontextmanager
    async def lent(self, timeout: float | None = None) -> AsyncIterator[FakeConnection]:
        """Borrow with the pool's own context manager."""
        lease = self.pool.connection(timeout)
        if self.way == "threads":
            conn = await in_thread(lease.__enter__)
            try:
                yield conn
            except BaseException as error:
                lease.__exit__(type(error), error, error.__traceback__)
                raise
            lease.__exit__(None, None, None)
        else:
            async with lease as conn:
                yield conn

    async def until(self, fact: Callable[[millpond.Stats], object], seconds: float = 30.0) -> millpond.Stats:
        """Wait for a fact about the pool."""
        with anyio.fail_after(seconds):
            while not fact(stats := self.pool.stats()):
                await anyio.sleep(0.001)
            return stats  # type: ignore[no-any-return]

    async def fill(self, count: int) -> list[FakeConnection]:
        return [await self.acquire() for _ in range(count)]

    def audit(self) -> list[str]:
        """Hold what is derived against the truth."""
        found: list[str] = self.pool._step(self.pool._core.audit)
        return found + self.fake.mistakes

    async def gather(self, *works: Callable[[], Awaitable[object]]) -> None:
        async with anyio.create_task_group() as group:
            for work in works:
                group.start_soon(_plain, work)


async def _plain(work: Callable[[], Awaitable[object]]) -> None:
    await work()


async def in_thread(function: Callable[[], Any]) -> Any:
    """Run what may block in a thread; if the waiting is given up, the thread goes on."""
    # A thread of an older anyio remembers what it ran last, and with it a pool that is to be dropped.
    once = [function]
    return await anyio.to_thread.run_sync(lambda: once.pop()(), abandon_on_cancel=True, limiter=_unlimited())


def _unlimited() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(1)


@pytest.fixture(params=["threads", "asyncio", "trio"])
def way(request: pytest.FixtureRequest) -> Way:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def anyio_backend(way: Way) -> str:
    return "trio" if way == "trio" else "asyncio"


@pytest.fixture
async def make(way: Way, anyio_backend: str) -> AsyncIterator[Callable[..., Shell]]:
    """Make pools; every one is closed afterwards, and must have kept its books."""
    shells: list[Shell] = []

    def make(**settings: Any) -> Shell:
        shells.append(Shell(way, **settings))
        return shells[-1]

    yield make
    for shell in shells:
        assert shell.audit() == []
        await shell.call("close", 1.0)


__all__ = ["Shell", "asyncio", "in_thread"]
