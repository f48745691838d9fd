"""A MariaDB on 127.0.0.1, from Debian's package, in a directory of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from signal import Signals
from typing import Any

from millpond.testing._keeper import unprivileged
from millpond.testing.servers import Server, Setting

__all__ = ["INSTALL", "PROGRAM", "MariaDB"]

_PATH = "/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"
PROGRAM = shutil.which("mariadbd", path=_PATH)
# What makes its first data needs the other one, of Debian's mariadb-client-core.
INSTALL = shutil.which("mariadb-install-db", path=_PATH) and shutil.which("my_print_defaults", path=_PATH)

_USERS = """\
create database app;
create user 'app'@'127.0.0.1' identified by 'a secret';
grant all on *.* to 'app'@'127.0.0.1';
"""


class MariaDB(Server):
    """Its user `app` has the password `a secret` and a database `app`."""

    password = "a secret"

    def __init__(self, **settings: Setting) -> None:
        super().__init__(settings)

    @property
    def url(self) -> str:
        return f"mysql://app@{self.host}:{self.port}/app"

    def stop(self) -> None:
        self._signal(Signals.SIGTERM, 30)

    def _user(self) -> tuple[int, int] | None:
        return unprivileged()

    def _prepare(self, directory: Path) -> None:
        install = shutil.which("mariadb-install-db", path=_PATH)
        assert install is not None
        own = self._user()
        whom: dict[str, Any] = {} if own is None else {"user": own[0], "group": own[1], "extra_groups": []}
        options = ["--no-defaults", f"--datadir={directory / 'data'}", "--auth-root-authentication-method=normal"]
        subprocess.run(
            [
                install,
                *options,
                "--skip-test-db",
                "--skip-name-resolve",
                "--innodb-log-file-size=4M",
                f"--tmpdir={directory}",
            ],
            check=True,
            capture_output=True,
            cwd=directory,
            **whom,
        )
        (directory / "users.sql").write_text(_USERS)

    def _command(self, directory: Path) -> list[str | Path]:
        assert PROGRAM is not None
        settings = {
            "datadir": directory / "data",
            "bind-address": self.host,
            "port": self.port,
            "socket": directory / "socket",
            "pid-file": directory / "pid",
            "init-file": directory / "users.sql",
            "tmpdir": directory,
            "innodb-buffer-pool-size": "16M",
            "innodb-flush-log-at-trx-commit": 0,
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [PROGRAM, "--no-defaults", "--skip-name-resolve", "--skip-log-bin", *options]

    def _ready(self, pid: int) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as sock:
                return bool(sock.recv(1))  # it greets
        except OSError:
            return False
