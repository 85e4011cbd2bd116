"""Minimum makespan: the last of the present jobs ends as early as possible.

Gavel's "minimize makespan" and "min total duration" (OSDI '20, section 4.2). To end within a
time T every job needs its remaining steps per T, so 1/T is a level and one solve finds it.
"""

from dataclasses import replace

from policies.level_program import largest_level, shares_from
from policies.linear_program import Array, classes_of
from policies.shares import Shares


def min_makespan_shares(
    throughputs: Array, gpus: Array, *, remaining_steps: Array, capacity: Array
) -> Shares:
    """Minimise the longest remaining_steps / throughput, in seconds: the value."""
    jobs = classes_of(throughputs, gpus, remaining_steps)
    level = largest_level(
        throughputs[jobs.first],
        gpus[jobs.first],
        capacity=capacity,
        slope=remaining_steps[jobs.first],
        copies=jobs.copies,
    )
    shares = shares_from(level, jobs.of_row, gpus=gpus, capacity=capacity)
    return replace(shares, value=1 / shares.value, prices=-shares.prices / shares.value**2)
