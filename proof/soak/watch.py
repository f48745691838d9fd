"""What a process takes of the machine."""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

__all__ = ["Taken", "look"]

PAGE = os.sysconf("SC_PAGE_SIZE")


class Taken(NamedTuple):
    """What it takes now."""

    descriptors: int
    threads: int
    memory: float
    """Resident, in MB."""


def look() -> Taken:
    """Look what this process takes."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return Taken(len(os.listdir("/proc/self/fd")), threading.active_count(), pages * PAGE / 1e6)
