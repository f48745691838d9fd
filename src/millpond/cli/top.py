"""`millpond top`: the pools of all processes of this user on this machine, as they are now."""

from __future__ import annotations

import argparse
import json
import sys

from millpond import _looking

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Show the pools until the user has seen enough, or print them once; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="millpond top",
        description="Watch the pools of all processes of this user on this machine that call millpond.expose(), "
        "or run with MILLPOND_EXPOSE=1.",
    )
    parser.add_argument("--json", action="store_true", help="print what they say, once, and end")
    arguments = parser.parse_args(argv)
    try:
        if arguments.json:
            said = [{"process": {"pid": process.pid}, "pools": [], **answer} for process, answer in _looking.look()]
            print(json.dumps(said, indent=2))
            return 0
        _looking.look()
    except PermissionError as error:
        print(f"millpond top: {error}", file=sys.stderr)
        return 1
    try:
        from millpond.cli._screen import Top
    except ImportError as missing:
        if (missing.name or "").partition(".")[0] != "textual":
            raise
        print('millpond top needs textual, which is not installed: pip install "millpond[top]"', file=sys.stderr)
        return 1
    Top().run()
    return 0
