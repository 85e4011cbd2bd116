"""Scenarios: a small cluster, one story, exactly this plan and these reasons."""

from collections.abc import Iterator

import pytest
from cluster_testing import (
    GIB,
    Cluster,
    assert_same_columns,
    columns_of,
    no_execute,
    role_of,
)

from scheduler.core.model import JobKind, JobPhase, StopCause, Taint, TaskId, Toleration
from scheduler.core.plan import Cause

PENDING, RUNNING, STOPPING = JobPhase.PENDING, JobPhase.RUNNING, JobPhase.STOPPING


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.validate()


class TestGangs:
    def test_a_gang_waits_until_every_task_fits(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=8)
        cluster.submit("wide", tasks=3, gpus=8)
        decided = cluster.cycle()
        assert not decided.started
        assert decided.sentences["wide"] == "room for 2 of 3 worker tasks; 2 of 2 nodes"
        assert decided.unplaced["wide"].cause is Cause.GANG

        cluster.add_nodes(1, gpus=8)
        assert cluster.cycle().nodes == {"wide": ["node-0", "node-1", "node-2"]}

    def test_an_elastic_gang_takes_what_there_is_between_min_and_count(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(3, gpus=1)
        cluster.submit("elastic", tasks=5, min_tasks=2, gpus=1)
        placement = cluster.cycle().plan.placements[0]
        assert len(placement.binds) == placement.world_size == 3
        assert [bind.rank for bind in placement.binds] == [0, 1, 2]

    def test_an_elastic_gang_below_its_min_waits(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=1)
        cluster.submit("elastic", tasks=5, min_tasks=2, gpus=1)
        assert cluster.cycle().sentences == {
            "elastic": "room for 1 of 2 worker tasks; 1 of 1 node"
        }

    def test_roles_start_together(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, prefix="gpu", gpus=4)
        worker, ps = role_of(tasks=2, gpus=4), role_of("ps", tasks=1, cpus=60)
        cluster.submit("both", worker, role_of("ps", tasks=1, cpus=64))
        assert not cluster.cycle().started
        cluster.cancel("both")
        cluster.submit("both2", worker, ps)
        placement = cluster.cycle().plan.placements[0]
        assert [(b.task.role, b.rank) for b in placement.binds] == [
            ("worker", 0),
            ("worker", 1),
            ("ps", 2),
        ]

    def test_each_role_has_its_own_min(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=4, cpus=8)
        worker = role_of(tasks=4, min_tasks=1, gpus=1)
        cluster.submit("fits", worker, role_of("ps", tasks=2, min_tasks=2, cpus=3))
        roles = [bind.task.role for bind in cluster.cycle().plan.placements[0].binds]
        # The two that must come first; the workers that may take what the ps leave.
        assert roles == ["worker", "worker", "ps", "ps"]

    def test_the_role_that_falls_short_is_named(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=1, cpus=8)
        cluster.submit("job", role_of(gpus=1), role_of("ps", cpus=16))
        assert cluster.cycle().unplaced["job"].role == "ps"
        assert cluster.cycle().sentences["job"] == "0 of 1 node: 1 lacks 16 free CPUs"

    def test_ranks_follow_the_nodes(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=4)
        cluster.submit("first", gpus=2)
        cluster.cycle()
        cluster.submit("gang", tasks=5, gpus=1)
        placement = cluster.cycle().plan.placements[0]
        assert [(str(b.node), b.task.index, b.rank) for b in placement.binds] == [
            ("node-0", 0, 0),
            ("node-0", 1, 1),
            ("node-1", 2, 2),
            ("node-1", 3, 3),
            ("node-1", 4, 4),
        ]

    def test_nothing_partial_stays_booked_for_a_gang_that_fails(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=4)
        cluster.submit("wide", tasks=3, gpus=4)
        cluster.submit("small", tasks=2, gpus=4)
        assert cluster.cycle().started == ["small"]


class TestDevices:
    def test_whole_gpus_are_never_shared(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=4)
        for name in "abc":
            cluster.submit(name, gpus=2)
        decided = cluster.cycle()
        assert decided.devices == {"a": [(0, 1)], "b": [(2, 3)]}
        assert decided.sentences == {"c": "0 of 1 node: 1 lacks 2 free GPUs"}

    def test_fractions_share_a_device_to_the_last_thousandth(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=1)
        for name, part in {"a": 0.333, "b": 0.667, "c": 0.001}.items():
            cluster.submit(name, gpus=part)
        decided = cluster.cycle()
        assert decided.devices == {"a": [(0,)], "b": [(0,)]}
        assert decided.sentences == {"c": "0 of 1 node: 1 lacks a GPU with 0.001 of it free"}

    def test_a_fraction_fits_one_device_not_the_sum_of_two(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=2)
        for name in "ab":
            cluster.submit(name, gpus=0.6)
        assert cluster.cycle().devices == {"a": [(0,)], "b": [(1,)]}
        cluster.submit("c", gpus=0.6)
        assert cluster.cycle().unplaced["c"].cause is Cause.GPU_FRACTION

    def test_fractions_go_where_least_is_left(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=3)
        cluster.submit("big", gpus=0.7)
        cluster.submit("half", gpus=0.5)
        cluster.submit("small", gpus=0.3)
        assert cluster.cycle().devices == {"big": [(0,)], "half": [(1,)], "small": [(0,)]}

    def test_fractions_keep_whole_devices_whole_across_nodes(self, cluster: Cluster) -> None:
        cluster.add_node("shared", gpus=4)
        cluster.add_node("spare", gpus=1)
        cluster.submit("first", gpus=0.5)
        cluster.cordon("spare")
        cluster.cycle()
        cluster.cordon("spare", is_cordoned=False)
        cluster.submit("second", gpus=0.5)
        # Best fit by node alone would break the only GPU of `spare`.
        assert cluster.cycle().nodes == {"second": ["shared"]}

    def test_device_memory_is_counted_besides_thousandths(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=2, gpu_memory_mib=40 * GIB)
        for name in "abc":
            cluster.submit(name, gpus=0.1, gpu_memory_mib=30 * GIB)
        decided = cluster.cycle()
        assert decided.devices == {"a": [(0,)], "b": [(1,)]}
        assert decided.sentences == {"c": "0 of 1 node: 1 lacks free GPU memory"}

    def test_a_fraction_takes_its_share_of_memory_unless_told(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=1, gpu_memory_mib=40 * GIB)
        cluster.submit("quarter", gpus=0.25)
        cluster.submit("greedy", gpus=0.25, gpu_memory_mib=31 * GIB)
        cluster.submit("modest", gpus=0.25, gpu_memory_mib=30 * GIB)
        assert cluster.cycle().started == ["quarter", "modest"]

    def test_whole_gpus_ask_for_devices_of_a_size(self, cluster: Cluster) -> None:
        cluster.add_node("small", gpus=8, gpu_memory_mib=24 * GIB)
        cluster.add_node("large", gpus=8, gpu_memory_mib=80 * GIB)
        cluster.submit("job", gpus=1, gpu_memory_mib=40 * GIB)
        assert cluster.cycle().nodes == {"job": ["large"]}

    def test_unhealthy_devices_are_not_given_out(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=3)
        cluster.health("node-0", bad_gpus=[0])
        cluster.submit("all", gpus=3)
        cluster.submit("two", gpus=2)
        decided = cluster.cycle()
        assert decided.devices == {"two": [(1, 2)]}
        cluster.end("two")
        cluster.health("node-0")
        assert cluster.cycle().devices == {"all": [(0, 1, 2)]}

    def test_a_device_that_sickens_under_a_task_comes_back_only_when_healthy(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(1, gpus=1)
        cluster.submit("job", gpus=1)
        cluster.cycle()
        cluster.health("node-0", bad_gpus=[0])
        cluster.end("job")
        assert cluster.free_gpus("node-0") == (0,)
        cluster.health("node-0")
        assert cluster.free_gpus("node-0") == (1000,)


class TestNodes:
    def test_cpu_and_memory_bound_a_node(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, cpus=4, memory_mib=8 * GIB)
        cluster.submit("cpu", cpus=3, memory_mib=1 * GIB)
        cluster.submit("cpu2", cpus=2)
        cluster.submit("memory", cpus=1, memory_mib=8 * GIB)
        decided = cluster.cycle()
        assert decided.started == ["cpu"]
        assert decided.sentences == {
            "cpu2": "0 of 1 node: 1 lacks 2 free CPUs",
            "memory": "0 of 1 node: 1 lacks 8192 MiB of free memory",
        }

    def test_gpu_types_are_alternatives(self, cluster: Cluster) -> None:
        cluster.add_node("old", gpus=1, gpu_type="T4")
        cluster.add_node("new", gpus=1, gpu_type="H100")
        cluster.submit("fast", gpus=1, gpu_types=["A100", "H100"])
        cluster.submit("any", gpus=1)
        assert cluster.cycle().nodes == {"fast": ["new"], "any": ["old"]}

    def test_the_reason_reads_as_in_the_issue(self, cluster: Cluster) -> None:
        cluster.add_nodes(8, prefix="a", gpus=3, gpu_type="A100")
        cluster.add_nodes(4, prefix="t", gpus=8, gpu_type="T4")
        cluster.submit("job", gpus=4, gpu_types=["A100"])
        assert cluster.cycle().sentences == {
            "job": "0 of 12 nodes: 8 lack 4 free GPUs, 4 are of type T4, wanted A100"
        }

    def test_one_node_is_counted_in_the_singular(self, cluster: Cluster) -> None:
        cluster.add_node("a", gpus=1, gpu_type="A100")
        cluster.add_node("t", gpus=1, gpu_type="T4")
        cluster.add_node("c", cpus=1)
        cluster.cordon("c")
        cluster.submit("job", gpus=2, gpu_types=["A100"])
        assert cluster.cycle().sentences == {
            "job": "0 of 3 nodes: 1 is cordoned, 1 is of type T4, wanted A100, "
            "1 lacks 2 free GPUs"
        }

    def test_labels_must_all_match(self, cluster: Cluster) -> None:
        cluster.add_node("west", labels={"zone": "west", "disk": "ssd"})
        cluster.add_node("east", labels={"zone": "east", "disk": "ssd"})
        cluster.submit("job", node_labels={"zone": "east", "disk": "ssd"})
        assert cluster.cycle().nodes == {"job": ["east"]}
        cluster.submit("nowhere", node_labels={"zone": "north"})
        assert cluster.cycle().sentences == {"nowhere": "0 of 2 nodes: 2 lack label zone=north"}

    def test_taints_keep_away_whom_they_are_not_tolerated_by(self, cluster: Cluster) -> None:
        cluster.add_node("node", taints=[Taint(key="team", value="vision")])
        cluster.submit("stranger")
        cluster.submit("other", tolerates=[Toleration(key="team", value="audio")])
        cluster.submit("friend", tolerates=[Toleration(key="team", value="vision")])
        cluster.submit("anyone", tolerates=["team"])
        decided = cluster.cycle()
        assert decided.started == ["friend", "anyone"]
        assert decided.sentences["stranger"] == (
            "0 of 1 node: 1 has taint team=vision, not tolerated"
        )

    def test_a_no_schedule_taint_lets_running_tasks_be(self, cluster: Cluster) -> None:
        cluster.add_node("node")
        cluster.submit("job")
        cluster.cycle()
        cluster.add_node("node", taints=[Taint(key="no")])
        assert cluster.cycle().plan.is_empty

    def test_a_no_execute_taint_stops_even_what_is_not_preemptible(
        self, cluster: Cluster
    ) -> None:
        cluster.add_node("node")
        cluster.submit("job", preemptible=False)
        cluster.submit("tough", tolerates=["leave"])
        cluster.cycle()
        cluster.add_node("node", taints=[no_execute("leave")])
        assert cluster.cycle().evicted == {"job": StopCause.DRAINED}

    def test_cpu_jobs_stay_off_gpu_nodes_while_others_fit(self, cluster: Cluster) -> None:
        cluster.add_node("gpu", gpus=8, cpus=4)
        cluster.add_node("cpu", cpus=64)
        cluster.submit("a", cpus=4)
        assert cluster.cycle().nodes == {"a": ["cpu"]}

    def test_best_fit_fills_the_fuller_node(self, cluster: Cluster) -> None:
        cluster.add_nodes(3, gpus=8)
        cluster.submit("a", gpus=4)
        cluster.submit("b", gpus=8)
        cluster.submit("c", gpus=4)
        assert cluster.cycle().nodes == {"a": ["node-0"], "b": ["node-1"], "c": ["node-0"]}

    def test_a_cordoned_node_takes_nothing_new(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("running")
        cluster.cycle()
        cluster.cordon("node-0")
        cluster.submit("waiting")
        decided = cluster.cycle()
        assert decided.plan.is_empty
        assert decided.sentences == {"waiting": "0 of 1 node: 1 is cordoned"}
        cluster.cordon("node-0", is_cordoned=False)
        assert cluster.cycle().started == ["waiting"]

    def test_draining_moves_preemptible_jobs_and_lets_others_finish(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(1, gpus=2)
        cluster.submit("movable", gpus=1)
        cluster.submit("fixed", gpus=1, preemptible=False)
        cluster.cycle()
        cluster.add_nodes(1, gpus=2)
        cluster.cordon("node-0", drain=True)
        assert cluster.cycle().evicted == {"movable": StopCause.DRAINED}
        assert cluster.cycle().plan.is_empty  # it has been asked once
        cluster.let_go()
        assert cluster.cycle().nodes == {"movable": ["node-1"]}
        assert cluster.nodes_of("fixed") == ["node-0"]

    def test_draining_takes_the_whole_gang_along(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=1)
        cluster.submit("gang", tasks=2, gpus=1)
        cluster.cycle()
        cluster.cordon("node-1", drain=True)
        (eviction,) = cluster.cycle().plan.evictions
        assert len(eviction.tasks) == 2

    def test_a_node_that_is_down_keeps_its_tasks_but_gets_no_more(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(1)
        cluster.submit("running")
        cluster.cycle()
        cluster.health("node-0", up=False)
        cluster.submit("waiting")
        assert cluster.cycle().sentences == {"waiting": "0 of 1 node: 1 is down"}
        assert cluster.nodes_of("running") == ["node-0"]
        cluster.add_node("node-0")  # it registers again: it is back
        assert cluster.cycle().started == ["waiting"]

    def test_no_nodes_at_all_is_said_so(self, cluster: Cluster) -> None:
        cluster.submit("job")
        assert cluster.cycle().sentences == {"job": "the cluster has no nodes"}

    def test_removed_nodes_are_not_counted(self, cluster: Cluster) -> None:
        cluster.add_nodes(3)
        cluster.remove_node("node-1")
        cluster.submit("job", gpus=1)
        assert cluster.cycle().sentences == {"job": "0 of 2 nodes: 2 have no GPU"}

    def test_many_nodes_come_and_go_and_the_others_keep_their_tasks(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(100, prefix="old", gpus=1)
        cluster.add_node("stays", gpus=2)
        cluster.submit("job", gpus=2)
        cluster.cycle()
        for i in range(100):
            cluster.remove_node(f"old-{i}")
        cluster.add_nodes(2, prefix="new", gpus=1)
        assert [view.node.name for view in cluster.engine.nodes()] == [
            "stays",
            "new-0",
            "new-1",
        ]
        assert len(cluster.snapshot().nodes.nodes) < 100  # closed rows were compacted
        cluster.submit("other", tasks=2, gpus=1)
        assert cluster.cycle().nodes == {"other": ["new-0", "new-1"]}
        cluster.end("job")
        assert cluster.free_gpus("stays") == (1000, 1000)


class TestOrder:
    def test_higher_priority_is_served_first(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=2)
        cluster.submit("low", gpus=1, priority=1)
        cluster.submit("high", gpus=1, priority=5)
        cluster.submit("middle", gpus=1, priority=3)
        assert cluster.cycle().started == ["high", "middle"]

    def test_equal_priorities_are_served_first_come_first_served(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(1, gpus=1)
        cluster.submit("first", gpus=1)
        cluster.advance(1)
        cluster.submit("second", gpus=1)
        assert cluster.cycle().started == ["first"]
        cluster.end("first")
        assert cluster.cycle().started == ["second"]

    def test_fifo_ignores_priority_and_stops_nobody(self) -> None:
        cluster = Cluster("fifo")
        cluster.add_nodes(1, gpus=1)
        cluster.submit("first", gpus=1)
        cluster.submit("urgent", gpus=1, priority=100)
        assert cluster.cycle().started == ["first"]
        decided = cluster.cycle()
        assert not decided.evicted
        assert decided.sentences == {"urgent": "0 of 1 node: 1 lacks 1 free GPU"}
        cluster.validate()

    def test_a_raised_priority_counts_at_once(self, cluster: Cluster) -> None:
        cluster.submit("a", gpus=1)
        cluster.submit("b", gpus=1)
        cluster.update("b", priority=1)
        cluster.add_nodes(1, gpus=1)
        assert cluster.cycle().started == ["b"]


class TestPreemption:
    def test_the_lower_priority_makes_room_and_goes_on_later(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=1)
        cluster.submit("low", gpus=1)
        cluster.cycle()
        cluster.submit("high", gpus=1, priority=1)
        decided = cluster.cycle()
        assert decided.evicted == {"low": StopCause.PREEMPTED}
        assert decided.plan.evictions[0].detail == f"makes room for {cluster.ids['high']}"
        assert decided.sentences["high"] == (
            "its place is held until the tasks there have stopped"
        )
        cluster.let_go()
        assert cluster.cycle().started == ["high"]
        assert cluster.job("low").preemptions == 1
        cluster.end("high")
        assert cluster.cycle().started == ["low"]
        assert cluster.job("low").failures == 0

    def test_equal_priority_does_not_preempt(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=1)
        cluster.submit("first", gpus=1, priority=3)
        cluster.cycle()
        cluster.submit("second", gpus=1, priority=3)
        assert cluster.cycle().plan.is_empty

    def test_what_is_not_preemptible_is_spared(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=1)
        cluster.submit("fixed", gpus=1, preemptible=False)
        cluster.cycle()
        cluster.submit("high", gpus=1, priority=9)
        assert cluster.cycle().sentences == {"high": "0 of 1 node: 1 lacks 1 free GPU"}

    def test_nobody_is_stopped_to_no_effect(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=4)
        cluster.submit("low", tasks=2, gpus=4)
        cluster.cycle()
        for name, about in {
            "too-wide": {"tasks": 3, "gpus": 4},
            "too-big": {"gpus": 5},
            "other-type": {"gpus": 1, "gpu_types": ["H100"]},
        }.items():
            cluster.submit(name, priority=9, **about)
        decided = cluster.cycle()
        assert not decided.evicted
        assert set(decided.unplaced) == {"too-wide", "too-big", "other-type"}

    def test_whole_gangs_go(self, cluster: Cluster) -> None:
        cluster.add_nodes(3, gpus=1)
        cluster.submit("gang", tasks=3, gpus=1)
        cluster.cycle()
        cluster.submit("high", gpus=1, priority=1)
        (eviction,) = cluster.cycle().plan.evictions
        assert len(eviction.tasks) == 3

    def test_the_least_work_is_lost(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=1)
        cluster.submit("old", gpus=1)
        cluster.cycle()
        cluster.advance(100)
        cluster.submit("young", gpus=1)
        cluster.cycle()
        cluster.submit("high", gpus=1, priority=1)
        assert cluster.cycle().evicted == {"young": StopCause.PREEMPTED}

    def test_a_checkpoint_makes_old_work_cheap(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=1)
        cluster.submit("old", gpus=1)
        cluster.cycle()
        cluster.advance(100)
        cluster.submit("young", gpus=1)
        cluster.cycle()
        cluster.advance(50)
        cluster.checkpoint("old")
        cluster.submit("high", gpus=1, priority=1)
        assert cluster.cycle().evicted == {"old": StopCause.PREEMPTED}

    def test_a_checkpoint_interval_bounds_what_is_lost(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=1)
        cluster.submit("saves", gpus=1, checkpoint_interval_s=60)
        cluster.submit("never", gpus=1)
        cluster.cycle()
        cluster.advance(3601)
        cluster.submit("high", gpus=1, priority=1)
        assert cluster.cycle().evicted == {"saves": StopCause.PREEMPTED}

    def test_one_small_victim_rather_than_a_wide_gang(self, cluster: Cluster) -> None:
        cluster.add_nodes(4, gpus=1)
        cluster.submit("wide", tasks=3, gpus=1)
        cluster.submit("small", gpus=1)
        cluster.cycle()
        cluster.advance(10)
        cluster.submit("high", gpus=1, priority=1)
        assert cluster.cycle().evicted == {"small": StopCause.PREEMPTED}

    def test_no_more_are_stopped_than_needed(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=4)
        for i in range(8):
            cluster.submit(f"low-{i}", gpus=1)
        cluster.cycle()
        cluster.submit("high", gpus=3, priority=1)
        decided = cluster.cycle()
        assert len(decided.evicted) == 3
        homes = {cluster.nodes_of(name)[0] for name in decided.evicted}
        assert len(homes) == 1

    def test_free_space_is_used_before_victims_are_sought(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=2)
        cluster.submit("low", gpus=2)
        cluster.cycle()
        cluster.submit("high", gpus=2, priority=1)
        assert cluster.cycle().nodes == {"high": ["node-1"]}

    def test_several_preemptors_share_one_cycle(self, cluster: Cluster) -> None:
        cluster.add_nodes(4, gpus=1)
        for i in range(4):
            cluster.submit(f"low-{i}", gpus=1)
        cluster.cycle()
        for i in range(3):
            cluster.submit(f"high-{i}", gpus=1, priority=1)
        assert len(cluster.cycle().evicted) == 3
        cluster.let_go()
        assert cluster.cycle().started == ["high-0", "high-1", "high-2"]
        assert cluster.phases("low-0", "low-1", "low-2", "low-3").count(RUNNING) == 1

    def test_equal_gangs_of_lower_priority_share_what_victims_leave(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(1, gpus=4)
        cluster.submit("low", gpus=4)
        cluster.cycle()
        cluster.submit("high", gpus=2, priority=2)
        cluster.submit("middle", gpus=2, priority=1)
        decided = cluster.cycle()
        assert decided.evicted == {"low": StopCause.PREEMPTED}
        assert decided.unplaced["middle"].cause is Cause.RELEASE
        cluster.let_go()
        assert cluster.cycle().started == ["high", "middle"]

    def test_a_waiting_preemptor_evicts_nobody_else(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=1)
        cluster.submit("low-0", gpus=1)
        cluster.submit("low-1", gpus=1)
        cluster.cycle()
        cluster.submit("high", gpus=1, priority=1)
        cluster.cycle()
        for _ in range(3):
            cluster.advance(1)
            decided = cluster.cycle()
            assert decided.plan.is_empty
            assert decided.unplaced["high"].cause is Cause.RELEASE

    def test_a_held_place_is_not_stolen(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=4)
        cluster.submit("low-0", gpus=2)
        cluster.submit("low-1", gpus=2)
        cluster.cycle()
        cluster.submit("high", gpus=4, priority=5)
        assert len(cluster.cycle().evicted) == 2
        cluster.end_task(cluster.tasks("low-0")[0], signal=15)  # half of the place is free
        cluster.submit("thief", gpus=1, priority=4)
        decided = cluster.cycle()
        assert decided.plan.is_empty
        cluster.let_go()
        assert cluster.cycle().started == ["high"]

    def test_a_more_important_job_may_take_over_without_a_livelock(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(1, gpus=1)
        cluster.submit("low", gpus=1)
        cluster.cycle()
        cluster.submit("high", gpus=1, priority=1)
        cluster.cycle()
        cluster.submit("higher", gpus=1, priority=2)
        assert cluster.settle() == ["higher"]
        cluster.end("higher")
        assert cluster.settle() == ["high"]

    def test_a_stream_of_equal_jobs_does_not_keep_the_preemptor_waiting(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(2, gpus=4)
        for i in range(8):
            cluster.submit(f"low-{i}", gpus=1)
        cluster.cycle()
        cluster.submit("high", tasks=2, gpus=4, priority=1)
        assert len(cluster.cycle().evicted) == 8
        for i in range(8):
            cluster.submit(f"more-{i}", gpus=1)
            cluster.end_task(cluster.tasks(f"low-{i}")[0], signal=15)
            cluster.cycle()
        assert cluster.phase("high") is RUNNING

    def test_a_victim_that_is_already_leaving_counts_as_room(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=1)
        cluster.submit("leaving", gpus=1)
        cluster.submit("staying", gpus=1)
        cluster.cycle()
        cluster.cancel("leaving")
        cluster.submit("high", gpus=1, priority=1)
        decided = cluster.cycle()
        assert not decided.evicted
        assert decided.unplaced["high"].cause is Cause.RELEASE

    def test_an_elastic_preemptor_asks_for_its_min_only(self, cluster: Cluster) -> None:
        cluster.add_nodes(4, gpus=1)
        for i in range(4):
            cluster.submit(f"low-{i}", gpus=1)
        cluster.cycle()
        cluster.submit("high", tasks=4, min_tasks=2, gpus=1, priority=1)
        assert len(cluster.cycle().evicted) == 2

    def test_fractions_are_preempted_on_one_device(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=2)
        for name in ("a", "b", "c", "d"):
            cluster.submit(name, gpus=0.5)
        cluster.cycle()
        cluster.submit("high", gpus=1, priority=1)
        decided = cluster.cycle()
        assert len(decided.evicted) == 2
        devices = {task.devices for name in decided.evicted for task in cluster.tasks(name)}
        assert len(devices) == 1

    def test_the_plan_that_evicts_does_not_start_on_occupied_places(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(1, gpus=2)
        cluster.submit("low", gpus=1)
        cluster.cycle()
        cluster.submit("high", gpus=2, priority=2)
        cluster.submit("next", gpus=1, priority=1)
        decided = cluster.cycle()
        assert decided.evicted == {"low": StopCause.PREEMPTED}
        assert not decided.started  # `next` would delay `high`
        assert decided.unplaced["next"].cause is Cause.GPUS

    def test_what_starts_now_is_not_promised_to_others_later(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=2)
        cluster.submit("leaving", gpus=1)
        cluster.cycle()
        cluster.cancel("leaving")
        cluster.submit("first", gpus=1)
        cluster.submit("second", gpus=2)
        decided = cluster.cycle()
        assert decided.started == ["first"]
        assert decided.unplaced["second"].cause is Cause.GPUS

    def test_a_service_that_is_stopped_as_a_whole_is_not_refilled_in_the_same_plan(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(2, gpus=1)
        cluster.submit(
            "service",
            kind=JobKind.INFERENCE,
            tasks=2,
            gpus=1,
            backoff_s=0.0,
            time_limit_s=60,
        )
        cluster.cycle()
        cluster.end("service", 1, only=1)
        cluster.advance(60)
        decided = cluster.cycle()
        assert decided.evicted == {"service": StopCause.TIME_LIMIT}
        assert not decided.started
        assert not decided.outcome.stale


class TestTimeLimits:
    def test_a_job_is_stopped_at_its_time_limit(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("job", time_limit_s=60)
        decided = cluster.cycle()
        assert decided.plan.wake_at_s is None
        assert cluster.decide().wake_at_s == 1060
        cluster.advance(59.9)
        assert cluster.cycle().plan.is_empty
        cluster.advance(0.1)
        assert cluster.cycle().evicted == {"job": StopCause.TIME_LIMIT}
        cluster.let_go()
        assert cluster.phase("job") is JobPhase.TIMED_OUT

    def test_a_raised_limit_counts_for_the_running_job(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("job", time_limit_s=60)
        cluster.cycle()
        cluster.update("job", time_limit_s=120.0)
        cluster.advance(60)
        assert cluster.cycle().plan.is_empty
        assert cluster.decide().wake_at_s == 1120

    def test_a_stale_time_limit_stops_nobody(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("job", time_limit_s=60)
        cluster.cycle()
        cluster.advance(60)
        stale = cluster.decide()
        cluster.update("job", time_limit_s=120.0)
        assert not cluster.commit(stale).outcome.evictions
        assert cluster.phase("job") is RUNNING

    def test_the_limit_is_of_each_attempt(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("job", time_limit_s=60, max_retries=1, backoff_s=0.0)
        cluster.cycle()
        cluster.advance(50)
        cluster.end("job", 1)
        cluster.cycle()
        cluster.advance(50)
        assert cluster.cycle().plan.is_empty
        cluster.advance(10)
        assert cluster.cycle().evicted == {"job": StopCause.TIME_LIMIT}

    def test_a_service_short_of_replicas_ends_whole_at_its_limit(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(2)
        cluster.submit(
            "service", kind=JobKind.INFERENCE, tasks=2, time_limit_s=60, backoff_s=0.0
        )
        cluster.cycle()
        cluster.end("service", 1, only=0)
        cluster.advance(60)
        decided = cluster.cycle()
        assert decided.evicted == {"service": StopCause.TIME_LIMIT}
        assert not decided.started
        cluster.let_go()
        assert cluster.phase("service") is JobPhase.TIMED_OUT


class TestNotYet:
    def test_start_after_is_waited_for(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("job", start_after_s=1030.0)
        decided = cluster.cycle()
        assert decided.sentences == {"job": "starts in 30 s at the earliest"}
        assert decided.unplaced["job"].cause is Cause.START_AFTER
        assert decided.unplaced["job"].until_s == decided.plan.wake_at_s == 1030
        cluster.advance(30)
        assert cluster.cycle().started == ["job"]

    def test_back_off_is_waited_for(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("job", max_retries=1, backoff_s=10)
        cluster.cycle()
        cluster.end("job", 1)
        decided = cluster.cycle()
        assert decided.sentences == {"job": "tries again in 10 s"}
        assert decided.unplaced["job"].cause is Cause.BACKOFF
        assert decided.plan.wake_at_s == 1010

    def test_the_nearest_moment_wakes(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("limited", time_limit_s=100)
        cluster.submit("later", start_after_s=1050.0)
        cluster.submit("latest", start_after_s=1070.0)
        cluster.cycle()
        assert cluster.decide().wake_at_s == 1050
        cluster.advance(60)
        assert cluster.decide().wake_at_s == 1070

    def test_dependencies_are_named(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("a")
        cluster.submit("b")
        cluster.submit("c", after={"a": "after_ok", "b": "after_any"})
        assert cluster.cycle().sentences == {
            "c": "waits for 2 of 2 dependencies: after_ok 1, after_any 2"
        }
        cluster.end("a")
        assert cluster.cycle().sentences == {
            "c": "waits for 1 of 2 dependencies: after_ok 1, after_any 2"
        }

    def test_a_queue_that_is_stopped_starts_nothing(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.put_queue("night", is_started=False)
        cluster.submit("job", queue="night")
        decided = cluster.cycle()
        assert decided.sentences == {"job": "queue night starts no jobs"}
        cluster.put_queue("night")
        assert cluster.cycle().started == ["job"]

    def test_suspended_jobs_are_explained(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("job", suspended=True)
        assert cluster.cycle().plan.is_empty
        why = cluster.explain("job")
        assert why is not None
        assert why.cause is Cause.SUSPENDED

    def test_a_gang_that_does_not_fit_is_told_how_many_would(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, prefix="a", gpus=2)
        cluster.add_nodes(1, prefix="b", gpus=1)
        cluster.submit("job", tasks=4, gpus=1)
        assert cluster.cycle().sentences == {
            "job": "room for 3 of 4 worker tasks; 2 of 2 nodes"
        }


class TestServices:
    def test_replicas_are_replaced_one_by_one_after_a_back_off(self, cluster: Cluster) -> None:
        cluster.add_nodes(3)
        cluster.submit("service", kind=JobKind.INFERENCE, tasks=3, backoff_s=10)
        cluster.cycle()
        cluster.run_all()
        cluster.end("service", 1, only=1)
        assert cluster.phase("service") is RUNNING
        assert cluster.cycle().sentences == {"service": "tries again in 10 s"}
        cluster.advance(10)
        (placement,) = cluster.cycle().plan.placements
        assert [bind.task for bind in placement.binds] == [
            TaskId(cluster.ids["service"], "worker", 1, 2)
        ]
        assert (placement.world_size, placement.binds[0].rank) == (3, 1)

    def test_a_service_that_lacks_replicas_says_why(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=1)
        cluster.submit(
            "service", kind=JobKind.INFERENCE, tasks=3, min_tasks=2, gpus=1, backoff_s=0.0
        )
        assert cluster.cycle().started == ["service"]
        assert cluster.cycle().sentences == {"service": "0 of 2 nodes: 2 lack 1 free GPU"}

    def test_a_service_needs_its_min_to_start(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=1)
        cluster.submit("service", kind=JobKind.INFERENCE, tasks=3, min_tasks=2, gpus=1)
        assert not cluster.cycle().started

    def test_draining_moves_only_the_replicas_of_that_node(self, cluster: Cluster) -> None:
        cluster.add_nodes(3, gpus=1)
        cluster.submit("service", kind=JobKind.INFERENCE, tasks=2, gpus=1)
        cluster.cycle()
        cluster.cordon("node-0", drain=True)
        (eviction,) = cluster.cycle().plan.evictions
        assert [task.index for task in eviction.tasks] == [0]
        cluster.let_go()
        assert cluster.cycle().nodes == {"service": ["node-2"]}


class TestDryRunAndExplain:
    def test_a_dry_run_shows_where_the_job_would_go_and_changes_nothing(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(2, gpus=8)
        before = cluster.engine.dump()
        plan = cluster.dry_run(tasks=2, gpus=8)
        assert [str(bind.node) for bind in plan.placements[0].binds] == ["node-0", "node-1"]
        assert plan.placements[0].job_id == "dry-run"
        assert cluster.engine.dump() == before
        assert cluster.cycle().plan.is_empty

    def test_a_dry_run_says_what_is_missing(self, cluster: Cluster) -> None:
        cluster.add_nodes(2, gpus=8)
        why = cluster.dry_run(gpus=16).unplaced["dry-run"]
        assert why.sentence() == "0 of 2 nodes: 2 lack 16 free GPUs"

    def test_a_dry_run_is_served_last_of_its_priority_and_shows_whom_it_stops(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(1, gpus=1)
        low = cluster.submit("low", gpus=1)
        cluster.cycle()
        assert cluster.dry_run(gpus=1).is_empty
        plan = cluster.dry_run(gpus=1, priority=1)
        assert [eviction.job_id for eviction in plan.evictions] == [low]

    def test_a_dry_run_waits_for_unfinished_dependencies(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("a")
        plan = cluster.dry_run(after={"a": "after_ok"})
        assert plan.unplaced["dry-run"].cause is Cause.DEPENDENCY
        cluster.submit("many", array_size=2)
        plan = cluster.dry_run(after={"many": "after_ok"})
        assert plan.unplaced["dry-run"].cause is Cause.DEPENDENCY

    def test_a_dry_run_of_a_suspended_job_says_so(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        assert cluster.dry_run(suspended=True).unplaced["dry-run"].cause is Cause.SUSPENDED

    def test_nothing_to_explain_about_a_job_that_runs(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.put_queue("night")
        cluster.submit("job", queue="night")
        cluster.cycle()
        cluster.put_queue("night", is_started=False)
        assert cluster.explain("job") is None

    def test_nothing_holds_back_what_would_start_now(self, cluster: Cluster) -> None:
        cluster.add_nodes(1)
        cluster.submit("job")
        assert cluster.explain("job") is None
        cluster.submit("big", cpus=1000)
        why = cluster.explain("big")
        assert why is not None
        assert why.cause is Cause.CPU


class TestSnapshots:
    def test_a_snapshot_never_changes_while_the_state_moves_on(self, cluster: Cluster) -> None:
        cluster.add_nodes(3, gpus=2)
        cluster.submit("a", gpus=1)
        cluster.submit("b", tasks=2, gpus=2, priority=-1)
        cluster.submit("later", start_after_s=9999.0)
        cluster.cycle()
        snapshot = cluster.snapshot()
        nodes, jobs = columns_of(snapshot.nodes), columns_of(snapshot.jobs)
        plan = cluster.decide()

        cluster.add_node("new", gpus=16)
        cluster.remove_node("node-2")
        cluster.health("node-0", up=False, bad_gpus=[1])
        cluster.cordon("node-1", drain=True)
        cluster.submit("c", gpus=2, priority=5)
        cluster.update("a", priority=7)
        cluster.settle()
        for i in range(70):
            cluster.submit(f"more-{i}")
        cluster.end("a")
        cluster.add_node("node-0", gpus=3, labels={"a": "b"})

        assert_same_columns(snapshot.nodes, nodes)
        assert_same_columns(snapshot.jobs, jobs)
        assert snapshot.gangs[: len(jobs["gang"])]
        from scheduler.core.cycle import decide

        assert decide(snapshot, cluster.policy) == plan

    def test_a_stale_plan_loses_only_what_no_longer_holds(self, cluster: Cluster) -> None:
        cluster.add_nodes(3, gpus=1)
        for name in ("kept", "cancelled", "unplaceable"):
            cluster.submit(name, gpus=1)
        plan = cluster.decide()
        nodes = {cluster.names[p.job_id]: str(p.binds[0].node) for p in plan.placements}
        cluster.cancel("cancelled")
        cluster.health(nodes["unplaceable"], up=False)
        decided = cluster.commit(plan)
        assert decided.outcome.stale == (
            cluster.ids["cancelled"],
            cluster.ids["unplaceable"],
        )
        assert cluster.phases("kept", "unplaceable") == [RUNNING, PENDING]
        assert cluster.cycle().started == ["unplaceable"]

    def test_device_memory_may_be_gone_by_the_time_a_plan_is_committed(
        self, cluster: Cluster
    ) -> None:
        cluster.add_nodes(1, gpus=1, gpu_memory_mib=1000)
        cluster.submit("slow", gpus=0.1, gpu_memory_mib=800)
        late = cluster.decide()
        cluster.submit("quick", gpus=0.1, gpu_memory_mib=800, priority=1)
        assert cluster.cycle().started == ["quick"]
        assert cluster.commit(late).outcome.stale == (cluster.ids["slow"],)

    def test_the_same_plan_twice_starts_once(self, cluster: Cluster) -> None:
        cluster.add_nodes(1, gpus=8)
        cluster.submit("job", gpus=1)
        plan = cluster.decide()
        cluster.commit(plan)
        again = cluster.commit(plan)
        assert again.outcome.stale == (cluster.ids["job"],)
        assert not again.outcome.starts
