"""Space sharing: a pair by hand, every job's own limits, cvxpy job by job, pairs by price."""

import cvxpy as cp
import numpy as np
import pytest
from shares_testing import optimum

from policies.linear_program import Status
from policies.max_min_fairness import max_min_shares
from policies.pair_water_filling import water_filling_pair_shares
from policies.shares import equal_share
from policies.space_sharing import (
    PairShares,
    Profiles,
    max_min_pair_shares,
    min_makespan_pair_shares,
)


def random_profiles(seed: int, n_profiles: int = 4, n_types: int = 2) -> Profiles:
    draw = np.random.default_rng(seed)
    alone = np.exp(draw.normal(0, 0.7, (n_profiles, n_types)))
    gpus = draw.choice([1.0, 2.0], n_profiles)
    beside = alone[:, None, :] * draw.uniform(0.2, 0.95, (n_profiles, n_profiles, n_types))
    beside[draw.random((n_profiles, n_profiles)) < 0.2] = 0.0
    return Profiles(gpus=gpus, alone=alone, beside=beside)


def per_job(shares: PairShares, n_jobs: int, values_first, values_second) -> np.ndarray:
    first = np.bincount(shares.first, shares.fraction * values_first, n_jobs)
    return first + np.bincount(shares.second, shares.fraction * values_second, n_jobs)


def levels(profiles: Profiles, profile, weights, capacity, shares: PairShares) -> np.ndarray:
    p, q, k = profile[shares.first], profile[shares.second], shares.gpu_type
    got = (profiles.alone[profile] * shares.alone.fractions).sum(axis=1)
    got += per_job(shares, len(profile), profiles.beside[p, q, k], profiles.beside[q, p, k])
    gpus = profiles.gpus[profile]
    return gpus * got / (weights * (profiles.alone[profile] @ equal_share(gpus, capacity)))


def assert_within_limits(profiles: Profiles, profile, capacity, shares: PairShares) -> None:
    assert (shares.first != shares.second).all()
    assert (shares.fraction > 0).all()
    time = shares.alone.fractions.sum(axis=1) + per_job(shares, len(profile), 1.0, 1.0)
    assert (time <= 1 + 1e-7).all()
    used = profiles.gpus[profile] @ shares.alone.fractions
    gpus = profiles.gpus[profile][shares.first]
    used += np.bincount(shares.gpu_type, shares.fraction * gpus, len(capacity))
    assert (used <= capacity * (1 + 1e-7)).all()


def by_cvxpy(profiles: Profiles, profile, weights, capacity) -> float:
    """Maximise the level over single jobs and all pairs of jobs of as many GPUs."""
    levels, limits = program(profiles, profile, weights, capacity)
    return optimum(cp.Maximize(cp.min(levels)), limits)


def lexicographic(profiles: Profiles, profile, weights, capacity) -> np.ndarray:
    """Raise the least level, keep whoever cannot have more by itself, and raise the others."""
    levels, limits = program(profiles, profile, weights, capacity)
    n_jobs = len(profile)
    frozen = np.full(n_jobs, np.nan)
    while np.isnan(frozen).any():
        rising = np.flatnonzero(np.isnan(frozen))
        kept = [levels[i] >= frozen[i] - 1e-7 for i in np.flatnonzero(~np.isnan(frozen))]
        t = optimum(cp.Maximize(cp.min(levels[rising])), [*limits, *kept])
        for i in rising:
            among = [levels[j] >= t - 1e-7 for j in rising]
            if optimum(cp.Maximize(levels[i]), [*limits, *kept, *among]) < t + 1e-4:
                frozen[i] = t
    return frozen


def program(profiles: Profiles, profile, weights, capacity):
    """Return the level of each job, and the limits, over single jobs and all pairs."""
    n_jobs, n_types = len(profile), len(capacity)
    gpus, speeds = profiles.gpus[profile], profiles.alone[profile]
    pairs = [(i, j) for i in range(n_jobs) for j in range(i) if gpus[i] == gpus[j]]
    x = cp.Variable((n_jobs, n_types), nonneg=True)
    z = cp.Variable((max(len(pairs), 1), n_types), nonneg=True)
    got = [speeds[i] @ x[i] for i in range(n_jobs)]
    time = [cp.sum(x[i]) for i in range(n_jobs)]
    used = gpus @ x
    for row, (i, j) in enumerate(pairs):
        got[i] += profiles.beside[profile[i], profile[j]] @ z[row]
        got[j] += profiles.beside[profile[j], profile[i]] @ z[row]
        time[i] += cp.sum(z[row])
        time[j] += cp.sum(z[row])
        used += gpus[i] * z[row]
    alone = speeds @ equal_share(gpus, capacity)
    scale = gpus / (weights * alone)
    reached = cp.hstack([scale[i] * got[i] for i in range(n_jobs)])
    return reached, [cp.hstack(time) <= 1, used <= capacity]


def test_two_jobs_that_hardly_disturb_each_other_share_the_gpu():
    profiles = Profiles(
        gpus=np.ones(2),
        alone=np.array([[2.0], [4.0]]),
        beside=np.array([[[0.0], [1.8]], [[3.6], [0.0]]]),
    )
    shares = max_min_pair_shares(
        profiles, np.array([0, 1]), weights=np.ones(2), capacity=np.ones(1)
    )
    assert shares.alone.value == pytest.approx(0.9 / 0.5)
    assert (shares.first, shares.second) == (0, 1)
    assert shares.fraction == pytest.approx([1.0])


def test_jobs_that_ruin_each_other_take_turns():
    profiles = Profiles(gpus=np.ones(1), alone=np.array([[2.0]]), beside=np.array([[[0.9]]]))
    shares = max_min_pair_shares(
        profiles, np.zeros(2, int), weights=np.ones(2), capacity=np.ones(1)
    )
    assert len(shares.first) == 0
    np.testing.assert_allclose(shares.alone.fractions, 0.5)


def test_three_of_a_kind_share_in_a_ring():
    profiles = Profiles(gpus=np.ones(1), alone=np.array([[1.0]]), beside=np.array([[[0.8]]]))
    shares = max_min_pair_shares(
        profiles, np.zeros(3, int), weights=np.ones(3), capacity=np.ones(1)
    )
    assert shares.alone.value == pytest.approx(2 / 3 * 0.8 * 3)
    assert_within_limits(profiles, np.zeros(3, int), np.ones(1), shares)
    assert len(shares.first) == 3


@pytest.mark.parametrize("seed", range(8))
def test_cvxpy_finds_the_same_optimum_job_by_job(seed):
    profiles = random_profiles(seed)
    draw = np.random.default_rng(seed)
    profile = draw.integers(0, 4, 9)
    weights = draw.choice([1.0, 2.0], 9)
    capacity = draw.uniform(0.5, 2.5, 2)
    shares = max_min_pair_shares(profiles, profile, weights=weights, capacity=capacity)
    expected = by_cvxpy(profiles, profile, weights, capacity)
    assert shares.alone.value == pytest.approx(expected, rel=1e-6)
    assert_within_limits(profiles, profile, capacity, shares)
    reached = levels(profiles, profile, weights, capacity, shares)
    assert reached.min() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_never_make_the_least_favoured_worse_off(seed):
    profiles = random_profiles(seed, n_profiles=8)
    profile = np.random.default_rng(seed).integers(0, 8, 30)
    weights, capacity = np.ones(30), np.array([4.0, 6.0])
    single = max_min_shares(
        profiles.alone[profile], profiles.gpus[profile], weights=weights, capacity=capacity
    )
    pair = max_min_pair_shares(profiles, profile, weights=weights, capacity=capacity)
    assert pair.alone.value >= single.value * (1 - 1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_that_come_in_by_price_reach_the_optimum_of_all_pairs(seed):
    profiles = random_profiles(seed, n_profiles=6)
    draw = np.random.default_rng(seed)
    profile, weights = draw.integers(0, 6, 40), draw.uniform(0.5, 2.0, 40)
    ask = {"weights": weights, "capacity": np.array([4.0, 6.0])}
    at_once = max_min_pair_shares(profiles, profile, **ask)
    by_price = max_min_pair_shares(profiles, profile, at_once=20, **ask)
    assert by_price.alone.value == pytest.approx(at_once.alone.value, rel=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_the_makespan_with_pairs_is_a_level_of_steps(seed):
    """Max-min with weight steps * gpus / equal speed is the same program, by definition."""
    profiles = random_profiles(seed)
    draw = np.random.default_rng(seed)
    profile, steps = draw.integers(0, 4, 12), draw.uniform(10, 100, 12)
    capacity = draw.uniform(0.5, 2.5, 2)
    gpus = profiles.gpus[profile]
    alone = profiles.alone[profile] @ equal_share(gpus, capacity)
    level = max_min_pair_shares(
        profiles, profile, weights=steps * gpus / alone, capacity=capacity
    )
    makespan = min_makespan_pair_shares(
        profiles, profile, remaining_steps=steps, capacity=capacity
    )
    assert makespan.alone.value == pytest.approx(1 / level.alone.value)
    assert_within_limits(profiles, profile, capacity, makespan)
    p, q, k = profile[makespan.first], profile[makespan.second], makespan.gpu_type
    got = (profiles.alone[profile] * makespan.alone.fractions).sum(axis=1)
    got += per_job(makespan, 12, profiles.beside[p, q, k], profiles.beside[q, p, k])
    assert (steps / got).max() == pytest.approx(makespan.alone.value, rel=1e-6)


def test_nobody_to_pair():
    profiles = random_profiles(0)
    nobody = np.zeros(0, int)
    shares = max_min_pair_shares(profiles, nobody, weights=np.zeros(0), capacity=np.ones(2))
    assert shares.alone.status is Status.OPTIMAL
    assert shares.alone.fractions.shape == (0, 2)


def test_who_runs_nowhere_holds_no_pair_back():
    profiles = Profiles(
        gpus=np.ones(3),
        alone=np.array([[2.0], [4.0], [0.0]]),
        beside=np.array([[[0.0], [1.8], [0.0]], [[3.6], [0.0], [0.0]], [[0.0], [0.0], [0.0]]]),
    )
    shares = max_min_pair_shares(
        profiles, np.arange(3), weights=np.ones(3), capacity=np.ones(1)
    )
    assert shares.alone.value == pytest.approx(0.9 * 3)


def test_out_of_time_jobs_stay_alone():
    profiles = random_profiles(0, n_profiles=60, n_types=4)
    profile = np.random.default_rng(0).integers(0, 60, 2_000)
    shares = max_min_pair_shares(
        profiles, profile, weights=np.ones(2_000), capacity=np.full(4, 50.0), time_limit_s=1e-9
    )
    assert shares.alone.status is Status.LIMIT
    assert len(shares.first) == 0
    assert_within_limits(profiles, profile, np.full(4, 50.0), shares)


@pytest.mark.parametrize("seed", range(6))
def test_water_filling_with_pairs_is_lexicographic(seed):
    profiles = random_profiles(seed)
    draw = np.random.default_rng(seed)
    profile = draw.integers(0, 4, 5)
    weights = draw.choice([1.0, 2.0], 5)
    capacity = draw.uniform(0.5, 2.5, 2)
    shares = water_filling_pair_shares(profiles, profile, weights=weights, capacity=capacity)
    expected = lexicographic(profiles, profile, weights, capacity)
    assert shares.alone.value == pytest.approx(expected.min(), rel=1e-5)
    assert_within_limits(profiles, profile, capacity, shares)
    reached = levels(profiles, profile, weights, capacity, shares)
    np.testing.assert_allclose(np.sort(reached), np.sort(expected), rtol=2e-4)


def test_who_is_held_back_by_nobody_rises_beyond_those_who_share():
    # The pair has the first type; the third job alone can use the second.
    profiles = Profiles(
        gpus=np.ones(2),
        alone=np.array([[1.0, 0.0], [0.0, 1.0]]),
        beside=np.array([[[0.8, 0.0]]]),
    )
    job_of = np.array([0, 0, 1])
    about = {"weights": np.ones(3), "capacity": np.ones(2)}
    shares = water_filling_pair_shares(profiles, job_of, **about)
    assert shares.fraction.sum() == pytest.approx(1.0)
    assert shares.alone.fractions[2] == pytest.approx([0.0, 1.0])
