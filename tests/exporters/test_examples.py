"""The examples run, and tell what they are to tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"], capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout, done.stderr


def test_the_example_for_prometheus_shows_three_loans() -> None:
    out, err = run("prometheus_metrics")
    assert out == 'millpond_max_connections{pool="orders"} 5.0\nmillpond_loans_total{pool="orders"} 3.0\n'
    assert err == ""


def test_the_example_for_opentelemetry_shows_names_of_the_conventions() -> None:
    out, err = run("opentelemetry_metrics")
    assert json.loads(out)["db.client.connection.use_time"] == "s"
    assert err == ""


def test_the_example_for_logs_shows_the_life_of_a_connection() -> None:
    out, err = run("json_logs")
    told = [json.loads(line) for line in err.splitlines()]
    names = [line["event"] for line in told]
    # Each thread tells of what it has done, the opener too: the caller may be quicker with what comes after.
    assert [name for name in names if "connection" in name] == ["connection_opened", "connection_closed"]
    assert [name for name in names if "pool" in name] == ["pool_resized", "pool_closed"]
    assert {line["pool"] for line in told} == {"orders"}
    assert out == ""
