"""Requests that a signal handler interrupts: does each caller get its own reply, and is each connection found again?"""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import NamedTuple

import urllib3

import millpond.urllib3
from benchmarks.figure import Figure
from benchmarks.urllib3_server import serving

__all__ = ["Outcome", "interrupt", "measure"]

ROUNDS = 2_000
SIZE = 4
LONGEST = 600e-6
"""Seconds after which the signal comes at the latest: a request takes less."""
STANDSTILL = 2.0
"""Seconds after which a request will not come back."""
PATIENCE = 0.2
"""Seconds that a request waits for a connection. Nobody else has one, so it gets one at once unless they are lost."""


class Outcome(NamedTuple):
    """What became of it."""

    interrupted: int
    """After how many interruptions it was over: all, or when nobody was served any more."""
    wrong: int
    """How many callers got a reply that was another's, or none that can be read."""
    usable: int
    """How many connections can be borrowed at once, afterwards."""


kept: list[urllib3.HTTPConnectionPool] = []
"""Pools, whose finalisers could wait for ever."""


class Interruption(BaseException):
    """What the signal handler raises."""


class Standstill(BaseException):
    """What it raises when a request has waited for ever: for a lock that nobody has."""


def interrupt(make: Callable[..., urllib3.HTTPConnectionPool], rounds: int = ROUNDS) -> Outcome:
    """Interrupt requests: some whose reply is read at once, some streamed, some given back half read."""
    armed = False
    began = time.monotonic()

    def strike(signum: int, frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interruption
        if time.monotonic() - began > STANDSTILL / 2:
            raise Standstill

    def ask(target: str, way: int) -> bytes:
        response = http.request("GET", target, retries=False, pool_timeout=PATIENCE, preload_content=way == 0)
        if way < 2:
            return response.data
        begun = response.read(2)
        response.release_conn()
        return begun + target.encode()[2:]

    interrupted = wrong = starved = number = usable = 0
    with serving() as port, warnings.catch_warnings():
        # A socket that http.client is interrupted while closing is closed by its finaliser.
        warnings.simplefilter("ignore", ResourceWarning)
        http = make("127.0.0.1", port, maxsize=SIZE, block=True, timeout=5)
        # An import that is interrupted may leave its lock taken; so all is imported now.
        http.request("GET", "/")
        former = signal.signal(signal.SIGALRM, strike)
        try:
            while interrupted < rounds and starved < 10:
                number += 1
                target = f"/{number}"
                try:
                    armed, began = True, time.monotonic()
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, LONGEST), STANDSTILL)
                    body = ask(target, number % 3)
                    armed = False
                    wrong += body != target.encode()
                except Interruption:
                    interrupted += 1
                except Standstill:
                    break
                except urllib3.exceptions.EmptyPoolError:
                    starved += 1
                except urllib3.exceptions.HTTPError:
                    wrong += 1
                armed = False
            gc.collect()
            signal.setitimer(signal.ITIMER_REAL, STANDSTILL, STANDSTILL)
            with suppress(Standstill):
                usable = _usable(http)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        kept.append(http)
    return Outcome(interrupted, wrong, usable)


def _usable(http: urllib3.HTTPConnectionPool) -> int:
    """Borrow as many connections as there are to be."""
    held = []
    try:
        for number in range(SIZE):
            held.append(http.request("GET", f"/{number}", pool_timeout=1.0, preload_content=False))  # noqa: PERF401
    except urllib3.exceptions.EmptyPoolError:
        pass
    return sum(response.read() == b"/%d" % number for number, response in enumerate(held))


POOLS = {"millpond": millpond.urllib3.HTTPConnectionPool, "urllib3": urllib3.HTTPConnectionPool}


def in_a_process_of_its_own(name: str) -> Outcome:
    """Interrupt requests where it does no harm if even the end of the program waits for ever."""
    run = subprocess.run([sys.executable, "-m", __name__, name], stdout=subprocess.PIPE, check=True, timeout=60)
    return Outcome(*json.loads(run.stdout))


def measure() -> Iterator[Figure]:
    """Yield what millpond's pool does, and what urllib3's own does in the same run."""
    theirs, ours = in_a_process_of_its_own("urllib3"), in_a_process_of_its_own("millpond")
    case = f"urllib3's own pool: {theirs.wrong} wrong, {theirs.usable} of {SIZE} usable after {theirs.interrupted}"
    yield Figure(f"{ROUNDS} requests interrupted, wrong replies", case, ours.wrong, "", 0, digits=0)
    yield Figure(f"{ROUNDS} requests interrupted, connections usable", case, ours.usable, "", SIZE, ">=", digits=0)


if __name__ == "__main__":
    logging.getLogger("millpond").addHandler(logging.NullHandler())
    print(json.dumps(interrupt(POOLS[sys.argv[1]])), flush=True)
    os._exit(0)
