"""What happens in pools, as facts to listen to.

Each kind of fact is a class; a listener is anything that can be called with one. `pool.listen(listener)` has it hear of
one pool, `millpond.events.listen(listener)` of all pools of this process, those to come included. A pool that nobody
listens to pays nothing for it.

What concerns each loan (`ConnectionLent`, `ConnectionReturned`) is most of what happens, and to tell of it takes longer
than to lend. So a listener says with `loans` how many it needs to hear of: "all", "none", or "some", which is a random
sample: all of them while there are few, and about 200 a second of each pool when there are many. The pace is set anew
every 0.5 s.

A listener is called where the fact happened: in the borrower's thread or task, or in one of the pool's own. No lock is
held meanwhile, but whoever happens to be there waits for it, so it must be quick and never block. If it raises, that is
logged once, and the pool goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Final, Literal, Protocol, TypeAlias

from millpond import _fork
from millpond.errors import PoolError
from millpond.records import LeaseRecord

__all__ = [
    "CallerCancelled",
    "CallerRefused",
    "CallerTimedOut",
    "ConnectionChecked",
    "ConnectionClosed",
    "ConnectionLent",
    "ConnectionLost",
    "ConnectionOpened",
    "ConnectionReset",
    "ConnectionReturned",
    "Event",
    "LeakSuspected",
    "Listener",
    "Loans",
    "OpenFailed",
    "OutageBegan",
    "OutageEnded",
    "PoolClosed",
    "PoolPaused",
    "PoolRefreshed",
    "PoolResized",
    "PoolResumed",
    "everywhere",
    "listen",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A fact about one pool."""

    pool: str
    """The name of the pool."""
    at: float
    """When it happened, by `time.monotonic`, in seconds."""

    def facts(self) -> dict[str, str | float | None]:
        """Return what it tells as plain values, for logs: errors as text, what a lease has beside the others.

        `event` is its kind, as in "connection_opened". `at` is left out.
        """
        facts: dict[str, str | float | None] = {"event": _CAPITAL.sub(r"_\g<0>", type(self).__name__).lower()}
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "at"}
        lease = values.pop("lease", None)
        if lease is not None:
            values |= asdict(lease)
        for name, value in values.items():
            facts[name] = brief(value) if isinstance(value, BaseException) else value
        return facts


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionOpened(Event):
    """A connection has been opened."""

    connection: int
    """The connection's number in this pool, counted from 1."""
    seconds: float
    """How long it took, logging in included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenFailed(Event):
    """A connection could not be opened."""

    error: BaseException
    """The driver's own error."""
    refused: bool
    """Whether the server is there and does not let the pool in: a wrong password, no such database."""
    seconds: float
    """How long the attempt took."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLent(Event):
    """A caller has got a connection."""

    connection: int
    waited: float
    """Seconds from asking to getting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionReturned(Event):
    """A connection has come back. What becomes of it, other events tell."""

    connection: int
    held: float
    """Seconds that it was on loan."""
    error: BaseException | None
    """The exception that ended the `with` block, if one did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLost(Event):
    """A loan was never returned: its borrower is gone, and the connection is closed."""

    connection: int
    borrowed_at: str | None
    """Where it was borrowed, as `file:line`, if that is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionChecked(Event):
    """An idle connection was asked whether it is alive."""

    connection: int
    sound: bool
    """Whether it is; otherwise it is closed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionReset(Event):
    """A returned connection that was not clean has been cleaned."""

    connection: int
    sound: bool
    """Whether that went well; otherwise it is closed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionClosed(Event):
    """A connection is closed, and its place is free."""

    connection: int
    reason: str
    """Why, in the words of `Stats.closes`: "max_idle", "hung_up", "broken", ..."""
    age: float
    """Seconds since it was opened."""
    uses: int
    """How often it was lent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallerTimedOut(Event):
    """A caller has waited as long as it would, and got nothing."""

    waited: float
    error: PoolError
    """What it gets, with the pool's figures at that time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallerRefused(Event):
    """A caller got nothing for another reason than time: an outage, a full line, the pool's end."""

    waited: float
    error: PoolError


@dataclass(frozen=True, kw_only=True, slots=True)
class CallerCancelled(Event):
    """A caller gave up while it waited: it was cancelled, or an exception struck it."""

    waited: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakSuspected(Event):
    """A loan has lasted longer than `leak_after`."""

    lease: LeaseRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class OutageBegan(Event):
    """Connections cannot be opened any more."""

    error: BaseException | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OutageEnded(Event):
    """Connections can be opened again."""

    seconds: float
    """How long the outage lasted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolResized(Event):
    """The pool has another size."""

    min_size: int
    max_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolRefreshed(Event):
    """Every connection is to be replaced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolPaused(Event):
    """Nothing is lent until `PoolResumed`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolResumed(Event):
    """Connections are lent again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolClosed(Event):
    """The pool lends nothing any more, and closes what it has."""


class Listener(Protocol):
    """Whoever is called with each fact."""

    def __call__(self, event: Event, /) -> object:
        """Take note; be quick, and wait for nothing."""
        ...


Loans: TypeAlias = Literal["all", "some", "none"]
"""Of how many loans a listener hears."""

LOANS: Final[tuple[Loans, ...]] = ("all", "some", "none")

_CAPITAL: Final = re.compile("(?<!^)[A-Z]")


def brief(error: BaseException | None) -> str:
    """Put an error on one line, whatever is in its text."""
    from millpond.connectors._url_text import printable

    if error is None:
        return "unknown"
    text = printable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


_everywhere: Final[list[tuple[Listener, Loans]]] = []


def everywhere() -> tuple[tuple[Listener, Loans], ...]:
    """Return those who listen to all pools."""
    return tuple(_everywhere)


def listen(listener: Listener, *, loans: Loans = "all") -> Callable[[], None]:
    """Have a listener hear of all pools of this process, those to come included; return what ends that."""
    seat = enlist(listener, loans)
    _everywhere.append(seat)
    _heed()
    return partial(_part_with, seat)


def enlist(listener: Listener, loans: Loans) -> tuple[Listener, Loans]:
    """Return who listens to how much, or raise `ValueError`."""
    if loans not in LOANS:
        raise ValueError(f'loans={loans!r} must be one of "all", "some", "none"')
    return listener, loans


def _part_with(seat: tuple[Listener, Loans]) -> None:
    with suppress(ValueError):
        _everywhere.remove(seat)
    _heed()


def _heed() -> None:
    for pool in _fork.pools():
        pool._heed()
