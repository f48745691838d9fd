"""One limit for the connections of several pools."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Final, NoReturn, Protocol

from millpond import _fork
from millpond._core.ledger import Ledger, Share
from millpond._core.settings import Settings
from millpond.errors import Misuse

__all__ = ["Budget"]


class _Bell(Protocol):
    def ring(self) -> None: ...


class Member(Protocol):
    """What a budget needs of a pool."""

    @property
    def name(self) -> str: ...

    _bell: Any
    _settings: Settings


class Budget:
    """How many connections several pools may have open together: `Pool(..., budget=budget)`.

    Each pool is sure of its `min_size`, has `max_size` at most, and takes what it needs in between. When all are taken,
    the next goes to the pool whose caller in line has waited longest; an idle connection of another pool is closed to
    make room for it, or one that comes back to a pool that has more of them, or whose own callers came later to a pool
    that has none. A place is free again when its connection is really closed.

    The pools may be for threads and for tasks, to one server or to many. The limit is that of one process: a forked
    child has as much again. A pool that finds its quota sufficient does not touch the budget.
    """

    def __init__(self, limit: int) -> None:
        self._check(limit)
        self._ledger: Final = Ledger(limit)
        self._pid = 0
        """The process that it has begun in."""
        self._begin()
        _fork.renew(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"this {type(self).__name__} cannot be copied or pickled, for two would be a limit each: "
            "give the same one to all pools, and make one in each process"
        )

    def _after_fork_in_child(self) -> None:
        if os.getpid() != self._pid:
            self._begin()

    def _begin(self) -> None:
        # Reentrant only so that it knows its owner, as a pool's.
        self._lock = threading.RLock()
        self._members: dict[Share, weakref.ref[Member]] = {}
        self._ledger.shares.clear()
        self._ledger.calls.clear()
        self._ledger.excess.clear()
        # Last: whoever is struck before that has not begun.
        self._pid = os.getpid()

    @property
    def limit(self) -> int:
        """How many connections there may be."""
        return self._ledger.limit

    @property
    def used(self) -> int:
        """How many there are, those being opened or closed and places just granted included."""
        return sum(share.quota for share in list(self._members))

    def resize(self, limit: int) -> None:
        """Change the limit. What is too many is closed as soon as it is idle.

        Raises `ValueError` for less than the pools' `min_size` together; the budget then stays as it was.
        """
        self._check(limit)
        with self._mine():
            self._ledger.resize(limit)
        self._settle()

    def __repr__(self) -> str:
        return f"<millpond.Budget: {self.used} of {self.limit} connections, {len(self._members)} pools>"

    # For pools.

    def _join(self, pool: Member, minimum: int) -> Share:
        """Open a share for a pool that has nothing yet."""
        with self._mine():
            self._prune(pool)
            share = self._ledger.join(minimum)
            self._members[share] = weakref.ref(pool)
            return share

    def _guarantee(self, share: Share, minimum: int) -> None:
        """Change what a pool is sure of, or raise ValueError."""
        with self._mine():
            self._ledger.check(share, minimum)
            share.minimum = minimum

    def _exhausted(self) -> tuple[str, str]:
        """Say that there is no place left, and what to do about it."""
        return (
            f"the budget of {self.limit} connections is used up",
            "raise the budget's limit, or find the slow borrower with leases() of the pools that share it",
        )

    def _settle(self) -> None:
        """Give out what has been returned, and have pools told what they got and what others need."""
        with self._mine():
            due = self._balance()
        self._ring(due)

    def _ring(self, due: Iterable[Share]) -> None:
        """Have pools look at what has changed for them."""
        for share in due:
            ref = self._members.get(share)
            pool = None if ref is None else ref()
            if pool is not None:
                pool._bell.ring()

    def _balance(self) -> set[Share]:
        self._prune()
        due = set(self._ledger.balance())
        if self._ledger.excess or self._ledger.calls:
            due.update(self._ledger.givers())
        return due

    def _prune(self, former: Member | None = None) -> None:
        """Strike off the shares of pools that have gone, and one of a pool that was cut short when it joined."""
        # Who was cut short may have left it in only one of the two.
        for share in {**self._ledger.shares, **self._members}:
            ref = self._members.get(share)
            if ref is None or ref() is former or ref() is None:
                self._ledger.leave(share)
                self._members.pop(share, None)

    @staticmethod
    def _check(limit: int) -> None:
        if type(limit) is not int:
            raise TypeError(f"limit={limit!r} must be an int")
        if limit < 1:
            raise ValueError(f"limit={limit} allows nothing: it must be 1 or more")

    def _mine(self) -> AbstractContextManager[object]:
        self._after_fork_in_child()  # the hook may have been cut short, or be yet to come
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise Misuse("a budget was used by a signal handler or a finaliser that interrupted the budget itself")
        return self._lock
