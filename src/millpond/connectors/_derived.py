"""Classes that are made of other people's classes, as the program runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

__all__ = ["derived"]


def derived(cls: type, name: str, make: Callable[[], type]) -> type:
    """Return the class that was made of `cls` before, or make it; `name` is the attribute of `cls` that keeps it.

    The class itself keeps it, and no table does: whoever makes classes as the program runs, as recorders and tests
    do, makes many, and what was made of one refers to it. So both go together.
    """
    made = vars(cls).get(name)
    if made is None:
        made = make()
        setattr(cls, name, made)
    return cast("type", made)
