"""What happens in pools as lines of a log, for those who read it and for those who search it.

    from millpond import logs

    logs.install()      # all pools of this process; logs.install(pool) for one

The lines go to the logger `millpond`. Each has its facts as attributes of the record (`extra`), as a formatter that
writes JSON shows them: `event` is its kind ("connection_opened"), `pool` the name of the pool, and so on, in seconds.

Outages, leaks and lost loans a pool logs by itself, installed or not, with the same attributes; they are not logged
twice. At INFO there is what is done to a pool as a whole, and opens that fail. A WARNING tells of callers who got
nothing, one line in 10 s for each pool, with the number of `callers` since the last. All else is DEBUG; loans only if
they are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from millpond import events
from millpond._shell import Shell, log

__all__ = ["install"]

EVERY: Final = 10.0
"""Seconds between two lines that tell of callers who got nothing."""

LINES: Final[dict[type[events.Event], tuple[int, str]]] = {
    events.PoolClosed: (logging.INFO, "closed"),
    events.PoolPaused: (logging.INFO, "paused"),
    events.PoolRefreshed: (logging.INFO, "refreshed: every connection is replaced"),
    events.PoolResized: (logging.INFO, "resized to %(min_size)d to %(max_size)d connections"),
    events.PoolResumed: (logging.INFO, "resumed"),
    events.OpenFailed: (logging.INFO, "a connection could not be opened in %(seconds).3f s: %(error)s"),
    events.CallerTimedOut: (logging.WARNING, "callers who timed out: %(callers)d; the last waited %(waited).3f s"),
    events.CallerRefused: (logging.WARNING, "callers who were refused: %(callers)d; the last: %(error)s"),
    events.CallerCancelled: (logging.DEBUG, "a caller gave up after %(waited).3f s"),
    events.ConnectionOpened: (logging.DEBUG, "connection %(connection)d opened in %(seconds).3f s"),
    events.ConnectionChecked: (logging.DEBUG, "connection %(connection)d checked; sound: %(sound)s"),
    events.ConnectionReset: (logging.DEBUG, "connection %(connection)d reset; sound: %(sound)s"),
    events.ConnectionClosed: (
        logging.DEBUG,
        "connection %(connection)d closed after %(age).1f s and %(uses)d loans: %(reason)s",
    ),
    events.ConnectionLent: (logging.DEBUG, "connection %(connection)d lent after %(waited).6f s"),
    events.ConnectionReturned: (logging.DEBUG, "connection %(connection)d returned after %(held).6f s"),
}
"""Level and words of each kind that a pool does not log by itself."""


def install(pool: Shell[Any] | None = None, *, loans: bool = False) -> Callable[[], None]:
    """Log what happens in one pool, or in all of this process, those to come included; return what ends that.

    With `loans`, every loan and every return is a line, at DEBUG: that takes many times as long as lending does.
    Without, a loan costs what it does without logs.
    """
    lines = _Lines()
    listen = events.listen if pool is None else pool.listen
    return listen(lines.write, loans="all" if loans else "none")


class _Lines:
    def __init__(self) -> None:
        self._missed: dict[tuple[str, type[events.Event]], tuple[float, int]] = {}
        """Of callers who got nothing: when a line told of them last, and how many there were since."""

    def write(self, event: events.Event) -> None:
        level, words = LINES.get(type(event), (logging.NOTSET, ""))
        if words and log.isEnabledFor(level):
            facts = event.facts()
            if level == logging.WARNING:
                callers = self._count(event)
                if not callers:
                    return
                facts["callers"] = callers
            log.log(level, f"pool %(pool)r: {words}", facts, extra=facts)

    def _count(self, event: events.Event) -> int:
        """Return how many callers the line tells of; none if it is too soon for one."""
        key = (event.pool, type(event))
        last, missed = self._missed.get(key, (-EVERY, 0))
        due = event.at - last >= EVERY
        self._missed[key] = (event.at, 0) if due else (last, missed + 1)
        return missed + 1 if due else 0
