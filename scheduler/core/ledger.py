"""What queues use and are charged with, and how far each may go.

Decisions keep ledgers beside their drafts (`quotas`); a plan is verified against one when it is
committed. A queue that does not lend is charged upwards with what it is guaranteed even while
it uses less.
"""

import numpy as np

from scheduler.core.model import MILLI
from scheduler.core.queue_tree import CPU, FIRST_TYPE, GPU, MEMORY, IntColumn, QueueTree
from scheduler.core.snapshot import NodeColumns


class Ledger:
    """What every queue uses with all below it, and what it is charged with."""

    def __init__(self, tree: QueueTree, own: IntColumn, ceiling: IntColumn) -> None:
        self._tree = tree
        self._ceiling = ceiling
        self._reserves = tree.is_reserve() if tree.has_reserves else None
        self.used = tree.rolled_up(own)
        self._charged = self.used
        if self._reserves is not None:
            self._charged = self._charges(own)
        self.n_changes = 0

    def _charges(self, own: IntColumn) -> IntColumn:
        tree = self._tree
        assert self._reserves is not None
        charged = np.vstack([own, np.zeros((1, own.shape[1]), np.int64)])
        for rows in reversed(tree.levels):
            kept = self._reserves[rows, None]
            least = np.where(kept, tree.guaranteed[rows], 0)
            np.add.at(charged, tree.parent[rows], np.maximum(charged[rows], least))
        return charged

    def copy(self) -> "Ledger":
        """Return a ledger that changes alone."""
        other = object.__new__(Ledger)
        other._tree, other._ceiling = self._tree, self._ceiling
        other._reserves = self._reserves
        other.used = self.used.copy()
        is_same = self._charged is self.used
        other._charged = other.used if is_same else self._charged.copy()
        other.n_changes = self.n_changes
        return other

    def add(self, queue: int, amounts: IntColumn) -> None:
        """Book amounts on a queue and all above it; negative ones give back."""
        self.n_changes += 1
        path = self._tree.paths[queue]
        if self._reserves is None:
            self.used[path] += amounts
            return
        # The path has no row twice, so that adding to a selection adds once.
        self.used[path] += amounts
        for row, rise in zip(path.tolist(), self._rises(queue, amounts), strict=True):
            self._charged[row] += rise

    def _rises(self, queue: int, amounts: IntColumn) -> list[IntColumn]:
        """Return by how much each row of the queue's path is charged more for the amounts."""
        assert self._reserves is not None
        rises = []
        rise = amounts
        for row in self._tree.paths[queue].tolist():
            rises.append(rise)
            if self._reserves[row]:
                least, before = self._tree.guaranteed[row], self._charged[row]
                rise = np.maximum(before + rise, least) - np.maximum(before, least)
        return rises

    def over(self, queue: int, amounts: IntColumn) -> tuple[int, int] | None:
        """Return the first (row, column) on the way up where the amounts go too far."""
        path = self._tree.paths[queue]
        ceiling = self._ceiling[path]
        exceeds = self.used[path] + amounts > ceiling
        exceeds &= amounts > 0
        if self._reserves is not None:
            rise = np.array(self._rises(queue, amounts))
            exceeds |= (self._charged[path] + rise > ceiling) & (rise > 0)
        if not exceeds.any():
            return None
        at, column = np.argwhere(exceeds)[0].tolist()
        return int(path[at]), int(column)

    def room(self, queue: int, column: int) -> int:
        """Return how much more of one resource the queue may have."""
        path = self._tree.paths[queue]
        return int((self._ceiling[path, column] - self._charged[path, column]).min())

    def charged(self, row: int, column: int) -> int:
        """Return what counts against the ceiling of a row."""
        return int(self._charged[row, column])

    def ceiling(self, row: int, column: int) -> int:
        """Return what a row may be charged with at most."""
        return int(self._ceiling[row, column])


def ceilings(tree: QueueTree, capacity: IntColumn) -> IntColumn:
    """Return what each row may be charged with; the root, if some keep, with what is there."""
    if not tree.has_reserves:
        return tree.ceiling
    ceiling = tree.ceiling.copy()
    ceiling[tree.root] = capacity
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
