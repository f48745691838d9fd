"""PostgreSQL's URLs: what is wrong with one that libpq or asyncpg cannot read.

Their own words are not passed on, for they quote what they could not read, and that may be a password.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from millpond.connectors._url_text import pairs_of, shown_names

__all__ = ["FOREIGN", "NO_VALUE", "fault_of"]

FOREIGN: Final = {
    **dict.fromkeys(("schema", "currentSchema"), "say options=-csearch_path%3Dname"),
    "ssl": "say sslmode=require, or verify-full to have the certificate checked",
}
"""What other programs write in such a URL (Prisma, JDBC, node), and what to write instead."""
NO_VALUE: Final = "a parameter of the query has no value: expected name=value&name=value, where & in a value is %26"

_NO_CODE: Final = re.compile("%(?![0-9A-Fa-f]{2})")


def fault_of(url: str) -> str | None:
    """Return what libpq cannot read in a URL that has passed `expect_encoded`; None if that is none of these things."""
    pairs = pairs_of(url)
    shown = [shown for _, shown in shown_names(unquote(name) for name, _, _ in pairs)]
    parts = [(f"the {part}", text) for part, text in _parts_of(url).items()]
    for part, text in parts + [(part, name + value) for part, (name, _, value) in zip(shown, pairs, strict=True)]:
        if _NO_CODE.search(text):
            return f"{part} has a % that begins no code; a % itself is %25"
        if " " in text or "%00" in text:
            return f"{part} has a space, which is %20, or a zero byte"
    for part, (_, equals, value) in zip(shown, pairs, strict=True):
        if not equals:
            return NO_VALUE
        if "=" in value:
            return f"{part} has a second =, which is %3D in a value"
    return None


def _parts_of(url: str) -> dict[str, str]:
    """Return what stands before the query, as it is written."""
    authority, _, database = url.partition("://")[2].partition("?")[0].partition("/")
    userinfo, _, hosts = authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    return {"user": user, "password": password, "host": hosts, "database": database}
