"""Exceptions that come from outside, and the places in millpond's code where they can arrive."""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import millpond

PACKAGE = str(Path(millpond.__file__).parent)


class Stop(BaseException):
    """What a signal handler raises, as KeyboardInterrupt is."""


class Limit(Exception):
    """What a signal handler raises, as Celery's soft limit is: a connector might take it for one of its own."""


KINDS = [Stop, Limit]


@contextmanager
def finalisers_cut(
    kind: type[BaseException], tell: Callable[[], object] = lambda: None
) -> Iterator[list[type[BaseException]]]:
    """Collect the exceptions that strike a finaliser: the interpreter swallows those, whoever has written it."""
    swallowed: list[type[BaseException]] = []
    former = sys.unraisablehook

    def note(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, kind):
            swallowed.append(unraisable.exc_type)
            tell()
        else:
            former(unraisable)

    sys.unraisablehook = note
    try:
        yield swallowed
    finally:
        sys.unraisablehook = former


class Places:
    """Counts the places that a `with` block passes in millpond, and calls `act` at the one with the given number.

    A place is where CPython (3.11 to 3.13) looks for signals and for `PyThreadState_SetAsyncExc`: when a function of
    Python's begins, after a call of one of C's, and when a loop goes back. Nowhere else can a handler run or an
    exception arrive from outside. What `act` raises comes out at that place. `mine` tells whether the code that runs is
    that of the block, for tasks, which share their thread.
    """

    def __init__(self, number: int, act: Callable[[], object], mine: Callable[[], bool] = lambda: True) -> None:
        self._number = number
        self._act = act
        self._mine = mine
        # By the frame's identity: a reference to the frame would keep alive what is in it.
        self._last: dict[int, int] = {}
        self.passed = 0
        self.where = ""
        self.at_start = False
        """Whether the place is the beginning of a function."""

    @property
    def reached(self) -> bool:
        """Whether the block has come as far as the place."""
        return self.passed >= self._number

    def __enter__(self) -> Places:
        _watch(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watch(None)

    def began(self, frame: FrameType) -> None:
        """Note that a function begins, or that a generator or coroutine goes on."""
        code = frame.f_code
        if code.co_name != "__init__" and not code.co_name.startswith("<"):
            # The interpreter calls these itself, and does not look again when they return to their caller.
            self._last.pop(id(frame.f_back), None)
        self._last.pop(id(frame), None)
        # Where a coroutine goes on after an `await`, it does not look: RESUME 3.
        if _is_ours(code) and code.co_code[frame.f_lasti + 1] & 3 < 2:
            self._pass(frame, at_start=True)

    def comes_to(self, frame: FrameType, offset: int) -> None:
        """Note that an instruction is about to be executed."""
        opcodes = frame.f_code.co_code
        last = self._last.get(id(frame))
        self._last[id(frame)] = offset
        if last is not None and _looks_between(dis.opname[opcodes[last]], dis.opname[opcodes[offset]]):
            self._pass(frame, at_start=False)

    def raised(self, frame: FrameType) -> None:
        """Note that an exception has ended an instruction: what is executed next does not come after it."""
        self._last.pop(id(frame), None)

    def _pass(self, frame: FrameType, *, at_start: bool) -> None:
        if not self._mine():
            return
        self.passed += 1
        if self.passed == self._number:
            self.at_start = at_start
            self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
            # Whoever keeps the exception is not to keep that frame's variables by way of this one.
            del frame
            self._act()


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(PACKAGE)


def _looks_between(last: str, following: str) -> bool:
    if last.startswith("CALL"):
        # The call of a coroutine function does not enter it.
        return following != "GET_AWAITABLE"
    # Since 3.13 it looks at the jump, which is outside of the `try` or `with` that the loop is in; before, after it.
    jump = following if sys.version_info >= (3, 13) else last
    return "JUMP_BACKWARD" in jump and "NO_INTERRUPT" not in jump


if sys.version_info >= (3, 12):
    _TOOL = 4
    _EVENTS = sys.monitoring.events

    def _watch(places: Places | None) -> None:
        """Have the places told of what this thread does in millpond, or no longer."""
        monitoring = sys.monitoring
        if places is None:
            monitoring.set_events(_TOOL, 0)
            monitoring.free_tool_id(_TOOL)
            return
        here = threading.get_ident()
        told = places

        def began(code: CodeType, offset: int) -> None:
            if threading.get_ident() == here:
                told.began(sys._getframe(1))

        def comes_to(code: CodeType, offset: int) -> object:
            if not _is_ours(code):
                return monitoring.DISABLE
            if threading.get_ident() == here:
                told.comes_to(sys._getframe(1), offset)
            return None

        def raised(code: CodeType, offset: int, error: BaseException) -> None:
            if threading.get_ident() == here:
                told.raised(sys._getframe(1))

        monitoring.use_tool_id(_TOOL, "places")
        monitoring.register_callback(_TOOL, _EVENTS.PY_START, began)
        monitoring.register_callback(_TOOL, _EVENTS.PY_RESUME, began)
        monitoring.register_callback(_TOOL, _EVENTS.INSTRUCTION, comes_to)
        monitoring.register_callback(_TOOL, _EVENTS.RAISE, raised)
        monitoring.set_events(_TOOL, _EVENTS.PY_START | _EVENTS.PY_RESUME | _EVENTS.INSTRUCTION | _EVENTS.RAISE)

else:
    _formers: list[Any] = []

    def _watch(places: Places | None) -> None:
        """Have the places told of what this thread does in millpond, or no longer."""
        if places is None:
            sys.settrace(_formers.pop())
            return
        told = places

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            if event == "call":
                told.began(frame)
                if not _is_ours(frame.f_code):
                    return None
                frame.f_trace_opcodes = True
                frame.f_trace_lines = False
            elif event == "opcode":
                told.comes_to(frame, frame.f_lasti)
            elif event == "exception":
                told.raised(frame)
            return trace

        # That of coverage, if there is one.
        _formers.append(sys.gettrace())
        sys.settrace(trace)
