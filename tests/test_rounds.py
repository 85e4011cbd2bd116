"""Shares made true by rounds: closed forms over many rounds, and no thrash."""

from dataclasses import replace

import numpy as np
import pytest
from cluster_testing import Cluster
from rounds_testing import GRAIN, evictions, fractions, play, time_on

from policies.contest import Contest
from policies.registry import ABOUT, POLICIES, in_rounds_of, policy_named
from policies.rounds import ROUND_S, Rounds
from scheduler.core.model import JobKind


@pytest.fixture
def cluster() -> Cluster:
    return Cluster("max_min_fairness", now_s=10 * ROUND_S)


class TestTimeFractions:
    def test_equal_jobs_have_equal_time(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=2, gpu_type="V100")
        names = ["a", "b", "c"]
        for name in names:
            cluster.submit(name, gpus=1, checkpoint_interval_s=60)
        begin_s = cluster.now_s
        play(cluster, 60)
        got = fractions(cluster, *names, since_s=begin_s)
        assert got == pytest.approx([2 / 3] * 3, abs=GRAIN)
        cluster.validate()

    def test_weights_count(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=1, gpu_type="V100")
        for name, weight in (("light", 1.0), ("heavy", 3.0)):
            cluster.submit(name, gpus=1, weight=weight, checkpoint_interval_s=60)
        begin_s = cluster.now_s
        play(cluster, 60)
        got = fractions(cluster, "light", "heavy", since_s=begin_s)
        assert got == pytest.approx([0.25, 0.75], abs=GRAIN)

    def test_a_gang_counts_its_gpus(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=4, gpu_type="V100")
        cluster.submit("wide", gpus=4, checkpoint_interval_s=60)
        for i in range(4):
            cluster.submit(f"narrow-{i}", gpus=1, checkpoint_interval_s=60)
        begin_s = cluster.now_s
        play(cluster, 80)
        wide, *narrow = fractions(
            cluster, "wide", *(f"narrow-{i}" for i in range(4)), since_s=begin_s
        )
        # 4 w + 4 n = 4 and 4 w = n, Gavel's fairness in GPUs.
        assert wide == pytest.approx(0.2, abs=2 * GRAIN)
        assert narrow == pytest.approx([0.8] * 4, abs=2 * GRAIN)

    def test_who_comes_later_does_not_starve_those_who_had_the_cluster(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(1, gpus=1, gpu_type="V100")
        cluster.submit("early", gpus=1, checkpoint_interval_s=60)
        play(cluster, 200)
        cluster.submit("late", gpus=1, checkpoint_interval_s=60)
        begin_s = cluster.now_s
        before_s = time_on(cluster, "early")["V100"]
        play(cluster, 60)
        late = time_on(cluster, "late")["V100"] / (cluster.now_s - begin_s)
        early = (time_on(cluster, "early")["V100"] - before_s) / (cluster.now_s - begin_s)
        assert early == pytest.approx(0.5, abs=0.12)
        assert late == pytest.approx(0.5, abs=0.12)


class TestTypes:
    @pytest.mark.parametrize(
        "name", ["max_min_fairness", "max_min_fairness_perf", "finish_time_fairness"]
    )
    def test_types_that_are_alike_are_one_type(self, name: str) -> None:
        # A program may split a share among equal types at will, which must stop nobody's turn.
        cluster = Cluster(name, now_s=10 * ROUND_S)
        cluster.add_nodes(1, prefix="k", gpus=1, gpu_type="K80")
        cluster.add_nodes(1, prefix="v", gpus=2, gpu_type="V100")
        names = [f"job-{i}" for i in range(6)]
        for job in names:
            cluster.submit(job, gpus=1, checkpoint_interval_s=20, expected_run_s=1e6)
        begin_s = cluster.now_s
        play(cluster, 60)
        got = fractions(cluster, *names, since_s=begin_s)
        assert got == pytest.approx([0.5] * 6, abs=2 * GRAIN)

    def test_knowing_throughputs_beats_not_knowing(self) -> None:
        work = {}
        for policy in ("max_min_fairness", "max_min_fairness_perf"):
            cluster = Cluster(policy, now_s=10 * ROUND_S)
            cluster.add_nodes(1, prefix="k", gpus=1, gpu_type="K80")
            cluster.add_nodes(1, prefix="v", gpus=1, gpu_type="V100")
            speeds = {
                "steep": (("K80", 1.0), ("V100", 10.0)),
                "flat": (("K80", 1.0), ("V100", 1.0)),
            }
            for name, throughputs in speeds.items():
                cluster.submit(name, gpus=1, throughputs=throughputs, checkpoint_interval_s=30)
            begin_s = cluster.now_s
            play(cluster, 40)
            for name, throughputs in speeds.items():
                had = time_on(cluster, name)
                done = sum(speed * had[kind] for kind, speed in throughputs)
                work[policy, name] = done / (cluster.now_s - begin_s)
            cluster.validate()
        assert work["max_min_fairness_perf", "steep"] > 9
        assert work["max_min_fairness_perf", "flat"] > 0.9
        blind, aware = ("max_min_fairness", "steep"), ("max_min_fairness_perf", "steep")
        assert work[aware] >= work[blind]

    def test_a_job_never_starts_where_it_cannot_run(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, prefix="k", gpus=4, gpu_type="K80")
        cluster.add_nodes(1, prefix="v", gpus=1, gpu_type="V100")
        for i in range(3):
            cluster.submit(
                f"job-{i}", gpus=1, throughputs=(("V100", 1.0),), checkpoint_interval_s=60
            )
        play(cluster, 20)
        for i in range(3):
            had = time_on(cluster, f"job-{i}")
            assert had["K80"] == 0
            assert had["V100"] > 0

    def test_jobs_swap_types_when_that_is_faster(self) -> None:
        cluster = Cluster("max_min_fairness_perf", now_s=10 * ROUND_S)
        cluster.add_nodes(1, prefix="v", gpus=1, gpu_type="V100")
        flat = (("K80", 1.0), ("V100", 1.0))
        cluster.submit("flat", gpus=1, throughputs=flat, checkpoint_interval_s=30)
        play(cluster, 1)
        cluster.add_nodes(1, prefix="k", gpus=1, gpu_type="K80")
        steep = (("K80", 1.0), ("V100", 10.0))
        cluster.advance(ROUND_S * 0.6)
        cluster.submit("steep", gpus=1, throughputs=steep, checkpoint_interval_s=30)
        decisions = play(cluster, 30)
        assert cluster.nodes_of("steep") == ["v-0"]
        assert cluster.nodes_of("flat") == ["k-0"]
        assert evictions(decisions) <= 4


class TestNoThrash:
    @pytest.mark.parametrize("name", sorted(POLICIES))
    def test_a_job_alone_is_never_stopped(self, name: str) -> None:
        cluster = Cluster(name, now_s=10 * ROUND_S)
        cluster.add_nodes(1, prefix="k", gpus=4, gpu_type="K80")
        cluster.add_nodes(1, prefix="v", gpus=4, gpu_type="V100")
        cluster.submit(
            "alone", gpus=2, throughputs=(("K80", 1.0), ("V100", 3.0)), checkpoint_interval_s=60
        )
        decisions = play(cluster, 25)
        assert not evictions(decisions)
        assert cluster.job("alone").attempt == 1

    @pytest.mark.parametrize("name", sorted(POLICIES))
    def test_jobs_that_all_fit_are_never_stopped(self, name: str) -> None:
        cluster = Cluster(name, now_s=10 * ROUND_S)
        cluster.add_nodes(2, gpus=4, gpu_type="V100")
        for i in range(4):
            cluster.submit(f"job-{i}", gpus=2, checkpoint_interval_s=60, weight=i + 1)
        decisions = play(cluster, 25)
        assert not evictions(decisions)

    def test_work_that_is_not_saved_is_not_thrown_away(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=1, gpu_type="V100")
        cluster.submit("unsaved", gpus=1)
        cluster.submit("waits", gpus=1)
        assert not evictions(play(cluster, 40))

    def test_nobody_is_stopped_before_half_a_round_nor_in_the_second_half(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(1, gpus=2, gpu_type="V100")
        for i in range(5):
            cluster.submit(f"job-{i}", gpus=1, checkpoint_interval_s=20)
            cluster.advance(ROUND_S / 4)
        decisions = play(cluster, 40, step_s=50)
        assert evictions(decisions)
        bound_at_s = {
            bind.task: d.plan.now_s
            for d in decisions
            for p in d.plan.placements
            for bind in p.binds
        }
        for decided in decisions:
            for eviction in decided.plan.evictions:
                assert decided.plan.now_s % ROUND_S < ROUND_S / 2
                assert decided.plan.now_s - bound_at_s[eviction.tasks[0]] >= ROUND_S / 2
        cluster.validate()

    def test_stops_are_at_most_one_per_gpu_and_round(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=2, gpu_type="V100")
        for i in range(6):
            cluster.submit(f"job-{i}", gpus=1, checkpoint_interval_s=20, weight=1 + i)
        decisions = play(cluster, 50, step_s=40)
        assert 50 < evictions(decisions) <= 100

    def test_gangs_that_no_stop_would_help_stop_nobody(self, cluster: Cluster) -> None:
        # Four GPUs in all, but never four on one node.
        cluster.add_nodes(2, gpus=2, gpu_type="V100")
        for i in range(4):
            cluster.submit(f"small-{i}", gpus=1, checkpoint_interval_s=20)
        cluster.cycle()
        cluster.submit("wide", gpus=4, checkpoint_interval_s=20)
        assert not evictions(play(cluster, 30))


class TestPriority:
    """`lepton` takes turns within a class; the classes themselves wait for nobody."""

    def test_a_higher_class_stops_a_lower_one_at_any_time(self) -> None:
        cluster = Cluster("lepton", now_s=10.75 * ROUND_S)
        cluster.add_nodes(1, gpus=2, gpu_type="V100")
        for name in ("a", "b"):
            cluster.submit(name, gpus=1)  # saves nothing
        cluster.settle()
        cluster.advance(10.0)
        cluster.submit("equal", gpus=1)
        cluster.submit("lower", gpus=1, priority=-1)
        assert not cluster.cycle().evicted
        cluster.submit("higher", gpus=1, priority=1)
        assert set(cluster.settle()) >= {"higher"}
        assert cluster.phase("lower") == cluster.phase("equal") == "pending"
        cluster.validate()

    def test_within_a_class_turns_are_taken(self) -> None:
        cluster = Cluster("lepton", now_s=10 * ROUND_S)
        cluster.add_nodes(1, gpus=2, gpu_type="V100")
        cluster.submit("high", gpus=1, priority=1, checkpoint_interval_s=20)
        for name in ("a", "b"):
            cluster.submit(name, gpus=1, checkpoint_interval_s=20, expected_run_s=1e6)
        begin_s = cluster.now_s
        play(cluster, 40)
        high, a, b = fractions(cluster, "high", "a", "b", since_s=begin_s)
        assert high == pytest.approx(1.0, abs=1e-6)
        # Each has its fair half within 1.3 of the time; the rest is for who comes first.
        assert min(a, b) > 0.5 / 1.3 - 2 * GRAIN
        assert a + b == pytest.approx(1.0, abs=GRAIN)

    def test_what_shares_nothing_is_served_by_its_class(self) -> None:
        cluster = Cluster("lepton", now_s=10 * ROUND_S)
        cluster.add_nodes(1, gpus=1, gpu_type="V100")
        cluster.submit("service", gpus=1, kind="inference")
        cluster.submit("high", gpus=1, priority=1)
        assert cluster.cycle().started == ["high"]


class TestMixes:
    def test_services_are_not_stopped_for_turns(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=2, gpu_type="V100")
        cluster.submit("service", gpus=1, kind="inference")
        for name in ("a", "b"):
            cluster.submit(name, gpus=1, checkpoint_interval_s=60)
        begin_s = cluster.now_s
        play(cluster, 40)
        assert cluster.job("service").attempt == 1
        got = fractions(cluster, "a", "b", since_s=begin_s)
        assert got == pytest.approx([0.5] * 2, abs=GRAIN)

    @pytest.mark.parametrize("name", sorted(POLICIES))
    def test_everybody_ends_and_every_story_replays(self, name: str) -> None:
        cluster = Cluster(name, now_s=10 * ROUND_S)
        cluster.add_nodes(1, prefix="k", gpus=2, gpu_type="K80")
        cluster.add_nodes(1, prefix="v", gpus=2, gpu_type="V100")
        for i in range(7):
            cluster.submit(
                f"job-{i}",
                gpus=1 + i % 2,
                weight=1 + i % 3,
                checkpoint_interval_s=60,
                expected_run_s=600.0 * (1 + i),
                throughputs=(("K80", 1.0), ("V100", 1.0 + i)) if i % 2 else (),
            )
            play(cluster, 1)
        cluster.validate()
        for _ in range(40):
            play(cluster, 2, step_s=100)
            for record in list(cluster.engine.jobs()):
                if record.phase == "running" and record.gpu_s(cluster.now_s) > 1500:
                    cluster.end(cluster.names[record.id])
        assert all(cluster.phase(f"job-{i}").is_final for i in range(7))
        cluster.validate()


class TestSolversThatFail:
    @pytest.mark.parametrize("does_raise", [True, False])
    def test_jobs_take_equal_turns_then(self, does_raise: bool) -> None:
        def program(contest: Contest) -> np.ndarray:
            if does_raise:
                raise ValueError("singular")
            return np.full(contest.speeds.shape, np.nan)

        policy = replace(policy_named("max_min_fairness"), rounds=Rounds(program=program))
        cluster = Cluster(policy, now_s=10 * ROUND_S)
        cluster.add_nodes(1, gpus=1, gpu_type="V100")
        for name in ("a", "b"):
            cluster.submit(name, gpus=1, checkpoint_interval_s=60)
        begin_s = cluster.now_s
        play(cluster, 20)
        assert fractions(cluster, "a", "b", since_s=begin_s) == pytest.approx(
            [0.5] * 2, abs=2 * GRAIN
        )


class TestProgress:
    def test_who_had_less_service_stops_who_had_a_level_more(self) -> None:
        cluster = Cluster("least_attained_service")
        cluster.add_nodes(1, gpus=2, gpu_type="V100")
        cluster.submit("long", gpus=2, checkpoint_interval_s=60)
        cluster.settle()
        cluster.advance(1000)
        cluster.submit("new", gpus=2)
        assert not cluster.cycle().evicted
        cluster.advance(1000)
        assert set(cluster.cycle().evicted) == {"long"}
        cluster.let_go()
        assert cluster.cycle().started == ["new"]
        cluster.run_all()
        cluster.advance(2000)  # both are at the second level now: nobody stops an equal
        assert not cluster.cycle().evicted
        cluster.validate()

    def test_who_is_done_soon_stops_who_is_not(self) -> None:
        cluster = Cluster("shortest_remaining")
        cluster.add_nodes(1, gpus=1, gpu_type="V100")
        cluster.submit("long", gpus=1, expected_run_s=10_000, checkpoint_interval_s=60)
        cluster.settle()
        cluster.submit("unknown", gpus=1)
        cluster.submit("short", gpus=1, expected_run_s=100)
        assert set(cluster.settle()) == {"short"}
        cluster.end("short")
        assert cluster.settle() == ["long"]
        cluster.advance(9_950)
        cluster.submit("other", gpus=1, expected_run_s=40)  # less, but not by the cost
        assert not cluster.cycle().evicted

    def test_short_jobs_start_first(self) -> None:
        cluster = Cluster("shortest_job")
        cluster.add_nodes(1, gpus=1, gpu_type="V100")
        for name, run_s in (("unknown", 0.0), ("long", 900.0), ("short", 60.0)):
            cluster.submit(name, gpus=1, expected_run_s=run_s)
        for name in ("short", "long", "unknown"):
            assert cluster.settle() == [name]
            cluster.end(name)


class TestRegistry:
    def test_every_policy_says_what_it_is_for(self) -> None:
        assert list(ABOUT) == list(POLICIES)
        assert all(about.aim and about.source for about in ABOUT.values())

    def test_rounds_may_be_of_any_length(self) -> None:
        cluster = Cluster(in_rounds_of(policy_named("max_min_fairness"), 60.0), now_s=600.0)
        cluster.add_nodes(1, gpus=1, gpu_type="V100")
        for name in ("a", "b"):
            cluster.submit(name, gpus=1, checkpoint_interval_s=1)
        assert cluster.cycle().plan.wake_at_s == 660.0


@pytest.mark.parametrize("policy", ["max_min_fairness", "max_min_fairness_packed", "goodput"])
def test_who_takes_turns_does_not_stop_a_service_that_comes_before_it(policy: str) -> None:
    cluster = Cluster(policy, now_s=10 * ROUND_S)
    cluster.add_nodes(1, gpus=2)
    service = {"kind": JobKind.INFERENCE, "tasks": 2, "min_tasks": 1}
    cluster.submit("service", gpus=1, **service)
    cluster.settle()
    # All GPUs are the service's: nothing is shared until one of them is free.
    cluster.submit("high", gpus=1, priority=9)
    assert cluster.settle() == []
    assert len(cluster.tasks("service")) == 2
    cluster.validate()


def test_nobody_moves_in_a_queue_that_would_not_start_it_again() -> None:
    cluster = Cluster("max_min_fairness_perf", now_s=10 * ROUND_S)
    cluster.add_node("slow", gpus=1, gpu_type="K80")
    cluster.put_queue("mine")
    speeds = (("K80", 1.0), ("V100", 10.0))
    cluster.submit("job", queue="mine", gpus=1, throughputs=speeds, checkpoint_interval_s=10.0)
    cluster.settle()
    cluster.put_queue("mine", is_started=False)
    cluster.add_node("fast", gpus=1, gpu_type="V100")
    cluster.advance(10 * ROUND_S)
    assert cluster.settle() == []
    assert cluster.nodes_of("job") == ["slow"]
    cluster.put_queue("mine", is_started=True)
    assert cluster.settle() == ["job"]
    assert cluster.nodes_of("job") == ["fast"]
    cluster.validate()
