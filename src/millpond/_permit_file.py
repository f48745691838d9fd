"""Permits that processes of one machine share: byte ranges of a file, locked in the kernel.

Whoever has a permit has the lock of one byte. The kernel gives a lock to one process only, and frees it when that one
ends, however it ends. A child that is forked inherits none. So no permit is ever given twice, and none is lost.

That a permit is in use is also written to the file. Whoever takes one that was not given back, as its owner died, waits
a moment first: the server may not have noticed yet that it has lost a connection.

Beside that the file has a note of each member, for the others to see what is wanted: hints, which may be stale or
garbage. Nothing depends on them but how soon permits move to where they are needed.

The locks are those of POSIX (`fcntl`): a process loses all that it has on a file as soon as it closes any descriptor of
that file. So a process has each file open once, but for a look at the members of a budget that has none (`handling`).
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

__all__ = ["Note", "PermitFile", "handling", "made", "shared_path"]

MEMBERS: Final = 4096
"""How many processes may share a file at once."""
NOTE: Final = struct.Struct("<8sIIIIIxxxxd24x")
MAGIC: Final = b"millpond"
MEMBER_LOCKS: Final = 1 << 30
"""Where the bytes are whose locks say that a member lives."""
PERMIT_LOCKS: Final = 1 << 31
"""Where the bytes are whose locks are the permits."""
USES: Final = MEMBERS * NOTE.size
"""Where it is written which permits are in use, a byte for each."""
NAME: Final = USES + (1 << 24)
"""Where the file has a name that no other file has."""
MOURNING: Final = 0.05
"""Seconds until a permit is used whose owner has died."""


_handling = (os.getpid(), threading.RLock())


def handling() -> threading.RLock:
    """Return the lock for whoever opens or closes a descriptor, or uses one that another may close.

    A child has its own, since a thread that it does not have may hold its parent's.
    """
    global _handling
    if _handling[0] != os.getpid():
        _handling = (os.getpid(), threading.RLock())
    return _handling[1]


class Note(NamedTuple):
    """What a member lets others know."""

    slot: int
    """Which member it is."""
    pid: int
    limit: int
    """The limit that it goes by."""
    held: int
    """How many permits it has."""
    idle: int
    """How many of them it could spare at once."""
    wanted: int
    """How many more it could use."""
    since: float
    """Since when its caller waits who waits longest, by `time.monotonic`; infinite if nobody does."""


class PermitFile:
    """A member's own handle on the file.

    Raises `OSError` if the file cannot be opened, or is not this user's own.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._permits: set[int] = set()
        try:
            about = os.fstat(self._descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
                raise PermissionError(f"{path} is not a file of this user's")
            self.slot = next(slot for slot in range(MEMBERS) if self._lock(MEMBER_LOCKS + slot))
            self.predecessor = next((note for note in self._read() if note.slot == self.slot), None)
            """What the member has left whose slot this was, and who has died; it stays until `write`."""
        except StopIteration:
            os.close(self._descriptor)
            raise OSError(f"{path} has {MEMBERS} members already") from None
        except BaseException:
            os.close(self._descriptor)
            raise

    def close(self) -> None:
        """Leave, and give all permits back."""
        try:
            self._write(self.slot, bytes(NOTE.size))
            self.give_back(self.held)
        finally:
            os.close(self._descriptor)

    def name(self) -> str:
        """Return a name that no other file has, be its path the same in another container or on another host."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, NAME)  # for an instant: who begins a file names it
        try:
            name = os.pread(self._descriptor, 16, NAME)
            if len(name) < 16:
                name = uuid.uuid4().bytes
                os.pwrite(self._descriptor, name, NAME)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, NAME)
        return name.hex()

    @property
    def held(self) -> int:
        """How many permits this process has."""
        return len(self._permits)

    def above(self, limit: int) -> int:
        """Tell how many permits this process has that are none any more."""
        return sum(permit >= limit for permit in self._permits)

    def take(self, count: int, limit: int, spared: int) -> int:
        """Take up to so many permits of those that are free, and leave `spared` of these to others."""
        found: list[int] = []
        for permit in range(limit):
            if len(found) == count + spared:
                break
            if permit not in self._permits and self._lock(PERMIT_LOCKS + permit):
                found.append(permit)
        mine = found[spared:]
        self._permits.update(mine)
        for permit in found[:spared]:
            self._unlock(PERMIT_LOCKS + permit)
        if any(map(self._in_use, mine)):
            time.sleep(MOURNING)
        for permit in mine:
            os.pwrite(self._descriptor, b"\1", USES + permit)
        return len(mine)

    def give_back(self, count: int) -> None:
        """Give so many permits back, the highest first: those above a limit that was lowered."""
        for permit in sorted(self._permits)[len(self._permits) - count :]:
            self._permits.discard(permit)
            os.pwrite(self._descriptor, b"\0", USES + permit)
            self._unlock(PERMIT_LOCKS + permit)

    def write(self, limit: int, idle: int, wanted: int, since: float) -> None:
        """Let others know how things are here."""
        self._write(self.slot, NOTE.pack(MAGIC, os.getpid(), limit, self.held, idle, wanted, since))

    def read(self) -> list[Note]:
        """Return what others have noted, the dead included of whom nobody has taken notice."""
        return [note for note in self._read() if note.slot != self.slot]

    def living(self) -> list[Note]:
        """Return what all living members have noted, this one included."""
        notes = list(self._read())
        # In its own slot there may still be what a predecessor has left.
        own = [note for note in notes if note.slot == self.slot and note.pid == os.getpid()]
        return own + [note for note in notes if note.slot != self.slot and self.lives(note)]

    def lives(self, note: Note) -> bool:
        """Tell whether a member lives; if not, its note is wiped out."""
        return not self.dead(note) or self.bury(note)

    def dead(self, note: Note) -> bool:
        """Tell whether a member has died, and nobody has its slot."""
        if not self._lock(MEMBER_LOCKS + note.slot):
            return False
        self._unlock(MEMBER_LOCKS + note.slot)
        return True

    def departed(self) -> list[Note]:
        """Return what the dead have noted."""
        return [note for note in self.read() if self.dead(note)]

    def bury_all(self, notes: Iterable[Note]) -> None:
        """Wipe out what dead members have noted."""
        for note in notes:
            self.bury(note)

    def bury(self, note: Note) -> bool:
        """Wipe a dead member's note out; tell whether another has its slot by now."""
        if not self._lock(MEMBER_LOCKS + note.slot):
            return True
        if note in self._read():
            self._write(note.slot, bytes(NOTE.size))
        self._unlock(MEMBER_LOCKS + note.slot)
        return False

    def _in_use(self, permit: int) -> bool:
        return os.pread(self._descriptor, 1, USES + permit) == b"\1"

    def _read(self) -> Iterator[Note]:
        table = os.pread(self._descriptor, MEMBERS * NOTE.size, 0)
        for slot, offset in enumerate(range(0, len(table) - NOTE.size + 1, NOTE.size)):
            magic, pid, limit, held, idle, wanted, since = NOTE.unpack_from(table, offset)
            if magic == MAGIC:
                yield Note(slot, pid, limit, held, idle, wanted, since)

    def _write(self, slot: int, row: bytes) -> None:
        os.pwrite(self._descriptor, row, slot * NOTE.size)

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, byte: int) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, byte)


def shared_path(name: str, kind: str) -> str:
    """Return the path of a file that all processes of this user on this machine share."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name):
        raise ValueError(f"name={name!r} must be 1 to 100 letters, digits, '.', '_' or '-'")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = os.path.join(runtime, "millpond") if runtime else f"{tempfile.gettempdir()}/millpond-{os.geteuid()}"
    return os.path.join(folder, f"{name}.{kind}")


def made(path: str) -> str:
    """Make the folder of a path, for this user only; return the path."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    about = os.stat(folder, follow_symlinks=False)
    if about.st_uid != os.geteuid() or about.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to another user, or others may write to it")
    return path
