"""`millpond top` shows the pools of all processes of this user."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from rich.text import Text
from textual.pilot import Pilot
from textual.widgets import DataTable

from millpond.cli import main
from millpond.cli._screen import Loans, Top

from ..exposed.processes import MILLPOND, Start, looked, wait_for


def top(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", MILLPOND, "top", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    said: list[dict[str, Any]] = json.loads(done.stdout)
    return said


def test_without_processes_there_is_an_empty_list() -> None:
    ours = [process for process in top("--json") if process["pools"]]
    assert not ours


def test_a_snapshot_has_all_processes_and_their_pools(start: Start) -> None:
    processes = {name: start(name) for name in ("orders", "reports")}
    said = {process["process"]["pid"]: process for process in top("--json")}
    for name, process in processes.items():
        (pool,) = said[process.pid]["pools"]
        assert pool["stats"]["name"] == name
        assert pool["stats"]["lent"] == 1
        assert pool["leases"][0]["borrowed_at"].startswith("program.py:")


def test_many_processes_are_asked_at_once(start: Start) -> None:
    processes = [start(f"pool-{number}", wait=False) for number in range(12)]
    for process in processes:
        wait_for(process)
    there = looked()
    assert {process.pid for process in processes} <= set(there)
    assert all(there[process.pid]["pools"] for process in processes)


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["nonsense"], 2), (["--help"], 0), (["-h"], 0)])
def test_the_command_lists_what_it_can_do(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    said = capsys.readouterr()
    text = said.out if code == 0 else said.err
    assert "millpond top" in text


def test_without_textual_one_line_says_which_extra_to_install() -> None:
    code = "import sys; sys.modules['textual'] = None; from millpond.cli import main; sys.exit(main(['top']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert 'pip install "millpond[top]"' in done.stderr


async def until_shown(pilot: Pilot[None], shown: Callable[[], object]) -> None:
    end = time.monotonic() + 90
    while not shown():
        assert time.monotonic() < end
        await pilot.pause(0.01)


def row_of(app: Top, name: str) -> str | None:
    """Return the key of a pool's row, if the table has it."""
    keys = [key for key, line in app.lines.items() if line.pool is not None and line.pool["stats"]["name"] == name]
    return keys[0] if keys and keys[0] in {str(key.value) for key in app.table.rows} else None


def cells(table: DataTable[Text]) -> list[list[str]]:
    return [[cell.plain for cell in table.get_row_at(row)] for row in range(table.row_count)]


def on_screen(test: Callable[[Top, Pilot[None]], Coroutine[Any, Any, None]]) -> None:
    """Run a test on a screen that is not there, with a real table and real keys."""

    async def main() -> None:
        app = Top()
        async with app.run_test(size=(160, 40)) as pilot:
            await test(app, pilot)

    asyncio.run(main())


def test_the_screen_shows_a_pool_s_figures_and_a_killed_process_vanishes(start: Start) -> None:
    process = start("orders")
    other = start("reports")

    async def test(app: Top, pilot: Pilot[None]) -> None:
        await until_shown(pilot, lambda: row_of(app, "orders") and row_of(app, "reports"))
        (row,) = [row for row in cells(app.table) if row[1] == "orders"]
        assert row[0] == f"{process.pid} program.py"
        assert row[2:6] == ["1/2", "1", "0", "0"]
        process.kill()
        process.wait()
        await until_shown(pilot, lambda: row_of(app, "orders") is None)
        assert [row[0] for row in cells(app.table) if row[1] == "reports"] == [f"{other.pid} program.py"]

    on_screen(test)


def test_enter_shows_who_has_which_connection_and_escape_leads_back(start: Start) -> None:
    start("orders")

    async def test(app: Top, pilot: Pilot[None]) -> None:
        await until_shown(pilot, lambda: row_of(app, "orders"))
        app.table.move_cursor(row=app.table.get_row_index(row_of(app, "orders") or ""))
        await pilot.press("enter")
        await until_shown(pilot, lambda: isinstance(app.screen, Loans))
        loans: DataTable[Text] = app.screen.query_one(DataTable)
        await until_shown(pilot, lambda: loans.row_count)
        (row,) = cells(loans)
        assert "MainThread" in row[1]
        assert row[3].startswith("program.py:")
        await pilot.press("escape")
        await until_shown(pilot, lambda: not isinstance(app.screen, Loans))

    on_screen(test)


@pytest.mark.parametrize("control", [True, False])
def test_keys_pause_and_refresh_where_that_is_allowed(start: Start, control: bool) -> None:
    process = start("orders", *(["control"] if control else []))

    def stats() -> dict[str, Any]:
        return looked()[process.pid]["pools"][0]["stats"]  # type: ignore[no-any-return]

    async def test(app: Top, pilot: Pilot[None]) -> None:
        await until_shown(pilot, lambda: row_of(app, "orders"))
        app.table.move_cursor(row=app.table.get_row_index(row_of(app, "orders") or ""))
        await pilot.pause()
        await pilot.press("p", "r")
        if control:
            await until_shown(pilot, lambda: stats()["paused"] and stats()["generation"] == 1)
            await until_shown(pilot, lambda: any(row[1] == "orders (paused)" for row in cells(app.table)))
            await pilot.press("p")
            await until_shown(pilot, lambda: not stats()["paused"])
        else:
            await pilot.pause(0.5)
            assert not stats()["paused"]
            assert stats()["generation"] == 0

    on_screen(test)


def test_q_ends_it(start: Start) -> None:
    async def test(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("q")
        await until_shown(pilot, lambda: not app.is_running)

    on_screen(test)


def test_names_of_pools_are_shown_as_they_are_and_a_terminal_does_not_obey_them(start: Start) -> None:
    start("[red]\x1b[2J[/nonsense]")

    async def test(app: Top, pilot: Pilot[None]) -> None:
        await until_shown(pilot, lambda: any(row[1] == "[red]?[2J[/nonsense]" for row in cells(app.table)))

    on_screen(test)
