"""Water filling: max-min fairness again among those whom the cluster does not hold back.

Yields the lexicographic optimum: the least level as high as possible, then the next, and so on
(Gavel, OSDI '20, section 4.3, freezes one bottleneck after another with integer programs).

Here a round ends with GPU types that have a price. Their jobs are frozen: the price times the
capacity is exactly what their levels cost, so nobody else can ever get time on these types. So
there are at most as many rounds as types, however many jobs. Within a round, jobs that reach
their own full speed are not waited for: they keep it while the others rise.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq  # type: ignore[import-untyped]

from policies.filling import Filling, Tree
from policies.level_program import Level, largest_level, shares_from
from policies.linear_program import Array, Flags, Status, classes_of
from policies.shares import Shares, equal_share

REACHED = 1 - 1e-8
"""The part of all requirements that counts as all: levels are exact but for that much less."""
PRICED = 1e-5
"""The part of all prices from which a type counts as priced. Too high costs a round only."""
ROUNDING = 1e-12
MAX_CUTS = 60


def water_filling_shares(
    throughputs: Array,
    gpus: Array,
    *,
    weights: Array,
    capacity: Array,
    tree: Tree | None = None,
) -> Shares:
    """Maximise the levels of `max_min_shares` lexicographically; the least is the value.

    With a tree of queues, what rises is divided over it (see `hierarchical`), and the value is
    the sum of all levels.
    """
    usable = np.where(capacity > 0, throughputs, 0.0)
    alone = (usable * equal_share(gpus, capacity)).sum(axis=1)
    return _filled(usable, gpus, weights=weights, capacity=capacity, alone=alone, tree=tree)


def water_filling_shares_blind(
    throughputs: Array, gpus: Array, *, weights: Array, capacity: Array
) -> Shares:
    """Maximise the levels of `max_min_shares_blind` lexicographically, the value the least."""
    runs = np.where(capacity > 0, throughputs > 0, 0.0)
    alone = np.ones(len(gpus))
    return _filled(runs, gpus, weights=weights, capacity=capacity, alone=alone, tree=None)


def _filled(
    throughputs: Array,
    gpus: Array,
    *,
    weights: Array,
    capacity: Array,
    alone: Array,
    tree: Tree | None,
) -> Shares:
    """Fill up to speeds in units of `alone`, which count GPUs times."""
    queues = tree or Tree.flat(len(gpus))
    jobs = classes_of(throughputs, gpus, weights, alone, queues.queue, queues.tier)
    speeds, gpus_of = throughputs[jobs.first], gpus[jobs.first]
    slope = alone[jobs.first] / gpus_of
    least = largest_level(
        speeds,
        gpus_of,
        capacity=capacity,
        slope=weights[jobs.first] * slope,
        copies=jobs.copies,
    )
    if least.status is not Status.OPTIMAL or not np.isfinite(least.level):
        return shares_from(least, jobs.of_row, gpus=gpus, capacity=capacity)
    water = _Water(
        speeds=speeds.copy(),
        gpus=gpus_of,
        copies=jobs.copies,
        weights=weights[jobs.first],
        capacity=capacity,
        slope=slope,
        tree=queues.of_jobs(jobs.first),
        frozen=np.logical_not((speeds > 0).any(axis=1)),
        levels=np.zeros(len(slope)),
    )
    best = last = least
    # A round per type, and as many again for prices too small to tell from none.
    for _ in range(2 * len(capacity)):
        if water.frozen.all() or last.status is not Status.OPTIMAL:
            break
        last = water.rise(speeds)
        best = last if last.status is Status.OPTIMAL else best
    return Shares(
        fractions=best.fractions[jobs.of_row],
        value=least.level if tree is None else float(water.levels @ jobs.copies),
        status=last.status,
        prices=least.prices,
    )


@dataclass(slots=True, kw_only=True)
class _Water:
    """The levels so far. Open jobs see only the types that have no price yet."""

    speeds: Array
    gpus: Array
    copies: Array
    weights: Array
    capacity: Array
    slope: Array
    """Per job, the speed of level 1."""
    tree: Tree
    frozen: Flags
    levels: Array

    def rise(self, speeds: Array) -> Level:
        """Raise the open jobs until types get a price, and freeze who needs these types.

        Whether a rise can be had is told by the part of its requirements that can; if not
        all, the prices bound it from above, which is the next to try.
        """
        filling = self._filling()
        tried, prices = filling.total, None
        level = self._solve(self.levels + filling.rise(tried))
        for _ in range(MAX_CUTS):
            if level.status is not Status.OPTIMAL or level.level >= REACHED:
                break
            affordable = self._affordable(filling, level.prices, tried)
            if affordable >= tried:
                break
            tried, prices = affordable, level.prices
            level = self._solve(self.levels + filling.rise(tried))
        reached = self.levels + filling.rise(tried)
        # Levels that the last digits did not allow would make the next round infeasible.
        self.levels = reached * min(level.level, 1.0)
        self._freeze(speeds, prices, reached)
        return level

    def _filling(self) -> Filling:
        full = self.speeds.max(axis=1) / np.where(self.slope > 0, self.slope, 1.0)
        room = np.where(self.frozen, 0.0, np.maximum(full - self.levels, 0.0))
        return Filling(self.tree, room, weights=self.weights, copies=self.copies)

    def _solve(self, levels: Array) -> Level:
        return largest_level(
            self.speeds,
            self.gpus,
            capacity=self.capacity,
            slope=levels * self.slope,
            copies=self.copies,
        )

    def _affordable(self, filling: Filling, prices: Array, above: float) -> float:
        """Return the rise at which the cheapest ways cost what all GPUs are worth."""
        there = float(prices @ self.capacity)

        def over(rise: float) -> float:
            required = (self.levels + filling.rise(rise)) * self.slope
            costs = _cheapest(self.speeds, self.gpus, prices, required)
            return float((self.copies * costs).sum()) - there

        if over(above) <= 0 or over(0.0) >= 0:
            return above if over(above) <= 0 else 0.0
        return float(brentq(over, 0.0, above, xtol=1e-14 * above, rtol=1e-13))

    def _freeze(self, speeds: Array, prices: Array | None, reached: Array) -> None:
        if prices is None:
            self.frozen[:] = True
            return
        worth = prices * self.capacity
        unpriced = worth < PRICED * worth.sum()
        fastest = self.speeds[:, unpriced].max(axis=1, initial=0.0)
        still = ~self.frozen & (fastest > reached * self.slope * (1 + ROUNDING))
        newly = ~self.frozen & ~still
        self.frozen |= newly
        self.speeds[newly] = speeds[newly]
        self.speeds[np.ix_(still, ~unpriced)] = 0.0


def _cheapest(speeds: Array, gpus: Array, prices: Array, required: Array) -> Array:
    """Return the least price of time, on one type or mixed from two, that earns the speed."""
    # Idle is a type of speed 0 and price 0, so that every way is a mix of two.
    earns = [np.zeros(len(gpus)), *speeds.T]
    costs = [np.zeros(len(gpus)), *(price * gpus for price in prices)]
    least = np.where(required > 0, np.inf, 0.0)
    enough = required * (1 - 1e-12)
    for fast, fast_cost in zip(earns, costs, strict=True):
        for slow, slow_cost in zip(earns, costs, strict=True):
            fits = (slow < enough) & (enough <= fast)
            gap = np.where(fits, fast - slow, 1.0)
            mixed = slow_cost + (fast_cost - slow_cost) * (required - slow) / gap
            np.minimum(least, mixed, out=least, where=fits)
    return least
