"""What queues use and are charged with, and how far each may go.

Decisions keep ledgers beside their drafts (`quotas`); a plan is verified against one when it is
committed. A queue that does not lend is charged upwards with what it is guaranteed even while
it uses less.
"""

from collections.abc import Sequence

import numpy as np

from scheduler.core.model import MILLI
from scheduler.core.node_columns import NodeColumns
from scheduler.core.queue_tree import (
    CPU,
    FIRST_TYPE,
    GPU,
    MEMORY,
    UNBOUNDED,
    IntColumn,
    QueueTree,
)


class Ledger:
    """What every queue uses with all below it, and what it is charged with.

    In plain integers, a list for each row of the tree: numpy is slow on a handful of numbers.
    """

    def __init__(self, tree: QueueTree, own: IntColumn, ceiling: IntColumn) -> None:
        self._tree = tree
        self._ceiling = ceiling
        self._reserves = tree.is_reserve().tolist() if tree.has_reserves else None
        self._columns = tree.rolled_up(own)
        self._unwritten: set[int] = set()  # rows of the columns that lag behind
        self.rows: list[list[int]] = self._columns.tolist()  # what each row uses
        self._charged = self.rows
        if self._reserves is not None:
            self._charged = self._charges(own).tolist()
        self._bounds: dict[int, list[tuple[int, int]]] = {}  # by row: column and ceiling
        self.n_changes = 0

    def _charges(self, own: IntColumn) -> IntColumn:
        tree, keeps = self._tree, self._tree.is_reserve()
        charged = np.vstack([own, np.zeros((1, own.shape[1]), np.int64)])
        for rows in reversed(tree.levels):
            least = np.where(keeps[rows, None], tree.guaranteed[rows], 0)
            np.add.at(charged, tree.parent[rows], np.maximum(charged[rows], least))
        return charged

    def copy(self) -> "Ledger":
        """Return a ledger that changes alone."""
        other = object.__new__(Ledger)
        other._tree, other._ceiling = self._tree, self._ceiling
        other._reserves, other._bounds = self._reserves, self._bounds
        other._columns, other._unwritten = self.used.copy(), set()
        other.rows = [row.copy() for row in self.rows]
        other._charged = other.rows
        if self._reserves is not None:
            other._charged = [row.copy() for row in self._charged]
        other.n_changes = self.n_changes
        return other

    @property
    def used(self) -> IntColumn:
        """What each row uses, [n + 1, R], to be read only."""
        if self._unwritten:
            rows = list(self._unwritten)
            self._columns[rows] = [self.rows[row] for row in rows]
            self._unwritten.clear()
        return self._columns

    def add(self, queue: int, amounts: Sequence[int], *, up_to: int | None = None) -> None:
        """Book amounts on a queue and all above it, or up to a row; negative ones give back."""
        self.n_changes += 1
        path = self._tree.paths[queue].tolist()
        if up_to is not None:
            path = path[: path.index(up_to) + 1]
        if self._reserves is not None:
            for row, rise in zip(path, self._rises(path, amounts), strict=True):
                self._charged[row] = [
                    a + b for a, b in zip(self._charged[row], rise, strict=True)
                ]
        changes = [(column, amount) for column, amount in enumerate(amounts) if amount]
        for row in path:
            used = self.rows[row]
            for column, amount in changes:
                used[column] += amount
        self._unwritten.update(path)

    def _rises(self, path: list[int], amounts: Sequence[int]) -> list[Sequence[int]]:
        """Return by how much each row of a queue's path is charged more for the amounts."""
        assert self._reserves is not None
        rises = []
        rise = amounts
        for row in path:
            rises.append(rise)
            if self._reserves[row]:
                columns = zip(
                    self._charged[row], rise, self._tree.guaranteed[row].tolist(), strict=True
                )
                rise = [
                    max(before + more, least) - max(before, least)
                    for before, more, least in columns
                ]
        return rises

    def over(self, queue: int, amounts: Sequence[int]) -> tuple[int, int] | None:
        """Return the first (row, column) on the way up where the amounts go too far."""
        path = self._tree.paths[queue].tolist()
        if self._reserves is not None:
            return self._over_charged(path, amounts)
        for row in path:
            used = self.rows[row]
            for column, most in self._bounds_of(row):
                amount = amounts[column]
                if amount > 0 and used[column] + amount > most:
                    return row, column
        return None

    def _over_charged(self, path: list[int], amounts: Sequence[int]) -> tuple[int, int] | None:
        for row, rise in zip(path, self._rises(path, amounts), strict=True):
            used, charged = self.rows[row], self._charged[row]
            for column, most in self._bounds_of(row):
                if amounts[column] > 0 and used[column] + amounts[column] > most:
                    return row, column
                if rise[column] > 0 and charged[column] + rise[column] > most:
                    return row, column
        return None

    def _bounds_of(self, row: int) -> list[tuple[int, int]]:
        known = self._bounds.get(row)
        if known is None:
            ceiling = enumerate(self._ceiling[row].tolist())
            known = [(column, most) for column, most in ceiling if most < UNBOUNDED]
            self._bounds[row] = known
        return known

    def charged(self, row: int, column: int) -> int:
        """Return what counts against the ceiling of a row."""
        charged: int = self._charged[row][column]
        return charged

    def ceiling(self, row: int, column: int) -> int:
        """Return what a row may be charged with at most."""
        return int(self._ceiling[row, column])


def ceilings(tree: QueueTree, capacity: IntColumn) -> IntColumn:
    """Return what each row may be charged with; the root, if some keep, with what is there.

    Of what is not there at all nothing is kept: that no node has it is for placement to say.
    """
    if not tree.has_reserves:
        return tree.ceiling
    ceiling = tree.ceiling.copy()
    ceiling[tree.root] = np.where(capacity > 0, capacity, UNBOUNDED)
    return ceiling


def capacity_of(nodes: NodeColumns, tree: QueueTree) -> IntColumn:
    """Return what the nodes that are up have, in the columns of the tree."""
    capacity = np.zeros(FIRST_TYPE + len(tree.gpu_types), np.int64)
    is_there = nodes.is_up & ~nodes.is_removed
    gpu_milli = np.count_nonzero(nodes.is_healthy, axis=1) * MILLI
    by_kind = np.bincount(nodes.kind[is_there], gpu_milli[is_there], len(nodes.kinds))
    for kind, amount in zip(nodes.kinds, by_kind.astype(np.int64).tolist(), strict=True):
        capacity[GPU] += amount
        if kind.gpu_type in tree.gpu_types:
            capacity[FIRST_TYPE + tree.gpu_types.index(kind.gpu_type)] += amount
    for row in np.flatnonzero(is_there).tolist():
        capacity[CPU] += nodes.nodes[row].cpu_milli
        capacity[MEMORY] += nodes.nodes[row].memory_mib
    return capacity
