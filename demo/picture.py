"""The picture of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from demo.screen import milliseconds
from demo.verdict import latency, percentile, recovery
from demo.workload import CALLERS, CONNECTIONS, Run

__all__ = ["draw"]

SLICE: Final = 0.1
"""Seconds that one point of the throughput stands for."""
POOL: Final = "#1f6fb4"
NONE: Final = "#c26a1d"
INK: Final = "#333333"
PALE: Final = "#888888"
DOWN: Final = "#f3d9d6"
KILL: Final = "#b3261e"


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw the runs: throughput over time for threads and for tasks, and below how long a transaction took."""
    look = {
        "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": PALE,
    }  # fmt: skip
    with plt.rc_context(look):
        figure = plt.figure(figsize=(13, 8.6), dpi=110)
        above = figure.add_gridspec(1, 2, wspace=0.08, left=0.075, right=0.97, top=0.79, bottom=0.43)
        below = figure.add_gridspec(1, 1, left=0.19, right=0.94, top=0.29, bottom=0.08)
        figure.text(0.02, 0.95, "One workload, with and without millpond, while the server is broken", size=17, weight="bold")
        figure.text(
            0.02, 0.915, f"{CALLERS} callers, short PostgreSQL transactions (insert, select); millpond: {CONNECTIONS} "
            "connections; without a pool: a new connection for each transaction", size=10.5, color=PALE,
        )  # fmt: skip
        left = figure.add_subplot(above[0])
        right = figure.add_subplot(above[1], sharey=left)
        for axes, name in ((left, "threads"), (right, "asyncio")):
            _throughput(axes, name, [run for run in runs if run.title.startswith(name)])
        left.set_ylabel("transactions per second")
        right.tick_params(labelleft=False)
        _latencies(figure.add_subplot(below[0]), runs)
        picture = BytesIO()
        figure.savefig(picture, format="png")
        plt.close(figure)
    # Written at one go, so that no half of a picture is ever left.
    path.write_bytes(picture.getvalue())


def _throughput(axes: Any, name: str, runs: Sequence[Run]) -> None:
    for run in runs:
        length = run.ended - run.began
        slices = [0] * int(length / SLICE)
        for attempt in run.attempts():
            place = int((attempt.finished - run.began) / SLICE)
            if not attempt.error and place < len(slices):
                slices[place] += 1
        times = [(place + 0.5) * SLICE for place in range(len(slices))]
        color = POOL if run.pooled else NONE
        label = "with millpond" if run.pooled else "without a pool"
        axes.plot(times, [count / SLICE for count in slices], color=color, lw=2.2 if run.pooled else 1.8, label=label)
    axes.set_title(name, loc="left", size=13, weight="bold", pad=40)
    axes.set_xlabel("seconds of the run")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    top = axes.get_xaxis_transform()
    for run in runs:
        if not run.pooled:
            continue
        for blow in run.blows:
            at, back = blow.at - run.began, blow.back - run.began
            again = recovery(run, blow)
            if blow.kind == "restart":
                axes.axvspan(at, back, color=DOWN, lw=0)
                text, center = f"server down;\nserved {milliseconds(again)} ms after", (at + back) / 2
            else:
                axes.axvline(at, color=KILL, lw=1.2, ls=(0, (3, 2)))
                who = "killed while\nall rest" if blow.kind == "kill at rest" else "every backend\nkilled"
                text, center = who, at
            axes.text(center, 1.015, text, transform=top, ha="center", va="bottom", size=9, color=KILL, linespacing=1.15)
    axes.legend(loc="lower right", bbox_to_anchor=(1.01, 1.115), ncols=2, frameon=False)


def _latencies(axes: Any, runs: Sequence[Run]) -> None:
    axes.text(
        -0.2, 1.1, "How long a transaction took, the wait for a connection included", transform=axes.transAxes, size=13,
        weight="bold",
    )  # fmt: skip
    for row, run in enumerate(runs):
        ordered = sorted(latency(attempt) for attempt in run.attempts() if not attempt.error)
        color = POOL if run.pooled else NONE
        ends = []
        for percent, offset, side in ((50, -10, "right"), (99, 10, "left")):
            value = percentile(ordered, percent)
            ends.append(value * 1000)
            label = f"p{percent}  {milliseconds(value)} ms"
            axes.annotate(label, (value * 1000, row), (offset, 0), textcoords="offset points", ha=side, va="center")
        axes.plot(ends, [row, row], "o-", color=color, lw=4, ms=8, solid_capstyle="round")
    axes.set_yticks(range(len(runs)), [run.title for run in runs])
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("milliseconds (logarithmic)")
    axes.margins(x=0.14)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
