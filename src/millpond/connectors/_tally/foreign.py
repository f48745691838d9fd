"""Connections to Redis that are none of redis-py's: somebody's own class, or another library's.

They serve as they do in redis-py's own pools. That a loan left nothing behind cannot be proved, since nobody counts
what they are asked; this is said once for each class.
"""

from __future__ import annotations

import logging
from inspect import iscoroutine, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final

from millpond.connectors.factory import begin

__all__ = ["front_for"]

log: Final = logging.getLogger("millpond")

NEEDED: Final = ("connect", "disconnect", "send_command", "read_response")
"""What redis-py's pools and clients call of any connection."""


def front_for(conn: object) -> type:
    """Return what is put in front of its class, and say what cannot be known; raise `TypeError` if it is useless."""
    cls = type(conn)
    missing = [name for name in NEEDED if not callable(getattr(conn, name, None))]
    if missing:
        raise TypeError(f"{cls.__qualname__} is no connection: it has no {missing[0]}()")
    if not (hasattr(conn, "__dict__") and hasattr(conn, "__weakref__")):
        raise TypeError(f"{cls.__qualname__} cannot own a loan, since it has __slots__")
    log.warning(
        "%s.%s is none of redis-py's connections: that a loan left nothing behind cannot be proved",
        cls.__module__,
        cls.__qualname__,
    )
    return AsyncForeign if iscoroutinefunction(conn.send_command) else Foreign  # type: ignore[attr-defined]


class Foreign:
    """In front of a class for threads: it answers as a record does, with what the connection itself says."""

    loan: Any = None
    _asked = _answered = _session = 0
    _token: object = None
    _deadline: float | None = None
    _sock: Any = None

    if TYPE_CHECKING:

        def disconnect(self) -> Any: ...  # noqa: ANN401

    def note_packer(self) -> None:
        """How it packs commands does not matter."""

    def _unread(self) -> bool:
        return bool(_ask(self, "should_reconnect"))

    def is_settled(self) -> bool:
        """Tell whether it wants to be kept."""
        return not self._unread()

    def is_known(self) -> bool:
        """Nothing changes that the pool could note."""
        return True

    def note_socket(self) -> None:
        """Nothing is noted."""

    def note_login(self, token: object) -> None:
        """Note that the pool has authenticated it anew."""
        self._token = token

    def hand_on_pushes(self) -> None:
        """Nothing has been read that could be handed on."""

    def _look(self, timeout: int) -> bool:
        return True

    def is_expected(self) -> bool:
        """Ask it, as redis-py's pools do, whether something can be read."""
        try:
            return not _ask(self, "can_read")
        except Exception as error:
            # It may be another library's. Only a bare TimeoutError is told from it: somebody's time limit.
            if isinstance(error, OSError) and error.errno is None:
                raise
            return False

    def is_open(self) -> bool:
        """It connects itself, if it is not."""
        return True

    def limit(self, seconds: float | None) -> None:
        """Its limits are its own."""


class AsyncForeign(Foreign):
    """In front of a class for tasks, of which nothing can be asked without waiting."""

    _writer: Any = None

    async def hand_on_pushes(self) -> None:  # type: ignore[override]
        """Nothing has been read that could be handed on."""

    def is_expected(self) -> bool:
        """It cannot be asked."""
        return True

    def let_go(self) -> None:
        """Disconnect, soon."""
        leaving = self.disconnect()
        if iscoroutine(leaving):
            begin(leaving)


def _ask(conn: object, question: str) -> object:
    method = getattr(conn, question, None)
    return method() if callable(method) else None
