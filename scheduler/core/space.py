"""Books over all nodes that may be booked on, and given back, one task after another.

A `Space` has, per shape, the score of every node, kept up to date by looking only at rows that
changed since the shape was last asked for.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from scheduler.core import capacity
from scheduler.core.fitting import copies_on, fits_on
from scheduler.core.model import MILLI, Levels, Shape
from scheduler.core.node_books import NodeBooks, read_again, write_back
from scheduler.core.node_columns import (
    BoolColumn,
    FloatColumn,
    IntColumn,
    NodeColumns,
    Rows,
)
from scheduler.core.ports import NodeScore
from scheduler.core.topology import Tree

NO = -np.inf
"""The score of a node that does not fit."""

FEW = 256
"""So many nodes are scored one by one, faster than by columns."""

CHANGES_KEPT = 10_000
"""Changes after which books that are kept forget the scores they know."""

CHANGES_FORKED = 256
"""Changes that scores may be behind to be worth copying."""

SHAPES_KEPT = 512
"""Shapes whose scores a space remembers; at 10,000 nodes 45 MiB."""


@dataclass(slots=True)
class _Candidates:
    """The score of every node for one shape, as of `n_seen` changes of the space."""

    shape: Shape
    allowed: BoolColumn  # [N] open, and the shape could ever go there
    score: FloatColumn  # [N]
    n_seen: int
    of_node: Callable[[NodeBooks], float] | None = None  # the same of one node
    best: int = -1  # the first of the highest scores; -1: not known
    copies: IntColumn | None = None  # [N] how many fit, as of `n_counted` changes
    n_counted: int = 0
    room: int | None = None  # the sum of `copies`, once somebody asked for it

    def since(self, n_changes: int) -> "_Candidates":
        """Return a copy for books that have forgotten the first so many changes."""
        is_counted = self.copies is not None and self.n_counted >= n_changes
        return replace(
            self,
            score=self.score.copy(),
            n_seen=self.n_seen - n_changes,
            copies=self.copies.copy() if self.copies is not None and is_counted else None,
            n_counted=self.n_counted - n_changes,
            room=self.room if is_counted else None,
        )


class Spot(NamedTuple):
    """A place for one task: a node's row and devices."""

    row: int
    devices: tuple[int, ...]


Place = tuple[int, Shape, tuple[int, ...]]
"""A node's row, what a task takes there, and its devices."""


class Booked(NamedTuple):
    """A place that a draft gives to a task of a job row."""

    row: int
    node: int
    shape: Shape
    devices: tuple[int, ...]
    until_s: float = np.inf  # when the job is expected to leave


class Space:
    """One set of books over all nodes."""

    def __init__(self, nodes: NodeColumns, score: NodeScore, levels: Levels = ()) -> None:
        self._columns = nodes.for_draft()
        self._books: dict[int, NodeBooks] = {}  # of rows booked on
        self._unwritten: set[int] = set()  # rows whose columns lag behind their books
        self._levels = levels
        self._focus: BoolColumn | None = None
        self._open = nodes.is_open()
        self._score = score
        # Not `isinstance`: for protocols that costs more than all the rest of this.
        self._of_node = getattr(score, "of_node", None)
        self._devices_on = getattr(score, "devices_on", None)
        self._choose_devices = getattr(score, "choose_devices", None)
        self._sees_other_nodes = getattr(score, "sees_other_nodes", False)
        self._changed: list[int] = []  # rows, in the order of the changes
        self.version = [0] * len(nodes.nodes)  # changes of each row
        self._candidates: dict[Shape, _Candidates] = {}
        self._n_kept = 0  # changes up to which the books were those of nodes

    def fork(self) -> "Space":
        """Return a copy that goes its own way; it knows the scores that this one knows."""
        other = Space(self.nodes, self._score, self._levels)
        first = max(len(self._changed) - CHANGES_FORKED, 0)
        other._changed = self._changed[first:]
        other._candidates = {
            shape: known.since(first)
            for shape, known in self._candidates.items()
            if known.n_seen >= first
        }
        return other

    def catch_up(self, nodes: NodeColumns, rows: Iterable[int]) -> None:
        """Be the books of these nodes again, which changed on `rows` since the last time.

        What was booked here meanwhile is forgotten. The nodes and their flags are the same.
        """
        touched = set(self._changed[self._n_kept :]).union(rows)
        if len(self._changed) > CHANGES_KEPT:
            self._changed.clear()
            self._candidates.clear()
        if touched:
            self._be_as(nodes, touched)
        self._n_kept = len(self._changed)

    @property
    def n_changes(self) -> int:
        """How often anything was booked; books that forget old changes are caught up first."""
        return len(self._changed)

    @property
    def nodes(self) -> NodeColumns:
        """The books as columns, to be read only."""
        if self._unwritten:
            self._write()
        return self._columns

    def _write(self) -> None:
        rows = list(self._unwritten)
        write_back([self._books[row] for row in rows], self._columns, rows)
        self._unwritten.clear()

    def _on(self, row: int) -> NodeBooks:
        """Return the books of one node."""
        books = self._books.get(row)
        if books is None:
            books = self._books[row] = NodeBooks(self._columns, row)
        return books

    @property
    def tree(self) -> Tree:
        """Where the nodes are."""
        return self._columns.tree(self._levels)

    @contextmanager
    def focused(self, rows: BoolColumn | None) -> Iterator[None]:
        """See no other nodes than these for a while; None: all."""
        before = self._focus
        if rows is not None:
            self._focus = rows if before is None else before & rows
        try:
            yield
        finally:
            self._focus = before

    def best(self, shape: Shape) -> int | None:
        """Return the row of the best node that can take one more such task now."""
        known = self._known(shape)
        score = known.score
        if not len(score):
            return None
        if self._focus is None:
            if known.best < 0:
                known.best = int(score.argmax())
            row = known.best
        else:
            score = np.where(self._focus, score, NO)
            row = int(score.argmax())
        return None if score[row] == NO else row

    def scores(self, shape: Shape) -> FloatColumn:
        """Return the score of every node for one more such task, `NO` where it does not fit."""
        score = self._known(shape).score
        return score if self._focus is None else np.where(self._focus, score, NO)

    def could_take(self, shape: Shape) -> BoolColumn:
        """Return which nodes are open and could take such a task if they were empty enough."""
        could: BoolColumn = self._open & self._columns.static_fit(shape)
        return could if self._focus is None else could & self._focus

    def fits(self, row: int, shape: Shape) -> bool:
        """Return whether the node could take one more such task now."""
        return bool(self.scores(shape)[row] > NO)

    def n_fit(self, shape: Shape) -> int:
        """Return how many nodes could take one more such task now."""
        return int(np.count_nonzero(self.scores(shape) > NO))

    def room(self, shape: Shape) -> int:
        """Return how many more such tasks fit."""
        copies = self.copies(shape)
        if self._focus is not None:
            return int(copies.sum())
        known = self._candidates[shape]
        if known.room is None:
            known.room = int(copies.sum())
        return known.room

    def copies(self, shape: Shape) -> IntColumn:
        """Return how many more such tasks fit on each node."""
        known = self._known(shape)
        if known.copies is None:
            known.copies = np.zeros(len(known.score), np.int64)
            self._count(known, np.flatnonzero(known.allowed))
        elif known.n_counted < len(self._changed):
            changed = np.array(sorted(set(self._changed[known.n_counted :])), np.intp)
            self._count(known, changed)
        return known.copies if self._focus is None else np.where(self._focus, known.copies, 0)

    def _count(self, known: _Candidates, rows: Rows) -> None:
        assert known.copies is not None
        known.n_counted, known.room = len(self._changed), None
        known.copies[rows] = 0
        rows = rows[known.score[rows] > NO]
        if len(rows) <= FEW:
            known.copies[rows] = [self._on(row).copies(known.shape) for row in rows.tolist()]
        else:
            known.copies[rows] = copies_on(self.nodes, rows, known.shape)

    def copies_among(self, shape: Shape, devices: BoolColumn) -> IntColumn:
        """Return how many more such tasks fit on each node with these of its devices only."""
        rows = np.flatnonzero(self.scores(shape) > NO)
        copies = np.zeros(len(self.nodes.nodes), np.int64)
        copies[rows] = copies_on(self.nodes, rows, shape, devices)
        return copies

    def place(
        self, shape: Shape, row: int | None = None, among: tuple[int, ...] | None = None
    ) -> Spot | None:
        """Book the best place for one task, or one on that row; return None if it is full.

        With `among`, only these devices of the row are taken.
        """
        if row is None:
            row = self.best(shape)
        if row is None:
            return None
        devices = self._devices(row, shape, among)
        if devices is None:
            return None
        self.take(row, shape, devices)
        return Spot(row, devices)

    def _devices(
        self, row: int, shape: Shape, among: tuple[int, ...] | None
    ) -> tuple[int, ...] | None:
        if among is not None or (self._devices_on is None and self._choose_devices is None):
            return self._on(row).choose_devices(shape, among)
        chosen: tuple[int, ...] | None
        if self._devices_on is not None:
            chosen = self._devices_on(self._on(row), shape)
        else:
            assert self._choose_devices is not None
            chosen = self._choose_devices(self.nodes, row, shape)
        return chosen

    def take(self, row: int, shape: Shape, devices: tuple[int, ...]) -> None:
        """Book a task on a given place."""
        self._on(row).take(shape, devices)
        self._note(row)

    def join(self, row: int, shape: Shape, devices: tuple[int, ...]) -> bool:
        """Book a task beside one that has these devices to itself, if the node has the rest."""
        if not self.could_take(shape)[row] or not capacity.can_join(
            self.nodes, row, shape, devices
        ):
            return False
        self.take(row, shape, devices)
        return True

    def give(self, row: int, shape: Shape, devices: tuple[int, ...]) -> None:
        """Undo `take`."""
        self._on(row).give(shape, devices)
        self._note(row)

    def _note(self, row: int) -> None:
        self._unwritten.add(row)
        self._changed.append(row)
        self.version[row] += 1

    def take_again(self, places: Iterable[Booked]) -> None:
        """Book places that were found on other books."""
        for place in places:
            self.take(place.node, place.shape, place.devices)

    def give_back(self, places: Iterable[Booked]) -> None:
        """Undo `take_again`."""
        for place in places:
            self.give(place.node, place.shape, place.devices)

    def give_all(self, tasks: capacity.Tasks) -> None:
        """Book many tasks as gone."""
        rows = capacity.give_all(self.nodes, tasks)
        self._changed += rows
        self._reread(rows)

    def lower_to(self, other: "Space", rows: Iterable[int]) -> None:
        """Offer on these rows at most what the other books offer."""
        for row in sorted(rows):
            self._on(row).lower_to(other._on(row))  # noqa: SLF001
            self._note(row)

    def follow(self, other: "Space", rows: Iterable[int]) -> None:
        """Offer on these rows what other books of the same nodes offer."""
        for row in sorted(rows):
            self._books[row] = other._on(row).copy()  # noqa: SLF001
            self._note(row)

    def close(self, rows: set[int]) -> None:
        """Offer nothing on these rows."""
        nodes, closed = self.nodes, sorted(rows)
        nodes.free[closed] = 0
        nodes.device_free[closed] = 0
        nodes.device_used[closed] = MILLI
        nodes.device_memory_free[closed] = 0
        self._reread(closed)
        for row in closed:
            self._changed.append(row)
            self.version[row] += 1

    def _be_as(self, nodes: NodeColumns, rows: Iterable[int]) -> None:
        at = sorted(rows)
        read_again([self._on(row) for row in at], nodes, at)
        for row in at:
            self._note(row)

    def _reread(self, rows: Iterable[int]) -> None:
        """Forget the books of nodes whose columns were written to."""
        for row in rows:
            self._books.pop(row, None)

    def _known(self, shape: Shape) -> _Candidates:
        """Return the scores for a shape, as of now."""
        known = self._candidates.get(shape)
        if known is None:
            known = _Candidates(
                shape=shape,
                allowed=self._open & self._columns.static_fit(shape),
                score=np.full(len(self._columns.nodes), NO),
                n_seen=len(self._changed),
                of_node=self._of_node and self._of_node(shape),
            )
            if len(self._candidates) == SHAPES_KEPT:
                del self._candidates[next(iter(self._candidates))]
            self._candidates[shape] = known
            self._refresh(known, np.flatnonzero(known.allowed))
        elif known.n_seen < len(self._changed):
            # Packing comes back to the same row again and again; it is scored once.
            changed = set(self._changed[known.n_seen :])
            if self._sees_other_nodes:
                self._refresh(known, np.arange(len(self._columns.nodes)))
            elif known.of_node is not None and len(changed) <= FEW:
                self._refresh_each(known, known.of_node, changed)
            else:
                self._refresh(known, np.array(list(changed), np.intp))
            known.n_seen = len(self._changed)
        return known

    def _refresh_each(
        self, known: _Candidates, of_node: Callable[[NodeBooks], float], rows: set[int]
    ) -> None:
        """Score these rows again, and keep the best one if that follows from it."""
        shape, score, allowed, opened = known.shape, known.score, known.allowed, self._books
        cpu_milli, memory_mib = shape.cpu_milli, shape.memory_mib
        gpus, milli = shape.gpus, shape.gpu_milli
        best = known.best
        top = score[best] if best >= 0 else np.inf
        highest, first = NO, -1
        for row in rows:
            if not allowed[row]:
                continue
            books = opened.get(row) or self._on(row)
            if (
                books.cpu_milli < cpu_milli
                or books.memory_mib < memory_mib
                or books.n_whole < gpus
                or books.most_milli < milli
                or (milli and not books.has_fraction(shape))
            ):
                score[row] = NO
                continue
            score[row] = points = of_node(books)
            if points > highest or (points == highest and row < first):
                highest, first = points, row
        if highest > top or (highest == top and first <= best):
            known.best = first
        elif best in rows:
            known.best = -1

    def _refresh(self, known: _Candidates, rows: Rows) -> None:
        shape = known.shape
        known.best = -1
        fits = known.allowed[rows] & fits_on(self.nodes, rows, shape)
        known.score[rows] = NO
        fitting = rows[fits]
        if len(fitting):
            known.score[fitting] = self._score(self.nodes, shape, fitting)
