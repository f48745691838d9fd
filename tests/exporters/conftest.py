"""A real scrape of whatever millpond tells Prometheus."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeAlias
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from millpond import prometheus

Scrape: TypeAlias = Callable[[], "Page"]


class Page:
    """What one scrape has brought."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.samples.get((f"millpond_{name}", frozenset(labels.items())))

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.samples}

    @property
    def pools(self) -> set[str]:
        return {value for _, labels in self.samples for label, value in labels if label == "pool"}


@pytest.fixture
def scrape() -> Iterator[Scrape]:
    """Give what asks prometheus_client's own server for a page."""
    gc.collect()  # the pools of other tests
    registry = CollectorRegistry()
    uninstall = prometheus.install(registry)
    server, thread = start_http_server(0, "127.0.0.1", registry)

    def scrape() -> Page:
        with urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10) as response:
            return Page(response.read().decode())

    try:
        yield scrape
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        uninstall()
