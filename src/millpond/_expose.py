"""Telling other processes of this user what the pools of this one are: what `millpond top` looks at.

One thread of the process listens on a Unix socket and serves whoever calls, one line of JSON asked for one answered:

    {"v": 1, "do": "look"}
    {"v": 1, "process": {...}, "pools": [...]}

With `control`, "pause", "resume", "refresh" and "resize" are done, too, to the pool whose number is given as "pool".
Whoever asks for something else, or for nothing in time, costs its own connection and nothing more.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import platform
import secrets
import selectors
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, fields
from itertools import count
from typing import Any, Final, TypeAlias

from millpond import _sockets_folder, events
from millpond._shared_budget import SharedBudget
from millpond._shell import Shell, log, pools
from millpond.budget import Budget
from millpond.pool import Pool

__all__ = ["ANSWER", "VERSION", "expose", "expose_as_told"]

VERSION: Final = 1
"""Of what is said on the socket."""
REQUEST: Final = 64 * 1024
"""Bytes that a request may have."""
ANSWER: Final = 4 * 1024 * 1024
"""Bytes that an answer may have."""
PATIENCE: Final = 1.0
"""Seconds that a caller has for asking, and as many for taking the answer."""
CALLERS: Final = 64
"""How many callers there may be at once; the next one takes the place of the first."""
LINE: Final = 1024
"""How many may have called and not been let in yet; a thread that is busy, or has not got the GIL, comes to them."""
RECENT: Final = 60.0
"""Seconds for which it is remembered how long callers have waited."""
WAITS: Final = 4096
"""How many waits of pools of one name are remembered at most."""
THOROUGH: Final = 0.05
"""Seconds that one answer may spend on finding out whose the loans are."""
REST: Final = 0.05
"""Seconds until a caller is tried again who could not be let in."""
FAREWELL: Final = 1.0
"""Seconds that closing waits for the thread, which may be about to answer."""

Facts: TypeAlias = dict[str, Any]


class _Waits:
    """How long callers have waited lately: of a sample of the loans, by the name of the pool."""

    def __init__(self) -> None:
        self._by_name: dict[str, deque[tuple[float, float]]] = {}

    def hear(self, event: events.Event) -> None:
        """Take note, wherever a loan begins: without a lock, and without calling anybody."""
        if isinstance(event, events.ConnectionLent):
            waits = self._by_name.get(event.pool)
            if waits is None:
                waits = self._by_name.setdefault(event.pool, deque(maxlen=WAITS))
            waits.append((event.at, event.waited))

    def forget(self, names: set[str]) -> None:
        """Forget pools that there are no more."""
        for name in self._by_name.keys() - names:
            del self._by_name[name]

    def tell(self, name: str) -> Facts:
        """Return the median and the 99th percentile, in seconds, and of how many waits."""
        since = time.monotonic() - RECENT
        while True:
            try:
                noted = list(self._by_name.get(name, ()))
                break
            except RuntimeError:  # a loan began in the midst of it, as one may in a finaliser
                continue
        waits = sorted(waited for at, waited in noted if at >= since)
        if not waits:
            return {"p50": None, "p99": None, "of": 0}
        p50, p99 = (waits[min(len(waits) - 1, int(len(waits) * share))] for share in (0.5, 0.99))
        return {"p50": p50, "p99": p99, "of": len(waits)}


class _RefusedError(Exception):
    """Something was asked that is not done; the text says why, and quotes nothing that is not to be known."""


class _Caller:
    """Whoever asks: first it is read from, then it is written to."""

    def __init__(self, conn: socket.socket) -> None:
        self.conn = conn
        self.asked = bytearray()
        self.answer = memoryview(b"")
        self.deadline = time.monotonic() + PATIENCE


class _Exposure:
    """The socket of this process, and the thread that serves it."""

    def __init__(self, *, control: bool, told: bool) -> None:
        self.control = control
        self.told = told
        """Whether the environment asked for it, not the program."""
        self.open = True
        self._numbers: weakref.WeakKeyDictionary[Shell[Any], int] = weakref.WeakKeyDictionary()
        self._next = count(1)
        self._waits = _Waits()
        self._begin()
        self._unlisten = events.listen(self._waits.hear, loans="some")
        atexit.register(self.close)

    def _begin(self) -> None:
        """Start to serve: when it is made, and again in a forked child."""
        folder = _sockets_folder.home(make=True)
        _clean(folder)
        self._callers: dict[int, _Caller] = {}
        # It has its name only when somebody listens: where nobody does, others take it away.
        path = os.path.join(folder, f"{os.getpid()}-{secrets.token_hex(4)}.sock")
        unnamed = path.removesuffix("sock") + "new"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._bell, self._rung = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        try:
            self._listener.bind(unnamed)
            os.chmod(unnamed, 0o600)
            self._listener.listen(LINE)
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._selector.register(self._rung, selectors.EVENT_READ)
            os.rename(unnamed, path)
            self.path, self._pid = path, os.getpid()
            self._thread = threading.Thread(target=self._serve, name="millpond-expose", daemon=True)
            self._thread.start()
        except BaseException:
            self.open = False
            self._let_go()
            _sockets_folder.remove(unnamed)
            _sockets_folder.remove(path)
            raise

    def begin_in_child(self) -> None:
        """Let go of what is the parent's, whose file stays, and have a socket of its own."""
        self._let_go()
        self._waits.forget(set())
        self._begin()

    def _let_go(self) -> None:
        """Close what this process has open."""
        for caller in self._callers.values():
            caller.conn.close()
        for part in (self._listener, self._bell, self._rung, self._selector):
            part.close()

    def close(self) -> None:
        """Tell nobody any more, and take the file away. Closing twice is closing once."""
        global _exposure
        with _changing:
            if not self.open or self._pid != os.getpid():
                return
            # Rung first: its thread closes the bell once it finds that all is over.
            self._bell.shutdown(socket.SHUT_RDWR)
            self.open = False
            if _exposure is self:
                _exposure = None
            _sockets_folder.remove(self.path)
            self._unlisten()
            atexit.unregister(self.close)
        self._thread.join(FAREWELL)

    # Serving, in the thread.

    def _serve(self) -> None:
        callers = self._callers
        while self.open:
            first = min((caller.deadline for caller in callers.values()), default=math.inf)
            ready = self._selector.select(None if first == math.inf else max(0.0, first - time.monotonic()))
            for key, _ in ready:
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fd in callers:
                    self._attend(callers[key.fd])
            now = time.monotonic()
            for caller in [caller for caller in callers.values() if caller.deadline <= now]:
                self._dismiss(caller)
        self._let_go()

    def _accept(self) -> None:
        try:
            conn, _ = self._listener.accept()
        except OSError:
            # The process has no descriptor left for it; to try again at once would do nothing else.
            time.sleep(REST)
            return
        conn.setblocking(False)
        if _sockets_folder.peer_of(conn).uid != os.geteuid():
            conn.close()
            return
        if len(self._callers) >= CALLERS:
            self._dismiss(next(iter(self._callers.values())))
        self._callers[conn.fileno()] = _Caller(conn)
        self._selector.register(conn, selectors.EVENT_READ)

    def _attend(self, caller: _Caller) -> None:
        """Go on with one caller, as far as that goes without waiting."""
        try:
            if not caller.answer:
                if not self._read(caller):
                    return
                answer = self._answer(bytes(caller.asked))
                caller.answer = memoryview(json.dumps(answer).encode() + b"\n")
                caller.deadline = time.monotonic() + PATIENCE
                self._selector.modify(caller.conn, selectors.EVENT_WRITE)
            caller.answer = caller.answer[caller.conn.send(caller.answer) :]
            if not caller.answer:
                self._dismiss(caller)
        except BlockingIOError:
            pass
        except OSError:
            self._dismiss(caller)

    def _read(self, caller: _Caller) -> bool:
        """Read some of a request; tell whether that is all of it."""
        data = caller.conn.recv(REQUEST)
        caller.asked += data
        if not data and not caller.asked:
            self._dismiss(caller)
            return False
        return not data or b"\n" in data or len(caller.asked) > REQUEST

    def _dismiss(self, caller: _Caller) -> None:
        self._callers.pop(caller.conn.fileno(), None)
        self._selector.unregister(caller.conn)
        caller.conn.close()

    # Answering.

    def _answer(self, line: bytes) -> Facts:
        try:
            asked = _understood(line)
            answer = self._look() if asked["do"] == "look" else self._obey(asked)
        except _RefusedError as refused:
            answer = {"error": str(refused)}
        except Exception:
            log.exception("a question about the pools of this process could not be answered")
            answer = {"error": "it could not be answered; the log of the process says why"}
        return {"v": VERSION, **answer}

    def _look(self) -> Facts:
        process = {
            "pid": self._pid,
            "argv0": (getattr(sys, "argv", None) or [""])[0],
            "python": platform.python_version(),
            "millpond": _version(),
            "started_at": _started_at(),
            "control": self.control,
        }
        there = [(pool, pool._step(pool._core.stats)) for pool in pools()]
        there = [(pool, stats) for pool, stats in there if stats.size or not stats.closed]
        self._waits.forget({stats.name for _, stats in there})
        enough = time.monotonic() + THOROUGH
        told: list[Facts] = []
        size = 0
        for pool, stats in there:
            facts = {
                "id": self._number(pool),
                "kind": "threads" if isinstance(pool, Pool) else "tasks",
                "target": pool._inspector.target,
                "settings": _settings(pool),
                "stats": {field.name: getattr(stats, field.name) for field in fields(stats)},
                "waits": self._waits.tell(stats.name),
                "outage": _outage(pool),
                "budget": _budget(pool),
                "leases": _leases(pool, enough),
            }
            size += len(json.dumps(facts)) + 2
            if size > ANSWER - 4096:
                break
            told.append(facts)
        return {"process": process, "pools": told, "left_out": len(there) - len(told)}

    def _number(self, pool: Shell[Any]) -> int:
        number = self._numbers.get(pool)
        if number is None:
            number = self._numbers[pool] = next(self._next)
        return number

    def _obey(self, asked: Facts) -> Facts:
        do = asked["do"]
        if do not in ("pause", "resume", "refresh", "resize"):
            raise _RefusedError("there is look, pause, resume, refresh and resize")
        if not self.control:
            raise _RefusedError("this process lets itself be looked at only: millpond.expose(control=True) allows more")
        pool: Any = next((pool for pool, number in self._numbers.items() if number == asked.get("pool")), None)
        if pool is None:
            raise _RefusedError("there is no pool of that number")
        sizes = {name: asked[name] for name in ("min_size", "max_size") if name in asked} if do == "resize" else {}
        try:
            getattr(pool, do)(**sizes)
        except (TypeError, ValueError) as error:
            # Of sizes that cannot work, and whoever asked has named them.
            raise _RefusedError(str(error)) from None
        return {"done": do}


def _understood(line: bytes) -> Facts:
    """Read a request."""
    if not line.endswith(b"\n") or len(line) > REQUEST:
        raise _RefusedError(f"a request is one line of at most {REQUEST} bytes")
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):
        raise _RefusedError("a request is a line of JSON") from None
    if not isinstance(asked, dict) or asked.get("v") != VERSION:
        raise _RefusedError(f'a request is an object of version {VERSION}: {{"v": {VERSION}, "do": "look"}}')
    if not isinstance(asked.get("do"), str):
        raise _RefusedError('a request says what to "do"')
    return asked


def _settings(pool: Shell[Any]) -> Facts:
    settings = pool.settings
    # JSON knows no infinity: None is without end.
    timeout = None if settings.timeout == math.inf else settings.timeout
    return {"min_size": settings.min_size, "max_size": settings.max_size, "timeout": timeout}


def _outage(pool: Shell[Any]) -> Facts | None:
    outage = pool._core.outage
    if outage is None:
        return None
    return {
        "error": type(outage.cause).__name__,
        "seconds": time.monotonic() - outage.since,
        "attempts": outage.attempts,
        "refused": outage.refused,
    }


def _budget(pool: Shell[Any]) -> Facts | None:
    budget, share = pool.settings.budget, pool._core.share
    if not isinstance(budget, Budget) or share is None:
        return None
    name = budget.name if isinstance(budget, SharedBudget) else None
    return {"name": name, "limit": budget.limit, "used": budget.used, "share": share.quota}


def _leases(pool: Shell[Any], enough: float) -> list[Facts]:
    """Tell of loans, the longest first: of one at least, and of more until it is `enough`."""
    now = time.monotonic()
    told: list[Facts] = []
    for entry in pool._lent():
        told.append(asdict(pool._record(entry, now)))
        if time.monotonic() >= enough:
            break
    return told


def _version() -> str:
    from millpond import __version__

    return __version__


def _started_at() -> float | None:
    """Return when this process was started, in seconds since 1970; None where the system does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return None
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _clean(folder: str) -> None:
    """Take away what processes have left that could not do so themselves."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.endswith(".sock") and _sockets_folder.silent(path):
            _sockets_folder.remove(path)


_exposure: _Exposure | None = None
_changing = threading.RLock()


def expose(*, control: bool = False) -> Callable[[], None]:
    """Let other processes of this user look at the pools of this one, those to come included; return what ends that.

    `millpond top` shows them. They see sizes, figures, waits, outages, and who has what on loan since when and where,
    and no password. With `control` they may also pause, resume, refresh and resize. The environment variable
    `MILLPOND_EXPOSE=1` does the same without `control` when the first pool is made; a call of the program's own has
    precedence over that. A forked child has its own socket. Nothing is waited for.

    Called again it returns the same; raises `RuntimeError` if `control` is not the same then, or if the system has no
    Unix sockets that know their peers; `PermissionError` if others can get at the folder, `$XDG_RUNTIME_DIR/millpond`
    or `/tmp/millpond-UID`.
    """
    return _expose(control=control, told=False).close


def expose_as_told() -> None:
    """Do what the environment says, and no harm: the program has not asked for it."""
    try:
        _expose(control=False, told=True)
    except (OSError, RuntimeError) as error:
        log.warning("MILLPOND_EXPOSE=1: the pools of this process cannot be looked at: %s", error)


def _expose(*, control: bool, told: bool) -> _Exposure:
    global _exposure
    if not hasattr(socket, "SO_PEERCRED") or not hasattr(socket, "AF_UNIX"):
        raise RuntimeError("this system has no Unix sockets that tell who is at their other end (Linux has)")
    with _changing:
        if _exposure is None:
            _exposure = _Exposure(control=control, told=told)
        elif not told:
            if _exposure.told:
                _exposure.control, _exposure.told = control, False
            elif _exposure.control != control:
                raise RuntimeError(f"this process is exposed with control={_exposure.control} already: end that first")
        return _exposure


def _after_fork_in_child() -> None:
    global _changing, _exposure
    _changing = threading.RLock()
    if _exposure is not None:
        try:
            _exposure.begin_in_child()
        except (OSError, RuntimeError) as error:
            _exposure._unlisten()
            _exposure = None
            log.warning("the pools of a forked child cannot be looked at: %s", error)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
