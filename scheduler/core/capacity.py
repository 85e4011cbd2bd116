"""Taking resources of a node and giving them back, down to single devices.

The state and every draft keep their books with these few functions, so that they cannot
disagree. Amounts are integers and `give` undoes `take` exactly.
"""

import numpy as np

from scheduler.core.model import MILLI, Shape
from scheduler.core.snapshot import (
    CPU,
    FRACTION,
    GPUS,
    MEMORY,
    N_WIDTHS,
    NodeColumns,
    memory_of_fraction_mib,
)


def choose_devices(nodes: NodeColumns, row: int, shape: Shape) -> tuple[int, ...] | None:
    """Return the devices that one more task gets on the node, or None if they do not suffice.

    Whole devices: the first free ones. A fraction: the device with the least left that still
    suffices, so that whole devices stay whole; ties go to the first.
    """
    if shape.gpus:
        whole = np.flatnonzero(nodes.device_free[row] == MILLI)[: shape.gpus]
        return tuple(whole.tolist()) if len(whole) == shape.gpus else None
    if shape.gpu_milli:
        memory_mib = memory_of_fraction_mib(shape, int(nodes.device_memory_mib[row]))
        left = nodes.device_free[row]
        fits = (left >= shape.gpu_milli) & (nodes.device_memory_free[row] >= memory_mib)
        if not fits.any():
            return None
        return (int(np.where(fits, left, MILLI + 1).argmin()),)
    return ()


def can_take(nodes: NodeColumns, row: int, shape: Shape, devices: tuple[int, ...]) -> bool:
    """Return whether the node has what the task needs, on exactly these devices."""
    if nodes.free[row, CPU] < shape.cpu_milli or nodes.free[row, MEMORY] < shape.memory_mib:
        return False
    if len(devices) != (shape.gpus or (1 if shape.gpu_milli else 0)):
        return False
    if not devices:
        return True
    n_devices = len(nodes.nodes[row].gpus)
    if len(set(devices)) < len(devices) or not all(0 <= d < n_devices for d in devices):
        return False
    index = list(devices)
    amount, memory_mib = _per_device(nodes, row, shape)
    return bool(
        (nodes.device_free[row, index] >= amount).all()
        and (nodes.device_memory_free[row, index] >= memory_mib).all()
    )


def take(nodes: NodeColumns, row: int, shape: Shape, devices: tuple[int, ...]) -> None:
    """Book one task on the node."""
    _book(nodes, row, shape, devices, sign=1)


def give(nodes: NodeColumns, row: int, shape: Shape, devices: tuple[int, ...]) -> None:
    """Undo `take`."""
    _book(nodes, row, shape, devices, sign=-1)


def _book(
    nodes: NodeColumns, row: int, shape: Shape, devices: tuple[int, ...], *, sign: int
) -> None:
    free = nodes.free[row]
    free[CPU] -= sign * shape.cpu_milli
    free[MEMORY] -= sign * shape.memory_mib
    nodes.n_tasks[row] += sign
    if devices:
        amount, memory_mib = _per_device(nodes, row, shape)
        used = nodes.device_used[row]
        memory_free = nodes.device_memory_free[row]
        nodes.n_by_width[row, min(shape.gpus, N_WIDTHS - 1)] += sign
        for device in devices:
            used[device] += sign * amount
            memory_free[device] -= sign * memory_mib
        count_devices(nodes, row)


def _per_device(nodes: NodeColumns, row: int, shape: Shape) -> tuple[int, int]:
    device_memory_mib = int(nodes.device_memory_mib[row])
    if shape.gpus:
        return MILLI, device_memory_mib
    return shape.gpu_milli, memory_of_fraction_mib(shape, device_memory_mib)


def count_devices(nodes: NodeColumns, row: int) -> None:
    """Derive what the node's devices can still give from what is taken and healthy."""
    left = np.where(nodes.is_healthy[row], MILLI - nodes.device_used[row], 0)
    nodes.device_free[row] = left
    free = nodes.free[row]
    free[GPUS] = np.count_nonzero(left == MILLI)
    free[FRACTION] = left.max(initial=0)
