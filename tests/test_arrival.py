"""Among jobs that say nothing to tell them apart, `lepton` serves who came first."""

import random
from dataclasses import replace

import pytest
from cluster_testing import Cluster
from rounds_testing import evictions, play

from policies.registry import policy_named
from policies.rounds import ROUND_S
from scheduler.core.cycle import decide


def silent_cluster(seed: int, policy: str) -> list[object]:
    """Return what is decided while jobs of all sizes and three priorities come and end."""
    draw, decided = random.Random(seed), []
    cluster = Cluster(policy)
    for gpu_type in ("A100", "H100"):
        cluster.add_nodes(2, gpus=4, gpu_type=gpu_type)
    for i in range(40):
        cluster.submit(
            f"job-{i}",
            tasks=draw.choice([1, 1, 2]),
            gpus=draw.choice([0, 1, 2, 4]),
            priority=draw.choice([0, 0, 0, 5]),
            time_limit_s=draw.choice([0.0, 900.0]),
        )
        cluster.advance(draw.uniform(0, 400))
        decided.append(replace(cluster.cycle().plan, granted={}))
        cluster.run_all()
        cluster.let_go()
        running = [name for name in cluster.ids if name not in cluster.finished]
        running = [name for name in running if cluster.tasks(name)]
        if running and draw.random() < 0.4:
            cluster.cancel(draw.choice(running))
            cluster.let_go()
    return decided


@pytest.mark.parametrize("seed", range(4))
def test_jobs_that_say_nothing_are_served_as_by_priority(seed: int) -> None:
    assert silent_cluster(seed, "lepton") == silent_cluster(seed, "priority")


class TestBesideOthers:
    """One job that says how long it takes, so that the program is asked."""

    def cluster(self) -> Cluster:
        cluster = Cluster("lepton", now_s=100 * ROUND_S)
        cluster.add_nodes(1, gpus=8, gpu_type="A100")
        return cluster

    def test_the_silent_start_as_they_came_whatever_their_size(self) -> None:
        cluster = self.cluster()
        cluster.submit("told", gpus=1, expected_run_s=600.0)
        for i, gpus in enumerate((4, 1, 2)):
            cluster.submit(f"silent-{i}", gpus=gpus)
        cluster.submit("late", gpus=4)
        assert set(cluster.cycle().started) == {"told", "silent-0", "silent-1", "silent-2"}

    def test_who_keeps_no_checkpoints_takes_no_turns(self) -> None:
        cluster = self.cluster()
        cluster.submit("told", gpus=8, expected_run_s=3600.0)
        cluster.cycle()
        cluster.run_all()
        for i in range(3):
            cluster.submit(f"silent-{i}", gpus=8)
            cluster.submit(f"told-{i}", gpus=8, expected_run_s=600.0)
        assert evictions(play(cluster, 60)) == 0

    @pytest.mark.parametrize("expected_run_s", [0.0, 7 * ROUND_S])
    def test_a_wide_gang_is_not_passed_by_small_ones_for_ever(
        self, expected_run_s: float
    ) -> None:
        cluster = self.cluster()
        cluster.submit("told", gpus=1, expected_run_s=1e6)
        for i in range(7):
            cluster.submit(f"small-{i}", gpus=1, expected_run_s=expected_run_s)
        cluster.settle()
        cluster.submit("wide", gpus=4)
        started: list[str] = []
        for i in range(7, 60):
            cluster.submit(f"small-{i}", gpus=1, expected_run_s=expected_run_s)
            cluster.advance(ROUND_S)
            running = [
                n for n in cluster.ids if n.startswith("small") and n not in cluster.finished
            ]
            running = [n for n in running if cluster.tasks(n)]
            cluster.end(running[0])
            started += cluster.settle()
            if "wide" in started:
                break
        assert "wide" in started
        assert started.index("wide") < 12

    def test_it_is_the_same_alone_or_with_queues(self) -> None:
        cluster = self.cluster()
        cluster.put_queue("team")
        cluster.submit("told", gpus=1, expected_run_s=600.0)
        for i in range(12):
            cluster.submit(f"silent-{i}", gpus=1, queue=("team", "default")[i % 2])
        first = decide(cluster.snapshot(), policy_named("lepton"))
        assert first == decide(cluster.snapshot(), policy_named("lepton"))
        assert set(cluster.cycle().started) == {"told", *(f"silent-{i}" for i in range(7))}
