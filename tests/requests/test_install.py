"""`install` moves a session to millpond's pools, and loosens nothing that the session was told."""

from __future__ import annotations

import logging
import ssl
from typing import Any

import pytest
import requests
import trustme
import urllib3
from requests.adapters import HTTPAdapter as Plain
from requests_mock import Adapter as Mocking
from urllib3 import Retry
from urllib3._collections import RecentlyUsedContainer

import millpond.urllib3
from millpond import Budget
from millpond.requests import HTTPAdapter, install

from ..urllib3.servers import Request, Server, Wire, plain, through


def told(session: requests.Session, prefix: str = "http://") -> dict[str, Any]:
    """Say what an adapter of millpond's was told."""
    adapter: Any = session.adapters[prefix]
    assert type(adapter) is HTTPAdapter
    assert type(adapter.poolmanager) is millpond.urllib3.PoolManager
    return {
        "sizes": (adapter._pool_connections, adapter._pool_maxsize, adapter._pool_block),
        "retries": adapter.max_retries,
        **adapter._pools,
    }


def test_sizes_and_retries_stay_unless_they_are_given() -> None:
    with requests.Session() as session:
        retries = Retry(5, status_forcelist=[503])
        for prefix in ("http://", "https://"):
            session.mount(prefix, Plain(3, 4, retries, True))
        install(session)
        assert told(session)["sizes"] == told(session, "https://")["sizes"] == (3, 4, True)
        assert told(session)["retries"] is told(session, "https://")["retries"] is retries
        assert session.adapters["http://"] is session.adapters["https://"]
        budget = Budget(9)
        install(session, pool_maxsize=7, max_retries=2, pool_timeout=1.5, budget=budget)
        assert told(session)["sizes"] == (3, 7, True)
        assert told(session)["retries"].total == 2
        # Installed once more, it holds what it was told then.
        install(session, max_idle=7)
        now = told(session)
        assert (now["sizes"], now["retries"].total) == ((3, 7, True), 2)
        assert (now["pool_timeout"], now["max_idle"], now["budget"]) == (1.5, 7, budget)


def test_two_adapters_that_were_told_different_things_become_two() -> None:
    with requests.Session() as session:
        session.mount("https://", Plain(max_retries=5))
        install(session, pool_maxsize=3)
        assert told(session, "https://")["retries"].total == 5
        assert told(session)["retries"].total == 0
        assert told(session)["sizes"][1] == told(session, "https://")["sizes"][1] == 3


def test_a_retry_happens_as_the_session_was_told(server: Server) -> None:
    def answer(request: Request, wire: Wire) -> None:
        wire.send(plain(b"", "503 Wait") if len(server.requests) < 3 else plain(b"at last"))

    server.answer = answer
    with requests.Session() as session:
        session.trust_env = False
        session.mount("http://", Plain(max_retries=Retry(5, status_forcelist=[503], backoff_factor=0)))
        install(session)
        assert session.get(server.url).text == "at last"


def test_a_pinned_certificate_stays_pinned(certificate: ssl.SSLContext, authority: trustme.CA) -> None:
    with (
        Server(context=certificate) as server,
        requests.Session() as session,
        authority.cert_pem.tempfile() as trusted,
    ):
        session.trust_env = False
        session.verify = trusted
        adapter = Plain()
        adapter.init_poolmanager(10, 10, assert_fingerprint="00" * 32)
        session.mount("https://", adapter)
        install(session, pool_maxsize=2)
        with pytest.raises(requests.exceptions.SSLError, match="Fingerprints did not match"):
            session.get(server.url)
        assert server.requests == []


def test_pool_classes_and_headers_of_a_manager_stay(server: Server) -> None:
    class Own(urllib3.HTTPConnectionPool):
        pass

    with requests.Session() as session:
        session.trust_env = False
        adapter = Plain()
        adapter.poolmanager.pool_classes_by_scheme = {"http": Own}
        adapter.poolmanager.headers = {"X-Own": "1"}
        session.mount("http://", adapter)
        install(session)
        assert session.get(server.url).text == "/"
        now: Any = session.adapters["http://"]
        assert now.poolmanager.headers == {"X-Own": "1"}
        pool = now.poolmanager.connection_from_url(server.url)
        assert isinstance(pool, Own)
        assert isinstance(pool, millpond.urllib3.HTTPConnectionPool)


class Pinned(Plain):
    """An adapter that does more than requests' own."""


class Derived(HTTPAdapter):
    """One that derives from millpond's."""


def with_a_method_of_its_own() -> Plain:
    adapter = Plain()
    adapter.send = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    return adapter


def with_a_manager_of_its_own() -> Plain:
    adapter = Plain()
    adapter.poolmanager = urllib3.ProxyManager("http://127.0.0.1:1")
    return adapter


def with_a_patched_manager() -> Plain:
    adapter = Plain()
    adapter.poolmanager.connection_from_host = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    return adapter


def with_other_sizes() -> Plain:
    adapter = Plain()
    adapter.poolmanager = urllib3.PoolManager(10, maxsize=2, block=True)
    return adapter


def with_millponds_manager() -> HTTPAdapter:
    adapter = HTTPAdapter()
    adapter.poolmanager = millpond.urllib3.PoolManager(10, maxsize=10, block=False, budget=Budget(3))
    return adapter


def with_pools_that_are_disposed_of() -> Plain:
    adapter = Plain()
    adapter.poolmanager.pools = RecentlyUsedContainer(10, dispose_func=lambda pool: pool.close())
    return adapter


def with_keys_for_a_proxy() -> Plain:
    adapter = Plain()
    adapter.proxy_manager_for("http://p").key_fn_by_scheme = {}
    return adapter


def with_a_proxy_of_its_own() -> Plain:
    adapter = Plain()
    adapter.proxy_manager["http://p"] = urllib3.ProxyManager("http://p", maxsize=10, block=False, cert_reqs="CERT_NONE")
    return adapter


def with_a_pinned_proxy() -> Plain:
    adapter = Plain()
    adapter.proxy_manager_for("https://p", proxy_assert_fingerprint="00" * 32)
    return adapter


def with_pool_classes_for_a_proxy() -> Plain:
    adapter = Plain()
    adapter.proxy_manager_for("http://p").pool_classes_by_scheme = {}
    return adapter


@pytest.mark.parametrize("prefix", ["https://", "http://"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Pinned, r"test_install\.Pinned mounted.*: it is of another class"),
        (Mocking, r"requests_mock\.adapter\.Adapter mounted"),
        (with_a_method_of_its_own, "attributes of its own: send"),
        (with_a_manager_of_its_own, "its pool manager is not the one that requests has made"),
        (with_a_patched_manager, "its pool manager is not the one that requests has made"),
        (with_other_sizes, "its pool manager is not the one that requests has made"),
        (with_millponds_manager, "its pool manager is not the one that requests has made"),
        (with_pools_that_are_disposed_of, "its pool manager is not the one that requests has made"),
        (with_keys_for_a_proxy, "one of its proxy managers is not as requests has made it"),
        (with_a_pinned_proxy, "one of its proxy managers is not as requests has made it"),
        (with_pool_classes_for_a_proxy, "one of its proxy managers is not as requests has made it"),
        (with_a_proxy_of_its_own, "one of its proxy managers is not as requests has made it"),
        (Derived, r"test_install\.Derived mounted"),
    ],
)
def test_an_adapter_whose_doing_cannot_be_kept_is_refused_and_nothing_changes(
    prefix: str, make: Any, reason: str
) -> None:
    with requests.Session() as session:
        session.mount(prefix, make())
        before = dict(session.adapters)
        with pytest.raises(TypeError, match=reason) as refusal:
            install(session, pool_maxsize=3)
        assert str(refusal.value).startswith(f"{prefix} has a ")
        assert session.adapters == before


@pytest.mark.parametrize("prefix", ["", "http", "https:/", "HTTPS://"])
def test_an_adapter_for_a_shorter_prefix_is_not_passed_by(prefix: str) -> None:
    with requests.Session() as session:
        session.adapters.clear()
        session.mount(prefix, Pinned())
        with pytest.raises(TypeError, match=r"test_install\.Pinned mounted"):
            install(session)
        assert [*session.adapters] == [prefix]


def test_an_adapter_that_serves_elsewhere_too_goes_on(server: Server) -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.adapters.clear()
        former = Plain(max_retries=3)
        session.mount("", former)
        session.get(server.url)
        install(session)
        assert told(session)["retries"].total == 3
        assert session.get(server.url).text == "/"
        assert server.accepted == 2
        assert former.poolmanager.pools.keys()


def test_retries_of_a_class_of_their_own_stay() -> None:
    class Patient(Retry):
        pass

    retries = Patient(0, read=False)
    with requests.Session() as session:
        session.mount("https://", Plain(max_retries=retries))
        install(session)
        assert told(session, "https://")["retries"] is retries


def test_a_wrong_option_changes_nothing() -> None:
    with requests.Session() as session:
        before = dict(session.adapters)
        with pytest.raises(ValueError, match="pool_timeout goes with block=True"):
            install(session, pool_timeout=3)
        assert session.adapters == before


def test_an_adapter_that_derives_from_millponds_stays(server: Server) -> None:
    with requests.Session() as session:
        session.trust_env = False
        mine = Derived(pool_maxsize=3)
        session.mount("http://", mine)
        install(session)
        assert session.adapters["http://"] is mine
        assert type(session.adapters["https://"]) is HTTPAdapter
        assert session.get(server.url).text == "/"


def test_a_session_that_has_used_a_proxy_can_be_moved(server: Server) -> None:
    with Server(through) as proxy, requests.Session() as session:
        session.trust_env = False
        session.proxies = {"http": proxy.url}
        for _ in range(2):
            assert session.get(f"{server.url}/a").text == "/a"
            install(session)
        assert len(proxy.requests) == 2


def test_an_adapter_that_makes_a_manager_of_urllib3s_own_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Sourced(HTTPAdapter):
        def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **_: Any) -> None:
            self.poolmanager = urllib3.PoolManager(connections, maxsize=maxsize, block=block)

    caplog.set_level(logging.WARNING, "millpond")
    Sourced()
    assert "Sourced makes a pool manager of urllib3's own" in caplog.text
    caplog.clear()
    HTTPAdapter()
    assert caplog.text == ""
