"""The largest level that all jobs can reach at once: the program behind every fair share.

    maximise t;  for all jobs j:  sum_k speed_jk x_jk >= base_j + slope_j t,  sum_k x_jk <= 1
                 for all types k: sum_j gpus_j x_jk <= capacity_k,  x >= 0

Solved by `interior_point`, whose multipliers lie inside the optimal face, so that a job is held
back by the cluster if and only if its multiplier is positive. HiGHS has the last word where
the interior is empty or nothing is feasible.
"""

from dataclasses import dataclass, replace

import numpy as np

from policies.interior_point import Iterate, equal_slices
from policies.linear_program import Array, LinearProgram, Rows, Status
from policies.shares import (
    Shares,
    earned_by_jobs,
    fallback,
    jobs_within,
    types_within,
    within_limits,
)


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
    speeds = np.where(usable, speeds, 0.0)
    runs = speeds.any(axis=1)
    if not (slope[runs] > 0).any():
        return _unlimited(speeds.shape)
    scaled = _Scaled.of(
        speeds[runs],
        (gpus if copies is None else gpus * copies)[runs],
        capacity=np.where(usable, capacity, 1.0),
        slope=slope[runs],
        base=np.zeros(runs.sum()) if base is None else base[runs],
    )
    found = scaled.solve()
    fractions, held = np.zeros(speeds.shape), np.zeros(len(speeds))
    fractions[runs], held[runs] = found.fractions, found.held
    return replace(
        found, fractions=fractions, held=held, prices=np.where(usable, found.prices, 0.0)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scaled:
    """The program in units in which speeds are at most 1, capacities 1 and the level near 1."""

    speed: Array
    demand: Array
    base: Array
    slope: Array
    unit: float
    times: Array
    capacity: Array

    @classmethod
    def of(
        cls, speeds: Array, times: Array, *, capacity: Array, slope: Array, base: Array
    ) -> "_Scaled":
        top = speeds.max(axis=1)
        demand = times / capacity[:, None]
        rising = slope > 0
        earned = (speeds[rising] * equal_slices(demand)).sum(axis=1)
        unit = float((earned / slope[rising]).min())
        return cls(
            speed=np.ascontiguousarray(speeds.T) / top,
            demand=np.ascontiguousarray(demand),
            base=base / top,
            slope=slope * unit / top,
            unit=unit,
            times=times,
            capacity=capacity,
        )

    def solve(self) -> Level:
        iterate = Iterate.inside(self.speed, self.demand, base=self.base, slope=self.slope)
        if not iterate.run():
            return self._solve_by_simplex()
        return self._level(iterate.t, iterate.x, iterate.y, iterate.p)

    def _solve_by_simplex(self) -> Level:
        n_types, n_jobs = self.speed.shape
        lp = LinearProgram(x=self.speed.size, t=1)
        lp.bound("t", lower=-np.inf)
        earned = earned_by_jobs(self.speed.T)
        lp.at_least({"x": earned, "t": -self.slope[:, None]}, self.base, name="requirement")
        lp.at_most({"x": jobs_within(n_jobs, n_types)}, 1.0)
        lp.at_most({"x": types_within(self.times, n_types)}, self.capacity, name="room")
        solution = lp.maximize("t")
        if solution.status is not Status.OPTIMAL:
            return replace(_unlimited((n_jobs, n_types)), level=np.nan, status=solution.status)
        return self._level(
            solution.value,
            solution["x"].reshape(n_jobs, n_types).T,
            -solution.prices["requirement"],
            solution.prices["room"] * self.capacity,
        )

    def _level(self, t: float, x: Array, y: Array, p: Array) -> Level:
        used = np.where(self.speed > 0, x, 0.0).T
        return Level(
            level=t * self.unit,
            fractions=within_limits(used, self.times, self.capacity),
            prices=p * self.unit / self.capacity,
            held=y * self.slope,
            status=Status.OPTIMAL,
        )
