"""Who has not installed what an extra brings, or has it too old, is told what to install."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

MODULES = {
    "millpond.connectors.aiosqlite": ("aiosqlite", "aiosqlite", "0.22"),
    "millpond.connectors.asyncpg": ("asyncpg", "asyncpg", "0.30"),
    "millpond.connectors.psycopg": ("psycopg", "psycopg", "3.2.13"),
    "millpond.connectors.redis": ("redis", "redis", "8.0"),
    "millpond.fleet_budget": ("redis", "redis", "8.0"),
    "millpond.httpx": ("httpx", "httpcore", "1.0.9"),
    "millpond.opentelemetry": ("opentelemetry", "opentelemetry-api", "1.30"),
    "millpond.prometheus": ("prometheus", "prometheus-client", "0.20"),
    "millpond.redis": ("redis", "redis", "8.0"),
    "millpond.requests": ("requests", "requests", "2.32.2"),
    "millpond.urllib3": ("urllib3", "urllib3", "2.0.2"),
    "millpond.web": ("web", "starlette", "0.46"),
}


@pytest.mark.parametrize("module", MODULES)
def test_a_package_that_is_too_old_is_named_with_what_is_needed(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra, package, lowest = MODULES[module]
    about = tmp_path / f"{package.replace('-', '_')}-0.0.7.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.7\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert version(package) == "0.0.7"
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError) as caught:
        importlib.import_module(module)
    assert str(caught.value) == (
        f'millpond needs {package} {lowest} or later; 0.0.7 is installed: pip install "millpond[{extra}]"'
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_package_that_is_not_there_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extra, package, _ = MODULES[module]
    name = {"prometheus-client": "prometheus_client", "opentelemetry-api": "opentelemetry"}.get(package, package)
    for each in [name, *(loaded for loaded in sys.modules if loaded.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, each, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError) as caught:
        importlib.import_module(module)
    assert str(caught.value) == f'{name} is not installed: pip install "millpond[{extra}]"'


def test_what_a_package_itself_raises_goes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "psycopg.py").write_text("raise ImportError('no libpq')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "psycopg", raising=False)
    monkeypatch.delitem(sys.modules, "millpond.connectors.psycopg", raising=False)
    with pytest.raises(ImportError, match=r"^no libpq$"):
        importlib.import_module("millpond.connectors.psycopg")


BARE = """
import sys
sys.modules["anyio"] = sys.modules["redis"] = None
from millpond import *
with Pool(object, max_size=1) as pool, pool.connection():
    print(sorted({"AsyncPool", "AsyncKeyedPool", "TaskLease", "FleetBudget", "Budget"} & set(globals())))
import millpond
try:
    millpond.AsyncPool
except ImportError as error:
    print(error)
"""


def test_everything_that_python_alone_can_do_is_imported_without_extras() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['Budget']\nanyio is not installed: pip install \"millpond[async]\"\n"
