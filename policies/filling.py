"""How a rise is divided over a tree of queues: by weight, as far as each can still take it.

What a queue gets is divided among its children by their weights; a child takes no more than
what its jobs can still rise by, and the rest goes to its siblings. Within a queue jobs of the
first tier come first, and those of one tier are served by weight. Jobs of a queue that has
children, too, are together one more child, of weight 1.

Answers for all queues of a depth at once. What a rise means, and which of them a cluster
affords, is left to `water_filling`.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from policies.linear_program import Array, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Queues (rows) below a root, and the place of each job in them."""

    parent: Rows  # of each queue; -1: the root
    weight: Array  # of each queue, beside its siblings
    queue: Rows  # of each job
    tier: Rows  # of each job, within its queue: lower ones are served first

    @classmethod
    def flat(cls, n_jobs: int) -> Self:
        """Return one queue of jobs that are served by weight alone."""
        nowhere = np.zeros(n_jobs, np.intp)
        return cls(parent=np.full(1, -1), weight=np.ones(1), queue=nowhere, tier=nowhere)

    def of_jobs(self, rows: Rows) -> Self:
        """Return the same tree for some of the jobs."""
        return type(self)(
            parent=self.parent,
            weight=self.weight,
            queue=self.queue[rows],
            tier=self.tier[rows],
        )

    def levels(self) -> Iterator[Rows]:
        """Return the queues by depth, those below the root first."""
        above = np.full(1, -1)
        while len(above):
            above = np.flatnonzero(np.isin(self.parent, above))
            if len(above):
                yield above


class Filling:
    """A tree whose jobs have some room left, ready to be asked about any rise."""

    def __init__(self, tree: Tree, room: Array, *, weights: Array, copies: Array) -> None:
        self._room, self._copies = room, copies
        self.total = float(room @ copies)
        """The largest rise: everybody's room."""
        queues, tiers = np.unique(
            np.column_stack([tree.queue, tree.tier]), axis=0, return_inverse=True
        )
        tier_of_job = tiers.reshape(-1)
        self._jobs = _ByWeight(
            parent=tier_of_job, weight=weights * copies, room=room * copies, n=len(queues)
        )
        tier_room: Array = np.bincount(tier_of_job, room * copies, len(queues)).astype(float)
        n_queues = len(tree.parent)
        self._tiers = _InOrder(parent=queues[:, 0], room=tier_room, n=n_queues)
        self._own: Array = np.bincount(queues[:, 0], tier_room, n_queues).astype(float)
        self._levels = self._divisions(tree)

    def _divisions(self, tree: Tree) -> "list[tuple[Rows, _ByWeight]]":
        """Return, from the root down, the queues of each depth and how they are served."""
        n_queues = len(tree.parent)
        levels = list(tree.levels())
        room = np.append(self._own, 0.0)
        for rows in reversed(levels):
            np.add.at(room, tree.parent[rows], room[rows])
        divisions = []
        nobody = np.zeros(0, np.intp)
        for above, below in itertools.pairwise([np.full(1, n_queues), *levels, nobody]):
            own = np.append(self._own, 0.0)[above]
            division = _ByWeight(
                parent=np.concatenate([tree.parent[below] % (n_queues + 1), above]),
                weight=np.concatenate([tree.weight[below], np.ones(len(above))]),
                room=np.concatenate([room[below], own]),
                n=n_queues + 1,
            )
            divisions.append((below, division))
        return divisions

    def rise(self, total: float) -> Array:
        """Return by how much each job rises if all together rise by so much."""
        n_queues = len(self._own)
        amount, own = np.zeros(n_queues + 1), np.zeros(n_queues + 1)
        amount[n_queues] = total
        above = np.full(1, n_queues)
        for below, division in self._levels:
            given = division.divide(amount)
            amount[below], own[above] = given[: len(below)], given[len(below) :]
            above = below
        given = self._jobs.divide(self._tiers.divide(own[:n_queues]))
        return np.minimum(given / self._copies, self._room)


class _ByWeight:
    """Items that share what their parent got by weight, each up to its room."""

    def __init__(self, *, parent: Rows, weight: Array, room: Array, n: int) -> None:
        self._parent, self._weight, self._room, self._n = parent, weight, room, n
        order = np.lexsort((room / weight, parent))
        self._at = parent[order]
        room, weight = room[order], weight[order]
        starts = np.searchsorted(self._at, np.arange(n + 1))
        self._starts, self._sizes = starts[:-1], np.diff(starts)
        # Where item i, in this order, is full, those before it are, and the rest rises on.
        full = np.concatenate([[0.0], np.cumsum(room)])
        self._before = full[:-1] - full[starts[self._at]]
        left = np.concatenate([[0.0], np.cumsum(weight[::-1])])[::-1]
        self._rising = left[:-1] - left[starts[self._at + 1]]
        self._until = self._before + room / weight * self._rising

    def divide(self, amount: Array) -> Array:
        """Return what each item gets of its parent's amount."""
        is_full = self._until < amount[self._at]
        n_full = np.bincount(self._at, is_full, self._n).astype(np.intp)
        level = np.full(self._n, np.inf)
        some = np.flatnonzero(n_full < self._sizes)
        first = self._starts[some] + n_full[some]
        level[some] = (amount[some] - self._before[first]) / self._rising[first]
        given: Array = np.maximum(level, 0.0)[self._parent] * self._weight
        return np.minimum(self._room, given)


class _InOrder:
    """Items, sorted by parent, that take what their parent got one after another."""

    def __init__(self, *, parent: Rows, room: Array, n: int) -> None:
        self._parent, self._room = parent, room
        full = np.concatenate([[0.0], np.cumsum(room)])
        self._before = full[:-1] - full[np.searchsorted(parent, parent)]

    def divide(self, amount: Array) -> Array:
        """Return what each item gets of its parent's amount."""
        given: Array = amount[self._parent] - self._before
        return np.clip(given, 0.0, self._room)
