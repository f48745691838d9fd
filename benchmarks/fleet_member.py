"""A process of `benchmarks.fleet`: its callers run short transactions whenever its group's turn has come.

PLAN is JSON, a `Plan`. It says "ready" when it has imported what it needs, begins when it hears at what time, and tells
at the end, as JSON, how many transactions it has done and which errors its callers have met.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from typing import Any, NamedTuple

import psycopg

from millpond import FleetBudget, Pool, PoolError
from millpond.connectors.psycopg import Psycopg

__all__ = ["Plan"]


class Plan(NamedTuple):
    """What a process does."""

    server: str
    """URL of the PostgreSQL."""
    callers: int
    work: float
    """Seconds that a transaction takes in the server."""
    coordinator: str = ""
    """URL of the Valkey, or nothing: a pool of the size that is given, and no budget."""
    limit: int = 0
    size: int = 1
    lease: float = 15.0
    seconds: float = 1e9
    group: int = 0
    groups: int = 1
    period: float = 0.0
    """Seconds that a group's turn lasts; 0 for all the time."""

    def active(self, since: float) -> bool:
        """Whether callers come now, so many seconds after the beginning."""
        return not self.period or int(since / self.period) % self.groups == self.group


def run(plan: Plan) -> None:
    """Do it."""
    budget = None
    if plan.coordinator:
        # None is kept by a process whose callers are gone: 32 of them would keep 32 of 40.
        budget = FleetBudget(plan.coordinator, "measured", plan.limit, lease=plan.lease, minimum=0)
    connector = Psycopg(plan.server, autocommit=True)
    pool = Pool[Any](connector, max_size=plan.size, max_opening=plan.size, timeout=60, budget=budget)
    done = [0] * plan.callers
    errors = Counter[str]()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    began = float(sys.stdin.readline())
    statement = f"select pg_sleep({plan.work})"
    with pool.connection():
        pass  # a budget that nobody has heard of gives nothing for a while: that is over when it begins

    def call(number: int) -> None:
        while (since := time.monotonic() - began) < plan.seconds:
            if since < 0 or not plan.active(since):
                time.sleep(0.005)
                continue
            try:
                with pool.connection() as conn:
                    conn.execute(statement)
                done[number] += 1
            except (PoolError, psycopg.Error) as error:
                errors[f"{type(error).__name__}: {str(error.__cause__ or error).splitlines()[0]}"] += 1

    callers = [threading.Thread(target=call, args=(number,)) for number in range(plan.callers)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    pool.close()
    if budget is not None:
        budget.close()
    sys.stdout.write(json.dumps({"done": sum(done), "errors": errors}) + "\n")


if __name__ == "__main__":
    run(Plan(*json.loads(sys.argv[1])))
