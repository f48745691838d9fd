"""Connectors by URL, and URLs without their secrets.

Other packages add schemes by entry points in the groups `millpond.connectors` and `millpond.async_connectors`: the
name is the scheme, the value a callable `(url, **options)` that returns a connector. The built-in schemes come first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import quote, unquote_to_bytes, urlsplit

if TYPE_CHECKING:
    from millpond.connector import AsyncConnector, Connector

__all__ = ["InvalidURL", "async_connector_for", "connector_for", "expect_encoded", "place", "without_secrets"]


class InvalidURL(ValueError):
    """A URL that leads nowhere; its message names what is known, and never quotes a password."""


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


def place(scheme: str, *, user: object = None, host: object = None, port: object = None, path: object = None) -> str:
    """Write as a URL where connections lead; what is None is left out."""
    host = "" if host is None else str(host)
    if ":" in host and "," not in host:
        host = f"[{host}]"
    authority = "" if user is None else f"{quote(str(user), safe='')}@"
    authority += quote(host, safe="[]:,")
    authority += "" if port is None else f":{port}"
    return f"{scheme}://{authority}" + ("" if path is None else f"/{quote(str(path))}")


def without_secrets(text: str) -> str:
    """Return a URL, or a libpq connection string (`host=db password=...`), for people to read.

    Of a URL scheme, user, host, port and path are kept; password, query and fragment are dropped whole, for nobody
    knows what is secret in them. A password that was not percent-encoded as it should be is dropped too.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        pairs = {key: re.sub(r"\\(.)", r"\1", value.strip("'")) for key, value in _PAIR.findall(text)}
        user, host, port, database = (pairs.get(key) for key in ("user", "host", "port", "dbname"))
        return place("postgresql", user=user, host=host or pairs.get("hostaddr"), port=port, path=database)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    userinfo, at, _ = authority.rpartition("@")
    if not at and ":" in authority and "@" in rest:
        # Either the path or the query has an @, or the password has a character that ends an authority.
        port = authority.rpartition(":")[2]
        if not port.isdigit() or "@" in rest.partition("?")[0]:
            userinfo, at, _ = rest.rpartition("@")
    if at:
        user = re.split(r"[:/?#@]", userinfo, maxsplit=1)[0]
        rest = (user and f"{user}@") + rest[len(userinfo) + 1 :]
    return f"{scheme}://{re.split(r'[?#]', rest, maxsplit=1)[0]}"


def expect_encoded(url: str) -> None:
    """Raise `InvalidURL` if a password that is not percent-encoded would be taken for something else, and told.

    What is no URL is let pass.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        return
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    after = rest[len(authority) :]
    userinfo, _, hosts = authority.rpartition("@")
    ports = [host.rpartition("]")[2].rpartition(":")[2] for host in hosts.split(",") if ":" in host.rpartition("]")[2]]
    if (
        "\0" in url  # where C reads no further
        or authority.count("@") > 1
        or set("[]") & set(userinfo)
        or authority.count("[") != authority.count("]")
        or "@" in (after if after.startswith(("?", "#")) else after.partition("?")[0])
        or not all(port == "" or port.isdigit() for port in ports)
    ):
        raise InvalidURL(
            "expected scheme://user:password@host:port/database, with / ? # @ : [ ] percent-encoded in each"
        )


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")
_PAIR = re.compile(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)", re.DOTALL)


class _Schemes(NamedTuple):
    pool: str
    group: str
    built_in: Mapping[str, tuple[str, str, Callable[[str], tuple[object, ...]]]]
    """By scheme: the module, the class, and what gives its arguments from the URL."""


def _make(url: str, options: Mapping[str, object], ours: _Schemes, others: _Schemes) -> object:
    scheme, separator, _ = url.partition("://")
    scheme = scheme.lower() if separator and _SCHEME.fullmatch(scheme) else ""
    if scheme in ours.built_in:
        module, name, arguments = ours.built_in[scheme]
        given = arguments(url)
        made: object = getattr(import_module(f"millpond.connectors.{module}"), name)(*given, **options)
        return made
    added = entry_points(group=ours.group)
    if scheme in added.names:
        loaded: Callable[..., object] = added[scheme].load()
        return loaded(url, **options)
    known = f"known are {', '.join(f'{name}://' for name in sorted({*ours.built_in, *added.names}))}"
    if not scheme:
        raise InvalidURL(f"a URL begins with a scheme, as in postgresql://user@host/database; {known}")
    if scheme in others.built_in or scheme in entry_points(group=others.group).names:
        raise InvalidURL(f"{scheme}:// is for {others.pool} only; {known}")
    raise InvalidURL(f"no connector is known for {scheme}://; {known}")


def _dsn(url: str) -> tuple[str]:
    """Return a PostgreSQL URL as libpq knows it: without the driver in its scheme."""
    return ("postgresql://" + url.partition("://")[2],)


def _whole(url: str) -> tuple[str]:
    return (url,)


def _file(url: str) -> tuple[str]:
    """Return the database of an SQLite URL: a path, a `file:` URI if there is a query, or :memory:.

    SQLAlchemy's way to write a URI is understood, too: `sqlite:///file:app.db?mode=ro&uri=true`.
    """
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
    if not query:
        return (path,)
    if path == ":memory:":
        raise InvalidURL("an SQLite database in memory takes no query")
    # More than one slash would begin a host.
    return (f"file:{quote(re.sub('^/+', '/', path).encode(errors='surrogateescape'))}?{query}",)


def _endpoint(url: str) -> tuple[str, int, bool]:
    scheme = url.partition("://")[0].lower()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # Its text quotes what could not be read; that may be a password.
        raise InvalidURL(f"expected {scheme}://host:port; the host or the port cannot be read") from None
    if not host or not port or "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidURL(f"expected {scheme}://host:port, with both and nothing else")
    return host, port, scheme == "tls"


_REDIS = ("redis", "rediss", "unix", "valkey", "valkeys")

_CONNECTORS = _Schemes(
    "Pool",
    "millpond.connectors",
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
    {
        **dict.fromkeys(("postgres", "postgresql", "postgresql+psycopg"), ("psycopg", "AsyncPsycopg", _dsn)),
        "postgresql+asyncpg": ("asyncpg", "Asyncpg", _dsn),
        **dict.fromkeys(_REDIS, ("redis", "AsyncRedis", _whole)),
        **dict.fromkeys(("sqlite", "sqlite+aiosqlite"), ("aiosqlite", "Aiosqlite", _file)),
        **dict.fromkeys(("tcp", "tls"), ("sockets", "AsyncSocket", _endpoint)),
    },
)
