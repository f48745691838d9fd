"""What is done to the server while callers use it."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Final

import psycopg

from demo.workload import Fault, Run
from millpond.testing import Postgres, ServerError

__all__ = ["NOTICE", "kill_all", "kill_idle", "start_again", "stop"]

NOTICE: Final = 0.010
"""Seconds within which millpond should know that a connection has died."""
NAPS: Final = 10
LULL: Final = 0.15
"""Seconds in which every caller finishes what it was doing."""
PATIENCE: Final = 10.0
"""Seconds after which a process that should have ended is not waited for any more."""
BACKENDS: Final = "from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"


def kill_all(postgres: Postgres) -> Fault:
    """End every connection from the server's side, all at once."""
    with psycopg.connect(postgres.admin_url, autocommit=True) as admin:
        at = monotonic()
        rows = admin.execute(f"select pid, pg_terminate_backend(pid) {BACKENDS}").fetchall()
        gone = frozenset(pid for pid, _ in rows)
        return Fault("kill", at, at, gone, _time_to_know(gone))


def kill_idle(postgres: Postgres, run: Run) -> Fault:
    """Do the same while all callers rest, and let them go on as soon as the pool should know what has died."""
    at = monotonic()
    run.resting = True
    try:
        time.sleep(LULL)
        fault = kill_all(postgres)
        return fault._replace(kind="kill at rest", at=at, back=monotonic())
    finally:
        run.resting = False


def stop(postgres: Postgres) -> Fault:
    """Stop the server, which ends its connections, and return when it is down."""
    with psycopg.connect(postgres.admin_url, autocommit=True) as admin:
        gone = frozenset(pid for (pid,) in admin.execute(f"select pid {BACKENDS}"))
    at = monotonic()
    with ThreadPoolExecutor(1) as executor:
        stopped = executor.submit(postgres.stop)
        known = _time_to_know(gone)  # not when the server is down at last, which is later
        stopped.result()
    return Fault("restart", at, float("inf"), gone, known)


def start_again(postgres: Postgres, fault: Fault) -> Fault:
    """Start the server that `fault` has stopped; return the fault, completed, when it takes connections."""
    postgres.start()
    return fault._replace(back=monotonic())


def _time_to_know(pids: frozenset[int]) -> float:
    """Wait until the server's processes are gone, and then as long as a pool may take to know; return when that was."""
    deadline = monotonic() + PATIENCE
    left = set(pids)
    while left := {pid for pid in left if _exists(pid)}:
        if monotonic() > deadline:
            raise ServerError(f"{len(left)} of the server's processes did not end within {PATIENCE} s")
        time.sleep(0.001)
    # In short naps: while the machine does not let this process run, no nap ends, and no pool can learn of anything.
    for _ in range(NAPS):
        time.sleep(NOTICE / NAPS)
    return monotonic()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        pass
    return True
