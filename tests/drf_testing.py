"""Dominant resource fairness over CPU, memory and GPU types (Ghodsi et al., NSDI '11).

A job's dominant share is its part of the resource it takes the largest part of. All dominant
shares, per weight, rise together; a job stops when one of its resources is used up, or when it
has all the tasks it wants. Tasks are divisible here: the answer says what a job deserves.
"""

from dataclasses import dataclass

import numpy as np

from policies.linear_program import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class DominantShares:
    """How many tasks each job deserves, and the part of its dominant resource they take."""

    tasks: Array
    dominant: Array


def dominant_part(used: Array, capacity: Array) -> Array:
    """Return each row's largest part of any resource; of one that is not there, none."""
    there = capacity > 0
    part: Array = (used[:, there] / capacity[there]).max(axis=1, initial=0.0)
    return part


def dominant_resource_shares(
    demand: Array, *, weights: Array, capacity: Array, tasks: Array
) -> DominantShares:
    """Share `capacity` of each resource among jobs of `tasks` tasks of `demand` per resource.

    A job that needs a resource the cluster has none of gets nothing.
    """
    possible = ~(demand[:, capacity <= 0] > 0).any(axis=1)
    part = dominant_part(demand, capacity)
    weighs = possible & (part > 0)
    speed = np.divide(weights, part, out=np.zeros(len(part)), where=weighs)
    given = np.where(possible & (part == 0), tasks, 0.0)
    open_jobs = weighs & (tasks > 0)
    while open_jobs.any():
        left = capacity - demand[~open_jobs].T @ given[~open_jobs]
        level, short = _first_shortage(
            demand[open_jobs], speed[open_jobs], wanted=tasks[open_jobs], left=left
        )
        given[open_jobs] = np.minimum(level * speed[open_jobs], tasks[open_jobs])
        open_jobs &= (given < tasks) & ~(demand[:, short] > 0)
    return DominantShares(tasks=given, dominant=part * given)


def _first_shortage(
    demand: Array, speed: Array, *, wanted: Array, left: Array
) -> tuple[float, int]:
    """Return the level at which a first resource runs out (infinite if none does), and which.

    What jobs use of a resource is linear between the levels at which jobs have all they want.
    """
    content = wanted / speed
    order = np.argsort(content, kind="stable")
    demand, speed, content = demand[order], speed[order], content[order]
    # Below the content of job i, in order, `kept[i] + level * slope[i]` is in use.
    had = np.cumsum(demand * wanted[order, None], axis=0)
    kept = np.vstack([np.zeros(len(left)), had[:-1]])
    slope = np.cumsum((demand * speed[:, None])[::-1], axis=0)[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        level = np.where(slope > 0, (left - kept) / slope, np.inf)
    within = level <= content[:, None]
    first = within.argmax(axis=0)
    each = np.arange(len(left))
    level = np.where(within.any(axis=0), level[first, each], np.inf)
    short = int(level.argmin())
    return max(float(level[short]), 0.0), short
