"""Settings that cannot work are refused at once, with what would do."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

from millpond import Settings
from millpond._core.settings import ALIASES, Options, expect_seconds


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_size", 0, "max_size=0 can lend nothing: it must be 1 or more"),
        ("min_size", -1, "must be from 0 to max_size"),
        ("min_size", 11, "min_size=11 does not fit max_size=10"),
        ("max_opening", 0, "max_opening=0 can open nothing"),
        ("max_waiting", -1, "or None for any number"),
        ("max_uses", 0, "or None for any number"),
        ("timeout", -1.0, "must be 0 or more seconds"),
        ("timeout", math.nan, "must be 0 or more seconds"),
        ("check_after", -0.5, "must be 0 or more seconds"),
        ("connect_timeout", 0, "must be more than 0 seconds"),
        ("max_idle", 0.0, "must be more than 0 seconds"),
        ("max_lifetime", -3, "must be more than 0 seconds"),
        ("keepalive", 0, "must be more than 0 seconds"),
        ("leak_after", math.nan, "must be more than 0 seconds"),
        ("order", "random", "order='random' must be 'lifo' or 'fifo'"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_what_would(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^" + name) as caught:
        Settings(**{name: value})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("name", 5, "a string"),
        ("order", None, "a string"),
        ("ride_out", "yes", "True or False"),
        ("max_size", 2.5, "an int"),
        ("max_size", True, "an int"),
        ("max_size", "20", "an int"),
        ("max_waiting", 1.0, "an int or None"),
        ("max_uses", "many", "an int or None"),
        ("timeout", "5s", "a number of seconds"),
        ("timeout", None, "a number of seconds"),
        ("keepalive", True, "a number of seconds"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_right_one(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}=.* must be {wanted}"):
        Settings(**{name: value})


def test_good_settings_are_taken_and_cannot_be_changed() -> None:
    settings = Settings(name="orders", max_size=3, max_waiting=0, max_uses=1, timeout=0, order="fifo")
    with pytest.raises(FrozenInstanceError):
        settings.max_size = 4  # type: ignore[misc]


def test_the_keyword_arguments_of_a_pool_are_the_settings() -> None:
    assert list(Options.__annotations__) == [field.name for field in fields(Settings)]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_sise", r"; did you mean max_size\?$"),
        ("pool_recycle", r"; did you mean max_lifetime\?$"),
        ("colour", r"; there are name, min_size, .*, ride_out, budget$"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_one_that_may_be_meant(name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=f"^a pool has no setting '{name}'{hint}"):
        Settings.of({name: 5})  # type: ignore[misc]
    assert Settings.of({"max_size": 3}) == Settings(max_size=3)


def test_what_other_pools_call_a_setting_is_a_setting() -> None:
    assert set(ALIASES.values()) <= {field.name for field in fields(Settings)}
    assert not set(ALIASES) & {field.name for field in fields(Settings)}


@pytest.mark.parametrize("seconds", [0, 5, -1, 0.5, math.inf, -math.inf])
def test_any_number_of_seconds_is_a_timeout(seconds: float) -> None:
    expect_seconds(seconds)


@pytest.mark.parametrize(
    ("wrong", "kind"), [("5", TypeError), (None, TypeError), (True, TypeError), (math.nan, ValueError)]
)
def test_what_is_no_number_of_seconds_is_no_timeout(wrong: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=rf"^timeout={wrong!r} must be a number of seconds \(math.inf for no limit\)$"):
        expect_seconds(wrong)


def test_connectors_are_told_a_limit_that_every_driver_can_take() -> None:
    assert Settings(connect_timeout=2.5).exchange_limit == 2.5
    assert Settings(connect_timeout=math.inf).exchange_limit * 1000 < 2**31
