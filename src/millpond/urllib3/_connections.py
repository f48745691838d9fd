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

__all__ = ["LentConnection", "owning"]

PATIENCE: Final = 0.25
"""Seconds that the rest of a body is waited for. A new connection, with TLS, does not take longer across an ocean."""
TIMEOUT: Final = re.compile(r"\btimeout=(\d+)", re.IGNORECASE)
"""In a Keep-Alive header, the seconds that the server waits for the next request."""
MARGIN: Final = 1.0
"""Seconds before that, from which on no request is sent any more: it might arrive too late."""


class LentConnection(HTTPConnection):
    """In front of a class of urllib3's connections: whoever drops or closes one gives its place back."""

    loan: Lease[LentConnection] | None = None
    kind: Any = None
    """The pool's `ConnectionCls` when it was made."""
    spent: bool = False
    """Whether it was closed while on loan. It is not lent again: whoever closed it may close it once more."""
    answering: bool = False
    """Whether http.client awaits a reply. If the server is going to close the connection, it is closed right after the
    head; but the response still reads from it, and so keeps its place."""
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

    @property
    def reply(self) -> Any:  # noqa: ANN401
        """The last reply, if the connection is open after it. One that is no `Reply` proves nothing."""
        return getattr(self, "_HTTPConnection__response", None)

    @property
    def response_class(self) -> Any:  # noqa: ANN401
        """What http.client makes replies of: that of the instance or of its class, with `Reply` in front of it."""
        return proving(vars(self).get("response_class") or super().response_class)

    @response_class.setter
    def response_class(self, cls: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]  # noqa: ANN401
        vars(self)["response_class"] = cls

    @property
    def lender(self) -> Lender | None:
        """The pool that it is on loan from."""
        return None if self.loan is None else cast("Lender", self.loan._pool)

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return getattr(self, "_HTTPConnection__state", None) == "Idle"

    @property
    def descriptor(self) -> int | None:
        """The descriptor of its socket; None if it has none, or one of something else, as recorders' stubs do."""
        try:
            number: int = self.sock.fileno()
            return number if stat.S_ISSOCK(os.fstat(number).st_mode) else None
        except (AttributeError, TypeError, ValueError, OSError):
            return None

    @property
    def silent(self) -> bool:
        """Whether it is connected and nothing, not even a hang-up, waits to be read."""
        try:
            return self.is_connected
        except (AttributeError, TypeError, ValueError, OSError):
            return False  # it cannot be looked at

    @property
    def usable(self) -> bool:
        """Whether a request may be sent on it, if it is connected."""
        # The watcher knows of hang-ups, a moment later; and a server may have sent what nobody asked for.
        return monotonic() < self.fresh_until and self.silent

    def connect(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Connect, and have the pool watch the socket."""
        super().connect(*args, **kwargs)
        lender = self.lender
        if lender is not None:
            lender.note(self)

    def getresponse(self, *args: Any, **kwargs: Any) -> urllib3.HTTPResponse:  # type: ignore[override]  # noqa: ANN401
        """Get the response, which from now on holds the connection unless it has been read."""
        self.answering = True
        try:
            response = super().getresponse(*args, **kwargs)
        finally:
            self.answering = False
        reply = getattr(response, "_original_response", None)
        if isinstance(reply, Reply) and not reply.isclosed():
            self.response = reply.response = weakref.ref(response)
        else:
            self.response = nobody
        headers = getattr(response, "headers", None)
        said = None if headers is None else headers.get("keep-alive")
        found = None if said is None else TIMEOUT.search(said)
        self.silence = None if found is None else float(found[1])
        return response

    def lie_down(self) -> None:
        """Note until when the server is going to wait; less a margin, for the request has to get there."""
        silence = self.silence
        self.kept = self.kept or self.sock is not None
        self.fresh_until = math.inf if silence is None else monotonic() + silence - min(MARGIN, silence / 4)

    def close(self) -> None:
        """Close the connection, and give its place back."""
        try:
            super().close()
            self.rest = None
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
        """Part from a response that has not been read to its end."""
        reply = response._original_response
        if isinstance(reply, Reply) and not reply.isclosed():
            mine = reply is self.reply
            rest = reply.part(response.chunk_left)
            if mine:
                # Else http.client closes the reply with the connection, and awaits its end before the next one.
                self._HTTPConnection__response = None
                self.rest = None if rest.clean else rest
        response._connection = None

    def finish(self) -> bool:
        """Read what is left of a reply, within LEFTOVER and PATIENCE; tell whether it has ended as it should."""
        rest = self.rest
        assert rest is not None
        deadline = monotonic() + PATIENCE
        while rest.hopeful:
            left = deadline - monotonic()
            if left <= 0 or not wait_for_read(self.sock, left):
                break
            rest.take()
        if not rest.clean:
            return False
        self.rest = None
        return True

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


def owning(conn: Any) -> LentConnection:  # noqa: ANN401
    """Have a connection own its loan: it becomes one of a class that does, and that goes by the same name.

    Raises `TypeError` if it is none of http.client's, or none that can.
    """
    cls = type(conn)
    if not hasattr(conn, "_HTTPConnection__state"):
        raise TypeError(f"{cls.__qualname__} cannot own a loan: it is no connection of http.client's")
    if hasattr(conn, "_h2_conn"):
        raise TypeError(
            "urllib3's HTTP/2, an experiment, does not say when a connection may be used again: call "
            "urllib3.http2.extract_from_urllib3(), or have millpond.httpx speak HTTP/2"
        )
    if not issubclass(cls, LentConnection):
        members = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        made = derived(cls, "_millpond_owning", lambda: type(cls.__name__, (LentConnection, cls), members))
        # Stubs hand on what is set on them to the connection behind them; this is not for that.
        object.__setattr__(conn, "__class__", made)
    return cast("LentConnection", conn)
