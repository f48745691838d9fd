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
    (`_prepared.prepared_max`). Of one that is not read as it is set, `readings` tells how: by another attribute
    (`autocommit="_autocommit"`), or by a method, and then it is a method, too (`autocommit="get_autocommit()"`). A
    list, dict, set or deque is changed when what is in it has changed.

    `note` follows an open, and `forget` goes with the end of a connection. Both, and `restore`, may be called from any
    thread, but for one connection from one thread at a time.
    """

    def __init__(self, *names: str, **readings: str) -> None:
        self._readings: Final = {**{name: name for name in names}, **readings}
        # What the first connection had, and with it nearly all; and what those had that differ, by their numbers: a
        # driver's connection need be neither hashable nor weakly referable, nor take an attribute.
        self._usual: Final[dict[str, tuple[object, ...]]] = {}
        self._unusual: Final[dict[int, tuple[object, ...]]] = {}
        self._read: Final = _reader(list(self._readings.values()))
        self.is_changed: Callable[[object], bool] = self._is_changed
        """Tell whether an attribute of the connection is not as it was noted."""

    def note(self, conn: object) -> None:
        """Remember how the connection is."""
        values = tuple(map(_copied, self._read(conn)))
        usual = self._usual.setdefault("values", values)  # of two who are first, one is
        if usual is values:
            self.is_changed = _comparison(list(self._readings.values()), values, self._unusual, self._is_changed)
        if _are_equal(values, usual):
            self._unusual.pop(id(conn), None)  # another's, of before
        else:
            self._unusual[id(conn)] = values

    def noted(self, conn: object) -> dict[str, object]:
        """Return what was noted of the connection, by name."""
        return dict(zip(self._readings, self._noted(conn), strict=False))

    def restore(self, conn: object) -> None:
        """Make the attributes as they were noted; raises what setting one raises."""
        for (name, reading), now, value in zip(
            self._readings.items(), self._read(conn), self._noted(conn), strict=False
        ):
            if _are_equal(now, value):
                continue
            owner, _, last = name.rpartition(".")
            if reading.endswith("()"):
                getattr(conn, name)(value)
            else:
                _set(attrgetter(owner)(conn) if owner else conn, last, now, _copied(value))

    def forget(self, conn: object) -> None:
        """Drop what was noted."""
        self._unusual.pop(id(conn), None)

    def _noted(self, conn: object) -> tuple[object, ...]:
        return self._unusual.get(id(conn), self._usual.get("values", ()))

    def _is_changed(self, conn: object) -> bool:
        return not _are_equal(self._read(conn), self._noted(conn))


def _are_equal(one: object, other: object) -> bool:
    try:
        return one is other or bool(one == other)
    except Exception:
        return False  # some cannot be compared, and are then another's


def _set(owner: object, name: str, now: object, value: object) -> None:
    try:
        setattr(owner, name, value)
    except (AttributeError, TypeError):
        if not (isinstance(now, dict) and isinstance(value, dict)):
            raise
        # It cannot be replaced, so it is the connection's own, and no dict of the borrower's that others use.
        now.clear()
        now.update(value)


def _copied(value: object) -> object:
    return value.copy() if isinstance(value, (list, dict, set, deque)) else value


def _reader(readings: list[str]) -> Callable[[object], tuple[object, ...]]:
    written: dict[str, Any] = {}
    exec(f"def read(conn):\n    return ({''.join(f'conn.{name}, ' for name in readings)})", written)
    read: Callable[[object], tuple[object, ...]] = written["read"]
    return read


def _comparison(
    readings: list[str],
    usual: tuple[object, ...],
    unusual: dict[int, tuple[object, ...]],
    otherwise: Callable[[object], bool],
) -> Callable[[object], bool]:
    """Write out the comparison with what is usual: it is the hot path, without a loop, and without names as data."""
    values = {f"value_{number}": value for number, value in enumerate(usual)}
    parts = [
        f"conn.{reading} {'==' if _copied(value) is not value else 'is'} {name}"
        for reading, (name, value) in zip(readings, values.items(), strict=True)
    ]
    source = f"""
def make({", ".join(["unusual", "otherwise", *values])}):
    def is_changed(conn):
        try:
            if {" and ".join(["not unusual", *parts])}:
                return False
        except Exception:
            pass
        return otherwise(conn)
    return is_changed
"""
    written: dict[str, Any] = {}
    exec(source, written)
    made: Callable[[object], bool] = written["make"](unusual, otherwise, **values)
    return made
