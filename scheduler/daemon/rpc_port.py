"""What the services ask of the daemon. `daemon.Daemon` is one; tests may bring another."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from scheduler.clock import Clock
from scheduler.config import DaemonConfig
from scheduler.core.engine import Engine
from scheduler.core.events import Event
from scheduler.core.model import JobId
from scheduler.core.plan import Accepted, Granted, Outcome, Rejected, Unplaced
from scheduler.core.ports import Executor, Policy
from scheduler.core.records import JobRecord
from scheduler.core.snapshot import Snapshot
from scheduler.daemon.job_store import JobStore
from scheduler.daemon.metrics import Metrics
from scheduler.daemon.rpc_errors import CommandRefused
from scheduler.daemon.telemetry import Telemetry
from scheduler.daemon.watch import WatchHub


class DaemonPort(Protocol):
    """The daemon as its services see it."""

    @property
    def config(self) -> DaemonConfig:
        """What it was told."""

    @property
    def clock(self) -> Clock:
        """Its clock."""

    @property
    def policy(self) -> Policy:
        """How it decides."""

    @property
    def engine(self) -> Engine:
        """Its state."""

    @property
    def store(self) -> JobStore:
        """The finished jobs, and lists."""

    @property
    def watch(self) -> WatchHub:
        """Who listens to changes of jobs."""

    @property
    def telemetry(self) -> Telemetry:
        """The latest figures of GPUs."""

    @property
    def metrics(self) -> Metrics:
        """Where it counts."""

    @property
    def executor(self) -> Executor:
        """Who runs tasks."""

    @property
    def unplaced(self) -> Mapping[JobId, Unplaced]:
        """Why jobs wait, as of the last decision."""

    @property
    def expected_start_at_s(self) -> Mapping[JobId, float]:
        """When jobs with promised places should start, as of the last decision."""

    @property
    def notes(self) -> Mapping[JobId, str]:
        """What the policy has to say of jobs, as of the last decision."""

    @property
    def granted(self) -> Mapping[str, Granted]:
        """What programs of shares answered last, by queue."""

    @property
    def started_at_s(self) -> float:
        """When it started."""

    @property
    def degraded_reason(self) -> str | None:
        """Why it serves reads only; None: it serves everything."""

    def snapshot(self) -> Snapshot:
        """Return the cluster as it is now."""

    def now_s(self) -> float:
        """Return the time, never before that of the last event."""

    async def find(self, job_id: JobId) -> JobRecord | None:
        """Return a job, live or finished."""

    async def execute(self, event: Event) -> Outcome:
        """Make a command durable, then observe it."""

    async def execute_all(self, events: Sequence[Event]) -> list[Outcome]:
        """Make commands durable together, then observe them in order."""


def accepted(outcome: Outcome) -> Accepted:
    """Return what followed from a command, or raise that it was refused."""
    if isinstance(outcome, Rejected):
        raise CommandRefused(outcome)
    return outcome
