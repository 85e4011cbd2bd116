"""The jobs that share GPUs by time, as the arrays that programs of shares read.

A contestant is a gang that asks for GPUs of a single type (any, or one of several) and runs,
could start, or was stopped for others. Services, and jobs that nobody may stop, are no
contestants while they run: what they hold is not there to be shared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from policies.orderings import lower_priority
from scheduler.core.job_columns import PHASE_CODE
from scheduler.core.model import DEFAULT_QUEUE, MILLI, JobId, JobKind, JobPhase, StopCause
from scheduler.core.node_columns import BoolColumn, Rows
from scheduler.core.preemption import RESTART_S
from scheduler.core.queue_tree import FIRST_TYPE, GPU, QueueTree
from scheduler.core.snapshot import Snapshot

Array = NDArray[np.float64]

COMES_BACK = frozenset({StopCause.PREEMPTED, StopCause.RESIZED})
"""Why tasks are stopped that their job soon wants again."""

LOST = 1.1
"""How much faster than its fastest a job with a deadline may need to be, as estimates go."""
UNKNOWN_S = 3600.0
"""How much longer a job is expected to run that says nothing of it, at full speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """What jobs say of their speed beside others on the same GPUs."""

    profile: NDArray[np.intp]  # [jobs] -1: says nothing
    table: NDArray[np.intp]  # [jobs] row of `beside`; -1: says nothing
    beside: Array  # [tables, types, profiles] work per second; 0: not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Jobs (rows of all arrays, in the order of arrival) and the GPUs they share, by type."""

    rows: Rows  # of `Snapshot.jobs`
    gpu_types: tuple[str, ...]
    capacity: Array  # [types] GPUs
    gpus: Array  # [jobs] of the whole gang
    weights: Array  # [jobs]
    speeds: Array  # [jobs, types] work per second; 0: cannot run there
    elapsed_s: Array  # [jobs] since arrival
    remaining_work: Array  # [jobs] at least for a second at full speed
    done_work: Array  # [jobs]
    on_type: NDArray[np.intp]  # [jobs] where the job runs; -1: it does not
    loss_s: Array  # [jobs] of running time, if it were stopped now; 0: it does not run
    deadline_s: Array  # [jobs] from now on; infinite: none
    priority: NDArray[np.int64]  # [jobs]
    queue: NDArray[np.intp]  # [jobs] row of `tree`
    tree: QueueTree
    held_elsewhere: Array  # [queues, types] GPUs of jobs that are no contestants
    price_usd_per_h: Array  # [types] of one GPU; 0: nobody said
    is_described: BoolColumn  # [jobs] says something to tell it from others by
    job_ids: tuple[JobId, ...] = ()
    kept: frozenset[JobId] = frozenset()  # who was promised that a deadline will be met
    time_limit_s: float | None = None  # of a solve by simplex
    sharing: Sharing | None = None  # for programs that let two jobs share GPUs

    @classmethod
    def of_one_queue(
        cls,
        rows: Rows,
        *,
        gpu_types: tuple[str, ...],
        capacity: Array,
        gpus: Array,
        weights: Array,
        speeds: Array,
        elapsed_s: Array,
        remaining_work: Array,
        done_work: Array,
        price_usd_per_h: Array,
    ) -> Self:
        """Return the contest of jobs in one queue, none of which runs or has a deadline."""
        n_jobs = len(rows)
        return cls(
            rows=rows,
            gpu_types=gpu_types,
            capacity=capacity,
            gpus=gpus,
            weights=weights,
            speeds=speeds,
            elapsed_s=elapsed_s,
            remaining_work=remaining_work,
            done_work=done_work,
            on_type=np.full(n_jobs, -1),
            loss_s=np.zeros(n_jobs),
            deadline_s=np.full(n_jobs, np.inf),
            priority=np.zeros(n_jobs, np.int64),
            queue=np.zeros(n_jobs, np.intp),
            tree=QueueTree.of([DEFAULT_QUEUE], gpu_types),
            held_elsewhere=np.zeros((1, len(gpu_types))),
            price_usd_per_h=price_usd_per_h,
            is_described=np.ones(n_jobs, np.bool_),
        )

    @property
    def runs_on(self) -> Array:
        """The speeds as far as they are known to who does not know throughputs: 1 or 0."""
        return (self.speeds > 0).astype(float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a program answers."""

    fractions: Array  # [jobs, types] the part of its time that each job should spend there
    status: str = "optimal"  # how the solve ended; see `linear_program.Status`
    prices: Array | None = None  # [types] what one more GPU would change the value by
    notes: Mapping[int, str] = field(default_factory=dict)  # by row of the contest, for people
    kept: frozenset[JobId] = frozenset()  # whose deadline is promised

    @property
    def is_solved(self) -> bool:
        """Whether the fractions are the program's, not what is left for want of them."""
        return self.status == "optimal" and bool(np.isfinite(self.fractions).all())


ShareProgram = Callable[[Contest], Grant | Array]
"""Shares the GPUs of a contest. One that has no more to say answers the fractions alone."""


def prices_or_alike(contest: Contest) -> Array:
    """Return what a GPU costs: the mean of the others where nobody said, 1 if nowhere."""
    price = contest.price_usd_per_h
    usual = float(price[price > 0].mean()) if (price > 0).any() else 1.0
    return np.where(price > 0, price, usual)


def required_speeds(contest: Contest) -> Array:
    """Return the speed that meets each deadline; 0 without one, or where it is lost."""
    fastest = contest.speeds.max(axis=1, initial=0.0)
    left_s = np.where(contest.deadline_s > 0, contest.deadline_s, np.inf)
    needed = contest.remaining_work / left_s
    return np.where(needed <= LOST * fastest, np.minimum(needed, fastest), 0.0)


def contest_of(snapshot: Snapshot) -> Contest:
    """Return who shares what."""
    gpu_types = tuple(snapshot.nodes.gpu_types())
    rows = _contestants(snapshot)
    held_milli = _held_elsewhere(snapshot, rows, gpu_types)
    capacity = _capacity(snapshot, held_milli.sum(axis=0) / MILLI, gpu_types)
    # What was done counts wherever it was, also on types that are closed or gone by now.
    ever = (*gpu_types, *_types_gone(snapshot, rows, gpu_types))
    gpus, speeds_ever = _gpus_and_speeds(snapshot, rows, ever)
    speeds = np.where(gpus[:, None] > capacity, 0.0, speeds_ever[:, : len(gpu_types)])
    fits = speeds.any(axis=1)
    rows, gpus, speeds, speeds_ever = rows[fits], gpus[fits], speeds[fits], speeds_ever[fits]
    specs = snapshot.specs_at(rows)
    done = (speeds_ever * snapshot.gpu_s(rows, ever) / gpus[:, None]).sum(axis=1)
    expected = np.array([spec.expected_run_s for spec in specs])
    total = np.array([spec.total_work for spec in specs])
    fastest = speeds.max(axis=1, initial=0.0)
    total = np.where(total > 0, total, expected * fastest)
    # One that outlasts what was said of it is expected to need as much again as it had.
    beyond = np.maximum(done, UNKNOWN_S * fastest)
    on_type = _where(snapshot, rows, gpu_types)
    return Contest(
        rows=rows,
        gpu_types=gpu_types,
        capacity=capacity,
        gpus=gpus,
        weights=np.array([spec.weight for spec in specs]),
        speeds=speeds,
        elapsed_s=np.maximum(snapshot.now_s - arrived_at_s(snapshot, rows), 0.0),
        remaining_work=np.maximum(np.where(total > done, total - done, beyond), fastest),
        done_work=done,
        on_type=on_type,
        loss_s=np.where(on_type >= 0, snapshot.unsaved_s(rows) + RESTART_S, 0.0),
        deadline_s=_deadlines_s(snapshot, rows),
        priority=snapshot.jobs.priority[rows],
        queue=snapshot.jobs.queue[rows].astype(np.intp),
        tree=snapshot.tree,
        held_elsewhere=held_milli / MILLI,
        price_usd_per_h=_prices_usd_per_h(snapshot, gpu_types),
        is_described=snapshot.jobs.is_described[rows],
        job_ids=tuple([snapshot.job_at(row).id for row in rows.tolist()]),
    )


def lower_beside_turns(snapshot: Snapshot, row: int, running: Rows) -> Rows:
    """Let who takes no part in turns stop lower priorities; who would, for want of GPUs, none.

    A gang that is wider than what is shared is no contestant. It would be one once it had
    stopped a service, and come after it.
    """
    spec = snapshot.job_at(row).spec
    is_none = spec.kind is JobKind.INFERENCE or not spec.total_gpu_milli
    return lower_priority(snapshot, row, running) if is_none else running[:0]


def _types_gone(snapshot: Snapshot, rows: Rows, gpu_types: tuple[str, ...]) -> tuple[str, ...]:
    received = snapshot.jobs.received
    had = {name for row in rows.tolist() for name, _ in received[row].gpu_s}
    return tuple(sorted(had.difference(gpu_types)))


def _gpus_and_speeds(
    snapshot: Snapshot, rows: Rows, gpu_types: tuple[str, ...]
) -> tuple[Array, Array]:
    """Return the GPUs of each job, and how fast it is on each type: [jobs], [jobs, types]."""
    specs = snapshot.specs_at(rows)
    gangs, first, of_row = np.unique(
        snapshot.jobs.gang[rows], return_index=True, return_inverse=True
    )
    gpus = np.array([specs[i].total_gpu_milli / MILLI for i in first.tolist()])
    may_run = np.ones((len(gangs), len(gpu_types)))
    for i, gang in enumerate(gangs.tolist()):
        for shape in (role.shape for role in snapshot.gangs[gang]):
            if shape.total_gpu_milli and shape.gpu_types:
                may_run[i] *= [name in shape.gpu_types for name in gpu_types]
    speeds = may_run[of_row]
    for i, spec in enumerate(specs):
        if spec.throughputs:
            speeds[i] *= [spec.speed_on(name) for name in gpu_types]
    return gpus[of_row], speeds


def arrived_at_s(snapshot: Snapshot, rows: Rows) -> Array:
    """Return since when each job could have run, but for capacity."""
    starts_after_s = [spec.start_after_s for spec in snapshot.specs_at(rows)]
    arrived: Array = np.maximum(snapshot.jobs.submitted_at_s[rows], np.array(starts_after_s))
    return arrived


def _deadlines_s(snapshot: Snapshot, rows: Rows) -> Array:
    """Return the time until each job should have ended, negative once it is past."""
    at_s = np.array([spec.deadline_at_s for spec in snapshot.specs_at(rows)])
    until_s: Array = np.where(at_s > 0, at_s - snapshot.now_s, np.inf)
    return until_s


def _prices_usd_per_h(snapshot: Snapshot, gpu_types: tuple[str, ...]) -> Array:
    """Return what a GPU of each type costs: the mean over nodes that have a price."""
    usd_per_h, n_gpus = np.zeros(len(gpu_types)), np.zeros(len(gpu_types))
    column = {name: k for k, name in enumerate(gpu_types)}
    nodes = snapshot.nodes
    for row in np.flatnonzero(~nodes.is_removed & (nodes.n_gpus > 0)).tolist():
        node = nodes.nodes[row]
        if node.price_usd_per_h > 0:
            usd_per_h[column[node.gpu_type]] += node.price_usd_per_h
            n_gpus[column[node.gpu_type]] += len(node.gpus)
    return np.divide(usd_per_h, n_gpus, out=np.zeros(len(gpu_types)), where=n_gpus > 0)


def _contestants(snapshot: Snapshot) -> Rows:
    jobs = snapshot.jobs
    waiting = snapshot.waiting_rows()
    waiting = waiting[snapshot.may_start(waiting)]
    running = snapshot.running_rows()
    stopping = np.flatnonzero(jobs.phase == PHASE_CODE[JobPhase.STOPPING])
    stopping = snapshot.in_scope(stopping)
    coming_back = [
        row
        for row in stopping.tolist()
        if all(task.stop_cause in COMES_BACK for task in jobs.tasks[row])
    ]
    running = running[jobs.is_preemptible[running]]
    rows = np.unique(np.concatenate([waiting, running, np.array(coming_back, np.intp)]))
    gangs, of_row = np.unique(jobs.gang[rows], return_inverse=True)
    wants = [any(r.shape.total_gpu_milli for r in snapshot.gangs[g]) for g in gangs.tolist()]
    rows = rows[np.array(wants, np.bool_)[of_row]]
    ends = [spec.kind is not JobKind.INFERENCE for spec in snapshot.specs_at(rows)]
    rows = rows[np.array(ends, np.bool_)]
    return rows[np.argsort(jobs.sequence[rows])]


def _capacity(snapshot: Snapshot, held: Array, gpu_types: tuple[str, ...]) -> Array:
    """Return the GPUs of each type on open nodes, less what is held elsewhere.

    For the jobs of a queue no more than its limits, and those above it, allow.
    """
    nodes = snapshot.nodes
    column = {name: k for k, name in enumerate(gpu_types)}
    there = np.zeros(len(gpu_types))
    for node in np.flatnonzero(nodes.is_open() & (nodes.n_gpus > 0)).tolist():
        there[column[nodes.nodes[node].gpu_type]] += nodes.is_healthy[node].sum()
    return _within_limits(snapshot, np.maximum(there - held, 0.0), gpu_types)


def _held_elsewhere(
    snapshot: Snapshot, rows: Rows, gpu_types: tuple[str, ...]
) -> NDArray[np.int64]:
    """Return the milli-GPUs on open nodes that others than `rows` hold, by their queue.

    In integers: fractions would add up to something else in another order of the rows.
    """
    nodes, jobs = snapshot.nodes, snapshot.jobs
    column = {name: k for k, name in enumerate(gpu_types)}
    held = np.zeros((len(snapshot.queues), len(gpu_types)), np.int64)
    is_open = nodes.is_open()
    contests = np.zeros(len(jobs.jobs), np.bool_)
    contests[rows] = True
    for row in np.flatnonzero((jobs.gpu_milli > 0) & ~contests & (jobs.phase >= 0)).tolist():
        shapes = {role.name: role.shape for role in snapshot.gangs[jobs.gang[row]]}
        for task in jobs.tasks[row]:
            node = nodes.row_of[task.node]
            if task.devices and is_open[node]:
                kind = column[nodes.nodes[node].gpu_type]
                held[jobs.queue[row], kind] += shapes[task.id.role].total_gpu_milli
    return held


def _within_limits(snapshot: Snapshot, there: Array, gpu_types: tuple[str, ...]) -> Array:
    if snapshot.scope is None or snapshot.scope.queue is None or not there.any():
        return there
    tree = snapshot.tree
    ceiling = tree.ceiling[tree.paths[snapshot.scope.queue]].min(axis=0) / MILLI
    columns = [FIRST_TYPE + tree.gpu_types.index(name) for name in gpu_types]
    there = np.minimum(there, ceiling[columns])
    within: Array = there * min(1.0, ceiling[GPU] / max(there.sum(), 1.0))
    return within


def _where(snapshot: Snapshot, rows: Rows, gpu_types: tuple[str, ...]) -> NDArray[np.intp]:
    """Return the type on which each job runs, -1 if it does not or is about to stop."""
    column = {name: k for k, name in enumerate(gpu_types)}
    nodes, jobs = snapshot.nodes, snapshot.jobs
    found = np.full(len(rows), -1, np.intp)
    running = np.flatnonzero(jobs.phase[rows] == PHASE_CODE[JobPhase.RUNNING])
    for i, row in zip(running.tolist(), rows[running].tolist(), strict=True):
        node = next((task.node for task in jobs.tasks[row] if task.devices), None)
        if node is not None:
            found[i] = column[nodes.nodes[nodes.row_of[node]].gpu_type]
    return found
