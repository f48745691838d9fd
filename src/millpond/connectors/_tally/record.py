"""The record of one connection: what it has been asked, what it has answered, and what that did to its session."""

from __future__ import annotations

import socket
from asyncio.trsock import TransportSocket
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions
from redis.connection import HiredisRespSerializer, PythonRespSerializer

from millpond import _watcher
from millpond.connectors._tally.commands import ASKING, ENDS, NEW, OPENS, SPARES, SPOILS, SPOILT, unpacked

__all__ = ["PLAIN", "Tally", "is_an_end", "stray"]

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
    demoted = False
    """Whether a server that was to take writes has refused one, for it is a replica now."""

    if TYPE_CHECKING:
        _unread: Callable[[], object]
        """Tells whether something has been read from the socket that nobody has taken yet."""

        def get_protocol(self) -> int | str: ...

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
        self.demoted = False

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

    def _hear(self, error: exceptions.RedisError) -> None:
        """Count a reply that is an error, or note why there is none."""
        if not isinstance(error, exceptions.ResponseError):
            # Where a sentinel tells the address, redis-py closes a connection that is refused a write.
            self.demoted = self.demoted or isinstance(error.__context__, exceptions.ReadOnlyError)
            return
        self._answered += 1
        if self._answered == self._ending_at and not isinstance(error, exceptions.ExecAbortError):
            # What was to end has not ended.
            self._session |= SPOILT
        elif isinstance(error, exceptions.ReadOnlyError):
            # A primary that was demoted goes on answering. Its name may lead elsewhere by now (go-redis does the same).
            self._session |= SPOILT

    def _takes_pushes(self) -> bool:
        """Whether the server may say something unasked."""
        return self.get_protocol() in (3, "3")

    def _end(self, sock: object) -> None:
        """Note that the session ends, and tell the watcher that it is not the server who hangs up."""
        self._session |= SPOILT
        # What somebody else has put in its place may give a number that is another connection's.
        number = sock.fileno() if isinstance(sock, (socket.socket, TransportSocket)) else None
        descriptor = _watcher.identify(number)
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


def is_an_end(error: Exception) -> bool:
    """Tell whether that is the end of a connection, and not somebody's time limit that struck while it was read."""
    return isinstance(error, exceptions.RedisError) or (isinstance(error, OSError) and error.errno is not None)


def stray() -> Exception:
    """Return the error of a connection that cannot be lent again."""
    return exceptions.ConnectionError("an answer has come that nobody asked for")
