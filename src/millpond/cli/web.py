"""`millpond web`: the pools of all processes of this user on this machine, as a page."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import socket
import sys
from typing import TYPE_CHECKING, Final

from millpond import _looking

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["main"]

HOST: Final = "127.0.0.1"
GLANCE: Final = 0.2
"""Seconds after which those who watch learn that it is over."""
FAREWELL: Final = 1
"""Seconds that those who watch are given at the end."""


def main(argv: list[str]) -> int:
    """Serve the page until Ctrl-C; return 0, 1 if it cannot be served, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="millpond web",
        description="Serve a page, to this machine only, that shows the pools of all processes of this user that call "
        "millpond.expose(), or run with MILLPOND_EXPOSE=1.",
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="to listen on (default: any that is free)")
    arguments = parser.parse_args(argv)
    try:
        import uvicorn

        from millpond import web
    except ImportError as missing:
        print(f'millpond web needs {missing.name}: pip install "millpond[web]"', file=sys.stderr)
        return 1
    try:
        _looking.look()
        listener = socket.create_server((HOST, arguments.port), backlog=128)
    except (OSError, OverflowError) as error:
        print(f"millpond web: {error}", file=sys.stderr)
        return 1
    token = secrets.token_urlsafe(24)
    with listener:
        print(f"http://{HOST}:{listener.getsockname()[1]}/{token}/", flush=True)
        door = _Door(web.app(), token)
        settings = uvicorn.Config(door, log_level="warning", lifespan="off", timeout_graceful_shutdown=FAREWELL)
        server = uvicorn.Server(settings)
        door.is_closing = lambda: server.should_exit
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    return 0


class _Door:
    """Lets in those who know the token, which is the first part of the path.

    Other users of this machine can reach the port, and so can pages of other sites in the browser, but they cannot know
    the address. A cookie would be sent by the latter, too.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()
        self.is_closing: Callable[[], bool] = lambda: False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        _, _, path = scope["path"].partition("/")
        token, _, _ = path.partition("/")
        if not secrets.compare_digest(token.encode(), self._token):
            from starlette.responses import PlainTextResponse

            refusal = PlainTextResponse(
                "Only the whole address that `millpond web` has printed leads to the page: it has a token in it.\n", 403
            )
            await refusal(scope, receive, send)
            return

        import anyio

        async def receive_or_end() -> Message:
            # uvicorn waits for those who listen to a stream, and they listen for ever.
            while not self.is_closing():
                with anyio.move_on_after(GLANCE):
                    return await receive()
            return {"type": "http.disconnect"}

        said: Message = {}

        async def send_and_note(message: Message) -> None:
            nonlocal said
            said = message
            await send(message)

        await self._app({**scope, "root_path": f"{scope.get('root_path', '')}/{token}"}, receive_or_end, send_and_note)
        if said.get("more_body"):
            await send({"type": "http.response.body"})
