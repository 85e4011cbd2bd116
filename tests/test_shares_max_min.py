"""Max-min fairness: closed forms, enumeration, invariance, the paper's properties, cvxpy."""

import itertools
from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from shares_testing import (
    Cluster,
    assert_within_limits,
    equal_speeds,
    fractions_of,
    optimum,
    random_cluster,
    speeds,
)

from policies.level_program import largest_level
from policies.linear_program import LinearProgram, Status
from policies.max_min_fairness import max_min_shares, max_min_shares_blind
from policies.shares import Shares, earned_by_jobs, jobs_within, types_within

SEEDS = range(8)


def solve(cluster: Cluster) -> Shares:
    return max_min_shares(
        cluster.throughputs,
        cluster.gpus,
        weights=cluster.weights,
        capacity=cluster.capacity,
    )


def levels(cluster: Cluster, fractions: np.ndarray) -> np.ndarray:
    got = (cluster.throughputs * fractions).sum(axis=1)
    return cluster.gpus * got / (cluster.weights * equal_speeds(cluster))


def two_jobs(fast: float, slow: float) -> Cluster:
    """Job 0 is `fast` times quicker on type 0 and job 1 `slow` times; one GPU of each type."""
    return Cluster(
        throughputs=np.array([[fast, 1.0], [slow, 1.0]]),
        gpus=np.ones(2),
        weights=np.ones(2),
        capacity=np.ones(2),
    )


def test_jobs_that_like_different_types_each_get_their_own():
    shares = solve(two_jobs(2.0, 0.5))
    np.testing.assert_allclose(shares.fractions, np.eye(2), atol=1e-6)
    # Each equal share is half of both types: 1.5 for job 0, 0.75 for job 1.
    assert shares.value == pytest.approx(2 / 1.5)


def test_who_likes_the_fast_type_less_gets_less_of_it():
    # With x of type 0 for job 0, its level is (4x + (1 - x)) / 2.5 and that of job 1, of weight
    # 2, is (2 (1 - x) + x) / (2 * 1.5). They are equal at x = 4/23.
    shares = solve(replace(two_jobs(4.0, 2.0), weights=np.array([1.0, 2.0])))
    assert shares.value == pytest.approx(14 / 23)
    np.testing.assert_allclose(
        shares.fractions, [[4 / 23, 19 / 23], [19 / 23, 4 / 23]], atol=1e-7
    )


def test_without_throughputs_time_is_shared_by_weight():
    cluster = replace(
        two_jobs(5.0, 1.0), weights=np.array([3.0, 1.0]), capacity=np.full(2, 0.5)
    )
    shares = max_min_shares_blind(
        cluster.throughputs, cluster.gpus, weights=cluster.weights, capacity=cluster.capacity
    )
    np.testing.assert_allclose(shares.fractions.sum(axis=1), [0.75, 0.25], atol=1e-7)


def test_no_vertex_of_a_small_program_is_better():
    """Enumerate the optimum by all sets of tight constraints of two jobs on two types."""
    cluster = random_cluster(3, n_jobs=2, n_types=2, load=1.5, gpu_counts=(1, 2))
    scale = cluster.gpus / (cluster.weights * equal_speeds(cluster))
    rows, bounds = [], []
    for job in range(2):
        level = np.zeros(5)
        level[2 * job : 2 * job + 2] = -cluster.throughputs[job] * scale[job]
        level[4] = 1
        time = np.zeros(5)
        time[2 * job : 2 * job + 2] = 1
        rows += [level, time]
        bounds += [0.0, 1.0]
    for kind in range(2):
        room = np.zeros(5)
        room[[kind, 2 + kind]] = cluster.gpus
        rows.append(room)
        bounds.append(cluster.capacity[kind])
    table, bound = np.vstack([*rows, -np.eye(5)[:4]]), np.array([*bounds, 0, 0, 0, 0])
    best = -np.inf
    for tight in itertools.combinations(range(len(table)), 5):
        if abs(np.linalg.det(table[list(tight)])) > 1e-12:
            vertex = np.linalg.solve(table[list(tight)], bound[list(tight)])
            if (table @ vertex <= bound + 1e-9).all():
                best = max(best, vertex[4])
    assert solve(cluster).value == pytest.approx(best, rel=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("load", [0.5, 2.0, 20.0])
def test_cvxpy_finds_the_same_optimum(seed, load):
    cluster = random_cluster(seed, load=load)
    x, limits = fractions_of(cluster)
    scale = cluster.gpus / (cluster.weights * equal_speeds(cluster))
    expected = optimum(cp.Maximize(cp.min(cp.multiply(scale, speeds(cluster, x)))), limits)
    shares = solve(cluster)
    assert shares.status is Status.OPTIMAL
    assert shares.value == pytest.approx(expected, rel=1e-6)
    assert levels(cluster, shares.fractions).min() == pytest.approx(expected, rel=1e-6)
    assert_within_limits(cluster, shares.fractions)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_unit_of_throughput_and_of_weight_does_not_matter(seed):
    cluster = random_cluster(seed)
    value = solve(cluster).value
    units = np.random.default_rng(seed).uniform(0.01, 100.0, (len(cluster.gpus), 1))
    assert solve(
        replace(cluster, throughputs=cluster.throughputs * units)
    ).value == pytest.approx(value, rel=1e-7)
    assert solve(replace(cluster, weights=cluster.weights * 7)).value == pytest.approx(
        value / 7, rel=1e-7
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_jobs_does_not_matter(seed):
    cluster = random_cluster(seed)
    order = np.random.default_rng(seed).permutation(len(cluster.gpus))
    mixed = Cluster(
        throughputs=cluster.throughputs[order],
        gpus=cluster.gpus[order],
        weights=cluster.weights[order],
        capacity=cluster.capacity,
    )
    assert solve(mixed).value == pytest.approx(solve(cluster).value, rel=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_type_may_be_split_in_two(seed):
    cluster = random_cluster(seed)
    halves = np.column_stack([cluster.throughputs, cluster.throughputs[:, 0]])
    capacity = np.append(cluster.capacity, 0.6 * cluster.capacity[0])
    capacity[0] *= 0.4
    split = replace(cluster, throughputs=halves, capacity=capacity)
    assert solve(split).value == pytest.approx(solve(cluster).value, rel=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_of_a_job_get_what_single_jobs_get(seed):
    cluster = random_cluster(seed, n_jobs=5)
    job = np.random.default_rng(seed).integers(0, 5, 60)
    many = Cluster(
        throughputs=cluster.throughputs[job],
        gpus=cluster.gpus[job],
        weights=cluster.weights[job],
        capacity=cluster.capacity * 12,
    )
    together = solve(many)
    unit = 1e-13 * np.arange(60)[:, None]  # nearly equal jobs, each a class of its own
    apart = solve(replace(many, throughputs=many.throughputs * (1 + unit)))
    assert together.value == pytest.approx(apart.value, rel=1e-7)
    assert np.ptp(together.fractions[job == job[0]], axis=0).max() == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_everybody_does_at_least_as_well_as_on_the_equal_share(seed):
    cluster = random_cluster(seed, gpu_counts=(2,))
    cluster = replace(cluster, weights=np.ones(len(cluster.gpus)))
    got = (cluster.throughputs * solve(cluster).fractions).sum(axis=1)
    assert (got >= equal_speeds(cluster) * (1 - 1e-9)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_price_tells_what_one_more_gpu_is_worth(seed):
    cluster = random_cluster(seed)
    # With base and slope fixed, because more GPUs also change the equal share.
    slope = cluster.weights * equal_speeds(cluster) / cluster.gpus
    here = largest_level(
        cluster.throughputs, cluster.gpus, capacity=cluster.capacity, slope=slope
    )
    for kind in range(3):
        step = 1e-5 * cluster.capacity[kind]
        more = cluster.capacity.copy()
        more[kind] += step
        there = largest_level(cluster.throughputs, cluster.gpus, capacity=more, slope=slope)
        gain = (there.level - here.level) / step
        assert gain == pytest.approx(here.prices[kind], rel=1e-3, abs=1e-5)


def test_a_job_that_runs_nowhere_holds_nobody_back():
    cluster = two_jobs(2.0, 0.5)
    lame = Cluster(
        throughputs=np.vstack([cluster.throughputs, [0.0, 0.0]]),
        gpus=np.ones(3),
        weights=np.ones(3),
        capacity=np.ones(2),
    )
    shares = solve(lame)
    np.testing.assert_allclose(shares.fractions, [[1, 0], [0, 1], [0, 0]], atol=1e-6)


def test_nobody_to_share_among():
    shares = max_min_shares(
        np.zeros((0, 2)), np.zeros(0), weights=np.zeros(0), capacity=np.ones(2)
    )
    assert shares.fractions.shape == (0, 2)
    assert shares.value == np.inf


def test_a_type_without_gpus_is_not_used():
    cluster = replace(two_jobs(2.0, 0.5), capacity=np.array([0.0, 1.0]))
    shares = solve(cluster)
    assert (shares.fractions[:, 0] == 0).all()
    np.testing.assert_allclose(shares.fractions[:, 1], [0.5, 0.5], atol=1e-7)


def rough_program(seed: int) -> tuple[Cluster, np.ndarray, np.ndarray]:
    """Draw what is hard to solve: ties, extremes, types not usable, jobs of fixed needs."""
    draw = np.random.default_rng(seed)
    n_jobs, n_types = int(draw.choice([1, 2, 5, 20, 60])), int(draw.choice([1, 2, 3, 6]))
    throughputs = np.exp(draw.normal(0, draw.choice([0.1, 1, 2.5]), (n_jobs, n_types)))
    if draw.random() < 0.5:
        throughputs *= draw.random((n_jobs, n_types)) > 0.4
    if draw.random() < 0.3:
        throughputs = np.round(throughputs)
    throughputs[throughputs.sum(axis=1) == 0, 0] = 1
    gpus = draw.choice([1.0, 2, 4, 8], n_jobs)
    room = draw.uniform(0.1, 2, n_types) * gpus.sum() * draw.choice([0.05, 0.3, 1, 4])
    slope = np.exp(draw.normal(0, 1, n_jobs))
    slope[(draw.random(n_jobs) < 0.3) & (np.arange(n_jobs) > 0)] = 0
    cluster = Cluster(
        throughputs=throughputs,
        gpus=gpus,
        weights=np.ones(n_jobs),
        capacity=np.ceil(room / n_types),
    )
    base = np.where(draw.random(n_jobs) < 0.5, 0.02 * throughputs.max(axis=1), 0.0)
    return cluster, slope, base


@pytest.mark.parametrize("seed", range(60))
def test_rough_level_programs_as_highs_solves_them(seed):
    cluster, slope, base = rough_program(seed)
    n_jobs, n_types = cluster.throughputs.shape
    lp = LinearProgram(x=n_jobs * n_types, t=1)
    lp.bound("t", lower=-np.inf)
    earned = earned_by_jobs(cluster.throughputs)
    lp.at_least({"x": earned, "t": -slope[:, None]}, base)
    lp.at_most({"x": jobs_within(n_jobs, n_types)}, 1.0)
    lp.at_most({"x": types_within(cluster.gpus, n_types)}, cluster.capacity)
    expected = lp.maximize("t")
    level = largest_level(
        cluster.throughputs, cluster.gpus, capacity=cluster.capacity, slope=slope, base=base
    )
    assert level.status is expected.status
    if expected.found:
        assert level.level == pytest.approx(expected.value, rel=1e-7)
        got = (cluster.throughputs * level.fractions).sum(axis=1)
        assert (got >= (base + slope * level.level) * (1 - 1e-6) - 1e-9).all()
        assert_within_limits(cluster, level.fractions)


def test_requirements_beyond_the_cluster_are_told_as_a_status():
    level = largest_level(
        np.ones((3, 1)),
        np.ones(3),
        capacity=np.ones(1),
        slope=np.ones(3),
        base=np.full(3, 0.5),
    )
    assert level.status is Status.OPTIMAL  # by a level below zero: 3 * (0.5 + t) <= 1
    assert level.level == pytest.approx(1 / 3 - 0.5)
    fixed = largest_level(
        np.ones((3, 1)),
        np.ones(3),
        capacity=np.ones(1),
        slope=np.array([1.0, 0.0, 0.0]),
        base=np.array([0.0, 0.9, 0.9]),
    )
    assert fixed.status is Status.INFEASIBLE
