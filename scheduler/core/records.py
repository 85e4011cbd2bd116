"""What is known of one job over time, and of one node for readers.

A `JobRecord` belongs to `ClusterState`, which alone changes it; everybody else reads, on the
thread that observes events. A finished job's record leaves the core with the outcome of the
event that finished it and never changes again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from scheduler.core.errors import InvariantError
from scheduler.core.model import (
    FINAL_TASK_PHASES,
    MILLI,
    Job,
    JobId,
    JobPhase,
    Node,
    NodeName,
    Shape,
    StopCause,
    Task,
    TaskId,
)
from scheduler.core.values import value_class

HISTORY_LIMIT = 64
"""Lines of history kept per job: enough for a dozen attempts."""

# Looked up once: on its class a member takes five times as long to find (CPython 3.11).
_PENDING = JobPhase.PENDING
_ON = frozenset({JobPhase.RUNNING, JobPhase.STOPPING})

STINTS_KEPT = 32
"""Stints kept per job: more than the rounds that shares are realised over."""


@value_class(frozen=True, slots=True, kw_only=True)
class Stint:
    """GPU time that tasks of a job, started together, had on one type of GPU."""

    gpu_type: str
    gpu_s: float
    from_s: float
    until_s: float
    # Of a job that may share GPUs, where that was: so it is known with whom.
    node: NodeName | None = None
    devices: tuple[int, ...] = ()


@value_class(frozen=True, slots=True, kw_only=True)
class Received:
    """The GPU time that a job had, but for tasks that still run."""

    gpu_s: tuple[tuple[str, float], ...] = ()  # by GPU type, sorted: all that it ever had
    stints: tuple[Stint, ...] = ()  # the latest ones

    def plus(self, stint: Stint) -> "Received":
        """Return this and what a task had that ended now."""
        if not self.stints:  # most jobs run once, in one task
            return Received(gpu_s=((stint.gpu_type, stint.gpu_s),), stints=(stint,))
        totals = dict(self.gpu_s)
        totals[stint.gpu_type] = totals.get(stint.gpu_type, 0.0) + stint.gpu_s
        stints, from_s = self.stints, stint.from_s
        together = [s for s in stints if s.from_s == from_s and s.gpu_type == stint.gpu_type]
        for other in together:
            stint = replace(
                stint,
                gpu_s=other.gpu_s + stint.gpu_s,
                until_s=max(other.until_s, stint.until_s),
            )
            stints = tuple(s for s in stints if s is not other)
        kept = (*stints, stint)[-STINTS_KEPT:]
        return Received(gpu_s=tuple(sorted(totals.items())), stints=kept)


NOTHING_RECEIVED = Received()


@value_class(frozen=True, slots=True, kw_only=True)
class Seat:
    """A place that is kept for one task of a gang while it restarts with another size."""

    role: str
    node: NodeName
    devices: tuple[int, ...] = ()


@dataclass(slots=True, kw_only=True)
class JobRecord:
    """One job, its dynamic state and the latest attempt of each of its tasks."""

    job: Job
    phase: JobPhase
    revision: int  # of the last change
    tasks: dict[TaskId, Task] = field(default_factory=dict)  # live, and ended in this attempt
    attempt: int = 0  # attempts started so far
    failures: int = 0  # attempts that ended badly
    streak: int = 0  # failures in a row, which the back-off grows with
    preemptions: int = 0
    resizes: int = 0  # by the scheduler itself
    resized_at_s: float = 0.0  # the last time; 0: never
    seats: tuple[Seat, ...] = ()  # where it goes on, of a gang that is being resized
    eligible_at_s: float = 0.0  # start-after or the end of a back-off
    stop_cause: StopCause | None = None  # why the job is STOPPING
    then: JobPhase | None = None  # the phase that follows STOPPING
    pending_since_s: float = 0.0
    first_started_at_s: float = 0.0  # 0: never
    last_started_at_s: float = 0.0
    ended_at_s: float = 0.0
    checkpoint_at_s: float = 0.0  # of this attempt; 0: none yet
    waited_before_s: float = 0.0  # pending time of earlier waits
    ran_before_s: float = 0.0  # running time of earlier attempts
    gpu_s_before: float = 0.0
    received: Received = NOTHING_RECEIVED
    lost_gpu_s: float = 0.0
    yields_to: int = 0  # sequence of the job that it moved for; 0: none
    goes_first: bool = False  # until it starts: others make room for it, or have made it
    reason: str = ""
    exit_code: int | None = None
    history: list[str] = field(default_factory=list)

    @property
    def id(self) -> JobId:
        """The job's id."""
        return self.job.id

    def note(self, at_s: float, line: str) -> None:
        """Add a line to the history, dropping the oldest beyond the limit."""
        self.history.append(f"{_stamp(at_s)} {line}")
        if len(self.history) > HISTORY_LIMIT:
            del self.history[0]

    def waited_s(self, now_s: float) -> float:
        """Return how long the job has been pending over all its attempts."""
        waiting = self.phase is _PENDING
        return self.waited_before_s + (now_s - self.pending_since_s if waiting else 0.0)

    def live_tasks(self) -> list[Task]:
        """Return the tasks that hold resources."""
        return [task for task in self.tasks.values() if task.phase not in FINAL_TASK_PHASES]

    def shape_of(self, task: Task) -> Shape:
        """Return what a task of the job asks of its node."""
        name = task.id.role
        for role in self.job.spec.roles:
            if role.name == name:
                return role.shape
        raise InvariantError(f"task {task.id} has no role in its job", self.history)

    def gpu_milli_of(self, tasks: Iterable[Task]) -> int:
        """Return the GPU that tasks of the job take together, in thousandths of a device."""
        return sum([self.shape_of(task).total_gpu_milli for task in tasks])

    def ran_s(self, now_s: float) -> float:
        """Return how long the job has been running over all its attempts."""
        is_on = self.phase in _ON
        return self.ran_before_s + (now_s - self.last_started_at_s if is_on else 0.0)

    def gpu_s(self, now_s: float) -> float:
        """Return the GPU-seconds held so far, those of live tasks included."""
        live_gpu_milli_s = sum(
            self.shape_of(task).total_gpu_milli * (now_s - task.bound_at_s)
            for task in self.live_tasks()
        )
        return self.gpu_s_before + live_gpu_milli_s / MILLI


@lru_cache(maxsize=16)
def _stamp(at_s: float) -> str:
    """Return a moment as histories have it: much happens at the same one."""
    return f"{at_s:.3f}"


@value_class(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node as it is now, for readers."""

    node: Node
    is_up: bool
    is_cordoned: bool
    is_draining: bool
    cpu_milli_free: int
    memory_mib_free: int
    gpu_milli_free: tuple[int, ...]
    gpu_is_healthy: tuple[bool, ...]
    n_tasks: int
    reason: str = ""
    n_failures: float = 0.0  # as of the last one; they fade, see `NodeColumns.failures_at`
    failed_at_s: float = 0.0
