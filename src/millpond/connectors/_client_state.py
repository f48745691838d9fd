"""The client's side of a connection: what a borrower can set on the object, which no statement to the server undoes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

__all__ = ["ClientState"]


class ClientState:
    """Attributes of connection objects, as they were just after each connection was opened.

    `names` are the attributes; one of an object that a connection refers to is written with a dot
    (`pgconn.notice_handler`). Of one that is not read as it is set, `readings` tells how: by another attribute
    (`autocommit="_autocommit"`), or by a method, and then it is a method, too (`autocommit="get_autocommit()"`). A
    list, dict, set or deque is changed when what is in it has changed.

    `note` follows an open, and `forget` goes with the end of a connection. Both, and `restore`, may be called from any
    thread, but for one connection from one thread at a time.
    """

    def __init__(self, *names: str, **readings: str) -> None:
        self._readings: Final = {**{name: name for name in names}, **readings}
        self._opened: Final[dict[int, tuple[object, ...]]] = {}
        self._read: Callable[[object], tuple[object, ...]]
        self.is_changed: Callable[[object], bool]
        """Tell whether an attribute of the connection is not as it was noted; of one never noted, that it is."""
        self._read, self.is_changed = _written(list(self._readings.values()), self._opened)

    def note(self, conn: object) -> None:
        """Remember how the connection is."""
        # By its number: a connection of a driver need be neither hashable nor weakly referable, nor take an attribute.
        self._opened[id(conn)] = tuple(map(_copied, self._read(conn)))

    def noted(self, conn: object) -> dict[str, object]:
        """Return what was noted of the connection, by name; nothing of one never noted."""
        return dict(zip(self._readings, self._opened.get(id(conn), ()), strict=False))

    def restore(self, conn: object) -> None:
        """Make the attributes as they were noted; raises what setting one raises."""
        opened = self._opened.get(id(conn))
        if opened is None:
            return
        for (name, reading), now, value in zip(self._readings.items(), self._read(conn), opened, strict=True):
            if _are_equal(now, value):
                continue
            owner, _, last = name.rpartition(".")
            if reading.endswith("()"):
                getattr(conn, name)(value)
            elif isinstance(now, dict) and isinstance(value, dict):
                now.clear()
                now.update(value)
            else:
                setattr(attrgetter(owner)(conn) if owner else conn, last, _copied(value))

    def forget(self, conn: object) -> None:
        """Drop what was noted."""
        self._opened.pop(id(conn), None)


def _are_equal(one: object, other: object) -> bool:
    try:
        return one is other or bool(one == other)
    except Exception:
        return False  # as in `is_changed`


def _copied(value: object) -> object:
    return value.copy() if isinstance(value, (list, dict, set, deque)) else value


def _written(
    readings: list[str], opened: dict[int, tuple[object, ...]]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Write out how attributes are read and compared. It is the hot path: without a loop, and without names as data."""
    values = [f"value_{number}" for number in range(len(readings))]
    parts = [
        f"(conn.{name} is not {value} and conn.{name} != {value})" for name, value in zip(readings, values, strict=True)
    ]
    source = f"""
def read(conn):
    return ({"".join(f"conn.{name}, " for name in readings)})

def is_changed(conn):
    try:
        [{", ".join(values)}] = opened[id(conn)]
        return {" or ".join(parts) or False}
    except KeyError:
        return id(conn) in opened
    except Exception:
        return True
"""
    written: dict[str, Callable[..., Any]] = {}
    exec(source, {"opened": opened}, written)
    return written["read"], written["is_changed"]
