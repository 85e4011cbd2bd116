"""Jobs that come in: what a submit must be like, and what it makes live."""

from scheduler.core import events
from scheduler.core.dependencies import holds, is_ended
from scheduler.core.dump import OutcomeDump, RequestDump
from scheduler.core.lifecycle import Changes, Lifecycle
from scheduler.core.model import (
    Job,
    JobId,
    JobPhase,
    JobSpec,
    Queue,
)
from scheduler.core.plan import Refusal
from scheduler.core.queue_rules import check_spec, with_defaults
from scheduler.core.records import JobRecord
from scheduler.core.refusals import Refused
from scheduler.core.state import ClusterState


def submitted(
    state: ClusterState, life: Lifecycle, changes: Changes, event: events.JobsSubmitted
) -> None:
    """Make a job or an array live, or repeat the answer to its request id."""
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
    line = state.line(spec.queue)
    if not line:
        raise Refused(Refusal.NOT_FOUND, f"there is no queue {spec.queue!r}", "spec.queue")
    n_elements = spec.array_size or 1
    spec = with_defaults(spec, line)
    check_spec(spec, line)
    _check_room(state, line, event.submitter, n_elements)
    _check_dependencies(state, spec)
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


def _check_room(state: ClusterState, line: list[Queue], submitter: str, n_more: int) -> None:
    """Refuse new jobs for a queue that is full, or below one that is."""
    for queue in line:
        if not queue.max_jobs and not queue.max_jobs_per_submitter:
            continue
        family = state.family(queue.name)
        n_live = sum(state.n_live[name] for name in family)
        if queue.max_jobs and n_live + n_more > queue.max_jobs:
            has = f"has {n_live} of at most {queue.max_jobs} jobs"
            raise Refused(Refusal.PRECONDITION, f"queue {queue.name!r} {has}", "spec.queue")
        most = queue.max_jobs_per_submitter
        n_own = sum(state.n_live_of[name, submitter] for name in family)
        if most and n_own + n_more > most:
            has = f"has {n_own} of at most {most} jobs of {submitter or 'nobody'}"
            raise Refused(Refusal.PRECONDITION, f"queue {queue.name!r} {has}", "spec.queue")


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
