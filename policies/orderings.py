"""Who is served first, and who may be stopped for whom. Orders are total."""

import heapq

import numpy as np

from scheduler.core.model import MILLI, NodeName, Shape
from scheduler.core.node_columns import FloatColumn, Rows
from scheduler.core.snapshot import Snapshot


def first_come_first_served(snapshot: Snapshot, rows: Rows) -> Rows:
    """Serve the job that was submitted first. A job that was stopped keeps its turn."""
    jobs = snapshot.jobs
    return rows[np.lexsort((jobs.sequence[rows], jobs.submitted_at_s[rows]))]


def highest_priority(snapshot: Snapshot, rows: Rows) -> Rows:
    """Serve the highest priority first, then the job that was submitted first."""
    jobs = snapshot.jobs
    keys = (jobs.sequence[rows], jobs.submitted_at_s[rows], -jobs.priority[rows])
    return rows[np.lexsort(keys)]


def nobody(snapshot: Snapshot, row: int, running: Rows) -> Rows:
    """Stop nobody."""
    return running[:0]


def lower_priority(snapshot: Snapshot, row: int, running: Rows) -> Rows:
    """Stop jobs of a lower priority (Kubernetes' and Slurm's rule)."""
    lower: Rows = running[snapshot.jobs.priority[running] < snapshot.jobs.priority[row]]
    return lower


def shortest_job(snapshot: Snapshot, rows: Rows) -> Rows:
    """Serve the job first that should run for the shortest time; unknown ones last."""
    jobs = snapshot.jobs
    keys = (jobs.sequence[rows], jobs.submitted_at_s[rows], jobs.run_s[rows])
    return rows[np.lexsort(keys)]


def dominant_resource_fairness(snapshot: Snapshot, rows: Rows) -> Rows:
    """Serve who has the least dominant share of the cluster, job by job.

    A submitter's dominant share is the largest part of all CPU, memory or GPUs of a type that
    tasks of theirs hold, by weight of the job that asks. Each job counts as started once
    served, on the types that it may run on alike.
    """
    jobs, cluster = snapshot.jobs, _Amounts(snapshot)
    used: dict[str, FloatColumn] = {}
    held = snapshot.in_scope(np.flatnonzero([bool(tasks) for tasks in jobs.tasks]))
    for row in held.tolist():
        job = snapshot.job_at(row)
        shapes = {role.name: role.shape for role in job.spec.roles}
        amounts = used.setdefault(job.submitter, cluster.none())
        for task in jobs.tasks[row]:
            amounts += cluster.held(shapes[task.id.role], task.node)
    waiting: dict[str, list[int]] = {}
    for row in first_come_first_served(snapshot, rows)[::-1].tolist():
        submitter = snapshot.job_at(row).submitter
        waiting.setdefault(submitter, []).append(row)
        used.setdefault(submitter, cluster.none())

    def entry(submitter: str) -> tuple[float, int, str]:
        row = waiting[submitter][-1]
        share = cluster.dominant(used[submitter])
        return share / snapshot.job_at(row).spec.weight, int(jobs.sequence[row]), submitter

    heap = [entry(submitter) for submitter in waiting]
    heapq.heapify(heap)
    served = []
    while heap:
        submitter = heap[0][2]
        row = waiting[submitter].pop()
        served.append(row)
        for role in snapshot.job_at(row).spec.roles:
            used[submitter] += role.count * cluster.wanted(role.shape)
        if waiting[submitter]:
            heapq.heapreplace(heap, entry(submitter))
        else:
            heapq.heappop(heap)
    return np.array(served, np.intp)


class _Amounts:
    """What tasks take of the CPU, the memory and the GPUs of each type that a cluster has."""

    def __init__(self, snapshot: Snapshot) -> None:
        nodes = snapshot.nodes
        present = [nodes.nodes[row] for row in np.flatnonzero(~nodes.is_removed).tolist()]
        self._gpu_types = nodes.gpu_types()
        self._column = {name: k for k, name in enumerate(self._gpu_types, start=2)}
        self._node = nodes.nodes
        self._row_of = nodes.row_of
        self._there = self.none()
        for node in present:
            self._there[:2] += node.cpu_milli, node.memory_mib
            if node.gpus:
                self._there[self._column[node.gpu_type]] += len(node.gpus) * MILLI
        self._known: dict[tuple[Shape, tuple[str, ...]], FloatColumn] = {}

    def none(self) -> FloatColumn:
        """Return what nothing takes."""
        return np.zeros(2 + len(self._gpu_types))

    def dominant(self, amounts: FloatColumn) -> float:
        """Return the largest part of all there is; of what is not there, none."""
        is_there = self._there > 0
        return float((amounts[is_there] / self._there[is_there]).max(initial=0.0))

    def held(self, shape: Shape, node: NodeName) -> FloatColumn:
        """Return what a task takes that runs on a node."""
        gpu_type = self._node[self._row_of[node]].gpu_type
        return self._of(shape, (gpu_type,))

    def wanted(self, shape: Shape) -> FloatColumn:
        """Return what a task takes that may run on any of its types: as much of each."""
        return self._of(shape, shape.gpu_types)

    def _of(self, shape: Shape, gpu_types: tuple[str, ...]) -> FloatColumn:
        known = self._known.get((shape, gpu_types))
        if known is not None:
            return known
        amounts = self.none()
        amounts[:2] = shape.cpu_milli, shape.memory_mib
        if shape.total_gpu_milli:
            names = gpu_types or self._gpu_types
            columns = [self._column[name] for name in names if name in self._column]
            there = self._there[columns]
            amounts[columns] = shape.total_gpu_milli * there / max(there.sum(), 1.0)
        self._known[shape, gpu_types] = amounts
        return amounts
