"""What becomes of plans and tasks: committed, started, ended, saved, and forgotten."""

from collections import Counter

from scheduler.core import events
from scheduler.core.ledger import Ledger
from scheduler.core.lifecycle import Changes, Lifecycle
from scheduler.core.model import (
    JobKind,
    JobPhase,
    StopCause,
    Task,
    TaskId,
    TaskPhase,
)
from scheduler.core.plan import Placement, Refusal, Resize, tasks_of
from scheduler.core.records import JobRecord
from scheduler.core.refusals import Refused
from scheduler.core.state import ClusterState
from scheduler.core.topology import are_together

# Looked up once: on its class a member takes five times as long to find (CPython 3.11).
_PENDING = JobPhase.PENDING
_RUNNING = JobPhase.RUNNING
_INFERENCE = JobKind.INFERENCE
_BOUND = TaskPhase.BOUND
_TASK_RUNNING = TaskPhase.RUNNING
_TIME_LIMIT = StopCause.TIME_LIMIT


def plan_committed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.PlanCommitted
) -> None:
    """Do what of a plan still holds."""
    for eviction in event.evictions:
        record = state.records.get(eviction.job_id)
        if record is None or record.phase is not _RUNNING:
            continue
        if eviction.cause is _TIME_LIMIT and not state.is_overdue(record, event.at_s):
            continue
        live = [record.tasks[t] for t in eviction.tasks if t in record.tasks]
        asked = [t for t in live if t.phase in {_BOUND, _TASK_RUNNING}]
        gaining = state.records.get(eviction.for_job) if eviction.for_job else None
        if eviction.for_job and (gaining is None or gaining.phase is not _PENDING):
            continue
        if asked:
            yields_to = gaining.job.sequence if gaining is not None else 0
            life.evict(record, asked, eviction.cause, eviction.detail, yields_to=yields_to)
    for job_id in event.makes_room_for:
        record = state.records.get(job_id)
        if record is not None and _waits(record):
            life.await_room(record)
    for resize in event.resizes:
        record = state.records.get(resize.job_id)
        if record is None or not _may_resize(record, resize):
            changes.stale.append(resize.job_id)
        else:
            life.restart(record, resize.seats, resize.detail)
    ledger = state.ledger() if event.minds_queues and event.placements else None
    for placement in event.placements:
        record = state.records.get(placement.job_id)
        tasks = None if record is None else _verified(state, record, placement, event.at_s)
        if record is not None and tasks is not None and event.minds_queues:
            tasks = tasks if _may_have(state, ledger, record, tasks) else None
        if record is None or tasks is None:
            changes.stale.append(placement.job_id)
        else:
            life.start(record, tasks)


def _waits(record: JobRecord) -> bool:
    """Return whether a job may still be given places: it has not started, or is a service."""
    is_service = record.job.spec.kind is _INFERENCE
    return record.phase is _PENDING or (is_service and record.phase is _RUNNING)


def _may_have(
    state: ClusterState, ledger: Ledger | None, record: JobRecord, tasks: list[Task]
) -> bool:
    """Book what the tasks take on their queue, if that starts jobs and is within its limits.

    One that is stopped lets those go on that were being resized.
    """
    queue = state.queue_number[record.job.spec.queue]
    if not state.tree.is_started[queue] and not record.seats:
        return False
    if ledger is None:
        return True
    amounts: list[int] = state.amounts(record, tasks).tolist()
    if ledger.over(queue, amounts) is not None:
        return False
    ledger.add(queue, amounts)
    return True


def _verified(
    state: ClusterState, record: JobRecord, placement: Placement, at_s: float
) -> list[Task] | None:
    """Return the tasks of a placement if it still holds as a whole, else None."""
    if not _is_wanted(state, record, placement):
        return None
    tasks = tasks_of(placement, at_s)
    if placement.together and not _are_together(state, record, tasks, placement.together):
        return None
    if placement.beside is None:
        return tasks if state.fit_together(record, tasks) else None
    other = state.records.get(placement.beside)
    if other is None or len(tasks) != 1 or not state.fits(record, tasks[0], beside=other):
        return None
    return tasks


def _are_together(
    state: ClusterState, record: JobRecord, tasks: list[Task], labels: tuple[str, ...]
) -> bool:
    """Return whether the tasks are in one domain, with the first of those that run already."""
    places = []
    for task in [*record.live_tasks()[:1], *tasks]:
        node = state.node(task.node)
        if node is None:
            return False
        places.append((node, task.devices))
    return are_together(places, labels)


def _may_resize(record: JobRecord, resize: Resize) -> bool:
    """Return whether the gang still runs as it did, and may have the size.

    Whether it gets its seats is verified when it is placed there.
    """
    spec = record.job.spec
    is_gang = spec.elastic and spec.kind is not _INFERENCE
    if not is_gang or record.phase is not _RUNNING or record.attempt != resize.attempt:
        return False
    wanted = Counter(seat.role for seat in resize.seats)
    bounds = {role.name: (role.min_count, role.max_count) for role in spec.roles}
    return wanted.keys() <= bounds.keys() and all(
        least <= wanted[name] <= most for name, (least, most) in bounds.items()
    )


def _is_wanted(state: ClusterState, record: JobRecord, placement: Placement) -> bool:
    """Return whether the job may have these tasks, wherever they are."""
    spec, attempt = record.job.spec, record.attempt + 1
    roles = {role.name: role for role in spec.roles}
    bound = dict.fromkeys(roles, 0)
    for bind in placement.binds:
        job_id, name, index, of_attempt = bind.task
        role = roles.get(name)
        if role is None or of_attempt != attempt or job_id != record.job.id:
            return False
        if not 0 <= index < (role.max_count if spec.elastic else role.count):
            return False
        bound[name] += 1
    if len({bind.task for bind in placement.binds}) < len(placement.binds):
        return False
    if record.phase is _PENDING:
        return not state.n_unmet.get(record.job.id) and all(
            bound[name] >= role.min_count for name, role in roles.items()
        )
    if spec.kind is not _INFERENCE or record.phase is not _RUNNING:
        return False
    members = {(bind.task.role, bind.task.index) for bind in placement.binds}
    return members.isdisjoint([(t.id.role, t.id.index) for t in record.live_tasks()])


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


def task_started(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.TaskStarted
) -> None:
    """Note that a task runs."""
    found = _task_of(state, changes, event.task)
    if found is None:
        return
    record, task = found
    if task.phase is _BOUND:
        life.task_started(record, task)
    else:
        changes.is_repeat = True


def task_ended(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.TaskEnded
) -> None:
    """Note that a task is gone."""
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


def task_checkpointed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.TaskCheckpointed
) -> None:
    """Note that the work of a job so far is safe."""
    found = _task_of(state, changes, event.task)
    if found is not None:
        record, _ = found
        record.checkpoint_at_s = max(record.checkpoint_at_s, event.at_s)
        life.publish(record)


def retention_passed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.RetentionPassed
) -> None:
    """Forget jobs that ended long ago, and their request ids."""
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
