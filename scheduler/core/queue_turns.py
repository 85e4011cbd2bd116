"""Whose turn it is: the jobs of a policy's order, interleaved by what their queues deserve.

At each level of the tree, first the queues whose next job stays within their guarantee, then
those that would borrow; among either, the one with the least dominant share of the cluster per
weight; then the one whose first job the policy puts first. Within a queue the policy's order
holds. Shares move with every job that starts, so that queues take turns.

Jobs of a queue that has children compete with these as one more child, without a guarantee.
"""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence

from scheduler.core.quotas import Quotas
from scheduler.core.snapshot import Rows

Key = tuple[bool, float, int]
"""Borrows, share per weight, place of the first job in the policy's order."""


class Turns:
    """One walk over waiting job rows; what is served in between moves the shares."""

    def __init__(self, quotas: Quotas, rows: Rows) -> None:
        self._quotas = quotas
        self._tree = tree = quotas.tree
        self._rows = rows.tolist()
        jobs = quotas.snapshot.jobs
        self._gang_of: list[int] = jobs.gang[rows].tolist()
        self._waiting: dict[int, deque[int]] = {}  # by queue: places in `rows`
        self._first: dict[int, int] = {}  # by node of the tree: its first place
        for place, queue in enumerate(jobs.queue[rows].tolist()):
            self._waiting.setdefault(queue, deque()).append(place)
            for node in tree.paths[queue].tolist():
                self._first.setdefault(node, place)
        self._capacity: list[int] = quotas.capacity.tolist()
        self._guaranteed: list[list[int]] = tree.guaranteed.tolist()
        self._weight = [tree.weight(row) for row in range(tree.root + 1)]
        self._children: dict[int, list[int]] = {}
        for node in self._first:
            if node != tree.root:
                self._children.setdefault(int(tree.parent[node]), []).append(node)
        # Of every inner node the children with waiting jobs, by key; its own jobs as itself.
        self._heaps: dict[int, list[tuple[Key, int, int]]] = {}
        for level in reversed(tree.levels):
            for node in level.tolist():
                if node in self._children:
                    self._fill(node)
        if self._first:
            self._fill(tree.root)

    def __iter__(self) -> Iterator[int]:
        """Yield the places of `rows` in the order in which they are served."""
        while self._heaps.get(self._tree.root):
            path = self._descend()
            waiting = self._waiting[path[-1]]
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
            self._update(path)

    def _descend(self) -> list[int]:
        """Return the way from the root to the queue whose turn it is."""
        path = [self._tree.root]
        while path[-1] in self._heaps:
            child = self._heaps[path[-1]][0][2]
            if child == path[-1]:
                break
            path.append(child)
        return path

    def _update(self, path: list[int]) -> None:
        """Put the nodes on the way to their new places among their siblings."""
        if path[-1] in self._heaps:
            self._replace(path[-1], path[-1])
        for child, node in zip(reversed(path), reversed(path[:-1]), strict=False):
            self._replace(node, child)

    def _replace(self, node: int, child: int) -> None:
        heap = self._heaps[node]
        is_own = child == node
        head = self._own_head(child) if is_own else self._head(child)
        if head is None:
            heapq.heappop(heap)
        else:
            entry = (self._key(child, head, is_own=is_own), child, child)
            heapq.heapreplace(heap, entry)

    def _fill(self, node: int) -> None:
        heap = self._heaps[node] = []
        for child in self._children[node]:
            head = self._head(child)
            assert head is not None
            heap.append((self._key(child, head, is_own=False), child, child))
        own = self._own_head(node)
        if own is not None:
            heap.append((self._key(node, own, is_own=True), node, node))
        heapq.heapify(heap)

    def _own_head(self, node: int) -> int | None:
        waiting = self._waiting.get(node)
        return waiting[0] if waiting else None

    def _head(self, node: int) -> int | None:
        """Return the place of the job that is next below a node."""
        while (heap := self._heaps.get(node)) is not None:
            if not heap:
                return None
            if heap[0][2] == node:
                break
            node = heap[0][2]
        return self._own_head(node)

    def _key(self, node: int, head: int, *, is_own: bool) -> Key:
        used: list[int] = self._quotas.later.used[node].tolist()
        weight, borrows = self._weight[node], True
        if is_own:
            below = self._quotas.later.used[self._children[node]].sum(axis=0)
            used = (self._quotas.later.used[node] - below).tolist()
            weight = 1.0
        elif any(self._guaranteed[node]):
            borrows = self._would_borrow(node, used, head)
        share = max(
            (u / c for u, c in zip(used, self._capacity, strict=True) if c > 0), default=0.0
        )
        return borrows, share / weight, self._first[node]

    def _would_borrow(self, node: int, used: Sequence[int], head: int) -> bool:
        row = self._rows[head]
        for need, _ in self._quotas.options(row):
            amounts = zip(need.tolist(), used, self._guaranteed[node], strict=True)
            asked = [(n + u, g) for n, u, g in amounts if n > 0 and g > 0]
            if asked and all(total <= guaranteed for total, guaranteed in asked):
                return False
        return True
