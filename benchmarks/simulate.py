"""How fast simulations are: by the length of the trace, the size of the cluster and the policy.

    python benchmarks/simulate.py           bounded, as part of `make bench`
    python benchmarks/simulate.py --full    a million jobs, and 10,000 nodes as well

The jobs are short ones (median 10 minutes, lognormal) of 1 to 64 GPUs that arrive by chance at
90 % of what the cluster can do; decisions are at least 10 s apart, as Slurm's are 30 s with
backfill. Seconds are those of one core's work, so that others on the machine do not count.
"""

import argparse
import math
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from report import report

from policies.registry import policy_named
from scheduler.core.model import JobSpec, Launch, Role, Shape
from simulator.cluster import uniform_cluster
from simulator.presets import preset
from simulator.simulation import Settings, simulate
from simulator.synthetic import generate, scaled_to
from simulator.traces.transforms import with_estimates
from simulator.workload import Steady, TraceJob

MEDIAN_S, SIGMA = 600.0, 1.0
SIZES = ((1, 0.6), (2, 0.15), (4, 0.1), (8, 0.1), (16, 0.03), (64, 0.02))  # GPUs, share
LOAD = 0.9
DECIDE_EVERY_S = 10.0
LAUNCH = Launch(command=("true",))


def jobs_for(n_nodes: int, n_jobs: int, *, seed: int = 1) -> Iterator[TraceJob]:
    draw = random.Random(seed)
    mean_gpu_s = sum(size * share for size, share in SIZES) * MEDIAN_S * math.exp(SIGMA**2 / 2)
    rate_per_s = LOAD * n_nodes * 8 / mean_gpu_s
    roles = {size: role_of(size) for size, _ in SIZES}
    sizes, shares = zip(*SIZES, strict=True)
    at_s = 0.0
    for _ in range(n_jobs):
        at_s += draw.expovariate(rate_per_s)
        (size,) = draw.choices(sizes, shares)
        run_s = draw.lognormvariate(math.log(MEDIAN_S), SIGMA)
        yield TraceJob(
            at_s=at_s,
            spec=JobSpec(name="job", roles=(roles[size],), expected_run_s=run_s),
            behaviour=Steady(work=run_s, n_tasks=roles[size].count),
        )


def role_of(n_gpus: int) -> Role:
    width = min(n_gpus, 8)
    count = n_gpus // width
    shape = Shape(gpus=width, cpu_milli=width * 8_000, memory_mib=width * 65_536)
    return Role(name="worker", launch=LAUNCH, count=count, shape=shape)


def timed(
    jobs: Iterator[TraceJob],
    n_nodes: int,
    policy: str = "fifo",
    *,
    decide_every_s: float = DECIDE_EVERY_S,
) -> tuple[float, dict[str, float]]:
    """Return the CPU seconds of a run, and its counters."""
    start_s = time.process_time()
    run = simulate(
        uniform_cluster(n_nodes),
        jobs,
        policy_named(policy),
        settings=Settings(decide_every_s=decide_every_s),
    )
    took_s = time.process_time() - start_s
    assert set(run.jobs.phase) <= {"succeeded", "failed", "cancelled"}
    return took_s, dict(run.counters)


def by_length(lengths: list[int]) -> None:
    """Report jobs per second by the length of the trace, and how the cost grows."""
    per_job_s = []
    for n_jobs in lengths:
        took_s, counters = timed(jobs_for(1_000, n_jobs), 1_000)
        per_job_s.append(took_s / n_jobs)
        report(
            benchmark="simulate",
            case="fifo with EASY backfill",
            value=n_jobs / took_s,
            unit="jobs/s",
            goal=1e6 / 300,
            size=f"{n_jobs:,} jobs, 1,000 nodes of 8 GPUs, {counters['decisions']:,} decisions",
        )
    growth = per_job_s[-1] / per_job_s[0]
    report(
        benchmark="simulate",
        case="cost of a job, long trace against short",
        value=growth,
        unit="x",
        better="lower",
        goal=math.log(lengths[-1]) / math.log(lengths[0]),
        size=f"{lengths[-1]:,} against {lengths[0]:,} jobs",
    )
    report(
        benchmark="simulate",
        case="memory at the end",
        value=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        unit="MiB",
        better="lower",
        goal=2048,
        size=f"{lengths[-1]:,} jobs",
    )


def by_nodes(sizes: list[int], n_jobs: int) -> None:
    for n_nodes in sizes:
        took_s, counters = timed(jobs_for(n_nodes, n_jobs), n_nodes)
        report(
            benchmark="simulate",
            case="fifo with EASY backfill, by cluster",
            value=counters["events"] / took_s,
            unit="events/s",
            size=f"{n_jobs:,} jobs, {n_nodes:,} nodes",
        )


def by_policy(policies: tuple[str, ...], n_nodes: int, n_jobs: int) -> None:
    for policy in policies:
        took_s, counters = timed(jobs_for(n_nodes, n_jobs), n_nodes, policy)
        report(
            benchmark="simulate",
            case=f"policy {policy}",
            value=took_s / counters["decisions"] * 1000,
            unit="ms/decision",
            better="lower",
            size=f"{n_jobs:,} jobs, {n_nodes:,} nodes, {n_jobs / took_s:.0f} jobs/s",
        )


def contended(n_nodes: int, n_jobs: int) -> None:
    """Report gangs of every width at twice the load; nobody knows when they end."""
    draw = random.Random(1)
    widest = n_nodes * 8
    widths = [
        min(round(math.exp(draw.uniform(0, math.log(widest)))), widest) for _ in range(n_jobs)
    ]
    run_s = [draw.lognormvariate(math.log(MEDIAN_S), SIGMA) for _ in range(n_jobs)]
    span_s = sum(w * s for w, s in zip(widths, run_s, strict=True)) / widest / 2
    shape = Shape(gpus=1, cpu_milli=8_000, memory_mib=65_536)
    jobs = (
        TraceJob(
            at_s=span_s * number / n_jobs,
            spec=JobSpec(
                name="job",
                roles=(Role(name="worker", launch=LAUNCH, count=width, shape=shape),),
            ),
            behaviour=Steady(work=work_s, n_tasks=width),
        )
        for number, (width, work_s) in enumerate(zip(widths, run_s, strict=True))
    )
    took_s, counters = timed(jobs, n_nodes, "shortest_job", decide_every_s=0.0)
    report(
        benchmark="simulate",
        case="shortest_job, gangs of every width at twice the load",
        value=took_s / counters["decisions"] * 1000,
        unit="ms/decision",
        better="lower",
        size=f"{n_jobs:,} jobs, {n_nodes:,} nodes, {counters['decisions']:,} decisions",
    )


def as_helios(n_nodes: int, n_jobs: int) -> None:
    """Report a workload with the statistics of a real cluster: wide gangs, long tails."""
    workload = scaled_to(preset("helios"), n_nodes * 8)
    took_s, counters = timed(with_estimates(generate(workload, seed=1, n_jobs=n_jobs)), n_nodes)
    report(
        benchmark="simulate",
        case="fifo on the preset helios",
        value=n_jobs / took_s,
        unit="jobs/s",
        size=f"{n_jobs:,} jobs, {n_nodes:,} nodes, {counters['decisions']:,} decisions",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="a million jobs, 10,000 nodes")
    is_full = parser.parse_args().full
    by_length([10_000, 100_000, 1_000_000] if is_full else [5_000, 20_000])
    by_nodes([100, 1_000, 10_000] if is_full else [100, 1_000], 5_000)
    by_policy(("fifo", "priority", "shortest_job", "least_attained_service"), 100, 2_000)
    by_policy(("max_min_fairness",), 20, 300)
    contended(16, 300 if not is_full else 2_000)
    as_helios(100, 5_000 if not is_full else 50_000)


if __name__ == "__main__":
    main()
