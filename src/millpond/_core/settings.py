"""The settings of a pool."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import Final, Literal, Protocol, TypedDict

__all__ = ["ALIASES", "Limit", "Options", "Settings", "expect_seconds", "meant_by"]


class Options(TypedDict, total=False):
    """The keyword arguments of a pool; `Settings` tells what each means."""

    name: str
    min_size: int
    max_size: int
    timeout: float
    max_waiting: int | None
    max_opening: int
    connect_timeout: float
    max_idle: float
    max_lifetime: float
    max_uses: int | None
    check_after: float
    keepalive: float
    order: Literal["lifo", "fifo"]
    leak_after: float
    ride_out: bool
    budget: Limit | None


class Limit(Protocol):
    """A limit that pools share: `millpond.Budget`."""

    @property
    def limit(self) -> int:
        """How many connections there may be."""
        ...


ALIASES: Final = {
    **dict.fromkeys(("max_connections", "connection_limit", "maxsize", "pool_size", "max_overflow"), "max_size"),
    **dict.fromkeys(("minsize", "min_connections"), "min_size"),
    "pool_timeout": "timeout",
    **dict.fromkeys(("pool_recycle", "max_age"), "max_lifetime"),
    **dict.fromkeys(("max_inactive_connection_lifetime", "idle_timeout", "keepalive_expiry"), "max_idle"),
    "max_queries": "max_uses",
    **dict.fromkeys(("pool_pre_ping", "check"), "check_after"),
    "pool_use_lifo": "order",
    "num_workers": "max_opening",
}
"""By what other pools call it (asyncpg, httpx, psycopg_pool, redis-py, Prisma, SQLAlchemy): the setting."""


def meant_by(name: str, likeness: float = 0.6) -> str | None:
    """Return the setting that is meant by a name: it is that, or like it, or as other pools call it."""
    from difflib import get_close_matches

    known = Settings.__dataclass_fields__
    return ALIASES.get(name) or next(iter(get_close_matches(name, known, 1, likeness)), None)


def expect_seconds(timeout: float) -> None:
    """Raise TypeError or `ValueError` for a timeout that is no number of seconds. Less than 0 is as 0: it is over."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float, Real)):
        raise TypeError(f"timeout={timeout!r} must be a number of seconds (math.inf for no limit)")
    if timeout != timeout:  # nan
        raise ValueError(f"timeout={timeout!r} must be a number of seconds (math.inf for no limit)")


LONGEST = 24 * 86400.0
"""The longest time that every driver and system call can be given; seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a pool is told to do: sizes are ints, durations are seconds, and `math.inf` means never.

    A value that cannot work raises `ValueError` (`TypeError` for a wrong type), which says what would.
    """

    name: str = "pool"
    """What the pool is called in errors, logs and statistics."""
    min_size: int = 0
    """How many connections are kept open even when nobody wants one."""
    max_size: int = 10
    """How many connections may exist at once, those being opened or closed included."""
    timeout: float = 30.0
    """How long a caller waits for a connection; 0 means that it does not wait, neither for others nor for a check: it
    gets what is idle and shows no hang-up."""
    max_waiting: int | None = None
    """How many callers may wait for others to return a connection; None means any number. The next one gets `PoolFull`
    at once. Those for whom one can still be opened do not count."""
    max_opening: int = 3
    """How many connections may be in the making at once, so that a burst of callers is not a burst of logins."""
    connect_timeout: float = 10.0
    """How long one exchange of the pool's own with the server may take: an open, a check, a reset."""
    max_idle: float = 600.0
    """How long a connection beyond `min_size` may lie idle before it is closed."""
    max_lifetime: float = 3600.0
    """How old a connection may become; each one's own limit is up to a tenth shorter, so that they end one by one."""
    max_uses: int | None = None
    """How often a connection may be lent; None means any number of times."""
    check_after: float = 30.0
    """A connection that has been idle for so long is asked whether it lives before it is lent; 0 asks every time."""
    keepalive: float = math.inf
    """An idle connection is asked whether it lives every so often, so that firewalls do not forget it."""
    order: Literal["lifo", "fifo"] = "lifo"
    """Which idle connection is lent: the last one returned (warm caches, and the others can go) or the first."""
    leak_after: float = math.inf
    """A loan that lasts longer is logged with its borrower; setting it records the call site of every loan."""
    ride_out: bool = False
    """While the server is down, wait for it up to `timeout` instead of failing at once."""
    budget: Limit | None = None
    """The `millpond.Budget` that its connections count against, together with those of other pools."""

    @property
    def exchange_limit(self) -> float:
        """`connect_timeout` as it is told to connectors: finite, for drivers count milliseconds in 32 bits."""
        return min(self.connect_timeout, LONGEST)

    @classmethod
    def of(cls, options: Options) -> Settings:
        """Make settings of a pool's keyword arguments; raises `TypeError` for one that is none, with what is."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                meant = meant_by(name)
                hint = f"did you mean {meant}?" if meant else f"there are {', '.join(known)}"
                raise TypeError(f"a pool has no setting {name!r}; {hint}")
        return cls(**options)

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check_type(field.name)
        if self.max_size < 1:
            raise ValueError(f"max_size={self.max_size} can lend nothing: it must be 1 or more")
        if not 0 <= self.min_size <= self.max_size:
            raise ValueError(
                f"min_size={self.min_size} does not fit max_size={self.max_size}: it must be from 0 to max_size"
            )
        if self.max_opening < 1:
            raise ValueError(f"max_opening={self.max_opening} can open nothing: it must be 1 or more")
        if self.max_waiting is not None and self.max_waiting < 0:
            raise ValueError(f"max_waiting={self.max_waiting} must be 0 or more, or None for any number")
        if self.max_uses is not None and self.max_uses < 1:
            raise ValueError(f"max_uses={self.max_uses} must be 1 or more, or None for any number")
        for name in ("timeout", "check_after"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more seconds (math.inf for no limit)")
        for name in ("connect_timeout", "max_idle", "max_lifetime", "keepalive", "leak_after"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be more than 0 seconds (math.inf for no limit)")
        if self.order not in ("lifo", "fifo"):
            raise ValueError(f"order={self.order!r} must be 'lifo' or 'fifo'")

    def _check_type(self, name: str) -> None:
        value = getattr(self, name)
        match name:
            case "name" | "order":
                fits, wanted = isinstance(value, str), "a string"
            case "ride_out":
                fits, wanted = isinstance(value, bool), "True or False"
            case "min_size" | "max_size" | "max_opening":
                fits, wanted = isinstance(value, int) and not isinstance(value, bool), "an int"
            case "budget":
                fits, wanted = value is None or isinstance(getattr(value, "limit", None), int), "a Budget or None"
            case "max_waiting" | "max_uses":
                fits = value is None or (isinstance(value, int) and not isinstance(value, bool))
                wanted = "an int or None"
            case _:
                fits = isinstance(value, (int, float)) and not isinstance(value, bool)
                wanted = "a number of seconds (math.inf for no limit)"
        if not fits:
            raise TypeError(f"{name}={value!r} must be {wanted}")
