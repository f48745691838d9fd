"""The pools of links, each to one origin."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import Any, Final, NamedTuple, TypeAlias

from millpond._core.entry import Reason, State
from millpond._core.settings import Options
from millpond._httpcore.link import AsyncLinks, Link, Links
from millpond.aio import AsyncPool
from millpond.pool import Pool

__all__ = ["AsyncLinkPool", "LinkPool", "Terms", "give_back", "prove", "settle"]

A_MOMENT: Final = 0.1
"""Seconds that a caller waits at least if there is room: ample for making a link, or for closing another's first."""


class Terms(NamedTuple):
    """How long links are kept, and how many."""

    spare: int
    """How many may lie idle for each origin."""
    expiry: float
    """Seconds that a link may lie idle."""


class LinkPool(Pool[Link]):
    """For threads."""

    def __init__(self, links: Links, terms: Terms, settings: Options) -> None:
        self.links = links
        self.terms = terms
        super().__init__(links, **settings)

    def _kick(self) -> None:
        _open_at_once(self)
        super()._kick()

    def borrow(self, timeout: float) -> Any:
        """Lend a link that can be used, waiting for it up to `timeout` seconds."""
        while not (link := self._lend(_patience(self, timeout))).fresh():
            _retire(self, link)
        link.clean = False
        return link

    def give_back(self, seat: Any, error: BaseException | None = None) -> None:
        """Take a link back."""
        give_back(self, seat)

    def prove(self, link: Link) -> None:
        """Look at a link after httpcore has done a request over it."""
        prove(self, link)

    def shut(self) -> None:
        """Begin to close: whoever waits is sent away, and whoever uses a link finds it cut."""
        _shut(self)


class AsyncLinkPool(AsyncPool[Link]):
    """For tasks."""

    def __init__(self, links: AsyncLinks, terms: Terms, settings: Options) -> None:
        self.links = links
        self.terms = terms
        super().__init__(links, **settings)

    def _kick(self) -> None:
        _open_at_once(self)
        super()._kick()

    async def borrow(self, timeout: float) -> Any:
        """Lend a link that can be used, waiting for it up to `timeout` seconds."""
        while not (link := await self._lend(_patience(self, timeout))).fresh():
            _retire(self, link)
        link.clean = False
        return link

    def give_back(self, seat: Any, error: BaseException | None = None) -> None:
        """Take a link back."""
        give_back(self, seat)

    def prove(self, link: Link) -> None:
        """Look at a link after httpcore has done a request over it."""
        prove(self, link)

    def shut(self) -> None:
        """Begin to close: whoever waits is sent away, and whoever uses a link finds it cut."""
        _shut(self)

    @property
    def deserted(self) -> bool:
        """Whether the loop that it belongs to has ended."""
        return self._backend is not None and self._backend.ended()


LinkPools: TypeAlias = LinkPool | AsyncLinkPool


def _open_at_once(pool: LinkPools) -> None:
    """Make the links that are wanted: it is no work, and nobody need be sent for."""
    while pool._core.opens_wanted(monotonic()) > 0:
        claim = pool._step(pool._core.next_open)
        if claim is not None:
            pool._install(claim, pool.links.make())


def _patience(pool: LinkPools, timeout: float) -> float:
    """Return how long to wait: who does not want to wait at all does want a link that only has to be made."""
    if timeout < A_MOMENT and len(pool._core.entries) < pool._settings.max_size:
        return A_MOMENT
    return timeout


def settle(pool: LinkPools, link: Link) -> bool:
    """Note that a link on loan has been connected, if it has; from then on its socket is watched."""
    if link.inner is None and link.settle(pool.links.origin):
        pool._watch_anew(link.loan._claim.entry)
    return link.inner is not None


def prove(pool: LinkPools, link: Link) -> None:
    """Look at a link after httpcore has done a request over it."""
    settle(pool, link)
    link.prove()


def give_back(pool: LinkPools, link: Link) -> None:
    """Take a link back; more than are wanted to lie idle are closed."""
    if link.loan is None:
        return  # it is back already: what struck came afterwards
    core, terms = pool._core, pool.terms
    link.expires = monotonic() + terms.expiry
    if len(core.idle) >= terms.spare and not core.gate and link.clean:
        _end(pool, link, Reason.SURPLUS)
    else:
        pool._take_back(link)


def _retire(pool: LinkPools, link: Link) -> None:
    """Take back a link that has turned out to be of no use."""
    _end(pool, link, Reason.MAX_IDLE if link.silent() else Reason.HUNG_UP)


def _end(pool: LinkPools, link: Link, reason: Reason) -> None:
    pool._step(pool._core.condemn, link.loan._claim.entry, reason)
    pool._take_back(link)


def _shut(pool: LinkPools) -> None:
    pool._close_down()
    for entry in list(pool._core.entries):
        if entry.state is State.LENT:
            with suppress(ReferenceError):
                entry.conn.wire.sever()
