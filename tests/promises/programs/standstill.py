"""Borrows in one of several ways, is stopped meanwhile, and tells how often it was lent a dead connection.

    python standstill.py URL WAY

It prints `ready` when it may be stopped, goes on until a line comes in, and prints what it has counted, as JSON. A
loan that was begun before the stop does not count. WAY is looping (threads borrow all the time), pausing (it borrows
when the line comes), holding (the same, with a connection on loan over the stop), or tasks (pausing, in a loop).
"""

from __future__ import annotations

import asyncio
import json
import select
import sys
import threading
import time
from typing import Any

import psycopg

import millpond
from millpond import AsyncPool, Pool
from millpond.connectors.asyncpg import Asyncpg
from millpond.connectors.psycopg import Psycopg

SIZE = 6
HANG_UP = getattr(select, "EPOLLRDHUP", 0x2000)
STOPPED = 1.0

lent = dead = failed = 0


def is_dead(descriptor: int) -> bool:
    """Whether the server has hung up, or has sent something that was not asked for."""
    look = select.poll()
    look.register(descriptor, select.POLLIN | HANG_UP)
    return bool(look.poll(0))


def look_at(descriptor: int | None, before: float) -> None:
    """Count a loan that has just begun."""
    global lent, dead
    found = descriptor is None or is_dead(descriptor)
    if time.monotonic() - before < STOPPED:
        lent += 1
        dead += found


def borrow(pool: Pool[Any], times: int) -> None:
    """Borrow a few times, as quickly as it goes, and use the last one, so that the server sees who is not idle."""
    global failed
    for left in reversed(range(times)):
        before = time.monotonic()
        try:
            with pool.connection(timeout=30) as conn:
                look_at(conn.fileno(), before)
                if not left:
                    conn.execute("select 1")
        except millpond.PoolError:
            failed += 1
        except psycopg.OperationalError:
            pass  # the process was stopped after the look


def threads(url: str, way: str) -> None:
    """Borrow in a loop, in three threads, over the stop; or a few times, right after it."""
    # The loops take all connections in turn, or else the server would end one that has been idle before the stop, too.
    with Pool(Psycopg(url, autocommit=True), max_size=SIZE, max_opening=SIZE, order="fifo") as pool:
        conns = [pool.acquire() for _ in range(SIZE)]
        for conn in conns:
            pool.release(conn)
        over = threading.Event()

        def loop() -> None:
            while not over.is_set():
                borrow(pool, 10)

        loops = [threading.Thread(target=loop) for _ in range(3 if way == "looping" else 0)]
        for thread in loops:
            thread.start()
        held = pool.acquire() if way == "holding" else None
        print("ready", flush=True)
        sys.stdin.readline()
        if held is not None:
            pool.release(held)
        if not loops:
            borrow(pool, 30)
        over.set()
        for thread in loops:
            thread.join()


async def tasks(url: str) -> None:
    """Borrow a few times, right after the stop."""
    connector = Asyncpg(url)
    async with AsyncPool[Any](connector, max_size=SIZE, max_opening=SIZE) as pool:
        conns = [await pool.acquire() for _ in range(SIZE)]
        for conn in conns:
            pool.release(conn)
        print("ready", flush=True)
        # Blocks the loop, so that it borrows before it looks at its sockets.
        sys.stdin.readline()
        for _ in range(30):
            before = time.monotonic()
            async with pool.connection(timeout=30) as conn:
                look_at(connector.descriptor(conn), before)


if __name__ == "__main__":
    if sys.argv[2] == "tasks":
        asyncio.run(tasks(sys.argv[1]))
    else:
        threads(sys.argv[1], sys.argv[2])
    print(json.dumps({"lent": lent, "dead": dead, "failed": failed}), flush=True)
