"""The examples run, and before and after come to the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("library", ["urllib3", "requests", "httpx"])
def test_both_examples_print_the_same(library: str) -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-W", "error", EXAMPLES / f"{library}_{when}.py"],
            stdout=subprocess.PIPE,
            check=True,
            timeout=30,
        ).stdout
        for when in ("before", "after")
    }
    assert printed == {b"40 pages, from 'page /0' to 'page /39'\n"}
