"""The two doors of the core: `observe` changes the state, `snapshot` lets decisions read it.

`observe` is total and deterministic: an event that makes no sense comes back as `Rejected` and
changes nothing but the revision, so a replay of the journal repeats every verdict. Plans come
in as `PlanCommitted` and are verified against the state of that moment; what an executor has
to do comes out with the `Accepted` outcome.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields

from scheduler.core.dependencies import is_ended
from scheduler.core.dump import (
    DUMP_FORMAT,
    Dump,
    JobDump,
    NodeDump,
)
from scheduler.core.errors import InvalidInput, InvalidTransition
from scheduler.core.events import Event
from scheduler.core.lifecycle import Changes, Lifecycle, starts_of
from scheduler.core.model import (
    Amounts,
    JobId,
    NodeName,
    Queue,
    QueueName,
    StopCause,
    TaskId,
    TaskPhase,
)
from scheduler.core.observers import OBSERVERS
from scheduler.core.plan import (
    Accepted,
    Eviction,
    Outcome,
    Refusal,
    Rejected,
    Start,
)
from scheduler.core.records import JobRecord, NodeView
from scheduler.core.refusals import Refused
from scheduler.core.snapshot import Snapshot
from scheduler.core.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """What a queue holds right now."""

    n_pending: int = 0
    n_running: int = 0
    gpu_milli_used: int = 0


class Engine:
    """The cluster's state behind its doors."""

    def __init__(self) -> None:
        self._state = ClusterState()

    # In

    @property
    def revision(self) -> int:
        """The number of events observed so far."""
        return self._state.revision

    @property
    def now_s(self) -> float:
        """The moment of the latest event."""
        return self._state.now_s

    def observe(self, event: Event) -> Outcome:
        """Judge an event and, if it makes sense, let it change the state."""
        state = self._state
        state.revision += 1
        state.now_s = max(state.now_s, event.at_s)
        changes = Changes()
        life = Lifecycle(state, changes, event.at_s)
        try:
            OBSERVERS[type(event)](state, life, changes, event)
        except Refused as refused:
            return Rejected(
                revision=state.revision,
                refusal=refused.refusal,
                message=str(refused),
                field=refused.field,
            )
        except InvalidTransition as impossible:
            return Rejected(
                revision=state.revision,
                refusal=Refusal.PRECONDITION,
                message=str(impossible),
            )
        for record in changes.finished:
            changes.jobs.pop(record.job.id, None)
        return Accepted(  # by position: half as long as with names, and it is done for all
            state.revision,
            changes.job_ids,
            changes.is_repeat,
            tuple(changes.jobs),
            tuple(changes.finished),
            tuple(changes.starts),
            tuple(changes.evictions),
            tuple(changes.stale),
        )

    # Out

    def snapshot(self, now_s: float) -> Snapshot:
        """Return the state at `now_s`, frozen; it may be read from another thread."""
        return self._state.snapshot(now_s)

    def job(self, job_id: JobId) -> JobRecord | None:
        """Return a live job. Ended ones left with the outcome that ended them."""
        return self._state.records.get(job_id)

    def jobs(self) -> Collection[JobRecord]:
        """Return all live jobs in sequence order."""
        return self._state.records.values()

    def array(self, array_id: JobId) -> tuple[JobId, ...]:
        """Return the live elements of an array."""
        return tuple(self._state.arrays.get(array_id, ()))

    def is_known(self, job_id: JobId) -> bool:
        """Return whether the job or array is live or remembered as ended."""
        return job_id in self._state.outcomes

    def live_starts(self) -> list[Start]:
        """Return every task that holds a place, for `Executor.recover`."""
        return [
            start
            for record in self._state.records.values()
            for start in starts_of(self._state, record, record.live_tasks())
        ]

    def evictions_in_flight(self) -> list[Eviction]:
        """Return the evictions that have not ended, to be asked for again after a restart."""
        return [
            Eviction(
                job_id=record.id,
                tasks=(task.id,),
                cause=task.stop_cause or StopCause.CANCELLED,
                grace_s=record.job.spec.grace_s,
            )
            for record in self._state.records.values()
            for task in record.live_tasks()
            if task.phase is TaskPhase.STOPPING
        ]

    def node(self, name: NodeName) -> NodeView | None:
        """Return a node as it is now."""
        return self._state.node_view(name) if self._state.node(name) else None

    def nodes(self) -> list[NodeView]:
        """Return all nodes in the order of registration."""
        return [self._state.node_view(name) for name in self._state.node_names()]

    def tasks_on(self, name: NodeName) -> tuple[TaskId, ...]:
        """Return the live tasks of a node."""
        return tuple(self._state.tasks_on.get(name, ()))

    def queue(self, name: QueueName) -> Queue | None:
        """Return the queue of that name."""
        return self._state.queue(name)

    def queues(self) -> list[Queue]:
        """Return all queues in the order in which they were made."""
        return [queue for queue in self._state.queues if queue is not None]

    def figures(self) -> dict[QueueName, QueueFigures]:
        """Return what each queue holds, counted in the columns of the live jobs."""
        n_pending, n_running, gpu_milli = self._state.queue_counts()
        return {
            queue.name: QueueFigures(
                n_pending=n_pending[number],
                n_running=n_running[number],
                gpu_milli_used=gpu_milli[number],
            )
            for number, queue in enumerate(self._state.queues)
            if queue is not None
        }

    def queue_used(self) -> dict[QueueName, Amounts]:
        """Return what live tasks of each queue and all below it use, by resource."""
        state = self._state
        tree, used = state.tree, state.queue_used().tolist()
        names = [tree.resource(column) for column in range(tree.guaranteed.shape[1])]
        return {
            queue.name: tuple(sorted((n, a) for n, a in zip(names, row, strict=True) if a))
            for queue, row in zip(tree.queues, used, strict=False)
            if queue is not None
        }

    @property
    def usage_half_life_s(self) -> float:
        """How fast past use of queues is forgotten; 0: it does not count."""
        half_life_s: float = self._state.usage.half_life_s
        return half_life_s

    def queue_average(self, now_s: float) -> dict[QueueName, dict[str, float]]:
        """Return what each queue and all below it used lately, by resource; see `usage`."""
        state = self._state
        own = state.queue_average(now_s)
        if own is None:
            return {}
        tree = state.tree
        names = [tree.resource(column) for column in range(own.shape[1])]
        rows = tree.rolled_up(own).tolist()
        return {
            queue.name: {n: a for n, a in zip(names, row, strict=True) if a}
            for queue, row in zip(tree.queues, rows, strict=False)
            if queue is not None
        }

    def queue_figures(self, name: QueueName) -> QueueFigures:
        """Return what one queue holds."""
        return self.figures().get(name, QueueFigures())

    # The whole of it

    def dump(self) -> Dump:
        """Return everything the engine knows."""
        state = self._state
        views = [state.node_view(name) for name in state.node_names()]
        return Dump(
            format=DUMP_FORMAT,
            revision=state.revision,
            next_sequence=state.next_sequence,
            now_s=state.now_s,
            nodes=tuple(_dump_node(view) for view in views),
            queues=tuple(queue for queue in state.queues if queue is not None),
            jobs=tuple(_dump_job(record) for record in state.records.values()),
            outcomes=tuple(state.outcomes.values()),
            requests=tuple(state.requests.values()),
            usage_half_life_s=state.usage.half_life_s,
            usage=state.dump_usage(),
        )

    @classmethod
    def restore(cls, dump: Dump) -> "Engine":
        """Return the engine that made the dump.

        Raises InvalidInput if the dump is of a format this version does not know.
        """
        if dump.format != DUMP_FORMAT:
            raise InvalidInput("format", f"is {dump.format}; this version reads {DUMP_FORMAT}")
        engine = cls()
        state = engine._state
        state.revision, state.next_sequence = dump.revision, dump.next_sequence
        state.now_s = dump.now_s
        state.queues.clear()
        state.queue_number.clear()
        for queue in dump.queues:
            state.put_queue(queue)
        for node in dump.nodes:
            state.add_node(node.node)
        state.outcomes = {outcome.job_id: outcome for outcome in dump.outcomes}
        state.requests = {(r.submitter, r.request_id): r for r in dump.requests}
        for job in dump.jobs:
            _restore_job(state, job)
        for node in dump.nodes:
            state.set_node_flags(
                node.node.name,
                is_up=node.is_up,
                is_cordoned=node.is_cordoned,
                is_draining=node.is_draining,
                unhealthy_gpus=node.unhealthy_gpus,
                reason=node.reason,
            )
            state.set_failures(node.node.name, node.n_failures, node.failed_at_s)
        state.restore_usage(dump.usage_half_life_s, dump.usage)
        return engine


def _dump_node(view: NodeView) -> NodeDump:
    return NodeDump(
        node=view.node,
        is_up=view.is_up,
        is_cordoned=view.is_cordoned,
        is_draining=view.is_draining,
        unhealthy_gpus=tuple(i for i, ok in enumerate(view.gpu_is_healthy) if not ok),
        reason=view.reason,
        n_failures=view.n_failures,
        failed_at_s=view.failed_at_s,
    )


_SAME_IN_DUMP = tuple(f.name for f in fields(JobDump) if f.name not in {"tasks", "history"})


def _dump_job(record: JobRecord) -> JobDump:
    same = {name: getattr(record, name) for name in _SAME_IN_DUMP}
    return JobDump(**same, tasks=tuple(record.tasks.values()), history=tuple(record.history))


def _restore_job(state: ClusterState, dump: JobDump) -> None:
    same = {name: getattr(dump, name) for name in _SAME_IN_DUMP}
    record = JobRecord(**same, history=list(dump.history))
    live = [task for task in dump.tasks if not task.phase.is_final]
    record.tasks = {task.id: task for task in dump.tasks if task.phase.is_final}
    waits_for = {d.on: None for d in dump.job.spec.dependencies if not is_ended(state, d.on)}
    for target in waits_for:
        state.dependents.setdefault(target, []).append(record.id)
    state.add_job(record, len(waits_for))
    for task in live:
        state.bind(record, task)
    record.tasks = {task.id: task for task in dump.tasks}  # in their old order
    state.sync(record)
