"""Whatever is given as a URL either makes a connector, or is refused with a reason; and its password is told nobody."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import millpond.redis
import millpond.redis.asyncio
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
    """Return what is said of a URL: its connector's text, or the reason of its refusal."""
    try:
        made = make(url)
    except ValueError as refusal:
        reason = str(refusal)
        assert len(reason) > 10, "no reason"
        return reason
    return f"{made!r} {made} {getattr(made, 'target', '')}"


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


@pytest.mark.parametrize("make", [redis_face, async_redis_face])
@settings(deadline=None, max_examples=200)
@given(scheme=st.sampled_from(["redis", "rediss", "unix"]), user=pieces, before=pieces, after=pieces, host=pieces)
def test_pools_in_the_place_of_redis_pys_tell_no_password_that_is_encoded(
    make: Make, scheme: str, user: str, before: str, after: str, host: str
) -> None:
    """redis-py reads the URL, and takes any password as it stands."""
    password = encoded(f"{before}{WORD}{after}")
    assert WORD not in told(make, f"{scheme}://{encoded(user)}:{password}@{host}/0")
