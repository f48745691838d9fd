"""Real HTTP servers, in threads, that answer byte by byte as a test wants; and a proxy."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

__all__ = ["Request", "Server", "SocksServer", "Wire", "as_long_as_a_buffer", "chunked", "plain", "through"]


class Request(NamedTuple):
    """What a client sent."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Wire:
    """A server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")
        self.open = True

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self) -> Request | None:
        """Wait for a request; None when the client has hung up."""
        line = self._file.readline()
        if not line:
            return None
        method, target, _ = line.decode("latin-1").split()
        headers = {}
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._file.readline(), 16):
                body += self._file.read(size)
                self._file.readline()
            self._file.readline()
        else:
            body = self._file.read(int(headers.get("content-length", 0)))
        return Request(method, target, headers, body)

    def hang_up(self) -> None:
        self.open = False
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self.sock.close()


Answer = Callable[[Request, Wire], object]


def plain(body: bytes, status: str = "200 OK", headers: Mapping[str, str] | None = None) -> bytes:
    """Write a response of known length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def as_long_as_a_buffer() -> bytes:
    """Write a response that fills what reads it to the last byte. What comes in one TLS record with it stays there."""
    size = io.DEFAULT_BUFFER_SIZE
    return plain(b"x" * (size - len(plain(b"x" * size)) + size))


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    """Write a response in chunks."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks,))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n" + trailer + b"\r\n"


def echo(request: Request, wire: Wire) -> None:
    """Answer with what was asked for, after the seconds in the query, if any."""
    path, _, seconds = request.target.partition("?")
    if seconds:
        time.sleep(float(seconds))
    reply = plain(path.encode(), headers={"X-Method": request.method})
    if request.method == "HEAD":
        reply = reply[: reply.index(b"\r\n\r\n") + 4]
    wire.send(reply)


class Server:
    """An HTTP/1.1 server on a free port of its host; each connection has a thread."""

    def __init__(self, answer: Answer = echo, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.answer = answer
        self.host = host
        self._context = context
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.port = 0
        self.requests: list[Request] = []
        self._accepted: list[socket.socket] = []
        self.wires: list[Wire] = []
        self._threads: list[threading.Thread] = []
        self.start()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._context else 'http'}://{host}:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._listener = socket.create_server((self.host, self.port), family=self._family, backlog=256)
        self.port = self._listener.getsockname()[1]
        self._acceptor = self._hire(self._accept, self._listener)

    def stop(self) -> None:
        """Hang up on everybody and listen no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close all connections."""
        for sock in (*self._accepted, *(wire.sock for wire in self.wires)):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def accepted(self) -> int:
        """How many connections there have been."""
        return len(self._accepted)

    @property
    def connected(self) -> int:
        """How many connections are open."""
        return sum(wire.open for wire in self.wires)

    def close(self) -> None:
        self.stop()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hire(self, work: Callable[[socket.socket], None], sock: socket.socket) -> threading.Thread:
        thread = threading.Thread(target=work, args=(sock,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock = listener.accept()[0]
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._accepted.append(sock)
                self._hire(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            wire = Wire(self._context.wrap_socket(sock, server_side=True) if self._context else sock)
        except OSError:
            sock.close()
            return
        self.wires.append(wire)
        with contextlib.suppress(OSError, ValueError):
            while wire.open and (request := wire.receive()) is not None:
                self.requests.append(request)
                self.answer(request, wire)
        wire.hang_up()


def through(request: Request, wire: Wire) -> None:
    """Be a proxy: open a tunnel for CONNECT, forward what is asked for by its whole URL."""
    host, _, path = request.target.removeprefix("http://").partition("/")
    name, _, port = host.rpartition(":")
    if request.method != "CONNECT":
        upstream = http.client.HTTPConnection(name.strip("[]"), int(port), timeout=10)
        upstream.request(request.method, f"/{path}", request.body or None)
        wire.send(plain(upstream.getresponse().read()))
        upstream.close()
        return
    wire.send(b"HTTP/1.1 200 Connected\r\n\r\n")
    _join(wire.sock, (name.strip("[]"), int(port)))
    wire.open = False


class SocksServer(Server):
    """A SOCKS 5 proxy without passwords."""

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            assert sock.recv(2)[0] == 5
            sock.recv(255)
            sock.sendall(b"\x05\x00")
            kind = sock.recv(4)[3]
            size = {1: 4, 4: 16}.get(kind) or sock.recv(1)[0]
            host = sock.recv(size)
            port = int.from_bytes(sock.recv(2))
            sock.sendall(b"\x05\x00\x00\x01" + bytes(6))
            family = {1: socket.AF_INET, 4: socket.AF_INET6}.get(kind)
            _join(sock, (socket.inet_ntop(family, host) if family else host.decode(), port))


def _join(near: socket.socket, address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as far:
        back = threading.Thread(target=_relay, args=(far, near))
        back.start()
        _relay(near, far)
        back.join()


def _relay(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
