"""Connection and pool classes of one's own, or of other libraries, count as they do with urllib3."""

from __future__ import annotations

import functools
import gc
import http.client
import socket
import ssl
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from queue import Empty
from typing import Any
from unittest import mock

import pytest
import trustme
import urllib3
from botocore.awsrequest import AWSHTTPConnection, AWSHTTPConnectionPool, AWSHTTPSConnectionPool
from urllib3.connection import HTTPConnection

from millpond import Budget
from millpond.urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from millpond.urllib3._connections import Usage, descriptor_of, lie_down

from .conftest import Make
from .patience import settled, stats, until
from .servers import Request, Server, Wire, as_long_as_a_buffer, echo, plain


@pytest.fixture
def manage(server: Server) -> Iterator[Callable[..., PoolManager]]:
    managers: list[PoolManager] = []

    def manage(**options: Any) -> PoolManager:
        managers.append(PoolManager(timeout=10, retries=False, **options))
        return managers[-1]

    yield manage
    for manager in managers:
        manager.clear()


class Own(HTTPConnection):
    made = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        type(self).made += 1


@pytest.fixture
def own() -> type[Own]:
    return type("Own", (Own,), {"made": 0})


def serves(http: Any, server: Server, connections: int = 1) -> None:
    """Three requests, on so many connections altogether."""
    root = server.url if isinstance(http, PoolManager) else ""
    for number in range(3):
        response = http.request("GET", f"{root}/{number}", retries=False)
        assert response.data == f"/{number}".encode()
    assert server.accepted == connections


# Connections


def test_a_class_that_is_set_on_a_pool_serves_from_then_on(make: Make, server: Server, own: type[Own]) -> None:
    http: Any = make(maxsize=1, block=True)
    http.request("GET", "/")
    http.ConnectionCls = own
    serves(http, server, 2)
    assert own.made == 1


@pytest.mark.parametrize("kind", ["property", "method"])
def test_a_class_that_is_another_one_whenever_it_is_asked_for_serves(server: Server, kind: str) -> None:
    makers: dict[str, Any] = {
        "property": property(lambda _: functools.partial(HTTPConnection)),
        "method": lambda _, **options: HTTPConnection(**options),
    }

    class Pool(HTTPConnectionPool):
        ConnectionCls = makers[kind]

    with Pool(server.host, server.port, maxsize=1, block=True) as http:
        serves(http, server)


def test_what_the_pools_own_method_makes_is_used(server: Server, own: type[Own]) -> None:
    class Pool(HTTPConnectionPool):
        def _new_conn(self) -> Any:
            return own(self.host, self.port, timeout=10)

    with Pool(server.host, server.port, maxsize=1, block=True) as http:
        serves(http, server)
        assert own.made == 1


def test_a_patch_of_urllib3s_class_holds_while_it_is_there(make: Make, server: Server, own: type[Own]) -> None:
    before = make(maxsize=1, block=True)
    before.request("GET", "/")
    with mock.patch.object(urllib3.HTTPConnectionPool, "ConnectionCls", own):
        inside = make(maxsize=1, block=True)
        for http in (before, inside):
            serves(http, server, 2 + (http is inside))
        assert own.made == 2
    for http in (before, inside):
        assert http.request("GET", "/after").data == b"/after"
    assert own.made == 2
    assert server.accepted == 5
    # Nothing of it is left in a pool.
    assert not [entry for http in (before, inside) for entry in http.pool._core.entries if isinstance(entry.conn, own)]  # type: ignore[union-attr]


def test_a_class_may_use_any_name(make: Make, server: Server) -> None:
    names = [*Usage.__annotations__]
    assert {"kind", "rest", "response", "spent"} <= {*names}

    class Conn(HTTPConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            vars(self).update(dict.fromkeys(names, "own"))

        def request(self, *args: Any, **kwargs: Any) -> None:
            assert {vars(self)[name] for name in names} == {"own"}
            super().request(*args, **kwargs)

    http: Any = make(maxsize=1, block=True)
    http.ConnectionCls = Conn
    serves(http, server)


class Wrapper:
    """It has what a connection has, and no class tells it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__["conn"] = HTTPConnection(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["conn"], name)


@pytest.mark.parametrize("kind", [lambda **_: object(), Wrapper])
def test_what_is_no_connection_is_refused_by_name(make: Make, kind: Any) -> None:
    http: Any = make(maxsize=1, block=True)
    http.ConnectionCls = kind
    with pytest.raises(TypeError, match=r"(object|Wrapper) cannot own a loan: it is no connection"):
        http.request("GET", "/")


def test_a_connection_is_called_and_closed_as_its_class_says(make: Make, server: Server) -> None:
    begun: list[int] = []
    dead: list[int] = []

    class Reply(http.client.HTTPResponse):
        def begin(self) -> None:
            super().begin()
            begun.append(1)

    class Conn(HTTPConnection):
        response_class = Reply

        def __del__(self) -> None:
            dead.append(1)

    class Pool(HTTPConnectionPool):
        ConnectionCls = Conn

    with Pool(server.host, server.port, maxsize=1, block=True) as pool:
        serves(pool, server)
        response = pool.request("GET", "/", preload_content=False)
        assert isinstance(response, urllib3.HTTPResponse)
        reply = response._original_response
        assert isinstance(reply, Reply)
        assert type(reply).__name__ == "Reply"
        assert isinstance(response.connection, Conn)
        assert type(response.connection).__name__ == "Conn"
        del response, reply
        until(lambda: gc.collect() >= 0 and dead == [1], 5)
    assert begun == [1] * 4
    assert Conn.response_class is Reply


def test_a_class_of_replies_that_a_connection_sets_is_used(make: Make, server: Server) -> None:
    class Reply(http.client.HTTPResponse):
        pass

    class Conn(HTTPConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.response_class = Reply

        def request(self, *args: Any, **kwargs: Any) -> None:
            self.response_class = self.response_class  # botocore's way to have the one back that it had
            super().request(*args, **kwargs)

    pool: Any = make(maxsize=1, block=True)
    pool.ConnectionCls = Conn
    response = pool.request("GET", "/", preload_content=False)
    assert isinstance(response._original_response, Reply)
    assert response.read() == b"/"
    serves(pool, server)


def test_a_reply_that_tells_nothing_costs_its_connection(make: Make, server: Server) -> None:
    class Conn(HTTPConnection):
        response_class = staticmethod(functools.partial(http.client.HTTPResponse))  # type: ignore[assignment]

    pool: Any = make(maxsize=1, block=True)
    pool.ConnectionCls = Conn
    serves(pool, server, 3)
    assert settled(pool).closes == {"broken": 3}


def test_classes_made_as_the_program_runs_are_not_kept(server: Server) -> None:
    kinds: list[weakref.ref[type]] = []
    for _ in range(3):
        reply = type("Reply", (http.client.HTTPResponse,), {})
        conn = type("Conn", (HTTPConnection,), {"response_class": reply})
        pool = type("Pool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": conn})
        manager = PoolManager()
        manager.pool_classes_by_scheme = {"http": pool}
        serves(manager, server, 1 + len(kinds) // 3)
        kinds += [weakref.ref(reply), weakref.ref(conn), weakref.ref(pool)]
        manager.clear()
        until(lambda: not server.connected)
        del reply, conn, pool, manager

    def gone() -> bool:
        gc.collect()
        return not any(kind() for kind in kinds)

    until(gone)


# Sockets


class Handed:
    """A socket that has what urllib3 and http.client use of one, and no more."""

    def __init__(self, sock: socket.socket, number: bool) -> None:
        self._sock = sock
        self.settimeout, self.sendall, self.makefile = sock.settimeout, sock.sendall, sock.makefile
        self.close, self.recv, self.shutdown = sock.close, sock.recv, sock.shutdown
        if number:
            self.fileno = sock.fileno


def test_only_a_socket_is_watched(server: Server) -> None:
    conn: Any = HTTPConnection(server.host, server.port)
    conn.connect()
    assert descriptor_of(conn) == conn.sock.fileno()
    conn.close()
    with open(__file__) as file:
        conn.sock = file  # as vcrpy's stubs say that theirs is standard input
        assert descriptor_of(conn) is None
        conn.sock = None


@pytest.mark.parametrize("number", [True, False], ids=["fileno", "no fileno"])
def test_a_socket_of_ones_own_serves(make: Make, server: Server, number: bool) -> None:
    class Conn(HTTPConnection):
        def connect(self) -> None:
            self.sock = Handed(socket.create_connection((self.host, self.port)), number)

    pool: Any = make(maxsize=1, block=True)
    pool.ConnectionCls = Conn
    # What cannot be looked at is not used again.
    serves(pool, server, 1 if number else 3)
    server.answer = lambda request, wire: wire.send(plain(b"one") + plain(b"stolen"))
    assert pool.request("GET", "/").data == b"one"
    server.answer = echo
    assert pool.request("GET", "/right").data == b"/right"


PYOPENSSL = """
import ssl, sys
import urllib3.contrib.pyopenssl
urllib3.contrib.pyopenssl.inject_into_urllib3()
from millpond.urllib3 import PoolManager
http = PoolManager(maxsize=1, block=True, timeout=10, retries=False, ca_certs=sys.argv[2])
for number in range(3):
    assert http.request("GET", f"{sys.argv[1]}/{number}").data == b"/%d" % number
response = http.request("GET", f"{sys.argv[1]}/released", preload_content=False)
response.release_conn()
assert response.read() == b"/released"
assert http.request("GET", f"{sys.argv[1]}/twice").data == b"one"
assert http.request("GET", f"{sys.argv[1]}/right").data == b"/right"
exact = http.request("GET", f"{sys.argv[1]}/exact")
assert len(exact.data) > 8000
assert http.request("GET", f"{sys.argv[1]}/right").data == b"/right"
assert "OpenSSL" in type(http.connection_from_url(sys.argv[1]).pool.acquire().sock.connection).__module__
http.clear()
"""


@pytest.mark.filterwarnings("ignore")
def test_pyopenssl_serves(authority: trustme.CA, certificate: ssl.SSLContext) -> None:
    def answer(request: Request, wire: Wire) -> None:
        if request.target == "/twice":
            wire.send(plain(b"one") + plain(b"stolen"))
        elif request.target == "/exact":
            wire.send(as_long_as_a_buffer() + plain(b"stolen"))
        else:
            echo(request, wire)

    with Server(answer, certificate) as server, authority.cert_pem.tempfile() as trusted:
        command = [sys.executable, "-W", "ignore", "-c", PYOPENSSL, server.url, trusted]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        assert server.accepted == 3


# Pools


class Guarded(urllib3.HTTPConnectionPool):
    """Sentry's way: a pool whose connections are given something of its own."""

    def __init__(self, *args: Any, allowed: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allowed = allowed

    def _new_conn(self) -> Any:
        if not self.allowed:
            raise urllib3.exceptions.HTTPError("forbidden")
        return super()._new_conn()


def test_pool_classes_that_are_set_afterwards_are_millponds(manage: Callable[..., PoolManager], server: Server) -> None:
    http = manage(maxsize=1, block=True, pool_timeout=5)
    kinds: dict[str, Any] = {"http": functools.partial(Guarded, allowed=True, maxsize=2)}
    http.pool_classes_by_scheme = kinds
    serves(http, server)
    pool: Any = http.connection_from_url(server.url)
    assert isinstance(pool, HTTPConnectionPool)
    assert isinstance(pool, Guarded)
    assert pool.pool is not None
    assert pool.pool.settings.timeout == 5
    assert kinds["http"].func is Guarded
    http.clear()
    http.pool_classes_by_scheme = {"http": functools.partial(Guarded, allowed=False)}  # type: ignore[dict-item]
    with pytest.raises(urllib3.exceptions.HTTPError, match="forbidden"):
        http.request("GET", server.url)


def test_a_pool_class_that_limits_itself_is_limited(manage: Callable[..., PoolManager], server: Server) -> None:
    class Pool(urllib3.HTTPConnectionPool):
        def __init__(self, host: str, port: int | None = None, **options: Any) -> None:
            super().__init__(host, port, **{**options, "maxsize": 1, "block": True})
            assert [self.pool.get(), self.pool.qsize()] == [None, 0]  # type: ignore[union-attr]
            self.pool.put(None)  # type: ignore[union-attr]

    http = manage(maxsize=5)
    http.pool_classes_by_scheme = {"http": Pool}
    pool: Any = http.connection_from_url(server.url)
    settings = pool.pool.settings
    assert (settings.max_size, pool.block) == (1, True)
    serves(http, server)


def test_a_pool_class_may_ask_its_manager_for_pools_and_change_their_classes(
    manage: Callable[..., PoolManager], server: Server
) -> None:
    class Other(urllib3.HTTPSConnectionPool):
        pass

    class Asking(urllib3.HTTPConnectionPool):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            assert isinstance(manager.connection_from_url("https://localhost"), HTTPSConnectionPool)
            manager.pool_classes_by_scheme = {"http": Asking, "https": Other}

    manager = manage()
    manager.pool_classes_by_scheme["http"] = Asking
    serves(manager, server)
    assert manager.pool_classes_by_scheme == {"http": Asking, "https": Other}
    assert isinstance(manager.connection_from_url("https://elsewhere"), Other)


def test_what_a_partial_says_holds_against_the_manager(manage: Callable[..., PoolManager], server: Server) -> None:
    http = manage(max_idle=7)
    http.pool_classes_by_scheme["http"] = functools.partial(HTTPConnectionPool, max_idle=3)  # type: ignore[assignment]
    pool: Any = http.connection_from_url(server.url)
    assert pool.pool.settings.max_idle == 3


def test_a_scheme_that_is_added_is_served(manage: Callable[..., PoolManager], server: Server, own: type[Own]) -> None:
    class Pool(urllib3.HTTPConnectionPool):
        scheme = "http+own"
        ConnectionCls = own

    http = manage()
    http.pool_classes_by_scheme["http+own"] = Pool
    http.key_fn_by_scheme["http+own"] = http.key_fn_by_scheme["http"]
    url = server.url.replace("http:", "http+own:")
    assert [http.request("GET", f"{url}/{number}").data for number in range(2)] == [b"/0", b"/1"]
    assert own.made == server.accepted == 1
    assert "http+own" not in urllib3.PoolManager().pool_classes_by_scheme


def test_what_makes_other_pools_gets_urllib3s_arguments_only(
    manage: Callable[..., PoolManager], server: Server
) -> None:
    def make(host: str, port: int, **options: Any) -> urllib3.HTTPConnectionPool:
        return urllib3.HTTPConnectionPool(host, port, **options)

    http = manage(maxsize=2)
    http.pool_classes_by_scheme = {"http": make}  # type: ignore[dict-item]
    serves(http, server)
    http = manage(maxsize=2, budget=Budget(3), max_idle=5)
    http.pool_classes_by_scheme = {"http": make}  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"http:// are none of urllib3's, and do not know max_idle and budget"):
        http.request("GET", server.url)


def test_botocores_pools_serve(manage: Callable[..., PoolManager], server: Server) -> None:
    http = manage(maxsize=1, block=True)
    http.pool_classes_by_scheme = {"http": AWSHTTPConnectionPool, "https": AWSHTTPSConnectionPool}
    serves(http, server)
    pool: Any = http.connection_from_url(server.url)
    assert isinstance(pool, AWSHTTPConnectionPool)
    assert [isinstance(entry.conn, AWSHTTPConnection) for entry in pool.pool._core.entries] == [True]


# The queue that urllib3's pools have in its place


def test_a_pool_answers_as_the_queue_that_urllib3_has_there(make: Make, server: Server) -> None:
    http: Any = make(maxsize=2, block=True)
    queue = http.pool
    assert queue.qsize() == 0
    assert queue.empty()
    with pytest.raises(Empty):
        queue.get()
    http.request("GET", "/")
    assert queue.qsize() == 1
    conn = queue.get(block=False)
    assert isinstance(conn, HTTPConnection)
    assert queue.qsize() == 0
    queue.put(conn)
    queue.put(None)
    assert queue.qsize() == 1
    serves(http, server)


def test_a_connection_that_is_given_back_late_is_not_taken_from_the_next(make: Make, server: Server) -> None:
    http: Any = make(maxsize=2, block=True)
    response = http.request("GET", "/", preload_content=False)
    stale = response._connection
    response.read()
    conn = http._get_conn(timeout=30)
    assert conn is stale
    http._put_conn(stale)  # by a thread that comes too late
    other = http._get_conn(timeout=30)
    assert other is not conn
    for mine in (conn, other):
        http._put_conn(mine)
    serves(http, server, 2)


@pytest.mark.parametrize("other", ["gives it back, too", "closes it"])
def test_two_threads_may_be_done_with_a_connection_at_once(
    make: Make, server: Server, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    http: Any = make(maxsize=1, block=True)
    conn = http._get_conn(timeout=30)
    conn.request("GET", "/")
    conn.getresponse()
    lent: list[int] = []

    def meanwhile(conn: Any) -> None:
        lent.append(stats(http).lent)
        if len(lent) == 1:
            if other == "closes it":
                conn.close()
            else:
                http._put_conn(conn)
        lie_down(conn)

    monkeypatch.setattr("millpond.urllib3.lie_down", meanwhile)
    http._put_conn(conn)
    monkeypatch.undo()
    assert lent == [1]
    assert settled(http).lent == 0
    serves(http, server, 2 if other == "closes it" else 1)


def test_a_response_gives_a_connection_back_that_was_given_back_before_it_was_read(make: Make, server: Server) -> None:
    http: Any = make(maxsize=1, block=True)
    for _ in range(3):
        conn = http._get_conn(timeout=30)
        conn.request("GET", "/body", preload_content=False)
        response = conn.getresponse()
        http._put_conn(conn)
        assert stats(http).lent == 1
        assert response.read() == b"/body"
        assert settled(http).lent == 0
    assert server.accepted == 1


def test_https_pools_know_their_own_class(server: Server) -> None:
    manager = PoolManager()
    kinds: Any = {"https": type("Pool", (urllib3.HTTPSConnectionPool,), {})}
    manager.pool_classes_by_scheme = kinds
    assert isinstance(manager.connection_from_url("https://localhost"), HTTPSConnectionPool)
