"""Orders by how far jobs have come, in which who is behind may stop who is ahead.

Each is a `RoundRule` that looks once at every live job; its rounds have no length.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduler.core.job_columns import PHASE_CODE
from scheduler.core.model import MILLI, JobPhase
from scheduler.core.node_columns import FloatColumn, Rows
from scheduler.core.ports import Ordering, Round
from scheduler.core.preemption import RESTART_S
from scheduler.core.snapshot import Snapshot

LEVELS_GPU_S = (3_600.0, 36_000.0)
"""Attained service at which a job sinks to the next level: one GPU-hour, and ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttainedService:
    """Serve those of the least level of GPUs times time first, each level as it came.

    Nobody stops a job of the same level, so that a job is stopped at most once per level and
    job that comes after it (Tiresias, NSDI '19: two-dimensional, discretised). With
    `promote_after`, one that waited so many times as long as it had run begins anew on the
    first level: nobody starves.
    """

    levels_gpu_s: tuple[float, ...] = LEVELS_GPU_S
    promote_after: float = 0.0
    """Waiting over running time that brings a job back to the first level; 0: none does."""

    def __call__(self, snapshot: Snapshot) -> Round:
        """Return the order by what everybody had."""
        rows = _live(snapshot)
        attained_gpu_s = np.zeros(len(snapshot.jobs.jobs))
        attained_gpu_s[rows] = snapshot.gpu_s(rows)[:, 0]
        if self.promote_after:
            for row in rows.tolist():
                attained_gpu_s[row] = self._since_promoted_gpu_s(snapshot, row)
        level = np.searchsorted(np.array(self.levels_gpu_s), attained_gpu_s, side="right")

        def with_more(snapshot: Snapshot, row: int, running: Rows) -> Rows:
            more: Rows = running[level[running] > level[row]]
            return more

        return Round(order=_by(level), may_preempt=with_more)

    def _since_promoted_gpu_s(self, snapshot: Snapshot, row: int) -> float:
        """Return what a job had since it last waited long enough."""
        jobs, now_s = snapshot.jobs, snapshot.now_s
        past = jobs.received[row]
        known_gpu_s = sum(stint.gpu_s for stint in past.stints)
        had_gpu_s = sum(gpu_s for _, gpu_s in past.gpu_s) - known_gpu_s  # before those
        ran_s, last_s = 0.0, np.inf
        stints = sorted((s.from_s, s.until_s, s.gpu_s) for s in past.stints)
        if jobs.tasks[row]:
            since_s = min(task.bound_at_s for task in jobs.tasks[row])
            gpus = float(jobs.gpu_milli[row]) / MILLI
            stints.append((since_s, now_s, gpus * (now_s - since_s)))
        for from_s, until_s, gpu_s in stints:
            if ran_s and from_s - last_s >= self.promote_after * ran_s:
                had_gpu_s = ran_s = 0.0
            had_gpu_s, ran_s, last_s = had_gpu_s + gpu_s, ran_s + until_s - from_s, until_s
        is_promoted = ran_s and now_s - last_s >= self.promote_after * ran_s
        return 0.0 if is_promoted else had_gpu_s


least_attained_service = AttainedService()
"""Without promotion, as its source has it by default."""


def shortest_remaining(snapshot: Snapshot) -> Round:
    """Serve the job first that should be done soonest; unknown ones last, as they came.

    A job stops others that need longer than itself by more than what stopping them costs.
    """
    rows = _live(snapshot)
    left_s = np.full(len(snapshot.jobs.jobs), np.inf)
    left_s[rows] = remaining_s(snapshot, rows)
    cost_s = np.zeros(len(left_s))
    cost_s[rows] = snapshot.unsaved_s(rows) + RESTART_S

    def with_longer(snapshot: Snapshot, row: int, running: Rows) -> Rows:
        longer: Rows = running[left_s[running] > left_s[row] + cost_s[running]]
        return longer

    return Round(order=_by(left_s), may_preempt=with_longer)


def remaining_s(snapshot: Snapshot, rows: Rows) -> FloatColumn:
    """Return how much longer each job should run, as its user estimates; infinite: unknown.

    What earlier attempts did is counted for jobs that know their total work.
    """
    jobs = snapshot.jobs
    left_s = jobs.run_s[rows].copy()
    is_running = jobs.phase[rows] == PHASE_CODE[JobPhase.RUNNING]
    ran_s = np.where(is_running, snapshot.now_s - jobs.started_at_s[rows], 0.0)
    left_s = np.maximum(left_s - ran_s, 0.0)
    for i, row in enumerate(rows.tolist()):
        spec = snapshot.job_at(row).spec
        if spec.total_work:
            gpus = max(spec.total_gpu_milli, 1) / MILLI
            speeds = dict(spec.throughputs)
            had_s = snapshot.gpu_s(rows[i : i + 1], list(speeds) or None)[0] / gpus
            done = float(had_s @ np.array(list(speeds.values()) or [1.0]))
            left_s[i] = max(spec.total_work - done, 0.0) / max(speeds.values(), default=1.0)
    return left_s


def _by(value: NDArray[np.float64] | NDArray[np.intp]) -> Ordering:
    """Return the order in which the least value is served first, then who came first."""

    def order(snapshot: Snapshot, rows: Rows) -> Rows:
        jobs = snapshot.jobs
        keys = (jobs.sequence[rows], jobs.submitted_at_s[rows], value[rows])
        return rows[np.lexsort(keys)]

    return order


def _live(snapshot: Snapshot) -> Rows:
    return np.flatnonzero(snapshot.jobs.phase >= 0)
