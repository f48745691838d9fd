"""Every connector for tasks, and what a caller asks of its connections."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from millpond.connectors.aiosqlite import Aiosqlite
from millpond.connectors.asyncpg import Asyncpg
from millpond.connectors.psycopg import AsyncPsycopg
from millpond.connectors.redis import AsyncRedis
from millpond.connectors.sockets import AsyncSocket

from .patience import LOOPS, Loop

__all__ = ["DRIVERS", "Driver", "Servers", "echo_server"]


class Servers(NamedTuple):
    """Where there is something to connect to."""

    postgres: str
    valkey: str
    echo: int
    """A port where every line comes back."""
    folder: Path


class Driver(NamedTuple):
    """A connector, and how one asks a connection of it for a number, having it at work for a while."""

    connector: Callable[[Servers], Any]
    ask: Callable[[Any, int], Awaitable[int]]
    loops: tuple[Loop, ...] = ("asyncio",)


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            for line in self.rfile:
                self.wfile.write(line)
        except ConnectionError:
            pass


class _EchoServer(socketserver.ThreadingTCPServer):
    block_on_close = False
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def echo_server() -> Iterator[int]:
    """Run a server that says every line again; yield its port."""
    with _EchoServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


async def _ask_psycopg(conn: Any, number: int) -> int:
    async with conn.transaction():
        row = await (await conn.execute("select %s::int, pg_sleep(0.001)", (number,))).fetchone()
    return int(row[0])


async def _ask_asyncpg(conn: Any, number: int) -> int:
    async with conn.transaction():
        row = await conn.fetchrow("select $1::int, pg_sleep(0.001)", number)
    return int(row[0])


async def _ask_aiosqlite(conn: Any, number: int) -> int:
    await conn.execute("begin")
    async with conn.execute("select ?", (number,)) as cursor:
        row = await cursor.fetchone()
    await conn.commit()
    return int(row[0])


async def _ask_redis(conn: Any, number: int) -> int:
    await conn.send_command("ECHO", str(number))
    return int(await conn.read_response())


async def _ask_socket(conn: Any, number: int) -> int:
    await conn.send(b"%d\n" % number)
    line = b""
    while not line.endswith(b"\n"):
        line += await conn.receive()
    return int(line)


DRIVERS: Final = {
    "psycopg": Driver(lambda servers: AsyncPsycopg(servers.postgres), _ask_psycopg),
    "asyncpg": Driver(lambda servers: Asyncpg(servers.postgres), _ask_asyncpg),
    "aiosqlite": Driver(lambda servers: Aiosqlite(servers.folder / "drivers.db"), _ask_aiosqlite),
    "redis": Driver(lambda servers: AsyncRedis(servers.valkey), _ask_redis),
    "socket": Driver(lambda servers: AsyncSocket("127.0.0.1", servers.echo), _ask_socket, LOOPS),
}
