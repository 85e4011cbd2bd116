"""Shares that are there in any case: the last ones where a program has no answer, by memory."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from cluster_testing import Cluster
from prometheus_client import CollectorRegistry
from rounds_testing import play

from policies.contest import Contest, Grant, contest_of
from policies.granting import answered, scope_of
from policies.registry import policy_named
from policies.rounds import ROUND_S, Rounds
from scheduler.core.events import QueueDeleted
from scheduler.core.model import QueueName
from scheduler.core.plan import Plan
from scheduler.daemon.metrics import Metrics
from scheduler.daemon.solves import timed

NOW_S = 10 * ROUND_S


@dataclass
class Program:
    """Gives the first job most; has no answer while it is told to have none."""

    status: str = "optimal"
    asked: list[Contest] = field(default_factory=list)

    def __call__(self, contest: Contest) -> Grant:
        self.asked.append(contest)
        n_jobs = len(contest.gpus)
        fractions = np.where(contest.speeds > 0, 0.3 / max(n_jobs - 1, 1), 0.0)
        fractions[0, :] = np.where(contest.speeds[0] > 0, 0.7, 0.0)
        if self.status == "raises":
            raise ValueError("singular matrix")
        return Grant(fractions=fractions, status=self.status, prices=contest.capacity / 10)


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.fixture
def cluster(program: Program) -> Cluster:
    policy = replace(policy_named("max_min_fairness"), rounds=Rounds(program=program))
    cluster = Cluster(policy, now_s=NOW_S)
    cluster.add_nodes(1, gpus=1, gpu_type="V100")
    for name in ("a", "b"):
        cluster.submit(name, gpus=1, checkpoint_interval_s=60)
    return cluster


def shares(cluster: Cluster, program: Program) -> np.ndarray:
    snapshot = cluster.snapshot()
    answer = answered(snapshot, contest_of(snapshot), program)
    cluster.granted = {scope_of(snapshot): answer.granted}
    return answer.fractions[:, 0]


class TestFallingBack:
    @pytest.mark.parametrize("status", ["limit reached", "infeasible", "raises"])
    def test_the_last_shares_hold_on(
        self, cluster: Cluster, program: Program, status: str
    ) -> None:
        assert shares(cluster, program) == pytest.approx([0.7, 0.3])
        program.status = status
        for n_fallbacks in (1, 2):
            cluster.advance(100.0)
            assert shares(cluster, program) == pytest.approx([0.7, 0.3])
            granted = cluster.granted[""]
            assert granted.n_fallbacks == n_fallbacks
            assert granted.solved_at_s == NOW_S
            assert granted.status.startswith("failed" if status == "raises" else status)
        program.status = "optimal"
        shares(cluster, program)
        assert cluster.granted[""].n_fallbacks == 0

    def test_who_is_new_has_the_equal_share_and_all_fit_what_is_there(
        self, cluster: Cluster, program: Program
    ) -> None:
        shares(cluster, program)
        program.status = "limit reached"
        cluster.submit("c", gpus=1)
        assert shares(cluster, program) == pytest.approx(np.array([0.7, 0.3, 1 / 3]) * 0.75)

    def test_without_last_ones_all_are_equal(self, cluster: Cluster, program: Program) -> None:
        program.status = "limit reached"
        assert shares(cluster, program) == pytest.approx([0.5, 0.5])
        assert cluster.granted[""].solved_at_s == 0.0

    def test_types_may_come_and_go_meanwhile(self, cluster: Cluster, program: Program) -> None:
        shares(cluster, program)
        program.status = "limit reached"
        cluster.add_nodes(1, prefix="a", gpus=1, gpu_type="A100")
        snapshot = cluster.snapshot()
        contest = contest_of(snapshot)
        assert contest.gpu_types == ("A100", "V100")
        answer = answered(snapshot, contest, program)
        np.testing.assert_allclose(answer.fractions, [[0, 0.7], [0, 0.3]])

    def test_waiting_jobs_are_told_so(self, cluster: Cluster, program: Program) -> None:
        cluster.settle()
        cluster.advance(50.0)
        program.status = "limit reached"
        (reason,) = cluster.cycle().sentences.values()
        assert "shares could not be computed (limit reached): those of 50 s ago" in reason


class TestMemory:
    def test_a_timeless_question_is_asked_once(self, program: Program) -> None:
        rounds = Rounds(program=program, is_timeless=True)
        policy = replace(policy_named("max_min_fairness"), rounds=rounds)
        cluster = Cluster(policy, now_s=NOW_S)
        cluster.add_nodes(1, gpus=1, gpu_type="V100")
        for name in ("a", "b"):
            cluster.submit(name, gpus=1, checkpoint_interval_s=60)
        play(cluster, 5)
        assert len(program.asked) == 1
        cluster.submit("c", gpus=1, checkpoint_interval_s=60)
        play(cluster, 5)
        assert len(program.asked) == 2
        cluster.add_nodes(1, gpus=2, gpu_type="V100", prefix="more")
        cluster.submit("wide", gpus=3, checkpoint_interval_s=60)
        cluster.submit("d", gpus=1)
        play(cluster, 1)
        assert len(program.asked) > 2

    @pytest.mark.parametrize("name", ["max_min_fairness_perf", "hierarchical", "lepton"])
    def test_while_programs_answer_memory_changes_nothing(self, name: str) -> None:
        plans: list[list[Plan]] = []
        for remembers in (True, False):
            cluster = Cluster(name, now_s=NOW_S)
            cluster.add_nodes(1, prefix="k", gpus=1, gpu_type="K80")
            cluster.add_nodes(1, prefix="v", gpus=1, gpu_type="V100")
            plans.append([])
            for i in range(12):
                if i < 4:
                    speeds = (("K80", 1.0), ("V100", 1.0 + i))
                    cluster.submit(f"j{i}", gpus=1, throughputs=speeds, checkpoint_interval_s=9)
                plan = cluster.cycle().plan
                cluster.run_all()
                cluster.let_go()
                cluster.advance(100.0)
                cluster.granted = cluster.granted if remembers else {}
                plans[-1].append(replace(plan, granted={}))
        assert plans[0] == plans[1]

    def test_policies_inside_queues_have_their_own(self) -> None:
        cluster = Cluster("max_min_fairness", now_s=NOW_S)
        cluster.policy = replace(cluster.policy, inside={"lepton": policy_named("lepton")})
        cluster.add_nodes(1, gpus=1, gpu_type="V100")
        cluster.put_queue("ours", policy="lepton")
        for i in range(2):
            cluster.submit(f"ours-{i}", gpus=1, queue="ours", expected_run_s=600.0)
            cluster.submit(f"all-{i}", gpus=1)
        cluster.cycle()
        assert set(cluster.granted) == {"", "ours"}
        assert all(len(granted.job_ids) == 2 for granted in cluster.granted.values())


class _Clock:
    def __init__(self) -> None:
        self.at_s = 0.0

    def monotonic_s(self) -> float:
        self.at_s += 0.25
        return self.at_s


def figure(registry: CollectorRegistry, name: str, **labels: str) -> float:
    value = registry.get_sample_value(name, labels)
    assert value is not None, name
    return value


def test_solves_and_fallbacks_are_metrics(cluster: Cluster, program: Program) -> None:
    metrics = Metrics()
    cluster.policy = timed(cluster.policy, _Clock(), metrics)
    for status in ("optimal", "limit reached", "limit reached", "raises"):
        program.status = status
        before = cluster.granted
        metrics.decided(cluster.cycle().plan, took_s=0.0, before=before)
        cluster.advance(10.0)
        cluster.submit(f"more-{cluster.now_s:.0f}", gpus=1)
    seen = metrics.registry
    assert figure(seen, "lepton_share_solves_total", status="optimal") == 1
    assert figure(seen, "lepton_share_solves_total", status="limit reached") == 2
    assert figure(seen, "lepton_share_solves_total", status="failed") == 1
    assert figure(seen, "lepton_share_solve_seconds_sum") == 1.0
    assert figure(seen, "lepton_share_fallbacks_total") == 3
    assert figure(seen, "lepton_gpu_shadow_price", queue="", type="V100") == 0.1


def test_a_restart_that_forgets_deleted_queues_asks_the_same(program: Program) -> None:
    cluster = Cluster("hierarchical")
    cluster.add_nodes(1, gpus=1, gpu_type="V100")
    for name in ("gone", "mine"):
        cluster.put_queue(name, weight=2.0)
    for name in ("a", "b"):
        cluster.submit(name, queue="mine", gpus=1)
    cluster.accept(QueueDeleted(at_s=cluster.now_s, name=QueueName("gone")))
    cluster.validate()
