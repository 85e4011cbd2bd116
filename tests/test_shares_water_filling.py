"""Water filling: the lexicographic optimum, against one program per job and round."""

from dataclasses import replace

import numpy as np
import pytest
from shares_testing import Cluster, assert_within_limits, equal_speeds, random_cluster

from policies.linear_program import LinearProgram, Status
from policies.max_min_fairness import max_min_shares, max_min_shares_blind
from policies.shares import Shares, earned_by_jobs, jobs_within, types_within
from policies.water_filling import water_filling_shares, water_filling_shares_blind


def solve(cluster: Cluster) -> Shares:
    return water_filling_shares(
        cluster.throughputs,
        cluster.gpus,
        weights=cluster.weights,
        capacity=cluster.capacity,
    )


def levels(cluster: Cluster, fractions: np.ndarray) -> np.ndarray:
    got = (cluster.throughputs * fractions).sum(axis=1)
    return cluster.gpus * got / (cluster.weights * equal_speeds(cluster))


def one_by_one(cluster: Cluster, scale: np.ndarray | None = None) -> np.ndarray:
    """Freeze each job that cannot do better while the others keep the least level."""
    n_jobs, n_types = cluster.throughputs.shape
    if scale is None:
        scale = cluster.gpus / (cluster.weights * equal_speeds(cluster))
    earned = earned_by_jobs(cluster.throughputs * scale[:, None])
    frozen: dict[int, float] = {}

    def program(open_jobs: list[int]) -> LinearProgram:
        lp = LinearProgram(x=n_jobs * n_types, t=1)
        lp.at_most({"x": jobs_within(n_jobs, n_types)}, 1.0)
        lp.at_most({"x": types_within(cluster.gpus, n_types)}, cluster.capacity)
        kept = sorted(frozen)
        if kept:
            lp.at_least({"x": earned[kept]}, [frozen[j] * (1 - 1e-9) for j in kept])
        lp.at_least({"x": earned[open_jobs], "t": -np.ones((len(open_jobs), 1))}, 0.0)
        return lp

    while len(frozen) < n_jobs:
        open_jobs = [j for j in range(n_jobs) if j not in frozen]
        least = program(open_jobs).maximize("t").value
        for job in open_jobs:
            lp = program(open_jobs)
            lp.bound("t", lower=least * (1 - 1e-9))
            best = lp.maximize({"x": earned[[job]].toarray()[0]}).value
            if best <= least * (1 + 1e-6):
                frozen[job] = least
    return np.array([frozen[j] for j in range(n_jobs)])


@pytest.mark.parametrize("seed", range(10))
def test_blind_to_speeds_each_level_is_time_wherever_a_job_can_run(seed):
    drawn = random_cluster(seed, load=1.5)
    cluster = replace(drawn, throughputs=(drawn.throughputs > 0.4).astype(float))
    runs = cluster.throughputs.any(axis=1)
    cluster = replace(
        cluster,
        throughputs=cluster.throughputs[runs],
        gpus=cluster.gpus[runs],
        weights=cluster.weights[runs],
    )
    about = {"weights": cluster.weights, "capacity": cluster.capacity}
    shares = water_filling_shares_blind(cluster.throughputs, cluster.gpus, **about)
    assert_within_limits(cluster, shares.fractions)
    scale = cluster.gpus / cluster.weights
    got = scale * (cluster.throughputs * shares.fractions).sum(axis=1)
    assert got == pytest.approx(one_by_one(cluster, scale), rel=1e-5)
    least = max_min_shares_blind(cluster.throughputs, cluster.gpus, **about)
    assert shares.value == pytest.approx(least.value, rel=1e-6)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("load", [0.5, 1.5, 6.0])
def test_each_level_is_as_one_program_per_job_finds_it(seed, load):
    n_jobs, n_types = [(8, 3), (5, 2), (7, 5), (4, 1)][seed % 4]
    cluster = random_cluster(seed, n_jobs=n_jobs, n_types=n_types, load=load)
    shares = solve(cluster)
    assert shares.status is Status.OPTIMAL
    np.testing.assert_allclose(
        levels(cluster, shares.fractions), one_by_one(cluster), rtol=1e-6
    )
    assert_within_limits(cluster, shares.fractions)


def test_who_cannot_use_the_scarce_type_is_not_held_back_by_it():
    # Two jobs fight for type 0; the third has type 1 for itself, three GPUs for one job.
    cluster = Cluster(
        throughputs=np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
        gpus=np.ones(3),
        weights=np.ones(3),
        capacity=np.array([1.0, 3.0]),
    )
    np.testing.assert_allclose(
        solve(cluster).fractions, [[0.5, 0], [0.5, 0], [0, 1]], atol=1e-6
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_least_level_is_that_of_max_min_fairness(seed):
    cluster = random_cluster(seed, n_jobs=40, load=3.0)
    least = max_min_shares(
        cluster.throughputs,
        cluster.gpus,
        weights=cluster.weights,
        capacity=cluster.capacity,
    ).value
    shares = solve(cluster)
    assert shares.value == pytest.approx(least, rel=1e-8)
    assert levels(cluster, shares.fractions).min() == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_nobody_of_equal_size_and_weight_envies_another(seed):
    """On one type, what a job envies is a larger fraction of it."""
    cluster = random_cluster(seed, n_types=1, gpu_counts=(2,), load=3.0)
    cluster = replace(cluster, weights=np.ones(12))
    fractions = solve(cluster).fractions[:, 0]
    assert np.ptp(fractions) < 1e-6


def test_full_speed_for_everybody_when_there_is_room():
    cluster = random_cluster(2, load=0.05)
    got = (cluster.throughputs * solve(cluster).fractions).sum(axis=1)
    np.testing.assert_allclose(got, cluster.throughputs.max(axis=1), rtol=1e-6)


def test_nobody():
    shares = water_filling_shares(
        np.zeros((0, 2)), np.zeros(0), weights=np.zeros(0), capacity=np.ones(2)
    )
    assert shares.fractions.shape == (0, 2)
