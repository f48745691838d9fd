"""The page that shows the pools of the demo while it runs: `make demo WATCH=1`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import millpond

__all__ = ["served"]


@contextmanager
def served() -> Iterator[str]:
    """Serve it as `millpond web` does, and let it look at this process; give its address."""
    end = millpond.expose()
    # A process of its own, as anybody's would be; it ends with this one's.
    command = [sys.executable, "-m", "millpond", "web"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as page:
        try:
            assert page.stdout is not None
            yield page.stdout.readline().strip()
        finally:
            page.terminate()
            end()
