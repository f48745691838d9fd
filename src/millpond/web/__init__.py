"""The pools of all processes of this user, as a page: live charts, loans, and what happens.

`millpond web` serves it on this machine. To have it in an application of your own, mount it where only those get who
may look::

    app = Starlette(routes=[Mount("/pools", millpond.web.app())])

The page is static, takes nothing from other hosts, and asks for nothing but `looks` beside itself, a stream of
server-sent events. It can look and do nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from millpond import _looking
from millpond._extras import extra

with extra("web"):
    import anyio
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import StreamingResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["app"]

EVERY: Final = 1.0
"""Seconds between two looks, whoever watches."""
STATIC: Final = Path(__file__).with_name("static")

HEADERS: Final = (
    # Nothing from elsewhere, nothing written in the page itself: names of pools and threads are anybody's words.
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    # Its address may have a token in it.
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


def app() -> Starlette:
    """Return an ASGI application that shows the pools of all processes of this user on this machine.

    It shows what `millpond top` shows: processes that have called `millpond.expose()`, or run with `MILLPOND_EXPOSE=1`.
    To have the own process among them, call `millpond.expose()`, too. Whoever can open it sees the names of pools,
    threads and places in the code, and no password; it asks for none itself, so mount it behind what the application
    has for that. It runs on asyncio, and on trio where the server does.

    The processes are asked once a second while somebody watches, in a thread, for 0.5 s at most. Raises ImportError if
    starlette is not installed.
    """
    looker = _Looker()

    async def looks(request: Request) -> StreamingResponse:
        return StreamingResponse(looker.stream(), media_type="text/event-stream")

    return Starlette(
        routes=[
            Route("/looks", looks),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ],
        middleware=[Middleware(_Guarded)],
    )


class _Guarded:
    """Adds to every answer what browsers are to refuse."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        await self._app(scope, receive, send_guarded)


class _Looker:
    """Looks once for all who watch."""

    def __init__(self) -> None:
        self._looking = anyio.Lock()
        self._looked = 0.0
        self._seen = b""

    async def stream(self) -> AsyncIterator[bytes]:
        """Tell what is seen, every second."""
        while True:
            yield await self._look()
            await anyio.sleep(EVERY)

    async def _look(self) -> bytes:
        async with self._looking:
            if time.monotonic() - self._looked > EVERY / 2:
                self._seen = await anyio.to_thread.run_sync(_seen)
                self._looked = time.monotonic()
            return self._seen


def _seen() -> bytes:
    """Return what all processes say, as one server-sent event."""
    told: dict[str, Any] = {"at": time.time()}
    try:
        told["processes"] = [
            {"key": process.path, "process": {"pid": process.pid}, "pools": [], **answer}
            for process, answer in _looking.look()
        ]
    except PermissionError as error:
        told["error"] = str(error)
    return b"data: " + json.dumps(told).encode() + b"\n\n"
