"""A process with pools, for others to look at: program.py NAME [control]. It ends when its input does."""

from __future__ import annotations

import sys

import millpond
from millpond.testing import FakeConnector

name, *rest = sys.argv[1:]
if "told" not in rest:
    millpond.expose(control="control" in rest)
with millpond.Pool(FakeConnector(), name=name, max_size=2) as pool, pool.connection():
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
