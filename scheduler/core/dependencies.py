"""What the end of a job, or of an array, means for those that wait for it."""

from scheduler.core.dump import OutcomeDump
from scheduler.core.model import Dependency, DependencyKind, JobId, JobPhase
from scheduler.core.records import JobRecord
from scheduler.core.state import ClusterState


def is_ended(state: ClusterState, job_id: JobId) -> bool:
    """Return whether a job, or every element of an array, has ended or been forgotten."""
    outcome = state.outcomes.get(job_id)
    return outcome is None or outcome.n_ended == outcome.n_elements


def holds(kind: DependencyKind, ended: OutcomeDump) -> bool:
    """Return whether a dependency on a job or array that has ended is satisfied."""
    if kind is DependencyKind.AFTER_ANY:
        return True
    return (ended.n_not_ok == 0) == (kind is DependencyKind.AFTER_OK)


def broken_by(record: JobRecord, ended: OutcomeDump) -> Dependency | None:
    """Return the dependency of a job that what has ended makes impossible."""
    for dependency in record.job.spec.dependencies:
        if dependency.on == ended.job_id and not holds(dependency.kind, ended):
            return dependency
    return None


def count_end(state: ClusterState, record: JobRecord, at_s: float) -> list[OutcomeDump]:
    """Count an end in the outcomes of the job and its array; return those now complete."""
    complete = []
    for job_id in (record.job.id, record.job.array_id):
        if job_id is None:
            continue
        old = state.outcomes[job_id]
        new = OutcomeDump(
            job_id=job_id,
            n_elements=old.n_elements,
            n_ended=old.n_ended + 1,
            n_not_ok=old.n_not_ok + (record.phase is not JobPhase.SUCCEEDED),
            ended_at_s=at_s,
        )
        state.outcomes[job_id] = new
        if new.n_ended == new.n_elements:
            complete.append(new)
    return complete
