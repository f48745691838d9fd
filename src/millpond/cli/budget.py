"""`millpond budget`: who has how many connections of a limit that processes share."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Tell of one budget; return 0, or 1 if it cannot be looked at or is exceeded."""
    parser = argparse.ArgumentParser(
        prog="millpond budget",
        description="Tells who has how many connections of a HostBudget or, with a URL, of a FleetBudget.",
    )
    parser.add_argument("name", metavar="NAME", help="what the budget is called")
    parser.add_argument("url", metavar="URL", nargs="?", help="of the Redis or Valkey that keeps a FleetBudget")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    try:
        members = _of_fleet(arguments.url, arguments.name) if arguments.url else _of_host(arguments.name)
    except (ValueError, ImportError, OSError, _Unreachable) as error:
        print(f"millpond budget: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    allowed = sum(member["allowed"] for member in members)
    # While a release is rolled out they may differ; the lowest is what will hold.
    limit = min((member["limit"] for member in members), default=0)
    over = max(0, allowed - limit)
    lacking = sum(member["lacking"] for member in members)
    if arguments.json:
        told = {"name": arguments.name, "limit": limit, "allowed": allowed, "lacking": lacking, "over": over}
        print(json.dumps({**told, "members": members}))
    elif not members:
        print(f"no process has the budget {arguments.name!r}")
    else:
        _print(members)
        print(f"{len(members)} processes have {allowed} of {limit} connections, and could use {lacking} more")
        if over:
            print(f"{over} too many: the limit was lowered, or a process was stopped for longer than its lease")
    return int(over > 0)


class _Unreachable(Exception):
    """The coordinator does not answer."""


def _of_fleet(url: str, name: str) -> list[dict[str, Any]]:
    from redis import RedisError

    from millpond.fleet_budget import members

    try:
        return [member._asdict() for member in members(url, name)]
    except RedisError as error:
        raise _Unreachable(f"the coordinator cannot be asked: {type(error).__name__}: {error}") from None


def _of_host(name: str) -> list[dict[str, Any]]:
    from millpond.host_budget import members

    return [
        {"pid": note.pid, "limit": note.limit, "allowed": note.held, "idle": note.idle, "lacking": note.wanted}
        for note in members(name)
    ]


def _print(members: list[dict[str, Any]]) -> None:
    titles = list(members[0])
    rows = [titles, *([_told(member[title]) for title in titles] for member in members)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _told(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
