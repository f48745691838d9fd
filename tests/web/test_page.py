"""What `millpond web` shows, in a real browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from ..exposed.processes import Start
from .conftest import Serve, screen

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # selenium's

TEXT = "return document.body.innerText"
ROWS = """
return [...document.querySelectorAll('#pools tr')].map(
  (row) => [...row.cells].map((cell) => cell.innerText.split('\\n')[0]))
"""


def seen(browser: Any, what: Callable[[], Any], timeout: float = 90.0) -> Any:
    """Wait until there is something to see; return it."""
    deadline = time.monotonic() + timeout
    while not (found := what()):
        assert time.monotonic() < deadline, browser.execute_script(TEXT)
        time.sleep(0.05)
    return found


def test_the_figures_and_loans_of_a_pool_are_shown_and_go_on(browser: Any, serve: Serve, start: Start) -> None:
    process = start("orders")
    browser.get(serve()[0])
    ((name, owner, lent, idle, size, waiting, *_),) = seen(browser, lambda: browser.execute_script(ROWS))
    assert (name, owner, lent, idle, size, waiting) == ("orders", f"{process.pid} program.py", "1", "0", "1/2", "0")
    loan = browser.execute_script("return document.querySelector('#loans tr').innerText")
    assert "thread 'MainThread'" in loan
    ages = "return document.querySelector('#loans tr').cells[2].innerText"
    first = browser.execute_script(ages)
    seen(browser, lambda: browser.execute_script(ages) != first)
    # All three charts are drawn, and the latest figures stand below them.
    assert browser.execute_script("return document.querySelectorAll('#charts canvas').length") == 3
    assert "lent" in browser.execute_script("return document.querySelector('#connections').innerText")


def test_what_is_chosen_is_shown_by_click_and_by_keyboard(browser: Any, serve: Serve, start: Start) -> None:
    from selenium.webdriver import ActionChains

    start("orders")
    start("reports")
    browser.get(serve()[0])
    chosen = "return document.querySelector('#name').innerText"
    seen(browser, lambda: len(browser.execute_script(ROWS)) == 2)
    for name in ("reports", "orders"):
        browser.execute_script(
            "[...document.querySelectorAll('#pools button')].find((each) => each.innerText == arguments[0]).focus()",
            name,
        )
        # To what has the focus by then: the page puts another button in its place at every look.
        ActionChains(browser).send_keys("\n").perform()
        seen(browser, partial(browser.execute_script, f"{chosen} == '{name}'"))
    # The focus survives the looks that follow.
    time.sleep(2.5)
    assert browser.execute_script("return document.activeElement.innerText") == "orders"


def test_a_process_that_is_killed_vanishes(browser: Any, serve: Serve, start: Start) -> None:
    process = start("orders")
    start("reports")
    browser.get(serve()[0])
    seen(browser, lambda: len(browser.execute_script(ROWS)) == 2)
    process.kill()
    ((name, *_),) = seen(browser, lambda: len(rows := browser.execute_script(ROWS)) == 1 and rows)
    assert name == "reports"
    seen(browser, lambda: f"is gone, with {process.pid}" in browser.execute_script(TEXT))


def test_a_name_with_markup_in_it_is_text(browser: Any, serve: Serve, start: Start) -> None:
    name = "<img src=x onerror='document.title=1'>"
    start(name)
    browser.get(serve()[0])
    ((shown, *_),) = seen(browser, lambda: browser.execute_script(ROWS))
    assert shown == name
    assert browser.execute_script("return document.images.length") == 0
    assert browser.title == "millpond"


def test_nothing_is_asked_of_other_hosts_and_nothing_goes_wrong(browser: Any, serve: Serve, start: Start) -> None:
    start("orders")
    address, _ = serve()
    browser.get(address)
    seen(browser, lambda: browser.execute_script(ROWS))
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert len(asked) >= 4
    assert not [name for name in asked if not name.startswith(address)]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_fits_its_screen_by_day_and_by_night(browser: Any, serve: Serve, start: Start, width: int) -> None:
    start("a pool with quite a long name, as those of KeyedPool have: https://api.example.org:8443")
    grounds = set()
    screen(browser, width)
    browser.get(serve()[0])
    seen(browser, lambda: browser.execute_script(ROWS))
    for scheme in ("light", "dark"):
        screen(browser, width, scheme)
        time.sleep(1.2)  # a look, and with it the charts
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        grounds.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def test_without_anything_to_see_it_says_what_to_do_and_at_the_end_that_it_is_over(browser: Any, serve: Serve) -> None:
    address, process = serve()
    browser.get(address)
    seen(browser, lambda: "Call millpond.expose() in it" in browser.execute_script(TEXT))
    process.kill()
    seen(browser, lambda: "what is shown is old" in browser.execute_script(TEXT))
