"""What the demo shows while it runs: live on a terminal, line by line anywhere else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from demo.verdict import NOTICE, Verdict
from demo.workload import Run

__all__ = ["Screen", "milliseconds"]

BARS: Final = " ▁▂▃▄▅▆▇█"
SLICE: Final = 0.25
"""Seconds that one bar stands for."""
EVERY: Final = 2.0
"""Seconds between two lines of progress where nothing can be redrawn."""


class Screen(logging.Handler):
    """Tells what happens, shows how the runs go, and shows what millpond logs."""

    def __init__(self, runs: Sequence[Run], seconds: float) -> None:
        super().__init__(logging.WARNING)
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=120)
        self._runs = runs
        self._seconds = seconds
        self._began = self._told = monotonic()
        self._progress = Progress(BarColumn(40), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn())
        self._task = self._progress.add_task("", total=1.0)
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
        self._console.print(Text(f"\n{text}", style="bold"))

    def tell(self, text: str) -> None:
        """Say how it ended."""
        self._console.print(Text(text))

    def say(self, text: str, style: str = "") -> None:
        """Tell in a line what happens."""
        self._console.print(Text(f"{monotonic() - self._began:5.1f} s  {text}", style=style))

    def emit(self, record: logging.LogRecord) -> None:
        """Show what millpond logs."""
        text = Text(f"{'log':>7}  {record.getMessage()}", style="dim")
        self._console.print(text, no_wrap=True, overflow="ellipsis")

    def refresh(self) -> None:
        """Show how far it is."""
        now = monotonic()
        if self._live.is_started:
            done = sum(min(run.ended or now, run.began + self._seconds) - run.began for run in self._runs if run.began)
            self._progress.update(self._task, completed=done / self._seconds / len(self._runs))
            self._live.update(Group(Text(), self._progress, self._rows(now)), refresh=True)
        elif now - self._told >= EVERY:
            self._told = now
            for run in self._runs:
                if run.began and not run.ended:
                    rate = _rates(run, now)[-int(1 / SLICE) :]
                    self.say(f"... {sum(rate) / len(rate):,.0f} transactions/s" if rate else "...", "dim")

    def _rows(self, now: float) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("", "transactions/s", "so far", "errors"):
            table.add_column(heading, justify="left" if heading in ("", "transactions/s") else "right", no_wrap=True)
        rates = {run.title: _rates(run, now) for run in self._runs}
        most = max((rate for each in rates.values() for rate in each), default=1.0)
        for run in self._runs:
            attempts = run.attempts()
            errors = sum(1 for attempt in attempts if attempt.error)
            bars = "".join(BARS[_height(rate / most)] for rate in rates[run.title])
            under_way = run.began and not run.ended
            table.add_row(
                run.title,
                Text(bars.ljust(int(self._seconds / SLICE)), style="cyan" if run.pooled else "bright_black"),
                f"{len(attempts) - errors:,}" if run.began else "",
                Text(str(errors), style="red" if errors else "") if run.began else "",
                style="bold" if under_way else "",
            )
        return table

    def conclude(self, verdicts: Sequence[Verdict]) -> None:
        """Show the table of what was measured."""
        table = Table(title="\nThe same workload, the same server, the same blows", title_style="bold", title_justify="left")
        table.add_column("mode", no_wrap=True)
        columns = (
            "trans-\nactions/s", "p50\nms", "p99\nms", "connections\nopened", "errors", "most in a row\nfor one caller",
            "lent\ndead", "served again, ms after\na kill   the restart",
        )  # fmt: skip
        for heading in columns:
            table.add_column(heading, justify="right")
        for verdict in verdicts:
            pooled = verdict.lent_dead is not None
            table.add_row(
                verdict.title,
                f"{verdict.throughput:,.0f}",
                milliseconds(verdict.p50),
                milliseconds(verdict.p99),
                f"{verdict.opened:,}",
                f"{verdict.errors:,}",
                f"{verdict.in_a_row}",
                f"{verdict.lent_dead}" if pooled else "-",
                f"{milliseconds(verdict.after_kill)} {milliseconds(verdict.after_restart):>12}",
                style="bold red" if verdict.broken else "bold" if pooled else "",
            )
        self._console.print(table)
        self._console.print(
            Text(
                "transactions/s: over the whole run, outage included. p50, p99: from wanting a connection to the end of the "
                f"transaction. lent dead: a caller asked more than {NOTICE * 1000:.0f} ms after a connection had died, and "
                "was lent it.",
                style="dim",
            )
        )


def milliseconds(seconds: float | None) -> str:
    """Write a time with two digits that count."""
    if seconds is None:
        return "never"
    return f"{seconds * 1000:.1f}" if seconds < 0.00995 else f"{seconds * 1000:.0f}"


def _rates(run: Run, now: float) -> list[float]:
    """Return the transactions per second of every slice that is over."""
    if not run.began:
        return []
    slices = [0] * int(((run.ended or now) - run.began) / SLICE)
    for attempt in run.attempts():
        place = int((attempt.finished - run.began) / SLICE)
        if not attempt.error and place < len(slices):
            slices[place] += 1
    return [count / SLICE for count in slices]


def _height(part: float) -> int:
    return min(len(BARS) - 1, -int(-part * (len(BARS) - 1) // 1)) if part > 0 else 0
