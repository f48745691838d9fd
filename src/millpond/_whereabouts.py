"""Finding out who a borrower is and where it is, for errors and `leases()`; nothing of this is on a borrow's path."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Final

__all__ = ["call_site", "described", "line_of", "thread_of", "users_line"]

OURS: Final = os.path.dirname(__file__) + os.sep
LIBRARIES: Final = tuple(
    {path + os.sep for path in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")) if path}
)
PACKAGES: Final = f"{os.sep}site-packages{os.sep}"


def call_site(frame: FrameType | None) -> tuple[CodeType, int] | None:
    """Return where millpond was called from: two values that keep no frame, and so no caller's variables, alive."""
    between: FrameType | None = None
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(OURS):
            # What stands between, as `typing` for `Pool[C](...)` and `contextlib` for an ExitStack, did not call.
            if not name.startswith(LIBRARIES) or PACKAGES in name:
                return frame.f_code, frame.f_lasti
            between = between or frame
        frame = frame.f_back
    return None if between is None else (between.f_code, between.f_lasti)


def line_of(code: CodeType, instruction: int) -> str:
    """Return `file:line` of an instruction."""
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= instruction < end and number is not None:
            line = number
            break
    return f"{os.path.basename(code.co_filename)}:{line}"


def users_line(frames: Iterator[FrameType]) -> str | None:
    """Return `file:line` of the first frame that is no library's, innermost first; of the innermost, if all are."""
    innermost: FrameType | None = None
    for frame in frames:
        innermost = innermost or frame
        name = frame.f_code.co_filename
        if not (name.startswith((OURS, "<", *LIBRARIES)) or PACKAGES in name):
            return line_of(frame.f_code, frame.f_lasti)
    return None if innermost is None else line_of(innermost.f_code, innermost.f_lasti)


def thread_of(ident: int) -> threading.Thread | None:
    """Return the thread that has a number now."""
    return next((thread for thread in threading.enumerate() if thread.ident == ident), None)


def described(thread: object) -> tuple[str, str | None]:
    """Return a thread's name, and where it is now, if it runs."""
    if not isinstance(thread, threading.Thread) or not thread.is_alive():
        return "a thread that has ended", None
    frame = sys._current_frames().get(thread.ident or 0)
    return f"thread {thread.name!r}", users_line(_outwards(frame))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
