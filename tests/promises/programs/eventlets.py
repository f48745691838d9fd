"""Borrows in thirty green threads of a program that eventlet has patched, and tells what came of it.

    python eventlets.py KIND TARGET

KIND is psycopg, redis, socket, requests or httpx; TARGET a URL, or host:port of a server that sends back each line.
"""

# ruff: noqa: E402 (nothing is imported before everything is patched)
import os
import sys

# eventlet's own name resolver imports whatever dnspython can use, and stumbles over that. httpcore imports trio if it
# is there, which cannot be imported under eventlet.
os.environ["EVENTLET_NO_GREENDNS"] = "yes"
sys.modules["trio"] = None  # type: ignore[assignment]

import eventlet

eventlet.monkey_patch()

import json
import select
import time
from collections.abc import Callable
from typing import Any

from millpond import Pool

SIZE = 2
CALLERS = 30


def by_pool(
    pool: Pool[Any], ask: Callable[[Any, int], bool]
) -> tuple[Callable[[int], bool], Callable[[], object], Callable[[], int]]:
    def call(number: int) -> bool:
        with pool.connection() as conn:
            return ask(conn, number)

    return call, pool.close, lambda: pool.stats().opens


def make(kind: str, target: str) -> tuple[Callable[[int], bool], Callable[[], object], Callable[[], int]]:
    """Return what a caller does, what closes all, and how many connections were opened, if it is known."""
    if kind == "psycopg":
        pool: Pool[Any] = Pool.from_url(target, max_size=SIZE, check_after=0)
        return by_pool(pool, lambda conn, number: conn.execute("select %s", [number]).fetchone() == (number,))
    if kind == "socket":
        pool = Pool.from_url(f"tcp://{target}", max_size=SIZE)

        def ask(conn: Any, number: int) -> bool:
            conn.sendall(b"%d\n" % number)
            return bool(conn.recv(100) == b"%d\n" % number)

        return by_pool(pool, ask)
    if kind == "redis":
        import redis

        import millpond.redis

        line = millpond.redis.BlockingConnectionPool.from_url(target, max_connections=SIZE, timeout=30)
        client = redis.Redis(connection_pool=line)
        return lambda number: client.echo(f"{number}") == str(number).encode(), line.close, lambda: line.stats().opens
    if kind == "requests":
        import requests

        import millpond.requests

        session = requests.Session()
        session.trust_env = False
        millpond.requests.install(session, pool_maxsize=SIZE, pool_block=True, pool_timeout=30)
        return (
            lambda number: session.get(f"{target}/{number}", timeout=30).text == f"/{number}",
            session.close,
            lambda: 0,
        )
    import httpx

    import millpond.httpx

    limits = httpx.Limits(max_connections=SIZE)
    web = httpx.Client(transport=millpond.httpx.HTTPTransport(limits=limits), timeout=30, trust_env=False)
    return lambda number: web.get(f"{target}/{number}").text == f"/{number}", web.close, lambda: 0


def main(kind: str, target: str) -> None:
    """Do all of it."""
    call, close, opens = make(kind, target)
    start = time.monotonic()
    right = [call(0), call(1)]
    right += eventlet.GreenPool(10).imap(call, range(CALLERS))
    took = time.monotonic() - start
    told = {"right": sum(right), "of": len(right), "took": took, "opens": opens(), "poll": hasattr(select, "poll")}
    close()
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
