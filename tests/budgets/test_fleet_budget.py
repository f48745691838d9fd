"""The processes of a fleet share a limit, whatever becomes of any of them, of the coordinator, or of the way to it."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from millpond import FleetBudget, Misuse, Pool, PoolTimeout
from millpond._permit_file import Note, PermitFile
from millpond.connectors.urls import InvalidURL
from millpond.fleet_budget import members
from millpond.testing import FakeConnector, Proxy, Valkey

from ..promises.patience import until
from .conftest import CountingServer, Start, run_for
from .worker import LEASE as LONG_LEASE

LIMIT = 3
LEASE = 1.0
"""Seconds; of those tests that have leases end."""


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_TEST_LEASE", str(LEASE))


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey() as valkey:
        yield valkey


@pytest.fixture
def url(valkey: Valkey) -> str:
    """A coordinator that knows nothing yet."""
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return valkey.url


def until_served(server: CountingServer, index: int) -> None:
    """Wait until a process has used connections ten times more."""
    before = server.served[index]
    until(lambda: server.served[index] > before + 10, timeout=60)


def test_processes_together_never_have_more_connections_than_the_limit_and_all_are_served(
    server: CountingServer, start: Start, url: str
) -> None:
    for index in range(6):
        start(index, LIMIT, coordinator=url)
    until(lambda: len(server.served) == 6, timeout=60)
    before = server.served.copy()
    until(lambda: all(server.served[index] > before[index] + 20 for index in range(6)), timeout=60)
    assert server.most == LIMIT


def test_an_idle_connection_of_one_process_is_closed_for_a_caller_of_another(
    server: CountingServer, start: Start, url: str
) -> None:
    start(0, 1, 1, 1000, coordinator=url)
    until(lambda: server.served[0] > 0 and server.live == 1, timeout=60)
    run_for(0.5)
    start(1, 1, coordinator=url)
    until(lambda: server.served[1] > 0, timeout=60)
    assert server.most == 1


def test_what_killed_processes_had_is_used_by_the_others(server: CountingServer, start: Start, url: str) -> None:
    processes = [start(index, LIMIT, 4, 0, coordinator=url) for index in range(4)]
    until(lambda: len(server.served) == 4, timeout=60)
    chance = random.Random(0)
    for _ in range(3):
        until(lambda: server.live == LIMIT, timeout=60)
        victim = chance.randrange(4)
        processes[victim].kill()
        processes[victim].wait()
        until(lambda victim=victim: server.live_of(victim) == 0, timeout=60)  # type: ignore[misc]
        until(lambda: server.live == LIMIT, timeout=60)
        processes[victim] = start(victim, LIMIT, 4, 0, coordinator=url)
    assert server.most == LIMIT


@pytest.mark.thorough
@pytest.mark.usefixtures("short_leases")
def test_a_process_that_was_stopped_for_longer_than_its_lease_opens_nothing_that_others_have(
    server: CountingServer, start: Start, url: str
) -> None:
    stopped = start(0, LIMIT, 4, 0, coordinator=url)
    until(lambda: server.served[0] > 10 and server.live == LIMIT, timeout=60)
    start(1, LIMIT, 4, 0, coordinator=url)
    until(lambda: server.served[1] > 10, timeout=60)
    assert server.most <= LIMIT
    for _ in range(3):
        stopped.send_signal(signal.SIGSTOP)
        run_for(0.2)
        # What it has open stays open, and only its reserve of one is kept for it.
        beyond = max(0, server.live_but_for(1) - 1)
        run_for(1.5 * LEASE)
        until_served(server, 1)
        stopped.send_signal(signal.SIGCONT)
        until_served(server, 0)
        assert server.most <= LIMIT + beyond
        until(lambda: server.live <= LIMIT, timeout=60)
        server.most = LIMIT


@pytest.mark.thorough
@pytest.mark.usefixtures("short_leases")
def test_a_coordinator_that_dies_and_has_forgotten_all_gives_nothing_away_that_is_in_use(
    server: CountingServer, start: Start, valkey: Valkey, url: str
) -> None:
    for index in range(LIMIT):
        start(index, LIMIT, 4, 0, coordinator=url)
    until(lambda: len(server.served) == LIMIT and server.live == LIMIT, timeout=60)
    run_for(1)
    valkey.kill()
    before = server.served.total()
    run_for(2 * LEASE)
    assert server.served.total() > before + 50, "borrows go on"
    valkey.start()
    start(LIMIT, LIMIT, 4, 0, coordinator=url)
    until(lambda: server.served[LIMIT] > 10, timeout=60)
    run_for(1)
    assert server.most == LIMIT


@pytest.mark.thorough
@pytest.mark.usefixtures("short_leases")
def test_those_who_are_cut_off_and_those_who_are_not_stay_within_the_limit_together(
    server: CountingServer, start: Start, valkey: Valkey, url: str
) -> None:
    with Proxy(valkey.host, valkey.port) as proxy:
        for index in range(4):
            start(index, 4, 4, 0, coordinator=proxy.url_for(url) if index % 2 else url)
        until(lambda: len(server.served) == 4 and server.live == 4, timeout=60)
        run_for(1)
        for fault in (proxy.black_hole, proxy.refuse):
            fault()
            proxy.reset()
            before = server.served.copy()
            run_for(3 * LEASE)
            served = server.served - before
            assert served[0] + served[2] > 20
            assert served[1] + served[3] > 20, "those who are cut off go on"
            proxy.heal()
            run_for(LEASE)
        before = server.served.copy()
        run_for(1)
        assert all((server.served - before)[index] for index in range(4))
        assert server.most == 4


def test_what_a_process_gives_back_when_it_leaves_is_free_at_once(url: str) -> None:
    budget = FleetBudget(url, "leaves", 2, lease=LONG_LEASE)
    with Pool(FakeConnector(), budget=budget) as pool:
        pool.release(pool.acquire(60))
        [member] = members(url, "leaves")
        assert (member.allowed, member.lost) == (1, False)
    budget.close()
    assert members(url, "leaves") == []


def run_member(url: str, work: str) -> str:
    """Have another process be a member for once, and do something with `pool` and `budget`."""
    setting = f"""
        import os
        import signal
        from millpond import FleetBudget, Pool, PoolTimeout

        budget = FleetBudget({url!r}, "shared", 1, lease={LONG_LEASE})
        pool = Pool(object, close=id, budget=budget)
    """
    command = [sys.executable, "-c", textwrap.dedent(setting) + textwrap.dedent(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout


def test_budgets_of_one_name_in_two_databases_do_without_each_other(url: str) -> None:
    budget = FleetBudget(url, "shared", 1, lease=LONG_LEASE)
    other = FleetBudget(url.removesuffix("/0") + "/1", "shared", 1, lease=LONG_LEASE)
    with Pool(FakeConnector(), budget=budget) as pool, pool.connection(60):
        with Pool(FakeConnector(), budget=other) as another, another.connection(60):
            pass
        other.close()
        said = run_member(
            url,
            """
            try:
                pool.acquire(1)
            except PoolTimeout:
                print("refused")
            """,
        )
        assert said == "refused\n"
    budget.close()


def test_what_a_process_had_that_has_ended_without_closing_its_budget_is_free_at_once(url: str) -> None:
    run_member(
        url,
        """
        pool.release(pool.acquire(30))
        pool.close()
        del pool, budget
        """,
    )
    with Pool(FakeConnector(), budget=FleetBudget(url, "shared", 1, lease=LONG_LEASE)) as pool, pool.connection(60):
        [member] = members(url, "shared")
        assert member.pid == os.getpid()


def test_of_one_who_was_killed_his_successors_tell_though_the_first_cannot(valkey: Valkey, url: str) -> None:
    with Proxy("127.0.0.1", valkey.port) as proxy:
        there = proxy.url_for(url)
        run_member(
            there,
            """
            pool.acquire(30)
            os.kill(os.getpid(), signal.SIGKILL)
            """,
        )
        assert len(members(url, "shared")) == 1
        proxy.refuse()
        run_member(
            there,
            """
            import logging

            logging.disable(logging.CRITICAL)
            try:
                pool.acquire(0.5)
            except PoolTimeout:
                pass
            pool.close()
            budget.close()
            """,
        )
        proxy.heal()
        budget = FleetBudget(there, "shared", 1, lease=LONG_LEASE)
        with Pool(FakeConnector(), budget=budget) as pool, pool.connection(60):
            [member] = members(url, "shared")
            assert member.pid == os.getpid()
        budget.close()


def test_a_member_that_seems_dead_at_one_look_is_not_told_of(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor was closed under it, and it is about to take its lock again."""
    looks: list[list[Note]] = []
    told: list[str] = []
    call = FleetBudget._call

    def look(_: PermitFile) -> list[Note]:
        looks.append([Note(7, 1, 1, 0, 0, 0, 0.0)] if not len(looks) % 2 else [])
        return looks[-1]

    def tell(budget: FleetBudget, *what: Any) -> Any:
        told.extend(what[6:])
        return call(budget, *what)

    monkeypatch.setattr(PermitFile, "departed", look)
    monkeypatch.setattr(FleetBudget, "_call", tell)
    budget = FleetBudget(url, "seems", 1, lease=LONG_LEASE)
    with Pool(FakeConnector(), budget=budget) as pool, pool.connection(60):
        until(lambda: len(looks) > 3, timeout=60)
    budget.close()
    assert told == []


def test_one_who_leaves_in_the_midst_of_a_renewal_is_not_brought_back_by_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = FleetBudget(url, "renewing", 2, lease=LONG_LEASE)
    renewing, go_on, said = threading.Event(), threading.Event(), threading.Event()
    register = budget._client.register_script

    def slowly(script: str) -> Any:
        say = register(script)
        if renewing.is_set():
            return say
        # By now it is settled what is to be said.
        renewing.set()
        go_on.wait(60)

        def say_and_tell(*what: Any) -> Any:
            try:
                return say(*what)
            finally:
                said.set()

        return say_and_tell

    with Pool(FakeConnector(), budget=budget) as pool:
        pool.release(pool.acquire(60))
        monkeypatch.setattr(budget._client, "register_script", slowly)
        assert renewing.wait(60)
        leaving = threading.Thread(target=budget.close)
        leaving.start()
        leaving.join(0.2)
        go_on.set()
        leaving.join()
        assert said.wait(60)
    assert members(url, "renewing") == []


def test_a_coordinator_that_cannot_be_reached_is_told_of_once_and_found_again(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "millpond"]

    valkey.stop()
    budget = FleetBudget(valkey.url.replace("//", "//user:geheim@"), "away", 2, lease=LEASE)
    with Pool(FakeConnector(), budget=budget) as pool:
        with pytest.raises(PoolTimeout, match="leaves 0 to this process"):
            pool.acquire(0.3)
        until(lambda: told())
        [record] = told()
        assert f"127.0.0.1:{valkey.port} cannot be reached" in record.getMessage()
        assert "geheim" not in record.getMessage() + repr(budget)
        valkey.start()
        with redis.Redis.from_url(valkey.url) as client:
            client.acl_setuser("user", enabled=True, passwords="+geheim", commands=["+@all"], keys=["*"])
        pool.release(pool.acquire(60))
    budget.close()


def test_arguments_that_cannot_be_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 100 letters"):
        FleetBudget(url, "a/b", 2)
    with pytest.raises(ValueError, match=r"lease=0\.1 must be from 0.5 to 3600 seconds"):
        FleetBudget(url, "short", 2, lease=0.1)
    with pytest.raises(ValueError, match="minimum=3 must be from 0 to the limit of 2"):
        FleetBudget(url, "much", 2, minimum=3)
    with pytest.raises(ValueError, match="Redis URL must specify one of"):
        FleetBudget("http://nowhere", "strange", 2)
    with pytest.raises(InvalidURL, match="percent-encoded") as refusal:
        FleetBudget("redis://:open:]sesame@nowhere/0", "encoded", 2)
    assert "sesame" not in str(refusal.value)
    assert refusal.value.__context__ is None
    for made in (lambda url: FleetBudget(url, "unknown", 2), lambda url: members(url, "unknown")):
        with pytest.raises(InvalidURL, match="redis-py does not know the parameter 'socket_tmeout'; did you mean"):
            made("redis://nowhere/0?socket_tmeout=3")
        with pytest.raises(InvalidURL, match="does not know a parameter behind the password"):
            made("redis://nowhere/0?password=open&sesame=1")
    FleetBudget(f"{url}?max_connections=5&socket_timeout=1", "known", 2).close()
    budget = FleetBudget(url, "twice", 2)
    with pytest.raises(Misuse, match="has a FleetBudget 'twice' already"):
        FleetBudget(url, "twice", 2)
    assert budget.limit == 2
