"""`millpond check` tells what a connection costs, what its server allows, and in one line why there is none."""

from __future__ import annotations

import json
import socket
from typing import Any

import psycopg
import pytest

from millpond.cli import main
from millpond.testing import Postgres, Proxy, Valkey

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main(["check", "--json", *arguments]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: Capture, *arguments: str, code: int = 1) -> str:
    assert main(["check", *arguments]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+asyncpg"])
def test_it_tells_how_many_connections_postgresql_allows_and_has(capsys: Capture, driver: str) -> None:
    with Postgres(max_connections=20, idle_session_timeout=60_000) as server:
        url = server.url.replace("postgresql", driver, 1)
        with psycopg.connect(server.url):
            found = told(capsys, url)
            assert (found["limit"], found["used"], found["pooler"]) == (20, 1, False)
            server.execute("alter role app connection limit 5")
            assert told(capsys, url)["limit"] == 5
        assert found["server"].startswith("PostgreSQL 18")
        assert found["facts"] == {"idle_session_timeout": "60 s"}
        assert "max_idle=48" in [advice["setting"] for advice in found["advice"]]
        assert found["advice"][0]["setting"] == "max_size times processes <= 19"
        assert 0 < found["seconds"]["round trip"] < found["seconds"]["open"]
        assert "app" in found["target"]
        assert server.url.split(":")[2].split("@")[0] not in json.dumps(found)


def test_the_time_that_a_network_takes_is_told(capsys: Capture) -> None:
    with Postgres() as server, Proxy(server.host, server.port) as proxy:
        proxy.delay(0.02)
        assert main(["check", proxy.url_for(server.url)]) == 0
        said = capsys.readouterr().out
        found = told(capsys, proxy.url_for(server.url))
        assert found["seconds"]["round trip"] >= 0.04
        assert found["seconds"]["open"] > 2 * found["seconds"]["round trip"]
        assert "settings\n  max_size times processes <= 100: 0 of 100 connections are in use" in said


def test_it_tells_what_valkey_allows_and_closes(capsys: Capture) -> None:
    with Valkey(timeout=100, maxclients=50) as server:
        found = told(capsys, server.url)
        assert found["server"].startswith("Valkey ")
        assert (found["limit"], found["used"], found["facts"]) == (50, 0, {"timeout": "100 s"})
        assert "max_idle=80" in [advice["setting"] for advice in found["advice"]]


def test_what_a_server_forbids_to_ask_is_left_out(capsys: Capture) -> None:
    with Valkey() as server:
        with socket.create_connection((server.host, server.port)) as wire:
            wire.sendall(b"ACL SETUSER shy on >pw +ping +hello +client +select\r\n")
            assert wire.recv(100) == b"+OK\r\n"
        found = told(capsys, server.url.replace("//", "//shy:pw@"))
        assert (found["server"], found["limit"]) == ("Redis of a version that it does not tell", None)


def test_a_file_and_a_socket_are_opened_and_asked(capsys: Capture, tmp_path: Any) -> None:
    assert told(capsys, f"sqlite:///{tmp_path}/data.db")["seconds"].keys() == {"open", "round trip"}
    with Valkey() as server:
        assert told(capsys, f"tcp://{server.host}:{server.port}")["server"] is None


def test_a_host_is_reached_whose_first_address_is_of_a_family_that_is_not_there(
    capsys: Capture, two_addresses: tuple[str, int]
) -> None:
    found = told(capsys, "tcp://{}:{}".format(*two_addresses))
    assert found["seconds"].keys() >= {"name", "connect", "open"}
    assert "does not take connections at port 1: ConnectionRefusedError" in refused(capsys, "tcp://two.test:1")


@pytest.mark.parametrize(
    "url", ["redis://db?socket_tmeout=3", "redis://db?retry=3", "sqlite:///file:x?vfs=memdb", "none"]
)
def test_what_is_no_url_is_one_line(capsys: Capture, url: str) -> None:
    assert refused(capsys, url, code=2).startswith("millpond check: ")


def test_why_there_is_no_connection_is_one_line_without_a_password(capsys: Capture) -> None:
    with Postgres() as server:
        wrong = server.url.replace("//app:", "//app:geheim")
        said = refused(capsys, wrong)
        assert "it cannot be opened: OperationalError" in said
        assert "password authentication failed" in said
        assert "geheim" not in said
        server.stop()
        said = refused(capsys, server.url)
        assert f"127.0.0.1 does not take connections at port {server.port}: ConnectionRefusedError" in said
    with Valkey() as valkey, Proxy(valkey.host, valkey.port) as proxy:
        proxy.black_hole()
        said = refused(capsys, proxy.url_for(valkey.url), "--timeout", "0.2")
        assert "it cannot be opened: TimeoutError" in said
    assert "cannot be looked up: gaierror" in refused(capsys, "redis://no-such-host.invalid/")
    assert "no connector is known for gopher://" in refused(capsys, "gopher://x", code=2)
