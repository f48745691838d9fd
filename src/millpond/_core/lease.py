"""The hot path: what happens when an idle connection is borrowed, and when one comes back that nobody waits for."""

from __future__ import annotations

from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Final, Generic, NoReturn, Protocol, TypeVar

from millpond._core.core import Core
from millpond._core.entry import Claim, State
from millpond.connector import Condition

__all__ = ["Lease", "Lender"]

C = TypeVar("C")

IDLE: Final = State.IDLE
LENT: Final = State.LENT
CLEAN: Final = Condition.CLEAN


class Lender(Protocol[C]):
    """What a lease needs of its pool, off the hot path."""

    def _settle(self) -> None: ...

    def _return(self, claim: Claim[C], error: BaseException | None) -> None: ...

    def _misused(self, what: str, hint: str) -> Exception: ...


if TYPE_CHECKING:

    class _Base(Generic[C]): ...
else:
    # `Generic` is not among the bases when it runs: it would cost every lease a twentieth of a borrow.
    _Base = {C: object}


class Lease(_Base[C]):
    """The owner of a loan: what a `with` block holds.

    If it dies without having been left (its generator was dropped, its thread torn down), the pool closes the
    connection and has its place back.

    This is the hot path, and the one part of the core that runs without the lock. It needs none, because it does one
    atomic operation on the deque of the idle: a borrower pops, unless somebody waits; a returner appends, and then
    looks whether somebody waits. A waiter raises `gate` first and looks at the deque afterwards (`Core.settle`). So of
    a waiter and a returner who miss each other's first step, one sees the other's second.

    A borrow reads the clock once. Only so is it certain that a process that was stopped (SIGSTOP, a paused container)
    does not lend what died meanwhile, before the watcher or the ticker has had a turn.

    There is no list and no call that can be avoided: each is a measurable part of the whole.
    """

    __slots__ = ("_claim", "_core", "_pool", "_timeout")

    _core: Core[C]
    _pool: Lender[C]
    _timeout: float | None
    _claim: Claim[C] | None

    if not TYPE_CHECKING:  # pragma: no branch

        def __class_getitem__(cls, item: object) -> type:
            return cls

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lease cannot be copied or pickled, for two would return the same connection: make another")

    def enter(self) -> C | None:
        """Borrow. Raises `Misuse` if it is entered already, and the first loan goes on."""
        core = self._core
        claim = None
        try:
            if not core.gate:
                owner = core.whoami()
                now = core.clock()
                try:
                    claim = core.idle.pop()
                except IndexError:
                    pass
                else:
                    # Nobody else has a turn between this question and the next statement.
                    if self._claim is None:
                        self._claim = claim
                        entry = claim.entry
                        if now <= entry.good_until:
                            entry.state = LENT
                            entry.owner = owner
                            entry.since = now
                            entry.uses += 1
                            return entry.conn
                        self._claim = None
                    # The slow way begins by settling what this puts back, and that is not this one's any more.
                    back, claim = claim, None
                    core.idle.append(back)
            if self._claim is None:
                return self._wait()
        except BaseException as cut:
            if self._claim is claim:
                self._claim = None
            back = claim = None  # type: ignore[assignment]
            let_go(cut)
            raise
        back = None  # type: ignore[assignment]
        raise self._entered()

    def _entered(self) -> Exception:
        """What somebody is told who enters a lease that is entered."""
        return self._pool._misused("was asked to enter a lease that is entered", "ask for one for each block")

    def _note(self, site: tuple[CodeType, int] | None) -> None:
        """Note where it was borrowed."""
        claim = self._claim
        if claim is not None and site is not None:
            claim.entry.site = (claim.entry.uses, *site)

    def _wait(self) -> C | None:
        """Borrow by way of the line. An async lease returns None here, and waits in its own way."""
        raise NotImplementedError

    def leave(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Return."""
        try:
            claim = self._claim
            # From here on this frame owns the claim: if it is cut, the claim dies with it, and the pool learns of that.
            self._claim = None
            entry = claim.entry  # type: ignore[union-attr]
            if error is None and entry.good_until:
                core = self._core
                inspect = core.inspect
                if inspect is None or inspect(entry.conn, None) is CLEAN:
                    entry.state = IDLE
                    if core.fifo:
                        core.idle.appendleft(claim)  # type: ignore[arg-type]
                    else:
                        core.idle.append(claim)  # type: ignore[arg-type]
                    if core.gate:
                        self._pool._settle()
                    return
            self._pool._return(claim, error)  # type: ignore[arg-type]
        except BaseException as cut:
            claim = None
            let_go(cut)
            if isinstance(cut, AttributeError) and "entry" not in locals():
                raise self._pool._misused("got back a lease that is not entered", "enter and leave each once") from None
            raise


def let_go(cut: BaseException) -> None:
    """Take the claims out of the frames that an exception has cut short.

    The exception keeps its traceback, that the frames, and those what they worked on: whoever keeps the exception
    would keep the connection. A claim that is nowhere else dies here and is reported; one that had reached its place
    lives.
    """
    trace = cut.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get("__name__", "").startswith("millpond."):
            try:
                frame.clear()
            except RuntimeError:
                # The frames that are still running are those of the callers of this; they see to themselves.
                pass
        trace = trace.tb_next
