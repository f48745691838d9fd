"""One thread looks after all pools for threads, and no pool keeps it from looking after the others."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from typing import Any

import pytest

from millpond import KeyedPool, Pool, _maintenance, events
from millpond import pool as pool_of_threads
from millpond.testing import FakeConnection, FakeConnector

from .children import forked
from .patience import until, without_maintenance


def ours() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("millpond-"))


@pytest.mark.parametrize("keyed", [False, True], ids=["pools", "keyed"])
def test_hundreds_of_pools_have_one_thread_when_nothing_is_to_be_done(
    keyed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_of_threads, "LINGER", 0.2)
    hosts: KeyedPool[int, FakeConnection] = KeyedPool(lambda _: FakeConnector(), max_size=2, max_idle=60.0)
    pools = [hosts[number] if keyed else Pool(FakeConnector(), max_size=2) for number in range(200)]
    before = threading.active_count()
    for pool in pools:
        held = [pool.acquire(30), pool.acquire(30)]
        for conn in held:
            pool.release(conn)
    until(lambda: not [name for name in ours() if name.endswith(("opener", "tender", "reporter"))])
    assert ours().count("millpond-maintenance") == 1
    assert threading.active_count() <= before + 1
    assert all(pool.stats().idle == 2 for pool in pools)
    for pool in pools:
        pool.close()


def test_the_thread_leaves_when_no_pool_has_anything_to_keep_and_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    without_maintenance(monkeypatch)
    for _ in range(3):
        with Pool(FakeConnector()) as pool:
            with pool.connection(30):
                pass
            assert _maintenance.attends(pool._bell)
        until(lambda: not _maintenance._here().present)


def test_a_pool_that_is_dropped_does_not_keep_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    without_maintenance(monkeypatch)
    pool = Pool(FakeConnector())
    with pool.connection(30):
        pass
    with pytest.warns(ResourceWarning, match="never closed"):
        del pool
        until(lambda: gc.collect() >= 0 and not _maintenance._here().present, pause=0.05)


class Stuck(logging.Handler):
    """A listener, and a handler of log records, that does not come back."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.over = threading.Event()

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.OutageBegan):
            self.wait()

    def emit(self, record: logging.LogRecord) -> None:
        if "cannot connect" in record.getMessage():
            self.wait()

    def wait(self) -> None:
        self.reached.set()
        self.over.wait(60)


@pytest.mark.parametrize("way", ["listening", "logging"])
def test_who_is_told_of_one_pool_and_never_comes_back_holds_up_no_other(way: str) -> None:
    class Down(FakeConnector):
        def open(self, timeout: float) -> FakeConnection:
            raise ConnectionRefusedError

    stuck = Stuck()
    logger = logging.getLogger("millpond")
    if way == "logging":
        logger.addHandler(stuck)
    try:
        with Pool(Down()) as down, Pool(FakeConnector(), max_idle=0.1, min_size=0) as pool:
            if way == "listening":
                down.listen(stuck)
            with pytest.raises(Exception, match="cannot connect"):
                down.acquire(30)
            assert stuck.reached.wait(30)
            with pool.connection(30):
                pass
            until(lambda: pool.stats().closes == {"max_idle": 1})
            stuck.over.set()
    finally:
        stuck.over.set()
        logger.removeHandler(stuck)


def test_a_pool_that_stumbles_holds_up_no_other_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Pool(FakeConnector(), name="clumsy") as clumsy, Pool(FakeConnector(), max_idle=0.1) as pool:
        manage = clumsy._manage
        turns: list[float] = []

        def stumble() -> float | None:
            turns.append(time.monotonic())
            if len(turns) < 3:
                raise ValueError("a stone")
            return manage()

        monkeypatch.setattr(clumsy, "_manage", stumble)
        with pool.connection(30), clumsy.connection(30):
            pass
        until(lambda: pool.stats().closes == {"max_idle": 1})
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        "pool 'clumsy': its maintenance stumbled and goes on"
    ] * 2
    assert "a stone" in caplog.text


def test_what_is_reported_is_reported_though_nobody_can_be_hired_to_do_so(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith("reporter"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    told: list[events.Event] = []
    with Pool(FakeConnector(), leak_after=0.05) as pool:
        pool.listen(told.append)
        with pool.connection(30):
            until(lambda: any(isinstance(event, events.LeakSuspected) for event in told))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_report_is_told_though_the_one_before_ended_whoever_told_it() -> None:
    told: list[str] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.LeakSuspected):
            told.append(event.pool)
            if len(told) == 1:
                raise SystemExit

    with Pool(FakeConnector(), max_size=2, leak_after=0.05) as pool:
        pool.listen(listen)
        with pool.connection(30), pool.connection(30):
            until(lambda: len(told) == 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_has_a_thread_of_its_own() -> None:
    def child() -> None:
        assert not _maintenance.attends(pool._bell)
        with pool.connection(30):
            pass
        assert _maintenance.attends(pool._bell)
        until(lambda: pool.stats().closes == {"max_idle": 1})

    with Pool(FakeConnector(), max_idle=0.1) as pool:
        with pool.connection(30):
            assert _maintenance.attends(pool._bell)
        with forked(child) as status:
            assert status() == 0


def test_two_threads_that_need_the_first_at_once_have_the_same_one() -> None:
    gate, found = threading.Barrier(8), list[Any]()
    held = dict(_maintenance._of_process)
    for _ in range(50):
        _maintenance._of_process.clear()
        threads = [threading.Thread(target=lambda: (gate.wait(), found.append(_maintenance._here()))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, found))) == 1
        found.clear()
    _maintenance._of_process.update(held)
