"""A program that eventlet has patched has no poll and no epoll: a look at a connection takes no time all the same."""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from millpond.testing import Postgres, Valkey

from ..urllib3.servers import Server as WebServer

PROGRAM = Path(__file__).parent / "programs" / "eventlets.py"


class Echo(socketserver.StreamRequestHandler):
    """Sends back each line."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


@pytest.fixture
def target(request: pytest.FixtureRequest, kind: str) -> Iterator[str]:
    if kind == "psycopg":
        postgres: Postgres = request.getfixturevalue("postgres")
        yield postgres.url
    elif kind == "redis":
        valkey: Valkey = request.getfixturevalue("valkey")
        yield valkey.url
    elif kind == "socket":
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            yield f"127.0.0.1:{server.server_address[1]}"
            server.shutdown()
            thread.join()
    else:
        with WebServer() as web:
            yield web.url


@pytest.mark.parametrize("kind", ["psycopg", "redis", "socket", "requests", "httpx"])
def test_green_threads_are_served(kind: str, target: str) -> None:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), kind, target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert not told["poll"]
    assert told["right"] == told["of"] == 32
    # A look that fails, or that takes an idle connection for a dead one, would cost the connection.
    assert told["opens"] <= 2
    # A look that waits would cost the timeout of 30 seconds with each reply.
    assert told["took"] < 20
