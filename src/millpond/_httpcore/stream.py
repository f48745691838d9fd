"""A stream of httpcore's on asyncio, without a turn of the loop that can be spared."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from asyncio import events
from collections import deque
from collections.abc import Coroutine, Iterable
from itertools import zip_longest
from typing import Any, Final, cast

from millpond import _watcher

__all__ = ["AsyncioStream", "on_asyncio"]

STAGGER: Final = 0.25
"""Seconds that one address of a host gets before the next is tried as well."""
FULL: Final = 256 * 1024
"""How many unread bytes are taken in before the peer has to wait."""


def on_asyncio() -> bool:
    """Whether the caller runs in a loop of asyncio."""
    return events._get_running_loop() is not None


class AsyncioStream(asyncio.Protocol):
    """What httpcore's own stream for asyncio does, without the one of anyio in between.

    That gives the loop a turn with each write, makes a scope for each time limit, and stops and starts reading around
    each read: half of what a small request costs. It may also be cancelled before it writes what it was given, which
    ends an HTTP/2 connection; here a write is done before anything is awaited. And before anyio 4.16 a caller who was
    cancelled while it connected left an open connection behind.
    """

    def __init__(self, core: Any) -> None:
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._came: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._held_up = False
        self._descriptor: _watcher.Descriptor | None = None

    @classmethod
    async def connect_tcp(
        cls,
        core: Any,
        host: str,
        port: int,
        timeout: float | None,
        local_address: str | None,
        socket_options: Iterable[Any] | None,
    ) -> AsyncioStream:
        """Connect; several addresses of a host are tried at the same time."""
        return await cls._connect(core, timeout, socket_options, _dial(host, port, local_address))

    @classmethod
    async def connect_unix_socket(
        cls, core: Any, path: str, timeout: float | None, socket_options: Iterable[Any] | None
    ) -> AsyncioStream:
        """Connect."""
        return await cls._connect(core, timeout, socket_options, _attempt(socket.AF_UNIX, path))

    @classmethod
    async def _connect(
        cls,
        core: Any,
        timeout: float | None,
        socket_options: Iterable[Any] | None,
        connecting: Coroutine[Any, Any, socket.socket],
    ) -> AsyncioStream:
        try:
            async with asyncio.timeout(timeout):
                sock = await connecting
                try:
                    for option in socket_options or ():
                        sock.setsockopt(*option)
                    loop = asyncio.get_running_loop()
                    connect = loop.create_unix_connection if sock.family == socket.AF_UNIX else loop.create_connection
                    _, stream = await connect(lambda: cls(core), sock=sock)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError as error:
            raise core.ConnectTimeout(error) from error
        except OSError as error:
            raise core.ConnectError(error) from error
        return stream

    def silent(self, multiplexed: bool) -> bool:
        """Tell whether the peer has not hung up, and nothing has come that nobody has read yet."""
        return not self._ended and (multiplexed or not self._came)

    # What httpcore asks for.

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has come, `max_bytes` at most, or nothing at the end."""
        came = self._came
        if not came:
            if not self._ended:
                self._reader = self._loop.create_future()
                try:
                    await self._within(timeout, self._reader, self._core.ReadTimeout)
                finally:
                    self._reader = None
            if not came:
                if self._error is not None:
                    raise self._core.ReadError(self._error) from self._error
                return b""
        data = came.popleft()
        if len(data) > max_bytes:
            came.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        full = self._size > FULL
        self._size -= len(data)
        if full and self._size <= FULL:
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send, and wait until the system has taken it."""
        if not buffer:
            return
        if self._ended and (self._error or self._transport.is_closing()):
            raise self._core.WriteError(self._error or "the connection is closed") from self._error
        self._transport.write(buffer)
        if self._held_up:
            self._writer = self._loop.create_future()
            await self._within(timeout, self._writer, self._core.WriteTimeout)
            if self._error is not None:
                raise self._core.WriteError(self._error) from self._error

    async def aclose(self) -> None:
        """Close at once."""
        self._transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncioStream:
        """Go on encrypted."""
        core = self._core
        try:
            async with asyncio.timeout(timeout):
                transport = await self._loop.start_tls(
                    self._transport, self, ssl_context, server_hostname=server_hostname
                )
        except TimeoutError as error:
            self._transport.abort()
            raise core.ConnectTimeout(error) from error
        except (OSError, ssl.SSLError) as error:
            self._transport.abort()
            raise core.ConnectError(error) from error
        assert transport is not None
        self._transport = transport
        return self

    def get_extra_info(self, info: str) -> Any:
        """Describe the connection."""
        match info:
            case "ssl_object" | "socket":
                return self._transport.get_extra_info(info)
            case "client_addr":
                return _address(self._transport.get_extra_info("sockname"))
            case "server_addr":
                return _address(self._transport.get_extra_info("peername"))
            case "is_readable":
                return not self.silent(False)
            case _:
                return None

    async def _within(self, timeout: float | None, wait: asyncio.Future[None], late: type[Exception]) -> None:
        if timeout is None:
            await wait
            return
        timer = self._loop.call_later(timeout, _expire, wait, late)
        try:
            await wait
        finally:
            timer.cancel()

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or go on encrypted."""
        self._transport = cast("asyncio.Transport", transport)
        self._descriptor = _watcher.identify(transport.get_extra_info("socket").fileno())

    def data_received(self, data: bytes) -> None:
        """Keep it for whoever reads."""
        self._came.append(bytes(data))
        self._size += len(data)
        if self._size > FULL:
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> None:
        """Note the end; asyncio then closes."""
        self._ended = True
        _wake(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self._ended = True
        self._error = exc
        _wake(self._reader)
        self.resume_writing()
        # The loop reads idle connections, too, and closes the dead before others can look.
        if self._descriptor is not None:
            _watcher.report(self._descriptor)

    def pause_writing(self) -> None:
        """Have those who write wait."""
        self._held_up = True

    def resume_writing(self) -> None:
        """Let them go on."""
        self._held_up = False
        writer, self._writer = self._writer, None
        _wake(writer)


async def _dial(host: str, port: int, local_address: str | None) -> socket.socket:
    """Connect to the first address of a host that answers.

    asyncio can do so, too. But a caller who is cancelled when the connection has just been made leaves it open there.
    (test: a_request_cancelled_anywhere)
    """
    loop = asyncio.get_running_loop()
    family: int = socket.AF_UNSPEC
    local: Any = None
    if local_address is not None:
        ((family, *_, local), *_) = await loop.getaddrinfo(local_address, 0, type=socket.SOCK_STREAM)
    addresses = await _addresses(host, port, family)
    attempts: set[asyncio.Task[socket.socket]] = set()
    errors: list[OSError] = []
    try:
        while addresses or attempts:
            if addresses:
                attempts.add(loop.create_task(_attempt(*addresses.popleft(), local)))
            done, _ = await asyncio.wait(
                attempts, timeout=STAGGER if addresses else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                attempts.remove(attempt)
                error = attempt.exception()
                if error is None:
                    return attempt.result()
                if not isinstance(error, OSError):
                    raise error
                errors.append(error)
        # As httpcore says it.
        raise OSError("All connection attempts failed") from (
            errors[0] if len(errors) == 1 else ExceptionGroup("", errors)
        )
    finally:
        errors.clear()
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_undo)


async def _attempt(family: int, address: Any, local: Any = None) -> socket.socket:
    # The loop has let go of the socket by the time that a cancellation arrives here.
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if local is not None:
            sock.bind(local)
        await asyncio.get_running_loop().sock_connect(sock, address)
        return sock
    except BaseException:
        sock.close()
        raise


def _undo(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _addresses(host: str, port: int, family: int) -> deque[tuple[int, Any]]:
    """Return the addresses of a host, those of IPv6 and IPv4 by turns."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    else:
        return deque([(socket.AF_INET6 if version == 6 else socket.AF_INET, (host, port))])
    first = [(kind, address) for kind, *_, address in found if kind == found[0][0]]
    others = [(kind, address) for kind, *_, address in found if kind != found[0][0]]
    return deque(place for pair in zip_longest(first, others) for place in pair if place is not None)


def _address(address: Any) -> Any:
    return address[:2] if isinstance(address, tuple) else address


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


def _expire(waiting: asyncio.Future[None], late: type[Exception]) -> None:
    if not waiting.done():
        waiting.set_exception(late())
