"""What a simulation is fed: jobs as their users submit them, and the truth about them.

The scheduler sees the spec of a job and nothing else. How long the job really takes, how fast
it is where, and how it ends is known to the world alone: its `Behaviour`, and the rest of
`TraceJob`.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol

from scheduler.core.model import JobPhase, JobSpec, SharedThroughput
from scheduler.core.values import value_class

FOREVER = float("inf")


@value_class(frozen=True, slots=True, kw_only=True)
class Gang:
    """The tasks of a job at work, as far as their speed depends on them."""

    n_tasks: int
    n_gpus: float  # over all tasks; fractions of devices count as such
    gpu_types: tuple[str, ...]  # of its nodes, sorted, each once; empty: no GPU
    n_nodes: int
    n_racks: int  # 1 where nobody said where racks are
    neighbours: tuple[str, ...] = ()  # profiles, or names, of jobs on the same devices, sorted


class Speed(NamedTuple):
    """Work per second, and the amount of work done up to which it holds."""

    per_s: float
    until_done: float = FOREVER


class Behaviour(Protocol):
    """How a job goes once it runs. Pure: equal questions get equal answers."""

    @property
    def work(self) -> float:
        """The work after which the job is done, in a unit of the job's own."""

    def speed(self, gang: Gang, done: float) -> Speed:
        """Return how fast the gang works with so much work done."""


@value_class(frozen=True, slots=True, kw_only=True)
class Steady:
    """Work at a constant speed per type of GPU: the behaviour of nearly every trace.

    `speeds` is the work per second of the whole gang by GPU type, at `n_tasks` tasks; empty: 1
    everywhere, so that `work` is in seconds. A gang on several types goes at the slowest one's.
    `scaling` gives the factor at other numbers of tasks, between which it is interpolated;
    empty: proportional to the tasks.
    """

    work: float
    speeds: tuple[tuple[str, float], ...] = ()
    n_tasks: int = 1
    scaling: tuple[tuple[int, float], ...] = ()
    across_racks: float = 1.0  # factor once the gang spans more than one rack
    beside_others: float = 1.0  # factor once others share its devices
    beside: tuple[SharedThroughput, ...] = ()  # instead of all that, beside one of a profile

    def speed(self, gang: Gang, done: float) -> Speed:
        """Return the speed where the gang runs; `done` does not matter."""
        for measured in self.beside:
            if (measured.beside,) == gang.neighbours and (
                (measured.gpu_type,) == gang.gpu_types
            ):
                return Speed(measured.per_s)
        per_s = 1.0
        if self.speeds and gang.gpu_types:
            by_type = dict(self.speeds)
            per_s = min([by_type.get(gpu_type, 0.0) for gpu_type in gang.gpu_types])
        if gang.n_tasks != self.n_tasks:
            per_s *= self._factor(gang.n_tasks)
        if gang.n_racks > 1:
            per_s *= self.across_racks
        if gang.neighbours:
            per_s *= self.beside_others
        return Speed(per_s)

    def _factor(self, n_tasks: int) -> float:
        if not self.scaling:
            return n_tasks / self.n_tasks
        points = sorted(self.scaling)
        for (low, at_low), (high, at_high) in pairwise(points):
            if low <= n_tasks <= high:
                return at_low + (at_high - at_low) * (n_tasks - low) / (high - low)
        return points[0][1] if n_tasks < points[0][0] else points[-1][1]


@value_class(frozen=True, slots=True, kw_only=True)
class TraceJob:
    """One arrival: what is submitted, when, and the truth about it.

    An attempt first starts up (`startup_s`; an attempt after one that saved work also restores
    it, `restore_s`), then works. It saves its work every `spec.checkpoint_interval_s`, and when
    it is asked to stop if its grace is as long as `save_s`; what was not saved is lost with the
    attempt. When its work is done it ends as `ends_as`.

    Dependencies of the spec name other jobs by their `key`. A service works from its first
    start on, whatever becomes of its replicas; with work without end it runs until the end.
    """

    at_s: float
    spec: JobSpec
    behaviour: Behaviour
    key: str = ""  # its id in the trace
    submitter: str = ""
    startup_s: float = 0.0
    restore_s: float = 0.0
    save_s: float = FOREVER  # to save its work when asked to stop; FOREVER: it does not
    ends_as: JobPhase = (
        JobPhase.SUCCEEDED
    )  # or FAILED: exits badly; CANCELLED: its user gives up


@value_class(frozen=True, slots=True, kw_only=True)
class NodeOutage:
    """A node, or some of its devices, is gone for a while; tasks there are lost.

    With a notice (a spot interruption) the node drains from `at_s` on, and is gone so much
    later.
    """

    at_s: float
    node: str
    until_s: float = FOREVER
    gpus: tuple[int, ...] = ()  # empty: the whole node
    notice_s: float = 0.0


TraceJobs = Iterator[TraceJob]
"""Arrivals by rising `at_s`. Read as the simulation goes: a trace may be longer than memory."""
