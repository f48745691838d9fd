"""What a pool tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Stats"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """One look at a pool: what it has now, then what it has counted since it was made; times are seconds."""

    name: str
    min_size: int
    max_size: int
    size: int
    """Connections that exist, those being opened or closed included: the sum of the next six."""
    idle: int
    lent: int
    opening: int
    checking: int
    resetting: int
    closing: int
    waiting: int
    """Callers in line."""
    generation: int
    """How often `refresh` was called."""
    paused: bool
    closed: bool
    outage: str | None
    """The kind of error that the last attempt to open ended with, while the server cannot be reached."""

    borrows: int
    """Loans made."""
    waits: int
    """Loans that had to be waited for."""
    waited: float
    """Seconds waited by those, in all."""
    timeouts: int
    refusals: int
    """Callers turned away because the line was full, the server down or the pool closed."""
    cancelled: int
    """Callers that stopped waiting of their own accord."""
    opens: int
    open_seconds: float
    """Seconds that successful opens took, in all."""
    open_failures: int
    checks: int
    resets: int
    outages: int
    closes: Mapping[str, int]
    """Connections closed, by reason."""
