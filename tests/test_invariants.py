"""Whatever happens, in whatever order: the books balance and nothing is started twice.

Users, nodes and executors do anything, also late, doubled, unknown and out of order, with
decisions in the loop; a Hypothesis state machine finds small stories, seeded soaks long ones.
"""

import random

import hypothesis.strategies as st
import pytest
from chaos_testing import Chaos, Pick
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule


def drawing(data: st.DataObject) -> Pick:
    return lambda options: data.draw(st.sampled_from(list(options)))


class Anything(RuleBasedStateMachine):
    """Few rules, which draw what they do: Hypothesis leaves whole rules out of a story."""

    @initialize(data=st.data(), policy=st.sampled_from(["priority", "fifo"]))
    def begin(self, data: st.DataObject, policy: str) -> None:
        self.chaos = Chaos(drawing(data), policy=policy)
        self.chaos.begin()

    @rule(data=st.data())
    def anything(self, data: st.DataObject) -> None:
        self.chaos.pick = drawing(data)
        self.chaos.step()

    @rule(data=st.data())
    def things_take_their_course(self, data: st.DataObject) -> None:
        self.chaos.pick = drawing(data)
        for step in (self.chaos.cycle, self.chaos.start_tasks, self.chaos.let_go):
            step()
            self.chaos.check()

    @invariant()
    def all_is_well(self) -> None:
        if hasattr(self, "chaos"):
            self.chaos.check()

    def teardown(self) -> None:
        if hasattr(self, "chaos"):
            self.chaos.finish()


Anything.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestAnything = Anything.TestCase


@pytest.mark.parametrize("seed", range(12))
def test_a_long_life_keeps_the_invariants(seed: int) -> None:
    policy = ("priority", "fifo")[seed % 2]
    chaos = Chaos(random.Random(seed).choice, policy=policy)
    chaos.begin()
    for _ in range(400):
        chaos.step()
        chaos.check()
    chaos.finish()
    assert chaos.counts["starts"] > 20, chaos.counts
