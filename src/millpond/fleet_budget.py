"""One limit for the connections of the processes of many machines."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import socket
import sys
import uuid
import weakref
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from importlib.resources import files
from time import monotonic
from typing import Any, Final, NamedTuple

from millpond._extras import extra

with extra("redis"):
    import redis
    from redis.backoff import NoBackoff
    from redis.connection import parse_url
    from redis.retry import Retry

from millpond._permit_file import Note, PermitFile, shared_path
from millpond._shared_budget import SETBACK, SharedBudget, register
from millpond.connectors.redis import expect_makeable, options_of
from millpond.errors import Misuse

__all__ = ["FleetBudget", "FleetMember", "members"]

log: Final = logging.getLogger("millpond")

PATIENCE: Final = 1.0
"""Seconds that the coordinator may take to answer."""
BEAT: Final = 0.02
"""Seconds between renewals, at the least."""
CALM: Final = 0.1
"""Seconds between renewals of one who has permits while nobody lacks any."""
RATE: Final = 5000.0
"""Renewals a second of all members together, at the most: of a larger fleet, each member renews the more seldom."""
DRAIN: Final = 0.6
"""The part of a lease after which one who could not renew closes what is not reserved for it."""
KEPT: Final = 600.0
"""Seconds for which a reserve is kept for one who has not renewed."""
WITNESS: Final = 0.25
"""Seconds after which one looks whether another process of its machine has died."""
SCRIPT: Final = files("millpond").joinpath("_fleet.lua").read_text()
KEYS: Final = ("book", "leases", "allowed", "since", "lacking", "idle", "called", "reserve", "lost", "got", "about")


class FleetMember(NamedTuple):
    """What the coordinator knows of a process."""

    host: str
    pid: int
    program: str
    limit: int
    """The limit that it goes by."""
    allowed: int
    """How many connections it may have."""
    idle: int
    """How many of them it could spare at once."""
    lacking: int
    """How many more it could use."""
    called: int
    """How many it is asked to give back."""
    lost: bool
    """Whether it has not renewed: it may be dead, stopped, or cut off."""


class _Terms(NamedTuple):
    """What the coordinator says to a renewal."""

    own: int
    """How many permits this process has now."""
    give: int
    """How many of them others wait for."""
    members: int
    epoch: str
    reserve: int
    """How many are kept for it if it cannot renew."""
    urgent: int
    """Whether anybody lacks some."""


class FleetBudget(SharedBudget):
    """How many connections the processes of many machines may have open together: `Pool(..., budget=budget)`.

    Every process makes its own `FleetBudget` with the same URL of a Redis or Valkey, the same name (letters, digits,
    `.`, `_` and `-`) and the same limit. What a process may have is leased to it for `lease` seconds (default 15) and
    renewed in the background: a borrow never waits for the coordinator, unless the connection that it needs is there.
    Permits go to who has waited longest; who has idle ones is asked for them, or else who has more. Each process is
    left `minimum` of them (default 1), once it has got them, if there are as many for all.

    If the coordinator cannot be reached, a process goes on with what it has until 0.6 of its lease is over. Then it
    keeps what is reserved for it, the limit divided by the members (not more than it had), and closes the rest as soon
    as that is idle; the coordinator gives nobody what is reserved, for ten minutes. A process that ends gives all back
    at once; of one that is killed, another of the same machine tells within a second; with none there, its reserve is
    free after the ten minutes, the rest after its lease. One that was stopped for longer than its lease opens nothing
    before it has renewed; what it still has open counts. A coordinator that has just started gives nothing new for one
    lease, in which members tell what they have, and for three seconds if it has never heard of the budget.

    The server's own limit (`ALTER ROLE ... CONNECTION LIMIT`) is the fence for what no coordinator can know.

    Raises `ValueError` or `TypeError` for arguments that cannot be, `Misuse` if this process has a budget of that name
    at that coordinator already, and still two seconds later. A coordinator that cannot be reached is logged, and tried
    again every second.
    """

    def __init__(self, url: str, name: str, limit: int, *, lease: float = 15.0, minimum: int = 1) -> None:
        self._check(limit)
        if not 0.5 <= lease <= 3600:
            raise ValueError(f"lease={lease!r} must be from 0.5 to 3600 seconds")
        if not 0 <= minimum <= limit:
            raise ValueError(f"minimum={minimum!r} must be from 0 to the limit of {limit}")
        self._url = url
        self._lease = lease
        self._minimum = minimum
        self._kept = max(KEPT, 2 * lease)
        # Made at once, so that a URL that cannot be is refused here; it connects when it is first used.
        made_of = _client(url).connection_pool.connection_kwargs
        self._coordinator = made_of.get("path") or f"{made_of.get('host')}:{made_of.get('port')}"
        # The slots of the file are members of one coordinator's budget.
        where = sha256(f"{self._coordinator}/{made_of.get('db') or 0}".encode()).hexdigest()
        self._path = shared_path(name, f"{where[:16]}.fleet")
        if not register(_here, self._path, self):
            raise Misuse(f"this process has a FleetBudget {name!r} already: give that one to all pools")
        super().__init__(name, limit)
        atexit.register(_leave, weakref.ref(self))

    def _begin(self) -> None:
        self._client = _client(self._url)
        self._terms = _Terms(0, 0, 1, "", 0, 0)
        self._sent = -math.inf
        """When the renewal was sent that succeeded last: the lease counts from there, and so ends here before there."""
        self._cut_off = False
        self._looked = -math.inf
        self._missed: list[Note] = []
        """Who seemed dead at the last look."""
        self._known = False
        """Whether both the coordinator and the file know of this process."""
        self._parted = False
        """Whether the coordinator knows that it has left."""
        super()._begin()

    def close(self) -> None:
        """Leave for good, and give all permits back: for when the pools are closed. It is done at exit, too.

        Waits for the coordinator to take them, up to a second for each of its answers.
        """
        if self._pid != os.getpid():
            return
        self._left = True
        # The governor leaves when it gets back, if its own thread comes here, out of a finaliser; it may also be
        # waiting for a lock that a signal handler has interrupted.
        inside = self._turning._is_owned() or self._lock._is_owned()  # type: ignore[attr-defined]
        if inside or not self._turning.acquire(timeout=PATIENCE * 3):
            self._bell.ring()
            return
        try:
            self._go()
        finally:
            self._turning.release()

    # For the governor.

    def _farewell(self) -> None:
        if self._file is not None and self._file.is_open() and self._file.claim(self._bell):
            with suppress(redis.RedisError, OSError):
                self._call(self._file, 0.0, 0, 0, 0, 0.0)
                self._parted = True

    def _part(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            # Otherwise somebody else tells by the note that this process, or the one whose slot it got, has died.
            file.leave(self._bell, keep=not (self._known and self._parted))
            self._client.close()

    def _turn(self) -> float:
        former = self._file
        file = self._handle(keep=True)
        if file is None:
            return BEAT
        if self._known and file is not former:
            file.write(self._whole, 0, 0, math.inf)
        if not self._known:
            return self._enter(file)
        need = self._need()
        terms = self._terms
        floor = self._minimum if self._minimum * terms.members <= self._whole else 0
        give = max(0, min(terms.give, terms.own - floor))
        if give:
            held = self._allow(terms.own - give)
        elif need.wanted:
            held = self._allow(terms.own)
        else:
            held = self._trim()
        now = monotonic()
        early = self._sent + BEAT - now
        if early > 0:
            return early
        own = max(held, self.allowance, min(floor, terms.own))
        lacks = max(need.wanted, floor - own)
        waited = now - min(need.since, now)
        dead: list[Note] = []
        if now - self._looked > WITNESS:
            self._looked = now
            departed = file.departed()
            # Twice: one whose descriptor was closed takes its lock again.
            dead = [note for note in departed if note in self._missed]
            self._missed = departed
        told = self._renew(file, own, max(0, min(need.idle, own - floor)), lacks, waited, dead=dead)
        if not isinstance(told, _Terms):
            return self._go_on(told, now)
        # Not before the coordinator knows: this process, too, may die at any moment.
        file.bury_all(dead)
        terms = told
        self._abide(terms, now, wanted=need.wanted > 0)
        pace = terms.members / RATE
        if lacks or terms.give or terms.urgent:
            return max(BEAT, pace) if terms.own or lacks else max(CALM, pace)
        return min(max(CALM, pace) if terms.own else math.inf, self._lease / 4)

    def _enter(self, file: PermitFile) -> float:
        """Become known to the coordinator, with nothing, and then here: whenever this is killed, somebody can tell."""
        predecessor = [] if file.predecessor is None else [file.predecessor]
        terms = self._renew(file, 0, 0, 0, 0.0, dead=predecessor)
        if not isinstance(terms, _Terms):
            return self._go_on(terms, monotonic())
        file.write(self._whole, 0, 0, math.inf)
        self._known = True
        return 0.0

    def _renew(
        self, file: PermitFile, own: int, idle: int, lacks: int, waited: float, *, dead: Iterable[Note] = ()
    ) -> _Terms | Exception:
        """Return the coordinator's terms, or why there are none."""
        try:
            return self._call(
                file, self._lease, own, idle, lacks, waited, *(_member(file, note.slot, note.pid) for note in dead)
            )
        except (redis.RedisError, OSError) as error:
            return error

    def _call(
        self, file: PermitFile, lease: float, own: int, idle: int, lacks: int, waited: float, *dead: str
    ) -> _Terms:
        about = json.dumps(
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "program": os.path.basename(sys.argv[0]),
                "limit": self._whole,
            }
        )
        times = (round(lease * 1000), round(self._kept * 1000))
        counts = (own, idle, lacks, round(waited * 1000), self._minimum)
        me = _member(file, file.slot, os.getpid())
        script: Any = self._client.register_script(SCRIPT)
        told = script(_keys(self._name), (me, self._whole, *times, *counts, about, uuid.uuid4().hex, *dead))
        return _Terms(*told)

    def _abide(self, terms: _Terms, sent: float, *, wanted: bool) -> None:
        if self._cut_off:
            self._cut_off = False
            log.info("budget %r: %s is there again", self._name, self._coordinator)
        stale = sent >= self._ledger.good_until
        self._terms = terms
        self._sent = sent
        self._ledger.good_until = sent + self._lease
        if wanted and not terms.give:
            self._allow(terms.own)
        if stale:
            # Their callers may wait for what was theirs all the time, and could not be used.
            self._ring(list(self._members))

    def _go_on(self, error: Exception, now: float) -> float:
        """Do without the coordinator."""
        if not self._cut_off:
            self._cut_off = True
            log.warning(
                "budget %r: %s cannot be reached (%s: %s); this process has %d connections, after %.1f s %d",
                self._name,
                self._coordinator,
                type(error).__name__,
                str(error),  # not the error itself: whoever keeps the record would keep the frames
                self._terms.own,
                max(0.0, self._sent + DRAIN * self._lease - now),
                min(self._terms.own, self._terms.reserve),
            )
        over = self._sent + DRAIN * self._lease
        if now < over:
            return min(SETBACK, over - now)
        end = self._sent + self._kept
        mine = min(self._terms.own, self._terms.reserve) if now < end else 0
        self._terms = self._terms._replace(own=mine, give=0)
        self._allow(mine)
        if now >= self._sent + self._lease > -math.inf:
            self._ledger.good_until = end
            self._ring(list(self._members))
            return SETBACK
        return min(SETBACK, self._sent + self._lease - now) if self._sent > -math.inf else SETBACK


_here: Final[dict[str, weakref.ref[FleetBudget]]] = {}
"""The budgets of this process, by their files."""


def members(url: str, name: str) -> list[FleetMember]:
    """Return what a coordinator knows of the members of a budget.

    It waits up to a second for each answer, and raises redis-py's errors, or `ValueError` for what is no such URL.
    """
    shared_path(name, "fleet")  # which looks at the name
    keys: dict[str, str] = dict(zip(KEYS, _keys(name), strict=True))
    client = _client(url)
    try:
        told = _ask(client, keys)
    finally:
        client.close()
    about, lacking, called, allowed, idle, lost = told
    return [
        FleetMember(
            **json.loads(told),
            allowed=int(allowed.get(who, 0)),
            idle=int(idle.get(who, 0)),
            lacking=int(lacking.get(who, 0)),
            called=int(called.get(who, 0)),
            lost=who in lost,
        )
        for who, told in sorted(about.items())
    ]


def _ask(client: Any, keys: dict[str, str]) -> list[dict[str, Any]]:  # noqa: ANN401
    ask: Any = client.pipeline(transaction=True)
    for key in ("about", "lacking", "called"):
        ask.hgetall(keys[key])
    for key in ("allowed", "idle", "lost"):
        ask.zrange(keys[key], 0, -1, withscores=True)
    return [dict(answer) for answer in ask.execute()]


def _client(url: str) -> Any:  # noqa: ANN401
    settings: dict[str, Any] = {
        "socket_timeout": PATIENCE,
        "socket_connect_timeout": PATIENCE,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": True,
    }
    # As redis-py's from_url does it, which would quote a password that it cannot read, or make of a query what it can.
    given = options_of(url, parse_url)
    kind = given.get("connection_class", redis.Connection)
    own = ("connection_class", "max_connections", "timeout")  # the pool's
    expect_makeable(url, kind, {name: value for name, value in given.items() if name not in own})
    return redis.Redis.from_pool(redis.ConnectionPool(**{**settings, **given}))


def _keys(name: str) -> list[str]:
    return [f"{{millpond:{name}}}:{key}" for key in KEYS]


def _member(file: PermitFile, slot: int, pid: int) -> str:
    return f"{file.name()}/{slot}/{pid}"


def _leave(ref: weakref.ref[FleetBudget]) -> None:
    budget = ref()
    if budget is not None:
        budget.close()
