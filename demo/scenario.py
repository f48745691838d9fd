"""The course of the demo: what is run, what is done to the server and when, and what is shown of it."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import psycopg

from demo.faults import kill_all, kill_idle, start_again, stop
from demo.interruption import Interruption
from demo.screen import Screen, milliseconds
from demo.verdict import Verdict, errors_since, recovery
from demo.watching import served
from demo.workload import CALLERS, CONNECTIONS, SCHEMA, Fault, Run, work
from millpond.testing import Postgres

__all__ = ["present"]

SECONDS: Final = 9.5
"""How long a run takes."""
KILL, KILL_IDLE, STOP, START = 2.0, 4.0, 6.0, 6.8
"""When what happens in a run, in seconds."""
AFTERMATH: Final = 1.2
"""Seconds after a fault when it is told what came of it."""
GLANCE: Final = 0.1
"""Seconds between two looks at how far it is."""


def present(picture: Path, interruption: Interruption, *, watch: bool) -> int:
    """Run it all, show what came of it and draw it; return the exit status. To `watch`, a page is served meanwhile."""
    interruption.heed()
    runs = [Run("threads", False), Run("threads", True), Run("asyncio", False), Run("asyncio", True)]
    with Screen(runs, SECONDS) as screen, served() if watch else nullcontext() as address:
        if address:
            screen.head(f"To watch the pools live: {address}")
        screen.head("Starting a PostgreSQL of our own, from a wheel, on 127.0.0.1")
        # Logging each connection would slow down those who make many.
        with Postgres(log_connections=False, log_disconnections=False) as postgres:
            interruption.heed()
            with psycopg.connect(postgres.url, autocommit=True) as conn:
                conn.execute(SCHEMA)
            screen.say(f"It takes connections on port {postgres.port}.")
            for run in runs:
                _Director(run, postgres, screen, interruption).direct()
    verdicts = [Verdict.of(run) for run in runs]
    screen.conclude(verdicts)
    interruption.heed()

    with tempfile.TemporaryDirectory(prefix="millpond-") as scratch:
        os.environ["MPLCONFIGDIR"] = scratch  # matplotlib, once imported, writes down which fonts there are
        from demo.picture import draw

        png = draw(verdicts)
    interruption.heed()
    broken = any(verdict.breaches for verdict in verdicts)
    try:
        _write(png, picture)
    except OSError as error:
        print(f"The picture cannot be written to {picture.absolute()}: {error.strerror}", file=sys.stderr)
        return 1 if broken else 2
    screen.tell(f"Drawn in {picture}. README.md tells which setting does what.")
    if not watch:
        screen.tell("To watch the pools live, on a page, while this runs: make demo WATCH=1")
    return 1 if broken else 0


class _Director:
    """Lets the callers of a run work, and does to the server what is due in the meantime."""

    def __init__(self, run: Run, postgres: Postgres, screen: Screen, interruption: Interruption) -> None:
        self._run = run
        self._postgres = postgres
        self._screen = screen
        self._interruption = interruption
        self._working: Future[None] = Future()

    def direct(self) -> None:
        """Run it from its beginning to its end."""
        run, screen = self._run, self._screen
        how = f"share {CONNECTIONS} connections" if run.pooled else "each connect for each transaction"
        screen.head(f"{run.title}: {CALLERS} callers {how}")
        with self._at_work():
            self._wait(KILL)
            screen.say("KILL every backend in the midst of work", "red")
            self._tell(kill_all(self._postgres))

            self._wait(KILL_IDLE)
            screen.say("KILL every backend while all callers rest: none may be lent a dead one", "red")
            self._tell(kill_idle(self._postgres, run))

            self._wait(STOP)
            waiting = "ride_out=True: callers wait in line" if run.pooled else "callers try again and again"
            screen.say(f"STOP the server ({waiting})", "red")
            stopped = stop(self._postgres)
            self._wait(START)
            screen.say("START it again", "red")
            self._tell(start_again(self._postgres, stopped))

            self._wait(SECONDS)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        enough = threading.Event()
        with ThreadPoolExecutor(1) as executor:
            self._run.began = monotonic()
            self._working = executor.submit(work, self._run, self._postgres.url, enough)
            try:
                yield
            finally:
                self._run.ended = monotonic()
                enough.set()
        self._working.result()

    def _wait(self, until: float) -> None:
        """Show how it goes until that second of the run."""
        while (left := self._run.began + until - monotonic()) > 0:
            sleep(min(left, GLANCE))
            if self._working.done():
                self._working.result()
            self._interruption.heed()
            self._screen.refresh()

    def _tell(self, fault: Fault) -> None:
        run = self._run
        run.faults.append(fault)
        self._wait(monotonic() - run.began + AFTERMATH)
        took = recovery(run, fault)
        again = "nobody served yet" if took is None else f"served again after {milliseconds(took)} ms"
        self._screen.say(
            f"connections lost: {len(fault.gone)}, errors for callers: {errors_since(run, fault)}; {again}"
        )


def _write(png: bytes, path: Path) -> None:
    """Write the picture, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(png)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
