"""Fragmentation gradient descent: place where the tasks to come lose least (FGD, ATC '23).

Reads node columns and a target `Workload`: the shapes to come and how popular each is. What is
free on a node is a fragment for a shape that cannot use it; the expected fragments F of a node
are their mean over the workload. The best node and device are those that raise F least.

F needs no loop over shapes at run time. A shape sees a node through its type, through whether
its CPUs suffice, and through single devices; so F is a sum over the node's devices of a number
looked up by (type and CPU level, thousandths free), plus one looked up by whole devices free.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scheduler.core import capacity
from scheduler.core.model import MILLI, Node, Shape
from scheduler.core.node_books import NodeBooks
from scheduler.core.node_columns import CPU, GPUS, NodeColumns, Rows, misfit
from scheduler.core.snapshot import Snapshot

Scores = NDArray[np.float64]
Ints = NDArray[np.int64]

LARGEST_NODE_GPUS = 128
"""Devices of the largest node that is told apart; more count as this many."""

_WIDTH = MILLI + 1

State = tuple[int, int, tuple[int, ...]]
"""All that F of a node depends on: the tables' row now and with the task, what devices have."""

Answer = tuple[float, tuple[int, ...]]
"""The score of a node, and its devices, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The shapes that are expected to come, most popular first, and how often each comes."""

    shapes: tuple[Shape, ...]
    popularity: tuple[float, ...]  # adds up to 1

    @classmethod
    def of(cls, counts: Mapping[Shape, float]) -> Self:
        """Return the workload in which shapes come in proportion to these counts."""
        ranked = sorted(
            ((shape, count) for shape, count in counts.items() if count > 0),
            key=lambda item: (-item[1], _rank(item[0])),
        )
        total = sum(count for _, count in ranked)
        return cls(
            shapes=tuple(shape for shape, _ in ranked),
            popularity=tuple(count / total for _, count in ranked),
        )

    def most_popular(self, coverage: float) -> "Workload":
        """Return the fewest shapes that cover so much of it, 0 to 1; all if it is empty."""
        n_kept = int(np.searchsorted(np.cumsum(self.popularity), coverage - 1e-9)) + 1
        kept = zip(self.shapes[:n_kept], self.popularity[:n_kept], strict=True)
        return Workload.of(dict(kept))

    def typical(self, coverage: float = 0.95) -> "Workload":
        """Return the typical tasks of FGD: the most popular shapes, memory disregarded."""
        counts: dict[Shape, float] = {}
        for shape, popularity in zip(self.shapes, self.popularity, strict=True):
            without = replace(shape, memory_mib=0)
            counts[without] = counts.get(without, 0.0) + popularity
        return Workload.of(counts).most_popular(coverage)


def _rank(shape: Shape) -> tuple[object, ...]:
    return (
        -shape.total_gpu_milli,
        -shape.cpu_milli,
        -shape.memory_mib,
        shape.gpu_types,
        repr(shape),
    )


def workload_of(snapshot: Snapshot) -> Workload:
    """Return the mix of the live jobs: every task that waits or runs counts once."""
    in_use = snapshot.jobs.phase >= 0
    n_jobs = np.bincount(snapshot.jobs.gang[in_use], minlength=len(snapshot.gangs))
    counts: dict[Shape, float] = {}
    for gang in np.flatnonzero(n_jobs).tolist():
        for role in snapshot.gangs[gang]:
            n_tasks = float(role.count * n_jobs[gang])
            counts[role.shape] = counts.get(role.shape, 0.0) + n_tasks
    return Workload.of(counts)


@dataclass(frozen=True, kw_only=True)
class FragmentationGradient:
    """Raise the expected fragmentation least (FGD). Memory limits placement, not the score."""

    workload: Workload
    in_points: bool = False
    """Whether to count in whole points from 0 to 100, as the authors do: near ties go to the
    first node and device. Otherwise the score is the change itself, in thousandths of a GPU."""
    _fragments: "_Fragments" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_fragments", _Fragments(self.workload))

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return by how little each node's best device raises F."""
        gains = self._fragments.gains(nodes, shape, rows)
        return self._points(gains.max(axis=1, initial=-np.inf) if gains.ndim > 1 else gains)

    def points(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return 1/2 for a node whose F stays the same, less the more it grows (a logistic)."""
        score = self(nodes, shape, rows)
        return score / 100.0 if self.in_points else logistic(score / MILLI)

    def choose_devices(
        self, nodes: NodeColumns, row: int, shape: Shape
    ) -> tuple[int, ...] | None:
        """Return the device whose fraction raises F least, the first of equals."""
        if not shape.gpu_milli:
            return capacity.choose_devices(nodes, row, shape)
        best = self._points(self._fragments.gains(nodes, shape, np.array([row]))[0])
        for device in np.argsort(-best, kind="stable").tolist():
            if capacity.can_take(nodes, row, shape, (device,)):
                return (device,)
        return None

    def of_node(self, shape: Shape) -> Callable[[NodeBooks], float]:
        """Return the score of a node, given its books."""
        answer = self._answers(shape)
        return lambda books: answer(books)[0]

    def devices_on(self, books: NodeBooks, shape: Shape) -> tuple[int, ...] | None:
        """Return the same as `choose_devices`."""
        if not shape.gpu_milli:
            return books.choose_devices(shape)
        _, ranked = self._answers(shape)(books)
        return next(((d,) for d in ranked if books.has_fraction_on(d, shape)), None)

    def _answers(self, shape: Shape) -> Callable[[NodeBooks], Answer]:
        """Return what gives score and devices, best first, of a node; remembered by state.

        Of nodes told apart by what matters here there are few.
        """
        fragments, asked = self._fragments, (shape.gpus, shape.gpu_milli)
        known = fragments.known.setdefault(asked, {})

        def answer(books: NodeBooks) -> Answer:
            before, after = fragments.levels_on(books, shape.cpu_milli)
            state = before, after, tuple(books.device_free)
            found = known.get(state)
            if found is None:
                found = known[state] = self._answer(shape, state, books.n_whole)
            return found

        return answer

    def _answer(self, shape: Shape, state: State, n_whole: int) -> Answer:
        before, after, left = state
        gains = self._fragments.gains_of(
            shape,
            left=np.array([left], np.int64),
            n_whole=np.array([n_whole]),
            before=np.array([before]),
            after=np.array([after]),
        )
        if not shape.gpu_milli:
            return float(self._points(gains)[0]), ()
        best = self._points(gains.max(axis=1, initial=-np.inf))
        ranked = np.argsort(-self._points(gains[0]), kind="stable")
        return float(best[0]), tuple(ranked.tolist())

    def fragmentation(self, nodes: NodeColumns, rows: Rows | None = None) -> float:
        """Return F of all nodes together, or of some rows, in GPUs."""
        rows = np.arange(len(nodes.nodes)) if rows is None else rows
        return float(self._fragments.amount(nodes, rows).sum()) / MILLI

    def _points(self, gains: Scores) -> Scores:
        if not self.in_points:
            return gains
        return np.trunc(100.0 * logistic(gains / MILLI))


def logistic(numbers: Scores) -> Scores:
    """Return numbers brought to 0..1, 0 to a half."""
    curve: Scores = 1.0 / (1.0 + np.exp(np.minimum(-numbers, 700.0)))
    return curve


class _Fragments:
    """F of a node by table: built once for a workload, for each type of node."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._cpu_levels = np.unique([shape.cpu_milli for shape in workload.shapes])
        self._types = NodeTypes(workload.shapes)
        self._n_known = 0
        self._by_device = np.zeros(0)
        self._by_whole = np.zeros(0)
        self.known: dict[tuple[int, int], dict[State, Answer]] = {}  # by what shapes ask for
        self._levels_list: list[int] = self._cpu_levels.tolist()
        self._kinds: list[Node] = []
        self._first: list[int] = []  # by kind of those: the tables' first row of its type

    def amount(self, nodes: NodeColumns, rows: Rows) -> Scores:
        """Return F of each row, in thousandths of a GPU."""
        left = nodes.device_free[rows]
        [level] = self._levels(nodes, rows, 0)
        usable = self._of_devices(level[:, None], left).sum(axis=1)
        usable += self._of_whole(level, nodes.free[rows, GPUS])
        amount: Scores = left.sum(axis=1) - usable
        return amount

    def gains(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return F before less F after, per row, and per device for fractional shapes."""
        before, after = self._levels(nodes, rows, 0, shape.cpu_milli)
        return self.gains_of(
            shape,
            left=nodes.device_free[rows],
            n_whole=nodes.free[rows, GPUS],
            before=before,
            after=after,
        )

    def gains_of(
        self, shape: Shape, *, left: Ints, n_whole: Ints, before: Ints, after: Ints
    ) -> Scores:
        """Return the same of what devices have left, whole ones, and levels then and now."""
        on_devices = self._of_devices(after[:, None], left)
        usable = (on_devices - self._of_devices(before[:, None], left)).sum(axis=1)
        usable += shape.total_gpu_milli - self._of_whole(before, n_whole)
        if not shape.gpu_milli:
            if shape.gpus:
                usable -= shape.gpus * self._of_devices(after, np.array(MILLI))
            free: Scores = usable + self._of_whole(after, np.maximum(n_whole - shape.gpus, 0))
            return free
        then = left - shape.gpu_milli
        gains = self._of_devices(after[:, None], then)
        gains -= on_devices
        gains += self._of_whole(after[:, None], n_whole[:, None] - (left == MILLI))
        gains += usable[:, None]
        return np.where(then < 0, -np.inf, gains)

    def _levels(self, nodes: NodeColumns, rows: Rows, *less_cpu_milli: int) -> list[Ints]:
        """Return the tables' row of each node, with so much less CPU.

        There is one for each type of node and each set of shapes for which the CPUs suffice.
        """
        kinds = self._types.of_kinds(nodes.kinds)
        if len(self._types.patterns) > self._n_known:
            self._build()
        cpu_milli, levels = nodes.free[rows, CPU], self._cpu_levels
        first = kinds[nodes.kind[rows]] * (len(levels) + 1)
        return [
            first + levels.searchsorted(cpu_milli - less, "right") for less in less_cpu_milli
        ]

    def levels_on(self, books: NodeBooks, cpu_milli: int) -> tuple[int, int]:
        """Return the tables' row of a node, now and with so much less CPU."""
        if books.kinds is not self._kinds or books.kind >= len(self._first):
            self._kinds = books.kinds
            types = self._types.of_kinds(books.kinds)
            if len(self._types.patterns) > self._n_known:
                self._build()
            self._first = (types * (len(self._cpu_levels) + 1)).tolist()
        first, free = self._first[books.kind], books.cpu_milli
        levels = self._levels_list
        return first + bisect_right(levels, free), first + bisect_right(
            levels, free - cpu_milli
        )

    def _of_devices(self, level: Ints, left: Ints) -> Scores:
        # A fraction that a device lacks gives an index out of its row: some number, never used.
        usable: Scores = self._by_device.take(level * _WIDTH + left, mode="clip")
        return usable

    def _of_whole(self, level: Ints, n_whole: Ints) -> Scores:
        n_whole = np.minimum(n_whole, LARGEST_NODE_GPUS)
        usable: Scores = self._by_whole.take(level * (LARGEST_NODE_GPUS + 1) + n_whole)
        return usable

    def _build(self) -> None:
        """Tabulate, per type and CPU level, what shapes can use of a device and of whole ones.

        Popularity is entered where a shape first fits; sums along CPUs and along what is free
        then give the popularity of all that fit.
        """
        patterns, n_levels = self._types.patterns, len(self._cpu_levels) + 1
        fractions = np.zeros((len(patterns), n_levels, _WIDTH))
        wholes = np.zeros((len(patterns), n_levels, LARGEST_NODE_GPUS + 1))
        levels = np.searchsorted(self._cpu_levels, [s.cpu_milli for s in self._workload.shapes])
        shapes = zip(self._workload.shapes, self._workload.popularity, strict=True)
        for index, (shape, popularity) in enumerate(shapes):
            fits = [number for number, pattern in enumerate(patterns) if pattern[index]]
            if shape.gpu_milli:
                fractions[fits, levels[index] + 1, shape.gpu_milli] += popularity
            elif 0 < shape.gpus <= LARGEST_NODE_GPUS:
                wholes[fits, levels[index] + 1, shape.gpus] += popularity
        usable = np.cumsum(np.cumsum(fractions, axis=1), axis=2) * np.arange(_WIDTH)
        self._by_device = usable.ravel()
        free_milli = MILLI * np.arange(LARGEST_NODE_GPUS + 1)
        self._by_whole = (np.cumsum(np.cumsum(wholes, axis=1), axis=2) * free_milli).ravel()
        self._n_known = len(patterns)


class NodeTypes:
    """Nodes told apart by which of some shapes they could ever take, and by nothing else."""

    def __init__(self, shapes: tuple[Shape, ...]) -> None:
        self._rules: dict[Shape, int] = {}  # what matters of a shape, numbered
        self._rule_of = [self._rules.setdefault(_rule(s), len(self._rules)) for s in shapes]
        self._number: dict[tuple[bool, ...], int] = {}
        self.patterns: list[tuple[bool, ...]] = []  # by type: which shapes could go there
        # The list of kinds is only ever appended to, and shared by the tables of one cluster.
        self._kinds: list[Node] = []
        self._known: Ints = np.zeros(0, np.int64)

    def of_kinds(self, kinds: list[Node]) -> Ints:
        """Return the number of the type of each of a table's kinds of nodes."""
        if kinds is not self._kinds:
            self._kinds, self._known = kinds, np.zeros(0, np.int64)
        if len(self._known) < len(self._kinds):
            more = [self._type(kind) for kind in self._kinds[len(self._known) :]]
            self._known = np.append(self._known, more)
        return self._known

    def _type(self, node: Node) -> int:
        by_rule = [misfit(node, rule) is None for rule in self._rules]
        pattern = tuple(by_rule[rule] for rule in self._rule_of)
        number = self._number.setdefault(pattern, len(self.patterns))
        if number == len(self.patterns):
            self.patterns.append(pattern)
        return number


def _rule(shape: Shape) -> Shape:
    """Return the shape less what depends on how full a node is."""
    return replace(
        shape,
        cpu_milli=0,
        memory_mib=0,
        gpus=1 if shape.total_gpu_milli else 0,
        gpu_milli=0,
    )


def fgd(nodes: NodeColumns, workload: Workload) -> FragmentationGradient:
    """Return FGD as its authors run it: typical tasks, whole points."""
    return FragmentationGradient(workload=workload.typical(), in_points=True)
