"""A clock that stands still until it is told to go."""

from __future__ import annotations

import threading

__all__ = ["ManualClock"]


class ManualClock:
    """Gives monotonic seconds when it is called, as `time.monotonic` does, and goes only by `advance`.

    Give it to a pool in place of the real clock, and a test of an hour takes no time. Thread-safe.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Go on by `seconds` and return the new time; raise ValueError if that would be backwards."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        with self._lock:
            self._now += seconds
            return self._now

    def __repr__(self) -> str:
        return f"ManualClock({self._now})"
