"""urllib3's connections, which own their loans."""

from __future__ import annotations

import math
import os
import re
import stat
import weakref
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from urllib3.util.wait import wait_for_read

from millpond._core.lease import Lease
from millpond.connectors._derived import derived
from millpond.errors import Misuse
from millpond.urllib3._replies import Reply, Rest, nobody, proving

if TYPE_CHECKING:
    import urllib3
    from urllib3.connection import HTTPConnection

    from millpond.urllib3._lending import Lender
else:
    # Not urllib3's class: whoever replaces it for a while, as recorders do, might have done so when this is imported.
    HTTPConnection = object

__all__ = [
    "LentConnection",
    "descriptor_of",
    "disconnect",
    "finish",
    "is_idle",
    "is_silent",
    "is_usable",
    "lie_down",
    "owning",
    "part",
    "reply_of",
]

PATIENCE: Final = 0.25
"""Seconds that the rest of a body is waited for. A new connection, with TLS, does not take longer across an ocean."""
TIMEOUT: Final = re.compile(r"\btimeout=(\d+)", re.IGNORECASE)
"""In a Keep-Alive header, the seconds that the server waits for the next request."""
MARGIN: Final = 1.0
"""Seconds before that, from which on no request is sent any more: it might arrive too late."""
UNKNOWABLE: Final = (AttributeError, TypeError, ValueError, OSError)
"""What comes of a look at a socket that is none, or not quite one."""


class Usage:
    """What the pool notes of a connection. It is kept apart, for the connection's own class may use any name."""

    kind: Any
    """The pool's `ConnectionCls` when it was made."""
    held: Lease[LentConnection] | None
    """Its loan until somebody begins to give it back: of two threads that do, one finds it."""
    spent: bool = False
    """Whether it was closed while on loan. It is not lent again: whoever closed it may close it once more."""
    answering: bool = False
    """Whether http.client awaits a reply. If the server is going to close the connection, it is closed right after the
    head; but the response still reads from it, and so keeps its place."""
    answered: bool = False
    """Whether there was a response since it was lent."""
    noted: Any = None
    """The socket that the pool watches."""
    kept: bool = False
    """Whether it was ever given back connected."""
    response: Callable[[], urllib3.HTTPResponse | None] = staticmethod(nobody)
    """The response that reads from it, if it lives and was not read at once."""
    rest: Rest | None = None
    """What is left of a reply that nobody will read, unless it has come and was clean."""
    silence: float | None = None
    """How many seconds the server said it would wait for the next request."""
    fresh_until: float = math.inf


class LentConnection(HTTPConnection):
    """In front of a class of urllib3's connections: whoever drops or closes one gives its place back."""

    loan: Lease[LentConnection] | None = None
    _millpond: Usage

    @property
    def response_class(self) -> Any:  # noqa: ANN401
        """What http.client makes replies of: that of the instance or of its class, with `Reply` in front of it."""
        own = self.__dict__.get("response_class")
        return proving(super().response_class if own is None else own)

    @response_class.setter
    def response_class(self, cls: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]  # noqa: ANN401
        vars(self)["response_class"] = cls

    def connect(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Connect, and have the pool watch the socket."""
        super().connect(*args, **kwargs)
        lender = _lender(self)
        if lender is not None:
            lender.note(self)

    def getresponse(self, *args: Any, **kwargs: Any) -> urllib3.HTTPResponse:  # type: ignore[override]  # noqa: ANN401
        """Get the response, which from now on holds the connection unless it has been read."""
        usage = self._millpond
        usage.answering = True
        try:
            response = super().getresponse(*args, **kwargs)
        finally:
            usage.answering = False
        usage.answered = True
        reply = getattr(response, "_original_response", None)
        if isinstance(reply, Reply) and not reply.isclosed():
            usage.response = reply.response = weakref.ref(response)
            reply.note_readers()
        else:
            usage.response = nobody
        headers = getattr(response, "headers", None)
        said = None if headers is None else headers.get("keep-alive")
        found = None if said is None else TIMEOUT.search(said)
        usage.silence = None if found is None else float(found[1])
        return response

    def close(self) -> None:
        """Close the connection, and give its place back."""
        usage = self._millpond
        try:
            super().close()
            usage.rest = None
        finally:
            lender = _lender(self)
            if lender is not None and not usage.answering:
                usage.spent = True
                # In a finaliser that interrupted the pool, or in two threads at once: the loan ends all the same.
                with suppress(Misuse):
                    lender._take_back(self)

    def __del__(self) -> None:
        # The loan dies with it, and the pool learns of that.
        sock = vars(self).get("sock")
        try:
            if sock is not None:
                sock.close()
        finally:
            inherited = getattr(super(), "__del__", None)
            if inherited is not None:
                inherited()


def _lender(conn: LentConnection) -> Lender | None:
    """Return the pool that it is on loan from."""
    return None if conn.loan is None else cast("Lender", conn.loan._pool)


def reply_of(conn: LentConnection) -> Any:  # noqa: ANN401
    """Return the last reply, if the connection is open after it. One that is no `Reply` proves nothing."""
    return getattr(conn, "_HTTPConnection__response", None)


def is_idle(conn: LentConnection) -> bool:
    """Tell whether no request is under way."""
    return getattr(conn, "_HTTPConnection__state", None) == "Idle"


def is_silent(conn: LentConnection) -> bool:
    """Tell whether it is connected and nothing, not even a hang-up, waits to be read."""
    try:
        return conn.is_connected
    except UNKNOWABLE:
        return False


def is_usable(conn: LentConnection) -> bool:
    """Tell whether a request may be sent on it, if it is connected."""
    # The watcher knows of hang-ups, a moment later; and a server may have sent what nobody asked for.
    return monotonic() < conn._millpond.fresh_until and is_silent(conn)


def descriptor_of(conn: LentConnection) -> int | None:
    """Return the descriptor of its socket; None if it has none, or one of something else, as recorders' stubs do."""
    try:
        number: int = conn.sock.fileno()
        return number if stat.S_ISSOCK(os.fstat(number).st_mode) else None
    except UNKNOWABLE:
        return None


def disconnect(conn: LentConnection) -> None:
    """Close the connection and keep its place."""
    super(LentConnection, conn).close()


def lie_down(conn: LentConnection) -> None:
    """Note until when the server is going to wait; less a margin, for the request has to get there."""
    usage = conn._millpond
    silence = usage.silence
    usage.kept = usage.kept or conn.sock is not None
    usage.fresh_until = math.inf if silence is None else monotonic() + silence - min(MARGIN, silence / 4)


def part(conn: LentConnection, response: urllib3.HTTPResponse) -> None:
    """Part a connection from a response that may not have been read to its end."""
    # First of all: another thread that reads, and is told that the body is cut, closes what it finds there.
    response._connection = None
    reply = response._original_response
    # One after which the server closes has the socket for itself: http.client has let go of it.
    if isinstance(reply, Reply) and reply is reply_of(conn) and not reply.isclosed():
        rest = reply.part(response.chunk_left)
        if rest is not None:
            # Else http.client closes the reply with the connection, and awaits its end before the next one.
            conn._HTTPConnection__response = None  # type: ignore[attr-defined]
            conn._millpond.rest = None if rest.clean else rest


def finish(conn: LentConnection) -> bool:
    """Read what is left of a reply, within LEFTOVER and PATIENCE; tell whether it has ended as it should."""
    rest = conn._millpond.rest
    assert rest is not None
    deadline = monotonic() + PATIENCE
    while rest.hopeful:
        left = deadline - monotonic()
        if left <= 0 or not wait_for_read(conn.sock, left):
            break
        rest.take()
    if not rest.clean:
        return False
    conn._millpond.rest = None
    return True


def owning(conn: Any, kind: Any) -> LentConnection:  # noqa: ANN401
    """Have a connection own its loan: it becomes one of a class that does, and that goes by the same name.

    `kind` is the pool's `ConnectionCls`. Raises `TypeError` if it is no connection of http.client's, or cannot.
    """
    cls = type(conn)
    if not (hasattr(conn, "_HTTPConnection__state") and callable(getattr(cls, "getresponse", None))):
        raise TypeError(f"{cls.__qualname__} cannot own a loan: it is no connection of http.client's")
    if "_h2_conn" in vars(conn):
        raise TypeError(
            "urllib3's HTTP/2, an experiment, does not say when a connection may be used again: call "
            "urllib3.http2.extract_from_urllib3(), or have millpond.httpx speak HTTP/2"
        )
    # Stubs hand on what is set on them to the connection behind them; this is not for that.
    keep = object.__setattr__
    if not issubclass(cls, LentConnection):
        members = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        made = derived(cls, "_millpond_owning", lambda: type(cls.__name__, (LentConnection, cls), members))
        keep(conn, "__class__", made)
    usage = Usage()
    usage.kind = kind
    keep(conn, "_millpond", usage)
    return cast("LentConnection", conn)
