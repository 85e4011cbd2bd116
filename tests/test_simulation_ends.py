"""Every run ends, and where it ends is where its figures end."""

from dataclasses import replace

import numpy as np
import pytest
from cluster_testing import role_of
from simulation_testing import gpu_s, run_of, summary, trace_job

from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobKind, JobPhase
from simulator.cluster import PoolChange, SimulatedCluster, uniform_cluster
from simulator.failures import Failures
from simulator.workload import FOREVER, NodeOutage, Steady


def service(key="chat", *, gpus=1, work=FOREVER, at_s=0.0):
    return trace_job(
        key, at_s=at_s, behaviour=Steady(work=work), gpus=gpus, spec={"kind": JobKind.INFERENCE}
    )


@pytest.mark.parametrize("every_s", [1e-9, 1.0, 60.0, 600.0])
@pytest.mark.parametrize("kind", ["node", "gpu", "spot", "slow", "rack"])
def test_a_run_ends_however_often_things_fail(kind, every_s):
    (pool,) = uniform_cluster(2, gpus=4, nodes_per_rack=1).pools
    cluster = SimulatedCluster(pools=(replace(pool, is_spot=True),))
    jobs = [trace_job(f"j{i}", at_s=i, work_s=5_000.0, startup_s=30.0) for i in range(3)]
    run = run_of(jobs, cluster=cluster, failures=Failures(**{f"{kind}_every_s": every_s}))
    assert run.until_s < 1e8


def elastic_job(tasks, *, work_s, **truth):
    job = trace_job("wide", **truth)
    roles = (role_of(tasks=tasks, min_tasks=1, gpus=1),)
    spec = replace(job.spec, roles=roles, elastic=True)
    return replace(job, spec=spec, behaviour=Steady(work=work_s, n_tasks=tasks))


def test_an_elastic_job_that_never_saves_anything_is_given_up():
    run = run_of(
        [elastic_job(8, work_s=1e7, startup_s=10.0)],
        cluster=uniform_cluster(8, gpus=1),
        failures=Failures(node_every_s=600.0, node_repair_s=60.0),
    )
    assert run.jobs.phase == ["cancelled"]
    assert run.counters["given_up_jobs"] == 1
    time = gpu_s(run)
    assert time["of_jobs"] == pytest.approx(time["held"])


# Where it ends


def test_who_can_never_start_waits_until_nothing_can_change_any_more():
    jobs = [trace_job("one", work_s=500.0), trace_job("wide", at_s=100.0, gpus=64)]
    run = run_of(jobs)
    assert summary(run) == ["one 0-500 succeeded", "wide nan-nan pending"]
    assert run.until_s == 500.0
    assert run.jobs.waited_s.tolist() == [0.0, 400.0]


def test_a_job_that_waits_for_nothing_but_repairs_at_random_is_not_waited_for():
    """Each repair is a moment at which somebody may start; these are in vain."""
    jobs = [trace_job("one", work_s=500.0), trace_job("wide", at_s=100.0, gpus=64)]
    run = run_of(jobs, nodes=2, failures=Failures(node_every_s=86_400.0), seed=1)
    assert run.until_s == np.nanmax(run.jobs.ended_at_s)
    assert run.jobs.waited_s[1] == run.until_s - 100.0


def test_a_service_beside_who_can_never_start_holds_gpus_until_then():
    jobs = [service(gpus=2), trace_job("one", work_s=500.0), trace_job("wide", gpus=64)]
    run = run_of(jobs, policy="shortest_job")
    time = gpu_s(run)
    assert run.until_s == 500.0
    assert time["up"] == 8 * 500.0
    assert time["of_jobs"] == time["held"] == 2 * 500.0 + 500.0


def test_machines_that_come_after_the_last_job_are_not_waited_for():
    (pool,) = uniform_cluster(1).pools
    pool = replace(pool, changes=(PoolChange(at_s=1e6, count=2),))
    run = run_of([trace_job("one")], cluster=SimulatedCluster(pools=(pool,)))
    assert run.until_s == 100.0
    assert gpu_s(run)["up"] == 800.0


def test_a_cluster_that_comes_to_rest_after_the_last_job_ends_there():
    """Who waits might have started on what was to come: the run is as long as that hope."""
    (pool,) = uniform_cluster(1).pools
    pool = replace(pool, changes=(PoolChange(at_s=1_000.0, count=2),))
    jobs = [trace_job("one"), trace_job("wide", gpus=64)]
    run = run_of(jobs, cluster=SimulatedCluster(pools=(pool,)))
    assert run.until_s == 1_000.0
    assert run.jobs.waited_s.tolist() == [0.0, 1_000.0]
    assert gpu_s(run)["up"] == 8_000.0


# Services


def test_services_alone_are_served_for_as_long_as_asked():
    run = run_of([service(gpus=2)], serve_until_s=3_600.0)
    assert run.until_s == 3_600.0
    assert gpu_s(run)["held"] == gpu_s(run)["of_jobs"] == 7_200.0


def test_services_alone_end_where_the_run_is_cut_off():
    assert run_of([service()], until_s=60.0, serve_until_s=3_600.0).until_s == 60.0
    assert run_of([service()], until_s=60.0).until_s == 60.0


def test_other_jobs_say_how_long_a_service_beside_them_is_served():
    run = run_of([service(), trace_job("one")], serve_until_s=3_600.0)
    assert run.until_s == 100.0


def test_services_alone_without_an_end_are_refused():
    with pytest.raises(InvalidInput, match="until: there are only services"):
        run_of([service()])


def test_a_service_that_ends_needs_no_other_end():
    assert run_of([service(work=50.0)]).until_s == 50.0


# Who is still stopping


def test_a_run_goes_on_while_its_last_job_stops():
    job = trace_job("one", ends_as=JobPhase.CANCELLED)
    run = run_of([job], stop_s=20.0)
    assert summary(run) == ["one 0-120 cancelled"]


def test_a_job_that_saves_its_work_before_a_machine_is_taken_goes_on_with_it():
    (pool,) = uniform_cluster(1).pools
    job = trace_job("one", work_s=20_000.0, save_s=20.0)
    run = run_of(
        [job],
        cluster=SimulatedCluster(pools=(replace(pool, is_spot=True),)),
        failures=Failures(spot_every_s=10_000.0),
    )
    assert run.jobs.phase == ["succeeded"]
    assert run.jobs.useful_gpu_s.tolist() == pytest.approx([20_000.0])
    assert run.jobs.n_attempts[0] > 1


def test_a_service_that_ends_is_waited_for_while_it_stops():
    run = run_of([service(work=50.0)], stop_s=20.0)
    assert run.jobs.phase == ["succeeded"]
    assert run.until_s == 70.0


def test_a_gang_lost_at_one_stroke_is_not_waited_for_if_it_never_starts_again():
    lost = NodeOutage(at_s=50.0, node="a100-0", gpus=tuple(range(8)))
    run = run_of(
        [trace_job("gang", tasks=2)], outages=[lost], failures=Failures(slow_every_s=1_000.0)
    )
    assert run.until_s == 50.0
    assert run.jobs.phase == ["pending"]
