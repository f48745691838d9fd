"""Waking a thread that does what is due."""

from __future__ import annotations

import queue
from contextlib import suppress
from typing import Final

__all__ = ["ThreadBell"]

INSTANT: Final = 0.001
"""Seconds that whoever waits rests at least."""


class ThreadBell:
    """Wakes a thread, by way of the one queue that the standard library makes safe for finalisers."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._rung = False

    def ring(self) -> None:
        """Wake the thread: now, or when it next waits."""
        if not self._rung:
            self._rung = True
            self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until somebody rings, or for so many seconds."""
        with suppress(queue.Empty):
            # A moment at least: under gevent a wait of no time gives nobody else a turn.
            self._queue.get(timeout=max(seconds, INSTANT))
        # Whoever rings from here on finds False or is heard anyway, since the thread now looks at everything.
        self._rung = False
