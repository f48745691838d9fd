"""What a pool tells those who listen: one suite of scenarios for all shells."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import anyio
import pytest

import millpond
from millpond import events
from millpond._sample import SAMPLE
from millpond.testing import FakeConnector

from ..promises.patience import until
from .conftest import Shell, in_thread

pytestmark = pytest.mark.anyio

Make = Callable[..., Shell]
E = TypeVar("E", bound=events.Event)


class Ear:
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.heard: list[events.Event] = []

    def __call__(self, event: events.Event) -> None:
        self.heard.append(event)

    @property
    def story(self) -> list[str]:
        return [type(event).__name__ for event in self.heard]

    async def hears(self, kind: type[E], times: int = 1) -> E:
        """Wait until a fact of a kind has been told so many times, and return the first."""
        with anyio.fail_after(30):
            while True:
                found = [event for event in list(self.heard) if isinstance(event, kind)]
                if len(found) >= times:
                    return found[0]
                await anyio.sleep(0.001)


@pytest.fixture
def ear() -> Ear:
    return Ear()


async def test_the_life_of_a_connection_is_told_from_its_opening_to_its_end(make: Make, ear: Ear) -> None:
    shell = make(name="orders", max_size=1, open_time=0.05)
    shell.pool.listen(ear)
    async with shell.lent():
        await anyio.sleep(0.05)
        opened = await ear.hears(events.ConnectionOpened)
    await shell.call("close")
    closed = await ear.hears(events.ConnectionClosed)
    await ear.hears(events.PoolClosed)
    lent = await ear.hears(events.ConnectionLent)
    returned = await ear.hears(events.ConnectionReturned)
    # The thread that opens it and the one that is lent it tell of that side by side, as do those that close.
    assert sorted(ear.story[:2]) == ["ConnectionLent", "ConnectionOpened"]
    assert ear.story[2] == "ConnectionReturned"
    assert sorted(ear.story[3:]) == ["ConnectionClosed", "PoolClosed"]
    assert {event.pool for event in ear.heard} == {"orders"}
    assert lent.at <= returned.at <= closed.at
    assert 0.04 < opened.seconds <= lent.waited
    assert returned.held > 0.04
    assert returned.error is None
    assert (closed.connection, closed.reason, closed.uses) == (1, "pool closed", 1)
    assert closed.age >= returned.held


async def test_a_loan_by_acquire_is_told_like_any_other(make: Make, ear: Ear) -> None:
    shell = make(max_size=1)
    shell.pool.listen(ear)
    conn = await shell.acquire()
    shell.pool.release(conn)
    conn = await shell.acquire()
    shell.pool.discard(conn)
    closed = await ear.hears(events.ConnectionClosed)
    assert closed.reason == "discarded"
    assert ear.story.count("ConnectionLent") == ear.story.count("ConnectionReturned") == 2


async def test_what_ends_a_block_and_what_becomes_of_its_connection_is_told(make: Make, ear: Ear) -> None:
    shell = make(max_size=1)
    shell.pool.listen(ear)
    with pytest.raises(ZeroDivisionError):
        async with shell.lent() as conn:
            conn.dirty = True
            raise ZeroDivisionError
    returned = await ear.hears(events.ConnectionReturned)
    assert isinstance(returned.error, ZeroDivisionError)
    assert (await ear.hears(events.ConnectionReset)).sound


async def test_those_who_get_nothing_are_told_of_with_what_they_were_told(make: Make, ear: Ear) -> None:
    shell = make(max_size=1, max_waiting=1)
    shell.pool.listen(ear)
    async with shell.lent():
        with pytest.raises(millpond.PoolTimeout) as late:
            await shell.acquire(0.05)
        timed_out = await ear.hears(events.CallerTimedOut)
        assert timed_out.error is late.value
        assert timed_out.waited > 0.04
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                shell.pool.release(await shell.acquire(60))

            group.start_soon(wait)
            await shell.until(lambda stats: stats.waiting == 1)
            with pytest.raises(millpond.PoolFull) as full:
                await shell.acquire()
            assert (await ear.hears(events.CallerRefused)).error is full.value
            if shell.way == "threads":  # a thread would go on
                shell.pool.resize(max_size=2)
            else:
                group.cancel_scope.cancel()
    if shell.way != "threads":
        assert (await ear.hears(events.CallerCancelled)).waited > 0


async def test_an_outage_is_told_when_it_begins_and_when_it_ends(make: Make, ear: Ear) -> None:
    shell = make(max_size=1, ride_out=True)
    shell.pool.listen(ear)
    shell.fake.fail_next(3)
    async with shell.lent(5):
        pass
    ended = await ear.hears(events.OutageEnded)
    began = await ear.hears(events.OutageBegan)
    failed = await ear.hears(events.OpenFailed, 3)
    assert isinstance(began.error, ConnectionRefusedError)
    assert isinstance(failed.error, ConnectionRefusedError)
    assert not failed.refused
    assert ear.story.count("OpenFailed") == 3
    assert 0.05 < ended.seconds < 5


async def test_a_loan_that_lasts_too_long_is_told_with_its_borrower(make: Make, ear: Ear) -> None:
    shell = make(max_size=1, leak_after=0.05)
    shell.pool.listen(ear)
    async with shell.lent():
        leak = await ear.hears(events.LeakSuspected)
        assert leak.lease.age > 0.05
        assert leak.lease.borrowed_at is not None


async def test_a_loan_that_was_dropped_is_told(make: Make, ear: Ear) -> None:
    shell = make(max_size=1)
    shell.pool.listen(ear)
    lease = shell.pool.connection()
    await _enter(shell, lease)
    del lease
    gc.collect()
    assert (await ear.hears(events.ConnectionLost)).connection == 1
    assert (await ear.hears(events.ConnectionClosed)).reason == "lost"


async def test_the_end_of_a_connection_is_told_when_its_pool_is_dropped(way: Any, ear: Ear) -> None:
    shell = Shell(way, name="orders", max_size=2)
    shell.pool._droppable = True
    shell.pool.listen(ear)
    async with shell.lent(), shell.lent():
        pass
    shell.pool = None
    closed: list[events.ConnectionClosed] = []
    for _ in range(250):
        gc.collect()
        closed = [event for event in ear.heard if isinstance(event, events.ConnectionClosed)]
        if len(closed) == 2:
            break
        await anyio.sleep(0.02)  # its keeper may have it in hand for a moment
    assert sorted((event.connection, event.reason, event.uses) for event in closed) == [
        (1, "pool closed", 1),
        (2, "pool closed", 1),
    ]


async def _enter(shell: Shell, lease: Any) -> None:
    if shell.way == "threads":
        lease.__enter__()
    else:
        await lease.__aenter__()


async def test_checks_are_told(make: Make, ear: Ear) -> None:
    shell = make(max_size=1, check_after=0.0)
    shell.pool.listen(ear)
    for _ in range(2):
        async with shell.lent():
            pass
    assert (await ear.hears(events.ConnectionChecked)).sound


async def test_what_is_done_to_the_whole_pool_is_told(make: Make, ear: Ear) -> None:
    shell = make(max_size=1)
    shell.pool.listen(ear)
    pool = shell.pool
    pool.resize(min_size=0, max_size=3)
    pool.pause()
    pool.resume()
    pool.refresh()
    await shell.call("close")
    await shell.call("close")
    assert ear.story == ["PoolResized", "PoolPaused", "PoolResumed", "PoolRefreshed", "PoolClosed"]
    assert isinstance(ear.heard[0], events.PoolResized)
    assert ear.heard[0].max_size == 3


async def test_who_listens_everywhere_hears_of_every_pool_made_before_and_after(make: Make, ear: Ear) -> None:
    before = make(name="before")
    stop = events.listen(ear)
    after = make(name="after")
    for shell in (before, after):
        async with shell.lent():
            pass
    await ear.hears(events.ConnectionOpened, 2)
    assert {event.pool for event in ear.heard} == {"before", "after"}
    stop()
    heard = len(ear.heard)
    for shell in (before, after, make()):
        async with shell.lent():
            pass
    assert len(ear.heard) == heard


async def test_who_wants_no_loans_hears_all_else_and_loans_cost_nothing(make: Make, ear: Ear) -> None:
    shell = make(max_size=1)
    plain = type(shell.pool.connection())
    shell.pool.listen(ear, loans="none")
    assert type(shell.pool.connection()) is plain
    async with shell.lent():
        pass
    await ear.hears(events.ConnectionOpened)
    await shell.call("close")
    await ear.hears(events.ConnectionClosed)
    await ear.hears(events.PoolClosed)
    assert ear.story[0] == "ConnectionOpened"
    assert sorted(ear.story[1:]) == ["ConnectionClosed", "PoolClosed"]


async def test_who_wants_some_loans_hears_of_all_while_there_are_few(make: Make, ear: Ear) -> None:
    shell = make(max_size=1)
    shell.pool.listen(ear, loans="some")
    for _ in range(20):
        async with shell.lent():
            pass
    assert ear.story.count("ConnectionLent") == ear.story.count("ConnectionReturned") == 20


def lend_by_turns(pool: Any, loans: int) -> None:
    for turn in range(loans):
        if turn % 2:
            with pool.connection(), pool.connection():
                pass
        else:
            with pool.connection():
                pass


async def lend_by_turns_in_a_task(pool: Any, loans: int) -> None:
    for turn in range(loans):
        if turn % 2:
            async with pool.connection(), pool.connection():
                pass
        else:
            async with pool.connection():
                pass


@pytest.mark.parametrize("leak_after", [math.inf, 1000.0])
async def test_of_many_loans_a_random_sample_is_told_and_of_few_later_on_all(
    make: Make, ear: Ear, leak_after: float
) -> None:
    shell = make(max_size=2, leak_after=leak_after)
    shell.pool.listen(ear, loans="some")
    # By turns: a sample of every so many would have one connection only.
    async with shell.lent():
        pass
    loans = 8_000
    began = time.monotonic()
    if shell.way == "threads":
        await in_thread(lambda: lend_by_turns(shell.pool, loans))
    else:
        await lend_by_turns_in_a_task(shell.pool, loans)
    took = time.monotonic() - began
    lent = [event.connection for event in ear.heard if isinstance(event, events.ConnectionLent)]
    assert SAMPLE < len(lent) < min(loans, 8 * SAMPLE * (1 + took))
    assert ear.story.count("ConnectionReturned") == len(lent)
    assert shell.pool.stats().borrows == 1 + loans * 3 / 2
    assert {1, 2} == set(lent)
    with anyio.fail_after(10):
        while shell.pool._sample.stride > 1:
            await anyio.sleep(0.01)
    ear.heard.clear()
    for _ in range(50):
        async with shell.lent():
            pass
    assert ear.story.count("ConnectionLent") == 50


async def test_who_wants_all_loans_hears_of_all_whatever_others_want(make: Make, ear: Ear) -> None:
    shell = make(max_size=1)
    shell.pool.listen(lambda event: None, loans="some")
    shell.pool.listen(ear)
    for _ in range(1000):
        async with shell.lent():
            pass
    assert ear.story.count("ConnectionLent") == 1000
    with pytest.raises(ValueError, match='one of "all", "some", "none"'):
        shell.pool.listen(ear, loans=cast("Any", "few"))
    with pytest.raises(ValueError, match='one of "all", "some", "none"'):
        events.listen(ear, loans=cast("Any", "few"))


async def test_a_pool_that_nobody_listens_to_any_more_lends_as_if_nobody_ever_had(make: Make, ear: Ear) -> None:
    shell = make(leak_after=1000.0)
    plain = type(make().pool.connection())
    assert plain.__name__ in ("ThreadLease", "TaskLease")
    stops = [shell.pool.listen(ear), shell.pool.listen(Ear())]
    for stop in stops:
        stop()
    shell = make()
    stops = [shell.pool.listen(ear), shell.pool.listen(Ear())]
    assert type(shell.pool.connection()) is not plain
    for stop in stops:
        stop()
    assert type(shell.pool.connection()) is plain


async def test_a_listener_that_raises_is_reported_once_and_harms_nobody(
    make: Make, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    def deaf(event: events.Event) -> None:
        raise ZeroDivisionError

    shell = make(max_size=1)
    shell.pool.listen(deaf)
    shell.pool.listen(ear)
    with caplog.at_level(logging.ERROR, "millpond"):
        for _ in range(10):
            async with shell.lent():
                pass
        await ear.hears(events.ConnectionOpened)  # by then its thread has told of `deaf`, if it was the first
    assert sum("deaf" in record.getMessage() for record in caplog.records) == 1
    assert ear.story.count("ConnectionLent") == 10
    assert shell.pool.stats().borrows == 10


async def test_a_listener_may_look_at_the_pool(make: Make, ear: Ear) -> None:
    shell = make(max_size=1)
    seen: list[Any] = []
    shell.pool.listen(lambda event: seen.append((shell.pool.stats(), shell.pool.leases())))
    shell.pool.listen(ear)
    async with shell.lent():
        pass
    await shell.call("close")
    for kind in (events.ConnectionOpened, events.ConnectionClosed, events.PoolClosed):
        await ear.hears(kind)
    assert len(seen) == 5


@pytest.mark.parametrize("way", ["threads"])
@pytest.mark.parametrize("kind", [events.ConnectionLent, events.ConnectionReturned])
def test_an_exception_that_strikes_a_listener_loses_no_connection(way: Any, kind: type[events.Event]) -> None:
    pool: millpond.Pool[dict[str, str]] = millpond.Pool(dict, close=dict.clear, max_size=1)

    def strike(event: events.Event) -> None:
        if isinstance(event, kind):
            raise KeyboardInterrupt

    stop = pool.listen(strike)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), pool.connection(5):
            pass
    stop()
    with pool.connection(5):
        pass
    assert pool._step(pool._core.audit) == []
    pool.close()


@pytest.mark.parametrize("way", ["threads"])
def test_all_that_closing_does_is_told_before_it_returns(way: Any) -> None:
    for _ in range(50):
        told: list[events.Event] = []
        with millpond.Pool(FakeConnector(), max_size=1) as pool:
            pool.listen(lambda event: time.sleep(0.001) if isinstance(event, events.ConnectionClosed) else None)
            pool.listen(told.append)
            with pool.connection(5):
                pass
        assert isinstance(told[-1], events.ConnectionClosed)


@pytest.mark.parametrize("way", ["threads"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_a_listener_ends_is_replaced(way: Any) -> None:
    pool: millpond.Pool[dict[str, str]] = millpond.Pool(dict, close=dict.clear, max_size=4, max_opening=1)
    left: list[events.Event] = []

    def leave(event: events.Event) -> None:
        if isinstance(event, events.ConnectionOpened):
            left.append(event)
            raise KeyboardInterrupt

    stop = pool.listen(leave)
    held = [pool.acquire(30) for _ in range(4)]
    for conn in held:
        pool.release(conn)
    until(lambda: len(left) == 4 and pool._openers.present == 0)
    stop()
    pool.close()
