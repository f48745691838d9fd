"""Short soaks; and that they see what they are there to see."""

from __future__ import annotations

import subprocess
import sys

import pytest

SOAK = """
import sys
from proof.soak import command, servers, site
{change}
verdict = {soak}({seconds}, 0)
sys.exit(bool(verdict.broken))
"""
LEAKS = "site.Site.close = lambda self, conn: None"
CROSSES = """
from contextlib import contextmanager

sound = servers.SUBJECTS[0]
words = ["another's"]

@contextmanager
def spoilt(at):
    with sound.open(at) as work:
        yield lambda seconds, word: words.pop() if words and not work(seconds, word) == "" else work(seconds, word)

servers.SUBJECTS = (sound._replace(open=spoilt), *servers.SUBJECTS[1:])
"""


def soak(kind: str, change: str = "", *, seconds: float = 2) -> subprocess.CompletedProcess[str]:
    """Run one in a process of its own: it throws exceptions about, and forks."""
    command = [sys.executable, "-c", SOAK.format(soak=kind, change=change, seconds=seconds)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_nothing_is_lost_in_a_short_soak() -> None:
    ran = soak("command.soak")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_soak_sees_a_connection_that_is_never_closed() -> None:
    ran = soak("command.soak", LEAKS)
    assert ran.returncode == 1
    assert "connections are open that no pool has" in ran.stdout


@pytest.mark.thorough
def test_a_short_soak_on_real_servers_sees_nothing_but_an_answer_to_anothers_question() -> None:
    ran = soak("servers.soak", CROSSES, seconds=3)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    (wrong,) = [line for line in ran.stdout.splitlines() if ": " in line]
    assert wrong.startswith("millpond, psycopg: an answer to another's question: "), ran.stdout
