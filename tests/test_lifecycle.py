"""What becomes of jobs: every command and every end, in every phase they can come in."""

from collections.abc import Iterator

import pytest
from cluster_testing import Cluster, node_of, role_of

from scheduler.core.cycle import decide
from scheduler.core.engine import Engine
from scheduler.core.errors import InvalidInput, InvalidTransition
from scheduler.core.events import (
    JobCancelled,
    JobResumed,
    JobsSubmitted,
    JobSuspended,
    NodeCordoned,
    NodeHealthChanged,
    NodeRegistered,
    NodeRemoved,
    QueueDeleted,
    RetentionPassed,
    TaskEnded,
    TaskStarted,
)
from scheduler.core.model import (
    Dependency,
    DependencyKind,
    JobId,
    JobKind,
    JobPhase,
    NodeName,
    QueueName,
    StopCause,
    TaskId,
    TaskPhase,
)
from scheduler.core.plan import Refusal
from scheduler.core.transitions import JOB_MOVES, TASK_MOVES, check_job_move, check_task_move

PENDING, RUNNING, STOPPING = JobPhase.PENDING, JobPhase.RUNNING, JobPhase.STOPPING
SUSPENDED, SUCCEEDED, FAILED = JobPhase.SUSPENDED, JobPhase.SUCCEEDED, JobPhase.FAILED
CANCELLED, TIMED_OUT = JobPhase.CANCELLED, JobPhase.TIMED_OUT

SERVICE = {"kind": JobKind.INFERENCE}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    cluster.add_nodes(4, gpus=4)
    yield cluster
    cluster.validate()


class TestGangsEnd:
    def test_a_gang_succeeds_when_its_last_task_did(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2)
        cluster.cycle()
        cluster.run("job")
        cluster.end("job", only=0)
        assert cluster.phase("job") is RUNNING
        cluster.end("job")
        assert cluster.phase("job") is SUCCEEDED
        assert cluster.job("job").exit_code == 0

    def test_a_member_that_fails_takes_the_gang_along(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=3)
        cluster.cycle()
        (failed, *others) = cluster.tasks("job")
        outcome = cluster.end_task(failed, 3)
        (eviction,) = outcome.evictions
        assert eviction.cause is StopCause.GANG_BROKEN
        assert set(eviction.tasks) == {task.id for task in others}
        assert cluster.phase("job") is STOPPING
        cluster.let_go()
        job = cluster.job("job")
        assert (job.phase, job.exit_code, job.failures) == (FAILED, 3, 1)
        assert job.reason == "worker-0 failed with exit code 3"

    def test_a_signal_is_an_exit_code_above_128(self, cluster: Cluster) -> None:
        cluster.submit("job")
        cluster.cycle()
        cluster.end("job", signal=9)
        assert cluster.job("job").exit_code == 137
        assert cluster.job("job").reason == "worker-0 failed by signal 9"

    def test_a_task_that_could_not_start_fails_its_job(self, cluster: Cluster) -> None:
        cluster.submit("job")
        cluster.cycle()
        cluster.end("job", reason="no such command")
        assert cluster.job("job").phase is FAILED
        assert cluster.job("job").reason == "worker-0 failed (no such command)"
        assert cluster.job("job").exit_code is None

    def test_what_ends_well_while_it_stops_is_run_again(self, cluster: Cluster) -> None:
        cluster.submit("low", gpus=4, tasks=4)
        cluster.cycle()
        cluster.submit("high", gpus=4, priority=1)
        cluster.cycle()
        cluster.end("low", 0)  # it saved its work on TERM and left: it is not done
        assert cluster.phase("low") is PENDING

    def test_retries_back_off_twice_as_long_each_time(self, cluster: Cluster) -> None:
        cluster.submit("job", max_retries=3, backoff_s=10)
        for delay_s in (10, 20, 40):
            cluster.cycle()
            cluster.end("job", 1)
            assert cluster.phase("job") is PENDING
            assert cluster.job("job").eligible_at_s == cluster.now_s + delay_s
            cluster.advance(delay_s)
        cluster.cycle()
        cluster.end("job", 1)
        assert cluster.phase("job") is FAILED
        assert cluster.job("job").failures == 4

    def test_back_off_has_an_upper_bound(self, cluster: Cluster) -> None:
        cluster.submit("job", max_retries=100, backoff_s=100)
        for _ in range(60):
            cluster.cycle()
            cluster.end("job", 1)
            delay_s = cluster.job("job").eligible_at_s - cluster.now_s
            cluster.advance(delay_s)
        assert delay_s == 300

    def test_retries_say_which_one_they_are(self, cluster: Cluster) -> None:
        cluster.submit("job", max_retries=2)
        cluster.cycle()
        cluster.end("job", 7)
        assert cluster.job("job").reason == "worker-0 failed with exit code 7; retry 1 of 2"

    def test_lost_tasks_cost_no_retry(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2)
        cluster.cycle()
        cluster.end("job", only=0, is_lost=True)
        cluster.let_go()
        job = cluster.job("job")
        assert (job.phase, job.failures, job.eligible_at_s) == (PENDING, 0, 0)
        assert cluster.cycle().started == ["job"]
        assert {task.id.attempt for task in cluster.tasks("job")} == {2}

    def test_what_is_lost_at_once_again_and_again_backs_off(self, cluster: Cluster) -> None:
        for name, about in (("gang", {}), ("service", SERVICE)):
            cluster.submit(name, backoff_s=10, **about)
            for delay_s in (0, 20, 40):
                cluster.cycle()
                cluster.end(name, is_lost=True)
                waits_until_s = cluster.now_s + delay_s if delay_s else 0
                assert cluster.job(name).eligible_at_s == waits_until_s
                assert (cluster.cycle().started == [name]) == (delay_s == 0)
                cluster.advance(delay_s)
            cluster.cancel(name)
            cluster.let_go()

    def test_what_is_lost_after_a_while_starts_again_at_once(self, cluster: Cluster) -> None:
        cluster.submit("job", backoff_s=10)
        for _ in range(5):
            cluster.cycle()
            cluster.advance(10)
            cluster.end("job", is_lost=True)
            assert cluster.job("job").eligible_at_s == 0

    def test_a_removed_node_loses_its_tasks_once(self, cluster: Cluster) -> None:
        cluster.submit("gang", tasks=4, gpus=4)
        cluster.cycle()
        outcome = cluster.remove_node("node-1")
        assert cluster.phase("gang") is STOPPING
        (eviction,) = outcome.evictions
        assert len(eviction.tasks) == 3
        cluster.let_go()
        assert cluster.phase("gang") is PENDING

    def test_a_gang_wholly_on_a_removed_node_waits_again(self, cluster: Cluster) -> None:
        cluster.submit("gang", tasks=4, gpus=1)
        cluster.cycle()
        cluster.remove_node("node-0")
        assert cluster.phase("gang") is PENDING
        assert cluster.cycle().nodes == {"gang": ["node-1"] * 4}

    def test_an_attempt_never_runs_twice(self, cluster: Cluster) -> None:
        cluster.submit("job", max_retries=5, backoff_s=0)
        seen = set()
        for _ in range(5):
            cluster.cycle()
            (task,) = cluster.tasks("job")
            assert task.id not in seen
            seen.add(task.id)
            cluster.end("job", 1)


class TestExecutorsRepeatThemselves:
    def test_a_second_start_or_end_changes_nothing(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2)
        cluster.cycle()
        (first, _) = cluster.tasks("job")
        for task_event in (
            TaskStarted(at_s=cluster.now_s, task=first.id),
            TaskEnded(at_s=cluster.now_s, task=first.id, exit_code=0),
        ):
            assert not cluster.accept(task_event).is_repeat
            again = cluster.accept(task_event)
            assert again.is_repeat
            assert not again.changed

    def test_an_end_without_a_start_counts(self, cluster: Cluster) -> None:
        cluster.submit("job")
        cluster.cycle()
        cluster.end("job")
        assert cluster.phase("job") is SUCCEEDED

    def test_a_start_after_the_end_is_ignored(self, cluster: Cluster) -> None:
        cluster.submit("job")
        cluster.cycle()
        (task,) = cluster.tasks("job")
        cluster.end("job")
        assert cluster.accept(TaskStarted(at_s=cluster.now_s, task=task.id)).is_repeat

    def test_the_end_of_an_earlier_attempt_does_not_end_this_one(
        self, cluster: Cluster
    ) -> None:
        cluster.submit("job", max_retries=1, backoff_s=0)
        cluster.cycle()
        (old,) = cluster.tasks("job")
        cluster.end("job", 1)
        cluster.cycle()
        assert cluster.end_task(old, 0).is_repeat
        assert cluster.phase("job") is RUNNING

    def test_tasks_that_were_never_bound_are_refused(self, cluster: Cluster) -> None:
        job_id = cluster.submit("job")
        for task in (TaskId(job_id, "worker", 0, 1), TaskId(JobId("99"), "worker", 0, 1)):
            refused = cluster.refuse(TaskEnded(at_s=cluster.now_s, task=task, exit_code=0))
            assert refused.refusal is Refusal.NOT_FOUND

    def test_a_late_end_takes_no_time_back(self, cluster: Cluster) -> None:
        cluster.submit("job", gpus=1)
        cluster.cycle()
        cluster.run("job")
        (task,) = cluster.tasks("job")
        cluster.accept(TaskEnded(at_s=cluster.now_s - 500, task=task.id, exit_code=0))
        job = cluster.job("job")
        assert job.ended_at_s == job.last_started_at_s
        assert (job.waited_before_s, job.ran_before_s, job.gpu_s_before) == (0, 0, 0)


class TestCancel:
    def test_a_waiting_job_ends_at_once(self, cluster: Cluster) -> None:
        cluster.submit("job")
        cluster.cancel("job")
        assert cluster.phase("job") is CANCELLED

    def test_a_running_job_stops_first(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2)
        cluster.cycle()
        (eviction,) = cluster.cancel("job").evictions
        assert (eviction.cause, len(eviction.tasks)) == (StopCause.CANCELLED, 2)
        assert cluster.cancel("job").is_repeat
        cluster.let_go()
        assert cluster.phase("job") is CANCELLED
        assert cluster.cancel("job").is_repeat  # it has ended: nothing to do

    def test_a_job_on_its_way_back_to_the_queue_ends_instead(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2, max_retries=5)
        cluster.cycle()
        cluster.end("job", 1, only=0)
        cluster.cancel("job")
        cluster.let_go()
        assert cluster.phase("job") is CANCELLED

    def test_a_job_that_has_failed_for_good_stays_failed(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2)
        cluster.cycle()
        cluster.end("job", 1, only=0)
        cluster.cancel("job")
        cluster.let_go()
        assert cluster.phase("job") is FAILED

    def test_a_suspended_job_ends_at_once(self, cluster: Cluster) -> None:
        cluster.submit("job", suspended=True)
        cluster.cancel("job")
        assert cluster.phase("job") is CANCELLED

    def test_unknown_jobs_are_not_found(self, cluster: Cluster) -> None:
        for kind in (JobCancelled, JobSuspended, JobResumed):
            refused = cluster.refuse(kind(at_s=0.0, job_id=JobId("7")))
            assert (refused.refusal, refused.field) == (Refusal.NOT_FOUND, "job_id")


class TestSuspend:
    def test_a_waiting_job_is_held(self, cluster: Cluster) -> None:
        cluster.submit("job")
        cluster.suspend("job")
        assert not cluster.cycle().started
        assert cluster.suspend("job").is_repeat
        cluster.resume("job")
        assert cluster.cycle().started == ["job"]
        assert cluster.resume("job").is_repeat

    def test_a_running_job_stops_and_keeps_its_place_in_the_order(
        self, cluster: Cluster
    ) -> None:
        cluster.submit("job", tasks=4, gpus=4)
        cluster.cycle()
        cluster.submit("next", tasks=4, gpus=4)
        cluster.suspend("job")
        assert cluster.phase("job") is STOPPING
        cluster.let_go()
        assert cluster.phase("job") is SUSPENDED
        cluster.resume("job")
        assert cluster.cycle().started == ["job"]

    def test_a_stopping_job_is_held_once_it_has_stopped(self, cluster: Cluster) -> None:
        cluster.submit("low", tasks=4, gpus=4)
        cluster.cycle()
        cluster.submit("high", gpus=1, priority=1)
        cluster.cycle()
        cluster.suspend("low")
        cluster.let_go()
        assert cluster.phase("low") is SUSPENDED

    def test_a_job_may_be_resumed_before_it_has_stopped(self, cluster: Cluster) -> None:
        cluster.submit("job")
        cluster.cycle()
        cluster.suspend("job")
        cluster.resume("job")
        cluster.let_go()
        assert cluster.phase("job") is PENDING

    def test_a_job_submitted_suspended_waits_for_its_user(self, cluster: Cluster) -> None:
        cluster.submit("job", suspended=True)
        assert cluster.phase("job") is SUSPENDED
        cluster.resume("job")
        assert cluster.phase("job") is PENDING

    def test_what_is_ending_cannot_be_held(self, cluster: Cluster) -> None:
        cluster.submit("job")
        cluster.cycle()
        cluster.cancel("job")
        assert cluster.suspend("job").is_repeat
        cluster.let_go()
        assert cluster.phase("job") is CANCELLED
        refused = cluster.refuse(JobSuspended(at_s=cluster.now_s, job_id=cluster.ids["job"]))
        assert refused.refusal is Refusal.PRECONDITION

    def test_suspended_time_is_no_waiting_time(self, cluster: Cluster) -> None:
        cluster.submit("job", suspended=True)
        cluster.advance(100)
        cluster.resume("job")
        cluster.advance(7)
        cluster.cycle()
        assert cluster.job("job").waited_before_s == 7

    def test_a_failed_dependency_cancels_a_suspended_job(self, cluster: Cluster) -> None:
        cluster.submit("a")
        cluster.submit("b", suspended=True, after={"a": "after_ok"})
        cluster.cancel("a")
        assert cluster.phase("b") is CANCELLED


class TestUpdate:
    def test_nothing_new_is_a_repeat(self, cluster: Cluster) -> None:
        cluster.submit("job", priority=3)
        assert cluster.update("job", priority=3).is_repeat
        assert not cluster.update("job", priority=4).is_repeat

    def test_a_running_gang_restarts_with_its_new_size(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2, min_tasks=1, max_tasks=4, gpus=1)
        cluster.cycle()
        (eviction,) = cluster.update("job", replicas={"worker": 4}).evictions
        assert eviction.cause is StopCause.RESIZED
        cluster.let_go()
        assert cluster.job("job").failures == 0
        (placement,) = cluster.cycle().plan.placements
        assert placement.world_size == 4

    def test_a_waiting_gang_just_gets_its_new_size(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2, min_tasks=1, max_tasks=40, gpus=1)
        cluster.update("job", replicas={"worker": 3})
        assert cluster.cycle().plan.placements[0].world_size == 3

    def test_a_stopping_gang_comes_back_with_its_new_size(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2, min_tasks=1, max_tasks=4, max_retries=1, backoff_s=0)
        cluster.cycle()
        cluster.end("job", 1, only=0)
        cluster.update("job", replicas={"worker": 4})
        cluster.let_go()
        assert cluster.cycle().plan.placements[0].world_size == 4

    def test_a_service_grows_without_a_restart(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2, min_tasks=1, max_tasks=4, **SERVICE)
        cluster.cycle()
        assert not cluster.update("job", replicas={"worker": 4}).evictions
        (placement,) = cluster.cycle().plan.placements
        assert [bind.task.index for bind in placement.binds] == [2, 3]
        assert len(cluster.tasks("job")) == 4

    def test_a_service_shrinks_from_its_highest_index(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=4, min_tasks=1, max_tasks=4, **SERVICE)
        cluster.cycle()
        (eviction,) = cluster.update("job", replicas={"worker": 2}).evictions
        assert eviction.cause is StopCause.SCALED_DOWN
        assert sorted(task.index for task in eviction.tasks) == [2, 3]
        assert cluster.phase("job") is RUNNING
        cluster.let_go()
        assert cluster.cycle().plan.is_empty
        assert [task.id.index for task in cluster.tasks("job")] == [0, 1]

    def test_a_service_that_shrinks_and_grows_again_replaces_what_left(
        self, cluster: Cluster
    ) -> None:
        cluster.submit("job", tasks=2, min_tasks=1, max_tasks=2, **SERVICE)
        cluster.cycle()
        cluster.update("job", replicas={"worker": 1})
        cluster.update("job", replicas={"worker": 2})
        assert not cluster.cycle().started  # index 1 is still there
        cluster.let_go()
        assert cluster.cycle().started == ["job"]

    def test_a_service_may_lose_all_replicas_it_had_left(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=3, min_tasks=1, max_tasks=3, **SERVICE, backoff_s=0)
        cluster.cycle()
        cluster.end("job", 1, only=0)
        cluster.update("job", replicas={"worker": 1})  # the two that live go
        cluster.let_go()
        assert cluster.phase("job") is PENDING
        assert cluster.settle() == ["job"]

    @pytest.mark.parametrize(
        ("replicas", "refusal", "field"),
        [
            ({"worker": 0}, Refusal.INVALID, "replicas['worker']"),
            ({"worker": 5}, Refusal.INVALID, "replicas['worker']"),
            ({"ps": 1}, Refusal.NOT_FOUND, "replicas['ps']"),
        ],
    )
    def test_counts_stay_within_the_role(
        self, cluster: Cluster, replicas: dict[str, int], refusal: Refusal, field: str
    ) -> None:
        cluster.submit("job", tasks=2, min_tasks=1, max_tasks=4)
        refused = cluster.refuse(cluster.update_event("job", replicas=replicas))
        assert (refused.refusal, refused.field) == (refusal, field)

    def test_an_array_is_updated_as_a_whole_or_not_at_all(self, cluster: Cluster) -> None:
        cluster.submit("many", array_size=3)
        cluster.update("many", priority=9)
        assert [job.job.spec.priority for job in cluster.engine.jobs()] == [9, 9, 9]
        cluster.update("many_1", priority=1)
        assert cluster.job("many_1").job.spec.priority == 1


class TestDependencies:
    @pytest.mark.parametrize(
        ("kind", "exit_code", "phase"),
        [
            ("after_ok", 0, PENDING),
            ("after_ok", 1, CANCELLED),
            ("after_any", 0, PENDING),
            ("after_any", 1, PENDING),
            ("after_not_ok", 0, CANCELLED),
            ("after_not_ok", 1, PENDING),
        ],
    )
    def test_the_end_of_the_other_job_decides(
        self, cluster: Cluster, kind: str, exit_code: int, phase: JobPhase
    ) -> None:
        cluster.submit("first")
        cluster.submit("second", after={"first": kind})
        assert cluster.cycle().started == ["first"]
        cluster.end("first", exit_code)
        assert cluster.phase("second") is phase
        if phase is PENDING:
            assert cluster.cycle().started == ["second"]

    def test_a_retry_is_not_an_end(self, cluster: Cluster) -> None:
        cluster.submit("first", max_retries=1, backoff_s=0)
        cluster.submit("second", after={"first": "after_any"})
        cluster.cycle()
        cluster.end("first", 1)
        assert cluster.cycle().started == ["first"]

    def test_all_of_several_must_hold(self, cluster: Cluster) -> None:
        cluster.submit("a")
        cluster.submit("b")
        cluster.submit("c", after={"a": "after_ok", "b": "after_not_ok"})
        cluster.cycle()
        cluster.end("a")
        assert not cluster.cycle().started
        cluster.end("b", 1)
        assert cluster.cycle().started == ["c"]

    def test_cancellation_cascades_down_the_pipeline(self, cluster: Cluster) -> None:
        cluster.submit("a")
        cluster.submit("b", after={"a": "after_ok"})
        cluster.submit("c", after={"b": "after_ok"})
        cluster.submit("cleanup", after={"c": "after_any"})
        cluster.submit("alarm", after={"c": "after_not_ok"})
        outcome = cluster.cancel("a")
        names = [cluster.names[record.id] for record in outcome.finished]
        assert names == ["a", "b", "c"]
        assert cluster.job("b").reason == (
            f"its dependency after_ok {cluster.ids['a']} cannot hold"
        )
        assert cluster.cycle().started == ["cleanup", "alarm"]

    def test_a_diamond_is_cancelled_once(self, cluster: Cluster) -> None:
        cluster.submit("top")
        cluster.submit("left", after={"top": "after_ok"})
        cluster.submit("right", after={"top": "after_ok"})
        cluster.submit("bottom", after={"top": "after_ok", "left": "after_ok"})
        cluster.submit("last", after={"right": "after_ok", "bottom": "after_ok"})
        finished = [record.id for record in cluster.cancel("top").finished]
        assert len(finished) == len(set(finished)) == 5

    def test_a_long_chain_does_not_overflow(self, cluster: Cluster) -> None:
        cluster.submit("job-0")
        for i in range(1, 3000):
            cluster.submit(f"job-{i}", after={f"job-{i - 1}": "after_ok"})
        assert len(cluster.cancel("job-0").finished) == 3000

    def test_one_job_may_be_named_twice(self, cluster: Cluster) -> None:
        first = cluster.submit("first")
        both = (DependencyKind.AFTER_ANY, DependencyKind.AFTER_OK)
        twice = tuple(Dependency(on=first, kind=kind) for kind in both)
        cluster.submit("second", dependencies=twice)
        cluster.submit("third", dependencies=twice)
        cluster.cycle()
        cluster.end("first")
        assert cluster.cycle().started == ["second", "third"]

    def test_contradictions_end_once(self, cluster: Cluster) -> None:
        first = cluster.submit("first")
        never = (DependencyKind.AFTER_NOT_OK, DependencyKind.AFTER_OK)
        cluster.submit(
            "second", dependencies=tuple(Dependency(on=first, kind=kind) for kind in never)
        )
        cluster.cycle()
        cluster.end("first")
        assert cluster.phase("second") is CANCELLED

    def test_an_array_and_its_own_element_may_both_be_named(self, cluster: Cluster) -> None:
        cluster.submit("many", array_size=1)
        cluster.submit("after", after={"many": "after_ok", "many_0": "after_ok"})
        cluster.cancel("many")
        assert cluster.phase("after") is CANCELLED

    def test_an_array_has_ended_when_its_last_element_has(self, cluster: Cluster) -> None:
        cluster.submit("many", array_size=3)
        cluster.submit("after", after={"many": "after_ok"})
        cluster.submit("one", after={"many_1": "after_ok"})
        cluster.cycle()
        cluster.end("many_1")
        assert cluster.cycle().started == ["one"]
        cluster.end("many_0")
        cluster.end("many_2")
        assert cluster.cycle().started == ["after"]

    def test_one_bad_element_makes_the_array_bad(self, cluster: Cluster) -> None:
        cluster.submit("many", array_size=2)
        cluster.submit("after", after={"many": "after_ok"})
        cluster.submit("alarm", after={"many": "after_not_ok"})
        cluster.cycle()
        cluster.end("many_0", 1)
        assert cluster.phase("after") is PENDING  # the other element is still at it
        cluster.end("many_1")
        assert cluster.phases("after", "alarm") == [CANCELLED, PENDING]

    def test_an_array_may_wait_for_a_job(self, cluster: Cluster) -> None:
        cluster.submit("first")
        cluster.submit("many", array_size=2, after={"first": "after_ok"})
        cluster.cycle()
        cluster.end("first")
        assert cluster.cycle().started == ["many_0", "many_1"]

    def test_what_has_ended_well_is_no_obstacle(self, cluster: Cluster) -> None:
        cluster.submit("first")
        cluster.cycle()
        cluster.end("first")
        cluster.submit("second", after={"first": "after_ok"})
        assert cluster.cycle().started == ["second"]

    def test_what_can_never_hold_is_refused_at_once(self, cluster: Cluster) -> None:
        cluster.submit("first")
        cluster.cycle()
        cluster.end("first", 1)
        refused = cluster.refuse_submit("second", after={"first": "after_ok"})
        assert (refused.refusal, refused.field) == (
            Refusal.PRECONDITION,
            "spec.dependencies[0].on",
        )

    def test_unknown_jobs_are_refused(self, cluster: Cluster) -> None:
        refused = cluster.refuse_submit("second", after={"77": "after_ok"})
        assert refused.refusal is Refusal.NOT_FOUND

    def test_waiting_survives_a_restart(self, cluster: Cluster) -> None:
        cluster.submit("first")
        cluster.submit("second", after={"first": "after_ok"})
        cluster.cycle()
        again = Engine.restore(cluster.engine.dump())
        (task,) = cluster.tasks("first")
        again.observe(TaskEnded(at_s=cluster.now_s, task=task.id, exit_code=1))
        assert list(again.jobs()) == []


class TestArrays:
    def test_elements_are_jobs_of_their_own(self, cluster: Cluster) -> None:
        array_id = cluster.submit("many", array_size=3, gpus=4)
        elements = cluster.engine.array(array_id)
        assert elements == tuple(f"{array_id}_{i}" for i in range(3))
        assert cluster.cycle().started == ["many_0", "many_1", "many_2"]
        assert cluster.job("many_2").job.array_index == 2
        cluster.end("many_1", 1)
        assert cluster.phases("many_0", "many_1", "many_2") == [RUNNING, FAILED, RUNNING]
        assert cluster.engine.array(array_id) == (f"{array_id}_0", f"{array_id}_2")

    def test_ids_of_later_jobs_do_not_collide(self, cluster: Cluster) -> None:
        cluster.submit("many", array_size=10)
        assert cluster.submit("next") == "11"

    def test_commands_mean_every_element_that_lives(self, cluster: Cluster) -> None:
        cluster.submit("many", array_size=3)
        cluster.cycle()
        cluster.end("many_0")
        cluster.suspend("many")
        cluster.let_go()
        assert cluster.phases("many_1", "many_2") == [SUSPENDED, SUSPENDED]
        cluster.resume("many")
        outcome = cluster.cancel("many")
        assert len(outcome.finished) == 2
        assert cluster.phase("many_0") is SUCCEEDED
        assert cluster.cancel("many").is_repeat

    def test_an_array_of_one_is_an_array(self, cluster: Cluster) -> None:
        array_id = cluster.submit("many", array_size=1)
        assert cluster.engine.array(array_id) == (f"{array_id}_0",)
        assert cluster.engine.job(array_id) is None


class TestServices:
    def test_a_replica_that_ends_is_replaced_even_if_it_ended_well(
        self, cluster: Cluster
    ) -> None:
        cluster.submit("job", tasks=2, backoff_s=0, **SERVICE)
        cluster.cycle()
        cluster.end("job", 0, only=0)
        assert cluster.cycle().started == ["job"]
        assert cluster.job("job").failures == 0

    def test_replicas_that_keep_crashing_back_off_ever_longer(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2, backoff_s=10, **SERVICE)
        cluster.cycle()
        for delay_s in (10, 20, 40):
            cluster.end("job", 1, only=0)
            assert cluster.job("job").eligible_at_s == cluster.now_s + delay_s
            cluster.advance(delay_s)
            cluster.cycle()

    def test_a_replica_that_ran_long_starts_the_back_off_anew(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2, backoff_s=10, **SERVICE)
        cluster.cycle()
        cluster.end("job", 1, only=0)
        cluster.advance(10)
        cluster.cycle()
        cluster.advance(3600)
        cluster.end("job", 1, only=0)
        assert cluster.job("job").eligible_at_s == cluster.now_s + 10

    def test_a_service_whose_last_replica_died_waits_as_a_whole(self, cluster: Cluster) -> None:
        cluster.submit("job", backoff_s=10, **SERVICE)
        cluster.cycle()
        cluster.end("job", 1)
        assert cluster.phase("job") is PENDING
        assert not cluster.cycle().started
        cluster.advance(10)
        assert cluster.cycle().started == ["job"]

    def test_lost_replicas_are_replaced_at_once(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=3, backoff_s=10, **SERVICE)
        cluster.cycle()
        cluster.end("job", only=1, is_lost=True)
        assert cluster.cycle().started == ["job"]

    def test_two_roles_are_watched_separately(self, cluster: Cluster) -> None:
        cluster.submit(
            "job", role_of("router"), role_of("model", tasks=2, gpus=1), backoff_s=0, **SERVICE
        )
        cluster.cycle()
        router = next(task for task in cluster.tasks("job") if task.id.role == "router")
        cluster.end_task(router, 1)
        (placement,) = cluster.cycle().plan.placements
        assert [bind.task.role for bind in placement.binds] == ["router"]

    def test_cancelling_stops_every_replica(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=3, **SERVICE)
        cluster.cycle()
        cluster.cancel("job")
        cluster.end("job", only=0, signal=15)
        assert cluster.phase("job") is STOPPING
        cluster.let_go()
        assert cluster.phase("job") is CANCELLED


class TestSubmitting:
    def test_a_request_id_gets_the_first_answer_again(self, cluster: Cluster) -> None:
        spec = cluster.spec("job")
        first = cluster.submit_spec(spec, request_id="r")
        assert cluster.submit_spec(spec, request_id="r") == first
        assert len(list(cluster.engine.jobs())) == 1

    def test_the_answer_survives_the_job_and_a_restart(self, cluster: Cluster) -> None:
        spec = cluster.spec("job")
        first = cluster.submit_spec(spec, request_id="r")
        cluster.cancel("job")
        again = Engine.restore(cluster.engine.dump())
        event = JobsSubmitted(
            at_s=cluster.now_s, spec=spec, request_id="r", fingerprint=spec.name
        )
        outcome = again.observe(event)
        assert (outcome.is_repeat, outcome.job_ids) == (True, (first,))

    def test_another_request_under_the_same_id_is_refused(self, cluster: Cluster) -> None:
        spec = cluster.spec("job")
        cluster.submit_spec(spec, request_id="r")
        event = JobsSubmitted(
            at_s=cluster.now_s, spec=spec, request_id="r", fingerprint="another"
        )
        refused = cluster.refuse(event)
        assert (refused.refusal, refused.field) == (Refusal.ALREADY_EXISTS, "request_id")

    def test_request_ids_are_the_submitters_own(self, cluster: Cluster) -> None:
        spec = cluster.spec("job")
        ids = set()
        for submitter in ("ann", "bob"):
            event = JobsSubmitted(
                at_s=0.0, spec=spec, submitter=submitter, request_id="r", fingerprint=submitter
            )
            (job_id,) = cluster.accept(event).job_ids
            ids.add(job_id)
            cluster.ids["job"], cluster.names[job_id] = job_id, "job"
        assert len(ids) == 2

    def test_request_ids_are_remembered_as_long_as_their_jobs(self, cluster: Cluster) -> None:
        spec = cluster.spec("job")
        first = cluster.submit_spec(spec, request_id="r")
        cluster.advance(1000)
        forget = RetentionPassed(at_s=cluster.now_s, before_s=cluster.now_s)
        cluster.accept(forget)
        assert cluster.submit_spec(spec, request_id="r") == first
        cluster.cancel("job")
        cluster.advance(1)
        cluster.accept(RetentionPassed(at_s=cluster.now_s, before_s=cluster.now_s))
        assert not cluster.engine.is_known(first)
        assert cluster.submit_spec(spec, request_id="r") != first

    def test_queues_must_exist_and_be_open(self, cluster: Cluster) -> None:
        refused = cluster.refuse_submit("job", queue="none")
        assert (refused.refusal, refused.field) == (Refusal.NOT_FOUND, "spec.queue")
        cluster.put_queue("closed", is_open=False)
        refused = cluster.refuse_submit("job", queue="closed")
        assert (refused.refusal, refused.field) == (Refusal.PRECONDITION, "spec.queue")


class TestQueues:
    def test_a_closed_queue_still_starts_what_it_holds(self, cluster: Cluster) -> None:
        cluster.put_queue("q")
        cluster.submit("job", queue="q")
        cluster.put_queue("q", is_open=False)
        assert cluster.cycle().started == ["job"]

    def test_a_queue_with_jobs_stays(self, cluster: Cluster) -> None:
        cluster.put_queue("q")
        cluster.submit("job", queue="q")
        delete = QueueDeleted(at_s=0.0, name=QueueName("q"))
        assert cluster.refuse(delete).refusal is Refusal.PRECONDITION
        cluster.cancel("job")
        cluster.accept(delete)
        assert [queue.name for queue in cluster.engine.queues()] == ["default"]
        assert cluster.refuse(delete).refusal is Refusal.NOT_FOUND
        cluster.put_queue("q")
        cluster.submit("again", queue="q")
        assert cluster.cycle().started == ["again"]

    def test_the_default_queue_stays(self, cluster: Cluster) -> None:
        refused = cluster.refuse(QueueDeleted(at_s=0.0, name=QueueName("default")))
        assert refused.refusal is Refusal.PRECONDITION

    def test_figures_count_what_a_queue_holds(self, cluster: Cluster) -> None:
        cluster.put_queue("q")
        cluster.submit("a", queue="q", tasks=2, gpus=2)
        cluster.submit("b", queue="q", gpus=0.5)
        cluster.submit("c", queue="q", cpus=1000)
        cluster.cycle()
        figures = cluster.engine.queue_figures(QueueName("q"))
        assert (figures.n_running, figures.n_pending) == (2, 1)
        assert figures.gpu_milli_used == 4500


class TestNodes:
    def test_registering_again_brings_a_node_back_up(self, cluster: Cluster) -> None:
        cluster.health("node-0", up=False)
        event = NodeRegistered(at_s=cluster.now_s, node=node_of("node-0", gpus=4))
        assert not cluster.accept(event).is_repeat
        assert cluster.accept(event).is_repeat
        assert cluster.engine.node(NodeName("node-0")).is_up

    def test_gpus_change_only_on_an_empty_node(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=4, gpus=1)
        cluster.cycle()
        event = NodeRegistered(at_s=cluster.now_s, node=node_of("node-0", gpus=2))
        refused = cluster.refuse(event)
        assert (refused.refusal, refused.field) == (Refusal.PRECONDITION, "node.gpus")
        cluster.end("job")
        cluster.cordon("node-0")
        cluster.accept(event)
        view = cluster.engine.node(NodeName("node-0"))
        assert (len(view.gpu_milli_free), view.is_cordoned) == (2, True)

    def test_a_node_does_not_shrink_below_what_its_tasks_hold(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=4, cpus=10, memory_mib=1000, gpus=1)
        cluster.cycle()
        for about, field in (({"cpus": 39}, "cpu_milli"), ({"memory_mib": 3999}, "memory_mib")):
            node = node_of("node-0", gpus=4, **about)
            refused = cluster.refuse(NodeRegistered(at_s=cluster.now_s, node=node))
            assert refused.field == f"node.{field}"
        cluster.add_node("node-0", gpus=4, cpus=40, memory_mib=4000)
        view = cluster.engine.node(NodeName("node-0"))
        assert (view.cpu_milli_free, view.memory_mib_free) == (0, 0)

    def test_health_names_devices_that_exist(self, cluster: Cluster) -> None:
        event = NodeHealthChanged(
            at_s=0.0, name=NodeName("node-0"), is_up=True, unhealthy_gpus=(4,)
        )
        assert cluster.refuse(event).refusal is Refusal.INVALID

    def test_unknown_nodes_are_not_found(self, cluster: Cluster) -> None:
        name = NodeName("nowhere")
        for event in (
            NodeRemoved(at_s=0.0, name=name),
            NodeHealthChanged(at_s=0.0, name=name, is_up=True),
            NodeCordoned(at_s=0.0, name=name),
        ):
            assert cluster.refuse(event).refusal is Refusal.NOT_FOUND

    def test_repeated_news_of_a_node_changes_nothing(self, cluster: Cluster) -> None:
        assert cluster.health("node-0").is_repeat
        assert not cluster.cordon("node-0").is_repeat
        assert cluster.cordon("node-0").is_repeat

    def test_a_node_may_come_back_after_it_was_removed(self, cluster: Cluster) -> None:
        cluster.remove_node("node-0")
        cluster.add_node("node-0", gpus=1)
        assert cluster.engine.nodes()[-1].node.name == "node-0"


class TestAccounting:
    def test_waits_runs_and_gpu_seconds_add_up(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2, gpus=2, max_retries=1, backoff_s=5)
        cluster.advance(3)
        cluster.cycle()
        cluster.advance(10)
        cluster.checkpoint("job")
        cluster.advance(2)
        cluster.end("job", 1, only=0)
        cluster.advance(1)
        cluster.let_go()
        job = cluster.job("job")
        assert job.waited_s(cluster.now_s) == 3
        assert job.ran_s(cluster.now_s) == 13
        assert job.gpu_s(cluster.now_s) == 2 * 12 + 2 * 13
        assert job.lost_gpu_s == 4 * 3  # what ran since the checkpoint
        cluster.advance(5)
        cluster.cycle()
        cluster.advance(7)
        assert cluster.job("job").gpu_s(cluster.now_s) == 50 + 4 * 7
        cluster.end("job")
        job = cluster.job("job")
        assert job.ended_at_s == cluster.now_s
        assert job.waited_before_s + job.ran_before_s == cluster.now_s - 1000
        assert (job.waited_before_s, job.ran_before_s) == (8, 20)

    def test_fractions_count_as_fractions(self, cluster: Cluster) -> None:
        cluster.submit("job", gpus=0.25)
        cluster.cycle()
        cluster.advance(100)
        assert cluster.job("job").gpu_s(cluster.now_s) == 25
        cluster.end("job")
        assert cluster.job("job").gpu_s_before == 25


class TestRestart:
    def test_everything_live_survives(self, cluster: Cluster) -> None:
        cluster.put_queue("q", submitters=("ann",), is_started=False)
        cluster.submit("running", tasks=2, gpus=1)
        cluster.submit("service", tasks=3, backoff_s=9, **SERVICE)
        cluster.submit("many", array_size=3, gpus=0.5, max_retries=2)
        cluster.submit("after", after={"many": "after_ok", "running": "after_any"})
        cluster.submit("held", suspended=True)
        cluster.submit("queued", queue="q")
        cluster.cycle()
        cluster.run_all()
        cluster.advance(5)
        cluster.checkpoint("running")
        cluster.end("service", 1, only=1)
        cluster.end("many_1", 1)
        cluster.cancel("many_2")
        cluster.health("node-3", bad_gpus=[1, 2])
        cluster.cordon("node-2", drain=True)
        cluster.remove_node("node-1")
        cluster.validate()  # the fixture does so again at the end

    def test_what_stops_is_asked_to_stop_again(self, cluster: Cluster) -> None:
        cluster.submit("job", tasks=2)
        cluster.cycle()
        cluster.cancel("job")
        again = Engine.restore(cluster.engine.dump())
        stopping = {task for e in again.evictions_in_flight() for task in e.tasks}
        assert stopping == {task.id for task in cluster.tasks("job")}
        assert len(again.live_starts()) == 2

    def test_an_unknown_format_is_refused(self, cluster: Cluster) -> None:
        from dataclasses import replace

        with pytest.raises(InvalidInput, match="format"):
            Engine.restore(replace(cluster.engine.dump(), format=99))

    def test_a_start_names_the_address_of_rank_0(self, cluster: Cluster) -> None:
        cluster.submit("gang", tasks=4, gpus=4)
        cluster.cycle()
        starts = cluster.engine.live_starts()
        assert {start.master_address for start in starts} == {"127.0.0.1"}
        assert [start.task.rank for start in starts] == [0, 1, 2, 3]


class TestNothingGrowsForEver:
    def test_gangs_of_ended_jobs_are_forgotten(self, cluster: Cluster) -> None:
        cluster.submit("stays", memory_mib=7)
        for i in range(500):
            cluster.submit(f"job-{i}", memory_mib=10 + i)
            if i == 50:
                cluster.submit("later", memory_mib=8, gpus=9)
            snapshot = cluster.snapshot()
            plan = decide(snapshot, cluster.policy)
            cluster.cancel(f"job-{i}")
            assert decide(snapshot, cluster.policy) == plan
        assert len(cluster.snapshot().gangs) < 100
        assert cluster.cycle().started == ["stays"]

    def test_shapes_of_ended_jobs_are_forgotten(self, cluster: Cluster) -> None:
        for i in range(2000):
            cluster.submit(f"job-{i}", cpus=1000 + i, node_labels={"a": str(i)})
        cluster.cycle()
        assert len(cluster.snapshot().nodes.fits_statically) <= 1024


class TestTransitions:
    @pytest.mark.parametrize("old", JobPhase)
    @pytest.mark.parametrize("new", JobPhase)
    def test_a_job_moves_only_as_the_table_says(self, old: JobPhase, new: JobPhase) -> None:
        if new in JOB_MOVES[old]:
            check_job_move("7", old, new)
            return
        with pytest.raises(InvalidTransition) as caught:
            check_job_move("7", old, new, history=["1.000 submitted", "2.000 running"])
        assert str(caught.value).splitlines() == [
            f"job 7: {old} to {new} is impossible",
            "  1.000 submitted",
            "  2.000 running",
        ]

    @pytest.mark.parametrize("old", TaskPhase)
    @pytest.mark.parametrize("new", TaskPhase)
    def test_a_task_moves_only_as_the_table_says(self, old: TaskPhase, new: TaskPhase) -> None:
        if new in TASK_MOVES[old]:
            check_task_move("7/worker-0@1", old, new)
            return
        with pytest.raises(InvalidTransition, match="is impossible"):
            check_task_move("7/worker-0@1", old, new)

    def test_final_phases_are_final(self) -> None:
        assert all(bool(JOB_MOVES[phase]) != phase.is_final for phase in JobPhase)
        assert all(bool(TASK_MOVES[phase]) != phase.is_final for phase in TaskPhase)

    def test_the_history_tells_the_story(self, cluster: Cluster) -> None:
        cluster.submit("job", max_retries=1, backoff_s=0)
        cluster.cycle()
        cluster.end("job", 1)
        cluster.cycle()
        cluster.end("job")
        lines = [line.partition(" ")[2] for line in cluster.job("job").history]
        assert lines == [
            "submitted by unknown: pending",
            "running",
            "attempt 1: 1 tasks on node-0",
            "1/worker-0@1 failed with exit code 1",
            "pending: worker-0 failed with exit code 1; retry 1 of 1",
            "running",
            "attempt 2: 1 tasks on node-0",
            "1/worker-0@2 succeeded with exit code 0",
            "succeeded",
        ]

    def test_the_history_of_a_restless_job_is_bounded(self, cluster: Cluster) -> None:
        cluster.submit("job")
        for _ in range(100):
            cluster.suspend("job")
            cluster.resume("job")
        assert len(cluster.job("job").history) == 64
