"""Where the connections of a soak come from, and who uses them."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from millpond import AsyncPool, Pool, PoolError

__all__ = ["Conn", "Site", "Stop", "Tasks", "Threads"]

SIZE = 8
CALLERS = 24


class Stop(BaseException):
    """What is thrown into a thread from outside."""


class Conn:
    """Leads nowhere."""

    dead = False


class Site:
    """Opens and closes, and notes whatever must not be."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.most = SIZE
        self.down = False
        self.live: set[Conn] = set()
        self.lent: list[Conn | None] = [None] * CALLERS
        """What each caller has."""
        self.opened = 0
        self.wrong: list[str] = []
        self.borrows = [0] * CALLERS
        self.failures = 0
        self.longest = 0.0
        """Seconds that a caller has waited who was served."""

    def open(self) -> Conn:
        """Open a connection, unless nobody is there."""
        if self.down:
            raise ConnectionRefusedError("the site is down")
        conn = Conn()
        self.opened += 1
        self.live.add(conn)
        if len(self.live) > self.most:
            self.wrong.append(f"{self.title}: {len(self.live)} connections, and there may be {self.most}")
        return conn

    def close(self, conn: Conn) -> None:
        """Close a connection."""
        if conn in self.lent:
            time.sleep(0.05)  # one who was struck may not have come to note that it has nothing any more
            if conn in self.lent:
                self.wrong.append(f"{self.title}: a connection was closed that somebody had")
        self.live.discard(conn)

    def ping(self, conn: Conn) -> None:
        """Ask whether it is there."""
        if conn.dead:
            raise ConnectionResetError("it is dead")

    @contextmanager
    def use(self, conn: Conn, caller: int, asked: float) -> Iterator[None]:
        """Use a connection as a borrower does."""
        self.longest = max(self.longest, time.monotonic() - asked)
        if conn in self.lent or conn not in self.live:
            self.wrong.append(f"{self.title}: a connection was lent that somebody had, or that was closed")
        self.lent[caller] = conn
        try:
            self.borrows[caller] += 1
            yield
        finally:
            self.lent[caller] = None
        if conn.dead:
            raise ConnectionResetError("it is dead")

    async def open_soon(self) -> Conn:
        """Do as `open`, in a task."""
        await asyncio.sleep(0)
        return self.open()

    async def close_soon(self, conn: Conn) -> None:
        """Do as `close`, in a task."""
        # First what frees it: a broken one is not waited for.
        self.close(conn)
        await asyncio.sleep(0)

    async def ping_soon(self, conn: Conn) -> None:
        """Do as `ping`, in a task."""
        await asyncio.sleep(0)
        self.ping(conn)


class Threads:
    """Threads that borrow and return without pause."""

    def __init__(self) -> None:
        self.site = Site("threads")
        self.pool: Pool[Conn] = Pool(
            self.site.open,
            close=self.site.close,
            ping=self.site.ping,
            name="soak-threads",
            min_size=2,
            max_size=SIZE,
            check_after=0.5,
            timeout=5,
        )
        self.over = False
        self.callers: list[threading.Thread] = []

    def start(self) -> None:
        """Have them begin, and those anew who were struck where nothing protects them."""
        for number in range(CALLERS):
            if number == len(self.callers) or not self.callers[number].is_alive():
                self.callers[number : number + 1] = [threading.Thread(target=self._call, args=(number,), daemon=True)]
                self.callers[number].start()

    def _call(self, number: int) -> None:
        chance = random.Random(number)
        while not self.over:
            try:
                self._turns(number, chance)
            except (PoolError, ConnectionResetError):
                self.site.failures += 1
                time.sleep(0.001)
            except Stop:
                self.site.lent[number] = None

    def _turns(self, number: int, chance: random.Random) -> None:
        while not self.over:
            asked = time.monotonic()
            with self.pool.connection() as conn, self.site.use(conn, number, asked):
                if chance.random() < 0.01:
                    time.sleep(0.001)

    def stop(self) -> None:
        """Have them end."""
        self.over = True
        for caller in self.callers:
            caller.join(30)
        if any(caller.is_alive() for caller in self.callers):
            self.site.wrong.append("threads: somebody waits for ever")


class Tasks:
    """Tasks that do, in a loop in a thread of its own."""

    def __init__(self) -> None:
        self.site = Site("tasks")
        self.pool: AsyncPool[Conn]
        self.loop: asyncio.AbstractEventLoop
        self.callers: list[asyncio.Task[None]] = []
        self.begun = threading.Event()
        self.over = False
        self.thread = threading.Thread(target=asyncio.run, args=(self._main(),), daemon=True)

    def start(self) -> None:
        """Have them begin."""
        self.thread.start()
        self.begun.wait(10)

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        site = self.site
        async with AsyncPool[Conn](
            site.open_soon,
            close=site.close_soon,
            ping=site.ping_soon,
            name="soak-tasks",
            min_size=2,
            max_size=SIZE,
            check_after=0.5,
            timeout=5,
        ) as self.pool:
            self.callers = [asyncio.create_task(self._call(number)) for number in range(CALLERS)]
            self.begun.set()
            while not self.over:
                await asyncio.sleep(0.05)
                for number, caller in enumerate(self.callers):
                    if caller.done():
                        self.callers[number] = asyncio.create_task(self._call(number))
            _, pending = await asyncio.wait(self.callers, timeout=30)
            if pending:
                site.wrong.append("tasks: somebody waits for ever")

    async def _call(self, number: int) -> None:
        chance = random.Random(number)
        while not self.over:
            try:
                await self._turns(number, chance)
            except (PoolError, ConnectionResetError):
                self.site.failures += 1
                await asyncio.sleep(0.001)

    async def _turns(self, number: int, chance: random.Random) -> None:
        while not self.over:
            asked = time.monotonic()
            async with self.pool.connection() as conn:
                with self.site.use(conn, number, asked):
                    await asyncio.sleep(0.001 if chance.random() < 0.01 else 0)

    def cancel(self, number: int) -> None:
        """Cancel a caller; another comes in its place."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.callers[number].cancel)

    def stop(self) -> None:
        """Have them end."""
        self.over = True
        self.thread.join(60)
