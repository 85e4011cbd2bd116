"""Pollux' simulation (OSDI '21, section 5.3) by our engine: three policies, eight workloads.

16 nodes of 4 GPUs; starting, or going on with other GPUs, takes 30 s and loses no work; sizes
change every 60 s. The rules of the artifact that differ, and what is done here instead:

- Pollux learns throughput and noise of a job while it runs and searches placements by a genetic
  algorithm; here `goodput` knows how a whole job scales and gives sizes by its program.
- Optimus is told the remaining work; here it is worked out from what a job had, by its mean
  speed at each size.
- Jobs start when they arrive if there is room; there, at the next multiple of 60 s.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from policies.goodput import ROUND_S
from policies.orderings import first_come_first_served, nobody
from policies.progress import AttainedService
from policies.registry import POLICIES
from scheduler.core.job_columns import PHASE_CODE
from scheduler.core.model import MILLI, JobPhase, JobSpec
from scheduler.core.ports import Backfilling, Policy, Round
from scheduler.core.snapshot import Snapshot
from simulator.cluster import uniform_cluster
from simulator.simulation import simulate
from simulator.traces.pollux import (
    GPUS_PER_NODE,
    RESTART_S,
    Application,
    application_of,
    job_of_line,
    profiles_beside,
    read_lines,
)
from simulator.traces.source import Source
from simulator.workload import TraceJob

N_NODES = 16
TIRESIAS_GPU_S = 16 * 3600.0
"""Attained service at which Tiresias' artifact moves a job to its second queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimus:
    """A `RoundRule`: GPUs one by one to the job whose remaining time they shorten most.

    Every job gets one first, as they came (Peng et al., EuroSys '18, as Pollux compares to it).
    """

    profiles: str
    n_gpus: int = N_NODES * GPUS_PER_NODE
    round_s: float = ROUND_S

    def __call__(self, snapshot: Snapshot) -> Round:
        """Return the sizes of all jobs."""
        jobs = snapshot.jobs
        rows = np.flatnonzero(jobs.phase >= 0)
        rows = rows[np.argsort(jobs.sequence[rows])]
        begin_s = float(np.floor(snapshot.now_s / self.round_s) * self.round_s)
        is_open = snapshot.now_s < begin_s + 1.0
        sizes = self._sizes(snapshot, rows.tolist())
        running = rows[jobs.phase[rows] == PHASE_CODE[JobPhase.RUNNING]].tolist()
        changed = [row for row in running if 0 < sizes[row] != len(jobs.tasks[row])]
        return Round(
            order=first_come_first_served,
            may_preempt=nobody,
            sizes={row: size for row, size in sizes.items() if size},
            resizes=tuple(changed) if is_open else (),
            sizes_jobs=True,
            wake_at_s=begin_s + self.round_s,
        )

    def _sizes(self, snapshot: Snapshot, rows: Iterable[int]) -> dict[int, int]:
        left = self.n_gpus
        sizes: dict[int, int] = {}
        gains: dict[int, float] = {}
        work: dict[int, float] = {}
        for row in rows:
            sizes[row] = 1 if left else 0
            left -= sizes[row]
            if sizes[row]:
                work[row] = self._steps_left(snapshot, row)
                gains[row] = self._gain(snapshot.job_at(row).spec, 1, work[row])
        while left and gains and max(gains.values()) > 0:
            row = max(gains, key=lambda row: (gains[row], -int(snapshot.jobs.sequence[row])))
            sizes[row] += 1
            left -= 1
            gains[row] = self._gain(snapshot.job_at(row).spec, sizes[row], work[row])
        return sizes

    def _gain(self, spec: JobSpec, n_gpus: int, steps: float) -> float:
        """Return the time that one more GPU saves."""
        (role,) = spec.roles
        if n_gpus + 1 > role.max_count:
            return 0.0
        application, batch_size = self._application(spec)
        now_s = _step_s(application, n_gpus, batch_size)
        return (now_s - _step_s(application, n_gpus + 1, batch_size)) * steps

    def _application(self, spec: JobSpec) -> tuple[Application, int]:
        labels = dict(spec.labels)
        folder = str(Path(self.profiles) / labels["application"])
        return application_of(folder), int(labels["batch_size"])

    def _steps_left(self, snapshot: Snapshot, row: int) -> float:
        """Return the steps that a job has left to do, by what it had."""
        application, batch_size = self._application(snapshot.job_at(row).spec)
        past, tasks = snapshot.jobs.received[row], snapshot.jobs.tasks[row]
        stints = [(stint.until_s - stint.from_s, stint.gpu_s) for stint in past.stints]
        if tasks:
            ran_s = snapshot.now_s - min(task.bound_at_s for task in tasks)
            stints.append((ran_s, ran_s * float(snapshot.jobs.gpu_milli[row]) / MILLI))
        done = 0.0
        for ran_s, gpu_s in stints:
            if ran_s > RESTART_S:
                n_gpus = max(round(gpu_s / ran_s), 1)
                done += (ran_s - RESTART_S) / application.run_s(n_gpus, batch_size)
        left = max(1.0 - done, 0.0)
        return max(left * application.n_steps(batch_size), 1.0)


@lru_cache(maxsize=65_536)
def _step_s(application: Application, n_gpus: int, batch_size: int) -> float:
    atomic, n_more = application.split(batch_size, n_gpus)
    step_s, sync_s = application.step_s(math.ceil(n_gpus / GPUS_PER_NODE), n_gpus, atomic)
    return step_s + n_more * (step_s - sync_s)


def policies(profiles: Path) -> dict[str, Policy]:
    """Return the policies that are compared, ours first."""
    plain = replace(
        POLICIES["fifo"],
        backfill=Backfilling.EASY,
        patience_s=np.inf,
        starvation_s=np.inf,
    )
    tiresias = AttainedService(levels_gpu_s=(TIRESIAS_GPU_S,))
    return {
        "pollux": replace(plain, name="goodput", rounds=POLICIES["goodput"].rounds),
        "tiresias": replace(plain, name="tiresias", rounds=tiresias),
        "optimus": replace(plain, name="optimus", rounds=Optimus(profiles=str(profiles))),
    }


def jobs_of(workload: Path, policy: str) -> list[TraceJob]:
    """Return the jobs of a workload as a policy of the paper sees them."""
    source = Source(workload)
    profiles = profiles_beside(source)
    return [
        job_of_line(
            line,
            profiles,
            is_elastic=policy != "tiresias",
            is_adaptive=policy == "pollux",
        )
        for line in read_lines(source)
    ]


def completion_times_s(workload: Path, policy: str) -> dict[str, float]:
    """Return how long each job of a workload took, from its arrival."""
    jobs = jobs_of(workload, policy)
    cluster = uniform_cluster(N_NODES, gpus=GPUS_PER_NODE)
    chosen = policies(profiles_beside(Source(workload)))[policy]
    run = simulate(cluster, iter(jobs), chosen)
    took_s = run.jobs.ended_at_s - run.jobs.submitted_at_s
    return dict(zip(run.jobs.key, took_s.tolist(), strict=True))
