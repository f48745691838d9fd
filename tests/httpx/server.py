"""Real servers on 127.0.0.1, each in a thread of its own: a plain one that can misbehave, and hypercorn for HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import trustme
from hypercorn.asyncio import serve
from hypercorn.config import Config

AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("127.0.0.1", "localhost")


def trusting() -> ssl.SSLContext:
    """What a client trusts the servers with."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


class _InThread:
    """Something that runs in a loop of its own until it is left."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name=type(self).__name__)
        self.loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self._held: list[asyncio.Event] = []
        self._present: list[asyncio.Event] = []

    @property
    def holding(self) -> int:
        """How many requests are held."""
        return len(self._held)

    def let_go(self) -> None:
        """Answer those that are held."""
        self.call(self._free, self._held)

    async def _hold(self) -> None:
        await self._stay(self._held)

    async def _meet(self, count: int) -> None:
        if len(self._present) + 1 == count:
            self._free(self._present)
        else:
            await self._stay(self._present)

    async def _stay(self, among: list[asyncio.Event]) -> None:
        free = asyncio.Event()
        among.append(free)
        try:
            await free.wait()
        finally:
            if free in among:
                among.remove(free)

    def _free(self, events: list[asyncio.Event]) -> None:
        while events:
            events.pop().set()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        async with self._serving():
            self._ready.set()
            await self._over.wait()

    def _serving(self) -> contextlib.AbstractAsyncContextManager[None]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    def call(self, work: Callable[..., Any], *args: object) -> None:
        """Have its loop call a function."""
        self.loop.call_soon_threadsafe(work, *args)


class Server(_InThread):
    """HTTP/1.1 by hand. The path says what it does, and what the body is by which an answer is told from others.

    /say/WORD            says it
    /after/MS/WORD       says it so many milliseconds later
    /meet/N/WORD         says it when N have asked so
    /hold/WORD           says it when `let_go` is called
    /chunked/N/WORD      says it N times, in chunks
    /close/WORD          says it, and that it will close, and does
    /bye/MS/WORD         says it, and closes so many milliseconds later without having said so
    /twice/WORD          answers twice at once
    /again/MS/WORD       answers, and once more so many milliseconds later, unasked
    /body                (to HEAD) sends a body, which there is none
    /half/N              promises N bytes and sends half of them
    /drop                closes without an answer
    /garbage             answers nonsense
    /echo                sends back what it was sent
    """

    def __init__(self, *, tls: bool = False, uds: str | None = None) -> None:
        super().__init__()
        self._tls = tls
        self._uds = uds
        self.port = 0
        self.accepted = 0
        self.open = 0
        self.asked: list[str] = []
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        context = None
        if self._tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            CERTIFICATE.configure_cert(context)
        if self._uds is not None:
            server = await asyncio.start_unix_server(self._accept, self._uds)
        else:
            server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context, backlog=512)
            self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            self._hang_up()
            for _ in range(500):
                if not self._writers:
                    break
                await asyncio.sleep(0.01)

    def hang_up(self) -> None:
        """Close all connections, as a server does that stops, or has no time for the idle."""
        self.call(self._hang_up)

    def _hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            # The socket is closed by what runs next in the loop.
            self.loop.call_soon(self._closed)

    def _closed(self) -> None:
        self.open -= 1

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *headers = head.split("\r\n")
        method, path, _ = line.split()
        fields = {name.lower(): value for name, _, value in (header.partition(": ") for header in headers)}
        self.asked.append(path)
        if path.startswith("http://"):  # asked as a proxy
            path = "/" + path.split("/", 3)[3]
        body = b""
        if "content-length" in fields:
            body = await reader.readexactly(int(fields["content-length"]))
        elif fields.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        what, *args = path.strip("/").split("/")
        word = args[-1].encode() if args else b""

        def said(word: bytes, more: str = "") -> bytes:
            return f"HTTP/1.1 200 OK\r\nContent-Length: {len(word)}\r\n{more}\r\n".encode() + word

        def say(word: bytes, more: str = "") -> None:
            writer.write(said(word, more))

        match what:
            case "say":
                say(word)
            case "after":
                await asyncio.sleep(int(args[0]) / 1000)
                say(word)
            case "meet":
                await self._meet(int(args[0]))
                say(word)
            case "hold":
                await self._hold()
                say(word)
            case "chunked":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for _ in range(int(args[0])):
                    writer.write(f"{len(word):x}\r\n".encode() + word + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
            case "close":
                say(word, "Connection: close\r\n")
                await writer.drain()
                return False
            case "bye":
                say(word)
                await asyncio.sleep(int(args[0]) / 1000)
                return False
            case "twice":
                writer.write(said(word) + said(b"of-nobody"))
            case "again":
                say(word)
                await asyncio.sleep(int(args[0]) / 1000)
                say(b"of-nobody")
            case "body":
                say(b"which there is none")
            case "half":
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {args[0]}\r\n\r\n".encode())
                writer.write(b"x" * (int(args[0]) // 2))
            case "drop":
                return False
            case "garbage":
                writer.write(b"what do you want?\r\n\r\n")
            case "echo":
                say(body)
            case _:
                raise AssertionError(path)
        if method == "HEAD" and what != "body":
            raise AssertionError("HEAD is for /body")
        await writer.drain()
        return True


class Http2Server(_InThread):
    """hypercorn, with TLS: /say, /after, /meet, /hold and /echo as above, and /many/N (that many bytes, slowly)."""

    def __init__(
        self,
        *,
        streams: int = 100,
        protocols: tuple[str, ...] = ("h2", "http/1.1"),
        tls: bool = True,
        goodbye_after: int = 10_000,
    ) -> None:
        super().__init__()
        self._goodbye_after = goodbye_after
        self._streams = streams
        self._protocols = protocols
        self._tls = tls
        self.port = 0
        self.asked: list[str] = []
        self.requests: Counter[Any] = Counter()
        """How many came over each connection."""
        self.busy: Counter[Any] = Counter()
        self.most: Counter[Any] = Counter()
        """How many at once, at most."""

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        config = Config()
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        config.bind = [f"fd://{sock.detach()}"]
        config.accesslog = config.errorlog = None
        config.h2_max_concurrent_streams = self._streams
        config.alpn_protocols = list(self._protocols)
        config.keep_alive_max_requests = self._goodbye_after
        config.graceful_timeout = 0.1
        config.shutdown_timeout = 0.1
        over = asyncio.Event()
        with tempfile.TemporaryDirectory() as directory:
            if self._tls:
                config.certfile = config.keyfile = os.path.join(directory, "server.pem")
                CERTIFICATE.private_key_and_cert_chain_pem.write_to_path(config.certfile)
            server = asyncio.create_task(serve(self._app, config, shutdown_trigger=over.wait))
            await self._until_it_answers()
            try:
                yield
            finally:
                over.set()
                # Clients that hung up in the midst of a record of TLS are nothing to it.
                with contextlib.suppress(OSError):
                    await asyncio.wait_for(server, 1)

    async def _until_it_answers(self) -> None:
        for _ in range(1000):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.02)
        raise AssertionError("hypercorn did not start")

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        client = scope["client"]
        self.asked.append(scope["path"])
        self.requests[client] += 1
        self.busy[client] += 1
        self.most[client] = max(self.most[client], self.busy[client])
        try:
            rest = await self._answer(scope["path"], receive, send)
        finally:
            # Before its end is sent, upon which the client may send the next one.
            self.busy[client] -= 1
        await send({"type": "http.response.body", "body": rest})

    async def _answer(self, path: str, receive: Any, send: Any) -> bytes:
        """Answer, but for the rest of the body, which is returned."""
        what, *args = path.strip("/").split("/")
        body = args[-1].encode() if args else b""
        if what == "after":
            await asyncio.sleep(int(args[0]) / 1000)
        elif what == "meet":
            await self._meet(int(args[0]))
        elif what == "hold":
            await self._hold()
        elif what == "echo":
            body = b""
            while True:
                event = await receive()
                body += event.get("body", b"")
                if not event.get("more_body"):
                    break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if what == "many":
            for _ in range(int(args[0]) // 1000):
                await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
                await asyncio.sleep(0)
            body = b""
        return body
