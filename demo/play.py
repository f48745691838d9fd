"""The course of the demo: what is run, what is done to the server and when, and what it says to that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import psycopg

from demo.blows import kill_all, kill_idle, start_again, stop
from demo.picture import draw
from demo.screen import Screen, milliseconds
from demo.verdict import Verdict, hit, recovery
from demo.workload import CALLERS, CONNECTIONS, SCHEMA, Blow, Run, in_tasks, in_threads
from millpond.testing import Postgres

__all__ = ["play"]

SECONDS: Final = 9.5
"""How long a run takes."""
KILL, KILL_IDLE, STOP, START = 2.0, 4.0, 6.0, 6.8
"""When what happens in a run, in seconds."""
WHILE: Final = 1.0
"""Seconds after a blow in which all who were hit have noticed."""


def play(path: Path) -> int:
    """Run it all and draw the picture; return the exit status."""
    runs = [
        Run("threads without a pool", False, in_threads),
        Run("threads with millpond", True, in_threads),
        Run("asyncio without a pool", False, in_tasks),
        Run("asyncio with millpond", True, in_tasks),
    ]
    with Screen(runs, SECONDS) as screen:
        screen.head("Starting a PostgreSQL of our own, from a wheel, on 127.0.0.1")
        with Postgres(max_connections=100) as postgres:
            screen.say(f"it takes connections on port {postgres.port}; {CALLERS} callers will insert and select")
            with psycopg.connect(postgres.url, autocommit=True) as conn:
                conn.execute(SCHEMA)
            for run in runs:
                _perform(run, postgres, screen)
    verdicts = [Verdict.of(run) for run in runs]
    screen.conclude(verdicts)
    draw(runs, path)
    broken = [verdict.title for verdict in verdicts if verdict.broken]
    if broken:
        screen.head(f"BROKEN PROMISE: {' and '.join(broken)} lent a dead connection, or hit one caller twice running.")
    else:
        screen.head("Promise kept: no caller was lent a connection known to be dead, and none was hit twice running.")
    screen.tell(f"Drawn in {path}. Read next: README.md, which setting does what and how the pool behaves when things break.")
    return 1 if broken else 0


def _perform(run: Run, postgres: Postgres, screen: Screen) -> None:
    """Let the callers work, and do to the server what is due in the meantime."""
    if run.pooled:
        screen.head(f"{run.title}: {CALLERS} callers share {CONNECTIONS} connections; ride_out=True: wait while it is down")
    else:
        screen.head(f"{run.title}: {CALLERS} callers, each connects for each transaction")
    with _at_work(run, postgres.url) as crew:

        def wait(until: float) -> None:
            while monotonic() < run.began + until:
                if crew.done():
                    crew.result()
                screen.refresh()
                sleep(0.1)

        def tell(blow: Blow) -> None:
            run.blows.append(blow)
            wait(monotonic() - run.began + WHILE)
            again = milliseconds(recovery(run, blow))
            errors = hit(run, blow)
            screen.say(f"{len(blow.gone)} connections died, {errors} callers had an error; served again after {again} ms")

        wait(KILL)
        screen.say("KILL every backend in the midst of work: who is in a transaction now gets an error", "red")
        tell(kill_all(postgres))
        wait(KILL_IDLE)
        screen.say("KILL again while all callers rest: what died idle must not be lent when they come back", "red")
        tell(kill_idle(postgres, run))
        wait(STOP)
        screen.say("STOP the server: " + ("callers wait in line" if run.pooled else "callers get errors and try again"), "red")
        blow = stop(postgres)
        wait(START)
        screen.say("START it again", "red")
        tell(start_again(postgres, blow))
        wait(SECONDS)


@contextmanager
def _at_work(run: Run, url: str) -> Iterator[Future[None]]:
    """Have the callers of a run at work, beside this thread, which alone hears Ctrl-C."""
    enough = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        run.began = monotonic()
        crew = executor.submit(run.work, run, url, enough)
        try:
            yield crew
        finally:
            run.ended = monotonic()
            enough.set()
    crew.result()
