"""What tests put in the place of a server: vcrpy, responses, requests-mock."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import requests_mock
import responses
import urllib3
import vcr

from millpond.requests import install
from millpond.urllib3 import PoolManager

from .servers import Request, Server, Wire, plain

Get = Callable[[str], bytes]


@pytest.fixture
def counting(server: Server) -> Server:
    """A server that numbers its answers."""

    def answer(request: Request, wire: Wire) -> None:
        wire.send(plain(b"real %d" % len(server.requests)))

    server.answer = answer
    return server


def by_requests() -> tuple[Get, Any]:
    session = requests.Session()
    session.trust_env = False
    install(session, pool_maxsize=1, pool_block=True, pool_timeout=5)
    return lambda url: session.get(url, timeout=10).content, session.get_adapter("http://")


def by_urllib3() -> tuple[Get, Any]:
    manager = PoolManager(maxsize=1, block=True, pool_timeout=5, timeout=10)
    return lambda url: manager.request("GET", url).data, manager


def pools(face: Any) -> list[Any]:
    manager = getattr(face, "poolmanager", face)
    return [manager.pools[key] for key in manager.pools.keys()]  # noqa: SIM118 it cannot be iterated over


@pytest.fixture(autouse=True)
def no_complaint(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO, "millpond")
    yield
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "millpond"] == []


@pytest.mark.parametrize("make", [by_requests, by_urllib3])
@pytest.mark.parametrize("when", ["made before", "made inside"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of vcrpy's own connections
def test_a_cassette_is_recorded_once_and_replayed(
    counting: Server, tmp_path: Path, make: Callable[[], tuple[Get, Any]], when: str
) -> None:
    made = [make()] if when == "made before" else []
    for get, _ in made:
        assert get(counting.url) == b"real 1"  # an idle connection of its own is there
    recorded = b"real %d" % (len(made) + 1)
    for _ in range(2):
        with vcr.use_cassette(str(tmp_path / "tape.yaml"), allow_playback_repeats=True):
            if when == "made inside":
                made.append(make())
            assert {made[-1][0](counting.url) for _ in range(3)} == {recorded}
    assert recorded == b"real %d" % len(counting.requests)
    for get, face in made:
        asked = len(counting.requests)
        assert get(counting.url) == b"real %d" % (asked + 1)
        [pool] = pools(face)
        assert pool.pool.stats().lent == 0
        assert [type(entry.conn).__name__ for entry in pool.pool._core.entries] == ["HTTPConnection"]
        pool.close()


def test_a_body_that_a_cassette_streams_gives_its_connection_back(counting: Server, tmp_path: Path) -> None:
    manager = PoolManager(maxsize=1, block=True, pool_timeout=5, timeout=10)
    for _ in range(2):
        with vcr.use_cassette(str(tmp_path / "tape.yaml"), allow_playback_repeats=True):
            for _ in range(3):
                response = manager.request("GET", counting.url, preload_content=False)
                assert b"".join(response.stream(3)) == b"real 1"
                response.release_conn()
    [pool] = pools(manager)
    assert pool.pool.stats().lent == 0
    manager.clear()


def test_responses_answers_in_a_servers_place(counting: Server) -> None:
    get, adapter = by_requests()
    with responses.RequestsMock() as mocked:
        mocked.get(counting.url, body="mocked")
        assert get(counting.url) == b"mocked"
    assert get(counting.url) == b"real 1"
    adapter.close()


def test_requests_mock_answers_in_a_servers_place(counting: Server) -> None:
    get, adapter = by_requests()
    with requests_mock.Mocker() as mocked:
        mocked.get(counting.url, text="mocked")
        assert get(counting.url) == b"mocked"
    assert get(counting.url) == b"real 1"
    adapter.close()


def test_urllib3s_own_pools_do_the_same(counting: Server, tmp_path: Path) -> None:
    manager = urllib3.PoolManager(timeout=10)
    for _ in range(2):
        with vcr.use_cassette(str(tmp_path / "tape.yaml"), allow_playback_repeats=True):
            assert {manager.request("GET", counting.url).data for _ in range(3)} == {b"real 1"}
    assert manager.request("GET", counting.url).data == b"real 2"
    manager.clear()
