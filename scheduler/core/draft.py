"""A hypothesis on a snapshot: bookings that may be kept or undone.

A `Space` is one set of books with, per shape, the score of every node, kept up to date by
looking only at rows that changed since the shape was last asked for. A `Draft` has two: what is
free now, and what will be once the tasks that were asked to stop are gone. A job that needs the
second one holds its place there, and nobody takes from it by starting now.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from scheduler.core import capacity
from scheduler.core.model import MILLI, Shape, Task, TaskPhase
from scheduler.core.ports import ClusterScore, DeviceChoice, NodeScore
from scheduler.core.snapshot import (
    CPU,
    GPUS,
    MEMORY,
    BoolColumn,
    FloatColumn,
    IntColumn,
    NodeColumns,
    Rows,
    Snapshot,
)

NO = -np.inf
"""The score of a node that does not fit."""

SHAPES_KEPT = 512
"""Shapes whose scores a space remembers; at 10,000 nodes 45 MiB."""


@dataclass(slots=True)
class _Candidates:
    """The score of every node for one shape, as of `n_seen` changes of the space."""

    shape: Shape
    need: IntColumn  # [4]
    allowed: BoolColumn  # [N] open, and the shape could ever go there
    score: FloatColumn  # [N]
    n_seen: int


@dataclass(frozen=True, slots=True)
class Spot:
    """A place for one task: a node's row and devices."""

    row: int
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Booked:
    """A place that a draft gives to a task of a job row."""

    row: int
    node: int
    shape: Shape
    devices: tuple[int, ...]


class Space:
    """One set of books over all nodes."""

    def __init__(self, nodes: NodeColumns, score: NodeScore) -> None:
        self.nodes = nodes.for_draft()
        self._open = nodes.is_open()
        self._score = score
        self._choose_devices = (
            score.choose_devices if isinstance(score, DeviceChoice) else capacity.choose_devices
        )
        self._sees_other_nodes = isinstance(score, ClusterScore) and score.sees_other_nodes
        self._changed: list[int] = []  # rows, in the order of the changes
        self.version = [0] * len(nodes.nodes)  # changes of each row
        self._candidates: dict[Shape, _Candidates] = {}

    def best(self, shape: Shape) -> int | None:
        """Return the row of the best node that can take one more such task now."""
        score = self._scores(shape)
        if not len(score):
            return None
        row = int(score.argmax())
        return None if score[row] == NO else row

    def could_take(self, shape: Shape) -> BoolColumn:
        """Return which nodes are open and could take such a task if they were empty enough."""
        could: BoolColumn = self._open & self.nodes.static_fit(shape)
        return could

    def fits(self, row: int, shape: Shape) -> bool:
        """Return whether the node could take one more such task now."""
        return bool(self._scores(shape)[row] > NO)

    def n_fit(self, shape: Shape) -> int:
        """Return how many nodes could take one more such task now."""
        return int(np.count_nonzero(self._scores(shape) > NO))

    def room(self, shape: Shape) -> int:
        """Return how many more such tasks fit."""
        rows = np.flatnonzero(self._scores(shape) > NO)
        if not len(rows):
            return 0
        free = self.nodes.free[rows]
        copies = np.full(len(rows), np.iinfo(np.int64).max)
        if shape.cpu_milli:
            copies = np.minimum(copies, free[:, CPU] // shape.cpu_milli)
        if shape.memory_mib:
            copies = np.minimum(copies, free[:, MEMORY] // shape.memory_mib)
        if shape.gpus:
            copies = np.minimum(copies, free[:, GPUS] // shape.gpus)
        if shape.gpu_milli:
            per_device = self.nodes.device_free[rows] // shape.gpu_milli
            memory_mib = self._memory_mib(shape, rows)
            in_memory = self.nodes.device_memory_free[rows] // np.maximum(memory_mib, 1)
            per_device = np.where(memory_mib, np.minimum(per_device, in_memory), per_device)
            copies = np.minimum(copies, per_device.sum(axis=1))
        # A shape that asks for nothing fits without end; the sum must not overflow.
        return int(np.minimum(copies, 1 << 40).sum())

    def place(self, shape: Shape, row: int | None = None) -> Spot | None:
        """Book the best place for one task, or one on that row; return None if it is full."""
        if row is None:
            row = self.best(shape)
        if row is None:
            return None
        devices = self._choose_devices(self.nodes, row, shape)
        if devices is None:
            return None
        self.take(row, shape, devices)
        return Spot(row, devices)

    def take(self, row: int, shape: Shape, devices: tuple[int, ...]) -> None:
        """Book a task on a given place."""
        capacity.take(self.nodes, row, shape, devices)
        self._note(row)

    def give(self, row: int, shape: Shape, devices: tuple[int, ...]) -> None:
        """Undo `take`."""
        capacity.give(self.nodes, row, shape, devices)
        self._note(row)

    def _note(self, row: int) -> None:
        self._changed.append(row)
        self.version[row] += 1

    def lower_to(self, other: "Space", rows: set[int]) -> None:
        """Offer on these rows at most what the other books offer."""
        mine, theirs = self.nodes, other.nodes
        for row in sorted(rows):
            np.minimum(mine.free[row], theirs.free[row], out=mine.free[row])
            np.maximum(
                mine.device_used[row], theirs.device_used[row], out=mine.device_used[row]
            )
            np.minimum(
                mine.device_memory_free[row],
                theirs.device_memory_free[row],
                out=mine.device_memory_free[row],
            )
            capacity.count_devices(mine, row)
            self._note(row)

    def _scores(self, shape: Shape) -> FloatColumn:
        known = self._candidates.get(shape)
        if known is None:
            known = _Candidates(
                shape=shape,
                need=np.array(
                    [shape.cpu_milli, shape.memory_mib, shape.gpus, shape.gpu_milli], np.int64
                ),
                allowed=self.could_take(shape),
                score=np.full(len(self.nodes.nodes), NO),
                n_seen=len(self._changed),
            )
            if len(self._candidates) == SHAPES_KEPT:
                del self._candidates[next(iter(self._candidates))]
            self._candidates[shape] = known
            self._refresh(known, np.flatnonzero(known.allowed))
        elif known.n_seen < len(self._changed):
            # Packing comes back to the same row again and again; it is scored once.
            changed: Iterable[int] = set(self._changed[known.n_seen :])
            if self._sees_other_nodes:
                changed = range(len(self.nodes.nodes))
            self._refresh(known, np.array(list(changed), np.intp))
            known.n_seen = len(self._changed)
        return known.score

    def _refresh(self, known: _Candidates, rows: Rows) -> None:
        shape = known.shape
        fits = (self.nodes.free[rows] >= known.need).all(axis=1)
        fits &= known.allowed[rows]
        if shape.gpu_milli:
            fits &= self._has_fraction(shape, rows)
        known.score[rows] = NO
        fitting = rows[fits]
        if len(fitting):
            known.score[fitting] = self._score(self.nodes, shape, fitting)

    def _has_fraction(self, shape: Shape, rows: Rows) -> BoolColumn:
        """Return where one device has both the fraction and the memory that goes with it."""
        nodes = self.nodes
        has_both = nodes.device_free[rows] >= shape.gpu_milli
        has_both &= nodes.device_memory_free[rows] >= self._memory_mib(shape, rows)
        fits: BoolColumn = np.logical_or.reduce(has_both, axis=1)
        return fits

    def _memory_mib(self, shape: Shape, rows: Rows) -> IntColumn:
        """Return the device memory that a fraction takes on each of the nodes, as a column."""
        if shape.gpu_memory_mib:
            return np.full((len(rows), 1), shape.gpu_memory_mib, np.int64)
        return self.nodes.device_memory_mib[rows, None] * shape.gpu_milli // MILLI


class Draft:
    """A snapshot plus tentative decisions."""

    def __init__(self, snapshot: Snapshot, score: NodeScore) -> None:
        self.snapshot = snapshot
        self.now = Space(snapshot.nodes, score)
        self._score = score
        self._later: Space | None = None
        # Job rows of which this draft asks some, or all, tasks to stop.
        self.is_evicted = np.zeros(len(snapshot.jobs.jobs), np.bool_)
        self.is_ending = np.zeros(len(snapshot.jobs.jobs), np.bool_)
        self.booked: list[Booked] = []  # what this draft gives, now or later, in order
        for row in np.flatnonzero(snapshot.jobs.n_stopping > 0):
            tasks = snapshot.jobs.tasks[row]
            stopping = [task for task in tasks if task.phase is TaskPhase.STOPPING]
            self.release(self.open_later(), int(row), stopping)

    @property
    def later(self) -> Space | None:
        """The books once everything asked to stop is gone; None: the same as now."""
        return self._later

    def open_later(self) -> Space:
        """Return the later books, opening them if nothing has been asked to stop yet."""
        if self._later is None:
            self._later = Space(self.now.nodes, self._score)
        return self._later

    def copy_of_later(self) -> Space:
        """Return books that start as the later ones and that nobody else sees."""
        return Space((self._later or self.now).nodes, self._score)

    def release(self, space: Space, row: int, tasks: Iterable[Task]) -> None:
        """Book the tasks of a job row as gone."""
        for task, shape in self._held(row, tasks):
            space.give(space.nodes.row_of[task.node], shape, task.devices)

    def restore(self, space: Space, row: int, tasks: Iterable[Task]) -> None:
        """Undo `release`."""
        for task, shape in self._held(row, tasks):
            space.take(space.nodes.row_of[task.node], shape, task.devices)

    def _held(self, row: int, tasks: Iterable[Task]) -> list[tuple[Task, Shape]]:
        gang = self.snapshot.gangs[self.snapshot.jobs.gang[row]]
        shapes = {role.name: role.shape for role in gang}
        return [(task, shapes[task.id.role]) for task in tasks]
