"""What type checkers know of pools: whoever does not say what is lent need not, as in `pool = Pool.from_url(...)`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

__all__ = ["C", "K"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    C = TypeVar("C", default=Any)
    K = TypeVar("K", bound=Hashable, default=Any)
else:
    from typing import TypeVar

    C = TypeVar("C")
    K = TypeVar("K", bound=Hashable)
