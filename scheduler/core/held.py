"""What every live task holds, as columns that are kept from one decision to the next.

A slot per task, in no order; `in_order` picks those of given jobs and sorts them. The state
logs which jobs' tasks came or went, so only their slots are written again.
"""

from dataclasses import dataclass, fields

import numpy as np

from scheduler.core import capacity
from scheduler.core.model import Shape
from scheduler.core.snapshot import BoolColumn, IntColumn, Mark, Rows, Snapshot

FIRST_SLOTS = 64


@dataclass(slots=True)
class _Slots:
    job: IntColumn  # row; -1: free
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
        columns["job"] -= 1
        columns["amount"] = np.zeros((n_slots, 3), np.int64)
        columns["devices"] = np.full((n_slots, n_devices), -1)
        return cls(**columns)


class HeldTasks:
    """The slots of all live tasks, as of one snapshot at a time."""

    def __init__(self) -> None:
        self._slots = _Slots.empty(0, 0)
        self._slots_of: dict[int, list[int]] = {}  # by job row
        self._free: list[int] = []
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
            changed = dict.fromkeys(mark.log.job_rows[last.n_job_rows : mark.n_job_rows])
        else:
            n_devices = snapshot.nodes.device_free.shape[1]
            self._slots = _Slots.empty(FIRST_SLOTS, n_devices)
            self._slots_of = {}
            self._free = list(range(FIRST_SLOTS - 1, -1, -1))
            tasks = snapshot.jobs.tasks
            changed = dict.fromkeys(row for row, live in enumerate(tasks) if live)
        for row in changed:
            self._write(snapshot, row)
        self._mark = mark  # not the snapshot: the state would have to copy its tables

    def _write(self, snapshot: Snapshot, row: int) -> None:
        """Write the slots of a job again."""
        for slot in self._slots_of.pop(row, ()):
            self._slots.job[slot] = -1
            self._free.append(slot)
        tasks = snapshot.jobs.tasks[row]
        if not tasks:
            return
        shapes = {r.name: r.shape for r in snapshot.gangs[snapshot.jobs.gang[row]]}
        used = self._slots_of[row] = []
        for place, task in enumerate(tasks):
            if not self._free:
                self._grow()
            slot = self._free.pop()
            used.append(slot)
            node = snapshot.nodes.row_of[task.node]
            memory_mib = int(snapshot.nodes.device_memory_mib[node])
            self._fill(slot, shapes[task.id.role], task.devices, memory_mib=memory_mib)
            self._slots.job[slot] = row
            self._slots.place[slot] = place
            self._slots.node[slot] = node

    def _fill(
        self, slot: int, shape: Shape, devices: tuple[int, ...], *, memory_mib: int
    ) -> None:
        slots = self._slots
        slots.amount[slot] = (shape.cpu_milli, shape.memory_mib, shape.total_gpu_milli)
        slots.width[slot] = capacity.width_of(shape) if devices else -1
        slots.devices[slot] = -1
        slots.devices[slot, : len(devices)] = devices
        slots.milli[slot], slots.mib[slot] = capacity.per_device(shape, memory_mib)

    def _grow(self) -> None:
        old = self._slots
        n_slots, n_devices = old.devices.shape
        more = _Slots.empty(max(n_slots, FIRST_SLOTS), n_devices)
        joined = {
            field.name: np.concatenate([getattr(old, field.name), getattr(more, field.name)])
            for field in fields(_Slots)
        }
        self._slots = _Slots(**joined)
        self._free = list(range(len(self._slots.job) - 1, n_slots - 1, -1))
