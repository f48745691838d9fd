"""A part of what `make proof` explores; and that the exploration finds what it is there to find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from proof.core.case import Case
from proof.core.cases import CASES
from proof.core.search import Search
from proof.core.telling import parse_path, tell_path, write_path

from millpond._core.core import Core
from millpond._core.entry import Claim, Entry, Reason, State
from millpond._core.line import Line, Refusal, Waiter

NAMED = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", NAMED)
def test_the_core_keeps_the_laws(name: str) -> None:
    found = Search(NAMED[name], transitions=1500).run()
    assert found.violations == {}
    assert len(found.states) > 50


def test_a_case_that_is_small_enough_is_explored_to_its_end() -> None:
    found = Search(Case("tiny", "one caller, one connection", {"max_size": 1}, "acquire cancel", callers=1)).run()
    assert found.complete
    assert found.violations == {}
    # Nothing; a caller, before and after an open begins; an open that nobody waits for any more; a connection that is
    # handed over, new or used; on loan, with somebody in line or not; idle, new or used.
    assert len(found.states) == len(set(found.states)) == 10


# Classic defects of pools, each as a change of the core that has it.

Defect = Callable[[pytest.MonkeyPatch], None]
DEFECTS: dict[str, tuple[Defect, str, int]] = {}


def defect(case: str, transitions: int = 1500) -> Callable[[Defect], Defect]:
    """Note a defect, and the case that has to show it."""

    def note(seed: Defect) -> Defect:
        DEFECTS[seed.__name__] = seed, case, transitions
        return seed

    return note


def around(patch: pytest.MonkeyPatch, owner: type, name: str, other: Callable[..., Any]) -> None:
    """Replace a method by one that is given the original first."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *arguments: other(original, *arguments))


@defect("line")
def a_returner_never_looks_whether_anybody_waits(patch: pytest.MonkeyPatch) -> None:
    def lower(original: Any, core: Core[str]) -> None:
        original(core)
        core.gate = False

    around(patch, Core, "_set_gate", lower)


@defect("preempted", 4000)
def a_waiter_looks_before_it_raises_the_gate(patch: pytest.MonkeyPatch) -> None:
    def fetch(original: Any, core: Core[str], now: float) -> Claim[str] | None:
        core.gate = False
        claim: Claim[str] | None = original(core, now)
        return claim

    around(patch, Core, "_fetch", fetch)


@defect("line")
def a_caller_who_gives_up_keeps_what_it_got(patch: pytest.MonkeyPatch) -> None:
    def cancel(original: Any, core: Core[str], waiter: Waiter[str], now: float) -> None:
        waiter.claim = None
        original(core, waiter, now)

    around(patch, Core, "cancel", cancel)


@defect("hot")
def one_who_has_just_come_is_served_before_those_in_line(patch: pytest.MonkeyPatch) -> None:
    def enrol(original: Any, core: Core[str], waiter: Waiter[str], now: float) -> None:
        claim = core._fetch(now)
        if claim is None:
            original(core, waiter, now)
        else:
            waiter.done = True
            core._lend(claim, waiter, now)

    around(patch, Core, "enrol", enrol)


@defect("line")
def the_last_to_come_is_served_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Line, "head", lambda line: next((w for w in reversed(line._queue) if not w.done), None))


@defect("line")
def a_connection_is_handed_over_twice(patch: pytest.MonkeyPatch) -> None:
    def lend(original: Any, core: Core[str], claim: Claim[str], waiter: Waiter[str], now: float) -> None:
        original(core, claim, waiter, now)
        core.idle.append(claim)

    around(patch, Core, "_lend", lend)


@defect("time")
def a_caller_whose_time_is_over_stays_in_line(patch: pytest.MonkeyPatch) -> None:
    def expire(original: Any, core: Core[str], waiter: Waiter[str], now: float) -> None:
        core._refuse(waiter, Refusal.TIMEOUT)
        core.wakes.append(waiter)

    around(patch, Core, "expire", expire)


@defect("openings")
def what_is_being_opened_does_not_count(patch: pytest.MonkeyPatch) -> None:
    def wanted(original: Any, core: Core[str], now: float) -> int:
        return len(core.line)

    around(patch, Core, "opens_wanted", wanted)


@defect("deaths")
def a_death_casts_no_suspicion_on_the_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "suspect", lambda core, now: None)


@defect("whole-pool")
def a_refresh_forgets_what_is_on_loan(patch: pytest.MonkeyPatch) -> None:
    def condemn(original: Any, core: Core[str], entry: Entry[str], reason: Reason, now: float) -> None:
        if entry.state is not State.LENT:
            original(core, entry, reason, now)

    around(patch, Core, "condemn", condemn)


@defect("whole-pool")
def a_closed_pool_keeps_what_comes_back(patch: pytest.MonkeyPatch) -> None:
    def settle(original: Any, core: Core[str], now: float) -> None:
        core.closing, closing = False, core.closing
        original(core, now)
        core.closing = closing
        core._set_gate()

    around(patch, Core, "settle", settle)


@defect("uses")
def uses_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    def shelve(original: Any, core: Core[str], claim: Claim[str], now: float) -> None:
        claim.entry.uses = 0
        original(core, claim, now)

    around(patch, Core, "_shelve", shelve)


@defect("cut", 6000)
def one_in_line_is_struck_off_before_it_has_its_answer(patch: pytest.MonkeyPatch) -> None:
    def lend(original: Any, core: Core[str], claim: Claim[str], waiter: Waiter[str], now: float) -> None:
        core.line.leave(waiter)
        waiter.enrolled = False
        original(core, claim, waiter, now)

    around(patch, Core, "_lend", lend)


@defect("budget")
def a_pool_of_a_budget_is_never_asked_for_what_it_does_not_use(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "_make_room", lambda core, share: None)


@pytest.mark.parametrize("name", DEFECTS)
def test_the_exploration_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed, case, transitions = DEFECTS[name]
    seed(monkeypatch)
    found = Search(NAMED[case], transitions).run()
    assert found.violations
    path = min(found.violations.values(), key=len)
    *_, end = tell_path(NAMED[case], parse_path(write_path(path)))
    assert "VIOLATED" in end
