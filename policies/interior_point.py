"""An interior point method for level programs, which eliminates every job in closed form.

Mehrotra's predictor-corrector on the program of `level_program`, scaled so that capacities are
1. Jobs meet only in the prices of the types, so that Newton's equations reduce to one per type
and one for the level; a step costs a few passes over the jobs, and a dozen steps suffice.
"""

from dataclasses import dataclass

import numpy as np

from policies.linear_program import Array
from policies.newton import (
    GOOD_ENOUGH,
    MAX_STEPS,
    SPOILT,
    TO_THE_WALL,
    TOLERANCE,
    moved,
    products,
    reach,
)


@dataclass(slots=True)
class Iterate:
    """A point strictly inside all bounds, and Newton's steps from it.

    Arrays are (types, jobs): rows over all jobs are contiguous. Each primal variable has its
    dual beside it: x and z (reduced cost), e (speed beyond the requirement) and y, s (idle
    time) and w, c (idle capacity) and p (price, per whole type).
    """

    speed: Array
    demand: Array
    base: Array
    slope: Array
    t: float
    x: Array
    e: Array
    s: Array
    c: Array
    z: Array
    y: Array
    w: Array
    p: Array

    @classmethod
    def inside(cls, speed: Array, demand: Array, *, base: Array, slope: Array) -> "Iterate":
        """Start from the equal shares and equal prices."""
        n_types, n_jobs = speed.shape
        equal = equal_slices(demand)
        earned = _over_types(equal, speed)
        y = 1 / np.where(slope > 0, slope, 1.0) / n_jobs
        p = np.full(n_types, 1 / n_types)
        cost = demand * p[:, None] - speed * y
        w = np.maximum(-cost.min(axis=0), 0.0) + 0.5 / n_jobs
        return cls(
            speed=speed,
            demand=demand,
            base=base,
            slope=slope,
            t=0.9,
            x=np.repeat(equal[:, None], n_jobs, axis=1),
            e=np.maximum(earned - base - 0.9 * slope, 0.1 * earned),
            s=np.full(n_jobs, 1 - equal.sum()),
            c=1 - equal * demand.sum(axis=1),
            z=cost + w,
            y=y,
            w=w,
            p=p,
        )

    def run(self) -> bool:
        """Step until the gap closes and stay at the best point met; say whether it is good."""
        best, worst_of_best = self._point(), np.inf
        try:
            # Overflow is how an infeasible program shows: its multipliers grow for ever.
            with np.errstate(all="ignore"):
                for _ in range(MAX_STEPS):
                    newton = _Newton.at(self)
                    gap = products(self._primal(), self._dual())
                    worst = max(gap / (1 + abs(self.t)), newton.residual)
                    if worst < worst_of_best:
                        best, worst_of_best = self._point(), worst
                    if worst < TOLERANCE or not worst < SPOILT * worst_of_best:
                        break
                    self._advance(newton, gap)
        except np.linalg.LinAlgError:
            pass
        self.t, self.x, self.y, self.p = best
        return worst_of_best < GOOD_ENOUGH

    def _point(self) -> tuple[float, Array, Array, Array]:
        return self.t, self.x, self.y, self.p

    def _advance(self, newton: "_Newton", gap: float) -> None:
        """Look ahead along the straight way to the optimum, then go there by the centre."""
        n_pairs = self.x.size + 2 * len(self.y) + len(self.p)
        primal, dual, _ = newton.towards(self, [-a * b for a, b in self._pairs()])
        left = products(
            moved(self._primal(), primal, reach(self._primal(), primal)),
            moved(self._dual(), dual, reach(self._dual(), dual)),
        )
        centre = (left / gap) ** 3 * gap / n_pairs
        aims = [
            centre - a * b - da * db
            for (a, b), da, db in zip(self._pairs(), primal, dual, strict=True)
        ]
        primal, dual, dt = newton.towards(self, aims)
        part = reach(self._primal(), primal, TO_THE_WALL)
        self.t += part * dt
        self.x, self.e, self.s, self.c = moved(self._primal(), primal, part)
        part = reach(self._dual(), dual, TO_THE_WALL)
        self.z, self.y, self.w, self.p = moved(self._dual(), dual, part)

    def _primal(self) -> list[Array]:
        return [self.x, self.e, self.s, self.c]

    def _dual(self) -> list[Array]:
        return [self.z, self.y, self.w, self.p]

    def _pairs(self) -> list[tuple[Array, Array]]:
        return list(zip(self._primal(), self._dual(), strict=True))


@dataclass(frozen=True, slots=True)
class _Newton:
    """Newton's equations at a point, with every job eliminated.

    Per job, `mean` is the average speed and `apart` the distance of each type from it, weighted
    by x/z: with these the elimination subtracts no two nearly equal numbers, which would ruin
    the last digits.
    """

    reduced: Array
    cost: Array
    requirement: Array
    time: Array
    room: Array
    whole: float
    residual: float
    ratio: Array
    mean: Array
    apart: Array
    stiff: Array
    idle: Array
    pull: Array
    load: Array

    @classmethod
    def at(cls, i: Iterate) -> "_Newton":
        ratio = i.x / i.z
        weight = ratio.sum(axis=0)
        idle = weight + i.s / i.w
        mean = _each_job(i.speed, ratio) / idle
        apart = i.speed - mean
        spread = ratio * apart
        stiff = _each_job(spread, apart) + mean * mean * (i.s / i.w) + i.e / i.y
        pull, load = i.demand * spread, i.demand * ratio
        cost = i.z - (i.demand * i.p[:, None] + i.w - i.speed * i.y)
        requirement = i.base + i.slope * i.t + i.e - _each_job(i.speed, i.x)
        time = i.x.sum(axis=0) + i.s - 1
        room = _each_type(i.demand, i.x) + i.c - 1
        whole = 1 - _inner(i.slope, i.y)
        n_types = len(i.p)
        reduced = np.empty((n_types + 1, n_types + 1))
        across = _between_types(load / idle, load)
        # The diagonal of load^2/ratio - load^2/idle, as a sum of positive terms.
        alone = (load / idle * i.demand * (idle - ratio)).sum(axis=1)
        np.fill_diagonal(across, -alone - i.c / i.p)
        reduced[:-1, :-1] = across + _between_types(pull / stiff, pull)
        reduced[:-1, -1] = reduced[-1, :-1] = _over_jobs(pull, i.slope / stiff)
        reduced[-1, -1] = _inner(i.slope, i.slope / stiff)
        worst = max(float(abs(part).max()) for part in (requirement, time, room))
        return cls(
            reduced, cost, requirement, time, room, whole,
            max(worst, abs(whole), float(abs(cost).max()) * len(i.y)),
            ratio, mean, apart, stiff, idle, pull, load,
        )  # fmt: skip

    def towards(self, i: Iterate, aims: list[Array]) -> tuple[list[Array], list[Array], float]:
        """Return the step that changes the products of the pairs by `aims`, to first order."""
        aim_x, aim_e, aim_s, aim_c = aims
        drift = aim_x / i.z + self.ratio * self.cost
        short = -self.time - drift.sum(axis=0) - aim_s / i.w
        lift = (
            self.requirement
            + aim_e / i.y
            + self.mean * (self.time + aim_s / i.w)
            - _each_job(self.apart, drift)
        )
        right = np.empty(len(i.p) + 1)
        right[:-1] = (
            -self.room
            - _each_type(i.demand, drift)
            - aim_c / i.p
            - _over_jobs(self.pull, lift / self.stiff)
            - _over_jobs(self.load, short / self.idle)
        )
        right[-1] = self.whole - _inner(i.slope, lift / self.stiff)
        solved: Array = np.linalg.solve(self.reduced, right).astype(float)
        dp, dt = solved[:-1], float(solved[-1])
        dy = (lift + _over_types(dp, self.pull) + i.slope * dt) / self.stiff
        dw = self.mean * dy - (short + _over_types(dp, self.load)) / self.idle
        dz = i.demand * dp[:, None] + dw - i.speed * dy - self.cost
        primal = [
            aim_x / i.z - self.ratio * dz,
            (aim_e - i.e * dy) / i.y,
            (aim_s - i.s * dw) / i.w,
            (aim_c - i.c * dp) / i.p,
        ]
        return primal, [dz, dy, dw, dp], dt


# Sums by einsum, not by BLAS, which would wake its threads for products this thin; on a machine
# with other work to do, waiting for them takes longer than the product.


def _inner(left: Array, right: Array) -> float:
    return float(np.einsum("i,i", left.ravel(), right.ravel()))


def _each_job(left: Array, right: Array) -> Array:
    summed: Array = np.einsum("kj,kj->j", left, right)
    return summed


def _each_type(left: Array, right: Array) -> Array:
    summed: Array = np.einsum("kj,kj->k", left, right)
    return summed


def _over_jobs(table: Array, per_job: Array) -> Array:
    summed: Array = np.einsum("kj,j->k", table, per_job)
    return summed


def _over_types(per_type: Array, table: Array) -> Array:
    summed: Array = np.einsum("k,kj->j", per_type, table)
    return summed


def _between_types(left: Array, right: Array) -> Array:
    summed: Array = np.einsum("kj,lj->kl", left, right)
    return summed


def equal_slices(demand: Array) -> Array:
    """Return time fractions per type that every job can have at once, with room to spare."""
    equal: Array = 0.9 * np.minimum(1 / len(demand), 1 / demand.sum(axis=1))
    return equal
