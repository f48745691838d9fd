"""The picture of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from demo.screen import milliseconds
from demo.verdict import Throughput, Verdict, recovery
from demo.workload import CALLERS, CONNECTIONS, Fault, Run

__all__ = ["draw"]

SLICE: Final = 0.1
"""Seconds that one point of the throughput stands for."""
LEFT: Final = 0.065
"""Where the picture begins, as a part of its width."""
POOLED: Final = "#1f6fb4"
UNPOOLED: Final = "#c26a1d"
INK: Final = "#333333"
PALE: Final = "#777777"
GRID: Final = "#e8e8e8"
DOWN: Final = "#f6dcd8"
RESTING: Final = "#ececec"
FAULT: Final = "#b3261e"
HEADING: Final[dict[str, Any]] = {"size": 13, "weight": "bold"}


def draw(verdicts: Sequence[Verdict]) -> bytes:
    """Draw the throughput of the runs over time, and what a transaction took and how many connections were opened."""
    with rc_context(
        {
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.edgecolor": PALE,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
        }
    ):
        figure = Figure(figsize=(13, 9), dpi=110)
        figure.text(
            LEFT,
            0.95,
            "The same work without a pool and with millpond, while the server fails",
            **HEADING | {"size": 17},
        )
        subtitle = (
            f"{CALLERS} callers, short PostgreSQL transactions: without a pool each connects for each of them, "
            f"with millpond they share {CONNECTIONS} connections"
        )
        figure.text(LEFT, 0.92, subtitle, size=10.5, color=PALE)
        above = figure.add_gridspec(1, 2, wspace=0.07, left=LEFT, right=0.975, top=0.765, bottom=0.44)
        left = figure.add_subplot(above[0])
        right = figure.add_subplot(above[1], sharex=left, sharey=left)
        for axes, model in ((left, "threads"), (right, "asyncio")):
            _throughput(axes, model, [verdict.run for verdict in verdicts if verdict.run.model == model])
        left.set_ylabel("transactions per second")
        right.tick_params(labelleft=False)
        figure.legend(
            *left.get_legend_handles_labels(), loc="upper right", bbox_to_anchor=(0.98, 0.9), ncols=2, frameon=False
        )
        below = figure.add_gridspec(
            1, 2, wspace=0.09, width_ratios=(5, 2), left=0.188, right=0.975, top=0.295, bottom=0.075
        )
        latency = figure.add_subplot(below[0])
        opened = figure.add_subplot(below[1], sharey=latency)
        _latency(latency, verdicts)
        _opened(opened, verdicts)
        figure.text(LEFT, 0.325, "Time of a transaction, the wait for a connection included", **HEADING)
        figure.text(opened.get_position().x0, 0.325, "Connections opened", **HEADING)
        picture = BytesIO()
        figure.savefig(picture, format="png")
    return picture.getvalue()


def _throughput(axes: Axes, model: str, runs: Sequence[Run]) -> None:
    for run in runs:
        rates = Throughput(run, SLICE).update().rates(run.ended)
        times = [(place + 0.5) * SLICE for place in range(len(rates))]
        label = "with millpond" if run.pooled else "without a pool"
        axes.plot(times, rates, color=_color(run), lw=2, label=label)
        if run.pooled:
            axes.fill_between(times, rates, color=_color(run), alpha=0.1, lw=0)
            for fault in run.faults:
                _mark(axes, run, fault)
    axes.set_title(model, loc="left", pad=52, fontdict=HEADING)
    axes.set_xlabel("seconds")
    axes.set_xlim(0, max(run.ended - run.began for run in runs))
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=GRID)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _mark(axes: Axes, run: Run, fault: Fault) -> None:
    """Mark a fault where it struck millpond's run; without a pool it came at the same second."""
    at, back = fault.at - run.began, fault.back - run.began
    what = {"kill": "every backend\nkilled", "kill at rest": "killed while\nall rest", "restart": "server\nstopped"}
    if back > at:
        axes.axvspan(at, back, color=DOWN if fault.kind == "restart" else RESTING, lw=0)
    else:
        axes.axvline(at, color=FAULT, lw=1.2, ls=(0, (3, 2)))
    words = partial(axes.text, (at + back) / 2, transform=axes.get_xaxis_transform(), ha="center", va="bottom", size=9)
    words(y=1.075, s=what[fault.kind], color=FAULT)
    took = recovery(run, fault)
    words(y=1.02, s="never back" if took is None else f"back in {milliseconds(took)} ms", color=POOLED)


def _latency(axes: Axes, verdicts: Sequence[Verdict]) -> None:
    for row, verdict in enumerate(verdicts):
        ends = [verdict.p50 * 1000, verdict.p99 * 1000]
        axes.plot(ends, [row, row], "o-", color=_color(verdict.run), lw=4, ms=8, solid_capstyle="round")
        for name, end, offset, side in zip(("p50", "p99"), ends, (-10, 10), ("right", "left"), strict=True):
            axes.annotate(
                f"{name}  {milliseconds(end / 1000)} ms",
                (end, row),
                (offset, 0),
                textcoords="offset points",
                ha=side,
                va="center",
            )
    axes.set_yticks(range(len(verdicts)), [verdict.run.title for verdict in verdicts])
    axes.set_ylim(len(verdicts) - 0.5, -0.5)
    axes.set_xlabel("milliseconds, on a logarithmic scale")
    axes.set_xscale("log")
    # Room for the words beside the dots.
    axes.set_xlim(min(verdict.p50 for verdict in verdicts) * 350, max(verdict.p99 for verdict in verdicts) * 2200)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _rows(axes)


def _opened(axes: Axes, verdicts: Sequence[Verdict]) -> None:
    for row, verdict in enumerate(verdicts):
        opened = verdict.run.opened
        axes.barh(row, opened, height=0.4, color=_color(verdict.run))
        axes.annotate(f"{opened:,}", (opened, row), (6, 0), textcoords="offset points", va="center")
    axes.tick_params(axis="y", labelleft=False)
    axes.set_xlim(0, max(verdict.run.opened for verdict in verdicts) * 1.2)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _rows(axes)


def _rows(axes: Axes) -> None:
    axes.grid(axis="x", color=GRID)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _color(run: Run) -> str:
    return POOLED if run.pooled else UNPOOLED
