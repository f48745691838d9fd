"""What keyed pools for threads and for tasks have in common: finding the pool of a key, and forgetting unused ones."""

from __future__ import annotations

import re
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final, Generic, NoReturn, TypeVar

from millpond import _fork
from millpond._core.settings import Options, Settings
from millpond._core.stats import Stats
from millpond._shell import Shell
from millpond.budget import Budget
from millpond.errors import PoolClosed

__all__ = ["Keyed", "named"]

K = TypeVar("K", bound=Hashable)
P = TypeVar("P", bound=Shell[Any])

FEW: Final = 8
"""So many unused pools may be kept before it is worth looking for them."""


_SECRETIVE: Final = re.compile(r":.*@|passw|pass\w*\s*=|pwd|secret", re.IGNORECASE | re.DOTALL)


def named(options: Options, key: object, source: object) -> Options:
    """Return the options with the key in the name: for a key that may hold a password, where it leads instead."""
    shown = str(key)
    if _SECRETIVE.search(shown):
        # A number that is the key's for as long as the process lasts, and tells nothing of it.
        shown = str(getattr(source, "target", f"{type(key).__name__} {hash(key) & 0xFFFFFFFF:08x}"))
    return {**options, "name": f"{options.get('name')}[{shown}]"}


class Keyed(Generic[K, P]):
    """The pools of many keys."""

    def __init__(self, make: Callable[[K, Options], P], total: int | None, settings: Options) -> None:
        if total is not None:
            if settings.get("budget") is not None:
                raise TypeError("total and budget say the same; give one of them")
            settings["budget"] = Budget(total)
        self._settings = Settings.of(settings)
        self._options = settings
        self._make = make
        self._after_fork_in_child()
        _fork.renew(self)
        self._used: dict[K, P] = {}
        """Those that may have connections or callers."""
        self._alive: weakref.WeakValueDictionary[K, P] = weakref.WeakValueDictionary()
        """Those too that have been let go of here and that somebody still holds: a key never has two."""
        self._enough = FEW
        self._closed = False

    def _after_fork_in_child(self) -> None:
        """Begin anew: the pools do so themselves."""
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """What errors and logs call it; each key's pool adds its key."""
        return self._settings.name

    def __getitem__(self, key: K) -> P:
        """Return the pool of a key, which is made when it is first asked for. Raises `PoolClosed` after `close`."""
        try:
            return self._used[key]
        except KeyError:
            return self._find(key)

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys whose pools have connections or callers."""
        self._forget()
        return iter(list(self._used))

    def __len__(self) -> int:
        """Count them."""
        self._forget()
        return len(self._used)

    def stats(self) -> dict[K, Stats]:
        """Look at each of them."""
        self._forget()
        return {key: pool._step(pool._core.stats) for key, pool in list(self._used.items())}

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"this {type(self).__name__} cannot be copied or pickled, for two would have the same connections: "
            "hand it on as it is within a process, and make one in each process"
        )

    def __repr__(self) -> str:
        budget = self._settings.budget
        total = "" if budget is None else f", {budget.limit} connections in all"
        return f"<millpond.{type(self).__name__} {self.name!r}: {len(self._used)} keys{total}>"

    def _find(self, key: K) -> P:
        with self._lock:
            if self._closed:
                raise PoolClosed(f"keyed pool {self.name!r} is closed\n  hint: make a new one")
            pool = self._alive.get(key)
            if pool is None:
                made = self._make(key, {**self._options, "name": self.name})
                made._droppable = True
                # A signal handler may have asked for the same key meanwhile.
                pool = self._alive.setdefault(key, made)
            self._used[key] = pool
            if len(self._used) > self._enough:
                self._forget(but=key)
            return pool

    def _forget(self, but: object = None) -> None:
        """Let go of the pools that have neither connections nor callers."""
        with self._lock:
            self._used = self._in_use(but)
            self._enough = max(FEW, 2 * len(self._used))

    def _in_use(self, but: object) -> dict[K, P]:
        # Of all that are alive: one that was let go of may be in use by somebody who had got it before.
        return {key: pool for key, pool in self._alive.items() if key == but or not pool._is_unused()}

    def __del__(self) -> None:
        if not self.__dict__.get("_closed", True) and any(not pool._is_unused() for pool in self._used.values()):
            warnings.warn(f"keyed pool {self.name!r} was never closed", ResourceWarning, stacklevel=1)

    def _end(self) -> list[P]:
        """Be closed, and return the pools that are to be closed."""
        with self._lock:
            self._closed = True
            pools = list(self._alive.values())
            # Afterwards: one that nobody else holds would be dropped rather than closed.
            self._used.clear()
            return pools
