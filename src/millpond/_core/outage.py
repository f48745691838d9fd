"""What is known while the server cannot be reached."""

from __future__ import annotations

from typing import Final

__all__ = ["Outage"]

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.8
REFUSED_PAUSE: Final = 5.0


class Outage:
    """From the first open that fails to the first that succeeds.

    The pause before the next attempt doubles from 50 ms to 0.8 s, so that a server that is back is found within a
    second; up to half of each is taken off at random, so that a fleet does not return in step. After a refusal (a wrong
    password) nothing is tried in the background; only a caller brings another attempt about, and not more often than
    every five seconds, because a login that fails in a loop locks accounts.
    """

    __slots__ = ("attempts", "cause", "last", "next_try", "refused", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.attempts = 0
        self.cause: BaseException | None = None
        self.refused = False
        self.last = now
        self.next_try = now

    def failed(self, now: float, cause: BaseException, refused: bool, jitter: float) -> None:
        """Note an attempt that failed. `jitter` is random, from 0 up to 1."""
        self.cause = cause
        self.refused = refused
        self.last = now
        if refused:
            pause = REFUSED_PAUSE
        else:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self.attempts, 10)) * (1 - jitter / 2)
        self.attempts += 1
        self.next_try = now + pause

    def hasten(self, now: float) -> bool:
        """Bring the next attempt forward for a caller who has come; return whether there will be one now.

        A caller who comes long after the last attempt should not be told of an outage that may be over.
        """
        floor = REFUSED_PAUSE if self.refused else FIRST_PAUSE
        if now < min(self.next_try, self.last + floor):
            return False
        self.next_try = min(self.next_try, now)
        return True
