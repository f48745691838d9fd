"""Whether the process stood still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["BEAT", "GRACE", "Pulse"]

BEAT: Final = 0.5
"""Seconds after which somebody looks again, at the latest."""
GRACE: Final = 0.5
"""A look that comes so much too late means that the process stood still, and that what it knew may be out of date."""
SUSPENDED: Final = 1.0
"""Seconds by which the boot-time clock must outrun the monotonic one to show that the machine was suspended."""


class Pulse:
    """Counts how often the process stood still: was stopped, did not run, or was suspended with its machine.

    All pools of a process have the same one, and whoever looks looks for all. So none has to come by itself only to
    know. It takes no lock: of two who find the same standstill both may count it, and a count is only compared.
    """

    __slots__ = ("_looked", "_suspended", "_suspended_for", "standstills")

    def __init__(self, now: float, suspended_for: Callable[[], float]) -> None:
        self.standstills = 0
        self._looked = now
        self._suspended_for = suspended_for
        """Tells the seconds that the machine has been suspended in all, which a monotonic clock does not show."""
        self._suspended = suspended_for()

    def look(self, now: float) -> int:
        """Return how often it stood still up to now."""
        suspended = self._suspended_for()
        if now - self._looked > BEAT + GRACE or suspended - self._suspended > SUSPENDED:
            # First, since whoever is cut short has not seen it.
            self.standstills += 1
        self._suspended = suspended
        self._looked = max(self._looked, now)
        return self.standstills

    def stop(self) -> None:
        """Count none any more: nobody will look, and that shows nothing."""
        self._looked = float("inf")
        self._suspended_for = _never


def _never() -> float:
    return 0.0
