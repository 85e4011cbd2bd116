"""Scores that look at a node itself rather than at how a task fits: its price, its health.

Meant as parts of a combination; alone they leave ties to the first node.
"""

from dataclasses import dataclass

import numpy as np

from policies.scoring import PER_CPU, Scores
from scheduler.core.model import MILLI, Shape
from scheduler.core.node_columns import NodeColumns, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Take the cheapest node: what a GPU of it costs an hour, or 16 CPUs for tasks without."""

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return minus that price of each node."""
        usd_per_h = nodes.price_usd_per_h[rows]
        if shape.total_gpu_milli:
            return -usd_per_h / np.maximum(nodes.n_gpus[rows], 1)
        cpus = np.array([nodes.nodes[row].cpu_milli for row in rows.tolist()]) / MILLI
        units: Scores = np.maximum(cpus * PER_CPU, nodes.n_gpus[rows])
        return -usd_per_h / np.maximum(units, PER_CPU)

    def points(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return 1 for what costs nothing, half of that for $1, a quarter for $3, and so on."""
        points: Scores = 1.0 / (1.0 - self(nodes, shape, rows))
        return points


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Avoid nodes with sick devices, and nodes that failed not long ago.

    The part of the devices that is well, halved for every recent failure; a failure counts
    half after `FAILURE_HALF_LIFE_S`.
    """

    now_s: float

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return a number from 0 to 1 for each node."""
        n_gpus = nodes.n_gpus[rows]
        n_well = np.count_nonzero(nodes.is_healthy[rows], axis=1)
        part: Scores = np.where(n_gpus > 0, n_well / np.maximum(n_gpus, 1), 1.0)
        return part * 0.5 ** nodes.failures_at(self.now_s, rows)

    def points(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return the same."""
        return self(nodes, shape, rows)
