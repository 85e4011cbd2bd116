"""Queues in a tree: limits, guarantees, borrowing, whose turn it is, and taking back."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from cluster_testing import Cluster

from scheduler.core.engine import Engine
from scheduler.core.events import JobsSubmitted, QueueDeleted, QueuePut
from scheduler.core.model import (
    Amounts,
    JobKind,
    JobPhase,
    Queue,
    QueueName,
    QueuePreemption,
    StopCause,
)
from scheduler.core.plan import Cause, Refusal

RUNNING, PENDING = JobPhase.RUNNING, JobPhase.PENDING


def amounts(**gpus_and_more: float) -> Amounts:
    """Return amounts: `gpus=4` of any type, `A100=4` of one, `cpus=8`, `mib=100`."""
    names = {"gpus": "gpu_milli", "cpus": "cpu_milli", "mib": "memory_mib"}
    return tuple(
        sorted(
            (names.get(k, f"gpu_milli:{k}"), round(v * (1 if k == "mib" else 1000)))
            for k, v in gpus_and_more.items()
        )
    )


def cluster_of(
    queues: Mapping[str, Mapping[str, object]], *, gpus: int = 8, n_nodes: int = 1
) -> Cluster:
    cluster = Cluster("priority")
    cluster.add_nodes(n_nodes, gpus=gpus, gpu_type="A100")
    for name, about in queues.items():
        about = {
            key: amounts(**value) if isinstance(value, dict) else value
            for key, value in about.items()
        }
        cluster.put_queue(name, **about)
    return cluster


def fill(
    cluster: Cluster, queue: str, n_jobs: int, *, gpus: float = 1, **about: object
) -> None:
    for i in range(n_jobs):
        cluster.submit(f"{queue}-{i}", queue=queue, gpus=gpus, **about)


def used_gpus(cluster: Cluster, queue: str) -> float:
    return sum(
        record.gpu_milli_of(record.live_tasks()) / 1000
        for record in cluster.engine.jobs()
        if record.job.spec.queue == queue
    )


@dataclass(frozen=True)
class Story:
    """Queues, jobs of one GPU each that come one queue after the other, and who has what."""

    name: str
    queues: Mapping[str, Mapping[str, object]]
    jobs: Mapping[str, int]
    then: Mapping[str, float]
    gpus: int = 8
    at_once: bool = False
    about: Mapping[str, object] = field(default_factory=dict)


STORIES = [
    Story(
        "a limit binds though the cluster is idle",
        {"a": {"limit": {"gpus": 3}}},
        {"a": 8},
        {"a": 3},
    ),
    Story(
        "a limit of the parent binds its children together",
        {"p": {"limit": {"gpus": 5}}, "a": {"parent": "p"}, "b": {"parent": "p"}},
        {"a": 4, "b": 4},
        {"a": 4, "b": 1},
    ),
    Story(
        "a limit on another type of GPU does not bind",
        {"a": {"limit": {"H100": 0}}},
        {"a": 8},
        {"a": 8},
    ),
    Story(
        "a limit on this type does",
        {"a": {"limit": {"A100": 2}}},
        {"a": 8},
        {"a": 2},
    ),
    Story(
        "CPUs are limited too",
        {"a": {"limit": {"cpus": 5}}},
        {"a": 8},
        {"a": 5},
    ),
    Story(
        "idle guarantees are borrowed",
        {"a": {"guaranteed": {"gpus": 2}}, "b": {"guaranteed": {"gpus": 6}}},
        {"a": 8},
        {"a": 8},
    ),
    Story(
        "borrowing stops at the borrowing limit",
        {"a": {"guaranteed": {"gpus": 2}, "borrow_limit": {"gpus": 3}}},
        {"a": 8},
        {"a": 5},
    ),
    Story(
        "nobody borrows from a queue that does not lend",
        {"a": {}, "b": {"guaranteed": {"gpus": 6}, "is_lender": False}},
        {"a": 8},
        {"a": 2},
    ),
    Story(
        "who does not lend uses its own",
        {"a": {}, "b": {"guaranteed": {"gpus": 6}, "is_lender": False}},
        {"b": 6, "a": 8},
        {"a": 2, "b": 6},
    ),
    Story(
        "nor does the parent hand out what a child keeps",
        {
            "p": {"limit": {"gpus": 6}},
            "a": {"parent": "p", "guaranteed": {"gpus": 4}, "is_lender": False},
            "b": {"parent": "p"},
        },
        {"b": 8},
        {"b": 2},
    ),
    Story(
        "a queue takes back what it lent, and no more",
        {"a": {"guaranteed": {"gpus": 3}}, "b": {"guaranteed": {"gpus": 5}}},
        {"a": 8, "b": 8},
        {"a": 3, "b": 5},
    ),
    Story(
        "without a guarantee there is nothing to take back",
        {"a": {"guaranteed": {"gpus": 3}}, "b": {}},
        {"a": 8, "b": 8},
        {"a": 8, "b": 0},
    ),
    Story(
        "the guarantee of a parent counts for children that have none",
        {"p": {"guaranteed": {"gpus": 5}}, "b": {"parent": "p"}, "a": {}},
        {"a": 8, "b": 8},
        {"a": 3, "b": 5},
    ),
    Story(
        "a sibling gives back what it borrowed within the family",
        {
            "p": {"guaranteed": {"gpus": 8}, "limit": {"gpus": 8}},
            "a": {"parent": "p", "guaranteed": {"gpus": 4}},
            "b": {"parent": "p", "guaranteed": {"gpus": 4}},
        },
        {"a": 8, "b": 8},
        {"a": 4, "b": 4},
    ),
    Story(
        "also where it is the parent's limit that is in the way, not capacity",
        {
            "p": {"limit": {"gpus": 4}},
            "a": {"parent": "p", "guaranteed": {"gpus": 2}},
            "b": {"parent": "p", "guaranteed": {"gpus": 2}},
        },
        {"a": 8, "b": 8},
        {"a": 2, "b": 2},
    ),
    Story(
        "jobs of the parent itself borrow",
        {"p": {"guaranteed": {"gpus": 8}}, "a": {"parent": "p", "guaranteed": {"gpus": 6}}},
        {"p": 8, "a": 8},
        {"p": 2, "a": 6},
    ),
    Story(
        "who may not preempt waits for what it lent",
        {
            "a": {},
            "b": {"guaranteed": {"gpus": 5}, "may_preempt": QueuePreemption.NEVER},
        },
        {"a": 8, "b": 8},
        {"a": 8, "b": 0},
    ),
    Story(
        "equal queues that arrive together share",
        {"a": {"weight": 2.0}, "b": {"weight": 2.0}},
        {"a": 8, "b": 8},
        {"a": 4, "b": 4},
        at_once=True,
    ),
    Story(
        "by weight",
        {"a": {"weight": 3.0}, "b": {}},
        {"a": 8, "b": 8},
        {"a": 6, "b": 2},
        at_once=True,
    ),
    Story(
        "level by level",
        {
            "p": {},
            "a": {"parent": "p"},
            "b": {"parent": "p"},
            "c": {},
        },
        {"a": 8, "b": 8, "c": 8},
        {"a": 2, "b": 2, "c": 4},
        at_once=True,
    ),
    Story(
        "guarantees come first",
        {"a": {"weight": 9.0}, "b": {"guaranteed": {"gpus": 6}}},
        {"a": 8, "b": 8},
        {"a": 2, "b": 6},
        at_once=True,
    ),
    Story(
        "queues that say nothing about shares are served in the policy's order",
        {"a": {}, "b": {}},
        {"a": 8, "b": 8},
        {"a": 8, "b": 0},
        at_once=True,
    ),
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_who_has_what(story: Story) -> None:
    cluster = cluster_of(story.queues, gpus=story.gpus)
    for queue, n_jobs in story.jobs.items():
        fill(cluster, queue, n_jobs, **story.about)
        if not story.at_once:
            cluster.settle()
            cluster.advance(10)
    cluster.settle()
    assert {queue: used_gpus(cluster, queue) for queue in story.then} == story.then
    assert cluster.decide().is_empty
    cluster.validate()


class TestReclaim:
    def test_what_was_freed_is_held_for_the_reclaimer(self) -> None:
        cluster = cluster_of({"a": {}, "b": {"guaranteed": {"gpus": 8}}, "c": {}})
        fill(cluster, "a", 8)
        cluster.settle()
        cluster.submit("gang", queue="b", tasks=4, gpus=2, cpus=1)
        decided = cluster.cycle()
        assert set(decided.evicted.values()) == {StopCause.PREEMPTED}
        assert len(decided.evicted) == 8
        assert decided.unplaced["gang"].cause is Cause.RELEASE
        cluster.submit("thief", queue="c", gpus=1, priority=9)
        cluster.end_task(cluster.tasks("a-0")[0], signal=15)
        assert cluster.cycle().started == []
        cluster.let_go()
        assert cluster.cycle().started == ["gang"]
        cluster.validate()

    def test_whole_gangs_go_and_the_least_lost_work(self) -> None:
        cluster = cluster_of({"a": {}, "b": {"guaranteed": {"gpus": 4}}})
        cluster.submit("old", queue="a", tasks=4, gpus=1)
        cluster.settle()
        cluster.advance(1000)
        cluster.submit("new", queue="a", tasks=4, gpus=1)
        cluster.settle()
        cluster.advance(10)
        cluster.submit("mine", queue="b", tasks=3, gpus=1)
        assert list(cluster.cycle().evicted) == ["new"]

    def test_a_gang_is_not_cut_below_the_guarantee_of_its_queue(self) -> None:
        cluster = cluster_of(
            {"a": {"guaranteed": {"gpus": 4}}, "b": {"guaranteed": {"gpus": 4}}}
        )
        cluster.submit("wide", queue="a", tasks=6, gpus=1)
        cluster.submit("thin", queue="a", tasks=2, gpus=1)
        cluster.settle()
        cluster.submit("b-2", queue="b", tasks=2, gpus=1)
        assert list(cluster.cycle().evicted) == ["thin"]
        cluster.settle()
        cluster.submit("b-1", queue="b", gpus=1)
        assert cluster.cycle().plan.is_empty  # `wide` would leave a with none of its 4

    def test_unpreemptible_borrowers_stay(self) -> None:
        cluster = cluster_of({"a": {}, "b": {"guaranteed": {"gpus": 8}}})
        fill(cluster, "a", 8, preemptible=False)
        cluster.settle()
        cluster.submit("mine", queue="b", gpus=1)
        assert cluster.cycle().plan.is_empty

    def test_a_reclaimed_job_cannot_reclaim_back(self) -> None:
        cluster = cluster_of(
            {"a": {"guaranteed": {"gpus": 4}}, "b": {"guaranteed": {"gpus": 4}}}
        )
        fill(cluster, "a", 8, priority=9)
        cluster.settle()
        fill(cluster, "b", 4, priority=0)
        cluster.settle()
        assert used_gpus(cluster, "b") == 4
        assert cluster.decide().is_empty

    @pytest.mark.parametrize("is_shared", [False, True])
    def test_priority_reaches_into_other_queues_unless_they_share(
        self, is_shared: bool
    ) -> None:
        about = {"guaranteed": {"gpus": 4}} if is_shared else {"limit": {"gpus": 8}}
        cluster = cluster_of({"a": about, "b": {}})
        fill(cluster, "a", 8, priority=0)
        cluster.settle()
        fill(cluster, "b", 8, priority=9)
        cluster.settle()
        assert used_gpus(cluster, "b") == (0 if is_shared else 8)

    def test_a_wide_job_does_not_fight_a_thin_one_of_its_queue_for_the_guarantee(self) -> None:
        cluster = cluster_of({"a": {"guaranteed": {"gpus": 1}}, "b": {"weight": 2.0}}, gpus=2)
        cluster.submit("thin", queue="a", gpus=1)
        cluster.submit("other", queue="b", gpus=1, preemptible=False)
        cluster.settle()
        cluster.submit("wide", queue="a", tasks=2, min_tasks=2, gpus=0.5, cpus=20, priority=9)
        cluster.settle()
        assert cluster.phases("thin", "wide") == [PENDING, RUNNING]

    def test_in_queue_priority_stays_at_home(self) -> None:
        cluster = cluster_of(
            {"a": {}, "b": {"may_preempt": QueuePreemption.IN_QUEUE, "limit": {"gpus": 6}}}
        )
        fill(cluster, "a", 4, priority=0)
        cluster.settle()
        cluster.submit("low", queue="b", tasks=4, gpus=1, priority=0)
        cluster.settle()
        cluster.submit("high", queue="b", tasks=2, gpus=1, priority=9)
        assert list(cluster.cycle().evicted) == ["low"]

    def test_priority_makes_room_within_a_limit_though_nodes_are_free(self) -> None:
        cluster = cluster_of({"a": {"limit": {"gpus": 2}}})
        fill(cluster, "a", 2, priority=0)
        cluster.settle()
        cluster.advance(1)
        cluster.submit("high", queue="a", gpus=1, priority=9)
        decided = cluster.cycle()
        assert len(decided.evicted) == 1
        assert decided.started == []
        cluster.let_go()
        assert cluster.cycle().started == ["high"]

    def test_a_job_of_any_type_takes_back_the_type_it_is_guaranteed(self) -> None:
        cluster = cluster_of({"a": {}, "b": {"guaranteed": {"A100": 2}}}, gpus=2)
        cluster.add_node("t4", gpus=2, gpu_type="T4")
        fill(cluster, "a", 4)
        cluster.settle()
        cluster.submit("mine", queue="b", tasks=2, gpus=1)
        cluster.settle()
        assert set(cluster.nodes_of("mine")) == {"node-0"}


class TestTypes:
    def test_a_job_of_any_type_goes_where_quota_is_left(self) -> None:
        cluster = cluster_of({"a": {"limit": {"A100": 1}}}, gpus=4)
        cluster.add_node("t4", gpus=4, gpu_type="T4")
        fill(cluster, "a", 8)
        cluster.settle()
        nodes = [node for i in range(8) for node in cluster.nodes_of(f"a-{i}")]
        assert nodes.count("t4") == 4
        assert nodes.count("node-0") == 1

    def test_what_may_be_placed_is_placed_as_far_as_quota_goes(self) -> None:
        cluster = cluster_of({"a": {"limit": {"gpus": 3}}})
        cluster.submit("elastic", queue="a", tasks=6, min_tasks=2, gpus=1)
        cluster.settle()
        assert len(cluster.tasks("elastic")) == 3
        cluster.submit(
            "service", queue="a", tasks=6, min_tasks=1, gpus=1, kind=JobKind.INFERENCE
        )
        cluster.settle()
        assert cluster.phase("service") is PENDING
        cluster.put_queue("a", limit=amounts(gpus=5))
        cluster.settle()
        assert len(cluster.tasks("service")) == 2
        cluster.put_queue("a", limit=amounts(gpus=7))
        cluster.settle()
        assert len(cluster.tasks("service")) == 4


REASONS = {
    "queue a uses 2 of its 2 GPUs": {"a": {"limit": {"gpus": 2}}},
    "queue a uses 2 of its 2 GPUs of type A100, and may borrow none": {
        "a": {"guaranteed": {"A100": 2}, "limit": {"A100": 2}}
    },
    "queue a uses 2 of its 1 GPUs, and may borrow at most 1": {
        "a": {"guaranteed": {"gpus": 1}, "borrow_limit": {"gpus": 1}}
    },
    "queue a uses 2 of its 2.5 CPUs; the job asks for 1": {"a": {"limit": {"cpus": 2.5}}},
    "queue p uses 2 of its 2 GPUs": {"p": {"limit": {"gpus": 2}}, "a": {"parent": "p"}},
    "queue p uses 2 of its 5 GPUs, 3 are kept for queues below it that do not lend": {
        "p": {"limit": {"gpus": 5}},
        "a": {"parent": "p"},
        "b": {"parent": "p", "guaranteed": {"gpus": 3}, "is_lender": False},
    },
    "6 of 8 GPUs are kept for queues that do not lend, 2 are used": {
        "a": {},
        "b": {"guaranteed": {"gpus": 6}, "is_lender": False},
    },
}


@pytest.mark.parametrize("sentence", REASONS)
def test_reasons_have_figures(sentence: str) -> None:
    cluster = cluster_of(REASONS[sentence])
    fill(cluster, "a", 4)
    cluster.cycle()
    decided = cluster.cycle()
    assert decided.sentences == {"a-2": sentence, "a-3": sentence}
    assert decided.unplaced["a-2"].cause is Cause.QUOTA
    assert cluster.explain("a-3") == decided.unplaced["a-3"]


class TestPutting:
    def refuse(self, cluster: Cluster, name: str, **about: object) -> tuple[Refusal, str]:
        queue = Queue(name=QueueName(name), **about)
        refused = cluster.refuse(QueuePut(at_s=cluster.now_s, queue=queue))
        return refused.refusal, refused.field

    def test_what_makes_no_sense_is_refused_by_field(self) -> None:
        cluster = cluster_of(
            {
                "p": {"guaranteed": {"gpus": 4}, "limit": {"gpus": 6}},
                "a": {"parent": "p", "guaranteed": {"gpus": 3}},
            }
        )
        invalid = Refusal.INVALID
        g = "queue.guaranteed[gpu_milli]"
        for about, path in [
            ({"parent": "nobody"}, "queue.parent"),
            ({"parent": "x"}, "queue.parent"),
            ({"weight": 0.0}, "queue.weight"),
            ({"max_jobs": -1}, "queue.max_jobs"),
            ({"limit": (("gpus", 1),)}, "queue.limit[gpus]"),
            ({"limit": (("gpu_milli:", 1),)}, "queue.limit[gpu_milli:]"),
            ({"limit": (("cpu_milli", -1),)}, "queue.limit[cpu_milli]"),
            ({"limit": (("cpu_milli", 1), ("cpu_milli", 1))}, "queue.limit"),
            ({"guaranteed": amounts(gpus=2), "limit": amounts(gpus=1)}, g),
            ({"parent": "p", "guaranteed": amounts(gpus=2)}, g),
        ]:
            assert self.refuse(cluster, "x", **about) == (invalid, path), about
        assert self.refuse(cluster, "p", parent="a") == (invalid, "queue.parent")
        assert self.refuse(cluster, "p", guaranteed=amounts(gpus=2)) == (invalid, g)
        assert self.refuse(cluster, "p", limit=amounts(gpus=2)) == (invalid, g)
        cluster.put_queue("b", parent="p", guaranteed=amounts(gpus=1))
        cluster.validate()

    def test_whoever_does_not_lend_keeps_what_those_below_are_guaranteed(self) -> None:
        below = {"parent": "p", "guaranteed": {"A100": 3}}
        cluster = cluster_of({"p": {"is_lender": False}, "a": below, "b": {}})
        fill(cluster, "b", 8)
        cluster.settle()
        assert used_gpus(cluster, "b") == 5

    def test_gpus_kept_of_one_type_are_kept_from_jobs_of_any(self) -> None:
        cluster = cluster_of({"a": {"guaranteed": {"A100": 6}, "is_lender": False}, "b": {}})
        cluster.add_node("other", gpus=2, gpu_type="T4")
        fill(cluster, "b", 8, gpu_types=["A100", "T4"])
        cluster.settle()
        assert used_gpus(cluster, "b") == 4

    def test_a_queue_that_stops_nobody_does_so_without_a_tree_too(self) -> None:
        cluster = cluster_of({"a": {"may_preempt": QueuePreemption.NEVER}}, gpus=1)
        fill(cluster, "default", 1)
        cluster.settle()
        fill(cluster, "a", 1, priority=9)
        assert cluster.cycle().evicted == {}
        cluster.put_queue("a", may_preempt=QueuePreemption.IN_QUEUE)
        assert cluster.cycle().evicted == {}
        cluster.put_queue("a")
        assert cluster.cycle().evicted == {"default-0": StopCause.PREEMPTED}

    def test_a_queue_with_children_stays(self) -> None:
        cluster = cluster_of({"p": {}, "a": {"parent": "p"}})
        delete = [QueueDeleted(at_s=cluster.now_s, name=QueueName(n)) for n in ("p", "a")]
        assert cluster.refuse(delete[0]).refusal is Refusal.PRECONDITION
        cluster.accept(delete[1])
        cluster.accept(delete[0])
        cluster.validate()

    def test_a_closed_parent_takes_no_jobs_and_a_stopped_one_starts_none(self) -> None:
        cluster = cluster_of({"p": {"is_started": False}, "a": {"parent": "p"}})
        cluster.submit("job", queue="a")
        assert cluster.cycle().sentences == {"job": "queue p starts no jobs"}
        cluster.put_queue("p", is_open=False)
        assert cluster.cycle().started == ["job"]
        assert cluster.refuse_submit("late", queue="a").refusal is Refusal.PRECONDITION

    def test_priorities_and_numbers_of_jobs_are_bounded(self) -> None:
        cluster = cluster_of(
            {
                "p": {"default_priority": 3, "max_priority": 5, "max_jobs": 2},
                "a": {"parent": "p"},
            }
        )
        cluster.submit("one", queue="a")
        assert cluster.job("one").job.spec.priority == 3
        refused = cluster.refuse_submit("high", queue="a", priority=6)
        assert (refused.refusal, refused.field) == (Refusal.PRECONDITION, "spec.priority")
        refused = cluster.refuse(cluster.update_event("one", priority=6))
        assert refused.field == "priority"
        assert cluster.refuse_submit("many", queue="p", array_size=2).field == "spec.queue"
        cluster.submit("two", queue="p")
        assert cluster.refuse_submit("three", queue="a").field == "spec.queue"
        cluster.cancel("one")
        cluster.submit("four", queue="a", priority=5)
        cluster.validate()

    def test_a_dry_run_knows_the_rules(self) -> None:
        cluster = cluster_of({"a": {"limit": {"gpus": 1}}})
        assert cluster.dry_run(queue="a", gpus=1).placements
        (why,) = cluster.dry_run(queue="a", gpus=2).unplaced.values()
        assert why.sentence() == "queue a uses 0 of its 1 GPUs; the job asks for 2"

    def test_moving_a_queue_moves_what_it_uses(self) -> None:
        cluster = cluster_of({"p": {"limit": {"gpus": 2}}, "a": {}, "b": {"parent": "p"}})
        fill(cluster, "a", 2)
        cluster.settle()
        cluster.put_queue("a", parent="p")
        fill(cluster, "b", 1)
        assert cluster.cycle().sentences == {"b-0": "queue p uses 2 of its 2 GPUs"}
        cluster.end("a-0")
        assert cluster.cycle().started == ["b-0"]
        cluster.validate()

    def test_the_submit_is_unchanged_where_queues_say_nothing(self) -> None:
        cluster = Cluster()
        spec = cluster.spec("job", priority=7)
        cluster.accept(JobsSubmitted(at_s=cluster.now_s, spec=spec))
        (record,) = cluster.engine.jobs()
        assert record.job.spec == spec


def test_a_queue_that_is_made_anew_comes_last_before_and_after_a_restart() -> None:
    cluster = Cluster("fifo")
    cluster.add_nodes(1, gpus=1)
    for name in ("a", "b"):
        cluster.put_queue(name, weight=2.0)
    cluster.accept(QueueDeleted(at_s=cluster.now_s, name=QueueName("a")))
    cluster.validate()
    restored = Engine.restore(cluster.engine.dump())
    for engine in (cluster.engine, restored):
        engine.observe(QueuePut(at_s=cluster.now_s, queue=Queue(name=QueueName("a"))))
        assert [queue.name for queue in engine.queues()] == ["default", "b", "a"]
    assert restored.dump() == cluster.engine.dump()


def test_who_asks_for_a_type_that_nobody_has_is_told_so() -> None:
    cluster = Cluster("fifo")
    cluster.add_nodes(1, gpus=2, gpu_type="A100")
    cluster.add_node("old", gpus=1, gpu_type="T4")
    cluster.remove_node("old")
    cluster.put_queue("kept", guaranteed=(("gpu_milli", 1000),), is_lender=False)
    cluster.submit("job", gpus=1, gpu_types=["T4"])
    assert cluster.cycle().unplaced["job"].cause is Cause.GPU_TYPE
    cluster.validate()
