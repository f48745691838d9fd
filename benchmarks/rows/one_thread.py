"""What it costs a single thread to borrow an idle connection and return it, doing nothing with it."""

from __future__ import annotations

from benchmarks.figure import Figure
from benchmarks.page.section import Section, gains, standings
from benchmarks.peers import objects, postgres, redis
from benchmarks.race import LAP, ROUNDS, race
from millpond.testing import Postgres, Valkey

__all__ = ["FLOOR_GOAL", "run"]

FLOOR_GOAL = 2.0
GAINS = (
    ("psycopg_pool", postgres.PSYCOPG, 10.0),
    ("SQLAlchemy QueuePool", "an object", 10.0),
    ("SQLAlchemy QueuePool", postgres.PSYCOPG, 10.0),
    ("redis-py", redis.REDIS, 10.0),
    ("connpool", "an object", 10.0),
)

TEXT = """
Ten idle connections, one thread. millpond keeps its statistics, its leases and its check window; the variant that notes
the call site of each loan (`leak_after`) is there too. Of an object that leads nowhere no pool can ask anything:
SQLAlchemy's reset is off, DBUtils' ping and reset, and connpool's `validate_after_idle`. Connections to PostgreSQL and
Redis are looked at on each return (millpond), each time they are lent (redis-py looks whether there is something to
read), or when they come back (psycopg_pool, SQLAlchemy, psycopg2: the transaction status). Nobody does a round trip.
"""
WHY = ""


def run(quick: bool) -> Section:
    """Race for threads, with each thing that is lent."""
    rounds, lap = (5, LAP / 10) if quick else (ROUNDS, LAP)
    with Postgres() as database, Valkey() as store:
        contestants = [
            *objects.THREADS,
            *(each for each in postgres.threads(database.url) if not each.floor),
            *redis.threads(store.url),
        ]
        found = race(contestants, rounds=rounds, lap=lap)
    table, chart = standings([found], "Borrow and return, one thread", "one-thread")
    figures = []
    ours, empty = found.ours(objects.OURS.lends), found.of(objects.EMPTY.name, objects.EMPTY.lends)
    if ours and empty:
        figures.append(Figure("with pool.connection()", "beside an empty with", ours.over(empty), " x", FLOOR_GOAL))
    figures += gains(found, GAINS)
    return Section("One thread", TEXT, [table], [chart], figures, found.left_out, contestants, WHY)
