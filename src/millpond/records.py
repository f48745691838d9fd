"""What a pool tells of one loan."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LeaseRecord"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRecord:
    """One loan as it stands: which connection, since when, to whom."""

    connection: int
    """The connection's number in this pool, counted from 1."""
    age: float
    """Seconds since it was lent."""
    uses: int
    """How often it has been lent, this time included."""
    owner: str
    """The thread or task that borrowed it, by its name."""
    borrowed_at: str | None
    """Where it was borrowed, as `file:line`; known if it was waited for, or if `leak_after` is set."""
    now_at: str | None
    """Where the borrower is now, as `file:line`, if it still runs: the innermost line that is not a library's."""

    def __str__(self) -> str:
        where = f" at {self.borrowed_at}" if self.borrowed_at else f", now at {self.now_at}" if self.now_at else ""
        return f"{self.age:.1f} s by {self.owner}{where}"
