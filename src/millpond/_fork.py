"""What happens in a child after `os.fork()`.

The child holds a second handle on every connection of its parent. If it closed one as the protocol wants it, or if a
destructor did, the server would take that for the parent's goodbye. So the child first puts a dead socket under each
descriptor: whatever is then written to it reaches nobody. It forgets callers, claims and threads, which are the
parent's, and opens connections of its own.

A connection without a descriptor cannot be treated so. The idle ones among these are closed before the fork; those on
loan are kept from being destroyed in the child.

An exception may strike a hook anywhere: a signal handler's, or for want of a descriptor. Python reports it, drops it
and goes on. So the child first shuts every pool, which needs nothing; then each begins anew, by itself; and one that
has not does so when it is used. All hooks are there twice, for what strikes the first before it has done anything. What
the parent's second hook undoes ends by itself, too.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, Protocol

from millpond import _watcher
from millpond._core.lease import let_go

__all__ = ["adopt", "at_first_pool", "beginning", "disown", "pools", "prepare_pins", "renew"]


class Inheritor(Protocol):
    """What is another one in a forked child."""

    def _after_fork_in_child(self) -> None:
        """Begin anew, unless that has been done: it may be called again."""
        ...


class Shared(Inheritor, Protocol):
    """A pool, as what concerns all pools of a process sees it.

    It is told of forks: before and after in the process that forks, and in the child.
    """

    def _heed(self) -> None: ...

    def _before_fork(self) -> None: ...

    def _after_fork_in_parent(self) -> None: ...

    def _shut(self) -> None:
        """Lend nothing until it has begun anew."""
        ...


# Not WeakSets: iterating over one raises if another thread makes a pool meanwhile.
# (test: pools_are_found_while_other_threads_make_some)
_pools: Final[weakref.WeakValueDictionary[int, Shared]] = weakref.WeakValueDictionary()
_others: Final[weakref.WeakValueDictionary[int, Inheritor]] = weakref.WeakValueDictionary()
_dead: _watcher.Descriptor | None = None
_pinned: Final[dict[int, object]] = {}
_first: Callable[[], object] | None = None
beginning = threading.RLock()
"""Held by a thread that begins a pool anew because the hooks were cut short."""


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


def renew(owner: Inheritor) -> None:
    """See to it that what is no pool, and has a lock, begins anew in a forked child: a thread that the child does not
    have may hold the lock for ever."""
    _others[id(owner)] = owner


def pools() -> list[Shared]:
    """Return the pools of this process."""
    return [pool for ref in _pools.valuerefs() if (pool := ref()) is not None]


def disown(conn: object, descriptor: object) -> None:
    """Keep an inherited connection from saying goodbye, in a child that has no other thread yet. It may be called
    again."""
    if not isinstance(descriptor, _watcher.Descriptor):
        _pin(conn)
    elif descriptor.current():
        try:
            _park(descriptor.number)
        except OSError:
            _pin(conn)


def _park(number: int) -> None:
    """Put a dead socket under a descriptor."""
    if _dead is not None and _dead.current():
        os.dup2(_dead.number, number, inheritable=False)
        return
    # The process had no descriptor left for it. Now there is one.
    os.close(number)
    dead = socket.socket(socket.AF_UNIX)
    if dead.fileno() == number:
        dead.detach()
    else:
        os.dup2(dead.fileno(), number, inheritable=False)
        dead.close()


def _prepare() -> None:
    """Have a dead socket: one that was never connected, so that nothing reaches anybody through it."""
    global _dead
    # Who becomes a daemon closes all descriptors, and another file may have the number since.
    if _dead is None or not _dead.current():
        _dead = _watcher.identify(socket.socket(socket.AF_UNIX).detach())


def _pin(conn: object) -> None:
    """Keep a connection without a descriptor from ever being destroyed, the end of the child included.

    SQLite, for one, must not even close in a child what the parent opened. Nothing shorter than a reference
    that nobody returns survives the interpreter's own clean-up.
    """
    if id(conn) in _pinned:
        return
    import ctypes  # here, because importing it takes longer than importing millpond

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn))
    _pinned[id(conn)] = conn


def prepare_pins() -> None:
    """Import what a child needs to pin connections, which may have no descriptor left to read it."""
    import ctypes  # noqa: F401


def _each(calls: Iterable[Callable[[], object]]) -> None:
    """Make all calls, whatever becomes of each; raise what the last one raised that did."""
    struck: BaseException | None = None
    for call in calls:
        struck = _struck(call) or struck
    try:
        if struck is not None:
            raise struck
    finally:
        # It would be kept by its own traceback, and keep what it has struck.
        del struck


def _struck(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except BaseException as error:
        let_go(error)
        return error
    return None


def _before() -> None:
    known = pools()
    if known:
        with suppress(OSError):
            _prepare()
    _each([pool._before_fork for pool in known])


def _after_in_parent() -> None:
    _each([pool._after_fork_in_parent for pool in pools()])


def _after_in_child() -> None:
    global beginning
    beginning = threading.RLock()
    known = pools()
    _each([pool._shut for pool in known])
    _each([_watcher.forsake, *(one._after_fork_in_child for one in (*known, *_inheritors()))])


def _inheritors() -> list[Inheritor]:
    return [other for ref in _others.valuerefs() if (other := ref()) is not None]


if hasattr(os, "register_at_fork"):
    for _ in range(2):
        os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
