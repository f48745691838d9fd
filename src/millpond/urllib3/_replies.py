"""http.client's response, which knows how it ended, and what becomes of one that is given back unread."""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from millpond.connectors._derived import derived

if TYPE_CHECKING:
    import urllib3

__all__ = ["LEFTOVER", "Reply", "Rest", "nobody", "proving"]

LEFTOVER: Final = 65_536
"""Bytes of a body that are read although nobody wants them, so that their connection can be kept."""
NOT_YET: Final = (BlockingIOError, TimeoutError, ssl.SSLWantReadError)
"""What sockets that do not wait raise while nothing is there; pyOpenSSL's, as urllib3 wraps it, the second."""

# Stricter than http.client: where the two would differ, a connection is not proved to be clean.
CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
TRAILERS: Final = re.compile(rb"(?:[^\r\n]+\r\n)*\r\n")


def nobody() -> None:
    """Stand for a response that reads no more."""


def _dry(buffer: object) -> None:
    """Stand for a socket's `readinto`: nothing is there."""


def _read_ahead(file: Any) -> bytes | None:  # noqa: ANN401
    """Return what a file has taken from its socket beforehand, without asking that for more; None if it cannot tell.

    The socket is cut off from the file: an attribute of the object is found before its class's, whatever that is.
    """
    try:
        file.raw.readinto = _dry
        ahead: bytes = file.peek(1)
    except (AttributeError, TypeError, ValueError, OSError, RuntimeError):
        return None  # the last: a signal handler has interrupted a read
    return ahead


def _holds_more(sock: Any) -> bool:  # noqa: ANN401
    """Whether TLS has decrypted what nobody has read. What is still in the kernel will be seen before the next loan."""
    if type(sock) is socket.socket:
        return False
    try:
        pending: Callable[[], int] | None = getattr(sock, "pending", None)
        if pending is not None:
            return pending() > 0
        # TLS within TLS, or by another library: it has to be asked. urllib3 sets the limit before each request.
        sock.settimeout(0)
        sock.recv(1)
        return True
    except NOT_YET:
        return False
    except Exception:
        return True  # it cannot be known


class Reply(http.client.HTTPResponse):
    """http.client's response, which knows how it ended."""

    fp: io.BufferedReader
    whole: bool = False
    """Whether it has been read to its end, and nothing came after it."""
    response: Callable[[], urllib3.HTTPResponse | None] = staticmethod(nobody)
    """urllib3's response if it lives, which reads chunks past this one."""
    _trailed = False

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self._sock = sock
        super().__init__(sock, *args, **kwargs)

    def _read_and_discard_trailer(self) -> None:
        super()._read_and_discard_trailer()  # type: ignore[misc]
        self._trailed = True

    # Two read chunks: http.client (`read()`), and urllib3 past it (`stream()`). Each keeps an account of its own, and
    # within a chunk of the one the other takes what is data for the next size.

    @property
    def _urllib3s_chunk(self) -> int | None:
        """What is left of the chunk that urllib3 is in; None between two."""
        response = self.response()
        return None if response is None else response.chunk_left

    def _read_next_chunk_size(self) -> int:
        if self._urllib3s_chunk is not None:
            raise _mixed()
        return super()._read_next_chunk_size()  # type: ignore[misc,no-any-return]

    def _safe_read(self, amt: int) -> bytes:
        if self.chunked is True and self.chunk_left is not None and self._urllib3s_chunk is not None:
            raise _mixed()
        return super()._safe_read(amt)  # type: ignore[misc,no-any-return]

    def _close_conn(self) -> None:
        # http.client comes by here when it has read everything, and when the response is closed before that. After an
        # interim response (103) there is another to come, and after 101 another protocol.
        file = self.fp
        ended = self.length == 0 or (self.chunked is True and self._read_all_chunks())
        self.whole = ended and self.status >= 200 and not self._followed(file)
        self.fp = None  # type: ignore[assignment]
        if file is not None:  # unless another thread has closed it just now
            file.close()

    def _read_all_chunks(self) -> bool:
        return self._trailed or (self._urllib3s_chunk == 0 and self.chunk_left is None)

    def _followed(self, file: Any) -> bool:  # noqa: ANN401
        """Whether more has come than the server announced, and would never be seen again."""
        if self._sock is None:
            return False
        return _read_ahead(file.file if isinstance(file, _Noted) else file) != b"" or _holds_more(self._sock)

    def note_readers(self) -> None:
        """Note from now on who reads the body."""
        self.fp = _Noted(self.fp)  # type: ignore[assignment]

    def part(self, chunk_left: int | None) -> Rest | None:
        """Part from the connection, and return what is left of the body; None if another thread has read it all.

        What has come of it is left to whoever reads on, if that is all of it; else whoever reads on learns that it is
        cut. `chunk_left` is urllib3's account of the chunk that it is in.
        """
        noted: Any = self.fp
        if noted is None:
            return None
        self.fp = _Cut()  # type: ignore[assignment]
        sock, self._sock = self._sock, None
        # From here on nobody reads from the connection who does not do so already.
        ahead = noted.part(self.fp) if isinstance(noted, _Noted) else None
        if self.chunked is True and chunk_left is not None and self.chunk_left is not None:
            ahead = None
        rest = Rest(self, sock, chunk_left, ahead)
        rest.take()
        if rest.end is not None:
            self.fp = io.BufferedReader(io.BytesIO(rest.data[: rest.end]))
        return rest  # and the file is closed when nobody uses it any more


def _mixed() -> http.client.HTTPException:
    return http.client.HTTPException("read() and stream() have both begun to read one chunk")


class _Noted:
    """The file of a body, and who has read from it last; that is noted before the file is looked up."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401
        self.file = file
        self.reader: int | None = None

    def read(self, *args: Any) -> bytes:  # noqa: ANN401
        self.reader = get_ident()
        return self.file.read(*args)  # type: ignore[no-any-return]

    def read1(self, *args: Any) -> bytes:  # noqa: ANN401
        self.reader = get_ident()
        return self.file.read1(*args)  # type: ignore[no-any-return]

    def readinto(self, *args: Any) -> int:  # noqa: ANN401
        self.reader = get_ident()
        return self.file.readinto(*args)  # type: ignore[no-any-return]

    def readline(self, *args: Any) -> bytes:  # noqa: ANN401
        self.reader = get_ident()
        return self.file.readline(*args)  # type: ignore[no-any-return]

    def peek(self, *args: Any) -> bytes:  # noqa: ANN401
        self.reader = get_ident()
        return self.file.peek(*args)  # type: ignore[no-any-return]

    def part(self, after: Any) -> bytes | None:  # noqa: ANN401
        """Exchange the file, and return what is buffered in the former; None if that cannot be known."""
        file, self.file = self.file, after
        # Where another thread reads, nobody knows how far it is, and to ask the file would wait for it.
        return _read_ahead(file) if self.reader in (None, get_ident()) else None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


class _Cut(io.BufferedIOBase):
    """Stands for the file of a body whose rest is not to be had: who reads it is told so, and gets no short body."""

    def _fail(self, *_: object) -> NoReturn:
        raise ConnectionError("release_conn() gave the connection back before the body had been read")

    read = read1 = readinto = readinto1 = readline = peek = _fail


class Rest:
    """What is left of a body when its response is given back, as it arrives."""

    def __init__(self, reply: Reply, sock: Any, chunk_left: int | None, ahead: bytes | None) -> None:  # noqa: ANN401
        self._sock = sock
        # The reply to a HEAD tells how it would be sent, and is not.
        self._chunked: bool = reply.chunked is True and reply.length != 0
        self._length: int | None = None if self._chunked else reply.length
        self._in_trailers = chunk_left == 0
        # Both count what is left of a chunk. At its end http.client has 0 and the line end still to come; urllib3 has
        # None, as both have before the first one.
        self._chunk_left: int | None = reply.chunk_left if chunk_left is None else chunk_left
        self._final = reply.status >= 200
        self._known = ahead is not None
        self.data: bytes = ahead or b""
        self.end: int | None = None
        """How many bytes of `data` are the body's; None until all have come."""
        self._worth = self._known and (self._chunked or (self._length or 0) <= LEFTOVER)

    @property
    def hopeful(self) -> bool:
        """Whether more may come that is worth reading."""
        return self._worth and self.end is None

    def take(self) -> None:
        """Take what is there, without waiting."""
        self.end = self._find_end() if self._known else None
        if self.hopeful:
            with suppress(Exception):  # whatever it is: the next line tells
                self._sock.settimeout(0)
        while self.hopeful and (more := self._receive()) is not None:
            self.data += more
            self.end = self._find_end()
            self._worth = len(self.data) <= LEFTOVER

    def _receive(self) -> bytes | None:
        """Return what is there; None if nothing is, or if no more will come."""
        try:
            more: bytes = self._sock.recv(LEFTOVER + 1 - len(self.data))
        except NOT_YET:
            return None
        except Exception:
            more = b""
        self._worth = bool(more)
        return more or None

    @property
    def clean(self) -> bool:
        """Whether all of it has come, and nothing came after it: then the connection may serve again."""
        return self.end == len(self.data) and self._final and not _holds_more(self._sock)

    def _find_end(self) -> int | None:
        if self._in_trailers:
            found = TRAILERS.match(self.data)
            return None if found is None else found.end()
        if self._chunked:
            return _end_of_chunks(self.data, self._chunk_left)
        return self._length if self._length is not None and len(self.data) >= self._length else None


def _end_of_chunks(data: bytes, left: int | None) -> int | None:
    """Return where a body in chunks ends; None while it does not. `left` are the bytes left of the chunk that it is in,
    whose line end comes after them."""
    at = 0 if left is None else left + 2
    while (at == 0 or data[at - 2 : at] == b"\r\n") and (chunk := CHUNK.match(data, at)) is not None:
        size = int(chunk[1], 16)
        if size == 0:
            trailers = TRAILERS.match(data, chunk.end())
            return None if trailers is None else trailers.end()
        at = chunk.end() + size + 2
    return None


def proving(cls: Any) -> Any:  # noqa: ANN401
    """Put `Reply` in front of a class of responses. What is no such class serves as it is, and proves nothing.

    So does what botocore makes of an answer that came before the body was sent: the server may await that still.
    """
    if cls is http.client.HTTPResponse:
        return Reply
    if not (isinstance(cls, type) and issubclass(cls, http.client.HTTPResponse)) or issubclass(cls, Reply):
        return cls
    return derived(cls, "_millpond_proving", lambda: type(cls.__name__, (Reply, cls), {"__module__": cls.__module__}))
