"""Who is served first, and who may be stopped for whom. Orders are total."""

import numpy as np

from scheduler.core.snapshot import Rows, Snapshot


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
