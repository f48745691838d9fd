"""The hot path stays as short as it was when `hot_path.json` was written: in instructions, which no machine changes.

What that comes to in time, `make measure ARGS=hot-path` tells. `python -m tests.promises.test_hot_path` prints what
this Python's entry would be now.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from millpond import AsyncPool, Pool
from millpond.testing import AsyncFakeConnector, FakeConnector

from .instructions import instructions

FILE = Path(__file__).with_name("hot_path.json")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def of_threads() -> int:
    with Pool(FakeConnector(), max_size=1) as pool:

        def loan() -> None:
            with pool.connection():
                pass

        loan()
        return instructions(loan)


def of_tasks() -> int:
    async def main() -> int:
        async with AsyncPool(AsyncFakeConnector(), max_size=1) as pool:

            async def borrow() -> None:
                async with pool.connection():
                    pass

            def loan() -> None:
                with suppress(StopIteration):  # it has nothing to wait for, and ends at once
                    borrowing.send(None)

            await borrow()
            borrowing = borrow()
            return instructions(loan)

    return asyncio.run(main())


WAYS = {"threads": of_threads, "tasks": of_tasks}


@pytest.mark.parametrize("way", WAYS)
def test_a_loan_takes_as_many_instructions_as_it_did(way: str) -> None:
    committed: dict[str, dict[str, int]] = json.loads(FILE.read_text())
    if VERSION not in committed:
        pytest.skip(f"{FILE.name} has no figures for Python {VERSION}")
    was = committed[VERSION][way]
    now = WAYS[way]()
    assert now == was, f"{now} instead of {was}: make it as short again, or commit the new figure ({FILE.name})"


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
    sys.stdout.write(json.dumps({VERSION: {way: count() for way, count in WAYS.items()}}) + "\n")
