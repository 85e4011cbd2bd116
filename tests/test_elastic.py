"""Elastic jobs: they grow into what is idle, and give way before anybody is stopped."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from cluster_testing import Cluster, role_of
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from policies.registry import policy_named
from scheduler.core.events import PlanCommitted
from scheduler.core.model import (
    JobKind,
    JobPhase,
    JobSpec,
    StopCause,
)
from scheduler.core.plan import Accepted, Cause, Plan

ELASTIC = {"elastic": True, "gpus": 1, "checkpoint_interval_s": 60, "resize_cooldown_s": 600}
SERVICE = {"kind": JobKind.INFERENCE, "gpus": 1, "backoff_s": 0.0}


def cluster_of(*gpus: int) -> Cluster:
    cluster = Cluster()
    for i, n in enumerate(gpus):
        cluster.add_node(f"node-{i}", gpus=n, gpu_type="A100")
    return cluster


def size(cluster: Cluster, name: str) -> int:
    return len(cluster.tasks(name))


class TestGrowing:
    def test_a_job_that_starts_takes_what_is_idle_at_once(self) -> None:
        cluster = cluster_of(8)
        cluster.submit("e", tasks=2, min_tasks=1, max_tasks=6, **ELASTIC)
        assert cluster.settle() == ["e"]
        assert size(cluster, "e") == 6
        assert {task.world_size for task in cluster.tasks("e")} == {6}
        assert cluster.job("e").resizes == 0
        cluster.validate()

    def test_a_job_that_does_not_ask_for_it_stays_as_it_is(self) -> None:
        cluster = cluster_of(8)
        cluster.submit("rigid", tasks=2, min_tasks=1, max_tasks=6, gpus=1)
        cluster.settle()
        cluster.advance(10_000)
        assert cluster.cycle().plan.is_empty
        assert size(cluster, "rigid") == 2

    def test_a_gang_grows_once_its_cooldown_is_over_and_goes_on_where_it_was(self) -> None:
        cluster = cluster_of(4, 4)
        cluster.submit("other", gpus=6, tasks=1)
        cluster.add_node("node-2", gpus=2, gpu_type="A100")
        cluster.submit("e", tasks=2, min_tasks=1, max_tasks=8, **ELASTIC)
        cluster.cancel("other")
        cluster.cordon("node-0")
        cluster.cordon("node-1")
        cluster.settle()
        before = [(task.node, task.devices) for task in cluster.tasks("e")]
        assert len(before) == 2
        cluster.cordon("node-0", is_cordoned=False)
        assert cluster.cycle().plan.is_empty
        assert cluster.decide().wake_at_s == cluster.now_s + 600
        cluster.advance(600)
        (resize,) = cluster.cycle().plan.resizes
        assert resize.detail == "restarts with 6 tasks instead of 2: GPUs are idle"
        assert {task.stop_cause for task in cluster.tasks("e")} == {StopCause.RESIZED}
        assert cluster.job("e").reason == resize.detail
        cluster.let_go()
        assert cluster.cycle().started == ["e"]
        places = [(task.node, task.devices) for task in cluster.tasks("e")]
        assert len(places) == 6
        assert set(before) <= set(places)
        assert (cluster.job("e").resizes, cluster.job("e").preemptions) == (1, 0)
        cluster.run_all()
        assert cluster.cycle().plan.is_empty
        cluster.validate()

    def test_nobody_grows_onto_what_a_waiting_job_could_use(self) -> None:
        cluster = cluster_of(4)
        cluster.submit("e", tasks=1, min_tasks=1, max_tasks=4, **ELASTIC)
        cluster.submit("wide", tasks=2, gpus=2, gpu_types=("A100",))
        cluster.submit("wider", gpus=4)
        cluster.settle()
        assert size(cluster, "e") == 1
        cluster.cancel("wide")
        cluster.settle()
        cluster.advance(700)
        cluster.settle()
        assert size(cluster, "e") == 1
        cluster.cancel("wider")
        cluster.settle()
        assert size(cluster, "e") == 4
        cluster.validate()

    def test_idle_gpus_go_to_whoever_has_least_of_what_it_wants(self) -> None:
        cluster = cluster_of(9)
        cluster.submit("small", tasks=1, min_tasks=1, max_tasks=9, **ELASTIC)
        cluster.submit("large", tasks=2, min_tasks=1, max_tasks=9, **ELASTIC)
        cluster.settle()
        assert (size(cluster, "small"), size(cluster, "large")) == (3, 6)

    def test_nobody_grows_beyond_what_makes_it_faster(self) -> None:
        cluster = cluster_of(8)
        scaling = ((1, 10.0), (3, 24.0), (8, 24.0))
        cluster.submit("e", tasks=1, min_tasks=1, max_tasks=8, scaling=scaling, **ELASTIC)
        cluster.settle()
        assert size(cluster, "e") == 3

    def test_a_restart_that_costs_more_than_it_gains_is_left_be(self) -> None:
        cluster = cluster_of(4)
        about = {**ELASTIC, "checkpoint_interval_s": 0.0}
        cluster.submit("e", tasks=2, min_tasks=1, max_tasks=4, **about)
        cluster.submit("other", gpus=2)
        cluster.settle()
        cluster.advance(3600)
        cluster.end("other")
        assert cluster.cycle().plan.is_empty  # an hour of work is not saved
        cluster.checkpoint("e")
        (resize,) = cluster.cycle().plan.resizes
        assert len(resize.seats) == 4
        cluster.validate()

    def test_a_job_about_to_end_is_left_be(self) -> None:
        cluster = cluster_of(4)
        cluster.submit("e", tasks=2, min_tasks=1, max_tasks=4, expected_run_s=1000, **ELASTIC)
        cluster.submit("other", gpus=2)
        cluster.settle()
        cluster.advance(960)
        cluster.end("other")
        assert cluster.cycle().plan.is_empty

    def test_a_resize_that_would_pay_soon_is_looked_at_again_then(self) -> None:
        cluster = cluster_of(4)
        about = {**ELASTIC, "checkpoint_interval_s": 5000.0}
        cluster.submit("e", tasks=3, min_tasks=1, max_tasks=4, **about)
        cluster.submit("other", gpus=1)
        cluster.settle()
        start_s = cluster.now_s
        cluster.advance(4900)
        cluster.end("other")
        plan = cluster.decide()
        assert plan.is_empty
        assert plan.wake_at_s == start_s + 5000
        cluster.advance(100)
        assert len(cluster.decide().resizes) == 1

    def test_growth_stays_within_the_limit_of_its_queue(self) -> None:
        cluster = cluster_of(8)
        cluster.put_queue("a", limit=(("gpu_milli", 3000),))
        cluster.submit("e", queue="a", tasks=1, min_tasks=1, max_tasks=8, **ELASTIC)
        cluster.settle()
        assert size(cluster, "e") == 3
        cluster.validate()

    def test_a_service_grows_and_shrinks_in_place(self) -> None:
        cluster = cluster_of(4)
        about = {**SERVICE, "elastic": True, "resize_cooldown_s": 100}
        cluster.submit("rest", gpus=2)
        cluster.submit("s", tasks=1, min_tasks=1, max_tasks=4, **about)
        cluster.settle()
        first = cluster.tasks("s")[0].id
        assert size(cluster, "s") == 2
        cluster.end("rest")
        cluster.advance(100)
        decided = cluster.cycle()
        assert decided.nodes == {"s": ["node-0", "node-0"]}
        assert cluster.job("s").resizes == 1
        cluster.submit("asks", gpus=2)
        assert cluster.cycle().evicted == {}  # its cool-down
        cluster.advance(100)
        (eviction,) = cluster.cycle().plan.evictions
        assert (eviction.cause, len(eviction.tasks)) == (StopCause.SCALED_DOWN, 2)
        cluster.let_go()
        assert cluster.cycle().started == ["asks"]
        assert cluster.tasks("s")[0].id == first
        assert (size(cluster, "s"), cluster.job("s").preemptions) == (2, 0)
        cluster.validate()


class TestGivingBack:
    def grown(self) -> Cluster:
        cluster = cluster_of(8)
        cluster.submit("e", tasks=2, min_tasks=1, max_tasks=8, **ELASTIC)
        cluster.settle()
        assert size(cluster, "e") == 8
        return cluster

    def test_what_is_beyond_its_wish_goes_to_any_job_that_waits(self) -> None:
        cluster = self.grown()
        cluster.submit("equal", gpus=3)
        assert cluster.cycle().plan.is_empty
        cluster.advance(600)
        decided = cluster.cycle()
        (resize,) = decided.plan.resizes
        job_id = cluster.ids["equal"]
        assert resize.detail == f"restarts with 5 tasks instead of 8: makes room for {job_id}"
        assert decided.unplaced["equal"].cause is Cause.RELEASE
        cluster.let_go()
        assert sorted(cluster.cycle().started) == ["e", "equal"]
        assert size(cluster, "e") == 5
        cluster.validate()

    def test_what_it_wishes_does_not(self) -> None:
        cluster = self.grown()
        cluster.policy = policy_named("priority")  # `lepton` lets equals take turns
        cluster.submit("equal", gpus=7)
        cluster.advance(600)
        assert cluster.cycle().plan.is_empty

    def test_nor_if_the_restart_costs_more_than_it_gains(self) -> None:
        cluster = Cluster()
        cluster.add_nodes(1, gpus=8)
        about = {**ELASTIC, "checkpoint_interval_s": 0.0}
        cluster.submit("e", tasks=2, min_tasks=1, max_tasks=8, **about)
        cluster.settle()
        cluster.submit("equal", gpus=1)
        cluster.advance(3600)
        assert cluster.cycle().plan.is_empty

    def test_a_job_of_higher_priority_shrinks_it_at_once_and_stops_nobody(self) -> None:
        cluster = self.grown()
        cluster.cordon("node-0")
        cluster.add_node("node-1", gpus=1, gpu_type="A100")
        cluster.submit("low", gpus=1, priority=-1)
        cluster.settle()
        cluster.cordon("node-0", is_cordoned=False)
        cluster.submit("high", tasks=7, gpus=1, priority=1)
        decided = cluster.cycle()
        assert decided.evicted == {}  # although the other would be cheaper to stop
        assert [len(resize.seats) for resize in decided.plan.resizes] == [1]
        cluster.let_go()
        cluster.cycle()
        assert (size(cluster, "e"), size(cluster, "high"), size(cluster, "low")) == (1, 7, 1)
        cluster.validate()

    def test_only_what_is_missing_then_is_evicted_besides(self) -> None:
        cluster = self.grown()
        cluster.cordon("node-0")
        cluster.add_node("node-1", gpus=2, gpu_type="A100")
        cluster.submit("low-0", gpus=1)
        cluster.submit("low-1", gpus=1)
        cluster.settle()
        cluster.cordon("node-0", is_cordoned=False)
        cluster.submit("high", tasks=8, gpus=1, priority=1)
        decided = cluster.cycle()
        assert list(decided.evicted.values()) == [StopCause.PREEMPTED]
        assert [len(resize.seats) for resize in decided.plan.resizes] == [1]
        cluster.let_go()
        cluster.cycle()
        assert (size(cluster, "e"), size(cluster, "high")) == (1, 8)
        cluster.validate()

    def test_it_is_stopped_as_a_whole_if_nothing_less_will_do(self) -> None:
        cluster = self.grown()
        cluster.submit("high", tasks=8, gpus=1, priority=1)
        decided = cluster.cycle()
        assert decided.evicted == {"e": StopCause.PREEMPTED}
        assert not decided.plan.resizes

    def test_a_gang_shrinks_once_for_all_who_ask(self) -> None:
        cluster = self.grown()
        cluster.submit("a", gpus=2, priority=1)
        cluster.submit("b", gpus=1, priority=1)
        (resize,) = cluster.cycle().plan.resizes
        a, b = cluster.ids["a"], cluster.ids["b"]
        assert resize.detail == f"restarts with 5 tasks instead of 8: makes room for {a}, {b}"
        cluster.let_go()
        assert sorted(cluster.cycle().started) == ["a", "b", "e"]
        cluster.validate()

    def test_not_preemptible_means_not_below_its_wish(self) -> None:
        cluster = cluster_of(8)
        about = {**ELASTIC, "preemptible": False}
        cluster.submit("e", tasks=3, min_tasks=1, max_tasks=8, **about)
        cluster.settle()
        cluster.advance(600)
        cluster.submit("high", gpus=6, priority=1)
        assert cluster.cycle().plan.is_empty
        cluster.submit("less", gpus=5, priority=1)
        (resize,) = cluster.cycle().plan.resizes
        assert len(resize.seats) == 3

    def test_whoever_reclaims_a_guarantee_shrinks_before_it_stops(self) -> None:
        cluster = cluster_of(4, 4)
        cluster.put_queue("own", guaranteed=(("gpu_milli", 4000),))
        cluster.put_queue("guest")
        cluster.submit("e", queue="guest", tasks=4, min_tasks=1, max_tasks=4, **ELASTIC)
        cluster.submit("rigid", queue="guest", tasks=4, gpus=1)
        cluster.settle()
        cluster.submit("due", queue="own", tasks=3, gpus=1)
        decided = cluster.cycle()
        assert decided.evicted == {}
        assert [len(resize.seats) for resize in decided.plan.resizes] == [1]
        cluster.let_go()
        cluster.cycle()
        assert (size(cluster, "e"), size(cluster, "due"), size(cluster, "rigid")) == (1, 3, 4)
        cluster.validate()

    def test_places_are_kept_for_others_while_a_job_still_stops_to_shrink(self) -> None:
        cluster = Cluster("fifo")
        cluster.add_node("node-0", gpus=8, gpu_type="A100")
        cluster.add_node("node-1", gpus=4, gpu_type="T4")
        cluster.submit("e", tasks=2, max_tasks=8, gpu_types=("A100",), **ELASTIC)
        cluster.submit("beside", gpus=1, gpu_types=("T4",))
        cluster.settle()
        cluster.run_all()
        cluster.advance(700)
        cluster.submit("long", gpus=6)
        assert [len(resize.seats) for resize in cluster.cycle().plan.resizes] == [2]
        cluster.submit("wide", tasks=3, gpus=4)
        cluster.advance(1000)
        cluster.submit("late", gpus=1)
        assert not cluster.cycle().started  # node-1 is kept for the wide one
        cluster.let_go()
        assert cluster.settle() == ["e", "long"]


class TestServices:
    def test_others_take_replicas_one_by_one_and_never_below_the_min(self) -> None:
        cluster = cluster_of(4)
        cluster.submit("s", tasks=4, min_tasks=2, **SERVICE)
        cluster.settle()
        cluster.submit("one", gpus=1, priority=1)
        (eviction,) = cluster.cycle().plan.evictions
        assert (eviction.cause, len(eviction.tasks)) == (StopCause.PREEMPTED, 1)
        cluster.let_go()
        cluster.settle()
        assert size(cluster, "s") == 3
        cluster.submit("two", gpus=2, priority=1)
        assert cluster.cycle().plan.is_empty
        cluster.submit("another", gpus=1, priority=1)
        cluster.settle()
        assert size(cluster, "s") == 2
        cluster.cancel("one")
        cluster.cancel("two")
        cluster.settle()
        assert size(cluster, "s") == 3
        cluster.validate()

    def test_a_queue_that_reclaims_leaves_it_its_min_as_well(self) -> None:
        cluster = cluster_of(4)
        cluster.put_queue("own", guaranteed=(("gpu_milli", 4000),))
        cluster.put_queue("guest")
        cluster.submit("s", queue="guest", tasks=4, min_tasks=3, **SERVICE)
        cluster.settle()
        cluster.submit("due-0", queue="own", gpus=1)
        cluster.submit("due-1", queue="own", gpus=1)
        cluster.settle()
        assert (size(cluster, "s"), size(cluster, "due-0")) == (3, 1)
        assert cluster.phase("due-1") is JobPhase.PENDING
        cluster.validate()

    def test_min_runtime_holds_for_replicas_too(self) -> None:
        cluster = cluster_of(2)
        cluster.submit("s", tasks=2, min_tasks=1, min_runtime_s=100, **SERVICE)
        cluster.settle()
        cluster.submit("one", gpus=1, priority=1)
        assert cluster.cycle().plan.is_empty
        cluster.advance(100)
        assert cluster.cycle().evicted == {"s": StopCause.PREEMPTED}


class TestCommitting:
    def shrinking(self) -> tuple[Cluster, Plan]:
        cluster = cluster_of(4, 4)
        cluster.submit("e", tasks=8, min_tasks=1, max_tasks=8, **ELASTIC)
        cluster.settle()
        cluster.submit("high", gpus=2, priority=1)
        return cluster, cluster.decide()

    def test_a_resize_of_what_no_longer_runs_is_stale(self) -> None:
        cluster, plan = self.shrinking()
        cluster.suspend("e")
        outcome = cluster.commit(plan).outcome
        assert isinstance(outcome, Accepted)
        assert outcome.stale == (cluster.ids["e"],)
        assert not cluster.job("e").seats

    @pytest.mark.parametrize("changes", [{"attempt": 7}, {"seats": ()}])
    def test_a_resize_that_makes_no_sense_is_stale(self, changes: dict[str, Any]) -> None:
        from dataclasses import replace

        cluster, plan = self.shrinking()
        event = PlanCommitted(
            at_s=cluster.now_s, resizes=(replace(plan.resizes[0], **changes),)
        )
        assert cluster.accept(event).stale == (cluster.ids["e"],)

    def test_a_gang_that_is_only_resized_by_hand_takes_none(self) -> None:
        from dataclasses import replace

        cluster, plan = self.shrinking()
        cluster.submit("rigid", tasks=1, gpus=0)
        cluster.settle()
        wrong = replace(plan.resizes[0], job_id=cluster.ids["rigid"], attempt=1)
        event = PlanCommitted(at_s=cluster.now_s, resizes=(wrong,))
        assert cluster.accept(event).stale == (cluster.ids["rigid"],)

    def test_its_seats_are_kept_while_it_stops(self) -> None:
        cluster, plan = self.shrinking()
        cluster.commit(plan)
        cluster.submit("quick", tasks=6, gpus=1, priority=1)
        assert cluster.cycle().started == []
        cluster.let_go()
        assert sorted(cluster.cycle().started) == ["e", "high"]
        cluster.validate()

    def test_without_its_seats_it_waits_like_any_job(self) -> None:
        cluster, plan = self.shrinking()
        cluster.commit(plan)
        cluster.let_go()
        cluster.health(plan.resizes[0].seats[0].node, up=False)
        cluster.settle()
        assert cluster.phase("e") is JobPhase.RUNNING
        assert 1 <= size(cluster, "e") <= 4
        cluster.validate()

    def test_an_update_by_its_user_supersedes_it(self) -> None:
        cluster, plan = self.shrinking()
        cluster.commit(plan)
        cluster.update("e", replicas={"worker": 3})
        cluster.let_go()
        cluster.settle()
        assert not cluster.job("e").seats
        assert size(cluster, "e") >= 3
        cluster.validate()


def test_speed_up_is_interpolated_between_points() -> None:
    spec = Cluster().spec("e", tasks=2, scaling=((1, 10.0), (4, 25.0)))
    assert [spec.speed_up(n) for n in (1, 2, 3, 4, 9)] == pytest.approx(
        [10 / 15, 1.0, 20 / 15, 25 / 15, 25 / 15]
    )
    assert Cluster().spec("e", tasks=2).speed_up(3) == 1.5


Pick = Callable[[Sequence[Any]], Any]


class Crowd:
    """Jobs that grow and shrink beside others, and what must hold of them at any time."""

    def __init__(self, pick: Pick) -> None:
        self.pick = pick
        self.cluster = Cluster(pick(["priority", "fifo"]))
        self.cluster.add_nodes(2, gpus=3, cpus=16)
        if pick([False, True]):
            self.cluster.put_queue("own", guaranteed=(("gpu_milli", 3000),))
        self.cluster.put_queue("guest")
        self.n_jobs = 0
        self.resized_at_s: dict[str, float] = {}
        self.counts: Counter[str] = Counter()

    def submit(self) -> None:
        pick, self.n_jobs = self.pick, self.n_jobs + 1
        tasks = pick([1, 1, 1, 2, 3])
        about: dict[str, Any] = {}
        if pick([True, True, True, False]):
            about = {"elastic": True, "resize_cooldown_s": pick([100, 600])}
        self.cluster.submit(
            f"j{self.n_jobs}",
            queue=pick([str(queue.name) for queue in self.cluster.engine.queues()]),
            priority=pick([0, 0, 1]),
            preemptible=pick([True, True, True, False]),
            kind=pick([JobKind.TRAINING, JobKind.TRAINING, JobKind.INFERENCE]),
            tasks=tasks,
            min_tasks=pick([tasks, 1]),
            max_tasks=tasks + pick([0, 4, 4]),
            gpus=pick([1, 1, 1, 2, 0.5]),
            checkpoint_interval_s=pick([0, 30, 30]),
            **about,
        )

    def end(self) -> None:
        jobs = list(self.cluster.engine.jobs())
        if jobs:
            self.cluster.cancel(self.cluster.names[self.pick(jobs).id])

    def wait(self) -> None:
        self.cluster.advance(self.pick([1, 60, 700]))

    def step(self) -> None:
        is_crowded = len(self.cluster.engine.jobs()) > self.pick([2, 5])
        often = self.end if is_crowded else self.submit
        self.pick([often] * 3 + [self.submit, self.end, self.wait, self.cycle])()

    def cycle(self) -> Plan:
        plan = self.cluster.decide()
        short = self.short(plan)
        for resize in plan.resizes:
            self.check_resize(plan, resize.job_id, len(resize.seats), short)
        for eviction in plan.evictions:
            record = self.cluster.engine.job(eviction.job_id)
            assert record is not None
            if record.job.spec.kind is not JobKind.INFERENCE:
                assert eviction.cause is StopCause.PREEMPTED
        outcome = self.cluster.commit(plan).outcome
        assert isinstance(outcome, Accepted)
        assert not outcome.stale
        self.check_bounds()
        self.counts["resizes"] += len(plan.resizes)
        return plan

    def short(self, plan: Plan) -> bool:
        """Whether a job waits for GPUs: every GPU here would do for it."""
        is_capacity = {Cause.GPUS, Cause.GPU_FRACTION, Cause.GANG}
        return any(why.cause in is_capacity for why in plan.unplaced.values())

    def check_resize(self, plan: Plan, job_id: str, n_seats: int, short: bool) -> None:
        record = self.cluster.engine.job(job_id)
        assert record is not None
        spec, now_s = record.job.spec, self.cluster.now_s
        n_now = len(record.live_tasks())
        assert spec.elastic
        assert n_seats != n_now
        if n_seats > n_now:
            assert not short, plan.unplaced
            assert now_s >= record.last_started_at_s + spec.resize_cooldown_s
        elif n_seats >= spec.n_tasks and not self.may_be_forced(plan, spec):
            assert now_s >= record.last_started_at_s + spec.resize_cooldown_s

    def may_be_forced(self, plan: Plan, spec: JobSpec) -> bool:
        """Whether somebody who may stop the job might be behind it."""
        others = [self.cluster.engine.job(job_id) for job_id in plan.unplaced]
        return any(
            other is not None
            and (other.job.spec.priority > spec.priority or other.job.spec.queue != spec.queue)
            for other in others
        )

    def check_bounds(self) -> None:
        for record in self.cluster.engine.jobs():
            spec = record.job.spec
            (role,) = spec.roles
            staying = [t for t in record.live_tasks() if t.stop_cause is None]
            if record.phase is JobPhase.RUNNING:
                assert len(record.live_tasks()) <= (
                    role.max_count if spec.elastic else role.count
                )
                if not record.failures:
                    assert len(staying) >= role.min_count

    def settle(self) -> None:
        """Without new events decisions come to rest, however much time passes."""
        for _ in range(6 * len(self.cluster.engine.jobs()) + 8):
            plan = self.cycle()
            self.cluster.run_all()
            if not self.cluster.let_go() and plan.is_empty:
                break
        else:
            raise AssertionError(f"restless: {plan}")

    def rest(self) -> None:
        """Let cool-downs pass until even they change nothing any more."""
        for _ in range(3 * len(self.cluster.engine.jobs()) + 3):
            n_resizes = self.counts["resizes"]
            self.settle()
            self.cluster.advance(601)
            if self.cluster.decide().is_empty and self.counts["resizes"] == n_resizes:
                return
        raise AssertionError("resizes go on and on")


class Anything(RuleBasedStateMachine):
    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.crowd = Crowd(_drawing(data))

    @rule(data=st.data())
    def steps(self, data: st.DataObject) -> None:
        self.crowd.pick = _drawing(data)
        for _ in range(4):
            self.crowd.step()
        self.crowd.rest()

    def teardown(self) -> None:
        if hasattr(self, "crowd"):
            self.crowd.cluster.validate()


def _drawing(data: st.DataObject) -> Pick:
    return lambda options: data.draw(st.sampled_from(list(options)))


Anything.TestCase.settings = settings(max_examples=10, stateful_step_count=5)
TestCrowds = Anything.TestCase


@pytest.mark.parametrize("seed", range(8))
def test_crowds_come_to_rest(seed: int) -> None:
    crowd = Crowd(random.Random(seed).choice)
    for _ in range(40):
        for _ in range(3):
            crowd.step()
        crowd.rest()
    crowd.cluster.validate()
    assert crowd.counts["resizes"] > 1, crowd.counts


def test_a_role_of_which_nothing_is_wanted_any_more_grows_last() -> None:
    cluster = Cluster()
    cluster.add_nodes(1, gpus=5)
    worker = role_of("worker", tasks=1, max_tasks=2, gpus=1)
    helper = role_of("helper", tasks=1, min_tasks=0, max_tasks=2, gpus=1)
    cluster.submit("e", worker, helper, elastic=True)
    cluster.update("e", replicas={"helper": 0})
    assert cluster.settle() == ["e"]
    roles = Counter(task.id.role for task in cluster.tasks("e"))
    assert roles == {"worker": 2, "helper": 2}
    assert cluster.job("e").job.spec.counts_at(3) == {"worker": 2, "helper": 1}
    cluster.validate()


@pytest.mark.parametrize("scaling", [(), ((1, 1.0), (2, 1.5), (4, 2.0))])
def test_a_service_of_which_nothing_is_wanted_any_more_gives_its_places_up(
    scaling: tuple[tuple[int, float], ...],
) -> None:
    cluster = Cluster()
    cluster.add_nodes(1, gpus=4)
    replica = role_of("replica", tasks=1, min_tasks=0, max_tasks=4, gpus=1)
    service = {"kind": JobKind.INFERENCE, "elastic": True, "scaling": scaling}
    cluster.submit("idle", replica, **service)
    cluster.settle()
    cluster.update("idle", replicas={"replica": 0})
    cluster.submit("busy", role_of("replica", tasks=1, max_tasks=3, gpus=1), **service)
    for _ in range(4):
        cluster.settle()
        cluster.advance(1000)
    assert [len(cluster.tasks(name)) for name in ("idle", "busy")] == [0, 3]
    cluster.validate()


def test_an_elastic_job_that_loses_by_more_tasks_does_not_grow() -> None:
    cluster = Cluster()
    cluster.add_nodes(1, gpus=4)
    role = role_of("replica", tasks=4, min_tasks=1, max_tasks=4, gpus=1)
    worse = ((1, 1.0), (2, 1e12), (4, 1e-12))
    cluster.submit("e", role, kind=JobKind.INFERENCE, elastic=True, scaling=worse)
    cluster.settle()
    assert cluster.job("e").job.spec.speed_up(4) == 1.0
    assert cluster.job("e").job.spec.speed_up(1) == 1e12
    cluster.validate()


def test_a_role_grows_on_the_types_that_it_asks_for() -> None:
    cluster = Cluster()
    cluster.add_node("h", gpus=4, gpu_type="H100")
    cluster.add_node("t", gpus=1, gpu_type="T4")
    worker = role_of("worker", gpus=1, gpu_types=["H100"])
    helper = role_of(
        "helper", tasks=1, min_tasks=0, max_tasks=3, gpus=1, gpu_types=["A100", "T4"]
    )
    cluster.submit("e", worker, helper, elastic=True)
    assert cluster.settle() == ["e"]
    assert cluster.nodes_of("e") == ["t", "h"]
    cluster.remove_node("t")
    cluster.advance(1000)
    assert cluster.settle() == ["e"]
    assert cluster.nodes_of("e") == ["h"]
    cluster.validate()


class TestInAStoppedQueue:
    def test_nobody_grows(self) -> None:
        cluster = Cluster()
        cluster.add_nodes(1, gpus=2)
        cluster.put_queue("mine")
        service = {"kind": JobKind.INFERENCE, "tasks": 1, "max_tasks": 4}
        cluster.submit("s", queue="mine", gpus=1, elastic=True, **service)
        saves = {"checkpoint_interval_s": 1.0, "resize_cooldown_s": 100.0, "max_tasks": 4}
        cluster.submit("e", queue="mine", gpus=1, elastic=True, **saves)
        cluster.settle()
        cluster.put_queue("mine", is_started=False)
        cluster.add_nodes(1, gpus=4)
        cluster.advance(1000)
        assert cluster.cycle().plan.is_empty
        cluster.validate()

    def test_a_gang_that_gives_tasks_up_goes_on(self) -> None:
        cluster = Cluster("priority")
        cluster.add_nodes(1, gpus=2)
        cluster.put_queue("mine")
        cluster.submit("e", queue="mine", gpus=1, tasks=2, min_tasks=1, elastic=True)
        cluster.settle()
        cluster.put_queue("mine", is_started=False)
        cluster.advance(1000)
        cluster.submit("high", gpus=1, priority=1)
        assert cluster.settle() == ["e", "high"]
        assert len(cluster.tasks("e")) == 1
        cluster.validate()
