"""One face for both worlds, so that one suite holds for threads and for tasks."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
import trustme
from redis.backoff import ConstantBackoff

import millpond.redis
import millpond.redis.asyncio
from millpond.testing import Valkey

World = Literal["threads", "tasks"]
Kind = Literal["ConnectionPool", "BlockingConnectionPool"]


class Face:
    """The pools of one world. Whatever they return is passed through `run`, which waits for it if need be."""

    def __init__(self, world: World, server: Valkey) -> None:
        self.world = world
        self.server = server
        self.module: Any = millpond.redis if world == "threads" else millpond.redis.asyncio
        self.theirs: Any = redis if world == "threads" else redis.asyncio
        self._runner = asyncio.Runner() if world == "tasks" else None
        self.pools: list[Any] = []

    def run(self, outcome: Any) -> Any:
        """Wait for what tasks have to wait for."""
        if self._runner is None or not asyncio.iscoroutine(outcome):
            return outcome
        return self._runner.run(asyncio.wait_for(outcome, 20))

    def pause(self, seconds: float = 0.001) -> None:
        """Let time pass for whoever works beside the line."""
        if self._runner is None:
            time.sleep(seconds)
        else:
            self._runner.run(asyncio.sleep(seconds))

    def until(self, fact: Callable[[], object], seconds: float = 30.0) -> None:
        """Wait for a fact."""
        deadline = time.monotonic() + seconds
        while not fact():
            assert time.monotonic() < deadline, "it did not come about in time"
            self.pause()

    def pool(self, kind: str = "ConnectionPool", **options: Any) -> Any:
        """Make a pool that leads to the server; it is closed when the test ends."""
        made = getattr(self.module, kind)(**{"host": self.server.host, "port": self.server.port, **options})
        self.pools.append(made)
        return made

    def client(self, pool: Any, **options: Any) -> Any:
        """Make redis-py's own client for a pool."""
        return self.theirs.Redis(connection_pool=pool, **options)

    def retry(self, times: int) -> Any:
        """Make what tries so often again, every 60 ms."""
        kind: Any = redis.retry.Retry if self.world == "threads" else redis.asyncio.retry.Retry
        return kind(ConstantBackoff(0.06), times)

    # What is done with a connection.

    def borrow(self, pool: Any) -> Any:
        return self.run(pool.get_connection())

    def give_back(self, pool: Any, conn: Any) -> None:
        self.run(pool.release(conn))

    def send(self, conn: Any, *words: Any) -> None:
        self.run(conn.send_command(*words))

    def read(self, conn: Any, **options: Any) -> Any:
        return self.run(conn.read_response(**options))

    def ask(self, conn: Any, *words: Any) -> Any:
        self.send(conn, *words)
        return self.read(conn)

    def number(self, conn: Any) -> int:
        """Tell which of the server's clients a connection is."""
        number: int = self.ask(conn, "CLIENT", "ID")
        return number

    def close_pool(self, pool: Any) -> None:
        self.run(pool.close() if self.world == "threads" else pool.aclose())

    def close_all(self) -> None:
        for pool in self.pools:
            self.close_pool(pool)
        self.pools.clear()

    def close(self) -> None:
        self.close_all()
        if self._runner is not None:
            self._runner.close()


class Front:
    """Speaks for a server, with TLS as `localhost`, and can say something of its own."""

    def __init__(self, server: Valkey, *, tls: bool) -> None:
        self.tls = tls
        authority = trustme.CA()
        self.ca = authority.cert_pem.bytes().decode()
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("localhost").configure_cert(self._context)
        self._clients: list[asyncio.StreamWriter] = []
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Front:
        self._thread.start()
        starting = asyncio.start_server(self._carry, "127.0.0.1", 0, ssl=self._context)
        self._front = asyncio.run_coroutine_threadsafe(starting, self._loop).result(30)
        self.port: int = self._front.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def say(self, data: bytes) -> None:
        """Say something to all clients that nobody has asked for."""

        async def say() -> None:
            for client in self._clients:
                if not client.is_closing():
                    client.write(data)

        asyncio.run_coroutine_threadsafe(say(), self._loop).result(30)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.append(writer)
        up, down = await asyncio.open_connection(self._server.host, self._server.port)

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            except (OSError, ssl.SSLError):
                pass
            finally:
                sink.close()

        try:
            await asyncio.gather(carry(reader, down), carry(up, writer))
        finally:
            self._clients.remove(writer)

    async def _end(self) -> None:
        self._front.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(params=["threads", "tasks"])
def face(request: pytest.FixtureRequest, valkey: Valkey) -> Iterator[Face]:
    made = Face(request.param, valkey)
    try:
        yield made
    finally:
        made.close()
