"""The near end of `_keeping`: how this process asks for a server to be run, and learns what became of it."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import Signals

from millpond._watcher import READABLE, look_at
from millpond.testing import _keeping

__all__ = ["Keeper", "ServerError", "unprivileged"]


class ServerError(RuntimeError):
    """A test server could not be started, or did not do as it was told; carries the end of its log."""


def unprivileged() -> tuple[int, int] | None:
    """Return the user and group that servers are run as: those of `nobody` for root, else None for our own."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


class Keeper:
    """A directory and at most one running process in it; neither is left behind, however this process ends.

    `user` is the user and group to run as and to own the directory, or None for our own.
    """

    directory: Path

    def __init__(self, user: tuple[int, int] | None) -> None:
        # -I and -S: nothing of ours (site hooks, coverage, PYTHON* variables) runs in it, and it starts in 25 ms.
        # A session of its own: a Ctrl-C in the terminal is for the tests, which then stop the server in order.
        argv = [sys.executable, "-I", "-S", _keeping.__file__, str(os.getpid()), *map(str, user or ())]
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._unread = b""
        self._run = 0
        self._told_run = 0
        self.pid: int | None = None
        self.code: int | None = None
        self._program = subprocess.Popen(
            argv, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._program.stdin is not None and self._program.stdout is not None
        self._requests, self._events = self._program.stdin.fileno(), self._program.stdout.fileno()
        try:
            self._until(lambda: hasattr(self, "directory"), 30)
        except BaseException:
            self.close()
            raise

    @property
    def running(self) -> bool:
        """Whether the process that was run last still runs."""
        with self._lock:
            self._listen(0)
            return self.pid is not None

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        log: Path,
        stdin: Path = Path(os.devnull),
        last: Signals = Signals.SIGKILL,
    ) -> int:
        """Run a program in the directory and return its process id; `last` is what it gets if its keeper is killed."""
        with self._lock:
            self._run += 1
            self._tell(argv=[*map(str, argv)], env=dict(env), stdin=str(stdin), log=str(log), last=int(last))
            self._until(lambda: self._told_run == self._run, 30)
            return self.pid or 0  # 0: it has ended already

    def send(self, signal: Signals) -> None:
        """Send the running process a signal."""
        self._tell(signal=int(signal))

    def kill(self, timeout: float = 30) -> None:
        """Kill the running process and all it has started, at once; return when the last of them is gone."""
        self._tell(kill=True)
        self.wait(timeout)

    def wait(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for the process to end, and return its code; or raise TimeoutError."""
        self._until(lambda: self.pid is None, timeout)
        return self.code or 0

    def close(self) -> None:
        """Kill what runs, remove the directory and end; a forked child that calls this does nothing."""
        if os.getpid() != self._owner:
            return
        with self._program:
            if self._program.poll() is None:
                try:
                    self._tell(end=True)
                except ServerError:
                    pass
        self.pid = None

    def _tell(self, **request: object) -> None:
        if os.getpid() != self._owner:
            raise ServerError(
                "a test server is for the process that started it to stop and start, not for its children"
            )
        try:
            os.write(self._requests, json.dumps(request).encode() + b"\n")
        except (BrokenPipeError, ValueError) as error:
            raise ServerError("the program that keeps the test server has ended") from error

    def _until(self, done: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the test server did not do it within {timeout} s")
            with self._lock:
                if not done():
                    # In slices, so that threads which wait for the same event take turns at the lock.
                    self._listen(min(left, 0.05))

    def _listen(self, timeout: float) -> None:
        """Take in the events that have come, waiting up to `timeout` seconds for the first."""
        if self._program.returncode is not None:
            return
        if not look_at(self._events, READABLE)(timeout * 1000):
            return
        read = os.read(self._events, 65536)
        if not read:
            raise ServerError("the program that keeps the test server has ended")
        *lines, self._unread = (self._unread + read).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"directory": directory}:
                    self.directory = Path(directory)
                case {"run": run, "pid": pid}:
                    self._told_run, self.pid, self.code = run, pid, None
                case {"run": run, "code": code}:
                    self.pid, self.code = None, code
