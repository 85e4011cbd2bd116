"""What users ask of their jobs: to cancel, suspend, resume or update them."""

from dataclasses import replace

from scheduler.core import events
from scheduler.core.lifecycle import Changes, Lifecycle
from scheduler.core.model import (
    FINAL_JOB_PHASES,
    JobId,
    JobPhase,
    StopCause,
)
from scheduler.core.plan import Refusal
from scheduler.core.queue_rules import check_priority, check_time_limit
from scheduler.core.records import JobRecord
from scheduler.core.refusals import Refused
from scheduler.core.state import ClusterState


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


def cancelled(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.JobCancelled
) -> None:
    """Give a job, or every live element of an array, up."""
    if not state.members(event.job_id) and event.job_id in state.outcomes:
        changes.job_ids, changes.is_repeat = (event.job_id,), True
        return
    members = _live_members(state, changes, event.job_id, verb="cancelled")
    changes.is_repeat = all(record.then is JobPhase.CANCELLED for record in members)
    by = f"cancelled by {event.by}" if event.by else "cancelled"
    for record in members:
        if record.then not in FINAL_JOB_PHASES:
            life.stop(record, StopCause.CANCELLED, JobPhase.CANCELLED, by)


def suspended(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.JobSuspended
) -> None:
    """Put a job, or every live element of an array, on hold."""
    members = _live_members(state, changes, event.job_id, verb="suspended")
    by = f"suspended by {event.by}" if event.by else "suspended"
    changes.is_repeat = True
    for record in members:
        is_held = JobPhase.SUSPENDED in {record.phase, record.then}
        if not is_held and record.then not in FINAL_JOB_PHASES:
            changes.is_repeat = False
            life.stop(record, StopCause.SUSPENDED, JobPhase.SUSPENDED, by)


def resumed(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.JobResumed
) -> None:
    """Let a job, or every live element of an array, wait again."""
    members = _live_members(state, changes, event.job_id, verb="resumed")
    changes.is_repeat = True
    for record in members:
        if JobPhase.SUSPENDED in {record.phase, record.then}:
            changes.is_repeat = False
            life.resume(record)


def updated(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.JobUpdated
) -> None:
    """Change a job, or every live element of an array, or none of them."""
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
        line = state.line(record.job.spec.queue)
        if event.priority is not None:
            check_priority(line, event.priority, "priority")
        if event.time_limit_s is not None:
            check_time_limit(line, event.time_limit_s, "time_limit_s")
    changes.is_repeat = True
    for record in members:
        spec = record.job.spec
        new = replace(
            spec,
            preemptible=spec.preemptible if event.preemptible is None else event.preemptible,
            time_limit_s=(
                spec.time_limit_s if event.time_limit_s is None else event.time_limit_s
            ),
            roles=tuple(replace(r, count=wanted.get(r.name, r.count)) for r in spec.roles),
        )
        if event.priority is not None:
            new = replace(
                new,
                priority=event.priority,
                priority_class=event.priority_class,
                may_preempt=event.may_preempt,
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
