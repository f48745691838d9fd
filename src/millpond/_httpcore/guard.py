"""One HTTP/2 connection of httpcore for several threads at once. httpcore locks a part of what needs it.

(test: many_threads_on_one_http2_connection)
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from millpond import _watcher

if TYPE_CHECKING:
    from millpond._httpcore.link import Link

__all__ = ["GuardedState", "GuardedStream", "guard", "let_go"]

T = TypeVar("T")

OPENS: Final = "get_next_available_stream_id"
OPENED: Final = "send_headers"


def guard(link: Link, core: Any) -> None:
    """Make a link fit for several threads, before the second comes."""
    inner = link.inner
    # A `with` of one of these cannot be struck between taking it and being sure to give it back, as one of httpcore's,
    # which are written in Python, can. CPython 3.13 may all the same raise at a loop's jump back within a `with`, and
    # then gives back nothing: so a request that is struck can take again what it has, to put things right, and leaves
    # it in the end. (tests: an_exception_at_any_place_of_a_request_over_http2, a_request_that_is_struck_keeps_no_lock)
    inner._state_lock, inner._read_lock, inner._write_lock = (threading.RLock() for _ in range(3))
    inner._h2_state = GuardedState(inner._h2_state)
    # Last, as it tells that all is done.
    link.wire.stream = GuardedStream(link.wire.stream, core)


def let_go(link: Link) -> None:
    """Give back what this thread has of a link: its request may have failed halfway."""
    inner = link.inner
    state = inner._h2_state
    if isinstance(state, GuardedState):
        state.release()
        for lock in (inner._state_lock, inner._read_lock, inner._write_lock):
            while lock._is_owned():
                lock.release()


class GuardedState:
    """Lets one thread at a time use h2's state.

    Otherwise frames get lost when one thread fetches what is to be sent while another adds to it, and a stream that is
    announced after one with a higher number ends the connection.
    """

    def __init__(self, state: Any) -> None:
        self._state = state
        self._turn = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._state, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            self._turn.acquire()
            try:
                return attribute(*args, **kwargs)
            finally:
                if name == OPENED:
                    self.release()
                elif name != OPENS:  # whoever opens a stream keeps its turn until it has announced it
                    self._turn.release()

        return call

    def release(self) -> None:
        """End this thread's turn at opening a stream, if it has it: it may have failed halfway."""
        while self._turn._is_owned():  # type: ignore[attr-defined]
            self._turn.release()


class GuardedStream:
    """Lets one thread at a time use a socket, but not wait for it.

    OpenSSL is not made for one thread that reads while another writes: the reader is told of an end that has not come.
    """

    def __init__(self, stream: Any, core: Any) -> None:
        self._stream = stream
        self._core = core
        self._sock: Any = stream.get_extra_info("socket")
        self._sock.setblocking(False)
        self._turn = threading.Lock()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As httpcore's."""
        core = self._core
        return self._try(
            lambda: bytes(self._sock.recv(max_bytes)), _watcher.READABLE, timeout, core.ReadTimeout, core.ReadError
        )

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """As httpcore's."""
        core = self._core
        rest = memoryview(buffer)

        def send() -> int:
            return int(self._sock.send(rest))

        while rest:
            rest = rest[self._try(send, _watcher.WRITABLE, timeout, core.WriteTimeout, core.WriteError) :]

    def close(self) -> None:
        """As httpcore's."""
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        """As httpcore's."""
        return self._stream.get_extra_info(info)

    def _try(
        self,
        attempt: Callable[[], T],
        event: int,
        timeout: float | None,
        late: type[Exception],
        failed: type[Exception],
    ) -> T:
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            try:
                with self._turn:
                    return attempt()
            except ssl.SSLWantReadError:
                event = _watcher.READABLE
            except ssl.SSLWantWriteError:
                event = _watcher.WRITABLE
            except BlockingIOError:
                pass
            except OSError as error:
                raise failed(error) from error
            try:
                look = _watcher.look_at(self._sock, event)
            except ValueError as error:
                raise failed("the connection is closed") from error
            if not look(None if deadline is None else max(0.0, deadline - monotonic()) * 1000):
                raise late("timed out")
