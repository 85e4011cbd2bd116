"""The cluster at one moment, as numpy columns: what decisions read.

`NodeColumns` and `JobColumns` are tables: a row is a node or a live job, a column an array. A
`Snapshot` holds both at `now_s` and never changes: `ClusterState` copies a table before it
writes to one that a snapshot still holds. Rows are of no meaning outside one snapshot.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from scheduler.core.errors import InvalidInput
from scheduler.core.model import (
    MILLI,
    Job,
    JobKind,
    JobPhase,
    JobSpec,
    Levels,
    Node,
    NodeName,
    Queue,
    Shape,
    Task,
)
from scheduler.core.plan import Cause, Granted
from scheduler.core.queue_rules import with_defaults
from scheduler.core.queue_tree import QueueTree
from scheduler.core.records import NOTHING_RECEIVED, Received, Seat, Stint
from scheduler.core.topology import Near, Tree, near_of, tree_of
from scheduler.core.values import value_class

IntColumn = NDArray[np.int64]
FloatColumn = NDArray[np.float64]
BoolColumn = NDArray[np.bool_]
Rows = NDArray[np.intp]

CPU, MEMORY, GPUS, FRACTION = range(4)
"""Columns of `NodeColumns.free`: milli-CPU, MiB, whole devices, the fullest milli-GPU that one
device can still give."""

PHASE_CODE = {phase: code for code, phase in enumerate(JobPhase)}
"""Job phases as small integers, for columns."""

NEVER_S = np.inf

FAILURE_HALF_LIFE_S = 86_400.0
"""A failure of a node counts half after a day."""

MISFITS_KEPT = 128
"""Answers of `misfits` that are remembered."""

Misfits = list[tuple[Cause, str] | None]
"""By kind of node, why it could never take a shape; None: it could."""

FITS_KEPT = 1_024
"""Answers of `static_fit` that are remembered; at 10,000 nodes 10 MiB."""

OVERRUN = 0.1
"""A job may exceed its expected running time by this part before the estimate is wrong."""

N_WIDTHS = 10
"""Columns of `NodeColumns.n_by_width`: fractions of a device, then 1, 2, ... 8, 9 or more."""


@dataclass(slots=True, kw_only=True, eq=False)
class NodeColumns:
    """Every node, in the order of registration; removed ones stay as closed rows.

    N rows, D devices on the widest node. `device_free` is what may be taken of a device: zero
    for an unhealthy or missing one; `device_used` is what is taken, whatever its health: of a
    device that two jobs share (see `sharing`) twice the whole, and its memory twice, too.
    """

    nodes: list[Node]
    row_of: dict[NodeName, int]
    free: IntColumn  # [N, 4]: CPU, MEMORY, GPUS, FRACTION
    device_free: IntColumn  # [N, D] thousandths
    device_used: IntColumn  # [N, D] thousandths
    device_memory_free: IntColumn  # [N, D] MiB
    device_memory_mib: IntColumn  # [N] of each device
    is_healthy: BoolColumn  # [N, D]
    is_up: BoolColumn  # [N]
    is_cordoned: BoolColumn  # [N]
    is_draining: BoolColumn  # [N]
    is_removed: BoolColumn  # [N]
    n_tasks: IntColumn  # [N]
    n_by_width: IntColumn  # [N, N_WIDTHS] tasks with GPUs, by how many devices each has
    n_gpus: IntColumn  # [N] devices, healthy or not
    price_usd_per_h: FloatColumn  # [N] of the whole node
    n_failures: FloatColumn  # [N] as of `failed_at_s`; see `failures_at`
    failed_at_s: FloatColumn  # [N] of the last one
    kind: IntColumn  # [N] index into `kinds`
    kinds: list[Node]  # one node of each kind: nodes alike but for name and what is free
    # Derived from what rarely changes, remembered across snapshots until it does.
    fits_statically: dict[tuple[object, ...], BoolColumn] = field(default_factory=dict)
    misfits_by_kind: dict[tuple[object, ...], Misfits] = field(default_factory=dict)
    trees: dict[Levels, Tree] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Self:
        """Return a table without rows."""
        return cls(
            nodes=[],
            row_of={},
            free=np.zeros((0, 4), np.int64),
            device_free=np.zeros((0, 0), np.int64),
            device_used=np.zeros((0, 0), np.int64),
            device_memory_free=np.zeros((0, 0), np.int64),
            device_memory_mib=np.zeros(0, np.int64),
            is_healthy=np.zeros((0, 0), np.bool_),
            is_up=np.zeros(0, np.bool_),
            is_cordoned=np.zeros(0, np.bool_),
            is_draining=np.zeros(0, np.bool_),
            is_removed=np.zeros(0, np.bool_),
            n_tasks=np.zeros(0, np.int64),
            n_by_width=np.zeros((0, N_WIDTHS), np.int64),
            n_gpus=np.zeros(0, np.int64),
            price_usd_per_h=np.zeros(0),
            n_failures=np.zeros(0),
            failed_at_s=np.zeros(0),
            kind=np.zeros(0, np.int64),
            kinds=[],
        )

    def copy(self) -> Self:
        """Return a table that can be written to without touching this one."""
        arrays: dict[str, Any] = {
            f.name: value.copy()
            for f in fields(self)
            for value in [getattr(self, f.name)]
            if isinstance(value, np.ndarray)
        }
        return replace(self, **arrays, nodes=self.nodes.copy(), row_of=self.row_of.copy())

    def widen(self, n_devices: int) -> None:
        """Have columns for so many devices of a node."""
        for name in ("device_free", "device_used", "device_memory_free", "is_healthy"):
            old = getattr(self, name)
            wide = np.zeros((len(old), n_devices), old.dtype)
            wide[:, : old.shape[1]] = old
            setattr(self, name, wide)

    def without_removed(self) -> Self:
        """Return the table without the rows of removed nodes, the others in their order."""
        kept = np.flatnonzero(~self.is_removed)
        arrays: dict[str, Any] = {
            f.name: value[kept]
            for f in fields(self)
            for value in [getattr(self, f.name)]
            if isinstance(value, np.ndarray)
        }
        nodes = [self.nodes[row] for row in kept]
        row_of = {node.name: row for row, node in enumerate(nodes)}
        return replace(
            self,
            **arrays,
            nodes=nodes,
            row_of=row_of,
            fits_statically={},
            misfits_by_kind={},
            trees={},
        )

    def failures_at(self, now_s: float, rows: Rows) -> FloatColumn:
        """Return how often nodes have failed, what is long ago counting less."""
        ago_s = np.maximum(now_s - self.failed_at_s[rows], 0.0)
        count: FloatColumn = self.n_failures[rows] * 0.5 ** (ago_s / FAILURE_HALF_LIFE_S)
        return count

    def is_open(self) -> BoolColumn:
        """Return which nodes take new tasks."""
        return self.is_up & ~(self.is_cordoned | self.is_draining | self.is_removed)

    def static_fit(self, shape: Shape) -> BoolColumn:
        """Return which nodes could ever take the shape: type, labels, taints, device memory."""
        key = _static_key(shape)
        known = self.fits_statically.get(key)
        if known is None:
            if len(self.fits_statically) == FITS_KEPT:
                self.fits_statically.clear()
            by_kind = [misfit(node, shape) is None for node in self.kinds]
            known = np.array(by_kind, np.bool_)[self.kind]
            self.fits_statically[key] = known
        return known

    def misfits(self, shape: Shape) -> Misfits:
        """Return by kind of node why it could never take the shape; None: it could."""
        key = _static_key(shape)
        known = self.misfits_by_kind.get(key)
        if known is None:
            if len(self.misfits_by_kind) == MISFITS_KEPT:
                self.misfits_by_kind.clear()
            known = self.misfits_by_kind[key] = [misfit(node, shape) for node in self.kinds]
        return known

    def tree(self, levels: Levels) -> Tree:
        """Return the nodes as a tree of these levels."""
        known = self.trees.get(levels)
        if known is None:
            n_devices = self.device_free.shape[1]
            known = self.trees[levels] = tree_of(
                levels, self.nodes, kinds=self.kinds, kind=self.kind, n_devices=n_devices
            )
        return known

    def for_draft(self) -> Self:
        """Return a table whose bookings can be changed without touching this one."""
        return replace(
            self,
            free=self.free.copy(),
            device_free=self.device_free.copy(),
            device_used=self.device_used.copy(),
            device_memory_free=self.device_memory_free.copy(),
            n_tasks=self.n_tasks.copy(),
            n_by_width=self.n_by_width.copy(),
        )


def _static_key(shape: Shape) -> tuple[object, ...]:
    """Return all that `misfit` looks at: there are few of these, but shapes without end."""
    return (
        shape.gpu_types,
        shape.node_labels,
        shape.tolerations,
        shape.gpu_memory_mib,
        bool(shape.total_gpu_milli),
    )


def kind_of(node: Node) -> tuple[object, ...]:
    """Return what makes nodes alike for `misfit`."""
    memory_mib = min((gpu.memory_mib for gpu in node.gpus), default=0)
    return (node.labels, node.taints, node.gpu_type, bool(node.gpus), memory_mib)


def misfit(node: Node, shape: Shape) -> tuple[Cause, str] | None:
    """Return why the node could never take the shape, however empty; None if it could."""
    for key, value in shape.node_labels:
        if (key, value) not in node.labels:
            return Cause.LABELS, f"lack label {key}={value}"
    for taint in node.taints:
        if not any(toleration.tolerates(taint) for toleration in shape.tolerations):
            mark = f"{taint.key}={taint.value}" if taint.value else taint.key
            return Cause.TAINTS, f"have taint {mark}, not tolerated"
    if shape.total_gpu_milli and not node.gpus:
        return Cause.GPUS, "have no GPU"
    if shape.gpu_types and node.gpu_type not in shape.gpu_types:
        wanted = " or ".join(shape.gpu_types)
        return Cause.GPU_TYPE, f"are of type {node.gpu_type or 'none'}, wanted {wanted}"
    if shape.total_gpu_milli and shape.gpu_memory_mib:
        memory_mib = min(gpu.memory_mib for gpu in node.gpus)
        if memory_mib < shape.gpu_memory_mib:
            return Cause.GPU_MEMORY, f"have GPUs of less than {shape.gpu_memory_mib} MiB"
    return None


def memory_of_fraction_mib(shape: Shape, device_memory_mib: int) -> int:
    """Return the device memory that a fractional shape takes of a device of that size."""
    return shape.gpu_memory_mib or device_memory_mib * shape.gpu_milli // MILLI


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


def _overlap(stint: Stint, since_s: float, until_s: float) -> float:
    """Return the part of a stint between two moments."""
    within_s = min(stint.until_s, until_s) - max(stint.from_s, since_s)
    return max(within_s, 0.0) / (stint.until_s - stint.from_s)


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
    gang: IntColumn  # index into `gangs`
    queue: IntColumn  # index into `queue_names`
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
        ready: BoolColumn = self.jobs.n_unmet[rows] == 0
        ready &= self.jobs.eligible_at_s[rows] <= self.now_s
        ready &= self.tree.is_started[self.jobs.queue[rows]]
        return ready

    def running_rows(self) -> Rows:
        """Return the jobs with live tasks that were not all asked to stop, as they arrived."""
        rows = self.in_scope(np.flatnonzero(self.jobs.phase == PHASE_CODE[JobPhase.RUNNING]))
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
