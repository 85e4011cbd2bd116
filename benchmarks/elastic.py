"""How fast elastic jobs grow into idle GPUs, and give them back to jobs that arrive.

One decision each. The baseline, in the same run: a plain loop over node and job objects, as
most schedulers are written, that looks at all of them for every GPU that changes hands. It
gets a tenth of the nodes and jobs, which is in its favour; rates per GPU are compared.
"""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from decide import timed
from decide_cases import LAUNCH, add_nodes, cluster, spec_of
from report import report

from policies.registry import policy_named
from scheduler.core.cycle import decide
from scheduler.core.engine import Engine
from scheduler.core.events import JobsSubmitted, PlanCommitted
from scheduler.core.model import JobSpec, Role, Shape

N_NODES = 10_000
N_JOBS = 5_000
N_WANTED, N_MOST = 8, 16  # tasks of each, of a GPU
N_ARRIVING = 20  # of a node each
SAMPLE = 10

ONE_GPU = Shape(cpu_milli=8000, memory_mib=16_384, gpus=1)
WORKER = Role(name="worker", launch=LAUNCH, count=N_WANTED, max_count=N_MOST, shape=ONE_GPU)
ELASTIC = JobSpec(name="elastic", roles=(WORKER,), elastic=True, checkpoint_interval_s=60.0)


def crowd(engine: Engine, *, tasks: int) -> None:
    """Start the elastic jobs with so many tasks each, which fill the cluster."""
    for _ in range(N_JOBS):
        engine.observe(JobsSubmitted(at_s=0.0, spec=ELASTIC))
    plan = decide(engine.snapshot(1.0), policy_named("fifo"))
    assert sum(len(p.binds) for p in plan.placements) == N_JOBS * tasks
    engine.observe(PlanCommitted(at_s=1.0, placements=plan.placements))


def growing() -> None:
    """Half of the nodes are full of elastic jobs; the other half comes up idle."""
    engine = cluster(N_NODES // 2)
    crowd(engine, tasks=N_WANTED)
    add_nodes(engine, range(N_NODES // 2, N_NODES))
    took_s, plan = timed(engine)
    n_gpus = sum(len(resize.seats) - N_WANTED for resize in plan.resizes)
    assert n_gpus == N_NODES * 8 - N_JOBS * N_WANTED, n_gpus
    report(
        benchmark="elastic",
        case=f"{N_JOBS:,} jobs grow into idle GPUs",
        value=n_gpus / took_s,
        unit="GPUs/s",
        better="higher",
        baseline="loop over objects per GPU, a tenth of the size, same run",
        baseline_value=loop_to_grow(),
        size=f"{N_NODES} nodes of 8 GPUs, half of them idle; {n_gpus} GPUs in {took_s:.2f} s",
    )


def shrinking() -> None:
    """All nodes are full of elastic jobs that have grown; jobs arrive that need a node each."""
    engine = cluster(N_NODES)
    crowd(engine, tasks=N_MOST)
    for _ in range(N_ARRIVING):
        spec = spec_of(Shape(cpu_milli=8000, memory_mib=16_384, gpus=8))
        engine.observe(JobsSubmitted(at_s=1e5, spec=spec))
    took_s, plan = timed(engine)
    n_gpus = sum(N_MOST - len(resize.seats) for resize in plan.resizes)
    assert not plan.evictions
    assert n_gpus == N_ARRIVING * 8, n_gpus
    report(
        benchmark="elastic",
        case=f"{N_ARRIVING} jobs arrive, {N_JOBS:,} grown jobs shrink for them",
        value=n_gpus / took_s,
        unit="GPUs/s",
        better="higher",
        baseline="loop over objects per GPU, a tenth of the size, same run",
        baseline_value=loop_to_shrink(),
        size=f"{N_NODES} nodes of 8 GPUs, all busy; {n_gpus} GPUs in {took_s:.2f} s",
    )


def objects() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return nodes and jobs of the baseline, half of the nodes idle."""
    nodes = [
        {"type": ("A100", "H100")[i % 2], "free": 8 * (i >= N_NODES // SAMPLE // 2), "by": {}}
        for i in range(N_NODES // SAMPLE)
    ]
    jobs = [
        {"type": nodes[i]["type"], "tasks": [i] * N_WANTED} for i in range(N_JOBS // SAMPLE)
    ]
    for i in range(len(jobs)):
        nodes[i]["by"][i] = N_WANTED
    return nodes, jobs


def grow_one(nodes: list[dict[str, Any]], jobs: list[dict[str, Any]]) -> bool:
    """Give the job that has least of what it wants the GPU that fits it best."""
    least = None
    for number, job in enumerate(jobs):
        has = len(job["tasks"])
        if has < N_MOST and (least is None or has < len(jobs[least]["tasks"])):
            least = number
    if least is None:
        return False
    best = None
    for row, node in enumerate(nodes):
        if node["free"] and node["type"] == jobs[least]["type"]:  # noqa: SIM102  as is usual
            if best is None or node["free"] < nodes[best]["free"]:
                best = row
    if best is None:
        return False
    nodes[best]["free"] -= 1
    nodes[best]["by"][least] = nodes[best]["by"].get(least, 0) + 1
    jobs[least]["tasks"].append(best)
    return True


def loop_to_grow() -> float:
    """Return the GPUs/s of a plain loop."""
    nodes, jobs = objects()
    start_s = time.perf_counter()
    n_gpus = 0
    while grow_one(nodes, jobs):
        n_gpus += 1
    assert n_gpus == N_NODES // SAMPLE * 4, n_gpus
    return n_gpus / (time.perf_counter() - start_s)


def loop_to_shrink() -> float:
    """Return the GPUs/s of a plain loop that shrinks as few jobs as it can for each."""
    nodes, jobs = objects()
    while grow_one(nodes, jobs):
        pass
    start_s = time.perf_counter()
    for _ in range(N_ARRIVING):
        best, fewest = None, 9
        for row, node in enumerate(nodes):
            spare = sum(
                min(n, len(jobs[owner]["tasks"]) - N_WANTED) for owner, n in node["by"].items()
            )
            if spare + node["free"] >= 8 and len(node["by"]) < fewest:
                best, fewest = row, len(node["by"])
        assert best is not None
        for owner, n in list(nodes[best]["by"].items()):
            for _ in range(n):
                jobs[owner]["tasks"].remove(best)
        nodes[best] = {"type": nodes[best]["type"], "free": 0, "by": {}}
    return N_ARRIVING * 8 / (time.perf_counter() - start_s)


if __name__ == "__main__":
    growing()
    shrinking()
