"""The largest level that all jobs can reach at once: the program behind every fair share.

    maximise t;  for all jobs j:  sum_k speed_jk x_jk >= base_j + slope_j t,  sum_k x_jk <= 1
                 for all types k: sum_j gpus_j x_jk <= capacity_k,  x >= 0

Jobs are many, GPU types few, and jobs meet only in the prices of the types. So an interior
point method (Mehrotra's predictor-corrector) can solve each job's own three rows in closed
form, for all jobs at once, and is left with one equation per type: a step costs a few passes
over the jobs, and a dozen steps suffice at any size. Its multipliers lie inside the optimal
face, so that a job is held back by the cluster if and only if its multiplier is positive.
"""

from dataclasses import dataclass

import numpy as np

from policies.linear_program import Array, Rows, Status
from policies.shares import Shares, fallback, within_limits

TOLERANCE = 1e-9
MAX_STEPS = 80
TO_THE_WALL = 0.995
"""How far to go towards the first variable that would turn negative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The level reached, the fractions that reach it, and what it hangs on."""

    level: float
    fractions: Array
    prices: Array
    """Per type: what one more GPU would raise the level by."""
    held: Array
    """Per job: the multiplier of its requirement, in the level's units; they sum to 1."""
    status: Status


def largest_level(
    speeds: Array,
    gpus: Array,
    *,
    capacity: Array,
    slope: Array,
    base: Array | None = None,
    copies: Array | None = None,
) -> Level:
    """Solve the program above for `copies` identical jobs per row.

    Rows without a positive speed on a type with capacity get nothing and hold nobody back. If
    no other row has a positive slope, nothing limits the level: it is infinite. INFEASIBLE
    means that the bases alone are more than the cluster has; the fractions are then nothing.
    """
    usable = capacity > 0
    runs = (speeds[:, usable] > 0).any(axis=1)
    times = gpus if copies is None else gpus * copies
    demand = (times / np.where(usable, capacity, 1.0)[:, None])[:, runs]
    speed = np.where(usable, speeds, 0.0)[runs].T
    top = speed.max(axis=0)
    rising = slope[runs]
    if not (rising > 0).any():
        return _unlimited(speeds.shape)
    start = _starting_level(speed, demand, rising)
    iterate = _Iterate.inside(
        speed / top,
        demand,
        base=(np.zeros(len(top)) if base is None else base[runs]) / top,
        slope=rising * start / top,
    )
    optimal = iterate.run()
    fractions, held = np.zeros(speeds.shape), np.zeros(len(speeds))
    fractions[runs] = np.where(speed > 0, iterate.x, 0.0).T
    held[runs] = iterate.y * iterate.slope
    return Level(
        level=iterate.t * start,
        fractions=within_limits(fractions, times, capacity),
        prices=np.where(usable, iterate.p * start / np.where(usable, capacity, 1.0), 0.0),
        held=held,
        status=Status.OPTIMAL if optimal else Status.INFEASIBLE,
    )


def shares_from(level: Level, job_class: Rows, *, gpus: Array, capacity: Array) -> Shares:
    """Hand the classes' fractions to their jobs; the equal shares if there are none."""
    if level.status is not Status.OPTIMAL:
        return fallback(gpus, capacity, level.status)
    return Shares(
        fractions=level.fractions[job_class],
        value=level.level,
        status=level.status,
        prices=level.prices,
    )


def _unlimited(shape: tuple[int, int]) -> Level:
    return Level(
        level=np.inf,
        fractions=np.zeros(shape),
        prices=np.zeros(shape[1]),
        held=np.zeros(shape[0]),
        status=Status.OPTIMAL,
    )


def _starting_level(speed: Array, demand: Array, slope: Array) -> float:
    """Return the level of the equal shares: the scale in which the level is near 1."""
    rising = slope > 0
    return float((_equal(demand) @ speed[:, rising] / slope[rising]).min())


def _equal(demand: Array) -> Array:
    equal: Array = 0.9 * np.minimum(1 / len(demand), 1 / demand.sum(axis=1))
    return equal


@dataclass(slots=True)
class _Iterate:
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
    def inside(cls, speed: Array, demand: Array, *, base: Array, slope: Array) -> "_Iterate":
        """Start from the equal shares and equal prices."""
        n_types, n_jobs = speed.shape
        equal = _equal(demand)
        earned = equal @ speed
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
        """Step until the gap closes; say whether it did, and numbers did not overflow first."""
        try:
            # Overflow is how an infeasible program shows: its multipliers grow for ever.
            with np.errstate(all="ignore"):
                return self._run()
        except np.linalg.LinAlgError:
            return False

    def _run(self) -> bool:
        n_pairs = self.x.size + 2 * len(self.y) + len(self.p)
        for _ in range(MAX_STEPS):
            gap = _products(self._primal(), self._dual())
            newton = _Newton.at(self)
            if not np.isfinite(newton.reduced).all():
                return False
            if gap < TOLERANCE * (1 + abs(self.t)) and newton.residual < TOLERANCE:
                return True
            primal, dual, _ = newton.towards(self, [-a * b for a, b in self._pairs()])
            reach_p, reach_d = _reach(self._primal(), primal), _reach(self._dual(), dual)
            left = _products(
                [v + reach_p * d for v, d in zip(self._primal(), primal, strict=True)],
                [v + reach_d * d for v, d in zip(self._dual(), dual, strict=True)],
            )
            centre = (left / gap) ** 3 * gap / n_pairs
            aims = [
                centre - a * b - da * db
                for (a, b), da, db in zip(self._pairs(), primal, dual, strict=True)
            ]
            self._step(*newton.towards(self, aims))
        return False

    def _primal(self) -> list[Array]:
        return [self.x, self.e, self.s, self.c]

    def _dual(self) -> list[Array]:
        return [self.z, self.y, self.w, self.p]

    def _pairs(self) -> list[tuple[Array, Array]]:
        return list(zip(self._primal(), self._dual(), strict=True))

    def _step(self, primal: list[Array], dual: list[Array], dt: float) -> None:
        reach_p = _reach(self._primal(), primal, TO_THE_WALL)
        reach_d = _reach(self._dual(), dual, TO_THE_WALL)
        self.t += reach_p * dt
        for value, change in zip(self._primal(), primal, strict=True):
            value += reach_p * change
        for value, change in zip(self._dual(), dual, strict=True):
            value += reach_d * change


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
    def at(cls, i: _Iterate) -> "_Newton":
        ratio = i.x / i.z
        weight = ratio.sum(axis=0)
        idle = weight + i.s / i.w
        mean = (i.speed * ratio).sum(axis=0) / idle
        apart = i.speed - mean
        spread = ratio * apart
        stiff = (spread * apart).sum(axis=0) + mean * mean * (i.s / i.w) + i.e / i.y
        pull, load = i.demand * spread, i.demand * ratio
        cost = i.z - (i.demand * i.p[:, None] + i.w - i.speed * i.y)
        requirement = i.base + i.slope * i.t + i.e - (i.speed * i.x).sum(axis=0)
        time = i.x.sum(axis=0) + i.s - 1
        room = (i.demand * i.x).sum(axis=1) + i.c - 1
        whole = 1 - float(i.slope @ i.y)
        n_types = len(i.p)
        reduced = np.empty((n_types + 1, n_types + 1))
        across = load / idle @ load.T
        # The diagonal of load^2/ratio - load^2/idle, as a sum of positive terms.
        alone = (load / idle * i.demand * (idle - ratio)).sum(axis=1)
        np.fill_diagonal(across, -alone - i.c / i.p)
        reduced[:-1, :-1] = across + pull / stiff @ pull.T
        reduced[:-1, -1] = reduced[-1, :-1] = pull @ (i.slope / stiff)
        reduced[-1, -1] = i.slope @ (i.slope / stiff)
        worst = max(float(abs(part).max()) for part in (requirement, time, room))
        return cls(
            reduced, cost, requirement, time, room, whole,
            max(worst, abs(whole), float(abs(cost).max()) * len(i.y)),
            ratio, mean, apart, stiff, idle, pull, load,
        )  # fmt: skip

    def towards(self, i: _Iterate, aims: list[Array]) -> tuple[list[Array], list[Array], float]:
        """Return the step that changes the products of the pairs by `aims`, to first order."""
        aim_x, aim_e, aim_s, aim_c = aims
        drift = aim_x / i.z + self.ratio * self.cost
        short = -self.time - drift.sum(axis=0) - aim_s / i.w
        lift = (
            self.requirement
            + aim_e / i.y
            + self.mean * (self.time + aim_s / i.w)
            - (self.apart * drift).sum(axis=0)
        )
        right = np.empty(len(i.p) + 1)
        right[:-1] = (
            -self.room
            - (i.demand * drift).sum(axis=1)
            - aim_c / i.p
            - self.pull @ (lift / self.stiff)
            - self.load @ (short / self.idle)
        )
        right[-1] = self.whole - i.slope @ (lift / self.stiff)
        solved = np.linalg.solve(self.reduced, right)
        dp, dt = solved[:-1], float(solved[-1])
        dy = (lift + dp @ self.pull + i.slope * dt) / self.stiff
        dw = self.mean * dy - (short + dp @ self.load) / self.idle
        dz = i.demand * dp[:, None] + dw - i.speed * dy - self.cost
        primal = [
            aim_x / i.z - self.ratio * dz,
            (aim_e - i.e * dy) / i.y,
            (aim_s - i.s * dw) / i.w,
            (aim_c - i.c * dp) / i.p,
        ]
        return primal, [dz, dy, dw, dp], dt


def _products(left: list[Array], right: list[Array]) -> float:
    return float(sum(np.vdot(a, b) for a, b in zip(left, right, strict=True)))


def _reach(values: list[Array], changes: list[Array], share: float = 1.0) -> float:
    """Return the part of the step, at most 1, that goes `share` of the way to a zero."""
    steepest = min(float((d / v).min()) for v, d in zip(values, changes, strict=True))
    return 1.0 if steepest > -share else -share / steepest
