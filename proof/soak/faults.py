"""What goes wrong in a soak."""

from __future__ import annotations

import ctypes
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress

from millpond import PoolError
from proof.soak.site import SIZE, Stop, Tasks, Threads

__all__ = ["Faults"]


class Faults:
    """Faults of all kinds, one after the other, in an order by chance."""

    def __init__(self, threads: Threads, tasks: Tasks, seed: int) -> None:
        self._threads = threads
        self._tasks = tasks
        self._chance = random.Random(seed)
        self.done: dict[str, int] = {}
        self._kinds: list[Callable[[], None]] = [
            self._deaths,
            self._outage,
            self._resize,
            self._refresh,
            self._pause,
            self._exceptions,
            self._cancellations,
            self._leak,
            self._fork,
        ]

    def strike(self) -> None:
        """Have one thing go wrong."""
        fault = self._chance.choice(self._kinds)
        fault()
        self._threads.start()
        name = fault.__name__.strip("_")
        self.done[name] = self.done.get(name, 0) + 1

    def mend(self) -> None:
        """Have all be well again."""
        for crowd in (self._threads, self._tasks):
            crowd.site.down = False
            crowd.pool.resume()
            crowd.pool.resize(max_size=SIZE)

    def _deaths(self) -> None:
        for crowd in (self._threads, self._tasks):
            live = list(crowd.site.live)
            for conn in self._chance.sample(live, self._chance.randint(0, len(live))):
                conn.dead = True

    def _outage(self) -> None:
        for crowd in (self._threads, self._tasks):
            crowd.site.down = True
            crowd.pool.refresh()
        time.sleep(0.2)
        self.mend()

    def _resize(self) -> None:
        # What is too many is closed when it comes back: the site allows what there may have been.
        for crowd in (self._threads, self._tasks):
            crowd.pool.resize(max_size=self._chance.randint(2, SIZE))

    def _refresh(self) -> None:
        for crowd in (self._threads, self._tasks):
            crowd.pool.refresh()

    def _pause(self) -> None:
        for crowd in (self._threads, self._tasks):
            crowd.pool.pause()
        time.sleep(0.05)
        self.mend()

    def _exceptions(self) -> None:
        for caller in self._chance.sample(self._threads.callers, 5):
            if caller.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(caller.ident), ctypes.py_object(Stop))
                time.sleep(0.001)

    def _cancellations(self) -> None:
        for number in self._chance.sample(range(len(self._tasks.callers)), 5):
            self._tasks.cancel(number)

    def _leak(self) -> None:
        with suppress(PoolError):
            self._threads.pool.connection().__enter__()  # which nobody leaves

    def _fork(self) -> None:
        child = os.fork()
        if child == 0:
            with suppress(BaseException), self._threads.pool.connection(5):
                os._exit(0)
            os._exit(1)
        if os.waitpid(child, 0)[1]:
            self._threads.site.wrong.append("fork: the child was not served")
