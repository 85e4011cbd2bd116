"""The cluster at one moment, as numpy columns: what decisions read.

`NodeColumns` and `JobColumns` are tables: a row is a node or a live job, a column an array. A
`Snapshot` holds both at `now_s` and never changes: `ClusterState` copies a table before it
writes to one that a snapshot still holds. Rows are of no meaning outside one snapshot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import numpy as np

from scheduler.core.errors import InvalidInput
from scheduler.core.job_columns import (
    NEVER_S,
    OVERRUN,
    PHASE_CODE,
    Gang,
    JobColumns,
    gang_of,
    is_described,
    is_preemptible,
    run_s_of,
)
from scheduler.core.model import MILLI, Job, JobPhase, JobSpec, Queue
from scheduler.core.node_columns import BoolColumn, FloatColumn, IntColumn, NodeColumns, Rows
from scheduler.core.plan import Granted
from scheduler.core.queue_rules import with_defaults
from scheduler.core.queue_tree import QueueTree
from scheduler.core.records import Stint


class ChangeLog:
    """Rows whose contents changed, in order; only ever appended to.

    `layout` numbers the tables as far as bookings do not change them: which nodes there are,
    and whether they and their devices are open and healthy.
    """

    __slots__ = ("job_rows", "layout", "node_rows")

    def __init__(self) -> None:
        self.node_rows: list[int] = []
        self.job_rows: list[int] = []  # whose live tasks changed
        self.layout = 0

    def mark(self) -> "Mark":
        """Return where the log ends now."""
        return Mark(self, len(self.node_rows), len(self.job_rows), self.layout)


class Mark(NamedTuple):
    """A moment in a log of changes."""

    log: ChangeLog
    n_node_rows: int
    n_job_rows: int
    layout: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scope:
    """The jobs that a policy decides on, if not all of them."""

    is_mine: BoolColumn  # by job row
    queue: int | None  # whose policy it is, with all below it; None: of the cluster's


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True, eq=False)
class Snapshot:
    """The cluster at `now_s`. Safe to read from another thread while the state moves on.

    Whoever keeps a table of it must keep the snapshot too: the state copies a table before a
    write only while a snapshot that holds it is alive.
    """

    now_s: float
    revision: int
    nodes: NodeColumns
    jobs: JobColumns
    gangs: Sequence[Gang]  # by the number in `jobs.gang`; only ever appended to
    queues: Sequence[Queue | None]  # by the number in `jobs.queue`; None: deleted
    tree: QueueTree
    queue_used: IntColumn  # [queues, resources of the tree] by live tasks, without children
    granted: Mapping[str, Granted] = field(default_factory=dict)  # see `Plan.granted`
    queue_average: FloatColumn | None = None  # the same of late; None: nobody remembers
    origin: "Snapshot | None" = None  # of a hypothesis: keeps the tables from being reused
    mark: Mark | None = None  # what has changed before it; None: nobody wrote that down
    scope: Scope | None = None  # what a policy inside a queue sees: its own jobs only

    def in_scope(self, rows: Rows) -> Rows:
        """Return those of the rows that are in scope."""
        return rows if self.scope is None else rows[self.scope.is_mine[rows]]

    def with_granted(self, granted: Mapping[str, Granted]) -> "Snapshot":
        """Return a snapshot that knows what programs of shares answered last."""
        if not granted and not self.granted:
            return self
        return replace(self, granted=granted, origin=self)

    def waiting_rows(self) -> Rows:
        """Return the jobs that want tasks placed: pending ones, and services short of some."""
        is_pending = self.jobs.phase == PHASE_CODE[JobPhase.PENDING]
        is_short = (self.jobs.phase == PHASE_CODE[JobPhase.RUNNING]) & (self.jobs.n_missing > 0)
        return self.in_scope(np.flatnonzero(is_pending | is_short))

    def may_start(self, rows: Rows) -> BoolColumn:
        """Return which of the waiting rows nothing but capacity holds back."""
        may_start: BoolColumn = self.is_ready(rows)
        may_start &= self.tree.is_started[self.jobs.queue[rows]]
        return may_start

    def is_ready(self, rows: Rows) -> BoolColumn:
        """Return which of the waiting rows could start if their queues do."""
        ready: BoolColumn = self.jobs.n_unmet[rows] == 0
        ready &= self.jobs.eligible_at_s[rows] <= self.now_s
        return ready

    def running_rows(self, among: BoolColumn | None = None) -> Rows:
        """Return the jobs with live tasks that were not all asked to stop, as they arrived.

        Those of the job rows that `among` marks, if it is given: there are few to sort.
        """
        is_running = self.jobs.phase == PHASE_CODE[JobPhase.RUNNING]
        rows = self.in_scope(
            np.flatnonzero(is_running if among is None else is_running & among)
        )
        return rows[np.argsort(self.jobs.sequence[rows])]

    def preemptible_rows(self) -> Rows:
        """Return the running jobs that may be stopped for others, if a rule allows it."""
        jobs, running = self.jobs, self.running_rows()
        is_game = jobs.is_preemptible[running] & (jobs.n_stopping[running] == 0)
        is_game &= self.now_s - jobs.started_at_s[running] >= jobs.min_runtime_s[running]
        game: Rows = running[is_game]
        return game

    def job_at(self, row: int) -> Job:
        """Return the job of a row in use."""
        job = self.jobs.jobs[row]
        assert job is not None
        return job

    def specs_at(self, rows: Rows) -> list[JobSpec]:
        """Return what the jobs of rows in use asked for."""
        jobs = cast("list[Job]", self.jobs.jobs)
        return [jobs[row].spec for row in rows.tolist()]

    def unsaved_s(self, rows: Rows) -> FloatColumn:
        """Return the running time that each running job would lose if it stopped now.

        Since the last checkpoint it reported, or, for one that keeps them at an interval, at
        most since the last one it should have written.
        """
        jobs = self.jobs
        saved_at_s = np.maximum(jobs.started_at_s[rows], jobs.checkpoint_at_s[rows])
        unsaved_s = np.maximum(self.now_s - saved_at_s, 0.0)
        intervals_s = jobs.checkpoint_interval_s[rows]
        keeps = intervals_s > 0
        return np.where(keeps, np.fmod(unsaved_s, np.where(keeps, intervals_s, 1.0)), unsaved_s)

    def expected_end_s(self, rows: Rows) -> FloatColumn:
        """Return when each running job is expected to end, never before now; inf: unknown.

        One that has run as long as expected may end any moment, for another tenth of that
        time or its spread. One that outlasts this, too, is expected to run twice as long, and
        so on. Nobody is expected to outlast its time limit.
        """
        jobs = self.jobs
        started_at_s, run_s = jobs.started_at_s[rows], jobs.run_s[rows]
        longest_s = np.maximum(jobs.longest_run_s[rows], run_s * (1.0 + OVERRUN))
        ran_s = np.maximum(self.now_s - started_at_s, 0.0)
        over = np.isfinite(run_s) & (ran_s >= longest_s)
        n_doubled = np.floor(np.log2(np.where(over, ran_s / np.where(over, longest_s, 1), 1)))
        wrong = np.where(over, longest_s * 2.0 ** (n_doubled + 1), run_s)
        end_s = np.minimum(started_at_s + wrong, jobs.deadline_at_s[rows])
        return np.maximum(end_s, self.now_s)

    def gpu_s(
        self,
        rows: Rows,
        gpu_types: Sequence[str] | None = None,
        *,
        since_s: float = -np.inf,
        until_s: float = np.inf,
    ) -> FloatColumn:
        """Return the GPU time that jobs had on each type between two moments: [rows, types].

        Without types: on all of them, one column. Of long ago, only sums are known: what was
        before the latest stints is left out if `since_s` is finite.
        """
        column = {name: i for i, name in enumerate(gpu_types or ())}
        had = np.zeros((len(rows), len(gpu_types) if gpu_types is not None else 1))
        until_s, nodes = min(until_s, self.now_s), self.nodes
        for i, row in enumerate(rows.tolist()):
            past, tasks = self.jobs.received[row], self.jobs.tasks[row]
            if not tasks and not past.gpu_s and not past.stints:
                continue
            if since_s == -np.inf and until_s == self.now_s:
                amounts = list(past.gpu_s)
            else:
                amounts = [
                    (stint.gpu_type, stint.gpu_s * _overlap(stint, since_s, until_s))
                    for stint in past.stints
                ]
            if tasks:
                roles = {r.name: r.shape for r in self.gangs[self.jobs.gang[row]]}
                for task in tasks:
                    held_s = max(until_s - max(task.bound_at_s, since_s), 0.0)
                    gpu_type = nodes.nodes[nodes.row_of[task.node]].gpu_type
                    gpu_milli = roles[task.id.role].total_gpu_milli
                    amounts.append((gpu_type, gpu_milli / MILLI * held_s))
            for gpu_type, gpu_s in amounts:
                place = 0 if gpu_types is None else column.get(gpu_type)
                if place is not None:
                    had[i, place] += gpu_s
        return had

    def with_job(self, job: Job) -> "Snapshot":
        """Return a snapshot in which one more job waits: a hypothesis for dry runs."""
        jobs = self.jobs.copy()
        jobs.grow(1)
        row = len(jobs.jobs) - 1
        queue = next(
            (i for i, q in enumerate(self.queues) if q and q.name == job.spec.queue), None
        )
        if queue is None:
            raise InvalidInput("spec.queue", f"there is no queue {job.spec.queue!r}")
        job = replace(job, spec=with_defaults(job.spec, self.tree.line(queue)))
        jobs.jobs[row] = job
        jobs.queue[row] = queue
        jobs.gang[row] = len(self.gangs)
        phase = JobPhase.SUSPENDED if job.spec.suspended else JobPhase.PENDING
        jobs.phase[row] = PHASE_CODE[phase]
        targets = {dependency.on for dependency in job.spec.dependencies}
        if targets:
            live = {id_ for j in self.jobs.jobs if j for id_ in (j.id, j.array_id)}
            jobs.n_unmet[row] = len(targets & live)
        jobs.sequence[row] = job.sequence
        jobs.priority[row] = job.spec.priority
        jobs.submitted_at_s[row] = job.submitted_at_s
        jobs.pending_since_s[row] = job.submitted_at_s
        jobs.eligible_at_s[row] = job.spec.start_after_s
        jobs.deadline_at_s[row] = NEVER_S
        jobs.is_preemptible[row] = is_preemptible(job.spec)
        jobs.may_preempt[row] = job.spec.may_preempt
        jobs.is_elastic[row] = job.spec.elastic
        jobs.is_described[row] = is_described(job.spec)
        jobs.run_s[row], jobs.longest_run_s[row] = run_s_of(job.spec)
        jobs.min_runtime_s[row] = job.spec.min_runtime_s
        return replace(
            self, jobs=jobs, gangs=[*self.gangs, gang_of(job)], origin=self, mark=None
        )


def _overlap(stint: Stint, since_s: float, until_s: float) -> float:
    """Return the part of a stint between two moments."""
    within_s = min(stint.until_s, until_s) - max(stint.from_s, since_s)
    return max(within_s, 0.0) / (stint.until_s - stint.from_s)
