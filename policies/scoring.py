"""Where a task goes best: a score for every node, highest best."""

import numpy as np
from numpy.typing import NDArray

from scheduler.core.model import MILLI, Shape
from scheduler.core.snapshot import CPU, FRACTION, GPUS, MEMORY, NodeColumns, Rows

PER_CPU = 1 / 16
"""A CPU in GPUs: GPU nodes have about 16 CPUs for each GPU."""

PER_GIB = 1 / 128
"""A GiB of memory in GPUs: GPU nodes have about 128 GiB for each GPU."""

_LEFT = np.zeros(4)
_LEFT[[CPU, MEMORY, GPUS, FRACTION]] = [PER_CPU / 1000, PER_GIB / 1024, 1.0, 1.0 / 1000]


def best_fit(nodes: NodeColumns, shape: Shape, rows: Rows) -> NDArray[np.float64]:
    """Leave as little as possible behind on the node, weighed in GPUs.

    Tasks without GPUs stay off nodes that have some, as long as others fit; fractions go to
    devices that are shared already, so that whole ones stay whole.
    """
    score = -(nodes.free[rows] @ _LEFT)
    if not shape.total_gpu_milli:
        score -= 1000.0 * nodes.n_gpus[rows]
    if shape.gpu_milli:
        left = nodes.device_free[rows]
        is_shared = (left >= shape.gpu_milli) & (left < MILLI)
        score[is_shared.any(axis=1)] += 1000.0
    return score
