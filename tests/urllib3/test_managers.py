"""Many hosts, TLS and proxies."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import ssl
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import trustme
import urllib3
from urllib3.exceptions import MaxRetryError, ProtocolError, ProxyError, SSLError

from millpond import Budget
from millpond.urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager

from .patience import settled, until
from .servers import Request, Server, Wire, as_long_as_a_buffer, echo, plain, through


@pytest.fixture
def secure(certificate: ssl.SSLContext) -> Iterator[Server]:
    with Server(context=certificate) as server:
        yield server


@pytest.fixture
def proxy() -> Iterator[Server]:
    with Server(through) as server:
        yield server


def pool_of(http: urllib3.PoolManager, url: str) -> HTTPConnectionPool:
    pool = http.connection_from_url(url)
    assert isinstance(pool, HTTPConnectionPool)
    return pool


def test_a_manager_takes_what_urllib3s_takes(server: Server) -> None:
    with PoolManager(
        5, {"X-All": "yes"}, maxsize=3, block=True, retries=2, timeout=urllib3.Timeout(5), blocksize=8192, max_idle=7
    ) as http:
        assert http.request("GET", f"{server.url}/one").data == b"/one"
        pool = pool_of(http, server.url)
        assert pool is pool_of(http, f"{server.url}/two")
        assert pool.pool is not None
        assert (pool.pool.settings.max_size, pool.pool.settings.max_idle) == (3, 7)
    assert server.requests[0].headers["x-all"] == "yes"
    assert pool.pool is None


def test_a_redirect_to_another_host_is_followed(server: Server) -> None:
    with Server() as other, PoolManager(maxsize=1, block=True) as http:
        server.answer = lambda request, wire: wire.send(plain(b"x", "302 Found", {"Location": f"{other.url}/there"}))
        for preload in (True, False):
            assert http.request("GET", server.url, preload_content=preload).data == b"/there"
        assert settled(pool_of(http, server.url)).lent == 0


def test_a_pool_that_makes_room_finishes_what_it_is_at(server: Server) -> None:
    with Server() as other, PoolManager(num_pools=1) as http:
        evicted = weakref.ref(pool_of(http, server.url))
        held = http.request("GET", f"{server.url}/held", preload_content=False)
        idle = http.request("GET", f"{server.url}/idle")
        assert http.request("GET", f"{other.url}/other").data == b"/other"
        assert len(http.pools) == 1
        assert (held.read(), idle.data) == (b"/held", b"/idle")
        del held, idle
        gc.collect()
        until(lambda: evicted() is None and not server.connected)


def test_a_manager_that_is_dropped_closes_its_connections(server: Server) -> None:
    http = PoolManager()
    http.request("GET", server.url)
    until(lambda: server.connected == 1)
    del http
    until(lambda: not server.connected)


def test_a_budget_limits_all_hosts_together() -> None:
    most = 0
    busy = 0
    lock = threading.Lock()

    def count(request: Request, wire: Wire) -> None:
        nonlocal most, busy
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.02)
        # Before it answers: the next one may ask as soon as it has the answer.
        with lock:
            busy -= 1
        echo(request, wire)

    with (
        Server(count) as one,
        Server(count) as two,
        PoolManager(maxsize=4, budget=Budget(3), pool_timeout=60) as http,
        ThreadPoolExecutor(12) as executor,
    ):
        urls = [f"{server.url}/{number}" for number in range(20) for server in (one, two)]
        for url, response in zip(urls, executor.map(lambda url: http.request("GET", url), urls), strict=True):
            assert url.endswith(response.data.decode())
        assert most <= 3
        until(lambda: one.connected + two.connected <= 3)


def test_tls_is_verified(secure: Server, trusting: ssl.SSLContext, authority: trustme.CA) -> None:
    with PoolManager(retries=False) as http, pytest.raises(SSLError, match="certificate verify failed"):
        http.request("GET", secure.url)
    with authority.cert_pem.tempfile() as path, PoolManager(ca_certs=path, maxsize=1, block=True) as http:
        for host in ("127.0.0.1", "localhost"):
            for _ in range(3):
                assert http.request("GET", f"https://{host}:{secure.port}/tls").data == b"/tls"
    with HTTPSConnectionPool("127.0.0.1", secure.port, ssl_context=trusting) as pool:
        assert isinstance(pool, urllib3.HTTPSConnectionPool)
        for _ in range(3):
            response = pool.request("GET", "/pool", preload_content=False)
            response.release_conn()
            settled(pool)
        assert settled(pool).opens == 1
    assert secure.accepted == 4  # one of which was refused


def test_a_tls_connection_that_says_too_much_is_not_lent_again(secure: Server, trusting: ssl.SSLContext) -> None:
    said = as_long_as_a_buffer()
    for number, reply in enumerate((plain(b"right") * 2, said + plain(b"stolen"))):
        secure.answer = partial(lambda said, _, wire: wire.send(said), reply)
        with HTTPSConnectionPool("127.0.0.1", secure.port, ssl_context=trusting, maxsize=1, block=True) as pool:
            for released in (False, True, False):
                response = pool.request("GET", "/", pool_timeout=5, preload_content=False)
                if released:
                    response.release_conn()
                assert response.read() in (b"right", said.partition(b"\r\n\r\n")[2])
        assert secure.accepted == 3 * (number + 1)


def test_tls_connections_that_the_server_closed_are_not_used(secure: Server, trusting: ssl.SSLContext) -> None:
    with HTTPSConnectionPool("127.0.0.1", secure.port, ssl_context=trusting, maxsize=1, block=True) as pool:
        for _ in range(3):
            assert pool.request("GET", "/back", retries=False).data == b"/back"
            secure.stop()
            secure.start()


def test_http_goes_through_one_pool_to_the_proxy(proxy: Server, server: Server) -> None:
    with Server() as other, ProxyManager(proxy.url, maxsize=1, block=True, proxy_headers={"X-For": "proxy"}) as http:
        for url in (server.url, other.url) * 2:
            assert http.request("GET", f"{url}/by-way").data == b"/by-way"
        assert len(http.pools) == 1
    assert proxy.accepted == 1
    assert {request.headers["x-for"] for request in proxy.requests} == {"proxy"}


def test_https_goes_through_a_tunnel(proxy: Server, secure: Server, trusting: ssl.SSLContext) -> None:
    with ProxyManager(proxy.url, maxsize=1, block=True, ssl_context=trusting) as http:
        for _ in range(3):
            assert http.request("GET", f"{secure.url}/deep").data == b"/deep"
        assert proxy.accepted == 1
        secure.hang_up()
        assert http.request("GET", f"{secure.url}/again").data == b"/again"
    assert [request.method for request in proxy.requests] == ["CONNECT", "CONNECT"]


def test_tls_within_tls_goes_through_a_tunnel(
    certificate: ssl.SSLContext, secure: Server, trusting: ssl.SSLContext
) -> None:
    with (
        Server(through, certificate) as proxy,
        ProxyManager(
            proxy.url, maxsize=1, block=True, ssl_context=trusting, proxy_ssl_context=trusting, retries=False
        ) as http,
    ):
        for _ in range(3):
            assert http.request("GET", f"{secure.url}/deeper").data == b"/deeper"
        assert proxy.accepted == 1
        secure.answer = lambda request, wire: wire.send(plain(b"right") * 2)
        for _ in range(3):
            assert http.request("GET", secure.url).data == b"right"
        assert proxy.accepted == 3


# Python 3.11.2 leaves the proxy's reply to the collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_proxy_that_refuses_is_reported_as_urllib3_does(
    proxy: Server, trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "urllib3.connectionpool")  # a record would keep the reply alive
    proxy.answer = lambda request, wire: wire.send(plain(b"no", "407 Proxy Authentication Required"))
    with ProxyManager(proxy.url, maxsize=1, block=True, ssl_context=trusting, pool_timeout=5) as http:

        def ask() -> None:
            with pytest.raises(MaxRetryError, match="Tunnel connection failed: 407") as refused:
                http.request("GET", "https://127.0.0.1:9/", retries=1)
            assert isinstance(refused.value.reason, ProxyError)

        for _ in range(3):
            ask()
    gc.collect()


def test_urllib3s_experiment_with_http2_is_refused_by_name(secure: Server, trusting: ssl.SSLContext) -> None:
    http2 = pytest.importorskip("urllib3.http2", reason="this urllib3 has none")
    pytest.importorskip("h2")
    http2.inject_into_urllib3()
    try:
        with PoolManager(ssl_context=trusting) as http, pytest.raises(TypeError, match="extract_from_urllib3"):
            http.request("GET", secure.url)
    finally:
        http2.extract_from_urllib3()
    with PoolManager(ssl_context=trusting) as http:
        assert http.request("GET", f"{secure.url}/as ever").status == 200


def test_a_forked_child_uses_connections_of_its_own(server: Server) -> None:
    gate = threading.Event()

    def answer(request: Request, wire: Wire) -> None:
        if request.target == "/held":
            wire.send(plain(b"12345")[:-3])
            gate.wait(10)
            wire.send(b"345")
        else:
            echo(request, wire)

    server.answer = answer
    with PoolManager(maxsize=2, block=True, timeout=5) as http:
        held = http.request("GET", f"{server.url}/held", preload_content=False)
        assert http.request("GET", f"{server.url}/parent").data == b"/parent"
        child = os.fork()
        if not child:
            right = False
            try:
                right = [http.request("GET", f"{server.url}/child").data for _ in range(3)] == [b"/child"] * 3
                with contextlib.suppress(ProtocolError):
                    held.read()  # it is the parent's
                    right = False
                http.clear()
            finally:
                os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert server.accepted == 3
        gate.set()
        assert held.read() == b"12345"
        assert http.request("GET", f"{server.url}/parent").data == b"/parent"
        assert server.accepted == 3
