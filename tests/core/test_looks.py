"""A look at a socket waits no longer than it is told, with `select.poll` and where there is none."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator

import pytest

from millpond._watcher import HANG_UP, READABLE, WRITABLE, hung_up, look_at, readable


@pytest.fixture(params=["poll", "no poll"])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, ...]]:
    if request.param == "no poll":
        monkeypatch.delattr(select, "poll")
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def test_a_silent_socket_shows_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    near, _ = pair
    assert not readable(near)
    assert not hung_up(near.fileno())
    assert look_at(near, WRITABLE)(0)
    start = time.monotonic()
    assert not hung_up(near.fileno(), 0.05)
    assert not look_at(near, READABLE)(50)
    assert time.monotonic() - start >= 0.1


def test_data_is_no_hang_up(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.sendall(b"x")
    assert readable(near.fileno())
    assert look_at(near, READABLE)(None)
    assert not hung_up(near.fileno())
    assert near.recv(2) == b"x"


def test_a_hang_up_shows(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    far.shutdown(socket.SHUT_WR)
    assert readable(near)
    assert look_at(near, HANG_UP)(None)
    assert near.recv(1) == b""


def test_a_reset_shows(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.sendall(b"x")
    far.close()  # with something unread
    assert readable(near)
    assert hung_up(near.fileno())


def test_a_full_socket_is_not_writable(pair: tuple[socket.socket, socket.socket]) -> None:
    near, _ = pair
    near.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            near.send(bytes(65536))
    assert not look_at(near, WRITABLE)(0)


def test_a_closed_socket_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    near, _ = pair
    near.close()
    with pytest.raises(ValueError, match=r"closed|negative"):
        look_at(near, READABLE)
