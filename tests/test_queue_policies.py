"""Policies inside queues: each serves its own jobs, while the tree shares between queues."""

from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from cluster_testing import Cluster
from rounds_testing import GRAIN, fractions, play
from rpc_testing import serving
from test_queue_tree import amounts

from policies.contest import contest_of
from policies.registry import POLICIES, policy_named
from policies.rounds import ROUND_S
from scheduler.client import ClientError
from scheduler.core.cycle import n_ahead
from scheduler.core.model import Queue, QueueName, StopCause
from scheduler.core.node_columns import Rows
from scheduler.core.queue_policies import round_of
from scheduler.core.snapshot import Scope, Snapshot


def cluster_of(policy: str = "fifo", *, gpus: int = 4, **queues: str) -> Cluster:
    """Return GPUs of one node, and queues with the policies they name."""
    cluster = Cluster(policy, now_s=10 * ROUND_S)
    cluster.add_nodes(1, gpus=gpus, gpu_type="V100")
    for name, inside in queues.items():
        cluster.put_queue(name, policy=inside)
    return cluster


def submit_by_priority(cluster: Cluster, queue: str, *priorities: int) -> None:
    for priority in priorities:
        cluster.submit(f"{queue}-{priority}", queue=queue, priority=priority, gpus=1)


def test_each_queue_is_served_by_its_own_policy_in_turns() -> None:
    cluster = cluster_of("fifo", a="priority", b="")
    submit_by_priority(cluster, "a", 1, 2, 3)
    submit_by_priority(cluster, "b", 1, 2, 3)
    assert cluster.cycle().started == ["a-3", "b-1", "a-2", "b-2"]
    ahead = [
        n_ahead(cluster.snapshot(), cluster.policy, cluster.ids[name])
        for name in ("a-1", "b-3")
    ]
    assert ahead == [0, 1]
    cluster.validate()


def test_the_nearest_policy_above_holds() -> None:
    cluster = cluster_of("fifo", p="priority")
    cluster.put_queue("a", parent="p")
    cluster.put_queue("b", parent="p", policy="fifo")
    for queue in "ab":
        submit_by_priority(cluster, queue, 1, 2)
    assert cluster.cycle().started == ["a-2", "b-1", "a-1", "b-2"]


def test_a_policy_stops_nobody_of_another_queue() -> None:
    cluster = cluster_of("fifo", a="priority", gpus=2)
    submit_by_priority(cluster, "a", 1)
    submit_by_priority(cluster, "default", 0)
    cluster.settle()
    submit_by_priority(cluster, "a", 2)
    submit_by_priority(cluster, "default", 9)
    decided = cluster.cycle()
    assert decided.evicted == {"a-1": StopCause.PREEMPTED}
    assert "default-9" in decided.unplaced
    cluster.let_go()
    assert cluster.cycle().started == ["a-2"]


def test_a_queue_may_be_calmer_than_the_cluster() -> None:
    cluster = cluster_of("priority", a="fifo", gpus=1)
    submit_by_priority(cluster, "a", 1)
    cluster.settle()
    submit_by_priority(cluster, "a", 5)
    assert cluster.cycle().evicted == {}
    cluster.put_queue("a")
    assert cluster.cycle().evicted == {"a-1": StopCause.PREEMPTED}


def test_a_policy_that_is_gone_leaves_its_jobs_to_the_cluster() -> None:
    cluster = cluster_of("priority", a="no-such-policy", gpus=1)
    submit_by_priority(cluster, "a", 1, 2)
    assert cluster.cycle().started == ["a-2"]


@pytest.mark.parametrize("name", POLICIES)
def test_a_queue_that_has_the_cluster_is_decided_like_the_cluster(name: str) -> None:
    def decisions(cluster: Cluster) -> list[object]:
        for i, (gpus, priority, expect_s) in enumerate(
            [(2, 0, 500.0), (1, 0, 0.0), (1, 2, 50.0), (4, 1, 90.0), (1, 0, 5.0)]
        ):
            cluster.submit(
                f"job-{i}",
                queue="a",
                gpus=gpus,
                priority=priority,
                expected_run_s=expect_s,
                checkpoint_interval_s=60.0,
            )
        plans = []
        for _ in range(6):
            plan = cluster.decide()
            plans.append((plan.placements, plan.evictions, plan.wake_at_s))
            cluster.commit(plan)
            cluster.run_all()
            cluster.let_go()
            cluster.advance(ROUND_S / 2)
        cluster.validate()
        return plans

    inside = decisions(cluster_of("fifo", a=name))
    shared = cluster_of(name)
    shared.put_queue("a", weight=2.0)
    assert inside == decisions(shared)
    assert inside[0][0]


class TestShares:
    def test_jobs_of_a_queue_share_what_its_limit_leaves_them(self) -> None:
        cluster = cluster_of("fifo", gpus=6)
        cluster.put_queue("a", policy="max_min_fairness", limit=amounts(gpus=2))
        names = [f"a-{i}" for i in range(3)]
        cluster.submit("alone", gpus=1, checkpoint_interval_s=60)
        for name in names:
            cluster.submit(name, queue="a", gpus=1, checkpoint_interval_s=60)
        begin_s = cluster.now_s
        play(cluster, 60)
        assert fractions(cluster, *names, since_s=begin_s) == pytest.approx(
            [2 / 3] * 3, abs=GRAIN
        )
        assert cluster.job("alone").preemptions == 0
        cluster.validate()

    def test_two_queues_with_turns_of_their_own_keep_to_their_halves(self) -> None:
        cluster = cluster_of("fifo", a="max_min_fairness", b="water_filling", gpus=2)
        names = ["a-0", "a-1", "b-0", "b-1", "b-2"]
        for name in names:
            cluster.submit(name, queue=name[0], gpus=1, checkpoint_interval_s=60)
        begin_s = cluster.now_s
        play(cluster, 60)
        got = fractions(cluster, *names, since_s=begin_s)
        assert got == pytest.approx([1 / 2] * 2 + [1 / 3] * 3, abs=2 * GRAIN)

    def test_a_contest_in_scope_has_its_own_jobs_and_what_others_do_not_hold(self) -> None:
        cluster = cluster_of("fifo", a="max_min_fairness", gpus=8)
        for i in range(3):
            cluster.submit(f"b-{i}", gpus=1)
        cluster.settle()
        cluster.submit("a-0", queue="a", gpus=2)
        snapshot = cluster.snapshot()
        queue = [q.name if q else "" for q in snapshot.queues].index("a")
        scope = Scope(is_mine=snapshot.jobs.queue == queue, queue=queue)
        contest = contest_of(replace(snapshot, scope=scope, origin=snapshot))
        assert [snapshot.job_at(row).spec.name for row in contest.rows] == ["a-0"]
        assert contest.capacity.tolist() == [5.0]
        cluster.put_queue("a", policy="max_min_fairness", limit=amounts(gpus=3))
        snapshot = cluster.snapshot()
        contest = contest_of(replace(snapshot, scope=scope, origin=snapshot))
        assert contest.capacity.tolist() == [3.0]

    def test_a_round_in_a_queue_wakes_the_cluster(self) -> None:
        cluster = cluster_of("fifo", a="max_min_fairness", gpus=1)
        for i in range(2):
            cluster.submit(f"a-{i}", queue="a", gpus=1, checkpoint_interval_s=60)
        cluster.settle()
        assert cluster.decide().wake_at_s == cluster.now_s + ROUND_S


def test_without_named_policies_nothing_is_put_together() -> None:
    cluster = cluster_of("fifo", a="", b="no-such-policy")
    assert round_of(cluster.snapshot(), cluster.policy) is None
    assert POLICIES["fifo"].inside == {}
    assert set(policy_named("drf").inside) == set(POLICIES)


def test_orders_are_whole_whatever_is_asked() -> None:
    cluster = cluster_of("priority", a="drf", b="least_attained_service", gpus=1)
    for i in range(12):
        cluster.submit(f"job-{i}", queue=["a", "b", "default"][i % 3], gpus=1, priority=i % 4)
    cluster.settle()
    snapshot = cluster.snapshot()
    turn = round_of(snapshot, cluster.policy)
    assert turn is not None
    rows = snapshot.waiting_rows()
    for some in (rows, rows[::2], rows[:0]):
        assert sorted(turn.order(snapshot, some)) == sorted(some)
        np.testing.assert_array_equal(
            turn.order(snapshot, some), turn.order(snapshot, some[::-1])
        )


def test_an_order_may_leave_out_who_has_no_turn() -> None:
    def only_high(snapshot: Snapshot, rows: Rows) -> Rows:
        return rows[snapshot.jobs.priority[rows] > 1]

    cluster = cluster_of("fifo", a="picky")
    picky = replace(policy_named("fifo"), order=only_high)
    cluster.policy = replace(cluster.policy, inside={"picky": picky})
    submit_by_priority(cluster, "a", 1, 2, 3)
    submit_by_priority(cluster, "default", 1)
    assert sorted(cluster.cycle().started) == ["a-2", "a-3", "default-1"]


async def test_only_policies_that_are_there_can_be_put(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        put = await client.put_queue(Queue(name=QueueName("a"), policy="drf"))
        assert put.policy == "drf"
        assert {queue.policy for queue in await client.queues()} == {"", "drf"}
        with pytest.raises(ClientError) as caught:
            await client.put_queue(Queue(name=QueueName("a"), policy="best"))
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.field == "queue.policy"
