"""A port of the loopback interface that is ours until we let it go."""

from __future__ import annotations

import socket
import sys

__all__ = ["ReservedPort"]


class ReservedPort:
    """A free TCP port on 127.0.0.1 that nobody else is given while no server listens on it.

    On Linux a socket stays bound to it, so that between two runs of a server neither another program nor the near
    end of an outgoing connection takes it (a client that keeps trying a free port in the ephemeral range may even
    end up connected to itself). A server that sets `SO_REUSEADDR`, as all do, can listen on it all the same.
    Elsewhere that is not possible and the port is only likely to stay free.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self._socket.close()

    def close(self) -> None:
        """Let the port go."""
        self._socket.close()
