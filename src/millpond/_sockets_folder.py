"""Where the sockets are that processes tell of their pools on, and who is at the other end of one.

The folder is `$XDG_RUNTIME_DIR/millpond`, or `/tmp/millpond-UID` where the former is not this user's alone. It counts
only if it is a real directory, of this user, that nobody else may enter: whoever could put a socket there, or take one
away, could speak for this user's processes.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from typing import Final, NamedTuple

__all__ = ["Peer", "folders", "home", "peer_of", "remove", "silent"]

LONGEST: Final = 75
"""Bytes that the path of a folder may have: that of a socket has 107 at most."""

ELSEWHERE: Final = (f"/tmp/millpond-{os.geteuid()}", f"/run/user/{os.geteuid()}/millpond")
"""The folder where `$XDG_RUNTIME_DIR` is of no use, and the one of those who have it where we have not."""

CREDENTIALS: Final = struct.Struct("iii")


class Peer(NamedTuple):
    """A process at the other end of a socket, as the kernel knows it."""

    pid: int
    uid: int


def peer_of(conn: socket.socket) -> Peer:
    """Return who called, or who listens."""
    pid, uid, _ = CREDENTIALS.unpack(conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return Peer(pid, uid)


def home(*, make: bool = False) -> str:
    """Return the folder where this process has its socket; with `make`, it is made if there is none.

    Raises `PermissionError` if others can get at it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if len(os.fsencode(runtime)) > LONGEST or not _is_private(runtime):
        folder = ELSEWHERE[0]
    else:
        folder = os.path.join(runtime, "millpond")
    if make:
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            pass
    if os.path.lexists(folder) and not _is_private(folder):
        raise PermissionError(f"{folder} is not a directory that belongs to this user alone: its mode must be 0700")
    return folder


def folders() -> list[str]:
    """Return all folders in which processes of this user may have sockets: not all have the same environment.

    Raises `PermissionError` if others can get at that of this process.
    """
    return [folder for folder in dict.fromkeys((home(), *ELSEWHERE)) if _is_private(folder)]


def silent(path: str) -> bool:
    """Whether nobody listens on a socket any more: its process has ended without taking it away."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as conn:
        try:
            conn.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False


def remove(path: str) -> None:
    """Take a socket away, unless that has been done."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _is_private(folder: str) -> bool:
    try:
        about = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) == 0o700
