"""The few things that anyio leaves to each event loop: a task of nobody's, a cheap wake-up, and who is running."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from asyncio import events
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from threading import get_ident
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from millpond._core.line import Waiter
from millpond._whereabouts import users_line

if TYPE_CHECKING:
    import trio

__all__ = ["AsyncWaiter", "AsyncioBackend", "Backend", "TrioBackend", "current_backend"]

C = TypeVar("C")

REVIVAL: Final = 0.05
"""Seconds after which the work of a cancelled task is taken up again, if its loop still runs."""


class AsyncWaiter(Waiter[C]):
    """A caller who is suspended."""

    __slots__ = ()

    def sleep(self) -> Awaitable[None]:
        """Wait until woken."""
        raise NotImplementedError


class Backend(Protocol):
    """An event loop that a pool belongs to."""

    def running(self) -> bool:
        """Whether the caller runs in this loop."""
        ...

    def ended(self) -> bool:
        """Whether nothing will ever run in this loop again."""
        ...

    def whoami(self) -> int:
        """Return the number of the running task. Raises what `stranger` makes outside of the loop."""
        ...

    def spawn(
        self,
        work: Callable[..., Coroutine[Any, Any, None]],
        *args: object,
        crew: set[object],
        revive: Callable[[], object],
    ) -> None:
        """Start a task that belongs to no caller: it outlives the one who starts it, and ends with the loop.

        It is in `crew` from now on until it ends, however that comes about. If somebody cancels it and the loop goes
        on, `revive` is called.
        """
        ...

    def call(self, function: Callable[[], object]) -> None:
        """Have the loop call a function soon. Safe from other threads, finalisers and signal handlers."""
        ...

    def waiter(self, owner: int, since: float, deadline: float, site: tuple[CodeType, int] | None) -> AsyncWaiter[Any]:
        """Make what a caller waits with."""
        ...

    def current(self) -> object:
        """Return the running task; None if there is none."""
        ...

    def find(self, owner: int) -> object:
        """Return the task that has a number now; None if there is none."""
        ...

    def describe(self, task: Any) -> tuple[str, str | None]:  # noqa: ANN401
        """Return a task's name, and where it is now; None stands for one that is no more."""
        ...


def current_backend(stranger: Callable[[], Exception]) -> Backend:
    """Return the loop of the caller. It raises what `stranger` makes: here outside of any loop, later of this one."""
    loop = events._get_running_loop()
    if loop is not None:
        return AsyncioBackend(loop, stranger)
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return TrioBackend(stranger)
    raise stranger()


class AsyncioBackend:
    """A loop of asyncio, or of what follows its interface."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stranger: Callable[[], Exception]) -> None:
        self._loop: Final = loop
        self._stranger = stranger
        self._thread: Final = get_ident()

    def running(self) -> bool:
        return events._get_running_loop() is self._loop

    def ended(self) -> bool:
        return self._loop.is_closed()

    def whoami(self) -> int:
        if events._get_running_loop() is not self._loop:
            raise self._stranger()
        return id(asyncio.current_task(self._loop))

    def spawn(
        self,
        work: Callable[..., Coroutine[Any, Any, None]],
        *args: object,
        crew: set[object],
        revive: Callable[[], object],
    ) -> None:
        # In a context of its own: what a caller has set there (a trace, a request) is not the pool's.
        task = self._loop.create_task(work(*args), context=contextvars.Context())

        def ended(task: asyncio.Task[None]) -> None:
            crew.discard(task)
            if task.cancelled():
                # By whoever cancels all tasks: as a rule because the loop ends, and then this is never called.
                self._loop.call_later(REVIVAL, revive)

        # A callback, and nothing inside of the task, since a task can be cancelled before it begins.
        task.add_done_callback(ended)
        crew.add(task)

    def call(self, function: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(function)

    def waiter(self, owner: int, since: float, deadline: float, site: tuple[CodeType, int] | None) -> AsyncWaiter[Any]:
        return _AsyncioWaiter(owner, since, deadline, site, self._loop, self._thread)

    def current(self) -> object:
        return asyncio.current_task(self._loop)

    def find(self, owner: int) -> object:
        return next((task for task in asyncio.all_tasks(self._loop) if id(task) == owner), None)

    def describe(self, task: Any) -> tuple[str, str | None]:  # noqa: ANN401
        if task is None or task.done():
            return "a task that has ended", None
        return f"task {task.get_name()!r}", users_line(_inwards(task.get_coro()))


class _AsyncioWaiter(AsyncWaiter[C]):
    __slots__ = ("_future", "_thread")

    def __init__(
        self,
        owner: int,
        since: float,
        deadline: float,
        site: tuple[CodeType, int] | None,
        loop: asyncio.AbstractEventLoop,
        thread: int,
    ) -> None:
        super().__init__(owner, since, deadline, site)
        self._future: asyncio.Future[None] = loop.create_future()
        self._thread = thread

    def wake(self) -> None:
        if get_ident() == self._thread:
            self._fire()
        else:
            # Only when the watcher's thread cleans up after a change that was cut short.
            with suppress(RuntimeError):
                self._future.get_loop().call_soon_threadsafe(self._fire)

    def _fire(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def sleep(self) -> Awaitable[None]:
        return self._future


class TrioBackend:
    """A run of trio."""

    def __init__(self, stranger: Callable[[], Exception]) -> None:
        import trio

        self._trio: Final = trio
        self._stranger = stranger
        self._token: Final = trio.lowlevel.current_trio_token()
        self._thread: Final = get_ident()
        self._root: Final = trio.lowlevel.current_root_task()

    def running(self) -> bool:
        try:
            return self._trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            return False

    def ended(self) -> bool:
        try:
            self._token.run_sync_soon(bool)
        except self._trio.RunFinishedError:
            return True
        return False

    def whoami(self) -> int:
        if not self.running():
            raise self._stranger()
        return id(self._trio.lowlevel.current_task())

    def spawn(
        self,
        work: Callable[..., Coroutine[Any, Any, None]],
        *args: object,
        crew: set[object],
        revive: Callable[[], object],
    ) -> None:
        # Nobody but the end of the run cancels a system task, so nothing is ever revived.
        async def member() -> None:
            try:
                await work(*args)
            finally:
                crew.discard(self._trio.lowlevel.current_task())

        task = self._trio.lowlevel.spawn_system_task(member, context=contextvars.Context())
        crew.add(task)

    def call(self, function: Callable[[], object]) -> None:
        with suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(function)

    def waiter(self, owner: int, since: float, deadline: float, site: tuple[CodeType, int] | None) -> AsyncWaiter[Any]:
        return _TrioWaiter(owner, since, deadline, site, self)

    def current(self) -> object:
        return self._trio.lowlevel.current_task()

    def find(self, owner: int) -> object:
        return next((task for task in self._all_tasks() if id(task) == owner), None)

    def describe(self, task: Any) -> tuple[str, str | None]:  # noqa: ANN401
        if task is None or getattr(task.coro, "cr_frame", None) is None:
            return "a task that has ended", None
        return f"task {task.name!r}", users_line(_inwards(task.coro))

    def _all_tasks(self) -> Iterator[trio.lowlevel.Task]:
        # Not asked of trio, which answers in its own thread only. (test: loans_of_tasks_are_told_to_other_threads)
        tasks = [] if self._root is None else [self._root]
        while tasks:
            task = tasks.pop()
            yield task
            for nursery in task.child_nurseries:
                tasks.extend(nursery.child_tasks)


class _TrioWaiter(AsyncWaiter[C]):
    __slots__ = ("_backend", "_parked", "_woken")

    def __init__(
        self,
        owner: int,
        since: float,
        deadline: float,
        site: tuple[CodeType, int] | None,
        backend: TrioBackend,
    ) -> None:
        super().__init__(owner, since, deadline, site)
        self._backend = backend
        self._parked: trio.lowlevel.Task | None = None
        self._woken = False

    def wake(self) -> None:
        if get_ident() == self._backend._thread:
            self._fire()
        else:
            self._backend.call(self._fire)

    def _fire(self) -> None:
        self._woken = True
        task, self._parked = self._parked, None
        if task is not None:
            self._backend._trio.lowlevel.reschedule(task)

    async def sleep(self) -> None:
        lowlevel = self._backend._trio.lowlevel
        if self._woken:
            await lowlevel.checkpoint()
            return

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked = None
            succeeded: trio.lowlevel.Abort = lowlevel.Abort.SUCCEEDED
            return succeeded

        self._parked = lowlevel.current_task()
        await lowlevel.wait_task_rescheduled(abort)


def _inwards(awaitable: object) -> Iterator[FrameType]:
    """Yield the frames of a suspended coroutine, innermost first."""
    frames: list[FrameType] = []
    while awaitable is not None:
        frame = (
            getattr(awaitable, "cr_frame", None)
            or getattr(awaitable, "gi_frame", None)
            or getattr(awaitable, "ag_frame", None)
        )
        if frame is None:
            break
        frames.append(frame)
        awaitable = (
            getattr(awaitable, "cr_await", None)
            or getattr(awaitable, "gi_yieldfrom", None)
            or getattr(awaitable, "ag_await", None)
        )
    return reversed(frames)
