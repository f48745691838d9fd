"""Larger pools than can be explored, by random walks: Hypothesis chooses what happens, and shortens what fails."""

from __future__ import annotations

import math
from marshal import loads
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from proof.core import laws
from proof.core.case import Case
from proof.core.world import Event, World

ONE = "acquire cancel dirty cut dead hang_up unsound discard lose failed refused forgo jitter"
ALL = "pause refresh warm close drain"


def some_settings() -> st.SearchStrategy[dict[str, Any]]:
    """Return settings of all kinds, with ages that the steps of time can reach."""
    return st.fixed_dictionaries(
        {
            "min_size": st.integers(0, 3),
            "max_size": st.integers(3, 8),
            "max_opening": st.integers(1, 4),
            "max_waiting": st.none() | st.integers(0, 6),
            "max_uses": st.none() | st.integers(1, 4),
            "order": st.sampled_from(["lifo", "fifo"]),
            "check_after": st.sampled_from([1.0, math.inf]),
            "max_idle": st.sampled_from([2.0, math.inf]),
            "keepalive": st.sampled_from([1.0, math.inf]),
            "max_lifetime": st.sampled_from([3.0, math.inf]),
            "ride_out": st.booleans(),
        }
    )


class LargerPool(RuleBasedStateMachine):
    """A pool of up to eight connections and twelve callers, which keeps the laws whatever happens."""

    world: World

    @initialize(settings=some_settings(), timed=st.booleans())
    def begin(self, settings: dict[str, Any], timed: bool) -> None:
        """Make a pool."""
        case = Case(
            "random",
            "anything happens",
            settings,
            f"{ONE} {ALL}",
            callers=12,
            timeouts=(1.0, math.inf) if timed else (math.inf,),
            steps=(0.5, 1.5) if timed else (),
            sizes=((1, 2), (2, 5)),
            lateness=2.0,
        )
        self.world = World(case)
        self.picture = loads(self.world.told(self.world.picture()))

    @rule(data=st.data())
    def happen(self, data: st.DataObject) -> None:
        """Have something happen that may."""
        self.world.put(self.picture)
        events, _ = self.world.enabled(self.picture)
        self.apply(data.draw(st.sampled_from(events)))

    @rule()
    def come_to_rest(self) -> None:
        """Have all happen that does in a fair world, until nothing is left to do but to wait for time to pass."""
        for _ in range(1000):
            self.world.put(self.picture)
            events, is_fair = self.world.enabled(self.picture)
            if not is_fair or events[0][0] == "pass_time":
                break
            self.apply(events[0])
        else:
            raise AssertionError("it does not come to rest")
        laws.check_calm(self.world)

    def apply(self, event: Event) -> None:
        """Have an event happen, and hold it against the laws."""
        world = self.world
        world.put(self.picture)
        world.apply(event)
        after = world.picture()
        laws.check_change(world, event, after, self.picture)
        told = world.told(after)
        laws.check_state(world, event, after)
        self.picture = loads(told)


LargerPool.TestCase.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLargerPool = LargerPool.TestCase
