"""Hierarchical fairness: between queues by weight, any order inside (Gavel, section 4.3).

Water filling whose rises are divided over the tree of queues (`filling`): a queue of twice the
weight rises twice as fast, whoever of its jobs it is that rises; a job that can rise no more
leaves its part to the others of its queue, and a queue without such jobs to its siblings. The
levels are speeds in units of the equal share, as everywhere, so that a queue gains nothing by
splitting its jobs. Gavel solves a program per job that is held back; here, one per GPU type.
"""

import numpy as np

from policies.filling import Tree
from policies.linear_program import Array, Rows
from policies.shares import Shares
from policies.water_filling import water_filling_shares


def hierarchical_shares(
    throughputs: Array, gpus: Array, *, weights: Array, capacity: Array, tree: Tree
) -> Shares:
    """Fill the tree: jobs of one queue and tier by weight, lower tiers first."""
    return water_filling_shares(
        throughputs, gpus, weights=weights, capacity=capacity, tree=tree
    )


def in_turn(order: Rows) -> Rows:
    """Return tiers for jobs that are served one after another, given the first to be served.

    First come, first served inside a queue, say, where Gavel has it beside fairness.
    """
    tier = np.empty(len(order), np.intp)
    tier[order] = np.arange(len(order))
    return tier
