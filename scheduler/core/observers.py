"""What each event means: one observer per kind, picked by `OBSERVERS`.

An observer checks everything before it changes anything, and raises `Refused` to change
nothing at all. The moves of jobs and tasks themselves are `lifecycle`'s.
"""

from collections.abc import Callable
from dataclasses import replace

from scheduler.core import events
from scheduler.core.dump import OutcomeDump, RequestDump
from scheduler.core.errors import InvalidInput
from scheduler.core.lifecycle import Changes, Lifecycle, holds
from scheduler.core.model import (
    DEFAULT_QUEUE,
    FINAL_JOB_PHASES,
    Job,
    JobId,
    JobKind,
    JobPhase,
    JobSpec,
    NodeName,
    Queue,
    StopCause,
    Task,
    TaskId,
    TaskPhase,
)
from scheduler.core.plan import Placement, Refusal
from scheduler.core.queue_tree import check_queue, lineage
from scheduler.core.records import JobRecord
from scheduler.core.state import ClusterState


class Refused(Exception):
    """The event makes no sense now; nothing was changed."""

    def __init__(self, refusal: Refusal, message: str, field: str = "") -> None:
        super().__init__(message)
        self.refusal = refusal
        self.field = field


def _submitted(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.JobsSubmitted
) -> None:
    request = state.requests.get((event.submitter, event.request_id))
    if event.request_id and request is not None:
        if request.fingerprint != event.fingerprint:
            raise Refused(
                Refusal.ALREADY_EXISTS,
                f"request id {event.request_id!r} was used for another request",
                "request_id",
            )
        changes.job_ids, changes.is_repeat = (request.job_id,), True
        return
    spec = event.spec
    queue = state.queue(spec.queue)
    if queue is None:
        raise Refused(Refusal.NOT_FOUND, f"there is no queue {spec.queue!r}", "spec.queue")
    n_elements = spec.array_size or 1
    priority = spec.priority or int(state.tree.default_priority[state.queue_number[queue.name]])
    line = lineage(queue, state.known_queues())
    _check_room(state, line, n_elements)
    _check_priority(line, priority, "spec.priority")
    _check_dependencies(state, spec)
    if priority != spec.priority:
        spec = replace(spec, priority=priority)
    first = state.next_sequence
    state.next_sequence += n_elements
    main_id = JobId(str(first))
    if event.request_id:
        state.requests[event.submitter, event.request_id] = RequestDump(
            submitter=event.submitter,
            request_id=event.request_id,
            fingerprint=event.fingerprint,
            job_id=main_id,
            at_s=event.at_s,
        )
    state.outcomes[main_id] = _no_outcome(main_id, n_elements)
    for index in range(n_elements):
        _make_live(state, changes, event, spec=spec, first=first, index=index)
    changes.job_ids = (main_id,)


def _check_room(state: ClusterState, line: list[Queue], n_more: int) -> None:
    """Refuse new jobs for a queue that is closed or full, or below one that is."""
    for queue in line:
        if not queue.is_open:
            raise Refused(
                Refusal.PRECONDITION, f"queue {queue.name!r} takes no new jobs", "spec.queue"
            )
        if queue.max_jobs:
            n_live = sum(state.n_live[name] for name in state.family(queue.name))
            if n_live + n_more > queue.max_jobs:
                raise Refused(
                    Refusal.PRECONDITION,
                    f"queue {queue.name!r} has {n_live} of at most {queue.max_jobs} jobs",
                    "spec.queue",
                )


def _check_priority(line: list[Queue], priority: int, field: str) -> None:
    for queue in line:
        if queue.max_priority is not None and priority > queue.max_priority:
            raise Refused(
                Refusal.PRECONDITION,
                f"queue {queue.name!r} takes priorities up to {queue.max_priority}",
                field,
            )


def _make_live(
    state: ClusterState,
    changes: Changes,
    event: events.JobsSubmitted,
    *,
    spec: JobSpec,
    first: int,
    index: int,
) -> None:
    array_id = JobId(str(first)) if spec.array_size else None
    job_id = JobId(f"{first}_{index}" if spec.array_size else str(first))
    job = Job(
        id=job_id,
        spec=spec,
        sequence=first + index,
        submitted_at_s=event.at_s,
        submitter=event.submitter,
        array_id=array_id,
        array_index=index,
    )
    record = JobRecord(
        job=job,
        phase=JobPhase.SUSPENDED if spec.suspended else JobPhase.PENDING,
        revision=state.revision,
        eligible_at_s=spec.start_after_s,
        pending_since_s=event.at_s,
    )
    record.note(event.at_s, f"submitted by {event.submitter or 'unknown'}: {record.phase}")
    if array_id is not None:
        state.outcomes[job_id] = _no_outcome(job_id, 1)
    waits_for = {d.on: None for d in spec.dependencies if not is_ended(state, d.on)}
    for target in waits_for:
        state.dependents.setdefault(target, []).append(job_id)
    state.add_job(record, len(waits_for))
    changes.jobs[job_id] = None


def _no_outcome(job_id: JobId, n_elements: int) -> OutcomeDump:
    return OutcomeDump(
        job_id=job_id, n_elements=n_elements, n_ended=0, n_not_ok=0, ended_at_s=0.0
    )


def _check_dependencies(state: ClusterState, spec: JobSpec) -> None:
    for number, dependency in enumerate(spec.dependencies):
        field = f"spec.dependencies[{number}].on"
        outcome = state.outcomes.get(dependency.on)
        if outcome is None:
            raise Refused(Refusal.NOT_FOUND, f"there is no job {dependency.on!r}", field)
        if is_ended(state, dependency.on) and not holds(dependency.kind, outcome):
            raise Refused(
                Refusal.PRECONDITION,
                f"job {dependency.on} has ended and {dependency.kind} cannot hold",
                field,
            )


def is_ended(state: ClusterState, job_id: JobId) -> bool:
    """Return whether a job, or every element of an array, has ended or been forgotten."""
    outcome = state.outcomes.get(job_id)
    return outcome is None or outcome.n_ended == outcome.n_elements


def _live_members(
    state: ClusterState, changes: Changes, job_id: JobId, *, verb: str
) -> list[JobRecord]:
    members = state.members(job_id)
    if not members:
        if job_id in state.outcomes:
            raise Refused(
                Refusal.PRECONDITION, f"job {job_id} has ended: it cannot be {verb}", "job_id"
            )
        raise Refused(Refusal.NOT_FOUND, f"there is no job {job_id!r}", "job_id")
    changes.job_ids = (job_id,)
    return members


def _cancelled(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.JobCancelled
) -> None:
    if not state.members(event.job_id) and event.job_id in state.outcomes:
        changes.job_ids, changes.is_repeat = (event.job_id,), True
        return
    members = _live_members(state, changes, event.job_id, verb="cancelled")
    changes.is_repeat = all(record.then is JobPhase.CANCELLED for record in members)
    by = f"cancelled by {event.by}" if event.by else "cancelled"
    for record in members:
        if record.then not in FINAL_JOB_PHASES:
            life.stop(record, StopCause.CANCELLED, JobPhase.CANCELLED, by)


def _suspended(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.JobSuspended
) -> None:
    members = _live_members(state, changes, event.job_id, verb="suspended")
    by = f"suspended by {event.by}" if event.by else "suspended"
    changes.is_repeat = True
    for record in members:
        is_held = JobPhase.SUSPENDED in {record.phase, record.then}
        if not is_held and record.then not in FINAL_JOB_PHASES:
            changes.is_repeat = False
            life.stop(record, StopCause.SUSPENDED, JobPhase.SUSPENDED, by)


def _resumed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.JobResumed
) -> None:
    members = _live_members(state, changes, event.job_id, verb="resumed")
    changes.is_repeat = True
    for record in members:
        if JobPhase.SUSPENDED in {record.phase, record.then}:
            changes.is_repeat = False
            life.resume(record)


def _updated(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.JobUpdated
) -> None:
    members = _live_members(state, changes, event.job_id, verb="updated")
    wanted = dict(event.replicas)
    for record in members:
        roles = {role.name: role for role in record.job.spec.roles}
        for name, count in wanted.items():
            role = roles.get(name)
            field = f"replicas[{name!r}]"
            if role is None:
                raise Refused(Refusal.NOT_FOUND, f"job {record.id} has no role {name!r}", field)
            if not role.min_count <= count <= role.max_count:
                raise Refused(
                    Refusal.INVALID,
                    f"must be {role.min_count} to {role.max_count}, the role's min and max",
                    field,
                )
        queue = state.queue(record.job.spec.queue)
        if event.priority is not None and queue is not None:
            line = lineage(queue, state.known_queues())
            _check_priority(line, event.priority, "priority")
    changes.is_repeat = True
    for record in members:
        spec = record.job.spec
        new = replace(
            spec,
            priority=spec.priority if event.priority is None else event.priority,
            time_limit_s=(
                spec.time_limit_s if event.time_limit_s is None else event.time_limit_s
            ),
            roles=tuple(replace(r, count=wanted.get(r.name, r.count)) for r in spec.roles),
        )
        if new == spec:
            continue
        changes.is_repeat = False
        record.job = replace(record.job, spec=new)
        record.note(event.at_s, f"updated by {event.by or 'unknown'}")
        state.sync_spec(record)
        if new.roles != spec.roles:
            life.resize(record)
        else:
            life.publish(record)


def _registered(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.NodeRegistered
) -> None:
    node = event.node
    old = state.node(node.name)
    changes.nodes[node.name] = None
    if old is None:
        state.add_node(node)
        return
    view = state.node_view(node.name)
    if node == old and view.is_up:
        changes.is_repeat = True
        return
    if node.gpus != old.gpus:
        if view.n_tasks:
            raise Refused(
                Refusal.PRECONDITION,
                f"node {node.name} has {view.n_tasks} tasks: its GPUs cannot change",
                "node.gpus",
            )
        state.remove_node(node.name)
        state.add_node(node)
        state.set_node_flags(
            node.name, is_cordoned=view.is_cordoned, is_draining=view.is_draining
        )
        return
    for field in ("cpu_milli", "memory_mib"):
        used = getattr(old, field) - getattr(view, f"{field}_free")
        if getattr(node, field) < used:
            raise Refused(
                Refusal.PRECONDITION, f"tasks of {node.name} hold {used}", f"node.{field}"
            )
    state.replace_node(node)
    state.set_node_flags(node.name, is_up=True, reason="")


def _known_node(state: ClusterState, changes: Changes, name: NodeName) -> None:
    if state.node(name) is None:
        raise Refused(Refusal.NOT_FOUND, f"there is no node {name!r}", "name")
    changes.nodes[name] = None


def _removed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.NodeRemoved
) -> None:
    _known_node(state, changes, event.name)
    for task_id in sorted(state.tasks_on[event.name]):
        record = state.records[task_id.job]
        life.task_ended(
            record,
            record.tasks[task_id],
            exit_code=None,
            signal=None,
            is_lost=True,
            reason=f"node {event.name} was removed",
        )
    state.remove_node(event.name)


def _health_changed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.NodeHealthChanged
) -> None:
    _known_node(state, changes, event.name)
    node = state.node(event.name)
    n_devices = len(node.gpus) if node else 0
    if any(not 0 <= device < n_devices for device in event.unhealthy_gpus):
        raise Refused(
            Refusal.INVALID, f"node {event.name} has {n_devices} GPUs", "unhealthy_gpus"
        )
    changes.is_repeat = not state.set_node_flags(
        event.name,
        is_up=event.is_up,
        unhealthy_gpus=event.unhealthy_gpus,
        reason=event.reason,
    )


def _cordoned(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.NodeCordoned
) -> None:
    _known_node(state, changes, event.name)
    changes.is_repeat = not state.set_node_flags(
        event.name, is_cordoned=event.is_cordoned, is_draining=event.is_draining
    )


def _queue_put(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.QueuePut
) -> None:
    changes.is_repeat = state.queue(event.queue.name) == event.queue
    if changes.is_repeat:
        return
    try:
        check_queue(event.queue, state.known_queues())
    except InvalidInput as error:
        raise Refused(Refusal.INVALID, error.rule, f"queue.{error.field}") from None
    state.put_queue(event.queue)


def _queue_deleted(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.QueueDeleted
) -> None:
    number = state.queue_number.get(event.name)
    if number is None or state.queues[number] is None:
        raise Refused(Refusal.NOT_FOUND, f"there is no queue {event.name!r}", "name")
    if event.name == DEFAULT_QUEUE.name:
        raise Refused(Refusal.PRECONDITION, "the default queue stays", "name")
    n_jobs = state.n_live[event.name]
    if n_jobs:
        raise Refused(
            Refusal.PRECONDITION, f"queue {event.name!r} still has {n_jobs} jobs", "name"
        )
    n_children = len(state.family(event.name)) - 1
    if n_children:
        raise Refused(
            Refusal.PRECONDITION,
            f"queue {event.name!r} still has {n_children} queues below it",
            "name",
        )
    state.delete_queue(event.name)


def _plan_committed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.PlanCommitted
) -> None:
    for eviction in event.evictions:
        record = state.records.get(eviction.job_id)
        if record is None or record.phase is not JobPhase.RUNNING:
            continue
        if eviction.cause is StopCause.TIME_LIMIT and not state.is_overdue(record, event.at_s):
            continue
        live = [record.tasks[t] for t in eviction.tasks if t in record.tasks]
        asked = [t for t in live if t.phase in {TaskPhase.BOUND, TaskPhase.RUNNING}]
        if asked:
            life.evict(record, asked, eviction.cause, eviction.detail)
    for placement in event.placements:
        record = state.records.get(placement.job_id)
        tasks = None if record is None else _verified(state, record, placement, event.at_s)
        if record is None or tasks is None:
            changes.stale.append(placement.job_id)
        else:
            life.start(record, tasks)


def _verified(
    state: ClusterState, record: JobRecord, placement: Placement, at_s: float
) -> list[Task] | None:
    """Return the tasks of a placement if it still holds as a whole, else None."""
    if not _is_wanted(state, record, placement):
        return None
    tasks = [
        Task(
            id=bind.task,
            node=bind.node,
            rank=bind.rank,
            world_size=placement.world_size,
            devices=bind.devices,
            bound_at_s=at_s,
        )
        for bind in placement.binds
    ]
    return tasks if state.fit_together(record, tasks) else None


def _is_wanted(state: ClusterState, record: JobRecord, placement: Placement) -> bool:
    members = [(b.task.role, b.task.index) for b in placement.binds]
    attempt = record.attempt + 1
    if len(set(members)) < len(members) or any(
        b.task.attempt != attempt or b.task.job != record.id for b in placement.binds
    ):
        return False
    roles = {role.name: role for role in record.job.spec.roles}
    if any(r not in roles or not 0 <= i < roles[r].count for r, i in members):
        return False
    if record.phase is JobPhase.PENDING:
        bound = {name: sum(r == name for r, _ in members) for name in roles}
        return not state.n_unmet.get(record.id) and all(
            bound[name] >= role.min_count for name, role in roles.items()
        )
    is_service = record.job.spec.kind is JobKind.INFERENCE
    live = {(t.id.role, t.id.index) for t in record.live_tasks()}
    return is_service and record.phase is JobPhase.RUNNING and not live & set(members)


def _task_of(
    state: ClusterState, changes: Changes, task_id: TaskId
) -> tuple[JobRecord, Task] | None:
    """Return the record and the live task, or None for a repeat of what is over."""
    record = state.records.get(task_id.job)
    if record is None and task_id.job not in state.outcomes:
        raise Refused(Refusal.NOT_FOUND, f"there is no job {task_id.job!r}", "task")
    if record is not None:
        task = record.tasks.get(task_id)
        if task is not None and not task.phase.is_final:
            return record, task
        if task is None and task_id.attempt > record.attempt:
            raise Refused(Refusal.NOT_FOUND, f"task {task_id} was never bound", "task")
    changes.is_repeat = True
    return None


def _task_started(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.TaskStarted
) -> None:
    found = _task_of(state, changes, event.task)
    if found is None:
        return
    record, task = found
    if task.phase is TaskPhase.BOUND:
        life.task_started(record, task)
    else:
        changes.is_repeat = True


def _task_ended(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.TaskEnded
) -> None:
    found = _task_of(state, changes, event.task)
    if found is not None:
        record, task = found
        life.task_ended(
            record,
            task,
            exit_code=event.exit_code,
            signal=event.signal,
            is_lost=event.is_lost,
            reason=event.reason,
        )


def _task_checkpointed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.TaskCheckpointed
) -> None:
    found = _task_of(state, changes, event.task)
    if found is not None:
        record, _ = found
        record.checkpoint_at_s = max(record.checkpoint_at_s, event.at_s)
        life.publish(record)


def _retention_passed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.RetentionPassed
) -> None:
    state.outcomes = {
        job_id: outcome
        for job_id, outcome in state.outcomes.items()
        if outcome.n_ended < outcome.n_elements or outcome.ended_at_s >= event.before_s
    }
    state.requests = {
        key: request
        for key, request in state.requests.items()
        if request.job_id in state.outcomes
    }


OBSERVERS: dict[type, Callable[..., None]] = {
    events.JobsSubmitted: _submitted,
    events.JobCancelled: _cancelled,
    events.JobSuspended: _suspended,
    events.JobResumed: _resumed,
    events.JobUpdated: _updated,
    events.NodeRegistered: _registered,
    events.NodeRemoved: _removed,
    events.NodeHealthChanged: _health_changed,
    events.NodeCordoned: _cordoned,
    events.QueuePut: _queue_put,
    events.QueueDeleted: _queue_deleted,
    events.PlanCommitted: _plan_committed,
    events.TaskStarted: _task_started,
    events.TaskEnded: _task_ended,
    events.TaskCheckpointed: _task_checkpointed,
    events.RetentionPassed: _retention_passed,
}
