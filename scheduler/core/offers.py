"""Where one more task of a shape can be had, and by stopping whom, cheapest first.

Every node has an offer: the cheapest set of its holders that would have to go. Lower bounds for
all nodes come from columns; the sets themselves are searched for only where a bound is the
lowest, with plain integers for the books of that one node, down to its devices.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from scheduler.core.draft import Draft
from scheduler.core.holdings import Holdings, least_costs
from scheduler.core.model import MILLI, Shape
from scheduler.core.node_columns import CPU, MEMORY, FloatColumn, memory_of_fraction_mib
from scheduler.core.space import Space

SETS_PER_NODE = 256
"""Sets of holders looked at on one node: all of eight, the tasks on a node of eight GPUs."""

ALMOST = 1 - 1e-9
"""Prices that differ by less are equal: they were added up in another order."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A job with tasks on the node: its price, and what its end would free there."""

    price: float
    row: int
    amounts: tuple[int, int, int]  # milli-CPU, MiB, thousandths of GPUs
    devices: tuple[tuple[int, int, int], ...]  # device, thousandths, MiB


@dataclass(slots=True)
class _Books:
    """What one node has left, and what a shape asks of it."""

    shape: Shape
    fraction_memory_mib: int
    cpu_milli: int
    memory_mib: int
    gpu_milli: int
    device_milli: list[int]
    device_memory_mib: list[int]

    def fits_without(self, holders: list[Holder]) -> bool:
        """Return whether the shape would fit if these holders were gone."""
        shape = self.shape
        cpu_milli, memory_mib, gpu_milli = self.cpu_milli, self.memory_mib, self.gpu_milli
        for holder in holders:
            cpu_milli += holder.amounts[0]
            memory_mib += holder.amounts[1]
            gpu_milli += holder.amounts[2]
        asked = shape.gpus * MILLI + shape.gpu_milli
        if cpu_milli < shape.cpu_milli or memory_mib < shape.memory_mib or gpu_milli < asked:
            return False
        if not asked:
            return True
        milli, free_mib = self.device_milli.copy(), self.device_memory_mib.copy()
        for holder in holders:
            for device, more_milli, more_mib in holder.devices:
                milli[device] += more_milli
                free_mib[device] += more_mib
        if shape.gpus:
            return milli.count(MILLI) >= shape.gpus
        return any(
            left >= shape.gpu_milli and mib >= self.fraction_memory_mib
            for left, mib in zip(milli, free_mib, strict=True)
        )

    def least_price(self, holders: list[Holder]) -> float:
        """Return what freeing enough costs at least, if holders could go in parts."""
        lacking = (
            self.shape.cpu_milli - self.cpu_milli,
            self.shape.memory_mib - self.memory_mib,
            self.shape.total_gpu_milli - self.gpu_milli,
        )
        return max(
            _price_of_parts(lack, [(h.price, h.amounts[column]) for h in holders])
            for column, lack in enumerate(lacking)
        )


def _price_of_parts(lacking: int, parts: list[tuple[float, int]]) -> float:
    if lacking <= 0:
        return 0.0
    total = 0.0
    for price, amount in sorted((price / amount, amount) for price, amount in parts if amount):
        if amount >= lacking:
            return total + price * lacking
        total += price * amount
        lacking -= amount
    return total


class Offers:
    """The offers of all nodes for one shape, from one set of jobs that may be stopped."""

    def __init__(
        self, draft: Draft, space: Space, shape: Shape, held: Holdings, price: FloatColumn
    ) -> None:
        self.shape = shape
        self._draft = draft
        self._space = space
        self._held = held
        self._price = price  # by job row
        nodes, bounds = least_costs(held, space, shape, price)
        order = np.argsort(bounds, kind="stable")
        self._nodes, self._bounds = nodes[order], bounds[order]
        self._n_seen = 0  # of the nodes, in that order
        self._due: set[int] = set()  # nodes to be looked at again
        self.n_looks = 0  # the work done so far
        self._offers: list[tuple[float, int, int, tuple[int, ...]]] = []  # a heap

    def pop(self) -> tuple[int, tuple[int, ...]] | None:
        """Take the cheapest offer out: a node, and the job rows that would have to go."""
        offers, version = self._offers, self._space.version
        for node in sorted(self._due):
            self._look_at(node)
        self._due.clear()
        while True:
            while self._n_seen < len(self._nodes) and (
                not offers or self._bounds[self._n_seen] < offers[0][0] * ALMOST
            ):
                self._look_at(int(self._nodes[self._n_seen]))
                self._n_seen += 1
            if not offers:
                return None
            _, node, seen, rows = heapq.heappop(offers)
            if seen == version[node]:
                return node, rows
            self._look_at(node)

    def renew(self, nodes: Iterable[int]) -> None:
        """Look at nodes again whose offers were taken, or could be cheaper now."""
        self._due.update(nodes)

    def _look_at(self, node: int) -> None:
        self.n_looks += 1
        best = self._best_on(node)
        if best is not None:
            price, rows = best
            heapq.heappush(self._offers, (price, node, self._space.version[node], rows))

    def _best_on(self, node: int) -> tuple[float, tuple[int, ...]] | None:
        holders = sorted(self._holders(node), key=lambda holder: holder.price)
        books = self._books(node)
        if books.fits_without([]):
            return 0.0, ()
        if not books.fits_without(holders):
            return None
        needed = _sufficient(books, holders)
        price = _price_of(needed)
        if books.least_price(holders) < price * ALMOST:
            for found in _by_price(holders, below=price):
                if books.fits_without(found):
                    needed = found
                    break
        return _price_of(needed), tuple(holder.row for holder in needed)

    def _books(self, node: int) -> _Books:
        nodes = self._space.nodes
        free = nodes.free[node].tolist()
        # What two jobs share is only free once both have gone.
        left = np.where(nodes.is_healthy[node], MILLI - nodes.device_used[node], 0)
        device_memory_mib = int(nodes.device_memory_mib[node])
        return _Books(
            shape=self.shape,
            fraction_memory_mib=memory_of_fraction_mib(self.shape, device_memory_mib),
            cpu_milli=free[CPU],
            memory_mib=free[MEMORY],
            gpu_milli=int(nodes.device_free[node].sum()),
            device_milli=left.tolist(),
            device_memory_mib=nodes.device_memory_free[node].tolist(),
        )

    def _holders(self, node: int) -> Iterator[Holder]:
        held, draft = self._held, self._draft
        first, last = np.searchsorted(held.node, [node, node + 1])
        nodes, jobs = self._space.nodes, draft.snapshot.jobs
        name = nodes.nodes[node].name
        is_healthy = nodes.is_healthy[node].tolist()
        device_memory_mib = int(nodes.device_memory_mib[node])
        for row in held.row[first:last].tolist():
            if draft.is_evicted[row]:
                continue
            shapes = {role.name: role.shape for role in draft.snapshot.gangs[jobs.gang[row]]}
            cpu_milli = memory_mib = gpu_milli = 0
            devices: list[tuple[int, int, int]] = []
            for task in jobs.tasks[row]:
                if task.node == name:
                    shape = shapes[task.id.role]
                    cpu_milli += shape.cpu_milli
                    memory_mib += shape.memory_mib
                    milli, mib = _held_of(shape, device_memory_mib)
                    freed = [(d, milli, mib) for d in task.devices if is_healthy[d]]
                    gpu_milli += milli * len(freed)
                    devices += freed
            amounts = cpu_milli, memory_mib, gpu_milli
            yield Holder(float(self._price[row]), row, amounts, tuple(devices))


def _held_of(shape: Shape, device_memory_mib: int) -> tuple[int, int]:
    if shape.gpus:
        return MILLI, device_memory_mib
    return shape.gpu_milli, memory_of_fraction_mib(shape, device_memory_mib)


def _price_of(holders: list[Holder]) -> float:
    return sum(holder.price for holder in holders)


def _by_price(holders: list[Holder], *, below: float) -> Iterator[list[Holder]]:
    """Yield sets of holders, given by rising price, the cheapest sets first."""
    prices = [holder.price for holder in holders]
    heap: list[tuple[float, tuple[int, ...]]] = [(prices[0], (0,))]
    for _ in range(SETS_PER_NODE):
        if not heap or heap[0][0] >= below * ALMOST:
            return
        price, chosen = heapq.heappop(heap)
        yield [holders[i] for i in chosen]
        after = chosen[-1] + 1
        if after < len(holders):
            more = price + prices[after]
            heapq.heappush(heap, (more, (*chosen, after)))
            heapq.heappush(heap, (more - prices[after - 1], (*chosen[:-1], after)))


def _sufficient(books: _Books, holders: list[Holder]) -> list[Holder]:
    """Return the cheapest holders that suffice, less those that turn out not to be needed."""
    n_needed = next(n for n in range(len(holders) + 1) if books.fits_without(holders[:n]))
    needed = holders[:n_needed]
    for holder in reversed(holders[:n_needed]):
        others = [other for other in needed if other is not holder]
        if books.fits_without(others):
            needed = others
    return needed
