"""FGD and `lepton` packing: against their definitions by brute force, and each other."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from cluster_testing import Cluster, node_of, take

from policies.fragmentation import FragmentationGradient, Workload, fgd, workload_of
from policies.packing import best_fill, fraction_prices, lepton_packing
from policies.registry import policy_named, score_named
from policies.scoring import Random
from scheduler.core import capacity
from scheduler.core.engine import Engine
from scheduler.core.events import NodeRegistered
from scheduler.core.model import MILLI, Node, Shape
from scheduler.core.node_columns import CPU, MEMORY, NodeColumns
from scheduler.core.placement import Want, place_gang
from scheduler.core.ports import DeviceChoice
from scheduler.core.space import Space

SHAPES = {
    Shape(cpu_milli=2000): 10,
    Shape(cpu_milli=24_000, memory_mib=4096): 3,
    Shape(cpu_milli=4000, gpu_milli=460): 20,
    Shape(cpu_milli=2000, memory_mib=2048, gpu_milli=320): 8,
    Shape(cpu_milli=6000, gpu_milli=810): 24,
    Shape(cpu_milli=1000, gpu_milli=100): 2,
    Shape(cpu_milli=8000, memory_mib=16_384, gpus=1): 40,
    Shape(cpu_milli=12_000, gpus=1, gpu_types=("A100",)): 5,
    Shape(cpu_milli=16_000, gpus=2): 4,
    Shape(cpu_milli=64_000, gpus=8): 2,
}
WORKLOAD = Workload.of({shape: float(count) for shape, count in SHAPES.items()})


def sample_nodes(n_nodes: int, *, seed: int = 0) -> list[Node]:
    """Return a small cluster of this project's own making, in a random order."""
    kinds = [
        {"gpus": 8, "gpu_type": "H100", "cpus": 96},
        {"gpus": 8, "gpu_type": "H100", "cpus": 64},
        {"gpus": 4, "gpu_type": "A100", "cpus": 32},
        {"gpus": 2, "gpu_type": "T4", "cpus": 48},
        {"gpus": 1, "gpu_type": "T4", "cpus": 8},
    ]
    nodes = [node_of(f"node-{i}", **kinds[i % len(kinds)]) for i in range(n_nodes)]
    random.Random(seed).shuffle(nodes)
    return nodes


def columns(nodes: list[Node]) -> NodeColumns:
    engine = Engine()
    for node in nodes:
        engine.observe(NodeRegistered(at_s=0.0, node=node))
    return engine.snapshot(0.0).nodes


def half_full(seed: int, *, n_nodes: int = 15) -> NodeColumns:
    """Return columns on which tasks were placed at random."""
    space = Space(columns(sample_nodes(n_nodes)), Random(seed=seed))
    draw = random.Random(seed)
    for shape in draw.choices(list(SHAPES), list(SHAPES.values()), k=6 * n_nodes):
        space.place(shape)
    return space.nodes


def fragments(nodes: NodeColumns, row: int, workload: Workload) -> float:
    """Return F of a node by its definition: shape by shape, device by device."""
    left = nodes.device_free[row].tolist()
    cpu_milli, total = int(nodes.free[row, CPU]), 0.0
    for shape, popularity in zip(workload.shapes, workload.popularity, strict=True):
        each = MILLI if shape.gpus else shape.gpu_milli
        n_devices = shape.gpus or (1 if shape.gpu_milli else 0)
        fits = (
            n_devices > 0
            and cpu_milli >= shape.cpu_milli
            and sum(free >= each for free in left) >= n_devices
            and (not shape.gpu_types or nodes.nodes[row].gpu_type in shape.gpu_types)
        )
        lost = sum(free for free in left if free < each) if fits else sum(left)
        total += popularity * lost
    return total


def placed(nodes: NodeColumns, row: int, shape: Shape, device: int) -> NodeColumns:
    """Return a copy of the books with one more task."""
    after = nodes.for_draft()
    devices = (device,) if shape.gpu_milli else capacity.choose_devices(after, row, shape)
    assert devices is not None
    take(after, row, shape, devices)
    return after


def fitting(nodes: NodeColumns, shape: Shape) -> list[int]:
    space = Space(nodes, Random())
    return [row for row in range(len(nodes.nodes)) if space.fits(row, shape)]


class TestFragmentation:
    @pytest.mark.parametrize("seed", range(4))
    def test_the_tables_give_what_the_definition_gives(self, seed: int) -> None:
        nodes = half_full(seed)
        expected = sum(fragments(nodes, row, WORKLOAD) for row in range(len(nodes.nodes)))
        gauge = FragmentationGradient(workload=WORKLOAD)
        assert gauge.fragmentation(nodes) == pytest.approx(expected / MILLI)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_the_score_is_what_the_best_device_loses_least(self, shape: Shape) -> None:
        nodes, score = half_full(7), FragmentationGradient(workload=WORKLOAD)
        rows = fitting(nodes, shape)
        scores = score(nodes, shape, np.array(rows, np.intp))
        for row, found in zip(rows, scores.tolist(), strict=True):
            before = fragments(nodes, row, WORKLOAD)
            devices = [
                device
                for device, free in enumerate(nodes.device_free[row].tolist())
                if free >= shape.gpu_milli
            ]
            losses = {
                device: fragments(placed(nodes, row, shape, device), row, WORKLOAD) - before
                for device in (devices if shape.gpu_milli else [0])
            }
            assert found == pytest.approx(-min(losses.values()), abs=1e-6)
            if shape.gpu_milli:
                chosen = score.choose_devices(nodes, row, shape)
                assert chosen is not None
                assert losses[chosen[0]] == pytest.approx(min(losses.values()), abs=1e-6)

    def test_points_are_the_authors(self) -> None:
        nodes, shape = half_full(3), Shape(cpu_milli=4000, gpu_milli=460)
        rows = np.array(fitting(nodes, shape), np.intp)
        exact = FragmentationGradient(workload=WORKLOAD)(nodes, shape, rows)
        points = FragmentationGradient(workload=WORKLOAD, in_points=True)(nodes, shape, rows)
        expected = [int(100 / (1 + math.exp(-gain / 1000))) for gain in exact]
        assert points.tolist() == expected

    def test_a_device_without_the_memory_is_no_choice(self) -> None:
        nodes = columns([node_of("n", gpus=2, gpu_memory_mib=1000)])
        full = Shape(cpu_milli=0, gpu_milli=300, gpu_memory_mib=900)
        take(nodes, 0, full, (0,))
        wanted = Shape(cpu_milli=0, gpu_milli=300, gpu_memory_mib=500)
        for score in (fgd(nodes, WORKLOAD), lepton_packing(nodes, WORKLOAD)):
            assert score.choose_devices(nodes, 0, wanted) == (1,)
            assert score.choose_devices(nodes, 0, replace(full, gpu_milli=800)) == (1,)
            assert score.choose_devices(nodes, 0, Shape(gpu_milli=999, gpus=0)) == (1,)
        take(nodes, 0, full, (1,))
        assert all(
            score.choose_devices(nodes, 0, wanted) is None
            for score in (fgd(nodes, WORKLOAD), lepton_packing(nodes, WORKLOAD))
        )

    def test_new_nodes_of_a_new_kind_are_scored_too(self) -> None:
        nodes = sample_nodes(5)
        small, large = columns(nodes), columns([*nodes, node_of("v", gpus=8, gpu_type="V100")])
        gauge = FragmentationGradient(workload=WORKLOAD)
        gauge.fragmentation(small)
        expected = sum(fragments(large, row, WORKLOAD) for row in range(6)) / MILLI
        assert gauge.fragmentation(large) == pytest.approx(expected)


class TestWorkload:
    def test_popular_shapes_come_first_and_add_up_to_one(self) -> None:
        assert WORKLOAD.shapes[0] == Shape(cpu_milli=8000, memory_mib=16_384, gpus=1)
        assert sum(WORKLOAD.popularity) == pytest.approx(1.0)
        assert Workload.of({}).most_popular(0.9) == Workload.of({})

    def test_typical_tasks_disregard_memory_and_what_is_rare(self) -> None:
        one, other = Shape(gpus=1, memory_mib=1), Shape(gpus=1, memory_mib=2)
        rare = Shape(gpus=8)
        mix = Workload.of({one: 50.0, other: 46.0, rare: 4.0})
        assert mix.typical() == Workload.of({Shape(gpus=1): 1.0})
        assert mix.typical(coverage=0.97).popularity == pytest.approx((0.96, 0.04))
        assert mix.most_popular(0.9).shapes == (one, other)

    def test_live_jobs_are_the_like_of_those_to_come(self) -> None:
        cluster = Cluster()
        cluster.add_nodes(1, gpus=4)
        cluster.submit("wide", tasks=3, gpus=1)
        cluster.submit("shared", gpus=0.5)
        mix = workload_of(cluster.engine.snapshot(cluster.now_s))
        assert {
            s.total_gpu_milli: p for s, p in zip(mix.shapes, mix.popularity, strict=True)
        } == {
            1000: 0.75,
            500: 0.25,
        }


class TestPrices:
    def test_fractions_that_fill_a_device_together_share_its_price(self) -> None:
        even = Workload.of({Shape(gpu_milli=600): 1.0, Shape(gpu_milli=400): 1.0})
        fractions, prices = fraction_prices(even)
        assert fractions == [400, 600]
        assert prices.sum() == pytest.approx(1.0)

    def test_a_fraction_that_always_finds_a_gap_is_free(self) -> None:
        gaps = Workload.of({Shape(gpu_milli=810): 9.0, Shape(gpu_milli=160): 1.0})
        assert fraction_prices(gaps)[1].tolist() == pytest.approx([0.0, 1.0])
        scarce = Workload.of({Shape(gpu_milli=810): 1.0, Shape(gpu_milli=160): 60.0})
        assert fraction_prices(scarce)[1].tolist() == pytest.approx([1 / 6, 5 / 6])

    def test_the_best_fill_is_an_unbounded_knapsack(self) -> None:
        fill = best_fill([300, 470], np.array([0.3, 0.5]), whole=1.0)
        assert fill[[299, 300, 470, 599, 600, 770, 940, 999, 1000]].tolist() == pytest.approx(
            [0.0, 0.3, 0.5, 0.5, 0.6, 0.8, 1.0, 1.0, 1.0]
        )

    def test_without_fractions_there_is_nothing_to_price(self) -> None:
        assert fraction_prices(Workload.of({Shape(gpus=1): 1.0}))[0] == []


def value(nodes: NodeColumns, row: int, workload: Workload) -> float:
    """Return V of a node by its definition, with the weights of the module written out."""
    left = nodes.device_free[row].tolist()
    fractions, prices = fraction_prices(workload)
    fill = best_fill(fractions, prices, whole=1.0)
    worth = 8000.0 * sum(fill[free] for free in left)
    for shape, popularity in zip(workload.shapes, workload.popularity, strict=True):
        node = nodes.nodes[row]
        if shape.gpu_types and node.gpu_type not in shape.gpu_types:
            continue
        demand = popularity
        if shape.gpu_types:
            large = [
                other
                for other in nodes.nodes
                if other.cpu_milli >= shape.cpu_milli and len(other.gpus) >= shape.gpus
            ]
            typed = sum(len(other.gpus) for other in large if other.gpu_type in shape.gpu_types)
            demand *= sum(len(other.gpus) for other in large) / typed
        copies = nodes.free[row, CPU] // shape.cpu_milli
        if shape.memory_mib:
            copies = min(copies, nodes.free[row, MEMORY] // shape.memory_mib)
        usable = 0
        if shape.gpus:
            n_whole = left.count(MILLI)
            copies = min(copies, n_whole // shape.gpus)
            usable = MILLI * n_whole
        elif shape.gpu_milli:
            copies = min(copies, sum(free // shape.gpu_milli for free in left))
            usable = sum(free for free in left if free >= shape.gpu_milli)
        worth += demand * 0.6 * usable * (copies > 0)
        worth += demand * copies * (0.4 * shape.total_gpu_milli or 10.0)
    return float(worth)


class TestPacking:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_the_score_is_the_value_kept_on_the_best_device(self, shape: Shape) -> None:
        nodes = half_full(5)
        score = lepton_packing(nodes, WORKLOAD)
        assert score.workload == WORKLOAD.most_popular(0.99)
        rows = fitting(nodes, shape)
        scores = score(nodes, shape, np.array(rows, np.intp))
        for row, found in zip(rows, scores.tolist(), strict=True):
            before = value(nodes, row, score.workload)
            kept = [
                value(placed(nodes, row, shape, device), row, score.workload) - before
                for device, free in enumerate(nodes.device_free[row].tolist())
                if free >= shape.gpu_milli
            ]
            assert found == pytest.approx(max(kept), abs=1e-5)  # weights are in grains

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_a_node_scores_alike_whoever_is_scored_with_it(self, shape: Shape) -> None:
        nodes = half_full(5)
        score = lepton_packing(nodes, WORKLOAD)
        rows = np.arange(len(nodes.nodes))
        by_itself = [score(nodes, shape, rows[row : row + 1])[0] for row in rows]
        assert score(nodes, shape, rows).tolist() == by_itself

    def test_nodes_that_were_removed_say_nothing_of_where_tasks_may_go(self) -> None:
        cluster = Cluster("fifo")
        cluster.add_nodes(2, gpus=8, gpu_type="A100")
        cluster.add_node("old", gpus=8, gpu_type="T4")
        cluster.remove_node("old")
        score = lepton_packing(
            cluster.snapshot().nodes,
            Workload.of({Shape(gpu_milli=500, gpu_types=("A100",)): 1.0}),
        )
        assert score.reach == (1.0,)

    def test_who_may_go_anywhere_leaves_room_for_who_may_not(self) -> None:
        nodes = [node_of("a", gpus=4, gpu_type="A100")]
        nodes += [node_of(f"t-{i}", gpus=4, gpu_type="T4") for i in range(9)]
        table = columns(nodes)
        tied, free = Shape(gpus=1, gpu_types=("A100",)), Shape(gpus=1)
        score = lepton_packing(table, Workload.of({tied: 1.0, free: 9.0}))
        space = Space(table, score)
        for _ in range(36):
            place_gang(space, (Want("task", free, must=(0,), may=()),))
        assert space.n_fit(tied) == 1
        assert space.room(tied) == 4


def allocated(score_of: str, seed: int) -> float:
    """Return the part of the sample cluster that a score fills when as much has arrived."""
    nodes = columns(sample_nodes(50, seed=seed))
    scores = {
        "random": Random(seed=seed),
        "fgd": fgd(nodes, WORKLOAD),
        "lepton": lepton_packing(nodes, WORKLOAD),
    }
    space, draw = Space(nodes, scores[score_of]), random.Random(seed)
    total, arrived, booked = int(nodes.n_gpus.sum()) * MILLI, 0, 0
    while arrived < total:
        shape = draw.choices(list(SHAPES), list(SHAPES.values()))[0]
        arrived += shape.total_gpu_milli
        if space.place(shape) is not None:
            booked += shape.total_gpu_milli
    return booked / total


def test_better_scores_fill_more_of_a_cluster() -> None:
    filled = {
        name: float(np.mean([allocated(name, seed) for seed in range(8)]))
        for name in ("random", "fgd", "lepton")
    }
    assert filled["random"] + 0.02 < filled["fgd"]
    assert filled["fgd"] < filled["lepton"]


@pytest.mark.parametrize("name", ["fgd", "lepton"])
def test_a_decision_takes_the_device_that_the_score_chooses(name: str) -> None:
    cluster = Cluster()
    cluster.add_node("n", gpus=4)
    for i, gpus in enumerate([0.6, 0.7, 0.5]):
        cluster.submit(f"first-{i}", gpus=gpus)
        cluster.cycle()
    cluster.submit("next", gpus=0.3)
    snapshot = cluster.snapshot()
    policy = policy_named("fifo", score=name, snapshot=snapshot)
    assert policy.score is not score_named("best-fit")
    assert isinstance(policy.score, DeviceChoice)
    chosen = policy.score.choose_devices(snapshot.nodes, 0, Shape(gpu_milli=300))
    cluster.policy = policy
    assert cluster.cycle().devices == {"next": [chosen]}


@pytest.mark.parametrize("make", [fgd, lepton_packing])
@pytest.mark.parametrize("mix", [Workload.of({Shape(gpus=2): 1.0}), WORKLOAD, Workload.of({})])
def test_no_gpu_and_no_workload_are_no_trouble(make: object, mix: Workload) -> None:
    without = columns([node_of("a"), node_of("b")])
    shared = columns([node_of("a", gpus=1), node_of("b")])
    for nodes in (without, shared):
        for shape in SHAPES:
            space = Space(nodes, make(nodes, mix))
            spot = space.place(shape)
            assert (spot is None) == (not fitting(nodes, shape))
