"""What a part of the proof comes to."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Verdict"]


class Verdict(NamedTuple):
    """What was tried, and whether all that was promised held."""

    tried: str
    broken: list[str]
    """What did not hold, a line each."""
    seconds: float
