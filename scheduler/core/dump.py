"""The whole state as one plain value: what bounds replay, and what a bug report attaches.

`Engine.dump` makes it and `Engine.restore` reads it; whoever stores it only needs to encode
dataclasses, tuples, strings, numbers and None.
"""

from scheduler.core.model import Job, JobId, JobPhase, Node, Queue, QueueName, StopCause, Task
from scheduler.core.records import NOTHING_RECEIVED, Received, Seat
from scheduler.core.values import value_class

DUMP_FORMAT = 1


@value_class(frozen=True, slots=True, kw_only=True)
class JobDump:
    """One live job: the fields of `JobRecord`, tasks as a tuple."""

    job: Job
    phase: JobPhase
    revision: int
    tasks: tuple[Task, ...] = ()
    attempt: int = 0
    failures: int = 0
    streak: int = 0  # failures in a row, which the back-off grows with
    preemptions: int = 0
    resizes: int = 0
    resized_at_s: float = 0.0
    seats: tuple[Seat, ...] = ()
    eligible_at_s: float = 0.0
    stop_cause: StopCause | None = None
    then: JobPhase | None = None
    pending_since_s: float = 0.0
    first_started_at_s: float = 0.0
    last_started_at_s: float = 0.0
    ended_at_s: float = 0.0
    checkpoint_at_s: float = 0.0
    waited_before_s: float = 0.0
    ran_before_s: float = 0.0
    gpu_s_before: float = 0.0
    received: Received = NOTHING_RECEIVED
    lost_gpu_s: float = 0.0
    yields_to: int = 0
    goes_first: bool = False
    reason: str = ""
    exit_code: int | None = None
    history: tuple[str, ...] = ()


@value_class(frozen=True, slots=True, kw_only=True)
class NodeDump:
    """One node, in the order of registration; what it has free follows from the jobs."""

    node: Node
    is_up: bool
    is_cordoned: bool
    is_draining: bool
    unhealthy_gpus: tuple[int, ...] = ()
    reason: str = ""
    n_failures: float = 0.0
    failed_at_s: float = 0.0


@value_class(frozen=True, slots=True, kw_only=True)
class RequestDump:
    """The answer to a request id."""

    submitter: str
    request_id: str
    fingerprint: str
    job_id: JobId
    at_s: float


@value_class(frozen=True, slots=True, kw_only=True)
class OutcomeDump:
    """What dependencies need to know of a job or an array: how many ended, and how."""

    job_id: JobId
    n_elements: int
    n_ended: int
    n_not_ok: int
    ended_at_s: float


@value_class(frozen=True, slots=True, kw_only=True)
class UsageDump:
    """What a queue used on average by then, by resource; see `usage`."""

    queue: QueueName
    at_s: float
    average: tuple[tuple[str, float], ...] = ()


@value_class(frozen=True, slots=True, kw_only=True)
class Dump:
    """Everything the engine knows at one revision."""

    format: int
    revision: int
    next_sequence: int
    now_s: float  # of the latest event
    nodes: tuple[NodeDump, ...] = ()
    queues: tuple[Queue, ...] = ()
    jobs: tuple[JobDump, ...] = ()
    outcomes: tuple[OutcomeDump, ...] = ()
    requests: tuple[RequestDump, ...] = ()
    usage_half_life_s: float = 0.0  # 0: past use is not remembered
    usage: tuple[UsageDump, ...] = ()
