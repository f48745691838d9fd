"""What is known while the server cannot be reached."""

from __future__ import annotations

from typing import Final

__all__ = ["Outage"]

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.8
FIRST_REFUSED_PAUSE: Final = 0.5
LONGEST_REFUSED_PAUSE: Final = 5.0


class Outage:
    """From the first open that fails to the first that succeeds.

    The pause before the next attempt doubles from 50 ms to 0.8 s, so that a server that is back is found within a
    second; up to half of each is taken off at random, so that a fleet does not return in step. After a refusal (a wrong
    password) nothing is tried in the background; only a caller brings another attempt about, after a pause that doubles
    from 0.5 s to 5 s: a rotated password may be known in a moment, but a login that fails in a loop locks accounts.
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
        if now < self.next_try:
            return  # it was under way with one that has failed already: they count as one
        doubled = 2 ** min(self.attempts, 10)
        if refused:
            pause = min(LONGEST_REFUSED_PAUSE, FIRST_REFUSED_PAUSE * doubled)
        else:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * doubled) * (1 - jitter / 2)
        self.attempts += 1
        self.next_try = now + pause

    def hasten(self, now: float) -> bool:
        """Bring the next attempt forward for a caller who has come; return whether there will be one now.

        A caller who comes long after the last attempt should not be told of an outage that may be over.
        """
        soonest = self.next_try if self.refused else min(self.next_try, self.last + FIRST_PAUSE)
        if now < soonest:
            return False
        self.next_try = min(self.next_try, now)
        return True
