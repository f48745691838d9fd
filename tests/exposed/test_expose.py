"""What a process tells others of its pools: all of it to its own user, nothing to others, and it is not disturbed."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

import millpond
from millpond import _expose, _looking
from millpond.testing import AsyncFakeConnector, FakeConnector

from ..promises.patience import until
from .processes import Start, looked, say

LOOK = b'{"v": 1, "do": "look"}\n'

GARBAGE = [
    b"\n",
    b"hello\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x00\xff\xfe\n",
    b"[]\n",
    b"null\n",
    b'"look"\n',
    b"{}\n",
    b'{"v": 1}\n',
    b'{"v": 2, "do": "look"}\n',
    b'{"v": 1, "do": "kill"}\n',
    b'{"v": 1, "do": ["look"]}\n',
    b'{"v": 1, "do": "__class__"}\n',
    b'{"v": 1, "do": "close", "pool": 1}\n',
    b"[" * 60_000 + b"\n",
    b'{"v": 1, "do": "look", "much": "' + b"x" * 70_000 + b'"}\n',
    b"x" * 1_000_000,
    LOOK * 2,
]


@pytest.fixture
def exposed(runtime: Path) -> Iterator[str]:
    """Expose this process, and return where."""
    end = millpond.expose()
    yield socket_of(runtime)
    end()


def socket_of(runtime: Path, pid: int | None = None) -> str:
    (path,) = (runtime / "millpond").glob(f"{pid or os.getpid()}-*.sock")
    return str(path)


def own() -> dict[str, Any]:
    return looked()[os.getpid()]


def pool_named(name: str) -> dict[str, Any]:
    (found,) = [pool for pool in own()["pools"] if pool["stats"]["name"] == name]
    return found  # type: ignore[no-any-return]


@pytest.mark.usefixtures("exposed")
def test_a_process_tells_what_it_is_and_what_its_pools_have() -> None:
    budget = millpond.Budget(7)
    with millpond.Pool(FakeConnector(), name="orders", max_size=4, timeout=float("inf"), budget=budget) as pool:
        conn = pool.acquire()
        told = pool_named("orders")
        pool.release(conn)
    process = own()["process"]
    assert process["pid"] == os.getpid()
    assert process["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert process["millpond"] == millpond.__version__
    assert abs(process["started_at"] - time.time()) < 24 * 3600
    assert not process["control"]
    assert told["kind"] == "threads"
    assert told["settings"] == {"min_size": 0, "max_size": 4, "timeout": None}
    assert told["stats"]["lent"] == told["stats"]["opens"] == 1
    assert told["budget"] == {"name": None, "limit": 7, "used": 1, "share": 1}
    assert told["outage"] is None
    (lease,) = told["leases"]
    assert "MainThread" in lease["owner"]
    assert lease["age"] >= 0
    assert lease["borrowed_at"].startswith("test_expose.py:")


@pytest.mark.usefixtures("exposed")
def test_it_tells_how_long_callers_have_waited_lately() -> None:
    with millpond.Pool(FakeConnector(), name="waits", max_size=1) as pool:
        for _ in range(50):
            with pool.connection():
                pass
        holder = pool.acquire()

        def wait() -> None:
            with pool.connection(5):
                pass

        waiting = threading.Thread(target=wait)
        waiting.start()
        until(lambda: pool.stats().waiting)
        time.sleep(0.05)
        pool.release(holder)
        waiting.join()
        waits = pool_named("waits")["waits"]
    assert waits["of"] == 52
    assert waits["p50"] < 0.05 <= waits["p99"]


@pytest.mark.usefixtures("exposed")
def test_it_tells_of_an_outage() -> None:
    def refuse() -> object:
        raise ConnectionRefusedError("the secret is opensesame")

    with millpond.Pool(refuse, name="down") as pool:
        with pytest.raises(millpond.ConnectFailed):
            pool.acquire(5)
        told = pool_named("down")
    assert told["outage"]["error"] == "ConnectionRefusedError"
    assert told["outage"]["attempts"] >= 1
    assert told["stats"]["open_failures"] >= 1
    assert "opensesame" not in json.dumps(told)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.usefixtures("exposed")
def test_loans_of_tasks_are_told_to_other_threads(backend: str) -> None:
    async def main() -> dict[str, Any]:
        async with millpond.AsyncPool(AsyncFakeConnector(), name="tasks") as pool, pool.connection():
            return await anyio.to_thread.run_sync(pool_named, "tasks")

    told = anyio.run(main, backend=backend)
    assert told["kind"] == "tasks"
    (lease,) = told["leases"]
    assert lease["owner"].startswith("task ")
    assert "ended" not in lease["owner"]


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: repr(data[:30]))
def test_garbage_is_refused_and_the_next_caller_is_served(exposed: str, data: bytes) -> None:
    answer = say(exposed, data)
    if answer and data != LOOK * 2:
        assert json.loads(answer)["v"] == 1
        assert "error" in json.loads(answer)
    assert own()["process"]["pid"] == os.getpid()


@pytest.mark.parametrize("data", [b"", b'{"v": 1, "do": "lo', LOOK.strip()])
def test_a_truncated_request_gets_no_look(exposed: str, data: bytes) -> None:
    answer = say(exposed, data, end=True)
    assert not answer or "error" in json.loads(answer)


def test_whoever_says_nothing_is_shown_out_and_keeps_nobody_waiting(exposed: str) -> None:
    with ExitStack() as stack:
        mute = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2 * _expose.CALLERS)]
        for conn in mute:
            conn.connect(exposed)
            conn.settimeout(60)
            conn.send(b"{")
        assert "pools" in own()
        for conn in mute:
            try:
                assert not conn.recv(10)
            except ConnectionResetError:
                pass


def test_whoever_does_not_take_the_answer_is_shown_out(exposed: str) -> None:
    keyed: millpond.KeyedPool[int, Any] = millpond.KeyedPool(lambda key: FakeConnector(), max_size=1)
    with keyed as pools, ExitStack() as stack:
        for key in range(500):  # more to tell than a socket takes at once
            stack.enter_context(pools.connection(key))
        with socket.socket(socket.AF_UNIX) as conn:
            conn.settimeout(60)
            conn.connect(exposed)
            conn.send(LOOK)
            exposure = _expose._exposure
            assert exposure is not None
            until(lambda: exposure._callers)
            until(lambda: not exposure._callers)
            heard = b""
            try:
                while piece := conn.recv(1 << 16):
                    heard += piece
            except ConnectionResetError:
                pass
            assert not heard.endswith(b"\n")


def test_the_socket_and_its_folder_are_the_user_s_alone(exposed: str) -> None:
    assert stat.S_IMODE(os.lstat(exposed).st_mode) == 0o600
    assert stat.S_IMODE(os.lstat(os.path.dirname(exposed)).st_mode) == 0o700


@pytest.mark.parametrize("flaw", ["others may enter", "a link", "a file"])
def test_a_folder_that_others_can_get_at_is_refused(runtime: Path, flaw: str) -> None:
    folder = runtime / "millpond"
    if flaw == "others may enter":
        folder.mkdir()
        folder.chmod(0o755)
    elif flaw == "a link":
        (runtime / "elsewhere").mkdir(0o700)
        folder.symlink_to(runtime / "elsewhere")
    else:
        folder.touch(0o700)
    with pytest.raises(PermissionError, match="0700"):
        millpond.expose()
    with pytest.raises(PermissionError, match="0700"):
        _looking.look()


def test_a_runtime_folder_of_others_is_not_used(runtime: Path) -> None:
    runtime.chmod(0o755)
    end = millpond.expose()
    try:
        assert not (runtime / "millpond").exists()
        assert os.getpid() in looked()
    finally:
        end()
        runtime.chmod(0o700)


def test_what_is_ended_is_ended(runtime: Path) -> None:
    end = millpond.expose()
    assert os.getpid() in looked()
    end()
    end()
    assert not list((runtime / "millpond").iterdir())
    assert os.getpid() not in looked()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "millpond-expose"])


def test_a_second_call_returns_the_same_unless_it_wants_something_else() -> None:
    end = millpond.expose()
    try:
        assert millpond.expose() == end
        with pytest.raises(RuntimeError, match="control=False already"):
            millpond.expose(control=True)
    finally:
        end()
    millpond.expose(control=True)()


def test_the_environment_has_a_program_exposed_read_only(start: Start, runtime: Path) -> None:
    process = start("told", "told", MILLPOND_EXPOSE="1")
    answer = looked()[process.pid]
    assert not answer["process"]["control"]
    assert [pool["stats"]["name"] for pool in answer["pools"]] == ["told"]
    assert start("told", "told").pid not in looked()


PRECEDENCE = """
import os, millpond
from millpond import _looking
from millpond.testing import FakeConnector
with millpond.Pool(FakeConnector()):
    millpond.expose(control=True)
    print([answer["process"]["control"] for process, answer in _looking.look(10) if process.pid == os.getpid()])
"""


def test_a_program_s_own_call_counts_more_than_the_environment() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRECEDENCE], env=os.environ | {"MILLPOND_EXPOSE": "1"}, capture_output=True, text=True
    )
    assert done.stdout == "[True]\n", done.stderr


def test_a_folder_that_is_refused_does_not_stop_a_program_that_did_not_ask(start: Start, runtime: Path) -> None:
    (runtime / "millpond").mkdir()
    (runtime / "millpond").chmod(0o755)
    start("told", "told", MILLPOND_EXPOSE="1")


def test_a_process_that_is_killed_vanishes_with_what_it_left(start: Start, runtime: Path) -> None:
    one, other = start("one"), start("other")
    assert {one.pid, other.pid} <= set(looked())
    left = socket_of(runtime, one.pid)
    one.kill()
    one.wait()
    assert os.path.exists(left)
    there = looked()
    assert one.pid not in there
    assert other.pid in there
    assert not os.path.exists(left)


def test_what_a_killed_process_left_is_taken_away_by_the_next_one(start: Start, runtime: Path) -> None:
    one = start("one")
    left = socket_of(runtime, one.pid)
    one.kill()
    one.wait()
    start("other")
    assert not os.path.exists(left)


def test_a_program_that_ends_takes_its_socket_away(start: Start, runtime: Path) -> None:
    process = start("one")
    path = socket_of(runtime, process.pid)
    process.communicate("")
    assert not os.path.exists(path)


def test_a_stopped_process_is_told_of_and_holds_up_nobody(start: Start) -> None:
    one, other = start("one"), start("other")
    os.kill(one.pid, signal.SIGSTOP)
    os.waitpid(one.pid, os.WUNTRACED)
    there = looked(4.0)
    assert "no answer" in there[one.pid]["error"]
    assert there[other.pid]["pools"]


def test_a_socket_that_is_not_its_process_s_own_is_not_believed(exposed: str, runtime: Path) -> None:
    os.symlink(exposed, runtime / "millpond" / "1-00000000.sock")
    assert 1 not in looked()


FORKING = """
import os, sys, millpond
from millpond.testing import FakeConnector
from millpond import _looking
millpond.expose()
pool = millpond.Pool(FakeConnector(), name="parent")
pid = os.fork()
if pid == 0:
    there = {process.pid: answer for process, answer in _looking.look(10)}
    assert set(there) >= {os.getpid(), os.getppid()}, there
    with pool.connection():
        there = {process.pid: answer for process, answer in _looking.look(10)}
        assert [there[pid]["pools"][0]["stats"]["lent"] for pid in (os.getpid(), os.getppid())] == [1, 0], there
    millpond.expose()()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert [process.pid for process, _ in _looking.look(10) if process.pid in (pid, os.getpid())] == [os.getpid()]
pool.close()
print("ok")
"""


def test_a_forked_child_has_a_socket_of_its_own_and_leaves_the_parent_s(runtime: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "ok\n", done.stderr
    assert not list((runtime / "millpond").iterdir())


STRANGER = """
import os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
conn = socket.socket(socket.AF_UNIX)
conn.settimeout(60)
if sys.argv[1] == "ask":
    conn.connect(sys.argv[2])
    try:
        conn.send(b'{"v": 1, "do": "look"}\\n')
        print(conn.recv(100))
    except (BrokenPipeError, ConnectionResetError):
        print(b"")
else:
    conn.bind(f"{sys.argv[2]}/{os.getpid()}-1.sock")
    os.chmod(f"{sys.argv[2]}/{os.getpid()}-1.sock", 0o777)
    conn.listen()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_told_nothing(exposed: str, runtime: Path) -> None:
    """Even if he could get at the socket."""
    runtime.chmod(0o755)
    (runtime / "millpond").chmod(0o755)
    os.chmod(exposed, 0o666)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, "ask", exposed], capture_output=True, text=True, timeout=90, check=False
    )
    runtime.chmod(0o700)
    (runtime / "millpond").chmod(0o700)
    assert done.stdout == "b''\n", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_s_process_is_not_believed(exposed: str, runtime: Path) -> None:
    """Even if he could put a socket there."""
    folder = runtime / "millpond"
    runtime.chmod(0o777)
    folder.chmod(0o777)
    stranger = subprocess.Popen(
        [sys.executable, "-c", STRANGER, "listen", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "ready\n"
        runtime.chmod(0o700)
        folder.chmod(0o700)
        there = looked()
        assert os.getpid() in there
        assert stranger.pid not in there
    finally:
        stranger.communicate("")


def _ask(do: str, **more: object) -> dict[str, Any]:
    (process,) = [process for process, _ in _looking.look(10) if process.pid == os.getpid()]
    return _looking.ask(process, {"do": do, **more}, 10)


@pytest.mark.usefixtures("exposed")
def test_without_control_nothing_can_be_done_to_a_pool() -> None:
    with millpond.Pool(FakeConnector(), name="orders") as pool:
        number = pool_named("orders")["id"]
        for do in ("pause", "resume", "refresh", "resize"):
            assert "looked at only" in _ask(do, pool=number, max_size=3)["error"]
        stats = pool.stats()
    assert not stats.paused
    assert stats.generation == 0
    assert stats.max_size == 10


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_with_control_a_pool_is_paused_resumed_refreshed_and_resized(backend: str) -> None:
    async def main() -> None:
        async with millpond.AsyncPool(AsyncFakeConnector(), name="tasks") as pool:
            async with pool.connection():
                pass
            number = (await anyio.to_thread.run_sync(pool_named, "tasks"))["id"]

            async def ask(do: str, **more: object) -> dict[str, Any]:
                return await anyio.to_thread.run_sync(lambda: _ask(do, pool=number, **more))

            assert await ask("pause") == {"v": 1, "done": "pause"}
            assert pool.stats().paused
            async with anyio.create_task_group() as group:

                @group.start_soon
                async def borrow() -> None:
                    async with pool.connection(10):
                        pass

                with anyio.fail_after(10):
                    while not pool.stats().waiting:
                        await anyio.sleep(0.001)
                await ask("resume")
            assert pool.stats().borrows == 2
            await ask("refresh")
            assert pool.stats().generation == 1
            await ask("resize", max_size=3)
            assert pool.settings.max_size == 3
            for wrong in ({"max_size": 0}, {"max_size": "9"}, {"min_size": 4}):
                assert "_size" in (await ask("resize", **wrong))["error"]
            assert pool.settings.max_size == 3

    end = millpond.expose(control=True)
    try:
        anyio.run(main, backend=backend)
    finally:
        end()


def test_a_pool_that_is_gone_cannot_be_paused() -> None:
    end = millpond.expose(control=True)
    try:
        assert "no pool of that number" in _ask("pause", pool=1_000_000)["error"]
        assert "no pool of that number" in _ask("pause")["error"]
    finally:
        end()


def test_whoever_does_not_ask_for_it_does_not_load_it() -> None:
    code = "import sys, millpond; print({'millpond._expose', 'millpond.cli'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout == "set()\n", done.stderr
