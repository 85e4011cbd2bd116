"""How long sharing a cluster takes, built and solved, against cvxpy on the same program.

Jobs are of the 83 (model, batch size, GPUs) classes that Gavel measured if its throughputs are
at hand (LEPTON_DATA, or shared/data beside the repository), else drawn to resemble them. Every
baseline of the same run must have the same optimum to 1e-6, or the case fails.
"""

import gzip
import json
import os
import sys
import time
from ast import literal_eval
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cvxpy as cp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from report import report

from policies.admission import admitted
from policies.deadlines import KEPT, MOST, STEADY, Due, paced
from policies.filling import Tree
from policies.finish_time import finish_time_shares
from policies.hierarchical import hierarchical_shares
from policies.lepton import Needs
from policies.lepton import solve as solve_lepton
from policies.linear_program import Status
from policies.max_min_fairness import max_min_shares
from policies.shares import Shares, equal_share
from policies.space_sharing import Profiles, max_min_pair_shares
from policies.water_filling import water_filling_shares

TYPES = ("v100", "p100", "k80")
LOAD = 4.0
"""GPUs wanted per GPU there is."""
DATA = Path(os.environ.get("LEPTON_DATA", Path(__file__).resolve().parents[2] / "shared/data"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    throughputs: np.ndarray
    gpus: np.ndarray
    weights: np.ndarray
    capacity: np.ndarray

    @property
    def alone(self) -> np.ndarray:
        return self.throughputs @ equal_share(self.gpus, self.capacity)


def profiles() -> tuple[Profiles, str]:
    path = DATA / "gavel" / "simulation_throughputs.json.gz"
    if not path.exists():
        return resembling(), "drawn at random"
    measured = json.loads(gzip.decompress(path.read_bytes()))
    names = list(measured[TYPES[0]])
    number = {name: i for i, name in enumerate(names)}
    beside = np.zeros((len(names), len(names), len(TYPES)))
    for kind, gpu in enumerate(TYPES):
        for name in names:
            for other, speeds in measured[gpu][name].items():
                if other != "null":
                    beside[number[name], number[other], kind] = speeds[0]
    alone = np.array([[measured[gpu][name]["null"] for gpu in TYPES] for name in names])
    gpus = np.array([float(literal_eval(name)[1]) for name in names])
    return Profiles(gpus=gpus, alone=alone, beside=beside), "as Gavel measured"


def resembling() -> Profiles:
    draw = np.random.default_rng(83)
    gpus = np.array([1.0] * 26 + [2.0] * 19 + [4.0] * 19 + [8.0] * 19)
    alone = draw.lognormal(2, 1, (83, 1)) * draw.uniform(
        [0.7, 0.4, 0.1], [1, 0.9, 0.3], (83, 3)
    )
    beside = alone[:, None, :] * draw.uniform(0.4, 1.0, (83, 83, 3))
    beside *= ((gpus[:, None] == 1) & (gpus == 1))[:, :, None]
    return Profiles(gpus=gpus, alone=alone, beside=beside)


def of_classes(measured: Profiles, n_jobs: int) -> tuple[Case, np.ndarray]:
    profile = np.random.default_rng(0).integers(0, len(measured.gpus), n_jobs)
    gpus = measured.gpus[profile]
    case = Case(
        throughputs=measured.alone[profile],
        gpus=gpus,
        weights=np.ones(n_jobs),
        capacity=np.full(len(TYPES), gpus.sum() / LOAD / len(TYPES)),
    )
    return case, profile


def all_distinct(n_jobs: int, n_types: int) -> Case:
    draw = np.random.default_rng(n_jobs)
    gpus = draw.choice([1.0, 2.0, 4.0, 8.0], n_jobs)
    mix = draw.uniform(0.5, 1.5, n_types)
    speed = draw.lognormal(2, 1, (n_jobs, 1)) * draw.uniform(0.1, 1.0, (n_jobs, n_types))
    return Case(
        throughputs=speed,
        gpus=gpus,
        weights=draw.uniform(0.5, 2.0, n_jobs),
        capacity=mix / mix.sum() * gpus.sum() / LOAD,
    )


def best_s(solve: Callable[[], object], repeats: int) -> float:
    took_s = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        solve()
        took_s.append(time.perf_counter() - start_s)
    return min(took_s)


def limits(case: Case, x: cp.Variable) -> list[cp.Constraint]:
    return [x >= 0, cp.sum(x, axis=1) <= 1, case.gpus @ x <= case.capacity]


def speeds(case: Case, x: cp.Variable) -> cp.Expression:
    return cp.sum(cp.multiply(case.throughputs / case.alone[:, None], x), axis=1)


def max_min_by_cvxpy(case: Case, solver: str) -> float:
    x = cp.Variable(case.throughputs.shape)
    scale = case.gpus / case.weights
    problem = cp.Problem(
        cp.Maximize(cp.min(cp.multiply(scale, speeds(case, x)))), limits(case, x)
    )
    problem.solve(solver=solver)
    return float(problem.value)


def finish_by_cvxpy(case: Case, elapsed_s: np.ndarray, steps: np.ndarray) -> float:
    x = cp.Variable(case.throughputs.shape)
    alone_s = elapsed_s + steps / case.alone
    end_s = elapsed_s + cp.multiply(steps / case.alone, cp.inv_pos(speeds(case, x)))
    worst = cp.max(cp.multiply(1 / alone_s, end_s))
    problem = cp.Problem(cp.Minimize(worst), limits(case, x))
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value)


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

    start_s = time.perf_counter()
    expected = finish_by_cvxpy(case, elapsed_s, steps)
    baseline_s = time.perf_counter() - start_s
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
    start_s = time.perf_counter()
    least = max_min_by_cvxpy(replace(case, weights=first), cp.ECOS)
    baseline_s = time.perf_counter() - start_s
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


def needs_of(case: Case) -> Needs:
    """Return what `lepton` asks for, with every term in use."""
    draw, n_jobs = np.random.default_rng(11), len(case.gpus)
    full, n_types = case.throughputs.max(axis=1), len(case.capacity)
    fair = np.minimum(case.alone * draw.uniform(0, 2, n_jobs), full)
    due = full * draw.uniform(0.1, 1, n_jobs) * (draw.random(n_jobs) < 0.2)
    rank = draw.lognormal(0, 0.5, (n_jobs, 1))
    return Needs(
        speeds=case.throughputs,
        gpus=case.gpus,
        capacity=case.capacity,
        worth=rank * (case.throughputs / case.alone[:, None] - draw.uniform(0, 1, n_types)),
        fair=fair,
        unfair=20 * case.gpus * fair / full,
        due=due,
        missed=60 * case.gpus * due / full,
        guaranteed=case.capacity.sum() / 20 * np.ones(4),
        is_in=(draw.integers(0, 8, n_jobs) == np.arange(4)[:, None]).astype(float),
        counts=np.ones((4, n_types)),
        lacking=200.0,
    )


def lepton_by_cvxpy(needs: Needs, solver: str) -> float:
    x, n_jobs = cp.Variable(needs.speeds.shape, nonneg=True), len(needs.gpus)
    unfair, missed = cp.Variable(n_jobs, nonneg=True), cp.Variable(n_jobs, nonneg=True)
    lacking = cp.Variable(len(needs.guaranteed), nonneg=True)
    got = cp.sum(cp.multiply(needs.speeds, x), axis=1)
    held = cp.multiply(needs.gpus, cp.sum(x, axis=1))
    constraints = [
        cp.sum(x, axis=1) <= 1,
        needs.gpus @ x <= needs.capacity,
        got + cp.multiply(needs.fair, unfair) >= needs.fair,
        got + cp.multiply(needs.due, missed) >= needs.due,
        needs.is_in @ held + lacking >= needs.guaranteed,
    ]
    value = cp.sum(cp.multiply(needs.worth, x)) - needs.unfair @ unfair
    value += -needs.missed @ missed - needs.lacking * cp.sum(lacking)
    problem = cp.Problem(cp.Maximize(value), constraints)
    problem.solve(solver=solver)
    return float(problem.value)


def lepton(case: Case) -> None:
    needs = needs_of(case)
    shares = solve_lepton(needs)
    assert shares.status is Status.OPTIMAL
    start_s = time.perf_counter()
    assert_same(shares.value, lepton_by_cvxpy(needs, cp.CLARABEL))
    baseline_s = time.perf_counter() - start_s
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


def dues(case: Case, n_due: int) -> tuple[Due, Case]:
    """Return jobs with deadlines of which not all can be met, and others without."""
    draw, rest = np.random.default_rng(13), slice(n_due, None)
    deadline_s = draw.uniform(3_600, 200_000, n_due)
    part = draw.uniform(0.3, 0.9, n_due)
    due = Due.of(
        case.throughputs[:n_due],
        case.gpus[:n_due],
        work=part * deadline_s * case.throughputs[:n_due].max(axis=1),
        deadline_s=deadline_s,
        capacity=case.capacity,
    )
    others = Case(
        throughputs=case.throughputs[rest],
        gpus=case.gpus[rest],
        weights=case.weights[rest],
        capacity=case.capacity,
    )
    return due, others


def pace_by_cvxpy(due: Due, jobs: np.ndarray, others: Case) -> tuple[float, float]:
    """Return how steady the promised are, and the least of the others."""
    n_slots, lengths_s = len(due.ends_s), due.lengths_s
    times = [cp.Variable((len(jobs), len(due.capacity)), nonneg=True) for _ in range(n_slots)]
    share = cp.Variable(others.throughputs.shape, nonneg=True)
    short, steady, least = cp.Variable(len(jobs), nonneg=True), cp.Variable(), cp.Variable()
    constraints = [cp.sum(share, axis=1) <= 1, steady <= 1]
    for slot, time_s in enumerate(times):
        is_over = due.n_slots[jobs] <= slot
        constraints += [cp.sum(time_s, axis=1) <= np.where(is_over, 0.0, lengths_s[slot])]
        used = due.gpus[jobs] @ time_s
        if slot == 0:
            used = used + lengths_s[0] * (others.gpus @ share)
        constraints.append(used <= due.capacity * lengths_s[slot])
    part = due.speeds[jobs] / due.work[jobs, None]
    done = sum(cp.sum(cp.multiply(part, time_s), axis=1) for time_s in times)
    now = cp.sum(cp.multiply(part, times[0]), axis=1)
    constraints.append(done + short >= 1)
    constraints.append(now >= steady * np.minimum(lengths_s[0] / due.deadline_s[jobs], 1))
    scale = others.gpus[:, None] * others.throughputs
    got = cp.sum(cp.multiply(scale / (others.alone * others.weights)[:, None], share), axis=1)
    constraints.append(got >= least)
    aims = STEADY * steady + least - KEPT * cp.sum(short)
    aims += MOST * (cp.sum(got) / len(others.gpus) + cp.sum(now) / len(jobs))
    cp.Problem(cp.Maximize(aims), constraints).solve(solver=cp.CLARABEL)
    return float(steady.value), float(least.value)


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

    start_s = time.perf_counter()
    jobs = promised()
    admission_s = time.perf_counter() - start_s
    start_s = time.perf_counter()
    expected = pace_by_cvxpy(due, jobs, others)
    baseline_s = time.perf_counter() - start_s
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


def pairs_by_cvxpy(measured: Profiles, case: Case, profile: np.ndarray) -> float:
    """Return the optimum over classes; z[a, b] is the time of pairs of a job of each."""
    n, copies = len(measured.gpus), np.bincount(profile, minlength=len(measured.gpus))
    x = cp.Variable((n, len(TYPES)), nonneg=True)
    earned, time = cp.sum(cp.multiply(measured.alone, x), axis=1), cp.sum(x, axis=1)
    constraints = []
    for kind in range(len(TYPES)):
        z = cp.Variable((n, n), nonneg=True)
        beside = measured.beside[:, :, kind]
        constraints.append(cp.multiply(z, (beside == 0) * (beside.T == 0)) == 0)
        earned += cp.sum(cp.multiply(beside, z + z.T), axis=1)
        time += cp.sum(z + z.T, axis=1)
        used = measured.gpus @ x[:, kind] + cp.sum(measured.gpus @ z)
        constraints.append(used <= case.capacity[kind])
    alone = measured.alone @ equal_share(case.gpus, case.capacity)
    level = cp.min(cp.multiply(measured.gpus / (alone * copies), earned))
    problem = cp.Problem(cp.Maximize(level), [*constraints, time <= copies])
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value)


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
