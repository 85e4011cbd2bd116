"""How much more of openb's cluster can be filled if a few pods may be moved.

When a pod does not fit, one pod that was placed before is moved elsewhere, if that lets the new
one in: the smallest that does, on the nodes with most GPU free. Greedy, one move at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler.core.model import MILLI, Node, Shape
from scheduler.core.space import Space
from simulator.reproduction.fgd import (
    arrivals,
    columns,
    permuted,
    score_for,
    workload_in,
)

NODES_TRIED = 24
"""Nodes on which a pod to move is looked for."""

FORGOTTEN_AFTER = 100
"""Pods placed after which a shape is tried again that no move helped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What was allocated in per cent of all GPUs, and which part of the placed pods moved."""

    allocated: float
    moved: float  # 0 to 1


@dataclass(slots=True)
class _Packed:
    """Books with who is where."""

    space: Space
    held: list[list[tuple[Shape, tuple[int, ...]]]] = field(init=False)

    def __post_init__(self) -> None:
        self.held = [[] for _ in self.space.nodes.nodes]

    def place(self, shape: Shape, row: int | None = None) -> int | None:
        """Place a pod, on that node if one is named; return the node, None if there is none."""
        spot = self.space.place(shape, row)
        if spot is None:
            return None
        self.held[spot.row].append((shape, spot.devices))
        return spot.row

    def remove(self, row: int, number: int) -> tuple[Shape, tuple[int, ...]]:
        """Take a pod off its node."""
        shape, devices = self.held[row].pop(number)
        self.space.give(row, shape, devices)
        return shape, devices

    def make_room(self, wanted: Shape) -> bool:
        """Place a pod where it does not fit by moving another one; return whether it did."""
        space = self.space
        free = np.where(space.could_take(wanted), space.nodes.device_free.sum(axis=1), -1)
        for row in np.argsort(-free, kind="stable")[:NODES_TRIED].tolist():
            if free[row] < 0:
                break
            tried: set[tuple[Shape, tuple[int, ...]]] = set()
            for shape, devices in sorted(self.held[row], key=_size):
                if (shape, devices) not in tried and shape != wanted:
                    tried.add((shape, devices))
                    if self._swap(row, (shape, devices), wanted):
                        return True
        return False

    def _swap(self, row: int, pod: tuple[Shape, tuple[int, ...]], wanted: Shape) -> bool:
        """Move a pod off the node in favour of another one, if both then have a place."""
        shape, devices = self.remove(row, self.held[row].index(pod))
        if self.space.fits(row, wanted) and self.place(wanted, row) is not None:
            if self.place(shape) is not None:
                return True
            self.remove(row, len(self.held[row]) - 1)
        self.space.take(row, shape, devices)
        self.held[row].append(pod)
        return False


def _size(pod: tuple[Shape, tuple[int, ...]]) -> tuple[int, int, int, tuple[int, ...]]:
    shape, devices = pod
    return shape.total_gpu_milli, shape.cpu_milli, shape.memory_mib, devices


def fill_with_moves(
    nodes: Sequence[Node], shapes: Sequence[Shape], score: str, *, seed: int, budget: float
) -> Moved:
    """Let pods arrive until they ask for all GPUs; `budget` is the part that may be moved."""
    table = columns(permuted(nodes, seed=seed))
    packed = _Packed(
        Space(table, score_for(score, table, workload_in(shapes), seed=seed)),
    )
    total_milli = MILLI * int(table.n_gpus.sum())
    n_placed = n_moved = booked_milli = 0
    hopeless: set[Shape] = set()
    for shape in arrivals(shapes, seed=seed, gpu_milli=total_milli):
        is_placed = packed.place(shape) is not None
        if not is_placed and shape not in hopeless and n_moved + 1 <= budget * n_placed:
            is_placed = packed.make_room(shape)
            n_moved += is_placed
            if not is_placed:
                hopeless.add(shape)
        if is_placed:
            n_placed += 1
            if n_placed % FORGOTTEN_AFTER == 0:
                hopeless.clear()
            booked_milli += shape.total_gpu_milli
    return Moved(allocated=100 * booked_milli / total_milli, moved=n_moved / max(n_placed, 1))
