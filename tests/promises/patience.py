"""Waiting for what must come, with a deadline, and looking over a pool afterwards."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeAlias, TypeVar

import anyio
import pytest

from millpond import AsyncPool, Pool, _maintenance

C = TypeVar("C")

Loop: TypeAlias = Literal["asyncio", "trio"]
LOOPS: tuple[Loop, ...] = ("asyncio", "trio")


def until(seen: Callable[[], object], timeout: float = 30.0, *, pause: float = 0.0005) -> float:
    """Ask again and again until it is so; return the seconds that took, or fail."""
    start = time.monotonic()
    while not seen():
        assert time.monotonic() - start < timeout, f"not seen within {timeout} s"
        time.sleep(pause)
    return time.monotonic() - start


async def until_seen(seen: Callable[[], object], timeout: float = 30.0, *, pause: float = 0.0) -> float:
    """Let others run until it is so; return the seconds that took, or fail."""
    start = time.monotonic()
    while not seen():
        assert time.monotonic() - start < timeout, f"not seen within {timeout} s"
        await anyio.sleep(pause)
    return time.monotonic() - start


def run(loop: Loop, work: Callable[..., Coroutine[Any, Any, C]], *args: object) -> C:
    """Run a coroutine function in a loop of its own."""
    return anyio.run(work, *args, backend=loop)


def assert_whole(pool: Pool[C], size: int, timeout: float = 30.0) -> None:
    """All connections can be lent at once, each to one borrower only, and the books are in order."""
    with contextlib.ExitStack() as loans:
        lent = [loans.enter_context(pool.connection(timeout)) for _ in range(size)]
        assert len({id(conn) for conn in lent}) == size
        assert pool.stats().lent == size
    assert_in_order(pool, size)
    until(lambda: pool.stats().idle == size, timeout)


async def assert_whole_async(pool: AsyncPool[C], size: int, timeout: float = 30.0) -> None:
    """Do as `assert_whole` does, for tasks."""
    async with contextlib.AsyncExitStack() as loans:
        lent = [await loans.enter_async_context(pool.connection(timeout)) for _ in range(size)]
        assert len({id(conn) for conn in lent}) == size
        assert pool.stats().lent == size
    assert_in_order(pool, size)
    await until_seen(lambda: pool.stats().idle == size, timeout)


def assert_in_order(pool: Pool[C] | AsyncPool[C], idle: int) -> None:
    """So many connections are idle, or being checked after another's death; nobody waits; the audit finds nothing."""
    assert pool._step(pool._core.audit) == []
    stats = pool.stats()
    assert (stats.idle + stats.checking, stats.size, stats.waiting) == (idle, idle, 0)


def measured(measure: Callable[[], C], good: Callable[[C], bool], attempts: int = 3) -> C:
    """Measure until it is good, a few times at most: what else the machine does makes a figure worse, never better."""
    for _ in range(attempts - 1):
        figure = measure()
        if good(figure):
            return figure
    return measure()


def without_maintenance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the thread leave as soon as no pool has anything to keep, and wait until it has left."""
    monkeypatch.setattr(_maintenance, "LINGER", 0.01)
    here = _maintenance._here()
    here.calls.put(None)
    until(lambda: gc.collect() >= 0 and not here.present, pause=0.05)
