"""Every fault of the proxy, proved from both ends with real sockets."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Self

import pytest

from millpond.testing import Proxy


class Wire:
    """A listening target, a proxy before it, and the clients that come through."""

    def __init__(self) -> None:
        self.target = socket.create_server(("127.0.0.1", 0))
        self.target.settimeout(5)
        self.proxy = Proxy(*self.target.getsockname())
        self.open = contextlib.ExitStack()
        self.open.enter_context(self.target)
        self.open.enter_context(self.proxy)

    def client(self) -> socket.socket:
        return self.open.enter_context(socket.create_connection(("127.0.0.1", self.proxy.port), timeout=5))

    def accept(self) -> socket.socket:
        server = self.open.enter_context(self.target.accept()[0])
        server.settimeout(5)
        return server

    def pair(self) -> tuple[socket.socket, socket.socket]:
        client = self.client()
        return client, self.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as wire:
        yield wire


def silent(end: socket.socket, seconds: float = 0.05) -> bool:
    """Whether nothing comes: no byte, no end, no reset."""
    return not select.select([end], [], [], seconds)[0]


def read(end: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (chunk := end.recv(count - len(found))):
        found += chunk
    return found


def test_bytes_go_both_ways_unchanged_and_are_counted(wire: Wire) -> None:
    client, server = wire.pair()
    client.sendall(b"ping")
    assert read(server, 4) == b"ping"
    server.sendall(b"pong!")
    assert read(client, 5) == b"pong!"
    assert (wire.proxy.accepted, wire.proxy.live) == (1, 1)
    assert (wire.proxy.bytes_from_client, wire.proxy.bytes_from_server) == (4, 5)


def test_more_than_any_buffer_holds_arrives_whole(wire: Wire) -> None:
    client, server = wire.pair()
    sent = os.urandom(1 << 20) * 40
    found = bytearray()
    client.setblocking(False)
    rest = memoryview(sent)
    while len(found) < len(sent):
        readable, writable, _ = select.select([server], [client] if rest else [], [], 5)
        assert readable or writable, "it stalled"
        if writable:
            rest = rest[client.send(rest[:262144]) :]
        if readable:
            found += server.recv(262144)
    assert bytes(found) == sent


def test_an_end_is_passed_on_and_the_other_way_stays_open(wire: Wire) -> None:
    client, server = wire.pair()
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    assert read(server, 4) == b"last"
    assert server.recv(1) == b""
    server.sendall(b"answer")
    assert read(client, 6) == b"answer"
    assert wire.proxy.live == 1
    server.close()
    assert client.recv(1) == b""
    wire.proxy.wait_until_live(0)


def test_a_reset_is_passed_on(wire: Wire) -> None:
    client, server = wire.pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    wire.proxy.wait_until_live(0)


def test_a_client_is_reset_when_the_target_does_not_answer(wire: Wire) -> None:
    wire.target.close()
    with pytest.raises(ConnectionResetError):  # at once or on the first read, as the kernel has it
        wire.client().recv(1)
    wire.proxy.wait_until_live(0)


def test_delay_holds_each_byte_back_by_the_given_time_each_way(wire: Wire) -> None:
    client, server = wire.pair()
    wire.proxy.delay(0.1)
    began = time.monotonic()
    client.sendall(b"ping")
    assert read(server, 4) == b"ping"
    there = time.monotonic() - began
    server.sendall(b"pong")
    assert read(client, 4) == b"pong"
    back = time.monotonic() - began
    assert there >= 0.1
    assert back >= 0.2


def test_delay_keeps_order_and_lets_messages_follow_each_other_closely(wire: Wire) -> None:
    client, server = wire.pair()
    wire.proxy.delay(0.2)
    began = time.monotonic()
    for number in range(50):
        client.sendall(struct.pack("!I", number))
    assert struct.unpack("!50I", read(server, 200)) == tuple(range(50))
    assert time.monotonic() - began < 5, "each waited for the one before it, which would take 10 s"


def test_a_shortened_delay_lets_nothing_overtake(wire: Wire) -> None:
    client, server = wire.pair()
    wire.proxy.delay(0.2)
    client.sendall(b"first")
    wire_has(wire, 5)
    wire.proxy.delay(0)
    client.sendall(b"second")
    assert read(server, 11) == b"firstsecond"


def test_delay_holds_for_connections_that_come_later(wire: Wire) -> None:
    wire.proxy.delay(0.1)
    client, server = wire.pair()
    began = time.monotonic()
    client.sendall(b"x")
    assert read(server, 1) == b"x"
    assert time.monotonic() - began >= 0.1


def test_cut_ends_live_connections_on_both_sides_without_a_reset(wire: Wire) -> None:
    pairs = [wire.pair() for _ in range(3)]
    wire.proxy.cut()
    assert wire.proxy.live == 0
    for end in (end for pair in pairs for end in pair):
        assert end.recv(1) == b""
    client, server = wire.pair()
    client.sendall(b"x")
    assert read(server, 1) == b"x"


def test_cut_ends_without_a_reset_even_when_bytes_were_held(wire: Wire) -> None:
    client, server = wire.pair()
    wire.proxy.black_hole()
    client.sendall(b"never arrives")
    server.sendall(b"neither")
    wire.proxy.cut()
    assert client.recv(1) == b""
    assert server.recv(1) == b""


def test_cut_ends_without_a_reset_even_when_bytes_had_just_come(wire: Wire) -> None:
    client, server = wire.pair()

    def just_then() -> None:
        client.sendall(b"not read yet")
        wire.proxy._each(wire.proxy._finish)

    wire.proxy._order(just_then)  # in the proxy's thread, which therefore does not read them first
    assert client.recv(1) == b""
    assert server.recv(1) == b""


def test_reset_resets_live_connections_on_both_sides(wire: Wire) -> None:
    client, server = wire.pair()
    wire.proxy.reset()
    assert wire.proxy.live == 0
    for end in (client, server):
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    client, server = wire.pair()
    client.sendall(b"x")
    assert read(server, 1) == b"x"


def test_half_close_ends_what_the_client_reads_and_carries_what_it_sends(wire: Wire) -> None:
    client, server = wire.pair()
    wire.proxy.half_close()
    assert client.recv(1) == b""
    client.sendall(b"still here")
    assert read(server, 10) == b"still here"
    server.sendall(b"lost")
    assert wire.proxy.live == 1
    client.close()
    assert server.recv(1) == b""
    wire.proxy.wait_until_live(0)


def test_black_hole_lets_nothing_through_and_tells_nobody(wire: Wire) -> None:
    client, server = wire.pair()
    wire.proxy.black_hole()
    client.sendall(b"hello?")
    server.sendall(b"anybody?")
    wire_has(wire, 6)
    assert silent(client)
    assert silent(server)
    server.close()
    assert silent(client)


def test_black_hole_takes_new_connections_into_the_same_silence(wire: Wire) -> None:
    wire.proxy.black_hole()
    client = wire.client()
    client.sendall(b"hello?")
    wire_has(wire, 6)
    assert silent(client)
    assert silent(wire.target)


def test_what_was_sent_into_a_black_hole_arrives_when_it_heals(wire: Wire) -> None:
    client, server = wire.pair()
    wire.proxy.black_hole()
    client.sendall(b"one ")
    late = wire.client()
    late.sendall(b"late")
    wire_has(wire, 8)
    server.close()
    wire.proxy.heal()
    assert client.recv(1) == b""
    assert read(wire.accept(), 4) == b"late"


def test_a_dropped_connection_never_speaks_again_and_new_ones_do(wire: Wire) -> None:
    client, server = wire.pair()
    wire.proxy.drop()
    client.sendall(b"hello?")
    server.sendall(b"anybody?")
    wire_has(wire, 6)
    server.close()
    wire.proxy.heal()
    assert silent(client)
    wire.proxy.delay(0.01)
    late = wire.client()
    late.sendall(b"late")
    assert read(wire.accept(), 4) == b"late"
    assert silent(client)


@pytest.mark.skipif(not os.path.exists("/proc/sys/net"), reason="other systems accept into the queue all the same")
def test_black_hole_that_accepts_nobody_leaves_connects_unanswered_until_it_heals(wire: Wire) -> None:
    live, server = wire.pair()
    wire.proxy.black_hole(accept=False)
    client = wire.open.enter_context(socket.socket())
    client.setblocking(False)
    assert client.connect_ex(("127.0.0.1", wire.proxy.port)) == errno.EINPROGRESS
    assert not select.select([], [client], [], 0.1)[1]
    live.sendall(b"held")
    assert silent(server)
    wire.proxy.heal()
    assert read(server, 4) == b"held"
    again, behind = wire.pair()
    again.sendall(b"x")
    assert read(behind, 1) == b"x"
    assert wire.proxy.accepted == 2


def test_refuse_refuses_new_connections_and_carries_live_ones_until_it_heals(wire: Wire) -> None:
    client, server = wire.pair()
    wire.proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        wire.client()
    client.sendall(b"x")
    assert read(server, 1) == b"x"
    port = wire.proxy.port
    wire.proxy.heal()
    assert wire.proxy.port == port
    client, server = wire.pair()
    client.sendall(b"y")
    assert read(server, 1) == b"y"


def test_what_each_client_sent_last_can_be_read_after_its_end(wire: Wire) -> None:
    first, behind_first = wire.pair()
    second, behind_second = wire.pair()
    second.sendall(b"second says more")
    first.sendall(b"first" * 1000 + b"X\0\0\0\4")
    first.close()
    assert read(behind_first, 5005).endswith(b"X\0\0\0\4")
    assert read(behind_second, 16)
    sent = wire.proxy.sent_by_client()
    assert sent[0].endswith(b"firstX\0\0\0\4")
    assert len(sent[0]) == 4096
    assert sent[1] == b"second says more"


def test_waiting_for_a_number_of_connections_ends_with_it_or_raises(wire: Wire) -> None:
    clients = [wire.client() for _ in range(3)]
    wire.proxy.wait_until_live(3)
    clients[0].close()
    wire.accept().close()
    wire.proxy.wait_until_accepted(3)
    with pytest.raises(TimeoutError, match="3 accepted"):
        wire.proxy.wait_until_live(7, timeout=0.01)


def test_a_url_is_led_through_the_proxy_and_keeps_all_else(wire: Wire) -> None:
    port = wire.proxy.port
    assert wire.proxy.url_for("postgresql://u:p%40@db:5432/app?x=1") == f"postgresql://u:p%40@127.0.0.1:{port}/app?x=1"
    assert wire.proxy.url_for("redis://db/0") == f"redis://127.0.0.1:{port}/0"


def test_close_ends_every_connection_and_frees_the_port() -> None:
    with Wire() as wire:
        client, server = wire.pair()
        port = wire.proxy.port
        wire.proxy.close()
        assert client.recv(1) == b""
        assert server.recv(1) == b""
        wire.proxy.close()
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_hold_open_what_the_proxy_closes(wire: Wire) -> None:
    client, server = wire.pair()
    gate, let_go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(let_go)
        os.read(gate, 1)  # lives on until the parent has seen both ends reset
        os._exit(0)
    try:
        wire.proxy.reset()
        for end in (client, server):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
    finally:
        os.close(let_go)
        os.close(gate)
        os.waitpid(child, 0)


def wire_has(wire: Wire, count: int) -> None:
    """Wait until the proxy has read that many bytes from clients."""
    deadline = time.monotonic() + 5
    while wire.proxy.bytes_from_client < count:
        assert time.monotonic() < deadline, "the bytes did not reach the proxy"
        time.sleep(0.001)
