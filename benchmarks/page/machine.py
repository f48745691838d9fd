"""On what and with what it was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["PEERS", "machine", "versions"]

PEERS = (
    "psycopg", "psycopg-pool", "psycopg2-binary", "asyncpg", "sqlalchemy", "redis", "hiredis", "urllib3", "requests",
    "httpx2", "httpcore2", "aiohttp", "dbutils", "connpool", "generic-connection-pool",
)  # fmt: skip


def machine() -> str:
    """Return one line about the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores, {platform.system()} {platform.release()}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> Iterator[tuple[str, str]]:
    """Yield what was compared, and in which version."""
    yield platform.python_implementation(), platform.python_version()
    for name in ("millpond", *PEERS):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"
