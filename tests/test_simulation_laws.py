"""Laws that every simulation obeys: of conservation, of queues, and of repetition."""

import hashlib
import heapq
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_testing import gpu_s, run_of, trace_job

from scheduler.core.model import JobKind, JobPhase
from simulator.cluster import Pool, PoolChange, SimulatedCluster, uniform_cluster
from simulator.failures import Failures
from simulator.run import Run
from simulator.workload import NodeOutage, Steady, TraceJob


def random_jobs(seed: int, n_jobs: int) -> list[TraceJob]:
    """Return jobs of all kinds: gangs, fractions, services, some that fail or fit nowhere."""
    draw = random.Random(seed)
    jobs, at_s = [], 0.0
    for number in range(n_jobs):
        at_s += draw.choice([0.0, 1.0, 30.0, 200.0])
        tasks = draw.choice([1, 1, 1, 2, 4])
        work_s = draw.choice([0.0, 10.0, 100.0, 1000.0])
        is_service = draw.random() < 0.1
        spec = {
            "priority": draw.choice([0, 0, 1]),
            "kind": JobKind.INFERENCE if is_service else JobKind.TRAINING,
            "checkpoint_interval_s": draw.choice([0, 25, 60]),
            "expected_run_s": draw.choice([0, work_s, 2 * work_s]),
            "time_limit_s": draw.choice([0, 0, 0, 300]),
            "max_retries": draw.choice([0, 1]),
            "grace_s": draw.choice([0, 30]),
        }
        ends_as = draw.choice([JobPhase.SUCCEEDED] * 4 + [JobPhase.FAILED, JobPhase.CANCELLED])
        jobs.append(
            trace_job(
                f"job-{number}",
                at_s=at_s,
                tasks=tasks,
                gpus=draw.choice([0, 0.5, 1, 2, 8]),
                behaviour=Steady(
                    work=work_s, n_tasks=tasks, across_racks=0.7, beside_others=0.8
                ),
                spec=spec,
                startup_s=draw.choice([0, 5]),
                restore_s=draw.choice([0, 3]),
                save_s=draw.choice([math.inf, 0, 10]),
                ends_as=JobPhase.SUCCEEDED if is_service else ends_as,
            )
        )
    return jobs


def digest(run: Run) -> str:
    """Return a hash of everything that a run left behind."""
    table = run.jobs
    text = hashlib.sha256()
    for name in table.__slots__:
        column = getattr(table, name)
        text.update(repr(column).encode() if isinstance(column, list) else column.tobytes())
    for name in ("at_s", "n_pending", "n_running"):
        text.update(getattr(run.timeline, name).tobytes())
    text.update(repr((run.pools, sorted(run.counters.items()), run.until_s)).encode())
    return text.hexdigest()


def troubled_run(seed: int, policy: str = "priority") -> Run:
    """Return a run in which everything happens that may happen."""
    like = uniform_cluster(4, nodes_per_rack=2, price_usd_per_h=36.0).pools[0]
    spot = uniform_cluster(1, gpu_type="T4").pools[0]
    pool = Pool(
        name=like.name,
        nodes=like.nodes,
        nodes_per_rack=2,
        launch_s=50,
        changes=(PoolChange(at_s=300, count=6), PoolChange(at_s=2500, count=3)),
    )
    cluster = SimulatedCluster(pools=(pool, Pool(name="spot", nodes=spot.nodes, is_spot=True)))
    return run_of(
        random_jobs(seed, 40),
        cluster=cluster,
        policy=policy,
        seed=seed,
        outages=[NodeOutage(at_s=400, node="a100-0", until_s=900)],
        stop_s=2,
        failures=Failures(
            gpu_every_s=200_000,
            node_every_s=20_000,
            rack_every_s=40_000,
            gpu_repair_s=300,
            node_repair_s=300,
            rack_repair_s=300,
            spot_every_s=2000,
            spot_notice_s=20,
            slow_every_s=5000,
            slow_lasts_s=500,
        ),
    )


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000), policy=st.sampled_from(["priority", "max_min_fairness"]))
def test_gpu_time_is_conserved(seed: int, policy: str) -> None:
    run = troubled_run(seed, policy)
    went = gpu_s(run)
    of_jobs = run.jobs
    parts = of_jobs.useful_gpu_s + of_jobs.lost_gpu_s + of_jobs.overhead_gpu_s
    np.testing.assert_allclose(parts, of_jobs.gpu_s)
    assert went["of_jobs"] == pytest.approx(went["held"])
    assert went["held"] <= went["up"] * (1 + 1e-12)
    assert (parts >= 0).all()
    ended = [JobPhase(phase).is_final for phase in of_jobs.phase]
    assert (np.isfinite(of_jobs.ended_at_s) == ended).all()
    # Work is what was asked for, whatever was lost on the way.
    for row, phase in enumerate(of_jobs.phase):
        if phase == "succeeded" and of_jobs.kind[row] == "training":
            assert of_jobs.useful_gpu_s[row] >= 0.999 * of_jobs.n_gpus[row] * _work_s(run, row)
    held = run.timeline.gpus_held
    for name, up in run.timeline.gpus_up.items():
        assert (held[name] <= up + 1e-9).all()


def _work_s(run: Run, row: int) -> float:
    (job,) = (j for j in random_jobs(run.seed, 40) if j.key == run.jobs.key[row])
    return job.behaviour.work


def test_a_million_years_of_trouble_do_not_hang_a_job_that_cannot_finish() -> None:
    # It fails every hour on average, needs a week in one go, and saves nothing.
    job = trace_job("job", tasks=4, gpus=8, work_s=7 * 86_400)
    run = run_of([job], nodes=4, failures=Failures(node_every_s=4 * 3600, node_repair_s=60))
    assert run.jobs.phase == ["cancelled"]
    assert run.counters["given_up_jobs"] == 1


def poisson_jobs(n_jobs: int, *, rate_per_s: float, mean_s: float, seed: int) -> list[TraceJob]:
    draw = random.Random(seed)
    jobs, at_s = [], 0.0
    for number in range(n_jobs):
        at_s += draw.expovariate(rate_per_s)
        work_s = draw.expovariate(1 / mean_s)
        jobs.append(trace_job(f"job-{number}", at_s=at_s, work_s=work_s))
    return jobs


def erlang_c(servers: int, load: float) -> float:
    """Return the probability that a customer waits in M/M/c, by Erlang's recursion."""
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = load * blocked / (k + load * blocked)
    return servers * blocked / (servers - load * (1 - blocked))


@pytest.mark.parametrize("seed", range(5))
def test_every_wait_is_that_of_a_line_before_eight_servers(seed: int) -> None:
    jobs = poisson_jobs(600, rate_per_s=0.064, mean_s=100.0, seed=seed)
    free_at_s = [0.0] * 8
    expected_s = []
    for job in jobs:
        start_s = max(heapq.heappop(free_at_s), job.at_s)
        expected_s.append(start_s - job.at_s)
        heapq.heappush(free_at_s, start_s + job.behaviour.work)
    np.testing.assert_allclose(run_of(jobs).jobs.waited_s, expected_s, atol=1e-6)


@pytest.mark.slow
def test_waits_are_those_of_a_queue_with_eight_servers() -> None:
    # M/M/8: eight GPUs of a node, exponential times, first come first served. Waits of one
    # busy time go together, and all begins with nobody there: it takes many to see the mean.
    n_jobs = 30_000
    mean_s, load = 100.0, 6.4
    expected_s = erlang_c(8, load) * mean_s / (8 - load)
    means = []
    for seed in range(5):
        jobs = poisson_jobs(n_jobs, rate_per_s=load / mean_s, mean_s=mean_s, seed=seed)
        means.append(float(np.mean(run_of(jobs).jobs.waited_s[n_jobs // 10 :])))
    half_width_s = 2.776 * np.std(means, ddof=1) / math.sqrt(len(means))  # Student, 95 %
    assert abs(np.mean(means) - expected_s) <= half_width_s
    assert half_width_s < expected_s  # or the test would say nothing


def test_what_is_in_the_system_is_what_comes_times_how_long_it_stays() -> None:
    run = run_of(poisson_jobs(300, rate_per_s=0.07, mean_s=100, seed=3))
    stays_s = run.jobs.ended_at_s - run.jobs.submitted_at_s
    at_s, n = run.timeline.at_s, run.timeline.n_pending + run.timeline.n_running
    span_s = run.until_s - run.from_s
    in_system = float(np.sum(n[:-1] * np.diff(at_s))) / span_s
    # Little's law holds exactly on a run that begins and ends empty.
    assert in_system == pytest.approx(len(stays_s) / span_s * np.mean(stays_s))


SCRIPT = """
from test_simulation_laws import digest, troubled_run
print(digest(troubled_run(11)), digest(troubled_run(11, "max_min_fairness")))
"""


def test_a_seed_gives_the_same_bytes_in_every_process() -> None:
    folder = Path(__file__).parent
    path = f"{folder}:{folder.parent}"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={"PYTHONPATH": path, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    here = f"{digest(troubled_run(11))} {digest(troubled_run(11, 'max_min_fairness'))}\n"
    assert outputs == [here, here]


def test_hopeless_jobs_end_a_run_also_when_nodes_fail_for_ever() -> None:
    run = run_of(
        [trace_job("huge", tasks=9, gpus=8), trace_job("job", work_s=10)],
        nodes=3,
        failures=Failures(node_every_s=3000, node_repair_s=3600),
    )
    assert run.jobs.phase == ["pending", "succeeded"]


def test_another_seed_gives_other_failures() -> None:
    jobs = random_jobs(5, 30)
    failures = Failures(node_every_s=9000, node_repair_s=60)
    first, second = (run_of(jobs, nodes=4, seed=seed, failures=failures) for seed in (1, 2))
    assert digest(first) != digest(second)
