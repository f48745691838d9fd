"""One thread looks after all pools for threads, and no pool keeps it from looking after the others."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

from millpond import Budget, ConnectFailed, KeyedPool, Pool, PoolClosed, _maintenance, events
from millpond import pool as pool_of_threads
from millpond._core import core
from millpond._core.entry import Reason
from millpond.testing import FakeConnection, FakeConnector

from .children import forked
from .patience import until, without_maintenance
from .places import Places, Stop, finalisers_cut


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
            until(lambda: _maintenance.attends(pool._bell))
        until(lambda: not _maintenance._here().present)


def test_a_pool_that_is_dropped_does_not_keep_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    without_maintenance(monkeypatch)
    pool = Pool(FakeConnector())
    with pool.connection(30):
        pass
    core = pool._core
    until(lambda: core.quiet_until is not None)  # it is not due for minutes
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


class Slow(ConnectionRefusedError):
    """An error that does not come to an end when another thread asks what it says."""

    stuck = Stuck()

    def __str__(self) -> str:
        if threading.current_thread() is not threading.main_thread():
            self.stuck.wait()
        return "refused"


@pytest.mark.parametrize("way", ["listening", "logging", "saying"])
def test_who_is_told_of_one_pool_and_never_comes_back_holds_up_no_other(way: str) -> None:
    class Down(FakeConnector):
        def open(self, timeout: float) -> FakeConnection:
            raise Slow if way == "saying" else ConnectionRefusedError

    stuck = Slow.stuck = Stuck()
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


@pytest.mark.stumbles
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


def test_what_nobody_can_be_hired_to_report_is_reported_when_somebody_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never in the thread that has other pools to look after."""
    start, refused = threading.Thread.start, list[str]()

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith("reporter") and len(refused) < 3:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    told: list[str] = []
    with Pool(FakeConnector(), leak_after=0.05) as pool:
        pool.listen(told_where(told))
        with pool.connection(30):
            until(lambda: told)
    assert len(refused) == 3
    assert told == ["millpond-pool-reporter"]


def told_where(told: list[str]) -> events.Listener:
    def listen(event: events.Event) -> None:
        if isinstance(event, events.LeakSuspected):
            told.append(threading.current_thread().name)

    return listen


def test_an_error_that_cannot_say_what_it_says_is_told_to_those_who_listen_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Mute(ConnectionRefusedError):
        def __str__(self) -> str:
            if threading.current_thread() is threading.main_thread():
                return "refused"
            raise ValueError("mute")

    class Down(FakeConnector):
        def open(self, timeout: float) -> FakeConnection:
            raise Mute

    with Pool(Down()) as pool:
        with pytest.raises(ConnectFailed):
            pool.acquire(30)
        until(lambda: "could not be told" in caplog.text)
        until(lambda: pool._reporters._resting)
    assert "mute" in caplog.text


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


@pytest.mark.filterwarnings("ignore:pool 'dropped'.* was never closed:ResourceWarning")
def test_a_pool_that_dies_in_its_turn_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is freed then is freed by another thread: to free it may take long, and a listener hears of it."""
    freeing, over = list[str](), threading.Event()

    class Slow(FakeConnector):
        def abandon(self, conn: FakeConnection) -> None:
            freeing.append(threading.current_thread().name)
            over.wait(30)

    manage = Pool._manage
    turning, dropped = threading.Event(), threading.Event()

    def manage_slowly(pool: Pool[Any]) -> float | None:
        if pool.name == "dropped" and freeing == []:
            turning.set()
            dropped.wait(30)
        return manage(pool)

    pool = Pool(Slow(), name="dropped")
    with pool.connection(30):
        pass
    crew = pool._openers
    until(lambda: crew._resting)  # nobody else has it in hand
    monkeypatch.setattr(Pool, "_manage", manage_slowly)
    pool._bell.ring()
    assert turning.wait(30)
    del pool
    dropped.set()
    until(lambda: freeing)
    try:
        with Pool(FakeConnector()) as other, other.connection(5):
            pass
    finally:
        over.set()
    assert "millpond-maintenance" not in freeing


def test_a_thread_that_cannot_be_had_takes_nothing_from_the_one_that_is_there() -> None:
    """Of two callers who need one at once each may bring one, and for the second the system has none."""
    here = _maintenance._here()
    with Pool(FakeConnector(), max_idle=0.1) as pool:
        with pool.connection(30):
            pass
        here.calls.put(pool._bell)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda thread: _raise(RuntimeError("can't start new thread")))
            _maintenance._hire(here)
        until(lambda: pool.stats().closes == {"max_idle": 1})


def test_nobody_is_refused_for_a_thread_that_was_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    with Pool(FakeConnector()) as pool:
        manage = pool._manage
        monkeypatch.setattr(pool, "_manage", lambda: manage() if held.is_set() else 0.05)
        caller = threading.Thread(target=lambda: pool.release(pool.acquire(30)))
        caller.start()
        until(lambda: pool.stats().waiting and _maintenance.attends(pool._bell))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda thread: _raise(RuntimeError("can't start new thread")))
            _maintenance._hire(_maintenance._here())
        assert pool.stats().waiting == 1
        held.set()
        caller.join()
        assert pool.stats().refusals == 0


def _raise(error: Exception) -> None:
    raise error


def test_a_pool_that_is_used_in_the_very_moment_in_which_it_had_nothing_to_keep_is_looked_after() -> None:
    with Pool(FakeConnector(), max_idle=0.1) as pool:
        with pool.connection(30):
            pass
        manage, used = pool._manage, list[bool]()

        def manage_and_be_used() -> float | None:
            pause = manage()
            if pause is None and not used:
                used.append(pool._bell.attended)
                caller = threading.Thread(target=lambda: pool.release(pool.acquire(30)))
                caller.start()
                caller.join()
            return pause

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool, "_manage", manage_and_be_used)
            # By the core: to look by the pool would see to it.
            until(lambda: pool._core.closes[Reason.MAX_IDLE] == 2, timeout=4.0)
        assert used == [True]


def counting(turns: list[float], manage: Callable[[], float | None]) -> Callable[[], float | None]:
    def counted() -> float | None:
        turns.append(time.monotonic())
        return manage()

    return counted


def test_nothing_spins_while_whoever_opens_is_held_up_by_a_listener() -> None:
    class Down(FakeConnector):
        def open(self, timeout: float) -> FakeConnection:
            raise ConnectionRefusedError

    held, over = threading.Semaphore(0), threading.Event()

    def listen(event: events.Event) -> None:
        if isinstance(event, events.OpenFailed):
            held.release()
            over.wait(30)

    with Pool(Down(), ride_out=True, max_size=2, max_opening=1, timeout=60.0) as pool:
        pool.listen(listen)

        def wait() -> None:
            with pytest.raises(PoolClosed):
                pool.acquire()

        caller = threading.Thread(target=wait)
        caller.start()
        for _ in range(2):
            assert held.acquire(timeout=30)
        turns: list[float] = []
        manage = pool._manage
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool, "_manage", counting(turns, manage))
            time.sleep(1.0)
        over.set()
        pool.close()
        caller.join()
    assert 1 <= len(turns) <= 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_waits_is_served_though_whoever_looked_after_the_pool_is_gone_without_a_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_of_threads, "PATIENCE", 0.2)
    here = _maintenance._here()

    def end() -> None:
        raise KeyboardInterrupt

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with Pool(FakeConnector(), max_size=1) as pool, Pool(FakeConnector()) as other:
        conn, served = pool.acquire(30), list[FakeConnection]()
        with other.connection(30):
            pass
        caller = threading.Thread(target=lambda: served.append(pool.acquire(60)))
        caller.start()
        until(lambda: pool.stats().waiting and _maintenance.attends(pool._bell))
        with monkeypatch.context() as patch:
            patch.setattr(_maintenance._Maintenance, "hire", refuse)
            patch.setattr(other, "_manage", end)
            other._bell.ring()
            until(lambda: not here.present)
            pool._core.condemn(next(iter(pool._core.entries)), Reason.DISCARDED, time.monotonic())
            pool.release(conn)
        # Nobody but the one who waits comes to this pool any more.
        caller.join()
        pool.release(served[0])


def test_a_loan_of_a_pool_to_which_nothing_had_happened_for_long_is_looked_after() -> None:
    told: list[events.Event] = []
    with Pool(FakeConnector(), leak_after=0.5) as pool:
        pool.listen(told.append)
        with pool.connection(30):
            pass
        until(lambda: pool._core.quiet_until is not None)
        with pool.connection(30):
            until(lambda: any(type(event) is events.LeakSuspected for event in told), timeout=10.0)


@pytest.fixture
def soon_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "QUIET_AFTER", 0.0)
    monkeypatch.setattr(core, "BEAT", 0.02)


@pytest.mark.usefixtures("soon_quiet")
def test_a_caller_who_comes_late_and_first_is_looked_after() -> None:
    """Nobody tells of a pool that was dropped: the pool of the one who waits for what it had asks again and again."""
    budget = Budget(1)
    rich, poor = Pool(FakeConnector(), budget=budget), Pool(FakeConnector(), budget=budget)
    rich._droppable = True
    lost = [rich.acquire(30)]
    poor._core._ticked -= 5.0  # made a while ago
    caller = threading.Thread(target=lambda: poor.release(poor.acquire(30)))
    caller.start()
    until(lambda: poor._core.line)
    before = poor._core._ticked
    until(lambda: poor._core._ticked != before, timeout=10.0)  # its turns go on
    del rich, lost[0]
    gc.collect()
    caller.join(10)
    assert not caller.is_alive()
    poor.close()


@pytest.mark.usefixtures("soon_quiet")
@pytest.mark.parametrize("change", ["acquire", "refresh", "resize", "close"])
def test_what_is_cut_short_in_a_pool_that_needed_no_ticks_is_gone_on_with(change: str) -> None:
    def changed(pool: Pool[FakeConnection]) -> Callable[[], bool]:
        if change == "acquire":
            return lambda: pool.stats().lent == 1 or pool._core.quiet_until is not None
        if change == "refresh":
            return lambda: all(entry.generation == pool._core.generation for entry in list(pool._core.entries))
        if change == "resize":
            return lambda: len(pool._core.idle) >= pool.settings.min_size
        return lambda: not (pool._core.closing and pool._core.entries)

    for number in range(1, 1000):
        pool, places, conn = Pool(FakeConnector(), max_size=4, min_size=1, name=change), Places(number, strike), None
        turns: list[float] = []
        with pool.connection(30):
            pass
        until(lambda: pool._core.quiet_until is not None)  # noqa: B023
        until(lambda: pool._bell.attended and not pool._bell._rung)  # noqa: B023
        vars(pool)["_manage"] = counting(turns, pool._manage)
        with finalisers_cut(Stop), suppress(Stop), places:
            if change == "acquire":
                conn = pool.acquire(30)
            elif change == "resize":
                pool.resize(min_size=3)
            elif change == "refresh":
                pool.refresh()
            else:
                pool.close()
        seen = changed(pool)
        try:
            # Without looking by the pool, which would see to it.
            until(lambda: (turns or pool._core.quiet_until is not None) and seen(), timeout=5.0)  # noqa: B023
        except AssertionError as error:
            error.add_note(f"struck at {places.where}")
            raise
        finally:
            if conn is not None:
                pool.release(conn)
            pool.close()
        if not places.reached:
            break
    assert number > 5


def strike() -> None:
    raise Stop


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_has_a_thread_of_its_own() -> None:
    def child() -> None:
        assert not _maintenance.attends(pool._bell)
        with pool.connection(30):
            pass
        until(lambda: pool.stats().closes == {"max_idle": 1})

    with Pool(FakeConnector(), max_idle=0.1) as pool:
        with pool.connection(30):
            until(lambda: _maintenance.attends(pool._bell))
        with forked(child) as status:
            assert status() == 0


def struck_at_line(number: int, work: Callable[[], object]) -> bool:
    """Do something that an exception strikes at the line with that number, also of the standard library; tell whether
    it came so far."""
    passed = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal passed
        if event == "line":
            passed += 1
            if passed == number:
                raise Stop
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Stop:
        return True
    finally:
        sys.settrace(before)
    return False


def test_exceptions_that_strike_whoever_asks_do_not_bring_a_second_thread() -> None:
    with Pool(FakeConnector()) as pool:
        with pool.connection(30):
            pass
        until(lambda: _maintenance.attends(pool._bell))
        thread = _maintenance._here().thread
        number = 1
        while struck_at_line(number, lambda: _maintenance.attends(pool._bell)):
            number += 1
        assert number > 3
        assert _maintenance._here().thread is thread
        assert _maintenance.attends(pool._bell)


def test_two_threads_that_need_the_first_at_once_have_the_same_one() -> None:
    gate, found = threading.Barrier(8), list[Any]()

    def find() -> None:
        gate.wait()
        found.append(_maintenance._here())

    held = dict(_maintenance._of_process)
    for _ in range(50):
        _maintenance._of_process.clear()
        threads = [threading.Thread(target=find) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, found))) == 1
        found.clear()
    _maintenance._of_process.update(held)
