"""A policy and a score from outside: who asks for least goes first, where it is cheapest.

All three are pure: they read the columns of the snapshot and nothing else, and ties end in the
order of arrival, so that equal snapshots are decided alike.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.orderings import lower_priority
from policies.scoring import best_fit
from scheduler.core.model import Shape
from scheduler.core.node_columns import NodeColumns, Rows
from scheduler.core.ports import Backfilling, Policy
from scheduler.core.snapshot import Snapshot


def smallest_first(snapshot: Snapshot, rows: Rows) -> Rows:
    """Serve whoever asks for the fewest GPUs first, then whoever came first."""
    jobs = snapshot.jobs
    asked = np.array([snapshot.job_at(row).spec.total_gpu_milli for row in rows.tolist()])
    return rows[np.lexsort((jobs.sequence[rows], asked))]


SMALLEST_FIRST_STRICT = Policy(
    name="smallest_first_strict",
    order=smallest_first,
    may_preempt=lower_priority,
    score=best_fit,
    backfill=Backfilling.NONE,
)
"""The same, where lower priorities make room, as one `Policy`."""


@dataclass(frozen=True)
class Cheapest:
    """Prefer the node whose GPUs cost least an hour; among equals, where it fits best."""

    fit_counts: float = 1e-6

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> NDArray[np.float64]:
        """Return a score per row, highest best."""
        prices = [nodes.nodes[row].price_usd_per_h for row in rows.tolist()]
        per_gpu = np.array(prices) / np.maximum(nodes.n_gpus[rows], 1)
        return self.fit_counts * best_fit(nodes, shape, rows) - per_gpu


cheapest = Cheapest()
