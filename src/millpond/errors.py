"""The errors of millpond. Each says what happened in numbers, carries them as fields, and says what to do."""

from __future__ import annotations

from millpond._core.stats import Stats
from millpond.records import LeaseRecord

__all__ = ["ConnectFailed", "Misuse", "PoolClosed", "PoolError", "PoolFull", "PoolTimeout"]


class PoolError(Exception):
    """The base of every error that a pool raises of its own accord."""

    pool: str | None = None
    """The name of the pool."""
    stats: Stats | None = None
    """The pool at that moment."""


class PoolTimeout(PoolError, TimeoutError):
    """No connection could be lent in time. The message says why: all lent, server down, refused, or opens too slow."""

    waited: float = 0.0
    """Seconds that the caller waited."""
    oldest: LeaseRecord | None = None
    """The loan that has lasted longest."""


class PoolFull(PoolError):
    """As many callers wait for others to return a connection as `max_waiting` allows."""


class PoolClosed(PoolError):
    """The pool has been closed and lends nothing any more."""


class ConnectFailed(PoolError):
    """No connection can be opened; `__cause__` is the driver's own error of the last attempt."""


class Misuse(PoolError):
    """The pool was used in a way that cannot work. Nothing is lost: the pool is as it was."""
