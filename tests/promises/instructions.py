"""Counting the instructions that millpond executes: what a thing costs, as no machine changes it."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from .places import PACKAGE

__all__ = ["instructions"]


def instructions(work: Callable[[], object]) -> int:
    """Do some work; return how many instructions of millpond's code this thread has executed for it."""
    # A collection would run finalisers of pools that were dropped long before.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _counted(work)
    finally:
        if collects:
            gc.enable()


def _counted(work: Callable[[], object]) -> int:
    count = 0

    if sys.version_info >= (3, 12):
        monitoring, tool = sys.monitoring, 4
        here = threading.get_ident()

        def note(code: CodeType, offset: int) -> object:
            nonlocal count
            if not code.co_filename.startswith(PACKAGE):
                return monitoring.DISABLE
            count += threading.get_ident() == here
            return None

        monitoring.use_tool_id(tool, "instructions")
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, note)
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        try:
            work()
        finally:
            monitoring.set_events(tool, 0)
            monitoring.register_callback(tool, monitoring.events.INSTRUCTION, None)
            monitoring.free_tool_id(tool)
        return count

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        count += event == "opcode"
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(former)
    return count
