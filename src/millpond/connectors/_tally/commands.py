"""Which commands leave something behind in a session of Redis, and how they are read out of what is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

__all__ = [
    "ASKING",
    "ENDS",
    "IN_MULTI",
    "NEW",
    "OPENS",
    "SPARES",
    "SPOILS",
    "SPOILT",
    "WATCHING",
    "unpacked",
]

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
"""Each changes what a later borrower is answered, or who that is to the server."""
SPARES: Final = {
    b"CLIENT": frozenset(
        b"GETNAME GETREDIR HELP ID INFO KILL LIST PAUSE SETINFO SETNAME TRACKINGINFO UNBLOCK UNPAUSE".split()
    ),
    b"SCRIPT": frozenset(b"EXISTS FLUSH HELP KILL LOAD SHOW".split()),
}
"""Of these, only the subcommands that are named leave the session as it is. A name that somebody gives to a connection
stays, as it does in redis-py's own pools: it is for people who look at the list of clients, and changes no answer."""


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
