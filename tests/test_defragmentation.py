"""Moving jobs together so that a wide one fits: when it is done, when not, and that it ends."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cluster_testing import Cluster

from policies.registry import policy_named
from policies.scoring import worst_fit
from scheduler.core.model import JobKind, JobPhase, StopCause
from scheduler.core.plan import Cause

MOVES = replace(policy_named("fifo"), defragments=True)
KEEPS = {"checkpoint_interval_s": 60.0}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(MOVES)
    yield cluster
    cluster.validate()


def scattered(cluster: Cluster, **about: object) -> None:
    """Let one small job run on each of two nodes of 4 GPUs, for long enough to be moved."""
    cluster.policy = replace(cluster.policy, score=worst_fit)
    cluster.add_nodes(2, gpus=4)
    for name in "ab":
        cluster.submit(name, gpus=1, **{**KEEPS, **about})
    assert {nodes[0] for nodes in cluster.cycle().nodes.values()} == {"node-0", "node-1"}
    cluster.run_all()
    cluster.advance(1000.0)


def ask(cluster: Cluster, name: str = "wide", waits_s: float = 1000.0, **about: object) -> None:
    cluster.submit(name, **{"gpus": 4, **about})
    cluster.advance(waits_s)


class TestWhen:
    def test_a_small_job_moves_for_a_wide_one(self, cluster: Cluster) -> None:
        scattered(cluster)
        ask(cluster)
        decided = cluster.cycle()
        assert list(decided.evicted.values()) == [StopCause.MIGRATED]
        (moved,) = decided.evicted
        assert decided.unplaced["wide"].cause is Cause.RELEASE
        (eviction,) = decided.plan.evictions
        assert eviction.detail == (
            "moves so that 3 fits: saves 4062 GPU-seconds of waiting for 53 of work "
            "and restarts"
        )
        left = ({*"ab"} - {moved}).pop()

        cluster.let_go()
        # Spreading would bring the moved one back first; it lets the wide one go.
        decided = cluster.cycle()
        assert decided.started == ["wide", moved]
        assert cluster.nodes_of(moved) == cluster.nodes_of(left)
        assert cluster.job(moved).preemptions == 1

    def test_its_new_place_is_kept_while_it_stops(self, cluster: Cluster) -> None:
        scattered(cluster)
        ask(cluster)
        (moved,) = cluster.cycle().evicted
        for i in range(3):  # all that is free, but for the place of the one that moves
            cluster.submit(f"new-{i}", gpus=1)
        assert len(cluster.cycle().started) == 2
        cluster.let_go()
        assert cluster.cycle().started == ["wide", moved]

    def test_nobody_moves_unless_it_is_switched_on(self) -> None:
        cluster = Cluster("fifo")
        scattered(cluster)
        ask(cluster)
        assert not cluster.cycle().evicted

    @pytest.mark.parametrize(
        "about",
        [
            {"preemptible": False},
            {"checkpoint_interval_s": 0.0},
            {"min_runtime_s": 5000.0},
            {"kind": JobKind.INFERENCE},
        ],
    )
    def test_who_may_not_move_stays(self, cluster: Cluster, about: dict[str, object]) -> None:
        scattered(cluster, **about)
        ask(cluster)
        assert not cluster.cycle().evicted

    def test_whoever_reported_a_checkpoint_may_move(self, cluster: Cluster) -> None:
        scattered(cluster, checkpoint_interval_s=0.0)
        cluster.submit("wide", gpus=4)
        cluster.advance(1000.0)
        assert not cluster.cycle().evicted
        cluster.checkpoint("b")
        assert list(cluster.cycle().evicted) == ["b"]

    def test_whoever_has_just_started_stays(self, cluster: Cluster) -> None:
        scattered(cluster)
        cluster.now_s -= 900.0
        ask(cluster, waits_s=100.0)
        assert not cluster.cycle().evicted

    def test_it_must_be_worth_it(self, cluster: Cluster) -> None:
        scattered(cluster, checkpoint_interval_s=100_000.0)
        ask(cluster, waits_s=500.0)  # saves 4 x 500 GPU-seconds, twice the cost is 2 x 1530
        assert not cluster.cycle().evicted
        cluster.advance(700.0)
        assert cluster.cycle().evicted

    def test_a_wide_job_that_starts_soon_anyway_waits(self, cluster: Cluster) -> None:
        scattered(cluster, expected_run_s=2005.0)
        ask(cluster, expected_run_s=50.0)
        assert not cluster.cycle().evicted

    def test_nobody_moves_if_it_would_not_help(self, cluster: Cluster) -> None:
        scattered(cluster)
        ask(cluster, gpus=4, tasks=2)
        assert not cluster.cycle().evicted

    def test_nobody_moves_to_where_there_is_no_room(self, cluster: Cluster) -> None:
        scattered(cluster)
        cluster.submit("rest", tasks=2, gpus=3, preemptible=False)
        assert cluster.cycle().started == ["rest"]
        ask(cluster, gpus=1, tasks=1, cpus=50)
        assert not cluster.cycle().evicted

    def test_one_wave_at_a_time(self, cluster: Cluster) -> None:
        cluster.policy = replace(cluster.policy, score=worst_fit)
        cluster.add_nodes(4, gpus=4)
        for name in "abcd":
            cluster.submit(name, gpus=1, **KEEPS)
        cluster.cycle()
        cluster.run_all()
        cluster.advance(1000.0)
        ask(cluster, "wide-0")
        ask(cluster, "wide-1")
        first = cluster.cycle()
        assert len(first.evicted) == 1
        assert not cluster.cycle().evicted
        cluster.let_go()
        decided = cluster.cycle()
        assert decided.started == ["wide-0", *first.evicted]
        assert not decided.evicted
        assert len(cluster.cycle().evicted) == 1  # the second wave: the first is over

    def test_it_moves_what_frees_one_rack(self, cluster: Cluster) -> None:
        rack = "topology.lepton.dev/rack"
        cluster.policy = replace(cluster.policy, score=worst_fit)
        for i in range(4):
            cluster.add_node(f"n{i}", gpus=2, labels={rack: f"r{i // 2}"})
        for name in "abc":
            cluster.submit(name, gpus=1, **KEEPS)
        cluster.cycle()
        cluster.run_all()
        cluster.advance(1000.0)
        ask(cluster, gpus=1, tasks=4, topology_required="rack")
        assert list(cluster.cycle().evicted) == ["c"]  # there is one of them in the other rack
        cluster.let_go()
        assert cluster.cycle().started == ["wide", "c"]
        assert set(cluster.nodes_of("wide")) == {"n2", "n3"}

    def test_a_plan_whose_gang_is_gone_moves_nobody(self, cluster: Cluster) -> None:
        scattered(cluster)
        ask(cluster)
        plan = cluster.decide()
        assert plan.evictions
        cluster.cancel("wide")
        cluster.commit(plan)
        assert cluster.phases("a", "b") == [JobPhase.RUNNING] * 2

    def test_nobody_moves_for_a_job_behind_one_that_would_take_the_room(
        self, cluster: Cluster
    ) -> None:
        cluster.policy = replace(policy_named("priority"), defragments=True)
        scattered(cluster, priority=5)
        ask(cluster, "second")
        cluster.submit("first", gpus=4, priority=5)  # it has not waited for long
        assert not cluster.cycle().evicted
        cluster.cancel("first")
        assert cluster.cycle().evicted


def test_waves_come_to_rest_and_every_one_lets_its_gang_start() -> None:
    assert sum(waves_of(seed) for seed in range(12)) > 3


def waves_of(seed: int) -> int:
    """Live a random story in which wide jobs wait; return how many waves there were."""
    draw = random.Random(seed)
    cluster = Cluster(replace(MOVES, score=draw.choice([worst_fit, MOVES.score])))
    n_nodes = draw.randint(2, 5)
    cluster.add_nodes(n_nodes, gpus=4, cpus=16)
    for i in range(n_nodes + draw.randint(1, 5)):
        cluster.submit(
            f"job-{i}",
            gpus=draw.choice([1, 1, 1, 2]),
            tasks=draw.choice([1, 1, 2]),
            checkpoint_interval_s=draw.choice([0.0, 60.0, 60.0, 60.0]),
            preemptible=draw.random() < 0.9,
        )
    cluster.settle()
    for i in range(n_nodes + 1):
        if draw.random() < 0.5 and cluster.phase(f"job-{i}") is JobPhase.RUNNING:
            cluster.end(f"job-{i}")
    for i in range(2):
        about = {"gpus": draw.choice([3, 4]), "tasks": draw.choice([1, 1, 2])}
        cluster.submit(f"wide-{i}", **about)
    n_waves = 0
    for _ in range(20):
        cluster.advance(300.0)
        decided = cluster.cycle()
        moved = [n for n, cause in decided.evicted.items() if cause is StopCause.MIGRATED]
        cluster.run_all()
        if not moved:
            cluster.let_go()
            continue
        n_waves += 1
        gangs = {
            cluster.names[e.for_job]
            for e in decided.plan.evictions
            if e.cause is StopCause.MIGRATED
        }
        assert len(gangs) == 1
        cluster.let_go()
        # Its gang starts, and so does everybody who moved.
        assert {*gangs, *moved} <= set(cluster.cycle().started)
        cluster.run_all()
    assert n_waves <= 2  # one for each of the wide: nothing else changes, so nothing moves
    cluster.validate()
    return n_waves
