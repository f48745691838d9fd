"""Has callers use all pools of millpond on real servers for a long time, while servers and networks fail."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from millpond.testing import Proxy, Server
from proof.atlas.crowd import CrossedError, Work, call, served_at_once
from proof.atlas.places import Address, Place, servers
from proof.atlas.subjects import PATIENCE, SIZE, SUBJECTS, WAIT
from proof.soak.site import Stop
from proof.soak.watch import Taken, look
from proof.verdict import Verdict

__all__ = ["soak"]

CALLERS: Final = 6
"""Of each pool."""
BREATH: Final = 0.01
"""Seconds that a caller rests between two calls, on average."""
PAUSE: Final = 1.0
"""Seconds from the end of one fault to the next."""
REPORT: Final = 10.0
"""Seconds between lines."""
WARM_UP: Final = 0.3
"""After which part of the time memory may not grow any more."""
GROWTH: Final = 16.0
"""By how many MB it may, since an allocator keeps what it had."""
AGAIN: Final = 10.0
"""Seconds within which each caller is served when all is well."""
LIFE: Final = 20.0
"""Seconds that a child process may live."""


def soak(seconds: float, seed: int) -> Verdict:
    """Soak for so long."""
    logging.getLogger().addHandler(logging.NullHandler())
    began = time.monotonic()
    with servers() as places:
        before = look()
        with _crews(places) as crews:
            faults = _Faults(places, crews, seed)
            warm = _work(crews, faults, seconds)
            wrong = faults.wrong + [found for crew in crews for found in crew.end()]
            last = look()
        gc.collect()
        time.sleep(1)
        after = look()
    grown = last.memory - warm.memory
    if grown > GROWTH:
        wrong.append(f"memory has grown by {grown:.1f} MB")
    if after.descriptors > before.descriptors + 4:
        wrong.append(f"{after.descriptors - before.descriptors} descriptors are left")
    print(*wrong, *(f"{count:5} x {name}" for name, count in sorted(faults.done.items())), sep="\n")
    tried = (
        f"{sum(sum(crew.calls) for crew in crews):,} calls by {len(crews)} pools on real servers in {seconds:.0f} s, "
        f"{faults.done.total()} faults, memory {grown:+.1f} MB"
    )
    return Verdict(tried, wrong, time.monotonic() - began)


@contextmanager
def _crews(places: dict[str, Place]) -> Iterator[list[_Crew]]:
    with ExitStack() as stack:
        for place in places.values():
            stack.callback(place.close)
        crews = []
        for subject in SUBJECTS:
            if subject.ours and subject.installed:
                at = places[subject.place].address()
                crews.append(_Crew(subject.name, at, stack.enter_context(subject.open(at))))
        yield crews


def _work(crews: list[_Crew], faults: _Faults, seconds: float) -> Taken:
    """Have all call for so long; return what the process took when it was warm."""
    began = told = time.monotonic()
    warm: Taken | None = None
    print(f"{'seconds':>7} {'calls':>12} {'failed':>8} {'longest':>9} {'files':>6} {'threads':>7} {'MB':>6}")
    while (now := time.monotonic()) - began < seconds:
        for crew in crews:
            crew.start()
        time.sleep(min(PAUSE, seconds / 10))
        faults.strike()
        if warm is None and now - began > WARM_UP * seconds:
            gc.collect()
            warm = look()
        if now - told > REPORT:
            told = now
            _report(now - began, crews)
    for crew in crews:
        crew.start()
    gc.collect()
    _report(seconds, crews)
    return warm or look()


def _report(seconds: float, crews: list[_Crew]) -> None:
    taken = look()
    calls, failed = sum(sum(crew.calls) for crew in crews), sum(sum(crew.failed) for crew in crews)
    longest = max(crew.longest for crew in crews)
    print(
        f"{seconds:7.0f} {calls:12,} {failed:8,} {longest:7.2f} s {taken.descriptors:6} {taken.threads:7} "
        f"{taken.memory:6.1f}",
        flush=True,
    )


class _Crew:
    """Threads that use one pool; each asks for a word of its own, and looks whether that comes back."""

    def __init__(self, name: str, at: Address, work: Work) -> None:
        self.name = name
        self.at = at
        self.work = work
        self.calls = [0] * CALLERS
        self.failed = [0] * CALLERS
        self.served = [0.0] * CALLERS
        """When each was served last."""
        self.longest = 0.0
        self.threads: list[threading.Thread] = []
        self._crossed: list[str] = []
        self._over = False

    def start(self) -> None:
        """Have them begin, and those anew who were struck where nothing protects them."""
        for number in range(CALLERS):
            if number == len(self.threads) or not self.threads[number].is_alive():
                self.threads[number : number + 1] = [threading.Thread(target=self._go_on, args=(number,), daemon=True)]
                self.threads[number].start()

    def _go_on(self, number: int) -> None:
        chance = random.Random()
        while not self._over:
            try:
                self._call(number)
                time.sleep(chance.random() * 2 * BREATH)
            except Stop:
                pass

    def _call(self, number: int) -> None:
        done = call(self.work, 0.0, number)
        self.calls[number] += 1
        self.longest = max(self.longest, done.ended - done.began)
        if done.error is None:
            self.served[number] = done.ended
        else:
            self.failed[number] += 1
            if isinstance(done.error, CrossedError):
                self._crossed.append(str(done.error))

    def end(self) -> list[str]:
        """Have all be served once more, and stop; return what is wrong."""
        wrong = [f"an answer to another's question: {crossed}" for crossed in self._crossed]
        begun = time.monotonic()
        while not all(served > begun for served in self.served) and time.monotonic() < begun + AGAIN:
            time.sleep(0.05)
        unserved = sum(served <= begun for served in self.served)
        if unserved:
            wrong.append(f"{unserved} callers were not served any more")
        self._over = True
        for thread in self.threads:
            thread.join(WAIT + PATIENCE + AGAIN)
        if any(thread.is_alive() for thread in self.threads):
            wrong.append("somebody waits for ever")
        lost = SIZE - served_at_once(self.work, SIZE, 0.3, AGAIN)
        if lost:
            wrong.append(f"{lost} places are lost")
        if self.at.proxy.live > SIZE:
            wrong.append(f"{self.at.proxy.live} connections are open")
        return [f"{self.name}: {found}" for found in wrong]


class _Faults:
    """Faults of all kinds, one after the other, in an order by chance."""

    def __init__(self, places: dict[str, Place], crews: list[_Crew], seed: int) -> None:
        self._places = list(places.values())
        self._mute = [places["valkey"], places["web"]]
        """Whose clients take a limit for an answer; psycopg would wait for ever for one that was dropped on its way."""
        self._crews = crews
        self._chance = random.Random(seed)
        self.done = Counter[str]()
        self.wrong: list[str] = []
        self._kinds: list[Callable[[], None]] = [
            self._reset,
            self._half_close,
            self._drop,
            self._black_hole,
            self._slow,
            self._kill,
            self._freeze,
            self._throw_out,
            self._exceptions,
            self._fork,
        ]

    def strike(self) -> None:
        """Have one thing go wrong, and end."""
        fault = self._chance.choice(self._kinds)
        fault()
        self.done[fault.__name__.strip("_").replace("_", " ")] += 1

    def _reset(self) -> None:
        self._each(Proxy.reset, self._places)

    def _half_close(self) -> None:
        self._each(Proxy.half_close, self._places)

    def _drop(self) -> None:
        self._each(Proxy.drop, self._mute)

    def _black_hole(self) -> None:
        self._each(lambda proxy: proxy.black_hole(accept=False), self._places)
        time.sleep(self._chance.uniform(0.1, 2 * PATIENCE))
        self._heal()

    def _slow(self) -> None:
        self._each(lambda proxy: proxy.delay(0.05), self._places)
        time.sleep(1)
        self._heal()

    def _kill(self) -> None:
        server = self._chance.choice(self._places).server
        Server.kill(server)
        time.sleep(self._chance.uniform(0, 1))
        server.start()

    def _freeze(self) -> None:
        place = self._chance.choice(self._places)
        place.freeze()
        time.sleep(self._chance.uniform(0.1, 2 * PATIENCE))
        place.thaw()

    def _throw_out(self) -> None:
        crew = self._chance.choice(self._crews)
        place = next(place for place in self._places if crew.at in place.addresses)
        place.throw_out(crew.at)

    def _exceptions(self) -> None:
        for crew in self._crews:
            caller = self._chance.choice(crew.threads)
            if caller.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(caller.ident), ctypes.py_object(Stop))

    def _fork(self) -> None:
        """Fork a child that uses the pools for threads; those for tasks belong to a loop, which it does not have."""
        crews = [crew for crew in self._crews if "asyn" not in crew.name]
        child = os.fork()
        if child == 0:
            failed = [crew.name for crew in crews if call(crew.work, 0.0, 0).error is not None]
            os._exit(bool(failed))
        deadline = time.monotonic() + LIFE
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, 9)
            os.waitpid(child, 0)
            self.wrong.append("fork: the child did not come to an end")
        elif ended[1]:
            self.wrong.append("fork: the child was not served")

    def _each(self, change: Callable[[Proxy], object], places: list[Place]) -> None:
        """Do it to all ways to one of these servers."""
        for address in self._chance.choice(places).addresses:
            change(address.proxy)

    def _heal(self) -> None:
        for place in self._places:
            for address in place.addresses:
                address.proxy.heal()
