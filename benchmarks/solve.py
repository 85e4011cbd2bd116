"""How long sharing a cluster takes, built and solved, against cvxpy on the same program.

The jobs are those of `solve_cases`. Every baseline of the same run must have the same optimum
to 1e-6, or the case fails.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import cvxpy as cp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from report import report
from solve_by_cvxpy import (
    finish_by_cvxpy,
    lepton_by_cvxpy,
    max_min_by_cvxpy,
    pace_by_cvxpy,
    pairs_by_cvxpy,
)
from solve_cases import TYPES, Case, all_distinct, dues, needs_of, of_classes, profiles

from policies.admission import admitted
from policies.deadlines import paced
from policies.filling import Tree
from policies.finish_time import finish_time_shares
from policies.hierarchical import hierarchical_shares
from policies.lepton import solve as solve_lepton
from policies.linear_program import Status
from policies.max_min_fairness import max_min_shares
from policies.shares import Shares
from policies.space_sharing import Profiles, max_min_pair_shares
from policies.water_filling import water_filling_shares

T = TypeVar("T")


def once(solve: Callable[[], T]) -> tuple[T, float]:
    """Return the answer, and the seconds that it took."""
    start_s = time.perf_counter()
    return solve(), time.perf_counter() - start_s


def best_s(solve: Callable[[], object], repeats: int) -> float:
    return min(once(solve)[1] for _ in range(repeats))


def assert_same(value: float, expected: float) -> None:
    assert abs(value - expected) <= 1e-6 * abs(expected), (value, expected)


def max_min(case: Case, label: str, goal_s: float | None, *, repeats: int = 10) -> None:
    """Report seconds against their goal or, without one, that cvxpy is not faster."""

    def solve() -> float:
        shares = max_min_shares(
            case.throughputs, case.gpus, weights=case.weights, capacity=case.capacity
        )
        assert shares.status is Status.OPTIMAL
        return shares.value

    took_s, value = best_s(solve, repeats), solve()
    n_jobs, n_types = case.throughputs.shape
    for solver in (cp.ECOS, cp.CLARABEL)[n_jobs > 10_000 :]:
        assert_same(value, max_min_by_cvxpy(case, solver))
        report(
            benchmark="solve",
            case=label,
            value=took_s,
            unit="s",
            better="lower",
            goal=1.0 if goal_s is None else goal_s,
            goal_of="ratio" if goal_s is None else "value",
            baseline=f"cvxpy with {solver}, same run",
            baseline_value=best_s(lambda s=solver: max_min_by_cvxpy(case, s), min(repeats, 3)),
            size=f"{n_jobs} jobs x {n_types} types",
        )


def finish_time(case: Case) -> None:
    draw = np.random.default_rng(5)
    n_jobs, n_types = case.throughputs.shape
    steps = case.throughputs.max(axis=1) * draw.uniform(1e3, 1e5, n_jobs)
    elapsed_s = draw.uniform(0, 1e5, n_jobs)

    def solve() -> float:
        return finish_time_shares(
            case.throughputs,
            case.gpus,
            elapsed_s=elapsed_s,
            remaining_steps=steps,
            capacity=case.capacity,
        ).value

    expected, baseline_s = once(lambda: finish_by_cvxpy(case, elapsed_s, steps))
    assert_same(solve(), expected)
    report(
        benchmark="solve",
        case="finish-time fairness, all distinct",
        value=best_s(solve, 3),
        unit="s",
        better="lower",
        goal=0.3,
        goal_of="value",
        baseline="cvxpy with CLARABEL, same run",
        baseline_value=baseline_s,
        size=f"{n_jobs} jobs x {n_types} types",
    )


def water_filling(case: Case) -> None:
    def solve() -> float:
        return water_filling_shares(
            case.throughputs, case.gpus, weights=case.weights, capacity=case.capacity
        ).value

    assert_same(solve(), max_min_by_cvxpy(case, cp.ECOS))
    n_jobs, n_types = case.throughputs.shape
    report(
        benchmark="solve",
        case="water filling, all distinct",
        value=best_s(solve, 3),
        unit="s",
        better="lower",
        goal=0.3,
        size=f"{n_jobs} jobs x {n_types} types",
    )


def hierarchical(case: Case) -> None:
    """Report 100 queues in two levels; the baseline is Gavel's first program of many."""
    draw, n_jobs = np.random.default_rng(9), len(case.gpus)
    parent = np.full(100, -1)
    parent[10:] = draw.integers(0, 10, 90)
    queue = draw.integers(10, 100, n_jobs)
    queues = draw.uniform(0.5, 2.0, 100)
    tree = Tree(parent=parent, weight=queues, queue=queue, tier=np.zeros(n_jobs, int))
    first = case.weights / np.bincount(queue, case.weights, 100)[queue]
    for q in range(100):
        used = [c for c in np.flatnonzero(parent == parent[q]) if has_jobs(c, parent, queue)]
        first[below(q, parent, queue)] *= queues[q] / queues[used].sum()

    def solve() -> Shares:
        return hierarchical_shares(
            case.throughputs,
            case.gpus,
            weights=case.weights,
            capacity=case.capacity,
            tree=tree,
        )

    shares = solve()
    assert shares.status is Status.OPTIMAL
    weighed = replace(case, weights=first)
    least, baseline_s = once(lambda: max_min_by_cvxpy(weighed, cp.ECOS))
    got = case.gpus * (case.throughputs * shares.fractions).sum(axis=1) / case.alone
    assert_same(float((got / first).min()), least)
    n_types = case.throughputs.shape[1]
    report(
        benchmark="solve",
        case="hierarchical, 100 queues, all distinct",
        value=best_s(solve, 3),
        unit="s",
        better="lower",
        goal=0.3,
        goal_of="value",
        baseline="cvxpy with ECOS, the first of Gavel's programs, same run",
        baseline_value=baseline_s,
        size=f"{n_jobs} jobs x {n_types} types",
    )


def lepton(case: Case) -> None:
    needs = needs_of(case)
    shares = solve_lepton(needs)
    assert shares.status is Status.OPTIMAL
    expected, baseline_s = once(lambda: lepton_by_cvxpy(needs, cp.CLARABEL))
    assert_same(shares.value, expected)
    n_jobs, n_types = case.throughputs.shape
    report(
        benchmark="solve",
        case="lepton, all distinct, 4 guarantees, 400 deadlines",
        value=best_s(lambda: solve_lepton(needs), 3),
        unit="s",
        better="lower",
        goal=0.3,
        goal_of="value",
        baseline="cvxpy with CLARABEL, same run",
        baseline_value=baseline_s,
        size=f"{n_jobs} jobs x {n_types} types",
    )


def deadlines(case: Case, n_due: int) -> None:
    """Report who is promised what, by up to 32 programs, and the shares that keep promises."""
    due, others = dues(case, n_due)

    def promised() -> np.ndarray:
        return admitted(due, np.arange(n_due), np.zeros(n_due, np.bool_))

    def pace(jobs: np.ndarray) -> tuple[float, float]:
        found = paced(
            due, jobs, speeds=others.throughputs, gpus=others.gpus, weights=others.weights
        )
        assert found.status is Status.OPTIMAL
        return found.steady, found.least

    jobs, admission_s = once(promised)
    expected, baseline_s = once(lambda: pace_by_cvxpy(due, jobs, others))
    for value, same in zip(pace(jobs), expected, strict=True):
        assert abs(value - same) <= 1e-5 * max(abs(same), 1), (value, same)
    n_types = case.throughputs.shape[1]
    size = f"{len(jobs)} of {n_due} promised in {len(due.ends_s)} slots of time, "
    size += f"{len(others.gpus)} others x {n_types} types"
    report(
        benchmark="solve",
        case="deadlines, shares that keep what is promised",
        value=best_s(lambda: pace(jobs), 2),
        unit="s",
        better="lower",
        goal=1.0,
        goal_of="ratio",
        baseline="cvxpy with CLARABEL, same run",
        baseline_value=baseline_s,
        size=size,
    )
    report(
        benchmark="solve",
        case="deadlines, who is promised",
        value=admission_s,
        unit="s",
        better="lower",
        size=size,
    )


def below(queue: int, parent: np.ndarray, of_job: np.ndarray) -> np.ndarray:
    """Return which jobs are in a queue or in a child of it."""
    return (of_job == queue) | (parent[of_job] == queue)


def has_jobs(queue: int, parent: np.ndarray, of_job: np.ndarray) -> bool:
    return bool(below(queue, parent, of_job).any())


def pairs(measured: Profiles, n_jobs: int) -> None:
    """Report 83 classes, and as many groups as jobs: each job a weight of its own."""
    case, profile = of_classes(measured, n_jobs)
    own = np.random.default_rng(6).uniform(0.5, 2.0, n_jobs)
    for weights, label in ((case.weights, "83 classes"), (own, "all of own weight")):

        def solve(weights: np.ndarray = weights) -> float:
            shares = max_min_pair_shares(
                measured, profile, weights=weights, capacity=case.capacity
            )
            assert shares.alone.status is Status.OPTIMAL
            return shares.alone.value

        if weights is case.weights:
            assert_same(solve(), pairs_by_cvxpy(measured, case, profile))
        report(
            benchmark="solve",
            case=f"max-min with pairs, {label}",
            value=best_s(solve, 2),
            unit="s",
            better="lower",
            goal=12.0,
            goal_of="value",
            baseline="published: exact, commercial solver, 32 cores",
            baseline_value=285.0,
            size=f"{n_jobs} jobs x {len(TYPES)} types",
        )


if __name__ == "__main__":
    measured, source = profiles()
    max_min(of_classes(measured, 2_048)[0], f"max-min, 83 classes {source}", 6e-3)
    distinct = all_distinct(2_048, 3)
    max_min(distinct, "max-min, all distinct", None)
    max_min(all_distinct(10_000, 6), "max-min, all distinct", 0.5, repeats=3)
    max_min(all_distinct(100_000, 6), "max-min, all distinct", 5.0, repeats=1)
    finish_time(distinct)
    water_filling(distinct)
    hierarchical(distinct)
    lepton(distinct)
    few = all_distinct(640, 3)
    deadlines(replace(few, capacity=few.capacity / 4), 128)
    pairs(measured, 2_048)
