"""A program may end with its pools open, at any moment."""

from __future__ import annotations

import pytest

from .children import run_program

PROGRAM = """
    import atexit, logging, threading, time

    def look():
        print([thread.name for thread in threading.enumerate() if "opener" in thread.name or "tender" in thread.name])
        with served.connection(timeout=2) as conn:
            print(conn)
        try:
            with closing.connection() as conn:
                print(conn)
        except ConnectFailed as error:
            print(type(error.__cause__).__name__)

    atexit.register(look)  # called after those of what is imported from here on

    from millpond import ConnectFailed, Pool

    def connect():
        time.sleep(0.2)
        return complex(0, 1)

    def close(conn):
        time.sleep(0.1)

    logging.disable()  # it warns of what fails at the end
    opening = Pool(connect, close=close, min_size=3)
    served = Pool(connect, close=close)
    closing = Pool(connect, close=close)
    for pool in (served, closing):
        with pool.connection():
            pass
    closing.refresh()
    while not any(thread.name.startswith("millpond-pool-tender") for thread in threading.enumerate()):
        time.sleep(0.001)
"""


def test_no_worker_outlives_the_interpreter_and_what_runs_at_its_end_is_served() -> None:
    workers, idle, opened = run_program(PROGRAM).splitlines()
    assert (workers, idle) == ("[]", "1j")
    # Python 3.12 starts no thread any more by then.
    assert opened in ("1j", "RuntimeError")


LATEST = """
    import time
    from millpond import Pool, PoolError

    class Finalised:
        def __init__(self, pool):
            self.pool = pool

        def __del__(self):
            began = time.monotonic()
            try:
                with (self.pool or shared).connection():
                    print("served")
            except PoolError as error:
                print(type(error).__name__, time.monotonic() - began < 2, str(error).splitlines()[0])

    shared = Pool(lambda: complex(0, 1), timeout=10)
    with shared.connection():
        pass
    of_a_shared_one = Finalised(None)
    of_its_own = Finalised(Pool(lambda: complex(0, 1), timeout=10))
"""


def test_a_finaliser_that_borrows_when_the_program_has_ended_does_not_wait() -> None:
    """Nobody runs any more who could open a connection, or return one."""
    said = run_program(LATEST).splitlines()  # in the order in which the interpreter takes things apart
    over = "lent no connection within 10.0 s: the program ends, and nobody opens connections any more"
    assert len(said) == 2
    assert f"PoolTimeout True pool 'pool' {over}" in said
    assert {"served", "PoolClosed True pool 'pool' is closed", f"PoolTimeout True pool 'pool' {over}"} >= set(said)


LATE = """
    import atexit, time

    def look():
        time.sleep(1.2)
        with pool.connection(timeout=2) as conn:
            print(conn)

    atexit.register(look)  # called after those of what is imported from here on

    from millpond import Pool

    pool = Pool(lambda: complex(0, 1))
    with pool.connection():
        pass
"""


def test_what_is_idle_is_lent_to_whatever_runs_at_the_end_however_late() -> None:
    """Nobody looks after the pool by then. On Python 3.12 nobody can be hired to check a connection."""
    assert run_program(LATE, "-W", "ignore") == "1j\n"


TELLING = """
    import logging, threading, time
    from millpond import ConnectFailed, Pool
    from millpond.events import OutageBegan

    class Finalised:
        def __del__(self):
            print("finalised")

    def connect():
        raise ConnectionRefusedError

    def listen(event):
        if isinstance(event, OutageBegan):
            telling.set()
            time.sleep(0.3)

    logging.disable()
    globals_of_the_program = Finalised()
    telling = threading.Event()
    pool = Pool(connect)
    pool.listen(listen)
    try:
        pool.acquire()
    except ConnectFailed:
        telling.wait()
"""


MANAGING = """
    import threading, time
    from millpond import Pool

    class Finalised:
        def __del__(self):
            print("finalised")

    globals_of_the_program = Finalised()
    managing = threading.Event()
    # A function of this program would keep its globals.
    slow = {"managing": managing, "sleep": time.sleep, "its_own": Pool._manage}
    exec("def manage(pool): return managing.set() or sleep(0.1) or its_own(pool)", slow)
    Pool._manage = slow["manage"]
    pool = Pool(lambda: complex(0, 1), min_size=1)
    managing.wait()
"""


@pytest.mark.parametrize("program", [TELLING, MANAGING], ids=["telling", "managing"])
def test_what_a_program_refers_to_is_finalised_though_something_is_done_for_a_pool_when_it_ends(program: str) -> None:
    """CPython ends a thread that is at work then where it stands, and whatever that refers to lives on."""
    assert run_program(program, "-W", "ignore") == "finalised\n"


BUSY = """
    import sys
    from millpond import Pool

    class Finalised:
        def __del__(self):
            print("finalised")

    sys.setswitchinterval(1e-6)
    globals_of_the_program = Finalised()
    pools = [Pool(lambda: complex(0, 1), max_size=1) for _ in range(100)]
    for pool in pools:
        with pool.connection():
            pass
    for pool in pools:
        pool.refresh()
"""


def test_what_a_program_refers_to_is_finalised_whatever_its_pools_are_doing_when_it_ends() -> None:
    assert run_program(BUSY, "-W", "ignore") == "finalised\n"


OPENING = """
    import atexit, socket, time

    def connect():
        begun.append(True)
        while not ending:
            time.sleep(0.001)
        return socket.socketpair()[0]

    begun, ending = [], []

    from millpond import Pool

    pool = Pool(connect, min_size=1)
    while not begun:
        time.sleep(0.001)
    atexit.register(ending.append, True)
"""


def test_a_program_that_ends_while_it_opens_its_first_connection_says_nothing() -> None:
    assert run_program(OPENING, "-W", "ignore") == ""


HIRING = """
    import _thread, atexit
    from millpond import Pool, _maintenance
    from millpond.testing import FakeConnector

    def hire():
        # Of two callers that need one at the same time each brings one, and this thread is slow.
        ending.acquire()
        try:
            _maintenance._hire(_maintenance._here())
        finally:
            hired.release()

    def end():
        ending.release()
        hired.acquire()

    ending, hired = _thread.allocate_lock(), _thread.allocate_lock()
    ending.acquire(), hired.acquire()
    with Pool(FakeConnector()) as used, used.connection():
        _thread.start_new_thread(hire, ())
    atexit.register(end)
"""


def test_a_thread_that_is_hired_while_a_program_ends_is_not_missed() -> None:
    assert run_program(HIRING) == ""
