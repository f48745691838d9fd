"""What a server shows, and who vouches for it."""

from __future__ import annotations

from ..urllib3.conftest import authority, certificate, server

__all__ = ["authority", "certificate", "server"]
