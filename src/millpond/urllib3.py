"""urllib3's pools with millpond's behaviour: one changed import.

    from millpond.urllib3 import PoolManager

    http = PoolManager(maxsize=10, block=True, pool_timeout=2.0)
    http.request("GET", "https://example.org/")

Requests, retries, redirects, timeouts, proxies, TLS and exceptions stay urllib3's own; what keeps the connections is
millpond's. So callers who wait are served in order, and woken when the pool closes; a connection goes back only if
its reply was read to the end and nothing came after it; one whose response was dropped is found again.
"""

from __future__ import annotations

import http.client
import io
import logging
import math
import re
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, cast

from millpond._core.entry import Entry, Reason, State
from millpond._core.lease import Lease
from millpond._extras import extra
from millpond.budget import Budget
from millpond.connector import Condition
from millpond.connectors.urls import place
from millpond.errors import ConnectFailed, Misuse, PoolClosed, PoolTimeout
from millpond.pool import Pool

with extra("urllib3"):
    import urllib3
    from urllib3.connection import HTTPConnection
    from urllib3.exceptions import ClosedPoolError, EmptyPoolError
    from urllib3.util.timeout import _DEFAULT_TIMEOUT, _TYPE_DEFAULT
    from urllib3.util.url import Url
    from urllib3.util.wait import wait_for_read

if TYPE_CHECKING:
    from urllib3._base_connection import BaseHTTPConnection

__all__ = ["HTTPConnectionPool", "HTTPSConnectionPool", "PoolManager", "ProxyManager"]

log: Final = logging.getLogger("urllib3.connectionpool")

MAX_IDLE: Final = 50.0
"""Seconds. Most load balancers drop what has been idle for 60, and say nothing of it."""
MAX_LIFETIME: Final = 3600.0
"""Seconds, after which the name of the host is looked up again."""
LEFTOVER: Final = 65_536
"""Bytes of a body that are read although nobody wants them, so that their connection can be kept."""
PATIENCE: Final = 0.25
"""Seconds that they are waited for. A new connection, with TLS, does not take longer across an ocean."""
TIMEOUT: Final = re.compile(r"\btimeout=(\d+)", re.IGNORECASE)
"""In a Keep-Alive header, the seconds that the server waits for the next request."""
MARGIN: Final = 1.0
"""Seconds before that, from which on no request is sent any more: it might arrive too late."""
PORTS: Final = 65_535
"""What `block=False` means by no limit: there are no more near ends for connections to one server."""
MAKING: Final = 0.1
"""Seconds that the making of a connection object, which does no I/O, may take another thread."""

# A member of an Enum takes 50 ns to look up.
CLEAN, UNPROVED, DIRTY, BROKEN = Condition


def _nobody() -> None:
    """Stand for a response that reads no more."""


def _dry(buffer: object) -> None:
    """Stand for a socket's `readinto`: nothing is there."""


class _Reply(http.client.HTTPResponse):
    """http.client's response, which knows how it ended."""

    whole = False
    """Whether it has been read to its end, and nothing came after it."""
    response: Callable[[], urllib3.HTTPResponse | None] = staticmethod(_nobody)
    """urllib3's response if it lives, which reads chunks past this one."""
    _trailed = False

    def __init__(self, sock: Any, debuglevel: int = 0, method: str | None = None, url: str | None = None) -> None:  # noqa: ANN401
        self._sock = sock
        super().__init__(sock, debuglevel, method, url)

    def _read_and_discard_trailer(self) -> None:
        super()._read_and_discard_trailer()  # type: ignore[misc]
        self._trailed = True

    def _close_conn(self) -> None:
        # http.client comes by here when it has read everything, and when the response is closed before that. After an
        # interim response (103) there is another to come, and after 101 another protocol.
        ended = self.length == 0 or (self.chunked is True and self._read_all_chunks())
        self.whole = ended and self.status >= 200 and not self._followed()
        super()._close_conn()  # type: ignore[misc]

    def _read_all_chunks(self) -> bool:
        response = self.response()
        return self._trailed or (response is not None and response.chunk_left == 0)

    def ends_with(self, data: bytes) -> bool:
        """Tell whether this is all that was left to read, or more."""
        if not (data.endswith(b"\r\n\r\n") if self.chunked else len(data) >= (self.length or 0)):
            return False
        left = self.chunk_left
        self.fp = io.BufferedReader(io.BytesIO(data))
        try:
            self.read()
            return True
        except (http.client.HTTPException, ValueError):
            self.fp, self.chunk_left = None, left  # type: ignore[assignment]
            return False

    def _followed(self) -> bool:
        """Whether more has come than the server announced, and would never be seen again.

        That is what was read ahead, or decrypted. What is still in the kernel will be seen before the next loan.
        """
        sock, raw = self._sock, self.fp.raw
        if isinstance(raw, socket.SocketIO):
            raw.readinto = _dry  # type: ignore[method-assign,assignment]
        if self.fp.peek(1):
            return True
        if type(sock) is socket.socket:
            return False
        if isinstance(sock, ssl.SSLSocket):
            return sock.pending() > 0
        # TLS within TLS, or by another library: it has to be asked for more.
        limit = sock.gettimeout()
        try:
            sock.settimeout(0)
            return bool(sock.recv(1))
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        finally:
            sock.settimeout(limit)


class _Connection(HTTPConnection):
    """urllib3's connection, which owns its loan: whoever drops or closes it gives its place back."""

    response_class = _Reply

    loan: Lease[_Connection] | None = None
    spent = False
    """Whether it was closed while on loan. It is not lent again: whoever closed it may close it once more."""
    answering = False
    """Whether http.client awaits a reply. If the server is going to close the connection, it is closed right after the
    head; but the response still reads from it, and so keeps its place."""
    noted: Any = None
    """The socket that the pool watches."""
    kept = False
    """Whether it was ever given back connected."""
    response: Callable[[], urllib3.HTTPResponse | None] = staticmethod(_nobody)
    """The response that reads from it, if it lives and was not read at once."""
    unread: io.BufferedReader | None = None
    """What is left of a reply that nobody will read."""
    silence: float | None = None
    """How many seconds the server said it would wait for the next request."""
    fresh_until = math.inf

    @property
    def reply(self) -> _Reply | None:
        """The last reply, if the connection is open after it."""
        reply: _Reply | None = self._HTTPConnection__response  # type: ignore[attr-defined]
        return reply

    @property
    def lender(self) -> _Pool | None:
        """The pool that it is on loan from."""
        return None if self.loan is None else cast("_Pool", self.loan._pool)

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        state: str = self._HTTPConnection__state  # type: ignore[attr-defined]
        return state == "Idle"

    def connect(self) -> None:
        """Connect, and have the pool watch the socket."""
        super().connect()
        lender = self.lender
        if lender is not None:
            lender.note(self)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        """Get the response, which from now on holds the connection unless it has been read."""
        self.answering = True
        try:
            response = super().getresponse()
        finally:
            self.answering = False
        reply = response._original_response
        if isinstance(reply, _Reply) and not reply.isclosed():
            self.response = reply.response = weakref.ref(response)
        else:
            self.response = _nobody
        said = response.headers.get("keep-alive")
        found = None if said is None else TIMEOUT.search(said)
        self.silence = None if found is None else float(found[1])
        return response

    @property
    def usable(self) -> bool:
        """Whether a request may be sent on it, if it is connected."""
        # The watcher knows of hang-ups, a moment later; and a server may have sent what nobody asked for.
        return monotonic() < self.fresh_until and self.is_connected

    def lie_down(self) -> None:
        """Note until when the server is going to wait; less a margin, for the request has to get there."""
        silence = self.silence
        self.kept = self.kept or self.sock is not None
        self.fresh_until = math.inf if silence is None else monotonic() + silence - min(MARGIN, silence / 4)

    def close(self) -> None:
        """Close the connection, and give its place back."""
        try:
            super().close()
            self.unread = None
        finally:
            lender = self.lender
            if lender is not None and not self.answering:
                self.spent = True
                # In a finaliser that interrupted the pool, or in two threads at once: the loan ends all the same.
                with suppress(Misuse):
                    lender._take_back(self)

    def disconnect(self) -> None:
        """Close the connection and keep its place."""
        super().close()

    def part(self, response: urllib3.HTTPResponse) -> None:
        """Part from a response that may not be read to its end any more."""
        reply = response._original_response
        if isinstance(reply, _Reply) and not reply.isclosed():
            if reply is self.reply and reply.length != 0 and response.chunk_left != 0:
                if response.chunk_left is not None:
                    reply.chunk_left = response.chunk_left
                self.unread, reply.fp = reply.fp, None  # type: ignore[assignment]
            else:
                reply.close()
        response._connection = None

    def finish(self) -> bool:
        """Read what is left of a reply, within LEFTOVER and PATIENCE; tell whether it has ended as it should."""
        reply, unread, sock = self.reply, self.unread, self.sock
        assert reply is not None and unread is not None
        self.unread = None
        deadline = monotonic() + PATIENCE
        sock.settimeout(0)
        data = _now(lambda: unread.read1(LEFTOVER)) or b""  # all that has been read ahead
        while len(data) <= LEFTOVER:
            if reply.ends_with(data):
                return reply.whole
            left = deadline - monotonic()
            if left <= 0 or not wait_for_read(sock, left):
                break
            more = _now(lambda: sock.recv(LEFTOVER))
            if more == b"":
                break
            data += more or b""
        return False

    def __del__(self) -> None:
        # The loan dies with it, and the pool learns of that.
        sock = self.__dict__.get("sock")
        if sock is not None:
            sock.close()


def _now(read: Callable[[], bytes]) -> bytes | None:
    """Read from a socket that does not wait; None if nothing is there."""
    try:
        return read()
    except (BlockingIOError, ssl.SSLWantReadError):
        return None


@cache
def _owning(kind: type[Any]) -> type[Any]:
    """Return a kind of connection that owns its loan, and goes by the same name."""
    return type(kind.__name__, (_Connection, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


class _Connector:
    """How a pool comes by urllib3's connections. They connect when they are first used, in the caller's thread."""

    provable = True

    def __init__(self, pool: HTTPConnectionPool) -> None:
        self._pool = weakref.ref(pool)
        self.target: str = place(str(pool.scheme), host=pool.host, port=pool.port)

    def open(self, timeout: float) -> _Connection:
        """Make a connection object; no I/O."""
        pool = self._pool()
        if pool is None:
            raise ReferenceError("the pool is gone")
        conn = pool._new_conn()
        if not isinstance(conn, _Connection):
            raise TypeError(f"{type(conn).__qualname__} cannot own a loan: set ConnectionCls in a subclass of the pool")
        if hasattr(conn, "_h2_conn"):
            raise TypeError(
                "urllib3's HTTP/2, an experiment, does not say when a connection may be used again: call "
                "urllib3.http2.extract_from_urllib3(), or have millpond.httpx speak HTTP/2"
            )
        return conn

    def inspect(self, conn: _Connection, error: BaseException | None) -> Condition:
        """Tell by http.client's state and the end of the last reply what the connection is fit for."""
        if conn.spent or not conn.idle:
            return BROKEN
        reply = conn.reply
        if reply is not None and not reply.whole:
            drainable = conn.unread is not None and (reply.chunked or (reply.length or 0) <= LEFTOVER)
            return DIRTY if drainable else BROKEN
        # If the server closes every connection, as some do, the object serves again. If it was kept before, it goes, so
        # that those that are still connected are lent first.
        return BROKEN if conn.sock is None and conn.kept else CLEAN

    def alive(self, conn: _Connection) -> bool:
        """Tell whether nothing, not even a hang-up, waits to be read."""
        return conn.sock is None or conn.is_connected

    def descriptor(self, conn: _Connection) -> int | None:
        """Return the socket's descriptor, or None while there is no socket."""
        return None if conn.sock is None else conn.sock.fileno()

    def ping(self, conn: _Connection, timeout: float) -> None:
        """Look as `alive` does, for HTTP has no such question; raises ConnectionError, and does not wait."""
        if not self.alive(conn):
            raise ConnectionError(f"{self.target} has hung up, or sent something that nobody asked for")

    def reset(self, conn: _Connection, timeout: float) -> None:
        """Read what nobody wanted of the last reply; raises ConnectionError."""
        if not conn.finish():
            raise ConnectionError(f"the reply from {self.target} did not end within bounds")

    def close(self, conn: _Connection) -> None:
        """Close the socket."""
        conn.close()

    def abandon(self, conn: _Connection) -> None:
        """Close the socket."""
        conn.close()

    def refused(self, error: BaseException) -> bool:
        """Return False: nothing is connected to yet."""
        return False


class _Pool(Pool[_Connection]):
    """A pool whose connections are made by who wants them, and that may be dropped without being closed."""

    _droppable = True

    def _begin(self) -> None:
        self._making = threading.local()
        super()._begin()

    def _kick(self) -> None:
        # In the thread of one who has just joined the line, too. To make a connection takes less than to wake another.
        if getattr(self._making, "now", False):
            # One of its own steps; or an exception struck it once, and the keeper has to see to its work from then on.
            self._bell.ring()
            return
        self._making.now = True
        try:
            self._make_all()
        finally:
            self._making.now = False
        super()._kick()

    def _make_all(self) -> None:
        # Not in the `try`: CPython 3.13 forgets it when an exception strikes where the loop goes back.
        while self._opens_wanted() and (claim := self._step(self._core.next_open)) is not None:
            try:
                conn = self._connector.open(0.0)
            except Exception as error:
                self._step(self._core.open_failed, claim, error, False, random())
            else:
                self._install(claim, conn)

    def note(self, conn: _Connection) -> None:
        """Have the socket watched that a connection on loan has now, or none if it has none any more."""
        self._watch_anew(_entry_of(conn))
        conn.noted = conn.sock

    def condemn(self, conn: _Connection) -> None:
        """Have a connection on loan closed when it comes back, since enough are kept."""
        self._step(self._core.condemn, _entry_of(conn), Reason.SURPLUS)

    @property
    def unlent(self) -> int:
        """How many are idle, or will be in a moment."""
        return len(self._core.idle) + self._core._n_tending

    def _scuttle(self) -> None:
        super()._scuttle()
        for entry in list(self._core.entries):
            if entry.state is State.LENT:
                self._unwatch(entry)
                with suppress(Exception):
                    self._connector.abandon(entry.conn)


def _entry_of(conn: _Connection) -> Entry[_Connection]:
    assert conn.loan is not None and conn.loan._claim is not None
    return conn.loan._claim.entry


class Options(TypedDict):
    """What a pool takes besides what urllib3's does; `HTTPConnectionPool` tells what each means."""

    pool_timeout: float | None
    max_idle: float
    max_lifetime: float
    budget: Budget | None


def _expect_waiting(pool_timeout: float | None, block: bool, budget: Budget | None) -> None:
    if pool_timeout is not None and not block and budget is None:
        raise ValueError("pool_timeout goes with block=True or a budget: without them nobody waits")


class HTTPConnectionPool(urllib3.HTTPConnectionPool):
    """urllib3's pool for one host, on millpond's.

    Takes what `urllib3.HTTPConnectionPool` takes, and means the same by it. `block=True`: no more than `maxsize`
    connections at a time, for which callers wait in line. `block=False`: any number, of which `maxsize` are kept.

    `pool_timeout` is how many seconds a request waits in line (default None: as long as it takes) unless it says so
    itself; then it raises `EmptyPoolError`. `max_idle` (default 50 s) and `max_lifetime` (default 3,600 s) are how
    long a connection may lie idle, and how old it may become; if a server says that it waits less (`Keep-Alive:
    timeout=5`), that is heeded. `budget` is a limit for several pools together; when it is used up, callers wait in
    line also without `block`.

    `pool` is the `millpond.Pool`, for its `stats()` and `leases()`; None when closed.

    A response that is not read at once holds its connection until it has been read, closed or dropped.
    `release_conn()` before that has the rest read beside the line, if it is at most 64 KiB and there within 0.25 s;
    else the connection is closed.
    """

    pool: Pool[_Connection] | None  # type: ignore[assignment]

    def __init__(
        self,
        host: str,
        port: int | None = None,
        timeout: urllib3.Timeout | float | _TYPE_DEFAULT | None = _DEFAULT_TIMEOUT,
        maxsize: int = 1,
        block: bool = False,
        headers: Mapping[str, str] | None = None,
        retries: urllib3.Retry | bool | int | None = None,
        _proxy: Url | None = None,
        _proxy_headers: Mapping[str, str] | None = None,
        *,
        pool_timeout: float | None = None,
        max_idle: float = MAX_IDLE,
        max_lifetime: float = MAX_LIFETIME,
        budget: Budget | None = None,
        **conn_kw: Any,  # noqa: ANN401
    ) -> None:
        # No places in urllib3's own queue, which is not used.
        super().__init__(host, port, timeout, 0, block, headers, retries, _proxy, _proxy_headers, **conn_kw)
        _expect_waiting(pool_timeout, block, budget)
        # Of the instance: the class's own is declared as a variable of classes.
        vars(self)["ConnectionCls"] = _owning(self.ConnectionCls)
        self._kept: float = maxsize or math.inf
        connector = _Connector(self)
        self.pool = _Pool(
            connector,
            name=connector.target,
            max_size=maxsize if block else PORTS,
            timeout=math.inf if pool_timeout is None else pool_timeout,
            max_idle=max_idle,
            max_lifetime=max_lifetime,
            check_after=math.inf,  # `_get_conn` looks every time
            budget=budget,
        )

    def _get_conn(self, timeout: float | None = None) -> BaseHTTPConnection:
        conn = self._borrow(timeout)
        try:
            if conn.sock is not None and not conn.usable:
                log.debug("Resetting dropped connection: %s", self.host)
                conn.disconnect()
            return cast("BaseHTTPConnection", conn)
        except BaseException:
            # The exception keeps this frame.
            conn.close()
            raise

    def _borrow(self, timeout: float | None) -> _Connection:
        pool = self.pool
        if pool is None:
            raise ClosedPoolError(self, "Pool is closed.")
        try:
            try:
                return pool._lend(timeout)
            except PoolTimeout:
                # No time to wait is time enough to make a connection object, if there is room for one.
                if timeout is None or timeout >= MAKING or pool.stats().lent >= pool.settings.max_size:
                    raise
            return pool._lend(MAKING)
        except PoolClosed as error:
            raise ClosedPoolError(self, "Pool is closed.") from error
        except PoolTimeout as error:
            raise EmptyPoolError(
                self, "Pool is empty and a new connection can't be opened due to blocking mode."
            ) from error
        except ConnectFailed as error:
            # Nothing was connected to: the arguments do not suit the connection's class.
            raise error.__cause__ or error from None

    def _put_conn(self, conn: BaseHTTPConnection | None) -> None:
        # None is what `urlopen` gives for one that it has closed, and that has given its place back itself.
        if isinstance(conn, _Connection) and (loan := conn.loan) is not None:
            try:
                self._take_back(conn, cast("_Pool", loan._pool))
            except BaseException:
                # The exception keeps this frame, and `urlopen`'s. But the connection may be another's already.
                if conn.loan is loan:
                    conn.close()
                raise
        elif conn is not None:
            conn.close()

    def _take_back(self, conn: _Connection, lender: _Pool) -> None:
        response = conn.response()
        if response is not None:
            if response._connection is None and not response.isclosed():
                # `urlopen(preload_content=False, release_conn=True)`: it may yet be read.
                response._connection = conn
                return
            conn.part(response)
        conn.lie_down()
        if conn.sock is not conn.noted:
            lender.note(conn)
        size = 0 if self.block else lender.unlent
        if size >= self._kept:
            log.warning("Connection pool is full, discarding connection: %s. Connection pool size: %s", self.host, size)
            lender.condemn(conn)
        lender._take_back(conn)

    def close(self) -> None:
        """Close the pool: callers in line get `ClosedPoolError` at once, connections on loan are closed afterwards."""
        pool = self.pool
        self.pool = None  # pyright: ignore[reportIncompatibleVariableOverride]
        if pool is not None:
            pool._close_down()


class HTTPSConnectionPool(  # pyright: ignore[reportIncompatibleVariableOverride]
    HTTPConnectionPool, urllib3.HTTPSConnectionPool
):
    """urllib3's pool for one host, with TLS, on millpond's; see `HTTPConnectionPool`.

    Takes what `urllib3.HTTPSConnectionPool` takes besides; certificates are verified unless told otherwise.
    """


@cache
def _lending(kind: type[Any]) -> type[HTTPConnectionPool]:
    """Return millpond's counterpart of a kind of pool."""
    own = HTTPSConnectionPool if issubclass(kind, urllib3.HTTPSConnectionPool) else HTTPConnectionPool
    return own if issubclass(own, kind) else type(kind.__name__, (own, kind), {})


class _Managed(urllib3.PoolManager):
    """What both managers have in common."""

    pool_classes_by_scheme: dict[str, type[urllib3.HTTPConnectionPool]]
    _options: Options

    def _manage(self, options: Options) -> None:
        """Make pools that are millpond's instead of those that it would make."""
        _expect_waiting(options["pool_timeout"], self.connection_pool_kw.get("block", False), options["budget"])
        self._options = options
        kinds: dict[str, Any] = self.pool_classes_by_scheme
        self.pool_classes_by_scheme = {scheme: _lending(kind) for scheme, kind in kinds.items()}

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> urllib3.HTTPConnectionPool:
        context = self.connection_pool_kw if request_context is None else request_context
        return super()._new_pool(scheme, host, port, {**context, **self._options})

    def _pools(self) -> list[Any]:
        return [self.pools[key] for key in self.pools.keys()]  # noqa: SIM118 it cannot be iterated over

    def clear(self) -> None:
        """Close all pools. Responses that are being read are not affected; callers in line get `ClosedPoolError`."""
        with self.pools.lock:
            pools = self._pools()
            super().clear()
        for pool in pools:
            pool.close()


class PoolManager(_Managed):
    """urllib3's manager of pools for any number of hosts, each on millpond's.

    Takes what `urllib3.PoolManager` takes, and means the same by it; a pool that has to make room for another
    (`num_pools`) finishes what it is at. `pool_timeout`, `max_idle`, `max_lifetime` and `budget` are those of
    `HTTPConnectionPool`, for each host: `maxsize` limits one host, `budget` all hosts together.
    """

    def __init__(
        self,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        *,
        pool_timeout: float | None = None,
        max_idle: float = MAX_IDLE,
        max_lifetime: float = MAX_LIFETIME,
        budget: Budget | None = None,
        **connection_pool_kw: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(num_pools, headers, **connection_pool_kw)
        self._manage(Options(pool_timeout=pool_timeout, max_idle=max_idle, max_lifetime=max_lifetime, budget=budget))


class ProxyManager(_Managed, urllib3.ProxyManager):
    """urllib3's manager of pools for what is reached by way of a proxy, each on millpond's; see `PoolManager`.

    Takes what `urllib3.ProxyManager` takes, and means the same by it: HTTP goes through one pool of connections to
    the proxy, HTTPS through a pool of CONNECT tunnels for each host.
    """

    def __init__(
        self,
        proxy_url: str,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        proxy_headers: Mapping[str, str] | None = None,
        proxy_ssl_context: ssl.SSLContext | None = None,
        use_forwarding_for_https: bool = False,
        proxy_assert_hostname: str | Literal[False] | None = None,
        proxy_assert_fingerprint: str | None = None,
        *,
        pool_timeout: float | None = None,
        max_idle: float = MAX_IDLE,
        max_lifetime: float = MAX_LIFETIME,
        budget: Budget | None = None,
        **connection_pool_kw: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(
            proxy_url,
            num_pools,
            headers,
            proxy_headers,
            proxy_ssl_context,
            use_forwarding_for_https,
            proxy_assert_hostname,
            proxy_assert_fingerprint,
            **connection_pool_kw,
        )
        self._manage(Options(pool_timeout=pool_timeout, max_idle=max_idle, max_lifetime=max_lifetime, budget=budget))


def through_socks(proxy_url: str, options: Options, **manager_kw: Any) -> urllib3.PoolManager:  # noqa: ANN401
    """Make a manager of pools for what is reached by way of a SOCKS proxy. Raises `ImportError` without PySocks."""
    from urllib3.contrib.socks import SOCKSProxyManager

    manager: Any = type(SOCKSProxyManager.__name__, (_Managed, SOCKSProxyManager), {})(proxy_url, **manager_kw)
    manager._manage(options)
    return cast("urllib3.PoolManager", manager)
