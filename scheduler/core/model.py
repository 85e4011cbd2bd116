"""The nouns of the scheduler: jobs, roles, tasks, nodes, queues.

Frozen values without behaviour but arithmetic on themselves. A `JobSpec` is what a user
asked for; a `Job` is one identity made from it; a `Task` is one placed member of it.
Everything that changes over time lives in `state`.
"""

import math
from enum import StrEnum
from typing import NamedTuple, NewType

from scheduler.core.values import value_class

JobId = NewType("JobId", str)
"""`17` for a job, `17_3` for element 3 of the array 17; an array itself is named `17`."""
QueueName = NewType("QueueName", str)
NodeName = NewType("NodeName", str)

MILLI = 1000
"""One whole CPU or GPU, in the thousandths that all accounting uses."""


class JobKind(StrEnum):
    """What the job is for. A service's tasks restart alone; others restart as a gang."""

    TRAINING = "training"
    INFERENCE = "inference"
    BATCH = "batch"


class JobPhase(StrEnum):
    """Where a job is in its life; `transitions` has the table of moves."""

    PENDING = "pending"  # waits for capacity, time or other jobs
    RUNNING = "running"  # has live tasks
    STOPPING = "stopping"  # every live task has been asked to stop
    SUSPENDED = "suspended"  # held by its user; holds nothing
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"

    @property
    def is_final(self) -> bool:
        """Whether a job in this phase never moves again."""
        return self in FINAL_JOB_PHASES


FINAL_JOB_PHASES = frozenset(
    {JobPhase.SUCCEEDED, JobPhase.FAILED, JobPhase.CANCELLED, JobPhase.TIMED_OUT}
)


class TaskPhase(StrEnum):
    """Where one attempt of one task is; `transitions` has the table of moves."""

    BOUND = "bound"  # assumed to start: the executor has been, or will be, told
    RUNNING = "running"
    STOPPING = "stopping"  # asked to stop, still holds its resources
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # ended after it was asked to
    LOST = "lost"  # its node or its process vanished

    @property
    def is_final(self) -> bool:
        """Whether a task in this phase has released its resources."""
        return self in FINAL_TASK_PHASES


FINAL_TASK_PHASES = frozenset(
    {TaskPhase.SUCCEEDED, TaskPhase.FAILED, TaskPhase.STOPPED, TaskPhase.LOST}
)


class StopCause(StrEnum):
    """Why live tasks are asked to stop."""

    PREEMPTED = "preempted"
    DRAINED = "drained"
    CANCELLED = "cancelled"
    SUSPENDED = "suspended"
    TIME_LIMIT = "time_limit"
    GANG_BROKEN = "gang_broken"  # a member ended badly, so the rest of the gang goes too
    SCALED_DOWN = "scaled_down"  # a service gives up replicas
    MIGRATED = "migrated"  # starts again elsewhere, so that a wide job finds room
    RESIZED = "resized"  # a gang starts again with another number of tasks


class DependencyKind(StrEnum):
    """What must be true of the other job before this one may start."""

    AFTER_OK = "after_ok"
    AFTER_ANY = "after_any"
    AFTER_NOT_OK = "after_not_ok"


class TaintEffect(StrEnum):
    """What a taint does to tasks that do not tolerate it."""

    NO_SCHEDULE = "no_schedule"
    NO_EXECUTE = "no_execute"  # also stops what already runs there


@value_class(frozen=True, slots=True, kw_only=True)
class Taint:
    """A mark on a node that keeps tasks away unless they tolerate it."""

    key: str
    value: str = ""
    effect: TaintEffect = TaintEffect.NO_SCHEDULE


@value_class(frozen=True, slots=True, kw_only=True)
class Toleration:
    """Permission to run despite a taint; value None tolerates every value of the key."""

    key: str
    value: str | None = None

    def tolerates(self, taint: Taint) -> bool:
        """Return whether this toleration covers the taint."""
        return self.key == taint.key and self.value in (None, taint.value)


@value_class(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one task asks of a node. Equal shapes are placed alike and cached together.

    Either `gpus` whole devices, or `gpu_milli` thousandths (1 to 999) of one device, or no
    GPU. `gpu_memory_mib` is what each device must have (whole devices) or what is taken
    of the one device (fractions; 0 means the same fraction of its memory).
    """

    cpu_milli: int = MILLI
    memory_mib: int = 0
    gpus: int = 0
    gpu_milli: int = 0
    gpu_memory_mib: int = 0
    gpu_types: tuple[str, ...] = ()  # any of these; empty: any type
    node_labels: tuple[tuple[str, str], ...] = ()  # all of these, sorted by key
    tolerations: tuple[Toleration, ...] = ()
    reads: tuple[tuple[str, int], ...] = ()  # data sets and MiB: the job's inputs, for scores

    @property
    def total_gpu_milli(self) -> int:
        """GPU taken by one task, in thousandths of a device."""
        return self.gpus * MILLI + self.gpu_milli


@value_class(frozen=True, slots=True, kw_only=True)
class Launch:
    """What an executor runs for a task. The core never looks inside."""

    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    working_dir: str = ""  # empty: the task's own folder
    image: str = ""  # for executors that run containers


AS_COUNT = -1
"""The min or max count of a role that does not say: its count."""


@value_class(frozen=True, slots=True, kw_only=True)
class Role:
    """A group of identical tasks in a job: worker, ps, driver, executor, replica.

    `min_count` start together or not at all; `count` are wanted; `max_count` bounds what
    an update may ask for, and what an elastic job may grow to. Both are the count unless given.
    """

    name: str
    launch: Launch
    count: int = 1
    min_count: int = AS_COUNT
    max_count: int = AS_COUNT
    shape: Shape = Shape()

    def __post_init__(self) -> None:
        for field in ("min_count", "max_count"):
            if getattr(self, field) == AS_COUNT:
                object.__setattr__(self, field, self.count)


@value_class(frozen=True, slots=True, kw_only=True)
class Dependency:
    """A condition on another job, or on every element of an array."""

    on: JobId
    kind: DependencyKind = DependencyKind.AFTER_OK


@value_class(frozen=True, slots=True, kw_only=True)
class SharedThroughput:
    """How fast a job is, in units of its throughput, beside another on the same GPUs."""

    gpu_type: str
    beside: str  # the profile of the other job
    per_s: float


RESIZE_COOLDOWN_S = 600.0
"""How long an elastic job keeps its size unless it says otherwise."""


@value_class(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a user submits: one gang of one or more roles, or an array of such gangs."""

    name: str
    roles: tuple[Role, ...]
    kind: JobKind = JobKind.TRAINING
    queue: QueueName = QueueName("default")
    priority: int = 0
    preemptible: bool = True
    checkpoint_interval_s: float = 0.0  # 0: keeps no checkpoints
    grace_s: float = 30.0  # from TERM to KILL
    max_retries: int = 0
    backoff_s: float = 10.0  # doubles with every retry, up to `MAX_BACKOFF_S`
    time_limit_s: float = 0.0  # of one attempt's running time; 0: none
    start_after_s: float = 0.0  # epoch seconds; 0: at once
    dependencies: tuple[Dependency, ...] = ()
    array_size: int = 0  # 0: not an array
    suspended: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    expected_run_s: float = 0.0  # of one attempt, as its user estimates; 0: unknown
    expected_run_spread: float = 0.0  # of that estimate: its relative standard deviation
    min_runtime_s: float = 0.0  # not preempted before an attempt has run so long
    priority_class: str = ""  # whose value the priority is; empty: it was given as a number
    may_preempt: bool = True  # stops others, where policy and queue allow it
    weight: float = 1.0  # of its share beside other jobs
    throughputs: tuple[tuple[str, float], ...] = ()  # see `speed_on`; sorted by GPU type
    deadline_at_s: float = 0.0  # epoch seconds by which it should have ended; 0: none
    total_work: float = 0.0  # in units of throughput x seconds; 0: unknown
    topology_required: str = ""  # level of which one domain holds all tasks; empty: none
    topology_preferred: str = ""  # level of which as few domains as possible do
    topology_balanced: bool = False  # spread evenly over as few domains as hold them
    inputs_mib: tuple[tuple[str, int], ...] = ()  # data sets that it reads, sorted by name
    elastic: bool = False  # the scheduler sizes its roles, within their min and max
    resize_cooldown_s: float = RESIZE_COOLDOWN_S  # between two resizes of its
    scaling: tuple[tuple[int, float], ...] = ()  # see `speed_up`; sorted by tasks
    profile: str = ""  # the kind of work it is, for `shared_throughputs` of others
    shared_throughputs: tuple[SharedThroughput, ...] = ()  # see `speed_beside`; sorted

    @property
    def n_tasks(self) -> int:
        """Tasks wanted over all roles."""
        return sum([role.count for role in self.roles])

    @property
    def total_gpu_milli(self) -> int:
        """GPU wanted over all tasks, in thousandths of a device."""
        return sum([role.count * role.shape.total_gpu_milli for role in self.roles])

    def speed_on(self, gpu_type: str) -> float:
        """Return the work per second of the whole gang on GPUs of that type.

        A job that says nothing of throughputs works alike on every type; one that does cannot
        run on a type that it does not name.
        """
        return dict(self.throughputs).get(gpu_type, 0.0) if self.throughputs else 1.0

    def speed_beside(self, profile: str, gpu_type: str) -> float:
        """Return the work per second of the whole gang beside a job of that profile.

        Both have the same GPUs, of that type. 0: nobody said, so they do not share.
        """
        for measured in self.shared_throughputs:
            if (measured.beside, measured.gpu_type) == (profile, gpu_type):
                return measured.per_s
        return 0.0

    def counts_at(self, n_tasks: int) -> dict[str, int]:
        """Return how many of so many tasks each role has: its min, then evenly by its wish."""
        counts = {role.name: role.min_count for role in self.roles}
        for _ in range(n_tasks - sum(counts.values())):
            below = [role for role in self.roles if counts[role.name] < role.max_count]
            if not below:
                break
            least = min(below, key=lambda role: fill(counts[role.name], role.count))
            counts[least.name] += 1
        return counts

    def speed_up(self, n_tasks: int) -> float:
        """Return the speed with so many tasks over the speed with as many as are wanted.

        If none are wanted, over that with one. Between and beyond the points of `scaling`
        (tasks, work per second in any unit) it is interpolated, from nothing at no tasks and
        flat after the last. Without points it is proportional: the best that could be hoped
        for (Sia, SOSP '23, starts from it as well).
        """
        n_wanted = max(self.n_tasks, 1)
        if not self.scaling:
            return n_tasks / n_wanted
        return _interpolated(self.scaling, n_tasks) / _interpolated(self.scaling, n_wanted)


def fill(n_tasks: int, n_wanted: int) -> float:
    """Return how much so many tasks are of those that are wanted; endless if none is."""
    return n_tasks / n_wanted if n_wanted else math.inf


def _interpolated(points: tuple[tuple[int, float], ...], n_tasks: int) -> float:
    below, at_below = 0, 0.0
    for n, value in points:
        if n_tasks == n:
            return value
        if n_tasks < n:
            return at_below + (value - at_below) * (n_tasks - below) / (n - below)
        below, at_below = n, value
    return at_below


MAX_BACKOFF_S = 300.0
"""Retries never wait longer than this (Kubernetes caps container back-off alike)."""


@value_class(frozen=True, slots=True, kw_only=True)
class Job:
    """One identity made from a spec. What changes over time lives in `state`."""

    id: JobId
    spec: JobSpec
    sequence: int  # total order of arrival
    submitted_at_s: float
    submitter: str = ""
    array_id: JobId | None = None
    array_index: int = 0


class TaskId(NamedTuple):
    """One attempt of one member of a job; an attempt never runs twice."""

    job: JobId
    role: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on an id
    attempt: int  # from 1

    def __str__(self) -> str:
        """Return `17/worker-0@2`."""
        return f"{self.job}/{self.role}-{self.index}@{self.attempt}"


@value_class(frozen=True, slots=True, kw_only=False)
class Task:
    """A placed member of a job. `devices` index the node's GPUs."""

    id: TaskId
    node: NodeName
    rank: int  # in the gang, over all its tasks
    world_size: int  # tasks of the gang bound together
    devices: tuple[int, ...] = ()
    phase: TaskPhase = TaskPhase.BOUND
    bound_at_s: float = 0.0
    started_at_s: float = 0.0  # 0: not yet
    ended_at_s: float = 0.0  # 0: not yet
    stop_cause: StopCause | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""  # why it failed or was lost, for people

    def moved(
        self,
        phase: TaskPhase,
        *,
        started_at_s: float = 0.0,
        ended_at_s: float = 0.0,
        stop_cause: StopCause | None = None,
        exit_code: int | None = None,
        signal: int | None = None,
        reason: str = "",
    ) -> "Task":
        """Return the live task in another phase, with what is new; the rest stays.

        Written out, and by position, because it is done for every move: with the names of the
        fields it takes three times as long, and `replace` longer still.
        """
        return Task(
            self.id,
            self.node,
            self.rank,
            self.world_size,
            self.devices,
            phase,
            self.bound_at_s,
            started_at_s or self.started_at_s,
            ended_at_s,
            stop_cause or self.stop_cause,
            exit_code,
            signal,
            reason,
        )


@value_class(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device of a node. Its index is its place in `Node.gpus`."""

    uuid: str
    memory_mib: int = 0


@value_class(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine, or a declared part of one, that runs tasks. All its GPUs are of one type."""

    name: NodeName
    cpu_milli: int
    memory_mib: int
    gpu_type: str = ""
    gpus: tuple[Gpu, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()  # sorted by key
    taints: tuple[Taint, ...] = ()
    address: str = "127.0.0.1"  # where the tasks of a gang reach rank 0
    pool: str = ""  # of interchangeable nodes that it belongs to; empty: none
    price_usd_per_h: float = 0.0  # of the whole node
    nvlink: tuple[tuple[int, ...], ...] = ()  # devices linked directly; empty: all of them


HOST = "host"
"""The level of the node itself."""

NVLINK = "nvlink"
"""The level of the devices of one node that are linked directly."""


@value_class(frozen=True, slots=True, kw_only=True)
class Level:
    """A level of the tree: its name, and the node label whose values are its domains."""

    name: str
    label: str


Levels = tuple[Level, ...]
"""The levels above the node, outermost first."""

DEFAULT_LEVELS: Levels = (
    Level(name="zone", label="topology.kubernetes.io/zone"),
    Level(name="block", label="topology.lepton.dev/block"),
    Level(name="rack", label="topology.lepton.dev/rack"),
    # Nodes that share one NVLink fabric, as NVIDIA's DRA driver labels them (GB200 NVL72).
    Level(name="clique", label="nvidia.com/gpu.clique"),
)


class QueuePreemption(StrEnum):
    """Whom the jobs of a queue may stop, of those that the policy allows."""

    NEVER = "never"  # nobody; nor is lent capacity taken back
    IN_QUEUE = "in_queue"  # jobs of the same queue; lent capacity is taken back
    ANYWHERE = "anywhere"  # besides, what other queues use beyond their guarantee


Amounts = tuple[tuple[str, int], ...]
"""Amounts by resource, sorted: `cpu_milli`, `memory_mib`, `gpu_milli` (of all types), and
`gpu_milli:TYPE`."""


@value_class(frozen=True, slots=True, kw_only=True)
class Queue:
    """A tenant's place in a tree of queues; empty submitters means everybody.

    What a queue guarantees, its jobs get, if need be from those who borrowed it; up to its
    limit it borrows what others leave idle. `queue_tree` has the rules.
    """

    name: QueueName
    submitters: tuple[str, ...] = ()
    admins: tuple[str, ...] = ()
    is_open: bool = True  # takes new jobs
    is_started: bool = True  # starts waiting jobs
    parent: QueueName = QueueName("")  # empty: the root
    weight: float = 1.0  # of its share beside its siblings
    guaranteed: Amounts = ()
    limit: Amounts = ()  # a resource that is not named has none
    borrow_limit: Amounts = ()  # beyond what is guaranteed; not named: up to the limit
    is_lender: bool = True  # others may use what is guaranteed and idle
    default_priority: int = 0  # of jobs that ask for priority 0; 0: the parent's
    max_priority: int | None = None
    max_jobs: int = 0  # live ones, those of its children too; 0: any number
    may_preempt: QueuePreemption = QueuePreemption.ANYWHERE
    policy: str = ""  # by which jobs here and below are served; empty: the parent's
    default_time_limit_s: float = 0.0  # of jobs that give none; 0: the parent's
    max_time_limit_s: float = 0.0  # 0: any
    default_min_runtime_s: float = 0.0  # of jobs that give none; 0: the parent's
    is_preemptible: bool = True  # else jobs here and below are never stopped for others
    max_jobs_per_submitter: int = 0  # live ones of each, those below it too; 0: any number


DEFAULT_QUEUE = Queue(name=QueueName("default"))
