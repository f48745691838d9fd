"""Connections that own their loans, and connections that change their sockets: what drop-in pools lend."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

import millpond
from millpond import _watcher

from .conftest import Shell, in_thread

pytestmark = pytest.mark.anyio

Make = Callable[..., Shell]


class Owner:
    """A connection that can own its loan."""

    loan: Any = None


class Owners(Shell):
    """A pool of them."""

    def __init__(self, way: Any, **settings: Any) -> None:
        self.way = way
        self.opened = 0
        self.closed: list[Owner] = []
        if way == "threads":
            self.pool = millpond.Pool(self.open, close=self.closed.append, **settings)
        else:
            self.pool = millpond.AsyncPool(self.open_async, close=self.closed.append, **settings)

    def open(self) -> Owner:
        self.opened += 1
        return Owner()

    async def open_async(self) -> Owner:
        return self.open()

    def audit(self) -> list[str]:
        found: list[str] = self.pool._step(self.pool._core.audit)
        return found


@pytest.fixture
async def owners(make: Make, way: Any) -> Any:
    shell = Owners(way, max_size=1)
    yield shell
    assert shell.audit() == []
    await shell.call("close", 1.0)


async def test_a_connection_that_its_borrower_drops_gives_its_place_back(owners: Owners) -> None:
    for number in range(1, 4):
        # By way of a list, since the worker threads of older versions of anyio keep what a call has returned.
        lent = []
        if owners.way == "threads":
            await in_thread(lambda: lent.append(owners.pool._lend()))  # noqa: B023
        else:
            lent.append(await owners.pool._lend())
        assert owners.pool.stats().lent == 1
        assert owners.opened == number
        lent.clear()
        stats = await owners.until(lambda stats: stats.size == 0)
        assert stats.closes["lost"] == number
    assert owners.audit() == []


async def test_a_connection_that_owns_its_loan_is_lent_again(owners: Owners) -> None:
    conn = await owners.call("_lend")
    owners.pool._take_back(conn)
    again = await owners.call("_lend")
    assert again is conn
    owners.pool._take_back(conn)
    assert owners.opened == 1
    assert owners.pool.stats().idle == 1


async def test_what_is_not_on_loan_is_not_taken_back(owners: Owners) -> None:
    conn = await owners.call("_lend")
    owners.pool._take_back(conn)
    for stranger in (conn, Owner()):
        with pytest.raises(millpond.Misuse, match="not on loan from it"):
            owners.pool._take_back(stranger)
    assert owners.pool.stats().idle == 1


async def test_a_connection_that_has_changed_its_socket_is_watched_anew(make: Make) -> None:
    shell = make(max_size=1, watchable=True)
    conn = await shell.acquire()
    assert conn._ends is not None
    number = conn._ends[0].fileno()
    await shell.until(lambda _: _watcher._watcher is not None and number in _watcher._watcher.watched)
    for end in conn._ends:
        end.close()
    conn._ends = socket.socketpair()
    conn.dirty = True
    shell.pool.release(conn)
    await shell.until(lambda stats: stats.idle == 1)
    shell.fake.die(conn)
    await shell.until(lambda stats: stats.closes.get("hung up") == 1)
