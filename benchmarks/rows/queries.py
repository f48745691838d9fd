"""The least that one can ask of a server, through a pool, and on one connection without any."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figure import Figure
from benchmarks.page.section import Section, gains, standings
from benchmarks.peers import http, postgres, redis
from benchmarks.race import LAP, ROUNDS, Race, race
from benchmarks.urllib3_server import serving
from millpond.testing import Postgres, Valkey

__all__ = ["run"]

OVERHEAD_GOAL = 1.05
LENT = (
    postgres.PSYCOPG,
    postgres.ASYNC_PSYCOPG,
    postgres.ASYNCPG,
    redis.REDIS,
    redis.ASYNC_REDIS,
    "urllib3",
    "requests",
)
"""For each of these there is one connection without a pool."""
GAINS = (
    ("psycopg_pool", postgres.PSYCOPG, 1.3),
    ("psycopg_pool", postgres.ASYNC_PSYCOPG, 1.3),
    ("asyncpg's pool", postgres.ASYNCPG, 3.0),
    ("redis-py", redis.REDIS, 1.25),
    ("redis-py", redis.ASYNC_REDIS, 1.25),
    ("httpx2", "httpx2, asyncio", 1.5),
)
NO_SLOWER = ("urllib3", "requests", "httpx2")
NO_SLOWER_GOAL = 1.03
"""Three in a hundred are noise."""

TEXT = """
`select 1` on PostgreSQL, `GET` of a missing key on Valkey, and a small page over HTTP/1.1, all servers on this machine,
one caller. The floor is the same client on one connection that it keeps: for urllib3 and requests a pool in their own
seam that gives out the same connection every time. PostgreSQL's connections commit by themselves, so nobody has a
transaction to end; asyncpg's pool resets the session on each return, by default, millpond only if it is told to.
redis-py's clients are those for everybody, `redis.Redis`, with hiredis. httpcore2 and aiohttp are there to compare the
clients. SQLAlchemy's engine is not: its connections do more for a query than the drivers' do.
"""
WHY = ""


def run(quick: bool) -> Section:
    """Race for each server."""
    rounds, lap = (3, LAP) if quick else (ROUNDS, 2 * LAP)
    with Postgres() as database, Valkey() as store, serving() as port:
        url = f"http://127.0.0.1:{port}/"
        contestants = [
            *(
                each
                for each in (*postgres.threads(database.url), *postgres.tasks(database.url))
                if each.lends in postgres.QUERIES and each.name != "SQLAlchemy async"
            ),
            *redis.clients(store.url),
            *redis.clients_of_tasks(store.url),
            *http.clients(url),
            *http.clients_of_tasks(url),
        ]
        found = race(contestants, works=postgres.QUERIES, rounds=rounds, lap=lap)
    table, chart = standings([found], "One query, one caller", "queries")
    figures = [*_overheads(found), *gains(found, GAINS), *_losses(found)]
    return Section("Queries", TEXT, [table], [chart], figures, found.left_out, contestants, WHY)


def _overheads(found: Race) -> Iterator[Figure]:
    for lends in LENT:
        ours, bare = found.ours(lends), found.of("floor: one connection", lends)
        if ours and bare:
            yield Figure("time beside one connection", lends, ours.over(bare), " x", OVERHEAD_GOAL)


def _losses(found: Race) -> Iterator[Figure]:
    for library in NO_SLOWER:
        ours, theirs = found.ours(library), found.of(library, library)
        if ours and theirs:
            yield Figure("time beside its own pool", library, ours.over(theirs), " x", NO_SLOWER_GOAL)
