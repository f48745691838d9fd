"""How long does a loan take beside one of redis-py's own pool, which looks at each connection, too, before it lends it?

By itself, and as part of a GET on the loopback.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figure import Figure
from benchmarks.peers import redis
from benchmarks.race import race
from millpond.testing import Valkey

__all__ = ["measure"]

GOAL = 1.0


def measure() -> Iterator[Figure]:
    """Yield four figures: a loan and a GET, of threads and of tasks."""
    with Valkey() as server:
        for what, contestants in (
            ("a loan of threads", redis.threads(server.url)),
            ("a loan of tasks", redis.tasks(server.url)),
            ("a GET of threads", redis.clients(server.url)),
            ("a GET of tasks", redis.clients_of_tasks(server.url)),
        ):
            outcome = race(contestants, rounds=200, lap=0.003)
            lends = contestants[0].lends
            ours, theirs = outcome.of("millpond.redis", lends), outcome.of("redis-py", lends)
            assert ours is not None and theirs is not None, outcome.left_out
            yield Figure("beside redis-py's own pool", what, ours.over(theirs), " x", GOAL)
