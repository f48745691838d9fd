from __future__ import annotations

import contextlib
import queue
import select
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import Any

import anyio
import pytest
import trustme
from anyio.abc import ByteStream, SocketAttribute

from millpond import AsyncPool, ConnectFailed, Pool, PoolTimeout
from millpond.connector import AsyncConnector, Condition, Connector
from millpond.connectors.sockets import AsyncSocket, Socket
from millpond.testing.proxy import Proxy

CLEAN, UNPROVED, DIRTY, BROKEN = Condition


class Peer:
    """A server whose ends of the connections are in the test's hands."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._context = context
        self._ends: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._opened: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def end(self) -> socket.socket:
        return self._ends.get(timeout=10)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for end in self._opened:
            end.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end = self._listener.accept()[0]
                if self._context is not None:
                    try:
                        end = self._context.wrap_socket(end, server_side=True)
                    except OSError:
                        end.close()
                        continue
                self._opened.append(end)
                self._ends.put(end)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(params=["tcp", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    return str(request.param) == "tls"


@pytest.fixture
def peer(tls: bool, authority: trustme.CA) -> Iterator[Peer]:
    context = None
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("pond.test").configure_cert(context)
    peer = Peer(context)
    yield peer
    peer.close()


@pytest.fixture
def connector(peer: Peer, tls: bool, trusting: ssl.SSLContext) -> Socket:
    if not tls:
        return Socket("127.0.0.1", peer.port)
    return Socket("127.0.0.1", peer.port, tls=True, context=trusting, server_hostname="pond.test")


@pytest.fixture
def conn(connector: Socket) -> Iterator[socket.socket]:
    conn = connector.open(5)
    yield conn
    connector.abandon(conn)


@pytest.fixture
def async_connector(peer: Peer, tls: bool, trusting: ssl.SSLContext) -> AsyncSocket:
    if not tls:
        return AsyncSocket("127.0.0.1", peer.port)
    return AsyncSocket("127.0.0.1", peer.port, tls=True, context=trusting, server_hostname="pond.test")


@pytest.fixture
async def stream(async_connector: AsyncSocket) -> AsyncIterator[ByteStream]:
    stream = await async_connector.open(5)
    yield stream
    await stream.aclose()


def wait_until_readable(descriptor: int | None) -> None:
    assert descriptor is not None
    assert select.select([descriptor], [], [], 10)[0]


def spoil(end: socket.socket, how: str) -> None:
    if how == "unread":
        end.sendall(b"x")
    else:
        end.shutdown(socket.SHUT_RDWR)


# Threads


def test_a_new_connection_is_clean_and_alive(
    connector: Connector[socket.socket], conn: socket.socket, tls: bool
) -> None:
    assert connector.provable
    assert connector.inspect(conn, None) is CLEAN
    assert connector.alive(conn)
    assert connector.descriptor(conn) == conn.fileno()
    assert isinstance(conn, ssl.SSLSocket) is tls
    assert conn.gettimeout() is None
    assert conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert conn.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    connector.ping(conn, 5)


def test_an_exchange_that_was_read_to_its_end_leaves_it_clean(
    connector: Socket, conn: socket.socket, peer: Peer
) -> None:
    end = peer.end()
    for _ in range(3):
        conn.sendall(b"ask")
        assert end.recv(3) == b"ask"
        end.sendall(b"answer")
        assert conn.recv(6) == b"answer"
        assert connector.inspect(conn, None) is CLEAN


def test_a_session_ticket_is_not_taken_for_an_answer(
    connector: Socket, conn: socket.socket, peer: Peer, tls: bool
) -> None:
    if tls:
        wait_until_readable(conn.fileno())  # TLS 1.3 sends it unasked
    assert connector.alive(conn)
    assert connector.inspect(conn, None) is CLEAN


@pytest.mark.parametrize("how", ["unread", "hung up"])
def test_what_is_unread_breaks_the_connection(connector: Socket, conn: socket.socket, peer: Peer, how: str) -> None:
    end = peer.end()
    conn.sendall(b"ask")
    end.recv(3)
    connector.alive(conn)  # takes in the tickets
    spoil(end, how)
    wait_until_readable(conn.fileno())
    assert not connector.alive(conn)
    assert connector.inspect(conn, None) is BROKEN
    with pytest.raises(ConnectionError):
        connector.ping(conn, 5)


@pytest.mark.parametrize("tls", ["tls"], indirect=True)
def test_what_is_left_of_a_connection_that_was_cut_is_no_ciphertext(
    connector: Socket, conn: socket.socket, peer: Peer
) -> None:
    end = peer.end()
    for _ in range(2):
        end.sendall(b"answer")
    end.close()
    wait_until_readable(conn.fileno())
    assert not connector.alive(conn)  # which reads one byte, and cuts it
    taken = b"a"
    with contextlib.suppress(OSError):
        while some := conn.recv(100):
            taken += some
    assert b"answeranswer".startswith(taken)


def test_a_half_read_answer_breaks_the_connection(connector: Socket, conn: socket.socket, peer: Peer) -> None:
    peer.end().sendall(b"answer")
    assert conn.recv(3) == b"ans"
    assert connector.inspect(conn, None) is BROKEN


def test_an_exception_breaks_the_connection(connector: Socket, conn: socket.socket) -> None:
    assert connector.inspect(conn, KeyboardInterrupt()) is BROKEN


def test_a_connection_that_its_borrower_closed_is_broken(connector: Socket, conn: socket.socket) -> None:
    conn.close()
    assert connector.inspect(conn, None) is BROKEN
    assert not connector.alive(conn)
    assert connector.descriptor(conn) is None


def test_a_changed_timeout_does_not_reach_the_next(peer: Peer, tls: bool, trusting: ssl.SSLContext) -> None:
    connector = Socket(
        "127.0.0.1",
        peer.port,
        tls=tls,
        context=trusting if tls else None,
        server_hostname="pond.test",
        socket_timeout=7,
    )
    conn = connector.open(5)
    assert conn.gettimeout() == 7
    conn.settimeout(1)
    assert connector.inspect(conn, None) is DIRTY
    connector.reset(conn, 5)
    assert connector.inspect(conn, None) is CLEAN
    assert conn.gettimeout() == 7
    connector.close(conn)


@pytest.mark.parametrize("tls", ["tls"], indirect=True)
def test_a_tls_connection_whose_borrower_took_tls_down_is_broken(peer: Peer, trusting: ssl.SSLContext) -> None:
    """What the next one sends would go in plain text."""
    connector = Socket("127.0.0.1", peer.port, tls=True, context=trusting, server_hostname="pond.test")
    conn = connector.open(5)
    assert isinstance(conn, ssl.SSLSocket)
    answer = threading.Thread(target=lambda: peer.end().unwrap())  # type: ignore[attr-defined]
    answer.start()
    conn.unwrap()
    answer.join(5)
    assert connector.inspect(conn, None) is BROKEN
    connector.abandon(conn)


@pytest.mark.parametrize("limit", [1 / 3, 10 / 7, 0.1, 2, None])
def test_a_timeout_that_python_keeps_less_exactly_is_no_change(peer: Peer, limit: float | None) -> None:
    with Pool(Socket("127.0.0.1", peer.port, socket_timeout=limit), max_size=1) as pool:
        for _ in range(5):
            with pool.connection():
                pass
            with pool.connection() as conn:
                conn.settimeout(7)
        assert (pool.stats().opens, pool.stats().closes) == (1, {})


def test_closing_says_goodbye(connector: Socket, peer: Peer) -> None:
    conn = connector.open(5)
    end = peer.end()
    assert connector.alive(conn)  # takes in the tickets; what is unread would turn the goodbye into a reset
    connector.close(conn)
    assert end.recv(1) == b""
    assert conn.fileno() == -1


def test_what_comes_between_two_loans_is_lent_to_nobody(connector: Socket, peer: Peer) -> None:
    with Pool(connector, max_size=1) as pool:
        with pool.connection() as conn:
            end = peer.end()
        with pool.connection() as again:
            assert again is conn
        end.sendall(b"late")
        wait_until_readable(conn.fileno())
        with pool.connection() as other:
            assert other is not conn
        assert sum(pool.stats().closes.values()) == 1


def test_a_server_that_speaks_first_is_lent_with_what_it_has_said(connector: Socket, peer: Peer) -> None:
    with Pool(connector, min_size=1) as pool:
        end = peer.end()
        pool.warm()
        end.sendall(b"welcome")
        (entry,) = pool._core.entries
        wait_until_readable(entry.conn.fileno())
        with pool.connection() as conn:
            assert conn.recv(7) == b"welcome"
        assert pool.stats().opens == 1


# Tasks, on asyncio and trio


@pytest.mark.anyio
async def test_what_comes_between_two_loans_of_tasks_is_lent_to_nobody(
    async_connector: AsyncSocket, peer: Peer
) -> None:
    async with AsyncPool(async_connector, max_size=1) as pool:
        async with pool.connection() as conn:
            end = peer.end()
        async with pool.connection() as again:
            assert again is conn
        end.sendall(b"late")
        wait_until_readable(async_connector.descriptor(conn))
        async with pool.connection() as other:
            assert other is not conn
        assert sum(pool.stats().closes.values()) == 1


@pytest.mark.anyio
async def test_a_caller_whose_time_is_up_is_told_so_though_something_had_come(
    async_connector: AsyncSocket, peer: Peer
) -> None:
    async with AsyncPool(async_connector, max_size=1) as pool:
        async with pool.connection() as conn:
            end = peer.end()
        end.sendall(b"late")
        wait_until_readable(async_connector.descriptor(conn))
        with pytest.raises(PoolTimeout):
            async with pool.connection(timeout=0):
                pass
        async with pool.connection() as other:
            assert other is not conn


@pytest.mark.anyio
async def test_a_new_stream_is_clean_and_alive(
    async_connector: AsyncConnector[ByteStream], stream: ByteStream, peer: Peer
) -> None:
    assert async_connector.provable
    assert async_connector.inspect(stream, None) is CLEAN
    assert async_connector.alive(stream)
    raw = stream.extra(SocketAttribute.raw_socket)
    assert async_connector.descriptor(stream) == raw.fileno()
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    await async_connector.ping(stream, 5)
    await async_connector.reset(stream, 5)


@pytest.mark.anyio
async def test_an_exchange_between_looks_is_not_disturbed(
    async_connector: AsyncSocket, stream: ByteStream, peer: Peer
) -> None:
    end = peer.end()
    for _ in range(3):
        await stream.send(b"ask")
        assert await anyio.to_thread.run_sync(end.recv, 3) == b"ask"
        end.sendall(b"answer")
        answer = b""
        while len(answer) < 6:
            answer += await stream.receive()
        assert answer == b"answer"
        assert async_connector.inspect(stream, None) is CLEAN


@pytest.mark.anyio
async def test_a_session_ticket_is_not_taken_for_an_answer_by_a_task(
    async_connector: AsyncSocket, stream: ByteStream, peer: Peer, tls: bool
) -> None:
    peer.end()
    if tls:
        wait_until_readable(async_connector.descriptor(stream))
    assert async_connector.alive(stream)
    assert async_connector.inspect(stream, None) is CLEAN


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["unread", "hung up"])
async def test_what_is_unread_breaks_the_stream(
    async_connector: AsyncSocket, stream: ByteStream, peer: Peer, how: str
) -> None:
    end = peer.end()
    async_connector.alive(stream)
    spoil(end, how)
    wait_until_readable(async_connector.descriptor(stream))
    assert not async_connector.alive(stream)
    assert async_connector.inspect(stream, None) is BROKEN
    with pytest.raises(ConnectionError):
        await async_connector.ping(stream, 5)


@pytest.mark.anyio
async def test_a_half_read_answer_breaks_the_stream(
    async_connector: AsyncSocket, stream: ByteStream, peer: Peer
) -> None:
    peer.end().sendall(b"answer")
    assert await stream.receive(3) == b"ans"
    assert async_connector.inspect(stream, None) is BROKEN


@pytest.mark.anyio
async def test_an_exception_breaks_the_stream(async_connector: AsyncSocket, stream: ByteStream) -> None:
    assert async_connector.inspect(stream, TimeoutError()) is BROKEN


@pytest.mark.anyio
async def test_a_stream_that_its_borrower_closed_is_broken(async_connector: AsyncSocket, stream: ByteStream) -> None:
    await async_connector.close(stream)
    await anyio.wait_all_tasks_blocked()
    assert async_connector.inspect(stream, None) is BROKEN
    assert async_connector.descriptor(stream) is None


@pytest.mark.anyio
async def test_abandoning_a_stream_closes_it_at_once(async_connector: AsyncSocket, peer: Peer) -> None:
    stream = await async_connector.open(5)
    end = peer.end()
    assert async_connector.alive(stream)  # takes in the tickets; what is unread would turn the end into a reset
    async_connector.abandon(stream)
    await anyio.wait_all_tasks_blocked()
    assert await anyio.to_thread.run_sync(end.recv, 1) == b""


# Opening


@pytest.mark.parametrize("tls", ["tls"], indirect=True)
def test_a_certificate_of_a_stranger_is_a_refusal(peer: Peer, trusting: ssl.SSLContext) -> None:
    for connector in (
        Socket("127.0.0.1", peer.port, tls=True),
        Socket("127.0.0.1", peer.port, tls=True, context=trusting),  # the name is not the one it was issued for
    ):
        with pytest.raises(ssl.SSLCertVerificationError) as failure:
            connector.open(5)
        assert connector.refused(failure.value)
        with Pool(connector) as pool, pytest.raises(ConnectFailed, match="is not let in by tls://"):
            pool.acquire()


@pytest.mark.anyio
@pytest.mark.parametrize("tls", ["tls"], indirect=True)
async def test_a_certificate_of_a_stranger_is_a_refusal_to_a_task(peer: Peer, trusting: ssl.SSLContext) -> None:
    connector = AsyncSocket("127.0.0.1", peer.port, tls=True)
    with pytest.raises(ssl.SSLCertVerificationError) as failure:
        await connector.open(5)
    assert connector.refused(failure.value)


@pytest.mark.parametrize("case", ["connect", "handshake"])
def test_opening_ends_in_time_in_a_black_hole(case: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, Proxy(*silent.getsockname()) as wire:
        wire.black_hole(accept=case == "handshake")
        connector = Socket("127.0.0.1", wire.port, tls=True)
        begin = monotonic()
        with pytest.raises(TimeoutError) as failure:
            connector.open(0.3)
        assert 0.25 <= monotonic() - begin < 4
        assert not connector.refused(failure.value)


@pytest.mark.anyio
@pytest.mark.parametrize("case", ["connect", "handshake"])
async def test_opening_by_a_task_ends_in_time_in_a_black_hole(case: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, Proxy(*silent.getsockname()) as wire:
        wire.black_hole(accept=case == "handshake")
        connector = AsyncSocket("127.0.0.1", wire.port, tls=True)
        begin = monotonic()
        with pytest.raises(TimeoutError):
            await connector.open(0.3)
        assert 0.25 <= monotonic() - begin < 4


def test_an_address_of_a_family_that_is_not_there_is_passed_over(two_addresses: tuple[str, int]) -> None:
    connector = Socket(*two_addresses)
    conn = connector.open(5)
    assert conn.getpeername() == ("127.0.0.1", two_addresses[1])
    connector.close(conn)


async def open_and_close(connector: AsyncSocket) -> Any:
    stream = await connector.open(5)
    peer = stream.extra(SocketAttribute.remote_address)
    await connector.close(stream)
    return peer


def test_a_task_passes_over_an_address_of_a_family_that_is_not_there(two_addresses: tuple[str, int]) -> None:
    assert anyio.run(open_and_close, AsyncSocket(*two_addresses)) == ("127.0.0.1", two_addresses[1])


@pytest.mark.usefixtures("two_addresses")
def test_of_several_addresses_the_last_failure_is_told(two_addresses: tuple[str, int]) -> None:
    with pytest.raises(ConnectionRefusedError):
        Socket("two.test", 1).open(5)


def test_a_closed_port_is_no_refusal() -> None:
    connector = Socket("127.0.0.1", 1)
    with pytest.raises(ConnectionRefusedError) as failure:
        connector.open(5)
    assert not connector.refused(failure.value)


def test_the_target_is_a_url() -> None:
    assert repr(Socket("db", 5)) == "<Socket tcp://db:5>"
    assert repr(AsyncSocket("::1", 5, tls=True)) == "<AsyncSocket tls://[::1]:5>"


def test_a_context_without_tls_is_declined() -> None:
    with pytest.raises(ValueError, match="tls=True"):
        Socket("db", 5, context=ssl.create_default_context())
