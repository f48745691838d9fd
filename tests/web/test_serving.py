"""Who may see the page, how it is served, and how that ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import millpond.web

from ..exposed.processes import MILLPOND, Start
from .conftest import Serve


def get(address: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_only_the_whole_address_leads_to_the_page(serve: Serve) -> None:
    address, _ = serve()
    parts = urlsplit(address)
    root = f"http://{parts.netloc}"
    assert get(address)[0] == 200
    for path in ("/", "/looks", "/page.js", parts.path[:-2] + "/", f"/x{parts.path}", "//"):
        status, _, said = get(root + path)
        assert status in (403, 404), path
        assert b"orders" not in said
    status, _, said = get(root + "/")
    assert (status, b"the whole address that `millpond web` has printed" in said) == (403, True)


@pytest.mark.parametrize(
    "path", ["../__init__.py", "%2e%2e/__init__.py", "..%2f__init__.py", "uplot/../../__init__.py"]
)
def test_nothing_but_the_page_is_served(serve: Serve, path: str) -> None:
    address, _ = serve()
    parts = urlsplit(address)
    # Not by urllib, which would tidy the path.
    with socket.create_connection((str(parts.hostname), parts.port or 0), 10) as wire:
        wire.sendall(f"GET {parts.path}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        said = b"".join(iter(lambda: wire.recv(65536), b""))
    assert b" 404 " in said.partition(b"\r\n")[0] or b" 403 " in said.partition(b"\r\n")[0]


def test_browsers_are_told_what_to_refuse(serve: Serve) -> None:
    _, headers, _ = get(serve()[0])
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert (headers["referrer-policy"], headers["cache-control"]) == ("no-referrer", "no-store")


def test_it_is_reached_from_this_machine_only(serve: Serve) -> None:
    address, _ = serve()
    port = urlsplit(address).port or 0
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for other in {*others, "127.0.0.2"}:
        with pytest.raises(OSError, match=r"refused|timed out"):
            socket.create_connection((str(other), port), 1)


def test_looks_come_every_second_and_tell_of_all_processes(serve: Serve, start: Start) -> None:
    start("orders")
    address, _ = serve()
    looks: list[dict[str, Any]] = []
    with urllib.request.urlopen(address + "looks", timeout=60) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        while len(looks) < 3:
            line = stream.readline()
            if line.startswith(b"data: "):
                looks.append(json.loads(line[6:]))
    pools = [pool for look in looks for process in look["processes"] for pool in process["pools"]]
    assert [pool["stats"]["name"] for pool in pools] == ["orders"] * 3
    assert looks[2]["at"] - looks[0]["at"] > 1.5


def test_ctrl_c_ends_it_though_somebody_watches(serve: Serve) -> None:
    address, process = serve()
    with urllib.request.urlopen(address + "looks", timeout=60) as stream:
        assert stream.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_a_port_that_is_taken_is_told_in_a_line(serve: Serve) -> None:
    address, _ = serve()
    command = [sys.executable, "-c", MILLPOND, "web", "--port", str(urlsplit(address).port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "Address already in use" in done.stderr


def test_it_can_be_mounted_in_an_application() -> None:
    async def main() -> None:
        app = Starlette(routes=[Mount("/pools", millpond.web.app())])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here") as client:
            page = await client.get("/pools/")
            assert (page.status_code, "<title>millpond</title>" in page.text) == (200, True)
            assert "content-security-policy" in page.headers
            assert (await client.get("/pools")).headers["location"] == "http://here/pools/"
            assert (await client.get("/pools/uplot/uPlot.iife.min.js")).status_code == 200

    asyncio.run(main())
