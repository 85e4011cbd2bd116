"""Max-min fairness over heterogeneous GPUs (Gavel, OSDI '20, section 4.1).

The least favoured job does as well as possible. A job does well if its speed, in units of its
speed on an equal share of the cluster, is high for its weight; at equal speed, a job counts as
having as many times more as it holds GPUs.
"""

from policies.level_program import largest_level, shares_from
from policies.linear_program import Array, classes_of
from policies.shares import Shares, equal_share


def max_min_shares(
    throughputs: Array, gpus: Array, *, weights: Array, capacity: Array
) -> Shares:
    """Maximise the least gpus * throughput / (weight * throughput on the equal share)."""
    jobs = classes_of(throughputs, gpus, weights)
    speeds, gpus_of = throughputs[jobs.first], gpus[jobs.first]
    level = largest_level(
        speeds,
        gpus_of,
        capacity=capacity,
        slope=weights[jobs.first]
        * (speeds * equal_share(gpus, capacity)).sum(axis=1)
        / gpus_of,
        copies=jobs.copies,
    )
    return shares_from(level, jobs.of_row, gpus=gpus, capacity=capacity)


def max_min_shares_blind(
    throughputs: Array, gpus: Array, *, weights: Array, capacity: Array
) -> Shares:
    """Maximise the least gpus * time / weight; throughputs only tell where a job runs."""
    runs = throughputs > 0
    jobs = classes_of(runs, gpus, weights)
    level = largest_level(
        runs[jobs.first].astype(float),
        gpus[jobs.first],
        capacity=capacity,
        slope=weights[jobs.first] / gpus[jobs.first],
        copies=jobs.copies,
    )
    return shares_from(level, jobs.of_row, gpus=gpus, capacity=capacity)
