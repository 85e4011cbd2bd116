"""Clusters, trees of queues and queues of jobs whose decisions `decide` measures."""

import random
from collections.abc import Sequence
from dataclasses import replace

from policies.registry import policy_named
from scheduler.core.cycle import decide
from scheduler.core.engine import Engine
from scheduler.core.events import JobsSubmitted, NodeRegistered, PlanCommitted, QueuePut
from scheduler.core.model import (
    DEFAULT_LEVELS,
    Gpu,
    JobSpec,
    Launch,
    Node,
    Queue,
    QueueName,
    Role,
    Shape,
)

N_NODES = 5_000

LAUNCH = Launch(command=("true",))

RACK_NODES = 16


def place_labels(i: int) -> tuple[tuple[str, str], ...]:
    """Return in which zone, block and rack a node stands."""
    rack = i // RACK_NODES
    names = {"zone": rack // 80, "block": rack // 8, "rack": rack}
    labels = {level.name: level.label for level in DEFAULT_LEVELS}
    return tuple(sorted((labels[name], str(number)) for name, number in names.items()))


def cluster(n_nodes: int, *, has_racks: bool = False) -> Engine:
    engine = Engine()
    add_nodes(engine, range(n_nodes), has_racks=has_racks)
    return engine


def add_nodes(engine: Engine, numbers: range, *, has_racks: bool = False) -> None:
    for i in numbers:
        gpus = tuple(Gpu(uuid=f"{i}-{d}", memory_mib=81_920) for d in range(8))
        engine.observe(
            NodeRegistered(
                at_s=0.0,
                node=Node(
                    name=f"node-{i}",
                    cpu_milli=128_000,
                    memory_mib=1_048_576,
                    gpu_type=("A100", "H100")[i % 2],
                    gpus=gpus,
                    labels=place_labels(i) if has_racks else (),
                ),
            )
        )


def shapes(n_shapes: int) -> list[Shape]:
    draw = random.Random(7)
    made = set()
    while len(made) < n_shapes:
        gpus = draw.choice([0, 0, 1, 1, 1, 2, 4, 8])
        made.add(
            Shape(
                cpu_milli=draw.choice([500, 1000, 2000, 4000, 8000, 12000]),
                memory_mib=draw.choice([1024, 4096, 16384, 65536]),
                gpus=gpus,
                gpu_milli=draw.choice([250, 500]) if not gpus and draw.random() < 0.5 else 0,
                gpu_types=draw.choice([(), (), ("A100",), ("H100",)]) if gpus else (),
            )
        )
    return sorted(made, key=repr)


def spec_of(shape: Shape, *, tasks: int = 1, priority: int = 0) -> JobSpec:
    role = Role(name="worker", launch=LAUNCH, count=tasks, shape=shape)
    return JobSpec(name="bench", roles=(role,), priority=priority)


def submit(
    engine: Engine,
    n_jobs: int,
    options: list[Shape],
    *,
    tasks: int = 1,
    priorities: Sequence[int] = (0,),
) -> None:
    draw = random.Random(11)
    specs = [spec_of(s, tasks=tasks, priority=p) for s in options for p in priorities]
    for i in range(n_jobs):
        engine.observe(JobsSubmitted(at_s=float(i), spec=draw.choice(specs)))


def crowd(engine: Engine, n_jobs: int, shape: Shape, *, priority: int = 0) -> None:
    """Submit single-task jobs, spread over priorities, and start them all."""
    draw = random.Random(5)
    for i in range(n_jobs):
        spec = spec_of(shape, priority=priority + draw.randrange(3))
        engine.observe(JobsSubmitted(at_s=float(i), spec=spec))
    plan = decide(engine.snapshot(1e5), policy_named("fifo"))
    assert len(plan.placements) == n_jobs, len(plan.placements)
    # One plan a batch: jobs that started at different times lose different amounts of work.
    for first in range(0, n_jobs, 1000):
        engine.observe(
            PlanCommitted(at_s=1e5 + first, placements=plan.placements[first : first + 1000])
        )


def tree() -> list[QueueName]:
    """Return the leaves of a tree of 1,000 queues in three levels."""
    return [QueueName(f"q{a}-{b}-{c}") for a in range(10) for b in range(10) for c in range(9)]


def put_tree(engine: Engine) -> list[QueueName]:
    """Put 1,000 queues with guarantees and limits in three levels; return the leaves."""
    leaves = tree()
    middles = list(dict.fromkeys(QueueName(leaf.rsplit("-", 1)[0]) for leaf in leaves))
    tops = list(dict.fromkeys(QueueName(middle.split("-")[0]) for middle in middles))
    for name in (*tops, *middles, *leaves):
        parent = QueueName(name.rpartition("-")[0])
        gpus = {0: 4000, 1: 400, 2: 40}[name.count("-")]
        queue = Queue(
            name=name,
            parent=parent,
            weight=1.0 + len(name) % 3,
            guaranteed=(("gpu_milli", gpus * 500),),
            limit=(("gpu_milli", gpus * 1500), ("gpu_milli:A100", gpus * 1000)),
        )
        outcome = engine.observe(QueuePut(at_s=0.0, queue=queue))
        assert not hasattr(outcome, "refusal"), outcome
    return leaves


def contest(engine: Engine, leaves: list[QueueName]) -> None:
    """Let a third of the GPUs be busy, on all nodes, and a gang of 600 whole nodes wait."""
    draw = random.Random(5)
    n_running = N_NODES * 8 // 3
    one = spec_of(Shape(cpu_milli=8000, memory_mib=16384, gpus=1))
    for _ in range(n_running):
        spec = replace(one, expected_run_s=600.0 * draw.randint(1, 150))
        spec = replace(spec, queue=draw.choice(leaves))
        engine.observe(JobsSubmitted(at_s=0.0, spec=spec))
    plan = decide(engine.snapshot(1e5), policy_named("fifo", score="worst-fit"))
    for first in range(0, len(plan.placements), 1000):
        batch = plan.placements[first : first + 1000]
        engine.observe(PlanCommitted(at_s=1e5 + first / 100, placements=batch))
    wide = replace(spec_of(Shape(cpu_milli=8000, gpus=8), tasks=600), expected_run_s=3600.0)
    engine.observe(QueuePut(at_s=1.2e5, queue=Queue(name=QueueName("wide"), weight=9.0)))
    engine.observe(JobsSubmitted(at_s=1.2e5, spec=replace(wide, queue=QueueName("wide"))))
