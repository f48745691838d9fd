"""A server that counts its connections, which is the truth, and processes that share a budget."""

from __future__ import annotations

import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")


class CountingServer:
    """Says every byte again, and counts: connections that are open, the most there were, bytes by value."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._over = False
        self._live: dict[socket.socket, bytes] = {}
        """Connections, with the byte that each has said last."""
        self.port: int = self._listener.getsockname()[1]
        self.most = 0
        self.served: Counter[int] = Counter()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def live(self) -> int:
        """How many connections are open."""
        return len(self._live)

    def live_but_for(self, index: int) -> int:
        """How many connections are open that are not this process's, or may not be."""
        return sum(said != bytes([index]) for said in list(self._live.values()))

    def live_of(self, index: int) -> int:
        """How many connections are open that are this process's for sure."""
        return sum(said == bytes([index]) for said in list(self._live.values()))

    def close(self) -> None:
        self._over = True
        self._thread.join()
        for conn in [*self._live, self._listener]:
            conn.close()
        self._selector.close()

    def _serve(self) -> None:
        while not self._over:
            ready = [key.fileobj for key, _ in self._selector.select(0.05)]
            # Ends before beginnings: who has seen the end of one may have begun another.
            for conn in ready:
                if conn is not self._listener:
                    assert isinstance(conn, socket.socket)
                    self._answer(conn)
            if self._listener in ready:
                conn, _ = self._listener.accept()
                self._selector.register(conn, selectors.EVENT_READ)
                self._live[conn] = b""
                self.most = max(self.most, len(self._live))

    def _answer(self, conn: socket.socket) -> None:
        try:
            data = conn.recv(100)
            conn.sendall(data)
        except OSError:
            data = b""
        self.served.update(data)
        if not data:
            self._selector.unregister(conn)
            del self._live[conn]
            conn.close()
            return
        self._live[conn] = data[-1:]


@pytest.fixture
def server() -> Iterator[CountingServer]:
    server = CountingServer()
    yield server
    server.close()


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have budgets of their own, beside those that may be in use here."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "millpond"


@pytest.fixture
def start(server: CountingServer) -> Iterator[Start]:
    """Start processes that borrow from a server, each with an index, under a limit."""
    started: list[subprocess.Popen[str]] = []

    def start(
        index: int, limit: int, *arguments: object, url: str = "", coordinator: str = "host"
    ) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            WORKER,
            coordinator,
            limit,
            url or f"tcp://127.0.0.1:{server.port}",
            index,
            *arguments,
        ]
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
    for process in started:
        process.communicate()


def run_for(seconds: float, look: Callable[[], object] = lambda: None) -> None:
    """Look again and again for some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        look()
        time.sleep(0.002)
