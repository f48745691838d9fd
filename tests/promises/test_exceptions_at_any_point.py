"""Ten thousand exceptions at random moments: every slot is given back, and no connection is lent twice."""

from __future__ import annotations

import contextlib
import ctypes
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from millpond import Budget, Pool
from millpond.testing import FakeConnection, FakeConnector

from .alarms import Alarm
from .patience import assert_whole, until
from .places import KINDS, Stop, finalisers_cut

ROUNDS = 10_000
SIZE = 5

FakePool = Pool[FakeConnection]


class Record:
    """Who has which connection: an overlap is seen by the borrower whose mark was overwritten."""

    def __init__(self) -> None:
        self.marks: dict[FakeConnection, object] = {}
        self.twice: list[FakeConnection] = []

    def begin(self, conn: FakeConnection) -> object:
        mark = object()
        self.marks[conn] = mark
        return mark

    def end(self, conn: FakeConnection, mark: object) -> None:
        if self.marks[conn] is not mark or conn.parted:
            self.twice.append(conn)


Body = Callable[[FakePool, Record], None]


def quick(pool: FakePool, record: Record) -> None:
    with pool.connection() as conn:
        mark = record.begin(conn)
        record.end(conn, mark)


def dirty(pool: FakePool, record: Record) -> None:
    with pool.connection() as conn:
        mark = record.begin(conn)
        conn.dirty = True
        record.end(conn, mark)


def broken(pool: FakePool, record: Record) -> None:
    with pool.connection() as conn:
        mark = record.begin(conn)
        conn.broken = True
        record.end(conn, mark)


def failing(pool: FakePool, record: Record) -> None:
    with suppress(LookupError), pool.connection() as conn:
        mark = record.begin(conn)
        record.end(conn, mark)
        raise LookupError


def nested(pool: FakePool, record: Record) -> None:
    with pool.connection() as conn, pool.connection() as other:
        mark, second = record.begin(conn), record.begin(other)
        record.end(conn, mark)
        record.end(other, second)


def looping(pool: FakePool, record: Record) -> None:
    # CPython 3.13 looks for signals where a loop goes back, and forgets there that it is in a `with` block.
    with pool.connection() as conn:
        mark = record.begin(conn)
        for _ in range(3):
            record.end(conn, mark)


BODIES: tuple[Body, ...] = (quick, dirty, broken, failing, nested, looping)


@contextmanager
def competing(pool: FakePool, record: Record, count: int) -> Iterator[None]:
    """Let that many threads hold connections for a while, again and again, so that others stand in line."""
    over = threading.Event()

    def compete() -> None:
        while not over.is_set():
            with pool.connection() as conn:
                mark = record.begin(conn)
                time.sleep(0.0005)
                record.end(conn, mark)

    with ThreadPoolExecutor(max(1, count)) as executor:
        competitors = [executor.submit(compete) for _ in range(count)]
        try:
            yield
        finally:
            over.set()
    for competitor in competitors:
        competitor.result()


def strike(pool: FakePool, record: Record, rounds: int, kind: type[BaseException]) -> None:
    """Use the pool until `rounds` exceptions have struck, each of which must come out."""
    came_out = 0

    def interrupt() -> None:
        raise kind

    # A function of its own, since 3.13 forgets a `try` as well where a loop in it goes back.
    def borrow_until_struck() -> None:
        alarm.set(random.uniform(1e-6, 80e-6))
        while alarm.armed:
            random.choice(BODIES)(pool, record)

    with finalisers_cut(kind) as swallowed, Alarm(interrupt) as alarm:
        while alarm.fired < rounds:
            try:
                borrow_until_struck()
            except kind:
                came_out += 1
    assert came_out + len(swallowed) == alarm.fired


@pytest.fixture
def connector() -> FakeConnector:
    return FakeConnector()


@pytest.fixture
def pool(connector: FakeConnector) -> Iterator[FakePool]:
    with Pool(connector, max_size=SIZE, max_opening=SIZE) as pool:
        yield pool


def assert_sound(pool: FakePool, connector: FakeConnector, record: Record) -> None:
    assert_whole(pool, SIZE)
    assert record.twice == []
    assert connector.mistakes == []
    assert len(connector.live) == SIZE


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_exceptions_of_signal_handlers_lose_no_connection(
    pool: FakePool, connector: FakeConnector, kind: type[BaseException]
) -> None:
    record = Record()
    strike(pool, record, ROUNDS, kind)
    assert_sound(pool, connector, record)


def test_exceptions_of_signal_handlers_in_line_lose_no_connection(pool: FakePool, connector: FakeConnector) -> None:
    record = Record()
    with competing(pool, record, 6):
        strike(pool, record, 3000, Stop)
    assert_sound(pool, connector, record)


def test_exceptions_of_signal_handlers_lose_no_place_of_a_budget(connector: FakeConnector) -> None:
    """Two pools that take their connections from one budget, and from each other."""
    budget = Budget(SIZE)
    record = Record()
    other_connector = FakeConnector()
    with (
        Pool(connector, max_opening=SIZE, budget=budget) as pool,
        Pool(other_connector, max_opening=SIZE, budget=budget) as other,
    ):
        with competing(other, Record(), 3):
            strike(pool, record, 2000, Stop)
        until(lambda: budget.used == pool.stats().size + other.stats().size <= SIZE)
        assert record.twice == []
        assert connector.mistakes + other_connector.mistakes == []
        for each in (pool, other):
            # All places can be taken by each of them.
            with contextlib.ExitStack() as loans:
                for _ in range(SIZE):
                    loans.enter_context(each.connection(5))
            assert each._step(each._core.audit) == []
    assert budget.used == 0


def test_exceptions_thrown_into_threads_lose_no_connection(
    pool: FakePool, connector: FakeConnector, thorough: bool
) -> None:
    """`PyThreadState_SetAsyncExc`: what task queues and notebooks stop a thread with."""
    record = Record()
    over = threading.Event()
    throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
    # The threads that nothing is on its way to, and the one that something was thrown at last.
    ready: set[int] = set()
    aimed_at = 0

    def borrow_until_struck() -> None:
        me = threading.get_ident()
        ready.add(me)
        while me not in ready or not over.is_set():
            random.choice(BODIES)(pool, record)

    def work() -> int:
        came_out = 0
        while True:
            try:
                borrow_until_struck()
                return came_out
            except Stop:
                came_out += 1

    thrown = 0
    former = sys.getswitchinterval()
    with (
        # It may have struck a finaliser, or a thread that the one it was meant for was just making.
        finalisers_cut(Stop, lambda: ready.add(aimed_at)) as swallowed,
        # Nested loans of more threads than half the pool's size could wait for each other for good.
        ThreadPoolExecutor(3) as executor,
    ):
        workers = [executor.submit(work) for _ in range(3)]
        try:
            sys.setswitchinterval(2e-5)
            until(lambda: len(ready) == 3)
            threads = tuple(ready)
            while thrown < (ROUNDS if thorough else ROUNDS // 4):
                aimed_at = random.choice(threads)
                ready.discard(aimed_at)
                throw(ctypes.c_ulong(aimed_at), ctypes.py_object(Stop))
                thrown += 1
                time.sleep(random.uniform(0, 1e-4))
                until(lambda aimed_at=aimed_at: aimed_at in ready, pause=2e-5)  # type: ignore[misc]
        finally:
            over.set()
            sys.setswitchinterval(former)
    assert sum(worker.result() for worker in workers) + len(swallowed) == thrown
    assert_sound(pool, connector, record)
