from __future__ import annotations

import os
import random
import sqlite3
import threading
import time

import pytest

from millpond.connectors import _watchdog
from millpond.connectors._watchdog import TICK, Limit

ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"


def watchdogs() -> int:
    return sum(thread.name == "millpond-watchdog" for thread in threading.enumerate())


def test_what_takes_too_long_is_cut_short() -> None:
    conn = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError, match="interrupted"), Limit(0.05, conn.interrupt):
        conn.execute(ENDLESS)
    conn.close()


def test_it_is_cut_again_until_it_has_ended() -> None:
    cuts = []
    with Limit(0.0, lambda: cuts.append(1)):
        while len(cuts) < 3:
            time.sleep(TICK)


def test_a_cut_that_fails_keeps_no_other_from_being_made() -> None:
    cut = threading.Event()
    with Limit(0.0, lambda: 1 / 0), Limit(0.0, cut.set):
        assert cut.wait(30)


def test_nothing_is_cut_after_its_end() -> None:
    """It would strike whoever has the connection next."""
    late: list[int] = []

    def limit() -> None:
        for _ in range(2000):
            over: list[int] = []
            with Limit(0.0, lambda over=over: late.extend(over)):  # type: ignore[misc]
                time.sleep(0.0001)
            over.append(1)

    threads = [threading.Thread(target=limit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert late == []


def test_one_thread_does_it_for_all_and_goes_when_nothing_was_left_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_watchdog, "LINGER", 0.2)
    limits = [Limit(60.0, lambda: None) for _ in range(100)]
    for limit in limits:
        limit.__enter__()
    assert watchdogs() == 1
    for limit in limits:
        limit.__exit__()
    end = time.monotonic() + 30
    while watchdogs():
        assert time.monotonic() < end
        time.sleep(0.001)
    with Limit(60.0, lambda: None):
        assert watchdogs() == 1


def test_a_limit_that_begins_while_the_thread_rests_or_is_about_to_go_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for linger in (*[0.01] * 20, *[600.0] * 3):
        monkeypatch.setattr(_watchdog, "LINGER", linger)
        cut = threading.Event()
        with Limit(0.0, cut.set):
            assert cut.wait(30)
        time.sleep(2 * TICK + random.random() * 0.02)


def test_a_child_has_one_of_its_own() -> None:
    with Limit(60.0, lambda: None):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                cut = threading.Event()
                with Limit(0.0, cut.set):
                    status = 0 if cut.wait(30) else 1
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
