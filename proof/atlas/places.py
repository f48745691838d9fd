"""The servers that faults strike, and the ways to them."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from tempfile import TemporaryDirectory
from urllib.parse import quote

from millpond.testing import Postgres, Proxy, Server, Valkey

__all__ = ["Address", "Place", "Web", "servers"]


class Web(Server):
    """An HTTP server, whose answer to /SECONDS/WORD takes so long, and is that word."""

    def __init__(self) -> None:
        super().__init__({})

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"http://{self.host}:{self.port}/"

    def stop(self) -> None:
        """Stop it."""
        self._signal(Signals.SIGTERM, 30)

    def _user(self) -> tuple[int, int] | None:
        return None

    def _prepare(self, directory: Path) -> None:
        pass

    def _command(self, directory: Path) -> list[str | Path]:
        return [sys.executable, "-I", "-S", Path(__file__).with_name("web.py"), str(self.port)]

    def _ready(self, pid: int) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True


@contextmanager
def servers() -> Iterator[dict[str, Place]]:
    """Start one server of each kind."""
    with TemporaryDirectory() as directory:
        # Users outlive a restart, as PostgreSQL's do.
        users = Path(directory, "users.acl")
        users.write_text("user default on nopass ~* &* +@all\n")
        with Postgres() as postgres, Valkey(aclfile=str(users)) as valkey, Web() as web:
            yield {kind: Place(server) for kind, server in (("postgres", postgres), ("valkey", valkey), ("web", web))}


@dataclass
class Address:
    """One way to a server: through a proxy of its own, as a user of its own."""

    proxy: Proxy
    user: str
    password: str
    """What the server wants to hear; it may change."""
    told: str | None = None
    """What it is told instead."""

    @property
    def host(self) -> str:
        """Where to connect to."""
        return self.proxy.host

    @property
    def port(self) -> int:
        """Where to connect to."""
        return self.proxy.port

    def secret(self) -> str:
        """Return the password to tell now."""
        return self.password if self.told is None else self.told

    def url(self, scheme: str, path: str) -> str:
        """Return a URL with the password as it is now."""
        return f"{scheme}://{self.user}:{quote(self.secret())}@{self.host}:{self.port}/{path}"


@dataclass
class Place:
    """A server, and the ways to it."""

    server: Server
    addresses: list[Address] = field(default_factory=list)

    def address(self) -> Address:
        """Make one more way to it."""
        user = f"user{len(self.addresses)}"
        address = Address(Proxy(self.server.host, self.server.port), user, f"first-{user}")
        self.addresses.append(address)
        if isinstance(self.server, Postgres):
            self.server.execute(f"drop role if exists {user}; create role {user} login")
        self.admit(address)
        return address

    def admit(self, address: Address) -> None:
        """Have the server know the password of an address."""
        if isinstance(self.server, Postgres):
            self.server.execute(f"alter role {address.user} password '{address.password}'")
        elif isinstance(self.server, Valkey):
            self._order(f"ACL SETUSER {address.user} resetpass >{address.password} on ~* &* +@all")
            self._order("ACL SAVE")

    def limit(self, address: Address, count: int) -> None:
        """Let the address have so many connections, -1 for any number."""
        assert isinstance(self.server, Postgres)
        self.server.execute(f"alter role {address.user} connection limit {count}")

    def throw_out(self, address: Address) -> None:
        """End the connections of an address."""
        if isinstance(self.server, Postgres):
            self.server.execute(
                f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{address.user}'"
            )
        elif isinstance(self.server, Valkey):
            self._order(f"CLIENT KILL USER {address.user}")

    def freeze(self) -> None:
        """Stop the server's processes where they are."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Close the ways, and forget them."""
        while self.addresses:
            self.addresses.pop().proxy.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self.server.pid is not None
        # The children first: PostgreSQL has one for each connection.
        children = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children").read_text().split()
        for pid in (*map(int, children), self.server.pid):
            os.kill(pid, number)

    def _order(self, line: str) -> None:
        with socket.create_connection((self.server.host, self.server.port), timeout=5) as wire:
            wire.sendall(line.encode() + b"\r\n")
            reply = wire.recv(4096)
        if reply[:1] == b"-":
            raise RuntimeError(f"{line.split()[0]}: {reply.decode()}")
