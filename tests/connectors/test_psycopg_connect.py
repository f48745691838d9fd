"""`connection_class.connect` is on the path when it is not psycopg's own: overridden, or wrapped by what traces."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from psycopg.rows import dict_row, tuple_row

from millpond import AsyncPool, ConnectFailed, Pool
from millpond.connectors.psycopg import AsyncPsycopg, Psycopg
from millpond.testing import Postgres
from millpond.testing.proxy import Proxy

Wire = Callable[[str, int], Proxy]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Configured(psycopg.Connection[Any]):
    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        calls.append(kwargs)
        kwargs["password"] = unquote(urlsplit(calls.url).password or "")
        conn = super().connect(conninfo, **kwargs)
        conn.execute("set application_name = 'configured'")
        conn.commit()
        return conn


class AsyncConfigured(psycopg.AsyncConnection[Any]):
    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        calls.append(kwargs)
        kwargs["password"] = unquote(urlsplit(calls.url).password or "")
        conn = await super().connect(conninfo, **kwargs)
        await conn.execute("set application_name = 'configured'")
        await conn.commit()
        return conn


class Calls(list[dict[str, Any]]):
    url = ""


calls = Calls()


@pytest.fixture
def stale(postgres: Postgres) -> Iterator[str]:
    """A URL with a password that has expired."""
    calls.url = postgres.url
    yield postgres.url.replace(urlsplit(postgres.url).password or "", "expired")
    calls.clear()


def test_a_connect_that_a_class_has_overridden_is_called(stale: str) -> None:
    connector = Psycopg(
        stale, connection_class=Configured, reset="session", row_factory=dict_row, autocommit=True, options="-c jit=off"
    )
    with Pool(connector, max_size=1) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert type(conn) is Configured
                assert conn.autocommit
                conn.row_factory = tuple_row
        with pool.connection() as conn:
            assert conn.execute("select 1 as one").fetchone() == {"one": 1}
    (given,) = calls
    assert given.pop("password")
    assert given.pop("connect_timeout") == 10
    assert given == {"row_factory": dict_row, "autocommit": True, "options": "-c jit=off"}


def test_what_a_class_sets_up_is_kept(stale: str) -> None:
    with Pool(Psycopg(stale, connection_class=Configured), max_size=1) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert conn.execute("show application_name").fetchone() == ("configured",)


@pytest.mark.anyio
async def test_an_async_connect_that_a_class_has_overridden_is_called(stale: str) -> None:
    connector = AsyncPsycopg(stale, connection_class=AsyncConfigured)
    async with AsyncPool(connector, max_size=1) as pool, pool.connection() as conn:
        cursor = await conn.execute("show application_name")
        assert await cursor.fetchone() == ("configured",)
    assert len(calls) == 1


def test_a_connect_that_was_wrapped_is_called_and_left_when_it_no_longer_is(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[str] = []
    own = psycopg.Connection.connect.__func__  # type: ignore[attr-defined]

    @functools.wraps(own)
    def connect(cls: Any, *args: Any, **kwargs: Any) -> Any:
        traced.append("connect")
        return own(cls, *args, **kwargs)

    connector = Psycopg(postgres.url)
    for wrapped in (True, False, True):
        traced.clear()
        with monkeypatch.context() as patched:
            if wrapped:
                patched.setattr(psycopg.Connection, "connect", classmethod(connect))
            conn = connector.open(5)
            assert conn.execute("select 1").fetchone() == (1,)
            connector.abandon(conn)
        assert traced == ["connect"] * wrapped


@pytest.mark.parametrize(("given", "limit"), [({}, 3), ({"connect_timeout": 2}, 2), ({"connect_timeout": 60}, 3)])
def test_a_connect_of_a_classs_own_is_told_the_limit(stale: str, given: dict[str, Any], limit: int) -> None:
    connector = Psycopg(stale, connection_class=Configured, **given)
    connector.abandon(connector.open(2.5))
    assert calls[0]["connect_timeout"] == limit


def test_the_limit_in_the_connection_string_counts(stale: str) -> None:
    connector = Psycopg(f"{stale}?connect_timeout=2", connection_class=Configured)
    connector.abandon(connector.open(60))
    assert calls[0]["connect_timeout"] == 2


def test_what_is_none_is_as_if_it_were_not_given(postgres: Postgres) -> None:
    for kind in (psycopg.Connection, Configured):
        calls.url = postgres.url
        connector = Psycopg(postgres.url, connection_class=kind, password=None, connect_timeout=None)
        connector.abandon(connector.open(5))
    assert calls[0]["connect_timeout"] == 5
    calls.clear()


def test_a_connect_that_returns_no_connection_is_told_at_once() -> None:
    class Lazy(psycopg.Connection[Any]):
        @classmethod
        async def connect(cls, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            raise AssertionError

    with (
        Pool(Psycopg("", connection_class=Lazy)) as pool,
        pytest.raises(ConnectFailed, match=r"Lazy.connect\(\) has returned no connection, but coroutine"),
        pool.connection(),
    ):
        pass


@pytest.mark.parametrize("accept", [True, False])
def test_a_connect_of_a_classs_own_ends_in_time_in_a_black_hole(postgres: Postgres, proxy: Wire, accept: bool) -> None:
    class Mine(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            return super().connect(*args, **kwargs)

    wire = proxy(postgres.host, postgres.port)
    wire.black_hole(accept=accept)
    connector = Psycopg(wire.url_for(postgres.url), connection_class=Mine)
    began = monotonic()
    with pytest.raises(psycopg.OperationalError):
        connector.open(2)
    assert 1.5 < monotonic() - began < 4


def test_a_transaction_that_connect_has_left_open_is_told_at_once(postgres: Postgres) -> None:
    class Forgetful(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            conn = super().connect(*args, **kwargs)
            conn.execute("set application_name = 'forgotten'")
            return conn

    with (
        Pool(Psycopg(postgres.url, connection_class=Forgetful)) as pool,
        pytest.raises(ConnectFailed) as refusal,
        pool.connection(),
    ):
        pass
    assert "Forgetful.connect() has left a transaction open" in str(refusal.value)
    assert pool.stats().open_failures == 1
