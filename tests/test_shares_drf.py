"""Dominant resource fairness: the paper's example, its proved properties, a plain loop.

The policy `drf` serves job by job; where jobs are small it comes to the closed form.
"""

import numpy as np
import pytest
from cluster_testing import Cluster
from drf_testing import dominant_part, dominant_resource_shares

from scheduler.core.events import JobsSubmitted

SEEDS = range(10)
PLENTY = 1e9


def draw(seed: int, n_jobs: int = 9, n_resources: int = 4):
    chance = np.random.default_rng(seed)
    demand = chance.uniform(0.1, 4.0, (n_jobs, n_resources))
    demand *= chance.random((n_jobs, n_resources)) > 0.3
    demand[:, 0] = np.maximum(demand[:, 0], 0.2)
    return demand, chance.uniform(0.5, 2.0, n_jobs), chance.uniform(20, 60, n_resources)


def test_the_example_of_the_paper():
    # 9 CPUs and 18 GB; A needs (1, 4) and B (3, 1): 3 tasks of A, 2 of B, both at 2/3.
    shares = dominant_resource_shares(
        np.array([[1.0, 4.0], [3.0, 1.0]]),
        weights=np.ones(2),
        capacity=np.array([9.0, 18.0]),
        tasks=np.full(2, PLENTY),
    )
    np.testing.assert_allclose(shares.tasks, [3, 2])
    np.testing.assert_allclose(shares.dominant, [2 / 3, 2 / 3])


def test_who_wants_little_leaves_the_rest():
    shares = dominant_resource_shares(
        np.array([[1.0], [1.0], [1.0]]),
        weights=np.array([1.0, 1.0, 2.0]),
        capacity=np.array([10.0]),
        tasks=np.array([1.0, PLENTY, PLENTY]),
    )
    np.testing.assert_allclose(shares.tasks, [1, 3, 6])


def by_small_steps(demand, weights, capacity, tasks, n_steps=20_000):
    """Fill progressively, a small step at a time."""
    part = dominant_part(demand, capacity)
    given, left = np.zeros(len(demand)), capacity.copy()
    open_jobs = np.ones(len(demand), bool)
    for _ in range(4 * n_steps):
        more = np.where(open_jobs, weights / part / n_steps, 0.0)
        more = np.minimum(more, tasks - given)
        short = left - demand.T @ more < 0
        open_jobs &= ~(demand[:, short] > 0).any(axis=1) & (given < tasks)
        if not open_jobs.any():
            break
        more = np.where(open_jobs, more, 0.0)
        if (left - demand.T @ more >= 0).all():
            given, left = given + more, left - demand.T @ more
    return given


@pytest.mark.parametrize("seed", SEEDS)
def test_progressive_filling_in_small_steps_agrees(seed):
    demand, weights, capacity = draw(seed)
    tasks = np.random.default_rng(seed + 50).uniform(1, 30, len(demand))
    shares = dominant_resource_shares(demand, weights=weights, capacity=capacity, tasks=tasks)
    plain = by_small_steps(demand, weights, capacity, tasks)
    np.testing.assert_allclose(shares.tasks, plain, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_overused_and_nobody_could_have_more(seed):
    demand, weights, capacity = draw(seed)
    shares = dominant_resource_shares(
        demand, weights=weights, capacity=capacity, tasks=np.full(9, PLENTY)
    )
    left = capacity - demand.T @ shares.tasks
    assert (left >= -1e-9).all()
    assert (demand[:, left <= 1e-9] > 0).any(axis=1).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_envies_and_everybody_has_its_equal_part(seed):
    demand, _, capacity = draw(seed)
    shares = dominant_resource_shares(
        demand, weights=np.ones(9), capacity=capacity, tasks=np.full(9, PLENTY)
    )
    assert (shares.dominant >= 1 / 9 - 1e-12).all()
    bundles = demand * shares.tasks[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        runs = np.where(demand[:, None] > 0, bundles[None] / demand[:, None], np.inf).min(
            axis=2
        )
    assert (runs <= shares.tasks[:, None] * (1 + 1e-9)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_asking_for_more_than_needed_does_not_help(seed):
    demand, _, capacity = draw(seed)
    ask = {"weights": np.ones(9), "capacity": capacity, "tasks": np.full(9, PLENTY)}
    honest = dominant_resource_shares(demand, **ask).tasks[0]
    lie = demand.copy()
    lie[0] += np.random.default_rng(seed).uniform(0, 2, 4)
    got = dominant_resource_shares(lie, **ask).tasks[0] * lie[0]
    needed = demand[0] > 0
    assert (got[needed] / demand[0][needed]).min() <= honest * (1 + 1e-9)


def test_what_the_cluster_has_none_of_cannot_be_had():
    shares = dominant_resource_shares(
        np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]),
        weights=np.ones(3),
        capacity=np.array([4.0, 0.0]),
        tasks=np.array([5.0, 9.0, 7.0]),
    )
    np.testing.assert_allclose(shares.tasks, [0, 4, 7])


def served(demand: np.ndarray, weights: np.ndarray, capacity: np.ndarray) -> list[int]:
    """Submit more jobs of each submitter than fit; return how many the policy starts.

    Resources are CPUs, GiB and whole GPUs.
    """
    cpus, gib, gpus = capacity.tolist()
    cluster = Cluster("drf")
    cluster.add_node("all", cpus=cpus, memory_mib=int(gib) * 1024, gpus=int(gpus))
    for number in range(60):
        for who, (cpu, memory, gpu) in enumerate(demand.tolist()):
            amounts = {"cpus": cpu, "memory_mib": int(memory * 1024), "gpus": gpu}
            spec = cluster.spec(f"{who}-{number}", weight=float(weights[who]), **amounts)
            event = JobsSubmitted(at_s=cluster.now_s, spec=spec, submitter=f"user-{who}")
            (job_id,) = cluster.accept(event).job_ids
            cluster.names[job_id], cluster.ids[spec.name] = spec.name, job_id
    started = [name.partition("-")[0] for name in cluster.cycle().started]
    return [started.count(str(who)) for who in range(len(demand))]


def test_the_policy_comes_to_the_example_of_the_paper():
    demand = np.array([[1.0, 4.0, 0.0], [3.0, 1.0, 0.0]])
    assert served(demand, np.ones(2), np.array([9.0, 18.0, 0.0])) == [3, 2]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_policy_comes_to_the_closed_form_but_for_single_jobs(seed):
    chance = np.random.default_rng(seed)
    demand = np.hstack([chance.integers(1, 5, (3, 2)), chance.integers(0, 2, (3, 1))])
    weights, capacity = chance.choice([1.0, 2.0], 3), np.array([90.0, 80.0, 30.0])
    ideal = dominant_resource_shares(
        demand, weights=weights, capacity=capacity, tasks=np.full(3, 60.0)
    )
    part = dominant_part(demand, capacity)
    found = np.array(served(demand, weights, capacity)) * part
    # Whole jobs: nobody is further from it than one job of each.
    np.testing.assert_allclose(found, ideal.dominant, atol=part.sum())
