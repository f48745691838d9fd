"""What the caller pays, and the server hears, when a connection to PostgreSQL comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from inspect import isawaitable
from statistics import median
from typing import Any, NamedTuple

from benchmarks.figure import Figure
from benchmarks.page.section import Section, Table
from benchmarks.peers import postgres
from benchmarks.race import LOOP, Contestant, LeftOut, compiled, opened
from millpond.testing import Postgres, Proxy

__all__ = ["run"]

ROUND_TRIP = 0.020
"""Seconds, made by a proxy."""
OPEN = "a transaction is left open"
NOTHING = "nothing is open"
WORKS = {
    postgres.PSYCOPG: {NOTHING: 'conn.execute("select 1", prepare=False)', OPEN: 'conn.execute("begin")'},
    postgres.ASYNCPG: {NOTHING: 'await conn.execute("select 1")', OPEN: 'await conn.execute("begin")'},
}
"""Nothing is prepared: the server hears the same each time."""

TEXT = """
The server is 20 ms away, behind a proxy, and each loan asks once: how many more round trips does the caller wait for
before it has left the block, and how many bytes more does the server hear, at whatever time? Connections commit by
themselves. psycopg_pool commits what is open, which the caller has to wait for; millpond rolls it back, beside the
line, as asyncpg's pool does while the caller waits.
"""
WHY = ""


def _who(contestant: Contestant) -> str:
    return f"{contestant.name}, lends {contestant.lends}, {NOTHING}"


class _Cost(NamedTuple):
    round_trips: float
    sent: int


def run(quick: bool) -> Section:
    """Measure loans, one after the other."""
    costs, contestants, left_out = asyncio.run(_measure(2 if quick else 7))
    rows, figures = [], []
    for contestant in contestants:
        bare = next(each for each in contestants if each.floor and each.lends == contestant.lends)
        cells = [contestant.lends, f"**{contestant.name}**" if contestant.ours else contestant.name]
        for work in (NOTHING, OPEN):
            mine, floor = costs[contestant, work], costs[bare, work]
            more = round(mine.round_trips - floor.round_trips, 1) + 0.0
            cells += [f"{more:.1f}", f"{mine.sent - floor.sent}"]
            if contestant.ours and work == NOTHING:
                figures.append(Figure("round trips of the return", _who(contestant), more, "", 0.5, digits=1))
                if "session" not in contestant.name:
                    sent = mine.sent - floor.sent
                    figures.append(Figure("bytes sent for it", _who(contestant), sent, " B", 0, digits=0))
        rows.append(cells)
    head = ("lends", "", *(f"{work}: {what}" for work in (NOTHING, OPEN) for what in ("round trips", "bytes sent")))
    return Section("Resets", TEXT, [Table(head, rows, words=2)], [], figures, left_out, contestants, WHY)


async def _measure(loans: int) -> tuple[dict[tuple[Contestant, str], _Cost], list[Contestant], list[LeftOut]]:
    costs: dict[tuple[Contestant, str], _Cost] = {}
    with Postgres() as server, Proxy(server.host, server.port) as proxy:

        async def attempt(contestant: Contestant, pool: object) -> object:
            return pool

        kinds = postgres.resets(proxy.url_for(server.url))
        async with opened(kinds, 4, attempt) as (able, left_out):
            for contestant, pool in able:
                for work, code in WORKS[contestant.lends].items():
                    costs[contestant, work] = await _cost(contestant, pool, code, proxy, loans)
    return costs, [contestant for contestant, _ in able], left_out


async def _cost(contestant: Contestant, pool: object, code: str, proxy: Proxy, loans: int) -> _Cost:
    lap = compiled(LOOP, contestant, code, pool=pool)
    # Without a pool nobody ends what is left open; that is not the loan's doing.
    ending = code.replace("begin", "rollback") if contestant.floor and "begin" in code else "pass"
    end = compiled(LOOP, contestant, ending, pool=pool)
    times, sent = [], []
    for _ in range(loans):
        before = proxy.bytes_from_client
        proxy.delay(ROUND_TRIP / 2)
        times.append(await _once(lap))
        await asyncio.sleep(8 * ROUND_TRIP)
        proxy.delay(0)
        sent.append(proxy.bytes_from_client - before)
        await _once(end)
    return _Cost(median(times) / ROUND_TRIP, int(median(sent)))


async def _once(lap: Callable[..., Any]) -> float:
    took = lap(time.perf_counter, (None,))
    return float(await took) if isawaitable(took) else float(took)
