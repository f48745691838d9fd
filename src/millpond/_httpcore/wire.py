"""The way from one of httpcore's connections to the network: what tells millpond which socket it is."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self

import anyio

from millpond._httpcore.stream import AsyncioStream, on_asyncio
from millpond.connectors.factory import begin, cut

__all__ = ["AsyncWire", "Wire"]


class _Wire:
    """A network backend of httpcore for one connection, and the stream that it has connected, both in one."""

    def __init__(self, backend: Any, core: Any) -> None:
        self._backend = backend
        self._core = core
        self.stream: Any = None
        """The stream that does the work, once there is one."""
        self.torn = False
        """Whether a write was cut short: what the peer has got of it is not known, and nothing can follow."""
        self.severed = False
        """Whether it is to be closed as soon as it is connected, since its pool has closed meanwhile."""
        self.layers = 0
        """How many layers of TLS are still to come."""
        self.heard = False
        """Whether the server itself has said something."""
        self.news: Callable[[], None] | None = None
        """Called before each write once the way is complete: httpcore then knows more than it did before."""

    def silent(self, multiplexed: bool) -> bool:
        """Tell whether nothing has been taken from the socket that nobody has read yet."""
        tls: ssl.SSLObject | None = self.stream.get_extra_info("ssl_object")
        if tls is None or multiplexed:
            return True
        # What trio's stream has taken and not decrypted yet.
        taken: ssl.MemoryBIO | None = getattr(getattr(self.stream, "_stream", None), "_incoming", None)
        return not tls.pending() and (taken is None or not taken.pending)

    def get_extra_info(self, info: str) -> Any:
        """As httpcore's."""
        return self.stream.get_extra_info(info)

    def sever(self) -> None:
        """Close at once, whatever is on its way."""
        self.severed = True
        if self.stream is not None:
            sock = self.stream.get_extra_info("socket")
            if sock is not None:
                cut(sock)
            self._close()

    def _close(self) -> None:
        raise NotImplementedError

    def _connected(self) -> Self:
        if self.severed:
            self.sever()
            raise self._core.ConnectError("The client was closed while it connected.")
        return self

    def _begin_write(self) -> None:
        if self.torn:
            raise self._core.WriteError("A request was cut short in the middle of a write; nothing can follow it.")
        if self.news is not None and not self.layers:
            self.news()


class Wire(_Wire):
    """For threads."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Wire:
        """As httpcore's."""
        self.stream = self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        return self._connected()

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> Wire:
        """As httpcore's."""
        self.stream = self._backend.connect_unix_socket(path, timeout, socket_options)
        return self._connected()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Wire:
        """As httpcore's."""
        self.stream = self.stream.start_tls(ssl_context, server_hostname, timeout)
        self.layers -= 1
        self.heard = False
        return self

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As httpcore's."""
        data: bytes = self.stream.read(max_bytes, timeout)
        self.heard = True
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """As httpcore's."""
        self._begin_write()
        try:
            self.stream.write(buffer, timeout)
        except BaseException:
            self.torn = True
            raise

    def sleep(self, seconds: float) -> None:
        """As httpcore's."""
        self._backend.sleep(seconds)

    def close(self) -> None:
        """As httpcore's."""
        self.stream.close()

    def _close(self) -> None:
        self.stream.close()


class AsyncWire(_Wire):
    """For tasks."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncWire:
        """As httpcore's."""
        if on_asyncio():
            self.stream = await AsyncioStream.connect_tcp(
                self._core, host, port, timeout, local_address, socket_options
            )
        else:
            self.stream = await self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        return self._connected()

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> AsyncWire:
        """As httpcore's."""
        if on_asyncio():
            self.stream = await AsyncioStream.connect_unix_socket(self._core, path, timeout, socket_options)
        else:
            self.stream = await self._backend.connect_unix_socket(path, timeout, socket_options)
        return self._connected()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncWire:
        """As httpcore's."""
        self.stream = await self.stream.start_tls(ssl_context, server_hostname, timeout)
        self.layers -= 1
        self.heard = False
        return self

    def silent(self, multiplexed: bool) -> bool:
        """Tell whether nothing has been taken from the socket that nobody has read yet."""
        if isinstance(self.stream, AsyncioStream):
            return self.stream.silent(multiplexed)
        return super().silent(multiplexed)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As httpcore's."""
        data: bytes = await self.stream.read(max_bytes, timeout)
        self.heard = True
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """As httpcore's."""
        self._begin_write()
        if isinstance(self.stream, AsyncioStream):
            await self.stream.write(buffer, timeout)
            return
        try:
            # What is shared is not to be torn by one who is cancelled; a write takes no longer than its time limit.
            with anyio.CancelScope(shield=self.news is not None):
                await self.stream.write(buffer, timeout)
        except BaseException:
            self.torn = True
            raise

    def sleep(self, seconds: float) -> Awaitable[None]:
        """As httpcore's."""
        pause: Awaitable[None] = self._backend.sleep(seconds)
        return pause

    async def aclose(self) -> None:
        """As httpcore's."""
        await self.stream.aclose()

    def _close(self) -> None:
        begin(self.stream.aclose())
