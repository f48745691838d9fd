"""The pool's record of one connection, and the claim that says who owns it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from sys import getrefcount
from types import CodeType
from typing import Final, Generic, TypeVar

__all__ = ["TRANSITIONS", "Claim", "Entry", "Reason", "State"]

C = TypeVar("C")


class State(enum.Enum):
    """Where an entry is in its life. It is always in exactly one."""

    OPENING = "opening"
    IDLE = "idle"
    LENT = "lent"
    CHECKING = "checking"
    RESETTING = "resetting"
    CLOSING = "closing"
    CLOSED = "closed"


TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    # An open fails, or comes too late for a pool that has closed; a caller in line gets the connection directly.
    State.OPENING: frozenset({State.IDLE, State.CLOSING, State.CLOSED}),
    State.IDLE: frozenset({State.LENT, State.CHECKING, State.CLOSING}),
    State.LENT: frozenset({State.IDLE, State.RESETTING, State.CLOSING}),
    State.CHECKING: frozenset({State.IDLE, State.CLOSING}),
    State.RESETTING: frozenset({State.IDLE, State.CLOSING}),
    State.CLOSING: frozenset({State.CLOSED}),
    State.CLOSED: frozenset(),
}
"""The only changes of state there are. The diagram in docs/design.md is drawn from this table."""


class Reason(enum.Enum):
    """Why a connection was closed."""

    MAX_LIFETIME = "max_lifetime"
    MAX_IDLE = "max_idle"
    MAX_USES = "max_uses"
    HUNG_UP = "hung up"
    BROKEN = "broken"
    CHECK_FAILED = "check failed"
    RESET_FAILED = "reset failed"
    DISCARDED = "discarded"
    REFRESHED = "refreshed"
    SURPLUS = "surplus"
    MADE_ROOM = "made room"
    LOST = "lost"
    FORKED = "forked"
    POOL_CLOSED = "pool closed"


class Entry(Generic[C]):
    """The record of one connection.

    `good_until` is all that a borrow tests: the moment after which the connection may not be lent without a second
    look. The ticker moves it on, a little ahead of itself, while all is well; so a process that stood still finds it in
    the past. Whatever is exceptional (suspect, expired, due for a check) puts it in the past too. It is 0 if a return
    has to look as well: when the connection is doomed, or its uses are counted. `doom` is why it will be closed.
    """

    __slots__ = (
        "asked",
        "born",
        "borrower",
        "conn",
        "descriptor",
        "doom",
        "end",
        "expires",
        "generation",
        "good_until",
        "idle_since",
        "key",
        "leak_told",
        "owner",
        "serial",
        "since",
        "site",
        "stalled",
        "state",
        "suspect",
        "uses",
    )

    conn: C
    """The connection; unset until it is open. One that owns its loan is referred to weakly while it is on loan."""
    key: int
    """The identity of the connection."""

    def __init__(self, serial: int, generation: int, now: float) -> None:
        self.serial = serial
        self.generation = generation
        self.state = State.OPENING
        self.good_until = 0.0
        self.doom: Reason | None = None
        self.suspect = False
        self.uses = 0
        self.owner = 0
        """The thread or task that has it on loan, by its number; whose it was, when idle."""
        self.since = now
        """When the open, loan or reset began that it is in; when the last one did, if idle or checked."""
        self.site: tuple[int, CodeType, int] | None = None
        """Where it was borrowed, with the number of the loan that this tells about."""
        self.borrower: tuple[int, Callable[[], object | None]] = (0, _nothing)
        """The number of a loan that may outlive its borrower, and what returns that one, or None when it has gone."""
        self.expires = 0.0
        self.idle_since = now
        """Since when it has been idle at most, as far as is known: a return reads no clock."""
        self.born = now
        """When it was opened."""
        self.asked = now
        """When it last proved to be alive to a check; when the check began that it is in."""
        self.descriptor: Hashable | None = None
        """The shell's name for its file descriptor."""
        self.end: Callable[[], object | None] = _nothing
        """Returns the job of closing it, if somebody has that."""
        self.stalled = False
        """Whether the open, check or reset that it is in takes too long to be counted on."""
        self.leak_told = 0

    def __repr__(self) -> str:
        return f"<Entry {self.serial} {self.state.value}, {self.uses} uses>"


def _nothing() -> None:
    return None


class Claim(Generic[C]):
    """The right to one open entry: exactly one exists, and whoever holds it owns the connection.

    It lies in the idle deque, in a waiter, in a job or in a lease, and nowhere else: the entry does not hold it. An
    exception can arrive between any two instructions, also between the one that pops a claim and the one that
    stores it. The claim then dies with the stack that held it, and its guards tell the pool which entry has lost its
    owner. So no slot can leak, without a lock or a log of intentions on the hot path.

    There are two guards because a finaliser, too, can be struck by an exception, and is not run again.
    """

    __slots__ = ("_guard", "_twin", "entry")

    def __init__(self, entry: Entry[C], lost: Callable[[Entry[C]], None]) -> None:
        self.entry = entry
        self._guard = _Guard(entry, lost)
        self._twin = _Guard(entry, lost)

    def dissolve(self) -> None:
        """Give the right up in good order: its end is not to be reported."""
        self._guard.lost = self._twin.lost = None


class _Guard(Generic[C]):
    """Reports the death of the claim that holds it. It takes no lock: it may run inside the pool's own locked section.

    The collector calls the finalisers of all that is in a cycle before it looks whether one of them has brought the
    rest back to life, as a generator does that leaves its `with` block and returns its claim. A guard that is still
    held was called so. It is never called again, and leaves an heir, which the collector does not know yet.
    (test: a_generator_closed_by_the_collector)
    """

    __slots__ = ("_entry", "_heir", "lost")

    def __init__(self, entry: Entry[C], lost: Callable[[Entry[C]], None]) -> None:
        self._entry = entry
        self.lost: Callable[[Entry[C]], None] | None = lost

    def __del__(self) -> None:
        # Not there if __init__ was interrupted.
        lost = getattr(self, "lost", None)
        if lost is None:
            return
        if getrefcount(self) > _UNHELD:
            self._heir = _Guard(self._entry, lost)
        else:
            lost(self._entry)


def _references_of_the_unheld() -> int:
    counts: list[int] = []

    class Probe:
        def __del__(self) -> None:
            counts.append(getrefcount(self))

    Probe()
    return counts[0]


_UNHELD: Final = _references_of_the_unheld()
"""What `getrefcount` says in a finaliser that runs because the last reference has gone; it differs by version."""
