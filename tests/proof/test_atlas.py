"""The fault atlas says what it is to say: one row of it, and a pool that falls short."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from proof.atlas import command, trial
from proof.atlas.crowd import Work
from proof.atlas.places import Address
from proof.atlas.subjects import SUBJECTS

# Faults on real servers, in the system's own time.
pytestmark = pytest.mark.thorough


def test_nobody_meets_a_connection_that_was_reset_while_it_was_idle(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = command.main(["reset, idle"])
    assert verdict.broken == [], capsys.readouterr().out


def test_a_pool_that_lends_dead_connections_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = next(subject for subject in SUBJECTS if subject.name == "millpond, urllib3")

    @contextmanager
    def spoilt(at: Address) -> Iterator[Work]:
        with sound.open(at) as work:
            before = at.proxy.accepted

            def fail(seconds: float, word: str) -> str:
                nonlocal before
                accepted, before = before, at.proxy.accepted
                if before > accepted > 0:
                    raise ConnectionResetError("dead")
                return work(seconds, word)

            yield fail

    monkeypatch.setattr(trial, "SUBJECTS", (sound._replace(open=spoilt),))
    verdict = command.main(["reset, idle"])
    assert verdict.broken == ["reset, idle: millpond, urllib3, missed goals"]
    assert "met a dead connection" in capsys.readouterr().out
