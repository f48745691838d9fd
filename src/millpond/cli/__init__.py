"""The `millpond` command: looks at pools, servers and budgets from a terminal."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

__all__ = ["main"]

COMMANDS: Final = {
    "budget": "tell who has how many connections of a limit that processes share",
    "check": "open a connection to a URL, and tell what it costs and which settings fit its server",
    "top": "watch the pools of all processes of this user on this machine",
    "web": "serve a page to this machine that shows them",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names; return the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name not in COMMANDS:
        asked = name in ("-h", "--help")
        width = max(map(len, COMMANDS))
        lines = ["usage: millpond COMMAND [ARGUMENT ...]", ""]
        lines += [f"  millpond {command:{width}}  {does}" for command, does in COMMANDS.items()]
        lines += ["", "millpond COMMAND --help tells a command's arguments."]
        print(*lines, sep="\n", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    code: int = import_module(f"millpond.cli.{name}").main(rest)
    return code
