from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from millpond import Pool
from millpond.connector import AsyncConnector, Condition, Connector
from millpond.connectors.factory import AsyncFactory, Factory, begin, cut_number

from ..promises.children import forked, hogged

CLEAN, UNPROVED, DIRTY, BROKEN = Condition


class Thing:
    """A connection of which nothing is known."""

    closed = False

    def close(self) -> None:
        self.closed = True


class AsyncThing:
    started = finished = False

    async def aclose(self) -> None:
        self.started = True
        await anyio.sleep_forever()
        self.finished = True


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_anything_can_be_lent() -> None:
    connector: Connector[Thing] = Factory(Thing)
    conn = connector.open(5)
    assert not connector.provable
    assert connector.alive(conn)
    assert connector.descriptor(conn) is None
    connector.ping(conn, 5)
    connector.close(conn)
    assert conn.closed


def test_what_cannot_be_closed_is_let_go() -> None:
    connector: Factory[dict[str, int]] = Factory(dict)
    connector.close(connector.open(5))
    connector.abandon(connector.open(5))


def test_the_given_callables_are_called() -> None:
    called: list[object] = []
    connector = Factory(
        Thing,
        close=lambda conn: called.append(("close", conn)),
        ping=lambda conn: called.append(("ping", conn)),
        reset=lambda conn: called.append(("reset", conn)),
        abandon=lambda conn: called.append(("abandon", conn)),
        refused=lambda error: isinstance(error, PermissionError),
    )
    conn = connector.open(5)
    connector.ping(conn, 5)
    connector.reset(conn, 5)
    connector.close(conn)
    connector.abandon(conn)
    assert called == [(name, conn) for name in ("ping", "reset", "close", "abandon")]
    assert connector.refused(PermissionError())
    assert not connector.refused(OSError())
    assert not conn.closed


def test_a_proof_makes_it_provable() -> None:
    connector = Factory(Thing, inspect=lambda conn, error: DIRTY if error is None else BROKEN)
    assert connector.provable
    assert connector.inspect(Thing(), None) is DIRTY
    assert connector.inspect(Thing(), ValueError()) is BROKEN


def test_a_reset_without_a_proof_follows_every_loan() -> None:
    reset: list[Thing] = []
    connector = Factory(Thing, reset=reset.append)
    assert connector.provable
    with Pool(connector, max_size=1) as pool:
        for loan in range(4):
            with pool.connection():
                assert len(reset) == loan
    assert connector.inspect(Thing(), ValueError()) is BROKEN


def test_a_socket_is_watched(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    connector = Factory(lambda: ours)
    assert connector.descriptor(ours) == ours.fileno()
    assert connector.alive(ours)
    connector.ping(ours, 5)
    theirs.close()
    assert not connector.alive(ours)
    with pytest.raises(ConnectionError):
        connector.ping(ours, 5)


def test_unread_bytes_are_a_sign_of_death(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    assert not Factory(lambda: ours).alive(ours)


def test_a_closed_socket_has_no_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    ours.close()
    assert Factory(lambda: ours).descriptor(ours) is None


def test_a_plain_file_is_not_watched(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        connector = Factory(lambda: file)
        assert connector.descriptor(file) is None
        assert connector.alive(file)


def test_abandoning_cuts_the_socket_before_it_closes(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ends: list[bytes] = []
    connector = Factory(lambda: ours, close=lambda conn: ends.append(conn.recv(1)))  # it would wait for ever
    connector.abandon(ours)
    assert ends == [b""]
    assert theirs.recv(1) == b""


def test_abandoning_raises_nothing() -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    connector = Factory(Thing, close=fail)
    connector.abandon(Thing())
    with pytest.raises(ZeroDivisionError):
        connector.close(Thing())


def test_a_callable_that_returns_a_coroutine_is_told_where_it_belongs() -> None:
    async def connect() -> Thing:
        return Thing()

    with pytest.raises(TypeError, match="returns a coroutine; connections that are awaited are for AsyncPool"):
        Factory[object](connect).open(5)


def test_the_target_shows_no_argument() -> None:
    def dial(password: str) -> Thing:
        return Thing()

    connector = Factory(functools.partial(functools.partial(dial), "hunter2"))
    assert connector.target.endswith("dial")
    assert "hunter2" not in repr(connector)
    assert Factory(Thing).target == f"{__name__}.Thing"
    assert Factory(
        type("Dialer", (), {"__call__": lambda self: Thing(), "__repr__": lambda self: "hunter2"})()
    ).target == (f"{__name__}.Dialer")


@pytest.mark.anyio
async def test_any_awaitable_can_be_lent() -> None:
    async def dial() -> AsyncThing:
        await anyio.lowlevel.checkpoint()
        return AsyncThing()

    called: list[str] = []

    async def say(word: str, conn: AsyncThing) -> None:
        await anyio.lowlevel.checkpoint()
        called.append(word)

    connector: AsyncConnector[AsyncThing] = AsyncFactory(
        dial,
        close=functools.partial(say, "close"),
        ping=functools.partial(say, "ping"),
        reset=functools.partial(say, "reset"),
    )
    conn = await connector.open(5)
    assert isinstance(conn, AsyncThing)
    await connector.ping(conn, 5)
    await connector.reset(conn, 5)
    await connector.close(conn)
    assert called == ["ping", "reset", "close"]
    assert connector.inspect(conn, None) is UNPROVED
    plain = AsyncFactory(Thing)
    assert isinstance(await plain.open(5), Thing)
    assert not plain.provable


@pytest.mark.anyio
async def test_what_waits_too_long_is_cancelled() -> None:
    async def hang(*_: object) -> AsyncThing:
        await anyio.sleep_forever()
        return AsyncThing()

    connector = AsyncFactory(hang, ping=hang, reset=hang)
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        await connector.open(0.05)
    for call in (connector.ping, connector.reset):
        with pytest.raises(TimeoutError):
            await call(AsyncThing(), 0.05)
    assert time.monotonic() - begin < 10


@pytest.mark.anyio
async def test_abandoning_begins_an_async_close_and_does_not_wait() -> None:
    conn = AsyncThing()
    AsyncFactory(AsyncThing).abandon(conn)
    assert conn.started
    assert not conn.finished


def test_an_async_close_that_does_not_wait_is_done_at_once() -> None:
    async def close() -> None:
        closed.append(1)

    closed: list[int] = []
    begin(close())
    assert closed


def test_a_socket_is_cut_by_its_number_also_when_the_process_has_no_descriptor_left() -> None:
    ours, theirs = socket.socketpair()
    inode = os.fstat(ours.fileno()).st_ino

    def child() -> None:
        hogged()
        cut_number(ours.fileno(), inode)
        for end in (ours, theirs):
            end.settimeout(10)
        assert ours.recv(1) == theirs.recv(1) == b""

    with ours, theirs, forked(child) as status:
        assert status() == 0


def test_a_number_that_means_another_socket_by_now_is_not_cut() -> None:
    ours, theirs = socket.socketpair()
    former, _ = pair = socket.socketpair()
    inode = os.fstat(former.fileno()).st_ino
    for end in pair:
        end.close()

    def child() -> None:
        cut_number(ours.fileno(), inode)
        hogged()
        cut_number(ours.fileno(), inode)
        theirs.send(b"!")
        assert ours.recv(1) == b"!"

    with ours, theirs, forked(child) as status:
        assert status() == 0


def test_a_number_that_is_no_sockets_by_now_is_left_alone(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        before = len(os.listdir("/proc/self/fd"))
        cut_number(file.fileno())
        assert len(os.listdir("/proc/self/fd")) == before
        assert file.write(b"!") == 1
