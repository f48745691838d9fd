"""Processes to look at, what serves the page, and a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from shutil import which
from typing import Any

import pytest

from ..exposed.processes import MILLPOND, runtime, start

__all__ = ["runtime", "start"]

SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
"""What makes Chromium run as root, without a screen, and leave the network alone."""

Serve = Callable[[], "tuple[str, subprocess.Popen[str]]"]


@pytest.fixture
def serve(runtime: object) -> Iterator[Serve]:
    """Start `millpond web`; return its address, and the process."""
    started: list[subprocess.Popen[str]] = []

    def serve() -> tuple[str, subprocess.Popen[str]]:
        command = [sys.executable, "-c", MILLPOND, "web"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", address), process.stderr and process.stderr.read()
        return address, process

    yield serve
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Return a browser, driven by selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the group `browser`)")
    program, driver = which("chromium"), which("chromedriver")
    if program is None or driver is None:
        pytest.skip("Chromium is not installed (Debian's packages chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_page_load_timeout(120)
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """Return the browser with nothing in it."""
    screen(chromium, 1600)
    yield chromium
    chromium.get("about:blank")
    chromium.get_log("browser")


def screen(browser: Any, width: int, scheme: str = "light") -> None:
    """Have a screen of that width, and of that taste."""
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    taste = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", taste)
