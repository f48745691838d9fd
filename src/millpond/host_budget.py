"""One limit for the connections of all processes of a machine."""

from __future__ import annotations

import os
import weakref
from time import monotonic
from typing import Final

from millpond._permit_file import Note, PermitFile, shared_path
from millpond._shared_budget import Need, SharedBudget, register
from millpond.errors import Misuse

__all__ = ["HostBudget", "members"]

POLL: Final = 0.005
"""Seconds after which one who lacks a permit looks again whether one is free."""
WATCH: Final = 0.05
"""Seconds after which one who has permits looks whether others lack some."""
REST: Final = 1.0
"""Seconds after which one looks who neither has any nor lacks any."""
PATIENCE: Final = 0.02
"""Seconds that a caller waits before a connection of another process is closed for it: one may be coming free."""
TURN: Final = 0.1
"""Seconds that a process whose own callers wait keeps what it got last, before it passes any on."""
STUBBORN: Final = 1.0
"""Seconds after which one does not count on others who have something idle, and give nothing: they may be stopped."""


class HostBudget(SharedBudget):
    """How many connections the processes of one user on one machine may have open together: `Pool(..., budget=budget)`.

    Every process makes its own `HostBudget` with the same name (letters, digits, `.`, `_` and `-`), or inherits it by
    `fork`: the workers of gunicorn, uvicorn, Celery or multiprocessing. No server runs; a permit is a lock in the
    kernel, which is free again when its process ends, by `kill -9`, too. A child that is forked has nothing at first.

    A connection that lies idle in one process is closed when a caller has waited in another for 20 ms; so is one that
    comes back, if its process has more of them, or if the other has none and its caller came first. What is free goes
    to the one who has waited longest. A process that waits looks every 5 ms, one that has connections every 50 ms.

    A pool keeps `min_size` connections once it has got them, and is not sure to get them. If processes name different
    limits, the lowest holds. The file is in `$XDG_RUNTIME_DIR/millpond`, or else in the folder for temporary files.

    Raises `ValueError` or `TypeError` for a name or a limit that cannot be, `Misuse` if this process has a budget of
    that name already, and still two seconds later: all pools have to share it. Where the file cannot be opened, that is
    logged, pools wait for their permits, and it is tried again every second. Once opened it stays open, for the next
    budget of that name.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._path = shared_path(name, "budget")
        self._check(limit)
        if not register(_here, self._path, self):
            raise Misuse(f"this process has a HostBudget {name!r} already: give that one to all pools")
        self._gave = self._took = -REST
        super().__init__(name, limit)

    def _part(self) -> None:
        if self._file is not None:
            self._file.leave(self._bell)

    def _turn(self) -> float:
        file = self._handle()
        if file is None:
            return POLL
        need = self._need()
        others = file.read()
        limit = min([self._whole, *(note.limit for note in others if note.limit < self._whole and file.lives(note))])
        if need.held > file.held:
            file.take(need.held - file.held, limit, 0)  # they were lost with a descriptor; what is not left is closed
        give = file.above(limit) or self._to_give(file, need, others)
        # There may be some that no pool could be told of.
        lacking = min(need.wanted, max(0, need.held + need.wanted - file.held))
        taken = 0
        if lacking and not give:
            ahead = sum(note.wanted for note in others if note.since < need.since and note.wanted and file.lives(note))
            taken = file.take(lacking, limit, min(ahead, limit))
            if taken:
                self._took = monotonic()
                # Before the pools know: whoever is lent a connection finds itself among the members.
                file.write(self._whole, need.idle, lacking - taken, need.since)
        if give:
            held = self._allow(file.held - give)
        elif need.wanted or need.held > file.held:
            held = self._allow(file.held)
        else:
            held = self._trim()
        surplus = file.held - max(held, self.allowance)
        if surplus > 0:
            file.give_back(surplus)
            if give:
                self._gave = monotonic()
        file.write(self._whole, need.idle, lacking - taken, need.since)
        if lacking > taken:
            return POLL
        return WATCH if file.held else REST

    def _to_give(self, file: PermitFile, need: Need, others: list[Note]) -> int:
        """Tell how many connections are to be closed here for those who wait elsewhere."""
        now = monotonic()
        if not file.held or now - self._gave < WATCH:
            return 0
        asking = [note for note in others if note.wanted and note.since < now - PATIENCE and file.lives(note)]
        if not asking:
            return 0
        missing = sum(note.wanted for note in asking)
        idle = sorted([(-note.idle, note.slot) for note in others if note.idle] + [(-need.idle, file.slot)])
        before = sum(-spare for spare, slot in idle[: idle.index((-need.idle, file.slot))])
        if need.idle:
            return max(0, min(need.idle, missing - before))
        first = min(asking, key=lambda note: note.since)
        if before and first.since > now - STUBBORN:
            return 0
        richer = any((note.held, -note.slot) > (file.held, -file.slot) for note in others if note not in asking)
        if richer or first.since >= need.since or now - self._took < TURN:
            return 0
        return int(first.held == 0 or file.held - first.held >= 2)


_here: Final[dict[str, weakref.ref[HostBudget]]] = {}
"""The budgets of this process, by their files."""


def members(name: str) -> list[Note]:
    """Return what the living members of a budget have noted, this process included if it is one.

    It waits for nobody, may be called from a signal handler, and raises `OSError` if the file cannot be opened. The
    file stays open afterwards.
    """
    path = shared_path(name, "budget")
    return PermitFile.of(path).living() if os.path.exists(path) else []
