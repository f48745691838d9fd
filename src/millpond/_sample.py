"""Which loans are told of to those who want to hear of some."""

from __future__ import annotations

import time
from random import random
from typing import Final

__all__ = ["Sample"]

SAMPLE: Final = 200
"""Loans a second that are told of; each costs 5 us, and to record it 10 us more."""


class Sample:
    """A random choice of a pool's loans, of as many a second as were agreed.

    It takes no lock: of two threads that count down at once, one may be lost, and the choice is a random one anyhow.
    """

    __slots__ = ("_paced", "_skip", "_taken", "stride", "wanted")

    def __init__(self) -> None:
        self._paced = (time.monotonic(), 0)
        """When the stride was last set, and how many loans had been made."""
        self.begin(wanted=False)

    def begin(self, *, wanted: bool) -> None:
        """Take every loan, and thin them out from then on if it is enough to tell of some."""
        self.wanted = wanted
        self.stride = 1
        """One loan of so many is told of."""
        self._skip = 0
        """So many more are not."""
        self._taken = 0
        """How many were since the stride was set."""

    def takes(self) -> bool:
        """Tell whether the loan that begins is told of."""
        if self._skip > 0:
            self._skip -= 1
            return False
        if self.wanted:
            self._taken += 1
            if self._taken > SAMPLE:
                # Far more than was agreed; the next tick may be far away.
                self._taken, self.stride = 0, 2 * self.stride
            # Not every so many: work that goes by turns would always have the same one told of.
            self._skip = int(random() * (2 * self.stride - 1))
        return True

    def pace(self, now: float, loans: int) -> None:
        """Have as many taken as were agreed, if it goes on as it did since the last time; `loans` are all so far."""
        (before, had), self._paced = self._paced, (now, loans)
        if now > before:
            self.stride = max(1, round((loans - had) / (now - before) / SAMPLE))
            self._skip = min(self._skip, self.stride - 1)
            self._taken = 0
