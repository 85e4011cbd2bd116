"""Minimum cost with and without deadlines (service levels; Gavel, OSDI '20, section 4.2).

Two questions: what to run where so that a dollar buys the most progress, and what is the least
to pay per hour so that every deadline is met. Deadlines that cannot all be met are not an
error: as little as possible is missed, and the answer says by whom.
"""

from dataclasses import dataclass

import numpy as np

from policies.linear_program import Array, LinearProgram, Status, classes_of
from policies.shares import (
    Shares,
    earned_by_jobs,
    fallback,
    jobs_within,
    types_within,
    within_limits,
)

ROUNDING = 1e-8
"""A part of a requirement too small to count as missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostShares:
    """Shares, and the part of each job's required throughput that could not be had."""

    shares: Shares
    missed: Array
    """Per job, 0 to 1: 0 meets the deadline."""


def most_per_dollar_shares(
    throughputs: Array,
    gpus: Array,
    *,
    weights: Array,
    capacity: Array,
    price_usd_per_h: Array,
    required: Array | None = None,
    time_limit_s: float | None = None,
) -> CostShares:
    """Maximise the sum of weight * throughput / price, the value, once deadlines hold."""
    worth = weights[:, None] * throughputs / price_usd_per_h
    return _deadlines_first(
        throughputs,
        gpus,
        worth=worth,
        capacity=capacity,
        required=np.zeros(len(gpus)) if required is None else required,
        time_limit_s=time_limit_s,
    )


def cheapest_shares(
    throughputs: Array,
    gpus: Array,
    *,
    capacity: Array,
    price_usd_per_h: Array,
    required: Array,
    time_limit_s: float | None = None,
) -> CostShares:
    """Minimise USD per hour, minus the value, that buys every job its required throughput."""
    return _deadlines_first(
        throughputs,
        gpus,
        worth=-gpus[:, None] * price_usd_per_h,
        capacity=capacity,
        required=required,
        time_limit_s=time_limit_s,
    )


def _deadlines_first(
    throughputs: Array,
    gpus: Array,
    *,
    worth: Array,
    capacity: Array,
    required: Array,
    time_limit_s: float | None,
) -> CostShares:
    """Miss as little as possible, and only then maximise the worth of the shares."""
    jobs = classes_of(throughputs, gpus, worth, required)
    speeds, copies = throughputs[jobs.first], jobs.copies
    times, needs = gpus[jobs.first] * copies, required[jobs.first]
    lp = LinearProgram(share=speeds.size, missed=len(times))
    lp.bound("missed", upper=1.0)
    lp.at_most({"share": jobs_within(*speeds.shape)}, 1.0)
    lp.at_most({"share": types_within(times, len(capacity))}, capacity, name="gpus")
    lp.at_least({"share": earned_by_jobs(speeds), "missed": np.diag(needs)}, needs)
    least = lp.minimize({"missed": copies}, time_limit_s=time_limit_s)
    if least.status is Status.OPTIMAL:
        lp.at_most({"missed": copies}, least.value + ROUNDING / 10)
        gain = worth[jobs.first] * copies[:, None]
        least = lp.maximize({"share": gain.ravel()}, time_limit_s=time_limit_s)
    if least.status is not Status.OPTIMAL:
        equal = fallback(gpus, capacity, least.status)
        short = required - (throughputs * equal.fractions).sum(axis=1)
        return CostShares(shares=equal, missed=_part(short, required))
    share = np.where(speeds > 0, least["share"].reshape(speeds.shape), 0.0)
    fractions = within_limits(share, times, capacity)
    short = needs - (speeds * fractions).sum(axis=1)
    return CostShares(
        shares=Shares(
            fractions=fractions[jobs.of_row],
            value=least.value,
            status=least.status,
            prices=least.prices["gpus"],
        ),
        missed=_part(short, needs)[jobs.of_row],
    )


def _part(short: Array, required: Array) -> Array:
    whole = np.where(required > 0, required, 1.0)
    part = np.where(required > 0, short, 0.0) / whole
    return np.where(part > ROUNDING, part, 0.0)
