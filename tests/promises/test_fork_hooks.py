"""Whatever strikes the hooks of a fork, the child never has what is its parent's, and the parent's pools go on."""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import pytest

import millpond.redis
from millpond import Budget, ConnectFailed, HostBudget, KeyedPool, Pool, _fork, _watcher
from millpond.connectors.sockets import Socket
from millpond.testing import FakeConnector, Valkey

from .places import Places, Stop

SIZE = 2
NOTHING: AbstractContextManager[object] = nullcontext()


@pytest.fixture
def listener() -> Iterator[int]:
    """A port that takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def forked(work: Callable[[], object], around: AbstractContextManager[object] = NOTHING) -> Iterator[Callable[[], int]]:
    """Fork, within `around`; the child does the work. Yields what waits for its status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with around:
            pid = os.fork()
            if pid == 0:
                # A tracer that is left behind does no harm, and what ends it might be struck.
                sys.settrace(None)
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    waited: list[int] = []

    def wait() -> int:
        if not waited:
            waited.append(os.waitpid(pid, 0)[1])
        return waited[0]

    try:
        yield wait
    finally:
        wait()


def strike() -> None:
    raise Stop


def stocked(pool: Pool[Any]) -> set[int]:
    """Fill a pool; return which files its connections are, or which objects."""
    conns = [pool.acquire(10) for _ in range(SIZE)]
    known = {identity(conn) for conn in conns}
    for conn in conns:
        pool.release(conn)
    return known


def identity(conn: Any) -> int:
    return os.fstat(conn.fileno()).st_ino if hasattr(conn, "fileno") else id(conn)


@pytest.mark.parametrize("kind", ["sockets", "objects"])
def test_an_exception_at_any_place_of_a_fork(
    kind: str, listener: int, monkeypatch: pytest.MonkeyPatch, *, thorough: bool
) -> None:
    """Each process is struck once, in its hook for before the fork or in that for afterwards."""
    swallowed: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: swallowed.append(told.exc_type))
    connector: Any = Socket("127.0.0.1", listener) if kind == "sockets" else FakeConnector()
    with Pool(connector, max_size=SIZE) as pool, Pool(connector, max_size=SIZE, min_size=1) as other:
        pools = (pool, other)
        number, places = 0, Places(0, strike)
        while number == 0 or places.reached:
            number += 1 if thorough else 11
            # What is struck, and what a second hook does not mend, is mended by ticks; that is another promise.
            parents = [stocked(each) for each in pools]
            places = Places(number, strike)

            def child(parents: list[set[int]] = parents, where: Places = places) -> None:
                for each, known in zip(pools, parents, strict=True):
                    assert not any(map(is_open, known)) or kind == "objects", where.where
                    assert not stocked(each) & known, where.where

            with forked(child, places) as status:
                for each in pools:
                    stocked(each)
                assert status() == 0, f"struck at {places.where}, or as late in the child"
    assert number > 100
    assert set(swallowed) == {Stop}


def is_open(inode: int) -> bool:
    """Whether this process has a descriptor of that file."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.fstat(int(name)).st_ino == inode:
                return True
        except OSError:
            continue
    return False


def test_a_child_that_has_no_descriptor_left_is_lent_nothing_of_its_parents(listener: int) -> None:
    connector = Socket("127.0.0.1", listener)

    def parent() -> None:
        # Another process than that of the tests, which is to keep its limit.
        with Pool(connector, max_size=SIZE) as pool, Pool(connector, max_size=SIZE) as other:
            pools = (pool, other)
            known = set().union(*map(stocked, pools))
            hogs = hogged()
            # pytest's would import something.
            sys.unraisablehook = lambda told: swallowed.append(told.exc_value)
            swallowed: list[object] = []

            def child() -> None:
                for pool in pools:
                    try:
                        with pool.connection() as own:
                            assert identity(own) not in known
                    except ConnectFailed as failed:
                        assert isinstance(failed.__cause__, OSError)  # noqa: PT017 (either will do)
                for hog in hogs:
                    os.close(hog)
                for pool in pools:
                    pool.refresh()  # at once, not after a pause
                    assert not stocked(pool) & known
                assert not any(map(is_open, known))
                assert swallowed == []

            with forked(child) as status:
                assert status() == 0
            for hog in hogs:
                os.close(hog)
            assert set().union(*map(stocked, pools)) == known

    with forked(parent) as status:
        assert status() == 0


def hogged() -> list[int]:
    """Take all descriptors that this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    hogs: list[int] = []
    while True:
        try:
            hogs.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return hogs


def test_a_daemon_that_has_closed_all_descriptors_writes_no_goodbye_to_what_it_opens(listener: int) -> None:
    """The number of the dead socket may be another file's in the meantime."""
    connector = Socket("127.0.0.1", listener)

    def daemon() -> None:
        os.closerange(3, 400)
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
        with Pool(connector, max_size=SIZE) as pool:
            known = stocked(pool)

            def child() -> None:
                inode = os.stat(os.devnull).st_ino
                numbers = [entry for entry in pool._inherited.values() if identity(entry) == inode]
                assert numbers == []
                assert not any(map(is_open, known))

            with forked(child) as status:
                assert status() == 0
        for file in files:
            os.close(file)

    with Pool(connector, max_size=SIZE) as pool:
        stocked(pool)
        with forked(daemon) as status:
            assert status() == 0


def test_no_lock_of_the_parents_is_held_in_the_child(
    valkey: Valkey, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    budget, host = Budget(SIZE), HostBudget("forks", 2 * SIZE)
    pool = Pool(FakeConnector(), budget=budget)
    hosted = Pool(FakeConnector(), budget=host)
    keyed: KeyedPool[str, Any] = KeyedPool(lambda key: FakeConnector(), max_size=SIZE)
    client = millpond.redis.BlockingConnectionPool.from_url(valkey.url, max_connections=SIZE)
    with pool.connection(), hosted.connection(), keyed["one"].connection():
        client.release(client.get_connection())
    locks: list[Any] = [
        budget._lock,
        host._lock,
        pool._lock,
        pool._openers._lock,
        pool._tenders._lock,
        hosted._lock,
        keyed._lock,
        client._lock,
        _watcher._starting,
    ]
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            over.wait(60)

    def child() -> None:
        for each in (pool, hosted):
            stocked(each)
            each.close()
        budget.resize(SIZE + 1)
        keyed["other"].acquire(10)
        client.disconnect()
        client.release(client.get_connection())

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    # As long as they are held, the hooks of the parent wait, as they do for whoever is just at it.
    monkeypatch.setattr(Pool, "_before_fork", lambda self: None)
    try:
        with forked(child) as status:
            assert status() == 0
    finally:
        over.set()
        holder.join()
    for each in (pool, hosted, keyed):
        each.close()
    client.close()


def test_a_fork_while_other_threads_make_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    swallowed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: swallowed.append(told.exc_value))
    over = threading.Event()

    def make() -> None:
        while not over.is_set():
            with Pool(FakeConnector()):
                pass

    makers = [threading.Thread(target=make) for _ in range(2)]
    former = sys.getswitchinterval()
    with Pool(FakeConnector(), max_size=SIZE) as pool:
        stocked(pool)
        for maker in makers:
            maker.start()
        try:
            sys.setswitchinterval(1e-5)
            for _ in range(10):
                with forked(lambda: stocked(pool)) as status:
                    stocked(pool)
                    assert status() == 0
        finally:
            sys.setswitchinterval(former)
            over.set()
            for maker in makers:
                maker.join()
    assert swallowed == []


def test_a_lease_made_before_a_fork_is_one_of_the_childs_pool() -> None:
    with Pool(FakeConnector(), max_size=1) as pool:
        parents = stocked_one(pool)
        lease = pool.connection()

        def child() -> None:
            with lease as conn:
                assert conn is not parents
            stats = pool.stats()
            assert (stats.idle, stats.size) == (1, 1)
            with pool.connection() as again:
                assert again is conn

        with forked(child) as status:
            assert status() == 0


def stocked_one(pool: Pool[Any]) -> object:
    with pool.connection() as conn:
        return conn


def test_a_child_whose_hooks_were_never_called_begins_anew_when_a_pool_is_used(
    listener: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the pools are shut, which needs nothing: all else may fail, and is done again."""
    with Pool(Socket("127.0.0.1", listener), max_size=SIZE) as pool:
        known = stocked(pool)
        monkeypatch.setattr(sys, "unraisablehook", lambda told: None)

        def child() -> None:
            monkeypatch.undo()
            assert not stocked(pool) & known
            assert not any(map(is_open, known))

        monkeypatch.setattr(_fork, "disown", lambda *_: 1 / 0)
        with forked(child) as status:
            assert status() == 0
