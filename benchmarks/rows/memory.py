"""What an idle connection, a waiting task and a waiting thread take of the memory."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext

from benchmarks.figure import Figure
from benchmarks.page.section import Section, Table
from benchmarks.peers import objects
from benchmarks.race import Contestant, LeftOut, compiled, opened, reason_of

__all__ = ["run"]

ENTRY_GOAL = 400
WAITER_GOAL = 1000

WAIT = """
{kind} wait(entered):
    {loan}
"""
TEXT = """
Counted by `tracemalloc`, which sees what Python and its modules allocate, and divided by how many there are: of an idle
connection without the connection itself; of a thread without its stack, which the system gives. A task that waits, and
a thread, take something themselves, whatever they wait for; what the pool adds to that is the difference to the floor.
"""
WHY = """
What is left of an idle entry is the record of the connection (192 bytes), the claim and its two guards (168), which
tell the pool if an exception loses it, its places in two dictionaries (60), its number and times. To find a record by
its connection, for `release`, takes a sixth.
"""


def _taken() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@asynccontextmanager
async def _future() -> AsyncIterator[asyncio.Future[None]]:
    yield asyncio.get_running_loop().create_future()


LOCK = Contestant("floor: a lock", "with pool:\n    pass", lambda size: nullcontext(_taken()))
FUTURE = Contestant("floor: a future", "await pool", lambda size: _future())


def run(quick: bool) -> Section:
    """Count."""
    entries, tasks, threads = (200, 200, 20) if quick else (5_000, 5_000, 200)
    left_out: list[LeftOut] = []
    idle, queueing, sleeping = (
        dict(_counted(kinds, count, left_out))
        for kinds, count in (
            ([each for each in objects.THREADS if not each.floor], lambda kind: _idle(kind, entries)),
            ([FUTURE, *_pools(objects.TASKS)], lambda kind: asyncio.run(_waiting_tasks(kind, tasks))),
            ([LOCK, *_pools(objects.THREADS)], lambda kind: _waiting_threads(kind, threads)),
        )
    )
    figures = []
    if objects.OURS in idle:
        figures.append(Figure("an idle entry", "millpond", idle[objects.OURS], " B", ENTRY_GOAL, digits=0))
    tables = [_table("an idle connection", idle, None)]
    for title, counts, floor, ours in (
        ("a waiting task", queueing, FUTURE, objects.OURS_OF_TASKS),
        ("a waiting thread", sleeping, LOCK, objects.OURS),
    ):
        tables.append(_table(title, counts, counts.get(floor)))
        if ours in counts:
            added = counts[ours] - counts[floor]
            figures.append(Figure(title, "what millpond adds", added, " B", WAITER_GOAL, digits=0))
    return Section("Memory", TEXT, tables, [], figures, left_out, why=WHY)


def _pools(contestants: tuple[Contestant, ...]) -> list[Contestant]:
    return [each for each in contestants if not each.floor and "noted" not in each.name]


def _counted(
    kinds: list[Contestant], count: Callable[[Contestant], float], left_out: list[LeftOut]
) -> Iterator[tuple[Contestant, float]]:
    for kind in kinds:
        try:
            yield kind, count(kind)
        except Exception as error:
            left_out.append(LeftOut(kind, reason_of(error)))


def _table(title: str, counts: dict[Contestant, float], floor: float | None) -> Table:
    head = (title, "bytes each") if floor is None else (title, "bytes each", "beyond the floor")
    rows = []
    for kind, count in counts.items():
        name = f"**{kind.name}**" if kind.ours else kind.name
        rows.append((name, f"{count:,.0f}") if floor is None else (name, f"{count:,.0f}", f"{count - floor:,.0f}"))
    return Table(head, rows)


@contextmanager
def _traced() -> Iterator[Callable[[], int]]:
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()

    def grown() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    try:
        yield grown
    finally:
        tracemalloc.stop()


def _idle(kind: Contestant, count: int) -> float:
    opening = kind.open(count)
    assert isinstance(opening, AbstractContextManager)
    with _traced() as grown:
        lent = [objects.Connection() for _ in range(count)]
        themselves = grown()
        del lent
        with opening:
            return (grown() - themselves) / count


async def _waiting_tasks(kind: Contestant, count: int) -> float:
    async def attempt(kind: Contestant, pool: object) -> Callable[..., Awaitable[None]]:
        return compiled(WAIT, kind, "entered()\nawait forever()", pool=pool, forever=asyncio.Event().wait)

    async with opened([kind], 1, attempt) as (able, left_out):
        if left_out:
            raise RuntimeError(left_out[0].reason)
        wait = able[0][1]
        inside = asyncio.Event()
        # The floors let nobody in.
        holder = None if kind.floor else asyncio.create_task(wait(inside.set))
        if holder is not None:
            await inside.wait()
        with _traced() as grown:
            tasks = [asyncio.create_task(wait(inside.set)) for _ in range(count)]
            for _ in range(10):
                await asyncio.sleep(0)
            taken = grown() / count
        # One after the other, as long as they come: whoever leaves a line may let the next one in.
        for task in [*tasks, holder]:
            if task is not None:
                task.cancel()
        await asyncio.gather(*tasks, *[holder] if holder else [], return_exceptions=True)
    return taken


def _waiting_threads(kind: Contestant, count: int) -> float:
    opening = kind.open(1)
    assert isinstance(opening, AbstractContextManager)
    with opening as pool:
        inside, over = threading.Event(), threading.Event()
        wait = compiled(WAIT, kind, "entered()\nforever()", pool=pool, forever=over.wait)
        holder = threading.Thread(target=wait, args=(inside.set,))
        if not kind.floor:
            holder.start()
            inside.wait()
        with _traced() as grown:
            threads = [threading.Thread(target=wait, args=(inside.set,)) for _ in range(count)]
            for thread in threads:
                thread.start()
            time.sleep(0.1)
            taken = grown() / count
        over.set()
        if kind.floor:
            pool.release()
        for thread in threads:
            thread.join()
        if not kind.floor:
            holder.join()
    return taken
