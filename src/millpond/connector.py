"""What a pool must know about one kind of connection.

A connector is the only part of millpond that touches a connection. The pool decides when to open, look, ask,
clean or close; the connector knows how. Write one for a driver of your own by following `Connector` or
`AsyncConnector`; both are structural, so nothing has to be inherited.
"""

from __future__ import annotations

import enum
from typing import Protocol, TypeVar

__all__ = ["AsyncConnector", "Condition", "Connector", "Inspector"]

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


class Condition(enum.Enum):
    """What a connection is fit for when its borrower gives it back."""

    CLEAN = "clean"
    """Proved: protocol idle, nothing in flight, nothing unread, no transaction. It can be lent as it is."""
    UNPROVED = "unproved"
    """Whole, and nothing shows; but nobody can tell what its session was told. `reset` makes it as new."""
    DIRTY = "dirty"
    """Whole, but not as it was lent (an open transaction, session settings). `reset` makes it clean."""
    BROKEN = "broken"
    """Dead, or cut in the middle of an exchange: a reply may still be on its way. It is abandoned."""


class Inspector(Protocol[C_contra]):
    """The part that is the same for threads and tasks: it never waits and does no round trip.

    A connector may also have a method `silent(conn) -> bool`: whether nothing has come on an idle connection that
    nobody asked for. It is for protocols in which such a thing would be taken for the next borrower's answer. The pool
    then asks it before a connection is lent again, in the borrower's thread or task, and closes that of which it says
    False. redis-py's pools look so, too.
    """

    @property
    def target(self) -> str:
        """Where the connections lead, for people: a URL without its secrets."""
        ...

    @property
    def provable(self) -> bool:
        """Whether `inspect` can prove a connection clean.

        False is for connections of which nothing can be asked. The pool then never calls `inspect`: a loan that
        ended without an error counts as clean, one that ended with an error as broken.
        """
        ...

    def inspect(self, conn: C_contra, error: BaseException | None) -> Condition:
        """Tell what a returned connection is fit for.

        `error` is the exception that ended the loan, or None. It never waits, sends or receives, and must not
        raise; if it does, the connection counts as broken. It is called on every return, so it is quick.
        """
        ...

    def alive(self, conn: C_contra) -> bool:
        """Tell, without a round trip, whether an idle connection shows no sign of death.

        False when the peer has hung up or when there is something to read that nobody asked for.
        """
        ...

    def descriptor(self, conn: C_contra) -> int | None:
        """Return the connection's file descriptor, or None if it has none that can be watched.

        The watcher waits on it for hang-ups, and a forked child puts a dead socket under it.
        """
        ...

    def abandon(self, conn: C_contra) -> None:
        """End a connection for everybody, at once, without waiting for the server.

        It may be broken, and a thread or task that outlived its loan may still be inside of it: in the midst of a
        query, or waiting on its socket. Whoever is inside fails soon. What they use is not freed before they have left:
        a socket is shut down, and the last one who refers to the connection frees it.
        """
        ...

    def refused(self, error: BaseException) -> bool:
        """Tell whether a failed open was a refusal (a wrong password, no such database).

        Trying again would not help and may lock the account, so the pool stops its retries.
        """
        ...


class Connector(Inspector[C], Protocol[C]):
    """How a `Pool` opens, checks, resets and closes one kind of connection. Its methods run in any thread."""

    def open(self, timeout: float) -> C:
        """Open a connection within `timeout` seconds, ready to be lent; raise the driver's own exception if not."""
        ...

    def ping(self, conn: C, timeout: float) -> None:
        """Do one round trip within `timeout` seconds; raise if the connection is not usable."""
        ...

    def reset(self, conn: C, timeout: float) -> None:
        """Make a dirty or unproved connection clean within `timeout` seconds, or raise.

        It is inspected afterwards, and closed if it is still dirty, or broken.
        """
        ...

    def close(self, conn: C) -> None:
        """Close a healthy connection as the protocol wants it."""
        ...


class AsyncConnector(Inspector[C], Protocol[C]):
    """How an `AsyncPool` opens, checks, resets and closes one kind of connection.

    The pool's own tasks run these, under a deadline of the pool's; a cancellation may arrive at any await.

    A connector whose driver knows no other event loop than asyncio's has an attribute `asyncio_only = True`. A pool
    that is used in trio then says so at once, instead of trying and failing to open.
    """

    async def open(self, timeout: float) -> C:
        """Open a connection within `timeout` seconds, ready to be lent; raise the driver's own exception if not."""
        ...

    async def ping(self, conn: C, timeout: float) -> None:
        """Do one round trip within `timeout` seconds; raise if the connection is not usable."""
        ...

    async def reset(self, conn: C, timeout: float) -> None:
        """Make a dirty or unproved connection clean within `timeout` seconds, or raise.

        It is inspected afterwards, and closed if it is still dirty, or broken.
        """
        ...

    async def close(self, conn: C) -> None:
        """Close a healthy connection as the protocol wants it."""
        ...
