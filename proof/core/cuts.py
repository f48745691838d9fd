"""The places within a change where an exception may arrive from outside."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

import millpond._core.core

__all__ = ["Places"]

CORE: Final = str(Path(millpond._core.core.__file__).parent)

AFTER_CALL: Final = 1
JUMP: Final = 2


class Places:
    """Calls `look` at each place of the core within its block where CPython may raise what comes from outside.

    CPython (3.11 to 3.13) looks for signals and for `PyThreadState_SetAsyncExc` when a function of Python's begins,
    after a call of one of C's, and when a loop goes back; tests/promises/places.py holds this against the interpreter.
    The block is not disturbed. `where` tells the place, for people.
    """

    def __init__(self, look: Callable[[], object]) -> None:
        self._look = look
        self._frame: FrameType | None = None
        # By the frame's identity: the instruction that it has executed last, unless that has called Python.
        self._last: dict[int, int] = {}

    @property
    def where(self) -> str:
        """The function and line of the place."""
        frame = self._frame
        return "" if frame is None else f"{frame.f_code.co_qualname}:{frame.f_lineno}"

    def look(self) -> None:
        """Look, at a place outside of the core."""
        sys.settrace(None)
        self._look()
        sys.settrace(self._called)

    def __enter__(self) -> Places:
        self._last.clear()
        self._former = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.settrace(self._former)
        self._frame = None

    def _called(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if code not in _OURS and not _is_ours(code):
            return None
        if code.co_name[0] != "<" and code.co_name != "__init__":
            # The interpreter calls these itself, and does not look again when they return to their caller.
            self._last.pop(id(frame.f_back), None)
        self._last.pop(id(frame), None)
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._pass(frame)
        return self._within

    def _within(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            kinds = _OURS[frame.f_code]
            offset = frame.f_lasti
            number = id(frame)
            last = self._last.get(number, -1)
            self._last[number] = offset
            if last >= 0:
                before = kinds[last]
                if (before == AFTER_CALL) or (kinds[offset] if LOOKS_AT_JUMP else before) == JUMP:
                    self._pass(frame)
        elif event == "exception":
            self._last.pop(id(frame), None)
        return self._within

    def _pass(self, frame: FrameType) -> None:
        self._frame = frame
        self._look()


# Since 3.13 CPython looks at the jump itself; before, after it.
LOOKS_AT_JUMP: Final = sys.version_info >= (3, 13)

_OURS: Final[dict[CodeType, bytearray]] = {}


def _is_ours(code: CodeType) -> bool:
    if not code.co_filename.startswith(CORE):
        return False
    kinds = bytearray(len(code.co_code))
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name.startswith("CALL"):
            kinds[instruction.offset] = AFTER_CALL
        elif "JUMP_BACKWARD" in name and "NO_INTERRUPT" not in name:
            kinds[instruction.offset] = JUMP
    _OURS[code] = kinds
    return True
