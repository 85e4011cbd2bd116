"""Where a task goes best: a score for every node, highest best.

A score is a function, or a frozen value that can be called, of node columns, a shape and rows
(`NodeScore`). Those that expect something of the tasks to come are in `fragmentation` and
`packing`. The rivals of FGD's evaluation (ATC '23, section 6) are here as its authors ran them:
whole points, so that near ties go to the first node.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scheduler.core import capacity
from scheduler.core.model import MILLI, Shape
from scheduler.core.node_books import NodeBooks
from scheduler.core.node_columns import CPU, FRACTION, GPUS, MEMORY, N_WIDTHS, NodeColumns, Rows
from scheduler.core.ports import ClusterScore, DeviceChoice, NodeScore

Scores = NDArray[np.float64]

PER_CPU = 1 / 16
"""A CPU in GPUs: GPU nodes have about 16 CPUs for each GPU."""

PER_GIB = 1 / 128
"""A GiB of memory in GPUs: GPU nodes have about 128 GiB for each GPU."""

_PER_CPU_MILLI, _PER_MIB, _PER_GPU_MILLI = PER_CPU / 1000, PER_GIB / 1024, 1 / 1000

APART = 1000.0
"""More than any node has left: puts one class of nodes before the other."""

LARGEST_CPU_MILLI = 128_000
"""CPUs of the largest node in FGD's evaluation, by which its rivals measure."""

LARGEST_GPU_MILLI = 8 * MILLI
"""GPUs of the largest node in FGD's evaluation."""


@dataclass(frozen=True, slots=True)
class BestFit:
    """Leave as little as possible behind on the node, weighed in GPUs.

    Tasks without GPUs stay off nodes that have some, as long as others fit; fractions go to
    devices that are shared already, so that whole ones stay whole.
    """

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return minus what is left on each of the nodes."""
        score = -left_in_gpus(nodes, rows)
        if not shape.total_gpu_milli:
            score -= APART * nodes.n_gpus[rows]
        if shape.gpu_milli:
            left = nodes.device_free[rows]
            is_shared = (left >= shape.gpu_milli) & (left < MILLI)
            score[is_shared.any(axis=1)] += APART
        return score

    def of_node(self, shape: Shape) -> Callable[[NodeBooks], float]:
        """Return the same for one node."""
        milli = shape.gpu_milli

        def without_gpus(books: NodeBooks) -> float:
            return -_left_on(books) - APART * books.n_gpus

        def with_whole(books: NodeBooks) -> float:
            return -_left_on(books)

        def with_fraction(books: NodeBooks) -> float:
            score = -_left_on(books)
            for left in books.device_free:
                if milli <= left < MILLI:
                    return score + APART
            return score

        if milli:
            return with_fraction
        return with_whole if shape.gpus else without_gpus

    def devices_on(self, books: NodeBooks, shape: Shape) -> tuple[int, ...] | None:
        """Return the devices that leave whole what can be."""
        return books.choose_devices(shape)


best_fit = BestFit()


def left_in_gpus(nodes: NodeColumns, rows: Rows) -> Scores:
    """Return what is left on each node, weighed in GPUs."""
    free = nodes.free[rows].astype(np.float64)
    cpu_and_gpus = free[:, CPU] * _PER_CPU_MILLI + free[:, GPUS]
    left: Scores = cpu_and_gpus + (
        free[:, MEMORY] * _PER_MIB + free[:, FRACTION] * _PER_GPU_MILLI
    )
    return left


def _left_on(books: NodeBooks) -> float:
    """Return `left_in_gpus` of one node, rounded alike."""
    return (books.cpu_milli * _PER_CPU_MILLI + books.n_whole) + (
        books.memory_mib * _PER_MIB + books.most_milli * _PER_GPU_MILLI
    )


def worst_fit(nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
    """Leave as much as possible on the node, weighed in GPUs: spread out, mix little.

    Tasks without GPUs stay off nodes that have some, as long as others fit.
    """
    score = left_in_gpus(nodes, rows)
    if not shape.total_gpu_milli:
        score -= APART * nodes.n_gpus[rows]
    return score


def best_fit_in_two(nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
    """Leave little CPU and GPU, half weight each (BestFit of FGD's evaluation)."""
    cpu = (nodes.free[rows, CPU] - shape.cpu_milli) / LARGEST_CPU_MILLI
    gpu = (nodes.device_free[rows].sum(axis=1) - shape.total_gpu_milli) / LARGEST_GPU_MILLI
    points: Scores = np.trunc(100.0 * (1.0 - 0.5 * cpu - 0.5 * gpu))
    return points


def dot_product(nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
    """Take the node whose free CPU and GPU match the request least (Tetris, SIGCOMM '14).

    The authors of FGD turn Tetris' sign round, so that large nodes stay free for large tasks.
    """
    cpu = nodes.free[rows, CPU] / LARGEST_CPU_MILLI * (shape.cpu_milli / LARGEST_CPU_MILLI)
    free_gpu_milli = nodes.device_free[rows].sum(axis=1)
    gpu = free_gpu_milli / LARGEST_GPU_MILLI * (shape.total_gpu_milli / LARGEST_GPU_MILLI)
    points: Scores = np.trunc(100.0 * (1.0 - (cpu + gpu) / 2))
    return points


def gpu_packing(nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
    """Fill shared devices, then free ones of used nodes, then free nodes (MLaaS, NSDI '22)."""
    if not shape.total_gpu_milli:
        return np.zeros(len(rows))
    left = nodes.device_free[rows]
    n_gpus, n_whole = nodes.n_gpus[rows], nodes.free[rows, GPUS]
    on_used = np.full(len(rows), 50.0 - max(shape.gpus, 1))
    if shape.gpu_milli:
        is_shared = (left >= shape.gpu_milli) & (left < MILLI)
        fullest = np.where(is_shared, left, MILLI).min(axis=1, initial=MILLI)
        on_used = np.where(fullest < MILLI, 100.0 - fullest // 100, on_used)
    on_free = np.maximum(33 - n_whole, n_whole)
    points: Scores = np.where(n_whole == n_gpus, on_free, np.maximum(on_used, 33.0))
    return points


def gpu_clustering(nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
    """Gather tasks of as many GPUs on the same nodes (Gandiva, OSDI '18; as FGD's authors do).

    Best are nodes with only such tasks, then with such among others, then empty ones.
    """
    if not shape.total_gpu_milli:
        return np.zeros(len(rows))
    n_by_width = nodes.n_by_width[rows]
    n_widths = np.count_nonzero(n_by_width, axis=1)
    has_alike = n_by_width[:, min(shape.gpus, N_WIDTHS - 1)] > 0
    quarter = np.where(has_alike, np.where(n_widths == 1, 3, 2), np.where(n_widths == 0, 1, 0))
    used_milli = np.maximum(LARGEST_GPU_MILLI - nodes.device_free[rows].sum(axis=1), 0)
    points: Scores = 25.0 * quarter + 25 * used_milli // LARGEST_GPU_MILLI
    return points


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Take any node, each as likely as the others, by a hash of names instead of dice.

    The number of tasks in the cluster turns the hash on: equal books give equal scores.
    """

    seed: int = 0
    sees_other_nodes: ClassVar[bool] = True

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return a number between 0 and 1 for each node."""
        return _uniform(_hashed(nodes, rows.tolist()), _turn(nodes, self.seed))

    def points(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return the same: it is from 0 to 1 already."""
        return self(nodes, shape, rows)

    def choose_devices(
        self, nodes: NodeColumns, row: int, shape: Shape
    ) -> tuple[int, ...] | None:
        """Return any device that has the fraction free; whole devices as usual."""
        best = capacity.choose_devices(nodes, row, shape)
        if not shape.gpu_milli or best is None:
            return best
        fits = [
            device
            for device in range(nodes.device_free.shape[1])
            if capacity.can_take(nodes, row, shape, (device,))
        ]
        # Of the node with the largest draw of all: its devices need draws of their own.
        key = _hashed(nodes, [row]) + np.uint64(2**32)
        draw = float(_uniform(key, _turn(nodes, self.seed))[0])
        return (fits[int(draw * len(fits))],)


def _hashed(nodes: NodeColumns, rows: list[int]) -> NDArray[np.uint64]:
    return np.array([zlib.crc32(nodes.nodes[row].name.encode()) for row in rows], np.uint64)


def _turn(nodes: NodeColumns, seed: int) -> int:
    return seed * 2**32 + int(nodes.n_tasks.sum())


def _uniform(keys: NDArray[np.uint64], seed: int) -> Scores:
    """Hash each key to a number in (0, 1) (the finaliser of SplitMix64)."""
    mixed = keys + np.uint64(0x9E3779B97F4A7C15 * (seed + 1) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    uniform: Scores = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    return uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """Several scores as one: their weighted sum. The first that chooses devices does so."""

    parts: tuple[tuple[float, NodeScore], ...]

    @property
    def sees_other_nodes(self) -> bool:
        """Whether any part does."""
        clusterwide = [part for _, part in self.parts if isinstance(part, ClusterScore)]
        return any(part.sees_other_nodes for part in clusterwide)

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return the weighted sum of the parts."""
        total = np.zeros(len(rows))
        for weight, score in self.parts:
            total += weight * score(nodes, shape, rows)
        return total

    def choose_devices(
        self, nodes: NodeColumns, row: int, shape: Shape
    ) -> tuple[int, ...] | None:
        """Return what the first part that knows devices chooses, else the best fit."""
        for _, score in self.parts:
            if isinstance(score, DeviceChoice):
                return score.choose_devices(nodes, row, shape)
        return capacity.choose_devices(nodes, row, shape)


def weighted(*parts: tuple[float, NodeScore]) -> Weighted:
    """Return the weighted sum of scores; their scales are the caller's business."""
    return Weighted(parts=_flat(parts))


def _flat(parts: Sequence[tuple[float, NodeScore]]) -> tuple[tuple[float, NodeScore], ...]:
    flat: list[tuple[float, NodeScore]] = []
    for weight, score in parts:
        if isinstance(score, Weighted):
            flat += [(weight * inner, part) for inner, part in score.parts]
        else:
            flat.append((weight, score))
    return tuple(flat)
