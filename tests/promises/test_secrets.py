"""No password is in anything that a pool tells: its errors and their causes, its logs, its records, its reprs."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest

from millpond import AsyncPool, ConnectFailed, KeyedPool, Pool, PoolError, _looking, expose, logs
from millpond.connectors.asyncpg import Asyncpg
from millpond.connectors.dbapi import DBAPI
from millpond.connectors.psycopg import AsyncPsycopg, Psycopg
from millpond.connectors.redis import Redis
from millpond.testing import Postgres, ReservedPort, Valkey

from .patience import until, until_seen
from .places import PACKAGE

# Whichever part of it is taken for something else, it gives itself away.
WORD = "opensesame"
PASSWORD = f"{WORD}/{WORD}@{WORD}"

THREADS: dict[str, Callable[[str, int], Any]] = {
    "psycopg-url": lambda host, port: Psycopg(url_of(host, port)),
    "psycopg-conninfo": lambda host, port: Psycopg(conninfo_of(host, port)),
    "psycopg-keyword": lambda host, port: Psycopg(host=host, port=port, user="app", dbname="app", password=PASSWORD),
    "psycopg-callable": lambda host, port: Psycopg(host=host, port=port, user="app", password=lambda: PASSWORD),
    "dbapi-url": lambda host, port: DBAPI(psycopg.connect, url_of(host, port)),
    "dbapi-keyword": lambda host, port: DBAPI(psycopg.connect, host=host, port=port, user="app", password=PASSWORD),
    "partial": lambda host, port: functools.partial(psycopg.connect, url_of(host, port)),
}
TASKS: dict[str, Callable[[str, int], Any]] = {
    "psycopg-url": lambda host, port: AsyncPsycopg(url_of(host, port)),
    "psycopg-keyword": lambda host, port: AsyncPsycopg(host=host, port=port, user="app", password=PASSWORD),
    "asyncpg-url": lambda host, port: Asyncpg(url_of(host, port)),
    "asyncpg-keyword": lambda host, port: Asyncpg(host=host, port=port, user="app", password=PASSWORD),
    "asyncpg-callable": lambda host, port: Asyncpg(lambda: url_of(host, port)),
}
WRONG_URLS = [
    f"postgresql://app:{PASSWORD}@127.0.0.1:port/app",
    f"postgresql://app:{PASSWORD}",
    f"postgresql://app:{quote(PASSWORD, safe='')}@127.0.0.1:port/app",
    f"postgresql+asyncpg://app:{PASSWORD}@127.0.0.1:1/app",
    f"postgresql+asyncpg://app:{quote(PASSWORD, safe='')}@127.0.0.1:port/app",
    f"nosuch://app:{PASSWORD}@127.0.0.1/app",
    f"app:{PASSWORD}@127.0.0.1",
    f"tcp://app:{PASSWORD}@127.0.0.1:1",
    f"tcp://127.0.0.1:{PASSWORD}",
    f"tls://127.0.0.1:1/?password={PASSWORD}",
    f"sqlite://app:{PASSWORD}@127.0.0.1/app.db",
    f"sqlite:////nowhere/app.db?hexkey={PASSWORD}",
]


def url_of(host: str, port: int) -> str:
    return f"postgresql://app:{quote(PASSWORD, safe='')}@{host}:{port}/app"


def conninfo_of(host: str, port: int) -> str:
    return f"host={host} port={port} user=app dbname=app password='{PASSWORD}'"


@pytest.fixture(params=["wrong password", "server down"])
def unwelcoming(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[tuple[str, int]]:
    """Where the password is refused, or nobody listens."""
    if request.param == "wrong password":
        yield postgres.host, postgres.port
    else:
        with closing(ReservedPort()) as port:
            yield "127.0.0.1", port.number


@pytest.fixture(autouse=True)
def exposed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the pools of this process told to others, on a socket whose path is short enough."""
    with TemporaryDirectory() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        end = expose()
        yield
        end()


def said_by(pool: Pool[Any] | AsyncPool[Any]) -> str:
    """Return what a pool tells of itself, to its own process and to others."""
    (told,) = [answer for process, answer in _looking.look(10) if process.pid == os.getpid()]
    assert pool.name in [other["stats"]["name"] for other in told["pools"]]
    parts = (pool, pool.settings, pool.stats(), pool.leases(), pool.connection(), pool._connector, told)
    return "\n".join(f"{part} {part!r}" for part in parts)


def said_of(error: BaseException) -> str:
    """Return all that a log or a crash reporter would have of an error: its chain, and the variables of our frames."""
    parts = ["".join(traceback.format_exception(error))]
    seen: BaseException | None = error
    while seen is not None:
        parts += [str(seen), repr(seen), repr(seen.args)]
        if not isinstance(seen, ValueError):
            # Whoever makes a pool of a wrong URL has it in a variable of his own, too.
            stack = traceback.StackSummary.extract(traceback.walk_tb(seen.__traceback__), capture_locals=True)
            parts += [str(frame.locals) for frame in stack if frame.filename.startswith(PACKAGE)]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "\n".join(parts)


def logged(caplog: pytest.LogCaptureFixture) -> str:
    formatter = logging.Formatter("%(name)s %(message)s")
    return "\n".join(f"{formatter.format(record)} {vars(record)}" for record in caplog.records)


@pytest.fixture(autouse=True)
def all_is_logged() -> Iterator[None]:
    uninstall = logs.install(loans=True)
    yield
    uninstall()


@pytest.mark.parametrize("ride_out", [False, True])
@pytest.mark.parametrize("kind", THREADS)
def test_a_thread_that_is_not_served_is_told_no_password(
    unwelcoming: tuple[str, int], kind: str, ride_out: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Pool[Any](THREADS[kind](*unwelcoming), ride_out=ride_out) as pool:
        with pytest.raises(PoolError) as failure:
            pool.acquire(timeout=0.2 if ride_out else 5)
        if failure.value.__cause__ is None:  # a busy machine may not know the cause in a moment
            with pytest.raises(PoolError) as failure:
                pool.acquire(timeout=5)
        with pytest.raises(PoolError) as cold:
            pool.resize(min_size=1)
            pool.warm(timeout=0.2)
        until(lambda: "cannot connect" in logged(caplog))
        told = said_by(pool)
    assert isinstance(failure.value.__cause__, psycopg.OperationalError)
    assert WORD not in said_of(failure.value)
    assert WORD not in said_of(cold.value)
    assert WORD not in told
    assert WORD not in logged(caplog)


@pytest.mark.parametrize("ride_out", [False, True])
@pytest.mark.parametrize("kind", TASKS)
def test_a_task_that_is_not_served_is_told_no_password(
    unwelcoming: tuple[str, int], kind: str, ride_out: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def main() -> str:
        async with AsyncPool[Any](TASKS[kind](*unwelcoming), ride_out=ride_out) as pool:
            with pytest.raises(PoolError) as failure:
                await pool.acquire(timeout=0.2 if ride_out else 5)
            if failure.value.__cause__ is None:
                with pytest.raises(PoolError) as failure:
                    await pool.acquire(timeout=5)
            assert failure.value.__cause__ is not None
            await until_seen(lambda: "cannot connect" in logged(caplog))
            return said_of(failure.value) + said_by(pool)

    assert WORD not in asyncio.run(main())
    assert WORD not in logged(caplog)


def borrow_from(url: str) -> None:
    with Pool[Any].from_url(url) as pool:
        assert WORD not in said_by(pool)
        pool.acquire(timeout=5)


def borrow_from_async(url: str) -> None:
    async def main() -> None:
        async with AsyncPool[Any].from_url(url) as pool:
            assert WORD not in said_by(pool)
            await pool.acquire(timeout=5)

    asyncio.run(main())


@pytest.mark.parametrize("borrow", [borrow_from, borrow_from_async])
@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_wrong_url_is_not_quoted(url: str, borrow: Callable[[str], None], caplog: pytest.LogCaptureFixture) -> None:
    """Neither if it is refused at once, nor if it takes an attempt to find out."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises((ValueError, ConnectFailed)) as failure:
        borrow(url)
    assert WORD not in said_of(failure.value)
    assert WORD not in logged(caplog)


@pytest.mark.parametrize("kind", ["psycopg", "psycopg-callable", "redis"])
def test_a_password_that_cannot_be_encoded_is_not_in_the_error(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """An encoding error carries the whole of what it could not encode.

    `os.environ` gives half a surrogate pair for each byte that is not UTF-8.
    """
    caplog.set_level(logging.DEBUG)
    with Valkey() as server:
        secret = f"{WORD}\udce9"
        kinds: dict[str, Callable[[], Any]] = {
            "psycopg": lambda: Psycopg(host="127.0.0.1", port=1, user="app", password=secret),
            "psycopg-callable": lambda: Psycopg(host="127.0.0.1", port=1, user="app", password=lambda: secret),
            "redis": lambda: Redis(server.url, password=secret),
        }
        with Pool[Any](kinds[kind]()) as pool:
            with pytest.raises(ConnectFailed) as failure:
                pool.acquire(timeout=5)
            told = said_by(pool)
    assert "cannot be encoded" in str(failure.value)
    error: BaseException | None = failure.value
    while error is not None:  # also what a traceback leaves out
        assert WORD not in f"{error!r} {vars(error)} {getattr(error, 'object', '')}"
        error = error.__cause__ or error.__context__
    for text in (said_of(failure.value), told, logged(caplog)):
        assert WORD not in text


def unencodable() -> UnicodeError:
    return UnicodeEncodeError("ascii", WORD, 0, 1, "ordinal not in range(128)")


def chained(cause: BaseException | None, context: BaseException | None) -> Exception:
    error = OSError("no")
    error.__cause__, error.__context__ = cause, context
    return error


def of_itself() -> Exception:
    error = OSError("no")
    error.__cause__ = error.__context__ = error
    return error


def of_each_other() -> Exception:
    one, other = OSError("one"), OSError("other")
    one.__cause__, other.__context__ = other, one
    return one


class Falsy(Exception):
    """What an `or` passes over."""

    def __bool__(self) -> bool:
        return False


ODD: dict[str, Callable[[], BaseException]] = {
    "encoding": unencodable,
    "decoding": lambda: UnicodeDecodeError("ascii", WORD.encode(), 0, 1, "ordinal not in range(128)"),
    "translating": lambda: UnicodeTranslateError(WORD, 0, 1, "no"),
    "a cause": lambda: chained(unencodable(), None),
    "a context": lambda: chained(None, unencodable()),
    "a context beside a cause": lambda: chained(OSError("another"), unencodable()),
    "behind one that is false": lambda: chained(None, chained(Falsy(), unencodable())),
    "a group": lambda: ExceptionGroup("all", [OSError("no"), unencodable()]),
    "a group of groups": lambda: ExceptionGroup("all", [ExceptionGroup("some", [unencodable()])]),
    "an argument": lambda: OSError("no", unencodable()),
    "its own cause": of_itself,
    "two that are each other's": of_each_other,
    "one that is false": Falsy,
}


@pytest.mark.parametrize("kind", ODD)
def test_whatever_an_open_ends_with_is_told_at_once_and_without_what_it_carries(kind: str) -> None:
    def fail() -> complex:
        raise ODD[kind]()

    with Pool(fail) as pool, pytest.raises(ConnectFailed) as failure:
        pool.acquire(timeout=20)

    async def main() -> ConnectFailed:
        async def fail_too() -> complex:
            raise ODD[kind]()

        async with AsyncPool(fail_too) as pool_of_tasks:
            with pytest.raises(ConnectFailed) as failure:
                await pool_of_tasks.acquire(timeout=20)
            return failure.value

    for told in (failure.value, asyncio.run(main())):
        assert told.__cause__ is not None
        seen: dict[int, BaseException] = {}
        left: list[BaseException | None] = [told]
        while left:
            one = left.pop()
            if one is not None and id(one) not in seen:
                seen[id(one)] = one
                assert not hasattr(one, "object")
                assert WORD not in repr(one.args)
                left += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]


def test_a_pool_at_work_tells_no_password(postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    """Loans, leaks, unreturned connections and a pool that was never closed are told of without it."""
    caplog.set_level(logging.DEBUG)
    password = urlsplit(postgres.url).password
    assert password
    pool = Pool[Any].from_url(postgres.url, leak_after=0.001)
    with pool.connection():
        told = said_by(pool)
        pool.close(timeout=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = Pool[Any].from_url(postgres.url)
        with pool.connection():
            pass
        del pool
        # Its keeper lets go of it in its own time, and then the collector may have to come.
        until(lambda: gc.collect() >= 0 and caught, pause=0.05)
    assert "still on loan" in logged(caplog)
    assert "never closed" in str([warning.message for warning in caught])
    for text in (told, logged(caplog), str([warning.message for warning in caught])):
        assert password not in text


@pytest.mark.parametrize(
    "key_of",
    [url_of, conninfo_of, lambda *where: (url_of(*where), 1), lambda *where: url_of(*where).replace("://", ":/")],
)
def test_a_keyed_pool_whose_key_is_a_url_tells_no_password(
    unwelcoming: tuple[str, int], key_of: Callable[[str, int], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It has one pool for each key, and the key in its name: in errors, logs, statistics and names of threads."""
    caplog.set_level(logging.DEBUG)
    with KeyedPool[Any, Any](lambda _: Psycopg(url_of(*unwelcoming)), name="tenants") as pools:
        key = key_of(*unwelcoming)
        with pytest.raises(PoolError) as failure:
            pools[key].acquire(timeout=5)
        told = said_by(pools[key])
        threads = str(threading.enumerate())
    assert f"tenants[postgresql://app@{unwelcoming[0]}" in str(failure.value)
    for text in (said_of(failure.value), told, threads, logged(caplog)):
        assert WORD not in text


def test_pools_of_keys_that_are_not_told_can_be_told_apart() -> None:
    def connect() -> complex:
        return 1j

    with KeyedPool[str, complex](lambda _: connect, name="tenants") as pools:
        names = {pools[f"tcp://app:{WORD}{number}@db:5"].name for number in range(20)}
        assert len(names) == 20
        assert WORD not in str(names)
        assert pools["tcp://db:5"].name == "tenants[tcp://db:5]"
        assert pools["me@example.org"].name == "tenants[me@example.org]"


def test_a_file_database_tells_its_path_and_no_key(tmp_path: Path) -> None:
    """What reads encrypted files takes the key from the URL's query."""
    with Pool[Any].from_url(f"sqlite:///{tmp_path}/app.db?vfs=unix&hexkey={WORD}") as pool, pool.connection():
        told = said_by(pool)
    assert "app.db" in told
    assert WORD not in told
