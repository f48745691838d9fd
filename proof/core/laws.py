"""What has to hold in every state, and for every change."""

from __future__ import annotations

from typing import Final

from millpond._core.entry import Entry, State
from millpond._core.line import Refusal
from proof.core.stand import (
    CALLERS,
    ENROL,
    GHOST,
    IDLE,
    JOBS,
    LINE,
    LOANS,
    LOOK,
    LOST,
    NOW,
    OPENS,
    POSTING,
    SETTLE,
    STRAYS,
    WAITS,
    WORKING,
    Caller,
    Row,
    Stand,
    Violation,
)
from proof.core.world import Event, World

__all__ = ["check_calm", "check_change", "check_cut", "check_state"]

PLACES: Final = ((IDLE, "idle", 1), (OPENS, "opening", 0), (LOANS, "on loan", 2), (POSTING, "to be reset", 4))
STATES_OF_JOBS: Final = (3, 4, 5)


def check_change(world: World, event: Event, picture: Row, before: Row) -> None:
    """Hold what has just happened against the laws."""
    for number, stand in enumerate(world.stands):
        check_service(stand)
        if stand.torn or stand.dropped:
            continue
        check_counters(stand, event if event[1] == number else ("nothing", number))
        check_gate(stand)
        check_places(stand, picture[number], before[number], event)
        check_sizes(stand)
        check_others(stand)
        if stand.core.quiet_until is not None and (stand.core.line or len(stand.core.idle) < len(stand.core.entries)):
            raise Violation("nobody is to come though something is under way")
        if event[:2] == ("tick", number) and stand.core.due(NOW) <= NOW and stand.core.opens_wanted(NOW) <= 0:
            raise Violation("the keeper is to come again at once, for nothing")
    if world.case.budget:
        check_budget(world)


def check_budget(world: World) -> None:
    """No pool has more than its quota, and all together no more than the limit."""
    ledger = world.ledger
    if ledger.held > max(ledger.limit, world.held_before):
        raise Violation(f"{ledger.held} permits are given out or kept, of {ledger.limit} that there are")
    for stand in world.stands:
        assert stand.share is not None
        if len(stand.core.entries) > stand.share.quota:
            raise Violation(f"{len(stand.core.entries)} connections, with a quota of {stand.share.quota}")


def check_cut(world: World) -> None:
    """Hold a change that is struck in the middle against the laws that hold even there."""
    for stand in world.stands:
        check_service(stand)


def check_service(stand: Stand) -> None:
    """First come, first served; nobody after its deadline; nobody twice; nothing that may not be lent."""
    passed_over = False
    for caller in stand.line_before:
        if caller.claim is not None:
            check_served(stand, caller, passed_over=passed_over)
        elif caller.refusal is None and caller.fate == WAITS:
            if not caller.done:
                passed_over = True
            elif not (caller.woken or stand.torn or stand.watch is not None):
                raise Violation("a caller was sent away without an answer")
    new = [caller.claim for caller in stand.callers[stand.callers_before :]]
    for claim in (*new, stand.lent):
        if claim is not None:
            if passed_over:
                raise Violation("one who has just come was served before those in line")
            check_loan(stand, claim.entry)


def check_served(stand: Stand, caller: Caller, *, passed_over: bool) -> None:
    """Hold it against the laws that one in line has been served."""
    assert caller.claim is not None
    core = stand.core
    if caller.refusal is not None:
        raise Violation("a caller was served and refused")
    if passed_over:
        raise Violation("a caller was served before one who had come earlier")
    if caller.deadline <= NOW:
        raise Violation("a caller was served after its deadline")
    if (core.paused or core.closing) and not stand.torn_before:
        raise Violation("a paused or closed pool has lent a connection to one in line")
    check_loan(stand, caller.claim.entry)


def check_loan(stand: Stand, entry: Entry[str]) -> None:
    """Only what is sound, proved, young and of this generation is lent."""
    most = stand.core.settings.max_uses
    if stand.torn_before:
        # The audit may have lent it before the change.
        return
    if entry.doom is not None:
        raise Violation("a connection was lent that is to be closed")
    if entry.generation != stand.core.generation:
        raise Violation("a connection was lent that is of an earlier generation")
    if entry.expires < NOW:
        raise Violation("a connection was lent after its lifetime")
    if most is not None and entry.uses > most:
        raise Violation("a connection was lent more often than max_uses")
    if entry.leak_told & 1:
        raise Violation("a connection was lent unchecked after a standstill")
    if entry.leak_told & 2:
        raise Violation("a connection was lent unchecked after another was found dead")


def check_gate(stand: Stand) -> None:
    """Whoever finds the gate down may take what is idle."""
    core = stand.core
    reason = (
        core.paused
        or core.closing
        or core.forking
        or core.line.head() is not None
        or len(core.entries) - core._n_closing > core.settings.max_size
    )
    if reason and not core.gate:
        raise Violation("the gate is down although somebody waits, or nothing may be lent")


def check_counters(stand: Stand, event: Event) -> None:
    """What is derived is what the truth says."""
    core = stand.core
    states = [entry.state for entry in core.entries]
    counted = core._n_opening, core._n_tending, core._n_closing
    true = (
        states.count(State.OPENING),
        states.count(State.CHECKING) + states.count(State.RESETTING),
        states.count(State.CLOSING),
    )
    if counted != true:
        raise Violation(f"opening, tending, closing are counted as {counted} and are {true}")
    if core._n_stalled != sum(entry.stalled for entry in core.entries):
        raise Violation("checks and resets that take too long are counted wrong")
    waiting = sum(1 for waiter in core.line._queue if not waiter.done)
    if len(core.line) != waiting:
        raise Violation(f"{len(core.line)} are counted in line and {waiting} wait")
    lent = states.count(State.LENT) + states.count(State.IDLE) - len(core.idle)
    if core._n_lent != lent:
        raise Violation(f"{core._n_lent} are counted as lent and {lent} are")
    if {id(entry) for entry in core.by_conn.values()} != {id(e) for e in core.entries if e.state is not State.OPENING}:
        raise Violation("the index of connections is wrong")
    if core.wakes:
        raise Violation("somebody has not been woken")
    if not stand.torn_before:
        check_statistics(stand, event)


def check_statistics(stand: Stand, event: Event) -> None:
    """What is counted since the pool was made is what has happened."""
    core = stand.core
    line = stand.line_before
    new = stand.callers[stand.callers_before :]
    served = sum(1 for caller in line if caller.claim is not None)
    late = sum(1 for caller in line if caller.refusal is Refusal.TIMEOUT)
    sent = sum(1 for caller in line if caller.refusal is not None) - late
    for caller in new:
        served += caller.claim is not None and caller.enrolled
        late += caller.refusal is Refusal.TIMEOUT
        sent += caller.refusal is not None and caller.refusal is not Refusal.TIMEOUT
    if (core.waits, core.timeouts, core.refusals) != (served, late, sent):
        raise Violation(
            f"waits, timeouts and refusals are counted as {core.waits, core.timeouts, core.refusals} "
            f"and are {served, late, sent}"
        )
    ended = (
        sum(1 for entry in core.entries if entry.state is State.CLOSING) - stand.closing_before + (event[0] == "closed")
    )
    if sum(core.closes.values()) != ended:
        raise Violation(f"{sum(core.closes.values())} closes are counted and there were {ended}")
    lent = sum(1 for caller in line if caller.claim is not None) + sum(1 for caller in new if caller.claim is not None)
    lent += (stand.lent is not None) + stand.flown
    lent -= event[0] == "cancel" and stand.undone
    uses = sum(entry.uses for entry in core.entries) + core.retired_uses - stand.uses_before
    if uses != lent:
        raise Violation(f"{uses} loans are counted and there were {lent}")


def check_places(stand: Stand, picture: Row, before: Row, event: Event) -> None:
    """Every entry is where its state says, and none is without an owner."""
    for place, name, code in PLACES:
        for row in picture[place]:
            if row[0] != code:
                raise Violation(f"a connection {name} is in the state {row[0]}")
    for place in (JOBS, WORKING):
        for task, row in picture[place]:
            if row[0] != STATES_OF_JOBS[task]:
                raise Violation(f"a job {task} has a connection in the state {row}")
    for place in (LINE, CALLERS):
        for row in picture[place]:
            if row and row[8] and row[8][0] != 2:
                raise Violation(f"a caller has a connection in the state {row[8][0]}")
    served_ghosts = any(caller.fate == GHOST and caller.claim is not None for caller in stand.line_before)
    if len(picture[LOST]) > len(before[LOST]) and event[0] != "lose" and not (stand.torn_before or served_ghosts):
        raise Violation("a connection has no owner any more")
    if len(picture[STRAYS]) > len(before[STRAYS]) and event[0] != "lose" and not stand.torn_before:
        raise Violation("nobody closes a connection that is to be closed")


def check_sizes(stand: Stand) -> None:
    """Nothing is opened beyond what may be."""
    core = stand.core
    size = len(core.entries)
    if size > stand.size_before and size > core.settings.max_size:
        raise Violation(f"{size} connections, of {core.settings.max_size} that may be")
    if core._n_opening > core.settings.max_opening:
        raise Violation(f"{core._n_opening} opens under way, of {core.settings.max_opening} that may be")


def check_others(stand: Stand) -> None:
    """Who waits for the whole pool goes on when the time has come, and not before."""
    core = stand.core
    open_now = len(core.entries) - core._n_opening - core._n_closing
    if core.warming and (open_now >= core.settings.min_size or core.closing):
        raise Violation("somebody waits on for min_size connections, which are open")
    if core.draining and core.closing and not core.entries:
        raise Violation("somebody waits on for the last connection, which is closed")
    for caller in stand.draining:
        if caller.done and caller.woken and core.entries:
            raise Violation("the end was told too early")


def check_state(world: World, event: Event, picture: Row) -> None:
    """Hold a state against the laws. It is changed by that."""
    for number, stand in enumerate(world.stands):
        if stand.torn or stand.dropped:
            continue
        if not world.case.strikes_returns:
            check_settled(stand, event, picture[number])
        found = stand.core.audit(NOW)
        if found and not picture[number][STRAYS]:
            raise Violation(f"the audit found: {'; '.join(found)}")
        if not (world.case.budget or world.case.steps or world.case.hot or world.case.cut):
            after = without_trifles(stand.picture())
            if after != without_trifles(picture[number]) and not picture[number][STRAYS]:
                raise Violation("the audit has changed something")


def check_calm(world: World) -> None:
    """Nobody waits for anything but time when openers, tenders, keeper and borrowers have done what there is to do."""
    for stand in world.stands:
        core = stand.core
        if stand.dropped:
            continue
        # Whoever is struck between telling the budget and having it settled leaves that to the ticker.
        left_to_ticker = core.outage is not None or (world.case.budget and world.case.cut)
        if core.line and not left_to_ticker:
            raise Violation("a caller waits, and nobody does anything about it")
        if core.closing and core.entries:
            raise Violation("a closed pool has connections, and nobody closes them")
        if any(caller.fate == WAITS for caller in stand.warming) and core.outage is None:
            raise Violation("somebody waits for min_size connections, and nobody opens them")
        if stand.callers and any(caller.done for caller in stand.callers):
            raise Violation("a caller has its answer, and nobody wakes it")
        if len(core.idle) != len(core.entries):
            raise Violation("a connection is not idle, and nobody has it")
        missing = min(core.settings.min_size, core.settings.max_size) - len(core.entries)
        if missing > 0 and not core.closing and core.outage is None:
            raise Violation("fewer than min_size connections are open, and nobody opens more")
        alert = core.share is not None and core.share.alert
        too_many = len(core.entries) > core.settings.max_size
        reason = core.paused or core.closing or core.forking or core.line or alert or too_many
        if core.gate and not reason:
            raise Violation("the gate is up for no reason")


def without_trifles(picture: Row) -> Row:
    """Leave out of a picture what an audit may change: the gaps in the line, and a gate that is up a while longer."""
    (_, *flags), counts, *_ = picture
    line = [row for row in picture[LINE] if row]
    return flags, counts[:4], picture[2:LINE], line, picture[CALLERS:]


def check_settled(stand: Stand, event: Event, picture: Row) -> None:
    """After a change nobody waits for what lies there."""
    core = stand.core
    head = core.line.head()
    if head is None or head.deadline <= NOW or core.paused or not core.idle:
        return
    if any(phase in (ENROL, LOOK, SETTLE) for phase, _ in stand.flights):
        # Somebody is just about to look after it.
        return
    for claim in core.idle:
        if claim.entry.good_until >= NOW:
            raise Violation("a caller waits while a connection lies there that may be lent")
    if core._sweep_due or event[0] == "pass_time":
        return
    if core._n_tending - core._n_stalled <= len(core.line):
        raise Violation("a caller waits while a connection lies there that nobody checks")
