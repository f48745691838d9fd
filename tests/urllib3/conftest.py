"""Servers, and a look over every pool when its test ends."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trustme

from millpond.urllib3 import HTTPConnectionPool

from .servers import Server

Make = Callable[..., HTTPConnectionPool]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def make(server: Server) -> Iterator[Make]:
    """Make pools of connections to the server; each one's books are in order at the end, and nothing is lent."""
    with ExitStack() as stack:

        def make(answer: Any = None, **options: Any) -> HTTPConnectionPool:
            if answer is not None:
                server.answer = answer
            http = stack.enter_context(HTTPConnectionPool(server.host, server.port, timeout=10, **options))
            pool = http.pool
            assert pool is not None
            stack.callback(lambda: _look_over(pool))
            return http

        yield make


def _look_over(pool: Any) -> None:
    assert pool._step(pool._core.audit) == []
    assert pool.stats().lent == 0


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def certificate(authority: trustme.CA) -> ssl.SSLContext:
    """What a server shows: valid for 127.0.0.1, ::1 and localhost."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "::1", "localhost").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
