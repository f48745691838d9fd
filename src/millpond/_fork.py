"""What happens in a child after `os.fork()`.

The child holds a second handle on every connection of its parent. If it closed one as the protocol wants it, or if a
destructor did, the server would take that for the parent's goodbye. So the child first puts a dead socket under each
descriptor: whatever is then written to it reaches nobody. It forgets callers, claims and threads, which are the
parent's, and opens connections of its own.

A connection without a descriptor cannot be treated so. The idle ones among these are closed before the fork; those on
loan are kept from being destroyed in the child.
"""

from __future__ import annotations

import os
import socket
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from millpond import _watcher

__all__ = ["adopt", "at_first_pool", "park", "pin", "pools"]


class Shared(Protocol):
    """A pool, as what concerns all pools of a process sees it.

    It is told of forks: before and after in the process that forks, and in the child.
    """

    def _heed(self) -> None: ...

    def _before_fork(self) -> None: ...

    def _after_fork_in_parent(self) -> None: ...

    def _after_fork_in_child(self) -> None: ...


# Not a WeakSet: iterating over one raises if another thread makes a pool meanwhile.
# (test: pools_are_found_while_other_threads_make_some)
_pools: Final[weakref.WeakValueDictionary[int, Shared]] = weakref.WeakValueDictionary()
_dead: socket.socket | None = None
_first: Callable[[], object] | None = None


def at_first_pool(function: Callable[[], object]) -> None:
    """Have a function called when the first pool of this process is made: from the floors above, which nobody here
    imports."""
    global _first
    _first = function


def adopt(pool: Shared) -> None:
    """See to it that a pool learns of what concerns all."""
    global _first
    _pools[id(pool)] = pool
    if _first is not None:
        first, _first = _first, None
        first()


def pools() -> list[Shared]:
    """Return the pools of this process."""
    return [pool for ref in _pools.valuerefs() if (pool := ref()) is not None]


def park(descriptor: _watcher.Descriptor) -> None:
    """Put a dead socket under a descriptor, unless it has come to mean something else."""
    global _dead
    if not descriptor.current():
        return
    if _dead is None:
        _dead, other = socket.socketpair()
        other.close()
    os.dup2(_dead.fileno(), descriptor.number, inheritable=False)


def pin(conn: object) -> None:
    """Keep a connection without a descriptor from ever being destroyed, the end of the child included.

    SQLite, for one, must not even close in a child what the parent opened. Nothing shorter than a reference
    that nobody returns survives the interpreter's own clean-up.
    """
    import ctypes  # here, because importing it takes longer than importing millpond

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn))


def _before() -> None:
    for pool in pools():
        pool._before_fork()


def _after_in_parent() -> None:
    for pool in pools():
        pool._after_fork_in_parent()


def _after_in_child() -> None:
    _watcher.forsake()
    for pool in pools():
        pool._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
