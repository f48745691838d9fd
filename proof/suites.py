"""Parts of the proof that are tests: they try every place of what they are about, and belong to `make test`, too."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from proof.verdict import Verdict

__all__ = ["SUITES"]

LIMIT: Final = 1800.0
"""Seconds that a suite may take."""


def _suite(name: str, about: str, paths: tuple[str, ...]) -> Callable[[list[str]], Verdict]:
    def run(argv: list[str]) -> Verdict:
        parser = argparse.ArgumentParser(prog=f"python -m proof {name}", description=f"Runs tests: {about}.")
        parser.add_argument("options", nargs="*", metavar="OPTION", help="for pytest, after --")
        options = parser.parse_args(argv).options
        started = time.monotonic()
        command = [sys.executable, "-m", "pytest", "--quiet", "--thorough", *paths, *options]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=False)
        print(ran.stdout, end="", flush=True)
        passed = sum(map(int, re.findall(r"(\d+) passed", ran.stdout.strip().rpartition("\n")[2])))
        broken = re.findall("^(?:FAILED|ERROR) .*", ran.stdout, re.MULTILINE)
        if ran.returncode != 0 and not broken:
            broken.append(f"the test runner ended with {ran.returncode}")
        return Verdict(f"{passed} tests: {about}", broken, time.monotonic() - started)

    return run


SUITES: Final = {
    "exceptions": _suite(
        "exceptions",
        "an exception at every place, and in what puts it right",
        (
            "tests/promises/test_exceptions_at_every_place.py",
            "tests/promises/test_exceptions_at_any_point.py",
            "tests/promises/test_fork_hooks.py",
            "tests/redis/test_interruptions.py",
            "tests/urllib3/test_interruptions.py",
            "tests/httpx/test_interruptions.py",
        ),
    ),
    "cancellation": _suite(
        "cancellation",
        "a cancellation at every await, and in the cleanup; nothing blocks the loop",
        (
            "tests/promises/test_cancellation_at_any_await.py",
            "tests/promises/test_nothing_blocks_the_loop.py",
            "tests/httpx/test_cancellation.py",
        ),
    ),
    "budgets": _suite(
        "budgets",
        "processes that are killed, stopped and cut off stay within a limit that they share",
        ("tests/budgets",),
    ),
    "sight": _suite(
        "sight",
        "soaks and the atlas see what they are there to see",
        ("tests/proof/test_soak.py", "tests/proof/test_atlas.py"),
    ),
    "security": _suite(
        "security",
        "no secret is told, no stranger trusted, any text is a URL or refused",
        ("tests/promises/test_secrets.py", "tests/security"),
    ),
}
