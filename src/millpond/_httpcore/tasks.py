"""The transport for tasks, of asyncio and trio."""

from __future__ import annotations

from time import monotonic
from typing import Any, ClassVar, Final, Self

from millpond._core.settings import Options
from millpond._httpcore.exchange import CHUNK, Exchange, plain
from millpond._httpcore.face import Face, Key, LimitsT, ProxyT, RequestT, ResponseT, pool_timeout
from millpond._httpcore.library import Library
from millpond._httpcore.link import AsyncLinks
from millpond._httpcore.pools import AsyncLinkPool
from millpond._httpcore.sharing import AsyncSharedPool
from millpond.errors import Misuse

__all__ = ["AsyncBody", "AsyncFace", "AsyncStream"]

GRACE: Final = 0.5
"""Seconds that closing waits for those whose connections it has cut."""


class AsyncFace(Face[RequestT, ResponseT, LimitsT, ProxyT, AsyncLinkPool]):
    """`AsyncHTTPTransport`."""

    _own = "AsyncHTTPTransport"
    _stream: ClassVar[type[AsyncStream]]
    _body: ClassVar[type[AsyncBody]]

    async def handle_async_request(self, request: RequestT) -> ResponseT:
        """Send a request, and return the response when its headers have come."""
        ask: Any = request
        url, library = ask.url, self._library
        key = url.raw_scheme, url.raw_host, url.port
        try:
            while True:
                pool = self._pools[key]
                try:
                    seat = await pool.borrow(pool_timeout(ask.extensions))
                except Misuse:
                    if not pool.deserted:
                        raise
                    await self.aclose()
                    continue
                try:
                    if plain(library, seat.link, ask):
                        return await self._exchange(pool, seat, ask)
                    return await self._entrust(pool, seat, ask)
                except library.httpcore.ConnectionNotAvailable as error:
                    # The server has just announced that it will take no more requests on this connection.
                    pool.give_back(seat, error)
                except BaseException as error:
                    pool.give_back(seat, error)
                    raise
        except Exception as error:
            translated = library.translated(error)
            if translated is None:
                raise
            raise translated from error

    async def _exchange(self, pool: AsyncLinkPool, seat: Any, ask: Any) -> ResponseT:
        """Do a request without httpcore."""
        library, stream = self._library, seat.link.wire.stream
        exchange = Exchange(library, seat.link, ask)
        try:
            await stream.write(exchange.head(), exchange.write_timeout)
            if not exchange.whole:
                await self._send_body(exchange, stream, ask.stream)
        except library.httpcore.WriteError:
            pass  # the server may have answered before it had everything, and closed
        while (answer := exchange.answer()) is None:
            exchange.feed(await stream.read(CHUNK, exchange.read_timeout))
        ahead = exchange.parts()
        response: ResponseT
        if exchange.ended:
            # The whole response has come at once, as most do: nothing of it needs the link any more.
            response = exchange.response(answer, library.httpx.ByteStream(ahead))
            pool.give_back(seat)
        else:
            response = exchange.response(answer, self._body(library, pool, seat, exchange, ahead))
        return response

    async def _send_body(self, exchange: Exchange, stream: Any, body: Any) -> None:
        parts = body.__aiter__()
        try:
            async for part in parts:
                await stream.write(exchange.body(part), exchange.write_timeout)
            await stream.write(exchange.tail(), exchange.write_timeout)
        finally:
            if hasattr(parts, "aclose"):
                await parts.aclose()

    async def _entrust(self, pool: AsyncLinkPool, seat: Any, ask: Any) -> ResponseT:
        """Have httpcore do a request: the first on a link, those over HTTP/2, and what is more than an exchange."""
        answer = await seat.link.connection.handle_async_request(self._library.request(ask))
        response: ResponseT = self._library.response(answer, self._stream(self._library, pool, seat, answer.stream))
        return response

    def _make(self, key: Key, options: Options) -> AsyncLinkPool:
        route = self._route(key)
        links = AsyncLinks(self._library.httpcore, self._plan, route.origin, route.layers)
        options["name"] = f"{self._name} {links.target}"
        return (AsyncSharedPool if route.shared else AsyncLinkPool)(links, self._terms, options)

    async def aclose(self) -> None:
        """Close every connection. Whoever waits for one, or uses one, gets an error at once.

        As with httpx's own, a request that comes later opens new ones.
        """
        pools, self._pools = self._pools._end(), self._begin()
        for pool in pools:
            pool.shut()
        deadline = monotonic() + GRACE
        for pool in pools:
            await pool.close(max(0.0, deadline - monotonic()))


class AsyncStream:
    """The body of a response that httpcore reads. It holds its connection until it is closed, or dropped."""

    def __init__(self, library: Library, pool: AsyncLinkPool, seat: Any, stream: Any) -> None:
        self._library = library
        self._pool = pool
        self._seat = seat
        self._stream = stream
        self._parts: Any = None
        self._cut: Exception | None = EOFError("the body was not read to its end")

    def __aiter__(self) -> Self:
        # No generator: one that is dropped halfway is closed by the loop, at a time of its choice.
        self._parts = self._stream.__aiter__()
        return self

    async def __anext__(self) -> bytes:
        try:
            part: bytes = await anext(self._parts)
            return part
        except StopAsyncIteration:
            self._cut = None
            raise
        except Exception as error:
            translated = self._library.translated(error)
            if translated is None:
                raise
            raise translated from error

    async def aclose(self) -> None:
        """Give the connection back, to be closed if the body has not been read to its end."""
        seat, self._seat = self._seat, None
        if seat is not None:
            try:
                if self._parts is not None:
                    await self._parts.aclose()
                await self._stream.aclose()
                self._pool.prove(seat.link)
            finally:
                self._pool.give_back(seat, self._cut)


class AsyncBody:
    """The body of a response that has not come as a whole. It holds its connection until it is closed, or dropped."""

    def __init__(self, library: Library, pool: AsyncLinkPool, seat: Any, exchange: Exchange, ahead: bytes) -> None:
        self._library = library
        self._pool = pool
        self._seat = seat
        self._exchange = exchange
        self._ahead = ahead

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        part, self._ahead = self._ahead, b""
        exchange = self._exchange
        try:
            while not part:
                if exchange.ended or self._seat is None:
                    raise StopAsyncIteration
                exchange.feed(await self._seat.link.wire.stream.read(CHUNK, exchange.read_timeout))
                part = exchange.parts()
            return part
        except Exception as error:
            translated = self._library.translated(error)
            if translated is None:
                raise
            raise translated from error

    async def aclose(self) -> None:
        """Give the connection back, to be closed if the body has not been read to its end."""
        seat, self._seat = self._seat, None
        if seat is not None:
            self._pool.give_back(seat)
