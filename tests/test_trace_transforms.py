"""Traces cut, sampled, sped up and stretched: composable, and the same for the same seed."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobSpec, QueueName, Role, Shape
from simulator.traces import transforms as of
from simulator.traces.jobs import TRACE_LAUNCH
from simulator.workload import FOREVER, Gang, Speed, Steady, TraceJob


def job(at_s: float, *, gpus: int = 1, queue: str = "default", work: float = 10.0, **spec):
    role = Role(name="worker", launch=TRACE_LAUNCH, shape=Shape(gpus=gpus))
    return TraceJob(
        at_s=at_s,
        key=f"at-{at_s:g}",
        spec=JobSpec(name="j", roles=(role,), queue=QueueName(queue), **spec),
        behaviour=Steady(work=work),
    )


JOBS = [job(float(at_s), gpus=1 + at_s % 4, queue="ab"[at_s % 2]) for at_s in range(100, 200)]


def times(jobs):
    return [job.at_s for job in jobs]


def test_parts_are_cut_by_number_time_and_properties():
    assert times(of.head(JOBS, 3)) == [100, 101, 102]
    assert times(of.window(JOBS, 104, 106)) == [104, 105]
    wanted = of.Wanted(queues=["a"], min_gpus=2, max_gpus=3)
    assert times(of.head(of.only(JOBS, wanted), 2)) == [102, 106]


def test_a_window_reads_no_further_than_its_end():
    def endless():
        at_s = 0
        while True:
            yield job(float(at_s))
            at_s += 1

    assert times(of.window(endless(), 3, 5)) == [3, 4]


def test_samples_are_the_same_for_the_same_seed():
    samples = [times(of.sampled(JOBS, 0.3, seed=seed)) for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    assert 15 < len(samples[0]) < 45
    with pytest.raises(InvalidInput, match="fraction: 30 is not above 0"):
        of.sampled(JOBS, 30)


def test_more_load_is_the_same_jobs_closer_together():
    closer = list(of.with_load(JOBS, 2.0))
    assert times(closer)[:3] == [100, 100.5, 101]
    assert [j.behaviour for j in closer] == [j.behaviour for j in JOBS]


def test_moments_in_a_spec_move_with_the_job():
    (moved,) = of.starting_at([job(50.0, deadline_at_s=80.0, start_after_s=60.0)], 0.0)
    assert (moved.at_s, moved.spec.deadline_at_s, moved.spec.start_after_s) == (0, 30, 10)
    assert moved.spec.time_limit_s == 0.0


def test_stretching_slows_everything_down():
    slow = list(of.stretched([job(10.0), job(20.0, expected_run_s=9.0, deadline_at_s=40.0)], 3))
    assert times(slow) == [10, 40]
    assert slow[1].behaviour == Steady(work=30.0)
    assert (slow[1].spec.expected_run_s, slow[1].spec.deadline_at_s) == (27.0, 100.0)
    spec = of.replace(JOBS[0].spec, total_work=10.0, resize_cooldown_s=60.0)
    [saving] = of.stretched([of.replace(JOBS[0], spec=spec, save_s=20.0)], 3)
    assert (saving.save_s, saving.spec.resize_cooldown_s) == (60.0, 180.0)
    assert saving.spec.total_work == 30.0
    fast = of.replace(spec, throughputs=(("A100", 2.0),))
    [known] = of.stretched([of.replace(JOBS[0], spec=fast)], 3)
    assert (known.spec.total_work, known.spec.throughputs) == (10.0, (("A100", 2.0 / 3),))
    with pytest.raises(InvalidInput, match="factor"):
        list(of.stretched(JOBS, 0))


def test_behaviours_of_other_kinds_are_slowed_down_too():
    @dataclass(frozen=True)
    class Odd:
        work: float = 7.0

        def speed(self, gang: Gang, done: float) -> Speed:
            return Speed(2.0 * gang.n_tasks, until_done=3.0)

    gang = Gang(n_tasks=2, n_gpus=2, gpu_types=(), n_nodes=1, n_racks=1)
    slow = of.slower(Odd(), 4.0)
    assert slow.work == 7.0
    assert slow.speed(gang, 0.0) == Speed(1.0, 3.0)


def test_estimates_are_the_truth_with_an_error_of_the_given_spread():
    jobs = [job(float(i), work=100.0) for i in range(4000)]
    assert {j.spec.expected_run_s for j in of.with_estimates(jobs)} == {100.0}

    estimates = np.array(
        [j.spec.expected_run_s for j in of.with_estimates(jobs, spread=0.5, seed=3)]
    )
    assert estimates.mean() == pytest.approx(100.0, rel=0.04)
    assert estimates.std() / estimates.mean() == pytest.approx(0.5, rel=0.1)


def test_services_and_unknown_speeds_get_no_estimate():
    service = job(0.0, work=FOREVER)
    on_fast = replace(job(0.0), behaviour=Steady(work=100.0, speeds=(("A", 1.0), ("B", 4.0))))
    first, second = of.with_estimates([service, on_fast])
    assert first == service
    assert second.spec.expected_run_s == 25.0


def test_traces_merge_by_arrival_and_queues_can_be_changed():
    both = of.merged(JOBS[::2], JOBS[1::2])
    assert times(both) == times(JOBS)
    assert {j.spec.queue for j in of.in_queues(JOBS, lambda _: "one")} == {"one"}


def test_functions_compose():
    jobs = of.head(of.starting_at(of.with_load(of.sampled(JOBS, 0.5, seed=1), 2), 0), 5)
    at_s = times(jobs)
    assert at_s[0] == 0
    assert at_s == sorted(at_s)
    assert all(math.isfinite(t) for t in at_s)
