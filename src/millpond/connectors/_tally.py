"""What a connection of redis-py has been asked, what it has answered, and what that did to its session.

redis-py keeps no such record; `tallied` puts one in front of its classes. It counts the commands that are sent over a
socket and the replies that are read to their end, and heeds the commands that change the session. A command is counted
before it is sent and a reply after it was read, so whoever is interrupted in between leaves the counts unequal.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from redis import exceptions
from redis.asyncio.connection import AbstractConnection as AsyncConnection
from redis.connection import AbstractConnection as Connection
from redis.connection import HiredisRespSerializer, PythonRespSerializer

from millpond import _watcher
from millpond.connectors.factory import cut_number

__all__ = ["AsyncTally", "SyncTally", "Tally", "stray", "tallied"]

# What a session can be in.
WATCHING: Final = 1
IN_MULTI: Final = 2
ASKING: Final = 4
"""The next command may ask for a slot that the server is importing."""
SPOILT: Final = 8
"""Something was changed that only a new session puts right, or there is none."""
NEW: Final = 16
"""The pool does not know the socket yet."""

OPENS: Final = {b"WATCH": WATCHING, b"MULTI": IN_MULTI, b"ASKING": ASKING}
ENDS: Final = {b"EXEC": WATCHING | IN_MULTI, b"DISCARD": WATCHING | IN_MULTI, b"UNWATCH": WATCHING}
SPOILS: Final = frozenset(
    b"AUTH HELLO RESET QUIT SELECT MONITOR SYNC PSYNC REPLCONF READONLY READWRITE "
    b"SUBSCRIBE PSUBSCRIBE SSUBSCRIBE UNSUBSCRIBE PUNSUBSCRIBE SUNSUBSCRIBE".split()
)
SPARES: Final = {
    b"CLIENT": frozenset(b"GETNAME GETREDIR HELP ID INFO KILL LIST PAUSE TRACKINGINFO UNBLOCK UNPAUSE".split()),
    b"SCRIPT": frozenset(b"EXISTS FLUSH HELP KILL LOAD SHOW".split()),
}
"""Of these, only the subcommands that are named leave the session as it is."""

MOST_NAMES: Final = 4096
_harmless: Final[set[str | bytes]] = set()
"""Names of commands, as somebody wrote them, that do nothing to a session: the quickest there is to look at.

Whatever is found here was judged by what was sent. Only what is `PLAIN`, and one word, is ever put here or looked for.
"""
PACKERS: Final = (HiredisRespSerializer, PythonRespSerializer)
PLAIN: Final[frozenset[type]] = frozenset({str, bytes})
"""What is sent as it is written. What is derived from it may be sent as something else, as members of enumerations."""

Command = Sequence[Any]
"""The name of a command, which may be of two words, and its arguments, as redis-py takes them."""


class Tally:
    """The record of one connection: what threads and tasks have in common."""

    loan: Any = None
    """The loan, if the connection owns it (see `Pool._lend`)."""

    _asked = 0
    """How many commands have been sent over this socket, or are about to be."""
    _answered = 0
    """How many replies to them have been read to their end."""
    _session = SPOILT
    _asking_at = 0
    """Which command was ASKING."""
    _ending_at = 0
    """Which command was to end a transaction or a WATCH."""
    _packed: tuple[list[object], int, list[tuple[int, object, Sequence[bytes]]]] | None = None
    """What `pack_commands` has made, of how many commands, and which of them are to be judged: the number, the name as
    it was written, and the first words that are sent."""
    _known: set[str | bytes] = _harmless
    """The names of which it is known that they are harmless as this connection packs them."""
    _token: object = None
    """What it was authenticated with last, where tokens are rotated."""
    _unread: Callable[[], object]
    """Tells whether something has been read from the socket that nobody has taken yet."""

    if TYPE_CHECKING:

        def pack_command(self, *args: object) -> list[bytes]: ...

        health_check_interval: float
        _connect_callbacks: list[object]
        _parser: Any
        _send: Callable[..., Any]
        """The connection's own `send_packed_command`."""
        _receive: Callable[..., Any]
        """The connection's own `read_response`."""

    def note_packer(self) -> None:
        """Note whether commands are packed as redis-py does it: a packer of one's own may send a name as another."""
        packer = getattr(self, "_command_packer", None)
        if packer is not None and type(packer) not in PACKERS:
            self._known = set()

    def mark_for_reconnect(self) -> None:
        """Have the connection closed when it comes back."""
        self._session |= SPOILT
        super().mark_for_reconnect()  # type: ignore[misc]

    def pack_commands(self, commands: Iterable[Command]) -> object:
        """Pack commands, and remember until they are sent what is to be noted of them."""
        given = [tuple(command) for command in commands]
        packed: list[object] = super().pack_commands(given)  # type: ignore[misc]
        known = self._known
        marked = [
            (number, command[0], next(unpacked(self.pack_command(*command[:2]))))
            for number, command in enumerate(given, 1)
            if type(command[0]) not in PLAIN or command[0] not in known
        ]
        self._packed = list(packed), len(given), marked
        return packed

    def _begin(self) -> None:
        """Note that a new socket is being connected: nothing is owed on it yet, and nobody logged in."""
        self._session = SPOILT
        self._asked = self._answered = 0

    def _settle_in(self) -> None:
        """Note that the login is over. What it did to the session is how every session begins."""
        # But a subscriber's callback has subscribed again.
        if not self._connect_callbacks:
            self._session = NEW

    def _count(self, packed: str | bytes | Iterable[bytes]) -> list[str | bytes]:
        """Count and heed commands that have been packed; return them in pieces."""
        pieces: list[str | bytes] = [packed] if isinstance(packed, (str, bytes)) else list(packed)
        remembered, self._packed = self._packed, None
        if remembered is not None and remembered[0] == pieces:
            _, count, marked = remembered
            before = self._asked
            for number, given, words in marked:
                self._asked = before + number
                self._judge(given, words)
            self._asked = before + count
        else:
            for words in unpacked(pieces):
                self._asked += 1
                if words[0] not in self._known:
                    self._judge(words[0], words)
        return pieces

    def _heed(self, given: object, packed: Iterable[object]) -> None:
        """Note what the command that was counted last does to the session; somebody wrote its name so."""
        for words in unpacked(packed):
            self._judge(given, words)

    def _judge(self, given: object, words: Sequence[bytes]) -> None:
        """Judge the command that was counted last by the first two words that are sent."""
        name, subcommand, *_ = *(word.upper() for word in words), b"", b""
        if name in OPENS:
            self._session |= OPENS[name]
            self._asking_at = self._asked
        elif name in ENDS:
            # An UNWATCH in a transaction is only queued, but then the transaction has to end as well.
            self._session &= ~ENDS[name]
            self._ending_at = self._asked
        elif name in SPARES:
            if subcommand not in SPARES[name]:
                self._session |= SPOILT
        elif name in SPOILS or not name:
            self._session |= SPOILT
        elif (type(given) is str or type(given) is bytes) and given.split() == [given]:
            # Of one that is empty, or of several words, something else is a part of the name, too.
            if len(self._known) >= MOST_NAMES:
                self._known.clear()
            self._known.add(given)

    def _hear(self, error: exceptions.ResponseError) -> None:
        """Count a reply that is an error."""
        self._answered += 1
        if self._answered == self._ending_at and not isinstance(error, exceptions.ExecAbortError):
            # What was to end has not ended.
            self._session |= SPOILT
        elif isinstance(error, exceptions.ReadOnlyError):
            # A primary that was demoted goes on answering. Its name may lead elsewhere by now (go-redis does the same).
            self._session |= SPOILT

    def _end(self, sock: socket.socket | None) -> None:
        """Note that the session ends, and tell the watcher that it is not the server who hangs up."""
        self._session |= SPOILT
        descriptor = None if sock is None else _watcher.identify(sock.fileno())
        if descriptor is not None:
            _watcher.forget(descriptor)

    def is_settled(self) -> bool:
        """Tell whether every command has been answered and the session is as it began."""
        used_up = ASKING if self._asking_at < self._asked else 0
        return self._asked == self._answered and not self._session & ~(NEW | used_up)

    def is_known(self) -> bool:
        """Tell whether the pool knows the socket."""
        return not self._session & NEW

    def note_socket(self) -> None:
        """Note that the pool knows the socket from now on."""
        self._session &= ~NEW

    def note_login(self, token: object) -> None:
        """Note that the pool has authenticated the connection anew, while nobody else had it."""
        self._token = token
        self._session = 0


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
        parser = self._parser
        reader: Any = getattr(parser, "_reader", None)
        # That is hiredis, if there is one.
        self._unread = parser._buffer.unread_bytes if reader is None else reader.has_data
        self._settle_in()

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

    def read_response(self, disable_decoding: bool = False, **kwargs: object) -> object:
        """Read a reply."""
        response: object
        try:
            if not kwargs:
                response = self._receive(disable_decoding)
                self._answered += 1
                return response
            response = self._receive(disable_decoding, **kwargs)
        except exceptions.ResponseError as error:
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
        reader: Any = getattr(parser, "_reader", None)
        while self._unread():
            if reader is not None:
                message = reader.gets()
                if not isinstance(message, parser._hiredis_PushNotificationType or ()):
                    raise stray()
                parser.handle_push_response(message)
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


class AsyncTally(Tally):
    """The record of a connection for tasks."""

    if TYPE_CHECKING:
        is_connected: bool
        _reader: asyncio.StreamReader | None
        _writer: Any
        _sends_plainly: bool
        """Whether `_send` is redis-py's."""
        _loop: asyncio.AbstractEventLoop

        async def check_health(self) -> None: ...

    async def connect_check_health(self, *args: object, **kwargs: object) -> None:
        """Connect and log in, unless that is done."""
        if self.is_connected:
            return
        self._begin()
        self._loop = asyncio.get_running_loop()
        await super().connect_check_health(*args, **kwargs)  # type: ignore[misc]
        stream: Any = self._reader
        incoming: bytearray = stream._buffer
        reader: Any = getattr(self._parser, "_reader", None)
        # That is hiredis. redis-py's own parser takes from the stream what belongs to a reply, and no more.
        self._unread = (lambda: incoming) if reader is None else (lambda: incoming or reader.has_data())
        self._settle_in()
        self._have_loss_told()

    def _have_loss_told(self) -> None:
        """Have the loop tell of a hang-up: it reads idle connections, too, and closes them before others can look."""
        writer = self._writer
        descriptor = _watcher.identify(writer.get_extra_info("socket").fileno())
        if descriptor is not None:
            protocol = writer.transport.get_protocol()
            # In front of its own method, without a circle of references.
            protocol.connection_lost = partial(_lost, ref(protocol), ref(self), ref(writer), descriptor)

    async def send_command(self, *args: object, **kwargs: object) -> None:
        """Pack a command and send it."""
        packed = self.pack_command(*args)
        if self._writer is None or self.health_check_interval:
            await self._get_ready(kwargs.get("check_health", True))
        self._asked += 1
        if type(args[0]) not in PLAIN or args[0] not in self._known:
            self._heed(args[0], packed)
        if self._sends_plainly:
            # As redis-py does, but without the task that its time limit is on Python 3.11, if nothing has to wait.
            writer: Any = self._writer
            if not writer.transport.is_closing():
                writer.writelines(packed)
                if not writer.transport.get_write_buffer_size():
                    return
                packed = []
        await self._hand_over(packed)

    async def send_packed_command(self, command: str | bytes | Iterable[bytes], check_health: bool = True) -> None:
        """Send what somebody has packed."""
        await self._get_ready(check_health)
        await self._hand_over(self._count(command))

    async def _hand_over(self, packed: Iterable[str | bytes]) -> None:
        """Have redis-py send what has been counted."""
        # Before CPython's issue 136234 was mended (3.13.9, 3.14.1), `writelines` has the loop wait for a transport that
        # is lost. Whoever then connects with a socket of the same number waits in vain.
        await self._send([] if self._writer.transport.is_closing() else packed, False)

    async def read_response(
        self, disable_decoding: bool = False, timeout: float | None = None, **kwargs: object
    ) -> object:
        """Read a reply."""
        try:
            response: object = await self._receive(disable_decoding, timeout, **kwargs)
        except exceptions.ResponseError as error:
            self._hear(error)
            raise
        # What somebody gets who waits for push messages may be one, and None may say that the time is over.
        if (timeout is None or response is not None) and not kwargs.get("push_request"):
            self._answered += 1
        return response

    async def disconnect(self, *args: object, **kwargs: object) -> None:
        """Close the socket."""
        self._end(None if self._writer is None else self._writer.get_extra_info("socket"))
        await super().disconnect(*args, **kwargs)  # type: ignore[misc]

    async def hand_on_pushes(self) -> None:
        """Give the push messages that have been read to their handlers; raise if something else was read."""
        parser = self._parser
        stream: Any = self._reader
        reader: Any = getattr(parser, "_reader", None)
        while self._unread():
            if reader is not None:
                if stream._buffer:
                    await parser.read_from_socket()
                message = reader.gets()
                if not isinstance(message, parser._hiredis_PushNotificationType or ()):
                    raise stray()
                await parser.handle_push_response(message)
            else:
                if stream._buffer[:1] != b">":
                    raise stray()
                await parser.read_response(push_request=True)

    async def _get_ready(self, check_health: object) -> None:
        """Do first what redis-py does when it sends: a command is counted on the socket that it goes to."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health and self.health_check_interval:
            await self.check_health()

    def _close(self) -> None:
        self._session |= SPOILT
        super()._close()  # type: ignore[misc]

    def let_go(self) -> None:
        """Free the socket, without a farewell, from any thread, also if the loop is closed already."""
        self._session |= SPOILT
        writer, self._writer, self._reader = self._writer, None, None
        self._parser.on_disconnect()
        if writer is None:
            return
        try:
            # The writer has to live until then, or it would complain.
            self._loop.call_soon_threadsafe(lambda: writer.transport.abort())
        except RuntimeError:
            # The loop is closed. The socket goes with its transport; the server need not wait for that.
            cut_number(writer.get_extra_info("socket").fileno())

    def __del__(self, *_: object) -> None:
        # Its borrower has dropped it. The pool tells of that.
        if getattr(self, "_writer", None) is not None:
            self.let_go()


def _lost(
    protocol: ref[asyncio.StreamReaderProtocol],
    conn: ref[AsyncTally],
    writer: ref[asyncio.StreamWriter],
    descriptor: _watcher.Descriptor,
    error: Exception | None,
) -> None:
    """Take note that the loop has lost a transport. If redis-py has closed it itself, that is nobody's concern."""
    former, owner = protocol(), conn()
    if former is not None:
        del former.connection_lost
        former.connection_lost(error)
    if owner is not None and owner._writer is not None and owner._writer is writer():
        _watcher.report(descriptor)


@cache
def tallied(cls: type) -> type:
    """Put the record in front of a class of connections."""
    if issubclass(cls, Tally):
        return cls
    for base, tally in ((Connection, SyncTally), (AsyncConnection, AsyncTally)):
        if issubclass(cls, base):
            members: dict[str, Any] = {
                "__module__": cls.__module__,
                "__doc__": cls.__doc__,
                # On the hot path `super()` would take a tenth of a microsecond.
                "_send": cls.send_packed_command,
                "_receive": cls.read_response,
                "_sends_plainly": cls.send_packed_command is base.send_packed_command,
            }
            if cls.pack_command is not base.pack_command:
                members["_known"] = set()
            if cls.send_command is not base.send_command:
                # It has its own way to send. What comes of it is counted when it is packed.
                members["send_command"] = cls.send_command
            return type(cls.__name__, (tally, cls), members)
    raise TypeError(f"{cls.__qualname__} is not a connection of redis-py")


def unpacked(pieces: Iterable[object]) -> Iterator[Sequence[bytes]]:
    """Return the commands in what somebody has packed: two words of each, and none of what cannot be read."""
    data = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces)  # type: ignore[call-overload]
    at = 0
    try:
        while at < len(data):
            words: list[bytes] = []
            count, at = _number(data, at, b"*")
            for _ in range(count):
                length, at = _number(data, at, b"$")
                if len(words) < 2:
                    words.append(data[at : at + length])
                at += length + 2
            if at > len(data) or not words:
                raise ValueError
            yield words
    except ValueError:
        yield (b"",)


def _number(data: bytes, at: int, kind: bytes) -> tuple[int, int]:
    """Return the number in the line that begins there, and where the next one begins."""
    end = data.index(b"\r\n", at)
    if data[at : at + 1] != kind:
        raise ValueError
    return int(data[at + 1 : end]), end + 2


def stray() -> Exception:
    """Return the error of a connection that cannot be lent again."""
    return exceptions.ConnectionError("an answer has come that nobody asked for")
