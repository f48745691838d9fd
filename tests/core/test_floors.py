"""The house keeps its floors, and its papers say what is built."""

from __future__ import annotations

import ast
import difflib
import inspect
import runpy
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import millpond
from millpond._core.lease import Lease
from millpond.pool import ThreadLease

SOURCES = Path(millpond.__file__).parent
PROJECT = Path(__file__).parents[2]

FORBIDDEN = {"time", "threading", "_thread", "asyncio", "anyio", "trio", "logging", "random", "socket", "select", "os"}
FLOORS = {
    "_core": {"_core", "connector"},
    "connectors": {"_extras", "connector", "connectors"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", sorted((SOURCES / "_core").glob("*.py")), ids=lambda path: path.name)
def test_the_core_knows_no_clock_no_lock_no_loop_no_log_and_no_chance(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Await, ast.AsyncFor))]


@pytest.mark.parametrize("floor", FLOORS)
def test_an_arrow_only_points_down(floor: str) -> None:
    for path in (SOURCES / floor).rglob("*.py"):
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("millpond.")}
        assert ours <= FLOORS[floor], path.name


def test_the_command_is_the_top_of_the_house() -> None:
    for path in SOURCES.rglob("*.py"):
        if path.parent.name != "cli" and path.name != "__main__.py":
            assert not [name for name in imports(path) if name.startswith("millpond.cli")], path


def test_only_the_core_and_the_hot_path_of_threads_change_an_entry_s_state() -> None:
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Attribute) and target.attr == "state":
                    assert path.parent.name == "_core" or path.name == "pool.py", path


def test_the_hot_path_of_threads_is_that_of_the_core() -> None:
    def text(function: object) -> list[str]:
        lines = textwrap.dedent(inspect.getsource(function)).splitlines()[1:]  # type: ignore[arg-type]
        return [line for line in lines if not line.strip().startswith(("#", '"""'))]

    difference = [line for line in difflib.ndiff(text(Lease.enter), text(ThreadLease.__enter__)) if line[0] in "+-"]
    assert sorted(difference) == [
        "+             now = monotonic()",
        "+             owner = get_ident()",
        "-             now = core.clock()",
        "-             owner = core.whoami()",
    ]


@pytest.mark.skipif(not (PROJECT / "docs").exists(), reason="an installed package has no papers")
def test_the_diagram_in_the_papers_is_drawn_from_the_table() -> None:
    diagram = runpy.run_path(str(PROJECT / "docs" / "diagram.py"))["diagram"]()
    assert f"```mermaid\n{diagram}\n```" in (PROJECT / "docs" / "design.md").read_text()


@pytest.mark.skipif(not (PROJECT / "README.md").exists(), reason="an installed package has no papers")
def test_the_readme_s_table_of_settings_says_what_the_defaults_are() -> None:
    rows = [line.split("|") for line in (PROJECT / "README.md").read_text().splitlines() if line.startswith("| `")]
    said = {row[1].strip(" `"): row[2].strip(" `") for row in rows}
    for name, field in millpond.Settings.__dataclass_fields__.items():
        default = "never" if field.default == float("inf") else str(field.default)
        assert said[name].strip('"') == default, name
