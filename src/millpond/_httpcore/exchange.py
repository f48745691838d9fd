"""One request and its response over HTTP/1.1.

httpcore sees to this itself, and does for the first request on a connection, which connects it, and wherever more than
a plain exchange is asked for (`plain`). But three quarters of the time that it takes go to locks that nobody else
wants, to traces that nobody reads, and to layers of iterators. So the rest goes to the same connection's own h11 state
and stream directly. What is sent, what is accepted and what is raised is the same.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import h11

from millpond._httpcore.library import Library
from millpond._httpcore.link import Link

__all__ = ["CHUNK", "Exchange", "plain"]

CHUNK: Final = 64 * 1024
"""How much is read at once."""
NOTHING: Final[dict[str, Any]] = {}


def plain(library: Library, link: Link, request: Any) -> bool:
    """Whether an exchange can do without httpcore's own way: no switch of protocols, no trace, nobody who debugs."""
    return (
        link.direct
        and "trace" not in request.extensions
        and request.method != "CONNECT"
        and "upgrade" not in request.headers
        and not library.http11_log.isEnabledFor(logging.DEBUG)
    )


class Exchange:
    """What is to be sent, and what is made of what comes; a shell does the sending and receiving."""

    __slots__ = ("_library", "_link", "_request", "_state", "ended", "read_timeout", "write_timeout")

    def __init__(self, library: Library, link: Link, request: Any) -> None:
        self._library = library
        self._link = link
        self._request = request
        self._state: h11.Connection = link.inner._h11_state
        timeouts = request.extensions.get("timeout", NOTHING)
        self.read_timeout: float | None = timeouts.get("read")
        self.write_timeout: float | None = timeouts.get("write")
        self.ended = False
        """Whether the whole response has been received."""

    def head(self) -> bytes:
        """Begin; return what is to be sent first. If the body is at hand, that is everything."""
        request, state = self._request, self._state
        data = state.send(
            h11.Request(
                method=request.method,
                target=request.extensions.get("target", request.url.raw_path),
                headers=request.headers.raw,
            )
        )
        if self.whole:
            body = b"".join(request.stream)
            return data + (self.body(body) if body else b"") + self.tail()
        return data

    @property
    def whole(self) -> bool:
        """Whether the body is at hand, and needs no iterating."""
        return isinstance(self._request.stream, self._library.httpx.ByteStream)

    def body(self, chunk: bytes) -> bytes:
        """Return what is to be sent for a part of the body."""
        return self._state.send(h11.Data(data=chunk))

    def tail(self) -> bytes:
        """Return what is to be sent after the body."""
        return self._state.send(h11.EndOfMessage())

    def feed(self, data: bytes) -> None:
        """Take what was received; nothing, if the peer has closed."""
        if not data and self._state.their_state is h11.SEND_RESPONSE:
            raise self._library.httpcore.RemoteProtocolError("Server disconnected without sending a response.")
        self._state.receive_data(data)

    def answer(self) -> h11.Response | None:
        """Return the response if its headers have come."""
        while (event := self._state.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                return event
        return None

    def response(self, answer: h11.Response, stream: Any) -> Any:
        """Make httpx's response of h11's."""
        return self._library.httpx.Response(
            status_code=answer.status_code,
            headers=answer.headers.raw_items(),
            stream=stream,
            extensions={
                "http_version": b"HTTP/" + answer.http_version,
                "reason_phrase": answer.reason,
                "network_stream": self._link.wire,
            },
        )

    def parts(self) -> bytes:
        """Return what has been received of the body; `ended` tells whether that was the end of it."""
        parts: list[bytes] = []
        while (event := self._state.next_event()) is not h11.NEED_DATA:
            if not isinstance(event, h11.Data):
                self._finish()
                break
            parts.append(event.data)
        return b"".join(parts)

    def _finish(self) -> None:
        self.ended = True
        state = self._state
        # What more has come than was asked for, the next request would take for its answer.
        if state.our_state is state.their_state is h11.DONE and not state.trailing_data[0]:
            state.start_next_cycle()
            self._link.clean = True
        else:
            self._link.spent = True
