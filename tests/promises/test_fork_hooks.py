"""Whatever strikes the hooks of a fork, the child never has what is its parent's, and the parent's pools go on."""

from __future__ import annotations

import asyncio
import os
import socket
import socketserver
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest

import millpond.redis
from millpond import (
    AsyncPool,
    Budget,
    ConnectFailed,
    HostBudget,
    KeyedPool,
    Misuse,
    Pool,
    PoolTimeout,
    _fork,
    _maintenance,
    _watcher,
)
from millpond.connectors.sockets import Socket
from millpond.testing import AsyncFakeConnector, FakeConnector, Valkey

from .alarms import Alarm
from .children import forked, hogged, run_program
from .patience import assert_whole, until
from .places import Places, Stop

SIZE = 2
BEYOND = 3
"""How a child ends that has not come as far as the place."""


@pytest.fixture
def listener() -> Iterator[int]:
    """A port that takes connections, says nothing, and hangs up when they do."""

    class Silent(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Silent) as server:
        server.daemon_threads = True
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield server.server_address[1]
        server.shutdown()
        serving.join()


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


# What is struck between making a socket and having its number drops the socket, which closes it and says so.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("kind", ["sockets", "objects", "within a budget"])
def test_an_exception_at_any_place_of_a_fork(
    kind: str, listener: int, monkeypatch: pytest.MonkeyPatch, *, thorough: bool
) -> None:
    """Each process is struck once, in its hook for before the fork or in that for afterwards."""
    swallowed: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: swallowed.append(told.exc_type))
    connector: Any = FakeConnector() if kind == "objects" else Socket("127.0.0.1", listener)
    settings: Any = {"budget": Budget(2 * SIZE), "min_size": SIZE} if kind == "within a budget" else {"min_size": 1}
    with Pool(connector, max_size=SIZE, **settings) as pool, Pool(connector, max_size=SIZE, **settings) as other:
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
        pool._reporters._lock,
        _maintenance._here().lock,
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
        client.close()
        assert _watcher._roused().awake
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


@pytest.fixture
def cut_twice(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have both hooks of a child be cut short, once the pools are shut; return what ends that."""

    def cut(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(sys, "unraisablehook", lambda told: None)
    monkeypatch.setattr(_fork, "disown", cut)
    return monkeypatch.undo


def test_a_child_whose_hooks_were_cut_short_begins_anew_when_a_pool_is_used(
    listener: int, cut_twice: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pool(Socket("127.0.0.1", listener), max_size=SIZE) as pool:
        known = stocked(pool)

        def child() -> None:
            cut_twice()
            begin = Pool._begin

            def slow(pool: Pool[Any]) -> None:
                time.sleep(0.05)  # the others come, too
                begin(pool)

            monkeypatch.setattr(Pool, "_begin", slow)
            with ThreadPoolExecutor(4) as executor:
                borrowed = [executor.submit(stocked_one, pool) for _ in range(20)]
                assert not {identity(future.result()) for future in borrowed} & known
            assert not any(map(is_open, known))
            assert pool.stats().size <= SIZE

        with forked(child) as status:
            assert status() == 0


def test_a_child_whose_hooks_were_cut_short_begins_anew_in_its_own_loop(cut_twice: Callable[[], None]) -> None:
    async def parent() -> None:
        async with AsyncPool(AsyncFakeConnector(), max_size=1) as pool:
            async with pool.connection() as conn:
                pass

            def child() -> None:
                cut_twice()
                asyncio.events._set_running_loop(None)  # as long as this runs, the parent's
                asyncio.run(borrow(pool, conn))

            with forked(child) as status:
                assert status() == 0

    async def borrow(pool: AsyncPool[Any], parents: object) -> None:
        async with pool.connection() as conn:
            assert conn is not parents

    asyncio.run(parent())


def test_a_child_whose_hooks_were_cut_short_says_no_goodbye_when_it_drops_a_pool(cut_twice: Callable[[], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        # What it abandons it shuts down, also for the parent.
        pool = Pool(partial(socket.create_connection, server.getsockname()), max_size=1)
        with pool.connection():
            pass
        theirs, _ = server.accept()

        def child() -> None:
            cut_twice()
            # What `__del__` does: a worker that the child does not have may keep the pool from being collected.
            pool._scuttle()

        with theirs:
            with forked(child) as status:
                assert status() == 0
            theirs.settimeout(0.05)
            with pytest.raises(TimeoutError):
                theirs.recv(1)
            pool.close()


def test_a_signal_handler_that_uses_a_pool_while_it_begins_anew_begins_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when some of the parent's connections are disowned already."""
    with Pool(FakeConnector(), max_size=1, budget=Budget(1)) as pool:
        parents = stocked_one(pool)
        disown = _fork.disown
        mine: list[object] = []

        def struck(conn: object, descriptor: object) -> None:
            disown(conn, descriptor)
            monkeypatch.undo()
            mine.append(stocked_one(pool))

        def child() -> None:
            assert stocked_one(pool) is mine[0]
            assert mine != [parents]
            stats = pool.stats()
            assert (stats.size, stats.opens) == (1, 1)

        # It has a connection that cannot be closed before the fork.
        with pool.connection():
            monkeypatch.setattr(_fork, "disown", struck)
            with forked(child) as status:
                monkeypatch.undo()
                assert status() == 0


class UsedWhileItBegins(Pool[Any]):
    """A pool that is used by a signal handler at a place of its new beginning in a child."""

    places: Places
    other: Pool[Any]
    served: object = None

    def _after_fork_in_child(self) -> None:
        if self._pid == os.getpid() or self.places.passed:
            super()._after_fork_in_child()
            return
        with self.places:
            super()._after_fork_in_child()

    def handle(self) -> None:
        with suppress(Misuse):
            stocked_one(self)
        self.served = stocked_one(self.other)


@pytest.mark.parametrize("budgeted", [True, False])
def test_a_signal_handler_that_uses_a_pool_at_any_place_of_its_new_beginning_leaves_it_whole(
    budgeted: bool, *, thorough: bool
) -> None:
    """It is served, or refused while the pool itself is in the midst of it; another pool serves it."""

    def child() -> None:
        if not pool.places.reached:
            os._exit(BEYOND)
        assert pool.served is not None
        assert_whole(pool, SIZE)

    settings: Any = {"budget": Budget(SIZE)} if budgeted else {}
    number, ended = 0, 0
    while ended != BEYOND:
        number += 1 if thorough else 3
        with (
            UsedWhileItBegins(FakeConnector(), max_size=SIZE, min_size=SIZE, **settings) as pool,
            Pool(FakeConnector(), max_size=SIZE) as pool.other,
        ):
            pool.places = Places(number, pool.handle)
            stocked(pool)
            with forked(child) as status:
                ended = os.waitstatus_to_exitcode(status())
            del pool.places
        assert ended in (0, BEYOND), f"used at place {number}"
    assert number > 50


def test_what_a_child_watches_is_watched_still_when_its_hook_is_called_again(listener: int) -> None:
    def child() -> None:
        with Pool(Socket("127.0.0.1", listener), max_size=1) as pool:
            with pool.connection():
                pass
            until(lambda: _watcher._watcher is not None and _watcher._watcher.watched)  # it is lent a moment before
            watcher = _watcher._watcher
            _fork._after_in_child()
            (entry,) = pool._core.entries
            assert _watcher._watcher is watcher
            entry.conn.send(b"!")  # and it hangs up
            until(lambda: pool.stats().closes == {"hung up": 1})

    with Pool(Socket("127.0.0.1", listener), max_size=1) as pool:
        stocked_one(pool)
        with forked(child) as status:
            assert status() == 0


EARLY = """
    import os, socket, threading

    def early():
        with pool.connection() as conn:
            borrowed.append(os.fstat(conn.fileno()).st_ino)

    borrowed = []
    os.register_at_fork(after_in_child=early)

    from millpond import Pool
    from millpond.connectors.sockets import Socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = Pool(Socket("127.0.0.1", listener.getsockname()[1]), max_size=1)
        with pool.connection() as conn:
            known = os.fstat(conn.fileno()).st_ino
        child = os.fork()
        if not child:
            os._exit(2 * (borrowed == []) + (borrowed == [known]))
        assert os.waitpid(child, 0)[1] == 0
        with pool.connection() as conn:
            assert os.fstat(conn.fileno()).st_ino == known
        pool.close()
"""


def test_a_hook_that_comes_before_millponds_is_not_lent_what_is_the_parents() -> None:
    assert run_program(EARLY, "-W", "ignore") == ""


def test_who_waits_while_a_signal_handler_forks_is_served_in_the_child() -> None:
    here = os.getpid()
    children: list[int] = []

    def fork() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            children.append(os.fork())

    try:
        with Alarm(fork) as alarm, Pool(FakeConnector(), max_size=1, timeout=60) as pool:
            conn = pool.acquire()
            alarm.set(0.05)
            try:
                # The parent's connection is never returned, and the child has one of its own.
                served = pool.acquire(0.3 if os.getpid() == here else 60)
            except PoolTimeout:
                assert os.getpid() == here
            else:
                os._exit(served is conn)
            pool.release(conn)
    except BaseException:
        if os.getpid() != here:
            os._exit(2)
        raise
    (child,) = children
    assert os.waitpid(child, 0)[1] == 0
