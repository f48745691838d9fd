"""A server dies with idle connections and comes back: when are they known to be dead, and when is a caller served?"""

from __future__ import annotations

import asyncio
import select
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from benchmarks.figure import Figure
from millpond import AsyncPool, Pool
from millpond.connectors.asyncpg import Asyncpg
from millpond.connectors.psycopg import AsyncPsycopg, Psycopg
from millpond.testing import Postgres

__all__ = ["Recovery", "measure", "recovery_of_tasks", "recovery_of_threads"]

CONNECTIONS = 6
ROUNDS = 5
SERVED_GOAL = 0.2
KNOWN_GOAL = 0.010
HANG_UP = getattr(select, "EPOLLRDHUP", 0x2000)


class Recovery(NamedTuple):
    """What came of it, in seconds."""

    known: float
    """From the moment when the death of a connection could be seen to when the pool had struck it off; the longest."""
    served: float
    """From the moment when the server was back to a caller's first answer."""


class Witness:
    """Looks at the descriptors itself, and at what the pool says, in a thread of its own."""

    def __init__(self, descriptors: list[int], struck_off: Callable[[], int]) -> None:
        self._epoll = select.epoll()
        for descriptor in descriptors:
            self._epoll.register(descriptor, HANG_UP | select.EPOLLET)
        self._count = len(descriptors)
        self._struck_off = struck_off
        self.died: dict[int, float] = {}
        self.known: list[float] = []
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        deadline = time.monotonic() + 10
        while len(self.known) < self._count and time.monotonic() < deadline:
            events = self._epoll.poll(0.0002)
            for descriptor, _ in events:
                self.died.setdefault(descriptor, time.monotonic())
            self.known += [time.monotonic()] * (self._struck_off() - len(self.known))

    def delay(self) -> float:
        """Return the longest time between a death and the pool's knowing it."""
        self._thread.join()
        self._epoll.close()
        assert len(self.known) == self._count, "the pool does not know"
        # A descriptor that the pool has closed before the witness looked is no longer in the epoll.
        died = [*self.died.values(), *self.known[len(self.died) :]]
        return max(known - seen for known, seen in zip(self.known, died, strict=True))


def _struck_off(pool: Pool[Any] | AsyncPool[Any]) -> int:
    return sum(pool.stats().closes.values())


def recovery_of_threads(postgres: Postgres) -> Recovery:
    """Kill the server and start it again, under psycopg."""
    connector = Psycopg(postgres.url)
    with Pool(connector, max_size=CONNECTIONS) as pool:
        conns = [pool.acquire() for _ in range(CONNECTIONS)]
        descriptors = [conn.fileno() for conn in conns]
        for conn in conns:
            pool.release(conn)
        assert pool.stats().idle == CONNECTIONS
        witness = Witness(descriptors, lambda: _struck_off(pool))
        postgres.kill()
        known = witness.delay()
        postgres.start()
        start = time.monotonic()
        with pool.connection() as conn:
            conn.execute("select 1")
        return Recovery(known, time.monotonic() - start)


def recovery_of_tasks(postgres: Postgres, driver: str) -> Recovery:
    """Kill the server and start it again, under psycopg or asyncpg."""
    connector: Any = AsyncPsycopg(postgres.url) if driver == "psycopg" else Asyncpg(postgres.url)

    async def main() -> Recovery:
        async with AsyncPool[Any](connector, max_size=CONNECTIONS) as pool:
            conns = [await pool.acquire() for _ in range(CONNECTIONS)]
            descriptors = [connector.descriptor(conn) for conn in conns]
            for conn in conns:
                pool.release(conn)
            assert pool.stats().idle == CONNECTIONS
            witness = Witness(descriptors, lambda: _struck_off(pool))
            await asyncio.to_thread(postgres.kill)
            known = await asyncio.to_thread(witness.delay)
            await asyncio.to_thread(postgres.start)
            start = time.monotonic()
            async with pool.connection() as conn:
                await conn.execute("select 1")
            return Recovery(known, time.monotonic() - start)

    return asyncio.run(main())


def measure() -> Iterator[Figure]:
    """Yield the medians of a few deaths."""
    with Postgres() as postgres:
        for case, recovery in (
            ("threads, psycopg", partial(recovery_of_threads, postgres)),
            ("asyncio, psycopg", partial(recovery_of_tasks, postgres, "psycopg")),
            ("asyncio, asyncpg", partial(recovery_of_tasks, postgres, "asyncpg")),
        ):
            rounds = [recovery() for _ in range(ROUNDS)]
            known = statistics.median(each.known for each in rounds) * 1e3
            served = statistics.median(each.served for each in rounds) * 1e3
            yield Figure("server killed: its 6 idle connections known dead after", case, known, " ms", KNOWN_GOAL * 1e3)
            yield Figure("server back: a caller served after", case, served, " ms", SERVED_GOAL * 1e3, "<", 1)
