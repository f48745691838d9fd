"""Knowing at once when a peer hangs up, without a system call on any borrow's path.

One thread for the process waits on an epoll in which every open connection is registered once, edge-triggered and for
hang-up only. Ordinary data wakes nobody. When a server closes or resets a connection, its pool is told, lent or idle.
What goes silently (a firewall's forgotten entry, a dead host) raises no event; that is left to checks.

It works where the system has epoll. It does not work in a program that gevent or eventlet has patched, whose `select`
has no epoll and whose threads share one real thread; nor on systems without epoll. There `check_after` and `keepalive`
find what the watcher would have, a little later.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, TypeVar

__all__ = [
    "HANG_UP",
    "READABLE",
    "WRITABLE",
    "Descriptor",
    "Watched",
    "forget",
    "hung_up",
    "identify",
    "look_at",
    "readable",
    "report",
    "unavailable",
    "watch",
]

READABLE: Final[int] = getattr(select, "POLLIN", 0x1)
WRITABLE: Final[int] = getattr(select, "POLLOUT", 0x4)
HANG_UP: Final[int] = getattr(select, "EPOLLRDHUP", 0x2000)


class Descriptor(NamedTuple):
    """A file descriptor that can be told from a later one with the same number."""

    number: int
    device: int
    inode: int

    def current(self) -> bool:
        """Whether the number still means the same file."""
        try:
            about = os.fstat(self.number)
        except OSError:
            return False
        return (about.st_dev, about.st_ino) == (self.device, self.inode)


E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)


class Watched(Protocol[E_contra]):
    """Who is told, in the watcher's thread."""

    def _hung_up(self, entry: E_contra) -> None: ...


class _Record(NamedTuple):
    descriptor: Descriptor
    pool: weakref.ref[Watched[Any]]
    entry: object

    def tell(self) -> None:
        """Tell the pool that the connection is dead."""
        pool = self.pool()
        if pool is not None:
            pool._hung_up(self.entry)


class _Watcher:
    """The epoll, and whose connection each of its descriptors is."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.epoll = select.epoll()
        self.watched: dict[int, _Record] = {}
        self.awake = False
        """Whether its thread is there. What is registered meanwhile is told as soon as it is."""

    def rouse(self) -> None:
        """Have a thread, if the system gives one; a later connection asks for it again."""
        self.awake = True
        try:
            threading.Thread(target=self._run, name="millpond-watcher", daemon=True).start()
        except RuntimeError:
            # There are too many, or the interpreter is about to end, which from 3.12 on begins no more threads.
            # (test: a_program_that_ends_while_it_opens_its_first_connection_says_nothing)
            self.awake = False

    def _run(self) -> None:
        try:
            self._listen()
        finally:
            self.awake = False

    def _listen(self) -> None:
        while True:
            for number, _ in self.epoll.poll():
                found = self.watched.get(number)
                # An event can be of a file that has gone since, while another process keeps it open, and the number
                # may mean another watched file by now; so the kernel is asked again. A number that means something
                # else although nobody has called `forget` was closed by the driver: then its connection is dead, too.
                # (test: a_reused_descriptor_is_not_mistaken_for_the_one_that_died)
                if found is not None and (hung_up(number) or not found.descriptor.current()):
                    found.tell()
                # It is not to be kept alive while this thread waits for the next event.
                del found


_watcher: _Watcher | None = None
_starting = threading.Lock()


def look_at(descriptor: Any, event: int) -> Callable[[float | None], object]:  # noqa: ANN401
    """Return a look at a socket, or at its descriptor: it tells, true or false, whether it shows an event.

    It takes the milliseconds to wait for it; None is as long as it takes. Raises `ValueError` if it is closed.
    """
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(descriptor, event)
        return poll.poll
    # eventlet takes `poll` away, and some systems have none.
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if number < 0:
        raise ValueError("it is closed")
    return lambda timeout: _select(number, event, None if timeout is None else timeout / 1000)


def _select(number: int, event: int, timeout: float | None) -> bool:
    wanted = [number]
    reading, writing, failing = select.select(
        [] if event == WRITABLE else wanted, wanted if event == WRITABLE else [], wanted, timeout
    )
    if event != HANG_UP or not reading:
        return bool(reading or writing or failing)
    # A hang-up behind unread data does not show.
    with socket.socket(fileno=os.dup(number)) as twin:
        try:
            return not twin.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def readable(descriptor: Any) -> bool:  # noqa: ANN401
    """Whether something, be it a hang-up, waits to be read from a socket."""
    return bool(look_at(descriptor, READABLE)(0))


def hung_up(number: int, timeout: float = 0.0) -> bool:
    """Whether the peer of a socket has hung up, or does so within `timeout` seconds."""
    return bool(look_at(number, HANG_UP)(timeout * 1000))


def unavailable() -> str | None:
    """Return why there is no watcher here, or None if there is one."""
    if not hasattr(select, "epoll"):
        return "the select module has no epoll: this is not Linux, or gevent or eventlet has patched it"
    return None


def identify(number: int | None) -> Descriptor | None:
    """Return a descriptor by its number, if it is one."""
    if number is None:
        return None
    try:
        about = os.fstat(number)
    except OSError:
        return None
    return Descriptor(number, about.st_dev, about.st_ino)


def _roused() -> _Watcher:
    global _watcher
    with _starting:
        watcher = _watcher = _watcher or _Watcher()
        if not watcher.awake:
            watcher.rouse()
    return watcher


def watch(descriptor: Descriptor, pool: Watched[E], entry: E) -> None:
    """Tell `pool` when the peer of `descriptor` hangs up, also if it already has."""
    if unavailable():
        return
    watcher = _watcher
    if watcher is None or not watcher.awake:
        try:
            watcher = _roused()
        except OSError:
            # No descriptor is left for its epoll: what only helps takes down nothing.
            # (test: the_last_descriptor_may_be_a_connections_and_then_nothing_watches_it)
            return
    former = watcher.watched.get(descriptor.number)
    watcher.watched[descriptor.number] = _Record(descriptor, weakref.ref(pool), entry)
    if former is not None and former.descriptor != descriptor:
        # Its driver has closed it, and its number was free.
        former.tell()
    events = HANG_UP | select.EPOLLET
    try:
        watcher.epoll.register(descriptor.number, events)
    except FileExistsError:
        # A former file of this number, closed here without our knowledge, is kept open by a forked child.
        with suppress(OSError):
            watcher.epoll.unregister(descriptor.number)
            watcher.epoll.register(descriptor.number, events)
    except OSError:
        # A regular file cannot hang up; a closed one has.
        watcher.watched.pop(descriptor.number, None)


def report(descriptor: Descriptor) -> None:
    """Take word of a driver that has found its connection dead, and may have closed it before the watcher looked."""
    found = None if _watcher is None else _watcher.watched.get(descriptor.number)
    if found is not None and found.descriptor == descriptor:
        found.tell()


def forget(descriptor: Descriptor) -> None:
    """Stop watching. It comes before a descriptor is closed: a forked child may hold the same file, and epoll goes by
    files, not by descriptors."""
    watcher = _watcher
    if watcher is None:
        return
    found = watcher.watched.get(descriptor.number)
    if found is None or found.descriptor != descriptor:
        return
    del watcher.watched[descriptor.number]
    if descriptor.current():
        with suppress(OSError):
            watcher.epoll.unregister(descriptor.number)


def forsake() -> None:
    """In a forked child: begin anew. The inherited epoll is the parent's; nothing is unregistered through it."""
    global _starting, _watcher
    watcher = _watcher
    if watcher is not None and watcher.pid == os.getpid():
        # A signal handler has opened a connection since it was done before.
        return
    _starting = threading.Lock()
    _watcher = None
    if watcher is not None:
        watcher.epoll.close()
