"""What holds for all tests. The fixtures `postgres`, `valkey` and `proxy` come from `millpond.testing.plugin`."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The same examples on every run of CI; new ones on every run at a desk. No deadlines: the machine may be busy.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("desk", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

# Python leaves Ctrl-C ignored where its parent did, as a shell does for what it runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 2.0
    while True:
        left = [
            thread
            for thread in set(threading.enumerate()) - before
            if thread.name.startswith("millpond-") and thread.name != "millpond-watcher"
        ]
        if not left or time.monotonic() > deadline:
            break
        gc.collect()  # a pool that was dropped may be part of a cycle
        with contextlib.suppress(RuntimeError):  # one that has not begun yet
            left[0].join(0.05)
    assert not left
