"""A pytest plugin: real servers and a faulty network as fixtures; `pytest -p millpond.testing.plugin`.

    def test_survives_a_restart(postgres, proxy):
        wire = proxy(postgres.host, postgres.port)
        pool = millpond.Pool.from_url(wire.url_for(postgres.url))

A server starts when the first test asks for it and serves the whole session. A test that stops it starts it again;
one that wants other settings, or its own, makes one: `with Postgres(max_connections=3) as postgres:`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    # Imported by the fixtures: a plugin is loaded before coverage measures, and by those who want no server.
    from millpond.testing.proxy import Proxy
    from millpond.testing.servers import Postgres, Valkey

__all__ = ["postgres", "proxy", "valkey"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Give a PostgreSQL that runs until the session ends."""
    from millpond.testing.servers import Postgres

    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """Give a Valkey that runs until the session ends."""
    from millpond.testing.servers import Valkey

    with Valkey() as server:
        yield server


@pytest.fixture
def proxy() -> Iterator[Callable[[str, int], Proxy]]:
    """Give a maker of proxies, `proxy(host, port)`, each of which is closed when the test ends."""
    from millpond.testing.proxy import Proxy

    with ExitStack() as open_proxies:
        yield lambda host, port: open_proxies.enter_context(Proxy(host, port))
