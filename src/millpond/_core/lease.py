"""The hot path: what happens when an idle connection is borrowed and nobody waits when it comes back."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, Generic, Protocol, TypeVar

from millpond._core.core import Core
from millpond._core.entry import Claim, State
from millpond.connector import Condition

__all__ = ["Lease", "Lender"]

C = TypeVar("C")

IDLE: Final = State.IDLE
LENT: Final = State.LENT
CLEAN: Final = Condition.CLEAN


class Lender(Protocol[C]):
    """What a lease needs of its pool."""

    _core: Core[C]
    _inspect: Callable[[C, BaseException | None], Condition] | None
    _whoami: Callable[[], int]

    def _settle(self) -> None: ...

    def _return(self, claim: Claim[C], error: BaseException | None) -> None: ...

    def _misused(self, what: str, hint: str) -> Exception: ...


class Lease(Generic[C]):
    """The owner of a loan: what a `with` block holds.

    If it dies without having been left (its generator was dropped, its thread torn down), the pool closes the
    connection and has its place back.

    This is the hot path, and the one part of the core that runs without the lock. It needs none, because it does one
    atomic operation on the deque of the idle: a borrower pops, unless somebody waits; a returner appends, and then looks
    whether somebody waits. A waiter raises `gate` first and looks at the deque afterwards (`Core.settle`). So of a waiter and a
    returner who miss each other's first step, one sees the other's second.

    It reads no clock, makes no list and calls little, and looks clumsy where that is quicker: each of these is a
    measurable part of the whole. (`make measure` prints what it costs.)
    """

    __slots__ = ("_claim", "_pool", "_timeout")

    _pool: Lender[C]
    _timeout: float | None
    _claim: Claim[C] | None

    def enter(self) -> C | None:
        """Borrow."""
        if self._claim is not None:
            raise self._pool._misused("lent a lease that was entered again", "call connection() for each block")
        pool = self._pool
        core = pool._core
        claim: Claim[C] | None
        try:
            if not core.gate:
                whoami = pool._whoami
                owner = whoami()
                try:
                    claim = self._claim = core.idle.pop()
                except IndexError:
                    pass
                else:
                    entry = claim.entry
                    if entry.fresh:
                        entry.state = LENT
                        entry.owner = owner
                        entry.uses += 1
                        return entry.conn
                    # The slow way begins by settling what this puts back.
                    self._claim = None
                    core.idle.append(claim)
            return self._wait()
        except BaseException:
            # Whoever keeps the traceback shall not keep the claim.
            claim = self._claim = None
            raise

    def _wait(self) -> C | None:
        """Borrow by way of the line. An async lease returns None here, and waits in its own way."""
        raise NotImplementedError

    def leave(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Return."""
        claim = self._claim
        if claim is None:
            raise self._pool._misused("got back a lease that was not entered", "use it with `with`")
        # From here on this frame owns the claim: if it is cut, the claim dies with it, and the pool learns of that.
        self._claim = None
        pool = self._pool
        try:
            entry = claim.entry
            if error is None and entry.fresh:
                inspect = pool._inspect
                try:
                    clean = inspect is None or inspect(entry.conn, None) is CLEAN
                except Exception:
                    clean = False
                if clean:
                    core = pool._core
                    entry.state = IDLE
                    if core.fifo:
                        core.idle.appendleft(claim)
                    else:
                        core.idle.append(claim)
                    if core.gate:
                        pool._settle()
                    return
            pool._return(claim, error)
        except BaseException:
            claim = None
            raise
