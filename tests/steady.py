"""Runs the tests again and again while something else keeps every core busy, and lists each that failed once.

python -m tests.steady N [-- OPTION OF PYTEST...]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

LIMIT = 1800
"""Seconds that a run may take."""


@contextmanager
def busy() -> Iterator[None]:
    """Have as many processes compute as there are cores."""
    others = [multiprocessing.Process(target=compute, daemon=True) for _ in range(os.cpu_count() or 1)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()


def compute() -> None:
    while True:
        sum(range(100_000))


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command; if it takes too long, end it with all that it has started."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            said, wrong = process.communicate(timeout=LIMIT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, said, wrong)


def failures(report: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each test that failed, and why."""
    for case in ElementTree.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            for found in case.iter(kind):
                # What a child says that it has forked is there only.
                said = "".join(output.text or "" for output in case.iter("system-err"))
                why = found.text or found.get("message") or kind
                yield f"{case.get('classname')}::{case.get('name')}", f"{why}\n{said}"


def main(argv: list[str]) -> int:
    """Run, and tell; return 1 if a test failed once."""
    parser = argparse.ArgumentParser(prog="python -m tests.steady", description=__doc__)
    parser.add_argument("times", type=int, metavar="N")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="for pytest, after --")
    arguments = parser.parse_args(argv)
    failed: Counter[str] = Counter()
    with busy(), tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        for number in range(1, arguments.times + 1):
            began = time.monotonic()
            command = [sys.executable, "-m", "pytest", "--quiet", f"--junit-xml={report}"]
            command += ["--override-ini=junit_logging=system-err", *arguments.options]
            report.unlink(missing_ok=True)
            try:
                ran = run(command)
            except subprocess.TimeoutExpired:
                print(f"run {number}: not over after {LIMIT} s", flush=True)
                failed["the run itself"] += 1
                continue
            last = ran.stdout.strip().rpartition("\n")[2]
            print(f"run {number}: {time.monotonic() - began:.0f} s, {last}", flush=True)
            found = dict(failures(report)) if report.exists() else {}
            if ran.returncode and not found:
                found["the run itself"] = ran.stdout[-4000:] + ran.stderr[-4000:]
            for name, text in found.items():
                failed[name] += 1
                print(f"== {name}\n{text}\n", flush=True)
    for name, times in failed.most_common():
        print(f"{name}: {times} of {arguments.times}")
    print(f"\n{arguments.times} runs beside {os.cpu_count()} busy processes: {len(failed)} tests failed once or more")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
