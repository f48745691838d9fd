"""The program that speaks TLS for a PostgreSQL that was built without: it takes the request for it, and carries on.

    python _tls.py PORT PORT_OF_POSTGRES CERTIFICATE [USER GROUP]

It is a process of its own so that the one under test has no thread and no socket of it. On SIGTERM it takes no more
connections, and ends with the last. It becomes that user when it has read the certificate, and not before: root's
Python may be out of his reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import struct
import sys

_SSL_REQUEST = 80877103
_GSS_REQUEST = 80877104


async def carry(
    client: asyncio.StreamReader, to_client: asyncio.StreamWriter, target: int, tls: ssl.SSLContext
) -> None:
    """Carry one connection to PostgreSQL, in TLS as far as here if the client asks for it."""
    try:
        await_all_written(to_client)
        first = await client.readexactly(8)
        if struct.unpack("!II", first)[1] == _GSS_REQUEST:
            to_client.write(b"N")
            first = await client.readexactly(8)
        if struct.unpack("!II", first)[1] == _SSL_REQUEST:
            to_client.write(b"S")
            await to_client.drain()
            await to_client.start_tls(tls)
            await_all_written(to_client)
            first = b""
        server, to_server = await asyncio.open_connection("127.0.0.1", target)
        await_all_written(to_server)
        to_server.write(first)
        await asyncio.gather(pump(client, to_server), pump(server, to_client))
    except (OSError, EOFError):  # a client that says nothing or does not trust us, a server that is gone
        pass
    finally:
        part(to_client)


def await_all_written(writer: asyncio.StreamWriter) -> None:
    """Let `drain` wait until the system has taken everything, so that nothing is lost when the connection ends."""
    writer.transport.set_write_buffer_limits(high=1, low=0)


def part(writer: asyncio.StreamWriter) -> None:
    """Say the TLS goodbye and hang up at once, as PostgreSQL does; asyncio would wait for the other's goodbye."""
    writer.close()
    writer.transport.abort()


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while read := await source.read(65536):
            sink.write(read)
            await sink.drain()
    finally:
        part(sink)


async def main(port: int, target: int, certificate: str, user: int | None = None, group: int = 0) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    if user is not None:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    carried: set[asyncio.Task[None]] = set()

    def accept(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(carry(client, to_client, target, tls))
        carried.add(task)
        task.add_done_callback(carried.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    await told.wait()
    server.close()
    with contextlib.suppress(ValueError):  # there is none left
        await asyncio.wait(carried, timeout=5)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:])))
