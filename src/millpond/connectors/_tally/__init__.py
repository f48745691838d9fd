"""What a connection of redis-py has been asked, what it has answered, and what that did to its session.

redis-py keeps no such record; `tallied` puts one in front of its classes. It counts the commands that are sent over a
socket and the replies that are read to their end, and heeds the commands that change the session. A command is counted
before it is sent and a reply after it was read, so whoever is interrupted in between leaves the counts unequal.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio.connection import AbstractConnection as AsyncConnection
from redis.connection import AbstractConnection as Connection

from millpond.connectors._derived import derived
from millpond.connectors._tally.foreign import Foreign, front_for
from millpond.connectors._tally.record import Tally, stray
from millpond.connectors._tally.tasks import AsyncTally
from millpond.connectors._tally.threads import SyncTally

__all__ = ["stray", "tallied"]


def tallied(conn: object) -> type:
    """Put the record in front of a connection's class, or what stands for it if the class is none of redis-py's."""
    cls = type(conn)
    if issubclass(cls, (Tally, Foreign)):
        return cls
    return derived(cls, "_millpond_tallied", lambda: _put_in_front(cls, conn))


def _put_in_front(cls: type, conn: object) -> type:
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
    return type(cls.__name__, (front_for(conn), cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})
