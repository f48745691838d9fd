"""One stand, or two that share a budget, and all that may happen to them next."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from marshal import dumps
from typing import Any, Final

from millpond._core.ledger import Ledger
from proof.core.case import Case
from proof.core.cuts import Places
from proof.core.stand import (
    CLOSE,
    CUT,
    FLIGHTS,
    GHOST,
    LOANS,
    LOST,
    NOW,
    OPENS,
    POSTING,
    STRAYS,
    WAITS,
    WITHOUT_LOCK,
    WORKING,
    Caller,
    Row,
    Stand,
)

__all__ = ["Event", "World"]

Event = tuple[Any, ...]
"""What happens: the name of a stand's method, the number of the stand, and the arguments."""

FAIR: Final = 20
"""What has a lower rank happens in a fair world, where servers answer, borrowers return, and nobody gives up."""

WORLDLY: Final = frozenset({"pass_time", "settle_budget", "resize_budget"})
"""What concerns all stands."""

UNCUT: Final = frozenset({"look", "leave", "fly", "take", "part", "lose", "drop"})
"""What is no change of the core."""

Ranked = tuple[int, Event]


class World:
    """All that is explored together. It has one state at a time: `picture` tells it, `put` brings it back."""

    def __init__(self, case: Case) -> None:
        self.case = case
        settings = case.all_settings()
        self.ledger = Ledger(case.budget)
        self.unbalanced = False
        """Whether somebody has stirred the budget and has not come to look at it yet."""
        self.held_before = 0
        self.places: Places | None = None
        """Tells at which place of the core what happens is, while it is looked at."""
        self.stands = []
        for _ in range(case.pools):
            share = self.ledger.join(settings[0].min_size) if case.budget else None
            stand = Stand(case, settings, share)
            stand.balance = self._stir
            self.stands.append(stand)
        if case.budget and settings[0].min_size:
            # Who makes a pool has its openers look for work, and with that it tells the budget what it wants.
            for stand in self.stands:
                stand.open()
        self.put(self.picture())

    def _stir(self) -> None:
        self.unbalanced = True

    # One state.

    def picture(self) -> Row:
        """Tell all that could ever matter."""
        if not self.case.budget:
            return tuple([stand.picture() for stand in self.stands])
        ranks = self._ranks()
        ledger = self.ledger
        calls = len(ledger.calls), len(ledger.excess)
        row = ledger.limit, *calls, ranks[ledger.oldest], ledger.next_has, self.unbalanced
        return *[stand.picture() for stand in self.stands], row

    def _ranks(self) -> dict[float, float]:
        """Tell in which order callers have come, since only that matters. Whoever comes next is later than all."""
        moments = {self.ledger.oldest}
        for stand in self.stands:
            assert stand.share is not None
            moments.add(stand.share.since)
            moments.update([caller.since for caller in stand.callers])
        moments.discard(math.inf)
        ranks = {moment: NOW - 1.0 - rank for rank, moment in enumerate(sorted(moments, reverse=True))}
        ranks[math.inf] = math.inf
        for stand in self.stands:
            stand.ranks = ranks
        return ranks

    def told(self, picture: Row) -> bytes:
        """Write a picture down. Which of two pools that are alike is which makes no difference."""
        if self.case.pools == 2 and picture[1] < picture[0]:
            picture = picture[1], picture[0], *picture[2:]
        return dumps(picture, 2)

    def put(self, picture: Row) -> None:
        """Make everything as it was when the picture was taken."""
        for stand, row in zip(self.stands, picture, strict=False):
            stand.put(row)
        if self.case.budget:
            ledger = self.ledger
            ledger.limit, calls, excess, ledger.oldest, ledger.next_has, self.unbalanced = picture[-1]
            ledger.calls = deque([None] * calls)
            ledger.excess = deque([None] * excess)
            self.held_before = ledger.held

    # What happens.

    def apply(self, event: Event) -> None:
        """Have something happen."""
        name, number, *arguments = event
        if name in WORLDLY:
            getattr(self, name)(*arguments)
        else:
            getattr(self.stands[number], name)(*arguments)

    def apply_watched(self, event: Event, look: Callable[[], None]) -> None:
        """Have something happen, and look at each place where an exception may strike."""
        self.places = Places(look)
        for stand in self.stands:
            stand.watch = self.places.look
        try:
            with self.places:
                self.apply(event)
        finally:
            for stand in self.stands:
                stand.watch = None

    def apply_preempted(self, event: Event, place: int, others: tuple[Event, ...]) -> int:
        """Have something happen, and others at the place with that number in the middle; return how many there are."""
        passed = 0

        def look() -> None:
            nonlocal passed
            passed += 1
            if passed == place:
                for other in others:
                    self.apply(other)

        with Places(look):
            self.apply(event)
        return passed

    def pass_time(self, seconds: float) -> None:
        """Let time pass, in which nothing else happens."""
        for stand in self.stands:
            if not stand.dropped:
                stand.pass_time(seconds)

    def settle_budget(self, backwards: bool) -> None:
        """Give out what is free, and call for what is wanting."""
        self.unbalanced = False
        shares = list(self.ledger.shares)
        if backwards:
            self.ledger.shares = dict.fromkeys(reversed(shares))
        self.ledger.balance()
        self.ledger.shares = dict.fromkeys(shares)

    def resize_budget(self, limit: int) -> None:
        """Change the limit of the budget."""
        self.ledger.resize(limit)
        self.unbalanced = True

    def _budget(self) -> Iterator[Ranked]:
        if self.unbalanced:
            yield 8, ("settle_budget", 0, False)
            asking = [share.since for share in self.ledger.shares if share.wants]
            if len(set(asking)) < len(asking):
                yield FAIR, ("settle_budget", 0, True)
        if any(stand.dropped for stand in self.stands):
            for number, stand in enumerate(self.stands):
                share = stand.core.share
                if not stand.dropped and share is not None and share.wants and not share.exhausted:
                    # Nobody tells of a pool that was dropped. The ticker of another finds what it has left.
                    yield 18, ("tick", number, False)
        for limit in self.case.budgets:
            if limit != self.ledger.limit:
                yield FAIR, ("resize_budget", 0, limit)

    def _time(self) -> Iterator[Ranked]:
        ticked = min((stand.core._ticked for stand in self.stands if not stand.dropped), default=NOW)
        for seconds in self.case.steps:
            if not any(stand.flights for stand in self.stands) and NOW - ticked + seconds <= self.case.lateness:
                yield FAIR - 1, ("pass_time", 0, seconds)

    def may_be_cut(self, event: Event) -> bool:
        """Whether it is explored what an exception leaves that strikes in the middle of an event."""
        stand = self.stands[event[1]]
        if event[0] in UNCUT or event[0] in WORLDLY or (stand.torn and self.case.cut < 2):
            return False
        # One ghost is enough.
        return event[0] != "cancel" or not any(waiter.fate == GHOST for waiter in stand.callers)

    def flights(self, picture: Row) -> Iterator[tuple[Event, ...]]:
        """Return what those on the hot path may do, one after the other, without the lock."""
        for n, stand in enumerate(self.stands):
            if not stand.core.gate and len(stand.flights) < self.case.hot:
                yield (("look", n),)
            for i in different(picture[n][FLIGHTS]):
                if picture[n][FLIGHTS][i][0] in WITHOUT_LOCK:
                    yield (("fly", n, i),)
                    yield (("fly_on", n, i),)

    def enabled(self, picture: Row) -> tuple[list[Event], bool]:
        """Return all that may happen next in this state, and whether the first is what happens in a fair world."""
        ranked: list[Ranked] = []
        for number, stand in enumerate(self.stands):
            if stand.dropped:
                continue
            for part in (_openers, _tenders, _keeper, _loans, _callers, _faults, _deaths, _whole):
                ranked.extend(part(stand, number, picture[number]))
        if self.case.budget:
            ranked.extend(self._budget())
        ranked.extend(self._time())
        ranked.sort(key=_rank)
        return [event for _, event in ranked], bool(ranked) and ranked[0][0] < FAIR


def _rank(ranked: Ranked) -> int:
    return ranked[0]


def different(rows: tuple[Row, ...]) -> Iterator[int]:
    """Return where each of the rows stands for the first time: which of those that are alike makes no difference."""
    last = None
    for index, row in enumerate(rows):
        if row != last:
            yield index
            last = row


def _openers(stand: Stand, n: int, picture: Row) -> Iterator[Ranked]:
    """What openers may do, and the server."""
    kinds = stand.case.kinds
    for i in different(picture[OPENS]):
        yield 5, ("opened", n, i, 0.0)
        if "jitter" in kinds:
            yield FAIR, ("opened", n, i, 1.0)
        if "failed" in kinds:
            yield FAIR, ("failed", n, i, False)
        if "refused" in kinds:
            yield FAIR, ("failed", n, i, True)
        if "forgo" in kinds:
            yield FAIR, ("forgo", n, i)
    if stand.core.opens_wanted(NOW) > 0:
        yield 9, ("open", n)


def _tenders(stand: Stand, n: int, picture: Row) -> Iterator[Ranked]:
    """What tenders may do, and the server."""
    for i in different(picture[WORKING]):
        if picture[WORKING][i][0] == CLOSE:
            yield 6, ("closed", n, i)
            continue
        yield 6, ("tended", n, i, True)
        if "unsound" in stand.case.kinds:
            yield FAIR, ("tended", n, i, False)
    if stand.core.chores:
        yield 10, ("chore", n)


def _keeper(stand: Stand, n: int, picture: Row) -> Iterator[Ranked]:
    """What the keeper may do."""
    core = stand.core
    for i in different(picture[LOST]):
        yield 0, ("find", n, i)
    called = core.share is not None and core.share.called and not core.share.alert
    if core._sweep_due or stand.torn or called or picture[STRAYS]:
        yield 8, ("sweep", n)
    elif core.gate and core.idle and stand.case.strikes_returns:
        # One who returned was struck before it could look at the gate. The ticker finds what it left.
        yield 18, ("sweep", n)
    if stand.case.steps and core.due(NOW) <= NOW:
        yield 12, ("tick", n, False)
    if "suspend" in stand.case.kinds:
        yield FAIR, ("tick", n, True)


def _deaths(stand: Stand, n: int, picture: Row) -> Iterator[Ranked]:
    """Who may die with a claim in its hands."""
    if "lose" not in stand.case.kinds:
        return
    for place, name in (
        (OPENS, "opens"), (LOANS, "loans"), (POSTING, "posting"), (WORKING, "working"), (FLIGHTS, "flights")
    ):  # fmt: skip
        for i in different(picture[place]):
            yield FAIR, ("lose", n, i, name)
    for i, caller in enumerate(stand.callers):
        if caller.fate == WAITS and caller.done:
            yield FAIR, ("lose", n, i, "callers")


def _loans(stand: Stand, n: int, picture: Row) -> Iterator[Ranked]:
    """What borrowers may do, and those who return."""
    kinds = stand.case.kinds
    for i in different(picture[LOANS]):
        yield 7, ("release", n, i, "clean")
        if len(stand.flights) < stand.case.hot and stand.loans[i].entry.good_until:
            yield FAIR, ("leave", n, i)
        for fitness in ("dirty", "cut", "dead"):
            if fitness in kinds:
                yield FAIR, ("release", n, i, fitness)
        if "discard" in kinds:
            yield FAIR, ("discard", n, i)
    for i in different(picture[POSTING]):
        yield 4, ("post", n, i)
    for i in different(picture[FLIGHTS]):
        yield 3, ("fly", n, i)


def _callers(stand: Stand, n: int, picture: Row) -> Iterator[Ranked]:
    """What callers may do."""
    kinds, core = stand.case.kinds, stand.core
    for i, caller in enumerate(stand.callers):
        if caller.fate == CUT:
            yield 1, ("cancel", n, i)
        elif caller.fate == WAITS:
            overdue = caller.deadline <= NOW
            if caller.done and (caller.woken or overdue):
                yield 2, ("take", n, i)
            if overdue and not caller.done:
                yield 11, ("expire", n, i)
            if "cancel" in kinds:
                yield FAIR, ("cancel", n, i)
    if "acquire" in kinds and sum(1 for caller in stand.callers if caller.fate != GHOST) < stand.case.callers:
        for timeout in stand.case.timeouts:
            yield FAIR, ("enrol", n, timeout)
        if not core.gate and core.idle and core.idle[-1].entry.good_until >= NOW:
            yield FAIR, ("acquire", n, math.inf)
        if not core.gate and len(stand.flights) < stand.case.hot:
            yield FAIR, ("look", n)


def _faults(stand: Stand, n: int, picture: Row) -> Iterator[Ranked]:
    """What the watcher may see."""
    if "hang_up" not in stand.case.kinds:
        return
    for i in range(len(stand.core.idle)):
        yield FAIR, ("hang_up", n, "idle", i)
    for i, job in enumerate(stand.core._jobs):
        if job.claim is not None:
            yield FAIR, ("hang_up", n, "jobs", i)
    for i, caller in enumerate(stand.callers):
        if caller.claim is not None:
            yield FAIR, ("hang_up", n, "callers", i)
    for i in different(picture[LOANS]):
        yield FAIR, ("hang_up", n, "loans", i)
    for i in different(picture[WORKING]):
        if picture[WORKING][i][0] != CLOSE:
            yield FAIR, ("hang_up", n, "working", i)


def _whole(stand: Stand, n: int, picture: Row) -> Iterator[Ranked]:
    """What concerns the whole pool."""
    kinds, core = stand.case.kinds, stand.core
    if "pause" in kinds:
        yield (14, ("resume", n)) if core.paused else (FAIR, ("pause", n))
    if "refresh" in kinds:
        yield FAIR, ("refresh", n)
    if "close" in kinds and not core.closing:
        yield FAIR, ("close", n)
    if "drop" in kinds and stand.may_be_dropped:
        yield FAIR, ("drop", n)
    if "fork" in kinds and not core.forking:
        yield FAIR, ("fork", n)
    if core.forking:
        yield 13, ("rejoin", n)
    for index, settings in enumerate(stand.settings):
        if len(stand.settings) > 1 and settings is not core.settings:
            yield FAIR, ("resize", n, index)
    if "warm" in kinds:
        yield from _others(stand.warming, "warm", "warming", n)
    if "drain" in kinds and core.closing:
        yield from _others(stand.draining, "drain", "draining", n)


def _others(callers: list[Caller], name: str, place: str, n: int) -> Iterator[Ranked]:
    # One at a time.
    alive = [caller for caller in callers if caller.fate != GHOST]
    if not alive:
        yield FAIR, (name, n)
    for caller in alive:
        if caller.fate == CUT:
            yield 1, ("desist", n, place)
        elif caller.done and caller.woken:
            yield 2, ("part", n, place)
        else:
            yield FAIR, ("desist", n, place)
