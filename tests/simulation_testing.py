"""Jobs and clusters for tests of the simulator, in a few words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from cluster_testing import role_of

from policies.registry import policy_named
from scheduler.core.model import JobSpec
from simulator.cluster import SimulatedCluster, uniform_cluster
from simulator.run import Run
from simulator.simulation import Settings, simulate
from simulator.workload import Steady, TraceJob


def trace_job(
    key: str,
    *,
    at_s: float = 0.0,
    work_s: float = 100.0,
    tasks: int = 1,
    gpus: float = 1,
    behaviour: Any = None,
    spec: dict[str, Any] | None = None,
    **truth: Any,
) -> TraceJob:
    """Return a job that works for `work_s` wherever it runs."""
    return TraceJob(
        at_s=at_s,
        spec=JobSpec(name=key, roles=(role_of(tasks=tasks, gpus=gpus),), **(spec or {})),
        behaviour=behaviour or Steady(work=work_s, n_tasks=tasks),
        key=key,
        **truth,
    )


def run_of(
    jobs: Sequence[TraceJob],
    *,
    cluster: SimulatedCluster | None = None,
    nodes: int = 1,
    policy: str = "fifo",
    seed: int = 0,
    outages: Any = (),
    **settings: Any,
) -> Run:
    """Return the run of the jobs on that many nodes of 8 GPUs, or on a cluster."""
    return simulate(
        cluster or uniform_cluster(nodes),
        jobs,
        policy_named(policy),
        seed=seed,
        outages=outages,
        settings=Settings(**settings),
    )


def summary(run: Run) -> list[str]:
    """Return what became of every job, a line each."""
    jobs = run.jobs
    return [
        f"{jobs.key[i]} {jobs.started_at_s[i]:g}-{jobs.ended_at_s[i]:g} {jobs.phase[i]}"
        for i in range(len(jobs.key))
    ]


def gpu_s(run: Run) -> dict[str, float]:
    """Return where the GPU time of the run went."""
    jobs, pools = run.jobs, run.pools
    return {
        "up": sum(pool.gpu_s for pool in pools),
        "held": sum(pool.held_gpu_s for pool in pools),
        "of_jobs": float(np.sum(jobs.gpu_s)),
        "useful": float(np.sum(jobs.useful_gpu_s)),
        "lost": float(np.sum(jobs.lost_gpu_s)),
        "overhead": float(np.sum(jobs.overhead_gpu_s)),
    }
