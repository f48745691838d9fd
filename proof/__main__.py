"""Proves what can be proved by trying everything; exits with 1 if a promise is broken.

python -m proof [PART [ARGUMENT ...]]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from proof.atlas import command as atlas
from proof.core import command as core
from proof.soak import command as soak
from proof.suites import SUITES
from proof.threads import command as threads
from proof.verdict import Verdict

PARTS: Final[dict[str, Callable[[list[str]], Verdict]]] = {
    "core": core.main,
    "threads": threads.main,
    "atlas": atlas.main,
    **SUITES,
}
LONG: Final = {"soak": soak.main}
"""What runs only if it is asked for."""


def main(argv: list[str]) -> int:
    """Run one part, or all, and end with one table."""
    if argv and argv[0] not in {**PARTS, **LONG}:
        names = f"PART is one of {', '.join([*PARTS, *LONG])}; all but the last by default."
        print(__doc__, names, "PART --help tells its arguments.", sep="\n")
        return 2
    verdicts: dict[str, Verdict] = {}
    for part in argv[:1] or PARTS:
        print(f"== {part}", flush=True)
        verdicts[part] = {**PARTS, **LONG}[part](argv[1:])
    print(f"\n{'part':12} {'what was tried':110} {'seconds':>7}  verdict")
    for part, (tried, broken, seconds) in verdicts.items():
        print(f"{part:12} {tried:110} {seconds:7.0f}  {f'BROKEN in {len(broken)}' if broken else 'holds'}")
    for part, verdict in verdicts.items():
        print(*(f"{part}: {broken}" for broken in verdict.broken), sep="\n", end="\n" if verdict.broken else "")
    return int(any(verdict.broken for verdict in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
