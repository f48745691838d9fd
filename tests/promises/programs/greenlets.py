"""Borrows in fifty greenlets of a program that gevent has patched, and tells what came of it.

    python greenlets.py KIND TARGET

KIND is psycopg or socket (of a server that sends back each line after a while); TARGET a URL or host:port.
"""

# ruff: noqa: E402 (nothing is imported before everything is patched)
from gevent import monkey

monkey.patch_all()

import json
import sys
import time
from typing import Any

import gevent

from millpond import Pool, PoolTimeout
from millpond.connectors.psycopg import Psycopg
from millpond.connectors.sockets import Socket

SIZE = 5
CALLERS = 50

busy = most = served = ticks = 0


def make(kind: str, target: str) -> Pool[Any]:
    """Make the pool."""
    if kind == "psycopg":
        return Pool(Psycopg(target), max_size=SIZE)
    host, _, port = target.partition(":")
    return Pool(Socket(host, int(port)), max_size=SIZE)


def use(kind: str, conn: Any) -> None:
    """Have the server work for 20 ms."""
    if kind == "psycopg":
        conn.execute("select pg_sleep(0.02)")
    else:
        conn.sendall(b"!\n")
        assert conn.recv(10) == b"!\n"


def call(pool: Pool[Any], kind: str) -> None:
    """Be one of the callers."""
    global busy, most, served
    with pool.connection() as conn:
        busy += 1
        most = max(most, busy)
        use(kind, conn)
        busy -= 1
    served += 1


def tick() -> None:
    """Count how often others have their turn."""
    global ticks
    while True:
        gevent.sleep(0.001)
        ticks += 1


def wait_in_vain(pool: Pool[Any]) -> float:
    """Ask for one more connection than there are; return the seconds until the pool gave up."""
    conns = [pool.acquire() for _ in range(SIZE)]
    start = time.monotonic()
    try:
        pool.acquire(timeout=0.1)
    except PoolTimeout:
        return time.monotonic() - start
    finally:
        for conn in conns:
            pool.release(conn)
    raise AssertionError("lent one more than there are")


def kill_some(pool: Pool[Any], kind: str) -> None:
    """Kill callers, half of them in line, the others at work."""
    callers = [gevent.spawn(call, pool, kind) for _ in range(2 * SIZE)]
    gevent.sleep(0.01)
    gevent.killall(callers)


def main(kind: str, target: str) -> None:
    """Do all of it."""
    ticker = gevent.spawn(tick)
    with make(kind, target) as pool:
        for conn in [pool.acquire() for _ in range(SIZE)]:
            pool.release(conn)
        gevent.joinall([gevent.spawn(call, pool, kind) for _ in range(CALLERS)], raise_error=True)
        told: dict[str, Any] = {"served": served, "most": most, "ticks": ticks}
        before = ticks
        told["waited"] = wait_in_vain(pool)
        told["ticks while waiting"] = ticks - before
        kill_some(pool, kind)
        conns = [pool.acquire(timeout=30) for _ in range(SIZE)]
        told["usable"] = len({id(conn) for conn in conns})
        for conn in conns:
            use(kind, conn)
            pool.release(conn)
        told["audit"] = pool._step(pool._core.audit)
    ticker.kill()
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
