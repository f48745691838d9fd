"""What holds for all tests. The fixtures `postgres`, `valkey` and `proxy` come from `millpond.testing.plugin`."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# The same examples on every run of CI; new ones on every run at a desk. No deadlines: the machine may be busy.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("desk", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

# Python leaves Ctrl-C ignored where its parent did, as a shell does for what it runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
