"""Forks with connections idle and on loan; the child borrows and ends in one of several ways; the parent looks on.

    python forking.py KIND TARGET WAY

KIND is psycopg, asyncpg, sqlite or socket; TARGET a URL, a path or host:port. The parent prints, as JSON, who was
connected before and after, waits for a line, and is then done. WAY is what the child does after it has borrowed:
exit    sys.exit()
_exit   os._exit()
close   it closes every inherited connection
leave   it leaves the block that the parent is in, and releases what that has acquired
pool    it closes the pool
process it is one of multiprocessing's
use     it tries to use an inherited connection, in vain
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import sys
import warnings
from typing import Any

from millpond import AsyncPool, ConnectFailed, Pool

IDLE = 3


def ask(kind: str, conn: Any) -> int:
    """Do a round trip; return what identifies the connection to the other side."""
    if kind == "psycopg":
        [pid] = conn.execute("select pg_backend_pid()").fetchone()
        conn.rollback()
        return int(pid)
    if kind == "sqlite":
        conn.execute("insert into visits values (1)")
        conn.commit()
        return id(conn)
    conn.sendall(b"who\n")
    return int(conn.recv(100))


def make(kind: str, target: str) -> Pool[Any]:
    """Make the pool; only what it needs is imported, which takes longer than the rest."""
    url = {"psycopg": target, "sqlite": f"sqlite:///{target}"}.get(kind, f"tcp://{target}")
    return Pool.from_url(url, max_size=10)


def parent_of(kind: str, target: str, way: str) -> None:
    """Be the parent, and in the child the child."""
    pool = make(kind, target)
    if kind == "sqlite":
        with pool.connection() as conn:
            conn.execute("create table visits (number integer)")
    conns = [pool.acquire() for _ in range(IDLE + 2)]
    for conn in conns[:IDLE]:
        pool.release(conn)
    pool.release(conns[-1])
    with pool.connection() as lent:
        assert lent is conns[-1]
        acquired = conns[-2]
        before = sorted(ask(kind, conn) for conn in conns)

        def child() -> None:
            if kind == "sqlite":
                # It says so in the log as well, which would come out here.
                logging.disable(logging.WARNING)
                try:
                    pool.acquire()
                except ConnectFailed as error:
                    assert "fork" in str(error.__cause__)  # noqa: PT017 (pytest is not here)
                else:
                    raise AssertionError("the child was lent a connection to a file that its parent has open")
            else:
                with pool.connection() as own:
                    assert own not in conns
                    assert ask(kind, own) not in before
            if way == "close":
                for conn in conns:
                    with contextlib.suppress(Exception):
                        conn.close()
            elif way == "pool":
                pool.close()
            elif way == "use" and kind != "sqlite":
                try:
                    ask(kind, lent)
                except Exception:
                    return
                raise AssertionError("an inherited connection still works")

        if way == "process":
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join()
            status = process.exitcode
        else:
            pid = os.fork()
            if pid == 0:
                child()
                if way == "_exit":
                    os._exit(0)
                if way == "leave":
                    pool.release(acquired)
                    return
                sys.exit(0)
            status = os.waitpid(pid, 0)[1]
        pool.release(acquired)
        # SQLite's idle connections are closed before a fork.
        kept = conns[IDLE:] if kind == "sqlite" else conns
        after = sorted(ask(kind, conn) for conn in kept)
    # Those that were idle are still the pool's to lend.
    lent_again = [pool.acquire() for _ in conns]
    stats = pool.stats()
    told = {
        "before": before,
        "after": after,
        "child": status,
        "again": sorted(ask(kind, conn) for conn in lent_again),
        "opens": stats.opens,
    }
    print(json.dumps(told), flush=True)
    sys.stdin.readline()
    for conn in lent_again:
        pool.release(conn)
    pool.close()


async def tasks(target: str) -> None:
    """Be the parent in an event loop; the child runs a loop of its own."""
    from millpond.connectors.asyncpg import Asyncpg

    pool = AsyncPool[Any](Asyncpg(target), max_size=10)
    conns = [await pool.acquire() for _ in range(IDLE + 1)]
    for conn in conns[1:]:
        pool.release(conn)

    async def who(conn: Any) -> int:
        return int(await conn.fetchval("select pg_backend_pid()"))

    before = sorted([await who(conn) for conn in conns])
    pid = os.fork()
    if pid == 0:

        async def child() -> None:
            async with pool.connection() as own:
                assert await who(own) not in before
            await pool.close()

        asyncio.run(child())
        for conn in conns:
            conn.terminate()
        os._exit(0)
    status = (await asyncio.to_thread(os.waitpid, pid, 0))[1]
    after = sorted([await who(conn) for conn in conns])
    pool.release(conns[0])
    again = [await pool.acquire() for _ in conns]
    told = {
        "before": before,
        "after": after,
        "child": status,
        "again": sorted([await who(conn) for conn in again]),
        "opens": pool.stats().opens,
    }
    print(json.dumps(told), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for conn in again:
        pool.release(conn)
    await pool.close()


if __name__ == "__main__":
    # Python 3.12 and later warn of a fork in a process with threads: that is what is tried here.
    warnings.simplefilter("ignore", DeprecationWarning)
    if sys.argv[1] == "asyncpg":
        asyncio.run(tasks(sys.argv[2]))
    else:
        parent_of(*sys.argv[1:])
