"""The threads that open and close: they burn no time, and the lack of them is a delay and no more."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from millpond import AsyncPool, ConnectFailed, Pool, _maintenance
from millpond import pool as pool_of_threads
from millpond._core.entry import Entry
from millpond.testing import AsyncFakeConnector, FakeConnection, FakeConnector

from .children import run_program
from .patience import until, until_seen, without_maintenance
from .places import Stop, finalisers_cut


def test_nothing_spins_while_all_workers_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    closing = threading.Semaphore(0)

    class SlowToClose(FakeConnector):
        def close(self, conn: FakeConnection) -> None:
            closing.release()
            gate.wait(60)
            super().close(conn)

    with Pool(SlowToClose(), max_size=8, max_opening=8) as pool:
        for conn in [pool.acquire() for _ in range(8)]:
            pool.release(conn)
        pool.refresh()
        for _ in range(8):
            assert closing.acquire(timeout=30)
        gc.collect()
        turns: list[float] = []
        manage = pool._manage

        def counted() -> float | None:
            turns.append(time.monotonic())
            return manage()

        monkeypatch.setattr(pool, "_manage", counted)
        before = time.process_time()
        time.sleep(0.5)
        spent, count = time.process_time() - before, len(turns)
        gate.set()
        until(lambda: pool.stats().size == 0)
    assert spent < 0.1
    # On a machine that gives it no time, it would burn none.
    assert count < 10


def test_callers_learn_at_once_that_no_thread_can_be_started_and_are_served_when_one_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    failed: list[str] = []

    def fail_sometimes(thread: threading.Thread) -> None:
        if "opener" in thread.name and len(failed) < 2:
            failed.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_sometimes)
    with Pool(FakeConnector(), max_size=1, max_opening=1) as pool:
        with pytest.raises(ConnectFailed) as failure:
            pool.acquire(timeout=5)
        assert isinstance(failure.value.__cause__, RuntimeError)
        assert len(failed) == 1

        def served() -> bool:
            with suppress(ConnectFailed), pool.connection(timeout=5):
                return True
            return False

        until(served)
        assert len(failed) == 2


THREADLESS = """
    import logging, threading
    from millpond import ConnectFailed, Pool

    logging.disable()  # it warns that the pool cannot connect

    def borrow():
        try:
            with pool.connection(timeout=5):
                return "served"
        except ConnectFailed as error:
            return repr(error.__cause__)

    pool = Pool(lambda: complex(0, 1), min_size=0)
    threading.stack_size(1 << 46)  # no address space holds it, so the system gives no thread
    print(borrow())
    threading.stack_size(0)
    while borrow() != "served":
        pass
    pool.close()
"""


def test_a_caller_of_a_pool_without_any_thread_learns_that_none_can_be_started() -> None:
    assert run_program(THREADLESS) == """RuntimeError("can't start new thread")\n"""


CLOSING = """
    import threading, time
    from millpond import Pool

    def manage(pool):
        turns.append(time.monotonic())
        return its_own(pool)

    turns, its_own = [], Pool._manage
    Pool._manage = manage
    pool = Pool(lambda: complex(0, 1))
    with pool.connection():
        pass
    threading.stack_size(1 << 46)
    pool.refresh()
    began = time.monotonic()
    while not (turns and turns[-1] > began + 2):
        time.sleep(0.1)
    print(pool.stats().closing, sum(turn > began for turn in turns) < 12)
    threading.stack_size(0)
    while pool.stats().closing:
        time.sleep(0.01)
    pool.close()
"""


def test_what_nobody_can_be_hired_to_close_is_closed_when_somebody_can() -> None:
    """Meanwhile the pool is looked after twice a second, and says nothing."""
    assert run_program(CLOSING) == "1 True\n"


def test_workers_that_die_while_they_close_have_successors(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than work at a time: each leaves its place, and what it was about to close."""

    class Deadly(FakeConnector):
        def close(self, conn: FakeConnection) -> None:
            super().close(conn)
            raise SystemExit

    deaths: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", deaths.append)
    with Pool(Deadly(), max_size=1) as pool:
        for _ in range(6):
            with pool.connection(timeout=5):
                pass
            pool.refresh()
        until(lambda: pool.stats().size == 0)
    assert len(deaths) == 6


def test_a_caller_is_served_though_what_was_thrown_at_him_struck_the_thread_he_was_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_maintenance(monkeypatch)
    hire = _maintenance._hire
    strikes = [Stop(), Stop()]

    def struck(*args: Any) -> None:
        if strikes:
            raise strikes.pop()
        hire(*args)

    monkeypatch.setattr(_maintenance, "_hire", struck)
    with finalisers_cut(Stop) as swallowed, Pool(FakeConnector(), max_size=1) as pool, pool.connection(timeout=30):
        assert len(swallowed) == 2


def test_maintenance_that_is_struck_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it does in a turn: one that is thrown at its thread may strike the start of another instead."""
    deaths: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", deaths.append)
    manage = Pool._manage
    strikes: list[Stop] = []

    def struck(pool: Pool[Any]) -> float | None:
        if strikes:
            raise strikes.pop()
        return manage(pool)

    monkeypatch.setattr(Pool, "_manage", struck)
    with Pool(FakeConnector(), max_size=1, max_idle=0.1) as pool:
        with pool.connection(timeout=30):
            pass
        for _ in range(3):
            until(lambda: _maintenance.attends(pool._bell))
            strikes.append(Stop())
            pool._bell.ring()
            until(lambda: not strikes)
        until(lambda: pool.stats().closes == {"max_idle": 1})
    assert len(deaths) == 3


def test_a_worker_that_is_struck_before_it_begins_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", deaths.append)
    serve = pool_of_threads._Crew._serve
    strikes = [Stop() for _ in range(5)]

    def struck(crew: Any) -> None:
        if strikes and "opener" in crew._name:
            raise strikes.pop()
        serve(crew)

    monkeypatch.setattr(pool_of_threads._Crew, "_serve", struck)
    with Pool(FakeConnector(), max_size=1, max_opening=2) as pool, pool.connection(timeout=30):
        assert len(deaths) == 5


def test_who_waits_for_workers_to_go_waits_for_one_that_has_not_begun() -> None:
    with Pool(FakeConnector(), max_size=1) as pool:
        crew, hired = pool._tenders, threading.Thread()
        crew._coming[hired] = None
        deadline = time.monotonic() + 0.1
        crew.join(deadline)
        assert time.monotonic() >= deadline
        del crew._coming[hired]
        crew.join(time.monotonic() + 30)


def test_a_task_that_is_struck_before_it_closes_has_a_successor() -> None:
    class Struck(Exception):
        """What a signal handler raises."""

    strikes = [Struck()]

    class Pool(AsyncPool[FakeConnection]):
        def _unwatch(self, entry: Entry[FakeConnection]) -> None:
            if strikes:
                raise strikes.pop()
            super()._unwatch(entry)

    async def close_one() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        async with Pool(AsyncFakeConnector(), max_size=1) as pool:
            async with pool.connection():
                pass
            pool.refresh()
            await until_seen(lambda: pool.stats().size == 0)
        assert not strikes

    asyncio.run(close_one())


SCARCE = """
    import os, resource, socket, time
    from millpond import Pool
    from millpond.connectors.sockets import Socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = Pool(Socket("127.0.0.1", listener.getsockname()[1]), max_size=4, max_opening=1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        hogs = []
        try:
            while True:
                hogs.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        conns = []
        for _ in range(4):
            os.close(hogs.pop())
            conns.append(pool.acquire(30))
            # It may have been lent before its opener has come to the watcher.
            while not pool._openers._resting:
                time.sleep(0.001)
        print(len(set(conns)))
        for hog in hogs:
            os.close(hog)
        for conn in conns:
            pool.release(conn)
        pool.close()
"""


def test_the_last_descriptor_may_be_a_connections_and_then_nothing_watches_it() -> None:
    assert run_program(SCARCE) == "4\n"
