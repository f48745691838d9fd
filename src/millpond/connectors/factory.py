"""Connections made by any callable, for threads (`Factory`) and for tasks (`AsyncFactory`)."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import os
import socket
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeGuard, TypeVar, cast

from millpond import _watcher
from millpond.connector import Condition

if TYPE_CHECKING:
    import sqlite3
    from asyncio.trsock import TransportSocket

__all__ = ["AsyncFactory", "Factory"]

C = TypeVar("C")


class _Inspection(Generic[C]):
    def __init__(
        self,
        connect: Callable[..., Any],
        close: Callable[[C], object] | None,
        ping: Callable[[C], object] | None,
        reset: Callable[[C], object] | None,
        inspect: Callable[[C, BaseException | None], Condition] | None,
        abandon: Callable[[C], object] | None,
        refused: Callable[[BaseException], bool] | None,
    ) -> None:
        self._connect = connect
        self._close = _close if close is None else close
        self._ping = ping
        self._reset = reset
        self._inspect = inspect
        self._abandon = abandon
        self._refused = refused
        self.target: str = _name(connect)
        # With neither a proof nor a cure, a loan without an error counts as clean.
        self.provable: bool = inspect is not None or reset is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"

    def inspect(self, conn: C, error: BaseException | None) -> Condition:
        """Ask the given `inspect`; without one, an error has broken the connection, and `reset` follows every loan."""
        if self._inspect is not None:
            return self._inspect(conn, error)
        if error is not None:
            return Condition.BROKEN
        return Condition.CLEAN if self._reset is None else Condition.UNPROVED

    def alive(self, conn: C) -> bool:
        """Tell whether the socket shows no hang-up and nothing unread; True if there is no socket."""
        descriptor = self.descriptor(conn)
        if descriptor is None:
            return True
        return not _watcher.readable(descriptor)

    def descriptor(self, conn: object) -> int | None:
        """Return `conn.fileno()` if there is one, it works, and it is a socket's; else None."""
        fileno = getattr(conn, "fileno", None)
        try:
            descriptor = fileno() if callable(fileno) else None
            # A plain file is always readable, and nothing can be watched or parked about it.
            if isinstance(descriptor, int) and stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return descriptor
        except Exception:
            pass  # closed: every kind has its own word for that
        return None

    def abandon(self, conn: C) -> None:
        """Cut the socket, if there is one, so that the close that follows has nobody to wait for.

        Give `abandon` if `close` waits for something else.
        """
        if self._abandon is not None:
            self._abandon(conn)
            return
        descriptor = self.descriptor(conn)
        if descriptor is not None:
            cut_number(descriptor)
        with contextlib.suppress(Exception):
            closing = self._close(conn)
            if inspect.iscoroutine(closing):
                begin(closing)

    def refused(self, error: BaseException) -> bool:
        """Ask the given `refused`; without one, every failure is worth another try but a TypeError of the program's."""
        return isinstance(error, TypeError) if self._refused is None else self._refused(error)


class Factory(_Inspection[C]):
    """Connections that `connect()` makes, for a `Pool`: any object at all.

    Each argument but `connect` may be left out. `close` is by default the object's own `aclose()` or `close()`, if it
    has one. `ping` raises if the connection does not work; without it the socket is looked at. `inspect` proves a
    connection clean (see `Connector.inspect`); without it nothing is asked, and a loan that ended without an error
    counts as clean. `reset`, given without `inspect`, runs after every loan. `abandon` frees a broken connection
    without waiting. `refused` tells the failures of `connect` that another try would not mend (by default a TypeError).

    The callables keep time themselves: nothing in Python can stop a blocking call.
    """

    def __init__(
        self,
        connect: Callable[[], C],
        *,
        close: Callable[[C], object] | None = None,
        ping: Callable[[C], object] | None = None,
        reset: Callable[[C], object] | None = None,
        inspect: Callable[[C, BaseException | None], Condition] | None = None,
        abandon: Callable[[C], object] | None = None,
        refused: Callable[[BaseException], bool] | None = None,
    ) -> None:
        super().__init__(connect, close, ping, reset, inspect, abandon, refused)

    def open(self, timeout: float) -> C:
        """Call `connect`; raises what it raises, and TypeError for what only one thread may use.

        `timeout` is not enforced.
        """
        conn = self._connect()
        if inspect.iscoroutine(conn):
            conn.close()
            raise TypeError(f"{self.target} returns a coroutine; connections that are awaited are for AsyncPool")
        expect_any_thread(conn)
        return cast("C", conn)

    def ping(self, conn: C, timeout: float) -> None:
        """Call `ping`, or look at the socket and raise ConnectionError if it shows a sign of death."""
        if self._ping is not None:
            self._ping(conn)
        elif not self.alive(conn):
            raise ConnectionError(f"{self.target}: the peer has hung up, or sent something that nobody asked for")

    def reset(self, conn: C, timeout: float) -> None:
        """Call `reset`, if there is one."""
        if self._reset is not None:
            self._reset(conn)

    def close(self, conn: C) -> None:
        """Call `close`; raises what it raises."""
        self._close(conn)


class AsyncFactory(_Inspection[C]):
    """Connections that `connect()` makes, for an `AsyncPool`: any object at all, on asyncio or trio.

    As `Factory`; each callable may be async or not, but for `inspect`, `abandon` and `refused`, which never wait. What
    waits is cancelled after its timeout, with a TimeoutError. Without an `abandon`, an async `close` of a broken
    connection is run up to the first point where it would wait.
    """

    def __init__(
        self,
        connect: Callable[[], C | Awaitable[C]],
        *,
        close: Callable[[C], object] | None = None,
        ping: Callable[[C], object] | None = None,
        reset: Callable[[C], object] | None = None,
        inspect: Callable[[C, BaseException | None], Condition] | None = None,
        abandon: Callable[[C], object] | None = None,
        refused: Callable[[BaseException], bool] | None = None,
    ) -> None:
        super().__init__(connect, close, ping, reset, inspect, abandon, refused)

    async def open(self, timeout: float) -> C:
        """Call `connect` and wait for it at most `timeout` seconds; raises TimeoutError, or what it raises."""
        from anyio import fail_after

        with fail_after(timeout):
            return cast("C", await _done(self._connect()))

    async def ping(self, conn: C, timeout: float) -> None:
        """Call `ping`, or look at the socket and raise ConnectionError if it shows a sign of death."""
        if self._ping is not None:
            from anyio import fail_after

            with fail_after(timeout):
                await _done(self._ping(conn))
        elif not self.alive(conn):
            raise ConnectionError(f"{self.target}: the peer has hung up, or sent something that nobody asked for")

    async def reset(self, conn: C, timeout: float) -> None:
        """Call `reset`, if there is one, and wait for it at most `timeout` seconds."""
        if self._reset is not None:
            from anyio import fail_after

            with fail_after(timeout):
                await _done(self._reset(conn))

    async def close(self, conn: C) -> None:
        """Call `close` and wait for it; raises what it raises."""
        await _done(self._close(conn))


def bare(conn: object) -> object:
    """Return the connection itself: what traces a driver wraps its connections."""
    return getattr(conn, "__wrapped__", conn)


def is_sqlite(conn: object) -> TypeGuard[sqlite3.Connection]:
    """Tell whether it is a connection of sqlite3's, without importing that."""
    module = sys.modules.get("sqlite3")
    return module is not None and isinstance(conn, module.Connection)


def expect_any_thread(conn: Any) -> None:  # noqa: ANN401
    """Raise TypeError for a connection that works in this thread only: the pool opens it in a thread of its own."""
    if not is_sqlite(conn):
        return
    refusals: list[Exception] = []

    def use() -> None:
        try:
            conn.cursor()
        except sys.modules["sqlite3"].ProgrammingError as refusal:
            refusals.append(refusal)
        except Exception:
            pass  # a class of its own, which may have its reasons

    try:
        thread = threading.Thread(target=use, name="millpond-try")
        thread.start()
        thread.join()
    except BaseException:
        conn.close()
        raise
    if refusals:
        conn.close()
        raise TypeError(
            "this connection of sqlite3 works only in the thread that made it, and the pool makes connections in "
            "threads of its own; give connect check_same_thread=False, or use Pool.from_url('sqlite:///path')"
        ) from refusals[0]


def cut(sock: socket.socket | TransportSocket) -> None:
    """End a connection for whoever uses it: all that waits on the socket, in any thread, fails at once."""
    with contextlib.suppress(OSError):  # it is cut already
        if isinstance(sock, socket.socket):
            # Not a TLS socket's own method, after which it goes on without TLS: ciphertext would be read as data.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        else:
            sock.shutdown(socket.SHUT_RDWR)


def cut_number(number: int, inode: int | None = None) -> None:
    """As `cut`, for a socket of which only the descriptor's number is known; it stays open.

    Whoever owns it may close it at any time, and its number may then be another's: `inode`, that of the socket, tells.
    A server that waits until it can send more hears of the end at once, too.
    """
    twin = -1
    try:
        twin = os.dup(number)
        sock = socket.socket(fileno=twin)
    except OSError as error:
        if twin >= 0:
            os.close(twin)  # the number is another's by now, and not a socket's
        elif error.errno != errno.EBADF:
            _cut_in_place(number, inode)  # no descriptor is left for a twin
        return
    with sock:
        if inode is None or os.fstat(twin).st_ino == inode:
            cut(sock)
            _drain(sock)


def _drain(sock: socket.socket) -> None:
    """Throw away what has arrived at a socket that was cut. Then there is room, the peer sends, and is told."""
    sock.setblocking(False)  # for whoever else reads it, too, who does not wait any more either
    with contextlib.suppress(OSError):  # nothing is left
        while sock.recv(1 << 16):
            pass


def _cut_in_place(number: int, inode: int | None) -> None:
    with contextlib.suppress(OSError):
        if inode is None or os.fstat(number).st_ino == inode:
            sock = socket.socket(fileno=number)
            cut(sock)
            sock.detach()


def _close(conn: object) -> object:
    close = getattr(conn, "aclose", None) or getattr(conn, "close", None)
    return close() if callable(close) else None


async def _done(result: object) -> object:
    return await result if inspect.isawaitable(result) else result


def begin(closing: Coroutine[Any, Any, object]) -> None:
    """Run an async close up to its first wait: what frees a transport comes before the wait for it to be gone."""
    try:
        closing.send(None)
    except StopIteration:
        pass  # it had nothing to wait for
    finally:
        closing.close()


def _name(connect: Callable[..., object]) -> str:
    while isinstance(connect, functools.partial):
        connect = connect.func  # its arguments may be secrets
    named = connect if hasattr(connect, "__qualname__") else type(connect)
    return f"{named.__module__}.{named.__qualname__}"
