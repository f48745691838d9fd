"""The record of a connection for tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

from redis import exceptions
from redis._parsers import _AsyncHiredisParser

from millpond import _watcher
from millpond.connectors._tally.commands import SPOILT
from millpond.connectors._tally.pushes import has_only_pushes
from millpond.connectors._tally.record import PLAIN, Tally, stray
from millpond.connectors.factory import cut_number

__all__ = ["AsyncTally"]


class AsyncTally(Tally):
    """The record of a connection for tasks."""

    if TYPE_CHECKING:
        is_connected: bool
        _reader: asyncio.StreamReader | None
        _writer: Any
        _sends_plainly: bool
        """Whether `_send` is redis-py's, and sends over a stream of asyncio's."""
        _loop: asyncio.AbstractEventLoop

        async def check_health(self) -> None: ...

    async def connect_check_health(self, *args: object, **kwargs: object) -> None:
        """Connect and log in, unless that is done."""
        if self.is_connected:
            return
        self._begin()
        self._loop = asyncio.get_running_loop()
        self._sends_plainly = False  # over what it will send is yet to be seen
        await super().connect_check_health(*args, **kwargs)  # type: ignore[misc]
        self._sends_plainly = type(self)._sends_plainly and self._has_streams()
        self._unread = self._find_look()
        self._settle_in()
        if self._has_streams():
            self._have_loss_told()

    def _has_streams(self) -> bool:
        """Whether it reads and writes over asyncio's streams, and not over what somebody else has made."""
        return isinstance(self._reader, asyncio.StreamReader) and isinstance(self._writer, asyncio.StreamWriter)

    def _find_look(self) -> Callable[[], object]:
        """Find the quickest way to look at what has come."""
        if not self._has_streams():
            return _nothing
        stream: Any = self._reader
        incoming: bytearray = stream._buffer
        if not isinstance(self._parser, _AsyncHiredisParser):
            # redis-py's own parser takes from the stream what belongs to a reply, and no more.
            return lambda: incoming
        reader: Any = self._parser._reader
        return lambda: incoming or reader.has_data()

    def is_open(self) -> bool:
        """Tell whether there is a connection."""
        return self._writer is not None

    def is_expected(self) -> bool:
        """Tell whether what has come is no more than a server may say unasked."""
        if self._writer is None:
            return True  # redis-py connects anew
        stream: Any = self._reader
        return self._takes_pushes() and has_only_pushes(bytes(stream._buffer))

    def _have_loss_told(self) -> None:
        """Have the loop tell of a hang-up: it reads idle connections, too, and closes them before others can look."""
        writer = self._writer
        descriptor = _watcher.identify(writer.get_extra_info("socket").fileno())
        if descriptor is not None:
            protocol = writer.transport.get_protocol()
            # In front of its own method, without a circle of references.
            protocol.connection_lost = partial(_lost, ref(protocol), ref(self), ref(writer), descriptor)

    async def send_command(self, *args: object, **kwargs: object) -> None:
        """Pack a command and send it."""
        packed = self.pack_command(*args)
        if self._writer is None or self.health_check_interval:
            await self._get_ready(kwargs.get("check_health", True))
        self._asked += 1
        if type(args[0]) not in PLAIN or args[0] not in self._known:
            self._heed(args[0], packed)
        if self._sends_plainly:
            # As redis-py does, but without the task that its time limit is on Python 3.11, if nothing has to wait.
            writer: Any = self._writer
            if not writer.transport.is_closing():
                writer.writelines(packed)
                if not writer.transport.get_write_buffer_size():
                    return
                packed = []
        await self._hand_over(packed)

    async def send_packed_command(self, command: str | bytes | Iterable[bytes], check_health: bool = True) -> None:
        """Send what somebody has packed."""
        await self._get_ready(check_health)
        await self._hand_over(self._count(command))

    async def _hand_over(self, packed: Iterable[str | bytes]) -> None:
        """Have redis-py send what has been counted."""
        # Before CPython's issue 136234 was mended (3.13.9, 3.14.1), `writelines` has the loop wait for a transport that
        # is lost. Whoever then connects with a socket of the same number waits in vain.
        lost = self._has_streams() and self._writer.transport.is_closing()
        await self._send([] if lost else packed, False)

    async def read_response(self, *args: object, **kwargs: object) -> object:
        """Read a reply."""
        try:
            response: object = await self._receive(*args, **kwargs)
        except exceptions.RedisError as error:
            self._hear(error)
            raise
        # What somebody gets who waits for push messages may be one, and None may say that the time is over.
        timed = response is None and (args[1] if len(args) > 1 else kwargs.get("timeout")) is not None
        if not timed and not kwargs.get("push_request"):
            self._answered += 1
        return response

    async def disconnect(self, *args: object, **kwargs: object) -> None:
        """Close the socket."""
        self._end(None if self._writer is None else self._writer.get_extra_info("socket"))
        await super().disconnect(*args, **kwargs)  # type: ignore[misc]

    async def hand_on_pushes(self) -> None:
        """Give the push messages that have been read to their handlers; raise if something else was read."""
        parser = self._parser
        stream: Any = self._reader
        while self._unread():
            if isinstance(self._parser, _AsyncHiredisParser):
                if stream._buffer:
                    await parser.read_from_socket()
                message = parser._reader.gets()
                if not isinstance(message, parser._hiredis_PushNotificationType or ()):
                    raise stray()
                await parser.handle_push_response(message)
            else:
                if stream._buffer[:1] != b">":
                    raise stray()
                await parser.read_response(push_request=True)

    async def _get_ready(self, check_health: object) -> None:
        """Do first what redis-py does when it sends: a command is counted on the socket that it goes to."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health and self.health_check_interval:
            await self.check_health()

    def _close(self) -> None:
        self._session |= SPOILT
        super()._close()  # type: ignore[misc]

    def let_go(self) -> None:
        """Free the socket, without a farewell, from any thread, also if the loop is closed already."""
        self._session |= SPOILT
        has_streams = self._has_streams()
        writer, self._writer, self._reader = self._writer, None, None
        self._parser.on_disconnect()
        if writer is None:
            return
        if not has_streams:
            writer.close()
            return
        try:
            # The writer has to live until then, or it would complain.
            self._loop.call_soon_threadsafe(lambda: writer.transport.abort())
        except RuntimeError:
            # The loop is closed. The socket goes with its transport; the server need not wait for that.
            cut_number(writer.get_extra_info("socket").fileno())

    def __del__(self, *_: object) -> None:
        # Its borrower has dropped it. The pool tells of that.
        if getattr(self, "_writer", None) is not None:
            self.let_go()


def _lost(
    protocol: ref[asyncio.StreamReaderProtocol],
    conn: ref[AsyncTally],
    writer: ref[asyncio.StreamWriter],
    descriptor: _watcher.Descriptor,
    error: Exception | None,
) -> None:
    """Take note that the loop has lost a transport. If redis-py has closed it itself, that is nobody's concern."""
    former, owner = protocol(), conn()
    if former is not None:
        del former.connection_lost
        former.connection_lost(error)
    if owner is not None and owner._writer is not None and owner._writer is writer():
        _watcher.report(descriptor)


def _nothing() -> None:
    return None
