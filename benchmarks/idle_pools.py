"""Many pools to which nothing happens; and a pool whose connections have all died without a word."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.figure import Figure
from millpond import KeyedPool, Pool
from millpond.connectors.sockets import Socket
from millpond.testing import FakeConnection, FakeConnector

__all__ = ["Asking", "measure", "silent"]

POOLS = 500
SECONDS = 5.0
CONNECTIONS = 20
WAY = "idle-pools"


def ours() -> int:
    """Count the threads of millpond's."""
    return sum(thread.name.startswith("millpond-") for thread in threading.enumerate())


def use(pools: list[Pool[FakeConnection]]) -> None:
    """Have each open a connection, and be used from several threads at once."""

    def borrow(some: list[Pool[FakeConnection]]) -> None:
        for pool in some:
            with pool.connection():
                pass

    threads = [threading.Thread(target=borrow, args=(pools[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def until_few(few: int, timeout: float) -> float:
    """Wait until there are few threads; return the seconds that took."""
    began = time.monotonic()
    while ours() > few and time.monotonic() < began + timeout:
        time.sleep(0.01)
    return time.monotonic() - began


def spent() -> float:
    """Return the part of a core, in percent, that this process takes while it does nothing."""
    cpu, began = time.process_time(), time.monotonic()
    time.sleep(SECONDS)
    return (time.process_time() - cpu) / (time.monotonic() - began) * 100


@contextmanager
def silent() -> Iterator[tuple[int, list[socket.socket]]]:
    """A server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        taken: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1], taken
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for conn in taken:
                conn.close()


class Asking(Socket):
    """A protocol in which a ping waits for an answer."""

    dead: frozenset[socket.socket] = frozenset()

    def ping(self, conn: socket.socket, timeout: float) -> None:
        """Wait for an answer, if it comes from one who is dead."""
        if conn in self.dead:
            conn.settimeout(timeout)
            if not conn.recv(1):
                raise ConnectionResetError


def served_after() -> float:
    """Return the seconds after which a caller is served by a full pool whose idle connections are all dead."""
    with silent() as (port, taken):
        connector = Asking("127.0.0.1", port)
        with Pool(connector, max_size=CONNECTIONS) as pool:
            with ExitStack() as loans:
                connector.dead = frozenset(loans.enter_context(pool.connection()) for _ in range(CONNECTIONS))
            pool._step(pool._core.suspect)
            began = time.monotonic()
            with pool.connection():
                waited = time.monotonic() - began
            for conn in list(taken):
                conn.close()
    return waited


def measure() -> Iterator[Figure]:
    """Yield the threads and the time of idle pools, plain and keyed, and how long silent deaths hold up a caller."""
    logging.getLogger("millpond").setLevel(logging.CRITICAL)
    for kind in ("pools", "keys"):
        keyed: KeyedPool[int, FakeConnection] = KeyedPool(lambda _: FakeConnector(), max_size=2)
        pools = [keyed[number] if kind == "keys" else Pool(FakeConnector(), max_size=2) for number in range(POOLS)]
        use(pools)
        yield Figure(WAY, f"{POOLS} {kind} after a burst, until 3 threads or fewer", until_few(3, 30.0), " s", 6.0)
        yield Figure(WAY, f"{POOLS} {kind}, threads", ours(), "", 3, digits=0)
        yield Figure(WAY, f"{POOLS} {kind}, of a core", spent(), " %", 0.5)
        for pool in pools:
            pool.close()
    waits = [served_after() for _ in range(5)]
    yield Figure(
        WAY, f"{CONNECTIONS} of {CONNECTIONS} idle are silently dead, first loan (longest of 5)", max(waits), " s", 1.5
    )
