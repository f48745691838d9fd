"""Who waits, for how long, in which order, and what wakes them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from urllib3.exceptions import ClosedPoolError, EmptyPoolError

import millpond
from millpond.urllib3 import HTTPConnectionPool, PoolManager

from .conftest import Make
from .patience import settled, stats, until
from .servers import Server


def test_who_waits_too_long_gets_urllib3s_error(make: Make) -> None:
    http = make(maxsize=1, block=True, pool_timeout=0.05)
    held = http.request("GET", "/", preload_content=False)
    for limit in (None, 0.1, 0):
        start = time.monotonic()
        with pytest.raises(EmptyPoolError, match="Pool is empty and a new connection can't be opened") as refused:
            http.request("GET", "/", pool_timeout=limit, retries=5)
        assert (0.05 if limit is None else limit) <= time.monotonic() - start < 10
        assert isinstance(refused.value.__cause__, millpond.PoolTimeout)
        assert "1 of 1 lent" in str(refused.value.__cause__)
    held.close()
    assert http.request("GET", "/served").data == b"/served"


def test_no_time_to_wait_is_enough_where_there_is_room(make: Make) -> None:
    for _ in range(5):
        http = make(maxsize=1, block=True)
        assert http.request("GET", "/now", pool_timeout=0).data == b"/now"


def test_nobody_waits_without_block(make: Make) -> None:
    http = make(maxsize=1)
    held = [http.request("GET", f"/{number}", preload_content=False) for number in range(5)]
    assert [response.read() for response in held] == [b"/0", b"/1", b"/2", b"/3", b"/4"]
    assert settled(http).idle == 1


def test_a_limit_on_waiting_where_nobody_waits_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="pool_timeout goes with block=True"):
        HTTPConnectionPool("127.0.0.1", 80, pool_timeout=1)
    with pytest.raises(ValueError, match="max_size=0"):
        HTTPConnectionPool("127.0.0.1", 80, maxsize=0, block=True)


def test_callers_are_served_in_the_order_in_which_they_came(make: Make) -> None:
    http = make(maxsize=1, block=True)
    held = http.request("GET", "/", preload_content=False)
    order: list[int] = []

    def ask(number: int) -> None:
        http.request("GET", f"/{number}")
        order.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for number, thread in enumerate(threads):
        thread.start()
        until(lambda number=number: stats(http).waiting == number + 1)  # type: ignore[misc]
    held.read()
    for thread in threads:
        thread.join(10)
    assert order == sorted(order)


def test_close_wakes_those_who_wait(make: Make) -> None:
    http = make(maxsize=1, block=True)
    pool = http.pool
    assert pool is not None
    held = http.request("GET", "/held", preload_content=False)
    woken: list[float] = []

    def wait() -> None:
        with pytest.raises(ClosedPoolError, match="Pool is closed"):
            http.request("GET", "/")
        woken.append(time.monotonic())

    with ThreadPoolExecutor(20) as executor:
        waiting: list[Future[None]] = [executor.submit(wait) for _ in range(20)]
        until(lambda: pool.stats().waiting == 20)
        closed = time.monotonic()
        http.close()
        for future in waiting:
            future.result(30)
    assert max(woken) - closed < 10  # and not their timeout
    with pytest.raises(ClosedPoolError):
        http.request("GET", "/")
    assert held.read() == b"/held"


def test_clearing_a_manager_wakes_those_who_wait(server: Server) -> None:
    http = PoolManager(maxsize=1, block=True)
    held = http.request("GET", f"{server.url}/held", preload_content=False)
    pool = http.connection_from_url(server.url)
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(http.request, "GET", f"{server.url}/")
        until(lambda: pool.pool.stats().waiting == 1)  # type: ignore[union-attr]
        http.clear()
        with pytest.raises(ClosedPoolError):
            waiting.result(10)  # and not its timeout
    assert held.read() == b"/held"
    assert http.request("GET", f"{server.url}/anew").data == b"/anew"
    http.clear()


def test_a_pool_that_is_closed_and_dropped_at_once_leaves_no_connection_and_no_thread(server: Server) -> None:
    before = set(threading.enumerate())
    for _ in range(20):
        http = HTTPConnectionPool(server.host, server.port, maxsize=2)
        held = [http.request("GET", "/", preload_content=False) for _ in range(2)]
        for response in held:
            response.read()
        http.close()
        del http, held, response
    until(lambda: not server.connected)
    until(lambda: not any("tender" in thread.name for thread in set(threading.enumerate()) - before))
