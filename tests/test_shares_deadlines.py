"""Promised deadlines: earliest deadline first on one GPU, cvxpy on several types, and kept."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from cluster_testing import Cluster
from rounds_testing import play
from shares_testing import optimum

from policies.admission import MARGIN, SLACK_S, admitted
from policies.contest import Contest, contest_of
from policies.deadline_shares import BROKEN, LOST, PROMISED, REFUSED, deadline_shares
from policies.deadlines import MOST_SLOTS, STEADY, Due, paced
from policies.linear_program import Status
from policies.rounds import ROUND_S
from policies.shortage import Shortage
from scheduler.core.cycle import DRY_RUN_ID, dry_run
from scheduler.core.model import DEFAULT_QUEUE, JobId
from scheduler.core.queue_tree import QueueTree

NEW = 1 + MARGIN


def due_on(
    speeds: list[list[float]], work: list[float], deadline_s: list[float], **more: list[float]
) -> Due:
    n_types = len(speeds[0])
    return Due.of(
        np.array(speeds),
        np.array(more.get("gpus", [1.0] * len(work))),
        work=np.array(work),
        deadline_s=np.array(deadline_s),
        capacity=np.array(more.get("capacity", [1.0] * n_types)),
    )


def admit(due: Due, kept: list[int] | None = None) -> list[int]:
    is_kept = np.isin(np.arange(len(due.work)), kept or [])
    order = np.argsort(~is_kept, kind="stable")
    return sorted(admitted(due, order, is_kept).tolist())


# Admission


def test_who_comes_later_does_not_take_a_promise_away() -> None:
    due = due_on([[1.0]] * 3, [50.0, 60.0, 10.0], [100.0, 100.0, 30.0])
    # The second does not fit beside the first; the third, though more urgent, does.
    assert admit(due) == [0, 2]
    assert admit(due, kept=[1]) == [1, 2]
    assert admit(due, kept=[0, 1]) == [0, 2]


def test_a_new_job_needs_a_margin_and_one_that_is_kept_does_not() -> None:
    tight = due_on([[1.0]], [98.0], [100.0])
    assert admit(tight) == []
    assert admit(tight, kept=[0]) == [0]
    assert admit(due_on([[1.0]], [100 / NEW - 0.1], [100.0])) == [0]


def test_gangs_count_their_gpus_and_types_their_speeds() -> None:
    speeds = [[1.0, 4.0], [1.0, 4.0]]
    # Both together need the fast type for 80 s, or one of them the slow one.
    due = due_on(speeds, [160.0, 160.0], [90.0, 90.0], gpus=[2.0, 2.0], capacity=[2.0, 2.0])
    assert admit(due) == [0, 1]
    due = due_on(speeds, [200.0, 250.0], [90.0, 90.0], gpus=[2.0, 2.0], capacity=[2.0, 2.0])
    assert admit(due) == [0]


@pytest.mark.parametrize("seed", range(12))
def test_on_one_gpu_it_is_earliest_deadline_first_one_after_another(seed: int) -> None:
    draw = np.random.default_rng(seed)
    work, deadline_s = draw.uniform(5, 40, 9), draw.uniform(20, 200, 9)

    def fits(jobs: list[int]) -> bool:
        jobs = sorted(jobs, key=lambda j: deadline_s[j])
        done_s = np.cumsum(work[jobs] * NEW)
        return bool((done_s <= deadline_s[jobs]).all())

    expected: list[int] = []
    for job in range(9):
        if fits([*expected, job]):
            expected.append(job)
    due = due_on([[1.0]] * 9, work.tolist(), deadline_s.tolist())
    assert admit(due) == expected


@pytest.mark.parametrize("seed", range(10))
def test_on_several_types_one_after_another_is_asked_of_a_program(seed: int) -> None:
    due = crowded(seed)
    expected: list[int] = []
    for job in range(len(due.work)):
        jobs = np.array([*expected, job])
        need = due.work * NEW
        if least_shortage(due, jobs, need) <= 1e-7:
            expected.append(job)
    assert 3 < len(expected) < len(due.work)
    assert admit(due) == expected


@pytest.mark.parametrize("seed", range(10))
def test_what_lacks_is_known_from_both_sides(seed: int) -> None:
    due = crowded(seed)
    part = due.speeds / due.work[:, None]
    in_time_s = due.lengths_s * (np.arange(len(due.ends_s)) < due.n_slots[:, None])
    speed = part[:, :, None] * in_time_s[:, None]
    held = (due.gpus[:, None] / due.capacity)[:, :, None]
    program = Shortage(
        speed=speed, demand=np.where(speed > 0, held, 0.0), asked=np.full(len(due.work), 1.0)
    )
    expected = least_shortage(due, np.arange(len(due.work)), due.work)
    least = program.solve(enough=1e-7, near=1.0)
    assert least.at_least == pytest.approx(expected, abs=1e-6)
    assert least.short.sum() == pytest.approx(expected, abs=1e-6)
    about = program.solve(enough=1e-7, near=0.5)
    assert expected / 2 <= about.at_least <= expected + 1e-7
    assert expected - 1e-7 <= about.short.sum() <= 2 * expected


def crowded(seed: int) -> Due:
    """Return jobs of which not all can meet their deadlines, some of them twice."""
    draw = np.random.default_rng(seed)
    twice = np.append(np.arange(9), draw.integers(0, 9, 5))
    speeds = np.exp(draw.normal(0, 1, (9, 3))) * (draw.random((9, 3)) > 0.2)
    speeds[:, 0] = np.maximum(speeds[:, 0], 0.1)
    deadline_s = draw.choice([60.0, 90.0, 200.0, 230.0, 400.0], 9)
    work = speeds.max(axis=1) * deadline_s * draw.uniform(0.2, 0.9, 9)
    return Due.of(
        speeds[twice],
        draw.choice([1.0, 2.0, 4.0], 9)[twice],
        work=work[twice],
        deadline_s=deadline_s[twice],
        capacity=np.array([2.0, 3.0, 4.0]),
    )


def least_shortage(due: Due, jobs: np.ndarray, need: np.ndarray) -> float:
    """Return the parts of their work that jobs cannot do in time, by cvxpy."""
    time_s = [cp.Variable((len(jobs), 3), nonneg=True) for _ in due.ends_s]
    short, done = cp.Variable(len(jobs), nonneg=True), 0
    limits = []
    for slot, (length_s, spent_s) in enumerate(zip(due.lengths_s, time_s, strict=True)):
        is_open = (due.n_slots[jobs] > slot).astype(float)
        limits.append(cp.sum(spent_s, axis=1) <= length_s * is_open)
        limits.append(due.gpus[jobs] @ spent_s <= due.capacity * length_s)
        done += cp.sum(cp.multiply(due.speeds[jobs] / due.work[jobs, None], spent_s), axis=1)
    limits.append(done + short >= (need / due.work)[jobs])
    return optimum(cp.Minimize(cp.sum(short)), limits)


def test_many_deadlines_are_rounded_down() -> None:
    n_jobs = MOST_SLOTS + 8
    deadline_s = np.linspace(100, 1000, n_jobs)
    due = due_on([[1.0]] * n_jobs, [15.0] * n_jobs, deadline_s.tolist())
    assert len(due.ends_s) == MOST_SLOTS
    assert (due.ends_s[due.n_slots - 1] <= deadline_s).all()
    promised = admit(due)
    assert promised
    done_s = np.cumsum(np.full(len(promised), 15.0))
    assert (done_s <= deadline_s[promised]).all()


# What is granted now


def drawn(seed: int) -> tuple[Due, dict[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    speeds = np.exp(draw.normal(0, 1, (11, 3))) * (draw.random((11, 3)) > 0.2)
    speeds[:, 0] = np.maximum(speeds[:, 0], 0.1)
    gpus = draw.choice([1.0, 2.0, 4.0], 11)
    deadline_s = draw.choice([50.0, 120.0, 300.0], 6)
    work = speeds[:6].max(axis=1) * deadline_s * draw.uniform(0.02, 0.4, 6)
    due = Due.of(
        speeds[:6],
        gpus[:6],
        work=work,
        deadline_s=deadline_s,
        capacity=gpus.sum() / 2 * np.array([0.2, 0.3, 0.5]),
    )
    others = {"speeds": speeds[6:], "gpus": gpus[6:], "weights": draw.uniform(0.5, 2, 5)}
    return due, others


@pytest.mark.parametrize("seed", range(8))
def test_the_aims_are_as_cvxpy_finds_them(seed: int) -> None:
    due, others = drawn(seed)
    jobs = admitted(due, np.arange(6), np.zeros(6, bool))
    pace = paced(due, jobs, **others)
    assert pace.status is Status.OPTIMAL
    n_slots, lengths_s = len(due.ends_s), due.lengths_s
    times = [cp.Variable((len(jobs), 3), nonneg=True) for _ in range(n_slots)]
    share = cp.Variable((5, 3), nonneg=True)
    steady, least = cp.Variable(), cp.Variable()
    held = others["gpus"] @ share * lengths_s[0]
    limits = [cp.sum(share, axis=1) <= 1, steady <= 1]
    for s, time in enumerate(times):
        limits.append(cp.sum(time, axis=1) <= lengths_s[s])
        used = due.gpus[jobs] @ time + (held if s == 0 else 0)
        limits.append(used <= due.capacity * lengths_s[s])
        late = [i for i, job in enumerate(jobs) if due.deadline_s[job] < due.ends_s[s]]
        limits += [time[i] == 0 for i in late]
    part = due.speeds[jobs] / due.work[jobs, None]
    limits.append(sum(cp.sum(cp.multiply(part, time), axis=1) for time in times) >= 1)
    now = cp.sum(cp.multiply(part, times[0]), axis=1)
    limits.append(now >= steady * lengths_s[0] / due.deadline_s[jobs])
    equal = due.capacity / max(others["gpus"].sum(), due.capacity.sum())
    alone = others["speeds"] @ equal
    scale = others["gpus"] / (alone * others["weights"])
    got = cp.multiply(scale, cp.sum(cp.multiply(others["speeds"], share), axis=1))
    limits.append(got >= least)
    best = optimum(cp.Maximize(STEADY * steady + least), limits)
    assert STEADY * pace.steady + pace.least == pytest.approx(best, rel=1e-4)
    assert pace.steady > 0.99
    together = due.gpus[jobs] @ pace.promised + others["gpus"] @ pace.others
    assert (together <= due.capacity * (1 + 1e-9)).all()


# Promises are kept


def contest(now_s: float, jobs: list[dict[str, float]], kept: frozenset[JobId]) -> Contest:
    n_jobs, types = len(jobs), ("A", "B")

    def column(name: str) -> np.ndarray:
        return np.array([job[name] for job in jobs])

    return replace(
        Contest.of_one_queue(
            np.arange(n_jobs),
            gpu_types=types,
            capacity=np.array([3.0, 3.0]),
            gpus=column("gpus"),
            weights=np.ones(n_jobs),
            speeds=np.column_stack([column("a"), column("b")]),
            elapsed_s=np.zeros(n_jobs),
            remaining_work=column("left"),
            done_work=np.zeros(n_jobs),
            price_usd_per_h=np.zeros(2),
        ),
        deadline_s=column("deadline_at_s") - now_s,
        job_ids=tuple(JobId(str(int(job["id"]))) for job in jobs),
        tree=QueueTree.of([DEFAULT_QUEUE], types),
        kept=kept,
    )


@pytest.mark.parametrize("seed", range(2))
def test_as_jobs_come_and_go_every_promise_is_kept(seed: int) -> None:
    draw = np.random.default_rng(seed)
    jobs: list[dict[str, float]] = []
    kept: frozenset[JobId] = frozenset()
    seen = set()
    now_s = 0.0
    for step in range(60):
        if step < 30:
            a, b = np.exp(draw.normal(0, 0.7, 2))
            gpus, work_s = float(draw.choice([1, 2, 3])), draw.uniform(30, 150)
            jobs.append(
                {
                    "id": step,
                    "gpus": gpus,
                    "a": a,
                    "b": b,
                    "left": max(a, b) * work_s,
                    "deadline_at_s": now_s + work_s * draw.uniform(0.9, 4)
                    if draw.random() < 0.7
                    else np.inf,
                }
            )
        if not jobs:
            break
        grant = deadline_shares(contest(now_s, jobs, kept))
        assert grant.is_solved
        for job, note in grant.notes.items():
            if note == BROKEN:  # by less than a second's work
                about = jobs[job]
                assert about["left"] <= SLACK_S * max(about["a"], about["b"])
        seen |= set(grant.notes.values())
        kept = grant.kept
        # What is granted holds until the first deadline.
        ahead_s = [job["deadline_at_s"] - now_s for job in jobs]
        step_s = min(10.0, *(s for s in ahead_s if s > 0), np.inf)
        now_s += step_s
        for job, (a, b) in zip(jobs, grant.fractions, strict=True):
            job["left"] -= step_s * (job["a"] * a + job["b"] * b)
            if JobId(str(int(job["id"]))) in kept and now_s >= job["deadline_at_s"]:
                assert job["left"] <= SLACK_S * max(job["a"], job["b"])
        jobs = [job for job in jobs if job["left"] > 1e-3]
        kept &= {JobId(str(int(job["id"]))) for job in jobs}
    assert {PROMISED, REFUSED} <= seen


# In the scheduler


def test_a_dry_run_says_whether_a_deadline_would_be_promised() -> None:
    cluster = Cluster("deadlines", now_s=10 * ROUND_S)
    cluster.add_nodes(1, gpus=1, gpu_type="V100")
    about = {"gpus": 1, "total_work": 3000.0, "checkpoint_interval_s": 60}
    cluster.submit("first", deadline_at_s=cluster.now_s + 4000.0, **about)
    cluster.settle()
    for name, deadline_s, note in (
        ("soon", 2000.0, LOST),
        ("beside", 5000.0, REFUSED),
        ("after", 7000.0, PROMISED),
    ):
        spec = cluster.spec(name, deadline_at_s=cluster.now_s + deadline_s, **about)
        plan = dry_run(cluster.snapshot(), cluster.policy, spec)
        assert plan.notes[DRY_RUN_ID] == note


def test_what_was_promised_is_taken_back_only_if_nodes_are_lost() -> None:
    cluster = Cluster("deadlines", now_s=10 * ROUND_S)
    cluster.add_nodes(2, gpus=1, gpu_type="V100")
    about = {"gpus": 1, "total_work": 3000.0, "checkpoint_interval_s": 60}
    for name in ("a", "b"):
        cluster.submit(name, deadline_at_s=cluster.now_s + 4000.0, **about)
    plan = cluster.cycle().plan
    assert set(plan.notes.values()) == {PROMISED}
    cluster.run_all()
    cluster.submit("c", **about)
    cluster.remove_node("node-1")
    assert sorted(cluster.cycle().plan.notes.values()) == [PROMISED, BROKEN]


def test_the_promised_run_and_the_others_have_the_rest() -> None:
    cluster = Cluster("deadlines", now_s=10 * ROUND_S)
    cluster.add_nodes(1, gpus=1, gpu_type="V100")
    cluster.submit("other", gpus=1, checkpoint_interval_s=20, expected_run_s=1e5)
    play(cluster, 2)
    now_s = cluster.now_s
    cluster.submit(
        "due",
        gpus=1,
        checkpoint_interval_s=20,
        total_work=20 * ROUND_S,
        deadline_at_s=now_s + 30 * ROUND_S,
    )
    play(cluster, 20)
    snapshot = cluster.snapshot()
    left = contest_of(snapshot).remaining_work
    # Two thirds of the time are its steady pace.
    assert left[1] < 20 * ROUND_S * 0.5
    assert left[0] < 1e5 - 3 * ROUND_S
