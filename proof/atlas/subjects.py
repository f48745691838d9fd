"""What is tried: pools of millpond and their peers, all with the same size and the same patience."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import wait
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

from millpond._core.settings import Options
from proof.atlas.crowd import Work
from proof.atlas.places import Address

__all__ = ["CHECK", "EXPIRY", "PATIENCE", "SIZE", "SUBJECTS", "WAIT", "Subject"]

SIZE: Final = 4
"""Connections of each pool."""
PATIENCE: Final = 1.0
"""Seconds that a caller waits for an answer, where the library takes a limit for that, and a pool for a connect."""
WAIT: Final = 2.0
"""Seconds that a caller waits for a connection; longer, so that one that does not answer can be replaced meanwhile."""
DEADLINE: Final = 20.0
"""Seconds after which nobody waits for a task any longer."""
STEP: Final = 0.05
"""Seconds that a caller waits for a task at a time."""
CHECK: Final = 0.5
"""Seconds of idleness after which a connection is checked before it is lent, where the library can do that."""
EXPIRY: Final = 1.0
"""Seconds of idleness after which an HTTP connection is not used again, where the library can do that."""

AsyncWork = Callable[[float, str], Awaitable[str]]


class Subject(NamedTuple):
    """A pool, and how it is used."""

    name: str
    place: str
    open: Callable[[Address], AbstractContextManager[Work]]
    ours: bool
    needs: tuple[str, ...]
    """Modules that it is made of."""
    patient: bool
    """Whether an answer that does not come ends after `PATIENCE`; psycopg takes no limit for that."""
    sounding: bool
    """Whether the pool finds out that an idle connection is silent; redis-py's check is a part of the command."""

    @property
    def installed(self) -> bool:
        """Whether it can be tried here."""
        return all(find_spec(name) for name in self.needs)


def _of_tasks(
    opened: Callable[[Address], AbstractAsyncContextManager[AsyncWork]],
) -> Callable[[Address], AbstractContextManager[Work]]:
    """Run it on an event loop of its own, for callers in threads."""

    @contextmanager
    def bridged(at: Address) -> Iterator[Work]:
        from anyio.from_thread import start_blocking_portal

        with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(opened(at)) as work:

            def run(seconds: float, word: str) -> str:
                task = portal.start_task_soon(work, seconds, word)
                deadline = time.monotonic() + DEADLINE
                try:
                    # In steps: no exception that is thrown into a thread gets through to it while it waits.
                    while not task.done() and time.monotonic() < deadline:
                        wait([task], STEP)
                    return task.result(0)
                except BaseException:
                    task.cancel()
                    raise

            yield run

    return bridged


def _settings() -> Options:
    return {
        "max_size": SIZE,
        "timeout": WAIT,
        "connect_timeout": PATIENCE,
        "check_after": CHECK,
        "name": "atlas",
    }


# PostgreSQL


@contextmanager
def _millpond_psycopg(at: Address) -> Iterator[Work]:
    from millpond import Pool
    from millpond.connectors.psycopg import Psycopg

    connector = Psycopg(host=at.host, port=at.port, user=at.user, dbname="app", password=at.secret, autocommit=True)

    def work(seconds: float, word: str) -> str:
        with pool.connection() as conn:
            (heard,) = conn.execute(f"select %s from pg_sleep({seconds})", [word]).fetchone() or ("",)
            return str(heard)

    with Pool(connector, **_settings()) as pool:
        yield work


@asynccontextmanager
async def _millpond_asyncpg(at: Address) -> AsyncIterator[AsyncWork]:
    from millpond import AsyncPool
    from millpond.connectors.asyncpg import Asyncpg

    connector: Any = Asyncpg(
        host=at.host, port=at.port, user=at.user, database="app", password=at.secret, command_timeout=PATIENCE
    )

    async def work(seconds: float, word: str) -> str:
        async with pool.connection() as conn:
            return str(await conn.fetchval(f"select $1::text from pg_sleep({seconds})", word))

    async with AsyncPool(connector, **_settings()) as pool:
        yield work


@contextmanager
def _psycopg_pool(at: Address) -> Iterator[Work]:
    from psycopg_pool import ConnectionPool

    def settings() -> dict[str, Any]:
        return {
            "host": at.host,
            "port": at.port,
            "user": at.user,
            "dbname": "app",
            "password": at.secret(),
            "autocommit": True,
            "connect_timeout": 2,
        }

    def work(seconds: float, word: str) -> str:
        with pool.connection() as conn:
            (heard,) = conn.execute(f"select %s from pg_sleep({seconds})", [word]).fetchone() or ("",)
            return str(heard)

    check = ConnectionPool.check_connection
    with ConnectionPool(kwargs=settings, min_size=0, max_size=SIZE, timeout=WAIT, check=check, open=True) as pool:
        yield work


@contextmanager
def _sqlalchemy(at: Address) -> Iterator[Work]:
    import psycopg
    import sqlalchemy

    def connect() -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=at.host, port=at.port, user=at.user, dbname="app", password=at.secret(), connect_timeout=2
        )

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=connect,
        pool_size=SIZE,
        max_overflow=0,
        pool_timeout=WAIT,
        pool_pre_ping=True,
    )

    def work(seconds: float, word: str) -> str:
        with engine.connect() as conn:
            asked = sqlalchemy.text(f"select :word from pg_sleep({seconds})")
            return str(conn.execute(asked, {"word": word}).scalar_one())

    yield work
    engine.dispose()


@asynccontextmanager
async def _asyncpg(at: Address) -> AsyncIterator[AsyncWork]:
    import asyncpg

    pool = await asyncpg.create_pool(
        host=at.host,
        port=at.port,
        user=at.user,
        database="app",
        password=at.secret,
        min_size=0,
        max_size=SIZE,
        command_timeout=PATIENCE,
        timeout=PATIENCE,
    )

    async def work(seconds: float, word: str) -> str:
        async with pool.acquire(timeout=WAIT) as conn:
            return str(await conn.fetchval(f"select $1::text from pg_sleep({seconds})", word))

    yield work
    pool.terminate()


# Redis


def _credentials(at: Address) -> Any:
    from redis.credentials import CredentialProvider

    class Current(CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            return at.user, at.secret()

        async def get_credentials_async(self) -> tuple[str, str]:
            return self.get_credentials()

    return Current()


def _redis_settings(at: Address) -> dict[str, Any]:
    return {
        "host": at.host,
        "port": at.port,
        "credential_provider": _credentials(at),
        "max_connections": SIZE,
        "timeout": WAIT,
        "socket_timeout": PATIENCE,
        "socket_connect_timeout": PATIENCE,
        "health_check_interval": CHECK,
        "decode_responses": True,
    }


@contextmanager
def _redis(own: bool, at: Address) -> Iterator[Work]:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    import millpond.redis

    kind: Any = redis.BlockingConnectionPool if own else millpond.redis.BlockingConnectionPool
    # The client's own retries would hide what the pool lends.
    pool = kind(**_redis_settings(at), retry=Retry(NoBackoff(), 0))
    with redis.Redis(connection_pool=pool) as client:

        def work(seconds: float, word: str) -> str:
            if seconds:
                client.blpop("nothing", seconds)
            return str(client.echo(word))

        yield work
    pool.close()


@asynccontextmanager
async def _redis_of_tasks(own: bool, at: Address) -> AsyncIterator[AsyncWork]:
    import redis.asyncio
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    import millpond.redis.asyncio

    kind: Any = redis.asyncio.BlockingConnectionPool if own else millpond.redis.asyncio.BlockingConnectionPool
    pool = kind(**_redis_settings(at), retry=Retry(NoBackoff(), 0))
    async with redis.asyncio.Redis(connection_pool=pool) as client:

        async def work(seconds: float, word: str) -> str:
            if seconds:
                await client.blpop("nothing", seconds)
            return str(await client.echo(word))

        yield work
    await pool.aclose()


# HTTP


@contextmanager
def _urllib3(own: bool, at: Address) -> Iterator[Work]:
    import urllib3

    import millpond.urllib3

    settings: dict[str, Any] = {"maxsize": SIZE, "block": True, "timeout": PATIENCE}
    pool = (
        urllib3.HTTPConnectionPool(at.host, at.port, **settings)
        if own
        else millpond.urllib3.HTTPConnectionPool(at.host, at.port, **settings, max_idle=EXPIRY)
    )
    with pool:
        yield lambda seconds, word: pool.request(
            "GET", f"/{seconds}/{word}", retries=False, pool_timeout=WAIT
        ).data.decode()


@contextmanager
def _httpx(own: bool, at: Address) -> Iterator[Work]:
    import httpx

    from millpond.httpx import HTTPTransport

    limits = httpx.Limits(max_connections=SIZE, keepalive_expiry=EXPIRY)
    transport: httpx.BaseTransport = httpx.HTTPTransport(limits=limits) if own else HTTPTransport(limits=limits)
    with httpx.Client(transport=transport, timeout=httpx.Timeout(PATIENCE, pool=WAIT)) as client:
        yield lambda seconds, word: client.get(f"http://{at.host}:{at.port}/{seconds}/{word}").text


@asynccontextmanager
async def _httpx_of_tasks(own: bool, at: Address) -> AsyncIterator[AsyncWork]:
    import httpx

    from millpond.httpx import AsyncHTTPTransport

    limits = httpx.Limits(max_connections=SIZE, keepalive_expiry=EXPIRY)
    transport: httpx.AsyncBaseTransport = (
        httpx.AsyncHTTPTransport(limits=limits) if own else AsyncHTTPTransport(limits=limits)
    )
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(PATIENCE, pool=WAIT)) as client:

        async def work(seconds: float, word: str) -> str:
            return (await client.get(f"http://{at.host}:{at.port}/{seconds}/{word}")).text

        yield work


def _both(
    name: str, place: str, opened: Callable[..., Any], tasks: bool, needs: tuple[str, ...], sounding: bool = True
) -> list[Subject]:
    """Return a client on millpond's pool and on its own."""
    ways = [partial(opened, own) for own in (False, True)]
    ours, theirs = map(_of_tasks, ways) if tasks else ways
    return [
        Subject(f"millpond, {name}", place, ours, True, needs, True, sounding),
        Subject(f"{name}'s own", place, theirs, False, needs, True, False),
    ]


SUBJECTS: Final = (
    Subject("millpond, psycopg", "postgres", _millpond_psycopg, True, ("psycopg",), False, True),
    Subject("psycopg_pool", "postgres", _psycopg_pool, False, ("psycopg_pool",), False, False),
    Subject("SQLAlchemy", "postgres", _sqlalchemy, False, ("sqlalchemy", "psycopg"), False, False),
    Subject("millpond, asyncpg", "postgres", _of_tasks(_millpond_asyncpg), True, ("asyncpg",), True, True),
    Subject("asyncpg's own", "postgres", _of_tasks(_asyncpg), False, ("asyncpg",), True, False),
    *_both("redis-py", "valkey", _redis, False, ("redis",), sounding=False),
    *_both("redis-py asyncio", "valkey", _redis_of_tasks, True, ("redis",), sounding=False),
    *_both("urllib3", "web", _urllib3, False, ("urllib3",)),
    *_both("httpx", "web", _httpx, False, ("httpx",)),
    *_both("httpx asyncio", "web", _httpx_of_tasks, True, ("httpx",)),
)
