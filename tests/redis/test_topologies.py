"""Sentinel and cluster: clients that find their servers themselves."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.cluster import RedisCluster

import millpond.redis
import millpond.redis.asyncio
from millpond.testing import ReservedPort, Valkey

from .conftest import Face


class Watchman(Valkey):
    """A sentinel that watches over a server."""

    def __init__(self, master: Valkey) -> None:
        super().__init__()
        self._master = master

    def _prepare(self, directory: Path) -> None:
        super()._prepare(directory)
        (directory / "sentinel.conf").write_text(
            f"sentinel monitor main {self._master.host} {self._master.port} 1\n"
            "sentinel down-after-milliseconds main 60000\n"
            "sentinel failover-timeout main 30000\n"
        )

    def _command(self, directory: Path) -> list[str | Path]:
        place: list[str | Path] = ["--port", str(self.port), "--bind", self.host, "--dir", directory]
        return [self._program, directory / "sentinel.conf", *place, "--sentinel"]


def until(fact: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


@pytest.fixture
def watched() -> Iterator[tuple[Valkey, Valkey, Watchman]]:
    """A server, its replica, and a sentinel that knows both."""
    with Valkey(repl_diskless_sync_delay=0) as master, Replica(master) as replica, Watchman(master) as watchman:
        with redis.Redis(host=watchman.host, port=watchman.port) as sentinel:
            until(lambda: [each for each in sentinel.sentinel_slaves("main") if each["is_slave"]])
        with redis.Redis(host=replica.host, port=replica.port) as witness:
            until(lambda: witness.info("replication")["master_link_status"] == "up")
        yield master, replica, watchman


class Replica(Valkey):
    """A replica of a server."""

    def __init__(self, master: Valkey) -> None:
        super().__init__(repl_diskless_sync_delay=0)
        self._master = master

    def _command(self, directory: Path) -> list[str | Path]:
        return [*super()._command(directory), "--replicaof", f"{self._master.host} {self._master.port}"]


def test_sentinel(face: Face, watched: tuple[Valkey, Valkey, Watchman]) -> None:
    master, replica, watchman = watched
    module: Any = redis.sentinel if face.world == "threads" else redis.asyncio.sentinel
    sentinel = module.Sentinel([(watchman.host, watchman.port)], socket_timeout=2)
    options = {"connection_pool_class": face.module.SentinelConnectionPool, "max_connections": 4}
    client = sentinel.master_for("main", **options)
    reader = sentinel.slave_for("main", **options)
    pools = [client.connection_pool, reader.connection_pool]
    face.pools += pools
    assert isinstance(pools[0], module.SentinelConnectionPool)
    assert repr(pools[0]).endswith("(service=main(master))>")
    assert face.run(client.set("key", "before"))
    assert pools[0].master_address == (master.host, master.port)
    face.until(lambda: face.run(reader.get("key")) == b"before")
    assert face.run(reader.info("server"))["tcp_port"] == replica.port
    conn, *idle = [face.borrow(pools[0]) for _ in range(4)]
    assert pools[0].owns_connection(conn)
    for each in idle:
        face.give_back(pools[0], each)
    del idle, each
    with redis.Redis(host=watchman.host, port=watchman.port) as boss:
        boss.execute_command("SENTINEL FAILOVER main")
        until(lambda: boss.sentinel_master("main")["port"] == replica.port)

    with redis.Redis(host=master.host, port=master.port) as former:
        former.replicaof(replica.host, replica.port)
    # All that are idle lead to the former master. One that is refused a write tells of the others.
    with pytest.raises(redis.ConnectionError, match="previous master"):
        face.run(client.set("key", "after"))
    face.until(lambda: pools[0].stats().idle == 0)
    for _ in range(3):
        assert face.run(client.set("key", "after"))
    assert face.run(client.info("server"))["tcp_port"] == replica.port
    assert pools[0].master_address == (replica.host, replica.port)
    # What was lent all the time leads to the former master, and is not kept.
    assert not pools[0].owns_connection(conn)
    face.give_back(pools[0], conn)
    del conn
    conns = [face.borrow(pools[0]) for _ in range(3)]
    assert {each.port for each in conns} == {replica.port}
    for each in conns:
        face.give_back(pools[0], each)
    for each in sentinel.sentinels:
        face.run(each.close() if face.world == "threads" else each.aclose())


def test_no_master_is_an_error_of_redis_pys(face: Face) -> None:
    module: Any = redis.sentinel if face.world == "threads" else redis.asyncio.sentinel
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        sentinel = module.Sentinel([closed.getsockname()], sentinel_kwargs={"retry": face.retry(0)})
    client = sentinel.master_for("main", connection_pool_class=face.module.SentinelConnectionPool)
    face.pools.append(client.connection_pool)
    with pytest.raises(module.MasterNotFoundError) as caught:
        face.run(client.ping())
    assert "cannot connect to sentinel://main" in str(caught.value.__cause__)
    for each in sentinel.sentinels:
        face.run(each.close() if face.world == "threads" else each.aclose())


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[Valkey]]:
    """Two servers that share the slots."""
    with (
        closing(ReservedPort()) as bus,
        closing(ReservedPort()) as other_bus,
        Valkey(cluster_enabled=True, cluster_port=bus.number) as one,
        Valkey(cluster_enabled=True, cluster_port=other_bus.number) as other,
    ):
        clients = [redis.Redis(host=server.host, port=server.port) for server in (one, other)]
        clients[0].execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
        clients[1].execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
        clients[0].execute_command("CLUSTER MEET", other.host, other.port, other_bus.number)
        until(lambda: all(client.cluster("INFO")["cluster_state"] == "ok" for client in clients))
        until(lambda: all(client.cluster("INFO")["cluster_known_nodes"] == "2" for client in clients))
        for client in clients:
            client.close()
        yield [one, other]


@pytest.mark.parametrize("kind", [millpond.redis.ConnectionPool, millpond.redis.BlockingConnectionPool])
def test_a_cluster(cluster: list[Valkey], kind: Any) -> None:
    url = f"redis://{cluster[0].host}:{cluster[0].port}"
    client = RedisCluster.from_url(url, connection_pool_class=kind, max_connections=4)
    pools = [node.redis_connection.connection_pool for node in client.get_nodes()]
    assert all(isinstance(pool, kind) for pool in pools)
    for number in range(100):
        assert client.set(f"key {number}", number)
    assert [client.get(f"key {number}") for number in range(100)] == [b"%d" % number for number in range(100)]
    pipe = client.pipeline()
    for number in range(100):
        pipe.incr(f"key {number}")
    assert pipe.execute() == [number + 1 for number in range(100)]
    with client.pipeline(transaction=True) as pipe:
        pipe.watch("{same}one")
        pipe.multi()
        pipe.set("{same}one", 1)
        pipe.incr("{same}one")
        assert pipe.execute()[1] == 2
    # A slot that is on its way, and one that has moved.
    key = kind.__name__
    client.set(key, "here")
    slot = client.keyslot(key)
    source, target = (cluster[0], cluster[1]) if slot < 8192 else (cluster[1], cluster[0])
    with redis.Redis(host=source.host, port=source.port) as old, redis.Redis(host=target.host, port=target.port) as new:
        ids = {each: each.execute_command("CLUSTER MYID").decode() for each in (old, new)}
        new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[old])
        old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[new])
        old.migrate(target.host, target.port, [key], 0, 1000)
        assert client.get(key) == b"here"  # by way of ASK
        for each in (new, old):
            each.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[new])
        assert client.get(key) == b"here"  # by way of MOVED
        assert client.get(key) == b"here"
    for pool in pools:
        assert pool.stats().lent == 0
    client.flushall(target_nodes=RedisCluster.PRIMARIES)
    client.close()
    for pool in pools:
        pool.close()
