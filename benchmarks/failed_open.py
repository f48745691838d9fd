"""An open fails: how long until those who wait for it know?"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from typing import TypeAlias

import anyio

from benchmarks.figure import Figure
from millpond import AsyncPool, ConnectFailed, Pool
from millpond.testing import AsyncFakeConnector, FakeConnector

__all__ = ["delay_of_tasks", "delay_of_threads", "measure"]

CALLERS = 20
ROUNDS = 15
GOAL = 0.010


Told: TypeAlias = tuple[float, BaseException | None]
"""When a caller knew, and the cause that it was given."""


def delay_of_threads() -> float:
    """Return the seconds from the failure to the last caller's knowing it, with the cause."""
    connector = FakeConnector()
    connector.hold()
    refusal = ConnectionRefusedError()
    connector.fail_next(100, refusal)
    told: list[Told] = []
    with Pool(connector, max_size=CALLERS, max_opening=1) as pool:

        def call() -> None:
            try:
                with pool.connection():
                    raise AssertionError("there is nothing to lend")
            except ConnectFailed as error:
                told.append((time.monotonic(), error.__cause__))

        threads = [threading.Thread(target=call) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while pool.stats().waiting < CALLERS:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        failed = time.monotonic()
        connector.let_go()
        for thread in threads:
            thread.join()
    return _last(told, refusal) - failed


def delay_of_tasks(backend: str) -> float:
    """Return the same for tasks."""
    refusal = ConnectionRefusedError()
    told: list[Told] = []

    async def main() -> float:
        connector = AsyncFakeConnector()
        connector.hold()
        connector.fail_next(100, refusal)
        async with AsyncPool(connector, max_size=CALLERS, max_opening=1) as pool:

            async def call() -> None:
                try:
                    async with pool.connection():
                        raise AssertionError("there is nothing to lend")
                except ConnectFailed as error:
                    told.append((time.monotonic(), error.__cause__))

            async with anyio.create_task_group() as group:
                for _ in range(CALLERS):
                    group.start_soon(call)
                while pool.stats().waiting < CALLERS:
                    await anyio.lowlevel.checkpoint()
                await connector.wait_until(lambda: connector.opening == 1)
                failed = time.monotonic()
                connector.let_go()
        return failed

    failed = anyio.run(main, backend=backend)
    return _last(told, refusal) - failed


def _last(told: list[Told], refusal: BaseException) -> float:
    assert len(told) == CALLERS, "everybody is told"
    assert all(cause is refusal for _, cause in told), "and why"
    return max(when for when, _ in told)


def measure() -> Iterator[Figure]:
    """Yield the median of the delays of the last of twenty callers."""
    for shell, delay in (
        ("threads", delay_of_threads),
        ("asyncio", lambda: delay_of_tasks("asyncio")),
        ("trio", lambda: delay_of_tasks("trio")),
    ):
        median = statistics.median(delay() for _ in range(ROUNDS))
        yield Figure("a failed open, known to the last of 20 who wait", shell, median * 1000, " ms", GOAL * 1000)
