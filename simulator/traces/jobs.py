"""Jobs made from the few facts that traces know: when, how much, how long, how it ended."""

import math
from dataclasses import dataclass
from functools import lru_cache

from scheduler.core.model import (
    MILLI,
    JobKind,
    JobPhase,
    JobSpec,
    Launch,
    QueueName,
    Role,
    Shape,
)
from simulator.traces.format import Assumptions
from simulator.workload import Steady, TraceJob

TRACE_LAUNCH = Launch(command=("trace",))
"""What jobs of a trace run: nothing, but a role must name a command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One job as most traces describe it."""

    key: str
    at_s: float
    run_s: float
    roles: tuple[Role, ...]
    ends_as: JobPhase = JobPhase.SUCCEEDED
    queue: str = "default"
    submitter: str = ""
    name: str = ""  # empty: the key
    kind: JobKind = JobKind.TRAINING
    estimate_s: float = 0.0  # the user's; 0: none
    time_limit_s: float = 0.0


def job_of(facts: Facts, assume: Assumptions) -> TraceJob:
    """Return the job that works for `run_s` wherever it runs, and then ends."""
    estimate_s = facts.run_s if assume.knows_run_time else facts.estimate_s
    spec = JobSpec(
        name=facts.name or facts.key,
        roles=facts.roles,
        kind=facts.kind,
        queue=QueueName(facts.queue),
        preemptible=assume.preemptible,
        checkpoint_interval_s=assume.checkpoint_interval_s,
        expected_run_s=estimate_s,
        time_limit_s=facts.time_limit_s,
    )
    return TraceJob(
        at_s=facts.at_s,
        spec=spec,
        behaviour=Steady(work=facts.run_s, n_tasks=spec.n_tasks),
        key=facts.key,
        submitter=facts.submitter,
        ends_as=facts.ends_as,
    )


@lru_cache(maxsize=65_536)
def role_of(n_tasks: int, shape: Shape, name: str = "worker") -> Role:
    """Return the role of a rigid gang of so many equal tasks; equal ones are one object."""
    return Role(
        name=name,
        launch=TRACE_LAUNCH,
        count=n_tasks,
        min_count=n_tasks,
        max_count=n_tasks,
        shape=shape,
    )


@lru_cache(maxsize=65_536)
def gpu_gang(n_gpus: float, assume: Assumptions) -> tuple[Role, ...]:
    """Return the role of a job of which only its number of GPUs is known.

    Up to a node's worth of GPUs is one task. Beyond, tasks are as equal and as large as fit a
    node: the largest divisor. A fraction of one GPU is shared, other fractions round up.
    """
    if n_gpus == 0:
        return (role_of(1, Shape(cpu_milli=assume.cpu_milli_per_gpu)),)
    if n_gpus < 1:
        gpu_milli = max(1, round(n_gpus * MILLI))
        return (role_of(1, _gpu_shape(gpu_milli, assume)),)
    n_tasks, per_task = tasks_of(math.ceil(n_gpus), assume.gpus_per_node)
    return (role_of(n_tasks, _gpu_shape(per_task * MILLI, assume)),)


def tasks_of(n_devices: int, per_node: int) -> tuple[int, int]:
    """Return into how many equal tasks of how many devices a gang is split: few large ones."""
    per_task = next(n for n in range(min(n_devices, per_node), 0, -1) if n_devices % n == 0)
    return n_devices // per_task, per_task


def _gpu_shape(gpu_milli: int, assume: Assumptions) -> Shape:
    whole, part = divmod(gpu_milli, MILLI)
    return Shape(
        cpu_milli=max(1, assume.cpu_milli_per_gpu * gpu_milli // MILLI),
        memory_mib=assume.memory_mib_per_gpu * gpu_milli // MILLI,
        gpus=whole,
        gpu_milli=part,
    )
