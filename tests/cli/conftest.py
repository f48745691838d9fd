"""Processes to look at."""

from __future__ import annotations

from ..exposed.processes import runtime, start

__all__ = ["runtime", "start"]
