"""The manual clock goes only when it is told to, and never back."""

from __future__ import annotations

import pytest

from millpond.testing import ManualClock


def test_it_stands_still_until_it_is_advanced() -> None:
    clock = ManualClock()
    began = clock()
    assert clock() == began
    assert clock.advance(2.5) == began + 2.5
    assert clock() == began + 2.5


def test_it_starts_where_it_is_told_to() -> None:
    assert ManualClock(5.0)() == 5.0


def test_it_does_not_go_back() -> None:
    clock = ManualClock(5.0)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)
    assert clock() == 5.0
