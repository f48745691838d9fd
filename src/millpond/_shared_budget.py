"""A budget that several processes share: what this one may have of it changes while it runs.

The pools of a process deal with their budget as if it were theirs alone. Its limit is what this process may have now;
a thread, the governor, moves it: it tells the others what is wanted here, takes what it may, and gives back what nobody
here has. So whoever borrows never waits for another process, unless the connection that it needs is there.
"""

from __future__ import annotations

import _thread
import logging
import math
import os
import threading
import weakref
from abc import abstractmethod
from time import monotonic, sleep
from typing import Any, Final, NamedTuple

from millpond._bell import ThreadBell
from millpond._core.ledger import Share
from millpond._permit_file import PermitFile, made
from millpond.budget import Budget, Member

__all__ = ["Need", "SharedBudget", "register"]

log: Final = logging.getLogger("millpond")

SETBACK: Final = 1.0
"""Seconds until the governor tries again what has failed, or looks whether what has left is dropped."""

LAST_TURN: Final = 2.0
"""Seconds that a turn may take in which the governor has the last reference to a budget."""


class Need(NamedTuple):
    """What the pools of this process have, and could use."""

    held: int
    """How many connections they have, or may open now."""
    idle: int
    """How many of these lie idle, above what the pools keep for their `min_size`."""
    wanted: int
    """How many more they could use now."""
    since: float
    """Since when the caller waits who waits longest for one of these, by `time.monotonic`; infinite if nobody does."""


class SharedBudget(Budget):
    """What budgets have in common that several processes share.

    A pool is not sure of its `min_size`, as there is no telling how many processes come; what it has of it, it keeps.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._governed = False
        super().__init__(limit)
        self._whole = limit

    _path: str

    def _begin(self) -> None:
        # A forked child is another member: it has a handle of its own, and none of its parent's locks.
        self._file: PermitFile | None = None
        self._ledger.limit = 0
        self._governed = False
        self._left = False
        """Whether it has been dropped, or closed: what this process had is given back, for good."""
        self._turning = threading.RLock()
        """Held by the governor for its turn, and by whoever gives back what this process had; by nobody else, since
        the governor waits for the budget's own lock with it."""
        self._bell = ThreadBell()
        super()._begin()

    def __del__(self) -> None:
        if "_bell" not in self.__dict__:
            return
        if self._pid == os.getpid():
            self._left = True
            self._leave()
        self._bell.ring()

    @property
    def name(self) -> str:
        """What the budget is called wherever it is shared."""
        return self._name

    @property
    def limit(self) -> int:
        """How many connections there may be, of all processes together."""
        return self._whole

    @property
    def allowance(self) -> int:
        """How many connections this process may have now."""
        return self._ledger.limit

    def resize(self, limit: int) -> None:
        """Change the limit as this process knows it. What is too many is closed as soon as it is idle."""
        self._check(limit)
        self._whole = limit
        self._bell.ring()

    def __repr__(self) -> str:
        return (
            f"<millpond.{type(self).__name__} {self._name!r}: {self.used} connections of this process, "
            f"{self.allowance} of {self._whole} allowed>"
        )

    # For pools.

    def _join(self, pool: Member, minimum: int) -> Share:
        share = super()._join(pool, 0)
        if not self._governed:
            # By way of a bare thread, as a pool's keeper.
            _thread.start_new_thread(_appoint, (weakref.ref(self), self._bell, self._name))
        return share

    def _guarantee(self, share: Share, minimum: int) -> None:
        """A pool may ask for any `min_size`."""

    def _exhausted(self) -> tuple[str, str]:
        return (
            f"the budget {self._name!r} of {self._whole} connections leaves {self.allowance} to this process",
            "raise the budget's limit, or see which process has the others: millpond budget",
        )

    def _settle(self) -> None:
        super()._settle()
        self._bell.ring()

    # For the governor.

    def _employ(self, bell: ThreadBell) -> bool:
        """Let one governor have the post: pools that are made at the same time bring one each."""
        with self._mine():
            if self._governed or bell is not self._bell:
                return False
            self._governed = True
            return True

    def _handle(self, *, keep: bool = False) -> PermitFile | None:
        """Return the handle on the file, or None while one of this name that was dropped still has the permits.

        `keep` is for what a predecessor has noted.
        """
        if self._file is None or not self._file.is_open():
            self._file = PermitFile.of(made(self._path), keep=keep)
        return self._file if self._file.claim(self._bell) else None

    @abstractmethod
    def _turn(self) -> float:
        """Take, or give back; return after how many seconds to look again, if nobody rings before."""

    @abstractmethod
    def _part(self) -> None:
        """Give all back, without waiting for anybody; it may have been done before."""

    def _farewell(self) -> None:
        """Tell others that this process leaves. It may wait for them."""

    def _take_turn(self) -> float:
        """Take a turn, or leave."""
        try:
            with self._turning:
                return SETBACK if self._left else self._turn()
        finally:
            # Whoever has come meanwhile to close it has found the governor at its turn.
            if self._left:
                self._go()
                self._allow(0)

    def _go(self) -> None:
        """Leave in good order, which may take as long as others take to answer. It may have been done before."""
        with self._turning:
            try:
                self._farewell()
            finally:
                self._part()

    def _leave(self) -> None:
        """Give all back; leave that to the governor if it is just at its turn.

        Its weak reference finds a budget also while that is being finalised: it would take again what is given back.
        """
        if not self._turning.acquire(blocking=False):
            return
        try:
            self._part()
        finally:
            self._turning.release()

    def _need(self) -> Need:
        # Here, so that it outlives the lock: the last reference to a pool may be the one that is taken here.
        members: list[tuple[Share, Member | None]] = []
        with self._mine():
            due = self._balance()
            need = self._sum_up(members)
        self._ring(due)
        return need

    def _sum_up(self, members: list[tuple[Share, Member | None]]) -> Need:
        members += [(share, ref()) for share, ref in self._members.items()]
        held = idle = wanted = 0
        since = math.inf
        for share, pool in members:
            held += share.quota
            wanted += share.wants
            if share.wants:
                since = min(since, share.since)
            elif pool is not None:
                idle += max(0, min(len(share.idle), share.quota - pool._settings.min_size))
        return Need(held, idle, wanted, since)

    def _allow(self, count: int) -> int:
        """Have the pools go by another limit from now on; return how many connections they still have, or may open."""
        with self._mine():
            self._ledger.limit = count
            due = self._balance()
            held = self._ledger.held
        self._ring(due)
        return held

    def _trim(self) -> int:
        """Have the pools open no more than they have; return how many that is."""
        with self._mine():
            held = self._ledger.limit = self._ledger.held
        return held


def register(budgets: dict[str, weakref.ref[Any]], path: str, budget: SharedBudget) -> bool:
    """Let one budget of this process have a file; it waits for the governor of one that was dropped, up to 2 s."""
    # Not a WeakValueDictionary: that looks first, and then assigns.
    own = weakref.ref(budget, lambda _: budgets.pop(path, None))
    end = monotonic() + LAST_TURN
    while budgets.setdefault(path, own) is not own and monotonic() < end:
        sleep(0.001)
    return budgets.get(path) is own


def _appoint(ref: weakref.ref[SharedBudget], bell: ThreadBell, name: str) -> None:
    """Start the governor of a budget; be it, if the system gives no other thread."""
    governor = threading.Thread(target=_govern, args=(ref, bell), name=f"millpond-{name}-governor", daemon=True)
    try:
        governor.start()
    except RuntimeError:
        _govern(ref, bell)


def _govern(ref: weakref.ref[SharedBudget], bell: ThreadBell) -> None:
    """Be the governor of a budget, until it is dropped."""
    budget = ref()
    if budget is None or not budget._employ(bell):
        return
    told = False
    while budget is not None and budget._bell is bell:
        pause = None
        try:
            pause = budget._take_turn()
        except OSError as error:
            if not told:
                log.error("budget %r: %s; its pools wait until that is mended", budget.name, str(error))
        except Exception:
            if not told:
                log.exception("budget %r: its governor stumbled and goes on", budget.name)
        told = pause is None
        del budget
        bell.wait(SETBACK if pause is None else pause)
        budget = ref()
