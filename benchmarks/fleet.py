"""Many processes within one limit, on a PostgreSQL that grants no more: what they get done, and what kills cost.

What is counted is the server's own truth: its log of connections that came and went, and its `pg_stat_activity`.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, Final

import psycopg
import redis

from benchmarks.figure import Figure
from benchmarks.fleet_member import Plan
from millpond import FleetBudget, Pool
from millpond.testing import FakeConnector, Postgres, Valkey

__all__ = ["measure"]

LIMIT: Final = 40
PROCESSES: Final = 32
GROUPS: Final = 4
"""So many take turns at having callers, eight processes each."""
PERIOD: Final = 2.0
CALLERS: Final = 8
"""Of each process: 64 in all at any time, for 40 connections."""
WORK: Final = 0.02
ROUNDS: Final = 2
SECONDS: Final = 16.0
"""Of each round, of which there are two for each kind."""
LOOK: Final = 0.05
"""Seconds between two looks at the server."""
NEW: Final = 6.0
"""Seconds in which all have connected once: a budget that nobody has heard of gives nothing for three, and a
coordinator that has just started nothing for a lease."""
LEASE: Final = 2.0
"""Short, so that what a coordinator that has just started waits for is soon over."""
MORTALS: Final = 12
KILLS: Final = 100
FOREVER: Final = 1e9
PAUSE: Final = 0.4
"""Seconds between two kills, at the least."""
GOING = re.compile(r"\[(\d+)\] app@app (LOG:  connection authorized|LOG:  disconnection|FATAL)")
TURNED_AWAY = re.compile(r"FATAL:  .*(?:too many clients|connection slots|too many connections)")


def measure() -> Iterator[Figure]:
    """Measure all."""
    yield from _moving()
    yield from _killed()
    yield _hot_path()


# Demand that moves


def _moving() -> Iterator[Figure]:
    fleet, static = Counter[str](), Counter[str]()
    used: list[float] = []
    for _ in range(ROUNDS):
        _round(fleet, used, shared=True)
        _round(static, [], shared=False)
    case = f"{PROCESSES} processes, limit {LIMIT}, demand moves every {PERIOD:g} s"
    yield Figure("fleet budget: most connections", case, fleet["most"], "", LIMIT, digits=0)
    yield Figure("fleet budget: turned away by the server", case, fleet["turned away"], "", 0, digits=0)
    yield Figure("fleet budget: callers' errors", case, fleet["errors"], "", 0, digits=0)
    share = 100 * sum(used) / len(used) / LIMIT
    yield Figure("fleet budget: connections at work / limit", case, share, " %", 90, ">=", 1)
    told = f"{case} ({fleet['done'] / ROUNDS / SECONDS:.0f}/s; static {static['done'] / ROUNDS / SECONDS:.0f}/s)"
    yield Figure("fleet budget: throughput / static shares", told, fleet["done"] / static["done"], " x", 1.5, ">=")


def _round(tally: Counter[str], used: list[float], *, shared: bool) -> None:
    with _fenced(LIMIT) as server, Valkey() as valkey:
        plan = Plan(server.url, callers=CALLERS, work=WORK, seconds=SECONDS, groups=GROUPS, period=PERIOD)
        # What is left over of the even shares, the first have.
        plans = [
            plan._replace(coordinator=valkey.url, limit=LIMIT, size=LIMIT, lease=LEASE, group=number % GROUPS)
            if shared
            else plan._replace(size=LIMIT // PROCESSES + (number < LIMIT % PROCESSES), group=number % GROUPS)
            for number in range(PROCESSES)
        ]
        members = [_start(plan) for plan in plans]
        began = _begin(members)
        with _looking(server, began, SECONDS, lambda _, working: used.append(working)):
            for member in members:
                told = json.loads(member.communicate(timeout=SECONDS + 90)[0])
                tally["done"] += told["done"]
                tally["errors"] += sum(told["errors"].values())
                for error, count in told["errors"].items():
                    print(f"{count} x {error}", file=sys.stderr)
        log = server.log()
    tally["most"] = max(tally["most"], _most(log))
    tally["turned away"] += len(TURNED_AWAY.findall(log))


@contextmanager
def _fenced(limit: int) -> Iterator[Postgres]:
    """Have a server that grants the callers so many connections, and has room for who looks on."""
    with Postgres(max_connections=limit + 10) as server:
        server.execute(f"alter role app connection limit {limit}")
        yield server


def _start(plan: Plan) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.fleet_member", json.dumps(plan)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _begin(members: list[subprocess.Popen[str]], start: float = NEW) -> float:
    """Wait until all are ready, and tell them when it begins, in so many seconds; return when that is."""
    for member in members:
        assert member.stdout is not None
        assert member.stdout.readline() == "ready\n"
    began = time.monotonic() + start
    for member in members:
        assert member.stdin is not None
        member.stdin.write(f"{began}\n")
        member.stdin.flush()
    return began


@contextmanager
def _looking(server: Postgres, began: float, seconds: float, see: Callable[[int, int], object]) -> Iterator[None]:
    """Look at the server all the while: how many connections there are, and how many are at work."""
    over = threading.Event()

    def look() -> None:
        over.wait(max(0.0, began - time.monotonic()))
        with psycopg.connect(server.admin_url, autocommit=True) as conn:
            while time.monotonic() < began + seconds and not over.wait(LOOK):
                row = conn.execute(
                    "select count(*), count(*) filter (where state = 'active') from pg_stat_activity "
                    "where usename = 'app'"
                ).fetchone()
                assert row is not None
                if time.monotonic() < began + seconds:
                    see(*row)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


def _most(log: str) -> int:
    """Return the most connections that a server's log tells of at one time."""
    there: set[str] = set()
    most = 0
    for pid, what in GOING.findall(log):
        if what.endswith("authorized"):
            there.add(pid)
            most = max(most, len(there))
        else:
            there.discard(pid)
    return most


# Members that are killed


def _killed() -> Iterator[Figure]:
    """Kill members while others take their places, and see when all of the limit is in use again."""
    chance = random.Random(0)
    full: list[float] = []
    """When as many connections as the limit allows were open."""
    with _fenced(MORTALS) as server, Valkey() as valkey:
        plan = Plan(server.url, callers=4, work=WORK, coordinator=valkey.url, limit=MORTALS, size=MORTALS, lease=LEASE)
        members = [_start(plan) for _ in range(MORTALS)]
        began = _begin(members)
        with _looking(
            server, began, FOREVER, lambda there, _: full.append(time.monotonic()) if there == MORTALS else None
        ):
            time.sleep(5)
            killed = []
            for _ in range(KILLS):
                victim = chance.randrange(MORTALS)
                killed.append(time.monotonic())
                members[victim].kill()
                members[victim].communicate()
                members[victim] = _start(plan)
                _begin([members[victim]], 0.0)
                time.sleep(max(0.0, killed[-1] + PAUSE - time.monotonic()))
            took = time.monotonic() - killed[0]
            time.sleep(LEASE + 2)
        for member in members:
            member.kill()
            member.communicate()
        log = server.log()
    # Not at once: the server learns of a death when it answers the dead.
    back = [min((look for look in full if look > moment + 2 * WORK), default=FOREVER) - moment for moment in killed]
    case = f"{KILLS} of {MORTALS} processes killed in {took:.0f} s, limit {MORTALS}, lease {LEASE:g} s"
    yield Figure("fleet budget: most connections", case, _most(log), "", MORTALS, digits=0)
    yield Figure("fleet budget: turned away by the server", case, len(TURNED_AWAY.findall(log)), "", 0, digits=0)
    worst = sorted(back)[min(len(back) - 1, int(0.99 * len(back)))]
    told = f"{case} (median {median(back):.2f} s)"
    yield Figure("fleet budget: all of the limit in use again, p99", told, worst, " s", LEASE + 2)


# What a borrow costs


def _hot_path() -> Figure:
    """Compare a loan of a pool with such a budget with one of a pool without, by turns."""
    with Valkey() as valkey:
        budget = FleetBudget(valkey.url, "measured", LIMIT)
        with Pool(FakeConnector(), max_size=8) as plain, Pool(FakeConnector(), max_size=8, budget=budget) as shared:
            ratios = [_loan(shared) / _loan(plain) for _ in range(41)]
        budget.close()
        with redis.Redis.from_url(valkey.url) as client:
            client.flushall()
    return Figure("fleet budget: a loan / one without", "hot path", median(ratios), " x", 1.05)


def _loan(pool: Pool[Any]) -> float:
    began = time.perf_counter()
    for _ in range(20_000):
        with pool.connection():
            pass
    return time.perf_counter() - began
