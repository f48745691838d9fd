"""A server that dies is known to be dead at once, and one that is back serves at once."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from benchmarks import failed_open, recovery

from millpond import AsyncPool, ConnectFailed, Pool, PoolTimeout, _watcher
from millpond.connectors.asyncpg import Asyncpg
from millpond.connectors.psycopg import AsyncPsycopg, Psycopg
from millpond.testing import Postgres, Proxy, Valkey

from ..httpx.conftest import LIBRARIES, Caller
from ..httpx.server import Server
from .patience import until, until_seen

DRIVERS = ["psycopg", "asyncpg"]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of this file's own."""
    with Postgres() as server:
        yield server


@pytest.fixture
def mortal(server: Postgres) -> Postgres:
    """It, alive, whatever the test before has left of it."""
    server.start()
    return server


def async_connector(driver: str, url: str) -> Any:
    return AsyncPsycopg(url) if driver == "psycopg" else Asyncpg(url)


@pytest.mark.usefixtures("without_ticks")
def test_six_idle_connections_are_known_dead_at_once_and_a_thread_is_served(mortal: Postgres) -> None:
    recovery.recovery_of_threads(mortal)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.usefixtures("without_ticks")
def test_six_idle_connections_are_known_dead_at_once_and_a_task_is_served(mortal: Postgres, driver: str) -> None:
    recovery.recovery_of_tasks(mortal, driver)


@pytest.mark.usefixtures("without_ticks")
def test_a_lone_idle_connection_of_asyncpg_is_known_dead(mortal: Postgres) -> None:
    """asyncpg sees the hang-up too, and may have closed the descriptor before the watcher has looked at it."""

    async def main() -> None:
        async with AsyncPool[Any](Asyncpg(mortal.url), max_size=1) as pool:
            for _ in range(15):
                conn = await pool.acquire()
                pid = await conn.fetchval("select pg_backend_pid()")
                pool.release(conn)
                await asyncio.to_thread(mortal.execute, f"select pg_terminate_backend({pid}, 1000)")
                await until_seen(conn.is_closed)
                await until_seen(lambda: pool.stats().idle == 0)

    asyncio.run(main())


def forestall_watcher(pool: AsyncPool[Any]) -> None:
    """Have the loop be first: it reads idle connections, too, and epoll forgets a descriptor that is closed."""
    for entry in pool._core.entries:
        assert isinstance(entry.descriptor, _watcher.Descriptor)
        assert _watcher._watcher is not None
        _watcher._watcher.epoll.unregister(entry.descriptor.number)


def test_a_connection_of_redis_that_its_loop_finds_dead_before_the_watcher_is_known_dead(valkey: Valkey) -> None:
    async def main() -> None:
        with Proxy(valkey.host, valkey.port) as proxy:
            async with AsyncPool[Any].from_url(proxy.url_for(valkey.url), max_size=1) as pool:
                for fault in (proxy.reset, proxy.reset):
                    async with pool.connection() as conn:
                        await conn.send_command("PING")
                        await conn.read_response()
                    forestall_watcher(pool)
                    await asyncio.to_thread(fault)
                    await until_seen(lambda: pool.stats().size == 0)
                async with pool.connection() as conn:
                    await conn.disconnect()  # by redis-py itself, which connects again
                    await conn.send_command("PING")
                    await conn.read_response()
                assert pool.stats().closes == {"hung up": 2}

    asyncio.run(main())


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_connection_of_httpx_that_its_loop_finds_dead_before_the_watcher_is_known_dead(library: str) -> None:
    async def main(server: Server) -> None:
        caller = Caller("asyncio", library)
        with Proxy("127.0.0.1", server.port) as proxy:
            await caller.say(f"http://127.0.0.1:{proxy.port}/say/word")
            forestall_watcher(caller.pool)
            pool = caller.pool
            await asyncio.to_thread(proxy.reset)
            await until_seen(lambda: pool.stats().size == 0)
            await caller.close()

    with Server() as server:
        asyncio.run(main(server))


def test_nobody_is_lent_a_dead_connection_after_every_backend_was_terminated(mortal: Postgres) -> None:
    """Callers all the time; each backend dies in between loans or in one, and no caller meets that death twice."""
    over = threading.Event()
    strokes: list[tuple[int, float, float]] = []
    """How many sessions each ended, since when somebody may have had one of them, and when it was over."""

    def call() -> list[float]:
        failures = []
        while not over.is_set():
            lent = math.inf
            try:
                with pool.connection() as conn:
                    lent = time.monotonic()
                    conn.execute("select 1")
            except psycopg.OperationalError:
                failures.append(lent)
        return failures

    # It rides out that a backend is terminated while it is still being opened.
    with Pool(Psycopg(mortal.url), max_size=6, ride_out=True) as pool, ThreadPoolExecutor(8) as executor:
        callers = [executor.submit(call) for _ in range(8)]
        try:
            for _ in range(3):
                borrows = pool.stats().borrows
                until(lambda borrows=borrows: pool.stats().borrows > borrows + 200)  # type: ignore[misc]
                # One that is being opened may have no backend yet that could be ended.
                until(lambda: (stats := pool.stats()).size == 6 and not stats.opening + stats.closing)
                sessions = {entry.serial for entry in list(pool._core.entries)}
                began = min(entry.since for entry in list(pool._core.entries))
                mortal.terminate_backends()
                # It strikes one after the other: who borrows meanwhile may meet it twice.
                until(lambda sessions=sessions: not sessions & {e.serial for e in list(pool._core.entries)})  # type: ignore[misc]
                strokes.append((len(sessions), began, time.monotonic()))
            borrows = pool.stats().borrows
            until(lambda: pool.stats().borrows > borrows + 200)
        finally:
            over.set()
    failures = [lent for caller in callers for lent in caller.result()]
    # A backend may die under its borrower, once, and nobody is lent one that is dead.
    assert len(failures) <= sum(sessions for sessions, _, _ in strokes)
    assert all(any(begun <= lent <= over for _, begun, over in strokes) for lent in failures)


@pytest.mark.parametrize("ride_out", [False, True])
def test_callers_who_failed_during_the_outage_do_not_hold_up_the_first_after_it(
    mortal: Postgres, ride_out: bool
) -> None:
    """The prober has backed off by then; a caller who comes brings the next attempt about."""
    with Pool(Psycopg(mortal.url), max_size=6, ride_out=ride_out) as pool:
        with pool.connection() as conn:
            conn.execute("select 1")
        mortal.kill()
        until(lambda: pool.stats().idle == 0)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline or pool.stats().open_failures < 4:
            began = pool.stats().outage
            with pytest.raises((ConnectFailed, TimeoutError)) as failure:
                pool.acquire(timeout=0.05)
            assert isinstance(failure.value.__cause__, psycopg.OperationalError) or not began
        outage = pool._core.outage
        assert outage is not None
        outage.next_try = time.monotonic() + 3600  # as far as the prober had backed off
        mortal.start()

        def served() -> bool:
            # An attempt that was under way when the caller came may have begun too early.
            with suppress(ConnectFailed, PoolTimeout), pool.connection(5) as conn:
                conn.execute("select 1")
                return True
            return False

        until(served)
        assert pool._step(pool._core.audit) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_tasks_who_ride_an_outage_out_are_all_served_after_it(mortal: Postgres, driver: str) -> None:
    async def main() -> None:
        connector = async_connector(driver, mortal.url)
        async with AsyncPool[Any](connector, max_size=4, ride_out=True, timeout=60) as pool:
            async with pool.connection() as conn:
                await conn.execute("select 1")
            await asyncio.to_thread(mortal.kill)

            async def call() -> None:
                async with pool.connection() as conn:
                    await conn.execute("select 1")

            callers = [asyncio.create_task(call()) for _ in range(20)]
            await until_seen(lambda: pool.stats().open_failures > 1, pause=0.01)
            await asyncio.to_thread(mortal.start)
            for caller in callers:
                await caller
            assert pool._step(pool._core.audit) == []

    asyncio.run(main())


@pytest.mark.parametrize("shell", ["threads", "asyncio", "trio"])
@pytest.mark.usefixtures("without_ticks")
def test_a_failed_open_is_known_to_all_who_wait_at_once_with_its_cause(shell: str) -> None:
    delay = failed_open.delay_of_threads() if shell == "threads" else failed_open.delay_of_tasks(shell)
    assert delay < 10  # and not their timeout


def test_a_refused_connection_is_known_to_those_who_wait_with_the_drivers_own_error(mortal: Postgres) -> None:
    """The same with a real server that is down: the driver's error is the cause."""
    with Pool(Psycopg(mortal.url), max_size=2) as pool:
        mortal.kill()
        try:
            with pytest.raises(ConnectFailed, match="refused") as failure:
                pool.acquire(timeout=5)
            assert isinstance(failure.value.__cause__, psycopg.OperationalError)
            assert failure.value.stats is not None
        finally:
            mortal.start()
