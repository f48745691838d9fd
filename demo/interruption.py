"""Ctrl-C and its kin."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Final

__all__ = ["Interrupted", "Interruption"]

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asks the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.status = 128 + number
        """The exit status that shells give to it."""


class Interruption:
    """Notes a signal when it comes, and raises it only where nothing is half done.

    An exception out of the signal handler could strike in any `finally`, and leave a thread without its order to stop
    or a directory half removed.
    """

    def __init__(self) -> None:
        self.number = 0
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._note)

    def heed(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.number:
            raise Interrupted(self.number)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
