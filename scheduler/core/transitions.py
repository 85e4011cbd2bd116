"""Every move a job or a task may make, and nothing else may decide that.

    ┌────────────► SUSPENDED ──────┐
    │  ▲                           ▼
PENDING ──► RUNNING ──► STOPPING ──┴──► PENDING, CANCELLED, TIMED_OUT, FAILED
    │          └──► SUCCEEDED, FAILED, PENDING
    └──► CANCELLED

BOUND ──► RUNNING ──► STOPPING ──► STOPPED
  └──────────┴───────────┴──► SUCCEEDED, FAILED, LOST
"""

from collections.abc import Mapping, Sequence

from scheduler.core.errors import InvalidTransition
from scheduler.core.model import JobPhase, TaskPhase

JOB_MOVES: Mapping[JobPhase, frozenset[JobPhase]] = {
    JobPhase.PENDING: frozenset({JobPhase.RUNNING, JobPhase.SUSPENDED, JobPhase.CANCELLED}),
    JobPhase.RUNNING: frozenset(
        {JobPhase.STOPPING, JobPhase.PENDING, JobPhase.SUCCEEDED, JobPhase.FAILED}
    ),
    JobPhase.STOPPING: frozenset(
        {
            JobPhase.PENDING,
            JobPhase.SUSPENDED,
            JobPhase.CANCELLED,
            JobPhase.TIMED_OUT,
            JobPhase.FAILED,
        }
    ),
    JobPhase.SUSPENDED: frozenset({JobPhase.PENDING, JobPhase.CANCELLED}),
    JobPhase.SUCCEEDED: frozenset(),
    JobPhase.FAILED: frozenset(),
    JobPhase.CANCELLED: frozenset(),
    JobPhase.TIMED_OUT: frozenset(),
}

_ENDS = frozenset({TaskPhase.SUCCEEDED, TaskPhase.FAILED, TaskPhase.LOST})

TASK_MOVES: Mapping[TaskPhase, frozenset[TaskPhase]] = {
    # An executor that comes back may know only the end of a task, not its start.
    TaskPhase.BOUND: frozenset({TaskPhase.RUNNING, TaskPhase.STOPPING}) | _ENDS,
    TaskPhase.RUNNING: frozenset({TaskPhase.STOPPING}) | _ENDS,
    TaskPhase.STOPPING: frozenset({TaskPhase.STOPPED, TaskPhase.LOST}),
    TaskPhase.SUCCEEDED: frozenset(),
    TaskPhase.FAILED: frozenset(),
    TaskPhase.STOPPED: frozenset(),
    TaskPhase.LOST: frozenset(),
}


def check_job_move(
    subject: str, old: JobPhase, new: JobPhase, *, history: Sequence[object] = ()
) -> None:
    """Raise InvalidTransition, with the job's history, unless the table allows the move."""
    if new not in JOB_MOVES[old]:
        raise InvalidTransition(f"job {subject}", f"{old} to {new}", history)


def check_task_move(
    subject: object, old: TaskPhase, new: TaskPhase, *, history: Sequence[object] = ()
) -> None:
    """Raise InvalidTransition, with the job's history, unless the table allows the move."""
    if new not in TASK_MOVES[old]:
        raise InvalidTransition(f"task {subject}", f"{old} to {new}", history)
