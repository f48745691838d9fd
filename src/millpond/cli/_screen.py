"""The screen of `millpond top`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar, Final, NamedTuple

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static

from millpond import _looking
from millpond._looking import Answer, Process

__all__ = ["Top"]

EVERY: Final = 1.0
"""Seconds between two looks."""

COLUMNS: Final = (
    "process",
    "pool",
    "size/max",
    "lent",
    "idle",
    "waiting",
    "wait p50",
    "wait p99",
    "opens",
    "errors",
    "outage",
    "oldest loan",
)

LEASE_COLUMNS: Final = ("connection", "owner", "age", "borrowed at", "now at", "loans")


class Line(NamedTuple):
    """A pool of a process; of one that does not answer, None."""

    process: Process
    answer: Answer
    pool: dict[str, Any] | None

    @property
    def key(self) -> str:
        """What tells it from others."""
        return f"{self.process.path} {self.pool['id'] if self.pool else ''}"

    @property
    def title(self) -> str:
        """The process, as it is called here."""
        program = str(self.answer.get("process", {}).get("argv0", "")).rpartition("/")[2]
        return f"{self.process.pid} {program}".strip()

    @property
    def cells(self) -> list[Text]:
        """What the table says of it."""
        if self.pool is None:
            return [_text(self.title), _text(str(self.answer.get("error", "no pools"))), *[_text("")] * 10]
        stats, waits, outage, leases = (self.pool[name] for name in ("stats", "waits", "outage", "leases"))
        state = "paused" if stats["paused"] else "closed" if stats["closed"] else ""
        return [
            _text(self.title),
            _text(f"{stats['name']} ({state})" if state else stats["name"]),
            _number(f"{stats['size']}/{stats['max_size']}"),
            _number(stats["lent"]),
            _number(stats["idle"]),
            _number(stats["waiting"]),
            _number(_seconds(waits["p50"])),
            _number(_seconds(waits["p99"])),
            _number(stats["opens"]),
            _number(stats["open_failures"] + stats["timeouts"] + stats["refusals"]),
            _text(f"{outage['error']}, {_seconds(outage['seconds'])}" if outage else ""),
            _number(_seconds(leases[0]["age"]) if leases else ""),
        ]


def _lines(said: Iterable[tuple[Process, Answer]]) -> dict[str, Line]:
    """Return a line for each pool, and one for each process without pools or without an answer."""
    lines = [Line(process, answer, pool) for process, answer in said for pool in answer.get("pools") or [None]]
    return {line.key: line for line in lines}


class Top(App[None]):
    """A table of all pools, looked at anew every second; Enter opens the page of one."""

    TITLE = "millpond top"
    CSS = "DataTable { height: 1fr; } Static { height: auto; padding: 0 1; }"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        ("r", "do('refresh')", "Refresh"),
        ("p", "do('pause')", "Pause/resume"),
        ("q", "quit", "Quit"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, Line] = {}
        """What the table shows."""
        self._stirred = asyncio.Event()
        """Set when something was done, and the next look is due."""

    def compose(self) -> ComposeResult:
        """Make the parts of the screen."""
        yield Static(id="head")
        yield DataTable[Text](cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        table = self.table
        for column in COLUMNS:
            table.add_column(column, key=column)
        self.run_worker(self._watch())

    @property
    def table(self) -> DataTable[Text]:
        """The table of the pools."""
        table: DataTable[Text] = self.screen_stack[0].query_one(DataTable)
        return table

    async def _watch(self) -> None:
        while True:
            try:
                # In a thread: whoever does not answer must not hold up the keyboard.
                lines, error = _lines(await asyncio.to_thread(_looking.look)), ""
            except PermissionError as refused:
                lines, error = {}, str(refused)
            self._show(lines, error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stirred.wait(), EVERY)
            self._stirred.clear()

    def _show(self, lines: dict[str, Line], error: str) -> None:
        table = self.table
        for key in self.lines.keys() - lines.keys():
            table.remove_row(key)
        for key, line in lines.items():
            if key not in self.lines:
                table.add_row(*line.cells, key=key)
                continue
            before = self.lines[key].cells
            for column, cell, former in zip(COLUMNS, line.cells, before, strict=True):
                if cell != former:
                    table.update_cell(key, column, cell, update_width=True)
        self.lines = lines
        pools = sum(line.pool is not None for line in lines.values())
        processes = len({line.process for line in lines.values()})
        head = error or f"{pools} pools of {processes} processes, {time.strftime('%H:%M:%S')}; Enter shows loans"
        if not lines and not error:
            head = "nothing to see until a program calls millpond.expose(), or runs with MILLPOND_EXPOSE=1"
        self.screen_stack[0].query_one("#head", Static).update(_text(head))
        if isinstance(self.screen, Loans):
            self.screen.show(lines.get(self.screen.key))
        self.refresh_bindings()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open the page of a pool, as Enter asks for it."""
        line = self.lines.get(str(event.row_key.value))
        if event.data_table is self.table and line is not None and line.pool is not None:
            self.push_screen(Loans(line))

    def on_data_table_row_highlighted(self) -> None:
        """Offer what can be done to the pool that is chosen now."""
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what changes a pool only where that is allowed."""
        if action != "do":
            return True
        line = self._chosen()
        return line is not None and line.pool is not None and bool(line.answer["process"]["control"])

    def action_do(self, what: str) -> None:
        """Do something to the pool that is chosen."""
        line = self._chosen()
        if line is not None and line.pool is not None:
            paused = what == "pause" and line.pool["stats"]["paused"]
            self.run_worker(self._do(line, line.pool, "resume" if paused else what))

    async def _do(self, line: Line, pool: dict[str, Any], what: str) -> None:
        answer = await asyncio.to_thread(_looking.ask, line.process, {"do": what, "pool": pool["id"]})
        error = answer.get("error")
        words = _text(f"{pool['stats']['name']}: {error or what + ' done'}").plain
        self.notify(words, severity="error" if error else "information", markup=False)
        self._stirred.set()

    def _chosen(self) -> Line | None:
        if isinstance(self.screen, Loans):
            return self.lines.get(self.screen.key)
        table = self.table
        if not table.row_count:
            return None
        return self.lines.get(str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value))


class Loans(Screen[None]):
    """The page of one pool: who has what on loan."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "app.pop_screen", "Back")]

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line = line
        self.key = line.key

    def compose(self) -> ComposeResult:
        """Make the parts of the page."""
        yield Static(id="pool")
        yield DataTable[Text](cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Show what is known already."""
        self.query_one(DataTable).add_columns(*LEASE_COLUMNS)
        self.show(self.line)

    def show(self, line: Line | None) -> None:
        """Show the pool as it is now; None says that it is gone."""
        head = self.query_one("#pool", Static)
        table: DataTable[Text] = self.query_one(DataTable)
        row = table.cursor_row
        table.clear()
        if line is None or line.pool is None:
            head.update(_text(f"{self.line.title}: gone, or it does not answer"))
            return
        pool, stats = line.pool, line.pool["stats"]
        timeout, budget = pool["settings"]["timeout"], pool["budget"]
        words = [
            f"{line.title}: pool {stats['name']!r} of {pool['kind']} to {pool['target']}",
            f"{stats['lent']} lent, {stats['idle']} idle, {stats['min_size']} to {stats['max_size']}; "
            f"{stats['waiting']} wait, up to {'any time' if timeout is None else _seconds(timeout)}; "
            f"{stats['timeouts']} timed out, {stats['refusals']} refused, {stats['open_failures']} opens failed",
        ]
        if budget:
            words.append(
                f"budget {budget['name'] or ''}: {budget['used']} of {budget['limit']}, {budget['share']} here"
            )
        if stats["lent"] > len(pool["leases"]):
            words.append(f"the {len(pool['leases'])} oldest of {stats['lent']} loans:")
        head.update(_text("\n".join(words)))
        for lease in pool["leases"]:
            table.add_row(
                _number(lease["connection"]),
                _text(lease["owner"]),
                _number(_seconds(lease["age"])),
                _text(lease["borrowed_at"] or ""),
                _text(lease["now_at"] or ""),
                _number(lease["uses"]),
            )
        table.move_cursor(row=row)


def _text(words: str) -> Text:
    # Names are other programs': no markup, and nothing that a terminal would obey.
    return Text("".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in words))


def _number(value: object) -> Text:
    text = _text(str(value))
    text.justify = "right"
    return text


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
