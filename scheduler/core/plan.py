"""What a cycle decides: placements, evictions, and a reason for every job left waiting.

`decide` yields a `Plan`; `PlanCommitted` carries its actions into the journal; what the engine
accepts of it comes back as an `Accepted` outcome and goes to the executor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.core.model import Job, JobId, NodeName, StopCause, Task, TaskId, TaskPhase
from scheduler.core.records import JobRecord, Seat
from scheduler.core.values import value_class

# Looked up once: on its class a member takes five times as long to find (CPython 3.11).
_BOUND = TaskPhase.BOUND


class Cause(StrEnum):
    """Why a node cannot take a task, or why a job cannot start at all."""

    # of a node, in the order in which they are told apart
    NODE_DOWN = "node_down"
    CORDONED = "cordoned"
    LABELS = "labels"
    TAINTS = "taints"
    GPU_TYPE = "gpu_type"
    GPU_MEMORY = "gpu_memory"
    GPUS = "gpus"
    GPU_FRACTION = "gpu_fraction"
    CPU = "cpu"
    MEMORY = "memory"
    # of a job
    GANG = "gang"  # single tasks fit, the whole gang does not
    TOPOLOGY = "topology"  # the whole gang fits, but not in one domain of a level
    NO_NODES = "no_nodes"
    DEPENDENCY = "dependency"
    START_AFTER = "start_after"
    BACKOFF = "backoff"
    SUSPENDED = "suspended"
    QUEUE_STOPPED = "queue_stopped"
    QUOTA = "quota"  # its queue, or one above it, is at a limit
    RELEASE = "release"  # waits for tasks that were asked to stop


@value_class(frozen=True, slots=True, kw_only=True)
class NodeCount:
    """So many nodes cannot take the task for this cause; `detail` is for people.

    It is what they do, in the plural: `lack 4 free GPUs`.
    """

    cause: Cause
    n_nodes: int
    detail: str = ""

    def clause(self) -> str:
        """Return number and detail as people say them: `1 lacks ...`, `2 lack ...`."""
        verb, _, rest = (self.detail or str(self.cause)).partition(" ")
        if self.n_nodes == 1:
            verb = {"are": "is", "have": "has", "lack": "lacks"}.get(verb, verb)
        return f"{self.n_nodes} {verb} {rest}".rstrip()


@value_class(frozen=True, slots=True, kw_only=True)
class Unplaced:
    """Why a job waits. Shared by all jobs that wait for the same reason."""

    cause: Cause
    role: str = ""
    n_nodes: int = 0  # nodes looked at
    n_fit: int = 0  # nodes that could take one task of the role right now
    counts: tuple[NodeCount, ...] = ()  # every other node, most frequent cause first
    detail: str = ""
    until_s: float = 0.0  # a moment before which nothing changes; 0: unknown

    def sentence(self) -> str:
        """Return the reason as one line for people.

        For example `0 of 12 nodes: 8 lack 4 free GPUs, 4 are of type T4, wanted A100`.
        """
        if not self.counts and not self.n_nodes:
            return self.detail or str(self.cause)
        nodes = ", ".join(count.clause() for count in self.counts)
        head = f"{self.n_fit} of {self.n_nodes} node{'' if self.n_nodes == 1 else 's'}"
        line = f"{head}: {nodes}" if nodes else head
        return f"{self.detail}; {line}" if self.detail else line


@value_class(frozen=True, slots=True, kw_only=True)
class Bind:
    """One task on one node, with the devices it gets."""

    task: TaskId
    node: NodeName
    rank: int
    devices: tuple[int, ...] = ()


@value_class(frozen=True, slots=True, kw_only=True)
class Placement:
    """The binds of one job that stand or fall together."""

    job_id: JobId
    binds: tuple[Bind, ...]
    world_size: int
    together: tuple[str, ...] = ()  # node labels on which all its nodes must agree
    beside: JobId | None = None  # the job that has its devices, which the two share


def tasks_of(placement: Placement, at_s: float) -> list[Task]:
    """Return the tasks of a placement, as they are once they are bound."""
    world_size = placement.world_size
    return [
        Task(bind.task, bind.node, bind.rank, world_size, bind.devices, _BOUND, at_s)
        for bind in placement.binds
    ]


@value_class(frozen=True, slots=True, kw_only=True)
class Eviction:
    """Tasks of one job that are asked to stop, with the time they get to save their work."""

    job_id: JobId
    tasks: tuple[TaskId, ...]
    cause: StopCause
    grace_s: float
    detail: str = ""  # for people: for whom it makes room, say
    for_job: JobId | None = None  # who goes first when the job starts again


@value_class(frozen=True, slots=True, kw_only=True)
class Resize:
    """A gang that stops in order to go on, on these seats, with another number of tasks.

    A service needs none: replicas come by a `Placement` and go by an `Eviction`.
    """

    job_id: JobId
    attempt: int  # that stops
    seats: tuple[Seat, ...]
    detail: str = ""  # for people: why


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Granted:
    """What a program of shares answered last: handed from one decision to the next.

    Whoever decides again and again keeps it, and puts it into the next snapshot, so that a
    program without an answer falls back to its last one, and who was promised something keeps
    it. It is no state: after a restart there is none, until a program answers.
    """

    status: str  # how the latest solve ended
    solved_at_s: float  # when a program last had an answer; 0: never
    n_fallbacks: int = 0  # decisions since then
    job_ids: tuple[JobId, ...] = ()
    gpu_types: tuple[str, ...] = ()
    fractions: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    prices: tuple[float, ...] = ()  # by type: what one more GPU would change the value by
    question: bytes = b""  # a digest of what the program was asked, if an answer may be reused
    kept: frozenset[JobId] = frozenset()  # who was promised that a deadline will be met

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        """Return whether all is equal; arrays are not compared by themselves."""
        return isinstance(other, Granted) and all(
            np.array_equal(getattr(self, one.name), getattr(other, one.name))
            if one.name == "fractions"
            else getattr(self, one.name) == getattr(other, one.name)
            for one in fields(self)
        )


@value_class(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything one cycle decided."""

    now_s: float
    placements: tuple[Placement, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    resizes: tuple[Resize, ...] = ()
    makes_room_for: tuple[JobId, ...] = ()
    """In a tree of queues, who others stop or shrink for: they go first until they start."""
    unplaced: Mapping[JobId, Unplaced] = field(default_factory=dict)
    expected_start_at_s: Mapping[JobId, float] = field(default_factory=dict)
    wake_at_s: float | None = None  # when time alone would change the decision
    granted: Mapping[str, Granted] = field(default_factory=dict)
    """By queue, of those that name a policy of shares; empty name: the cluster's."""
    notes: Mapping[JobId, str] = field(default_factory=dict)
    """What the policy has to say of single jobs, for people."""

    @property
    def is_empty(self) -> bool:
        """Whether the plan asks for no action."""
        return not self.placements and not self.evictions and not self.resizes


class Start(NamedTuple):
    """Everything an executor needs to start, or to find again, one task."""

    task: Task
    job: Job
    master_address: str  # of the node of rank 0 in the task's gang


class Accepted(NamedTuple):
    """The event was applied. Says what followed from it, for whoever asked or listens."""

    revision: int
    job_ids: tuple[JobId, ...] = ()  # made, or meant, by a command; of an array its own id
    is_repeat: bool = False  # nothing changed: it had been observed before
    changed: tuple[JobId, ...] = ()  # jobs whose view changed
    finished: tuple[JobRecord, ...] = ()  # reached a final phase; the engine forgets them
    starts: tuple[Start, ...] = ()  # for the executor
    evictions: tuple[Eviction, ...] = ()  # for the executor
    stale: tuple[JobId, ...] = ()  # placements that were dropped


class Refusal(StrEnum):
    """The kinds of refusal; the wire maps each to a canonical status code."""

    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    INVALID = "invalid"
    PRECONDITION = "precondition"  # right request, wrong moment


@value_class(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The event changed nothing. `field` names what was wrong with a command."""

    revision: int
    refusal: Refusal
    message: str
    field: str = ""


Outcome = Accepted | Rejected
