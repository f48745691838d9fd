"""The dashboard in the papers asks Prometheus for what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import millpond
from millpond.testing import FakeConnector

from .conftest import Scrape

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "millpond.json"

pytestmark = pytest.mark.skipif(not DASHBOARD.exists(), reason="an installed package has no papers")


def queries() -> list[str]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return asked + [variable.get("definition", "") for variable in dashboard["templating"]["list"]]


def test_every_metric_and_label_that_the_dashboard_asks_for_is_in_a_scrape(scrape: Scrape) -> None:
    with millpond.Pool(FakeConnector(), name="orders") as pool:
        with pool.connection() as conn:
            pool.discard(conn)
        with pool.connection():
            pass
        page = scrape()
    asked = {name for query in queries() for name in re.findall(r"millpond_\w+", query)}
    assert asked <= page.names
    assert {name for name in page.names if not name.endswith(("_count", "_sum"))} == asked | {
        "millpond_min_connections"  # of which there is nothing to see
    }
    labels = {name for _, pairs in page.samples for name, _ in pairs} | {"job", "instance"}  # Prometheus's own
    grouped = {label for query in queries() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(", ")}
    chosen = {label for query in queries() for label in re.findall(r"(\w+)=~?\"", query)}
    assert grouped | chosen <= labels


def test_panels_have_places_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert all(0 <= x < 24 for x, _ in taken)
    assert len({panel["id"] for panel in panels}) == len(panels)
