"""What is due when."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable
from itertools import count
from typing import Final, Generic, TypeVar

__all__ = ["Schedule"]

T = TypeVar("T", bound=Hashable)

SPARE: Final = 64
"""So many entries may be out of date before it is worth dropping them."""


class Schedule(Generic[T]):
    """Things that are due at a time each, which may change. All but `__len__` are O(log n), amortised."""

    def __init__(self) -> None:
        self._dues: dict[T, float] = {}
        self._heap: list[tuple[float, int, T]] = []
        """An entry is out of date unless its thing is due at that very time."""
        self._serial = count()

    def __len__(self) -> int:
        return len(self._dues)

    def put(self, thing: T, due: float) -> None:
        """Note when it is due, in place of what was noted before."""
        self._dues[thing] = due
        if due < math.inf:
            heapq.heappush(self._heap, (due, next(self._serial), thing))
        if len(self._heap) > 2 * len(self._dues) + SPARE:
            self._heap = [(due, next(self._serial), thing) for thing, due in self._dues.items() if due < math.inf]
            heapq.heapify(self._heap)

    def remove(self, thing: T) -> None:
        """Forget it, if it is known."""
        self._dues.pop(thing, None)

    def next(self) -> float:
        """Return when the first is due; infinity if none ever is."""
        heap = self._heap
        while heap and self._dues.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def take(self, now: float) -> T | None:
        """Take out the first, if it is due."""
        if self.next() > now:
            return None
        thing = heapq.heappop(self._heap)[2]
        del self._dues[thing]
        return thing
