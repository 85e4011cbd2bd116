"""Table 1: how much of openb's cluster each score can fill (FGD, ATC '23).

Pods arrive in random order and never leave; who does not fit is dropped. Published: the
authors' results for six scores and ten seeds (`expected_*.csv.gz`), of which column k holds
when the pods that arrived ask for k per cent of all GPUs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from random import Random

import numpy as np

from policies.fragmentation import FragmentationGradient, Workload
from policies.orderings import nobody
from policies.registry import AIMED_SCORES, SCORES
from policies.scoring import Random as AnyNode
from scheduler.core.engine import Engine
from scheduler.core.events import NodeRegistered
from scheduler.core.model import MILLI, JobKind, JobSpec, Node, Shape
from scheduler.core.node_columns import NodeColumns, Rows
from scheduler.core.ports import NodeScore, Policy
from scheduler.core.snapshot import Snapshot
from simulator.cluster import cluster_of
from simulator.simulation import Settings, simulate
from simulator.traces.jobs import role_of
from simulator.traces.openb import read_nodes, read_shapes
from simulator.traces.source import Source
from simulator.workload import FOREVER, Steady, TraceJob

LISTS = ("default", "cpu050", "gpushare40", "multigpu20")
SEEDS = tuple(range(42, 52))
PUBLISHED: Mapping[str, str] = {
    "random": "01-Random",
    "dot-product": "02-DotProd",
    "gpu-clustering": "03-GpuClustering",
    "gpu-packing": "04-GpuPacking",
    "best-fit-in-two": "05-BestFit",
    "fgd": "06-FGD",
}
"""Our scores by name, and what the authors' files call them."""

NODES = "openb_node_list_gpu_node.csv.gz"
INFLATED_TO = 1.3
"""Pods arrive until they ask for so many times the GPUs there are."""
MOMENTS = (60, 100, 130)
"""Per cent of all GPUs that have been asked for when it is measured."""
BATCH = 256
"""Pods of one decision: served one after the other, as if each had one of its own."""
ORDER_SEED = 1000
"""Plus a run's seed: of the order of nodes, the first of which wins ties."""


def arrivals(shapes: Sequence[Shape], *, seed: int, gpu_milli: float) -> list[Shape]:
    """Return the shapes shuffled, then draws from them, until they ask for so much in all.

    Some of them must ask for GPUs.
    """
    draw = Random(seed)  # noqa: S311  # an experiment, no secret
    order = list(shapes)
    draw.shuffle(order)
    asked = 0
    made = []
    for shape in chain(order, (draw.choice(order) for _ in count())):
        if asked >= gpu_milli:
            break
        asked += shape.total_gpu_milli
        made.append(shape)
    return made


def permuted(nodes: Sequence[Node], *, seed: int) -> list[Node]:
    """Return the nodes in a random order, in one pool so that they stay in it."""
    order = [replace(node, pool="openb") for node in nodes]
    Random(ORDER_SEED + seed).shuffle(order)  # noqa: S311  # an experiment, no secret
    return order


def columns(nodes: Sequence[Node]) -> NodeColumns:
    """Return the table of empty nodes, in this order."""
    engine = Engine()
    for node in nodes:
        engine.observe(NodeRegistered(at_s=0.0, node=node))
    return engine.snapshot(0.0).nodes


def workload_in(shapes: Sequence[Shape]) -> Workload:
    """Return the mix of the pods."""
    counts: dict[Shape, float] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0.0) + 1
    return Workload.of(counts)


def score_for(name: str, nodes: NodeColumns, workload: Workload, *, seed: int = 0) -> NodeScore:
    """Return the score of that name, made for the cluster and the pods if it has to be."""
    if name == "random":
        return AnyNode(seed=seed)
    return AIMED_SCORES[name](nodes, workload) if name in AIMED_SCORES else SCORES[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """What was allocated and fragmented when so much had arrived, in per cent of all GPUs."""

    allocated: Mapping[int, float]
    fragmented: Mapping[int, float]


@dataclass(slots=True)
class _Gauge:
    """Measures the cluster at the first decision after each of some moments."""

    policy: Policy
    at_s: Mapping[float, int]  # moments of the run, with the per cent that have arrived by then
    gauge: FragmentationGradient
    allocated: dict[int, float] = field(default_factory=dict)
    fragmented: dict[int, float] = field(default_factory=dict)

    def __call__(self, snapshot: Snapshot) -> Policy:
        nodes = snapshot.nodes
        n_gpus = int(nodes.n_gpus.sum())
        for at_s, percent in self.at_s.items():
            if snapshot.now_s > at_s and percent not in self.allocated:
                self.allocated[percent] = (
                    float(nodes.device_used.sum()) / (MILLI * n_gpus) * 100
                )
                self.fragmented[percent] = 100 * self.gauge.fragmentation(nodes) / n_gpus
        return self.policy


def fill(nodes: Sequence[Node], shapes: Sequence[Shape], name: str, *, seed: int) -> Filling:
    """Let pods of these shapes arrive, inflated, on the empty nodes, and place by a score."""
    order, workload = permuted(nodes, seed=seed), workload_in(shapes)
    total_milli = MILLI * sum(len(node.gpus) for node in nodes)
    pods = arrivals(shapes, seed=seed, gpu_milli=INFLATED_TO * total_milli)
    at_s = _measured_after(pods, total_milli)
    policy = Policy(
        name=name,
        order=_who_came_just_now,
        may_preempt=nobody,
        score=score_for(name, columns(order), workload, seed=seed),
        patience_s=np.inf,
        starvation_s=np.inf,
    )
    gauge = _Gauge(policy, at_s, FragmentationGradient(workload=workload.typical()))
    simulate(
        cluster_of(order),
        _as_jobs(pods, at_s),
        policy,
        seed=seed,
        settings=Settings(aim=gauge, aim_every_s=0.0),
    )
    return Filling(allocated=gauge.allocated, fragmented=gauge.fragmented)


def _measured_after(pods: Sequence[Shape], total_milli: int) -> dict[float, int]:
    """Return the last pod of each moment: pods and seconds are numbered alike."""
    asked = np.cumsum([pod.total_gpu_milli for pod in pods])
    reached = {p: int(np.searchsorted(asked, p * total_milli / 100)) for p in MOMENTS}
    return {float(min(n, len(pods) - 1)): percent for percent, n in reached.items()}


def _as_jobs(pods: Sequence[Shape], ends: Mapping[float, int]) -> Iterator[TraceJob]:
    """Yield a job for each pod, many at a time; a batch ends where something is measured."""
    batch: list[Shape] = []
    for number, pod in enumerate(pods):
        batch.append(pod)
        if len(batch) == BATCH or float(number) in ends:
            yield from (_job(shape, float(number)) for shape in batch)
            batch = []
    yield from (_job(shape, float(len(pods))) for shape in batch)
    yield _job(Shape(cpu_milli=1), float(len(pods)) + 1)  # one more decision, to measure at


def _job(shape: Shape, at_s: float) -> TraceJob:
    spec = JobSpec(
        name="pod", roles=(role_of(1, shape),), kind=JobKind.BATCH, preemptible=False
    )
    return TraceJob(at_s=at_s, spec=spec, behaviour=Steady(work=FOREVER))


def _who_came_just_now(snapshot: Snapshot, rows: Rows) -> Rows:
    """Serve each pod once, as they came: what did not fit will not later, as nobody leaves."""
    jobs = snapshot.jobs
    mine: Rows = rows[jobs.submitted_at_s[rows] == snapshot.now_s]
    return mine[np.argsort(jobs.sequence[mine])]


def tied(
    shapes: Sequence[Shape], nodes: Sequence[Node], *, part: float, steps: int
) -> list[Shape]:
    """Tie a part of the GPU pods to one type each, drawn from the GPUs of types that suit it.

    Types of which there are few are drawn `steps` times as often as their share of GPUs.
    """
    draw = Random(1)  # noqa: S311  # an experiment, no secret
    supply: dict[str, int] = {}
    widest: dict[str, int] = {}
    for node in nodes:
        supply[node.gpu_type] = supply.get(node.gpu_type, 0) + len(node.gpus)
        widest[node.gpu_type] = max(widest.get(node.gpu_type, 0), len(node.gpus))
    mean_supply = sum(supply.values()) / len(supply)
    weights = {n: count * (steps if count < mean_supply else 1) for n, count in supply.items()}
    made = []
    for shape in shapes:
        pod = shape
        if pod.total_gpu_milli and draw.random() < part:
            types = sorted(n for n in supply if widest[n] >= pod.gpus)
            [gpu_type] = draw.choices(types, [weights[n] for n in types])
            pod = replace(pod, gpu_types=(gpu_type,))
        made.append(pod)
    return made


def pods_of(folder: Path, name: str) -> list[Shape]:
    """Return what the pods of a list ask for, by name of the pod."""
    return [shape for _, shape in read_shapes(folder / f"openb_pod_list_{name}.csv.gz")]


def nodes_of(folder: Path) -> list[Node]:
    """Return the nodes with GPUs."""
    return read_nodes(folder / NODES)


def published(folder: Path, pod_list: str, score: str) -> Filling:
    """Return the mean over the authors' seeds."""
    return Filling(
        allocated=_published(folder / "expected_allo.csv.gz", pod_list, score),
        fragmented=_published(folder / "expected_frag.csv.gz", pod_list, score),
    )


def _published(path: Path, pod_list: str, score: str) -> dict[int, float]:
    rows = [
        row
        for row in Source(path).rows()
        if row.text("workload") == f"openb_pod_list_{pod_list}"
        and row.text("sc_policy") == PUBLISHED[score]
    ]
    return {
        percent: float(np.mean([row.number(str(percent)) for row in rows]))
        for percent in MOMENTS
    }
