"""What tasks take of nodes, down to single devices: which ones, how much, and of many at once.

The state and every draft keep their books with these functions and `node_books`, so that they
cannot disagree. Amounts are integers, and giving back undoes taking exactly.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from scheduler.core.model import MILLI, Node, Shape
from scheduler.core.node_columns import (
    CPU,
    FRACTION,
    GPUS,
    MEMORY,
    N_WIDTHS,
    IntColumn,
    NodeColumns,
    Rows,
    memory_of_fraction_mib,
)
from scheduler.core.topology import cliques_of
from scheduler.core.values import value_class

Devices = tuple[int, ...]


@value_class(frozen=True, slots=True, kw_only=True)
class Tasks:
    """What many tasks hold, as columns: H tasks and the devices of each, in the same order."""

    node: Rows  # [H]
    amount: IntColumn  # [H, 3] milli-CPU, MiB, thousandths of GPUs
    width: IntColumn  # [H] column of `n_by_width`, -1: no devices
    first_device: IntColumn  # [H + 1] where the devices of each begin
    device_node: Rows  # [V]
    device: Rows  # [V]
    device_amount: IntColumn  # [V, 2] thousandths, MiB

    def first(self, n_tasks: int) -> "Tasks":
        """Return the first so many of them."""
        n_devices = int(self.first_device[n_tasks])
        return Tasks(
            node=self.node[:n_tasks],
            amount=self.amount[:n_tasks],
            width=self.width[:n_tasks],
            first_device=self.first_device[: n_tasks + 1],
            device_node=self.device_node[:n_devices],
            device=self.device[:n_devices],
            device_amount=self.device_amount[:n_devices],
        )


def tasks_of(
    nodes: NodeColumns,
    node: Rows,
    shape_of: Rows,
    shapes: Sequence[Shape],
    devices: Sequence[Devices],
) -> Tasks:
    """Return as columns what tasks hold that have a node, a shape's number and devices each."""
    asks = np.array(
        [[s.cpu_milli, s.memory_mib, s.gpus, s.gpu_milli, s.gpu_memory_mib] for s in shapes],
        np.int64,
    ).reshape(-1, 5)[shape_of]
    # A whole shape has as many devices as it asks for, a fraction one.
    n_devices = np.where(asks[:, 2] > 0, asks[:, 2], asks[:, 3] > 0)
    of_task = np.repeat(np.arange(len(node)), n_devices)
    device_mib = nodes.device_memory_mib[node[of_task]]
    _, _, gpus, milli, mib = asks[of_task].T
    of_fraction_mib = np.where(mib > 0, mib, device_mib * milli // MILLI)
    return Tasks(
        node=node,
        amount=np.column_stack([asks[:, :2], asks[:, 2] * MILLI + asks[:, 3]]),
        width=np.where(n_devices > 0, np.minimum(asks[:, 2], N_WIDTHS - 1), -1),
        first_device=np.concatenate([[0], np.cumsum(n_devices)]),
        device_node=node[of_task],
        device=np.fromiter(chain.from_iterable(devices), np.intp),
        device_amount=np.column_stack(
            [np.where(gpus > 0, MILLI, milli), np.where(gpus > 0, device_mib, of_fraction_mib)]
        ),
    )


def give_all(nodes: NodeColumns, tasks: Tasks) -> list[int]:
    """Give back what many tasks hold at once; return the nodes that changed."""
    np.add.at(nodes.free[:, CPU], tasks.node, tasks.amount[:, 0])
    np.add.at(nodes.free[:, MEMORY], tasks.node, tasks.amount[:, 1])
    np.subtract.at(nodes.n_tasks, tasks.node, 1)
    has_devices = tasks.width >= 0
    widths = (tasks.node[has_devices], tasks.width[has_devices])
    np.subtract.at(nodes.n_by_width, widths, 1)
    devices = (tasks.device_node, tasks.device)
    np.subtract.at(nodes.device_used, devices, tasks.device_amount[:, 0])
    np.add.at(nodes.device_memory_free, devices, tasks.device_amount[:, 1])
    rows = np.unique(tasks.device_node)
    count_all(nodes, rows)
    changed: list[int] = np.unique(tasks.node).tolist()
    return changed


def choose_devices(nodes: NodeColumns, row: int, shape: Shape) -> Devices | None:
    """Return the devices that one more task gets on the node, or None if they do not suffice.

    Whole devices: the first free ones, linked ones if there are enough. A fraction: the device
    with the least left that still suffices, so that whole devices stay whole; ties go to the
    first.
    """
    return chosen(
        nodes.nodes[row],
        shape,
        milli=nodes.device_free[row].tolist(),
        mib=nodes.device_memory_free[row].tolist(),
        device_memory_mib=int(nodes.device_memory_mib[row]),
    )


def chosen(
    node: Node,
    shape: Shape,
    *,
    milli: Sequence[int],
    mib: Sequence[int],
    device_memory_mib: int,
    among: Devices | None = None,
) -> Devices | None:
    """Return what `choose_devices` does, given what each device has left.

    Only devices `among` the given ones, if any are.
    """
    if shape.gpus:
        if among is None and not node.nvlink:
            return _first_whole(milli, shape.gpus)
        whole = [device for device, left in enumerate(milli) if left == MILLI]
        if among is not None:
            whole = [device for device in whole if device in among]
        if len(whole) < shape.gpus:
            return None
        if node.nvlink:
            return _linked(cliques_of(node), whole, shape.gpus)
        return tuple(whole[: shape.gpus])
    if not shape.gpu_milli:
        return ()
    memory_mib = memory_of_fraction_mib(shape, device_memory_mib)
    best, least = -1, MILLI + 1
    for device, left in enumerate(milli):
        suffices = shape.gpu_milli <= left < least and mib[device] >= memory_mib
        if suffices and (among is None or device in among):
            best, least = device, left
    return None if best < 0 else (best,)


def _first_whole(milli: Sequence[int], n_devices: int) -> Devices | None:
    found, after = [], 0
    try:
        for _ in range(n_devices):
            found.append(milli.index(MILLI, after))
            after = found[-1] + 1
    except ValueError:
        return None
    return tuple(found)


def _linked(cliques: Sequence[Devices], whole: Sequence[int], n_devices: int) -> Devices:
    """Return so many of the whole devices, from the smallest clique that has them.

    If none has, from as few cliques as possible.
    """
    free = [[device for device in clique if device in whole] for clique in cliques]
    enough = [devices for devices in free if len(devices) >= n_devices]
    if enough:
        return tuple(min(enough, key=len)[:n_devices])
    found: list[int] = []
    for devices in sorted(free, key=len, reverse=True):
        found += devices[: n_devices - len(found)]
    return tuple(sorted(found))


def can_take(nodes: NodeColumns, row: int, shape: Shape, devices: tuple[int, ...]) -> bool:
    """Return whether the node has what the task needs, on exactly these devices."""
    cpu_milli, memory_mib, _, _ = nodes.free[row].tolist()
    if cpu_milli < shape.cpu_milli or memory_mib < shape.memory_mib:
        return False
    if len(devices) != (shape.gpus or (1 if shape.gpu_milli else 0)):
        return False
    if not devices:
        return True
    n_devices = len(nodes.nodes[row].gpus)
    if len(set(devices)) < len(devices) or min(devices) < 0 or max(devices) >= n_devices:
        return False
    amount, device_mib = per_device(shape, nodes.device_memory_mib.item(row))
    left, memory_left = nodes.device_free[row], nodes.device_memory_free[row]
    return all(left.item(d) >= amount and memory_left.item(d) >= device_mib for d in devices)


def can_join(nodes: NodeColumns, row: int, shape: Shape, devices: tuple[int, ...]) -> bool:
    """Return whether the task fits beside one that has these whole devices to itself."""
    index = list(devices)
    return bool(
        len(devices) == shape.gpus
        and nodes.free[row, CPU] >= shape.cpu_milli
        and nodes.free[row, MEMORY] >= shape.memory_mib
        and nodes.is_healthy[row, index].all()
        and (nodes.device_used[row, index] == MILLI).all()
    )


def width_of(shape: Shape) -> int:
    """Return the column of `n_by_width` that counts tasks of a shape with devices."""
    return min(shape.gpus, N_WIDTHS - 1)


def per_device(shape: Shape, device_memory_mib: int) -> tuple[int, int]:
    """Return the thousandths and MiB that a task takes of each of its devices."""
    if shape.gpus:
        return MILLI, device_memory_mib
    return shape.gpu_milli, memory_of_fraction_mib(shape, device_memory_mib)


def count_devices(nodes: NodeColumns, row: int) -> None:
    """Derive what the node's devices can still give from what is taken and healthy."""
    used, is_healthy = nodes.device_used[row], nodes.is_healthy[row]
    left = np.where(is_healthy, np.maximum(MILLI - used, 0), 0)
    nodes.device_free[row] = left
    nodes.free[row, GPUS] = np.count_nonzero(left == MILLI)
    nodes.free[row, FRACTION] = left.max(initial=0)


def count_all(nodes: NodeColumns, rows: Rows) -> None:
    """Derive for many nodes what their devices can still give."""
    left = np.maximum(MILLI - nodes.device_used[rows], 0)
    left[~nodes.is_healthy[rows]] = 0
    nodes.device_free[rows] = left
    nodes.free[rows, GPUS] = np.count_nonzero(left == MILLI, axis=1)
    nodes.free[rows, FRACTION] = left.max(axis=1, initial=0)
