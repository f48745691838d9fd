"""The two libraries served: httpx on httpcore, and httpx2 on httpcore2, whose names and ways are the same."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any, Final

import h11

from millpond.errors import PoolClosed, PoolTimeout

__all__ = ["Library"]

ERRORS: Final = (
    "ConnectError",
    "ConnectTimeout",
    "LocalProtocolError",
    "NetworkError",
    "PoolTimeout",
    "ProtocolError",
    "ProxyError",
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
    "TimeoutException",
    "UnsupportedProtocol",
    "WriteError",
    "WriteTimeout",
)
"""The errors of httpcore for which httpx has one of the same name."""


class Library:
    """One of the two, and how its upper layer says what its lower one does."""

    def __init__(self, httpx: ModuleType, httpcore: ModuleType) -> None:
        self.httpx: Any = httpx
        self.httpcore: Any = httpcore
        self.http11_log = logging.getLogger(f"{httpcore.__name__}.http11")
        self._errors = {getattr(httpcore, name): getattr(httpx, name) for name in ERRORS}
        self._errors[h11.LocalProtocolError] = httpx.LocalProtocolError
        self._errors[h11.RemoteProtocolError] = httpx.RemoteProtocolError
        self._errors[PoolTimeout] = httpx.PoolTimeout
        self._errors[PoolClosed] = _closed

    def request(self, request: Any) -> Any:
        """Make httpcore's request of httpx's."""
        url = request.url
        return self.httpcore.Request(
            method=request.method,
            url=self.httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )

    def response(self, answer: Any, stream: Any) -> Any:
        """Make httpx's response of httpcore's."""
        return self.httpx.Response(
            status_code=answer.status, headers=answer.headers, stream=stream, extensions=answer.extensions
        )

    def translated(self, error: BaseException) -> Exception | None:
        """Return what httpx raises in place of an error of httpcore; None if it lets the error through."""
        for kind in type(error).__mro__:
            if kind in self._errors:
                mapped: Exception = self._errors[kind](str(error))
                return mapped
        return None


def _closed(message: str) -> RuntimeError:
    # What the clients of both say themselves.
    return RuntimeError("Cannot send a request, as the client has been closed.")
