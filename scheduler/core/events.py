"""Facts and commands: the only things that change state.

The journal stores exactly these, in order, and `Engine.observe` judges them one by one:
it is total and deterministic, so a replay repeats every verdict, refusals included.
`at_s` is epoch seconds, read from a clock by whoever made the event.
"""

from scheduler.core.model import (
    JobId,
    JobSpec,
    Node,
    NodeName,
    Queue,
    QueueName,
    TaskId,
)
from scheduler.core.plan import Eviction, Placement, Plan, Resize
from scheduler.core.values import value_class


@value_class(frozen=True, slots=True, kw_only=True)
class JobsSubmitted:
    """A user submitted a job or an array. Ids are given out when it is observed.

    A second submit by the same submitter with the same non-empty `request_id` gets the first
    one's answer; with another `fingerprint` (a hash of the request) it is rejected.
    """

    at_s: float
    spec: JobSpec
    submitter: str = ""
    request_id: str = ""
    fingerprint: str = ""


@value_class(frozen=True, slots=True, kw_only=True)
class JobCancelled:
    """A user gave a job, or all of an array, up."""

    at_s: float
    job_id: JobId
    by: str = ""


@value_class(frozen=True, slots=True, kw_only=True)
class JobSuspended:
    """A user put a job, or all of an array, on hold: it stops and keeps its place."""

    at_s: float
    job_id: JobId
    by: str = ""


@value_class(frozen=True, slots=True, kw_only=True)
class JobResumed:
    """A user let a suspended job, or array, wait for capacity again."""

    at_s: float
    job_id: JobId
    by: str = ""


@value_class(frozen=True, slots=True, kw_only=True)
class JobUpdated:
    """A user changed a job; None and missing roles stay as they are."""

    at_s: float
    job_id: JobId
    by: str = ""
    priority: int | None = None
    priority_class: str = ""  # whose value the priority is
    may_preempt: bool = True  # with a priority: whether the job stops others from now on
    preemptible: bool | None = None
    time_limit_s: float | None = None
    replicas: tuple[tuple[str, int], ...] = ()  # (role, new count) within its min and max


@value_class(frozen=True, slots=True, kw_only=True)
class NodeRegistered:
    """A node joined, or came back with another shape. Clears `up=False`."""

    at_s: float
    node: Node


@value_class(frozen=True, slots=True, kw_only=True)
class NodeRemoved:
    """A node left for good; what ran there is lost."""

    at_s: float
    name: NodeName


@value_class(frozen=True, slots=True, kw_only=True)
class NodeHealthChanged:
    """A node, or some of its devices, failed or recovered.

    Its tasks stay bound: only whoever can be sure that they no longer run says `TaskEnded`.
    """

    at_s: float
    name: NodeName
    is_up: bool
    unhealthy_gpus: tuple[int, ...] = ()
    reason: str = ""


@value_class(frozen=True, slots=True, kw_only=True)
class NodeCordoned:
    """An admin closed a node to new tasks (cordon), emptied it (drain) or opened it again."""

    at_s: float
    name: NodeName
    by: str = ""
    is_cordoned: bool = True
    is_draining: bool = False


@value_class(frozen=True, slots=True, kw_only=True)
class QueuePut:
    """An admin made or replaced a queue."""

    at_s: float
    queue: Queue
    by: str = ""


@value_class(frozen=True, slots=True, kw_only=True)
class QueueStateSet:
    """An admin opened, closed, started or stopped a queue; None stays as it is."""

    at_s: float
    name: QueueName
    is_open: bool | None = None
    is_started: bool | None = None
    by: str = ""


@value_class(frozen=True, slots=True, kw_only=True)
class HalfLifeSet:
    """The configuration says how fast what queues used is forgotten; 0: it does not count."""

    at_s: float
    half_life_s: float


@value_class(frozen=True, slots=True, kw_only=True)
class QueueDeleted:
    """An admin removed a queue; rejected while jobs are in it."""

    at_s: float
    name: QueueName
    by: str = ""


@value_class(frozen=True, slots=True, kw_only=True)
class PlanCommitted:
    """A plan's actions are to happen. What went stale since its snapshot is dropped here."""

    at_s: float
    placements: tuple[Placement, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    # Whether what queues may not have or start any more is stale, too. Plans journalled by
    # versions that did not look replay as they did then.
    minds_queues: bool = False
    resizes: tuple[Resize, ...] = ()
    makes_room_for: tuple[JobId, ...] = ()  # those go first until they start


@value_class(frozen=True, slots=True, kw_only=True)
class TaskStarted:
    """An executor started a task. Repeats are ignored."""

    at_s: float
    task: TaskId


@value_class(frozen=True, slots=True, kw_only=True)
class TaskEnded:
    """A task's process is gone and its resources are free. Repeats are ignored.

    Exactly one of `exit_code` and `signal` for a process that ended; neither for one that
    could not start (`reason` says why) or that vanished (`is_lost`).
    """

    at_s: float
    task: TaskId
    exit_code: int | None = None
    signal: int | None = None
    is_lost: bool = False
    reason: str = ""


@value_class(frozen=True, slots=True, kw_only=True)
class TaskCheckpointed:
    """A task saved its work; what ran until now is safe."""

    at_s: float
    task: TaskId


@value_class(frozen=True, slots=True, kw_only=True)
class RetentionPassed:
    """Outcomes and request ids of jobs that ended before this moment may be forgotten."""

    at_s: float
    before_s: float


def commit_of(plan: Plan, at_s: float) -> PlanCommitted:
    """Return the event that makes a plan's actions happen."""
    return PlanCommitted(
        at_s=at_s,
        placements=plan.placements,
        evictions=plan.evictions,
        resizes=plan.resizes,
        minds_queues=True,
        makes_room_for=plan.makes_room_for,
    )


Event = (
    JobsSubmitted
    | JobCancelled
    | JobSuspended
    | JobResumed
    | JobUpdated
    | NodeRegistered
    | NodeRemoved
    | NodeHealthChanged
    | NodeCordoned
    | QueuePut
    | QueueStateSet
    | HalfLifeSet
    | QueueDeleted
    | PlanCommitted
    | TaskStarted
    | TaskEnded
    | TaskCheckpointed
    | RetentionPassed
)
