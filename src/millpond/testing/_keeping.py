"""The program that keeps one server for a Python process, and outlives it just long enough to clean up.

It is run by path, on its own, by `millpond.testing._keeper`; it imports nothing but the standard library. It makes a
directory, runs one process at a time in it, and when it is told to, or when the process that wants it is gone
(ended, killed, crashed: a pidfd and the end of the pipe both tell), it kills what still runs and removes the
directory. It has one thread, so the kernel's "signal me when my parent dies" can be trusted here: in the wanting
process it would fire when the *thread* that started the server ends.

It reads requests from its standard input and writes events to its standard output, a JSON object a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import stat
import sys
import tempfile
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
IPC_RMID = 0


class Keeping:
    def __init__(self, wanted_by: int, user: tuple[int, int] | None) -> None:
        self.wanted_by = wanted_by
        self.user = user
        self.directory = Path(tempfile.mkdtemp(prefix="millpond-", dir=roomy(user)))
        self.run = 0
        self.pid: int | None = None

    def serve(self) -> None:
        """Answer requests until there is nobody left who could make one."""
        if self.user:
            os.chown(self.directory, *self.user)
        self.tell(directory=str(self.directory))
        poll = select.poll()
        poll.register(0, select.POLLIN)
        ended = children_ended()
        poll.register(ended, select.POLLIN)
        wanting = watch(self.wanted_by)
        if wanting is not None:
            poll.register(wanting, select.POLLIN)
        unread = b""
        while os.getppid() == self.wanted_by:
            ready = dict(poll.poll())
            if ended in ready:
                os.read(ended, 4096)
                self.reap()
            if 0 in ready:
                read = os.read(0, 65536)
                if not read:
                    return
                *lines, unread = (unread + read).split(b"\n")
                for line in lines:
                    request = json.loads(line)
                    if "end" in request:
                        return
                    self.answer(request)
            elif wanting in ready:
                return

    def answer(self, request: dict[str, object]) -> None:
        match request:
            case {"argv": list(argv), "env": dict(env), "stdin": str(stdin), "log": str(log), "last": int(last)}:
                self.start(argv, env, stdin, log, last)
            case {"signal": int(number)}:
                if self.pid is not None:
                    os.kill(self.pid, number)
            case {"kill": True}:
                self.kill()

    def start(self, argv: list[str], env: dict[str, str], stdin: str, log: str, last: int) -> None:
        files = [os.open(stdin, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)]
        keeper = os.getpid()
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                for number, file in enumerate((files[0], files[1], files[1])):
                    os.dup2(file, number)
                for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
                os.chdir(self.directory)
                if self.user:
                    os.setgroups([])
                    os.setgid(self.user[1])
                    os.setuid(self.user[0])
                # After setuid, which clears it. A keeper that is killed takes the server with it.
                prctl(PR_SET_PDEATHSIG, last)
                if os.getppid() == keeper:
                    os.execve(argv[0], argv, env)
            except OSError as error:
                os.write(2, f"{argv[0]}: {error}\n".encode())
            finally:
                os._exit(127)
        for file in files:
            os.close(file)
        self.run += 1
        self.pid = pid
        self.tell(run=self.run, pid=pid)

    def reap(self) -> None:
        """Take in every child that has ended; as the subreaper, also those that a dead server left behind."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self.ended(pid, status)

    def ended(self, pid: int, status: int) -> None:
        if pid == self.pid:
            self.pid = None
            self.tell(run=self.run, code=os.waitstatus_to_exitcode(status))

    def kill(self) -> None:
        """Kill the server and all it has started at one blow, as a power cut would, and wait for the last of them."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGSTOP)  # so that nothing is started or said between the blows
        ended = {}
        with contextlib.suppress(ChildProcessError):
            while True:
                # The youngest first: a backend that sees its postmaster gone would say so to its client.
                for pid in reversed(descendants(os.getpid())):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                pid, status = os.waitpid(-1, 0)
                ended[pid] = status
        self.forget_lock()
        for pid, status in ended.items():
            self.ended(pid, status)

    def forget_lock(self) -> None:
        """Remove what a killed PostgreSQL leaves: its lock file, and the shared memory that the file names."""
        lock = self.directory / "data" / "postmaster.pid"
        with contextlib.suppress(OSError, IndexError, ValueError):
            shared_memory = int(lock.read_text().splitlines()[6].split()[1])
            import ctypes

            ctypes.CDLL(None).shmctl(shared_memory, IPC_RMID, None)
        with contextlib.suppress(OSError):
            lock.unlink()

    def tell(self, **event: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(1, json.dumps(event).encode() + b"\n")

    def end(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def roomy(user: tuple[int, int] | None) -> str | None:
    """The directory for temporary files, or the system's own if the server's user could not get there."""
    for candidate in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        path = Path(candidate).resolve()
        if user is None or all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents)):
            return str(path)
    return None


def watch(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, where the system has such a thing."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def children_ended() -> int:
    """A descriptor that becomes readable when a child ends."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # an ignored signal would write nothing
    return read


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants(ancestor: int) -> list[int]:
    """Every process that `ancestor` has started, directly or not, and that still runs."""
    children: dict[int, list[int]] = {}
    for pid, parent, state in processes():
        if state != "Z":
            children.setdefault(parent, []).append(pid)
    found = list(children.get(ancestor, ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def processes() -> list[tuple[int, int, str]]:
    """Every process: its id, its parent's, and the letter of its state."""
    if not Path("/proc/self/stat").exists():
        rows = os.popen("ps -A -o pid=,ppid=,state=").read().splitlines()
        return [(int(pid), int(parent), state[:1]) for pid, parent, state in (row.split() for row in rows)]
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[:2]
                found.append((int(name), int(parent), state))
    return found


def main() -> None:
    wanted_by, *user = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    keeping = Keeping(wanted_by, (user[0], user[1]) if user else None)
    try:
        keeping.serve()
    finally:
        keeping.end()


if __name__ == "__main__":
    main()
