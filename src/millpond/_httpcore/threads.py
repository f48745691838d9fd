"""The transport for threads."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any, ClassVar, Final

from millpond._core.settings import Options
from millpond._httpcore.exchange import CHUNK, Exchange, plain
from millpond._httpcore.face import Face, Key, LimitsT, ProxyT, RequestT, ResponseT, pool_timeout
from millpond._httpcore.library import Library
from millpond._httpcore.link import Links
from millpond._httpcore.pools import LinkPool
from millpond._httpcore.sharing import SharedPool

__all__ = ["Body", "Stream", "ThreadFace"]

GRACE: Final = 0.5
"""Seconds that closing waits for those whose connections it has cut."""


class ThreadFace(Face[RequestT, ResponseT, LimitsT, ProxyT, LinkPool]):
    """`HTTPTransport`."""

    _own = "HTTPTransport"
    _stream: ClassVar[type[Stream]]
    _body: ClassVar[type[Body]]

    def handle_request(self, request: RequestT) -> ResponseT:
        """Send a request, and return the response when its headers have come."""
        ask: Any = request
        url, library = ask.url, self._library
        key = url.raw_scheme, url.raw_host, url.port
        try:
            while True:
                pool = self._pools[key]
                seat = pool.borrow(pool_timeout(ask.extensions))
                try:
                    if plain(library, seat.link, ask):
                        return self._exchange(pool, seat, ask)
                    return self._entrust(pool, seat, ask)
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

    def _exchange(self, pool: LinkPool, seat: Any, ask: Any) -> ResponseT:
        """Do a request without httpcore."""
        library, stream = self._library, seat.link.wire.stream
        exchange = Exchange(library, seat.link, ask)
        try:
            stream.write(exchange.head(), exchange.write_timeout)
            if not exchange.whole:
                for chunk in ask.stream:
                    stream.write(exchange.body(chunk), exchange.write_timeout)
                stream.write(exchange.tail(), exchange.write_timeout)
        except library.httpcore.WriteError:
            pass  # the server may have answered before it had everything, and closed
        while (answer := exchange.answer()) is None:
            exchange.feed(stream.read(CHUNK, exchange.read_timeout))
        ahead = exchange.parts()
        response: ResponseT
        if exchange.ended:
            # The whole response has come at once, as most do: nothing of it needs the link any more.
            response = exchange.response(answer, library.httpx.ByteStream(ahead))
            pool.give_back(seat)
        else:
            response = exchange.response(answer, self._body(library, pool, seat, exchange, ahead))
        return response

    def _entrust(self, pool: LinkPool, seat: Any, ask: Any) -> ResponseT:
        """Have httpcore do a request: the first on a link, those over HTTP/2, and what is more than an exchange."""
        answer = seat.link.connection.handle_request(self._library.request(ask))
        response: ResponseT = self._library.response(answer, self._stream(self._library, pool, seat, answer.stream))
        return response

    def _make(self, key: Key, options: Options) -> LinkPool:
        route = self._route(key)
        links = Links(self._library.httpcore, self._plan, route.origin, route.layers)
        options["name"] = f"{self._name} {links.target}"
        return (SharedPool if route.shared else LinkPool)(links, self._terms, options)

    def close(self) -> None:
        """Close every connection. Whoever waits for one, or uses one, gets an error at once.

        As with httpx's own, a request that comes later opens new ones.
        """
        pools, self._pools = self._pools._end(), self._begin()
        for pool in pools:
            pool.shut()
        deadline = monotonic() + GRACE
        for pool in pools:
            pool.close(max(0.0, deadline - monotonic()))


class Stream:
    """The body of a response that httpcore reads. It holds its connection until it is closed, or dropped."""

    def __init__(self, library: Library, pool: LinkPool, seat: Any, stream: Any) -> None:
        self._library = library
        self._pool = pool
        self._seat = seat
        self._stream = stream
        self._cut: Exception | None = EOFError("the body was not read to its end")

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
            self._cut = None
        except GeneratorExit:
            raise
        except BaseException as error:
            translated = self._library.translated(error)
            if translated is None:
                _retire(self._seat)
                raise
            raise translated from error

    def close(self) -> None:
        """Give the connection back, to be closed if the body has not been read to its end."""
        seat, self._seat = self._seat, None
        if seat is not None:
            try:
                self._stream.close()
                self._pool.prove(seat.link)
            except BaseException:
                _retire(seat)
                raise
            finally:
                self._pool.give_back(seat, self._cut)


class Body:
    """The body of a response that has not come as a whole. It holds its connection until it is closed, or dropped."""

    def __init__(self, library: Library, pool: LinkPool, seat: Any, exchange: Exchange, ahead: bytes) -> None:
        self._library = library
        self._pool = pool
        self._seat = seat
        self._exchange = exchange
        self._ahead = ahead

    def __iter__(self) -> Iterator[bytes]:
        ahead, self._ahead = self._ahead, b""
        if ahead:
            yield ahead
        exchange = self._exchange
        try:
            while not exchange.ended and self._seat is not None:
                exchange.feed(self._seat.link.wire.stream.read(CHUNK, exchange.read_timeout))
                if part := exchange.parts():
                    yield part
        except Exception as error:
            translated = self._library.translated(error)
            if translated is None:
                raise
            raise translated from error

    def close(self) -> None:
        """Give the connection back, to be closed if the body has not been read to its end."""
        seat, self._seat = self._seat, None
        if seat is not None:
            self._pool.give_back(seat)


def _retire(seat: Any) -> None:
    """Let no other request come to a link: httpcore may have been struck in the middle of anything."""
    if seat is not None:
        seat.link.retired = True
