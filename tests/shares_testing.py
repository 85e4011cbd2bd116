"""Random small clusters, and the programs of the papers written down plainly with cvxpy."""

from dataclasses import dataclass

import cvxpy as cp
import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    throughputs: np.ndarray
    gpus: np.ndarray
    weights: np.ndarray
    capacity: np.ndarray


def random_cluster(
    seed: int,
    *,
    n_jobs: int = 12,
    n_types: int = 3,
    load: float = 2.0,
    gpu_counts: tuple[int, ...] = (1, 2, 4, 8),
) -> Cluster:
    """Draw jobs that together want `load` times the GPUs there are; some not everywhere."""
    draw = np.random.default_rng(seed)
    throughputs = np.exp(draw.normal(0, 1, (n_jobs, n_types)))
    throughputs *= draw.random((n_jobs, n_types)) > 0.2
    throughputs[:, 0] = np.maximum(throughputs[:, 0], 0.1)
    gpus = draw.choice(gpu_counts, n_jobs).astype(float)
    mix = draw.uniform(0.5, 1.5, n_types)
    return Cluster(
        throughputs=throughputs,
        gpus=gpus,
        weights=draw.uniform(0.5, 2.0, n_jobs),
        capacity=mix / mix.sum() * gpus.sum() / load,
    )


def fractions_of(cluster: Cluster) -> tuple[cp.Variable, list[cp.Constraint]]:
    """Return Gavel's variables with its constraints on time and on capacity."""
    x = cp.Variable(cluster.throughputs.shape, nonneg=True)
    return x, [cp.sum(x, axis=1) <= 1, cluster.gpus @ x <= cluster.capacity]


def speeds(cluster: Cluster, x: cp.Variable) -> cp.Expression:
    return cp.sum(cp.multiply(cluster.throughputs, x), axis=1)


def optimum(objective: cp.Minimize | cp.Maximize, constraints: list[cp.Constraint]) -> float:
    problem = cp.Problem(objective, constraints)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    return float(problem.value)


def equal_speeds(cluster: Cluster) -> np.ndarray:
    """Return each job's speed if every job had the same slice, written out once more."""
    total = max(cluster.gpus.sum(), cluster.capacity.sum())
    return (cluster.throughputs * (cluster.capacity / total)).sum(axis=1)


def assert_within_limits(cluster: Cluster, fractions: np.ndarray) -> None:
    assert (fractions >= 0).all()
    assert (fractions.sum(axis=1) <= 1 + 1e-9).all()
    assert (cluster.gpus @ fractions <= cluster.capacity * (1 + 1e-9)).all()
    assert (fractions[cluster.throughputs == 0] == 0).all()
