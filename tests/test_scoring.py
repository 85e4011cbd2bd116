"""Scores of nodes: what each prefers, on clusters small enough to see why."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from cluster_testing import Cluster, give, node_of, take

from policies import scoring
from policies.registry import AIMED_SCORES, SCORES, policy_named, score_named
from policies.scoring import Random, best_fit, weighted, worst_fit
from scheduler.core import capacity
from scheduler.core.engine import Engine
from scheduler.core.errors import InvalidInput
from scheduler.core.events import NodeRegistered
from scheduler.core.model import Node, Shape
from scheduler.core.node_columns import NodeColumns, Rows
from scheduler.core.ports import NodeScore
from scheduler.core.space import Space

ONE = Shape(cpu_milli=1000, gpus=1)
TWO = Shape(cpu_milli=1000, gpus=2)
HALF = Shape(cpu_milli=1000, gpu_milli=500)
NO_GPU = Shape(cpu_milli=1000)


def columns(*nodes: Node) -> NodeColumns:
    engine = Engine()
    for node in nodes:
        engine.observe(NodeRegistered(at_s=0.0, node=node))
    return engine.snapshot(0.0).nodes


def fill(nodes: NodeColumns, row: int, shape: Shape) -> None:
    devices = capacity.choose_devices(nodes, row, shape)
    assert devices is not None
    take(nodes, row, shape, devices)


def best(score: NodeScore, nodes: NodeColumns, shape: Shape) -> str:
    row = Space(nodes, score).best(shape)
    assert row is not None
    return nodes.nodes[row].name


def points(score: NodeScore, nodes: NodeColumns, shape: Shape) -> list[float]:
    return score(nodes, shape, np.arange(len(nodes.nodes))).tolist()


class TestFits:
    def test_best_fit_fills_and_worst_fit_spreads(self) -> None:
        nodes = columns(node_of("empty", gpus=4), node_of("used", gpus=4))
        fill(nodes, 1, TWO)
        assert best(best_fit, nodes, ONE) == "used"
        assert best(worst_fit, nodes, ONE) == "empty"

    @pytest.mark.parametrize("score", [best_fit, worst_fit])
    def test_tasks_without_gpu_stay_off_gpu_nodes(self, score: NodeScore) -> None:
        nodes = columns(node_of("gpus", gpus=4, cpus=2), node_of("cpus", cpus=128))
        assert best(score, nodes, NO_GPU) == "cpus"

    def test_best_fit_in_two_measures_by_the_largest_node(self) -> None:
        nodes = columns(node_of("n", gpus=8, cpus=96))
        used = 0.5 * 95 / 128 + 0.5 * 7 / 8
        assert points(scoring.best_fit_in_two, nodes, ONE) == [int(100 * (1 - used))]

    def test_dot_product_keeps_what_matches_best_for_others(self) -> None:
        nodes = columns(node_of("large", gpus=8, cpus=96), node_of("small", gpus=2, cpus=32))
        dot = 96 / 128 * 1 / 128 + 1 / 8
        assert points(scoring.dot_product, nodes, ONE)[0] == int(100 * (1 - dot / 2))
        assert best(scoring.dot_product, nodes, ONE) == "small"


class TestPackingOfGpus:
    def test_shared_devices_then_used_nodes_then_small_ones(self) -> None:
        nodes = columns(*(node_of(name, gpus=n) for name, n in [("a", 8), ("b", 2), ("c", 4)]))
        assert best(scoring.gpu_packing, nodes, HALF) == "b"
        fill(nodes, 0, ONE)
        assert points(scoring.gpu_packing, nodes, HALF) == [49, 31, 29]
        assert points(scoring.gpu_packing, nodes, TWO) == [48, 31, 29]
        fill(nodes, 2, HALF)
        assert points(scoring.gpu_packing, nodes, HALF) == [49, 31, 95]
        assert points(scoring.gpu_packing, nodes, NO_GPU) == [0, 0, 0]

    def test_clusters_are_of_tasks_of_as_many_gpus(self) -> None:
        names = ("alike", "mixed", "empty", "other")
        nodes = columns(*(node_of(name, gpus=8) for name in names))
        fill(nodes, 0, ONE)
        fill(nodes, 1, ONE)
        fill(nodes, 1, HALF)
        fill(nodes, 3, TWO)
        assert points(scoring.gpu_clustering, nodes, ONE) == [78, 54, 25, 6]
        assert points(scoring.gpu_clustering, nodes, NO_GPU) == [0, 0, 0, 0]

    def test_a_cluster_ends_with_its_last_task(self) -> None:
        nodes = columns(node_of("n", gpus=2))
        before = points(scoring.gpu_clustering, nodes, ONE)
        take(nodes, 0, ONE, (0,))
        give(nodes, 0, ONE, (0,))
        assert points(scoring.gpu_clustering, nodes, ONE) == before


class TestRandom:
    def test_every_node_is_as_likely(self) -> None:
        nodes = columns(*(node_of(f"node-{i}", cpus=1000) for i in range(10)))
        space = Space(nodes, Random(seed=3))
        spots = [space.place(NO_GPU) for _ in range(2000)]
        counts = Counter(spot.row for spot in spots if spot is not None)
        # Chi-square with 9 degrees of freedom: beyond 27.9 once in a thousand.
        assert sum((counts[row] - 200) ** 2 / 200 for row in range(10)) < 27.9

    def test_every_device_is_as_likely(self) -> None:
        nodes = columns(*(node_of(f"node-{i}", gpus=4) for i in range(200)))
        space = Space(nodes, Random(seed=1))
        spots = [space.place(Shape(gpu_milli=100)) for _ in range(400)]
        counts = Counter(spot.devices for spot in spots if spot is not None)
        assert sum((counts[d,] - 100) ** 2 / 100 for d in range(4)) < 16.3  # 1 in 1,000

    def test_equal_books_give_equal_places(self) -> None:
        def story(seed: int) -> list[object]:
            space = Space(
                columns(*(node_of(f"n{i}", gpus=4) for i in range(9))), Random(seed=seed)
            )
            return [space.place(HALF) for _ in range(30)]

        assert story(5) == story(5)
        assert story(5) != story(6)

    def test_the_row_of_a_node_does_not_matter(self) -> None:
        cluster = Cluster(replace(policy_named("fifo"), score=Random()))
        cluster.add_nodes(9, gpus=4)
        for i in range(8):
            cluster.remove_node(f"node-{i}")
        cluster.submit("job", tasks=4, gpus=0.1)
        # After a restart nobody remembers the nodes that were removed.
        cluster.validate()


class TestWeighted:
    def test_parts_add_up(self) -> None:
        nodes = columns(node_of("large", gpus=8, cpus=96), node_of("small", gpus=2, cpus=32))
        mix = weighted((2.0, best_fit), (0.5, scoring.gpu_packing))
        mixed = np.array(points(best_fit, nodes, ONE)) * 2
        mixed += np.array(points(scoring.gpu_packing, nodes, ONE)) / 2
        assert points(mix, nodes, ONE) == mixed.tolist()
        assert points(weighted((3.0, mix)), nodes, ONE) == pytest.approx((3 * mixed).tolist())

    def test_a_part_that_knows_devices_chooses_them(self) -> None:
        nodes = columns(node_of("n", gpus=8))
        any_device = Random(seed=2)
        mix = weighted((1.0, best_fit), (0.1, any_device))
        expected = any_device.choose_devices(nodes, 0, HALF)
        assert mix.choose_devices(nodes, 0, HALF) == expected
        assert weighted((1.0, best_fit)).choose_devices(nodes, 0, HALF) == (0,)

    def test_a_part_that_sees_other_nodes_makes_the_sum_do_so(self) -> None:
        assert weighted((1.0, best_fit), (0.1, Random())).sees_other_nodes
        assert not weighted((1.0, best_fit)).sees_other_nodes


class TestNames:
    def test_a_policy_keeps_its_own_score_unless_told(self) -> None:
        assert policy_named("fifo").score is best_fit
        assert policy_named("fifo", score="worst-fit").score is worst_fit

    @pytest.mark.parametrize("name", AIMED_SCORES)
    def test_without_tasks_to_aim_at_it_is_the_best_fit(self, name: str) -> None:
        assert score_named(name) is best_fit
        assert score_named(name, Engine().snapshot(0.0)) is best_fit

    def test_an_unknown_score_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(InvalidInput, match=r"best-fit, worst-fit, .*, lepton"):
            policy_named("fifo", score="lottery")

    @pytest.mark.parametrize("name", SCORES)
    @pytest.mark.parametrize("shape", [ONE, TWO, HALF, NO_GPU], ids=str)
    def test_every_score_is_finite_and_leaves_the_books_alone(
        self, name: str, shape: Shape
    ) -> None:
        nodes = columns(node_of("gpus", gpus=8), node_of("cpus"), node_of("few", gpus=1))
        before = nodes.copy()
        scores = score_named(name)(nodes, shape, np.array([2, 0, 1]))
        assert scores.dtype == np.float64
        assert np.isfinite(scores).all()
        assert len(score_named(name)(nodes, shape, np.array([], np.intp))) == 0
        assert (nodes.device_free == before.device_free).all()
        assert (nodes.free == before.free).all()


class LastDevice:
    """A score that chooses devices unlike any best fit."""

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> scoring.Scores:
        return np.zeros(len(rows))

    def choose_devices(
        self, nodes: NodeColumns, row: int, shape: Shape
    ) -> tuple[int, ...] | None:
        last = nodes.device_free.shape[1] - 1
        return (last,) if capacity.can_take(nodes, row, shape, (last,)) else None


def test_decisions_go_to_the_devices_that_a_score_chooses() -> None:
    cluster = Cluster(replace(policy_named("fifo"), score=LastDevice()))
    cluster.add_node("n", gpus=4)
    for name in ("a", "b"):
        cluster.submit(name, gpus=0.5)
    assert cluster.cycle().devices == {"a": [(3,)], "b": [(3,)]}
