"""Borrows and returns for a long time, with a fault every second, and ends with a verdict.

python -m proof soak [--minutes M] [--seed N] [--servers]
"""

from __future__ import annotations

import argparse
import gc
import threading
import time
from typing import Final

from millpond import ConnectFailed, Pool
from proof.soak import servers
from proof.soak.faults import Faults
from proof.soak.site import SIZE, Conn, Stop, Tasks, Threads
from proof.soak.watch import Taken, look
from proof.verdict import Verdict

__all__ = ["main"]

PAUSE: Final = 1.0
"""Seconds between faults."""
REPORT: Final = 10.0
"""Seconds between lines."""
WARM_UP: Final = 0.2
"""After which part of the time memory may not grow any more."""
AGAIN: Final = 10.0
"""Seconds within which a pool is well again."""
GROWTH: Final = 8.0
"""By how many MB it may, since an allocator keeps what it had."""


def main(argv: list[str]) -> Verdict:
    """Soak, and print."""
    parser = argparse.ArgumentParser(prog="python -m proof soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="how long")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="in which order things go wrong")
    parser.add_argument("--servers", action="store_true", help="on real servers, and have these fail")
    arguments = parser.parse_args(argv)
    threading.excepthook = _but_strikes
    if arguments.servers:
        return servers.soak(arguments.minutes * 60, arguments.seed)
    return soak(arguments.minutes * 60, arguments.seed)


def soak(seconds: float, seed: int) -> Verdict:
    """Soak for so long."""
    before = look()
    threads, tasks = Threads(), Tasks()
    crowds = (threads, tasks)
    faults = Faults(threads, tasks, seed)
    began = time.monotonic()
    for crowd in crowds:
        crowd.start()
    print(f"{'seconds':>7} {'borrows':>12} {'refused':>8} {'longest':>9} {'files':>6} {'threads':>7} {'MB':>6}")
    told = began
    warm: Taken | None = None
    while (now := time.monotonic()) - began < seconds:
        time.sleep(min(PAUSE, seconds / 10))
        faults.strike()
        if warm is None and now - began > WARM_UP * seconds:
            gc.collect()
            warm = look()
        if now - told > REPORT:
            told = now
            _report(now - began, threads, tasks)
    faults.mend()
    gc.collect()
    last = look()
    for crowd in crowds:
        crowd.stop()
    wrong = threads.site.wrong + tasks.site.wrong + _look_over(threads)
    threads.pool.close()
    del threads.pool, tasks.pool
    gc.collect()
    time.sleep(0.5)
    after = look()
    grown = last.memory - (warm or last).memory
    if grown > GROWTH:
        wrong.append(f"memory has grown by {grown:.1f} MB")
    if after.descriptors > before.descriptors + 4:
        wrong.append(f"{after.descriptors - before.descriptors} descriptors are left")
    if any(crowd.site.live for crowd in crowds):
        wrong.append("connections are open that no pool has")
    _report(seconds, threads, tasks)
    print(*wrong, *(f"{count:5} x {name}" for name, count in sorted(faults.done.items())), sep="\n")
    borrows = sum(threads.site.borrows) + sum(tasks.site.borrows)
    tried = f"{borrows:,} borrows in {seconds:.0f} s, {sum(faults.done.values())} faults, memory {grown:+.1f} MB"
    return Verdict(tried, wrong, time.monotonic() - began)


def _look_over(threads: Threads) -> list[str]:
    """See that nothing is lost in a pool that is well again."""
    pool = threads.pool
    wrong = [f"threads: {found}" for found in pool._step(pool._core.audit)]
    end = time.monotonic() + AGAIN
    lent = [_acquired(pool, end) for _ in range(SIZE)]
    if len(set(lent)) < SIZE or pool.stats().lent != SIZE:
        wrong.append("threads: a place is lost")
    for conn in lent:
        pool.release(conn)
    return wrong


def _acquired(pool: Pool[Conn], end: float) -> Conn:
    """Borrow, though the pool may not have noticed yet that the server is there again."""
    while True:
        try:
            return pool.acquire(AGAIN)
        except ConnectFailed:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _report(seconds: float, *crowds: Threads | Tasks) -> None:
    taken = look()
    borrows = sum(sum(crowd.site.borrows) for crowd in crowds)
    failures = sum(crowd.site.failures for crowd in crowds)
    longest = max(crowd.site.longest for crowd in crowds)
    print(
        f"{seconds:7.0f} {borrows:12,} {failures:8,} {longest:7.2f} s {taken.descriptors:6} {taken.threads:7} "
        f"{taken.memory:6.1f}",
        flush=True,
    )


def _but_strikes(told: threading.ExceptHookArgs) -> None:
    if told.exc_type is not Stop:
        threading.__excepthook__(told)
