"""How much of a cluster each score can fill, and how long it takes to place one task.

The experiment of FGD (ATC '23) on the trace of 1,213 nodes and 6,212 GPUs: tasks arrive in
random order and never leave, what does not fit is dropped; figures are the allocated percentage
once the tasks that arrived ask for as much as there is. Baselines: the authors' own results;
where tasks are tied to GPU types, FGD in the same run. Without the trace (`--data`) only the
time of a placement is measured, on a cluster and workload of this file's making.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent))

from report import report

from policies.fragmentation import FragmentationGradient, Workload
from scheduler.core.model import Gpu, Node, Shape
from scheduler.core.node_columns import NodeColumns
from scheduler.core.placement import Want, place_gang
from scheduler.core.ports import NodeScore
from scheduler.core.space import Space
from simulator.reproduction.fgd import (
    LISTS,
    PUBLISHED,
    arrivals,
    columns,
    nodes_of,
    permuted,
    pods_of,
    published,
    score_for,
    tied,
    workload_in,
)
from simulator.traces.openb import DEVICE_MIB

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data" / "openb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: what was allocated and fragmented when so much had arrived, in per cent."""

    allocated: dict[int, float]
    fragmented: dict[int, float]
    us_per_pod: float
    n_placed: int


def fill(
    nodes: NodeColumns, score: NodeScore, shapes: list[Shape], gauge: FragmentationGradient
) -> Run:
    """Let every shape arrive once and stay if it fits."""
    n_gpus = int(nodes.n_gpus.sum())
    space = Space(nodes, score)
    allocated: dict[int, float] = {}
    fragmented: dict[int, float] = {}
    arrived = booked = n_placed = 0
    took_s, start_s = 0.0, time.perf_counter()
    for shape in shapes:
        want = Want("task", shape, must=(0,), may=())
        if isinstance(place_gang(space, (want,)), list):
            booked += shape.total_gpu_milli
            n_placed += 1
        arrived += shape.total_gpu_milli
        percent = arrived // (10 * n_gpus)
        if percent % 10 == 0 and percent not in allocated:
            took_s += time.perf_counter() - start_s
            allocated[percent] = booked / (10 * n_gpus)
            fragmented[percent] = 100 * gauge.fragmentation(space.nodes) / n_gpus
            start_s = time.perf_counter()
    took_s += time.perf_counter() - start_s
    return Run(
        allocated=allocated,
        fragmented=fragmented,
        us_per_pod=took_s / len(shapes) * 1e6,
        n_placed=n_placed,
    )


def runs_of(
    name: str, nodes: list[Node], pods: list[Shape], *, seeds: Sequence[int], until: int
) -> list[Run]:
    workload = workload_in(pods)
    gauge = FragmentationGradient(workload=workload.typical())
    gpu_milli = 1000 * sum(len(node.gpus) for node in nodes) * until / 100
    runs = []
    for seed in seeds:
        table = columns(permuted(nodes, seed=seed))
        score = score_for(name, table, workload, seed=seed)
        shapes = arrivals(pods, seed=seed, gpu_milli=gpu_milli)
        runs.append(fill(table, score, shapes, gauge))
    return runs


def summary(runs: list[Run]) -> str:
    """Say what was allocated and fragmented at the moments that the paper's figures show."""
    parts = [
        f"{mean(run.allocated[percent] for run in runs):.2f}"
        f"/{mean(run.fragmented[percent] for run in runs):.2f} at {percent} %"
        for percent in (60, 100, 130)
        if percent in runs[0].allocated
    ]
    return f"{len(runs)} seeds; allocated/fragmented {', '.join(parts)}"


def experiment(
    folder: Path, *, pod_list: str, scores: list[str], seeds: Sequence[int], until: int
) -> None:
    nodes, pods = nodes_of(folder), pods_of(folder, pod_list)
    for name in scores:
        runs = runs_of(name, nodes, pods, seeds=seeds, until=until)
        report(
            benchmark="fragmentation",
            case=f"{pod_list} list, {name}: allocated at 100 % arrived",
            value=mean(run.allocated[100] for run in runs),
            unit="%",
            better="higher",
            goal=95.7 if name == "lepton" and pod_list == "default" else None,
            goal_of="value",
            baseline=f"published {PUBLISHED.get(name, PUBLISHED['fgd'])[3:]}",
            baseline_value=published(
                folder, pod_list, name if name in PUBLISHED else "fgd"
            ).allocated[100],
            size=summary(runs),
        )
        report(
            benchmark="fragmentation",
            case=f"{pod_list} list, {name}: time per arrival",
            value=mean(run.us_per_pod for run in runs),
            unit="us",
            better="lower",
            size=f"{len(nodes)} nodes, {len(workload_in(pods).shapes)} shapes",
        )


def tied_experiment(folder: Path, *, part: float, steps: int, seeds: Sequence[int]) -> None:
    nodes = nodes_of(folder)
    pods = tied(pods_of(folder, "default"), nodes, part=part, steps=steps)
    filled = {
        name: mean(
            run.allocated[100] for run in runs_of(name, nodes, pods, seeds=seeds, until=101)
        )
        for name in ("fgd", "lepton")
    }
    among = "GPUs" if steps == 1 else f"GPUs, rare types {steps} times as often"
    report(
        benchmark="fragmentation",
        case=f"{part:.0%} tied to types like {among}, lepton: allocated at 100 % arrived",
        value=filled["lepton"],
        unit="%",
        better="higher",
        goal=1.0,
        baseline="FGD, same run",
        baseline_value=filled["fgd"],
        size=f"{len(nodes)} nodes, {len(seeds)} seeds",
    )


def hundred_shapes() -> Workload:
    """Return a workload of this file's making: 100 shapes, some popular, most not."""
    draw = random.Random(3)
    counts: dict[Shape, float] = {}
    while len(counts) < 100:
        gpus = draw.choice([0, 0, 0, 0, 1, 1, 1, 2, 4, 8])
        milli = draw.choice([110, 160, 230, 320, 460, 550, 650, 810]) if not gpus else 0
        shape = Shape(
            cpu_milli=draw.choice([2, 3, 4, 6, 8, 10, 12]) * 1000 * max(gpus, 1),
            memory_mib=draw.choice([4, 8, 16, 24]) * 1024 * max(gpus, 1),
            gpus=gpus,
            gpu_milli=milli if draw.random() < 0.8 else 0,
        )
        counts[shape] = draw.paretovariate(1.0) / max(gpus, 1)
    return Workload.of(counts)


def timed(name: str) -> None:
    """Fill 1,213 nodes of this file's making with tasks of 100 shapes."""
    sizes = [(2, 104), (8, 96), (8, 96), (8, 128), (4, 64), (1, 16)]
    nodes = []
    for i in range(1213):
        gpus, cpus = sizes[i % len(sizes)]
        devices = tuple(Gpu(uuid=f"{i}-{d}", memory_mib=DEVICE_MIB) for d in range(gpus))
        nodes.append(
            Node(
                name=f"node-{i}",
                cpu_milli=cpus * 1000,
                memory_mib=cpus * 8192,
                gpu_type="GPU",
                gpus=devices,
            )
        )
    workload = hundred_shapes()
    shapes = random.Random(5).choices(workload.shapes, workload.popularity, k=20_000)
    table = columns(permuted(nodes, seed=1))
    total_milli = 1000 * int(table.n_gpus.sum())
    asked = 0
    for n_shapes, shape in enumerate(shapes, 1):
        asked += shape.total_gpu_milli
        if asked >= total_milli:
            shapes = shapes[:n_shapes]
            break
    score = score_for(name, table, workload)
    gauge = FragmentationGradient(workload=workload)
    run = min((fill(table, score, shapes, gauge) for _ in range(3)), key=lambda r: r.us_per_pod)
    report(
        benchmark="fragmentation",
        case=f"{name}: score, choose and book one task",
        value=run.us_per_pod,
        unit="us",
        better="lower",
        goal=100.0 if name == "fgd" else None,
        size=f"{len(nodes)} nodes, {len(workload.shapes)} target shapes, "
        f"{len(shapes)} arrivals, {run.n_placed} placed",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--scores", default=",".join([*PUBLISHED, "lepton"]))
    parser.add_argument("--lists", default="default")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--until", type=int, default=101, help="per cent of all GPUs to ask for"
    )
    args = parser.parse_args()
    timed("fgd")
    timed("lepton")
    if not args.data.exists():
        print(f"no trace in {args.data}: nothing to allocate", file=sys.stderr)
        return
    seeds = range(42, 42 + args.seeds)
    for pod_list in args.lists.split(","):
        scores = args.scores.split(",")
        experiment(args.data, pod_list=pod_list, scores=scores, seeds=seeds, until=args.until)
    for pod_list in sorted(set(LISTS) - set(args.lists.split(","))):
        experiment(args.data, pod_list=pod_list, scores=["lepton"], seeds=seeds, until=101)
    tied_experiment(args.data, part=0.33, steps=1, seeds=seeds)
    tied_experiment(args.data, part=0.20, steps=4, seeds=seeds)


if __name__ == "__main__":
    main()
