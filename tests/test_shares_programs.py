"""Makespan, finish-time fairness, throughput and cost: closed forms, properties, cvxpy."""

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

from policies.finish_time import finish_time_shares
from policies.linear_program import Status
from policies.makespan import min_makespan_shares
from policies.min_cost import cheapest_shares, most_per_dollar_shares
from policies.throughput import max_throughput_shares

SEEDS = range(6)
PRICE = np.array([2.48, 1.46, 0.45])


def drawn(seed: int, n_jobs: int, low: float, high: float) -> np.ndarray:
    return np.random.default_rng(seed + 100).uniform(low, high, n_jobs)


def one_type(n_jobs: int, capacity: float) -> Cluster:
    return Cluster(
        throughputs=np.ones((n_jobs, 1)),
        gpus=np.ones(n_jobs),
        weights=np.ones(n_jobs),
        capacity=np.array([capacity]),
    )


def got(cluster: Cluster, fractions: np.ndarray) -> np.ndarray:
    return (cluster.throughputs * fractions).sum(axis=1)


# Makespan


def test_on_one_type_the_makespan_is_the_work_over_the_gpus():
    cluster = one_type(3, 1.0)
    steps = np.array([1.0, 2.0, 3.0])
    shares = min_makespan_shares(
        cluster.throughputs, cluster.gpus, remaining_steps=steps, capacity=cluster.capacity
    )
    assert shares.value == pytest.approx(6.0)
    np.testing.assert_allclose(shares.fractions[:, 0], steps / 6, atol=1e-7)
    assert shares.prices == pytest.approx([-6.0])  # 6 / capacity: one more GPU, to first order


def test_the_longest_job_alone_can_be_the_makespan():
    cluster = one_type(3, 3.0)
    shares = min_makespan_shares(
        cluster.throughputs,
        cluster.gpus,
        remaining_steps=np.array([1.0, 2.0, 9.0]),
        capacity=cluster.capacity,
    )
    assert shares.value == pytest.approx(9.0)
    assert shares.prices == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_makespan_as_cvxpy_finds_it(seed):
    cluster = random_cluster(seed)
    steps = drawn(seed, 12, 10.0, 1000.0)
    x, limits = fractions_of(cluster)
    rate = optimum(cp.Maximize(cp.min(cp.multiply(1 / steps, speeds(cluster, x)))), limits)
    shares = min_makespan_shares(
        cluster.throughputs, cluster.gpus, remaining_steps=steps, capacity=cluster.capacity
    )
    assert shares.value == pytest.approx(1 / rate, rel=1e-6)
    assert (steps / got(cluster, shares.fractions)).max() == pytest.approx(1 / rate, rel=1e-6)
    assert_within_limits(cluster, shares.fractions)


# Finish-time fairness


def rho(cluster: Cluster, fractions, elapsed_s, steps) -> float:
    alone_s = elapsed_s + steps / equal_speeds(cluster)
    return float(((elapsed_s + steps / got(cluster, fractions)) / alone_s).max())


def finish(cluster: Cluster, elapsed_s: np.ndarray, steps: np.ndarray):
    return finish_time_shares(
        cluster.throughputs,
        cluster.gpus,
        elapsed_s=elapsed_s,
        remaining_steps=steps,
        capacity=cluster.capacity,
    )


def test_finish_times_are_measured_against_what_is_known_of_the_time_alone():
    cluster = one_type(2, 1.0)
    shares = finish_time_shares(
        cluster.throughputs,
        cluster.gpus,
        elapsed_s=np.zeros(2),
        remaining_steps=np.ones(2),
        capacity=cluster.capacity,
        alone_s=np.array([2.0, 4.0]),
    )
    assert shares.value == pytest.approx(0.75)
    np.testing.assert_allclose(shares.fractions[:, 0], [2 / 3, 1 / 3], atol=1e-6)


def test_a_job_that_is_late_already_is_no_later_than_it_must():
    cluster = one_type(1, 1.0)
    shares = finish_time_shares(
        cluster.throughputs,
        cluster.gpus,
        elapsed_s=np.array([9.0]),
        remaining_steps=np.ones(1),
        capacity=cluster.capacity,
        alone_s=np.array([5.0]),
    )
    assert shares.value == pytest.approx(2.0)


def test_on_one_type_new_jobs_end_as_on_the_equal_share():
    shares = finish(one_type(4, 1.0), np.zeros(4), np.array([1.0, 5.0, 9.0, 9.0]))
    assert shares.value == pytest.approx(1.0)
    np.testing.assert_allclose(shares.fractions[:, 0], 0.25, atol=1e-7)


def test_who_has_waited_gets_less_where_time_lost_weighs_less():
    # Equal share 1/2 and 1 step each: alone (s + 2); equal rho needs 1/x_j = rho (s + 2) - s.
    elapsed_s = np.array([0.0, 8.0])
    shares = finish(one_type(2, 1.0), elapsed_s, np.ones(2))
    assert shares.value == pytest.approx(1.0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("load", [0.5, 2.0, 20.0])
def test_finish_time_fairness_as_cvxpy_finds_it(seed, load):
    cluster = random_cluster(seed, load=load)
    steps = drawn(seed, 12, 10.0, 1000.0)
    elapsed_s = drawn(seed + 1, 12, 0.0, 500.0) * (np.arange(12) % 3 > 0)
    x, limits = fractions_of(cluster)
    alone_s = elapsed_s + steps / equal_speeds(cluster)
    relative = cp.multiply(1 / equal_speeds(cluster), speeds(cluster, x))
    end_s = elapsed_s + cp.multiply(steps / equal_speeds(cluster), cp.inv_pos(relative))
    expected = optimum(cp.Minimize(cp.max(cp.multiply(1 / alone_s, end_s))), limits)
    shares = finish(cluster, elapsed_s, steps)
    assert shares.status is Status.OPTIMAL
    assert shares.value == pytest.approx(expected, rel=1e-6)
    assert rho(cluster, shares.fractions, elapsed_s, steps) == pytest.approx(expected, rel=1e-6)
    assert_within_limits(cluster, shares.fractions)


@pytest.mark.parametrize("seed", SEEDS)
def test_sharing_is_an_incentive(seed):
    """The equal share has rho = 1, so nobody can be worse off by sharing."""
    cluster = random_cluster(seed)
    steps = drawn(seed, 12, 10.0, 1000.0)
    shares = finish(cluster, drawn(seed + 1, 12, 0.0, 500.0), steps)
    assert shares.value <= 1 + 1e-9


def test_a_job_without_steps_left_does_not_count():
    cluster = one_type(2, 1.0)
    shares = finish(cluster, np.array([5.0, 5.0]), np.array([0.0, 10.0]))
    # Alone, job 1 has half the GPU: 25 s in all; with all of it, 15 s.
    assert shares.value == pytest.approx(15 / 25)


# Throughput


@pytest.mark.parametrize("seed", SEEDS)
def test_throughput_as_cvxpy_finds_it(seed):
    cluster = random_cluster(seed)
    x, limits = fractions_of(cluster)
    expected = optimum(cp.Maximize(cluster.weights @ speeds(cluster, x)), limits)
    shares = max_throughput_shares(
        cluster.throughputs, cluster.gpus, weights=cluster.weights, capacity=cluster.capacity
    )
    assert shares.value == pytest.approx(expected, rel=1e-6)
    assert cluster.weights @ got(cluster, shares.fractions) == pytest.approx(expected, rel=1e-6)
    assert_within_limits(cluster, shares.fractions)


def test_the_fastest_jobs_per_gpu_go_first():
    cluster = replace(one_type(3, 2.0), throughputs=np.array([[3.0], [8.0], [1.0]]))
    cluster = replace(cluster, gpus=np.array([1.0, 4.0, 1.0]))
    shares = max_throughput_shares(
        cluster.throughputs, cluster.gpus, weights=np.ones(3), capacity=cluster.capacity
    )
    assert shares.value == pytest.approx(3 + 8 / 4)
    assert shares.prices == pytest.approx([2.0])


# Cost


def test_without_deadlines_everybody_runs_where_a_dollar_buys_most():
    cluster = replace(random_cluster(1, load=0.1), weights=np.ones(12))
    answer = most_per_dollar_shares(
        cluster.throughputs,
        cluster.gpus,
        weights=cluster.weights,
        capacity=cluster.capacity,
        price_usd_per_h=PRICE,
    )
    best = (cluster.throughputs / PRICE).argmax(axis=1)
    np.testing.assert_allclose(answer.shares.fractions, np.eye(3)[best], atol=1e-7)
    assert (answer.missed == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_cheapest_way_to_meet_deadlines_as_cvxpy_finds_it(seed):
    cluster = random_cluster(seed, load=1.5)
    required = equal_speeds(cluster) * drawn(seed, 12, 0.1, 0.9)
    x, limits = fractions_of(cluster)
    usd_per_h = cp.sum(cp.multiply(cluster.gpus[:, None] * PRICE, x))
    expected = optimum(cp.Minimize(usd_per_h), [*limits, speeds(cluster, x) >= required])
    answer = cheapest_shares(
        cluster.throughputs,
        cluster.gpus,
        capacity=cluster.capacity,
        price_usd_per_h=PRICE,
        required=required,
    )
    assert -answer.shares.value == pytest.approx(expected, rel=1e-6)
    assert (got(cluster, answer.shares.fractions) >= required * (1 - 1e-6)).all()
    assert (answer.missed == 0).all()
    assert_within_limits(cluster, answer.shares.fractions)


def test_deadlines_that_cannot_all_hold_are_missed_by_as_little_as_can_be():
    cluster = one_type(2, 1.0)
    answer = cheapest_shares(
        cluster.throughputs,
        cluster.gpus,
        capacity=cluster.capacity,
        price_usd_per_h=np.array([1.0]),
        required=np.array([0.8, 0.4]),
    )
    assert answer.shares.status is Status.OPTIMAL
    # A miss costs the same fraction per GPU less for the large requirement: it gives way.
    np.testing.assert_allclose(answer.shares.fractions[:, 0], [0.6, 0.4], atol=1e-6)
    np.testing.assert_allclose(answer.missed, [0.25, 0.0], atol=1e-6)


def test_out_of_time_falls_back_to_the_equal_shares():
    cluster = random_cluster(0, n_jobs=3000, n_types=6)
    shares = max_throughput_shares(
        cluster.throughputs,
        cluster.gpus,
        weights=cluster.weights,
        capacity=cluster.capacity,
        time_limit_s=1e-9,
    )
    assert shares.status is Status.LIMIT
    assert np.isnan(shares.value)
    assert_within_limits(replace(cluster, throughputs=np.ones((3000, 6))), shares.fractions)
