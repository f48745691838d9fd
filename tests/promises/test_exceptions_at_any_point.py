"""`connection()` gives every slot back, whatever is raised wherever."""

from __future__ import annotations

import ctypes
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from millpond import Pool
from millpond.testing import FakeConnection, FakeConnector

from .patience import assert_whole, until

ROUNDS = 10_000
SIZE = 5


class Stop(BaseException):
    """What a signal handler raises, as KeyboardInterrupt is."""


class Limit(Exception):
    """What a signal handler raises, as Celery's soft limit is."""


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


Body = Callable[[Pool[FakeConnection], Record], None]


def quick(pool: Pool[FakeConnection], record: Record) -> None:
    with pool.connection() as conn:
        mark = record.begin(conn)
        record.end(conn, mark)


def dirty(pool: Pool[FakeConnection], record: Record) -> None:
    with pool.connection() as conn:
        mark = record.begin(conn)
        conn.dirty = True
        record.end(conn, mark)


def broken(pool: Pool[FakeConnection], record: Record) -> None:
    with pool.connection() as conn:
        mark = record.begin(conn)
        conn.broken = True
        record.end(conn, mark)


def failing(pool: Pool[FakeConnection], record: Record) -> None:
    try:
        with pool.connection() as conn:
            mark = record.begin(conn)
            record.end(conn, mark)
            raise LookupError
    except LookupError:
        pass


def nested(pool: Pool[FakeConnection], record: Record) -> None:
    with pool.connection() as conn, pool.connection() as other:
        mark, second = record.begin(conn), record.begin(other)
        record.end(conn, mark)
        record.end(other, second)


def by_hand(pool: Pool[FakeConnection], record: Record) -> None:
    conn = pool.acquire()
    mark = record.begin(conn)
    record.end(conn, mark)
    pool.release(conn)


BODIES: tuple[Body, ...] = (quick, dirty, broken, failing, nested, by_hand)


@contextmanager
def competing(pool: Pool[FakeConnection], record: Record, count: int) -> Iterator[None]:
    """Let that many threads hold connections for a while, again and again, so that others stand in line."""
    over = threading.Event()

    def compete() -> None:
        while not over.is_set():
            with pool.connection() as conn:
                mark = record.begin(conn)
                time.sleep(0.0005)
                record.end(conn, mark)

    threads = [threading.Thread(target=compete) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextmanager
def finalisers_cut(kind: type[BaseException]) -> Iterator[list[object]]:
    """Collect the exceptions that hit a finaliser: the interpreter swallows those, whoever wrote the finaliser."""
    swallowed: list[object] = []
    former = sys.unraisablehook

    def note(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, kind):
            swallowed.append(unraisable.exc_type)
        else:
            former(unraisable)

    sys.unraisablehook = note
    try:
        yield swallowed
    finally:
        sys.unraisablehook = former


class Shots:
    """A timer that fires once after a few microseconds, and a handler that raises."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind
        self.fired = 0
        self._former = signal.signal(signal.SIGALRM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.fired += 1
        raise self.kind

    def aim(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 80e-6))

    def end(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._former)


def strike(
    pool: Pool[FakeConnection], record: Record, rounds: int, kind: type[BaseException], kept: list[BaseException] | None
) -> tuple[int, int]:
    """Use the pool until `rounds` exceptions have struck; return how many were raised and how many came out."""
    shots = Shots(kind)
    came_out = 0
    bodies = [random.choice(BODIES) for _ in range(100)]
    fired = 0
    with finalisers_cut(kind) as swallowed:
        while fired < rounds:
            try:
                shots.aim()
                while shots.fired == fired:
                    for body in bodies:
                        body(pool, record)
                        if shots.fired != fired:
                            break
            except kind as error:
                came_out += 1
                if kept is not None:
                    kept.append(error)
            fired = shots.fired
            random.shuffle(bodies)
        shots.end()
    return shots.fired - len(swallowed), came_out


@pytest.fixture
def pool() -> Iterator[Pool[FakeConnection]]:
    with Pool(FakeConnector(), max_size=SIZE, max_opening=SIZE) as pool:
        yield pool


def connector_of(pool: Pool[FakeConnection]) -> FakeConnector:
    assert isinstance(pool._connector, FakeConnector)
    return pool._connector


@pytest.mark.parametrize("competitors", [0, 6])
def test_ten_thousand_exceptions_of_signal_handlers_lose_no_connection(
    pool: Pool[FakeConnection], competitors: int
) -> None:
    record = Record()
    with competing(pool, record, competitors):
        raised, came_out = strike(pool, record, ROUNDS if not competitors else ROUNDS // 2, Stop, None)
    assert came_out == raised
    assert_whole(pool, SIZE)
    assert record.twice == []
    assert connector_of(pool).mistakes == []
    assert len(connector_of(pool).live) == SIZE


def test_no_exception_of_a_signal_handler_is_swallowed(pool: Pool[FakeConnection]) -> None:
    """Those that derive from Exception are not mistaken for a connector's."""
    record = Record()
    raised, came_out = strike(pool, record, 3000, Limit, None)
    assert came_out == raised
    assert_whole(pool, SIZE)
    assert record.twice == []


@pytest.mark.parametrize("step", ["inspect", "reset"])
def test_an_exception_raised_while_the_connector_works_comes_out(step: str) -> None:
    """The exact place: a handler raises while the connector inspects, or resets for a caller who waits."""
    connector = FakeConnector()
    shots = Shots(Limit)
    inspect, reset = connector.inspect, connector.reset

    def raising(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object) -> object:
            if threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGALRM)
            return call(*args)

        return wrapped

    with Pool(connector, max_size=1, timeout=3) as pool:
        with pool.connection():
            pass
        waiter = threading.Thread(target=lambda: pool.release(pool.acquire()))
        with pytest.raises(Limit), pool.connection() as conn:
            if step == "reset":
                conn.dirty = True
                waiter.start()
                until(lambda: pool.stats().waiting)
            setattr(connector, step, raising(inspect if step == "inspect" else reset))
        shots.end()
        connector.inspect, connector.reset = inspect, reset  # type: ignore[method-assign]
        if step == "reset":
            waiter.join()
        assert_whole(pool, 1)


@pytest.mark.parametrize("kind", [Stop, Limit])
def test_an_exception_that_is_kept_keeps_no_connection(pool: Pool[FakeConnection], kind: type[BaseException]) -> None:
    """A Future, a log record, pytest keep exceptions, and those their traceback's frames, with what is in them."""
    record = Record()
    kept: list[BaseException] = []
    strike(pool, record, 2000, kind, kept)
    assert_whole(pool, SIZE)
    assert len(kept) >= 1990


def enumerate_cuts(
    kind: type[BaseException], begin: Callable[[], FakeConnection], end: Callable[[], None], where: str
) -> Iterator[tuple[int, BaseException]]:
    """Cut `end` at its first line event within millpond, its second, and so on; yield what came out each time."""
    cut = 1
    while True:
        events = 0

        def trace(frame: FrameType, event: str, arg: object, cut: int = cut) -> object:
            nonlocal events
            if where not in frame.f_code.co_filename:
                return None
            if event in ("call", "line"):
                events += 1
                if events == cut:
                    raise kind(frame.f_code.co_name, frame.f_lineno)
            return trace

        begin()
        former = sys.gettrace()
        try:
            sys.settrace(trace)  # type: ignore[arg-type]
            end()
        except kind as error:
            sys.settrace(former)
            yield cut, error
        else:
            return
        finally:
            sys.settrace(former)
        cut += 1


@pytest.mark.parametrize("state", ["clean", "dirty", "broken"])
def test_a_return_cut_at_any_line_gives_the_place_back_while_the_exception_lives(state: str) -> None:
    """Enumerated: the exception is alive, in the handler of the one who wants the next connection."""
    connector = FakeConnector()
    lost: list[object] = []
    cuts = 0
    pool = Pool(connector, max_size=1, timeout=1)

    def begin() -> FakeConnection:
        nonlocal pool
        pool.close(0)
        pool = Pool(connector, max_size=1, timeout=1)
        conn = pool.acquire()
        conn.dirty, conn.broken = state == "dirty", state == "broken"
        return conn

    def end() -> None:
        pool.release(connector.live[-1])

    for cuts, error in enumerate_cuts(Stop, begin, end, "millpond/_") if state == "clean" else enumerate_cuts(
        Stop, begin, end, "millpond/"
    ):
        try:
            # 0.3 s is enough for the keeper, who hears of a lost connection at once.
            with pool.connection(timeout=0.3):
                pass
        except Exception:
            lost.append(error.args)
    pool.close()
    assert cuts > 5
    assert lost == []


def test_ten_thousand_exceptions_thrown_into_threads_lose_no_connection(pool: Pool[FakeConnection]) -> None:
    """`PyThreadState_SetAsyncExc`: what task queues and notebooks stop a thread with."""
    record = Record()
    over = threading.Event()
    throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
    ready: dict[int, bool] = {}
    came_out = [0] * 8

    def work(number: int) -> None:
        me = threading.get_ident()
        chooser = random.Random(number)
        while not over.is_set():
            try:
                ready[me] = True
                while True:
                    chooser.choice(BODIES)(pool, record)
                    if over.is_set() and ready[me]:
                        break
            except Stop:
                came_out[number] += 1

    # Nested loans of more threads than half the pool's size could wait for each other for good.
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    former = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    thrown = 0
    try:
        with finalisers_cut(Stop) as swallowed:
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 60
            while thrown < ROUNDS and time.monotonic() < deadline:
                for thread in threads:
                    ident = thread.ident
                    assert ident is not None
                    assert thread.is_alive()
                    if ready.get(ident):
                        ready[ident] = False
                        throw(ctypes.c_ulong(ident), ctypes.py_object(Stop))
                        thrown += 1
                time.sleep(random.uniform(0, 1e-4))
            assert thrown >= ROUNDS, "the machine is too slow"
            # Each worker ends only when its last exception has come out, or was swallowed in a finaliser.
            until(lambda: sum(came_out) + len(swallowed) >= thrown)
            for ident in ready:
                ready[ident] = True
            over.set()
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()
    finally:
        over.set()
        sys.setswitchinterval(former)
    assert_whole(pool, SIZE)
    assert record.twice == []
    assert connector_of(pool).mistakes == []
