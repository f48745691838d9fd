"""requests' sessions on millpond's pools."""

from __future__ import annotations

import copy
import pickle
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import trustme
from urllib3.exceptions import EmptyPoolError

import millpond
from millpond.requests import HTTPAdapter, install
from millpond.urllib3 import HTTPConnectionPool, PoolManager, ProxyManager

from ..urllib3.patience import settled, until
from ..urllib3.servers import Request, Server, SocksServer, Wire, echo, plain, through


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def pool_of(session: requests.Session, url: str) -> HTTPConnectionPool:
    adapter: Any = session.get_adapter(url)
    [pool] = [pool for pool in adapter.poolmanager.pools._container.values() if url.endswith(f":{pool.port}")]
    assert isinstance(pool, HTTPConnectionPool)
    return pool


def test_one_line_moves_a_session(session: requests.Session, server: Server) -> None:
    former = session.get_adapter(server.url)
    session.get(server.url)
    install(session, pool_maxsize=2)
    until(lambda: not server.connected)
    for number in range(5):
        assert session.get(f"{server.url}/{number}").text == f"/{number}"
    assert session.post(server.url, json={"a": 1}).ok
    assert server.requests[-1].body == b'{"a": 1}'
    assert server.accepted == 2
    assert session.get_adapter("http://") is session.get_adapter("https://") is not former
    assert settled(pool_of(session, server.url)).borrows == 6


def test_a_mount_for_a_longer_prefix_stays(session: requests.Session, server: Server) -> None:
    own = HTTPAdapter(max_retries=3)
    session.mount(server.url, own)
    install(session)
    assert session.get_adapter(f"{server.url}/x") is own
    assert session.get(f"{server.url}/x").text == "/x"


def test_streams_redirects_and_sessions_work(session: requests.Session, server: Server) -> None:
    def detour(request: Request, wire: Wire) -> None:
        if request.target == "/from":
            wire.send(plain(b"x" * 100, "302 Found", {"Location": "/to", "Set-Cookie": "seen=1"}))
        else:
            echo(request, wire)

    server.answer = detour
    install(session, pool_maxsize=1, pool_block=True, pool_timeout=5)
    response = session.get(f"{server.url}/from")
    assert (response.text, [past.status_code for past in response.history]) == ("/to", [302])
    assert server.requests[-1].headers["cookie"] == "seen=1"
    assert b"".join(session.get(f"{server.url}/stream", stream=True).iter_content(2)) == b"/stream"
    assert session.head(f"{server.url}/head").text == ""
    assert server.accepted == 1
    with session.get(f"{server.url}/unread", stream=True):
        pass
    session.get(f"{server.url}/dropped", stream=True)
    assert session.get(f"{server.url}/last").text == "/last"


def test_a_request_that_waits_too_long_raises_requests_own_error(session: requests.Session, server: Server) -> None:
    install(session, pool_maxsize=1, pool_block=True, pool_timeout=0.1)
    held = session.get(f"{server.url}/held", stream=True)
    start = time.monotonic()
    with pytest.raises(requests.ConnectTimeout) as refused:
        session.get(server.url)
    assert 0.1 <= time.monotonic() - start < 10
    assert isinstance(refused.value, requests.ConnectionError)
    assert isinstance(refused.value, requests.Timeout)
    assert refused.value.request is not None
    assert isinstance(refused.value.__cause__, EmptyPoolError)
    assert isinstance(refused.value.__cause__.__cause__, millpond.PoolTimeout)
    assert held.text == "/held"
    assert session.get(f"{server.url}/free").text == "/free"


def test_closing_a_session_wakes_those_who_wait(session: requests.Session, server: Server) -> None:
    install(session, pool_maxsize=1, pool_block=True)
    held = session.get(f"{server.url}/held", stream=True)
    with ThreadPoolExecutor(5) as executor:
        waiting = [executor.submit(session.get, server.url) for _ in range(5)]
        pool = pool_of(session, server.url).pool
        assert pool is not None
        until(lambda: pool.stats().waiting == 5)
        session.close()
        closed = time.monotonic()
        for future in waiting:
            with pytest.raises(requests.ConnectionError):
                future.result(30)
        assert time.monotonic() - closed < 10  # and not their timeout
    assert held.text == "/held"


def test_a_budget_limits_all_hosts_together(session: requests.Session) -> None:
    install(session, pool_maxsize=10, budget=millpond.Budget(2), pool_timeout=10)
    with Server() as one, Server() as two, ThreadPoolExecutor(8) as executor:
        urls = [f"{server.url}/{number}?0.01" for number in range(10) for server in (one, two)]
        assert all(response.ok for response in executor.map(session.get, urls))
        until(lambda: one.connected + two.connected <= 2)


def test_errors_are_requests_own(session: requests.Session, server: Server) -> None:
    install(session, pool_maxsize=1, pool_block=True, pool_timeout=30)
    with pytest.raises(requests.ReadTimeout):
        session.get(f"{server.url}/?1", timeout=(30, 0.05))
    server.answer = lambda request, wire: wire.hang_up()
    with pytest.raises(requests.ConnectionError):
        session.get(server.url)
    server.answer = echo
    assert session.get(f"{server.url}/well").text == "/well"
    with pytest.raises(ValueError, match="pool_timeout goes with block=True"):
        install(session, pool_block=False, pool_timeout=1)


def test_tls_is_verified(session: requests.Session, certificate: ssl.SSLContext, authority: trustme.CA) -> None:
    install(session, pool_maxsize=1, pool_block=True)
    with Server(context=certificate) as secure:
        with pytest.raises(requests.exceptions.SSLError):
            session.get(secure.url)
        with authority.cert_pem.tempfile() as path:
            for _ in range(3):
                assert session.get(f"{secure.url}/tls", verify=path).text == "/tls"
        assert secure.accepted == 2


def test_proxies_are_used(session: requests.Session, server: Server, authority: trustme.CA) -> None:
    install(session, pool_maxsize=1, pool_block=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Server(through) as proxy, Server(context=context) as secure, authority.cert_pem.tempfile() as path:
        proxies = {"http": proxy.url, "https": proxy.url}
        for _ in range(3):
            assert session.get(f"{server.url}/plain", proxies=proxies).text == "/plain"
            assert session.get(f"{secure.url}/deep", proxies=proxies, verify=path).text == "/deep"
        assert proxy.accepted == 2
        adapter: Any = session.get_adapter("http://")
        assert isinstance(adapter.proxy_manager_for(proxy.url), ProxyManager)
        session.close()


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_socks_proxies_are_used(
    session: requests.Session, server: Server, certificate: ssl.SSLContext, authority: trustme.CA, scheme: str
) -> None:
    install(session, pool_maxsize=1, pool_block=True, pool_timeout=5)
    with SocksServer() as proxy, Server(context=certificate) as secure, authority.cert_pem.tempfile() as path:
        proxies = dict.fromkeys(("http", "https"), f"{scheme}://127.0.0.1:{proxy.port}")
        for _ in range(3):
            assert session.get(f"{server.url}/plain", proxies=proxies).text == "/plain"
            assert session.get(f"https://localhost:{secure.port}/x", proxies=proxies, verify=path).text == "/x"
        assert proxy.accepted == 2
        adapter: Any = session.get_adapter("http://")
        for pool in adapter.proxy_manager_for(proxies["http"]).pools._container.values():
            assert settled(pool).borrows == 3
        session.close()


def test_an_adapter_can_be_pickled(server: Server) -> None:
    adapter = HTTPAdapter(3, 2, 1, True, 0.5, max_idle=9, budget=millpond.Budget(7))
    for again in (pickle.loads(pickle.dumps(adapter)), copy.copy(adapter)):
        with requests.Session() as session:
            session.mount("http://", again)
            assert session.get(f"{server.url}/again").text == "/again"
            pool = pool_of(session, server.url).pool
            assert pool is not None
            settings = pool.settings
            assert (settings.max_size, settings.timeout, settings.max_idle) == (2, 0.5, 9)
            assert settings.budget is not None
            assert settings.budget.limit == 7
    assert isinstance(pickle.loads(pickle.dumps(HTTPAdapter())).poolmanager, PoolManager)
    adapter.close()


def test_many_threads_share_a_session(session: requests.Session, server: Server) -> None:
    install(session, pool_maxsize=3, pool_block=True, pool_timeout=10)
    wrong: list[str] = []

    def work(name: int) -> None:
        targets = [f"/{name}-{number}" for number in range(20)]
        wrong.extend(target for target in targets if session.get(server.url + target).text != target)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert wrong == []
    assert server.accepted <= 3
