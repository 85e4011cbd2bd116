"""Water filling where two jobs may share GPUs: `space_sharing`, and then again for the others.

The least level is raised as far as it goes; who has a price for more is held back, and keeps
its level from then on; then the least of the rest is raised, and so on (Gavel, OSDI '20,
section 4.3, with pairs as in section 3.1). A price above nothing says that the job is held back
in every optimum, so nobody is frozen too early, and every round freezes somebody.
"""

from dataclasses import replace

import numpy as np

from policies.linear_program import Array, Rows, Solution, Status
from policies.space_sharing import (
    PAIRS_AT_ONCE,
    Groups,
    Pairs,
    PairShares,
    Profiles,
    level_pair_shares,
    most_for_all,
)
from policies.water_filling import water_filling_shares

MAX_RISES = 64
"""Rounds at most; who is not frozen by then keeps the level of the last one."""
PRICED = 1e-6
"""The part of all prices from which a job counts as held back."""
KEPT = 1 - 1e-9
"""The part of its level that a frozen job keeps: the last digits would be infeasible."""


def water_filling_pair_shares(
    profiles: Profiles,
    profile: Rows,
    *,
    weights: Array,
    capacity: Array,
    time_limit_s: float | None = None,
    at_once: int = PAIRS_AT_ONCE,
) -> PairShares:
    """Maximise the levels of `max_min_pair_shares` lexicographically; the value is the least.

    The time limit is for each of the programs solved. Out of time, the shares without pairs.
    """
    return level_pair_shares(
        profiles,
        profile,
        weights=weights,
        capacity=capacity,
        time_limit_s=time_limit_s,
        at_once=at_once,
        solve=_filled,
        instead=water_filling_shares,
    )


def _filled(
    groups: Groups, pairs: Pairs, at_once: int, time_limit_s: float | None
) -> tuple[Solution, Pairs]:
    """Raise the least level, freeze who is held back, and raise the others."""
    first, chosen = most_for_all(groups, pairs, at_once, time_limit_s)
    best = solution = first
    for _ in range(MAX_RISES):
        if solution.status is not Status.OPTIMAL:
            break
        price = -solution.prices["earned"] * groups.slope * groups.copies
        held = (groups.slope > 0) & (price > PRICED * max(price.sum(), 0.0))
        base = np.where(held, KEPT * groups.slope * solution.value, groups.base)
        groups = replace(groups, base=base, slope=np.where(held, 0.0, groups.slope))
        if not held.any() or not groups.slope.any():
            break
        solution, its_pairs = most_for_all(groups, pairs, at_once, time_limit_s)
        if solution.status is Status.OPTIMAL:
            best, chosen = solution, its_pairs
    return replace(best, value=first.value), chosen
