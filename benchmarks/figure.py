"""One figure and its goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Figure"]


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, and what it has to be at most (or at least)."""

    measure: str
    case: str
    value: float
    unit: str
    goal: float
    sense: Literal["<=", ">=", "<"] = "<="
    digits: int = 2

    @property
    def kept(self) -> bool:
        """Whether the goal is reached."""
        match self.sense:
            case "<=":
                return self.value <= self.goal
            case "<":
                return self.value < self.goal
            case ">=":
                return self.value >= self.goal

    @property
    def shown(self) -> str:
        """The value, for people."""
        return f"{self.value:.{self.digits}f}{self.unit}"

    @property
    def shown_goal(self) -> str:
        """The goal, for people."""
        return f"{self.sense} {self.goal:g}{self.unit}"
