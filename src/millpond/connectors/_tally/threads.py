"""The record of a connection for threads."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis import exceptions
from redis._parsers import _HiredisParser
from redis._parsers.base import _RESPBase

from millpond import _watcher
from millpond.connectors._tally.record import PLAIN, Tally, is_an_end, stray

__all__ = ["SyncTally"]


class SyncTally(Tally):
    """The record of a connection for threads."""

    _deadline: float | None = None
    """When the pool gives up to open it, while it opens it."""
    _place: str | None = None
    """Where it leads, in redis-py's words for errors."""

    if TYPE_CHECKING:
        socket_timeout: float | None
        socket_connect_timeout: float | None
        _sock: socket.socket | None
        _command_packer: Any

        def check_health(self) -> None: ...

    def connect_check_health(self, *args: object, **kwargs: object) -> None:
        """Connect and log in, unless that is done."""
        if self._sock:
            return
        self._begin()
        self._place = super()._host_error()  # type: ignore[misc]
        super().connect_check_health(*args, **kwargs)  # type: ignore[misc]
        self._find_looks()
        self._settle_in()

    def _find_looks(self) -> None:
        """Find the quickest ways to look at what has come."""
        self.__dict__.pop("_unread", None)
        self.__dict__.pop("_look", None)
        sock, parser = self._sock, self._parser
        if not isinstance(sock, socket.socket):
            return  # it is somebody's own; what there is to see, its connection tells
        with suppress(AttributeError, ValueError):  # another thread has closed it meanwhile
            if self._has(_HiredisParser):
                self._unread = parser._reader.has_data
            elif self._has(_RESPBase):
                self._unread = parser._buffer.unread_bytes
            if not _watcher.unavailable():  # under gevent, a poll is no quick look
                look = _watcher.look_at(sock, _watcher.READABLE)
                self._look = _look_at_tls(sock, look) if isinstance(sock, ssl.SSLSocket) else look

    if not TYPE_CHECKING:

        def _unread(self) -> object:
            return bool(self._sock) and self._can_read()

        def _look(self, timeout: int) -> object:
            return True

    def _has(self, parser: type) -> bool:
        """Whether its parser is of that class. What the parser has at the moment, another thread may take away."""
        return isinstance(self._parser, parser)

    def _can_read(self) -> bool:
        """Ask redis-py's way."""
        try:
            return bool(super().can_read(0))  # type: ignore[misc]
        except Exception as error:
            if not is_an_end(error):
                raise
            return True

    def is_expected(self) -> bool:
        """Tell whether what has come is no more than a server may say unasked."""
        sock: object = self._sock
        if sock is None:
            return True  # redis-py connects anew
        try:
            if isinstance(sock, socket.socket):
                # It may be nothing: a record of TLS (a session ticket, a new key), or no more than a look without poll.
                self._take_in()
            return not self._unread()
        except Exception as error:
            # What the parser had, another thread may have taken away.
            closed = isinstance(error, AttributeError) and self._sock is not sock
            if not (closed or is_an_end(error)):
                raise
            return False

    def _take_in(self) -> None:
        """Read what has come, and hand on the push messages."""
        parser, pushes = self._parser, self._takes_pushes()
        hiredis = self._has(_HiredisParser)
        while parser.read_from_socket(timeout=0, raise_on_timeout=False) if hiredis else parser.can_read(0):
            if not pushes:
                break
            self.hand_on_pushes()

    def is_open(self) -> bool:
        """Tell whether there is a socket."""
        return self._sock is not None

    def limit(self, seconds: float | None) -> None:
        """Have the socket wait no longer than that; None is its own limit."""
        if isinstance(self._sock, socket.socket):
            self._sock.settimeout(self.socket_timeout if seconds is None else seconds)

    def send_command(self, *args: object, **kwargs: object) -> None:
        """Pack a command and send it."""
        packed = self._command_packer.pack(*args)
        if not self._sock or self.health_check_interval:
            self._get_ready(kwargs.get("check_health", True))
        self._asked += 1
        if type(args[0]) not in PLAIN or args[0] not in self._known:
            self._heed(args[0], packed)
        self._send(packed, False)

    def send_packed_command(self, command: str | bytes | Iterable[bytes], check_health: bool = True) -> None:
        """Send what somebody has packed."""
        self._get_ready(check_health)
        self._send(self._count(command), False)

    def read_response(self, *args: object, **kwargs: object) -> object:
        """Read a reply."""
        response: object
        try:
            if not kwargs:
                response = self._receive(*args)
                self._answered += 1
                return response
            response = self._receive(*args, **kwargs)
        except exceptions.RedisError as error:
            self._hear(error)
            raise
        # What somebody gets who waits for push messages may be one.
        if not kwargs.get("push_request"):
            self._answered += 1
        return response

    def disconnect(self, *args: object, **kwargs: object) -> None:
        """Close the socket."""
        self._end(self._sock)
        super().disconnect(*args, **kwargs)  # type: ignore[misc]

    def hand_on_pushes(self) -> None:
        """Give the push messages that have been read to their handlers; raise if something else was read."""
        parser = self._parser
        while self._unread():
            if self._has(_HiredisParser):
                message = parser._reader.gets()
                if not isinstance(message, parser._hiredis_PushNotificationType or ()):
                    raise stray()
                parser.handle_push_response(message)
            elif not self._has(_RESPBase):
                raise stray()
            else:
                buffer = parser._buffer._buffer
                if buffer.getvalue()[buffer.tell() :][:1] != b">":
                    raise stray()
                parser.read_response(push_request=True, timeout=0)

    def _get_ready(self, check_health: object) -> None:
        """Do first what redis-py does when it sends: a command is counted on the socket that it goes to."""
        if not self._sock:
            self.connect_check_health(check_health=False)
        if check_health and self.health_check_interval:
            self.check_health()

    def _host_error(self) -> object:
        # redis-py words it anew for each reply that it reads.
        return self._place or super()._host_error()  # type: ignore[misc]

    def _connect(self) -> object:
        deadline = self._deadline
        if deadline is None:
            return super()._connect()  # type: ignore[misc]
        own = self.socket_connect_timeout, self.socket_timeout
        left = max(0.001, deadline - monotonic())
        self.socket_connect_timeout, self.socket_timeout = (left if one is None else min(one, left) for one in own)
        try:
            # The new socket keeps this limit through the login.
            return super()._connect()  # type: ignore[misc]
        finally:
            self.socket_connect_timeout, self.socket_timeout = own


def _look_at_tls(sock: ssl.SSLSocket, poll: Callable[[int], object]) -> Callable[[int], object]:
    """Return a look at what TLS has decrypted and nobody has read, too."""
    return lambda timeout: sock.pending() or poll(timeout)
