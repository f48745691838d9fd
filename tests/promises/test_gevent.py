"""`Pool` in a program that gevent has patched: its waits let other greenlets run, and its limits hold."""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond.testing import Postgres, Valkey

PROGRAM = Path(__file__).parent / "programs" / "greenlets.py"


class SlowEcho(socketserver.StreamRequestHandler):
    """Sends back each line after 20 ms."""

    def handle(self) -> None:
        for line in self.rfile:
            time.sleep(0.02)
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    """One thread for each client."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that have gone: some are killed."""


@pytest.fixture
def target(request: pytest.FixtureRequest, kind: str) -> Iterator[str]:
    if kind == "psycopg":
        postgres: Postgres = request.getfixturevalue("postgres")
        yield postgres.url
        return
    with Server(("127.0.0.1", 0), SlowEcho) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def told(kind: str, target: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, PROGRAM, kind, target], capture_output=True, text=True, timeout=90)
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("kind", ["socket", "psycopg"])
def test_fifty_greenlets_share_five_connections(told: dict[str, Any]) -> None:
    assert told["served"] == 50
    # All at work at once, and others had their turn meanwhile: nobody blocks the one real thread.
    assert told["most"] == 5
    assert told["ticks"] > 0
    # The timeout came in time, and nobody stood still for it.
    assert 0.1 <= told["waited"] < 10
    assert told["ticks while waiting"] > 0
    # Greenlets that are killed, in line or at work, lose no connection.
    assert told["usable"] == 5
    assert told["audit"] == []


REDIS = """
from gevent import monkey
monkey.patch_all()
import json, sys, gevent, redis, millpond.redis
pool = millpond.redis.BlockingConnectionPool.from_url(sys.argv[1], max_connections=2, timeout=20)
client = redis.Redis(connection_pool=pool)
def work(number):
    return [client.echo(f"{number}") for _ in range(20)] == [str(number).encode()] * 20
jobs = [gevent.spawn(work, number) for number in range(5)]
gevent.joinall(jobs, timeout=30)
print(json.dumps([all(job.value for job in jobs), pool.stats().opens, pool.stats().closes]))
pool.close()
"""


@pytest.mark.parametrize("protocol", [2, 3])
def test_greenlets_go_on_with_the_connections_to_redis_that_they_have(valkey: Valkey, protocol: int) -> None:
    """There is no poll for a quick look. What is idle must not be taken for what has something to say."""
    command = [sys.executable, "-c", REDIS, f"{valkey.url}?protocol={protocol}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.stderr == ""
    right, opens, closes = json.loads(done.stdout)
    assert right
    assert (opens, closes) == (2, {})
