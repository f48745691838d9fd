"""millpond's pools for httpx2: `httpx2.Client(transport=millpond.httpx2.HTTPTransport())`.

`HTTPTransport` and `AsyncHTTPTransport` (on asyncio and trio) take what httpx2's own take, and raise what they raise.
Arguments that a client hands on to its transport (`verify`, `cert`, `http2`, `limits`, `proxy`, ...) go to these
instead: a client that is given a transport does not look at them.
"""

from __future__ import annotations

from millpond._extras import extra

with extra("httpx2"):
    import httpcore2
    import httpx2

from millpond._httpcore.library import Library
from millpond._httpcore.tasks import AsyncBody, AsyncFace, AsyncStream
from millpond._httpcore.threads import Body, Stream, ThreadFace

__all__ = ["AsyncHTTPTransport", "HTTPTransport"]

_LIBRARY = Library(httpx2, httpcore2)


class _Stream(Stream, httpx2.SyncByteStream): ...


class _Body(Body, httpx2.SyncByteStream): ...


class _AsyncStream(AsyncStream, httpx2.AsyncByteStream): ...


class _AsyncBody(AsyncBody, httpx2.AsyncByteStream): ...


class HTTPTransport(
    ThreadFace[httpx2.Request, httpx2.Response, httpx2.Limits, httpx2.Proxy | httpx2.URL | str], httpx2.BaseTransport
):
    """A transport for `httpx2.Client`, whose connections are kept by millpond's pools, one for each origin.

    Takes what `httpx2.HTTPTransport` takes. `limits` and a request's `timeout` mean what they mean there: how many
    connections there may be to all origins, how many may lie idle (here: for each origin), for how many seconds, and
    how many seconds a request waits in line before it gets `PoolTimeout`; it is served in the order of the line.

    `max_per_host` is how many connections there may be to one origin (default: as many as to all). `max_lifetime` is
    how old a connection may become (default 3,600 s). `name` is what errors and logs call the pools.

    A response that is not read to its end holds its connection until it is closed or dropped. Whoever waits when the
    transport is closed gets `RuntimeError` at once.
    """

    _library = _LIBRARY
    _stream = _Stream
    _body = _Body


class AsyncHTTPTransport(
    AsyncFace[httpx2.Request, httpx2.Response, httpx2.Limits, httpx2.Proxy | httpx2.URL | str],
    httpx2.AsyncBaseTransport,
):
    """A transport for `httpx2.AsyncClient`, on asyncio and trio; takes and does what `HTTPTransport` does.

    A request that is cancelled gives its place back at once; its connection is closed unless the response has come as
    a whole. Over HTTP/2 only its stream is.
    """

    _library = _LIBRARY
    _stream = _AsyncStream
    _body = _AsyncBody
