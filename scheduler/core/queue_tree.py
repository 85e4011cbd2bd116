"""The tree of queues as arrays: who is below whom, what is guaranteed, how far each may go.

Made once from the queues and shared by snapshots until one of them changes. A row is a queue's
number, the last row the root, which stands for the cluster. Resources are columns: milli-CPU,
MiB, thousandths of GPUs, and of GPUs of each type. What is used is kept by `quotas`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from scheduler.core.errors import InvalidInput
from scheduler.core.model import MILLI, Amounts, Queue, QueueName, QueuePreemption, Shape

CPU, MEMORY, GPU, FIRST_TYPE = range(4)
"""Columns of amounts; from `FIRST_TYPE` on one per GPU type."""

RESOURCES = {"cpu_milli": CPU, "memory_mib": MEMORY, "gpu_milli": GPU}
OF_TYPE = "gpu_milli:"
UNBOUNDED = 1 << 60

IntColumn = NDArray[np.int64]
BoolColumn = NDArray[np.bool_]
Rows = NDArray[np.intp]
Amount = TypeVar("Amount", np.int64, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueueTree:
    """n queues and the root, R resources."""

    queues: Sequence[Queue | None]  # by number; None: deleted
    gpu_types: Sequence[str]  # by column, from FIRST_TYPE on
    parent: Rows  # [n + 1]; of the root: itself
    paths: Sequence[Rows]  # [n] from the queue to the root, both included
    levels: Sequence[Rows]  # queues by depth, those right below the root first
    guaranteed: IntColumn  # [n + 1, R] its own, or the sum of its children's
    ceiling: IntColumn  # [n + 1, R] limit and borrowing limit, whichever is less
    is_started: BoolColumn  # [n] and all above it
    has_shares: bool  # somebody weighs more, has a guarantee, a parent, a policy or a past
    has_ceilings: bool
    has_guarantees: bool
    has_reserves: bool  # somebody does not lend what is guaranteed
    has_rules: bool  # somebody's jobs may not stop whom the policy allows

    @classmethod
    def of(
        cls,
        queues: Sequence[Queue | None],
        gpu_types: Sequence[str],
        *,
        is_use_remembered: bool = False,
    ) -> Self:
        """Return the tree of valid queues. A parent that does not exist counts as the root."""
        n_queues = len(queues)
        number = {queue.name: i for i, queue in enumerate(queues) if queue is not None}
        parent = np.full(n_queues + 1, n_queues, np.intp)
        for i, queue in enumerate(queues):
            if queue is not None:
                parent[i] = number.get(queue.parent, n_queues)
        paths = [_path(parent, i) for i in range(n_queues)]
        depth = np.array([len(path) - 2 for path in paths], np.intp)
        levels = [np.flatnonzero(depth == d) for d in range(int(depth.max(initial=-1)) + 1)]
        guaranteed = _guarantees(queues, gpu_types, parent=parent, levels=levels)
        ceiling = _ceilings(queues, gpu_types, guaranteed)
        known = [queue for queue in queues if queue is not None]
        return cls(
            queues=tuple(queues),
            gpu_types=tuple(gpu_types),
            parent=parent,
            paths=paths,
            levels=levels,
            guaranteed=guaranteed,
            ceiling=ceiling,
            is_started=_all_above(queues, paths),
            has_shares=is_use_remembered
            or any(q.parent or q.weight != 1.0 or q.guaranteed or q.policy for q in known),
            has_ceilings=bool((ceiling < UNBOUNDED).any()),
            has_guarantees=bool(guaranteed.any()),
            has_reserves=bool(guaranteed[_keepers(queues)].any()),
            has_rules=any(q.may_preempt is not QueuePreemption.ANYWHERE for q in known),
        )

    @property
    def root(self) -> int:
        """The row of the root."""
        return len(self.queues)

    @property
    def is_governed(self) -> bool:
        """Whether queues matter at all beyond being open and started."""
        return self.has_shares or self.has_ceilings or self.has_reserves or self.has_rules

    def line(self, row: int) -> list[Queue]:
        """Return a queue and all above it, the nearest first."""
        above = (self.queues[node] for node in self.paths[row][:-1].tolist())
        return [queue for queue in above if queue is not None]

    def rolled_up(self, own: NDArray[Amount]) -> NDArray[Amount]:
        """Return amounts per queue with those of everything below it; `own` is [n, R]."""
        total = np.vstack([own, np.zeros((1, own.shape[1]), own.dtype)])
        for rows in reversed(self.levels):
            np.add.at(total, self.parent[rows], total[rows])
        return total

    def is_reserve(self) -> BoolColumn:
        """Return which rows keep what they are guaranteed and do not use."""
        return _keepers(self.queues)

    def weight(self, row: int) -> float:
        """Return the weight of a queue beside its siblings."""
        queue = self.queues[row] if row < len(self.queues) else None
        return 1.0 if queue is None else queue.weight

    def resource(self, column: int) -> str:
        """Return the name of a resource, as amounts have it."""
        if column >= FIRST_TYPE:
            return f"{OF_TYPE}{self.gpu_types[column - FIRST_TYPE]}"
        return next(name for name, index in RESOURCES.items() if index == column)

    def label(self, column: int) -> str:
        """Return the plural of a resource, for people."""
        if column >= FIRST_TYPE:
            return f"GPUs of type {self.gpu_types[column - FIRST_TYPE] or 'none'}"
        return ("CPUs", "MiB of memory", "GPUs")[column]


def amounts_of(shape: Shape, n_columns: int, *, type_column: int | None = None) -> IntColumn:
    """Return what one task takes, and of which type of GPU if that is known."""
    amounts = np.zeros(n_columns, np.int64)
    gpu_milli = shape.total_gpu_milli
    amounts[:FIRST_TYPE] = shape.cpu_milli, shape.memory_mib, gpu_milli
    if type_column is not None:
        amounts[type_column] = gpu_milli
    return amounts


def figure(column: int, amount: int) -> str:
    """Return an amount in the unit of `QueueTree.label`."""
    return f"{amount}" if column == MEMORY else f"{amount / MILLI:g}"


def gpu_types_of(queue: Queue) -> list[str]:
    """Return the GPU types that the queue's amounts name."""
    named = [*queue.guaranteed, *queue.limit, *queue.borrow_limit]
    return [name.removeprefix(OF_TYPE) for name, _ in named if name.startswith(OF_TYPE)]


def _path(parent: Rows, row: int) -> Rows:
    root = len(parent) - 1
    path = [row]
    while path[-1] != root and len(path) <= root + 1:
        path.append(int(parent[path[-1]]))
    return np.array(path, np.intp)


def _keepers(queues: Sequence[Queue | None]) -> BoolColumn:
    keeps = [queue is not None and not queue.is_lender for queue in queues]
    return np.array([*keeps, False], np.bool_)


def _columns(amounts: Amounts, gpu_types: Sequence[str]) -> list[tuple[int, int]]:
    return [
        (
            RESOURCES[name]
            if name in RESOURCES
            else FIRST_TYPE + list(gpu_types).index(name.removeprefix(OF_TYPE)),
            amount,
        )
        for name, amount in amounts
    ]


def _guarantees(
    queues: Sequence[Queue | None],
    gpu_types: Sequence[str],
    *,
    parent: Rows,
    levels: Sequence[Rows],
) -> IntColumn:
    guaranteed = np.zeros((len(queues) + 1, FIRST_TYPE + len(gpu_types)), np.int64)
    for rows in reversed(levels):
        for row in rows.tolist():
            queue = queues[row]
            if queue is not None:
                for column, amount in _columns(queue.guaranteed, gpu_types):
                    guaranteed[row, column] = amount
        np.add.at(guaranteed, parent[rows], guaranteed[rows])
    return guaranteed


def _ceilings(
    queues: Sequence[Queue | None], gpu_types: Sequence[str], guaranteed: IntColumn
) -> IntColumn:
    ceiling = np.full_like(guaranteed, UNBOUNDED)
    for row, queue in enumerate(queues):
        if queue is None:
            continue
        for column, amount in _columns(queue.limit, gpu_types):
            ceiling[row, column] = amount
        for column, amount in _columns(queue.borrow_limit, gpu_types):
            most = guaranteed[row, column] + amount
            ceiling[row, column] = min(ceiling[row, column], most)
    return ceiling


def _all_above(queues: Sequence[Queue | None], paths: Sequence[Rows]) -> BoolColumn:
    started = np.array([q is not None and q.is_started for q in queues] + [True], np.bool_)
    return np.array([bool(started[path].all()) for path in paths], np.bool_)


# What makes a queue valid among others


def lineage(queue: Queue, known: Mapping[QueueName, Queue]) -> list[Queue]:
    """Return the queue and all above it, the nearest first; stops where a cycle would close."""
    line = [queue]
    seen = {queue.name}
    while (above := known.get(line[-1].parent)) is not None and above.name not in seen:
        line.append(above)
        seen.add(above.name)
    return line


def check_queue(queue: Queue, known: Mapping[QueueName, Queue]) -> None:
    """Raise InvalidInput unless the queue could be put among those known."""
    for field in ("guaranteed", "limit", "borrow_limit"):
        _check_amounts(field, getattr(queue, field))
    if not 0 < queue.weight < np.inf:
        raise InvalidInput("weight", "must be above 0")
    for field in ("max_jobs", "max_jobs_per_submitter"):
        if getattr(queue, field) < 0:
            raise InvalidInput(field, "must not be negative")
    for field in ("default_time_limit_s", "max_time_limit_s", "default_min_runtime_s"):
        if not 0 <= getattr(queue, field) < np.inf:
            raise InvalidInput(field, "must be from 0 on")
    if queue.max_time_limit_s and queue.default_time_limit_s > queue.max_time_limit_s:
        raise InvalidInput("default_time_limit_s", "must be at most max_time_limit_s")
    if queue.parent:
        _check_parent(queue, known)
    others = {**known, queue.name: queue}
    children: dict[QueueName, list[Queue]] = {}
    for other in others.values():
        if other.parent:
            children.setdefault(other.parent, []).append(other)
    for line in lineage(queue, others):
        _check_guarantees(line, children)


def _check_amounts(field: str, amounts: Amounts) -> None:
    names = [name for name, _ in amounts]
    if names != sorted(set(names)):
        raise InvalidInput(field, "must name each resource once, in order")
    for name, amount in amounts:
        if name not in RESOURCES and not (name.startswith(OF_TYPE) and name != OF_TYPE):
            rule = f"must be of {', '.join(RESOURCES)} or {OF_TYPE}TYPE"
            raise InvalidInput(f"{field}[{name}]", rule)
        if not 0 <= amount < UNBOUNDED:
            raise InvalidInput(f"{field}[{name}]", "must be from 0 on")


def _check_parent(queue: Queue, known: Mapping[QueueName, Queue]) -> None:
    if queue.parent not in known and queue.parent != queue.name:
        raise InvalidInput("parent", f"there is no queue {queue.parent!r}")
    above: QueueName = queue.parent
    seen = {queue.name}
    while above:
        if above in seen:
            raise InvalidInput("parent", f"{queue.parent!r} is below {queue.name!r} itself")
        seen.add(above)
        above = known[above].parent if above in known else QueueName("")


def _check_guarantees(queue: Queue, children: Mapping[QueueName, list[Queue]]) -> None:
    own, limit = dict(queue.guaranteed), dict(queue.limit)
    below = {
        name: sum(_promised(child, name, children) for child in children.get(queue.name, ()))
        for name in _named(queue, children)
    }
    for name in sorted(below):
        promised = own.get(name, below[name])
        if name in own and below[name] > own[name]:
            rule = f"is {own[name]}, and its children's guarantees add up to {below[name]}"
            raise InvalidInput(f"guaranteed[{name}]", f"of queue {queue.name!r} {rule}")
        if name in limit and promised > limit[name]:
            rule = f"is {promised} and must be at most its limit, {limit[name]}"
            raise InvalidInput(f"guaranteed[{name}]", f"of queue {queue.name!r} {rule}")


def _named(queue: Queue, children: Mapping[QueueName, list[Queue]]) -> set[str]:
    names = {name for name, _ in queue.guaranteed}
    for child in children.get(queue.name, ()):
        names |= _named(child, children)
    return names


def _promised(queue: Queue, name: str, children: Mapping[QueueName, list[Queue]]) -> int:
    own = dict(queue.guaranteed).get(name)
    if own is not None:
        return own
    return sum(_promised(child, name, children) for child in children.get(queue.name, ()))
