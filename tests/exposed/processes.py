"""Real processes that let themselves be looked at, and what they answer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond import _looking, _sockets_folder

PROGRAM = Path(__file__).with_name("program.py")
MILLPOND = """
import os, sys
from millpond import _looking, _sockets_folder
from millpond.cli import main

_sockets_folder.ELSEWHERE = (os.environ["XDG_RUNTIME_DIR"] + "/elsewhere",)
_looking.look.__defaults__ = (60.0,)
sys.exit(main(sys.argv[1:]))
"""
"""The command, patient and without an eye for what else this user runs."""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have a folder of sockets of one's own. Its path is short, as that of a socket has to be."""
    folder = tempfile.mkdtemp()
    monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
    monkeypatch.delenv("MILLPOND_EXPOSE", raising=False)
    # No processes but those of the test; and they have time to answer, however busy the machine is.
    monkeypatch.setattr(_sockets_folder, "ELSEWHERE", (f"{folder}/elsewhere",))
    monkeypatch.setattr(_looking.look, "__defaults__", (60.0,))
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes with a pool each; wait until they have one."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, wait: bool = True, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        started.append(process)
        if wait:
            wait_for(process)
        return process

    yield start
    for process in started:
        process.kill()
    for process in started:
        process.communicate()


def wait_for(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def looked(deadline: float = 60.0) -> dict[int, dict[str, Any]]:
    """Return what processes say, by process id; the deadline is generous, for busy machines."""
    return {process.pid: answer for process, answer in _looking.look(deadline)}


def say(path: str | Path, data: bytes, *, end: bool = False, timeout: float = 10.0) -> bytes:
    """Send bytes to a socket, and return all that comes back until it is closed."""
    with socket.socket(socket.AF_UNIX) as conn:
        conn.settimeout(timeout)
        conn.connect(str(path))
        heard = b""
        try:
            conn.sendall(data)
            if end:
                conn.shutdown(socket.SHUT_WR)
            while piece := conn.recv(1 << 16):
                heard += piece
        except (BrokenPipeError, ConnectionResetError):
            pass
        return heard
