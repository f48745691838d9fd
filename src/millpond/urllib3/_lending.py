"""The pool of millpond's that stands behind one of urllib3's, and how it comes by connections."""

from __future__ import annotations

import queue
import threading
import weakref
from contextlib import suppress
from random import random
from typing import TYPE_CHECKING

from millpond._core.entry import Entry, Reason, State
from millpond.connector import Condition
from millpond.connectors.urls import place
from millpond.errors import PoolTimeout
from millpond.pool import Pool
from millpond.urllib3._connections import (
    LentConnection,
    descriptor_of,
    finish,
    is_idle,
    is_silent,
    owning,
    reply_of,
)

if TYPE_CHECKING:
    from urllib3._base_connection import BaseHTTPConnection

    from millpond.urllib3 import HTTPConnectionPool

__all__ = ["Connector", "Lender"]

# A member of an Enum takes 50 ns to look up.
CLEAN, UNPROVED, DIRTY, BROKEN = Condition


class Connector:
    """How a pool comes by urllib3's connections. They connect when they are first used, in the caller's thread."""

    provable = True

    def __init__(self, face: HTTPConnectionPool) -> None:
        self._face = weakref.ref(face)
        self.target: str = place(str(face.scheme), host=face.host, port=face.port)

    @property
    def face(self) -> HTTPConnectionPool:
        """urllib3's pool; raises `ReferenceError` if it is gone."""
        face = self._face()
        if face is None:
            raise ReferenceError("the pool is gone")
        return face

    def open(self, timeout: float) -> LentConnection:
        """Make a connection object; no I/O."""
        face = self.face
        kind = face.ConnectionCls
        return owning(face._new_conn(), kind)

    def inspect(self, conn: LentConnection, error: BaseException | None) -> Condition:
        """Tell by http.client's state and the end of the last reply what the connection is fit for."""
        usage = conn._millpond
        if usage.spent or not usage.answered or not is_idle(conn):
            return BROKEN
        rest = usage.rest
        if rest is not None:
            return DIRTY if rest.hopeful else BROKEN
        reply = reply_of(conn)
        if reply is not None and not getattr(reply, "whole", False):
            return BROKEN
        # If the server closes every connection, as some do, the object serves again. If it was kept before, it goes, so
        # that those that are still connected are lent first.
        return BROKEN if conn.sock is None and usage.kept else CLEAN

    def alive(self, conn: LentConnection) -> bool:
        """Tell whether nothing, not even a hang-up, waits to be read."""
        return conn.sock is None or is_silent(conn)

    def descriptor(self, conn: LentConnection) -> int | None:
        """Return the socket's descriptor, or None while there is no socket."""
        return None if conn.sock is None else descriptor_of(conn)

    def ping(self, conn: LentConnection, timeout: float) -> None:
        """Look as `alive` does, for HTTP has no such question; raises ConnectionError, and does not wait."""
        if not self.alive(conn):
            raise ConnectionError(f"{self.target} has hung up, or sent something that nobody asked for")

    def reset(self, conn: LentConnection, timeout: float) -> None:
        """Read what nobody wanted of the last reply; raises ConnectionError."""
        if not finish(conn):
            raise ConnectionError(f"the reply from {self.target} did not end within bounds")

    def close(self, conn: LentConnection) -> None:
        """Close the socket."""
        conn.close()

    def abandon(self, conn: LentConnection) -> None:
        """Close the socket."""
        conn.close()

    def refused(self, error: BaseException) -> bool:
        """Return False: nothing is connected to yet."""
        return False


class Lender(Pool[LentConnection]):
    """A pool whose connections are made by who wants them, and that may be dropped without being closed.

    urllib3 has a queue in its place. What others ask that for, it answers, as a queue of the idle connections would.
    """

    _droppable = True
    _connector: Connector

    def _begin(self) -> None:
        self._making = threading.local()
        super()._begin()

    def _kick(self) -> None:
        # In the thread of one who has just joined the line, too. To make a connection takes less than to wake another.
        if getattr(self._making, "now", False):
            # One of its own steps; or an exception struck it once, and the keeper has to see to its work from then on.
            self._bell.ring()
            return
        self._making.now = True
        try:
            self._make_all()
        finally:
            self._making.now = False
        super()._kick()

    def _make_all(self) -> None:
        # Not in the `try`: CPython 3.13 forgets it when an exception strikes where the loop goes back.
        while self._opens_wanted() and (claim := self._step(self._core.next_open)) is not None:
            try:
                conn = self._connector.open(0.0)
            except Exception as error:
                self._step(self._core.open_failed, claim, error, False, random())
            else:
                self._install(claim, conn)

    def note(self, conn: LentConnection) -> None:
        """Have the socket watched that a connection on loan has now, or none if it has none any more."""
        entry = _entry_of(conn)
        if entry is not None:
            self._watch_anew(entry)
            conn._millpond.noted = conn.sock

    def condemn(self, conn: LentConnection) -> None:
        """Have a connection on loan closed when it comes back, since enough are kept."""
        entry = _entry_of(conn)
        if entry is not None:
            self._step(self._core.condemn, entry, Reason.SURPLUS)

    @property
    def unlent(self) -> int:
        """How many are idle, or will be in a moment."""
        return len(self._core.idle) + self._core._n_tending

    def qsize(self) -> int:
        """Return how many connections are idle."""
        return len(self._core.idle)

    def empty(self) -> bool:
        """Return whether no connection is idle."""
        return not self._core.idle

    def get(self, block: bool = True, timeout: float | None = None) -> LentConnection:
        """Take an idle connection; raises `queue.Empty` if there is none, and does not wait for one."""
        if self.empty():
            raise queue.Empty
        try:
            conn = self._lend(0.0)
        except PoolTimeout as error:
            raise queue.Empty from error
        conn._millpond.held = conn.loan
        return conn

    def put(self, item: BaseHTTPConnection | None, block: bool = True, timeout: float | None = None) -> None:
        """Give a connection back, or close it if it is none of this pool's."""
        self._connector.face._put_conn(item)

    def _scuttle(self) -> None:
        super()._scuttle()
        for entry in list(self._core.entries):
            if entry.state is State.LENT:
                self._unwatch(entry)
                with suppress(Exception):
                    self._connector.abandon(entry.conn)


def _entry_of(conn: LentConnection) -> Entry[LentConnection] | None:
    """Return what the core knows of a connection on loan; None if another thread has just closed it."""
    loan = conn.loan
    claim = None if loan is None else loan._claim
    return None if claim is None else claim.entry
