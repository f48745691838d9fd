"""How connections are opened: logins, refusals, TLS, unix sockets, what is not supported, and URLs."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from benchmarks.redis_rotation import Rotating, rotate_under_tasks
from redis.cache import CacheConfig
from redis.credentials import UsernamePasswordCredentialProvider
from redis.maint_notifications import MaintNotificationsConfig

import millpond
import millpond.redis
import millpond.redis.asyncio
from millpond.connectors.redis import AsyncRedis, Redis
from millpond.connectors.urls import InvalidURL
from millpond.testing import Valkey

from .conftest import Face, Front


@pytest.fixture(scope="module")
def locked() -> Iterator[Valkey]:
    """A server that wants a password, and has a user who may do little."""
    with Valkey(requirepass="open sesame") as server:
        with redis.Redis(host=server.host, port=server.port, password="open sesame") as admin:
            admin.acl_setuser("ada", enabled=True, passwords=["+lace"], keys=["*"], commands=["+@all"])
            admin.acl_setuser("bob", enabled=True, passwords=["+by"], keys=["*"], commands=["+get", "+client"])
        yield server


# Logins.


@pytest.mark.parametrize("protocol", [2, 3])
def test_users_and_passwords(face: Face, locked: Valkey, protocol: int) -> None:
    for options in (
        {"password": "open sesame"},
        {"username": "ada", "password": "lace"},
        {"credential_provider": UsernamePasswordCredentialProvider("ada", "lace")},
    ):
        pool = face.pool(port=locked.port, protocol=protocol, db=2, **options)
        name = face.run(face.client(pool, decode_responses=True).execute_command("ACL", "WHOAMI"))
        assert name == (b"default" if "password" in options and "username" not in options else b"ada")


@pytest.mark.parametrize("kind", ["ConnectionPool", "BlockingConnectionPool"])
def test_a_wrong_password_is_told_at_once_and_not_tried_again(
    face: Face, locked: Valkey, kind: str, proxy: Any
) -> None:
    wire = proxy(locked.host, locked.port)
    pool = face.pool(kind, port=wire.port, password="wrong secret", max_connections=5, retry=face.retry(50))
    for _ in range(5):
        with pytest.raises(redis.AuthenticationError) as caught:
            face.borrow(pool)
        assert isinstance(caught.value.__cause__, millpond.ConnectFailed)
        assert "is not let in by redis://127.0.0.1" in str(caught.value.__cause__)
        assert "wrong secret" not in f"{caught.value} {caught.value.__cause__} {pool!r} {pool._lender!r}"
    assert wire.accepted == 1


def test_a_database_that_is_not_there_is_a_refusal(face: Face, proxy: Any) -> None:
    wire = proxy(face.server.host, face.server.port)
    pool = face.pool(port=wire.port, db=99)
    for _ in range(3):
        with pytest.raises(redis.ResponseError, match="out of range"):
            face.borrow(pool)
    assert wire.accepted == 1


def test_an_option_that_there_is_not_is_named(face: Face) -> None:
    pool = face.pool(no_such_option=1)
    with pytest.raises(TypeError, match="no_such_option"):
        face.borrow(pool)


def test_a_user_who_may_not_ping_is_served(face: Face, locked: Valkey) -> None:
    pool = face.pool(port=locked.port, username="bob", password="by", protocol=2, driver_info=None, check_after=0.0)
    client = face.client(pool)
    for _ in range(3):
        assert face.run(client.get("key")) is None
    assert pool.stats().checks >= 2
    assert pool.stats().opens == 1


def test_a_server_that_does_not_answer_is_given_up(face: Face, proxy: Any) -> None:
    wire = proxy(face.server.host, face.server.port)
    wire.black_hole()
    for options in ({}, {"socket_timeout": None}, {"socket_timeout": None, "ssl": True}):
        secure = options.pop("ssl", False)
        more = {"connection_class": face.theirs.SSLConnection} if secure else {}
        pool = face.pool(port=wire.port, connect_timeout=0.1, **options, **more)
        began = time.monotonic()
        with pytest.raises(redis.TimeoutError):
            face.borrow(pool)
        assert 0.05 < time.monotonic() - began < 4  # and not redis-py's own 5 s


def test_the_limit_of_opening_ends_with_it(face: Face) -> None:
    pool = face.pool(connect_timeout=1.0, socket_timeout=None, max_connections=1)
    client = face.client(pool)
    assert face.run(client.blpop(["nothing"], timeout=1.2)) is None
    assert pool.stats().opens == 1


def test_the_sockets_own_limit_is_in_force_after_opening_and_after_a_check(valkey: Valkey) -> None:
    with millpond.Pool(Redis(valkey.url, socket_timeout=7.5), check_after=0) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                assert conn._sock is not None
                assert conn._sock.gettimeout() == 7.5
        assert pool.stats().checks == 2


def test_each_caller_has_an_error_of_its_own(valkey: Valkey) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        pool = millpond.redis.ConnectionPool(host="127.0.0.1", port=closed.getsockname()[1])
        errors: list[redis.ConnectionError] = []

        def ask() -> None:
            try:
                pool.get_connection()
            except redis.ConnectionError as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    pool.close()
    assert len({id(error) for error in errors}) == 5


# Tokens.


def test_rotating_tokens_disturbs_no_task() -> None:
    outcome = rotate_under_tasks(millpond.redis.asyncio.BlockingConnectionPool, seconds=2.5, every=0.5)
    assert (outcome.errors, outcome.wrong) == (0, 0)
    assert outcome.commands > 100
    # Each connection, after each rotation.
    assert outcome.logins >= 10 * (outcome.rotations - 1)


def test_rotating_tokens_disturbs_no_thread() -> None:
    with Valkey() as server:
        provider = Rotating(server)
        pool = millpond.redis.BlockingConnectionPool(
            host=server.host, port=server.port, max_connections=3, credential_provider=provider
        )
        client = redis.Redis(connection_pool=pool, credential_provider=provider)
        failures: list[object] = []
        over = threading.Event()

        def work(number: int) -> None:
            turn = 0
            while not over.is_set():
                turn += 1
                try:
                    reply = client.echo(f"{number} {turn}")
                    if reply != f"{number} {turn}".encode():
                        failures.append(reply)
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            time.sleep(0.05)
            provider.rotate()
        over.set()
        for thread in threads:
            thread.join(60)
        assert failures == []
        # Whoever has not been lent since is authenticated before it is.
        conns: list[Any] = [pool.get_connection() for _ in range(3)]
        assert {conn._token.get_value() for conn in conns} == {provider.get_credentials()[1]}
        for conn in conns:
            pool.release(conn)
        provider.close()
        pool.close()


def test_a_token_that_is_refused_ends_the_connection(face: Face) -> None:
    provider = Rotating(face.server, "refused")
    pool = face.pool("BlockingConnectionPool", credential_provider=provider)
    client = face.client(pool)
    assert face.run(client.ping())
    [conn] = pool._get_free_connections()
    number = face.number(conn)
    del conn

    class Wrong:
        def try_get(self, key: str) -> str:
            return "refused"

        def get_value(self) -> str:
            return "nonsense"

    face.run(pool.re_auth_callback(Wrong()))
    assert face.run(client.ping())
    assert number not in {each["id"] for each in face.run(client.client_list())}
    assert pool.stats().closes == {"check failed": 1}
    provider.close()


# TLS and unix sockets.


@pytest.mark.parametrize("protocol", [2, 3])
def test_tls(face: Face, protocol: int) -> None:
    with Front(face.server, tls=True) as front:
        url = f"rediss://localhost:{front.port}/1?protocol={protocol}"
        pool = face.module.BlockingConnectionPool.from_url(url, ssl_ca_data=front.ca, max_connections=2)
        face.pools.append(pool)
        client = face.client(pool)
        big = b"x" * 300_000
        for _ in range(3):
            face.run(client.set("big", big))
            assert face.run(client.get("big")) == big
        assert pool.stats().opens == 1
        conn = face.borrow(pool)
        face.send(conn, "PING")
        face.give_back(pool, conn)
        assert face.run(client.get("big")) == big
        face.close_pool(pool)
        distrustful = face.module.ConnectionPool.from_url(url)
        with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            face.borrow(distrustful)
        assert distrustful._lender._core.outage.refused
        face.close_pool(distrustful)


def test_unix_sockets(face: Face, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Valkey(unixsocket=str(path)):
        pool = face.module.ConnectionPool.from_url(f"unix://{path}?db=1")
        client = face.client(pool)
        assert face.run(client.set("key", "value"))
        assert face.run(client.client_info())["db"] == 1
        assert pool._lender._inspector.target == f"unix:///{path}"[:7] + str(path)
        face.close_pool(pool)


# What is not supported.


def test_maintenance_notifications_are_declined(face: Face) -> None:
    with pytest.raises(redis.RedisError, match="does not follow maintenance notifications"):
        face.pool(protocol=3, maint_notifications_config=MaintNotificationsConfig(enabled=True))
    for config in (None, MaintNotificationsConfig(enabled="auto"), MaintNotificationsConfig(enabled=False)):
        with Valkey() as server:
            pool = face.pool(protocol=3, port=server.port, maint_notifications_config=config)
            client = face.client(pool)
            assert face.run(client.ping())
            assert not pool.maint_notifications_enabled() if hasattr(pool, "maint_notifications_enabled") else True
            assert "cmdstat_client|maint_notifications" not in face.run(client.info("all"))
            with pytest.raises(redis.RedisError, match="does not follow maintenance notifications"):
                face.run(pool.update_maint_notifications_config(MaintNotificationsConfig(enabled=True)))
            face.run(pool.update_maint_notifications_config(MaintNotificationsConfig(enabled="auto")))
            face.close_pool(pool)


def test_the_clients_cache_is_refused(face: Face) -> None:
    with pytest.raises(redis.RedisError, match=r"does not support cache_config: .* takes their replies"):
        face.pool(protocol=3, cache_config=CacheConfig())


# Raw connections.


@pytest.mark.parametrize("scheme", ["redis", "valkey", "REDIS"])
def test_a_url_lends_raw_connections(valkey: Valkey, scheme: str) -> None:
    url = f"{scheme}://{valkey.host}:{valkey.port}/3"
    with millpond.Pool[redis.Connection].from_url(url, max_size=1, decode_responses=True) as pool:
        with pool.connection() as conn:
            conn.send_command("CLIENT", "INFO")
            assert " db=3 " in conn.read_response()
        with pool.connection() as again:
            assert again is conn
            again.send_command("PING")
        with pool.connection() as other:
            assert other is not conn
        assert repr(pool) == f"<millpond.Pool 'pool' to redis://{valkey.host}:{valkey.port}/3: 1 of 1 open, 1 idle>"


def test_a_url_lends_raw_connections_to_tasks(valkey: Valkey) -> None:
    async def main() -> None:
        url = f"redis://{valkey.host}:{valkey.port}/3"
        async with millpond.AsyncPool[redis.asyncio.Connection].from_url(url, max_size=1) as pool:
            async with pool.connection() as conn:
                await conn.send_command("PING")
                assert await conn.read_response() == b"PONG"
            async with pool.connection() as again:
                assert again is conn
                await again.send_command("PING")
            async with pool.connection() as other:
                assert other is not conn

    asyncio.run(main())


@pytest.mark.parametrize("connector", [Redis, AsyncRedis])
@pytest.mark.parametrize(
    ("url", "options", "complaint"),
    [
        ("redis://:pass/word@host", {}, "percent-encoded"),
        ("redis://user:secret@host:99999", {}, "no host:port can be read"),
        ("redis://host?socket_timeout=soon", {}, "Invalid value for 'socket_timeout'"),
        ("redis://host", {"max_connections": 3}, "max_connections"),
        ("redis://host?protocol=7", {}, "protocol must be"),
        ("redis://host", {"maint_notifications_config": MaintNotificationsConfig(enabled=True)}, "does not follow"),
        (redis.Connection, {"host": "elsewhere"}, "'host' goes with a URL"),
    ],
)
def test_a_url_that_cannot_work_is_told(connector: Any, url: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises((InvalidURL, TypeError, redis.RedisError), match=complaint) as caught:
        connector(url, **options)
    assert "secret" not in str(caught.value)
    assert "pass/" not in str(caught.value)


class OverUnix(redis.UnixDomainSocketConnection):
    pass


class OverUnixForTasks(redis.asyncio.UnixDomainSocketConnection):
    pass


class OverTls(redis.SSLConnection):
    pass


class OverTlsForTasks(redis.asyncio.SSLConnection):
    pass


@pytest.mark.parametrize(
    ("connector", "url", "cls"),
    [
        (Redis, "unix:///some/where", OverUnix),
        (AsyncRedis, "unix:///some/where", OverUnixForTasks),
        (Redis, "rediss://host", OverTls),
        (AsyncRedis, "rediss://host", OverTlsForTasks),
    ],
)
def test_the_class_that_is_given_is_used_whatever_the_scheme_implies(connector: Any, url: str, cls: type) -> None:
    made = connector(url, connection_class=cls)
    assert isinstance(made._new(), cls)
    assert made.target == {"unix": "unix:///some/where", "rediss": "rediss://host:6379/0"}[url.partition(":")[0]]
