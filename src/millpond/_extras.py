"""What the extras of millpond bring is imported in a `with extra(...)`, which says what is missing or too old."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version

__all__ = ["extra"]


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Let the block import what an extra brings.

    Raises `ImportError`, with what to install, if one of its packages is older than what millpond is tested with, or
    if a module is not there. What a package itself raises when it is imported goes through.
    """
    for package, lowest in _requirements(name):
        installed = _installed(package)
        if installed is not None and _numbers(installed) < _numbers(lowest):
            raise ImportError(
                f'millpond needs {package} {lowest} or later; {installed} is installed: pip install "millpond[{name}]"',
                name=package,
            )
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise ImportError(f'{missing} is not installed: pip install "millpond[{name}]"', name=error.name) from error


@cache
def _requirements(extra: str) -> list[tuple[str, str]]:
    """Return the packages of an extra, each with its lowest version."""
    try:
        lines = requires("millpond") or []
    except PackageNotFoundError:
        return []  # it runs from its sources, and nobody has said
    found = (re.fullmatch(rf"([\w.-]+)(?:\[.*\])?>=([\d.]+) ?; extra == ['\"]{extra}['\"]", line) for line in lines)
    return [(match[1], match[2]) for match in found if match]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
