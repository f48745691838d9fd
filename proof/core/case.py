"""What is explored: a small pool, or two, and what may happen to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond._core.settings import Settings

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """One configuration. Time stands still in it unless `steps` says how far it goes at a time."""

    name: str
    about: str
    settings: Mapping[str, Any]
    happens: str
    """The kinds of events that happen beside what a fair world brings, with blanks between."""
    callers: int = 2
    """How many may wait at once."""
    timeouts: tuple[float, ...] = (math.inf,)
    sizes: tuple[tuple[int, int], ...] = ()
    """What the pool is resized to: `min_size` and `max_size`."""
    steps: tuple[float, ...] = ()
    pools: int = 1
    budget: int = 0
    """The limit of the budget that the pools share; 0 for none."""
    budgets: tuple[int, ...] = ()
    """What the budget is resized to."""
    cut: int = 0
    """Where an exception may strike: 1 for every place within every change that begins in good order, 2 for those too
    that begin with an audit because the last one was cut short; 0 for nowhere."""
    hot: int = 0
    """How many may be on the hot path at once, which they then go step by step."""
    preempted: bool = False
    """Whether those on the hot path take steps at every place within every change, too."""
    kinds: frozenset[str] = field(init=False)
    """All kinds of events that happen."""
    lateness: float = 2.0
    """How many seconds after the last tick the keeper is back at the latest."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", frozenset(self.happens.split()))

    @property
    def strikes_returns(self) -> bool:
        """Whether somebody may be struck between laying a connection down and looking whether anybody waits."""
        return self.cut > 0 or (self.hot > 0 and "lose" in self.kinds)

    def all_settings(self) -> tuple[Settings, ...]:
        """Return the settings the pools begin with, and those they are resized to."""
        first = Settings(**self.settings)
        others = [Settings(**{**self.settings, "min_size": low, "max_size": high}) for low, high in self.sizes]
        return first, *others
