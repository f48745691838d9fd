"""A caller cancelled at any await loses no slot: every one is enumerated, and the clean-up too, in both loops."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any

import anyio
import pytest
import trio

from millpond import AsyncPool, ConnectFailed, PoolClosed, PoolError, PoolTimeout
from millpond.testing import AsyncFakeConnector, FakeConnection, Postgres, Valkey

from .drivers import DRIVERS, Servers, echo_server
from .patience import LOOPS, Loop, assert_whole_async, run, until_seen

FakePool = AsyncPool[FakeConnection]
Loan = Callable[[FakePool], Coroutine[Any, Any, None]]
Attempt = tuple[Coroutine[Any, Any, None], Callable[[], Awaitable[None]]]
"""What is cancelled, and what looks at the pool afterwards."""

# How a coroutine is cut: at its k-th suspension, or when it goes on after that, what it waited for having come; the
# second time at the next suspension, in its cleanup.
WAYS = [("before", 1), ("after", 1), ("before", 2), ("after", 2)]


class Cut:
    """Runs a coroutine in the present asyncio task, which is cancelled at the numbered suspensions."""

    def __init__(self, work: Coroutine[Any, Any, None], when: str, suspensions: Iterable[int]) -> None:
        self._work = work
        self._when = when
        self._suspensions = set(suspensions)
        self.seen = 0

    def __await__(self) -> Generator[Any, Any, None]:
        task = asyncio.current_task()
        assert task is not None
        resume: Callable[[], Any] = lambda: self._work.send(None)  # noqa: E731
        while True:
            try:
                waits_for = resume()
            except StopIteration:
                return
            self.seen += 1
            struck = self.seen in self._suspensions
            if struck and self._when == "before":
                # As Task.cancel() does to a task that waits: its future is cancelled, if it still can be.
                task.cancel()
            try:
                yield waits_for
                if struck and self._when == "after":
                    raise asyncio.CancelledError
            except BaseException as error:
                thrown = error
                resume = lambda: self._work.throw(thrown)  # noqa: B023, E731
            else:
                resume = lambda: self._work.send(None)  # noqa: E731


class CutInstrument(trio.abc.Instrument):
    """Cancels a scope at the numbered suspensions of a trio task."""

    def __init__(self, when: str, suspension: int, scope: trio.CancelScope) -> None:
        self.task: trio.lowlevel.Task | None = None
        self._when = when
        self._suspension = suspension
        self._scope = scope
        self.seen = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.seen += 1
            if self._when == "before" and self.seen == self._suspension:
                self._scope.cancel()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        # What it waited for has come, and it has not gone on yet.
        if task is self.task and self._when == "after" and self.seen == self._suspension:
            self._scope.cancel()


async def cut_at(work: Coroutine[Any, Any, None], when: str, times: int, suspension: int) -> int:
    """Run it, cut it, and return how many suspensions were seen. What it raises but the cancellation goes on."""
    if asyncio_runs():
        cut = Cut(work, when, range(suspension, suspension + times))

        async def drive() -> None:
            await cut

        task = asyncio.create_task(drive())
        try:
            await task
        except asyncio.CancelledError:
            pass
        return cut.seen
    # In trio a cancelled scope cancels again at every later suspension.
    with trio.CancelScope() as scope:
        instrument = CutInstrument(when, suspension, scope)
        instrument.task = trio.lowlevel.current_task()
        trio.lowlevel.add_instrument(instrument)
        try:
            await work
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return instrument.seen


def asyncio_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def every_cut(make: Callable[[], Awaitable[Attempt]], when: str, times: int) -> int:
    """Cut one attempt at its first suspension, the next at its second, and so on until one ends uncut; count them."""
    suspension = 1
    while True:
        work, look_over = await make()
        seen = await cut_at(work, when, times, suspension)
        await look_over()
        if seen < suspension:
            return suspension - 1
        suspension += 1
        assert suspension < 200


async def step() -> None:
    await anyio.lowlevel.checkpoint()


# What a caller does


async def by_hand(pool: FakePool) -> None:
    conn = await pool.acquire()
    try:
        with conn.use():
            await step()
    finally:
        pool.release(conn)


async def in_a_block(pool: FakePool) -> None:
    async with pool.connection() as conn:
        with conn.use():
            await step()
            await step()


async def dirtying(pool: FakePool) -> None:
    async with pool.connection() as conn:
        conn.dirty = True
        await step()


async def breaking(pool: FakePool) -> None:
    async with pool.connection() as conn:
        conn.broken = True
        await step()


async def twice(pool: FakePool) -> None:
    await in_a_block(pool)
    await in_a_block(pool)


async def generating(pool: FakePool) -> None:
    async def rows() -> Any:
        async with pool.connection() as conn:
            await step()
            yield conn
            await step()
            yield conn

    stream = rows()
    try:
        async for _ in stream:
            await step()
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()


LOANS: tuple[Loan, ...] = (by_hand, in_a_block, dirtying, breaking, twice, generating)


def connector_of(pool: FakePool) -> AsyncFakeConnector:
    assert isinstance(pool._connector, AsyncFakeConnector)
    return pool._connector


async def look_over(pool: FakePool, size: int) -> None:
    """Everything can be lent, and then everything is closed."""
    await until_seen(lambda: not pool.stats().lent and not pool.stats().waiting)
    await assert_whole_async(pool, size)
    connector = connector_of(pool)
    assert len(connector.live) == size
    await pool.close(timeout=3)
    assert connector.live == []
    assert connector.mistakes == []


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("when", "times"), WAYS)
@pytest.mark.parametrize("loan", LOANS, ids=lambda loan: loan.__name__)
def test_a_caller_cancelled_anywhere_with_an_idle_connection(loop: Loop, when: str, times: int, loan: Loan) -> None:
    async def make() -> Attempt:
        pool = FakePool(AsyncFakeConnector(), max_size=1)
        await by_hand(pool)
        return loan(pool), lambda: look_over(pool, 1)

    assert run(loop, lambda: every_cut(make, when, times)) >= 1


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("when", "times"), WAYS)
@pytest.mark.parametrize("loan", LOANS, ids=lambda loan: loan.__name__)
def test_a_caller_cancelled_anywhere_when_a_connection_has_to_be_opened(
    loop: Loop, when: str, times: int, loan: Loan
) -> None:
    async def make() -> Attempt:
        pool = FakePool(AsyncFakeConnector(), max_size=1)
        return loan(pool), lambda: look_over(pool, 1)

    assert run(loop, lambda: every_cut(make, when, times)) >= 2


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("when", "times"), WAYS)
@pytest.mark.parametrize("loan", LOANS, ids=lambda loan: loan.__name__)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_caller_cancelled_anywhere_in_line(loop: Loop, when: str, times: int, loan: Loan, turns: int) -> None:
    """The connection comes back to the line one, two or three turns of the loop after the caller came."""

    async def main() -> None:
        async with anyio.create_task_group() as group:

            async def make() -> Attempt:
                pool = FakePool(AsyncFakeConnector(), max_size=1)
                conn = await pool.acquire()

                async def give_back() -> None:
                    await until_seen(lambda: pool.stats().waiting or pool.stats().cancelled)
                    for _ in range(turns):
                        await step()
                    pool.release(conn)

                group.start_soon(give_back)
                return loan(pool), lambda: look_over(pool, 1)

            assert await every_cut(make, when, times) >= 2

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("when", "times"), WAYS)
@pytest.mark.parametrize("ride_out", [False, True])
def test_a_caller_cancelled_anywhere_while_the_server_is_down(
    loop: Loop, when: str, times: int, ride_out: bool
) -> None:
    async def make() -> Attempt:
        connector = AsyncFakeConnector()
        up = False
        connector.fail_until(lambda: up)
        pool = FakePool(connector, max_size=2, ride_out=ride_out, timeout=0.02)

        async def recover() -> None:
            nonlocal up
            up = True

            async def served() -> None:
                while True:
                    try:
                        async with pool.connection(timeout=3):
                            return
                    except ConnectFailed:
                        await anyio.sleep(0.005)

            await served()
            await look_over(pool, 2)

        async def borrow() -> None:
            try:
                await in_a_block(pool)
            except (ConnectFailed, PoolTimeout):
                await step()

        return borrow(), recover

    assert run(loop, lambda: every_cut(make, when, times)) >= 2


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("when", "times"), WAYS)
@pytest.mark.parametrize("lent", [0, 1])
def test_a_close_cancelled_anywhere_closes_all_the_same(loop: Loop, when: str, times: int, lent: int) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as group:

            async def make() -> Attempt:
                connector = AsyncFakeConnector()
                pool = FakePool(connector, max_size=3)
                conns = [await pool.acquire() for _ in range(3)]
                for conn in conns[lent:]:
                    pool.release(conn)

                async def give_back() -> None:
                    await until_seen(lambda: pool.stats().closed)
                    await step()
                    for conn in conns[:lent]:
                        pool.release(conn)

                group.start_soon(give_back)

                async def closed() -> None:
                    await pool.close()
                    await until_seen(lambda: not connector.live)
                    assert pool.stats().size == 0
                    assert connector.mistakes == []

                return pool.close(), closed

            assert await every_cut(make, when, times) >= 1

    run(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("when", "times"), WAYS)
def test_a_warm_cancelled_anywhere_goes_on_warming(loop: Loop, when: str, times: int) -> None:
    async def make() -> Attempt:
        pool = FakePool(AsyncFakeConnector(), min_size=2, max_size=2)

        async def warmed() -> None:
            await pool.warm(timeout=3)
            await look_over(pool, 2)

        return pool.warm(), warmed

    assert run(loop, lambda: every_cut(make, when, times)) >= 1


@pytest.mark.parametrize("loop", LOOPS)
def test_callers_cancelled_before_their_first_step(loop: Loop) -> None:
    async def main() -> None:
        pool = FakePool(AsyncFakeConnector(), max_size=1)
        for _ in range(5):
            async with anyio.create_task_group() as group:
                group.start_soon(in_a_block, pool)
                group.cancel_scope.cancel()
        await look_over(pool, 1)

    run(loop, main)


def test_a_pool_whose_own_tasks_are_cancelled_goes_on() -> None:
    """A shutdown, or a reaper of stray tasks, cancels every task there is, at whichever turn of the loop."""

    async def main() -> None:
        for turns in range(12):
            pool = FakePool(AsyncFakeConnector(), max_size=2, timeout=1)
            first = asyncio.create_task(pool.acquire())
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.wait([first])
            if not first.cancelled() and first.exception() is None:
                pool.release(first.result())
            await until_seen(lambda pool=pool: not pool.stats().lent)  # type: ignore[misc]
            await assert_whole_async(pool, 2)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await pool.close()
            assert connector_of(pool).live == []

    asyncio.run(main())


def test_who_waits_for_a_pool_to_close_learns_at_once_that_its_last_opener_was_cancelled() -> None:
    class Asleep(AsyncFakeConnector):
        async def open(self, timeout: float) -> FakeConnection:
            await asyncio.sleep(60)
            raise AssertionError("it is cancelled before")

    async def main() -> None:
        pool = FakePool(Asleep(), max_size=1)
        caller = asyncio.create_task(pool.acquire(timeout=60))
        await until_seen(lambda: pool.stats().opening == 1)
        close = asyncio.create_task(pool.close(timeout=30))
        await asyncio.wait([caller], timeout=5)
        (opener,) = [task for task in asyncio.all_tasks() if "_open_all" in repr(task)]
        opener.cancel()
        # The keeper, who would wake it too, does not look the pool over.
        async with asyncio.timeout(20):
            await close
        with pytest.raises(PoolClosed):
            await caller

    asyncio.run(main())


# The same with real connections, whose servers are at work when the caller is cut


@pytest.fixture(scope="module")
def servers(postgres: Postgres, valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with echo_server() as port:
        yield Servers(postgres.url, valkey.url, port, tmp_path_factory.mktemp("drivers"))


@pytest.mark.parametrize(("name", "loop"), [(name, loop) for name, driver in DRIVERS.items() for loop in driver.loops])
@pytest.mark.parametrize(("when", "times"), WAYS)
@pytest.mark.parametrize("new", [False, True], ids=["idle", "new"])
def test_a_caller_cancelled_at_any_await_of_a_real_connection(
    servers: Servers, name: str, loop: Loop, when: str, times: int, new: bool
) -> None:
    driver = DRIVERS[name]
    numbers = itertools.count(18)

    async def main() -> int:
        async with AsyncPool[Any](driver.connector(servers), max_size=2) as pool:

            async def ask(timeout: float = 3) -> None:
                number = next(numbers)
                async with pool.connection(timeout) as conn:
                    assert await driver.ask(conn, number) == number

            async def look() -> None:
                for _ in range(2):
                    await ask()
                await until_seen(lambda: not pool.stats().lent)
                assert pool._step(pool._core.audit) == []

            async def make() -> Attempt:
                if new:
                    pool.refresh()
                return ask(), look

            return await every_cut(make, when, times)

    assert run(loop, main) >= 1 + new


def test_the_enumeration_would_notice_a_slot_that_is_lost() -> None:
    """A caller who forgets to give back when cancelled is found out."""

    async def forgetful(pool: FakePool) -> None:
        conn = await pool.acquire()
        await step()
        pool.release(conn)

    async def make() -> Attempt:
        pool = FakePool(AsyncFakeConnector(), max_size=1, timeout=0.05)

        async def look() -> None:
            try:
                await in_a_block(pool)
            finally:
                await pool.close(0)

        return forgetful(pool), look

    with pytest.raises(PoolError):
        asyncio.run(every_cut(make, "before", 1))
