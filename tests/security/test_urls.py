"""Whatever is given as a URL either makes a connector, or is refused with a reason; and its password is told nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import quote

import pytest
from asyncpg import InterfaceError
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import millpond.redis
import millpond.redis.asyncio
from millpond.connectors.asyncpg import Asyncpg
from millpond.connectors.urls import async_connector_for, connector_for

WORD = "opensesame"
SCHEMES = [
    *("postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg", "PostgreSQL", "sqlite", "sqlite+aiosqlite"),
    *("tcp", "tls", "redis", "rediss", "unix", "valkey", "valkeys", "nosuch", ""),
]
Make = Callable[[str], object]


def redis_face(url: str) -> object:
    return millpond.redis.ConnectionPool.from_url(url)


def async_redis_face(url: str) -> object:
    return millpond.redis.asyncio.ConnectionPool.from_url(url)


MAKERS: list[Make] = [connector_for, async_connector_for, redis_face, async_redis_face]
pieces = st.text(alphabet=st.sampled_from(":/?#[]@!$&'()*+,;=%%azAZ09 ._-~\\\"\n\0é\ud800"), max_size=12)


def encoded(text: str) -> str:
    return quote(text, safe="", errors="replace")


def told(make: Make, url: str) -> str:
    """Return what is said of a URL: its connector's text, or the reason of its refusal and what that came from."""
    try:
        made = make(url)
    except ValueError as error:
        refusal = error
    else:
        return f"{made!r} {made} {getattr(made, 'target', '')}"
    assert len(str(refusal)) > 10, "no reason"
    return said_by(refusal)


def said_by(error: BaseException | None) -> str:
    """Return what an error says, and all that it came from, also what a traceback leaves out."""
    parts = []
    while error is not None:
        parts += [repr(error), str(error), *getattr(error, "__notes__", ())]
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


@pytest.mark.parametrize("make", MAKERS)
@settings(deadline=None, max_examples=150)
@given(scheme=st.sampled_from(SCHEMES), separator=st.sampled_from(["://", ":", "", "//"]), rest=st.text(max_size=40))
def test_any_text_is_a_url_or_is_refused_with_a_reason(make: Make, scheme: str, separator: str, rest: str) -> None:
    told(make, f"{scheme}{separator}{rest}")


@pytest.mark.parametrize("make", [connector_for, async_connector_for])
@settings(deadline=None, max_examples=300)
@given(
    scheme=st.sampled_from(SCHEMES), user=pieces, before=pieces, after=pieces, host=pieces, path=pieces, query=pieces
)
@example(scheme="redis", user="", before="", after="@", host="h", path="", query="")
@example(scheme="postgresql", user="app", before="/", after="", host="h", path="", query="")
def test_a_password_is_told_nobody_whatever_stands_around_it(
    make: Make, scheme: str, user: str, before: str, after: str, host: str, path: str, query: str
) -> None:
    # This cannot be told from a URL that is meant so: a host after the first @, and another @ in the query.
    assume("@" not in before or "?" not in after)
    url = f"{scheme}://{encoded(user)}:{before}{WORD}{after}@{host}/{path}?{query}"
    assert WORD not in told(make, url)


@settings(deadline=None, max_examples=300)
@given(user=pieces, before=pieces, after=pieces, path=pieces, query=pieces, hidden=st.booleans())
@example(user="app", before="12?", after="", path="", query="", hidden=False)
@example(user="app", before="12]", after="", path="", query="", hidden=False)
@example(user="app", before="", after="", path="", query="port=opensesame&password=opensesame", hidden=False)
@example(user="app", before="", after="&b", path="", query="", hidden=True)
def test_what_asyncpg_says_when_it_opens_tells_no_password(
    user: str, before: str, after: str, path: str, query: str, hidden: bool
) -> None:
    """It reads the URL when it connects, and quotes what it cannot read."""
    if hidden:
        url = f"postgresql://{encoded(user)}@127.0.0.1:1/{encoded(path)}?password={before}{WORD}{after}"
    else:
        assume("@" not in before or "?" not in after)
        url = f"postgresql://{encoded(user)}:{before}{WORD}{after}@127.0.0.1:1/{encoded(path)}?{query}"
    failure: BaseException | None = None
    try:
        connector = Asyncpg(url)
        asyncio.run(connector.open(5))
    except (OSError, ValueError, InterfaceError) as error:
        failure = error
    assert failure is not None
    assert WORD not in said_by(failure)


@pytest.mark.parametrize("make", [redis_face, async_redis_face])
@settings(deadline=None, max_examples=200)
@given(scheme=st.sampled_from(["redis", "rediss", "unix"]), user=pieces, before=pieces, after=pieces, host=pieces)
def test_pools_in_the_place_of_redis_pys_tell_no_password_that_is_encoded(
    make: Make, scheme: str, user: str, before: str, after: str, host: str
) -> None:
    """redis-py reads the URL, and takes any password as it stands."""
    password = encoded(f"{before}{WORD}{after}")
    assert WORD not in told(make, f"{scheme}://{encoded(user)}:{password}@{host}/0")
