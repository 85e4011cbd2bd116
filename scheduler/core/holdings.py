"""Who holds what on which node, and in which order holders would have to go for a shape to fit.

Reads a snapshot once per cycle; everything after that is arithmetic on columns, because whom to
stop is asked for every job that does not fit. The orders are estimates, never too pessimistic:
the caller tries them on the books of a draft.
"""

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import numpy as np

from scheduler.core.draft import Draft
from scheduler.core.model import Shape
from scheduler.core.node_columns import CPU, MEMORY, BoolColumn, FloatColumn, IntColumn, Rows
from scheduler.core.space import Booked, Space

Column = TypeVar("Column", IntColumn, FloatColumn)

AMOUNTS = 3
"""Columns of `Holdings.amount`: milli-CPU, MiB, thousandths of healthy GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What each running job holds on each node: H rows, by node, then whoever goes first."""

    row: Rows  # [H] of the job
    node: Rows  # [H] of the node
    amount: IntColumn  # [H, 3]
    cost: FloatColumn  # [H] GPU-seconds, of the whole job
    share: FloatColumn  # [H] of that cost, by tasks

    def ordered(self, rank: Rows, cost: FloatColumn) -> "Holdings":
        """Return the table sorted by node, then by `rank` of the job, with its `cost`."""
        table = self._at(np.lexsort((rank[self.row], self.node)))
        return replace(table, cost=cost[table.row])

    def and_of(self, booked: Sequence[Booked]) -> "Holdings":
        """Return the table with what a draft has given besides."""
        n_of = Counter(place.row for place in booked)
        return _merged(
            np.append(self.row, np.array([p.row for p in booked], np.intp)),
            np.append(self.node, np.array([p.node for p in booked], np.intp)),
            np.vstack([self.amount, *(asks_of(place.shape) for place in booked)]),
            np.append(self.share, [1 / n_of[place.row] for place in booked]),
        )

    def of(self, is_meant: BoolColumn) -> "Holdings":
        """Return the holdings of those job rows."""
        return self._at(np.flatnonzero(is_meant[self.row]))

    def _at(self, rows: Rows) -> "Holdings":
        return Holdings(
            row=self.row[rows],
            node=self.node[rows],
            amount=self.amount[rows],
            cost=self.cost[rows],
            share=self.share[rows],
        )


def holdings_of(draft: Draft) -> Holdings:
    """Return the holdings of all running jobs none of whose tasks was asked to stop."""
    snapshot = draft.snapshot
    running = snapshot.running_rows()
    running = running[snapshot.jobs.n_stopping[running] == 0]
    row, node, amount = draft.held.amounts(snapshot, running)
    n_tasks = np.bincount(row, minlength=len(snapshot.jobs.jobs))
    return _merged(row, node, amount, 1 / n_tasks[row])


def asks_of(shape: Shape) -> tuple[int, int, int]:
    """Return what a task asks for, in the columns of `Holdings.amount`."""
    return shape.cpu_milli, shape.memory_mib, shape.total_gpu_milli


def _merged(row: Rows, node: Rows, amount: IntColumn, share: FloatColumn) -> Holdings:
    """Add up the tasks that one job has on one node."""
    order = np.lexsort((row, node))
    row, node, amount, share = row[order], node[order], amount[order], share[order]
    is_first = run_starts(node) | run_starts(row)
    starts = np.flatnonzero(is_first)
    if len(starts) and len(starts) < len(row):
        amount = np.add.reduceat(amount, starts, axis=0)
        share = np.add.reduceat(share, starts)
        row, node = row[starts], node[starts]
    return Holdings(row=row, node=node, amount=amount, cost=np.zeros(len(row)), share=share)


def run_starts(column: Rows) -> BoolColumn:
    """Return where a run of equal values begins."""
    begins = np.ones(len(column), np.bool_)
    begins[1:] = column[1:] != column[:-1]
    return begins


def _run_sums(values: Column, start: Rows) -> Column:
    """Return the sum up to each value since where its run starts."""
    total = np.cumsum(values, axis=0)
    sums: Column = total - (total[start] - values[start])
    return sums


def gains(
    node: Rows, amount: IntColumn, *, free: IntColumn, n_free: IntColumn, shape: Shape
) -> tuple[Rows, IntColumn]:
    """Return where the holders of its node start, and how many more such tasks fit, by holder.

    Holders are given by node and go in that order; `n_free` tasks fit while all are there.
    """
    begins = run_starts(node)
    start = np.maximum.accumulate(np.where(begins, np.arange(len(node)), 0))
    copies = copies_of(free[node] + _run_sums(amount, start), shape)
    before = np.where(begins, n_free[node], np.roll(copies, 1))
    return start, copies - before


@dataclass(frozen=True, slots=True)
class Exodus:
    """Rows in the order in which they would have to go; the first ones, `likely`, may do."""

    likely: list[int]
    rows: Rows  # all of them, some more than once


def exodus(held: Holdings, space: Space, shape: Shape, n_wanted: int) -> Exodus | None:
    """Return in which order holders go for `n_wanted` such tasks to fit at the least cost.

    Holders on a node go in the order of the table, as many as one more task needs; the nodes
    where that is cheapest come first. None: it would not fit even without all of them.
    """
    could = space.could_take(shape)
    kept = could[held.node]
    row, node, cost = held.row[kept], held.node[kept], (held.cost * held.share)[kept]
    free = free_of(space)
    n_free = np.where(could, copies_of(free, shape), 0)
    if not len(row):
        return Exodus([], row) if int(n_free.sum()) >= n_wanted else None
    start, gain = gains(node, held.amount[kept], free=free, n_free=n_free, shape=shape)
    if int(n_free.sum() + gain.sum()) < n_wanted:
        return None
    items = np.flatnonzero(gain > 0)
    spent = _run_sums(cost, start)[items]
    rank, n_items = _cheapest(gain[items], spent, start[items], n_wanted - space.room(shape))
    # A holder belongs to the next gain on its node; whoever follows the last gains nothing.
    item = np.searchsorted(items, np.arange(len(node)))
    has_item = item < len(items)
    has_item[has_item] = start[items[item[has_item]]] == start[has_item]
    place = np.full(len(node), len(items))
    place[has_item] = rank[item[has_item]]
    order = np.argsort(place, kind="stable")
    n_likely = int(np.count_nonzero(place < n_items))
    return Exodus(list(dict.fromkeys(row[order[:n_likely]].tolist())), row[order])


def in_turn(orders: Sequence[Exodus]) -> tuple[list[int], Iterator[int]]:
    """Return who may do for all of these, and then everybody else, each once."""
    likely = dict.fromkeys(chain.from_iterable(order.likely for order in orders))
    return list(likely), _others(orders, likely)


def _others(orders: Sequence[Exodus], likely: Container[int]) -> Iterator[int]:
    rows = chain.from_iterable(order.rows.tolist() for order in orders)
    yield from (row for row in dict.fromkeys(rows) if row not in likely)


def _cheapest(
    gain: IntColumn, spent: FloatColumn, node: Rows, n_needed: int
) -> tuple[Rows, int]:
    """Rank gains, given by node, by price per task; return how many of them are needed."""
    if not len(gain):
        return node, 0
    begins = run_starts(node)
    price = (spent - np.where(begins, 0.0, np.roll(spent, 1))) / gain
    # On one node the second task cannot be had before the first.
    base = np.cumsum(begins) * (float(price.max()) + 1.0)
    price = np.maximum.accumulate(price + base) - base
    order = np.argsort(price, kind="stable")
    rank = np.empty(len(gain), np.intp)
    rank[order] = np.arange(len(gain))
    if n_needed <= 0:
        return rank, 0
    n_items = int(np.searchsorted(np.cumsum(gain[order]), n_needed)) + 1
    return rank, min(n_items, len(gain))


def subtree_prices(
    held: Holdings, space: Space, shape: Shape, n_wanted: int, domain: IntColumn
) -> FloatColumn:
    """Return by domain of the nodes what room for so many tasks in it costs; inf: impossible.

    Holders on a node go in the order of the table. An estimate: the last gain counts in part.
    """
    n_domains = int(domain.max(initial=-1)) + 1
    could = space.could_take(shape) & (domain >= 0)
    free = free_of(space)
    n_free = np.where(could, copies_of(free, shape), 0)
    lacking = n_wanted - np.bincount(domain[could], n_free[could], n_domains)
    prices = np.where(lacking <= 0, 0.0, np.inf)
    kept = could[held.node]
    node, cost, amount = held.node[kept], (held.cost * held.share)[kept], held.amount[kept]
    if not len(node):
        return prices
    start, gain = gains(node, amount, free=free, n_free=n_free, shape=shape)
    items = np.flatnonzero(gain > 0)
    spent = _run_sums(cost, start)[items]
    first = run_starts(start[items])
    price = (spent - np.where(first, 0.0, np.roll(spent, 1))) / gain[items]
    of = domain[node[items]]
    order = np.lexsort((price, of))
    of, price, gain = of[order], price[order], gain[items][order]
    if not len(of):
        return prices
    starts = np.flatnonzero(run_starts(of))
    start = np.repeat(starts, np.diff(np.append(starts, len(of))))
    used = np.clip(lacking[of] - (_run_sums(gain, start) - gain), 0, gain)
    sums = np.bincount(of, used * price, n_domains)
    gained = np.bincount(of, gain, n_domains)
    return np.where(lacking <= 0, 0.0, np.where(gained >= lacking, sums, np.inf))


def most_tasks(held: Holdings, space: Space, shape: Shape) -> int:
    """Return how many such tasks would fit without any of the holders, at the very most."""
    return MostTasks(space, amounts_by_node(held.node, held.amount, len(space.version))).of(
        shape
    )


def amounts_by_node(node: Rows, amount: IntColumn, n_nodes: int) -> IntColumn:
    """Return the sum of the amounts on each node: [nodes, AMOUNTS]."""
    columns = [np.bincount(node, amount[:, column], n_nodes) for column in range(AMOUNTS)]
    return np.column_stack(columns).astype(np.int64)


class MostTasks:
    """How many tasks fit on books once more is free than is now, at the very most.

    Of each shape it is counted once. Good as long as nothing is booked.
    """

    def __init__(self, space: Space, gone: IntColumn) -> None:
        self._space = space
        self._n_changes = space.n_changes
        self._free = free_of(space) + gone
        self._known: dict[Shape, int] = {}

    def is_of(self, space: Space) -> bool:
        """Return whether the books are these, and as they were."""
        return self._space is space and self._n_changes == space.n_changes

    def of(self, shape: Shape) -> int:
        """Return the number for a shape."""
        known = self._known.get(shape)
        if known is None:
            could = self._space.could_take(shape)
            known = int(np.where(could, copies_of(self._free, shape), 0).sum())
            self._known[shape] = known
        return known


def least_costs(
    held: Holdings, space: Space, shape: Shape, cost: FloatColumn
) -> tuple[Rows, FloatColumn]:
    """Return where one task might fit, and by the jobs' costs what that costs at least.

    On nodes where it does not fit now. The bound lets holders go in parts, the cheapest for
    each resource first, but one of them at least as a whole.
    """
    kept = space.could_take(shape)[held.node]
    node = held.node[kept]
    starts = np.flatnonzero(run_starts(node))
    if not len(starts):
        return starts, np.zeros(0)
    nodes, bounds = node[starts], np.minimum.reduceat(cost[held.row[kept]], starts)
    free = free_of(space)
    for column, ask in enumerate(asks_of(shape)):
        lacking = ask - free[nodes, column]
        if (lacking > 0).any():
            bounds = np.maximum(bounds, _parts(held, cost, nodes, lacking, column=column))
    can = np.isfinite(bounds)
    return nodes[can], bounds[can]


def _parts(
    held: Holdings, cost: FloatColumn, nodes: Rows, lacking: IntColumn, *, column: int
) -> FloatColumn:
    """Return what the cheapest parts cost that free so much of a resource on each node."""
    kept = np.isin(held.node, nodes) & (held.amount[:, column] > 0)
    node, amount, whole = held.node[kept], held.amount[kept, column], cost[held.row[kept]]
    price = whole / amount
    order = np.lexsort((price, node))
    node, amount, price = node[order], amount[order], price[order]
    lack = np.zeros(int(nodes.max(initial=0)) + 1, np.int64)
    lack[nodes] = np.maximum(lacking, 0)
    begins = np.flatnonzero(run_starts(node))
    start = np.repeat(begins, np.diff(np.append(begins, len(node))))
    before = _run_sums(amount, start) - amount
    used = np.clip(lack[node] - before, 0, amount)
    spent = np.bincount(node, used * price, len(lack))
    freed = np.bincount(node, used, len(lack))
    return np.where(freed[nodes] >= lack[nodes], spent[nodes], np.inf)


def free_of(space: Space) -> IntColumn:
    """Return what each node has free, in the columns of `Holdings.amount`."""
    nodes = space.nodes
    gpu_milli = nodes.device_free.sum(axis=1)
    return np.column_stack([nodes.free[:, CPU], nodes.free[:, MEMORY], gpu_milli])


def copies_of(free: IntColumn, shape: Shape) -> IntColumn:
    """Return how many such tasks go into what is free, at the very most."""
    copies = np.full(len(free), 1 << 40)
    for column, ask in enumerate(asks_of(shape)):
        if ask:
            copies = np.minimum(copies, np.maximum(free[:, column], 0) // ask)
    return copies
