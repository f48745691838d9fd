"""What is done to the server while callers use it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from os import kill
from time import monotonic
from typing import Final

import psycopg

from demo.verdict import NOTICE
from demo.workload import Blow, Run
from millpond.testing import Postgres, ServerError

__all__ = ["kill_all", "kill_idle", "start_again", "stop"]

BACKENDS: Final = "from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
LULL: Final = 0.15
"""Seconds in which every caller has finished what it was doing."""
PATIENCE: Final = 10.0
"""Seconds after which a process that should have ended is not waited for any more."""


def kill_all(postgres: Postgres) -> Blow:
    """End every connection from the server's side, at one blow; return when the last of them is gone."""
    with psycopg.connect(postgres.admin_url, autocommit=True) as admin:
        at = monotonic()
        killed = admin.execute(f"select pid, pg_terminate_backend(pid) {BACKENDS}").fetchall()
        return Blow("kill", at, at, at, _end_of({pid for pid, _ in killed}))


def kill_idle(postgres: Postgres, run: Run) -> Blow:
    """Do the same while all callers rest, and let them go on as soon as the pool should know what has died."""
    run.resting = True
    try:
        time.sleep(LULL)
        blow = kill_all(postgres)
        time.sleep(NOTICE)
    finally:
        run.resting = False
    now = monotonic()
    return blow._replace(kind="kill at rest", down=now, back=now)


def stop(postgres: Postgres) -> Blow:
    """Stop the server, and return when it is down."""
    with psycopg.connect(postgres.admin_url, autocommit=True) as admin:
        serving = {pid for (pid,) in admin.execute(f"select pid {BACKENDS}")}
    at = monotonic()
    with ThreadPoolExecutor(1) as executor:
        stopped = executor.submit(postgres.stop)
        gone = _end_of(serving)
        stopped.result()
    return Blow("restart", at, monotonic(), float("inf"), gone)


def start_again(postgres: Postgres, blow: Blow) -> Blow:
    """Start the server that `blow` has stopped, and return the whole blow when it takes connections."""
    postgres.start()
    return blow._replace(back=monotonic())


def _end_of(pids: set[int]) -> dict[int, float]:
    """Wait until the processes are gone; return when each was seen to be."""
    gone: dict[int, float] = {}
    deadline = monotonic() + PATIENCE
    while left := pids - gone.keys():
        for pid in left:
            if not _exists(pid):
                gone[pid] = monotonic()
        if monotonic() > deadline:
            raise ServerError(f"{len(left)} of the server's processes did not end within {PATIENCE} s")
        time.sleep(0.001)
    return gone


def _exists(pid: int) -> bool:
    try:
        kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        pass
    return True
