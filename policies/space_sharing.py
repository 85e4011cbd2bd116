"""Max-min fairness with space sharing: two jobs may run on the same GPUs at once.

Gavel's programs over single jobs and pairs (OSDI '20, section 3.1), from measured throughputs
of each profile (a model, its batch size and GPUs) alone and beside each other profile. Jobs of
one profile and weight share their columns; pairs no better than taking turns are left out,
which changes no optimum; and where pairs are many, only those that earn their price come in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse  # type: ignore[import-untyped]

from policies.linear_program import Array, LinearProgram, Rows, Solution, Status, classes_of
from policies.makespan import min_makespan_shares
from policies.max_min_fairness import max_min_shares
from policies.shares import Shares, earned_by_jobs, equal_share, jobs_within, types_within

PAIRS_AT_ONCE = 30_000
"""Pairs up to which they all enter the program from the start."""
BUCKETS = 6
"""Weights told apart in the rough program that tells which pairs to begin with."""
CLOSED = 1e-8
"""The part of the level that pairs still outside may promise at most."""
MAX_ROUNDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """What has been measured: per profile and type of GPU, alone and beside another profile."""

    gpus: Array
    alone: Array
    """Profiles by types."""
    beside: Array
    """Profiles by others by types: the first's throughput; 0 if the two cannot share. Only of
    the first profiles, if the others share with nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairShares:
    """Time fractions of jobs alone and of pairs of jobs."""

    alone: Shares
    """The fractions of each job alone; value, status and prices of the whole."""
    first: Rows
    second: Rows
    gpu_type: Rows
    fraction: Array
    """Of the time of both jobs, per pair (first, second) on gpu_type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Columns: two groups (or one twice) on a type, with the speeds of both."""

    a: Rows
    b: Rows
    kind: Rows
    speed_a: Array
    speed_b: Array

    def __len__(self) -> int:
        return len(self.a)

    def at(self, chosen: Rows) -> "Pairs":
        """Return some of the columns."""
        return Pairs(
            a=self.a[chosen],
            b=self.b[chosen],
            kind=self.kind[chosen],
            speed_a=self.speed_a[chosen],
            speed_b=self.speed_b[chosen],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Jobs of equal profile and weight; each needs a speed of base + slope * level."""

    profile: Rows
    gpus: Array
    speeds: Array
    base: Array
    slope: Array
    copies: Array
    capacity: Array


Solve = Callable[[Groups, Pairs, int, float | None], tuple[Solution, Pairs]]
"""Finds the shares of groups, with which of the pairs: see `most_for_all`."""


def max_min_pair_shares(
    profiles: Profiles,
    profile: Rows,
    *,
    weights: Array,
    capacity: Array,
    time_limit_s: float | None = None,
    at_once: int = PAIRS_AT_ONCE,
) -> PairShares:
    """Maximise the level of `max_min_shares` where jobs may share GPUs in pairs.

    The time limit is for each of the programs solved. Out of time, the shares without pairs.
    """
    return level_pair_shares(
        profiles,
        profile,
        weights=weights,
        capacity=capacity,
        time_limit_s=time_limit_s,
        at_once=at_once,
        solve=most_for_all,
        instead=max_min_shares,
    )


def level_pair_shares(
    profiles: Profiles,
    profile: Rows,
    *,
    weights: Array,
    capacity: Array,
    time_limit_s: float | None,
    at_once: int,
    solve: Solve,
    instead: Callable[..., Shares],
) -> PairShares:
    """Raise speeds per weight; `instead` finds the shares without pairs."""
    gpus, alone = profiles.gpus[profile], equal_speeds(profiles, profile, capacity)
    shares = pair_shares(
        profiles,
        profile,
        slope=weights * alone / gpus,
        capacity=capacity,
        time_limit_s=time_limit_s,
        at_once=at_once,
        solve=solve,
    )
    if isinstance(shares, PairShares):
        return shares
    return without_pairs(
        instead(profiles.alone[profile], gpus, weights=weights, capacity=capacity), shares
    )


def min_makespan_pair_shares(
    profiles: Profiles,
    profile: Rows,
    *,
    remaining_steps: Array,
    capacity: Array,
    time_limit_s: float | None = None,
) -> PairShares:
    """Minimise the makespan, as `min_makespan_shares`, where jobs may share GPUs in pairs."""
    shares = pair_shares(
        profiles,
        profile,
        slope=remaining_steps,
        capacity=capacity,
        time_limit_s=time_limit_s,
        at_once=PAIRS_AT_ONCE,
        solve=most_for_all,
    )
    if isinstance(shares, PairShares):
        level, prices = shares.alone.value, shares.alone.prices
        return replace(
            shares, alone=replace(shares.alone, value=1 / level, prices=-prices / level**2)
        )
    return without_pairs(
        min_makespan_shares(
            profiles.alone[profile],
            profiles.gpus[profile],
            remaining_steps=remaining_steps,
            capacity=capacity,
        ),
        shares,
    )


def equal_speeds(profiles: Profiles, profile: Rows, capacity: Array) -> Array:
    """Return the speed of each job on its equal share of the cluster, alone."""
    mix = equal_share(profiles.gpus[profile], capacity)
    speeds: Array = (profiles.alone * mix).sum(axis=1)[profile]
    return speeds


def pair_shares(
    profiles: Profiles,
    profile: Rows,
    *,
    slope: Array,
    capacity: Array,
    time_limit_s: float | None,
    at_once: int,
    solve: Solve,
) -> PairShares | Status:
    """Find the largest level with speeds of at least slope * level, or tell why not."""
    unit = equal_speeds(profiles, profile, capacity)
    counts = (slope > 0) & (unit > 0)
    if not counts.any():
        return Status.OPTIMAL
    # Jobs that run nowhere or need nothing are left out: in units of 1 with slope 0.
    unit = np.where(unit > 0, unit, 1.0)
    jobs = classes_of(profile, np.where(counts, slope / unit, 0.0))
    of_group = profile[jobs.first]
    groups = Groups(
        profile=of_group,
        gpus=profiles.gpus[of_group],
        speeds=profiles.alone[of_group] / unit[jobs.first, None],
        base=np.zeros(len(jobs.first)),
        slope=np.where(counts, slope / unit, 0.0)[jobs.first],
        copies=jobs.copies,
        capacity=capacity,
    )
    pairs = _worthwhile(profiles, groups, unit[jobs.first])
    solution, chosen = solve(groups, pairs, at_once, time_limit_s)
    if solution.status is not Status.OPTIMAL:
        return solution.status
    return _of_jobs(groups, chosen, solution, jobs.of_row)


def _worthwhile(profiles: Profiles, groups: Groups, unit: Array) -> Pairs:
    """List the pairs that do better than taking turns on the same GPUs."""
    sharers = np.flatnonzero(groups.profile < len(profiles.beside))
    profile, n_profiles = groups.profile[sharers], len(profiles.beside)
    copies, unit = groups.copies[sharers], unit[sharers]
    gpus = profiles.gpus[:n_profiles]
    found = []
    for kind in range(len(groups.capacity)):
        beside, single = profiles.beside[:, :, kind], profiles.alone[:n_profiles, kind]
        part = np.divide(
            beside, single[:, None], out=np.zeros_like(beside), where=single[:, None] > 0
        )
        fit = (part > 0) & (part.T > 0) & (part + part.T > 1) & (gpus[:, None] == gpus)
        a, b = np.nonzero(np.triu(fit[np.ix_(profile, profile)]))
        enough = (a != b) | (copies[a] > 1)
        a, b = a[enough], b[enough]
        found.append(
            (
                sharers[a],
                sharers[b],
                np.full(len(a), kind),
                beside[profile[a], profile[b]] / unit[a],
                beside[profile[b], profile[a]] / unit[b],
            )
        )
    a, b, kinds, speed_a, speed_b = (np.concatenate(c) for c in zip(*found, strict=True))
    return Pairs(a=a, b=b, kind=kinds, speed_a=speed_a, speed_b=speed_b)


def most_for_all(
    groups: Groups, pairs: Pairs, at_once: int, time_limit_s: float | None
) -> tuple[Solution, Pairs]:
    """Solve over all pairs, or add those whose gain exceeds their price until none is left."""
    inside = np.zeros(len(pairs), bool)
    if len(pairs) <= at_once:
        inside[:] = True
    else:
        rough = _Prices.of_few(groups, pairs, time_limit_s)
        inside[np.argsort(-rough.gains(groups, pairs), kind="stable")[:at_once]] = True
    solution = _program(groups, pairs.at(np.flatnonzero(inside)), time_limit_s)
    for _ in range(MAX_ROUNDS):
        if solution.status is not Status.OPTIMAL or inside.all():
            break
        gains = _Prices.of(solution).gains(groups, pairs)
        # If every job had the best of what is outside, the level could rise by this much.
        if gains.max() * groups.copies.sum() <= CLOSED * solution.value:
            break
        best = np.argsort(-gains, kind="stable")[: at_once // 2]
        inside[best[gains[best] > 0]] = True
        solution = _program(groups, pairs.at(np.flatnonzero(inside)), time_limit_s)
    return solution, pairs.at(np.flatnonzero(inside))


def _program(groups: Groups, pairs: Pairs, time_limit_s: float | None) -> Solution:
    n_groups, n_types = groups.speeds.shape
    columns = np.arange(len(pairs))
    both = np.concatenate([pairs.a, pairs.b]), np.concatenate([columns, columns])
    shape = (n_groups, len(pairs))
    speeds = np.concatenate([pairs.speed_a, pairs.speed_b])
    lp = LinearProgram(alone=n_groups * n_types, pair=len(pairs), level=1)
    lp.at_least(
        {
            "alone": earned_by_jobs(groups.speeds),
            "pair": sparse.csr_array((speeds, both), shape=shape),
            "level": -(groups.slope * groups.copies)[:, None],
        },
        groups.base * groups.copies,
        name="earned",
    )
    lp.at_most(
        {
            "alone": jobs_within(n_groups, n_types),
            "pair": sparse.csr_array((np.ones(len(speeds)), both), shape=shape),
        },
        groups.copies,
        name="time",
    )
    lp.at_most(
        {
            "alone": types_within(groups.gpus, n_types),
            "pair": sparse.csr_array(
                (groups.gpus[pairs.a], (pairs.kind, columns)), shape=(n_types, len(pairs))
            ),
        },
        groups.capacity,
        name="gpus",
    )
    return lp.maximize("level", time_limit_s=time_limit_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prices:
    """What a solution pays per group for speed, and what it charges for time and GPUs."""

    speed: Array
    time: Array
    gpus: Array

    @classmethod
    def of(cls, solution: Solution) -> "_Prices":
        paid = solution.prices
        return cls(speed=-paid["earned"], time=paid["time"], gpus=paid["gpus"])

    @classmethod
    def of_few(cls, groups: Groups, pairs: Pairs, time_limit_s: float | None) -> "_Prices":
        """Guess from a program in which groups of one profile and similar weight are one."""
        bucket = np.searchsorted(
            np.quantile(groups.slope, np.arange(1, BUCKETS) / BUCKETS), groups.slope
        )
        few = classes_of(groups.profile, bucket)
        copies: Array = np.bincount(few.of_row, groups.copies).astype(float)
        rough = Groups(
            profile=groups.profile[few.first],
            gpus=groups.gpus[few.first],
            speeds=groups.speeds[few.first],
            base=np.bincount(few.of_row, groups.copies * groups.base) / copies,
            slope=np.bincount(few.of_row, groups.copies * groups.slope) / copies,
            copies=copies,
            capacity=groups.capacity,
        )
        a, b = few.of_row[pairs.a], few.of_row[pairs.b]
        one_of_each = classes_of(a, b, pairs.kind).first
        merged = replace(pairs, a=a, b=b).at(one_of_each)
        solution = _program(rough, merged, time_limit_s)
        if solution.status is not Status.OPTIMAL:
            nothing = np.zeros(len(groups.copies))
            return cls(speed=nothing, time=nothing, gpus=np.zeros(len(groups.capacity)))
        paid = cls.of(solution)
        return cls(speed=paid.speed[few.of_row], time=paid.time[few.of_row], gpus=paid.gpus)

    def gains(self, groups: Groups, pairs: Pairs) -> Array:
        """Return by how much a pair's speeds are worth more than the time and GPUs."""
        gain: Array = self.speed[pairs.a] * pairs.speed_a + self.speed[pairs.b] * pairs.speed_b
        gain -= self.time[pairs.a] + self.time[pairs.b]
        gain -= groups.gpus[pairs.a] * self.gpus[pairs.kind]
        return gain


def _of_jobs(groups: Groups, pairs: Pairs, solution: Solution, group: Rows) -> PairShares:
    """Hand the time of groups to their jobs, evenly, with few distinct pairs of jobs."""
    n_types = groups.speeds.shape[1]
    alone = solution["alone"].reshape(-1, n_types) / groups.copies[:, None]
    members = np.split(
        np.argsort(group, kind="stable"), np.cumsum(groups.copies.astype(int))[:-1]
    )
    rows = []
    for i in np.flatnonzero(solution["pair"] > 0):
        a, b, time = members[pairs.a[i]], members[pairs.b[i]], solution["pair"][i]
        first, second, part = _ring(a) if pairs.a[i] == pairs.b[i] else _matching(a, b)
        rows.append((first, second, np.full(len(first), pairs.kind[i]), part * time))
    first, second, kind, fraction = (
        (np.concatenate(column) for column in zip(*rows, strict=True))
        if rows
        else (np.zeros(0, int), np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    )
    return PairShares(
        alone=Shares(
            fractions=np.clip(alone[group], 0.0, 1.0),
            value=solution.value,
            status=solution.status,
            prices=solution.prices["gpus"],
        ),
        first=first,
        second=second,
        gpu_type=kind,
        fraction=fraction,
    )


def _ring(jobs: Rows) -> tuple[Rows, Rows, Array]:
    """Pair each job with the next, so that all have two equal parts."""
    if len(jobs) == 2:
        return jobs[:1], jobs[1:], np.ones(1)
    return jobs, np.roll(jobs, -1), np.full(len(jobs), 1 / len(jobs))


def _matching(a: Rows, b: Rows) -> tuple[Rows, Rows, Array]:
    """Lay both groups along the same unit of time and pair those that overlap."""
    cuts = np.union1d(np.arange(len(a) + 1) / len(a), np.arange(len(b) + 1) / len(b))
    middle, part = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
    kept = part > 1e-12  # the same cut, rounded twice
    middle, part = middle[kept], part[kept]
    return a[(middle * len(a)).astype(int)], b[(middle * len(b)).astype(int)], part


def without_pairs(shares: Shares, status: Status) -> PairShares:
    """Return the shares of jobs alone as the answer of a program that ended so."""
    nobody = np.zeros(0, np.intp)
    return PairShares(
        alone=replace(shares, status=status),
        first=nobody,
        second=nobody,
        gpu_type=nobody,
        fraction=np.zeros(0),
    )
