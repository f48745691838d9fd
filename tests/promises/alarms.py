"""A signal that interrupts the main thread a moment later."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

__all__ = ["Alarm"]


class Alarm:
    """Runs a function by a signal, once each time that it is set, and never after its `with` block."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self.armed = False
        self.fired = 0

    def __enter__(self) -> Alarm:
        self._former = signal.signal(signal.SIGALRM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        # A signal that has come by now may be handled a moment later: the handler goes last, and is deaf by then.
        self.set(0)
        signal.signal(signal.SIGALRM, self._former)

    def set(self, seconds: float) -> None:
        """Set it, or stop it by 0."""
        self.armed = seconds > 0
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.armed:
            self.armed = False
            self.fired += 1
            self._function()
