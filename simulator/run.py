"""What a simulation leaves behind: a row per job, what was held over time, and what it cost.

Columns, so that a million jobs fit and figures are computed without loops. Reports read this
and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JobTable:
    """Every job of the run, in the order of submission. Moments that never came are NaN.

    For each job `gpu_s` = `useful_gpu_s` + `lost_gpu_s` + `overhead_gpu_s`: time that held GPUs
    is work that counted, work that was lost, or start-up, restoring and stopping.
    """

    key: list[str]  # id in the trace, or in the run where the trace has none
    name: list[str]
    submitter: list[str]
    queue: list[str]
    kind: list[str]  # JobKind
    phase: list[str]  # JobPhase at the end of the run; not final: it did not get there
    gpu_type: list[str]  # on which it had most time; empty: none
    n_gpus: Floats  # asked for, over all tasks
    n_tasks: Ints
    priority: Ints
    submitted_at_s: Floats
    started_at_s: Floats  # first
    ended_at_s: Floats
    deadline_at_s: Floats  # NaN: none
    waited_s: Floats  # pending, over all attempts
    ran_s: Floats
    alone_s: Floats  # how long it would have run alone on its fastest type; NaN: unknown
    n_attempts: Ints
    n_preemptions: Ints
    n_failures: Ints
    gpu_s: Floats  # held
    useful_gpu_s: Floats
    lost_gpu_s: Floats
    overhead_gpu_s: Floats
    cost_usd: Floats  # of what it held, by the price of its nodes and its part of their GPUs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """Step functions of time: row i of each column holds from `at_s[i]` until `at_s[i + 1]`."""

    at_s: Floats
    n_pending: Ints
    n_running: Ints
    gpus_up: Mapping[str, Floats]  # on nodes that are up, by GPU type
    gpus_held: Mapping[str, Floats]  # by tasks, by GPU type
    gpus_held_by_queue: Mapping[str, Floats]
    fragmentation: Floats  # 0 to 1 of free GPUs, as FGD counts them; NaN: not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFigures:
    """What the machines of one pool did over the run."""

    name: str
    gpu_type: str
    is_spot: bool
    node_s: float  # up
    gpu_s: float  # up
    held_gpu_s: float
    cost_usd: float
    energy_kwh: float  # NaN: unknown
    n_launches: int = 0
    n_interruptions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFigures:
    """How well a service answered, by a queueing model of its replicas."""

    name: str
    n_requests: float
    within_target: float  # fraction of the requests answered within their target latency
    p99_latency_s: float
    replica_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replicas:
    """The replicas of a service that were ready to answer, as step functions of time."""

    key: str
    name: str
    at_s: Floats
    n_ready: Mapping[str, Ints]  # by GPU type; empty: on no GPU


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One simulated run."""

    policy: str
    seed: int
    trace: str
    from_s: float
    until_s: float  # when nothing could start or end any more, or where it was cut off
    jobs: JobTable
    timeline: Timeline
    pools: tuple[PoolFigures, ...]
    services: tuple[ServiceFigures, ...] = ()
    replicas: tuple[Replicas, ...] = ()  # of every service
    counters: Mapping[str, float] = field(default_factory=dict)  # cycles, events, wall_s, ...
