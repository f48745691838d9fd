"""The waiting line."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from types import CodeType
from typing import Generic, TypeVar

from millpond._core.entry import Claim

__all__ = ["Line", "Refusal", "Waiter"]

C = TypeVar("C")


class Refusal(enum.Enum):
    """Why a caller gets no connection."""

    TIMEOUT = "timeout"
    FULL = "full"
    DOWN = "down"
    CLOSED = "closed"


class Waiter(Generic[C]):
    """A caller in line. A shell adds how it is woken: one raw lock, or one future.

    It is done as soon as it has a claim or a refusal, or has been cancelled; it never gets a second outcome.
    """

    __slots__ = ("claim", "deadline", "done", "enrolled", "owner", "refusal", "since", "site")

    def __init__(self, owner: int, since: float, deadline: float, site: tuple[CodeType, int] | None) -> None:
        self.owner = owner
        self.since = since
        self.deadline = deadline
        self.site = site
        self.claim: Claim[C] | None = None
        self.refusal: Refusal | None = None
        self.done = False
        self.enrolled = False

    def wake(self) -> None:
        """Let the caller go on. It does not block, and does nothing the second time."""
        raise NotImplementedError


class Line(Generic[C]):
    """First come, first served, with O(1) leaving from any place.

    A waiter that leaves stays in the deque as a gap until the gaps outnumber the waiters: then one pass closes them,
    so that leaving costs O(1) on average and the gaps stay bounded.

    The length is read without the lock, too, and between any two statements here; it may then be one too many, and is
    never negative.
    """

    __slots__ = ("_gaps", "_queue")

    def __init__(self) -> None:
        self._queue: deque[Waiter[C]] = deque()
        self._gaps = 0

    def __len__(self) -> int:
        return len(self._queue) - self._gaps

    def __iter__(self) -> Iterator[Waiter[C]]:
        # Not over self: a list of it would ask for its length, which is what an audit has to put right.
        return iter([waiter for waiter in self._queue if not waiter.done])

    def enrol(self, waiter: Waiter[C]) -> None:
        """Put a waiter at the end."""
        waiter.enrolled = True
        self._queue.append(waiter)

    def head(self) -> Waiter[C] | None:
        """Return the one that has waited longest, if anyone waits."""
        queue = self._queue
        while queue:
            waiter = queue[0]
            if not waiter.done:
                return waiter
            self._gaps -= 1
            queue.popleft()
        return None

    def leave(self, waiter: Waiter[C]) -> None:
        """Take a waiter out, wherever it stands, if it does: one who is cut before it has enrolled leaves, too."""
        waiter.done = True
        if not waiter.enrolled:
            return
        if self._queue[0] is waiter:
            self._queue.popleft()
            return
        self._gaps += 1
        if self._gaps > 32 and self._gaps > len(self):
            self.rebuild()

    def rebuild(self) -> None:
        """Close the gaps and count anew, whatever state an interrupted change has left."""
        self._queue = deque(waiter for waiter in self._queue if not waiter.done)
        self._gaps = 0
