"""What the demo shows while it runs: live on a terminal, line by line anywhere else."""

from __future__ import annotations

import logging
import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from types import TracebackType
from typing import Final, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from demo.faults import NOTICE
from demo.verdict import Throughput, Verdict
from demo.workload import Run

__all__ = ["Screen", "milliseconds"]

WIDTH: Final = 80
"""Columns of what is written anywhere but on a terminal."""
BARS: Final = " ▁▂▃▄▅▆▇█"
SLICE: Final = 0.25
"""Seconds that one bar stands for."""
EVERY: Final = 2.0
"""Seconds between two lines of progress where nothing can be redrawn."""


class Screen(logging.Handler):
    """Tells what happens, shows how the runs go, and shows what millpond logs."""

    def __init__(self, runs: Sequence[Run], seconds: float) -> None:
        super().__init__(logging.WARNING)
        terminal = sys.stdout.isatty()  # and not what rich makes of FORCE_COLOR and the like
        self._console = Console(highlight=False, force_terminal=terminal, width=None if terminal else WIDTH)
        self._runs = {run: Throughput(run, SLICE) for run in runs}
        self._seconds = seconds
        self._began = self._told = monotonic()
        self._logged: deque[str] = deque()
        self._progress = Progress(BarColumn(40), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn())
        self._task = self._progress.add_task("", total=seconds * len(runs))
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stderr=False)

    def __enter__(self) -> Self:
        logging.getLogger("millpond").addHandler(self)
        if self._console.is_interactive:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        logging.getLogger("millpond").removeHandler(self)

    def head(self, text: str) -> None:
        """Begin a part."""
        self._told = monotonic()
        self._console.print(Text(f"\n{text}", style="bold"))

    def tell(self, text: str, style: str = "") -> None:
        """Say how it ended."""
        self._console.print(Text(text, style=style))

    def say(self, text: str, style: str = "") -> None:
        """Tell in a line what happens."""
        self._console.print(Text(f"{monotonic() - self._began:5.1f} s  {text}", style=style))

    def emit(self, record: logging.LogRecord) -> None:
        """Take what millpond logs; it is shown later, since the pool's own threads have better things to do."""
        self._logged.append(record.getMessage())

    def refresh(self) -> None:
        """Show how far it is."""
        while self._logged:
            line = Text(f"{'log':>7}  {self._logged.popleft()}", style="dim")
            self._console.print(line, no_wrap=True, overflow="ellipsis")
        now = monotonic()
        if now - self._told < (SLICE if self._live.is_started else EVERY):
            return
        self._told = now
        if self._live.is_started:
            done = sum(min((run.ended or now) - run.began, self._seconds) for run in self._runs if run.began)
            self._progress.update(self._task, completed=done)
            self._live.update(Group(Text(), self._progress, self._rows(now)), refresh=True)
            return
        for run, throughput in self._runs.items():
            if run.began and not run.ended:
                last = throughput.update().rates(now)[-int(EVERY / SLICE) :]
                self.say(f"... {sum(last) / max(1, len(last)):,.0f} transactions/s", "dim")

    def _rows(self, now: float) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        table.add_column("transactions/s", no_wrap=True)
        table.add_column("done", justify="right", min_width=6)
        table.add_column("errors", justify="right")
        begun = {
            run: throughput.update().rates(run.ended or now) for run, throughput in self._runs.items() if run.began
        }
        most = max((rate for rates in begun.values() for rate in rates), default=0.0) or 1.0
        for run, throughput in self._runs.items():
            if run in begun:
                bars = "".join(_bar(rate / most) for rate in begun[run])
                table.add_row(
                    run.title,
                    Text(bars.ljust(int(self._seconds / SLICE)), style="cyan" if run.pooled else "bright_black"),
                    f"{throughput.done:,}",
                    Text(f"{throughput.errors:,}", style="red" if throughput.errors else ""),
                    style="" if run.ended else "bold",
                )
            else:
                table.add_row(run.title, " " * int(self._seconds / SLICE), style="dim")
        return table

    def conclude(self, verdicts: Sequence[Verdict]) -> None:
        """Show the table of what was measured, and say whether the promise was kept."""
        table = Table(title="\nThe same workload, the same server, the same faults", box=SIMPLE_HEAD)
        table.title_style, table.title_justify = "bold", "left"
        table.add_column("", no_wrap=True)
        for verdict in verdicts:
            way = "millpond" if verdict.run.pooled else "no pool"
            table.add_column(f"{verdict.run.model}\n{way}", justify="right", style="bold" if verdict.run.pooled else "")
        rows: dict[str, Callable[[Verdict], str]] = {
            "transactions per second": lambda verdict: f"{verdict.throughput:,.0f}",
            "latency p50, ms": lambda verdict: milliseconds(verdict.p50),
            "latency p99, ms": lambda verdict: milliseconds(verdict.p99),
            "connections opened": lambda verdict: f"{verdict.run.opened:,}",
            "errors that callers met": lambda verdict: f"{verdict.errors:,}",
            "most in a row for one caller": lambda verdict: f"{verdict.in_a_row:,}",
            "dead connections lent": lambda verdict: "-" if verdict.lent_dead is None else f"{verdict.lent_dead:,}",
            "recovery from the kill, ms": lambda verdict: milliseconds(verdict.recoveries["kill"]),
            "from the kill at rest, ms": lambda verdict: milliseconds(verdict.recoveries["kill at rest"]),
            "from the restart, ms": lambda verdict: milliseconds(verdict.recoveries["restart"]),
        }
        for name, figure in rows.items():
            table.add_row(name, *(figure(verdict) for verdict in verdicts))
        self._console.print(table)
        self.tell(
            "Throughput is over the whole run, outage included. Latency is from wanting a connection to the commit, of "
            f"what succeeded. Lent dead is what had been dead for {NOTICE * 1000:.0f} ms when the caller asked. "
            "Recovery is from the kill, the end of the rest, or the restarted server's readiness to the first commit; "
            "after an outage millpond tries one connection at a time, with pauses that grow.",
            "dim",
        )
        breaches = [breach for verdict in verdicts for breach in verdict.breaches]
        if breaches:
            self.head("PROMISE BROKEN")
            for breach in breaches:
                self.tell(breach, "red")
        else:
            self.head("Promise kept: no dead connection was lent, and nobody met two errors running.")


def milliseconds(seconds: float | None) -> str:
    """Write a time with two digits that count; None means that it never came."""
    if seconds is None:
        return "never"
    return f"{seconds * 1000:.1f}" if seconds < 0.00995 else f"{seconds * 1000:,.0f}"


def _bar(part: float) -> str:
    """Return a bar of that part of the full height; only nothing at all is no bar."""
    return BARS[math.ceil(part * (len(BARS) - 1))]
