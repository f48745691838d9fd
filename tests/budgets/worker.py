"""A process whose callers borrow and return in bursts until its input ends.

COORDINATOR LIMIT URL INDEX [CALLERS [REST]]; the coordinator is a URL, or "host".
"""

from __future__ import annotations

import os
import random
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from millpond import Budget, HostBudget, Pool

if TYPE_CHECKING:
    import psycopg


def echo(conn: socket.socket, index: int) -> None:
    conn.sendall(bytes([index]))
    assert conn.recv(1) == bytes([index])


def execute(conn: psycopg.Connection[Any], index: int) -> None:
    conn.execute("insert into served values (%s)", [index])
    conn.commit()


LEASE = float(os.environ.get("MILLPOND_TEST_LEASE", "5"))
"""Seconds; longer than a process of a busy machine may have to wait for its turn."""


def main(coordinator: str, limit: str, url: str, index: str, callers: str = "2", rest: str = "0.1") -> None:
    budget: Budget
    if coordinator == "host":
        budget = HostBudget("shared", int(limit))
    else:
        # Here, since it takes longer to import than the rest.
        from millpond import FleetBudget

        budget = FleetBudget(coordinator, "shared", int(limit), lease=LEASE)
    pool = Pool[Any].from_url(url, max_size=4, budget=budget, timeout=30)
    work = execute if url.startswith("postgresql") else echo
    chance = random.Random(index)

    def call() -> None:
        while True:
            for _ in range(chance.randint(1, 20)):
                with pool.connection() as conn:
                    work(conn, int(index))
                    time.sleep(0.004)
            time.sleep(chance.random() * float(rest))

    for _ in range(int(callers)):
        threading.Thread(target=call, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
