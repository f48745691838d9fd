"""Permits that processes of one machine share: byte ranges of a file, locked in the kernel.

Whoever has a permit has the lock of one byte. The kernel gives a lock to one process only, and frees it when that one
ends, however it ends. A child that is forked inherits none. So no permit is ever given twice, and none is lost.

That a permit is in use is also written to the file. Whoever takes one that was not given back, as its owner died, waits
a moment first: the server may not have noticed yet that it has lost a connection.

Beside that the file has a note of each member, for the others to see what is wanted: hints, which may be stale or
garbage. Nothing depends on them but how soon permits move to where they are needed.

The locks are those of POSIX (`fcntl`): a process loses all that it has on a file as soon as it closes any descriptor of
that file. So it closes none, ever: it has one handle on each file, which stays when the budget is dropped, for the next
of that name. Then nothing has to be kept from happening at the same time, in whatever thread or signal handler.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from millpond._watcher import Descriptor

__all__ = ["Note", "PermitFile", "made", "shared_path"]

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
    """A process's own handle on a file, by which it is a member: `of` finds it.

    One budget at a time has the permits. Anybody may look at the notes.
    """

    def __init__(self, descriptor: Descriptor, path: str) -> None:
        self._descriptor: Final = descriptor
        self._permits: set[int] = set()
        self._owner: dict[str, object] = {}
        slot = next((slot for slot in range(MEMBERS) if self._lock(MEMBER_LOCKS + slot)), None)
        if slot is None:
            raise OSError(f"{path} has {MEMBERS} members already")
        self.slot: Final = slot
        # In a slot of this process's own there is none: another thread has come first, and has the handle.
        left = (note for note in self._read() if note.slot == slot and note.pid != os.getpid())
        self.predecessor: Final = next(left, None)
        """What the member has left whose slot this was, and who has died."""

    @classmethod
    def of(cls, path: str, *, keep: bool = False) -> PermitFile:
        """Return this process's handle on a file, and make both if they are not there.

        What a predecessor has noted is wiped out, or kept until `write`.

        Raises `OSError` if the file cannot be opened, is not this user's own, or has too many members.
        """
        descriptor = _open(path)
        key = (os.getpid(), descriptor)
        found = _files.get(key)
        if found is not None:
            return found
        new = cls(descriptor, path)
        found = _files.setdefault(key, new)
        if found.slot != new.slot:
            new._unlock(MEMBER_LOCKS + new.slot)
        elif found is new and new.predecessor is not None and not keep:
            new._write(new.slot, bytes(NOTE.size))
        return found

    def claim(self, owner: object) -> bool:
        """Let one owner have the permits; tell whether this is the one. It may be asked again."""
        return self._owner.setdefault("", owner) is owner

    def leave(self, owner: object, *, keep: bool = False) -> None:
        """Give all permits back for the owner, and wipe the note out, or keep it. It may have been done before."""
        if self._owner.get("") is not owner:
            return
        if self.is_open():
            self.give_back(self.held)
            if not keep:
                with suppress(OSError):
                    self._write(self.slot, bytes(NOTE.size))
        self._owner.clear()

    def is_open(self) -> bool:
        """Tell whether this is still the handle. If not, its descriptor was closed, and the locks are lost."""
        return _files.get((os.getpid(), self._descriptor)) is self and self._descriptor.current()

    def name(self) -> str:
        """Return a name that no other file has, be its path the same in another container or on another host."""
        fcntl.lockf(self._descriptor.number, fcntl.LOCK_EX, 1, NAME)  # for an instant: who begins a file names it
        try:
            name = os.pread(self._descriptor.number, 16, NAME)
            if len(name) < 16:
                name = uuid.uuid4().bytes
                self._put(name, NAME)
        finally:
            fcntl.lockf(self._descriptor.number, fcntl.LOCK_UN, 1, NAME)
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
            self._mark(permit, b"\1")
        return len(mine)

    def give_back(self, count: int) -> None:
        """Give so many permits back, the highest first: those above a limit that was lowered."""
        for permit in sorted(self._permits)[len(self._permits) - count :]:
            self._mark(permit, b"\0")
            self._permits.discard(permit)
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
        own = [note for note in notes if note.slot == self.slot]
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
        return os.pread(self._descriptor.number, 1, USES + permit) == b"\1"

    def _mark(self, permit: int, use: bytes) -> None:
        # A disk that is full takes no permit away.
        with suppress(OSError):
            self._put(use, USES + permit)

    def _read(self) -> Iterator[Note]:
        table = os.pread(self._descriptor.number, MEMBERS * NOTE.size, 0)
        for slot, offset in enumerate(range(0, len(table) - NOTE.size + 1, NOTE.size)):
            magic, pid, limit, held, idle, wanted, since = NOTE.unpack_from(table, offset)
            if magic == MAGIC:
                yield Note(slot, pid, limit, held, idle, wanted, since)

    def _write(self, slot: int, row: bytes) -> None:
        self._put(row, slot * NOTE.size)

    def _put(self, data: bytes, where: int) -> None:
        # Whoever closes all descriptors may do so in the middle of a turn, and open others.
        if self.is_open():
            os.pwrite(self._descriptor.number, data, where)

    def _lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._descriptor.number, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, byte: int) -> None:
        with suppress(OSError):  # it is closed, and all locks are gone
            fcntl.lockf(self._descriptor.number, fcntl.LOCK_UN, 1, byte)


_opened: Final[dict[tuple[int, int], Descriptor]] = {}
"""The descriptors that this process has, or has inherited, by their files."""
_files: Final[dict[tuple[int, Descriptor], PermitFile]] = {}
"""The handles by their processes: those of a parent are not its child's."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_files.clear)


def _open(path: str) -> Descriptor:
    """Return the descriptor that this process keeps of a file."""
    with suppress(FileNotFoundError):
        about = os.lstat(path)
        kept = _opened.get((about.st_dev, about.st_ino))
        if kept is not None:
            if kept.current():
                return kept
            # Who becomes a daemon closes all descriptors. The next one may get the same number, and has no lock.
            _opened.pop((about.st_dev, about.st_ino), None)
            _files.pop((os.getpid(), kept), None)
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    about = os.fstat(number)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
        os.close(number)
        raise PermissionError(f"{path} is not a file of this user's")
    # Of two threads that come at once, one has its descriptor for nothing: closed, it would free the other's locks.
    return _opened.setdefault((about.st_dev, about.st_ino), Descriptor(number, about.st_dev, about.st_ino))


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
