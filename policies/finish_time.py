"""Finish-time fairness (Themis, NSDI '20; as a program over types: Gavel, OSDI '20).

rho = (time until the job ends with these shares) / (time it would have taken on the equal
share), both from its arrival. The largest rho is as small as possible; at most 1 is a promise
kept to everybody.
"""

from dataclasses import replace

import numpy as np

from policies.level_program import Level, largest_level, shares_from
from policies.linear_program import Array, classes_of
from policies.shares import Shares, equal_share

MAX_TANGENTS = 40
SAME = 1e-9


def finish_time_shares(
    throughputs: Array,
    gpus: Array,
    *,
    elapsed_s: Array,
    remaining_steps: Array,
    capacity: Array,
    alone_s: Array | None = None,
) -> Shares:
    """Minimise the largest rho, the value. Jobs without steps left do not count.

    `alone_s` is how long each job takes on the equal share, all in all, if more is known of
    that than what it would take from here on; None: nothing is.

    For rho = 1/t a job needs the speed r(t) = steps / (alone_s / t - elapsed_s), which is
    convex in t. Newton: put tangents for r, which makes it a level program, and repeat.
    """
    if alone_s is None:
        alone = (throughputs * equal_share(gpus, capacity)).sum(axis=1)
        left_s = np.divide(remaining_steps, alone, out=np.zeros(len(alone)), where=alone > 0)
        alone_s = elapsed_s + left_s
    jobs = classes_of(throughputs, gpus, elapsed_s, remaining_steps, alone_s)
    speeds, steps = throughputs[jobs.first], remaining_steps[jobs.first]
    elapsed, gpus_of = elapsed_s[jobs.first], gpus[jobs.first]
    alone_s = alone_s[jobs.first]
    counts = (steps > 0) & (speeds * (capacity > 0)).any(axis=1)
    late = counts & (elapsed > 0)
    # Beyond this level some job would have to have ended already.
    ceiling = float((alone_s[late] / elapsed[late]).min()) if late.any() else np.inf

    def tangent(t: float) -> Level:
        per_steps_s = np.where(counts, alone_s / t - elapsed, 1.0)
        return largest_level(
            speeds,
            gpus_of,
            capacity=capacity,
            slope=np.where(counts, steps * alone_s / (t * per_steps_s) ** 2, 0.0),
            base=-np.where(counts, steps * elapsed / per_steps_s**2, 0.0),
            copies=jobs.copies,
        )

    t = 1.0 if ceiling > 1.0 else ceiling / 2
    level = tangent(t)
    for _ in range(MAX_TANGENTS):
        if not np.isfinite(level.level) or abs(level.level - t) <= SAME * t:
            break
        t = min(level.level, t + 0.9 * (ceiling - t))
        level = tangent(t)
    shares = shares_from(level, jobs.of_row, gpus=gpus, capacity=capacity)
    return replace(shares, value=1 / shares.value, prices=-shares.prices / shares.value**2)
