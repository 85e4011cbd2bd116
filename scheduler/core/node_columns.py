"""Every node as a row of numpy columns: what it has left, and what could ever go there."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scheduler.core.model import MILLI, Levels, Node, NodeName, Shape
from scheduler.core.plan import Cause
from scheduler.core.topology import Tree, tree_of

IntColumn = NDArray[np.int64]
FloatColumn = NDArray[np.float64]
BoolColumn = NDArray[np.bool_]
Rows = NDArray[np.intp]
CPU, MEMORY, GPUS, FRACTION = range(4)
"""Columns of `NodeColumns.free`: milli-CPU, MiB, whole devices, the fullest milli-GPU that one
device can still give."""

FAILURE_HALF_LIFE_S = 86_400.0
"""A failure of a node counts half after a day."""

MISFITS_KEPT = 128
"""Answers of `misfits` that are remembered."""

Misfits = list[tuple[Cause, str] | None]
"""By kind of node, why it could never take a shape; None: it could."""

FITS_KEPT = 1_024
"""Answers of `static_fit` that are remembered; at 10,000 nodes 10 MiB."""

N_WIDTHS = 10
"""Columns of `NodeColumns.n_by_width`: fractions of a device, then 1, 2, ... 8, 9 or more."""


@dataclass(slots=True, kw_only=True, eq=False)
class NodeColumns:
    """Every node, in the order of registration; removed ones stay as closed rows.

    N rows, D devices on the widest node. `device_free` is what may be taken of a device: zero
    for an unhealthy or missing one; `device_used` is what is taken, whatever its health: of a
    device that two jobs share (see `sharing`) twice the whole, and its memory twice, too.
    """

    nodes: list[Node]
    row_of: dict[NodeName, int]
    free: IntColumn  # [N, 4]: CPU, MEMORY, GPUS, FRACTION
    device_free: IntColumn  # [N, D] thousandths
    device_used: IntColumn  # [N, D] thousandths
    device_memory_free: IntColumn  # [N, D] MiB
    device_memory_mib: IntColumn  # [N] of each device
    is_healthy: BoolColumn  # [N, D]
    is_up: BoolColumn  # [N]
    is_cordoned: BoolColumn  # [N]
    is_draining: BoolColumn  # [N]
    is_removed: BoolColumn  # [N]
    n_tasks: IntColumn  # [N]
    n_by_width: IntColumn  # [N, N_WIDTHS] tasks with GPUs, by how many devices each has
    n_gpus: IntColumn  # [N] devices, healthy or not
    price_usd_per_h: FloatColumn  # [N] of the whole node
    n_failures: FloatColumn  # [N] as of `failed_at_s`; see `failures_at`
    failed_at_s: FloatColumn  # [N] of the last one
    kind: IntColumn  # [N] index into `kinds`
    kinds: list[Node]  # one node of each kind: nodes alike but for name and what is free
    # Derived from what rarely changes, remembered across snapshots until it does.
    fits_statically: dict[tuple[object, ...], BoolColumn] = field(default_factory=dict)
    misfits_by_kind: dict[tuple[object, ...], Misfits] = field(default_factory=dict)
    trees: dict[Levels, Tree] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Self:
        """Return a table without rows."""
        return cls(
            nodes=[],
            row_of={},
            free=np.zeros((0, 4), np.int64),
            device_free=np.zeros((0, 0), np.int64),
            device_used=np.zeros((0, 0), np.int64),
            device_memory_free=np.zeros((0, 0), np.int64),
            device_memory_mib=np.zeros(0, np.int64),
            is_healthy=np.zeros((0, 0), np.bool_),
            is_up=np.zeros(0, np.bool_),
            is_cordoned=np.zeros(0, np.bool_),
            is_draining=np.zeros(0, np.bool_),
            is_removed=np.zeros(0, np.bool_),
            n_tasks=np.zeros(0, np.int64),
            n_by_width=np.zeros((0, N_WIDTHS), np.int64),
            n_gpus=np.zeros(0, np.int64),
            price_usd_per_h=np.zeros(0),
            n_failures=np.zeros(0),
            failed_at_s=np.zeros(0),
            kind=np.zeros(0, np.int64),
            kinds=[],
        )

    def copy(self) -> Self:
        """Return a table that can be written to without touching this one."""
        arrays: dict[str, Any] = {
            f.name: value.copy()
            for f in fields(self)
            for value in [getattr(self, f.name)]
            if isinstance(value, np.ndarray)
        }
        return replace(self, **arrays, nodes=self.nodes.copy(), row_of=self.row_of.copy())

    def widen(self, n_devices: int) -> None:
        """Have columns for so many devices of a node."""
        for name in ("device_free", "device_used", "device_memory_free", "is_healthy"):
            old = getattr(self, name)
            wide = np.zeros((len(old), n_devices), old.dtype)
            wide[:, : old.shape[1]] = old
            setattr(self, name, wide)

    def without_removed(self) -> Self:
        """Return the table without the rows of removed nodes, the others in their order."""
        kept = np.flatnonzero(~self.is_removed)
        arrays: dict[str, Any] = {
            f.name: value[kept]
            for f in fields(self)
            for value in [getattr(self, f.name)]
            if isinstance(value, np.ndarray)
        }
        nodes = [self.nodes[row] for row in kept]
        row_of = {node.name: row for row, node in enumerate(nodes)}
        return replace(
            self,
            **arrays,
            nodes=nodes,
            row_of=row_of,
            fits_statically={},
            misfits_by_kind={},
            trees={},
        )

    def failures_at(self, now_s: float, rows: Rows) -> FloatColumn:
        """Return how often nodes have failed, what is long ago counting less."""
        ago_s = np.maximum(now_s - self.failed_at_s[rows], 0.0)
        count: FloatColumn = self.n_failures[rows] * 0.5 ** (ago_s / FAILURE_HALF_LIFE_S)
        return count

    def is_open(self) -> BoolColumn:
        """Return which nodes take new tasks."""
        return self.is_up & ~(self.is_cordoned | self.is_draining | self.is_removed)

    def gpu_types(self) -> list[str]:
        """Return the types of the GPUs of nodes that are there, sorted."""
        there = np.flatnonzero(~self.is_removed & (self.n_gpus > 0)).tolist()
        return sorted({self.nodes[row].gpu_type for row in there})

    def static_fit(self, shape: Shape) -> BoolColumn:
        """Return which nodes could ever take the shape: type, labels, taints, device memory."""
        key = _static_key(shape)
        known = self.fits_statically.get(key)
        if known is None:
            if len(self.fits_statically) == FITS_KEPT:
                self.fits_statically.clear()
            by_kind = [misfit(node, shape) is None for node in self.kinds]
            known = np.array(by_kind, np.bool_)[self.kind]
            self.fits_statically[key] = known
        return known

    def misfits(self, shape: Shape) -> Misfits:
        """Return by kind of node why it could never take the shape; None: it could."""
        key = _static_key(shape)
        known = self.misfits_by_kind.get(key)
        if known is None:
            if len(self.misfits_by_kind) == MISFITS_KEPT:
                self.misfits_by_kind.clear()
            known = self.misfits_by_kind[key] = [misfit(node, shape) for node in self.kinds]
        return known

    def tree(self, levels: Levels) -> Tree:
        """Return the nodes as a tree of these levels."""
        known = self.trees.get(levels)
        if known is None:
            n_devices = self.device_free.shape[1]
            known = self.trees[levels] = tree_of(
                levels, self.nodes, kinds=self.kinds, kind=self.kind, n_devices=n_devices
            )
        return known

    def for_draft(self) -> Self:
        """Return a table whose bookings can be changed without touching this one."""
        return replace(
            self,
            free=self.free.copy(),
            device_free=self.device_free.copy(),
            device_used=self.device_used.copy(),
            device_memory_free=self.device_memory_free.copy(),
            n_tasks=self.n_tasks.copy(),
            n_by_width=self.n_by_width.copy(),
        )


def _static_key(shape: Shape) -> tuple[object, ...]:
    """Return all that `misfit` looks at: there are few of these, but shapes without end."""
    return (
        shape.gpu_types,
        shape.node_labels,
        shape.tolerations,
        shape.gpu_memory_mib,
        shape.gpus > 0 or shape.gpu_milli > 0,
    )


def kind_of(node: Node) -> tuple[object, ...]:
    """Return what makes nodes alike for `misfit`."""
    memory_mib = min((gpu.memory_mib for gpu in node.gpus), default=0)
    return (node.labels, node.taints, node.gpu_type, bool(node.gpus), memory_mib)


def misfit(node: Node, shape: Shape) -> tuple[Cause, str] | None:
    """Return why the node could never take the shape, however empty; None if it could."""
    for key, value in shape.node_labels:
        if (key, value) not in node.labels:
            return Cause.LABELS, f"lack label {key}={value}"
    for taint in node.taints:
        if not any(toleration.tolerates(taint) for toleration in shape.tolerations):
            mark = f"{taint.key}={taint.value}" if taint.value else taint.key
            return Cause.TAINTS, f"have taint {mark}, not tolerated"
    if shape.total_gpu_milli and not node.gpus:
        return Cause.GPUS, "have no GPU"
    if shape.gpu_types and node.gpu_type not in shape.gpu_types:
        wanted = " or ".join(shape.gpu_types)
        return Cause.GPU_TYPE, f"are of type {node.gpu_type or 'none'}, wanted {wanted}"
    if shape.total_gpu_milli and shape.gpu_memory_mib:
        memory_mib = min(gpu.memory_mib for gpu in node.gpus)
        if memory_mib < shape.gpu_memory_mib:
            return Cause.GPU_MEMORY, f"have GPUs of less than {shape.gpu_memory_mib} MiB"
    return None


def memory_of_fraction_mib(shape: Shape, device_memory_mib: int) -> int:
    """Return the device memory that a fractional shape takes of a device of that size."""
    return shape.gpu_memory_mib or device_memory_mib * shape.gpu_milli // MILLI
