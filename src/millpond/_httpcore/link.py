"""What the pools lend: a connection of httpcore, with what millpond must know of it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from time import monotonic
from typing import Any

from millpond import _watcher
from millpond._httpcore.wire import AsyncWire, Wire
from millpond.connector import Condition

__all__ = ["AsyncLinks", "Link", "Links"]


class Link:
    """One connection. It is made without I/O; httpcore connects it when the first request is sent.

    It owns its loan. If its borrower drops it, its wire is left to `orphans`, for the pool to close.
    """

    __slots__ = (
        "__weakref__",
        "_look",
        "clean",
        "connection",
        "direct",
        "expires",
        "inner",
        "limit",
        "listed",
        "loan",
        "multiplexed",
        "orphans",
        "retired",
        "seats",
        "shared",
        "spent",
        "wire",
    )

    def __init__(self, connection: Any, wire: Wire | AsyncWire, orphans: deque[Wire | AsyncWire]) -> None:
        self.connection = connection
        self.wire = wire
        self.orphans = orphans
        self.loan: Any = None
        self.inner: Any = None
        """httpcore's connection to the server itself, which knows its protocol; None until it is connected."""
        self.multiplexed = False
        """Whether that speaks HTTP/2."""
        self.direct = False
        """Whether that speaks HTTP/1.1, and not to a proxy that wants to be asked in its own way."""
        self.clean = False
        """Whether nothing is in flight, and nothing unread."""
        self.spent = False
        """Whether it has come to its end in good order."""
        self.expires = math.inf
        """When it will have been idle for too long."""
        self._look: Callable[[float | None], object] | None = None
        self.shared = False
        """Whether it is on loan to any number of requests at once; the rest is for those that are."""
        self.seats = 0
        """How many requests are on it."""
        self.limit = 1
        """How many can be."""
        self.listed = False
        """Whether it is on the list of those that may have a free seat."""
        self.retired = False
        """Whether no more requests are to come."""

    @property
    def link(self) -> Link:
        """Itself: a link that is not shared is the only seat on it."""
        return self

    def settle(self, origin: Any) -> bool:
        """Note, once it is connected, which protocol is spoken, and over which socket; tell whether it is connected."""
        inner = self.connection
        while getattr(inner, "_connection", None) is not None:
            inner = inner._connection
        if inner is self.connection or inner.is_closed():
            return False
        self.inner = inner
        self.multiplexed = hasattr(inner, "_h2_state")
        self.direct = not self.multiplexed and inner.can_handle_request(origin)
        # An idle peer that speaks HTTP/2 may send what it likes; one that speaks HTTP/1.1 has nothing to say.
        self._look = _watcher.look_at(self.fileno(), _watcher.HANG_UP if self.multiplexed else _watcher.READABLE)
        return True

    def prove(self) -> None:
        """Find out whether httpcore has done what it was asked for in good order."""
        inner = self.inner
        if inner is None or inner.is_closed():
            self.spent = True
        elif inner.is_idle() and inner.is_available() and (self.multiplexed or not inner._h11_state.trailing_data[0]):
            self.clean = True

    def fileno(self) -> int:
        """Return the socket's descriptor; -1 if there is none (any more)."""
        stream = self.wire.stream
        sock = None if stream is None else stream.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    def fresh(self) -> bool:
        """Tell whether it can be used: new, or not idle for too long, its peer present and silent."""
        return self._look is None or (monotonic() <= self.expires and self.silent())

    def silent(self) -> bool:
        """Tell whether the peer has neither hung up nor said what nobody asked for."""
        return self._look is None or self.spent or (not self._look(0) and self.wire.silent(self.multiplexed))

    def __del__(self) -> None:
        # `__init__` may have been interrupted. (test: an_exception_at_any_place_of_httpcores_code_or_millponds)
        if getattr(self, "loan", None) is not None:
            self.orphans.append(self.wire)


class _Links:
    """What is the same for threads and tasks."""

    provable = True
    _wire: type[Wire] | type[AsyncWire]

    def __init__(self, core: Any, plan: Any, origin: Any, layers: int) -> None:
        self.core = core
        self._plan = plan
        self._layers = layers
        self._orphans: deque[Any] = deque()
        # A socket that the collector finds in a cycle with its dropped link would be closed there and then, with a
        # warning; so it is held here, too.
        self._wires: set[Any] = set()
        self.origin = origin
        self.target: str = str(origin)

    def make(self) -> Link:
        """Make a link, which is not connected yet."""
        # httpcore's own pool knows which of its connections it takes, and with which settings; nothing else of it is
        # used. A copy, since others may be making a link at the same time.
        wire = self._wire(self._plan._network_backend, self.core)
        wire.layers = self._layers
        self._wires.add(wire)
        plan = copy(self._plan)
        plan._network_backend = wire
        return Link(plan.create_connection(self.origin), wire, self._orphans)

    def inspect(self, conn: Link, error: BaseException | None) -> Condition:
        """Tell whether it has been proved clean."""
        return Condition.CLEAN if conn.clean and not conn.wire.torn else Condition.BROKEN

    def alive(self, conn: Link) -> bool:
        """Tell whether the peer has neither hung up nor said what nobody asked for."""
        return conn.silent()

    def descriptor(self, conn: Link) -> int | None:
        """Return the socket's descriptor, once there is one."""
        number = conn.fileno()
        return number if number >= 0 else None

    def abandon(self, conn: Link) -> None:
        """Close the socket, and those of links that were dropped."""
        while self._orphans:
            self._sever(self._orphans.popleft())
        with suppress(ReferenceError):
            self._sever(conn.wire)

    def _sever(self, wire: Wire | AsyncWire) -> None:
        self._wires.discard(wire)
        wire.sever()

    def refused(self, error: BaseException) -> bool:
        """Nothing is refused here: whoever borrows connects."""
        return False

    def _check(self, conn: Link) -> None:
        if not conn.silent():
            raise ConnectionError(f"{self.target} has hung up, or sent something that nobody asked for")


class Links(_Links):
    """Connections to one origin, for threads."""

    _wire = Wire

    def open(self, timeout: float) -> Link:
        """Make a link, which is not connected yet."""
        return self.make()

    def ping(self, conn: Link, timeout: float) -> None:
        """Look at the socket, for there is no such question in HTTP/1.1; it does not wait."""
        self._check(conn)

    def reset(self, conn: Link, timeout: float) -> None:
        """Do nothing: a link is clean or broken."""

    def close(self, conn: Link) -> None:
        """Close the connection."""
        self._wires.discard(conn.wire)
        conn.connection.close()


class AsyncLinks(_Links):
    """Connections to one origin, for tasks."""

    _wire = AsyncWire

    async def open(self, timeout: float) -> Link:
        """Make a link, which is not connected yet."""
        return self.make()

    async def ping(self, conn: Link, timeout: float) -> None:
        """Look at the socket, for there is no such question in HTTP/1.1; it does not wait."""
        self._check(conn)

    async def reset(self, conn: Link, timeout: float) -> None:
        """Do nothing: a link is clean or broken."""

    async def close(self, conn: Link) -> None:
        """Close the connection."""
        self._wires.discard(conn.wire)
        await conn.connection.aclose()
