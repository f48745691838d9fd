"""What a URL is expected to be, and how one is written for people; neither tells its secrets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

__all__ = [
    "SCHEME",
    "InvalidURL",
    "address_of",
    "beside",
    "expect_encoded",
    "expect_one_line",
    "expect_str",
    "pairs_of",
    "place",
    "printable",
    "shown_names",
    "strange",
]

SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")
HIDDEN: Final = "a parameter behind the password, in which & is %26"
"""What is said instead of a name that may be a part of the password before it."""

_ADDRESS: Final = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]*))(?::0*(\d{0,5}))?", re.ASCII)
_WITH_AT: Final = re.compile(
    r"(user|username|password|application_name|fallback_application_name|client_name|options)="
)
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ENCODED: Final = (
    "expected scheme://user:password@host:port/database, with / ? # @ : [ ] percent-encoded in each, "
    "as urllib.parse.quote(password, safe='') does it"
)


class InvalidURL(ValueError):
    """A URL that leads nowhere; its message says which part is at fault and what would do, and quotes no password."""


def expect_str(url: object) -> None:
    """Raise TypeError if that is no str, with the way to make one."""
    if isinstance(url, str):
        return
    what, way = f"a {type(url).__name__}", "str() may make one of it"
    if url is None:
        what, way = "None", "is the variable set that it should come from?"
    elif isinstance(url, (bytes, bytearray)):
        what, way = "bytes", "decode() them"
    elif hasattr(url, "render_as_string"):  # SQLAlchemy's; its str() has *** for the password
        way = "its render_as_string(hide_password=False) makes one"
    raise TypeError(f"a URL is a str, and this is {what}: {way}")


def expect_one_line(url: str) -> None:
    """Raise `InvalidURL` if there is a control character, such as the end of a line, or half of a surrogate pair."""
    if _CONTROL.search(url):
        raise InvalidURL("a URL has no control characters: strip() the end of its line, and percent-encode others")


def expect_encoded(url: str) -> None:
    """Raise `InvalidURL` if a password that is not percent-encoded would be taken for something else, and told.

    Raises TypeError for what is no str. What is no URL is let pass.
    """
    expect_str(url)
    scheme, separator, rest = url.partition("://")
    if not separator or not SCHEME.fullmatch(scheme):
        return
    expect_one_line(url)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    userinfo, at, hosts = authority.rpartition("@")
    after = rest[len(authority) :]
    if after[:1] not in ("?", "#"):
        after, _, query = after.partition("?")
        if not at and ":" in authority.rpartition("]")[2]:
            # Before the @ may stand the rest of a password, unless it is where one is written.
            after += "".join(pair for pair in query.split("&") if not _WITH_AT.match(pair))
    if authority.count("@") > 1 or set("[]") & set(userinfo) or "@" in after:
        raise InvalidURL(f"the user or the password is not percent-encoded, or an @ behind the host: {_ENCODED}")
    if not all(map(address_of, hosts.split(","))):
        raise InvalidURL(
            "no host:port can be read (a port is a number up to 65535, an IPv6 address stands in [ ]), or the password "
            f"has no @ behind it, or is not percent-encoded: {_ENCODED}"
        )


def address_of(text: str) -> tuple[str, str] | None:
    """Return the host and the port of `host:port`, each of which may be missing; None if it is not of that form."""
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[3] or 0) > 65535:
        return None
    return found[1] or found[2], found[3] or ""


def pairs_of(url: str) -> list[tuple[str, str, str]]:
    """Return the parameters of the query as they are written: the name, the = if there is one, the value."""
    query = url.partition("?")[2]
    return [pair.partition("=") for pair in query.split("&")] if query else []


def strange(
    reader: str,
    names: Iterable[str],
    known: Collection[str] | None,
    elsewhere: Mapping[str, str] = MappingProxyType({}),
    *,
    hidden: str = HIDDEN,
    or_else: str = "",
) -> str | None:
    """Return what is to be said of the first parameter that `reader` does not know; None if there is nothing.

    `elsewhere` says what to do instead. With None as `known`, what is not there may be known to somebody else. `hidden`
    stands for a name that may be a part of the password before it; `or_else` is added where there is nothing else to
    say.
    """
    from difflib import get_close_matches

    for name, shown in shown_names(names, hidden):
        if name in (known or ()):
            continue
        if name in elsewhere:
            return f"{reader} knows no parameter {name!r}: {elsewhere[name]}"
        if known is not None:
            meant = get_close_matches(name, known, 1, 0.75) if shown != hidden else ()
            return f"{reader} does not know {shown}" + (f"; did you mean {meant[0]}?" if meant else or_else)
    return None


def beside(names: Iterable[str]) -> dict[str, str]:
    """Return what is to be done instead of writing these in a URL: they are arguments of their own."""
    return {name: f"it is an argument of its own, {name}=..." for name in names}


def shown_names(names: Iterable[str], hidden: str = HIDDEN) -> Iterator[tuple[str, str]]:
    """Yield each name of a parameter, and how it is told: by `hidden` if it may be a part of the password before it."""
    behind = False
    for name in names:
        yield name, hidden if behind else f"the parameter {name!r}"
        behind = behind or "pass" in name.lower()


def printable(text: str) -> str:
    """Return the text with escapes for what does not print, so that it cannot begin a line of a log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def place(scheme: str, *, user: object = None, host: object = None, port: object = None, path: object = None) -> str:
    """Write as a URL where connections lead; what is None is left out.

    There may be several hosts, with commas between them, and one port or as many.
    """
    hosts = [f"[{one}]" if ":" in one else one for one in str("" if host is None else host).split(",")]
    ports = str("" if port is None else port).split(",")
    if len(ports) < len(hosts):
        ports = ports[:1] * len(hosts)
    where = ",".join(
        quote(one, safe="[]:") + (number and f":{number}") for one, number in zip(hosts, ports, strict=False)
    )
    authority = "" if user is None else f"{quote(str(user), safe='')}@"
    return f"{scheme}://{authority}{where}" + ("" if path is None else f"/{quote(str(path))}")
