"""Policies of shares as a configuration names them: from a snapshot to who has which GPUs."""

from dataclasses import replace

import numpy as np
import pytest
from cluster_testing import Cluster, node_of
from rounds_testing import GRAIN, fractions, play, time_on

from policies.contest import Contest, contest_of, prices_or_alike, required_speeds
from policies.orderings import dominant_resource_fairness
from policies.programs import min_cost
from policies.rounds import ROUND_S
from scheduler.core.events import JobsSubmitted, NodeRegistered


def add_node(cluster: Cluster, name: str, *, gpus: int, gpu_type: str, price: float) -> None:
    node = replace(node_of(name, gpus=gpus, gpu_type=gpu_type), price_usd_per_h=price)
    cluster.accept(NodeRegistered(at_s=cluster.now_s, node=node))


def contest(cluster: Cluster) -> Contest:
    return contest_of(cluster.snapshot())


class TestContest:
    def test_a_gpu_costs_the_mean_over_nodes_that_have_a_price(self) -> None:
        cluster = Cluster("min_cost")
        for name, price in (("a", 8.0), ("b", 4.0), ("c", 0.0)):
            add_node(cluster, name, gpus=4, gpu_type="V100", price=price)
        add_node(cluster, "k", gpus=2, gpu_type="K80", price=0.0)
        cluster.submit("job", gpus=1)
        assert contest(cluster).gpu_types == ("K80", "V100")
        assert contest(cluster).price_usd_per_h.tolist() == [0.0, 1.5]
        assert prices_or_alike(contest(cluster)).tolist() == [1.5, 1.5]

    def test_who_misses_a_deadline_anyway_requires_nothing(self) -> None:
        cluster = Cluster("min_cost_deadlines", now_s=1000.0)
        cluster.add_nodes(1, gpus=4, gpu_type="V100")
        about = {"gpus": 1, "total_work": 100.0, "throughputs": (("V100", 1.0),)}
        for name, deadline_at_s in (
            ("soon", 1200.0),
            ("just", 1095.0),
            ("lost", 1050.0),
            ("past", 900.0),
            ("none", 0.0),
        ):
            cluster.submit(name, deadline_at_s=deadline_at_s, **about)
        assert required_speeds(contest(cluster)).tolist() == [0.5, 1.0, 0.0, 0.0, 0.0]

    def test_nobody_loses_time_who_does_not_run(self) -> None:
        cluster = Cluster("min_cost")
        cluster.add_nodes(1, gpus=1, gpu_type="V100")
        for name in ("runs", "waits"):
            cluster.submit(name, gpus=1)
        cluster.settle()
        cluster.advance(100.0)
        assert contest(cluster).loss_s.tolist() == [130.0, 0.0]


class TestHierarchical:
    @pytest.mark.parametrize("name", ["hierarchical", "hierarchical_fifo"])
    def test_queues_share_by_weight_whoever_has_more_jobs(self, name: str) -> None:
        cluster = Cluster(name, now_s=10 * ROUND_S)
        cluster.add_nodes(1, gpus=2, gpu_type="V100")
        cluster.put_queue("large", weight=1.0)
        cluster.put_queue("small", weight=1.0)
        for i in range(4):
            cluster.submit(f"large-{i}", gpus=1, queue="large", checkpoint_interval_s=60)
        for i in range(2):
            cluster.submit(f"small-{i}", gpus=1, queue="small", checkpoint_interval_s=60)
        begin_s = cluster.now_s
        play(cluster, 40)
        small = fractions(cluster, "small-0", "small-1", since_s=begin_s)
        assert sum(small) == pytest.approx(1.0, abs=2 * GRAIN)
        cluster.validate()

    def test_inside_the_first_comes_first(self) -> None:
        cluster = Cluster("hierarchical_fifo", now_s=10 * ROUND_S)
        cluster.add_nodes(1, gpus=2, gpu_type="V100")
        for i, priority in enumerate((0, 0, 1)):
            cluster.submit(f"job-{i}", gpus=1, priority=priority, checkpoint_interval_s=60)
        play(cluster, 20)
        assert time_on(cluster, "job-1")["V100"] < time_on(cluster, "job-0")["V100"]
        assert time_on(cluster, "job-0")["V100"] <= time_on(cluster, "job-2")["V100"]


class TestCost:
    def test_jobs_run_where_a_dollar_buys_most(self) -> None:
        cluster = Cluster("min_cost", now_s=10 * ROUND_S)
        add_node(cluster, "k", gpus=2, gpu_type="K80", price=0.2)
        add_node(cluster, "v", gpus=2, gpu_type="V100", price=2.0)
        speeds = {
            "steep": (("K80", 1.0), ("V100", 20.0)),
            "flat": (("K80", 1.0), ("V100", 2.0)),
        }
        for name, throughputs in speeds.items():
            cluster.submit(name, gpus=1, throughputs=throughputs, checkpoint_interval_s=60)
        play(cluster, 3)
        assert cluster.nodes_of("steep") == ["v"]
        assert cluster.nodes_of("flat") == ["k"]

    def test_a_deadline_buys_the_faster_type(self) -> None:
        cluster = Cluster("min_cost_deadlines", now_s=10 * ROUND_S)
        add_node(cluster, "k", gpus=1, gpu_type="K80", price=0.2)
        add_node(cluster, "v", gpus=1, gpu_type="V100", price=2.0)
        about = {"throughputs": (("K80", 1.0), ("V100", 4.0)), "checkpoint_interval_s": 60}
        now_s = cluster.now_s
        cluster.submit(
            "due", gpus=1, total_work=40_000.0, deadline_at_s=now_s + 10_500.0, **about
        )
        play(cluster, 3)
        assert cluster.nodes_of("due") == ["v"]

    def test_prices_of_a_program_are_per_type(self) -> None:
        cluster = Cluster("min_cost")
        add_node(cluster, "v", gpus=1, gpu_type="V100", price=2.0)
        for i in range(2):
            cluster.submit(f"job-{i}", gpus=1)
        grant = min_cost(contest(cluster))
        assert grant.is_solved
        assert grant.prices is not None
        # One more GPU does the work of one more job, at half a job per dollar.
        np.testing.assert_allclose(grant.prices, [0.5])


def drf_cluster(**gpus: int) -> Cluster:
    cluster = Cluster("drf")
    for gpu_type, n_gpus in gpus.items():
        cluster.add_node(gpu_type, gpus=n_gpus, gpu_type=gpu_type, cpus=1000)
    return cluster


def submit_of(cluster: Cluster, submitter: str, name: str, **about: object) -> None:
    spec = cluster.spec(name, **about)
    event = JobsSubmitted(at_s=cluster.now_s, spec=spec, submitter=submitter)
    (job_id,) = cluster.accept(event).job_ids
    cluster.ids[name], cluster.names[job_id] = job_id, name


def order_of(cluster: Cluster) -> list[str]:
    snapshot = cluster.snapshot()
    rows = dominant_resource_fairness(snapshot, snapshot.waiting_rows())
    return [snapshot.job_at(row).spec.name for row in rows.tolist()]


def test_drf_counts_the_gpus_of_each_type_as_a_resource() -> None:
    cluster = drf_cluster(H100=4, A100=96)
    submit_of(cluster, "ann", "scarce", gpus=4, gpu_types=("H100",))
    submit_of(cluster, "bob", "plenty", gpus=8, gpu_types=("A100",))
    cluster.settle()
    # Ann holds all of a type, Bob a twelfth of the other.
    submit_of(cluster, "ann", "a", gpus=1)
    for i in range(3):
        submit_of(cluster, "bob", f"b{i}", gpus=8, gpu_types=("A100",))
    assert order_of(cluster) == ["b0", "b1", "b2", "a"]


def test_drf_counts_who_may_run_anywhere_on_all_types_alike() -> None:
    cluster = drf_cluster(H100=4, A100=96)
    for i in range(2):
        submit_of(cluster, "ann", f"a{i}", gpus=10)
        submit_of(cluster, "bob", f"b{i}", gpus=1, gpu_types=("H100",))
    # A tenth of all, then a quarter of the H100s.
    assert order_of(cluster) == ["a0", "b0", "a1", "b1"]


def test_drf_does_not_count_what_was_removed() -> None:
    cluster = drf_cluster(A100=10)
    cluster.add_node("large", gpus=0, cpus=100_000)
    cluster.remove_node("large")
    submit_of(cluster, "ann", "a0", cpus=500)
    submit_of(cluster, "ann", "a1", cpus=1)
    submit_of(cluster, "bob", "b0", gpus=4, cpus=1)
    submit_of(cluster, "bob", "b1", gpus=4, cpus=1)
    # Half of the CPUs, then 0.4 of the GPUs.
    assert order_of(cluster) == ["a0", "b0", "b1", "a1"]


def test_what_was_done_on_a_type_that_is_gone_counts() -> None:
    cluster = Cluster("lepton")
    cluster.add_node("old", gpus=1, gpu_type="K80")
    cluster.submit("job", gpus=1, total_work=1000.0, checkpoint_interval_s=1.0)
    cluster.settle()
    cluster.advance(400)
    cluster.add_node("new", gpus=2, gpu_type="V100")

    def remaining() -> list[float]:
        return contest_of(cluster.snapshot()).remaining_work.tolist()

    assert remaining() == [600.0]
    cluster.cordon("old")  # no GPU of its type is open
    assert remaining() == [600.0]
    cluster.remove_node("old")
    assert remaining() == [600.0]
    cluster.validate()
