"""How fast one `decide` is: single tasks, gangs, a hopeless queue, preemption, a large cluster.

Baselines: in the same run a plain loop over node objects, as most schedulers are written, on a
sample of the same jobs (`plain_loop` where queues, FGD and racks count); and for gangs what
kube-scheduler's own CI asserts at 5,000 nodes (3.7 ms, the best of 3.7 to 5.7; 810 pods/s plain
and 180 pods/s for extended resources are its floors for single pods).
"""

import random
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from decide_cases import (
    N_NODES,
    RACK_NODES,
    cluster,
    contest,
    crowd,
    put_tree,
    shapes,
    spec_of,
    submit,
)
from plain_loop import PlainLoop
from report import report

from policies.registry import policy_named
from scheduler.core.cycle import decide
from scheduler.core.engine import Engine
from scheduler.core.events import JobsSubmitted, PlanCommitted, QueuePut
from scheduler.core.model import (
    DEFAULT_LEVELS,
    JobSpec,
    Queue,
    QueueName,
    Shape,
)
from scheduler.core.plan import Plan


def timed(
    engine: Engine,
    policy_name: str = "fifo",
    *,
    now_s: float = 1e6,
    score: str | None = None,
) -> tuple[float, Plan]:
    snapshot = engine.snapshot(now_s)
    policy = policy_named(policy_name, score=score, snapshot=snapshot)
    best_s, plan = float("inf"), None
    for _ in range(3):
        start_s = time.perf_counter()
        plan = decide(snapshot, policy)
        best_s = min(best_s, time.perf_counter() - start_s)
    assert plan is not None
    return best_s, plan


def loop_over_objects(n_sample: int, options: list[Shape]) -> float:
    """Return placements/s of first-fit-by-score over Python objects, on a sample of jobs."""
    nodes = [
        {"cpu": 128_000, "memory": 1_048_576, "gpus": 8, "type": ("A100", "H100")[i % 2]}
        for i in range(N_NODES)
    ]
    draw = random.Random(11)
    start_s = time.perf_counter()
    for _ in range(n_sample):
        shape = draw.choice(options)
        best, best_score = None, float("-inf")
        for node in nodes:
            if (
                node["cpu"] >= shape.cpu_milli
                and node["memory"] >= shape.memory_mib
                and node["gpus"] >= shape.gpus
                and (not shape.gpu_types or node["type"] in shape.gpu_types)
            ):
                score = -node["gpus"] - node["cpu"] / 16_000
                if score > best_score:
                    best, best_score = node, score
        if best is not None:
            best["cpu"] -= shape.cpu_milli
            best["memory"] -= shape.memory_mib
            best["gpus"] -= shape.gpus
    return n_sample / (time.perf_counter() - start_s)


def singles() -> None:
    options = shapes(40)
    engine = cluster(N_NODES)
    submit(engine, 10_000, options)
    took_s, plan = timed(engine)
    n_placed = sum(len(p.binds) for p in plan.placements)
    report(
        benchmark="decide",
        case="10,000 single tasks of 40 shapes",
        value=n_placed / took_s,
        unit="placements/s",
        better="higher",
        goal=20_000,
        goal_of="value",
        baseline="loop over node objects, same run",
        baseline_value=loop_over_objects(200, options),
        size=f"{N_NODES} nodes of 8 GPUs, {n_placed} placed, {len(plan.unplaced)} waiting",
    )


def gangs() -> None:
    engine = cluster(N_NODES)
    options = [
        replace(s, gpu_milli=0, gpus=g)
        for s, g in zip(shapes(40), [1, 2, 4, 8] * 10, strict=True)
    ]
    submit(engine, 3_000, options, tasks=3)
    took_s, plan = timed(engine)
    assert len(plan.placements) > 2_500, len(plan.placements)
    report(
        benchmark="decide",
        case="3,000 gangs of 3",
        value=took_s / 3_000 * 1e3,
        unit="ms/gang",
        better="lower",
        goal=0.5,
        goal_of="value",
        baseline="kube-scheduler's published gang figure, best",
        baseline_value=3.7,
        size=f"{N_NODES} nodes of 8 GPUs, {len(plan.placements)} gangs placed",
    )


def hopeless() -> None:
    engine = cluster(N_NODES)
    options = [replace(s, gpus=9, gpu_milli=0) for s in shapes(40)]
    submit(engine, 100_000, options)
    took_s, plan = timed(engine, "priority")
    assert len(plan.unplaced) == 100_000
    assert not plan.placements
    report(
        benchmark="decide",
        case="100,000 pending, none fits, with reasons",
        value=took_s,
        unit="s",
        better="lower",
        goal=1.0,
        size=f"{N_NODES} nodes of 8 GPUs",
    )


def backfilling() -> None:
    """Nine tenths are busy until known ends; a wide gang is first, short jobs may pass it."""
    draw = random.Random(3)
    engine = cluster(N_NODES)
    n_running = N_NODES * 8 * 9 // 10
    one = spec_of(Shape(cpu_milli=8000, memory_mib=16384, gpus=1))
    running = [replace(one, expected_run_s=float(run_s)) for run_s in range(600, 90_000, 600)]
    for _ in range(n_running):
        engine.observe(JobsSubmitted(at_s=0.0, spec=draw.choice(running)))
    plan = decide(engine.snapshot(1e5), policy_named("fifo"))
    for first in range(0, n_running, 1000):
        batch = plan.placements[first : first + 1000]
        engine.observe(PlanCommitted(at_s=1e5 + first / 100, placements=batch))
    wide = spec_of(Shape(cpu_milli=8000, gpus=8), tasks=600)
    engine.observe(JobsSubmitted(at_s=1.2e5, spec=replace(wide, expected_run_s=3600.0)))
    specs = [
        replace(spec_of(shape), expected_run_s=run_s)
        for shape in shapes(40)
        for run_s in (0.0, 300.0, 3e3, 3e4, 3e5)
    ]
    for i in range(10_000):
        engine.observe(JobsSubmitted(at_s=1.2e5 + i / 100, spec=draw.choice(specs)))
    took_s, plan = timed(engine, now_s=1.202e5)
    assert list(plan.expected_start_at_s) == [str(n_running + 1)]
    report(
        benchmark="decide",
        case="10,000 pending, a wide gang has places promised",
        value=len(plan.placements) / took_s,
        unit="placements/s",
        better="higher",
        goal=10_000,
        goal_of="value",
        size=f"{N_NODES} nodes of 8 GPUs, {n_running} busy, {len(plan.placements)} pass it",
    )


def preempting() -> None:
    """A full cluster, and gangs of 8 GPUs that all have to make room for themselves."""
    n_gangs = 250
    engine = cluster(N_NODES)
    crowd(engine, N_NODES * 8, Shape(cpu_milli=8000, memory_mib=16384, gpus=1))
    for tasks, gpus in ((1, 8), (8, 1)):
        spec = spec_of(Shape(cpu_milli=8000, gpus=gpus), tasks=tasks, priority=9)
        for _ in range(n_gangs // 2):
            engine.observe(JobsSubmitted(at_s=2e5, spec=spec))
    took_s, plan = timed(engine, "priority")
    assert len(plan.evictions) == n_gangs * 8, len(plan.evictions)
    report(
        benchmark="decide",
        case="250 gangs of 8 GPUs preempt",
        value=took_s,
        unit="s",
        better="lower",
        goal=3.0,
        size=f"{N_NODES} nodes of 8 GPUs, all busy with {N_NODES * 8} jobs",
    )


def large() -> None:
    """Twice the nodes, 50,000 running, 50,000 pending of which some fit and some preempt."""
    n_nodes, n_jobs = 10_000, 50_000
    engine = cluster(n_nodes)
    crowd(engine, n_jobs, Shape(cpu_milli=8000, memory_mib=16384, gpus=1))
    # One in fifty may stop others.
    submit(engine, n_jobs, shapes(40), priorities=(*[0] * 49, 9))
    took_s = large_by(engine, "priority")
    large_by(engine, "lepton", baseline=("priority, same run", took_s))


def large_by(engine: Engine, policy: str, *, baseline: tuple[str, float] = ("", 0.0)) -> float:
    took_s, plan = timed(engine, policy)
    report(
        benchmark="decide",
        case="50,000 running, 50,000 pending" + (f", {policy}" if baseline[0] else ""),
        value=took_s,
        unit="s",
        better="lower",
        goal=3.0,
        goal_of="value",
        baseline=baseline[0] or None,
        baseline_value=baseline[1] or None,
        size=f"{len(engine.snapshot(1e6).nodes.nodes)} nodes of 8 GPUs, "
        f"{len(plan.placements)} placed, {len(plan.unplaced)} waiting",
    )
    return took_s


def tenants() -> None:
    """A tree of 1,000 queues, each with a guarantee, a limit and jobs."""
    engine = cluster(N_NODES)
    leaves = put_tree(engine)
    draw = random.Random(11)
    specs = [spec_of(shape) for shape in shapes(40)]
    for i in range(10_000):
        spec = replace(draw.choice(specs), queue=draw.choice(leaves))
        engine.observe(JobsSubmitted(at_s=float(i), spec=spec))
    took_s, plan = timed(engine)
    report(
        benchmark="decide",
        case="10,000 single tasks in a tree of 1,000 queues",
        value=len(plan.placements) / took_s,
        unit="placements/s",
        better="higher",
        goal=10_000,
        goal_of="value",
        size=f"{N_NODES} nodes of 8 GPUs, {len(plan.placements)} placed, "
        f"{len(plan.unplaced)} waiting",
    )


def everything(*, is_contested: bool = False) -> None:
    """All at once: the tree, backfill, FGD, and gangs that want to be together.

    One job in twenty is a gang of 2 to 16 tasks, half of which require a rack and half prefer
    one. Contested: a third is busy until known ends, all over, and a gang of 600 nodes, which
    fits nowhere, is promised places.
    """
    draw = random.Random(3)
    engine = cluster(N_NODES, has_racks=True)
    leaves = put_tree(engine)
    if is_contested:
        contest(engine, leaves)
    singles = [spec_of(shape) for shape in shapes(40)]
    gangs = [
        replace(spec_of(s, tasks=n), topology_required=required, topology_preferred="rack")
        for s in shapes(40)
        for n in (2, 4, 8, 16)
        for required in ("rack", "")
    ]
    specs = []
    for i in range(10_000):
        spec = draw.choice(gangs if draw.random() < 0.05 else singles)
        spec = replace(
            spec, queue=draw.choice(leaves), expected_run_s=draw.choice([300.0, 3e3, 3e4])
        )
        specs.append(spec)
        engine.observe(JobsSubmitted(at_s=1.2e5 + i / 100, spec=spec))
    took_s, plan = timed(engine, now_s=1.202e5, score="fgd")
    n_placed = sum(len(p.binds) for p in plan.placements)
    n_together = sum(len(p.binds) > 1 for p in plan.placements)
    assert bool(plan.expected_start_at_s) == is_contested
    more = ", a third busy, places promised" if is_contested else ""
    report(
        benchmark="decide",
        case=f"1,000 queues, backfill, FGD and topology at once{more}",
        value=n_placed / took_s,
        unit="placements/s",
        better="higher",
        goal=None if is_contested else 10_000,
        goal_of="value",
        baseline=None if is_contested else "loop over node objects, same run",
        baseline_value=None if is_contested else loop_over_all(engine, specs),
        size=f"{N_NODES} nodes of 8 GPUs in racks of {RACK_NODES}, 10,000 jobs pending, "
        f"{len(plan.placements)} placed ({n_placed} tasks, {n_together} gangs), "
        f"{len(plan.unplaced)} waiting",
    )


def loop_over_all(engine: Engine, specs: list[JobSpec]) -> float:
    """Return placements/s of a plain loop over Python objects, on the first jobs it serves."""
    snapshot = engine.snapshot(1.202e5)
    queues = [queue for queue in snapshot.queues if queue is not None]
    rack = next(level.label for level in DEFAULT_LEVELS if level.name == "rack")
    plain = PlainLoop.of(snapshot.nodes.nodes, queues, specs, rack_label=rack)
    return plain.placements_per_s(300)


def reclaiming() -> None:
    """A full cluster of borrowers, and a queue that takes 2,000 GPUs back in gangs of 8."""
    n_gangs = 250
    engine = cluster(N_NODES)
    shape = Shape(cpu_milli=8000, memory_mib=16384, gpus=1)
    crowd(engine, N_NODES * 8, shape)
    owner = Queue(name=QueueName("owner"), guaranteed=(("gpu_milli", n_gangs * 8000),))
    engine.observe(QueuePut(at_s=2e5, queue=owner))
    spec = replace(spec_of(replace(shape, gpus=8)), queue=owner.name)
    for _ in range(n_gangs):
        engine.observe(JobsSubmitted(at_s=2e5, spec=spec))
    took_s, plan = timed(engine)
    assert len(plan.evictions) == n_gangs * 8, len(plan.evictions)
    report(
        benchmark="decide",
        case="2,000 GPUs reclaimed by 250 gangs of 8",
        value=took_s,
        unit="s",
        better="lower",
        goal=2.0,
        size=f"{N_NODES} nodes of 8 GPUs, all busy with {N_NODES * 8} jobs",
    )


def memory(case: str, goal_mib: float, size: str) -> None:
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report(
        benchmark="decide",
        case=case,
        value=peak_mib,
        unit="MiB",
        better="lower",
        goal=goal_mib,
        size=size,
    )


if __name__ == "__main__":
    singles()
    gangs()
    hopeless()
    backfilling()
    preempting()
    tenants()
    everything()
    everything(is_contested=True)
    reclaiming()
    memory("peak memory so far", 800, f"{N_NODES} nodes, up to 100,000 jobs")
    large()
    memory("peak memory of all cases", 1536, "10,000 nodes, 100,000 jobs")
