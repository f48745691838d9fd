"""Callers who go on calling, and note what they see."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["Call", "CrossedError", "Crowd", "Work", "call", "served_at_once"]

PAUSE: Final = 0.05
"""Seconds between a caller's calls."""

Work = Callable[[float, str], str]
"""Borrows, has the server take so many seconds and say a word, gives back, and returns what the server said."""


class CrossedError(Exception):
    """Somebody was told what another had asked for."""


class Call(NamedTuple):
    """One call, and what came of it."""

    caller: int
    began: float
    ended: float
    error: BaseException | None


class Crowd:
    """So many threads that call."""

    def __init__(self, work: Work, size: int) -> None:
        self._work = work
        self._over = threading.Event()
        self.calls: list[Call] = []
        self._threads = [threading.Thread(target=self._go_on, args=(caller,), daemon=True) for caller in range(size)]

    def start(self) -> None:
        """Begin to call."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float) -> int:
        """Have all stop, and return how many do not."""
        self._over.set()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return sum(thread.is_alive() for thread in self._threads)

    def served_since(self, moment: float) -> bool:
        """Whether the last call of each caller began after that and was served."""
        last = {call.caller: call for call in list(self.calls)}
        return len(last) == len(self._threads) and all(
            call.began > moment and call.error is None for call in last.values()
        )

    def _go_on(self, caller: int) -> None:
        while not self._over.wait(PAUSE):
            self.calls.append(call(self._work, 0.0, caller))


def served_at_once(work: Work, size: int, seconds: float, timeout: float) -> int:
    """Return how many of so many calls are served that all take a connection at the same time."""
    calls: list[Call] = []
    threads = [
        threading.Thread(target=lambda n=n: calls.append(call(work, seconds, n)), daemon=True) for n in range(size)
    ]
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return sum(call.error is None for call in calls)


def call(work: Work, seconds: float, caller: int) -> Call:
    """Call once, with a word that nobody else says."""
    began = time.monotonic()
    word = secrets.token_hex(8)
    try:
        heard = work(seconds, word)
        if heard != word:
            raise CrossedError(f"{word} was asked for, and {heard} came")
    except Exception as error:
        # Without its frames, which would keep connections alive.
        return Call(caller, began, time.monotonic(), error.with_traceback(None))
    return Call(caller, began, time.monotonic(), None)
