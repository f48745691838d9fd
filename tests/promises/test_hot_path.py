"""The hot path stays as quick as it was when `hot_path.json` was written, beside an empty `with` in the same run.

`python -m tests.promises.test_hot_path [WHO ...]` prints what this Python's entry would be now.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.peers import objects
from benchmarks.race import Contestant, race

from millpond import AsyncPool, Pool
from millpond.testing import AsyncFakeConnector, FakeConnector

from .patience import measured

FILE = Path(__file__).with_name("hot_path.json")
SLOWER = 1.15
CONTESTS = {
    "threads": (objects.EMPTY, objects.OURS),
    "tasks": (objects.EMPTY_OF_TASKS, objects.OURS_OF_TASKS),
}


def ratio(contest: tuple[Contestant, Contestant]) -> float:
    """Return how many times as long as an empty `with` a loan takes.

    It is the median over many pairs of laps, one right after the other and each far shorter than the system's turns:
    what else a machine does, and how quick it happens to be, concerns both or spoils few.
    """
    floor, ours = race(contest, rounds=600, lap=0.0003).times
    return ours.over(floor)


def ratio_elsewhere(who: str) -> float:
    """Return the same from a program of its own, which no test has traced, patched or filled with garbage before."""
    command = [sys.executable, "-m", __name__, who]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
    told = subprocess.run(command, env=env, stdout=subprocess.PIPE, timeout=60, check=True).stdout
    figures: dict[str, float] = json.loads(told)
    return figures[who]


@pytest.mark.parametrize("who", CONTESTS)
def test_a_loan_takes_no_longer_beside_an_empty_with_than_it_did(who: str) -> None:
    committed: dict[str, dict[str, float]] = json.loads(FILE.read_text())
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version not in committed:
        pytest.skip(f"{FILE.name} has no figures for Python {version}")
    was = committed[version][who]
    now = measured(lambda: ratio_elsewhere(who), lambda now: now <= SLOWER * was, attempts=8)
    assert now <= SLOWER * was, (
        f"a loan takes {now:.2f} times as long as an empty with, and took {was:.2f}: make it as quick again, "
        f"or commit the new figure ({FILE.name}) and say why"
    )


@pytest.mark.anyio
async def test_a_pool_has_no_more_attributes_than_python_finds_quickly() -> None:
    """CPython shares the names of up to 30 attributes among instances; with one more, each look-up is a dict's.

    A 31st once made a loan take 3.1 times as long as an empty `with` instead of 2.7.
    """
    with Pool(FakeConnector()) as pool:
        assert len(vars(pool)) <= 30
    async with AsyncPool(AsyncFakeConnector()) as pool_of_tasks:
        assert len(vars(pool_of_tasks)) <= 30


if __name__ == "__main__":
    asked = sys.argv[1:] or CONTESTS
    sys.stdout.write(json.dumps({who: round(ratio(CONTESTS[who]), 2) for who in asked}) + "\n")
