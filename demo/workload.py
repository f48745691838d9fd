"""The workload: callers who do short transactions, each on a connection of its own or on one that a pool lends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Final, Literal, NamedTuple

import psycopg

import millpond

__all__ = ["CALLERS", "CONNECTIONS", "SCHEMA", "Attempt", "Fault", "Run", "work"]

CALLERS: Final = 16
CONNECTIONS: Final = 8
THINK: Final = 0.004
"""Seconds that a caller does something else between two transactions, so that now and then a connection lies idle."""
REST: Final = 0.05
"""Seconds that a caller waits after an error before it tries again."""

SCHEMA: Final = "create table orders (id bigint generated always as identity primary key, caller int, amount int)"
INSERT: Final = "insert into orders (caller, amount) values (%s, %s) returning id"
SELECT: Final = "select amount from orders where id = %s"

Connection = psycopg.Connection[tuple[Any, ...]]
AsyncConnection = psycopg.AsyncConnection[tuple[Any, ...]]


class Attempt(NamedTuple):
    """One transaction that a caller wanted, in moments of the monotonic clock."""

    asked: float
    """When it asked for a connection."""
    finished: float
    """When it had committed, or failed."""
    backend: int
    """The process id of the server's end of the connection; 0 if it got none."""
    error: str | None
    """What the driver or the pool said; None if it succeeded."""


class Fault(NamedTuple):
    """Something bad that was done to the server, in moments of the monotonic clock."""

    kind: Literal["kill", "kill at rest", "restart"]
    at: float
    """When it began: with the order, or when the callers were told to rest."""
    back: float
    """When callers could be served again, as far as the server and the demo are concerned."""
    gone: frozenset[int]
    """The process ids of the server's ends of the connections that died."""
    known: float
    """When a pool had had the time to know which connections had died."""


@dataclass(eq=False)
class Run:
    """The workload done in one way: what every caller met, and what was done to the server meanwhile."""

    model: Literal["threads", "asyncio"]
    """What a caller is: a thread, or an asyncio task."""
    pooled: bool
    began: float = 0.0
    ended: float = 0.0
    callers: list[list[Attempt]] = field(default_factory=lambda: [[] for _ in range(CALLERS)])
    faults: list[Fault] = field(default_factory=list)
    resting: bool = False
    """Whether the callers are to rest between two transactions."""
    opened: int = 0
    """How many connections were opened; known when it has ended."""

    @property
    def title(self) -> str:
        """How it is called where it is shown."""
        return f"{self.model} {'with millpond' if self.pooled else 'without a pool'}"

    def attempts(self) -> list[Attempt]:
        """Return what all callers have met so far."""
        return [attempt for met in self.callers for attempt in tuple(met)]


def work(run: Run, url: str, stop: threading.Event) -> None:
    """Let the callers of a run work until told to stop."""
    if run.model == "threads":
        _in_threads(run, url, stop)
    else:
        asyncio.run(_in_tasks(run, url, stop))
    if not run.pooled:
        run.opened = sum(attempt.backend != 0 for attempt in run.attempts())


def _in_threads(run: Run, url: str, stop: threading.Event) -> None:
    if run.pooled:
        with millpond.Pool[Connection].from_url(url, name=run.title, max_size=CONNECTIONS, ride_out=True) as pool:
            _all_threads(run, pool.connection, stop, pool.close)
            run.opened = pool.stats().opens
    else:
        _all_threads(run, partial(psycopg.connect, url), stop)


def _all_threads(
    run: Run,
    lend: Callable[[], AbstractContextManager[Connection]],
    stop: threading.Event,
    close: Callable[[], object] | None = None,
) -> None:
    with ThreadPoolExecutor(CALLERS) as executor:
        callers = [executor.submit(_thread, run, lend, number, stop) for number in range(CALLERS)]
        stop.wait()
        if close:
            close()  # callers who still wait for a connection need not
    for caller in callers:
        caller.result()


def _thread(
    run: Run, lend: Callable[[], AbstractContextManager[Connection]], number: int, stop: threading.Event
) -> None:
    met = run.callers[number]
    while not stop.is_set():
        asked, backend, error = monotonic(), 0, None
        try:
            with lend() as conn:
                backend = conn.info.backend_pid
                with conn.transaction():
                    order = conn.execute(INSERT, (number, len(met))).fetchone()
                    conn.execute(SELECT, order).fetchone()
        except millpond.PoolClosed:
            return
        except (psycopg.Error, millpond.PoolError) as failure:
            error = _brief(failure)
        met.append(Attempt(asked, monotonic(), backend, error))
        time.sleep(REST if error else THINK)
        while run.resting:
            time.sleep(THINK)


async def _in_tasks(run: Run, url: str, stop: threading.Event) -> None:
    if run.pooled:
        pool = millpond.AsyncPool[AsyncConnection].from_url(url, name=run.title, max_size=CONNECTIONS, ride_out=True)
        async with pool:
            await _all_tasks(run, pool.connection, stop, pool.close)
            run.opened = pool.stats().opens
    else:
        await _all_tasks(run, partial(_connect, url), stop)


async def _all_tasks(
    run: Run,
    lend: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
    stop: threading.Event,
    close: Callable[[], Awaitable[object]] | None = None,
) -> None:
    async with asyncio.TaskGroup() as callers:
        for number in range(CALLERS):
            callers.create_task(_task(run, lend, number, stop))
        await asyncio.to_thread(stop.wait)
        if close:
            await close()


async def _task(
    run: Run, lend: Callable[[], AbstractAsyncContextManager[AsyncConnection]], number: int, stop: threading.Event
) -> None:
    met = run.callers[number]
    while not stop.is_set():
        asked, backend, error = monotonic(), 0, None
        try:
            async with lend() as conn:
                backend = conn.info.backend_pid
                async with conn.transaction():
                    order = await (await conn.execute(INSERT, (number, len(met)))).fetchone()
                    await (await conn.execute(SELECT, order)).fetchone()
        except millpond.PoolClosed:
            return
        except (psycopg.Error, millpond.PoolError) as failure:
            error = _brief(failure)
        met.append(Attempt(asked, monotonic(), backend, error))
        await asyncio.sleep(REST if error else THINK)
        while run.resting:  # noqa: ASYNC110 - the order comes from another thread
            await asyncio.sleep(THINK)


@asynccontextmanager
async def _connect(url: str) -> AsyncIterator[AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(url) as conn:
        yield conn


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
