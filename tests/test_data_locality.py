"""Data locality: the worked example against its closed form and against blind placement."""

import cvxpy as cp
import numpy as np
import pytest
from scipy import sparse

from policies.data_locality import (
    DataCluster,
    best_reads,
    blind_reads,
    read_plan,
    seconds_alone,
    through_switches,
)
from policies.linear_program import Status

GB = 1e9


def worked_example(gb_per_s_per_core: float) -> DataCluster:
    """1 TB on 10 storage nodes of 100 GB, 8 nodes of 10 cores, 5 switches of 100 Gb/s.

    Two storage nodes per switch; switches 0 to 2 have two compute nodes, 3 and 4 have one.
    """
    return DataCluster(
        block_bytes=np.full(10, 100 * GB),
        compute_bytes_per_s=np.full(8, 10 * gb_per_s_per_core * GB),
        link_bytes_per_s=np.full(5, 100 * GB / 8),
        crosses=through_switches(np.arange(10) // 2, np.array([0, 0, 1, 1, 2, 2, 3, 4]), 5),
    )


def test_the_worked_example_is_balanced_between_nodes_and_switches():
    # In GB and s, done at T: a lone node handles 10 T of its switch's 200 and sends the rest to
    # the other three switches, each of which carries 12.5 T, 200 of it its own data:
    # 2 (200 - 10 T) = 3 (12.5 T - 200), so T = 400/23 = 17.39.
    plan = best_reads(worked_example(1.0))
    assert plan.status is Status.OPTIMAL
    assert plan.largest_s == pytest.approx(400 / 23, rel=1e-9)
    np.testing.assert_allclose(plan.fractions.sum(axis=1), 1.0)


def test_with_fast_nodes_every_byte_stays_behind_its_switch():
    # 200 GB through 12.5 GB/s: 16 s, reached as soon as a lone node handles 12.5 GB/s.
    assert best_reads(worked_example(1.25)).largest_s == pytest.approx(16.0)
    assert best_reads(worked_example(5.0)).largest_s == pytest.approx(16.0)


def test_with_slow_nodes_all_finish_together():
    # 1 TB by 80 cores; the switches carry it easily.
    plan = best_reads(worked_example(0.1))
    assert plan.largest_s == pytest.approx(1000 / 8)
    np.testing.assert_allclose(plan.finish_s, 125.0, rtol=1e-7)


def test_blind_to_data_the_same_cluster_takes_almost_twice_as_long():
    # Spread evenly, a switch with two nodes carries its own 200 GB and a quarter of the other
    # 800: 400 GB, 32 s.
    cluster = worked_example(1.0)
    blind = read_plan(cluster, blind_reads(cluster))
    assert blind.largest_s == pytest.approx(32.0)
    assert best_reads(cluster).largest_s < 0.55 * blind.largest_s


def random_cluster(seed: int) -> DataCluster:
    draw = np.random.default_rng(seed)
    n_blocks, n_computes, n_links = 7, 4, 5
    routes = draw.random((n_links, n_blocks * n_computes)) < 0.3
    return DataCluster(
        block_bytes=draw.uniform(1, 20, n_blocks),
        compute_bytes_per_s=draw.uniform(1, 5, n_computes),
        link_bytes_per_s=draw.uniform(1, 5, n_links),
        crosses=sparse.csr_array(routes.astype(float)),
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_finish_time_as_cvxpy_finds_it(seed):
    cluster = random_cluster(seed)
    read = cp.Variable((7, 4), nonneg=True)
    moved = cp.multiply(cluster.block_bytes[:, None], read)
    flat = cp.reshape(moved, (28,), order="C")
    links_s = cp.multiply(1 / cluster.link_bytes_per_s, cluster.crosses.toarray() @ flat)
    nodes_s = cp.multiply(1 / cluster.compute_bytes_per_s, cp.sum(moved, axis=0))
    problem = cp.Problem(
        cp.Minimize(cp.maximum(cp.max(links_s), cp.max(nodes_s))), [cp.sum(read, axis=1) == 1]
    )
    problem.solve(solver=cp.CLARABEL)
    plan = best_reads(cluster)
    assert plan.largest_s == pytest.approx(problem.value, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_total_finish_time_is_less_and_the_last_later(seed):
    cluster = random_cluster(seed)
    largest, total = best_reads(cluster), best_reads(cluster, minimise="total")
    assert total.finish_s.sum() <= largest.finish_s.sum() * (1 + 1e-9)
    assert total.largest_s >= largest.largest_s * (1 - 1e-9)


def test_total_finish_time_by_hand():
    # Two nodes of 1 and 2 bytes/s, no links: all to the faster one.
    cluster = DataCluster(
        block_bytes=np.array([6.0]),
        compute_bytes_per_s=np.array([1.0, 2.0]),
        link_bytes_per_s=np.zeros(0),
        crosses=sparse.csr_array((0, 2)),
    )
    np.testing.assert_allclose(best_reads(cluster, minimise="total").finish_s, [0, 3])
    # With 2.5 s in all, the faster does 5 bytes and the slower 1.
    hurried = best_reads(cluster, minimise="total", within_s=2.5)
    np.testing.assert_allclose(hurried.finish_s, [1, 2.5])


def test_too_little_time_is_a_status_and_a_blind_plan():
    plan = best_reads(worked_example(1.0), within_s=10.0)
    assert plan.status is Status.INFEASIBLE
    assert plan.largest_s == pytest.approx(32.0)


def test_a_node_scores_by_its_distance_from_the_data():
    cluster = DataCluster(
        block_bytes=np.array([100.0, 50.0]),
        compute_bytes_per_s=np.array([50.0, 50.0, 200.0]),
        link_bytes_per_s=np.array([20.0, 100.0]),
        crosses=through_switches(np.array([1, 1]), np.array([1, 0, 0]), 2),
    )
    # Node 0: 150 bytes at 50/s; nodes 1 and 2: through switch 0 at 20/s.
    np.testing.assert_allclose(seconds_alone(cluster), [3.0, 7.5, 7.5])
