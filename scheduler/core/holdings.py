"""Who holds what on which node, and in which order holders would have to go for a shape to fit.

Reads a snapshot once per cycle; everything after that is arithmetic on columns, because whom to
stop is asked for every job that does not fit. The orders are estimates, never too pessimistic:
the caller tries them on the books of a draft.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scheduler.core.draft import Booked, Space
from scheduler.core.model import Shape, Task
from scheduler.core.snapshot import (
    CPU,
    MEMORY,
    BoolColumn,
    FloatColumn,
    IntColumn,
    Rows,
    Snapshot,
)

AMOUNTS = 3
"""Columns of `Holdings.amount`: milli-CPU, MiB, thousandths of healthy GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What each running job holds on each node: H rows, by node, then whoever goes first."""

    row: Rows  # [H] of the job
    node: Rows  # [H] of the node
    amount: IntColumn  # [H, 3]
    cost: FloatColumn  # [H] of the whole job
    share: FloatColumn  # [H] of that cost, by tasks

    def ordered(self, rank: Rows, cost: FloatColumn) -> "Holdings":
        """Return the table sorted by node, then by `rank` of the job, with its `cost`."""
        order = np.lexsort((rank[self.row], self.node))
        part = self.share[order]
        of_job = cost[self.row[order]]
        return Holdings(
            row=self.row[order],
            node=self.node[order],
            amount=self.amount[order],
            cost=of_job,
            share=part,
        )

    def and_of(self, booked: Sequence[Booked]) -> "Holdings":
        """Return the table with what a draft has given besides."""
        n_of = Counter(place.row for place in booked)
        return _merged(
            np.append(self.row, np.array([p.row for p in booked], np.intp)),
            np.append(self.node, np.array([p.node for p in booked], np.intp)),
            np.vstack([self.amount, *(_asks(place.shape) for place in booked)]),
            np.append(self.share, [1 / n_of[place.row] for place in booked]),
        )

    def of(self, is_meant: BoolColumn) -> "Holdings":
        """Return the holdings of those job rows."""
        kept = is_meant[self.row]
        return Holdings(
            row=self.row[kept],
            node=self.node[kept],
            amount=self.amount[kept],
            cost=self.cost[kept],
            share=self.share[kept],
        )


def holdings_of(snapshot: Snapshot) -> Holdings:
    """Return the holdings of all running jobs none of whose tasks was asked to stop."""
    jobs = snapshot.jobs
    running = snapshot.running_rows()
    row_of, sick = snapshot.nodes.row_of, _nodes_with_sick_gpus(snapshot)
    by_gang: dict[int, dict[str, tuple[int, int, int]]] = {}
    rows: list[int] = []
    nodes: list[int] = []
    amounts: list[tuple[int, int, int]] = []
    shares: list[float] = []
    for row in running[jobs.n_stopping[running] == 0].tolist():
        gang = int(jobs.gang[row])
        asks = by_gang.get(gang)
        if asks is None:
            asks = by_gang[gang] = {r.name: _asks(r.shape) for r in snapshot.gangs[gang]}
        tasks = jobs.tasks[row]
        part = 1 / max(len(tasks), 1)
        for task in tasks:
            node = row_of[task.node]
            amount = asks[task.id.role]
            if node in sick:
                amount = (*amount[:2], _healthy_milli(snapshot, node, task, amount[2]))
            rows.append(row)
            nodes.append(node)
            amounts.append(amount)
            shares.append(part)
    return _merged(
        np.array(rows, np.intp),
        np.array(nodes, np.intp),
        np.array(amounts, np.int64).reshape(-1, AMOUNTS),
        np.array(shares, np.float64),
    )


def _asks(shape: Shape) -> tuple[int, int, int]:
    return shape.cpu_milli, shape.memory_mib, shape.total_gpu_milli


def _merged(row: Rows, node: Rows, amount: IntColumn, share: FloatColumn) -> Holdings:
    """Add up the tasks that one job has on one node."""
    order = np.lexsort((row, node))
    row, node, amount, share = row[order], node[order], amount[order], share[order]
    is_first = _starts(node) | _starts(row)
    starts = np.flatnonzero(is_first)
    if len(starts) and len(starts) < len(row):
        amount = np.add.reduceat(amount, starts, axis=0)
        share = np.add.reduceat(share, starts)
        row, node = row[starts], node[starts]
    return Holdings(row=row, node=node, amount=amount, cost=np.zeros(len(row)), share=share)


def _starts(column: Rows) -> BoolColumn:
    """Return where a run of equal values begins."""
    begins = np.ones(len(column), np.bool_)
    begins[1:] = column[1:] != column[:-1]
    return begins


def _nodes_with_sick_gpus(snapshot: Snapshot) -> set[int]:
    nodes = snapshot.nodes
    n_healthy = np.count_nonzero(nodes.is_healthy, axis=1)
    return set(np.flatnonzero((n_healthy < nodes.n_gpus) & ~nodes.is_removed).tolist())


def _healthy_milli(snapshot: Snapshot, node: int, task: Task, gpu_milli: int) -> int:
    """Return what the task's devices would have to offer without it."""
    if not task.devices:
        return 0
    is_healthy = snapshot.nodes.is_healthy[node, list(task.devices)]
    return gpu_milli // len(task.devices) * int(np.count_nonzero(is_healthy))


@dataclass(frozen=True, slots=True)
class Exodus:
    """Job rows in the order in which they would have to go; the first `n_likely` may do."""

    rows: list[int]
    n_likely: int


def exodus(held: Holdings, space: Space, shape: Shape, n_wanted: int) -> Exodus | None:
    """Return in which order holders go for `n_wanted` such tasks to fit at the least cost.

    Holders on a node go in the order of the table, as many as one more task needs; the nodes
    where that is cheapest come first. None: it would not fit even without all of them.
    """
    could = space.could_take(shape)
    kept = could[held.node]
    row, node, cost = held.row[kept], held.node[kept], (held.cost * held.share)[kept]
    free = _free_of(space)
    n_free = np.where(could, _copies(free, shape), 0)
    if not len(row):
        return Exodus([], 0) if int(n_free.sum()) >= n_wanted else None
    begins = _starts(node)
    start = np.maximum.accumulate(np.where(begins, np.arange(len(node)), 0))
    amount = held.amount[kept]
    gone = np.cumsum(amount, axis=0)
    gone -= gone[start] - amount[start]
    copies = _copies(free[node] + gone, shape)
    before = np.where(begins, n_free[node], np.roll(copies, 1))
    gain = copies - before
    if int(n_free.sum() + gain.sum()) < n_wanted:
        return None
    items = np.flatnonzero(gain > 0)
    total = np.cumsum(cost)
    spent = (total - (total[start] - cost[start]))[items]
    rank, n_items = _cheapest(gain[items], spent, start[items], n_wanted - space.room(shape))
    # A holder belongs to the next gain on its node; whoever follows the last gains nothing.
    item = np.searchsorted(items, np.arange(len(node)))
    has_item = item < len(items)
    has_item[has_item] = start[items[item[has_item]]] == start[has_item]
    place = np.full(len(node), len(items))
    place[has_item] = rank[item[has_item]]
    order = np.argsort(place, kind="stable")
    n_likely = int(np.count_nonzero(place < n_items))
    likely = dict.fromkeys(row[order[:n_likely]].tolist())
    return Exodus(list(likely | dict.fromkeys(row[order].tolist())), len(likely))


def _cheapest(
    gain: IntColumn, spent: FloatColumn, node: Rows, n_needed: int
) -> tuple[Rows, int]:
    """Rank gains, given by node, by price per task; return how many of them are needed."""
    if not len(gain):
        return node, 0
    begins = _starts(node)
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


def least_cost(held: Holdings, space: Space, shape: Shape) -> tuple[Rows, FloatColumn]:
    """Return the nodes where one task could fit, cheapest first, and what it costs at least.

    The bound relaxes holders to any part of them, resource by resource.
    """
    kept = space.could_take(shape)[held.node]
    node, cost, amount = held.node[kept], held.cost[kept], held.amount[kept]
    starts = np.flatnonzero(_starts(node))
    if not len(starts):
        return starts, np.zeros(0)
    lacking = np.maximum(np.array(_asks(shape)) - _free_of(space)[node[starts]], 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        price = np.where(amount > 0, cost[:, None] / amount, np.inf)
        at_least = np.where(lacking > 0, lacking * np.minimum.reduceat(price, starts), 0.0)
    bound = np.maximum(at_least.max(axis=1), np.minimum.reduceat(cost, starts))
    order = np.argsort(bound, kind="stable")
    order = order[np.isfinite(bound[order])]
    return node[starts[order]], bound[order]


def _free_of(space: Space) -> IntColumn:
    nodes = space.nodes
    gpu_milli = nodes.device_free.sum(axis=1)
    return np.column_stack([nodes.free[:, CPU], nodes.free[:, MEMORY], gpu_milli])


def _copies(free: IntColumn, shape: Shape) -> IntColumn:
    """Return how many such tasks go into what is free, at the very most."""
    copies = np.full(len(free), 1 << 40)
    for column, ask in enumerate(_asks(shape)):
        if ask:
            copies = np.minimum(copies, np.maximum(free[:, column], 0) // ask)
    return copies
