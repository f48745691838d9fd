"""One connection for several requests at once: what HTTP/2 allows, as far as the server does."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final, TypeAlias

import anyio
import anyio.lowlevel

from millpond._core.line import Line, Waiter
from millpond._httpcore.guard import GuardedStream, guard, let_go
from millpond._httpcore.link import Link
from millpond._httpcore.pools import AsyncLinkPool, LinkPool, give_back, prove, settle
from millpond.errors import PoolClosed, PoolTimeout

__all__ = ["AsyncSharedPool", "SharedPool"]

CANCEL: Final = 8
"""The error code of HTTP/2 for a stream that is not needed any more."""
NARROW: Final = 2**23
"""Bytes of a connection's window that must be left, of 2**24, for it to be worth keeping."""


class Seat:
    """One request's place on a link; the request may have to find itself the link first.

    A seat that is dropped leaves its stream open, which nobody will ever read. So no more requests are to come to its
    link, which ends with the last one that is on it.
    """

    __slots__ = ("__weakref__", "link")

    def __init__(self, link: Link | None = None) -> None:
        self.link = link

    def __del__(self) -> None:
        link = getattr(self, "link", None)
        if link is not None and link.multiplexed:
            link.retired = True
            link.seats -= 1


class Guest(Waiter[Link]):
    """A request that wants a seat."""

    __slots__ = ("_event", "_make_event", "seat")

    def __init__(self, make_event: Callable[[], Any], deadline: float) -> None:
        super().__init__(0, monotonic(), deadline, None)
        self._make_event = make_event
        self.seat: Seat | None = None

    def line_up(self) -> None:
        """Get ready to be woken."""
        self._event = self._make_event()

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until woken, as the event does."""
        return self._event.wait() if timeout is None else self._event.wait(timeout)

    def wake(self) -> None:
        """Let it go on."""
        self._event.set()


class Sharing:
    """The seats of one origin, and the line for them. It waits for nothing, and holds nothing alive but its line.

    Whether an origin speaks HTTP/2 is known when the first connection to it has been made. Until then one request, the
    scout, goes ahead, and the others wait to see what it finds: many connections at once would be all but one too many
    if it is HTTP/2. It is found out once, so an origin that speaks HTTP/1.1 only makes nobody wait from then on. A
    scout is sent again when all seats are taken and the pool has room for another connection.
    """

    def __init__(self, room: Callable[[], bool]) -> None:
        self._room = room
        self._lock = threading.RLock()
        self.multiplexes: bool | None = None
        """Whether the origin speaks HTTP/2, as far as is known."""
        self.closed = False
        self._shared: weakref.WeakSet[Link] = weakref.WeakSet()
        self._listed: list[weakref.ref[Link]] = []
        """Those that may have a free seat; the last is filled first, so that the others can become idle."""
        self._scout: weakref.ref[Seat] | None = None
        self._line: Line[Link] = Line()

    def enter(self, guest: Guest) -> None:
        """Give a request a seat (which may have no link yet), or put it in line."""
        with self._lock:
            if self._line.head() is None and (seat := self._next()) is not None:
                guest.seat = seat
                guest.done = True
            elif not self.closed:
                guest.line_up()
                self._line.enrol(guest)

    def desist(self, guest: Guest) -> None:
        """Take a request out of the line."""
        with self._lock:
            if not guest.done:
                self._line.leave(guest)

    def close(self) -> None:
        """Send all away."""
        with self._lock:
            self.closed = True
            while (guest := self._line.head()) is not None:
                guest.wake()
                self._line.leave(guest)

    def connected(self, link: Link) -> None:
        """Note what is known of a link that is on loan; the server may change its limit with every exchange."""
        with self._lock:
            if not link.multiplexed:
                self.multiplexes = False
            else:
                link.limit = getattr(link.inner, "_max_streams", 1)
                if not link.shared:
                    self.multiplexes = link.shared = True
                    link.seats = 1
                    self._shared.add(link)
                self._list(link)
            if not link.multiplexed or link.wire.heard:
                # Not before: what a server of HTTP/2 says first is how many requests it takes at once.
                scout = None if self._scout is None else self._scout()
                if scout is not None and scout.link is link:
                    self._scout = None
            self._serve()

    def leave(self, seat: Seat, error: BaseException | None) -> Link | None:
        """End a request's stay; return the link if that was the last on it, for the pool, and call `serve` then."""
        with self._lock:
            link, seat.link = seat.link, None
            if self._scout is not None and self._scout() is seat:
                self._scout = None
                if isinstance(error, Exception):
                    # Nobody is to wait for the next one to fail, too.
                    self._disperse()
            if link is None or not link.multiplexed:
                return link
            link.seats -= 1
            if not link.inner.is_available():
                link.retired = True
            if link.seats > 0:
                self._list(link)
                self._serve()
                return None
            link.shared = False
            self._shared.discard(link)
            return link

    def serve(self) -> None:
        """Give seats to those in line, as far as there are."""
        with self._lock:
            self._serve()

    def _serve(self) -> None:
        while (guest := self._line.head()) is not None and (seat := self._next()) is not None:
            self._seat(guest, seat)

    def _disperse(self) -> None:
        while (guest := self._line.head()) is not None:
            self._seat(guest, Seat())

    def _seat(self, guest: Any, seat: Seat) -> None:
        guest.seat = seat
        guest.wake()
        self._line.leave(guest)

    def _next(self) -> Seat | None:
        if self.closed:
            return None
        if self.multiplexes is False:
            return Seat()
        link = self._vacancy()
        if link is not None:
            link.seats += 1
            return Seat(link)
        if (self._scout is not None and self._scout() is not None) or (self._any_shared() and not self._room()):
            return None
        seat = Seat()
        self._scout = weakref.ref(seat)
        return seat

    def _vacancy(self) -> Link | None:
        while self._listed:
            link = self._listed[-1]()
            if link is not None:
                if link.shared and _usable(link) and link.seats < link.limit:
                    return link
                link.listed = False
            self._listed.pop()
        return None

    def _any_shared(self) -> bool:
        for link in list(self._shared):
            if _usable(link):
                return True
            self._shared.discard(link)
        return False

    def _list(self, link: Link) -> None:
        if not link.listed:
            link.listed = True
            self._listed.append(weakref.ref(link))


def _usable(link: Link) -> bool:
    """Whether another request may come."""
    if link.wire.torn or not link.inner.is_available() or link.loan._claim.entry.doom is not None:
        link.retired = True
    return not link.retired


class SharedPool(LinkPool):
    """For threads."""

    def _begin(self) -> None:
        super()._begin()
        self.sharing = Sharing(partial(_room, weakref.ref(self)))

    def borrow(self, timeout: float) -> Seat:
        """Give a request a seat, waiting for it up to `timeout` seconds."""
        guest = Guest(threading.Event, monotonic() + timeout)
        try:
            self.sharing.enter(guest)
            if not guest.done:
                guest.wait(min(timeout, threading.TIMEOUT_MAX))
            seat = _seat(self, guest)
            if seat.link is None:
                seat.link = super().borrow(guest.deadline - monotonic())
                _admit(self, seat.link)
            return seat
        except BaseException as error:
            _dismiss(self, guest, error)
            raise

    def give_back(self, seat: Seat, error: BaseException | None = None) -> None:
        """End a request's stay; the last one gives the link back."""
        _leave(self, seat, error)

    def prove(self, link: Link) -> None:
        """Do nothing: a link is looked at when the last one has left it."""

    def shut(self) -> None:
        """Begin to close."""
        self.sharing.close()
        super().shut()


class AsyncSharedPool(AsyncLinkPool):
    """For tasks."""

    def _begin(self) -> None:
        super()._begin()
        self.sharing = Sharing(partial(_room, weakref.ref(self)))

    async def borrow(self, timeout: float) -> Seat:
        """Give a request a seat, waiting for it up to `timeout` seconds."""
        # Who has been cancelled already must not get as far as writing: what is cut there ends the link for all.
        await anyio.lowlevel.checkpoint_if_cancelled()
        guest = Guest(anyio.Event, monotonic() + timeout)
        try:
            self.sharing.enter(guest)
            if not guest.done:
                with anyio.move_on_after(timeout):
                    await guest.wait()
            seat = _seat(self, guest)
            if seat.link is None:
                seat.link = await super().borrow(guest.deadline - monotonic())
                _admit(self, seat.link)
            return seat
        except BaseException as error:
            _dismiss(self, guest, error)
            raise

    def give_back(self, seat: Seat, error: BaseException | None = None) -> None:
        """End a request's stay; the last one gives the link back."""
        _leave(self, seat, error)

    def prove(self, link: Link) -> None:
        """Do nothing: a link is looked at when the last one has left it."""

    def shut(self) -> None:
        """Begin to close."""
        self.sharing.close()
        super().shut()


SharedPools: TypeAlias = SharedPool | AsyncSharedPool


def _room(ref: weakref.ref[SharedPools]) -> bool:
    """Whether the pool could lend another link at once."""
    pool = ref()
    if pool is None:
        return False
    core, settings = pool._core, pool._settings
    if core.idle:
        return True
    budget: Any = settings.budget
    return len(core.entries) < settings.max_size and (budget is None or budget.used < budget.limit)


def _seat(pool: SharedPools, guest: Guest) -> Seat:
    """Return what a guest has got, or say why it has got nothing."""
    if guest.seat is not None:
        return guest.seat
    if pool.sharing.closed:
        raise PoolClosed(f"pool {pool.name!r} is closed")
    raise PoolTimeout(
        f"pool {pool.name!r} had no stream of HTTP/2 free within {guest.deadline - guest.since:.1f} s\n"
        "  hint: raise max_connections, or find out which requests take so long"
    )


def _admit(pool: SharedPools, link: Link) -> None:
    """Take in what the pool has lent: for all, if it is connected; else its wire tells when it is."""
    if link.inner is None:
        link.wire.news = partial(_tell, weakref.ref(pool), weakref.ref(link))
    else:
        pool.sharing.connected(link)


def _tell(pool_ref: weakref.ref[SharedPools], link_ref: weakref.ref[Link]) -> None:
    pool, link = pool_ref(), link_ref()
    if pool is not None and link is not None and settle(pool, link):
        if link.multiplexed and isinstance(pool, SharedPool) and not isinstance(link.wire.stream, GuardedStream):
            guard(link, pool.links.core)
        pool.sharing.connected(link)
        if not link.multiplexed:
            link.wire.news = None


def _dismiss(pool: SharedPools, guest: Guest, error: BaseException) -> None:
    pool.sharing.desist(guest)
    if guest.seat is not None:
        _leave(pool, guest.seat, error)


def _leave(pool: SharedPools, seat: Seat, error: BaseException | None) -> None:
    link = seat.link
    if error is not None and link is not None:
        if isinstance(pool, SharedPool) and not isinstance(error, _expected(pool.links.core)):
            # An exception from outside may have struck httpcore anywhere, and have left one of its locks taken.
            # (test: an_exception_at_any_place_of_a_request_over_http2)
            link.retired = True
        if link.multiplexed:
            _reset(link)
    link = pool.sharing.leave(seat, error)
    if link is not None:
        prove(pool, link)
        link.clean = link.clean and not link.retired
        give_back(pool, link)
    pool.sharing.serve()


def _expected(core: Any) -> tuple[type[Exception], ...]:
    """Return the errors by which httpcore tells that a request has failed, and that by which a face does."""
    return (
        core.ConnectionNotAvailable,
        core.NetworkError,
        core.ProtocolError,
        core.ProxyError,
        core.TimeoutException,
        EOFError,
    )


def _reset(link: Link) -> None:
    """Tell the server which streams nobody will read: httpcore just forgets them, but h2 goes on counting them.

    What had come on them stays taken off the connection's window. When too much is, no more requests are to come.
    """
    from h2.exceptions import ProtocolError

    let_go(link)
    state = link.inner._h2_state
    try:
        for number, stream in list(state.streams.items()):
            if number not in link.inner._events and not stream.closed:
                state.reset_stream(number, CANCEL)
        if state.inbound_flow_control_window < NARROW:
            link.retired = True
    except ProtocolError:
        link.retired = True
