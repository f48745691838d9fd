"""A TCP proxy that does to connections what networks do: delays, cuts, resets, silence, refusal.

It runs in a thread of its own on plain sockets, and touches neither the loop nor the threads of those it carries for.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import math
import os
import queue
import select
import selectors
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from millpond.testing.ports import ReservedPort

__all__ = ["Proxy"]

T = TypeVar("T")

_CHUNK = 65536
_MOST_HELD = 16 << 20
_MOST_KEPT = 4096


class _Reset(enum.Enum):
    """Stands among held bytes for a connection that was reset by its other end."""

    RESET = enum.auto()


class _Flow:
    """One direction of a carried connection: what has been read on one side and is still to be written on the other."""

    def __init__(self) -> None:
        # When it is due at the earliest, and what; no bytes mean the end.
        self.held: deque[tuple[float, bytes | _Reset]] = deque()
        self.size = 0
        self.ended = False
        self.shut = False

    def put(self, due: float, what: bytes | _Reset) -> None:
        self.held.append((due, what))
        if isinstance(what, bytes):
            self.size += len(what)
        self.ended = not what or what is _Reset.RESET

    def write(self, sink: socket.socket, now: float) -> None:
        """Write what is due, as far as the sink takes it; raise OSError if the connection is to be reset."""
        while self.held and self.held[0][0] <= now:
            due, what = self.held.popleft()
            if isinstance(what, _Reset):
                raise ConnectionResetError
            self.size -= len(what)
            if self.shut:
                continue
            if not what:
                self.shut = True
                sink.shutdown(socket.SHUT_WR)
                continue
            try:
                sent = sink.send(what)
            except BlockingIOError:
                sent = 0
            if sent < len(what):
                self.held.appendleft((due, what[sent:]))
                self.size += len(what) - sent
                return


class _Link:
    """One carried connection: `up` flows from the client to the target, `down` back."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server: socket.socket | None = None
        self.connected = False
        self.dropped = False
        self.up = _Flow()
        self.down = _Flow()
        self.sent_by_client = b""

    @property
    def ends(self) -> list[socket.socket]:
        return [self.client] if self.server is None else [self.client, self.server]


class Proxy:
    """Carries TCP connections from a port of 127.0.0.1 to a target, with faults that can be switched on at any time.

    `with` opens and closes it. A fault has happened when its method returns. A client whose connection to the target
    fails is reset, for the proxy has accepted it by then. All methods may be called from any thread.
    """

    host = "127.0.0.1"

    def __init__(self, target_host: str, target_port: int) -> None:
        found = socket.getaddrinfo(target_host, target_port, type=socket.SOCK_STREAM)[0]
        self._family, self._target = found[0], found[4]
        self._reserved = ReservedPort()
        self._selector = selectors.DefaultSelector()
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._bell, self._ring = socket.socketpair()
        self._ring.setblocking(False)
        self._listener: socket.socket | None = None
        self._fillers: list[socket.socket] = []
        self._changed = threading.Condition()
        self._links: list[_Link] = []
        self._live: set[_Link] = set()
        self._holding: set[_Link] = set()
        self._latency = 0.0
        self._silent = False
        self._closed = False
        self._bytes_from_client = 0
        self._bytes_from_server = 0
        self._listen()
        self._thread = threading.Thread(target=self._carry, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()
        _proxies.add(self)

    # What it is and has seen

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return self._reserved.number

    def url_for(self, url: str) -> str:
        """Return a URL that leads to the same place through this proxy: its host and port are swapped."""
        parts = urlsplit(url)
        userinfo, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{userinfo}{at}{self.host}:{self.port}"))

    @property
    def accepted(self) -> int:
        """How many connections it has accepted since it was made."""
        return len(self._links)

    @property
    def live(self) -> int:
        """How many connections it carries now; what `drop` has struck is not carried any more."""
        return sum(not link.dropped for link in list(self._live))

    @property
    def bytes_from_client(self) -> int:
        """How many bytes clients have sent."""
        return self._bytes_from_client

    @property
    def bytes_from_server(self) -> int:
        """How many bytes the target has sent."""
        return self._bytes_from_server

    def sent_by_client(self) -> list[bytes]:
        """Return what each client sent last (up to 4096 bytes), ended connections too, in the order of their coming."""
        return self._order(lambda: [bytes(link.sent_by_client) for link in self._links])

    def wait_until_live(self, count: int, timeout: float = 30) -> None:
        """Wait until exactly `count` connections are carried; raise TimeoutError after `timeout` seconds."""
        self._wait(lambda: self.live == count, timeout, f"{count} live")

    def wait_until_accepted(self, count: int, timeout: float = 30) -> None:
        """Wait until `count` connections have been accepted in all; raise TimeoutError after `timeout` seconds."""
        self._wait(lambda: self.accepted >= count, timeout, f"{count} accepted")

    # Faults

    def delay(self, seconds: float) -> None:
        """Let every byte take `seconds` longer each way, in order and without holding back those behind it."""

        def fault() -> None:
            self._latency = seconds

        self._order(fault)

    def cut(self) -> None:
        """Close every live connection on both sides, as a peer that ends does (FIN); new ones are carried."""
        self._order(lambda: self._each(self._finish))

    def reset(self) -> None:
        """Reset every live connection on both sides, as a peer that crashed does (RST); new ones are carried."""
        self._order(lambda: self._each(self._reset))

    def half_close(self) -> None:
        """Tell the client of every live connection that nothing more will come; what it sends is still carried."""

        def fault(link: _Link) -> None:
            if not link.down.shut:
                link.down.shut = True
                link.client.shutdown(socket.SHUT_WR)

        self._order(lambda: self._each(fault))

    def black_hole(self, *, accept: bool = True) -> None:
        """Let nothing through, either way, and say nothing about it, until `heal`; ends are not passed on either.

        New connections are accepted and meet the same silence or, with `accept=False`, are not even answered (on
        Linux; elsewhere they are accepted by the system). What was sent meanwhile arrives after `heal`, as it does
        when a network comes back.
        """

        def fault() -> None:
            self._silent = True
            if not accept:
                self._stop_answering()

        self._order(fault)

    def drop(self) -> None:
        """Carry nothing more for any live connection, for good, and say nothing about it; new ones are carried.

        So does a firewall or a load balancer that has forgotten a connection which was idle for too long.
        """

        def fault(link: _Link) -> None:
            link.dropped = True
            for flow in (link.up, link.down):
                flow.held = deque((math.inf, what) for _, what in flow.held)

        self._order(lambda: self._each(fault))

    def lead_to(self, target_host: str, target_port: int) -> None:
        """Carry new connections to another place; live ones stay where they are.

        So does a name, or an address, that moves to another server.
        """
        found = socket.getaddrinfo(target_host, target_port, type=socket.SOCK_STREAM)[0]

        def fault() -> None:
            self._family, self._target = found[0], found[4]

        self._order(fault)

    def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED); live ones are carried on."""
        self._order(self._stop_listening)

    def heal(self) -> None:
        """End every fault that lasts: delay, silence, refusal."""

        def fault() -> None:
            self._latency = 0
            self._silent = False
            if self._fillers:
                self._stop_listening()
            if self._listener is None:
                self._listen()
            self._each(resume)

        def resume(link: _Link) -> None:
            if link.dropped:
                return
            for flow in (link.up, link.down):
                flow.held = deque((0.0, what) for _, what in flow.held)
            if link.server is None:
                self._connect(link)

        self._order(fault)

    def close(self) -> None:
        """Close every connection and the port."""
        if not self._closed:
            self._order(self._close)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # In the caller's thread

    def _order(self, work: Callable[[], T]) -> T:
        """Have the proxy's thread do something, and return what came of it."""
        if self._closed:
            return work()
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self._orders.put(run)
        with contextlib.suppress(BlockingIOError):  # it is rung already
            self._ring.send(b"!")
        return done.result(timeout=30)

    def _wait(self, seen: Callable[[], bool], timeout: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(seen, timeout):
                raise TimeoutError(f"not {what} within {timeout} s: {self.live} live, {self.accepted} accepted")

    # In the proxy's thread

    def _carry(self) -> None:
        self._selector.register(self._bell, selectors.EVENT_READ, self._obey)
        while not self._closed:
            for key, events in self._selector.select(self._until_due()):
                known = self._selector.get_map().get(key.fd)
                if known is not None and known.fileobj is key.fileobj:  # not closed by what was done just before
                    key.data(events)
            now = time.monotonic()
            for link in list(self._holding):
                self._write(link, now)
        self._bell.close()
        self._ring.close()
        self._selector.close()

    def _until_due(self) -> float | None:
        if self._silent:
            return None
        due = [flow.held[0][0] for link in self._holding for flow in (link.up, link.down) if flow.held]
        soonest = min(due, default=math.inf)
        return max(0.0, soonest - time.monotonic()) if soonest < math.inf else None

    def _obey(self, _: int) -> None:
        self._bell.recv(4096)
        with contextlib.suppress(queue.Empty):
            while True:
                self._orders.get_nowait()()

    def _listen(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((self.host, self.port))
        self._listener.listen(1024)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _stop_listening(self) -> None:
        self._accept(0)  # those who came before the order are carried
        if self._listener is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()

    def _stop_answering(self) -> None:
        """Fill the system's queue of connections that wait to be accepted; it then answers no more."""
        if self._listener is None or self._fillers:
            return
        self._accept(0)
        self._selector.unregister(self._listener)
        self._listener.listen(0)
        for _ in range(16):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((self.host, self.port))
            self._fillers.append(filler)
            if not select.select([], [filler], [], 0.02)[1]:
                return  # this one was not answered, nor will be those that follow

    def _accept(self, _: int) -> None:
        if self._listener is None:
            return
        fillers = {filler.getsockname() for filler in self._fillers}
        with contextlib.suppress(BlockingIOError):
            while True:
                client, address = self._listener.accept()
                if address in fillers:
                    client.close()
                    continue
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link = _Link(client)
                with self._changed:
                    self._links.append(link)
                    self._live.add(link)
                    self._changed.notify_all()
                with self._or_reset(link):
                    if not self._silent:
                        self._connect(link)
                    self._watch(link)

    def _connect(self, link: _Link) -> None:
        link.server = socket.socket(self._family)
        link.server.setblocking(False)
        link.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.server.connect_ex(self._target)

    def _watch(self, link: _Link) -> None:
        """Register what is to be known of a link next."""
        if link.up.shut and link.down.shut:
            self._finish(link)
            return
        if link.up.held or link.down.held:
            self._holding.add(link)
        else:
            self._holding.discard(link)
        self._watch_end(link, link.client, self._wanted(link.up, link.down))
        if link.server is not None:
            wanted = self._wanted(link.down, link.up) if link.connected else selectors.EVENT_WRITE
            self._watch_end(link, link.server, wanted)

    def _wanted(self, read: _Flow, written: _Flow) -> int:
        events = 0
        if not read.ended and read.size < _MOST_HELD:
            events |= selectors.EVENT_READ
        if not self._silent and written.held and written.held[0][0] <= time.monotonic():
            events |= selectors.EVENT_WRITE
        return events

    def _watch_end(self, link: _Link, end: socket.socket, events: int) -> None:
        known = end in self._selector.get_map()
        if events and known:
            self._selector.modify(end, events, self._selector.get_key(end).data)
        elif events:
            self._selector.register(end, events, functools.partial(self._serve, link, end))
        elif known:
            self._selector.unregister(end)

    def _serve(self, link: _Link, end: socket.socket, events: int) -> None:
        with self._or_reset(link):
            if end is link.server and not link.connected:
                if end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise ConnectionRefusedError
                link.connected = True
            elif events & selectors.EVENT_READ:
                self._read(link, end)
            self._write(link, time.monotonic())

    def _read(self, link: _Link, end: socket.socket) -> None:
        flow = link.up if end is link.client else link.down
        if flow.ended:
            return
        chunk: bytes | _Reset
        try:
            chunk = end.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = _Reset.RESET
        if isinstance(chunk, bytes):
            if end is link.client:
                self._bytes_from_client += len(chunk)
                link.sent_by_client = (link.sent_by_client + chunk)[-_MOST_KEPT:]
            else:
                self._bytes_from_server += len(chunk)
        flow.put(math.inf if link.dropped else time.monotonic() + self._latency if self._latency else 0.0, chunk)

    def _write(self, link: _Link, now: float) -> None:
        with self._or_reset(link):
            if not self._silent:
                link.down.write(link.client, now)
                if link.server is not None and link.connected:
                    link.up.write(link.server, now)
            self._watch(link)

    def _each(self, fault: Callable[[_Link], None]) -> None:
        for link in list(self._live):
            with self._or_reset(link):
                fault(link)
                if link in self._live:
                    self._watch(link)

    @contextlib.contextmanager
    def _or_reset(self, link: _Link) -> Iterator[None]:
        """Reset both ends of a link if one end turns out to be gone."""
        try:
            yield
        except OSError:
            self._reset(link)

    def _finish(self, link: _Link) -> None:
        for end in self._forget(link):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)  # a close alone would reset it if there are bytes that nobody has read
            end.close()

    def _reset(self, link: _Link) -> None:
        for end in self._forget(link):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()

    def _forget(self, link: _Link) -> list[socket.socket]:
        if link not in self._live:
            return []
        for end in link.ends:
            with contextlib.suppress(KeyError):
                self._selector.unregister(end)
        self._holding.discard(link)
        with self._changed:
            self._live.discard(link)
            self._changed.notify_all()
        return link.ends

    def _close(self) -> None:
        self._closed = True
        self._stop_listening()
        self._each(self._finish)
        self._reserved.close()

    # In a forked child

    def _let_go(self) -> None:
        """Close the child's copies: as long as they are open, what the parent closes is not closed."""
        self._closed = True
        for link in self._links:
            for end in link.ends:
                end.close()
        for other in (self._listener, self._bell, self._ring, *self._fillers):
            if other is not None:
                other.close()
        self._selector.close()
        self._reserved.close()


_proxies: weakref.WeakSet[Proxy] = weakref.WeakSet()


def _let_all_go() -> None:
    for proxy in list(_proxies):
        proxy._let_go()


os.register_at_fork(after_in_child=_let_all_go)
