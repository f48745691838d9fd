"""A process that stood still lends no connection that died meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from millpond import Pool, _maintenance
from millpond._core.core import Core
from millpond._core.entry import Entry
from millpond.testing import FakeConnection, FakeConnector, Postgres

from .patience import until

PROGRAM = Path(__file__).parent / "programs" / "standstill.py"
TIMEOUT = 2.0
WAYS = ["looping", "pausing", "holding", "tasks"]


@pytest.fixture(scope="module")
def impatient() -> Iterator[Postgres]:
    """A server that hangs up on connections that have been idle for a second."""
    with Postgres(idle_session_timeout=int(TIMEOUT * 1000)) as server:
        yield server


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def sessions(server: Postgres) -> int:
    [[count]] = server.execute("select count(*) from pg_stat_activity where usename = 'app'")
    return int(count)


@contextmanager
def programs(url: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Run one program for each way, all ready to be stopped."""
    with ExitStack() as running:
        started = []
        for way in WAYS:
            program = running.enter_context(
                subprocess.Popen(
                    [sys.executable, str(PROGRAM), url, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            running.callback(program.kill)
            started.append(program)
        for program in started:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        yield started


# Takes 4 s: the server's timeout, and what a process may take to notice that it stood still.
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to see the stop in")
def test_a_stopped_process_goes_on_without_a_dead_connection(impatient: Postgres) -> None:
    """All are stopped at the same time, each borrowing in its own way."""
    with programs(impatient.url) as stopped:
        for program in stopped:
            os.kill(program.pid, signal.SIGSTOP)
        until(lambda: all(is_stopped(program.pid) for program in stopped))
        time.sleep(3)
        until(lambda: sessions(impatient) == 0, pause=0.05)
        for way, program in zip(WAYS, stopped, strict=True):
            assert program.stdin is not None
            if way != "looping":
                # It is there when the process goes on, so that it borrows at its first instruction.
                program.stdin.write("\n")
                program.stdin.flush()
        for program in stopped:
            os.kill(program.pid, signal.SIGCONT)
        told = []
        for way, program in zip(WAYS, stopped, strict=True):
            if way == "looping":
                # It may end once it has been served again, which the server sees.
                until(lambda: sessions(impatient), pause=0.05)
            answer, _ = program.communicate("\n" if way == "looping" else None, timeout=90)
            told.append((way, json.loads(answer)))
    assert [(way, said) for way, said in told if said["dead"] or said["failed"]] == []
    assert all(said["lent"] >= 30 for _, said in told)


@pytest.mark.stumbles
def test_a_suspended_machine_is_noticed_though_maintenance_was_struck_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    struck: list[bool] = []
    doubt = Core._doubt

    def strike_once(self: Core[FakeConnection], entry: Entry[FakeConnection]) -> None:
        if self is pool._core:
            struck.append(True)
            if len(struck) == 1:
                raise ConnectionError("struck")
        doubt(self, entry)

    with Pool(FakeConnector(), max_size=1) as pool:
        with pool.connection():
            pass
        monkeypatch.setattr(Core, "_doubt", strike_once)
        monkeypatch.setattr(_maintenance.pulse, "_suspended_for", lambda: 1e6)
        until(lambda: pool.stats().checks == 1)
    assert len(struck) == 2
