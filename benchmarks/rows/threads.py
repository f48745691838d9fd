"""Threads who take turns at eight connections."""

from __future__ import annotations

from benchmarks.figure import Figure
from benchmarks.page.section import Section
from benchmarks.peers import objects, postgres, redis
from benchmarks.turns import NO_POOL, Crowds, take_turns
from millpond.testing import Postgres, Valkey

__all__ = ["run"]

CONNECTIONS = 8
SIZES = (2, 8, 64, 256)
WORKS = {"no work": "pass", "0.1 ms": "sleep(0.0001)", "1 ms": "sleep(0.001)"}
SECONDS = {"no work": 0.25, "0.1 ms": 0.5, "1 ms": 0.75}
"""How long a round takes; to set 256 threads going takes some hundredths of a second of it."""
GAIN_GOAL = 10.0
CONVOY_GOAL = 0.5
NOT_FULL = ("queue.LifoQueue", "DBUtils PooledDB")
"""Has no timeouts, lifetimes or checks that time brings."""

TEXT = """
Eight connections; each thread borrows, sleeps for the time of the work, returns, and begins anew. The limit ("no pool")
is what eight threads (two, where there are but two) get done without a pool. psycopg2's pool is not here: it raises
when all connections are on loan. Full-featured, for the goal below, are all but `queue.LifoQueue` and DBUtils, which
know neither timeouts nor lifetimes. Who lends to those that are awake, and lets others wait, gets more done: look at
the longest wait and Jain's index as well.
"""
WHY = ""


def run(quick: bool) -> Section:
    """Have crowds of threads take turns."""
    with Postgres() as database, Valkey() as store:
        contestants = [
            NO_POOL,
            *(each for each in objects.THREADS if not each.floor and each.name != "millpond, call sites noted"),
            *(each for each in postgres.threads(database.url) if each.name in ("millpond", "psycopg_pool")),
            *(each for each in redis.threads(store.url, blocking=True) if each.name != "millpond"),
        ]
        crowds = Crowds(CONNECTIONS, SIZES, WORKS, "threads")
        take_turns(
            contestants,
            crowds,
            rounds=lambda size: 1 if quick else 3,
            seconds=lambda work, size: 0.03 if quick else SECONDS[work],
        )
    section = crowds.section("Threads", TEXT, "threads", WHY)
    section.figures[:0] = _figures(crowds)
    return section


def _figures(crowds: Crowds) -> list[Figure]:
    ours = crowds.ours
    rates = {each.name: crowds.rate(each, "no work", 8) for each in crowds.contestants}
    peers = {
        each.name: rates[each.name]
        for each in crowds.contestants
        if not each.ours and not each.floor and each.name not in NOT_FULL
    }
    best = max(peers, key=lambda name: peers[name])
    gain = crowds.rate(ours, "no work", 8) / peers[best]
    convoy = crowds.rate(ours, "no work", 64) / crowds.rate(ours, "no work", 2)
    return [
        Figure("turns, no work, 8 threads", f"beside the best full-featured peer, {best}", gain, " x", GAIN_GOAL, ">="),
        Figure("turns, no work", "64 threads beside 2", convoy, " x", CONVOY_GOAL, ">="),
    ]
