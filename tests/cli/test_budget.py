"""`millpond budget` tells who has what of a limit that processes share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from millpond import FleetBudget, HostBudget, Pool
from millpond.cli import main
from millpond.testing import FakeConnector, Valkey


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_it_tells_what_each_process_of_a_machine_has(capsys: pytest.CaptureFixture[str]) -> None:
    budget = HostBudget("orders", 3)
    with Pool(FakeConnector(), budget=budget) as pool:
        conn = pool.acquire(60)
        assert main(["budget", "orders", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["limit"], told["allowed"], told["over"], len(told["members"])) == (3, 1, 0, 1)
        assert main(["budget", "orders"]) == 0
        assert "1 processes have 1 of 3 connections, and could use 0 more" in capsys.readouterr().out
        pool.release(conn)


def test_it_tells_what_each_process_of_a_fleet_has(capsys: pytest.CaptureFixture[str]) -> None:
    with Valkey() as valkey:
        budget = FleetBudget(valkey.url, "orders", 3, lease=2.0)
        with Pool(FakeConnector(), budget=budget) as pool:
            conn = pool.acquire(60)
            assert main(["budget", "orders", valkey.url, "--json"]) == 0
            [member] = json.loads(capsys.readouterr().out)["members"]
            assert (member["allowed"], member["limit"], member["lost"]) == (1, 3, False)
            assert main(["budget", "orders", valkey.url]) == 0
            pool.release(conn)
        budget.close()
        assert main(["budget", "orders", valkey.url]) == 0
        assert capsys.readouterr().out.endswith("no process has the budget 'orders'\n")


def test_what_cannot_be_told_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Valkey() as valkey:
        url = valkey.url.replace("//", "//user:geheim@")
        valkey.stop()
        assert main(["budget", "orders", url]) == 1
        said = capsys.readouterr().err
        assert said.startswith("millpond budget: the coordinator cannot be asked: ConnectionError")
        assert said.count("\n") == 1
        assert "geheim" not in said
    assert main(["budget", "a/b"]) == 2
    assert main(["budget", "orders", "http://nowhere"]) == 2
    assert main(["nothing"]) == 2
    assert "millpond budget" in capsys.readouterr().err


def test_it_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "millpond", "--help"], stdout=subprocess.PIPE, text=True, timeout=30, check=True
    )
    assert done.stdout.startswith("usage: millpond COMMAND")
