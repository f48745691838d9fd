"""Connectors whose connections lead nowhere, fail as scripted, and remember all that was done to them."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from millpond.connector import Condition

if TYPE_CHECKING:
    import anyio

__all__ = ["AsyncFakeConnector", "FakeConnection", "FakeConnector"]

Step = Literal["open", "ping", "reset", "close"]


class FakeConnection:
    """A connection that leads nowhere. A test may make it `dirty` or `broken`; `FakeConnector.die` makes it die."""

    def __init__(self, number: int, connector: _Fake, ends: tuple[socket.socket, socket.socket] | None) -> None:
        self.number: int = number
        """Which one this is, counted from 1 in the order of opening."""
        self.dirty = False
        """Whether it has to be reset before it is lent again."""
        self.broken = False
        """Whether it is cut in the middle of an exchange."""
        self.dead = False
        """Whether its peer has hung up."""
        self.silent = False
        """Whether its peer is gone and nothing shows it but a ping."""
        self.parted: Literal["", "closed", "abandoned"] = ""
        """How the pool has parted with it."""
        self._connector = connector
        self._ends = ends
        self._used = threading.Lock()

    @contextlib.contextmanager
    def use(self) -> Iterator[FakeConnection]:
        """Use it as a borrower does.

        Raises AssertionError if another uses it at the same time or if the pool has closed it (and the connector
        remembers: see `mistakes`), and ConnectionResetError if it is dead.
        """
        if not self._used.acquire(blocking=False):
            raise self._connector._mistake(f"{self} is lent twice at the same time")
        try:
            if self.parted:
                raise self._connector._mistake(f"{self} is lent after it was {self.parted}")
            if self.dead or self.silent:
                raise ConnectionResetError(f"{self} is dead")
            yield self
            if self in self._connector.closed:
                raise self._connector._mistake(f"{self} was closed while it was lent")
        finally:
            self._used.release()

    def __repr__(self) -> str:
        return f"<FakeConnection {self.number}>"


class _Fake:
    """What is the same for threads and tasks: the script and the record."""

    def __init__(self, *, open_time: float = 0.0, provable: bool = True, watchable: bool = False) -> None:
        self.open_time: float = open_time
        self.provable: bool = provable
        self.watchable: bool = watchable
        self.target: str = "fake://nowhere"
        self.opened: list[FakeConnection] = []
        """Every connection that was opened, in order."""
        self.closed: list[FakeConnection] = []
        """Every connection that was closed in good order."""
        self.abandoned: list[FakeConnection] = []
        """Every connection that was abandoned."""
        self.pings: list[FakeConnection] = []
        """The connection of every ping, also of those that failed."""
        self.resets: list[FakeConnection] = []
        """The connection of every reset, also of those that failed."""
        self.failures: list[BaseException] = []
        """What every open that failed or was cancelled has raised."""
        self.mistakes: list[str] = []
        """What a pool must never do and did: lend twice, close twice, use what is closed."""
        self.opening: int = 0
        """How many opens are under way."""
        self.most_opening: int = 0
        """How many opens were ever under way at once."""
        self.most_live: int = 0
        """How many connections ever were open at once."""
        self._live: dict[FakeConnection, None] = {}
        self._numbers = itertools.count(1)
        self._script: dict[Step, list[BaseException]] = {"open": [], "ping": [], "reset": [], "close": []}
        self._outages: list[tuple[Callable[[], bool], BaseException]] = []
        self._held = False
        self._let_through = 0
        self._changes: dict[int, threading.Condition] = {}

    @property
    def _changed(self) -> threading.Condition:
        """Each process has its own: a thread that a forked child does not have may hold its parent's."""
        found = self._changes.get(os.getpid())
        return found or self._changes.setdefault(os.getpid(), threading.Condition(threading.RLock()))

    # The script

    def hold(self) -> None:
        """Let no open finish, from now on, until `let_go`."""
        with self._changed:
            self._held = True

    def let_go(self, count: int | None = None) -> None:
        """Let that many held opens finish, those to come included; or all of them, and hold none any more."""
        with self._changed:
            if count is None:
                self._held = False
                self._let_through = 0
            else:
                self._let_through += count
        self._notify()

    def fail_next(self, count: int = 1, error: BaseException | None = None, *, step: Step = "open") -> None:
        """Let the next `count` opens (or pings, resets, closes) raise `error`, a ConnectionRefusedError by default.

        PermissionError stands for a refused login: see `refused`.
        """
        with self._changed:
            self._script[step] += [error or ConnectionRefusedError("scripted failure")] * count

    def fail_until(self, recovered: Callable[[], bool], error: BaseException | None = None) -> None:
        """Let every open raise `error`, a ConnectionRefusedError by default, until `recovered()` is true."""
        with self._changed:
            self._outages.append((recovered, error or ConnectionRefusedError("scripted outage")))

    def die(self, *connections: FakeConnection, silently: bool = False) -> None:
        """Let these connections die, or all that are open; `silently` as behind a lost NAT entry, for pings to find."""
        with self._changed:
            for conn in connections or tuple(self._live):
                if silently:
                    conn.silent = True
                else:
                    conn.dead = True
                    if conn._ends is not None:
                        conn._ends[1].close()
        self._notify()

    # The record

    @property
    def live(self) -> list[FakeConnection]:
        """The connections that are open, dead ones too if nobody has closed them."""
        return list(self._live)

    # What threads and tasks have in common of a connector

    def inspect(self, conn: FakeConnection, error: BaseException | None) -> Condition:
        """Tell its condition by its marks; the error does not matter."""
        if conn.parted:
            self._mistake(f"{conn} is inspected after it was {conn.parted}")
        if conn.dead or conn.broken or conn.parted:
            return Condition.BROKEN
        return Condition.DIRTY if conn.dirty else Condition.CLEAN

    def alive(self, conn: FakeConnection) -> bool:
        """Tell whether it has not died, or has done so silently."""
        return not conn.dead

    def descriptor(self, conn: FakeConnection) -> int | None:
        """Return the descriptor of its socket if the connector is `watchable`; its death is a hang-up there."""
        return conn._ends[0].fileno() if conn._ends is not None and not conn.parted else None

    def abandon(self, conn: FakeConnection) -> None:
        """Note that it was abandoned."""
        self._part(conn, self.abandoned, "abandoned")

    def refused(self, error: BaseException) -> bool:
        """Tell whether it is a PermissionError."""
        return isinstance(error, PermissionError)

    # The steps of each call

    def _begin(self) -> None:
        with self._changed:
            self.opening += 1
            self.most_opening = max(self.most_opening, self.opening)
        self._notify()

    def _passed(self) -> bool:
        """Whether an open that was held may go on."""
        with self._changed:
            if not self._held:
                return True
            if self._let_through:
                self._let_through -= 1
                return True
            return False

    def _opened(self) -> FakeConnection:
        with self._changed:
            self._play("open")
            self._outages = [(recovered, error) for recovered, error in self._outages if not recovered()]
            if self._outages:
                raise self._outages[0][1]
            conn = FakeConnection(next(self._numbers), self, socket.socketpair() if self.watchable else None)
            self.opened.append(conn)
            self._live[conn] = None
            self.most_live = max(self.most_live, len(self._live))
            return conn

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._begin()
        try:
            yield
        except BaseException as error:
            self.failures.append(error)
            raise
        finally:
            with self._changed:
                self.opening -= 1
            self._notify()

    def _pinged(self, conn: FakeConnection) -> None:
        self._used(conn, self.pings, "ping")
        if conn.silent:
            raise TimeoutError(f"{conn} does not answer")

    def _reset(self, conn: FakeConnection) -> None:
        self._used(conn, self.resets, "reset")
        conn.dirty = False

    def _used(self, conn: FakeConnection, record: list[FakeConnection], step: Step) -> None:
        with self._changed:
            record.append(conn)
            if conn.parted:
                self._mistake(f"{step} of {conn} after it was {conn.parted}")
            self._notify()
            self._play(step)
            if conn.dead or conn.parted:
                raise ConnectionResetError(f"{conn} is dead")

    def _close(self, conn: FakeConnection) -> None:
        self._part(conn, self.closed, "closed")
        self._play("close")

    def _part(self, conn: FakeConnection, record: list[FakeConnection], how: Literal["closed", "abandoned"]) -> None:
        with self._changed:
            record.append(conn)
            if conn.parted:
                self._mistake(f"{conn} is {how} after it was {conn.parted}")
            conn.parted = how
            self._live.pop(conn, None)
            for end in conn._ends or ():
                end.close()
        self._notify()

    def _play(self, step: Step) -> None:
        with self._changed:
            if self._script[step]:
                raise self._script[step].pop(0)

    def _mistake(self, what: str) -> AssertionError:
        self.mistakes.append(what)
        return AssertionError(what)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


class FakeConnector(_Fake):
    """A `Connector` for tests of pools for threads.

    An open takes `open_time` seconds. `provable` is what a pool reads. `watchable` gives every connection a real
    socket, on which its death is a hang-up. What is scripted may be changed at any time, from any thread.
    """

    def open(self, timeout: float) -> FakeConnection:
        """Open a connection as scripted; raise TimeoutError if that takes longer than `timeout` seconds."""
        with self._counted():
            deadline = time.monotonic() + timeout
            time.sleep(min(self.open_time, timeout))
            with self._changed:
                passed = self._changed.wait_for(self._passed, deadline - time.monotonic())
            if not passed or self.open_time > timeout:
                raise TimeoutError(f"not opened within {timeout} s")
            return self._opened()

    def ping(self, conn: FakeConnection, timeout: float) -> None:
        """Note the ping; raise as scripted or if the connection is dead."""
        self._pinged(conn)

    def reset(self, conn: FakeConnection, timeout: float) -> None:
        """Note the reset and make the connection clean; raise as scripted or if it is dead."""
        self._reset(conn)

    def close(self, conn: FakeConnection) -> None:
        """Note that it was closed; raise as scripted."""
        self._close(conn)

    def wait_until(self, seen: Callable[[], bool], timeout: float = 5) -> None:
        """Wait until `seen()` is true of the record, asking after each change; or raise TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(seen, timeout):
                raise TimeoutError(f"not seen within {timeout} s")


class AsyncFakeConnector(_Fake):
    """An `AsyncConnector` for tests of pools for tasks, on asyncio or trio: as `FakeConnector`, with `await`.

    It belongs to the loop that it is used in. Raises ImportError if anyio is not installed.
    """

    def __init__(self, *, open_time: float = 0.0, provable: bool = True, watchable: bool = False) -> None:
        if importlib.util.find_spec("anyio") is None:
            raise ImportError("AsyncFakeConnector needs anyio; pip install 'millpond[testing]' brings it", name="anyio")
        super().__init__(open_time=open_time, provable=provable, watchable=watchable)
        self._waiting: list[anyio.Event] = []

    async def open(self, timeout: float) -> FakeConnection:
        """Open a connection as scripted; raise TimeoutError if that takes longer than `timeout` seconds."""
        import anyio

        with self._counted():
            with anyio.fail_after(timeout):
                await anyio.sleep(self.open_time)
                await self._wait(self._passed)
            return self._opened()

    async def ping(self, conn: FakeConnection, timeout: float) -> None:
        """Note the ping; raise as scripted or if the connection is dead."""
        await _yield()
        self._pinged(conn)

    async def reset(self, conn: FakeConnection, timeout: float) -> None:
        """Note the reset and make the connection clean; raise as scripted or if it is dead."""
        await _yield()
        self._reset(conn)

    async def close(self, conn: FakeConnection) -> None:
        """Note that it was closed; raise as scripted."""
        self._close(conn)
        await _yield()

    async def wait_until(self, seen: Callable[[], bool], timeout: float = 5) -> None:
        """Wait until `seen()` is true of the record, asking after each change; or raise TimeoutError."""
        import anyio

        with anyio.fail_after(timeout):
            await self._wait(seen)

    async def _wait(self, seen: Callable[[], bool]) -> None:
        import anyio

        while not seen():
            event = anyio.Event()
            self._waiting.append(event)
            await event.wait()

    def _notify(self) -> None:
        super()._notify()
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            event.set()


async def _yield() -> None:
    """Let other tasks run: what a round trip does, and where a cancellation may arrive."""
    import anyio.lowlevel

    await anyio.lowlevel.checkpoint()
