"""Commands of redis-py's client that a signal handler interrupts: does every caller get its own reply?"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any, NamedTuple

import redis

import millpond.redis
from benchmarks.figure import Figure
from millpond.testing import Valkey

__all__ = ["Outcome", "interrupt", "measure"]

ROUNDS = 2_000
SIZE = 4
LONGEST = 200e-6
"""Seconds after which the signal comes at the latest: a command takes less."""


class Outcome(NamedTuple):
    """What became of it."""

    interrupted: int
    wrong: int
    """How many callers got a reply that was another's."""
    usable: int
    """How many connections can be borrowed at once, afterwards."""


class Interruption(BaseException):
    """What the signal handler raises."""


def interrupt(make: Callable[..., Any], rounds: int = ROUNDS, **options: object) -> Outcome:
    """Interrupt the commands of a client with such a pool, and let others follow on the same connections."""
    armed = False

    def strike(number: int, frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interruption

    interrupted = wrong = 0
    with Valkey() as server:
        pool: redis.ConnectionPool = make(host=server.host, port=server.port, max_connections=SIZE, **options)
        client = redis.Redis(connection_pool=pool)
        former = signal.signal(signal.SIGALRM, strike)
        try:
            number = 0
            while interrupted < rounds:
                number += 1
                reply: Any = None
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, LONGEST))
                    reply = client.echo(f"{number}")
                    armed = False
                except Interruption:
                    interrupted += 1
                except redis.RedisError:
                    # It came while redis-py handled an error of its own.
                    armed = False
                wrong += reply not in (None, b"%d" % number)
                with suppress(redis.RedisError):
                    wrong += client.echo(f"after {number}") != b"after %d" % number
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, former)
        usable = _usable(pool)
        pool.close()
    return Outcome(interrupted, wrong, usable)


def _usable(pool: redis.ConnectionPool) -> int:
    """Borrow as many connections as there are to be."""
    conns: list[Any] = []
    deadline = time.monotonic() + 20
    while len(conns) < SIZE and time.monotonic() < deadline:
        try:
            conn = pool.get_connection()
        except redis.ConnectionError:
            time.sleep(0.01)
            continue
        conn.send_command("ECHO", len(conns))
        if conn.read_response() == b"%d" % len(conns):
            conns.append(conn)
        else:
            conn.disconnect()
            pool.release(conn)
    for conn in conns:
        pool.release(conn)
    return len(conns)


def measure() -> Iterator[Figure]:
    """Yield what millpond's pool does, and what redis-py's own does in the same run."""
    theirs = interrupt(redis.ConnectionPool)
    ours = interrupt(millpond.redis.ConnectionPool)
    case = f"redis-py's own pool: {theirs.wrong} wrong, {theirs.usable} of {SIZE} usable"
    yield Figure(f"{ROUNDS} commands interrupted, wrong replies", case, ours.wrong, "", 0, digits=0)
    yield Figure(f"{ROUNDS} commands interrupted, connections usable", case, ours.usable, "", SIZE, ">=", digits=0)
