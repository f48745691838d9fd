"""The processes of a machine share a limit, whatever becomes of any of them."""

from __future__ import annotations

import errno
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from millpond import Budget, HostBudget, Misuse, Pool, PoolTimeout, _shared_budget, host_budget
from millpond._permit_file import Note, PermitFile, made, shared_path
from millpond._shared_budget import Need
from millpond.testing import FakeConnection, FakeConnector, Postgres

from ..promises.children import forked, run_program
from ..promises.patience import until
from ..promises.places import Places, Stop, finalisers_cut
from .conftest import CountingServer, Start, run_for

LIMIT = 3


def test_processes_together_never_have_more_connections_than_the_limit_and_all_are_served(
    server: CountingServer, start: Start
) -> None:
    for index in range(6):
        start(index, LIMIT)
    until(lambda: len(server.served) == 6, timeout=60)
    before = server.served.copy()
    until(lambda: all(server.served[index] > before[index] + 20 for index in range(6)), timeout=60)
    assert server.most == LIMIT


def test_what_a_killed_process_had_is_used_by_the_others(server: CountingServer, start: Start) -> None:
    processes = [start(index, LIMIT, 4, 0) for index in range(4)]
    until(lambda: len(server.served) == 4, timeout=60)
    chance = random.Random(0)
    for _ in range(4):
        until(lambda: server.live == LIMIT, timeout=60)
        victim = chance.randrange(4)
        processes[victim].kill()
        processes[victim].wait()
        until(lambda victim=victim: server.live_of(victim) == 0, timeout=60)  # type: ignore[misc]
        until(lambda: server.live == LIMIT, timeout=60)
        processes[victim] = start(victim, LIMIT, 4, 0)
    assert server.most == LIMIT


def test_a_server_that_allows_no_more_than_the_limit_turns_nobody_away(start: Start) -> None:
    with Postgres(max_connections=LIMIT) as server:
        server.execute("create table served (index int)")
        server.execute("grant all on served to app")

        def connected(index: int) -> int:
            # By its log: whoever asked it otherwise would take a place.
            return server.log().count(f"user=app database=app application_name=worker-{index}\n")

        def start_one(index: int) -> subprocess.Popen[str]:
            return start(index, LIMIT, url=f"{server.url}?application_name=worker-{index}")

        processes = [start_one(index) for index in range(5)]
        until(lambda: all(connected(index) for index in range(5)), timeout=60, pause=0.05)
        chance = random.Random(0)
        for _ in range(2):
            victim = chance.randrange(5)
            processes[victim].kill()
            processes[victim].wait()
            before = connected(victim)
            processes[victim] = start_one(victim)
            until(lambda: connected(victim) > before, timeout=60, pause=0.05)  # noqa: B023
        for process in processes:
            process.kill()
            process.wait()
        assert "FATAL" not in server.log()
        assert server.execute("select count(distinct index) from served") == [["5"]]


def test_a_stopped_process_keeps_what_it_has_open_and_the_others_go_on(server: CountingServer, start: Start) -> None:
    stopped = start(0, LIMIT)
    until(lambda: server.served[0] > 10, timeout=60)
    stopped.send_signal(signal.SIGSTOP)
    kept = server.live
    start(1, LIMIT)
    until(lambda: server.served[1] > 50, timeout=60)
    stopped.send_signal(signal.SIGCONT)
    before = server.served[0]
    until(lambda: server.served[0] > before + 10, timeout=60)
    assert 1 <= kept < LIMIT
    assert server.most <= LIMIT


def test_an_idle_connection_of_one_process_is_closed_for_a_caller_of_another(
    server: CountingServer, start: Start
) -> None:
    resting = start(0, 1, 1, 1000)
    until(lambda: server.served[0] > 0 and server.live == 1, timeout=60)
    before = server.served[0]
    run_for(0.5)
    assert resting.poll() is None and server.served[0] - before < 20, "it rests, and has one idle"
    start(1, 1)
    until(lambda: server.served[1] > 0, timeout=60)
    assert server.most == 1


def test_the_lowest_limit_that_a_living_process_names_holds(server: CountingServer, start: Start) -> None:
    high = [start(index, 4, 4, 0) for index in range(2)]
    until(lambda: server.live == 4, timeout=60)
    low = start(2, 2, 4, 0)
    until(lambda: server.served[2] > 20 and server.live <= 2, timeout=60)
    run_for(0.5, lambda: pytest.fail("too many") if server.live > 2 else None)
    low.kill()
    low.wait()
    until(lambda: server.live == 4, timeout=60)
    assert all(process.poll() is None for process in high)
    assert server.most == 4


def test_garbage_in_the_file_harms_nobody(server: CountingServer, start: Start, runtime: Path) -> None:
    for index in range(3):
        start(index, LIMIT)
    until(lambda: len(server.served) == 3, timeout=60)
    chance = random.Random(0)
    descriptor = os.open(runtime / "shared.budget", os.O_WRONLY)

    def spoil() -> None:
        row = chance.randbytes(64)
        os.pwrite(descriptor, chance.choice([row, b"millpond" + row[8:]]), 64 * chance.randrange(8))

    run_for(0.5, spoil)
    os.ftruncate(descriptor, 0)
    os.close(descriptor)
    before = server.served.copy()
    until(lambda: all(server.served[index] > before[index] for index in range(3)), timeout=60)
    assert server.most <= LIMIT


FORKING = """
    import os, signal, sys
    from millpond import HostBudget, Pool, PoolTimeout
    from millpond.connectors.sockets import Socket

    signal.alarm(30)
    pool = Pool(Socket("127.0.0.1", int(sys.argv[1])), max_size=2, budget=HostBudget("forking", 1))
    with pool.connection() as conn:
        child = os.fork()
        if child == 0:
            try:
                with pool.connection(timeout=0.3):
                    os._exit(1)
            except PoolTimeout as error:
                assert "leaves 0 to this process" in str(error), error
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child had a place"
        conn.sendall(b"x")
        assert conn.recv(1) == b"x"
    child = os.fork()
    if child == 0:
        with pool.connection(timeout=10) as conn:
            conn.sendall(b"y")
            assert conn.recv(1) == b"y"
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child had no place"
    with pool.connection(timeout=10):
        pass
    pool.close()
"""


def test_a_forked_child_is_a_member_of_its_own(server: CountingServer) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(FORKING), str(server.port)], check=True, timeout=60)
    assert server.most == 1


def test_its_members_are_told(server: CountingServer, start: Start) -> None:
    assert host_budget.members("shared") == []
    process = start(0, LIMIT, 1, 0)
    until(lambda: server.served[0] > 0, timeout=60)
    until(
        lambda: [(note.pid, note.limit, note.held) for note in host_budget.members("shared")] == [(process.pid, 3, 1)]
    )
    process.kill()
    process.wait()
    assert host_budget.members("shared") == []


def test_whoever_is_lent_a_connection_is_among_the_members(monkeypatch: pytest.MonkeyPatch) -> None:
    allow = HostBudget._allow

    def slowly(budget: HostBudget, count: int) -> int:
        held = allow(budget, count)
        time.sleep(0.1)
        return held

    monkeypatch.setattr(HostBudget, "_allow", slowly)
    with Pool(FakeConnector(), budget=HostBudget("lent", 1)) as pool, pool.connection(60):
        assert [note.held for note in host_budget.members("lent")] == [1]


def test_to_look_at_the_members_costs_a_member_nothing() -> None:
    with Pool(FakeConnector(), budget=HostBudget("looking", 1)) as pool, pool.connection():
        for _ in range(2):
            until(lambda: [note.held for note in host_budget.members("looking")] == [1])
            others = "import os; from millpond.host_budget import members; print(members('looking')[0].held)"
            told = subprocess.run(
                [sys.executable, "-c", others], check=True, timeout=60, capture_output=True, text=True
            )
            assert told.stdout == "1\n"


def test_a_look_at_the_members_gives_away_no_permit_of_the_process_that_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process loses its locks on a file when it closes any descriptor of it."""
    living = PermitFile.living
    looking = threading.Event()

    def slowly(file: PermitFile) -> list[Note]:
        looking.set()
        time.sleep(0.2)
        return living(file)

    budget = HostBudget("looked-at", 1)
    Path(made(budget._path)).touch()
    monkeypatch.setattr(PermitFile, "living", slowly)
    looker = threading.Thread(target=host_budget.members, args=("looked-at",))
    looker.start()
    assert looking.wait(60)
    with Pool(FakeConnector(), budget=budget) as pool, pool.connection(60):
        looker.join()
        assert is_refused_to_another("looked-at")


def is_refused_to_another(name: str) -> bool:
    """Whether another process is lent nothing under a budget of one connection."""
    said = run_program(f"""
        from millpond import HostBudget, Pool, PoolTimeout

        budget = HostBudget("{name}", 1)
        with Pool(object, close=id, budget=budget) as pool:
            try:
                pool.acquire(0.3)
            except PoolTimeout:
                assert budget._file is not None, "it has not asked"
                print("refused")
    """)
    return said == "refused\n"


def test_a_signal_handler_that_borrows_during_the_first_look_at_the_members_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    living = PermitFile.living
    served: list[FakeConnection] = []

    def interrupted(file: PermitFile) -> list[Note]:
        served.append(pool.acquire(60))
        return living(file)

    budget = HostBudget("handled", 1)
    Path(made(budget._path)).touch()
    with Pool(FakeConnector(), budget=budget) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(PermitFile, "living", interrupted)
            host_budget.members("handled")
        assert is_refused_to_another("handled")
        pool.release(served.pop())


def test_a_child_that_is_forked_during_a_look_at_the_members_keeps_what_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead = PermitFile.dead
    here = threading.get_ident()
    pids: list[int] = []
    conns: list[FakeConnection] = []

    def interrupted(file: PermitFile, note: Note) -> bool:
        # As a signal handler would.
        if not pids and threading.get_ident() == here:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                pids.append(os.fork())
            if pids == [0]:
                conns.append(pool.acquire(60))
        return dead(file, note)

    with Pool(FakeConnector(), budget=HostBudget("forks", 1)) as pool, another_member("forks"):
        try:
            with monkeypatch.context() as patch:
                patch.setattr(PermitFile, "dead", interrupted)
                host_budget.members("forks")
            if pids == [0]:
                os._exit(not is_refused_to_another("forks"))
        finally:
            if pids == [0]:
                os._exit(2)
        assert os.waitpid(pids[0], 0)[1] == 0


@contextmanager
def another_member(name: str) -> Iterator[None]:
    """Have a process that is a member and has nothing."""
    source = f"""
        import time
        from millpond import HostBudget

        budget = HostBudget("{name}", 1)
        budget._take_turn()
        print("is one", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_a_look_at_the_members_waits_for_no_turn_of_the_governor() -> None:
    """It may come from a signal handler that has interrupted the budget, for whose lock the governor waits."""
    budget = HostBudget("waits", 1)
    with Pool(FakeConnector(), budget=budget) as pool, pool.connection(60):
        with ThreadPoolExecutor() as executor, budget._turning:
            [note] = executor.submit(host_budget.members, "waits").result(60)
        assert note.held == 1


def test_a_process_has_one_budget_of_a_name() -> None:
    budget = HostBudget("twice", 1)
    with pytest.raises(Misuse, match="this process has a HostBudget 'twice' already"):
        HostBudget("twice", 1)
    del budget
    with pytest.raises(ValueError, match="limit=0") as refused:
        HostBudget("twice", 0)
    HostBudget("twice", 1)
    assert refused.tb is not None, "which has what was not made"


def test_a_budget_is_made_anew_at_once_though_the_governor_of_the_last_one_is_at_its_turn() -> None:
    at_its_turn = threading.Event()

    class Slow(HostBudget):
        def _need(self) -> Need:
            at_its_turn.set()
            time.sleep(0.05)
            return super()._need()

    def govern() -> None:
        budget = ref()
        assert budget is not None
        budget._take_turn()

    budget = Slow("anew", 1)
    ref = weakref.ref(budget)
    governor = threading.Thread(target=govern)
    governor.start()
    assert at_its_turn.wait(60)
    del budget
    with Pool(FakeConnector(), budget=HostBudget("anew", 1)) as pool, pool.connection(60):
        assert is_refused_to_another("anew")
    governor.join()


def test_a_budget_that_is_made_while_its_predecessor_is_collected_loses_nothing() -> None:
    class Maker:
        """Makes another one as soon as the collector has cleared the weak references to the first."""

        def __init__(self) -> None:
            self.cycle = self
            self.budget: HostBudget

        def __del__(self) -> None:
            pool = Pool(FakeConnector(), budget=HostBudget("cycle", 1))
            pools.append(pool)
            with suppress(PoolTimeout):
                conns.append(pool.acquire(0.2))

    pools: list[Pool[FakeConnection]] = []
    conns: list[FakeConnection] = []
    maker = Maker()
    maker.budget = HostBudget("cycle", 1)
    maker.budget._take_turn()
    del maker
    gc.collect()
    assert conns == [], "its predecessor has not given back what it had"
    with pools.pop() as pool:
        conn = pool.acquire(60)
        assert is_refused_to_another("cycle")
        pool.release(conn)


def test_a_process_keeps_one_descriptor_of_a_file_however_often_its_budget_is_made() -> None:
    for _ in range(10):
        with Pool(FakeConnector(), budget=HostBudget("often", 1)) as pool, pool.connection(60):
            [note] = host_budget.members("often")
            assert note.slot == 0
        del pool
    files = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if is_there(number)]
    assert files.count(shared_path("often", "budget")) == 1


def is_there(number: str) -> bool:
    """Whether this process has a descriptor, and not only had it when it looked."""
    return os.path.lexists(f"/proc/self/fd/{number}")


def test_a_budget_whose_file_was_deleted_since_it_was_dropped_shares_the_new_one() -> None:
    budget = HostBudget("deleted", 1)
    budget._take_turn()
    path = Path(budget._path)
    del budget
    path.unlink()
    with Pool(FakeConnector(), budget=HostBudget("deleted", 1)) as pool, pool.connection(60):
        assert is_refused_to_another("deleted")


def test_a_budget_whose_descriptor_has_become_another_files_gets_its_permits_again_and_writes_nothing_there(
    tmp_path: Path,
) -> None:
    budget = HostBudget("replaced", 1)
    with Pool(FakeConnector(), budget=budget) as pool, pool.connection(60), (tmp_path / "log").open("w+b") as log:
        former = budget._file
        assert former is not None
        with budget._turning:
            os.dup2(log.fileno(), former._descriptor.number)
        until(lambda: budget._file is not former and budget._file is not None and budget._file.held == 1)
        assert is_refused_to_another("replaced")
        assert os.fstat(log.fileno()).st_size == 0
        os.close(former._descriptor.number)


def test_a_budget_whose_file_is_opened_again_with_the_same_number_knows_that_its_permits_were_lost() -> None:
    budget = HostBudget("reopened", 1)
    with Pool(FakeConnector(), budget=budget) as pool, pool.connection(60):
        former = budget._file
        assert former is not None
        number = former._descriptor.number
        with budget._turning:
            os.close(number)
            hogs = [os.open(os.devnull, os.O_RDONLY)]
            while hogs[-1] != number:
                hogs.append(os.open(os.devnull, os.O_RDONLY))
            os.close(hogs.pop())
            host_budget.members("reopened")  # which opens it
            assert former._descriptor.current()
        until(lambda: budget._file is not former and budget._file is not None and budget._file.held == 1)
        assert is_refused_to_another("reopened")
    for hog in hogs:
        os.close(hog)


def test_two_budgets_of_a_name_that_threads_make_at_once_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(2)

    def path_of(name: str, kind: str) -> str:
        barrier.wait(60)
        return shared_path(name, kind)

    def make() -> HostBudget | None:
        try:
            return HostBudget("at-once", 1)
        except Misuse:
            return None

    monkeypatch.setattr(host_budget, "shared_path", path_of)
    monkeypatch.setattr(_shared_budget, "LAST_TURN", 0.05)
    with ThreadPoolExecutor() as executor:
        budgets = [each.result(60) for each in [executor.submit(make) for _ in range(2)]]
    assert budgets.count(None) == 1


def test_a_disk_that_is_full_takes_no_permit_away(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite

    def fail(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "no space")

    budget = HostBudget("full", 3)
    with Pool(FakeConnector(), max_size=3, budget=budget) as pool:
        budget._take_turn()
        monkeypatch.setattr(os, "pwrite", fail)
        with ThreadPoolExecutor() as executor:
            lent = executor.submit(pool.acquire, 60)
            until(lambda: budget._file is not None and budget._file.held > 0)
            for _ in range(3):
                with suppress(OSError):
                    budget._take_turn()
            assert budget._file is not None
            assert budget._file.held == 1
            monkeypatch.setattr(os, "pwrite", write)
            pool.release(lent.result(60))
    monkeypatch.setattr(os, "pwrite", fail)
    with budget._turning:
        budget._file.take(1, 3, 0)
        budget._file.give_back(budget._file.held)
        assert budget._file.held == 0


def test_a_daemon_that_has_closed_all_descriptors_opens_the_file_again(tmp_path: Path) -> None:
    def child() -> None:
        log = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
        with budget._turning:
            os.dup2(log, number)
        with pool.connection(60):
            assert is_refused_to_another("daemon")
        assert os.fstat(log).st_size == 0

    budget = HostBudget("daemon", 1)
    with Pool(FakeConnector(), budget=budget) as pool:
        with pool.connection(60):
            assert budget._file is not None
            number = budget._file._descriptor.number
        pool.refresh()
        until(lambda: budget.used == 0)
        with forked(child) as status:
            assert status() == 0


@pytest.mark.parametrize("name", ["", "a/b", "..".join("x" * 60), "späti", "new\n"])
def test_a_name_that_cannot_be_one_of_a_file_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 100 letters"):
        HostBudget(name, 1)


def test_a_folder_that_others_may_write_to_is_not_used_and_becomes_so_when_that_is_mended(
    runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.mkdir()
    runtime.chmod(0o777)
    with Pool(FakeConnector(), budget=HostBudget("open", 1), timeout=60) as pool:
        with pytest.raises(PoolTimeout, match="the budget 'open' of 1 connections leaves 0 to this process"):
            pool.acquire(0.1)
        until(lambda: "others may write to it" in caplog.text)
        runtime.chmod(0o700)
        with pool.connection():
            assert (runtime / "open.budget").stat().st_mode & 0o777 == 0o600
    assert caplog.text.count("its pools wait until that is mended") == 1


def test_a_budget_that_is_dropped_gives_all_back_and_its_governor_goes() -> None:
    def governors() -> list[str]:
        return [thread.name for thread in threading.enumerate() if "dropped-governor" in thread.name]

    with Pool(FakeConnector(), budget=HostBudget("dropped", 1)) as pool, pool.connection():
        assert len(governors()) == 1
        (note,) = host_budget.members("dropped")
    del pool
    until(lambda: gc.collect() >= 0 and not governors(), timeout=60, pause=0.05)
    until(lambda: host_budget.members("dropped") == [])
    assert note.pid == os.getpid()


def is_whole(budget: Budget) -> bool:
    """Whether a pool may be sure of all that there is, and gets it."""
    try:
        pool = Pool(FakeConnector(), min_size=2, max_size=2, budget=budget)
    except ValueError:
        return False
    with pool, pool.connection(10), pool.connection(10):
        return True


@pytest.mark.filterwarnings("ignore:pool .* was never closed:ResourceWarning")
@pytest.mark.parametrize("kind", [Budget, HostBudget])
def test_an_exception_at_any_place_of_making_a_pool_leaves_its_budget_whole(kind: type[Budget]) -> None:
    def strike() -> None:
        raise Stop

    number, places, pools = 0, Places(0, strike), list[object]()
    while number == 0 or places.reached:
        number += 1 if kind is Budget else 5
        budget = Budget(2) if kind is Budget else HostBudget(f"struck-{number}", 2)
        places = Places(number, strike)
        with finalisers_cut(Stop), suppress(Stop), places:
            pools.append(Pool(FakeConnector(), min_size=2, max_size=2, budget=budget))
        # Not where it would be struck: its workers would not be sent home.
        pools.clear()
        until(lambda: is_whole(budget) or gc.collect(0) < 0)  # noqa: B023 (its workers may have it)
    assert number > 50


def test_pools_that_are_made_at_the_same_time_have_one_governor() -> None:
    budget = HostBudget("crowded", 8)
    barrier = threading.Barrier(9)

    def work() -> None:
        barrier.wait(60)
        with Pool(FakeConnector(), budget=budget) as pool, pool.connection(60):
            barrier.wait(60)
            barrier.wait(60)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    barrier.wait(60)
    barrier.wait(60)
    # Those who have come too late for the post go again.
    until(lambda: sum("crowded-governor" in thread.name for thread in threading.enumerate()) == 1)
    barrier.wait(60)
    for thread in threads:
        thread.join()


def governor_of(budget: HostBudget, found: list[bool]) -> threading.Thread:
    """Make a thread that does for once as a governor does."""

    def take_turn() -> None:
        mine = ref()
        found.append(mine is not None)
        if mine is not None:
            mine._take_turn()

    ref = weakref.ref(budget)
    return threading.Thread(target=take_turn)


class FoundInADrop(HostBudget):
    """A budget that its governor finds by its weak reference and takes a turn of, while it is being dropped."""

    def __init__(self) -> None:
        super().__init__("found", 1)
        self._take_turn()  # it has its file
        self.found: list[bool] = []
        self.governor = governor_of(self, self.found)
        self.at_its_turn, self.go_on = threading.Event(), threading.Event()

    def __del__(self) -> None:
        self.governor.start()
        self.at_its_turn.wait(60)
        super().__del__()
        self.go_on.set()

    def _need(self) -> Need:
        if hasattr(self, "go_on"):
            self.at_its_turn.set()
            self.go_on.wait(60)
        return super()._need()


def test_a_turn_that_begins_while_a_budget_is_dropped_leaves_nothing_taken() -> None:
    budget = FoundInADrop()
    governor, found = budget.governor, budget.found
    del budget
    governor.join(60)  # what it raises would fail this test
    assert found == [True]
    assert host_budget.members("found") == []


def test_a_governor_that_gets_no_thread_of_its_own_governs_in_the_one_that_was_to_start_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "governor" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Pool(FakeConnector(), budget=HostBudget("alone", 1)) as pool, pool.connection(60):
        pass


def test_it_can_be_resized() -> None:
    budget = HostBudget("resized", 1)
    with Pool(FakeConnector(), max_size=3, budget=budget) as pool, pool.connection():
        with pytest.raises(PoolTimeout):
            pool.acquire(0.05)
        budget.resize(2)
        with pool.connection(timeout=60):
            assert (budget.limit, budget.used, budget.allowance) == (2, 2, 2)
        assert "2 of 2 allowed" in repr(budget)
        with pytest.raises(ValueError, match="limit=0"):
            budget.resize(0)
