"""The thread that does what time brings to all pools for threads of a process.

A pool has a bell. Whoever rings it, or asks for it by `call`, has the pool get a turn soon. In a turn it does what is
due, hires workers for what there is to open, check, reset and close, and says when it is to have the next. A pool that
has nothing to keep is not looked after until it is called again, and after a while without any the thread ends.

Nothing is waited for in a turn, and nobody else's code runs: a pool that does not come back would be the end of all.
The thread holds a pool only for its turn. If it ends against its will, whoever needs it brings another, which gives a
turn to every pool there is.

(source of the idea: HikariCP's housekeeper and r2d2's shared `ScheduledThreadPool`)
"""

from __future__ import annotations

import _thread
import os
import queue
import threading
import time
import weakref
from contextlib import suppress
from threading import get_ident
from time import monotonic, sleep
from typing import Any, Final, Protocol

from millpond import _fork
from millpond._core.pulse import BEAT, Pulse
from millpond._core.schedule import Schedule

__all__ = ["Attended", "Bell", "attends", "call", "end", "ends", "join", "pulse"]

LINGER: Final = 5.0
"""Seconds that the thread stays when no pool has anything to keep."""
INSTANT: Final = 0.001
"""Seconds that it rests at least when it waits: under gevent a wait of no time gives nobody else a turn."""


def _suspended_for() -> float:
    """Return the seconds that the machine has been suspended since it started, where the system tells."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if boot is None else time.clock_gettime(boot) - monotonic()


pulse: Final = Pulse(monotonic(), _suspended_for)
"""Whether this process stood still. The keepers of pools for tasks look, too, so that it is known without a thread."""


class Attended(Protocol):
    """A pool, as maintenance sees it."""

    def _manage(self) -> float | None:
        """Do what is due; return the seconds until something will be, or None if nothing is to be kept."""
        ...

    def _may_leave(self) -> bool:
        """Whether nothing is to be kept."""
        ...

    def _stumbled(self, error: Exception) -> None:
        """Tell of an error of a turn."""
        ...

    def _fail_open(self, error: Exception) -> None:
        """Tell callers that the system gives no thread."""
        ...


class Bell:
    """Asks for a turn of one pool."""

    __slots__ = ("__weakref__", "_calls", "_rung", "attended", "pool")

    def __init__(self, pool: Attended) -> None:
        self.pool = weakref.ref(pool)
        self._rung = False
        self.attended = False
        """Whether the pool gets turns without being called. A thread that begins gives one to each pool, so it stays
        true when another begins."""
        # A ring may come from a finaliser when the interpreter has taken modules apart.
        self._calls = _here().calls

    def ring(self) -> None:
        """Have the pool get a turn, if the thread is there. It takes no lock, so that finalisers and signal handlers
        may call it, in any thread."""
        if self._rung:
            return
        try:
            self._rung = True
            self._calls.put(self)
        except BaseException:
            # It has not rung, perhaps; twice does no harm.
            self._rung = False
            raise

    def heard(self) -> Attended | None:
        """Return the pool, whose turn begins: whoever rings from here on finds nobody has."""
        self._rung = False
        return self.pool()


class _Maintenance:
    """What there is of it in one process."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Bell | None] = queue.SimpleQueue()
        """Who is to have a turn; None has the thread only look around."""
        self.thread: threading.Thread | None = None
        self.lock = threading.Lock()

    @property
    def present(self) -> bool:
        """Whether somebody hears calls.

        Not by a flag: one who was struck could not take it down. Nor by `is_alive`: up to Python 3.12 an exception that
        strikes a caller within it has the thread count as ended, and there were two.
        (test: exceptions_that_strike_whoever_asks_do_not_bring_a_second_thread)
        """
        thread = self.thread
        return thread is not None and threading._active.get(thread.ident) is thread  # type: ignore[attr-defined]

    def hire(self) -> None:
        """Have the thread. Raises `RuntimeError` if the system gives none."""
        # By way of a bare one, since this is a caller's: an exception that strikes it while it is inside of
        # `Thread.start` would leave the books of `threading` in disorder.
        _thread.start_new_thread(_hire, (self,))

    def employ(self) -> bool:
        """Let one have the post: callers who need one at the same time bring one each."""
        with self.lock:
            if self.present:
                return False
            self.thread = threading.current_thread()
            return True

    def serve(self) -> None:
        if not self.employ():
            return
        try:
            self.call_all()
            self._serve_on(Schedule())
        except BaseException:
            # Struck. Another takes the post, if the system gives one now; else whoever calls next brings it.
            if self._resign():
                with suppress(RuntimeError):
                    self.hire()
            raise

    def _resign(self) -> bool:
        """Give up the post; tell whether it was this thread's."""
        with self.lock:
            if self.thread is not threading.current_thread():
                return False
            self.thread = None
            return True

    def call_all(self) -> None:
        """Give all pools a turn, those too that believe to be looked after."""
        for pool in _attended():
            self.calls.put(pool._bell)
        self.calls.put(None)

    def _serve_on(self, schedule: Schedule[Bell]) -> None:
        seen = pulse.look(monotonic())
        while True:
            bell = self._next_call(schedule.next(), idle=not len(schedule))
            if pulse.look(monotonic()) != seen:
                # What is idle may be dead, also that of pools which are not due for long.
                seen = pulse.standstills
                self.call_all()
            if bell is not None:
                self._give_turn(bell, schedule)
            due = schedule.take(monotonic())
            if due is not None:
                self._give_turn(due, schedule)
            elif bell is None and not len(schedule) and self._may_leave():
                return

    def _next_call(self, due: float, *, idle: bool) -> Bell | None:
        """Wait for a call, no longer than until something is due, or the pulse is to be looked at."""
        wait = min(due - monotonic(), BEAT)
        if idle:
            wait = 0.0 if _ending else LINGER
        with suppress(queue.Empty):
            if wait > 0:
                return self.calls.get(timeout=max(wait, INSTANT))
            sleep(0)  # for gevent
            return self.calls.get_nowait()
        return None

    def _may_leave(self) -> bool:
        """Leave, unless a call has come."""
        self._resign()
        # Whoever calls from here on brings another; for one who has called just before, this one stays.
        return self.calls.empty() or not self.employ()

    def _give_turn(self, bell: Bell, schedule: Schedule[Bell]) -> None:
        pool = bell.heard()
        pause = None if pool is None else self._turn(pool)
        if pause is not None:
            bell.attended = True
            schedule.put(bell, monotonic() + max(pause, INSTANT))
            return
        schedule.remove(bell)
        bell.attended = False
        # For one who saw just before that the pool is looked after.
        if pool is not None and not pool._may_leave():
            self.calls.put(bell)

    def _turn(self, pool: Attended) -> float | None:
        try:
            return pool._manage()
        except Exception as error:
            pool._stumbled(error)
            return BEAT


def _hire(maintenance: _Maintenance) -> None:
    try:
        threading.Thread(target=maintenance.serve, name="millpond-maintenance", daemon=True).start()
    except RuntimeError as error:
        # Who waits for a connection asks again.
        # (test: a_thread_that_is_hired_while_a_program_ends_is_not_missed)
        if not maintenance.present:
            for pool in _attended():
                pool._fail_open(error)


def _attended() -> list[Any]:
    """Return the pools for threads."""
    return [pool for pool in _fork.pools() if isinstance(getattr(pool, "_bell", None), Bell)]


_ending = False
"""Whether the program ends: a pool is looked after only as long as somebody waits there."""
_of_process: Final[dict[int, _Maintenance]] = {}
"""By the number of the process: what there is in a parent is nothing for its child."""


def _here() -> _Maintenance:
    pid = os.getpid()
    try:
        return _of_process[pid]
    except KeyError:
        # One step, since two threads may make one at once.
        return _of_process.setdefault(pid, _Maintenance())


def attends(bell: Bell) -> bool:
    """Whether the thread looks after a pool, or will without being called."""
    return bell.attended and _here().present


def call(bell: Bell) -> None:
    """Have a pool get a turn; the thread is hired if there is none. Raises `RuntimeError` if the system gives none."""
    here = _here()
    bell.ring()
    if not here.present:
        here.hire()


def end() -> None:
    """Have the thread leave when no pool needs it any more: the program ends."""
    global _ending
    _ending = True
    # What is called at the end may borrow still. (test: what_is_idle_is_lent_to_whatever_runs_at_the_end)
    pulse.stop()
    _here().call_all()


def is_current() -> bool:
    """Whether it is this thread that asks."""
    thread = _here().thread
    return thread is not None and thread.ident == get_ident()


def ends() -> bool:
    """Whether the program ends."""
    return _ending


def join(timeout: float) -> None:
    """Wait until it has left, up to `timeout` seconds."""
    thread = _here().thread
    if thread is not None and thread.ident != get_ident():
        thread.join(timeout)
