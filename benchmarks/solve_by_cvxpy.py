"""The programs of `solve` as researchers write them, in cvxpy: each returns its optimum."""

import cvxpy as cp
import numpy as np
from solve_cases import TYPES, Case

from policies.deadlines import KEPT, MOST, STEADY, Due
from policies.lepton import Needs
from policies.shares import equal_share
from policies.space_sharing import Profiles


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
