from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from millpond.connectors import urls
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
    expect_encoded,
    place,
    without_secrets,
)
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
        ("tcp://db:hunter2", "tcp://host:port"),
        ("tcp://me:hunter2@db:5", "tcp://host:port"),
        ("tls://:5", "tls://host:port"),
        ("tls://[hunter2", "tls://host:port"),
        ("tls://db:5/hunter2", "tls://host:port"),
    ],
)
def test_a_url_that_cannot_work_is_declined_without_being_quoted(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as failure:
        connector_for(url)
    assert "hunter2" not in str(failure.value)
    assert failure.value.__context__ is None or failure.value.__suppress_context__


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
@pytest.mark.parametrize("rest", ["", "/app", "/app?application_name=a@b", "?user=me&password=a%40b"])
def test_what_is_encoded_passes(hosts: str, rest: str) -> None:
    expect_encoded(f"postgresql://{hosts}{rest}")


@pytest.mark.parametrize("url", ["postgresql://me@db/app", "postgresql+asyncpg://me@db/app", "sqlite:///app.db"])
def test_an_option_that_nobody_knows_is_declined_at_once(url: str) -> None:
    with pytest.raises(TypeError, match="max_sise"):
        async_connector_for(url, max_sise=5)


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:hunter2@db:5/app?sslmode=require", "postgresql://me@db:5/app"),
        ("postgresql://db/app?password=hunter2&user=me", "postgresql://db/app"),
        ("postgresql://db/app?sslpassword=hunter2", "postgresql://db/app"),
        ("postgresql://db/app?p%61ssword=hunter2", "postgresql://db/app"),
        ("postgresql://me:hunter%32@db/app", "postgresql://me@db/app"),
        ("postgresql://me:hun@ter2@db/app", "postgresql://me@db/app"),
        ("postgresql://me:hun/ter2@db/app", "postgresql://me@db/app"),
        ("postgresql://me:12/ter2@db/app", "postgresql://me@db/app"),
        ("postgresql://me:hun?ter2@db/app", "postgresql://me@db/app"),
        ("postgresql://me:hun#ter2@db/app", "postgresql://me@db/app"),
        ("postgresql://me:hunter2@db1:1,db2:2/app", "postgresql://me@db1:1,db2:2/app"),
        ("redis://:hunter2@db:5/0", "redis://db:5/0"),
        ("postgresql://db:5/app?options=me@hunter2", "postgresql://db:5/app"),
        ("sqlite:////home/me@db/app.db", "sqlite:////home/me@db/app.db"),
        ("tcp://db:5#hunter2", "tcp://db:5"),
        ("host=db port=5 user=me password=hunter2 dbname=app", "postgresql://me@db:5/app"),
        ("hostaddr=10.0.0.1 password = 'hunter2 host=evil'", "postgresql://10.0.0.1"),
        (r"host=db password='hunter2\' user=hunter2' user=me", "postgresql://me@db"),
        (r"host=db password=hunter2\ user=hunter2 user=me", "postgresql://me@db"),
        ("hunter2", "postgresql://"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_a_place_is_written_as_a_url() -> None:
    assert place("tcp", host="::1", port=5) == "tcp://[::1]:5"
    assert place("postgresql", user="a@b/c", host="/run/pg", path="x y") == "postgresql://a%40b%2Fc@%2Frun%2Fpg/x%20y"
    assert place("postgresql") == "postgresql://"
