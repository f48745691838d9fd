"""Plain TCP and TLS connections: `socket.socket` for threads, anyio's byte streams for tasks."""

from __future__ import annotations

import os
import socket
import ssl
from time import monotonic
from typing import TYPE_CHECKING, Any

from millpond import _watcher
from millpond.connector import Condition
from millpond.connectors._client_state import ClientState
from millpond.connectors._url_text import place
from millpond.connectors.factory import begin, cut, cut_number

if TYPE_CHECKING:
    from anyio.abc import ByteStream

__all__ = ["AsyncSocket", "Socket"]


def _context(tls: bool, context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    if context is not None and not tls:
        raise ValueError("a TLS context goes with tls=True")
    return (context or ssl.create_default_context()) if tls else None


class Socket:
    """TCP connections to `host` and `port`, for a `Pool`; with `tls=True` they are `ssl.SSLSocket`s.

    TLS verifies the certificate and its name (`server_hostname`, by default `host`), by `context` or the system's
    default. `socket_timeout` is the socket's own, in seconds, for whoever borrows it (default None: it waits).
    TCP_NODELAY and SO_KEEPALIVE are on.

    Bytes have no protocol, so what is proved is this: the loan ended without an exception, and at its end the peer had
    not hung up and nothing was unread; that is looked at before the next loan, too. A borrower who left before a reply
    came, without an exception, is noticed if it has come by then.
    """

    provable = True

    def __init__(
        self,
        host: str,
        port: int,
        tls: bool = False,
        *,
        context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        socket_timeout: float | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._context = _context(tls, context)
        self._server_hostname = server_hostname or host
        self._socket_timeout = socket_timeout
        self._state = ClientState(settimeout="gettimeout()")
        self.target: str = place("tls" if tls else "tcp", host=host, port=port)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"

    def open(self, timeout: float) -> socket.socket:
        """Connect, and shake hands for TLS, within `timeout` seconds; raises OSError, of which TimeoutError is one.

        Each address of the host gets an equal share of the time that is left; looking them up cannot be cut short.
        """
        deadline = monotonic() + timeout
        addresses = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        failure: OSError | None = None
        for left, (family, kind, protocol, _, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
            end = monotonic() + (deadline - monotonic()) / left
            try:
                # An address may be of a family that this machine does not have.
                return self._connected(socket.socket(family, kind, protocol), address, end)
            except OSError as exc:
                failure = exc
        assert failure is not None
        raise failure

    def _connected(self, sock: socket.socket, address: Any, end: float) -> socket.socket:  # noqa: ANN401
        try:
            sock.settimeout(max(0.001, end - monotonic()))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._context is not None:
                sock.settimeout(max(0.001, end - monotonic()))
                sock = self._context.wrap_socket(
                    sock, server_hostname=self._server_hostname, do_handshake_on_connect=False
                )
                sock.do_handshake()
            sock.settimeout(self._socket_timeout)
            self._state.note(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def inspect(self, conn: socket.socket, error: BaseException | None) -> Condition:
        """Look for an exception, a hang-up and unread bytes; a changed timeout is put back by `reset`."""
        if error is not None or not self.alive(conn):
            return Condition.BROKEN
        return Condition.DIRTY if self._state.is_changed(conn) else Condition.CLEAN

    def alive(self, conn: socket.socket) -> bool:
        """Tell whether the socket is open, the peer has not hung up, and nothing is unread."""
        if conn.fileno() < 0:
            return False
        if not isinstance(conn, ssl.SSLSocket):
            return not _watcher.readable(conn.fileno())
        if conn.version() is None or conn.pending():
            return False  # after an unwrap() it would go on in plain text
        if not _watcher.readable(conn.fileno()):
            return True
        # It may be no more than a session ticket, which TLS 1.3 sends unasked.
        limit = conn.gettimeout()
        conn.settimeout(0)
        try:
            conn.recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            pass
        finally:
            conn.settimeout(limit)
        cut(conn)  # a byte is missing from now on
        return False

    silent = alive

    def descriptor(self, conn: socket.socket) -> int | None:
        """Return the socket's descriptor, or None once it is closed."""
        descriptor = conn.fileno()
        return descriptor if descriptor >= 0 else None

    def ping(self, conn: socket.socket, timeout: float) -> None:
        """Look as `alive` does, for there is no such question in TCP; raises ConnectionError, and does not wait."""
        if not self.alive(conn):
            raise ConnectionError(f"{self.target} has hung up, or sent something that nobody asked for")

    def reset(self, conn: socket.socket, timeout: float) -> None:
        """Put back the socket's timeout."""
        self._state.restore(conn)

    def close(self, conn: socket.socket) -> None:
        """Say goodbye, for TLS, and close; it does not wait for the peer's goodbye."""
        if isinstance(conn, ssl.SSLSocket):
            conn.settimeout(0)
            try:
                conn.unwrap()
            except (OSError, ValueError):
                pass  # that is what not waiting looks like
        self.abandon(conn)

    def abandon(self, conn: socket.socket) -> None:
        """Close the socket; a thread that still waits on it is at its end at once."""
        self._state.forget(conn)
        cut(conn)  # close() alone would leave it waiting
        conn.close()

    def refused(self, error: BaseException) -> bool:
        """Tell whether the peer's certificate is not trusted."""
        return isinstance(error, ssl.SSLCertVerificationError)


def _carrier(conn: ByteStream) -> Any:  # noqa: ANN401
    """Return the stream that has the socket, below that for TLS."""
    from anyio.streams.tls import TLSStream

    return conn.transport_stream if isinstance(conn, TLSStream) else conn


class AsyncSocket:
    """TCP connections to `host` and `port`, for an `AsyncPool` on asyncio or trio: anyio's streams.

    As `Socket`; with `tls=True` they are `anyio.streams.tls.TLSStream`s, else `anyio.abc.SocketStream`s.
    """

    provable = True

    def __init__(
        self,
        host: str,
        port: int,
        tls: bool = False,
        *,
        context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._context = _context(tls, context)
        self._server_hostname = server_hostname or host
        self.target: str = place("tls" if tls else "tcp", host=host, port=port)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"

    async def open(self, timeout: float) -> ByteStream:
        """Connect, and shake hands for TLS, within `timeout` seconds; raises OSError, of which TimeoutError is one."""
        from anyio import connect_tcp, fail_after
        from anyio.abc import SocketAttribute

        with fail_after(timeout):
            stream: ByteStream
            if self._context is None:
                stream = await connect_tcp(self._host, self._port)
            else:
                stream = await connect_tcp(
                    self._host,
                    self._port,
                    tls=True,
                    ssl_context=self._context,
                    tls_hostname=self._server_hostname,
                    tls_standard_compatible=False,  # like Socket, it does not wait for the peer's goodbye
                )
        raw = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return stream

    def inspect(self, conn: ByteStream, error: BaseException | None) -> Condition:
        """Look for an exception, a hang-up, unread bytes, and another task that still sends or receives."""
        carrier = _carrier(conn)
        if error is not None or carrier._receive_guard._guarded or carrier._send_guard._guarded:
            return Condition.BROKEN
        return Condition.CLEAN if self.alive(conn) else Condition.BROKEN

    def descriptor(self, conn: ByteStream) -> int | None:
        """Return the socket's descriptor, or None once it is closed."""
        from anyio.abc import SocketAttribute

        descriptor = conn.extra(SocketAttribute.raw_socket).fileno()
        return descriptor if descriptor >= 0 else None

    def alive(self, conn: ByteStream) -> bool:
        """Tell whether the socket is open, the peer has not hung up, and nothing is unread."""
        from anyio.streams.tls import TLSStream

        descriptor = self.descriptor(conn)
        if descriptor is None:
            return False
        # On asyncio a stream takes in more than was asked for; on trio there is no such queue.
        received = getattr(getattr(_carrier(conn), "_protocol", None), "read_queue", None)
        if not isinstance(conn, TLSStream):
            return not received and not _watcher.readable(descriptor)
        # TLS 1.3 sends session tickets unasked, so what has come must be decrypted to be told from an answer.
        try:
            while received:
                conn._read_bio.write(received.popleft())
            if _watcher.readable(descriptor):
                conn._read_bio.write(os.read(descriptor, 65536))
            if not conn._read_bio.pending and not conn._ssl_object.pending():
                return not _watcher.readable(descriptor)
            conn._ssl_object.read(1)
        except ssl.SSLWantReadError:
            return not _watcher.readable(descriptor)
        except OSError:
            pass
        cut_number(descriptor)  # a byte is missing from now on
        return False

    silent = alive

    async def ping(self, conn: ByteStream, timeout: float) -> None:
        """Look as `alive` does, for there is no such question in TCP; raises ConnectionError, and does not wait."""
        if not self.alive(conn):
            raise ConnectionError(f"{self.target} has hung up, or sent something that nobody asked for")

    async def reset(self, conn: ByteStream, timeout: float) -> None:
        """Do nothing: a stream is clean or broken."""

    async def close(self, conn: ByteStream) -> None:
        """Close the stream; it does not wait for the peer's goodbye."""
        await conn.aclose()

    def abandon(self, conn: ByteStream) -> None:
        """Close the socket; a task that still waits on it fails at once."""
        descriptor = self.descriptor(conn)
        if descriptor is not None:
            cut_number(descriptor)  # what is not yet sent would be waited for
        begin(conn.aclose())

    def refused(self, error: BaseException) -> bool:
        """Tell whether the peer's certificate is not trusted."""
        return isinstance(error, ssl.SSLCertVerificationError)
