"""Credentials that are rotated while everybody works: how many callers notice?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import redis
import redis.asyncio
from redis.auth.token import SimpleToken
from redis.credentials import StreamingCredentialProvider

import millpond.redis.asyncio
from benchmarks.figure import Figure
from millpond.testing import Proxy, Valkey

__all__ = ["Outcome", "Rotating", "measure", "rotate_under_tasks"]

TASKS = 20
CONNECTIONS = 10
ROUND_TRIP = 0.030
EVERY = 0.3
SECONDS = 5.0


class Rotating(StreamingCredentialProvider):
    """Credentials of a user of the server's, who gets another password now and then; the last ten are good."""

    def __init__(self, server: Valkey, name: str = "rotated") -> None:
        self._admin = redis.Redis(host=server.host, port=server.port)
        self._name = name
        self._passwords = ["first"]
        self._callback: Callable[[Any], Any] = lambda token: None
        self._admin.acl_setuser(
            name, enabled=True, passwords=["+first"], keys=["*"], channels=["*"], commands=["+@all"]
        )

    def get_credentials(self) -> tuple[str, str]:
        """Return the newest."""
        return self._name, self._passwords[-1]

    async def get_credentials_async(self) -> tuple[str, str]:
        """Return the newest."""
        return self.get_credentials()

    def on_next(self, callback: Callable[[Any], Any]) -> None:
        """Note who is to be told."""
        self._callback = callback

    def on_error(self, callback: Callable[[Exception], Any]) -> None:
        """There are no errors."""

    def is_streaming(self) -> bool:
        """It is."""
        return True

    def rotate(self) -> Awaitable[None] | None:
        """Change the password and tell of it; that may have to be awaited."""
        self._passwords.append(f"password {len(self._passwords)}")
        changes = [f"+{self._passwords[-1]}", *(f"-{old}" for old in self._passwords[:-10][-1:])]
        self._admin.acl_setuser(self._name, enabled=True, passwords=changes)
        told: Awaitable[None] | None = self._callback(
            SimpleToken(self._passwords[-1], -1, time.time() * 1000, {"oid": self._name})
        )
        return told

    def logins(self) -> int:
        """Return how often somebody has authenticated at the server."""
        return int(self._admin.info("commandstats").get("cmdstat_auth", {}).get("calls", 0))

    def close(self) -> None:
        """Leave the server."""
        self._admin.close()


class Outcome(NamedTuple):
    """What became of it."""

    commands: int
    wrong: int
    """Replies that were another's."""
    errors: int
    rotations: int
    logins: int


def rotate_under_tasks(
    make: Callable[..., Any], seconds: float = SECONDS, every: float = EVERY, round_trip: float = ROUND_TRIP
) -> Outcome:
    """Let tasks send commands all the time, and rotate."""
    counts = {"commands": 0, "wrong": 0, "errors": 0}

    async def main() -> tuple[int, int]:
        provider = Rotating(server)
        pool = make(host=proxy_host, port=proxy.port, max_connections=CONNECTIONS, credential_provider=provider)
        client = redis.asyncio.Redis(connection_pool=pool, credential_provider=provider)
        end = time.monotonic() + seconds

        async def work(number: int) -> None:
            turn = 0
            while time.monotonic() < end:
                turn += 1
                text = f"{number} {turn}"
                try:
                    counts["wrong"] += await client.echo(text) != text.encode()
                except Exception:
                    counts["errors"] += 1
                counts["commands"] += 1

        workers = [asyncio.create_task(work(number)) for number in range(TASKS)]
        rotations = 0
        while time.monotonic() < end - every:
            await asyncio.sleep(every)
            try:
                told = provider.rotate()
                if told is not None:
                    await told
            except Exception:
                counts["errors"] += 1
            rotations += 1
        await asyncio.gather(*workers)
        logins = provider.logins()
        await pool.aclose()
        provider.close()
        return rotations, logins

    with Valkey() as server, Proxy(server.host, server.port) as proxy:
        proxy_host = server.host
        proxy.delay(round_trip / 2)
        rotations, logins = asyncio.run(main())
    return Outcome(rotations=rotations, logins=logins, **counts)


def measure() -> Iterator[Figure]:
    """Yield what millpond's pool does, and what redis-py's own does in the same run."""
    theirs = rotate_under_tasks(redis.asyncio.BlockingConnectionPool)
    ours = rotate_under_tasks(millpond.redis.asyncio.BlockingConnectionPool)
    case = f"redis-py's own pool: {theirs.errors + theirs.wrong} of {theirs.commands} commands"
    yield Figure(f"a new token every {EVERY} s, {TASKS} tasks: errors", case, ours.errors + ours.wrong, "", 0, digits=0)
