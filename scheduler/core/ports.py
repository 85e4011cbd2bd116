"""What the core asks of others: a policy to decide by, an executor to act.

Protocols only. Policies are pure and live in `policies`; executors are shells.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from scheduler.core.events import Event
from scheduler.core.model import DEFAULT_LEVELS, Levels, Shape, Task
from scheduler.core.node_books import NodeBooks
from scheduler.core.node_columns import NodeColumns
from scheduler.core.plan import Accepted, Granted, Start
from scheduler.core.snapshot import Snapshot

Rows = NDArray[np.intp]
"""Row numbers of a table, one-dimensional."""


class Ordering(Protocol):
    """Who is served first."""

    def __call__(self, snapshot: Snapshot, rows: Rows) -> Rows:
        """Return `rows` of `snapshot.jobs` sorted, first served first; ties end in sequence."""


class PreemptionRule(Protocol):
    """Whose tasks may be stopped for whom."""

    def __call__(self, snapshot: Snapshot, row: int, running: Rows) -> Rows:
        """Return those `running` rows of `snapshot.jobs` that may make room for job `row`."""


class NodeScore(Protocol):
    """Where a task goes best."""

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> NDArray[np.float64]:
        """Return a score for each of the node `rows`, highest best; ties go to the lowest row.

        Called only with rows that fit the shape or with any rows: infeasible ones are masked
        by the caller.
        """


@runtime_checkable
class DeviceChoice(Protocol):
    """A `NodeScore` that also says which devices of the node a task gets.

    Scores that do not say so are served by best fit: `capacity.choose_devices`.
    """

    def choose_devices(
        self, nodes: NodeColumns, row: int, shape: Shape
    ) -> tuple[int, ...] | None:
        """Return the devices for one more task on the node, or None if they do not suffice."""


@runtime_checkable
class NodeByNodeScore(Protocol):
    """A `NodeScore` that can also be asked for one node at a time, with exactly equal answers.

    Few nodes change between two tasks, and numpy is slow on few. Chooses devices alike.
    """

    def of_node(self, shape: Shape) -> Callable[[NodeBooks], float]:
        """Return the score of a node for one more such task, given its books."""

    def devices_on(self, books: NodeBooks, shape: Shape) -> tuple[int, ...] | None:
        """Return the devices for one more task on the node, or None if they do not suffice."""


@runtime_checkable
class ClusterScore(Protocol):
    """A `NodeScore` of the whole cluster: a change on one node may change it on every other.

    Scores that do not say so are asked again for changed nodes only.
    """

    sees_other_nodes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """How a policy that lets jobs take turns serves this cycle, instead of its own rules."""

    order: Ordering
    may_preempt: PreemptionRule
    """May depend on the job, not only on its gang, queue and priority."""
    gpu_types: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """By job row, the only types of GPU on which the job may start now."""
    beside: Mapping[int, int] = field(default_factory=dict)
    """By job row, the row of the job whose GPUs it shares now, once that one has them."""
    moves: tuple[int, ...] = ()
    """Running job rows that stop in order to start again elsewhere."""
    sizes: Mapping[int, int] = field(default_factory=dict)
    """By job row of an elastic gang, the number of tasks that it should have."""
    resizes: tuple[int, ...] = ()
    """Running job rows of `sizes` that restart for theirs now."""
    sizes_jobs: bool = False
    """Whether elastic gangs have no other size: they grow and give way as this says."""
    wake_at_s: float = np.inf
    """When the next round begins; infinite: it would change nothing."""
    granted: Mapping[str, Granted] = field(default_factory=dict)
    """What to hand to the next decision; see `Plan.granted`."""
    notes: Mapping[int, str] = field(default_factory=dict)
    """By job row, what there is to say of it, for people."""
    excuse: str = ""
    """Why jobs are not served as they should be, for people; empty: they are."""
    are_equals_alike: bool = False
    """Whether jobs of equal gang, queue and priority may stop the same others."""


class RoundRule(Protocol):
    """Who has a turn."""

    def __call__(self, snapshot: Snapshot) -> Round | None:
        """Return how the waiting are served now; None: by the policy's own order and rule."""


class Backfilling(StrEnum):
    """Who may start before a gang that comes first and fits nowhere yet."""

    NONE = "none"  # nobody, on nodes that the gang could use
    EASY = "easy"  # whoever does not delay the first such gang
    CONSERVATIVE = "conservative"  # whoever delays none of the first few


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How to decide, put together from independent parts."""

    name: str
    order: Ordering
    may_preempt: PreemptionRule
    score: NodeScore
    rounds: RoundRule | None = None
    inside: Mapping[str, "Policy"] = field(default_factory=dict, compare=False, repr=False)
    """The policies that queues may name, for the jobs in them; see `queue_policies`."""
    backfill: Backfilling = Backfilling.EASY
    backfill_depth: int = 8
    """How many gangs conservative backfill keeps places for at once."""
    patience_s: float = 600.0
    """How long a gang waits for running jobs of which nobody knows when they end, before
    places are kept for it that smaller jobs would take again and again."""
    starvation_s: float = 86_400.0
    """How long a gang waits at most before places are kept for it whatever others promised."""
    defragments: bool = False
    """Whether jobs that keep checkpoints are moved when that lets a waiting gang start."""
    levels: Levels = DEFAULT_LEVELS
    """Of the topology, above the node."""


class Executor(Protocol):
    """Makes accepted plans true and reports what happened as events.

    Every method is idempotent per `TaskId`: a task attempt is started at most once, ever,
    also across restarts of the daemon. Events are reported in order per task: `TaskStarted`
    (may be missing if it could not start) before `TaskEnded`; `TaskEnded` exactly once per
    attempt in the life of the daemon, and again after a restart if it was not acknowledged.
    """

    async def recover(self, live: Sequence[Start]) -> None:
        """Adopt after a restart.

        `live` are all tasks that the state counts as BOUND, RUNNING or STOPPING. Those that run
        are adopted; those that ended meanwhile are reported; those never started are started
        if BOUND, reported as stopped if STOPPING; whatever else runs is an orphan and killed.
        """

    def submit(self, accepted: Accepted) -> None:
        """Take over the starts and evictions; return at once, act in the background."""

    async def signal(self, tasks: Sequence[Task], signal_number: int) -> None:
        """Send a signal to the tasks' processes."""

    async def close(self) -> None:
        """Stop watching; running tasks live on."""


ReportEvent = Callable[[Event], None]
"""How an executor, or another source, hands events to the daemon; never blocks."""
