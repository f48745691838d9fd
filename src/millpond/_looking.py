"""Finding the processes of this user that let themselves be looked at, and asking them: all at once."""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeAlias

from millpond import _sockets_folder
from millpond._expose import ANSWER, VERSION

__all__ = ["DEADLINE", "Answer", "Process", "ask", "look"]

DEADLINE: Final = 0.5
"""Seconds that all processes together have for their answers."""

Answer: TypeAlias = dict[str, Any]


class Process(NamedTuple):
    """A process that has a socket."""

    pid: int
    path: str


class _Call:
    """One question to one process."""

    def __init__(self, process: Process, conn: socket.socket, question: bytes) -> None:
        self.process = process
        self.conn = conn
        self.question = question
        self.heard = bytearray()

    def go_on(self) -> Answer | None:
        """Say or hear what can be without waiting; return the answer when it is whole."""
        if self.question:
            self.question = self.question[self.conn.send(self.question) :]
            return None
        data = self.conn.recv(1 << 20)
        if not data and not self.heard:
            raise ConnectionResetError
        self.heard += data
        if data and not data.endswith(b"\n") and len(self.heard) <= ANSWER:
            return None
        return _understood(bytes(self.heard))


def look(deadline: float = DEADLINE) -> list[tuple[Process, Answer]]:
    """Ask all processes what their pools are; return what each says, by process id.

    One that has not answered within so many seconds, in all, has `{"error": ...}` for an answer. What ended processes
    have left is taken away. Raises `PermissionError` if others can get at the folder of the sockets.
    """
    return _ask(_processes(), {"do": "look"}, deadline)


def ask(process: Process, question: Answer, deadline: float = DEADLINE) -> Answer:
    """Ask one process for something; the answer has `error` if it was not done."""
    answers = _ask([process], question, deadline)
    return answers[0][1] if answers else {"error": "the process has ended"}


def _processes() -> list[Process]:
    found: list[Process] = []
    for folder in _sockets_folder.folders():
        for name in os.listdir(folder):
            pid = name.partition("-")[0]
            if name.endswith(".sock") and pid.isdecimal():
                found.append(Process(int(pid), os.path.join(folder, name)))
    return sorted(found)


def _ask(processes: Iterable[Process], question: Answer, deadline: float) -> list[tuple[Process, Answer]]:
    line = json.dumps({"v": VERSION, **question}).encode() + b"\n"
    answers: dict[Process, Answer] = {}
    with selectors.DefaultSelector() as selector:
        try:
            _hear_all(selector, processes, line, deadline, answers)
        finally:
            _hang_up(selector)
    return sorted(answers.items(), key=lambda item: item[0])


def _hear_all(
    selector: selectors.BaseSelector,
    processes: Iterable[Process],
    line: bytes,
    deadline: float,
    answers: dict[Process, Answer],
) -> None:
    end = time.monotonic() + deadline
    for process in processes:
        _call(selector, process, line, answers, f"no answer within {deadline:g} s")
    while len(selector.get_map()) and (left := end - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            _go_on(selector, key.data, answers)


def _call(
    selector: selectors.BaseSelector, process: Process, line: bytes, answers: dict[Process, Answer], late: str
) -> None:
    """Begin to ask a process; say what its answer is as long as there is none."""
    try:
        conn = _connect(process)
    except BlockingIOError:
        answers[process] = {"error": "it has too many callers"}
        return
    if conn is not None:
        answers[process] = {"error": late}
        selector.register(conn, selectors.EVENT_WRITE, _Call(process, conn, line))


def _hang_up(selector: selectors.BaseSelector) -> None:
    for key in list(selector.get_map().values()):
        key.data.conn.close()


def _go_on(selector: selectors.BaseSelector, call: _Call, answers: dict[Process, Answer]) -> None:
    try:
        answer = call.go_on()
    except BlockingIOError:
        return
    except OSError:
        # It has ended while it was asked.
        answers.pop(call.process)
    else:
        if answer is None:
            if not call.question:
                selector.modify(call.conn, selectors.EVENT_READ, call)
            return
        answers[call.process] = answer
    selector.unregister(call.conn)
    call.conn.close()


def _connect(process: Process) -> socket.socket | None:
    """Connect to a process, if it is the one that its socket's name says, and this user's."""
    conn = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        conn.connect(process.path)
        if _sockets_folder.peer_of(conn) == (process.pid, os.geteuid()):
            return conn
    except ConnectionRefusedError:
        _sockets_folder.remove(process.path)
    except BlockingIOError:
        conn.close()
        raise
    except OSError:
        # It has just gone.
        pass
    conn.close()
    return None


def _understood(line: bytes) -> Answer:
    if not line.endswith(b"\n"):
        return {"error": "the answer was cut short"}
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        return {"error": "the answer is not what millpond says"}
    if answer.get("v") != VERSION:
        return {"error": f"its millpond speaks version {answer.get('v')!r}, this one {VERSION}"}
    return answer
