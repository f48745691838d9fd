"""The fake connectors do what the script says, and notice what a pool must never do."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import anyio
import pytest

from millpond.connector import AsyncConnector, Condition, Connector
from millpond.testing import AsyncFakeConnector, FakeConnection, FakeConnector

from ..promises.children import forked

T = TypeVar("T")


def test_they_are_connectors() -> None:
    sync: Connector[FakeConnection] = FakeConnector()
    tasks: AsyncConnector[FakeConnection] = AsyncFakeConnector()
    assert sync.target == tasks.target == "fake://nowhere"
    assert FakeConnector(provable=False).provable is False


def test_connections_are_numbered_and_everything_done_to_them_is_remembered() -> None:
    fake = FakeConnector()
    first, second, third = (fake.open(1) for _ in range(3))
    fake.ping(first, 1)
    second.dirty = True
    assert fake.inspect(second, None) is Condition.DIRTY
    fake.reset(second, 1)
    assert fake.inspect(second, None) is Condition.CLEAN
    fake.close(first)
    fake.abandon(third)
    assert [conn.number for conn in fake.opened] == [1, 2, 3]
    assert (fake.pings, fake.resets, fake.closed, fake.abandoned) == ([first], [second], [first], [third])
    assert fake.live == [second]
    assert fake.most_live == 3
    assert fake.mistakes == []


def test_an_open_takes_its_time() -> None:
    fake = FakeConnector(open_time=0.05)
    began = time.monotonic()
    fake.open(1)
    assert time.monotonic() - began >= 0.05


def test_an_open_that_takes_longer_than_it_may_times_out() -> None:
    fake = FakeConnector(open_time=5)
    with pytest.raises(TimeoutError):
        fake.open(0.01)
    assert fake.opened == []
    assert [type(error) for error in fake.failures] == [TimeoutError]


def test_a_held_open_finishes_when_it_is_let_go() -> None:
    fake = FakeConnector()
    fake.hold()
    with ThreadPoolExecutor(3) as threads:
        opens = [threads.submit(fake.open, 10) for _ in range(3)]
        fake.wait_until(lambda: fake.opening == 3)
        assert fake.opened == []
        fake.let_go(1)
        fake.wait_until(lambda: fake.opening == 2)
        assert len(fake.opened) == 1
        fake.let_go()
        assert {each.result(5).number for each in opens} == {1, 2, 3}
    fake.open(0.01)
    assert fake.most_opening == 3
    assert fake.opening == 0


def test_a_held_open_times_out_like_any_other() -> None:
    fake = FakeConnector()
    fake.hold()
    with pytest.raises(TimeoutError):
        fake.open(0.01)
    assert fake.opening == 0


def test_scripted_failures_come_in_order_and_end() -> None:
    fake = FakeConnector()
    fake.fail_next(2)
    fake.fail_next(1, PermissionError("no such user"))
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            fake.open(1)
    with pytest.raises(PermissionError) as refusal:
        fake.open(1)
    assert fake.refused(refusal.value)
    assert not fake.refused(ConnectionRefusedError())
    conn = fake.open(1)
    fake.fail_next(step="ping")
    with pytest.raises(ConnectionRefusedError):
        fake.ping(conn, 1)
    fake.ping(conn, 1)
    fake.fail_next(1, OSError("goodbye failed"), step="close")
    with pytest.raises(OSError, match="goodbye failed"):
        fake.close(conn)
    assert len(fake.failures) == 3


def test_an_outage_lasts_until_it_is_over() -> None:
    fake = FakeConnector()
    up = threading.Event()
    fake.fail_until(up.is_set, OSError("down"))
    for _ in range(3):
        with pytest.raises(OSError, match="down"):
            fake.open(1)
    up.set()
    assert fake.open(1).number == 1


def test_a_death_shows_and_a_silent_one_shows_only_to_a_ping() -> None:
    fake = FakeConnector()
    loud, silent, well = (fake.open(1) for _ in range(3))
    fake.die(loud)
    fake.die(silent, silently=True)
    assert [fake.alive(conn) for conn in (loud, silent, well)] == [False, True, True]
    assert fake.inspect(loud, None) is Condition.BROKEN
    with pytest.raises(ConnectionResetError):
        fake.ping(loud, 1)
    with pytest.raises(TimeoutError):
        fake.ping(silent, 1)
    with pytest.raises(ConnectionResetError), loud.use():
        pass
    fake.die()
    assert not fake.alive(well)


def test_a_broken_connection_is_found_broken() -> None:
    fake = FakeConnector()
    conn = fake.open(1)
    conn.broken = True
    assert fake.inspect(conn, None) is Condition.BROKEN


def test_the_death_of_a_watchable_connection_is_a_hang_up_on_its_descriptor() -> None:
    fake = FakeConnector(watchable=True)
    with contextlib.ExitStack() as ends:
        conn = fake.open(1)
        ends.callback(fake.abandon, conn)
        descriptor = fake.descriptor(conn)
        assert descriptor is not None
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(0) == []
        fake.die(conn)
        [(_, events)] = poll.poll(0)
        assert events & select.POLLHUP
    assert fake.descriptor(conn) is None
    unwatched = FakeConnector()
    assert unwatched.descriptor(unwatched.open(1)) is None


def test_lending_twice_is_noticed() -> None:
    fake = FakeConnector()
    conn = fake.open(1)
    with conn.use(), pytest.raises(AssertionError, match="lent twice"), conn.use():
        pass
    with conn.use():
        pass
    assert fake.mistakes == ["<FakeConnection 1> is lent twice at the same time"]


@pytest.mark.parametrize("part", ["close", "abandon"])
def test_lending_pinging_or_closing_what_was_parted_with_is_noticed(part: str) -> None:
    fake = FakeConnector()
    conn = fake.open(1)
    getattr(fake, part)(conn)
    with pytest.raises(AssertionError, match="is lent after"), conn.use():
        pass
    with pytest.raises(ConnectionResetError):
        fake.ping(conn, 1)
    fake.close(conn)
    assert fake.inspect(conn, None) is Condition.BROKEN
    assert len(fake.mistakes) == 4


def test_closing_what_is_lent_is_noticed_and_abandoning_it_is_not() -> None:
    fake = FakeConnector()
    closed, abandoned = fake.open(1), fake.open(1)
    with pytest.raises(AssertionError, match="while it was lent"), closed.use():
        fake.close(closed)
    with abandoned.use():
        fake.abandon(abandoned)
    assert len(fake.mistakes) == 1


def test_waiting_for_what_does_not_happen_raises() -> None:
    with pytest.raises(TimeoutError):
        FakeConnector().wait_until(lambda: False, 0.01)


def test_many_threads_at_once_leave_a_right_record() -> None:
    fake = FakeConnector()

    def work() -> None:
        for _ in range(200):
            fake.close(fake.open(1))

    with ThreadPoolExecutor(8) as threads:
        done: list[Future[None]] = [threads.submit(work) for _ in range(8)]
        for each in done:
            each.result(30)
    assert sorted(conn.number for conn in fake.opened) == list(range(1, 1601))
    assert len(fake.closed) == 1600
    assert fake.live == []
    assert fake.opening == 0
    assert fake.mistakes == []


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[T]]], T]:
    return lambda main: anyio.run(main, backend=request.param)


Run = Callable[[Callable[[], Awaitable[None]]], None]


def test_tasks_a_held_open_finishes_when_it_is_let_go(run: Run) -> None:
    async def main() -> None:
        fake = AsyncFakeConnector()
        fake.hold()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(fake.open, 10)
            await fake.wait_until(lambda: fake.opening == 3)
            assert fake.opened == []
            fake.let_go(1)
            await fake.wait_until(lambda: fake.opening == 2)
            assert len(fake.opened) == 1
            fake.let_go()
        assert len(fake.opened) == fake.most_opening == 3

    run(main)


def test_tasks_a_cancelled_open_leaves_nothing_open(run: Run) -> None:
    async def main() -> None:
        fake = AsyncFakeConnector()
        fake.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fake.open, 10)
            await fake.wait_until(lambda: fake.opening == 1)
            tasks.cancel_scope.cancel()
        assert (fake.opening, fake.opened, len(fake.failures)) == (0, [], 1)

    run(main)


def test_tasks_an_open_that_takes_longer_than_it_may_times_out(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await AsyncFakeConnector(open_time=5).open(0.01)

    run(main)


def test_tasks_the_script_and_the_record_are_the_same(run: Run) -> None:
    async def main() -> None:
        fake = AsyncFakeConnector()
        fake.fail_next(1, PermissionError("no"))
        with pytest.raises(PermissionError):
            await fake.open(1)
        first, second = await fake.open(1), await fake.open(1)
        first.dirty = True
        await fake.reset(first, 1)
        assert fake.inspect(first, None) is Condition.CLEAN
        await fake.ping(second, 1)
        fake.die(second)
        with pytest.raises(ConnectionResetError):
            await fake.ping(second, 1)
        await fake.close(first)
        fake.abandon(second)
        assert (fake.closed, fake.abandoned, fake.live) == ([first], [second], [])
        with pytest.raises(TimeoutError):
            await fake.wait_until(lambda: False, 0.01)

    run(main)


def test_a_child_that_is_forked_while_another_thread_is_at_a_connector_can_use_it() -> None:
    connector = FakeConnector()
    inside, leave = threading.Event(), threading.Event()

    def seen() -> bool:
        inside.set()
        leave.wait(60)
        return True

    connector.fail_until(seen)
    with ThreadPoolExecutor() as executor:
        opened = executor.submit(connector.open, 60)
        assert inside.wait(60)
        with forked(connector.hold) as status:
            assert status() == 0
        leave.set()
        assert opened.result(60) is not None
