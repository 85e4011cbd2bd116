"""Which nodes have room for one more task of a shape, and for how many: column by column.

`NodeBooks` says the same of one node, in plain integers.
"""

import numpy as np

from scheduler.core.model import MILLI, Shape
from scheduler.core.node_books import WITHOUT_END
from scheduler.core.node_columns import (
    CPU,
    GPUS,
    MEMORY,
    BoolColumn,
    IntColumn,
    NodeColumns,
    Rows,
)


def fits_on(nodes: NodeColumns, rows: Rows, shape: Shape) -> BoolColumn:
    """Return which of these nodes have as much free as one more such task takes."""
    needs = (shape.cpu_milli, shape.memory_mib, shape.gpus, shape.gpu_milli)
    fits = np.ones(len(rows), np.bool_)
    for column, need in enumerate(needs):
        fits &= nodes.free[rows, column] >= need
    if shape.gpu_milli:
        fits &= _has_fraction(nodes, rows, shape)
    return fits


def copies_on(
    nodes: NodeColumns, rows: Rows, shape: Shape, devices: BoolColumn | None = None
) -> IntColumn:
    """Return how many more such tasks fit on each of the nodes, maybe on some devices only."""
    free = nodes.free[rows]
    # A shape that asks for nothing fits without end; sums must not overflow.
    copies = np.full(len(rows), WITHOUT_END)
    if shape.cpu_milli:
        copies = np.minimum(copies, free[:, CPU] // shape.cpu_milli)
    if shape.memory_mib:
        copies = np.minimum(copies, free[:, MEMORY] // shape.memory_mib)
    if shape.gpus:
        whole = free[:, GPUS]
        if devices is not None:
            is_whole = nodes.device_free[rows] == MILLI
            whole = np.count_nonzero(is_whole & devices[rows], axis=1)
        copies = np.minimum(copies, whole // shape.gpus)
    if shape.gpu_milli:
        per_device = nodes.device_free[rows] // shape.gpu_milli
        memory_mib = _memory_of_fraction_mib(nodes, rows, shape)
        # Less than none is free where two tasks are booked on a device that one must leave.
        free_mib = np.maximum(nodes.device_memory_free[rows], 0)
        in_memory = free_mib // np.maximum(memory_mib, 1)
        per_device = np.where(memory_mib, np.minimum(per_device, in_memory), per_device)
        if devices is not None:
            per_device = np.where(devices[rows], per_device, 0)
        copies = np.minimum(copies, per_device.sum(axis=1))
    return copies


def _has_fraction(nodes: NodeColumns, rows: Rows, shape: Shape) -> BoolColumn:
    """Return where one device has both the fraction and the memory that goes with it."""
    has_both = nodes.device_free[rows] >= shape.gpu_milli
    has_both &= nodes.device_memory_free[rows] >= _memory_of_fraction_mib(nodes, rows, shape)
    fits: BoolColumn = np.logical_or.reduce(has_both, axis=1)
    return fits


def _memory_of_fraction_mib(nodes: NodeColumns, rows: Rows, shape: Shape) -> IntColumn:
    """Return the device memory that a fraction takes on each of the nodes, as a column."""
    if shape.gpu_memory_mib:
        return np.full((len(rows), 1), shape.gpu_memory_mib, np.int64)
    return nodes.device_memory_mib[rows, None] * shape.gpu_milli // MILLI
