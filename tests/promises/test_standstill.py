"""A process that stood still lends no connection that died meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from millpond.testing import Postgres

from .patience import until

PROGRAM = Path(__file__).parent / "programs" / "standstill.py"
TIMEOUT = 1.0
WAYS = ["looping", "looping", "pausing", "pausing", "holding", "holding", "tasks", "tasks"]


@pytest.fixture(scope="module")
def impatient() -> Iterator[Postgres]:
    """A server that hangs up on connections that have been idle for a second."""
    with Postgres(idle_session_timeout=int(TIMEOUT * 1000)) as server:
        yield server


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


# Takes 6 s: the server's timeout, and 5 s more.
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to see the stop in")
def test_a_stopped_process_goes_on_without_a_dead_connection(impatient: Postgres) -> None:
    """All are stopped for the same 6 s, each borrowing in its own way."""
    with ExitStack() as running:
        programs = [
            running.enter_context(
                subprocess.Popen(
                    [sys.executable, str(PROGRAM), impatient.url, way],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for way in WAYS
        ]
        for program in programs:
            running.callback(program.kill)
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        for program in programs:
            os.kill(program.pid, signal.SIGSTOP)
        for program in programs:
            until(lambda program=program: is_stopped(program.pid))  # type: ignore[misc]
        time.sleep(TIMEOUT + 5)
        assert impatient.execute("select count(*) from pg_stat_activity where usename = 'app'") == [["0"]]
        for way, program in zip(WAYS, programs, strict=True):
            assert program.stdin is not None
            if way != "looping":
                # It is there when the process goes on, so that it borrows at its first instruction.
                program.stdin.write("\n")
                program.stdin.flush()
        for program in programs:
            os.kill(program.pid, signal.SIGCONT)
        told = []
        for way, program in zip(WAYS, programs, strict=True):
            if way == "looping":
                # Once they are served again, the server has seen them.
                until(lambda: impatient.execute("select count(*) from pg_stat_activity where usename = 'app'") != [["0"]])
            answer, _ = program.communicate("\n" if way == "looping" else None, timeout=20)
            told.append((way, json.loads(answer)))
    assert [(way, said) for way, said in told if said["dead"] or said["failed"]] == []
    assert all(said["lent"] >= 30 for _, said in told)
