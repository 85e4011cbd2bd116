"""Two jobs on one GPU in the simulated world: their speed, what they hold, what it gains."""

import numpy as np
import pytest
from simulation_testing import gpu_s, run_of, summary, trace_job

from scheduler.core.model import SharedThroughput
from simulator.cluster import uniform_cluster
from simulator.failures import Failures
from simulator.traces.own import decode_job, encode_job
from simulator.workload import Gang, Steady, TraceJob

PACKED, PERF = "max_min_fairness_packed", "max_min_fairness_perf"


def beside(**speeds: float) -> tuple[SharedThroughput, ...]:
    return tuple(
        SharedThroughput(gpu_type="A100", beside=profile, per_s=per_s)
        for profile, per_s in sorted(speeds.items())
    )


def sharer(key: str, profile: str, work: float, at_s: float = 0.0, **speeds: float) -> TraceJob:
    measured = beside(**speeds)
    return trace_job(
        key,
        at_s=at_s,
        behaviour=Steady(work=work, beside=measured),
        spec={
            "profile": profile,
            "shared_throughputs": measured,
            "checkpoint_interval_s": 60.0,
            "total_work": work,
        },
        save_s=0.0,
    )


def mixed(n_jobs: int, seed: int = 0) -> list[TraceJob]:
    """Return jobs of three kinds that come faster than four GPUs can serve by turns."""
    draw = np.random.default_rng(seed)
    kinds = {
        "resnet": {"lm": 0.9, "gan": 0.7, "resnet": 0.55},
        "lm": {"resnet": 0.8, "gan": 0.6},
        "gan": {"resnet": 0.7, "lm": 0.7},
    }
    names = sorted(kinds)
    return [
        sharer(f"job-{i}", kind, float(draw.uniform(500, 5000)), i * 300.0, **kinds[kind])
        for i in range(n_jobs)
        for kind in [names[int(draw.integers(3))]]
    ]


def assert_conserved(run) -> None:
    went, jobs = gpu_s(run), run.jobs
    parts = jobs.useful_gpu_s + jobs.lost_gpu_s + jobs.overhead_gpu_s
    np.testing.assert_allclose(parts, jobs.gpu_s)
    assert went["of_jobs"] == pytest.approx(went["held"])
    held = run.timeline.gpus_held
    for name, up in run.timeline.gpus_up.items():
        assert (held[name] <= up + 1e-9).all()


def test_two_on_one_gpu_go_as_fast_as_was_measured_and_hold_half_of_it() -> None:
    jobs = [sharer("a", "resnet", 900.0, lm=0.9), sharer("b", "lm", 900.0, resnet=0.75)]
    run = run_of(jobs, cluster=uniform_cluster(1, gpus=1), policy=PACKED)
    # `a` ends at 1000 s; `b` has 150 left then and goes on alone at full speed.
    assert summary(run) == ["a 0-1000 succeeded", "b 0-1150 succeeded"]
    assert run.jobs.gpu_s.tolist() == pytest.approx([500.0, 650.0])
    assert_conserved(run)


def test_who_does_not_share_takes_turns_and_is_slower_in_all() -> None:
    jobs = [sharer("a", "resnet", 900.0, lm=0.9), sharer("b", "lm", 900.0, resnet=0.75)]
    run = run_of(jobs, cluster=uniform_cluster(1, gpus=1), policy=PERF)
    assert run.jobs.ended_at_s.max() >= 1800.0
    assert_conserved(run)


@pytest.mark.parametrize("policy", [PACKED, "min_total_duration_packed"])
def test_sharing_lowers_the_mean_completion_time_and_the_makespan(policy: str) -> None:
    cluster = uniform_cluster(1, gpus=4)
    packed = run_of(mixed(40), cluster=cluster, policy=policy)
    apart = run_of(mixed(40), cluster=cluster, policy=policy.replace("_packed", "_perf"))
    for run in (packed, apart):
        assert set(run.jobs.phase) == {"succeeded"}
        assert_conserved(run)

    def mean_s(run) -> float:
        return float((run.jobs.ended_at_s - run.jobs.submitted_at_s).mean())

    assert mean_s(packed) < 0.9 * mean_s(apart)
    assert packed.jobs.ended_at_s.max() < 0.9 * apart.jobs.ended_at_s.max()


def test_gpu_time_is_conserved_when_shared_gpus_fail() -> None:
    run = run_of(
        mixed(30, seed=1),
        cluster=uniform_cluster(2, gpus=2),
        policy=PACKED,
        failures=Failures(gpu_every_s=40_000, gpu_repair_s=300),
        stop_s=5.0,
    )
    assert run.jobs.lost_gpu_s.sum() > 0
    assert_conserved(run)


def test_a_behaviour_goes_as_measured_beside_one_other_only() -> None:
    steady = Steady(work=1.0, beside=beside(lm=0.7), beside_others=0.5)

    def speed(*neighbours: str, gpu_type: str = "A100") -> float:
        gang = Gang(
            n_tasks=1,
            n_gpus=1,
            gpu_types=(gpu_type,),
            n_nodes=1,
            n_racks=1,
            neighbours=neighbours,
        )
        return steady.speed(gang, 0.0).per_s

    assert (speed(), speed("lm"), speed("gan"), speed("lm", "lm")) == (1.0, 0.7, 0.5, 0.5)
    assert speed("lm", gpu_type="T4") == 0.5


def test_own_traces_keep_what_was_measured() -> None:
    job = sharer("a", "resnet", 900.0, lm=0.9)
    assert decode_job(encode_job(job).decode()) == job
