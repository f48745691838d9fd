"""What servers tell of themselves to who is connected: version, limits, what they cut, what stands between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Findings", "of_postgresql", "of_redis"]


@dataclass
class Findings:
    """What was asked of a server."""

    server: str
    limit: int | None = None
    """How many connections there may be, for this user; None if it is not told."""
    used: int | None = None
    """How many there are, without the one that asked."""
    pooler: bool | None = None
    """Whether a pooler stands between; None if that cannot be seen."""
    facts: dict[str, str] = field(default_factory=dict)
    advice: list[tuple[str, str]] = field(default_factory=list)
    """Settings, each with the reason."""


def of_postgresql(ask: Callable[[str], list[Any]], backend: int | None) -> Findings:
    """Ask a PostgreSQL, by a function that executes SQL and returns the first row.

    `backend` is the process that the connection was told it has to do with, if the driver knows.
    """
    version, limit, role, database, used, pid, standby, idle_cut = ask(
        """
        select current_setting('server_version'),
               current_setting('max_connections')::int
                 - current_setting('superuser_reserved_connections')::int
                 - coalesce(current_setting('reserved_connections', true), '0')::int,
               (select rolconnlimit from pg_roles where rolname = current_user),
               (select datconnlimit from pg_database where datname = current_database()),
               (select count(*)::int from pg_stat_activity where pid <> pg_backend_pid() and datname is not null),
               pg_backend_pid(),
               pg_is_in_recovery(),
               coalesce(extract(epoch from current_setting('idle_session_timeout', true)::interval), 0)::float8
        """
    )
    found = Findings(f"PostgreSQL {version}", min(each for each in (limit, role, database) if each >= 0), used)
    if standby:
        found.facts["standby"] = "it is in recovery, and read only"
    if backend is not None:
        found.pooler = backend != pid
    if found.pooler:
        found.advice.append(
            ("prepare_threshold=None", "a pooler stands between: what one transaction prepares, another may not find")
        )
    if idle_cut:
        found.facts["idle_session_timeout"] = f"{idle_cut:g} s"
        found.advice.append(
            (f"max_idle={idle_cut * 0.8:g}", f"the server ends sessions that are idle for {idle_cut:g} s")
        )
    return found


def of_redis(ask: Callable[..., Any]) -> Findings:
    """Ask a Redis or Valkey, by a function that executes a command; what it forbids stays unknown."""
    told: dict[str, str] = {}
    for section in ("server", "clients"):
        text: str = _try(ask, "INFO", section) or ""
        told |= {key: value for key, _, value in (line.partition(":") for line in text.splitlines())}
    name, version = next(
        (
            (product, told[key])
            for product, key in (("Valkey", "valkey_version"), ("Redis", "redis_version"))
            if key in told
        ),
        ("Redis", "of a version that it does not tell"),
    )
    found = Findings(f"{name} {version}")
    if "maxclients" in told and "connected_clients" in told:
        found.limit, found.used = int(told["maxclients"]), int(told["connected_clients"]) - 1
    cut = _try(ask, "CONFIG", "GET", "timeout")
    seconds = int((cut or {}).get("timeout", 0))
    if seconds:
        found.facts["timeout"] = f"{seconds} s"
        found.advice.append((f"max_idle={seconds * 0.8:g}", f"the server closes what is idle for {seconds} s"))
    return found


def _try(ask: Callable[..., Any], *command: str) -> Any:  # noqa: ANN401
    from redis.exceptions import ResponseError

    try:
        answer = ask(*command)
    except ResponseError:
        return None
    if isinstance(answer, list):
        answer = dict(zip(answer[::2], answer[1::2], strict=True))
    if isinstance(answer, dict):
        return {_text(key): _text(value) for key, value in answer.items()}
    return _text(answer)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
