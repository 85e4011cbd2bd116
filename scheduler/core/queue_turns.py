"""Whose turn it is: the jobs of a policy's order, interleaved by what their queues deserve.

First the jobs that stay within a guarantee, by `Quotas.rank`; borrowers last. Among equals, at
each level of the tree, the queue with the least dominant share of the cluster per weight goes
first; then the one whose first job the policy puts first. Within a queue the policy's order
holds. Shares move with every job that starts, so that queues take turns.

Where past use counts, the share is of what a queue uses and, besides, used on average lately
(`usage`): who had much has less until that is made up for. Slurm's fair-share factor,
2^(-usage/share), orders by the past alone; KAI's time-based fair share corrects weights by it.

Jobs of a queue that has children compete with these as one more child of weight 1.
"""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from scheduler.core.node_columns import FloatColumn, Rows
from scheduler.core.quotas import Quotas, Rank

Key = tuple[float, int]
"""Share per weight, place of the first job in the policy's order."""


class Turns:
    """One walk over waiting job rows; what is served in between moves ranks and shares."""

    def __init__(self, quotas: Quotas, rows: Rows) -> None:
        self._quotas = quotas
        self._rows: list[int] = rows.tolist()
        jobs = quotas.snapshot.jobs
        self._queue_of: list[int] = jobs.queue[rows].tolist()
        self._gang_of: list[int] = jobs.gang[rows].tolist()

    def __iter__(self) -> Iterator[int]:
        """Yield the places of `rows` in the order in which they are served."""
        quotas, rows = self._quotas, self._rows
        groups: dict[Rank, list[int]] = {}
        known: dict[tuple[int, int], Rank] = {}
        for place, row in enumerate(rows):
            kind = self._queue_of[place], self._gang_of[place]
            rank = known.get(kind)
            if rank is None:
                rank = known[kind] = quotas.rank(row)
            groups.setdefault(rank, []).append(place)
        last = max(groups, default=())
        while groups:
            rank = min(groups)
            for place in self._walk(sorted(groups.pop(rank))):
                # What was served meanwhile may have used the guarantee up.
                now = rank if rank == last else quotas.rank(rows[place])
                if now > rank:
                    groups.setdefault(now, []).append(place)
                else:
                    yield place

    def _walk(self, places: list[int]) -> Iterator[int]:
        walk = _Walk(self._quotas, places, self._queue_of)
        while (path := walk.descend()) is not None:
            waiting = walk.waiting[path[-1]]
            n_waiting = len(waiting)
            place = waiting.popleft()
            n_changes = self._quotas.later.n_changes
            yield place
            while (
                waiting
                and self._quotas.later.n_changes == n_changes
                and self._gang_of[waiting[0]] == self._gang_of[place]
            ):
                place = waiting.popleft()
                yield place
            walk.update(path, n_waiting - len(waiting))


class _Walk:
    """Queues with jobs of one rank, in heaps by share: one per inner node of the tree."""

    def __init__(self, quotas: Quotas, places: list[int], queue_of: list[int]) -> None:
        self._quotas = quotas
        tree = quotas.tree
        self._root = tree.root
        self.waiting: dict[int, deque[int]] = {}  # by queue
        self._first: dict[int, int] = {}  # by node: its first place
        self._children: dict[int, list[int]] = {}
        for place in places:
            self.waiting.setdefault(queue_of[place], deque()).append(place)
        for queue, waiting in self.waiting.items():
            self._know(tree.paths[queue].tolist(), waiting[0])
        capacity: list[int] = quotas.capacity.tolist()
        self._there = [(column, amount) for column, amount in enumerate(capacity) if amount > 0]
        average = quotas.average
        self._average: list[list[float]] | None = None if average is None else average.tolist()
        self._weights = {node: tree.weight(node) for node in self._first}
        self._n_left = dict.fromkeys(self._first, 0)  # of jobs at or below
        for queue, waiting in self.waiting.items():
            for node in tree.paths[queue].tolist():
                self._n_left[node] += len(waiting)
        # The children with waiting jobs, by key; a node's own jobs as the node itself.
        self._heaps: dict[int, list[tuple[Key, int]]] = {}
        for node, children in self._children.items():
            heap = [(self._key(child), child) for child in children]
            if node in self.waiting:
                heap.append((self._own_key(node), node))
            heapq.heapify(heap)
            self._heaps[node] = heap

    def _know(self, path: list[int], first: int) -> None:
        child: int | None = None
        for node in path:
            is_new = node not in self._first
            self._first[node] = min(first, self._first.get(node, first))
            if child is not None:
                self._children.setdefault(node, []).append(child)
            child = node if is_new else None

    def descend(self) -> list[int] | None:
        """Return the way from the root to the queue whose turn it is; None: nobody waits."""
        path = [self._root]
        while (heap := self._heaps.get(path[-1])) is not None:
            if not heap:
                return None
            child = heap[0][1]
            if child == path[-1]:
                break
            path.append(child)
        return path if path[-1] in self.waiting else None

    def update(self, path: list[int], n_served: int) -> None:
        """Put the nodes on the way to a queue that was served to their new places."""
        queue = path[-1]
        if queue in self._heaps:
            self._put(queue, queue, len(self.waiting[queue]))
        n_left = self._n_left
        below = queue
        for node in reversed(path):
            n_left[node] -= n_served
            if node != below:
                self._put(node, below, n_left[below])
            below = node

    def _put(self, node: int, child: int, n_left: int) -> None:
        heap = self._heaps[node]
        if n_left:
            key = self._own_key(child) if child == node else self._key(child)
            heapq.heapreplace(heap, (key, child))
        else:
            heapq.heappop(heap)

    def _key(self, node: int) -> Key:
        used: Sequence[float] = self._quotas.later.rows[node]
        if self._average is not None:
            used = [u + past for u, past in zip(used, self._average[node], strict=True)]
        return self._share(used) / self._weights[node], self._first[node]

    def _own_key(self, node: int) -> Key:
        is_below = self._quotas.tree.parent == node
        is_below[self._root] = False
        used, average = self._quotas.later.used, self._quotas.average
        own: FloatColumn = (used[node] - used[is_below].sum(axis=0)).astype(np.float64)
        if average is not None:
            own += average[node] - average[is_below].sum(axis=0)
        return self._share(own.tolist()), self._first[node]

    def _share(self, used: Sequence[float]) -> float:
        share = 0.0
        for column, there in self._there:
            part = used[column] / there
            if part > share:  # as `max` would, which costs more than all the rest
                share = part
        return share
