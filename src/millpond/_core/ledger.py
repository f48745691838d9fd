"""The state machine of a budget: how many connections several pools may have open together, and which pool how many."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from heapq import nsmallest
from typing import Any

from millpond._core.entry import Claim

__all__ = ["Ledger", "Share"]


class Share:
    """One pool's part of a budget.

    Its quota is how many connections the pool may have. It is the difference of two counters that only grow, each
    written by one side under that side's own lock: what the ledger has granted, and what the pool has returned. So
    neither lock is ever taken inside the other, and an exception between any two instructions loses no permit: what
    has been granted and not returned is the pool's, and whoever reads the other side's counter late sees too little
    room, never too much.
    """

    __slots__ = (
        "_ledger",
        "alert",
        "closing",
        "demand",
        "granted",
        "idle",
        "minimum",
        "owing",
        "returned",
        "since",
        "stirred",
    )

    def __init__(self, ledger: Ledger, minimum: int) -> None:
        self._ledger = ledger
        self.minimum = minimum
        """How many the pool is sure to get: they are kept free for it."""
        self.granted = 0
        self.returned = 0
        self.demand = 0
        """How many connections the pool could use now, with those it has."""
        self.since = math.inf
        """Since when its caller in line who has waited longest has waited."""
        self.closing = 0
        """How many of its connections are being closed."""
        self.idle: Sequence[Claim[Any]] = ()
        """Its idle connections, to be looked at without its lock."""
        self.owing = 0
        """How many calls it has answered whose permits it still has, since the connections are not closed yet."""
        self.alert = False
        """Whether the pool looks at every connection that comes back, because there are calls."""
        self.stirred = False
        """Whether the pool has changed something here that the ledger does not know of yet."""

    @property
    def quota(self) -> int:
        """How many connections the pool may have, those being opened or closed included."""
        return self.granted - self.returned

    @property
    def exhausted(self) -> bool:
        """Whether the whole budget is taken."""
        return self._ledger.held >= self._ledger.limit

    def room(self, size: int, now: float) -> int:
        """How many connections a pool of so many may open now."""
        return self.quota - size if now < self._ledger.good_until else 0

    @property
    def wants(self) -> int:
        """How many permits it lacks."""
        return max(0, self.demand - self.quota)

    @property
    def held(self) -> int:
        """How many the ledger has to keep for it."""
        return max(self.quota, self.minimum)

    def declare(self, size: int, closing: int, wanted: int, since: float) -> None:
        """Say how many connections the pool has, and how many more it could use; what it cannot use is returned."""
        lacked, demand = self.wants, size + wanted
        # A place that is free again and is not returned: whoever counted on it has to be told.
        kept = closing < self.closing and self._ledger.oldest < math.inf
        self.since = since
        self.closing = closing
        self.demand = demand
        owed = min(self.owing, max(0, self.quota - size))
        self.owing -= owed
        surplus = max(owed, self.quota - demand)
        if surplus > 0:
            self.returned += surplus
        if surplus > 0 or kept or self.wants != lacked:
            self.stirred = True

    def forsake(self) -> None:
        """Return everything: the pool is no more. Others learn of it when they look next."""
        self.minimum = self.demand = 0
        self.returned = self.granted

    @property
    def called(self) -> bool:
        """Whether connections are to be closed so that other pools can open some."""
        return bool(self._ledger.excess or self._ledger.calls)

    def answer(self, waiting_since: float) -> bool:
        """Whether this pool should close a connection now, idle or just returned: at most one for each call.

        If there are more connections than there may be, it should, whoever waits for it. Else a pool whose own callers
        wait (`waiting_since` tells since when, or is infinite) keeps what it has, unless another's caller has waited
        for longer, and that pool has nothing, or would still have less than this one. Without the second condition two
        pools would take one connection from each other again and again.
        """
        ledger = self._ledger
        if not _taken(ledger.excess):
            if waiting_since < math.inf:
                if waiting_since <= ledger.oldest:
                    return False
                if ledger.next_has > 0 and self.quota - ledger.next_has < 2:
                    return False
            if not _taken(ledger.calls):
                return False
        self.owing += 1
        return True


class Ledger:
    """Who has how many permits, and who is to have the next.

    A free permit goes to the pool whose caller has waited longest. When none is free, calls go out: as many idle
    connections are to be closed as permits are wanting. Pools answer them under their own locks, so the calls are a
    deque, whose pop is atomic.
    """

    __slots__ = ("calls", "excess", "good_until", "limit", "next_has", "oldest", "shares")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.good_until = math.inf
        """Until when permits may be used to open connections: one who is stopped for longer wakes up without any."""
        self.shares: dict[Share, None] = {}
        self.calls: deque[None] = deque()
        """One for each connection that is to be closed to make room for a caller elsewhere."""
        self.excess: deque[None] = deque()
        """One for each that is to be closed because the limit was lowered."""
        self.oldest = math.inf
        """Since when the caller has waited who waits longest for a permit."""
        self.next_has = 0
        """How many the pool of that caller has."""

    @property
    def held(self) -> int:
        """How many permits are given out or kept for a pool's minimum."""
        return sum(share.held for share in self.shares)

    def join(self, minimum: int) -> Share:
        """Open a share for a pool; raise ValueError if its minimum cannot be guaranteed beside those of the others."""
        share = Share(self, minimum)
        self.check(share, minimum)
        self.shares[share] = None
        return share

    def check(self, share: Share, minimum: int) -> None:
        """Raise ValueError if that minimum of a share cannot be guaranteed."""
        others = sum(other.minimum for other in self.shares if other is not share)
        if others + minimum > self.limit:
            raise ValueError(
                f"min_size={minimum} cannot be guaranteed: the budget is {self.limit} connections, "
                f"of which other pools have {others} for their own min_size"
            )

    def resize(self, limit: int) -> None:
        """Go by another limit; raise ValueError if it is too small for what is guaranteed."""
        needed = sum(share.minimum for share in self.shares)
        if limit < needed:
            raise ValueError(f"limit={limit} is less than the min_size of all pools together, which is {needed}")
        self.limit = limit

    def leave(self, share: Share) -> None:
        """Close the share of a pool that is no more."""
        self.shares.pop(share, None)

    def givers(self) -> list[Share]:
        """Return those who are to look for calls: those with the longest idle connections, or all who have any."""
        idle = [share for share in self.shares if share.idle and share.quota > share.minimum]
        calls = len(self.excess) + len(self.calls)
        if len(idle) >= calls:
            # One more than is needed, as a borrower may be quicker.
            return nsmallest(calls + 1, idle, key=_last_used)
        if self.excess:
            return [share for share in self.shares if share.quota and not share.alert]
        # Those who lack connections themselves look anyway, and so do those who know already.
        return [share for share in self.shares if share.quota and not share.wants and not share.alert]

    def balance(self) -> list[Share]:
        """Give out what is free, and call for what is wanting; return the shares that got something."""
        free = self.limit - self.held
        asking = sorted((share for share in self.shares if share.wants), key=lambda share: share.since)
        served = []
        for share in asking:
            reserved = max(0, share.minimum - share.quota)
            grant = min(share.wants, reserved + max(0, free))
            if grant > 0:
                free -= max(0, grant - reserved)
                share.granted += grant
                served.append(share)
        wanting = [share for share in asking if share.wants]
        self.oldest, self.next_has = (wanting[0].since, wanting[0].quota) if wanting else (math.inf, 0)
        # What is being closed already need not be called for.
        excess = max(0, -free) - sum(share.closing for share in self.shares)
        _set_length(self.excess, excess)
        _set_length(self.calls, sum(share.wants for share in wanting) + min(0, excess))
        return served


def _taken(calls: deque[None]) -> bool:
    """Take one; tell whether there was one."""
    try:
        calls.pop()
    except IndexError:
        return False
    return True


def _set_length(calls: deque[None], length: int) -> None:
    """Have as many, while others may be taking some."""
    while len(calls) > length:
        if not _taken(calls):
            break
    calls.extend([None] * (length - len(calls)))


def _last_used(share: Share) -> float:
    """When the longest idle connection was last lent."""
    try:
        return share.idle[0].entry.since
    except IndexError:
        return math.inf
