"""A plan is verified against queues as they are when it is committed, not when it was made."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from cluster_testing import Cluster
from test_queue_tree import amounts, cluster_of

from scheduler.core.events import PlanCommitted
from scheduler.core.model import JobKind
from scheduler.core.plan import Accepted, Plan
from scheduler.daemon.event_codec import decode_event, encode_event


def waiting(n_jobs: int = 3, **queue: object) -> Cluster:
    """Return 8 GPUs with a queue whose jobs, of two GPUs each, wait."""
    cluster = cluster_of({"a": queue, "b": {}})
    for i in range(n_jobs):
        cluster.submit(f"a-{i}", queue="a", gpus=1, tasks=2)
    return cluster


def started(cluster: Cluster, plan: Plan) -> list[str]:
    outcome = cluster.commit(plan).outcome
    assert isinstance(outcome, Accepted)
    names = list(dict.fromkeys(cluster.names[s.job.id] for s in outcome.starts))
    stale = [cluster.names[job_id] for job_id in outcome.stale]
    assert sorted(names + stale) == sorted(cluster.names[p.job_id] for p in plan.placements)
    cluster.validate()
    return names


def lowered(cluster: Cluster) -> None:
    cluster.put_queue("a", limit=amounts(gpus=5))


def lowered_above(cluster: Cluster) -> None:
    cluster.put_queue("p", limit=amounts(A100=5))
    cluster.put_queue("a", parent="p")


def borrowing_ended(cluster: Cluster) -> None:
    cluster.put_queue("a", guaranteed=amounts(gpus=4), borrow_limit=amounts(gpus=1))


def kept_by_others(cluster: Cluster) -> None:
    cluster.put_queue("b", guaranteed=amounts(gpus=3), is_lender=False)


@pytest.mark.parametrize("change", [lowered, lowered_above, borrowing_ended, kept_by_others])
def test_whole_gangs_start_as_far_as_the_new_limit_goes(
    change: Callable[[Cluster], None],
) -> None:
    cluster = waiting()
    plan = cluster.decide()
    change(cluster)
    assert started(cluster, plan) == ["a-0", "a-1"]
    assert not cluster.decide().placements


def test_a_smaller_gang_behind_one_that_is_over_starts() -> None:
    cluster = waiting(1)
    cluster.submit("small", queue="a", gpus=1)
    plan = cluster.decide()
    cluster.put_queue("a", limit=amounts(gpus=1))
    assert started(cluster, plan) == ["small"]


def test_what_others_of_the_queue_got_meanwhile_counts() -> None:
    cluster = waiting(2, limit=amounts(gpus=4))
    plan = cluster.decide()
    cluster.submit("quick", queue="a", gpus=1, priority=5, node_labels={"rack": "2"})
    cluster.add_node("elsewhere", gpus=8, gpu_type="A100", labels={"rack": "2"})
    newer = cluster.decide()
    quick = [p for p in newer.placements if cluster.names[p.job_id] == "quick"]
    assert started(cluster, replace(newer, placements=tuple(quick))) == ["quick"]
    assert started(cluster, plan) == ["a-0"]


def test_a_queue_that_was_stopped_starts_nothing() -> None:
    cluster = waiting()
    plan = cluster.decide()
    cluster.put_queue("a", is_started=False)
    assert started(cluster, plan) == []
    plan = replace(plan, placements=plan.placements[:1])
    cluster.put_queue("a", is_started=True)
    assert started(cluster, plan) == ["a-0"]


def test_replicas_of_a_service_are_verified_like_gangs() -> None:
    cluster = cluster_of({"a": {"limit": {"gpus": 1}}})
    cluster.submit("s", queue="a", gpus=1, tasks=3, min_tasks=1, kind=JobKind.INFERENCE)
    cluster.settle()
    cluster.put_queue("a")
    plan = cluster.decide()
    cluster.put_queue("a", limit=amounts(gpus=2))
    assert started(cluster, plan) == []
    assert started(cluster, cluster.decide()) == ["s"]
    assert len(cluster.tasks("s")) == 2


def test_what_is_over_a_limit_already_starts_nothing_more_and_keeps_what_it_has() -> None:
    cluster = waiting(2)
    cluster.settle()
    cluster.submit("more", queue="a", gpus=1)
    cluster.submit("no-gpu", queue="a", gpus=0)
    plan = cluster.decide()
    cluster.put_queue("a", limit=amounts(gpus=1))
    assert started(cluster, plan) == ["no-gpu"]
    assert len(cluster.tasks("a-0")) == len(cluster.tasks("a-1")) == 2


def test_a_plan_of_an_older_journal_replays_as_it_was_accepted() -> None:
    cluster = waiting(2)
    plan = cluster.decide()
    cluster.put_queue("a", limit=amounts(gpus=1))
    old = PlanCommitted(at_s=cluster.now_s, placements=plan.placements)
    payload = encode_event(old)[1].replace(b',"minds_queues":false', b"")
    assert b"minds_queues" not in payload
    outcome = cluster.accept(decode_event("PlanCommitted", payload))
    assert not outcome.stale
    assert len(outcome.starts) == 4
    cluster.validate()
