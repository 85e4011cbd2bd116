"""Who is served first, and who may be stopped for whom. Orders are total."""

import heapq

import numpy as np

from scheduler.core.model import MILLI, Shape
from scheduler.core.snapshot import FloatColumn, Rows, Snapshot


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

    A submitter's dominant share is the largest part of all CPU, memory or GPUs that tasks
    of theirs hold, by weight of the job that asks. Each job counts as started once served.
    """
    jobs, nodes = snapshot.jobs, snapshot.nodes.nodes
    capacity = np.array(
        [
            sum(node.cpu_milli for node in nodes),
            sum(node.memory_mib for node in nodes),
            sum(len(node.gpus) for node in nodes) * MILLI,
        ],
        np.float64,
    )
    there = capacity > 0
    used: dict[str, FloatColumn] = {}
    held = snapshot.in_scope(np.flatnonzero([bool(tasks) for tasks in jobs.tasks]))
    for row in held.tolist():
        job = snapshot.job_at(row)
        shapes = {role.name: role.shape for role in job.spec.roles}
        amounts = used.setdefault(job.submitter, np.zeros(3))
        for task in jobs.tasks[row]:
            amounts += _amounts(shapes[task.id.role])
    waiting: dict[str, list[int]] = {}
    for row in first_come_first_served(snapshot, rows)[::-1].tolist():
        submitter = snapshot.job_at(row).submitter
        waiting.setdefault(submitter, []).append(row)
        used.setdefault(submitter, np.zeros(3))

    def entry(submitter: str) -> tuple[float, int, str]:
        row = waiting[submitter][-1]
        share = float((used[submitter][there] / capacity[there]).max(initial=0.0))
        return share / snapshot.job_at(row).spec.weight, int(jobs.sequence[row]), submitter

    heap = [entry(submitter) for submitter in waiting]
    heapq.heapify(heap)
    served = []
    while heap:
        submitter = heap[0][2]
        row = waiting[submitter].pop()
        served.append(row)
        for role in snapshot.job_at(row).spec.roles:
            used[submitter] += role.count * _amounts(role.shape)
        if waiting[submitter]:
            heapq.heapreplace(heap, entry(submitter))
        else:
            heapq.heappop(heap)
    return np.array(served, np.intp)


def _amounts(shape: Shape) -> FloatColumn:
    return np.array([shape.cpu_milli, shape.memory_mib, shape.total_gpu_milli], np.float64)
