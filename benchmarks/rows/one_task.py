"""What it costs a single task to borrow an idle connection and return it, doing nothing with it."""

from __future__ import annotations

from benchmarks.figure import Figure
from benchmarks.page.section import Section, gains, standings
from benchmarks.peers import objects, postgres, redis
from benchmarks.race import LAP, ROUNDS, race
from millpond.testing import Postgres, Valkey

__all__ = ["run"]

FLOOR_GOAL = 2.5
GAINS = (
    ("psycopg_pool", postgres.ASYNC_PSYCOPG, 8.0),
    ("asyncpg's pool", postgres.ASYNCPG, 8.0),
    ("SQLAlchemy async", postgres.ASYNCPG, 8.0),
    ("redis-py", redis.ASYNC_REDIS, 8.0),
)

TEXT = """
Ten idle connections, one task on asyncio. What is checked is what is checked for threads; besides, asyncpg's pool sends
the server its reset of the session on each return, a round trip, which is what it does by default. With a `reset` of
one's own that does nothing it does what millpond does by default: roll back what is open. millpond's `reset="session"`
sends one too, beside the line: the next loan takes another connection, and waits only once all ten are being reset.
SQLAlchemy lends its own `AsyncConnection`, by way of a greenlet, as there is no other way to its pool for tasks.
"""
WHY = ""


def run(quick: bool) -> Section:
    """Race for tasks, with each thing that is lent."""
    rounds, lap = (5, LAP / 10) if quick else (ROUNDS, LAP)
    with Postgres() as database, Valkey() as store:
        contestants = [
            *objects.TASKS,
            *(each for each in postgres.tasks(database.url) if not each.floor),
            *redis.tasks(store.url),
        ]
        found = race(contestants, rounds=rounds, lap=lap)
    table, chart = standings([found], "Borrow and return, one task", "one-task")
    figures = []
    ours, empty = found.ours(objects.OURS_OF_TASKS.lends), found.of(objects.EMPTY_OF_TASKS.name, "an object")
    if ours and empty:
        case = "beside an empty async with"
        figures.append(Figure("async with pool.connection()", case, ours.over(empty), " x", FLOOR_GOAL))
    figures += gains(found, GAINS)
    return Section("One task", TEXT, [table], [chart], figures, found.left_out, contestants, WHY)
