"""Where TLS is asked for, a certificate that nobody has vouched for is refused, unless that is switched off in so many
words: by every connector and every face."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterator

import pytest
import redis
import redis.asyncio
import requests

import millpond.redis
import millpond.redis.asyncio
import millpond.requests
import millpond.urllib3
from millpond import AsyncPool, Pool

from ..httpx.conftest import LIBRARIES
from ..httpx.server import Http2Server


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where a server has a certificate of an authority that is known to its own tests only."""
    with Http2Server() as server:
        yield server.port


def borrow(scheme: str) -> Callable[[int], None]:
    def borrow(port: int) -> None:
        with Pool[object].from_url(f"{scheme}://127.0.0.1:{port}", timeout=10) as pool, pool.connection():
            pass

    return borrow


def borrow_in_a_task(scheme: str) -> Callable[[int], None]:
    def borrow(port: int) -> None:
        async def main() -> None:
            url = f"{scheme}://127.0.0.1:{port}"
            async with AsyncPool[object].from_url(url, timeout=10) as pool, pool.connection():
                pass

        asyncio.run(main())

    return borrow


def ask_by_redis(port: int) -> None:
    pool = millpond.redis.ConnectionPool.from_url(f"rediss://127.0.0.1:{port}")
    try:
        redis.Redis(connection_pool=pool).ping()
    finally:
        pool.close()


def ask_by_redis_in_a_task(port: int) -> None:
    async def main() -> None:
        pool = millpond.redis.asyncio.ConnectionPool.from_url(f"rediss://127.0.0.1:{port}")
        try:
            await redis.asyncio.Redis(connection_pool=pool).ping()
        finally:
            await pool.aclose()

    asyncio.run(main())


def ask_by_urllib3(port: int) -> None:
    with millpond.urllib3.PoolManager(retries=False) as http:
        http.request("GET", f"https://127.0.0.1:{port}/")


def ask_by_requests(port: int) -> None:
    with requests.Session() as session:
        millpond.requests.install(session)
        session.get(f"https://127.0.0.1:{port}/", timeout=10)


def ask_by_httpx(name: str) -> Callable[[int], None]:
    httpx, face = LIBRARIES[name]

    def ask(port: int) -> None:
        with httpx.Client(transport=face.HTTPTransport()) as client:
            client.get(f"https://127.0.0.1:{port}/")

    return ask


def ask_by_httpx_in_a_task(name: str) -> Callable[[int], None]:
    httpx, face = LIBRARIES[name]

    def ask(port: int) -> None:
        async def main() -> None:
            async with httpx.AsyncClient(transport=face.AsyncHTTPTransport()) as client:
                await client.get(f"https://127.0.0.1:{port}/")

        asyncio.run(main())

    return ask


ASK: dict[str, Callable[[int], None]] = {
    **{f"{scheme} in a thread": borrow(scheme) for scheme in ("tls", "rediss", "valkeys")},
    **{f"{scheme} in a task": borrow_in_a_task(scheme) for scheme in ("tls", "rediss", "valkeys")},
    "redis-py": ask_by_redis,
    "redis-py in a task": ask_by_redis_in_a_task,
    "urllib3": ask_by_urllib3,
    "requests": ask_by_requests,
    **{name: ask_by_httpx(name) for name in LIBRARIES},
    **{f"{name} in a task": ask_by_httpx_in_a_task(name) for name in LIBRARIES},
}


@pytest.mark.parametrize("way", ASK)
def test_the_certificate_of_a_stranger_is_refused(port: int, way: str) -> None:
    with pytest.raises(Exception) as refusal:  # noqa: PT011 - each library has its own
        ASK[way](port)
    assert "CERTIFICATE_VERIFY_FAILED" in "".join(traceback.format_exception(refusal.value))
