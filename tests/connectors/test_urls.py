from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from asyncpg import PostgresError
from asyncpg.connect_utils import _parse_connect_dsn_and_args
from psycopg.conninfo import conninfo_to_dict

from millpond import AsyncPool, Pool
from millpond.connectors import urls
from millpond.connectors._postgresql_url import fault_of
from millpond.connectors._url_text import expect_encoded, printable
from millpond.connectors.aiosqlite import Aiosqlite
from millpond.connectors.asyncpg import Asyncpg
from millpond.connectors.factory import Factory
from millpond.connectors.psycopg import AsyncPsycopg, Psycopg
from millpond.connectors.sockets import AsyncSocket, Socket
from millpond.connectors.sqlite import Sqlite
from millpond.connectors.urls import (
    InvalidURL,
    async_connector_for,
    connector_for,
    parameters_of,
    place,
)
from millpond.events import brief
from millpond.testing import Postgres


@pytest.mark.parametrize(
    ("url", "kind", "target"),
    [
        ("postgresql://me:hunter2@db:5/app", Psycopg, "postgresql://me@db:5/app"),
        ("postgres://db/app", Psycopg, "postgresql://db/app"),
        ("PostgreSQL+psycopg://db/app", Psycopg, "postgresql://db/app"),
        ("sqlite:///relative.db", Sqlite, f"sqlite:///{Path.cwd()}/relative.db"),
        ("sqlite:////tmp/a%20b.db", Sqlite, "sqlite:////tmp/a b.db"),
        ("sqlite:///relative.db?mode=ro", Sqlite, f"sqlite:///{Path.cwd()}/relative.db"),
        ("sqlite://", Sqlite, "sqlite:///:memory:"),
        ("sqlite:///:memory:", Sqlite, "sqlite:///:memory:"),
        ("tcp://db:5", Socket, "tcp://db:5"),
        ("tls://[::1]:5/", Socket, "tls://[::1]:5"),
    ],
)
def test_a_url_finds_its_connector(url: str, kind: type, target: str) -> None:
    connector = connector_for(url)
    assert type(connector) is kind
    assert connector.target == target


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("postgresql://db/app", AsyncPsycopg),
        ("postgres://db/app", AsyncPsycopg),
        ("postgresql+psycopg://db/app", AsyncPsycopg),
        ("postgresql+asyncpg://db/app", Asyncpg),
        ("sqlite:///relative.db", Aiosqlite),
        ("sqlite+aiosqlite:////tmp/absolute.db", Aiosqlite),
        ("tcp://db:5", AsyncSocket),
        ("tls://db:5", AsyncSocket),
    ],
)
def test_a_url_finds_its_async_connector(url: str, kind: type) -> None:
    assert type(async_connector_for(url)) is kind


def test_options_reach_the_connector() -> None:
    with pytest.raises(ValueError, match="everything"):
        connector_for("postgresql://db/app", reset="everything")
    with pytest.raises(TypeError):
        connector_for("sqlite://", reset="session")


def test_a_connection_is_opened_by_url(postgres: Postgres, tmp_path: Path) -> None:
    for url in (postgres.url, f"sqlite:///{tmp_path}/a%20b.db", f"sqlite:///{tmp_path}/c.db?cache=private"):
        connector = connector_for(url)
        conn = connector.open(5)
        connector.ping(conn, 5)
        connector.close(conn)
    assert {path.name for path in tmp_path.iterdir()} >= {"a b.db", "c.db"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hunter2", "begins with a scheme"),
        ("me:hunter2@db", "begins with a scheme"),
        ("me hunter2://db", "begins with a scheme"),
        ("mongodb://me:hunter2@db", "no connector is known for mongodb://"),
        ("postgresql+asyncpg://me:hunter2@db", "postgresql+asyncpg:// is for AsyncPool only"),
        ("sqlite+aiosqlite:///hunter2", "sqlite+aiosqlite:// is for AsyncPool only"),
        ("postgresql://me:hun/ter2hunter2@db/app", "percent-encode"),
        ("postgresql://me:hunter2@hunter2@db/app", "percent-encode"),
        ("sqlite://hunter2", "three slashes"),
        ("sqlite:///:memory:?cache=hunter2", "takes no query"),
        ("tcp://db", "tcp://host:port"),
        ("tcp://db:hunter2", "no host:port can be read"),
        ("tcp://me:hunter2@db:5", "it has a user"),
        ("tls://:5", "tls://host:port"),
        ("tls://[hunter2", "no host:port can be read"),
        ("tls://db:5/hunter2", "it has a user, a path"),
        ("tls://db:5?hunter2=1", "what the query sets is an argument"),
        ("tls://db:1,db:2", "the host or the port is missing, or cannot be read"),
    ],
)
def test_a_url_that_cannot_work_is_declined_without_being_quoted(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as failure:
        connector_for(url)
    assert "hunter2" not in str(failure.value)
    assert failure.value.__context__ is None, "what it was told by others is kept"


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg"])
@pytest.mark.parametrize("secret", ["hun/ter2", "hun?ter2", "hun#ter2", "hun@ter2", "hun:@ter2", "/hunter2"])
def test_a_password_that_is_not_encoded_is_declined_before_it_is_taken_for_something_else(
    scheme: str, secret: str
) -> None:
    with pytest.raises(InvalidURL, match="percent-encoded") as failure:
        async_connector_for(f"{scheme}://me:{secret}@db/app")
    assert "ter2" not in str(failure.value)


@pytest.mark.parametrize(
    "hosts", ["db", "db:5", "me@db", "me:hunter2@db:5", "me@a:1,b:2", "[::1]", "me@[::1]:5", "", "db,[::1]:5"]
)
@pytest.mark.parametrize("rest", ["", "/app", "/app?application_name=a%40b", "?user=me&password=a%40b"])
def test_what_is_encoded_passes(hosts: str, rest: str) -> None:
    expect_encoded(f"postgresql://{hosts}{rest}")


def test_an_at_in_the_query_is_taken_as_such_where_no_password_can_end_there() -> None:
    expect_encoded("postgresql://db/app?application_name=a@b")
    expect_encoded("postgresql://me:hunter2@db:5/app?application_name=a@b")
    expect_encoded("postgresql://db:5/app?user=me@azure&sslmode=require&application_name=a@b")
    expect_encoded("redis://[::1]:5/0?client_name=a@b")
    with pytest.raises(InvalidURL, match="percent-encoded"):
        expect_encoded("postgresql://me:12/34?hunter2@db/app")


@pytest.mark.parametrize("port", ["65536", "123456789", "9" * 5000, "²", "٣", "-1", "+5", "0x5", "5 "])
def test_a_port_is_a_number_that_a_port_can_have(port: str) -> None:
    with pytest.raises(InvalidURL, match="no host:port can be read") as failure:
        expect_encoded(f"postgresql://db:{port}/app")
    assert port not in str(failure.value)


@pytest.mark.parametrize(
    "hosts", ["me:hunter2:5432", "me:hunter2:", "hunter2[::1]", "[::1]hunter2", "[]", "::1", "a]b"]
)
def test_what_is_no_host_and_port_is_not_shown_as_one(hosts: str) -> None:
    """It is a user and a password, whose host was left out."""
    for made in (Psycopg, AsyncPsycopg, Asyncpg, connector_for, async_connector_for):
        with pytest.raises(InvalidURL, match="no host:port can be read") as failure:
            made(f"postgresql://{hosts}/app")
        assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        (None, "this is None: is the variable set that it should come from?"),
        (b"postgresql://db", "this is bytes: decode() them"),
        (bytearray(b"postgresql://db"), "this is bytes: decode() them"),
        (5, "this is a int: str()"),
        (Path("/app.db"), "this is a PosixPath: str()"),
    ],
)
def test_what_is_no_str_is_told_apart_from_a_wrong_url(url: object, what: str) -> None:
    for made in (connector_for, async_connector_for, Pool.from_url, AsyncPool.from_url):
        with pytest.raises(TypeError, match=re.escape(what)):
            made(url)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "; this one is empty; known are"),
        (" postgresql://db", "; this one begins with a space or a quotation mark; known are"),
        ('"postgresql://db"', "; this one begins with a space or a quotation mark; known are"),
        ("postgresql:/db", "; two slashes follow postgresql:; known are"),
        ("jdbc:postgresql://db", "; leave out jdbc:; known are"),
        ("db:5432", "postgresql://user@host/database; known are"),
        ("postgresql+psycopg_async://db", "; did you mean postgresql+psycopg://?; known are"),
        ("postgressql://db", "; did you mean postgresql://?; known are"),
        ("postgresql+psycog://db", "; did you mean postgresql+psycopg://? For psycog itself"),
        ("postgresql+psycopg2://db", "; did you mean postgresql+psycopg://? For psycopg2 itself, there is Pool(DBAPI("),
        ("postgresql+pg8000://db", "; did you mean postgresql://? For pg8000 itself, there is Pool(DBAPI("),
        ("redisss://db", "; did you mean rediss://?; known are"),
        ("sqlite3:///app.db", "; did you mean sqlite:///path?; known are"),
        ("ssl://db:5", "; did you mean tls://?; known are"),
        ("mysql://db", "; for another driver of SQL, there is Pool(DBAPI(driver.connect, ...)), with"),
        ("mysql+pymysql://db", "; for another driver of SQL, there is Pool(DBAPI(driver.connect, ...)), with"),
        ("https://db", "; for HTTP there are millpond.requests, millpond.urllib3 and millpond.httpx; known"),
        ("redis+sentinel://db", "; millpond.redis has a pool for Sentinel; known are"),
        ("rediss+sentinel://db", "; millpond.redis has a pool for Sentinel; known are"),
        ("gopher://db", "no connector is known for gopher://; known are"),
    ],
)
def test_a_scheme_that_is_unset_mistyped_or_another_program_s_gets_what_was_meant(url: str, said: str) -> None:
    with pytest.raises(InvalidURL, match=re.escape(said)):
        connector_for(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgres+asyncpg://db", "; did you mean postgresql+asyncpg://?; known are"),
        ("postgresql+asyncpgg://db", "; did you mean postgresql+asyncpg://? For asyncpgg itself"),
        ("mysql+aiomysql://db", "; for another driver of SQL, there is AsyncPool(connect, close=..., ping="),
    ],
)
def test_a_scheme_for_tasks_gets_what_was_meant(url: str, said: str) -> None:
    with pytest.raises(InvalidURL, match=re.escape(said)):
        async_connector_for(url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("?schema=public", "libpq knows no parameter 'schema': say options=-csearch_path%3Dname"),
        (
            "?pgbouncer=true",
            "libpq knows no parameter 'pgbouncer': leave it out; PgBouncer before 1.21 needs",
        ),
        ("?sslmod=require", "libpq does not know the parameter 'sslmod'; did you mean sslmode?"),
        ("?ssl=false", "libpq knows no parameter 'ssl': say sslmode=require"),
        ("?nonsense=1", "libpq does not know the parameter 'nonsense'"),
        ("?no%0Ansense=1", r"libpq does not know the parameter 'no\nnsense'"),
        ("?PASSWD=a&hunter2=b%zz", "a parameter behind the password, in which & is %26 has a % that begins no code"),
        ("?pass%77ord=a&hunter2=b=c", "a parameter behind the password, in which & is %26 has a second ="),
        ("?password=a&hunter2=1", "libpq does not know a parameter behind the password, in which & is %26"),
        ("?password=a&hunter2", "a parameter of the query has no value: expected name=value&name=value"),
        ("?user=a=b", "the parameter 'user' has a second =, which is %3D in a value"),
        ("?password=a=hunter2", "the parameter 'password' has a second =, which is %3D in a value"),
        ("?user=50%", "the parameter 'user' has a % that begins no code; a % itself is %25"),
        (
            "?prepare_threshold=0",
            "'prepare_threshold': it is an argument of its own, prepare_threshold=...",
        ),
        ("/a%zz", "the database has a % that begins no code"),
    ],
)
def test_what_libpq_cannot_read_is_told_by_the_name_of_the_part(url: str, said: str) -> None:
    for made in (connector_for, async_connector_for, Psycopg, AsyncPsycopg):
        with pytest.raises(InvalidURL, match=re.escape(said)) as failure:
            made(f"postgresql://db{url}")
        assert "hunter2" not in str(failure.value)
        assert failure.value.__context__ is None


def test_a_percent_sign_that_is_not_encoded_is_told_without_the_password() -> None:
    for part, url in (("user", "m%e:x@db"), ("password", "me:hunt%er@db"), ("host", "me:x@d%b")):
        with pytest.raises(InvalidURL, match=f"the {part} has a % that begins no code; a % itself is %25") as failure:
            connector_for(f"postgresql://{url}")
        assert "hunt" not in str(failure.value)
        assert failure.value.__context__ is None


def test_a_space_in_a_url_is_told_by_its_part() -> None:
    """libpq takes it until 17."""
    assert fault_of("postgresql://db/a b") == "the database has a space, which is %20, or a zero byte"
    assert fault_of("postgresql://db/ab") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("host=db sslmod=require", "libpq does not know the parameter 'sslmod'; did you mean sslmode?"),
        ("host=db password=hunt hunter2=1", "libpq does not know a parameter behind the password"),
        ("host=db password=hunt er2", "neither a PostgreSQL URL nor key=value pairs"),
        ("password='hunter2", "neither a PostgreSQL URL nor key=value pairs"),
        ("host=db schema=app", "libpq knows no parameter 'schema': say options=-csearch_path=name"),
        ("host=db statement_timeout=5", "if it is a setting of the server, say options=-cname=value"),
        (
            "postgresql+psycopg://me:hunter2=@db/app",
            "expected postgresql://user:password@host:port/database",
        ),
        ("POSTGRESQL://me:hunter2=@db/app", "libpq reads no such URL"),
        ("'postgresql://me:hunter2=@db/app'", "libpq reads no such URL"),
        ("postgresql:/me:hunter2=@db", "neither a PostgreSQL URL nor key=value pairs"),
        ("me:hunter2=@db", "neither a PostgreSQL URL nor key=value pairs"),
        ("hunter2=x me:y", "neither a PostgreSQL URL nor key=value pairs"),
    ],
)
def test_what_libpq_cannot_read_in_a_connection_string_is_told_by_its_name(text: str, said: str) -> None:
    with pytest.raises(InvalidURL, match=re.escape(said)) as failure:
        Psycopg(text)
    assert "hunter2" not in str(failure.value)
    assert failure.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://db?schema=public", "asyncpg knows no parameter 'schema': say options=-csearch_path%3Dname"),
        (
            "postgresql://db?pgbouncer=true",
            "PgBouncer before 1.21 needs the argument statement_cache_size=0",
        ),
        ("postgresql://db?statement_cache_size=0", "it is an argument of its own, statement_cache_size=..."),
        ("postgresql://db?password=a&hunter2", "a parameter of the query has no value"),
        ("postgresql://db?port=hunter2", "the parameter 'port' is no number"),
        ("postgresql://a,,b/app", "a host is missing beside a comma"),
        ("postgresql://?host=a,", "a host is missing beside a comma"),
        ("postgresql://me:hunter2@\u2100.org/app", "what is no letter of ASCII is not percent-encoded"),
        ("postgresql://?host=hunter2:x", "no host:port can be read in the parameter 'host'"),
        ("postgresql://?po%72t=hunter2", "the parameter 'port' is no number"),
        ("postgresql://[hunter2]/app", "an address in [ ] is none of IPv6"),
        ("postgresql://db?reset=session", "it is an argument of its own, reset=..."),
        ("postgresql+asyncpg://db", "asyncpg's dsn is a URL: expected postgresql://user"),
        ("host=db password=hunter2", "asyncpg's dsn is a URL: expected postgresql://user"),
    ],
)
def test_what_asyncpg_cannot_read_is_told_when_the_connector_is_made(url: str, said: str) -> None:
    with pytest.raises(InvalidURL, match=re.escape(said)) as failure:
        Asyncpg(url)
    assert "hunter2" not in str(failure.value)
    assert failure.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        ("postgresql://me:x@h:1,g:2,[::1]/app", {}),
        ("postgresql://me@h/app?port=6000&host=g&user=you&dbname=other", {}),
        ("postgresql://?host=h,g:2&user=you&dbname=a+b", {}),
        ("postgresql://?host=h&port=6000&user=you", {}),
        ("postgresql://?host=[::1]:5&user=you", {}),
        ("postgresql://?host=/run/pg&user=you&database=app", {}),
        ("postgresql://me@%2Frun%2Fpg:5/app", {}),
        ("postgresql://me@h/app#fragment", {}),
        ("postgresql://me@h:/app?port=", {}),
        ("PostgreSQL://me@h/app", {}),
        ("postgresql://me@h:1/app", {"host": "g", "port": 2, "user": "you", "database": "other"}),
        ("postgresql://me@h:1/app", {"host": ["g", "f"], "port": [2, 3]}),
        (None, {"host": "g", "user": "you", "database": "app"}),
    ],
)
def test_it_is_shown_where_asyncpg_goes(url: str | None, arguments: dict[str, Any]) -> None:
    """By asyncpg's own reading, which is told apart by what its arguments say."""
    asked = dict.fromkeys(inspect.signature(_parse_connect_dsn_and_args).parameters)
    addresses, went = _parse_connect_dsn_and_args(**{**asked, "dsn": url, **arguments})
    connector = Asyncpg(url, **arguments)
    shown = conninfo_to_dict(connector.target)
    ports = str(shown.get("port", "")).split(",")
    assert str(shown["host"]).split(",") == [
        address[0] if isinstance(address, tuple) else str(Path(address).parent) for address in addresses
    ]
    for port, address in zip(ports, addresses, strict=True):
        assert port in ("", str(address[1]) if isinstance(address, tuple) else address.rpartition(".")[2])
    assert shown["user"] == went.user
    assert shown.get("dbname", went.user) == went.database


@pytest.mark.parametrize(
    "url", ["", "postgresql://db?port=", "postgresql://db/app?port=1,", "postgres://db", "POSTGRES://db"]
)
def test_what_asyncpg_reads_is_not_refused(url: str) -> None:
    Asyncpg(url)


def test_a_url_that_a_callable_returns_is_read_as_carefully() -> None:
    for url, kind in (("postgresql://db?password=a&hunter2", InvalidURL), (None, TypeError)):
        for connector in (AsyncPsycopg(lambda url=url: url), Asyncpg(lambda url=url: url)):  # type: ignore[misc]
            with pytest.raises(kind) as failure:
                asyncio.run(connector.open(5))
            assert "hunter2" not in str(failure.value)
            assert connector.refused(failure.value)
        with pytest.raises(kind):
            Psycopg(lambda url=url: url).open(5)  # type: ignore[misc]
    with pytest.raises(ConnectionRefusedError):  # asyncpg does without, if it is told a host
        asyncio.run(Asyncpg(lambda: "", host="127.0.0.1", port=1, user="me").open(5))


def test_a_setting_that_the_server_does_not_know_is_a_refusal(postgres: Postgres) -> None:
    """Nothing but a change of the program mends it."""
    for wrong in ("options=-cnonsense%3D1", "options=-cwork_mem%3Dmuch"):
        connector = connector_for(f"{postgres.url}?{wrong}")
        with pytest.raises(psycopg.OperationalError, match=r"nonsense|work_mem") as failure:
            connector.open(5)
        assert connector.refused(failure.value)
    for wrong in ("nonsense=1", "work_mem=much"):
        asyncpg = async_connector_for(postgres.url.replace("://", "+asyncpg://") + f"?{wrong}")
        with pytest.raises(PostgresError, match=r"nonsense|work_mem") as refusal:
            asyncio.run(asyncpg.open(5))
        assert asyncpg.refused(refusal.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "redis://db?socket_timeot=3",
            "redis-py does not know the parameter 'socket_timeot'; did you mean socket_timeout?",
        ),
        ("redis://db?ssl=true", "redis-py knows no parameter 'ssl': rediss:// is TLS"),
        ("rediss://db?ssl_cert_req=none", "'ssl_cert_req'; did you mean ssl_cert_reqs?"),
        ("redis://db?password=a&hunter2=1", "redis-py does not know a parameter behind the password"),
        ("redis://db?socket_timeout=soon", "Invalid value for 'socket_timeout'"),
        ("redis://me:hunter2@db:1,db:2", "the host or the port cannot be read"),
        ("redis://db?args=1", "redis-py does not know the parameter 'args'"),
        ("redis://db?arg=1", "redis-py does not know the parameter 'arg'"),
        ("redis://db?self=1", "redis-py does not know the parameter 'self'"),
        ("redis://db?connection_class=x", "'connection_class': it is an argument of its own"),
        ("redis://db?encoder_class=x", "the parameter 'encoder_class'"),
        ("redis://db?retry=3", "redis-py knows no parameter 'retry': it is an argument of its own"),
        (
            "rediss://db?ssl_cert_reqs=bogus",
            "Invalid SSL Certificate Requirements Flag: bogus",
        ),
    ],
)
def test_what_redis_py_does_not_know_is_told_by_its_name(url: str, said: str) -> None:
    for made in (connector_for, async_connector_for):
        with pytest.raises(InvalidURL, match=re.escape(said)) as failure:
            made(url)
        assert "hunter2" not in str(failure.value)
        assert failure.value.__context__ is None


@pytest.mark.parametrize(
    "url", ["postgresql://me@db/app", "postgresql+asyncpg://me@db/app", "sqlite:///app.db", "redis://db", "tcp://db:5"]
)
def test_an_option_that_nobody_knows_is_declined_at_once(url: str) -> None:
    with pytest.raises(TypeError, match="max_sise"):
        async_connector_for(url, max_sise=5)


@pytest.mark.parametrize(
    "url", ["postgresql://me@db/app", "postgresql+asyncpg://me@db/app", "sqlite:///app.db", "redis://db", "tcp://db:5"]
)
def test_an_option_that_is_a_setting_of_the_pool_mistyped_gets_what_was_meant(url: str) -> None:
    for pool in (Pool, AsyncPool):
        if pool is Pool and "asyncpg" in url:
            continue
        for name, meant in (("maxsize", "max_size"), ("max_connections", "max_size"), ("pool_recycle", "max_lifetime")):
            with pytest.raises(TypeError, match=f"'{name}'.*; did you mean {meant}, a setting of the pool"):
                pool.from_url(url, **{name: 5})
        for name in ("nonsense", "socket_tmeout", "comand_timeout"):
            with pytest.raises(TypeError, match=f"'{name}'") as failure:
                pool.from_url(url, **{name: 5})
            assert "a setting of the pool" not in str(failure.value)


@pytest.mark.parametrize(
    "url", ["postgresql://me@db/app", "postgresql+asyncpg://me@db/app", "sqlite:///app.db", "redis://db", "tcp://db:5"]
)
def test_a_setting_of_the_pool_in_a_url_is_told_where_it_goes(url: str) -> None:
    pool = AsyncPool if "asyncpg" in url else Pool
    with pytest.raises(InvalidURL, match=r"max_size is a setting of the pool.* from_url\(url, max_size=...\)"):
        pool.from_url(f"{url}?max_size=20")
    with pytest.raises(InvalidURL, match=r"max_connections is called max_size here.* from_url\(url, max_size=...\)"):
        pool.from_url(f"{url}?max_connections=20")


def test_a_parameter_that_is_the_driver_s_stays_the_driver_s() -> None:
    assert not parameters_of("postgresql://db/app?connect_timeout=5")
    assert not parameters_of("sqlite:///app.db?timeout=5")
    assert not parameters_of("mongodb://db?max_size=5"), "the scheme is somebody else's"
    assert not parameters_of("redis://db/0#?max_size=5")
    assert parameters_of("postgresql+asyncpg://db/app?connect_timeout=5") == {"connect_timeout"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hunter2@db:5/app?sslmode=require", "postgresql://me@db:5/app"),
        ("postgresql://db/app?password=hunter2&user=me", "postgresql://me@db/app"),
        ("postgresql://db/app?sslpassword=hunter2", "postgresql://db/app"),
        ("postgresql://db/app?p%61ssword=hunter2", "postgresql://db/app"),
        ("postgresql://me:hunter%32@db/app", "postgresql://me@db/app"),
        ("postgresql://me:hunter2@db1:1,db2:2/app", "postgresql://me@db1:1,db2:2/app"),
        ("postgresql://me@db/app?sslpassword=hunter2&p%61ssword=hunter2", "postgresql://me@db/app"),
        ("postgresql://me@[::1]:5/a%20b", "postgresql://me@[::1]:5/a%20b"),
        ("postgresql://a%0Ab@db/c%1Bd", "postgresql://a%0Ab@db/c%1Bd"),
        ("postgresql:///app?host=/run/pg&port=5", "postgresql://%2Frun%2Fpg:5/app"),
        ("postgresql://", "postgresql://"),
    ],
)
def test_it_is_shown_where_a_url_leads_and_no_secret(url: str, shown: str) -> None:
    assert Asyncpg(url).target == shown
    if "sslpassword" not in url:
        assert Psycopg(url).target == shown


@pytest.mark.parametrize("url", ["postgresql://", "postgresql+asyncpg://", "redis://", "sqlite:///", "tcp://"])
@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x85", "\u2028", "\0", "\t"])
def test_nothing_from_a_url_begins_a_line_of_a_log(url: str, character: str) -> None:
    for wrong in (f"{url}db:5{character}CRITICAL root hacked", f"{url}{character}db:5", f"{url}db:5{character}"):
        with pytest.raises(InvalidURL, match="a URL has no control characters: strip"):
            async_connector_for(wrong)


def test_a_file_s_name_is_shown_on_one_line() -> None:
    for character in "\n\r\x1b\x85\u2028\t":
        assert connector_for(f"sqlite:////a{quote(character)}b").target.isprintable()
    with pytest.raises(InvalidURL, match="no file's name has a zero byte"):
        connector_for("sqlite:////a%00b")


@pytest.mark.parametrize("url", ["postgresql://", "postgresql+asyncpg://", "redis://", "sqlite:///", "tcp://"])
def test_half_a_surrogate_pair_is_refused_before_an_encoding_error_keeps_the_url(url: str) -> None:
    with pytest.raises(InvalidURL, match="a URL has no control characters") as failure:
        async_connector_for(f"{url}me:hunter2@db/\ud800")
    assert failure.value.__context__ is None


def test_an_error_is_told_on_one_line_that_prints() -> None:
    error = ValueError('database "x\n2026 CRITICAL root\x1b[1m" does not exist\u2028')
    assert brief(error) == r'ValueError: database "x 2026 CRITICAL root\x1b[1m" does not exist'


def test_what_does_not_print_is_shown_as_an_escape() -> None:
    assert printable("a\nb\x1bü\u2028\udcff c") == r"a\nb\x1bü\u2028\udcff c"


def test_what_is_known_is_listed() -> None:
    with pytest.raises(
        InvalidURL, match=r"known are postgres://, postgresql://, .* sqlite://, tcp://, tls://, unix://"
    ):
        connector_for("mongodb://db")
    with pytest.raises(InvalidURL, match=r"known are .* postgresql\+asyncpg://, .* sqlite\+aiosqlite://"):
        async_connector_for("mongodb://db")


def made_elsewhere(url: str, **options: object) -> Factory[list[object]]:
    return Factory(lambda: [url, options])


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    group = "millpond.connectors"
    names = ("mongodb", "sqlite")
    points = EntryPoints(EntryPoint(name, f"{__name__}:made_elsewhere", group) for name in names)
    monkeypatch.setattr(urls, "entry_points", lambda *, group: points.select(group=group))
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[made_elsewhere.__module__])


@pytest.mark.usefixtures("added")
def test_other_packages_can_add_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    connector = connector_for("mongodb://db", fast=True)
    assert connector.open(5) == ["mongodb://db", {"fast": True}]
    assert isinstance(connector_for("sqlite://"), Sqlite)  # the built-in come first
    with pytest.raises(InvalidURL, match="known are mongodb://, postgres://"):
        connector_for("oracle://db")
    with pytest.raises(InvalidURL, match="mongodb:// is for Pool only"):
        async_connector_for("mongodb://db")


def test_no_driver_is_imported_before_it_is_needed() -> None:
    program = (
        "import sys, millpond.connectors, millpond.connectors.urls as urls\n"
        "urls.connector_for('sqlite://'), urls.connector_for('tcp://db:5')\n"
        "import millpond.connectors.factory, millpond.connectors.dbapi\n"
        "print(sorted({'psycopg', 'asyncpg', 'aiosqlite', 'anyio', 'trio'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_place_is_written_as_a_url() -> None:
    assert place("tcp", host="::1", port=5) == "tcp://[::1]:5"
    assert place("postgresql", user="a@b/c", host="/run/pg", path="x y") == "postgresql://a%40b%2Fc@%2Frun%2Fpg/x%20y"
    assert place("postgresql") == "postgresql://"
    assert place("postgresql", host="a,::1", port="1,2") == "postgresql://a:1,[::1]:2"
    assert place("postgresql", host="a,b", port=",2") == "postgresql://a,b:2"
    assert place("postgresql", host="a,b", port=5) == "postgresql://a:5,b:5"
