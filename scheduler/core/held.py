"""What every live task holds, as columns that are kept from one decision to the next.

A slot per task, in no order; `in_order` picks those of given jobs and sorts them. The state
logs which jobs' tasks came or went, so only their slots are written again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from scheduler.core import capacity
from scheduler.core.model import Shape, Task
from scheduler.core.node_columns import BoolColumn, IntColumn, Rows
from scheduler.core.snapshot import Mark, Snapshot

FREE = -1


@dataclass(slots=True)
class _Slots:
    job: IntColumn  # row, or `FREE`
    place: IntColumn  # among the tasks of its job
    node: IntColumn  # row
    amount: IntColumn  # [S, 3] milli-CPU, MiB, thousandths of GPUs
    width: IntColumn  # column of `n_by_width`; -1: no devices
    devices: IntColumn  # [S, D] of the node; -1: no more
    milli: IntColumn  # of each device
    mib: IntColumn  # of each device

    @classmethod
    def empty(cls, n_slots: int, n_devices: int) -> "_Slots":
        """Return so many free slots."""
        columns = {field.name: np.zeros(n_slots, np.int64) for field in fields(cls)}
        columns["job"] += FREE
        columns["amount"] = np.zeros((n_slots, 3), np.int64)
        columns["devices"] = np.full((n_slots, n_devices), -1)
        return cls(**columns)


class HeldTasks:
    """The slots of all live tasks, as of one snapshot at a time."""

    def __init__(self) -> None:
        self._slots = _Slots.empty(0, 0)
        self._mark: Mark | None = None

    def in_order(self, snapshot: Snapshot, rows: Rows) -> tuple[Rows, capacity.Tasks]:
        """Return the job row of every task of these rows, in their order, and what it holds."""
        slots, at = self._picked(snapshot, rows)
        return slots.job[at], self._tasks(slots, at)

    def amounts(self, snapshot: Snapshot, rows: Rows) -> tuple[Rows, Rows, IntColumn]:
        """Return job row, node and what would be free without it, of every task of these rows.

        Devices that are not healthy would not be.
        """
        slots, at = self._picked(snapshot, rows)
        node, amount = slots.node[at], slots.amount[at]
        nodes = snapshot.nodes
        is_sick = (np.count_nonzero(nodes.is_healthy, axis=1) < nodes.n_gpus)[node]
        if is_sick.any():
            sick = np.flatnonzero(is_sick)
            devices = slots.devices[at[sick]]
            there = devices >= 0
            healthy = nodes.is_healthy[node[sick][:, None], devices] & there
            n_devices = np.maximum(np.count_nonzero(there, axis=1), 1)
            amount[sick, 2] = amount[sick, 2] // n_devices * np.count_nonzero(healthy, axis=1)
        return slots.job[at], node, amount

    def _picked(self, snapshot: Snapshot, rows: Rows) -> tuple[_Slots, Rows]:
        self._catch_up(snapshot)
        slots = self._slots
        rank = np.full(len(snapshot.jobs.jobs) + 1, -1)  # the last one: of free slots
        rank[rows] = np.arange(len(rows))
        ranks = rank[slots.job]
        at = np.flatnonzero(ranks >= 0)
        at = at[np.lexsort((slots.place[at], ranks[at]))]
        return slots, at

    @staticmethod
    def _tasks(slots: _Slots, at: Rows) -> capacity.Tasks:
        devices = slots.devices[at]
        there: BoolColumn = devices >= 0
        of_task = np.nonzero(there)[0]
        n_devices = np.count_nonzero(there, axis=1)
        node = slots.node[at]
        return capacity.Tasks(
            node=node,
            amount=slots.amount[at],
            width=slots.width[at],
            first_device=np.concatenate([[0], np.cumsum(n_devices)]),
            device_node=node[of_task],
            device=devices[there],
            device_amount=np.column_stack([slots.milli[at], slots.mib[at]])[of_task],
        )

    # Keeping up

    def _catch_up(self, snapshot: Snapshot) -> None:
        mark, last = snapshot.mark, self._mark
        if mark is not None and mark is last:
            return
        is_next = (
            mark is not None
            and last is not None
            and last.log is mark.log
            and last.layout == mark.layout
            and last.n_job_rows <= mark.n_job_rows
        )
        if is_next:
            assert mark is not None
            assert last is not None
            changed = mark.log.job_rows[last.n_job_rows : mark.n_job_rows]
            self._write(snapshot, list(dict.fromkeys(changed)))
        else:
            self._slots = _Slots.empty(0, snapshot.nodes.device_free.shape[1])
            tasks = snapshot.jobs.tasks
            self._write(snapshot, [row for row, live in enumerate(tasks) if live])
        self._mark = mark  # not the snapshot: the state would have to copy its tables

    def _write(self, snapshot: Snapshot, rows: list[int]) -> None:
        """Write the slots of some jobs again."""
        is_stale = np.zeros(len(snapshot.jobs.jobs) + 1, np.bool_)  # the last one: free slots
        is_stale[rows] = True
        self._slots.job[is_stale[self._slots.job]] = FREE
        tasks_of, row_of = snapshot.jobs.tasks, snapshot.nodes.row_of
        rows = [row for row in rows if tasks_of[row]]
        tasks = [task for row in rows for task in tasks_of[row]]
        n_tasks = [len(tasks_of[row]) for row in rows]
        at = self._free(len(tasks))
        slots = self._slots
        slots.job[at] = np.repeat(np.array(rows, np.int64), n_tasks)
        firsts = np.cumsum([0, *n_tasks])[:-1]
        slots.place[at] = np.arange(len(tasks)) - np.repeat(firsts, n_tasks)
        slots.node[at] = [row_of[task.node] for task in tasks]
        self._fill(at, _held(snapshot, slots.job[at], tasks, slots.node[at]))

    def _fill(self, at: Rows, held: capacity.Tasks) -> None:
        """Write what tasks hold to their slots."""
        slots = self._slots
        slots.amount[at], slots.width[at] = held.amount, held.width
        first, n_devices = held.first_device[:-1], np.diff(held.first_device)
        of_task = np.repeat(np.arange(len(at)), n_devices)
        slots.devices[at] = -1
        number = np.arange(len(of_task)) - first[of_task]
        slots.devices[at[of_task], number] = held.device
        has_devices = n_devices > 0
        of_each = held.device_amount[first[has_devices]]
        slots.milli[at[has_devices]], slots.mib[at[has_devices]] = of_each.T

    def _free(self, n_slots: int) -> Rows:
        """Return so many free slots, made if there are too few."""
        free = np.flatnonzero(self._slots.job == FREE)
        if len(free) < n_slots:
            old = self._slots
            n_old, n_devices = old.devices.shape
            more = _Slots.empty(max(n_old, n_slots), n_devices)
            joined = {
                field.name: np.concatenate(
                    [getattr(old, field.name), getattr(more, field.name)]
                )
                for field in fields(_Slots)
            }
            self._slots = _Slots(**joined)
            free = np.append(free, np.arange(n_old, len(self._slots.job)))
        return free[:n_slots]


def _held(snapshot: Snapshot, row: Rows, tasks: Sequence[Task], node: Rows) -> capacity.Tasks:
    """Return what tasks hold, given the rows of their jobs and nodes."""
    gang = snapshot.jobs.gang[row]
    shapes: list[Shape] = []
    numbers: dict[int, dict[str, int]] = {}  # of shapes, by gang and role
    for number in np.unique(gang).tolist():
        roles = snapshot.gangs[number]
        numbers[number] = {role.name: len(shapes) + i for i, role in enumerate(roles)}
        shapes += [role.shape for role in roles]
    shape_of = [numbers[g][task.id.role] for g, task in zip(gang.tolist(), tasks, strict=True)]
    devices = [task.devices for task in tasks]
    return capacity.tasks_of(snapshot.nodes, node, np.array(shape_of, np.intp), shapes, devices)
