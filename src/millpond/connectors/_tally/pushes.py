"""What a server says unasked, in RESP3: push messages."""

from __future__ import annotations

__all__ = ["has_only_pushes"]


def has_only_pushes(data: bytes) -> bool:
    """Tell whether that is push messages and nothing else, one that has not come to its end included."""
    at = 0
    try:
        while at < len(data):
            if data[at : at + 1] != b">":
                return False
            at = _end(data, at)
    except _Incomplete:
        pass
    except ValueError:
        return False
    return True


class _Incomplete(Exception):
    """The rest is yet to come."""


def _end(data: bytes, at: int) -> int:
    """Return where the value that begins there ends; the values in it are gone through one by one, however deep."""
    left = 1
    while left:
        left -= 1
        line = data.find(b"\r\n", at)
        if line < 0:
            raise _Incomplete
        kind, rest = data[at : at + 1], data[at + 1 : line]
        at = line + 2
        if kind in (b"$", b"=", b"!"):
            at += int(rest) + 2 if rest != b"-1" else 0
        elif kind in (b"*", b"~", b">"):
            left += max(0, int(rest))
        elif kind == b"%":
            left += 2 * int(rest)
        elif kind == b"|":
            left += 2 * int(rest) + 1  # and what the attributes are of
        elif kind not in (b"+", b"-", b":", b",", b"#", b"_", b"("):
            raise ValueError
    return at
