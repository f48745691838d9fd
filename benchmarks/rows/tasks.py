"""Tasks who take turns at ten connections."""

from __future__ import annotations

from contextlib import nullcontext

from benchmarks.crowd import Counter
from benchmarks.page.section import Section
from benchmarks.peers import objects, postgres, redis
from benchmarks.race import Contestant
from benchmarks.turns import NO_POOL, Crowds, take_turns
from millpond.testing import Postgres, Valkey

__all__ = ["run"]

CONNECTIONS = 10
SIZES = (100, 1_000, 10_000)
TAKES = {"no work": 0.0, "0.1 ms": 0.0002, "1 ms": 0.0011}
"""Seconds that a turn takes about."""
WORKS = {"no work": "await sleep(0)", "0.1 ms": "await sleep(0.0001)", "1 ms": "await sleep(0.001)"}
TURNS = 6
"""Each task has about so many at least: with fewer nobody can tell whether they are even."""
COUNTER = Contestant("floor: a counter", f"async {objects.WITH}", lambda size: nullcontext(Counter(size)))

TEXT = """
Ten connections; each task borrows, sleeps for the time of the work, returns, and begins anew. "No work" is one turn of
the loop, `asyncio.sleep(0)`: without it no other task would run. The limit is the better of two floors: ten tasks
without a pool, and a counter with a line of futures, the least that can lend. Another task spins all the time, for
everybody: asyncio's loop sleeps in whole milliseconds if nothing keeps it awake. asyncpg's pool resets the session on
each return. Who lends to those that are there, and lets others wait, gets more done: look at the longest wait and
Jain's index as well.
"""
WHY = ""


def run(quick: bool) -> Section:
    """Have crowds of tasks take turns."""
    with Postgres() as database, Valkey() as store:
        contestants = [
            NO_POOL,
            COUNTER,
            *(each for each in objects.TASKS if not each.floor),
            *(each for each in postgres.tasks(database.url) if not each.floor and "session" not in each.name),
            *(each for each in redis.tasks(store.url, blocking=True) if each.name != "millpond"),
        ]
        crowds = Crowds(CONNECTIONS, SIZES[:2] if quick else SIZES, WORKS, "tasks")
        take_turns(
            contestants,
            crowds,
            rounds=lambda size: 1 if quick or size == SIZES[-1] else 3,
            seconds=lambda work, size: 0.03 if quick else max(0.25, TURNS * size * TAKES[work] / CONNECTIONS),
        )
    return crowds.section("Tasks", TEXT, "tasks", WHY)
