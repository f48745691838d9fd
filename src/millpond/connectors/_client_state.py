"""The client's side of a connection: what a borrower can set on the object, which no statement to the server undoes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final

__all__ = ["ClientState"]


class ClientState:
    """Attributes of connection objects, as they were just after each connection was opened.

    `names` are the attributes; one of an object that a connection refers to is written with a dot
    (`pgconn.notice_handler`). A list, dict or set is changed when what is in it has changed.

    `note` follows an open, and `forget` goes with the end of a connection. Both, and `restore`, may be called from any
    thread, but for one connection from one thread at a time.
    """

    def __init__(self, *names: str) -> None:
        self.names: Final = names
        self._getters: Final = [attrgetter(name) for name in names]
        self._opened: Final[dict[int, tuple[object, ...]]] = {}
        self.is_changed: Final[Callable[[object], bool]] = _comparison(names, self._opened)
        """Tell whether an attribute of the connection is not as it was noted; of one never noted, that it is."""

    def note(self, conn: object) -> None:
        """Remember how the connection is."""
        # By its number: a connection of a driver need be neither hashable nor weakly referable, nor take an attribute.
        self._opened[id(conn)] = tuple(_copied(get(conn)) for get in self._getters)

    def restore(self, conn: object) -> None:
        """Make the attributes as they were noted; raises what setting one raises."""
        opened = self._opened.get(id(conn), ())
        for name, get, value in zip(self.names, self._getters, opened, strict=False):
            now = get(conn)
            if now is not value and now != value:
                owner, _, last = name.rpartition(".")
                setattr(attrgetter(owner)(conn) if owner else conn, last, _copied(value))

    def forget(self, conn: object) -> None:
        """Drop what was noted."""
        self._opened.pop(id(conn), None)


def _copied(value: object) -> object:
    return value.copy() if isinstance(value, (list, dict, set)) else value


def _comparison(names: Sequence[str], opened: dict[int, tuple[object, ...]]) -> Callable[[object], bool]:
    """Write the comparison out, for this is the hot path: there is no loop, and the names are looked up once."""
    values = [f"value_{number}" for number in range(len(names))]
    parts = [
        f"(conn.{name} is not {value} and conn.{name} != {value})" for name, value in zip(names, values, strict=True)
    ]
    source = f"""
def is_changed(conn):
    try:
        {"".join(f"{value}, " for value in values)} = opened[id(conn)]
    except KeyError:
        return False
    return {" or ".join(parts)}
"""
    written: dict[str, Callable[[object], bool]] = {}
    exec(source, {"opened": opened}, written)
    return written["is_changed"]
