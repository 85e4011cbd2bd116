"""`lepton` packing: place where the node keeps most of its value for the tasks to come.

Reads node columns and a target `Workload`; its score is V(after) - V(before) of a value V of
what is free on a node. V counts what each expected shape could still use there and how many
copies of it would still fit, CPU and memory included, and prices what is left of every device
by the best fill that fractions to come can make of it. Against FGD, which looks one task ahead,
it looks at whole fills of a device and at CPU and memory; and it weighs shapes by how much of
the cluster they can go to, so that what only few nodes can take finds room there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from policies.fragmentation import NodeTypes, Scores, Workload, logistic
from scheduler.core import capacity
from scheduler.core.model import MILLI, Shape
from scheduler.core.node_columns import CPU, GPUS, MEMORY, NodeColumns, Rows

Ints = NDArray[np.int64]

# Weights of the parts of V, in thousandths of a GPU; tuned on seeds that no benchmark uses.
FILL = 8000.0
"""Of a device's best fill, in devices: not to break a fit weighs most."""
USABLE = 0.6
"""Of the free GPU that a shape could use (FGD's measure)."""
COPIES = 0.4
"""Of the GPU that copies of a shape would fill."""
WITHOUT_GPU = 10.0
"""Of a copy of a shape that asks for no GPU."""

COVERAGE = 0.99
"""Of the workload: the last hundredth is most of the shapes and changes nothing (measured)."""

LARGEST_NODE_GPUS = 128
"""Devices of the largest node that is told apart; more count as this many."""

_NO_LIMIT = 1e9

_GRAIN = 2.0**-28
"""Weights are whole multiples of it, so that sums are exact: what a node is worth must not
depend on which others are scored with it, as rounding in a product of matrices does."""


@dataclass(frozen=True, kw_only=True)
class ValuePacking:
    """Keep the value of what is free; made by `lepton_packing`."""

    workload: Workload
    reach: tuple[float, ...]
    """Per shape of the workload: of the nodes large enough, the part that it may go to."""
    _value: "_Value" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_value", _Value(self.workload, self.reach))

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return how much value each node keeps when its best devices are taken."""
        if not len(rows):
            return np.zeros(0)
        best: Scores = self._value.kept(nodes, shape, rows).max(axis=1)
        return best

    def points(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return 1/2 for a node that keeps all its value, less for less (a logistic).

        Value counts in devices that are filled at best.
        """
        return logistic(self(nodes, shape, rows) / FILL)

    def choose_devices(
        self, nodes: NodeColumns, row: int, shape: Shape
    ) -> tuple[int, ...] | None:
        """Return the device whose fraction keeps most value, the first of equals."""
        if not shape.gpu_milli:
            return capacity.choose_devices(nodes, row, shape)
        kept = self._value.kept(nodes, shape, np.array([row]))[0]
        left = nodes.device_free[row]
        # Equal devices share one number, which stands at the first of them.
        for first in np.argsort(-kept, kind="stable").tolist():
            for device in np.flatnonzero(left == left[first]).tolist():
                if capacity.can_take(nodes, row, shape, (device,)):
                    return (device,)
        return None


def lepton_packing(nodes: NodeColumns, workload: Workload) -> ValuePacking:
    """Return the packing score for a cluster and the workload expected on it."""
    workload = workload.most_popular(COVERAGE)
    there = ~nodes.is_removed
    sizes = [(node.cpu_milli, node.memory_mib, len(node.gpus)) for node in nodes.nodes]
    size = np.where(there[:, None], np.array(sizes, np.int64).reshape(-1, 3), 0)
    reach = []
    for shape in workload.shapes:
        is_large = (size >= (shape.cpu_milli, shape.memory_mib, shape.gpus)).all(axis=1)
        supply = np.where(is_large, size[:, 2 if shape.total_gpu_milli else 0], 0)
        total = int(supply.sum())
        reach.append(int(supply[nodes.static_fit(shape)].sum()) / total if total else 0.0)
    return ValuePacking(workload=workload, reach=tuple(reach))


class _Value:
    """V by table, for one workload."""

    def __init__(self, workload: Workload, reach: Sequence[float]) -> None:
        # A shape that may go to a tenth of the cluster only comes ten times as often there.
        parts = zip(workload.popularity, reach, strict=True)
        self._demand = np.array(
            [popularity / part if part else 0.0 for popularity, part in parts]
        )
        self._types = NodeTypes(workload.shapes)
        self._n_known = 0
        # Shapes that differ only in where they may go are one column with a weight per type.
        asked = {_asked(shape): None for shape in workload.shapes}
        column = {asks: index for index, asks in enumerate(asked)}
        self._column_of = np.array([column[_asked(s)] for s in workload.shapes], np.intp)
        cpu_milli, memory_mib, gpu_milli, gpus = (
            np.array(list(asked), np.int64).reshape(-1, 4).T
        )
        self._per_cpu = 1.0 / np.maximum(cpu_milli, 1e-6)
        self._per_memory = 1.0 / np.maximum(memory_mib, 1e-6)
        self._gpu_milli = gpu_milli + MILLI * gpus
        self._of_copies = self._of_usable = np.zeros((0, len(asked)))
        self._tabulate(gpu_milli, gpus)
        fractions, prices = fraction_prices(workload)
        self._fill = _in_grains(FILL * best_fill(fractions, prices, whole=1.0))

    def _tabulate(self, gpu_milli: Ints, gpus: Ints) -> None:
        """Tabulate copies and usable GPU per distinct need, by device and by whole devices."""
        fractions, wholes = np.unique(gpu_milli[gpu_milli > 0]), np.unique(gpus[gpus > 0])
        n_needs = len(fractions) + len(wholes)
        self._need_of = np.where(
            gpu_milli > 0,
            np.searchsorted(fractions, gpu_milli),
            np.where(gpus > 0, len(fractions) + np.searchsorted(wholes, gpus), n_needs),
        )
        left = np.arange(MILLI + 1)[:, None]
        self._on_device = np.hstack([left // fractions, np.where(left >= fractions, left, 0)])
        self._n_fractions = len(fractions)
        n_whole = np.arange(LARGEST_NODE_GPUS + 1)[:, None]
        self._copies_on_whole = np.hstack(
            [n_whole // wholes, np.full((len(n_whole), 1), _NO_LIMIT)]
        )
        usable = np.where(n_whole >= wholes, MILLI * n_whole, 0)
        self._usable_on_whole = np.hstack([usable, np.zeros((len(n_whole), 1))])

    def kept(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return V after less V before, per row and device.

        Without a fraction the first device stands for all; of equal devices the first does.
        What does not fit is minus infinity.
        """
        types = self._types_of(nodes)[nodes.kind[rows]]
        free, left = nodes.free[rows], nodes.device_free[rows]
        on_devices = self._on_device[left].sum(axis=1)
        if shape.gpu_milli:
            row, device = _distinct(left, shape.gpu_milli)
            was = left[row, device]
            then = was - shape.gpu_milli
            change = self._on_device[then] - self._on_device[was]
            filled = self._fill[then] - self._fill[was]
            n_taken = (was == MILLI).astype(np.int64)
        else:
            row, device = np.arange(len(rows)), np.zeros(len(rows), np.intp)
            change = -shape.gpus * self._on_device[MILLI]
            filled = np.full(len(rows), -shape.gpus * self._fill[MILLI])
            n_taken = np.full(len(rows), shape.gpus)
        before = self._worth(types, free[:, CPU], free[:, MEMORY], on_devices, free[:, GPUS])
        after = self._worth(
            types[row],
            free[row, CPU] - shape.cpu_milli,
            free[row, MEMORY] - shape.memory_mib,
            on_devices[row] + change,
            np.maximum(free[row, GPUS] - n_taken, 0),
        )
        kept = np.full((len(rows), max(left.shape[1], 1)), -np.inf)
        kept[row, device] = after - before[row] + filled
        return kept

    def _types_of(self, nodes: NodeColumns) -> Ints:
        """Return the type of each kind of nodes; weighs columns for types not met before."""
        types = self._types.of_kinds(nodes.kinds)
        patterns = self._types.patterns
        if len(patterns) > self._n_known:
            n_columns = len(self._gpu_milli)
            demand = np.array(
                [np.bincount(self._column_of, self._demand * p, n_columns) for p in patterns]
            )
            of_copies = np.where(self._gpu_milli > 0, COPIES * self._gpu_milli, WITHOUT_GPU)
            self._of_copies = _in_grains(demand * of_copies)
            self._of_usable = _in_grains(demand * USABLE)
            self._n_known = len(patterns)
        return types

    def _worth(
        self, types: Ints, cpu_milli: Ints, memory_mib: Ints, on_devices: Ints, n_whole: Ints
    ) -> Scores:
        """Return V of nodes, but for the fill of their devices."""
        n_whole, n_fractions = np.minimum(n_whole, LARGEST_NODE_GPUS), self._n_fractions
        n_copies = np.hstack([on_devices[:, :n_fractions], self._copies_on_whole[n_whole]])
        usable = np.hstack([on_devices[:, n_fractions:], self._usable_on_whole[n_whole]])
        copies = cpu_milli[:, None] * self._per_cpu
        np.minimum(copies, memory_mib[:, None] * self._per_memory, out=copies)
        np.floor(copies + 1e-9, out=copies)
        np.minimum(copies, n_copies[:, self._need_of], out=copies)
        could_use = usable[:, self._need_of] * (copies > 0)
        if len(self._of_copies) == 1:
            worth: Scores = copies @ self._of_copies[0] + could_use @ self._of_usable[0]
            return worth
        worth = np.einsum("ij,ij->i", copies, self._of_copies[types])
        worth += np.einsum("ij,ij->i", could_use, self._of_usable[types])
        return worth


def _in_grains(weights: Scores) -> Scores:
    grains: Scores = np.round(weights / _GRAIN) * _GRAIN
    return grains


def _asked(shape: Shape) -> tuple[int, int, int, int]:
    return (shape.cpu_milli, shape.memory_mib, shape.gpu_milli, shape.gpus)


def _distinct(left: Ints, gpu_milli: int) -> tuple[Rows, Rows]:
    """Return row and device of every device that suffices, once per row and amount left."""
    order = np.argsort(left, axis=1, kind="stable")
    ordered = np.take_along_axis(left, order, axis=1)
    suffices = ordered >= gpu_milli
    suffices[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    row, place = np.nonzero(suffices)
    return row, order[row, place]


def fraction_prices(workload: Workload) -> tuple[list[int], Scores]:
    """Return the fractions that come and what each is worth, in devices.

    The prices of the cutting stock program: the fewest devices that serve the fractions in
    proportion to their popularity, by patterns of what one device holds, made as they pay off
    (Gilmore and Gomory, 1961). A fraction that always finds a gap beside others is free.
    """
    # Solvers take half a second to load, and every policy is listed next to this one.
    from policies.linear_program import LinearProgram

    demand: dict[int, float] = {}
    for shape, popularity in zip(workload.shapes, workload.popularity, strict=True):
        if shape.gpu_milli:
            demand[shape.gpu_milli] = demand.get(shape.gpu_milli, 0.0) + popularity
    fractions = sorted(demand)
    wanted = np.array([demand[fraction] for fraction in fractions])
    patterns = list(np.diag([float(MILLI // fraction) for fraction in fractions]))
    prices = np.zeros(len(fractions))
    for _ in range(10 * len(fractions)):
        lp = LinearProgram(cut=len(patterns))
        lp.at_least({"cut": np.array(patterns).T}, wanted, name="demand")
        solution = lp.minimize({"cut": np.ones((1, len(patterns)))})
        prices = np.abs(solution.prices["demand"])
        pattern = _best_pattern(fractions, prices)
        if pattern @ prices <= 1.0 + 1e-9:
            break
        patterns.append(pattern)
    return fractions, prices


def best_fill(fractions: Sequence[int], prices: Scores, *, whole: float = 0.0) -> Scores:
    """Return the most that 0 to 1000 thousandths fetch, by fractions or as a whole device."""
    best = np.zeros(MILLI + 1)
    for milli in range(1, MILLI + 1):
        best[milli] = best[milli - 1]
        for fraction, price in zip(fractions, prices.tolist(), strict=True):
            if fraction <= milli:
                best[milli] = max(best[milli], best[milli - fraction] + price)
    best[MILLI] = max(best[MILLI], whole)
    return best


def _best_pattern(fractions: Sequence[int], prices: Scores) -> Scores:
    """Return how many of each fraction fetch the most on one device."""
    best = best_fill(fractions, prices)
    pattern, milli = np.zeros(len(fractions)), MILLI
    while milli > 0:
        for index, fraction in enumerate(fractions):
            is_part = fraction <= milli and prices[index] > 0
            if is_part and best[milli - fraction] + prices[index] >= best[milli] - 1e-12:
                pattern[index] += 1
                milli -= fraction
                break
        else:
            milli -= 1
    return pattern
