"""Small stories of the simulator, compared as one line per job."""

import pytest
from simulation_testing import gpu_s, run_of, summary, trace_job

from scheduler.core.errors import InvalidInput
from scheduler.core.model import Dependency, DependencyKind, JobId, JobKind, JobPhase
from simulator.cluster import Pool, PoolChange, SimulatedCluster, uniform_cluster
from simulator.workload import FOREVER, NodeOutage, Steady


def test_jobs_start_in_order_and_small_ones_fill_the_gaps() -> None:
    run = run_of(
        [
            trace_job("wide", gpus=6, work_s=100, spec={"expected_run_s": 100}),
            trace_job("whole", at_s=10, gpus=8, work_s=50, spec={"expected_run_s": 50}),
            trace_job("short", at_s=20, gpus=2, work_s=80, spec={"expected_run_s": 80}),
            trace_job("long", at_s=30, gpus=1, work_s=500, spec={"expected_run_s": 500}),
        ]
    )
    assert summary(run) == [
        "wide 0-100 succeeded",
        "whole 100-150 succeeded",
        "short 20-100 succeeded",
        "long 150-650 succeeded",
    ]
    assert run.jobs.waited_s.tolist() == [0, 90, 0, 120]
    assert run.jobs.gpu_s.tolist() == [600, 400, 160, 500]
    assert (run.from_s, run.until_s) == (0, 650)


def test_a_job_that_fits_nowhere_is_left_pending() -> None:
    run = run_of([trace_job("huge", tasks=3, gpus=8), trace_job("small", work_s=5)])
    assert summary(run) == ["huge nan-nan pending", "small 0-5 succeeded"]
    assert run.until_s == 5
    assert gpu_s(run)["up"] == 40


@pytest.mark.parametrize("policy", ["max_min_fairness", "priority"])
def test_a_hopeless_job_does_not_keep_turns_going(policy: str) -> None:
    run = run_of([trace_job("huge", tasks=3, gpus=8)], policy=policy)
    assert summary(run) == ["huge nan-nan pending"]


def test_preempted_work_is_lost_back_to_the_last_checkpoint() -> None:
    low = trace_job(
        "low", gpus=8, work_s=100, startup_s=5, restore_s=3, spec={"checkpoint_interval_s": 30}
    )
    high = trace_job("high", at_s=50, gpus=8, work_s=10, spec={"priority": 1})
    run = run_of([low, high], policy="priority")
    # It works from 5 to 50, saves at 35, comes back at 60 and works on at 68.
    assert summary(run) == ["low 0-138 succeeded", "high 50-60 succeeded"]
    assert run.jobs.lost_gpu_s[0] == 15 * 8
    assert run.jobs.overhead_gpu_s[0] == (5 + 5 + 3) * 8
    assert run.jobs.useful_gpu_s[0] == 100 * 8
    assert run.jobs.n_preemptions[0] == 1


def test_a_job_may_save_its_work_when_it_is_asked_to_stop() -> None:
    low = trace_job("low", gpus=8, work_s=100, save_s=4, spec={"grace_s": 10})
    high = trace_job("high", at_s=50, gpus=8, work_s=10, spec={"priority": 1})
    run = run_of([low, high], policy="priority")
    assert summary(run) == ["low 0-114 succeeded", "high 54-64 succeeded"]
    assert run.jobs.lost_gpu_s[0] == 0
    assert run.jobs.overhead_gpu_s[0] == 4 * 8


def test_too_short_a_grace_saves_nothing() -> None:
    low = trace_job("low", gpus=8, work_s=100, save_s=40, spec={"grace_s": 10})
    high = trace_job("high", at_s=50, gpus=8, work_s=10, spec={"priority": 1})
    run = run_of([low, high], policy="priority", stop_s=2)
    assert summary(run) == ["low 0-162 succeeded", "high 52-62 succeeded"]
    assert run.jobs.lost_gpu_s[0] == 50 * 8


def test_a_node_that_goes_down_takes_the_gang_with_it() -> None:
    gang = trace_job("gang", tasks=2, gpus=8, work_s=100, spec={"checkpoint_interval_s": 20})
    run = run_of(
        [gang],
        nodes=2,
        outages=[NodeOutage(at_s=50, node="a100-1", until_s=200)],
    )
    assert summary(run) == ["gang 0-260 succeeded"]
    assert run.jobs.lost_gpu_s[0] == 10 * 16
    assert run.jobs.n_failures[0] == 1
    assert run.pools[0].node_s == 260 + 110


def test_a_gpu_that_fails_hits_only_who_holds_it() -> None:
    jobs = [trace_job("first", gpus=4), trace_job("second", gpus=4)]
    run = run_of(jobs, outages=[NodeOutage(at_s=60, node="a100-0", gpus=(5,), until_s=90)])
    assert summary(run) == ["first 0-100 succeeded", "second 0-190 succeeded"]


def test_a_spot_machine_is_drained_before_it_goes() -> None:
    job = trace_job("job", gpus=8, work_s=100, save_s=5)
    outage = NodeOutage(at_s=50, node="a100-0", notice_s=20, until_s=300)
    run = run_of([job], outages=[outage])
    assert summary(run) == ["job 0-350 succeeded"]
    assert run.jobs.lost_gpu_s[0] == 0


def test_pools_grow_with_a_delay_and_shrink_when_empty() -> None:
    like = uniform_cluster(1).pools[0].nodes
    pool = Pool(
        name="a100",
        nodes=like,
        launch_s=30,
        changes=(PoolChange(at_s=10, count=2), PoolChange(at_s=50, count=0)),
    )
    jobs = [
        trace_job(f"job-{i}", gpus=8, work_s=100, spec={"preemptible": False}) for i in "ab"
    ]
    run = run_of(jobs, cluster=SimulatedCluster(pools=(pool,)))
    assert summary(run) == ["job-a 0-100 succeeded", "job-b 40-140 succeeded"]
    assert run.pools[0].node_s == 100 + 100
    assert run.pools[0].n_launches == 1


def test_jobs_wait_for_those_they_name_and_end_as_their_trace_says() -> None:
    after_ok = (Dependency(on=JobId("first")),)
    after_bad = (Dependency(on=JobId("bad"), kind=DependencyKind.AFTER_OK),)
    run = run_of(
        [
            trace_job("first", work_s=10),
            trace_job("second", work_s=10, spec={"dependencies": after_ok}),
            trace_job("bad", work_s=20, ends_as=JobPhase.FAILED),
            trace_job("never", spec={"dependencies": after_bad}),
            trace_job("gone", work_s=7, ends_as=JobPhase.CANCELLED),
            trace_job("late", work_s=100, spec={"time_limit_s": 25}),
        ]
    )
    assert summary(run) == [
        "first 0-10 succeeded",
        "second 10-20 succeeded",
        "bad 0-20 failed",
        "never nan-20 cancelled",
        "gone 0-7 cancelled",
        "late 0-25 timed_out",
    ]


def test_neighbours_on_a_device_slow_each_other_down_while_they_are_there() -> None:
    shared = Steady(work=100, beside_others=0.5)
    run = run_of(
        [
            trace_job("first", gpus=0.5, behaviour=shared),
            trace_job("second", at_s=50, gpus=0.5, behaviour=shared),
        ]
    )
    # Alone for 50 s, then both at half speed until the first is done.
    assert summary(run) == ["first 0-150 succeeded", "second 50-200 succeeded"]


def test_a_gang_across_racks_is_slower() -> None:
    behaviour = Steady(work=100, n_tasks=2, across_racks=0.5)
    gang = trace_job("gang", tasks=2, gpus=8, behaviour=behaviour)
    assert summary(run_of([gang], cluster=uniform_cluster(2, nodes_per_rack=2))) == [
        "gang 0-100 succeeded"
    ]
    assert summary(run_of([gang], cluster=uniform_cluster(2, nodes_per_rack=1))) == [
        "gang 0-200 succeeded"
    ]


def test_a_service_runs_for_its_time_and_its_replicas_are_told() -> None:
    service = trace_job(
        "serve", tasks=3, gpus=4, work_s=500, startup_s=20, spec={"kind": JobKind.INFERENCE}
    )
    run = run_of([service], nodes=2, outages=[NodeOutage(at_s=100, node="a100-1", until_s=150)])
    assert summary(run) == ["serve 0-500 succeeded"]
    (replicas,) = run.replicas
    steps = zip(replicas.at_s.tolist(), replicas.n_ready["A100"].tolist(), strict=True)
    assert list(steps) == [(20, 3), (100, 2), (170, 3), (500, 0)]


def test_a_service_without_end_does_not_keep_a_run_going() -> None:
    service = trace_job("serve", work_s=FOREVER, spec={"kind": JobKind.INFERENCE})
    run = run_of([service, trace_job("job", work_s=10)])
    assert summary(run) == ["serve 0-nan running", "job 0-10 succeeded"]
    assert run.jobs.gpu_s.tolist() == [10, 10]


def test_a_run_is_cut_off_where_it_is_told_to_be() -> None:
    run = run_of([trace_job("job", work_s=100)], until_s=30)
    assert summary(run) == ["job 0-nan running"]
    assert gpu_s(run) == {
        "up": 240, "held": 30, "of_jobs": 30, "useful": 30, "lost": 0, "overhead": 0,
    }  # fmt: skip


def test_jobs_out_of_order_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"job b: at_s: is before 5, when one came"):
        run_of([trace_job("a", at_s=5), trace_job("b", at_s=4)])


def test_a_queue_that_only_the_trace_knows_is_made() -> None:
    run = run_of([trace_job("a", gpus=2, spec={"queue": "vision"})])
    assert summary(run) == ["a 0-100 succeeded"]
    assert run.jobs.queue == ["vision"]
    assert run.timeline.gpus_held_by_queue["vision"].tolist() == [2, 0]


def test_a_dependency_on_a_job_that_never_came_is_a_mistake_of_the_trace() -> None:
    job = trace_job("a", spec={"dependencies": (Dependency(on=JobId("x")),)})
    with pytest.raises(InvalidInput, match="job a: dependencies: there is no earlier job with"):
        run_of([job])


def test_two_jobs_of_one_key_are_told_where_it_matters() -> None:
    after = {"dependencies": (Dependency(on=JobId("a")),)}
    jobs = [trace_job("a"), trace_job("a"), trace_job("c", at_s=1.0, spec=after)]
    with pytest.raises(InvalidInput, match="several earlier jobs have the key 'a'"):
        run_of(jobs)
