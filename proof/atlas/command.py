"""Strikes real servers and networks under pools of millpond and their peers, and tells what their callers see.

python -m proof atlas [--page FILE] [ROW ...]
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Final

from proof.atlas.places import Place, servers
from proof.atlas.rows import ROWS, Row
from proof.atlas.subjects import CHECK, EXPIRY, PATIENCE, SIZE, WAIT
from proof.atlas.trial import AGAIN, Cell, strike
from proof.verdict import Verdict

__all__ = ["main"]

STRIKES: Final = 3
"""How often a fault strikes if a goal is missed."""
TITLE: Final = f"""# The fault atlas

What callers see when servers and networks fail. Real servers, each pool behind a proxy of its own, {SIZE}
connections, {SIZE} callers, a call every 50 ms. A caller waits {WAIT:.0f} s for a connection and, where the library
takes a limit for it, {PATIENCE:.0f} s for an answer (psycopg takes none); connecting may take {PATIENCE:.0f} s.

The checks that each library has are on: millpond's `check_after={CHECK}`, psycopg_pool's `check`, SQLAlchemy's
`pool_pre_ping`, redis-py's `health_check_interval={CHECK}`; HTTP connections expire after {EXPIRY:.0f} s where that can
be set. Retries by redis-py and urllib3 are off: they would hide what a pool lends. All pools of a row are struck at the
same time, in one process.

"Served again": seconds from the end of the fault, or of the call that the caller was in by then, until each caller was
served and none failed any more; the goal is {AGAIN:.0f} s (after refusals: as long as they lasted, and {AGAIN:.0f} s).
"Failed after": calls that began when all was well again; the goal is 0 if the connections were idle and the pool
itself checks them (redis-py's check is a part of the command). "Tries": connections that the server was asked for
while it lasted. The goals are millpond's; its peers are told of as they are.

Written by `make atlas`; it is part of `make proof`.
"""


def main(argv: list[str]) -> Verdict:
    """Run rows of the atlas, print them, and write the page if asked to."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m proof atlas", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(map(repr, names))}; all by default")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables to this file, too")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.rows) - set(names):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(map(repr, names))}")
    # They tell of what is tried here, each in its own way.
    logging.getLogger().addHandler(logging.NullHandler())
    began = time.monotonic()
    rows = [row for row in ROWS if row.name in (arguments.rows or names)]
    cells = 0
    short: list[str] = []
    page = [TITLE]
    with servers() as places:
        for row in rows:
            table = strike(row, places)
            page.append(_render(row, table))
            print(page[-1], flush=True)
            cells += sum(cell.subject.ours for cell in table)
            short += _confirmed(row, places, table)
    if arguments.page:
        arguments.page.write_text("\n".join(page))
    return Verdict(f"{len(rows)} faults, {cells} ways to meet them, real servers", short, time.monotonic() - began)


def _confirmed(row: Row, places: dict[str, Place], table: list[Cell]) -> list[str]:
    """Return what misses its goals in most of three strikes: a goal is a time, and a machine may stand still.

    For a place that is lost, and an answer to another's question, once is enough.
    """
    misses = Counter[str]()
    for number in range(1, STRIKES + 1):
        missed = [cell for cell in table if cell.subject.ours and cell.short]
        for cell in missed:
            misses[cell.subject.name] += STRIKES if cell.lost or cell.crossed else 1
            print(f"missed, strike {number}: {row.name}: {cell.subject.name}: {', '.join(cell.short)}", flush=True)
        if number == STRIKES or not misses or min(misses.values()) >= STRIKES:
            break
        table = strike(row, places)
    return [f"{row.name}: {name}, missed goals" for name, count in misses.items() if count > STRIKES // 2]


def _render(row: Row, table: list[Cell]) -> str:
    lines = [f"## {row.name[0].upper()}{row.name[1:]}", "", row.about, ""]
    lines.append("| pool | callers saw meanwhile | longest call | failed after | served again | places lost | tries |")
    lines.append("|---|---|---|---|---|---|---|")
    for cell in table:
        saw = ", ".join(f"{count} x {name}" for name, count in cell.saw.most_common()) or "nothing"
        again = "never" if cell.again is None else f"{cell.again:.2f} s"
        name = f"**{cell.subject.name}**" if cell.subject.ours else cell.subject.name
        told = f"{saw}<br>{cell.example[:110]}".replace("|", "/") if cell.example else saw
        late = f"{cell.late}"
        lines.append(f"| {name} | {told} | {cell.longest:.2f} s | {late} | {again} | {cell.lost} | {cell.tries} |")
    return "\n".join([*lines, ""])
