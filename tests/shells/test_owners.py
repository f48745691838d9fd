"""Whoever owns connections, threads or permits exists once; and whoever is named as a borrower is the borrower."""

from __future__ import annotations

import _thread
import asyncio
import copy
import dataclasses
import gc
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
import trio

import millpond
from millpond import _watcher
from millpond.testing import AsyncFakeConnector, FakeConnector, Valkey

from .conftest import Shell

pytestmark = pytest.mark.anyio

WAYS: dict[str, Callable[[Any], object]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "pickle, the oldest protocol": lambda thing: pickle.dumps(thing, protocol=0),
    "within a dataclass": lambda thing: dataclasses.asdict(Holder(thing)),
}


@dataclasses.dataclass
class Holder:
    thing: Any


KINDS: dict[str, Callable[[], Any]] = {
    "Pool": lambda: millpond.Pool(FakeConnector()),
    "AsyncPool": lambda: millpond.AsyncPool(AsyncFakeConnector()),
    "KeyedPool": lambda: millpond.KeyedPool(lambda _: FakeConnector()),
    "AsyncKeyedPool": lambda: millpond.AsyncKeyedPool(lambda _: AsyncFakeConnector()),
    "Budget": lambda: millpond.Budget(3),
    "HostBudget": lambda: millpond.HostBudget(f"copied-{os.getpid()}", 3),
}


@pytest.fixture(params=[*KINDS, "lease of Pool", "lease of AsyncPool"])
def thing(request: pytest.FixtureRequest) -> Iterator[Any]:
    of_lease, _, kind = request.param.rpartition(" of ")
    made = KINDS[kind]()
    yield made.connection() if of_lease else made
    end = getattr(made, "close", None)
    if end is not None:
        ended = end()
        if ended is not None:
            asyncio.run(ended)


@pytest.mark.parametrize("how", WAYS)
def test_what_owns_connections_refuses_to_be_copied_and_says_what_to_do(thing: Any, how: str) -> None:
    with pytest.raises(TypeError, match=r"cannot be copied or pickled, for two would .*: (hand|give|make) "):
        WAYS[how](thing)


def test_a_pool_that_somebody_tried_to_copy_goes_on_as_before() -> None:
    with millpond.Pool(FakeConnector(), max_size=2, timeout=5) as pool:
        with pool.connection(), pytest.raises(TypeError, match="cannot be copied"):
            copy.copy(pool)
        gc.collect()
        with pool.connection(), pool.connection():
            assert pool.stats().lent == 2
        assert pool.stats().opens == 2


def borrow(pool: Any) -> None:
    raise AssertionError("it should not have got here")


def test_a_pool_is_not_handed_to_a_spawned_process() -> None:
    with millpond.Pool(FakeConnector()) as pool:
        process = multiprocessing.get_context("spawn").Process(target=borrow, args=(pool,))
        with pytest.raises(TypeError, match="make one in each process"):
            process.start()


class Rebuilt(millpond.Pool[Any]):
    """A pool whose class says how it is made anew elsewhere."""

    def __reduce__(self) -> Any:
        return rebuilt, ()


def rebuilt() -> Rebuilt:
    return Rebuilt(FakeConnector())


def test_a_class_may_say_how_its_pools_are_made_anew() -> None:
    with Rebuilt(FakeConnector()) as pool, pickle.loads(pickle.dumps(pool)) as other:
        assert other is not pool


def test_errors_of_a_pool_can_be_pickled() -> None:
    """They are told across processes (executors, task queues)."""
    with (
        millpond.Pool(FakeConnector(), max_size=1) as pool,
        pool.connection(),
        pytest.raises(millpond.PoolTimeout) as failure,
    ):
        pool.acquire(timeout=0)
    told = pickle.loads(pickle.dumps(failure.value))
    assert (str(told), told.stats, told.oldest) == (str(failure.value), failure.value.stats, failure.value.oldest)


def test_no_type_has_to_be_said_of_what_is_lent() -> None:
    """mypy, which reads this file, asked for an annotation of each."""
    pool = millpond.Pool.from_url("sqlite://")
    tenants = millpond.KeyedPool(lambda _: FakeConnector())
    tenants.close()
    pool.close()


def sockets() -> int:
    return sum(os.readlink(f"/proc/self/fd/{name}").startswith("socket:") for name in open_descriptors())


def open_descriptors() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted in /proc")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("way", ["threads", "asyncio"])
def test_a_pool_that_is_dropped_with_a_loan_out_keeps_nothing(way: str) -> None:
    """The connection goes with its last reference. The watcher held it, its descriptor and the server's session."""

    def borrow_and_drop(url: str) -> None:
        pool: Any = (millpond.Pool if way == "threads" else millpond.AsyncPool).from_url(url)
        conn = pool.acquire() if way == "threads" else asyncio.run(pool.acquire())
        del pool, conn

    with Valkey() as server:
        borrow_and_drop(server.url)
        gc.collect()
        before = sockets()
        for _ in range(10):
            borrow_and_drop(server.url)
        deadline = time.monotonic() + 20
        while gc.collect() >= 0 and (sockets() > before or watched()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sockets() <= before
        assert not watched()


def test_what_is_left_of_a_dropped_pool_keeps_nobody_waiting() -> None:
    """A finaliser in the same cycle may come after the pool's own, and use it: its workers have gone."""
    pool = millpond.Pool(FakeConnector(), timeout=20)
    pool._droppable = True
    with pool.connection():
        pass
    pool.__del__()
    with pytest.raises(millpond.PoolClosed, match="is closed"):
        pool.acquire()


def watched() -> list[object]:
    """Return what the watcher holds of connections whose pool is gone."""
    watcher = _watcher._watcher
    return [] if watcher is None else [record for record in watcher.watched.values() if record.pool() is None]


# The right borrower


def test_a_thread_that_has_ended_is_not_taken_for_the_next_with_its_number() -> None:
    with millpond.Pool(FakeConnector(), max_size=1) as pool:
        leaky = threading.Thread(target=pool.acquire, name="leaky")
        leaky.start()
        leaky.join()
        for innocent in later_with_the_number(leaky.ident):
            (record,) = pool.leases()
            with pytest.raises(millpond.PoolTimeout) as failure:
                pool.acquire(timeout=0)
            innocent.set()
            assert record.owner == "a thread that has ended"
            assert record.now_at is None
            assert "innocent" not in str(failure.value)


def later_with_the_number(ident: int | None) -> Iterator[threading.Event]:
    """Start threads until one has that number, and yield what ends it."""
    for _ in range(1000):
        end = threading.Event()
        thread = threading.Thread(target=end.wait, args=(20,), name="innocent")
        thread.start()
        if thread.ident == ident:
            yield end
        end.set()
        thread.join()
        if thread.ident == ident:
            return
    pytest.skip("the system gives the number to nobody")


def test_a_thread_that_threading_has_not_made_leaves_nothing_there() -> None:
    """`threading.current_thread()` would make a likeness of it, which 3.11 keeps, and takes for alive."""
    with millpond.Pool(FakeConnector(), max_size=1) as pool:
        held = []
        done = threading.Event()

        def leak() -> None:
            held.append(pool.acquire())
            done.set()

        before = threading.enumerate()
        _thread.start_new_thread(leak, ())
        assert done.wait(20)
        assert [each for each in threading.enumerate() if "Dummy" in each.name and each not in before] == []
        assert pool.leases()[0].owner == "a thread that has ended"
        pool.release(held.pop())


@pytest.mark.parametrize("leak_after", [60.0, float("inf")])
def test_a_loan_of_a_living_thread_is_told_by_its_name_and_place(leak_after: float) -> None:
    with millpond.Pool(FakeConnector(), max_size=2, leak_after=leak_after) as pool:
        done = threading.Event()

        def work() -> None:
            with pool.connection():
                conn = pool.acquire()
                done.wait(20)
                pool.release(conn)

        thread = threading.Thread(target=work, name="busy")
        thread.start()
        while pool.stats().lent < 2:
            time.sleep(0.001)
        records = pool.leases()
        done.set()
        thread.join()
        assert [record.owner for record in records] == ["thread 'busy'"] * 2
        assert all(record.now_at and record.now_at.startswith("test_owners.py:") for record in records)


def test_a_loan_that_was_handed_on_is_told_of_its_borrower() -> None:
    with millpond.Pool(FakeConnector(), max_size=1) as pool, ThreadPoolExecutor(1, "first") as first:
        conn = first.submit(pool.acquire).result()
        assert pool.leases()[0].owner == "thread 'first_0'"
        pool.release(conn)
        with pool.connection():
            assert pool.leases()[0].owner == "thread 'MainThread'", "what was noted is of the loan before"


async def in_a_task(function: Callable[[], Any]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(function, name="innocent")


@pytest.mark.parametrize("run", [asyncio.run, trio.run])
def test_a_task_that_has_ended_is_not_taken_for_the_next_with_its_number(run: Callable[..., Any]) -> None:
    async def main() -> str:
        async with millpond.AsyncPool(AsyncFakeConnector(), max_size=1) as pool:
            conns: list[Any] = []
            said: list[str] = []

            async def leak() -> None:
                conns.append(await pool.acquire())

            await in_a_task(leak)
            entry = next(iter(pool._core.entries))

            async def innocent() -> None:
                # The number of the one that has ended is this one's now, or else it is made so.
                entry.owner = pool._core.whoami()
                said.append(pool.leases()[0].owner)

            await in_a_task(innocent)
            pool.release(conns.pop())
            return said[0]

    owner = trio.run(main) if run is trio.run else asyncio.run(main())
    assert owner == "a task that has ended"


async def test_the_borrower_of_a_living_task_is_told(make: Callable[..., Shell]) -> None:
    shell = make(max_size=1)
    conn = await shell.acquire()
    (record,) = shell.pool.leases()
    assert ("thread" if shell.way == "threads" else "task") in record.owner
    assert shell.way == "threads" or record.owner != "a task that has ended"
    shell.pool.release(conn)
