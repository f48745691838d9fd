"""Takes the pictures of the page that are in these papers: python docs/pictures.py

It needs selenium, and Debian's Chromium and ChromeDriver. What is seen are three pools at work, and a loan that lasts.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import millpond
from millpond.testing import FakeConnector

HERE: Final = Path(__file__).parent
WATCHED: Final = 45.0
"""Seconds for which the charts have been going on when they are taken."""
PICTURES: Final = (("watching-wide.png", 1600, 960, "light"), ("watching-narrow.png", 400, 1000, "dark"))


def work() -> None:
    """Have pools at work until the input ends."""
    millpond.expose()
    for name, size, callers in (("orders", 8, 15), ("reports", 4, 4), ("audit", 2, 1)):
        pool = millpond.Pool(FakeConnector(), name=name, max_size=size, min_size=1, leak_after=60)
        for number in range(callers):
            threading.Thread(target=call, args=(pool, number), name=f"{name}-{number}", daemon=True).start()
    sys.stdin.read()


def call(pool: millpond.Pool[Any], seed: int) -> None:
    """Borrow for a while and return, now more and now less often."""
    chance = random.Random(seed)
    if (pool.settings.name, seed) == ("reports", 0):
        with pool.connection():
            time.sleep(1000)
    while True:
        with pool.connection():
            time.sleep(chance.expovariate(25))
        time.sleep(chance.expovariate(20) * (1 + time.time() // 6 % 3))


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program until the end."""
    with subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def main() -> None:
    """Take them."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for switch in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--hide-scrollbars",
    ):
        options.add_argument(switch)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        os.environ["XDG_RUNTIME_DIR"] = folder
        for _ in range(2):
            stack.enter_context(running(__file__, "work"))
        page = stack.enter_context(running("-m", "millpond", "web"))
        assert page.stdout is not None
        browser = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
        stack.callback(browser.quit)
        browser.get(page.stdout.readline().strip())
        time.sleep(WATCHED)
        for name, width, height, scheme in PICTURES:
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            taste = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", taste)
            time.sleep(2)
            browser.save_screenshot(str(HERE / name))


if __name__ == "__main__":
    work() if sys.argv[1:] == ["work"] else main()
