"""The page's pictures: SVG in colours that can be read on white and on black."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from benchmarks.page.section import Bar, Bars, Line, Lines

__all__ = ["draw"]

INK: Final = "#7a828c"
COLORS: Final = {"ours": "#2f81f7", "peer": "#9a8c7c", "floor": "#b9c0c8"}
PEERS: Final = ("#c26a1d", "#8250df", "#1a7f5a", "#bf3989", "#9a8c2c", "#6e7781", "#a0453a", "#4f9a94", "#b58b56")
"""Of lines, which have to be told apart."""
SETTINGS: Final[Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    # Words stay words: the file is small, and its reader's own letters are used.
    "svg.fonttype": "none",
    # The same figures give the same file.
    "svg.hashsalt": "millpond",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


def draw(chart: Bars | Lines) -> bytes:
    """Return the picture of a chart."""
    with rc_context(SETTINGS):
        figure = _bars(chart) if isinstance(chart, Bars) else _lines(chart)
        picture = BytesIO()
        figure.savefig(picture, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    return picture.getvalue()


def _bars(chart: Bars) -> Figure:
    groups: dict[str, list[Bar]] = {}
    for bar in chart.bars:
        groups.setdefault(bar.group, []).append(bar)
    figure = Figure(figsize=(8, 0.26 * len(chart.bars) + 0.45 * len(groups) + 0.5))
    axes = figure.add_subplot()
    ticks, row = [], 0.0
    for name, bars in groups.items():
        axes.text(0, row - 0.75, name, transform=axes.get_yaxis_transform(), weight="bold", va="center")
        for bar in bars:
            axes.barh(row, bar.value, height=0.72, color=COLORS[bar.kind])
            axes.plot([bar.low, bar.high], [row, row], color=INK, lw=1.2)
            words = f"{bar.value:,.0f}" if bar.value >= 100 else f"{bar.value:.3g}"
            axes.annotate(words, (max(bar.high, bar.value), row), (5, 0), textcoords="offset points", va="center")
            ticks.append((row, bar.name.removeprefix("floor: ")))
            row += 1
        row += 1.5
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.set_ylim(row - 1.7, -1.4)
    axes.set_xlabel(f"{chart.unit}, less is better")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title(chart.title, loc="left", weight="bold")
    return figure


def _lines(chart: Lines) -> Figure:
    figure = Figure(figsize=(3.4 * len(chart.panels), 3.6), layout="constrained")
    names = list(dict.fromkeys(line.name for _, lines in chart.panels for line in lines if line.kind == "peer"))
    first: Axes | None = None
    for place, (title, lines) in enumerate(chart.panels):
        axes = figure.add_subplot(1, len(chart.panels), place + 1)
        first = first or axes
        _panel(axes, chart.places, lines, names)
        axes.set_title(title, loc="left")
        axes.set_xlabel(chart.along)
    assert first is not None
    first.set_ylabel(f"{chart.unit}, more is better")
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles.update(dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(chart.title, x=0.01, ha="left", weight="bold")
    return figure


def _panel(axes: Axes, places: Sequence[int], lines: Sequence[Line], names: Sequence[str]) -> None:
    ours = [line.name for line in lines if line.kind == "ours"]
    for line in lines:
        known = [(place, value) for place, value in zip(places, line.values, strict=True) if value == value]
        color = PEERS[names.index(line.name) % len(PEERS)] if line.kind == "peer" else COLORS[line.kind]
        axes.plot(
            [place for place, _ in known],
            [value for _, value in known],
            marker="o",
            color=color,
            lw=2.2 if line.kind == "ours" else 1.2,
            ms=4,
            # millpond itself is drawn through, and its other variants are dotted.
            ls="-" if line.kind == "peer" or line.name in ours[:1] else ":" if line.kind == "ours" else "--",
            label=line.name,
            zorder=3 if line.kind == "ours" else 2,
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
