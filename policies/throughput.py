"""Maximum throughput: as many steps per second in all as the cluster can make.

Fair to nobody: what it is good for is an upper bound, and clusters of one team.
"""

import numpy as np

from policies.linear_program import Array, LinearProgram, Status, classes_of
from policies.shares import Shares, fallback, jobs_within, types_within, within_limits


def max_throughput_shares(
    throughputs: Array,
    gpus: Array,
    *,
    weights: Array,
    capacity: Array,
    time_limit_s: float | None = None,
) -> Shares:
    """Maximise the sum of weight * throughput, the value.

    With weight 1 steps of all jobs count the same; with 1 / (throughput on the equal share)
    the unit of a step does not matter.
    """
    jobs = classes_of(throughputs, gpus, weights)
    speeds, gpus_of, copies = throughputs[jobs.first], gpus[jobs.first], jobs.copies
    lp = LinearProgram(share=speeds.size)
    lp.at_most({"share": jobs_within(*speeds.shape)}, 1.0)
    lp.at_most({"share": types_within(gpus_of * copies, len(capacity))}, capacity, name="gpus")
    worth = (weights[jobs.first] * copies)[:, None] * speeds
    solution = lp.maximize({"share": worth.ravel()}, time_limit_s=time_limit_s)
    if solution.status is not Status.OPTIMAL:
        return fallback(gpus, capacity, solution.status)
    share = np.where(speeds > 0, solution["share"].reshape(speeds.shape), 0.0)
    return Shares(
        fractions=within_limits(share, gpus_of * copies, capacity)[jobs.of_row],
        value=solution.value,
        status=solution.status,
        prices=solution.prices["gpus"],
    )
