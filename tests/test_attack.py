"""All features, policies and scores at once, in long random lives: what must hold does."""

import random

import pytest
from attack_testing import Attack
from cluster_testing import check_replay


def live(seed: int, n_steps: int) -> Attack:
    attack = Attack(random.Random(seed).choice)
    attack.begin()
    for _ in range(n_steps):
        attack.step()
        attack.check()
    check_replay(attack.cluster.events, attack.cluster.outcomes, attack.engine.dump())
    return attack


@pytest.mark.parametrize("seed", range(8))
def test_a_life_under_attack(seed: int) -> None:
    attack = live(seed, 60)
    assert attack.counts["PlanCommitted"] > 5, attack.counts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_a_long_life_under_attack(seed: int) -> None:
    live(seed, 200)
