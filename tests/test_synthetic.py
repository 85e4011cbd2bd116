"""Made-up workloads: with the statistics of real ones, and the same for the same seed."""

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobPhase
from simulator.presets import PRESETS, preset
from simulator.reproduction.statistics import PUBLISHED, compare, statistics
from simulator.samples import SAMPLE, sample_jobs
from simulator.synthetic import (
    Ending,
    Workload,
    generate,
    gpu_s_by_ending,
    mean_gpu_s,
    scaled_to,
)
from simulator.traces import read_trace
from simulator.traces.own import encode_job

DAY_S = 86_400.0
STEADY = Workload(
    name="steady",
    n_gpus=10,
    jobs_per_day=864.0,
    sizes=((1, 1.0),),
    endings=(Ending(phase=JobPhase.SUCCEEDED, share=1.0, median_s=100.0),),
    spread=1.0,
    max_run_s=1e9,
)


def test_presets_have_the_published_statistics_within_five_percent():
    rows = list(compare(seed=42))
    assert {row.preset for row in rows} == {"philly", "helios", "pai", "seren", "kalos"}
    assert len(rows) == 4 * 10 + 4
    far = [row for row in rows if not row.deviation < 0.05]
    assert far == []


def test_equal_seeds_give_equal_bytes_in_any_process():
    def digest(seed):
        jobs = generate(preset("seren"), seed=seed, n_jobs=300)
        return hashlib.sha256(b"\n".join(map(encode_job, jobs))).hexdigest()

    program = (
        "import hashlib\n"
        "from simulator.presets import preset\n"
        "from simulator.synthetic import generate\n"
        "from simulator.traces.own import encode_job\n"
        "jobs = generate(preset('seren'), seed=5, n_jobs=300)\n"
        "print(hashlib.sha256(b'\\n'.join(map(encode_job, jobs))).hexdigest())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == digest(5) != digest(6)


def test_arrivals_are_poisson():
    gaps = np.diff([job.at_s for job in generate(STEADY, seed=2, n_jobs=20_000)])
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(100.0, rel=0.03)
    assert gaps.std() == pytest.approx(100.0, rel=0.04)  # as of an exponential


def test_arrivals_follow_the_hours_and_the_days():
    weekly = (1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5)
    hourly = (0.5,) * 12 + (1.5,) * 12
    workload = replace(STEADY, weekly=weekly, hourly=hourly, jobs_per_day=1000.0)
    at_s = np.array([job.at_s for job in generate(workload, seed=3, until_s=14 * DAY_S)])
    assert len(at_s) == pytest.approx(14 * 1000, rel=0.03)
    assert np.mean(at_s % DAY_S > DAY_S / 2) == pytest.approx(0.75, abs=0.015)
    assert np.mean((at_s // DAY_S) % 7 >= 5) == pytest.approx(1 / 6, abs=0.015)


def test_run_times_are_the_lognormal_that_was_asked_for():
    workload = replace(STEADY, max_run_s=1000.0)
    run_s = np.array([job.behaviour.work for job in generate(workload, seed=4, n_jobs=8192)])
    assert run_s.max() <= 1000.0
    assert run_s.mean() == pytest.approx(mean_gpu_s(workload), rel=0.01)
    logs = np.log([job.behaviour.work for job in generate(STEADY, seed=4, n_jobs=8192)])
    assert logs.mean() == pytest.approx(math.log(100), abs=0.015)
    assert logs.std() == pytest.approx(1.0, abs=0.015)


def test_a_short_trace_has_the_statistics_of_a_long_one():
    short = statistics(generate(PRESETS["pai"], seed=5, n_jobs=1000))
    assert short.median_run_s == pytest.approx(PUBLISHED["pai"].median_run_s, rel=0.05)
    assert short.mean_gpus == pytest.approx(PUBLISHED["pai"].mean_gpus, rel=0.05)


def test_a_workload_can_be_scaled_to_a_small_cluster():
    small = scaled_to(PRESETS["kalos"], 64)
    assert max(size for size, _ in small.sizes) == 32
    load = small.jobs_per_day * mean_gpu_s(small) / small.n_gpus
    published = PRESETS["kalos"].jobs_per_day * mean_gpu_s(PRESETS["kalos"]) / 2416
    assert load == pytest.approx(published)
    assert all(job.spec.total_gpu_milli <= 32_000 for job in generate(small, seed=1, n_jobs=99))


def test_generating_streams():
    endless = generate(PRESETS["philly"], seed=1, until_s=1e12)
    assert len(list(islice(endless, 10))) == 10


def test_endings_share_the_gpu_time():
    parts = gpu_s_by_ending(PRESETS["helios"])
    assert sum(parts.values()) == pytest.approx(mean_gpu_s(PRESETS["helios"]))
    assert parts[JobPhase.SUCCEEDED] > parts[JobPhase.CANCELLED] > parts[JobPhase.FAILED]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"spread": 0.0}, "spread"),
        ({"jobs_per_day": 0.0}, "jobs_per_day"),
        ({"hourly": (1.0,)}, "hourly"),
    ],
)
def test_a_workload_that_cannot_be_is_refused_by_field(change, field):
    with pytest.raises(InvalidInput, match=f"^{field}: "):
        next(generate(replace(STEADY, **change), seed=0, n_jobs=1))
    with pytest.raises(InvalidInput, match=r"^n_jobs: "):
        next(generate(STEADY, seed=0))
    with pytest.raises(InvalidInput, match="'x' is none of philly"):
        preset("x")


def test_the_sample_that_ships_is_what_its_recipe_makes():
    made, stored = list(sample_jobs()), list(read_trace(SAMPLE))
    assert [job.key for job in stored] == [job.key for job in made]
    assert [job.spec.roles for job in stored] == [job.spec.roles for job in made]
    assert [job.at_s for job in stored] == pytest.approx([job.at_s for job in made])
    assert [job.behaviour.work for job in stored] == pytest.approx(
        [job.behaviour.work for job in made]
    )
