"""Every live job as a row of numpy columns, and what placement needs to know of it."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from scheduler.core.model import (
    Job,
    JobKind,
    JobPhase,
    JobSpec,
    Shape,
    Task,
)
from scheduler.core.node_columns import BoolColumn, FloatColumn, IntColumn
from scheduler.core.records import NOTHING_RECEIVED, Received, Seat
from scheduler.core.topology import Near, near_of
from scheduler.core.values import value_class

PHASE_CODE = {phase: code for code, phase in enumerate(JobPhase)}
"""Job phases as small integers, for columns."""

NEVER_S = np.inf
OVERRUN = 0.1
"""A job may exceed its expected running time by this part before the estimate is wrong."""


@value_class(frozen=True, slots=True, kw_only=True)
class GangRole:
    """What placement needs to know of a role."""

    name: str
    shape: Shape
    min_count: int
    count: int
    near: Near | None = None  # of the whole gang


Gang = tuple[GangRole, ...]
"""What placement needs to know of a job. Equal gangs are placed, and fail, alike."""


def gang_of(job: Job) -> Gang:
    """Return the job as placement sees it."""
    near = near_of(job.spec)
    reads = job.spec.inputs_mib
    return tuple(
        GangRole(
            name=r.name,
            shape=replace(r.shape, reads=reads) if reads else r.shape,
            min_count=r.min_count,
            count=r.count,
            near=near,
        )
        for r in job.spec.roles
    )


def gang_key(spec: JobSpec) -> tuple[object, ...]:
    """Return what makes gangs equal: quicker to make than a gang, for every job that comes."""
    roles = [(r.name, r.shape, r.min_count, r.count) for r in spec.roles]
    return (near_of(spec), spec.inputs_mib, *roles)


def free_indices(live: Set[tuple[str, int]], role: str, count: int) -> tuple[int, ...]:
    """Return the indices of the replicas that a role lacks for `count`, the lowest free ones.

    A service may have grown beyond, and given up replicas with any index.
    """
    free = [index for index in range(count) if (role, index) not in live]
    n_beyond = sum(name == role and index >= count for name, index in live)
    return tuple(free[: max(len(free) - n_beyond, 0)])


def run_s_of(spec: JobSpec) -> tuple[float, float]:
    """Return how long an attempt should run, and at most, by its estimate and its limit.

    The estimate, or else the time limit; at most a spread longer. Infinity: unknown.
    """
    limit_s = spec.time_limit_s or NEVER_S
    run_s = min(spec.expected_run_s or limit_s, limit_s)
    return run_s, min(run_s * (1.0 + spec.expected_run_spread), limit_s)


def is_preemptible(spec: JobSpec) -> bool:
    """Return whether the job may be stopped for others as a whole: a service may not.

    Others may have its replicas one by one, down to its min; see `shrinking`.
    """
    return spec.preemptible and spec.kind is not JobKind.INFERENCE


def is_described(spec: JobSpec) -> bool:
    """Return whether a program of shares can tell the job from others, but for what it asks.

    That is, whether it shares GPUs and says how long or how fast it runs, by when it should
    have ended, what its share weighs, or that it saves its work, so that it may take turns.
    """
    says = (
        spec.expected_run_s > 0
        or spec.total_work > 0
        or spec.throughputs
        or spec.deadline_at_s > 0
        or spec.weight != 1.0
        or spec.checkpoint_interval_s > 0
    )
    return bool(says and spec.kind is not JobKind.INFERENCE and spec.total_gpu_milli)


@dataclass(slots=True, kw_only=True, eq=False)
class JobColumns:
    """Every live job. Rows are reused; a free row has the phase code -1."""

    jobs: list[Job | None]
    tasks: list[tuple[Task, ...]]  # live ones
    received: list[Received]  # without live tasks
    seats: dict[int, tuple[Seat, ...]]  # by row, of gangs that are being resized
    sequence: IntColumn
    priority: IntColumn
    phase: NDArray[np.int8]  # PHASE_CODE, or -1
    gang: IntColumn  # index into `Snapshot.gangs`
    queue: IntColumn  # index into `Snapshot.queues`
    attempt: IntColumn  # attempts started so far
    n_unmet: IntColumn  # dependencies not satisfied yet
    n_missing: IntColumn  # tasks that a running job still wants
    n_stopping: IntColumn  # live tasks that were asked to stop
    gpu_milli: IntColumn  # held
    yields_to: IntColumn  # sequence of the job that it moved for; 0: none
    goes_first: BoolColumn  # others make room for it, or have made it
    is_preemptible: BoolColumn  # as a whole
    may_preempt: BoolColumn  # others, if a rule allows it
    is_divisible: BoolColumn  # runs with more tasks than it needs, and some of them may go
    is_elastic: BoolColumn
    is_described: BoolColumn  # says how it runs; see `is_described`
    may_resize_at_s: FloatColumn  # end of the cool-down
    submitted_at_s: FloatColumn
    eligible_at_s: FloatColumn
    started_at_s: FloatColumn  # of this attempt
    checkpoint_at_s: FloatColumn  # of this attempt; 0: none
    checkpoint_interval_s: FloatColumn  # 0: keeps no checkpoints
    pending_since_s: FloatColumn
    deadline_at_s: FloatColumn  # end of the time limit; inf: none
    run_s: FloatColumn  # of one attempt, as expected; inf: unknown
    longest_run_s: FloatColumn  # the same with its spread
    min_runtime_s: FloatColumn  # of one attempt, before it may be preempted

    @classmethod
    def empty(cls) -> Self:
        """Return a table without rows."""
        columns = {
            f.name: np.zeros(0, dtype)
            for f in fields(cls)
            if (dtype := _JOB_DTYPES.get(f.name)) is not None
        }
        return cls(jobs=[], tasks=[], received=[], seats={}, **columns)

    def copy(self) -> Self:
        """Return a table that can be written to without touching this one."""
        arrays = {name: getattr(self, name).copy() for name in _JOB_DTYPES}
        lists = {name: getattr(self, name).copy() for name in ("jobs", "tasks", "received")}
        return replace(self, **arrays, **lists, seats=self.seats.copy())

    def grow(self, n_rows: int) -> None:
        """Add free rows."""
        for name, dtype in _JOB_DTYPES.items():
            more = np.zeros(n_rows, dtype)
            setattr(self, name, np.concatenate([getattr(self, name), more]))
        self.phase[-n_rows:] = -1
        self.jobs.extend([None] * n_rows)
        self.tasks.extend([()] * n_rows)
        self.received.extend([NOTHING_RECEIVED] * n_rows)


_JOB_DTYPES: Mapping[str, type[np.generic]] = {
    "sequence": np.int64,
    "priority": np.int64,
    "phase": np.int8,
    "gang": np.int64,
    "queue": np.int64,
    "attempt": np.int64,
    "n_unmet": np.int64,
    "n_missing": np.int64,
    "n_stopping": np.int64,
    "gpu_milli": np.int64,
    "yields_to": np.int64,
    "goes_first": np.bool_,
    "is_preemptible": np.bool_,
    "may_preempt": np.bool_,
    "is_divisible": np.bool_,
    "is_elastic": np.bool_,
    "is_described": np.bool_,
    "may_resize_at_s": np.float64,
    "submitted_at_s": np.float64,
    "eligible_at_s": np.float64,
    "started_at_s": np.float64,
    "checkpoint_at_s": np.float64,
    "checkpoint_interval_s": np.float64,
    "pending_since_s": np.float64,
    "deadline_at_s": np.float64,
    "run_s": np.float64,
    "longest_run_s": np.float64,
    "min_runtime_s": np.float64,
}
