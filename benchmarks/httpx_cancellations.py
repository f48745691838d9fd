"""A storm of cancellations on ten connections of httpx, and then one more request: httpcore's issue 1093."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import anyio
import httpx
import httpx2

import millpond.httpx
import millpond.httpx2
from benchmarks.figure import Figure
from benchmarks.urllib3_server import serving

__all__ = ["Outcome", "measure", "storm"]

CONNECTIONS = 10
WAVES = 20
REQUESTS = 100
"""In each wave."""
WORK = 0.005


class Outcome(NamedTuple):
    """What became of it."""

    wrong: int
    """How many got a reply that was another's."""
    probe: str
    """What one more request got."""
    usable: int
    """How many connections can be used at once, afterwards."""


def storm(loop: str, library: Any, faces: Any) -> Outcome:
    """Cancel 2,000 requests, each at another moment."""
    wrong = usable = 0
    probe = ""

    async def main() -> None:
        nonlocal probe, usable
        limits = library.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        transport = faces.AsyncHTTPTransport(trust_env=False, limits=limits)
        async with library.AsyncClient(transport=transport, timeout=5, trust_env=False) as client:

            async def ask(path: str, limit: float) -> None:
                nonlocal wrong
                with anyio.move_on_after(limit):
                    response = await client.get(url + path)
                    wrong += response.text != path

            for wave in range(WAVES):
                async with anyio.create_task_group() as group:
                    for number in range(REQUESTS):
                        group.start_soon(ask, f"/{wave}-{number}/{WORK}", (number * 7 + wave) % 60 / 1000)
            try:
                response = await client.get(f"{url}/", timeout=2)
                probe = f"{response.status_code} {response.reason_phrase}"
            except library.HTTPError as error:
                probe = type(error).__name__

            async def hold() -> None:
                nonlocal usable
                try:
                    await client.get(f"{url}/0.5", timeout=library.Timeout(5, pool=0.3))
                    usable += 1
                except library.PoolTimeout:
                    pass

            async with anyio.create_task_group() as group:
                for _ in range(CONNECTIONS):
                    group.start_soon(hold)

    with serving() as port:
        url = f"http://127.0.0.1:{port}"
        anyio.run(main, backend=loop)
    return Outcome(wrong, probe, usable)


def measure() -> Iterator[Figure]:
    """Yield what is left of the connections; the library's own transport beside."""
    for loop in ("asyncio", "trio"):
        for library, faces in ((httpx, millpond.httpx), (httpx2, millpond.httpx2)):
            theirs, ours = storm(loop, library, library), storm(loop, library, faces)
            case = (
                f"{library.__name__} {loop}, then {ours.probe} (own transport: {theirs.probe}, {theirs.usable} usable)"
            )
            what = f"{WAVES * REQUESTS} requests cancelled"
            usable = ours.usable if ours.probe == "200 OK" else 0
            yield Figure(f"{what}, connections usable", case, usable, "", CONNECTIONS, ">=", digits=0)
            yield Figure(f"{what}, wrong replies", f"{library.__name__} {loop}", ours.wrong, "", 0, digits=0)
