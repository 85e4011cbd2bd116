"""Price, health, and several scores as one."""

from dataclasses import replace

import numpy as np
import pytest
from cluster_testing import Cluster, node_of, take

from policies import registry
from policies.circumstances import Health, Price
from policies.combination import combined, points
from policies.fragmentation import Workload, fgd
from policies.packing import lepton_packing
from policies.registry import SCORES, is_aimed, policy_named, score_named
from policies.scoring import best_fit, gpu_packing
from scheduler.core import capacity
from scheduler.core.engine import Engine
from scheduler.core.errors import InvalidInput
from scheduler.core.events import NodeRegistered
from scheduler.core.model import Node, Shape
from scheduler.core.node_columns import FAILURE_HALF_LIFE_S, NodeColumns, Rows
from scheduler.core.ports import NodeScore
from scheduler.core.space import Space

ONE = Shape(cpu_milli=1000, gpus=1)
HALF = Shape(cpu_milli=1000, gpu_milli=500)
NO_GPU = Shape(cpu_milli=1000)


def columns(*nodes: Node) -> NodeColumns:
    engine = Engine()
    for node in nodes:
        engine.observe(NodeRegistered(at_s=0.0, node=node))
    return engine.snapshot(0.0).nodes


def best(score: NodeScore, nodes: NodeColumns, shape: Shape) -> str:
    row = Space(nodes, score).best(shape)
    assert row is not None
    return nodes.nodes[row].name


class TestPrice:
    def test_the_cheapest_gpu_is_taken_first(self) -> None:
        nodes = columns(
            node_of("small", gpus=2, price_usd_per_h=8.0),
            node_of("large", gpus=8, price_usd_per_h=24.0),
        )
        assert best(Price(), nodes, ONE) == "large"
        assert points(Price(), nodes, ONE, np.arange(2)).tolist() == [1 / 5, 1 / 4]

    def test_tasks_without_gpus_count_cpus(self) -> None:
        nodes = columns(
            node_of("a", cpus=32, price_usd_per_h=3.0),
            node_of("b", cpus=64, price_usd_per_h=4.0),
        )
        assert best(Price(), nodes, NO_GPU) == "b"

    def test_the_cheapest_that_fits(self) -> None:
        cluster = Cluster(replace(policy_named("fifo"), score=Price()))
        cluster.add_node("dear", gpus=4, price_usd_per_h=40.0)
        cluster.add_node("cheap", gpus=1, price_usd_per_h=1.0)
        for name in "ab":
            cluster.submit(name, gpus=1)
        assert cluster.cycle().nodes == {"a": ["cheap"], "b": ["dear"]}

    def test_a_price_can_change(self) -> None:
        cluster = Cluster(replace(policy_named("fifo"), score=Price()))
        cluster.add_node("a", gpus=1, price_usd_per_h=2.0)
        cluster.add_node("b", gpus=1, price_usd_per_h=3.0)
        cluster.add_node("a", gpus=1, price_usd_per_h=4.0)
        cluster.submit("job", gpus=1)
        assert cluster.cycle().nodes == {"job": ["b"]}
        cluster.validate()


class TestHealth:
    def test_nodes_with_sick_devices_come_last(self) -> None:
        cluster = Cluster(replace(policy_named("fifo"), score=Health(now_s=1000.0)))
        cluster.add_nodes(2, gpus=4)
        cluster.health("node-0", bad_gpus=[3])
        cluster.submit("job", gpus=1)
        assert cluster.cycle().nodes == {"job": ["node-1"]}

    def test_failures_fade(self) -> None:
        cluster = Cluster()
        cluster.add_nodes(2, gpus=4)
        cluster.health("node-0", up=False)
        cluster.health("node-0", up=True)  # well again, but not forgotten
        cluster.advance(100.0)
        cluster.health("node-0", bad_gpus=[0, 1])
        cluster.health("node-0", bad_gpus=[0, 1])
        cluster.health("node-0")
        nodes, rows = cluster.snapshot().nodes, np.arange(2)
        count = nodes.failures_at(cluster.now_s, rows)
        assert count == pytest.approx([2.0, 0.0], abs=0.01)
        assert points(Health(now_s=cluster.now_s), nodes, ONE, rows) == pytest.approx(
            [0.25, 1.0], abs=0.01
        )
        later_s = cluster.now_s + FAILURE_HALF_LIFE_S
        assert nodes.failures_at(later_s, rows) == pytest.approx([1.0, 0.0], abs=0.01)
        cluster.validate()

    def test_failures_survive_new_devices(self) -> None:
        cluster = Cluster()
        cluster.add_node("node", gpus=4)
        cluster.health("node", up=False)
        cluster.add_node("node", gpus=2)
        assert cluster.snapshot().nodes.n_failures.max() == 1.0
        cluster.validate()


def everything() -> dict[str, NodeScore]:
    nodes = columns(node_of("x", gpus=4))
    workload = Workload.of({ONE: 3.0, HALF: 2.0, NO_GPU: 1.0})
    made = {"fgd": fgd(nodes, workload), "lepton": lepton_packing(nodes, workload)}
    return {**SCORES, **made, "health": Health(now_s=0.0), "raw": _raw}


def _raw(nodes: NodeColumns, shape: Shape, rows: Rows) -> np.ndarray:
    return nodes.free[rows, 0] - 30_000.0


def used_columns() -> NodeColumns:
    nodes = columns(
        node_of("empty", gpus=4, price_usd_per_h=3.0),
        node_of("half", gpus=4),
        node_of("shared", gpus=2, cpus=8),
        node_of("cpus", cpus=128),
    )
    for row, shape in [(1, ONE), (1, ONE), (2, HALF)]:
        devices = capacity.choose_devices(nodes, row, shape)
        assert devices is not None
        take(nodes, row, shape, devices)
    return nodes


class TestScale:
    @pytest.mark.parametrize("shape", [ONE, HALF, NO_GPU])
    @pytest.mark.parametrize("name", everything())
    def test_points_are_from_0_to_1_and_rank_as_the_score_does(
        self, name: str, shape: Shape
    ) -> None:
        nodes, score = used_columns(), everything()[name]
        rows = np.flatnonzero(Space(nodes, score).scores(shape) > -np.inf)
        scaled = points(score, nodes, shape, rows)
        assert ((scaled >= 0.0) & (scaled <= 1.0)).all()
        order = np.argsort(score(nodes, shape, rows), kind="stable")
        assert (np.diff(scaled[order]) >= -1e-12).all()

    def test_one_score_alone_is_itself(self) -> None:
        assert score_named({"best-fit": 2.0}) is best_fit


class TestCombination:
    def test_the_weights_decide(self) -> None:
        nodes = columns(
            node_of("empty", gpus=4, price_usd_per_h=4.0),
            node_of("used", gpus=4, price_usd_per_h=40.0),
        )
        take(nodes, 1, ONE, (0,))
        both = {"best-fit": 1.0, "price": 0.01}
        assert best(score_named(both), nodes, ONE) == "used"
        assert best(score_named({**both, "price": 3.0}), nodes, ONE) == "empty"

    def test_it_is_the_weighted_sum_of_points(self) -> None:
        nodes, rows = used_columns(), np.arange(3)
        score = combined((1.0, best_fit), (0.3, Price()), (0.2, gpu_packing))
        expected = sum(w * points(part, nodes, HALF, rows) for w, part in score.parts)
        assert score(nodes, HALF, rows) == pytest.approx(expected)

    def test_the_weightiest_that_chooses_devices_does(self) -> None:
        class Last:
            def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> np.ndarray:
                return np.zeros(len(rows))

            def choose_devices(
                self, nodes: NodeColumns, row: int, shape: Shape
            ) -> tuple[int, ...]:
                return (3,)

        nodes = columns(node_of("x", gpus=4))
        light = combined((1.0, best_fit), (0.1, fgd(nodes, Workload.of({HALF: 1.0}))))
        assert light.choose_devices(nodes, 0, HALF) == (0,)
        assert combined((1.0, best_fit), (2.0, Last())).choose_devices(nodes, 0, HALF) == (3,)

    @pytest.mark.parametrize(
        ("score", "rule"),
        [
            ({}, "at least one"),
            ({"best-fit": 0.0}, "above 0"),
            ({"best-fit": 1.0, "nothing": 1.0}, "must be one of"),
        ],
    )
    def test_mistakes_are_named(self, score: dict[str, float], rule: str) -> None:
        with pytest.raises(InvalidInput, match=rule):
            score_named(score)

    def test_it_follows_the_jobs_if_a_part_does(self) -> None:
        assert is_aimed({"best-fit": 1.0, "fgd": 0.1})
        assert is_aimed("health")
        assert not is_aimed({"best-fit": 1.0, "price": 0.1})

    @pytest.mark.parametrize("parts", [{"fgd": 1.0, "price": 0.3, "health": 0.2}, "health"])
    def test_decisions_by_it_repeat(self, parts: registry.Score) -> None:
        cluster = Cluster()
        cluster.add_nodes(3, gpus=4, price_usd_per_h=2.0)
        cluster.health("node-1", bad_gpus=[0])
        for i in range(6):
            cluster.submit(f"j{i}", gpus=(1, 0.5)[i % 2])
        cluster.policy = registry.policy_named(
            "priority", score=parts, snapshot=cluster.snapshot()
        )
        assert cluster.decide() == cluster.decide()
        assert len(cluster.cycle().started) == 6
        cluster.validate()
