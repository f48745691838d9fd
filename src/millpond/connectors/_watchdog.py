"""Cuts short what takes too long, for calls into drivers that know no limit.

One thread does it for all. It looks every `TICK` seconds while something has a limit, and goes after `LINGER` seconds
without: so a limit costs microseconds, and not a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import Final

__all__ = ["TICK", "Limit"]

TICK: Final = 0.05
LINGER: Final = 1.0

_limits: Final[dict[int, Limit]] = {}
# It may be taken again by a signal handler.
_lock = threading.RLock()
_wake = threading.Event()
_thread: threading.Thread | None = None
_resting = False


class Limit:
    """Calls `cut` if what is done in the `with` takes longer than about `seconds`, and again until it has ended.

    `cut` must not wait. It is never called after the end of the `with`. RuntimeError if no thread can be had for it, as
    at the end of the interpreter.
    """

    __slots__ = ("_cut", "_due")

    def __init__(self, seconds: float, cut: Callable[[], object]) -> None:
        self._due = monotonic() + seconds
        self._cut = cut

    def __enter__(self) -> None:
        with _lock:
            if _thread is None or not _thread.is_alive():
                _start()
            try:
                _limits[id(self)] = self
                if _resting:
                    _wake.set()
            except BaseException:
                _limits.pop(id(self), None)
                raise

    def __exit__(self, *_: object) -> None:
        with _lock:
            _limits.pop(id(self), None)

    def check(self, now: float) -> None:
        """Cut it short if it is time to."""
        if now >= self._due:
            with contextlib.suppress(Exception):  # it has ended
                self._cut()


def _start() -> None:
    global _thread
    _thread = threading.Thread(target=_run, name="millpond-watchdog", daemon=True)
    _thread.start()


def _run() -> None:
    while _look() or _is_woken():
        sleep(TICK)


def _look() -> bool:
    """Cut short what is overdue; tell whether there is anything left to wait for."""
    global _resting
    with _lock:
        now = monotonic()
        for limit in list(_limits.values()):
            limit.check(now)
        _resting = not _limits
        return not _resting


def _is_woken() -> bool:
    """Wait until something has a limit; tell whether it was so within `LINGER` seconds."""
    global _thread, _resting
    _wake.wait(LINGER)
    with _lock:
        _wake.clear()
        _resting = False
        if not _limits:
            _thread = None
        return bool(_limits)


def _in_child() -> None:
    global _lock, _wake
    _lock, _wake = threading.RLock(), threading.Event()
    _limits.clear()


if hasattr(os, "register_at_fork"):
    for _time in range(2):  # as in millpond._fork
        os.register_at_fork(after_in_child=_in_child)
