"""Connectors by URL.

Other packages add schemes by entry points in the groups `millpond.connectors` and `millpond.async_connectors`: the
name is the scheme, the value a callable `(url, **options)` that returns a connector. The built-in schemes come first.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from millpond.connectors._url_text import (
    SCHEME,
    InvalidURL,
    expect_encoded,
    expect_one_line,
    expect_str,
    pairs_of,
    place,
)

if TYPE_CHECKING:
    from millpond.connector import AsyncConnector, Connector

__all__ = ["InvalidURL", "async_connector_for", "connector_for", "parameters_of", "place"]


def connector_for(url: str, **options: object) -> Connector[object]:
    """Make the connector for a URL, for a `Pool`; `options` are the connector's own.

    Known are `postgresql://` or `postgres://` (psycopg), `postgresql+psycopg://`, `redis://`, `rediss://`, `unix://`,
    `valkey://` or `valkeys://` (redis-py), `sqlite:///relative.db`, `sqlite:////absolute.db`, `sqlite://` (in memory),
    `tcp://host:port`, `tls://host:port`, and what entry points add.

    Raises `InvalidURL` for one that cannot work, ImportError for a driver that is not installed.
    """
    return cast("Connector[object]", _make(url, options, _CONNECTORS, _ASYNC_CONNECTORS))


def async_connector_for(url: str, **options: object) -> AsyncConnector[object]:
    """Make the connector for a URL, for an `AsyncPool`; `options` are the connector's own.

    Known are those of `connector_for`, where `sqlite` means aiosqlite, and `postgresql+asyncpg://` and
    `sqlite+aiosqlite:///`.

    Raises `InvalidURL` for one that cannot work, ImportError for a driver that is not installed.
    """
    return cast("AsyncConnector[object]", _make(url, options, _ASYNC_CONNECTORS, _CONNECTORS))


def parameters_of(url: object) -> frozenset[str]:
    """Return the names in the query of a URL with a built-in scheme, but for those that its driver knows itself."""
    if not isinstance(url, str):
        return frozenset()
    kinds = (_CONNECTORS.built_in, _ASYNC_CONNECTORS.built_in)
    modules = {kind[scheme][0] for kind in kinds if (scheme := url.partition("://")[0].lower()) in kind}
    own = {name for module in modules for name in _OWN.get(module, ())}
    return frozenset(unquote(name) for name, _, _ in pairs_of(url.partition("#")[0]) if modules) - own


class _Schemes(NamedTuple):
    pool: str
    group: str
    other_drivers: str
    """How a pool is made of a driver that has no scheme."""
    built_in: Mapping[str, tuple[str, str, Callable[[str], tuple[object, ...]]]]
    """By scheme: the module, the class, and what gives its arguments from the URL."""


def _make(url: str, options: Mapping[str, object], ours: _Schemes, others: _Schemes) -> object:
    expect_str(url)
    scheme, separator, _ = url.partition("://")
    scheme = scheme.lower() if separator and SCHEME.fullmatch(scheme) else ""
    if scheme in ours.built_in:
        module, name, arguments = ours.built_in[scheme]
        given = arguments(url)
        made: object = getattr(import_module(f"millpond.connectors.{module}"), name)(*given, **options)
        return made
    added = entry_points(group=ours.group)
    if scheme in added.names:
        loaded: Callable[..., object] = added[scheme].load()
        return loaded(url, **options)
    names = sorted({*ours.built_in, *added.names})
    known = f"known are {', '.join(f'{name}://' for name in names)}"
    if not scheme:
        raise InvalidURL(
            f"a URL begins with a scheme, as in postgresql://user@host/database{_slip(url, names)}; {known}"
        )
    if scheme in others.built_in or scheme in entry_points(group=others.group).names:
        raise InvalidURL(f"{scheme}:// is for {others.pool} only; {known}")
    raise InvalidURL(f"no connector is known for {scheme}://{_meant(scheme, names, ours)}; {known}")


def _slip(url: str, names: Collection[str]) -> str:
    """Return what keeps a URL from beginning with a scheme, to be added to the reason."""
    from difflib import get_close_matches

    if not url:
        return "; this one is empty"
    if url[0].isspace() or url[0] in "\"'":
        return "; this one begins with a space or a quotation mark"
    head, _, rest = url.partition(":")
    if head.lower() == "jdbc":
        return "; leave out jdbc:"
    if head.lower() in names and not rest.startswith("//"):
        return f"; two slashes follow {head.lower()}:"
    # SQLAlchemy has schemes with an underscore, which is none of a URL's.
    if head.replace("_", "-") != head and SCHEME.fullmatch(head.replace("_", "-")) and rest.startswith("//"):
        return "".join(f"; did you mean {match}://?" for match in get_close_matches(head.lower(), names, 1))
    return ""


def _meant(scheme: str, names: Collection[str], ours: _Schemes) -> str:
    """Return what somebody means by a scheme that is not known, to be added to the reason."""
    from difflib import get_close_matches

    product, _, driver = scheme.partition("+")
    elsewhere = _ELSEWHERE.get(scheme.replace("+", "-")) or _ELSEWHERE.get(product)
    if elsewhere:
        return f"; {elsewhere}"
    if product in _SQL:
        return f"; for another driver of SQL, {ours.other_drivers}"
    if product in ("postgres", "postgresql"):
        meant = next(iter(get_close_matches(f"postgresql+{driver}", names, 1, 0.9)), "postgresql")
        known_by = "" if meant == f"postgresql+{driver}" else f" For {driver} itself, {ours.other_drivers}"
        return f"; did you mean {meant}://?{known_by}"
    return "".join(f"; did you mean {match}://?" for match in get_close_matches(scheme, names, 1))


def _dsn(url: str) -> tuple[str]:
    """Return a PostgreSQL URL as libpq knows it: without the driver in its scheme."""
    return ("postgresql://" + url.partition("://")[2],)


def _whole(url: str) -> tuple[str]:
    return (url,)


def _file(url: str) -> tuple[str]:
    """Return the database of an SQLite URL: a path, a `file:` URI if there is a query, or :memory:.

    SQLAlchemy's way to write a URI is understood, too: `sqlite:///file:app.db?mode=ro&uri=true`.
    """
    expect_one_line(url)
    authority, _, path = url.partition("://")[2].partition("?")[0].partition("/")
    query = url.partition("?")[2]
    if authority:
        raise InvalidURL("an SQLite URL has no host: three slashes precede a relative path, four an absolute one")
    if path.startswith("~"):
        raise InvalidURL("an SQLite URL knows no home directory '~': write the path out, or use os.path.expanduser")
    query = "&".join(part for part in query.split("&") if part and not part.startswith("uri="))
    if path.startswith("file:"):
        return (f"{path}?{query}" if query else path,)
    path = os.fsdecode(unquote_to_bytes(path)) or ":memory:"
    if "\0" in path:
        raise InvalidURL("no file's name has a zero byte")
    if not query:
        return (path,)
    if path == ":memory:":
        raise InvalidURL("an SQLite database in memory takes no query")
    # More than one slash would begin a host.
    return (f"file:{quote(re.sub('^/+', '/', path).encode(errors='surrogateescape'))}?{query}",)


def _endpoint(url: str) -> tuple[str, int, bool]:
    expect_encoded(url)
    scheme = url.partition("://")[0].lower()
    expected = f"expected {scheme}://host:port, and nothing else"
    host = port = parts = None
    with contextlib.suppress(ValueError):  # its text quotes what could not be read; that may be a password
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    if not parts or not host or not port:
        raise InvalidURL(f"{expected}; the host or the port is missing, or cannot be read")
    if "@" in parts.netloc or parts.path not in ("", "/") or parts.fragment:
        raise InvalidURL(f"{expected}; it has a user, a path or a fragment")
    if parts.query:
        raise InvalidURL(f"{expected}; what the query sets is an argument of from_url()")
    return host, port, scheme == "tls"


_OWN = {"psycopg": ("connect_timeout",), "sqlite": ("timeout",), "aiosqlite": ("timeout",)}
"""By module: the parameters of a query that are called as settings of a pool are, and are the driver's."""

_ELSEWHERE = {
    **dict.fromkeys(("http", "https"), "for HTTP there are millpond.requests, millpond.urllib3 and millpond.httpx"),
    **dict.fromkeys(("redis-socket", "redis-unix"), "did you mean unix:///path/of/the/socket?"),
    **dict.fromkeys(("pg", "psql", "pgsql", "cockroachdb", "redshift"), "did you mean postgresql://?"),
    **dict.fromkeys(("sentinel", "redis-sentinel", "rediss-sentinel"), "millpond.redis has a pool for Sentinel"),
    **dict.fromkeys(("ssl", "tcps"), "did you mean tls://?"),
    **dict.fromkeys(("file", "sqlite3"), "did you mean sqlite:///path?"),
}
"""By product: what is written elsewhere, and what to write here."""

_SQL = (
    *("mysql", "mysql2", "mariadb", "oracle", "mssql", "sqlserver", "db2", "ibm_db_sa", "snowflake", "clickhouse"),
    "duckdb",
)

_REDIS = ("redis", "rediss", "unix", "valkey", "valkeys")

_CONNECTORS = _Schemes(
    "Pool",
    "millpond.connectors",
    "there is Pool(DBAPI(driver.connect, ...)), with millpond.connectors.dbapi",
    {
        **dict.fromkeys(("postgres", "postgresql", "postgresql+psycopg"), ("psycopg", "Psycopg", _dsn)),
        **dict.fromkeys(_REDIS, ("redis", "Redis", _whole)),
        "sqlite": ("sqlite", "Sqlite", _file),
        **dict.fromkeys(("tcp", "tls"), ("sockets", "Socket", _endpoint)),
    },
)
_ASYNC_CONNECTORS = _Schemes(
    "AsyncPool",
    "millpond.async_connectors",
    "there is AsyncPool(connect, close=..., ping=..., reset=...)",
    {
        **dict.fromkeys(("postgres", "postgresql", "postgresql+psycopg"), ("psycopg", "AsyncPsycopg", _dsn)),
        "postgresql+asyncpg": ("asyncpg", "Asyncpg", _dsn),
        **dict.fromkeys(_REDIS, ("redis", "AsyncRedis", _whole)),
        **dict.fromkeys(("sqlite", "sqlite+aiosqlite"), ("aiosqlite", "Aiosqlite", _file)),
        **dict.fromkeys(("tcp", "tls"), ("sockets", "AsyncSocket", _endpoint)),
    },
)
