"""Processes beside that of the tests: children that it forks, and programs that it runs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

__all__ = ["forked", "hogged", "run_program"]

NOTHING: AbstractContextManager[object] = nullcontext()


@contextmanager
def forked(work: Callable[[], object], around: AbstractContextManager[object] = NOTHING) -> Iterator[Callable[[], int]]:
    """Fork, within `around`; the child does the work and ends without pytest's knowing. Yields what waits for its
    status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with around:
            pid = os.fork()
            if pid == 0:
                # A tracer that is left behind does no harm, and what ends it might be struck.
                sys.settrace(None)
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    waited: list[int] = []

    def wait() -> int:
        if not waited:
            waited.append(os.waitpid(pid, 0)[1])
        return waited[0]

    try:
        yield wait
    finally:
        wait()


def hogged() -> list[int]:
    """Take all descriptors that this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    hogs: list[int] = []
    while True:
        try:
            hogs.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return hogs


def run_program(source: str, *options: str) -> str:
    """Run a program, which has to end well and to complain of nothing; return what it has printed."""
    command = [sys.executable, *options, "-c", textwrap.dedent(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stderr) == (0, ""), f"it ended with {done.returncode} and said:\n{done.stderr}"
    return done.stdout
