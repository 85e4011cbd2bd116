"""The `lepton` program: closed forms, what it never gives up, and cvxpy on the same program."""

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from shares_testing import optimum

from policies.contest import Contest
from policies.lepton import DEADLINE, GUARANTEE, MANY, Needs, Terms, lepton_shares, solve
from policies.linear_program import Status
from scheduler.core.model import DEFAULT_QUEUE, Queue, QueueName
from scheduler.core.queue_tree import QueueTree

HOUR_S = 3600.0
FREE = Terms(cost=0.0, fair_within=1.5)


def contest_of(
    speeds: list[list[float]], capacity: list[float], *queues: Queue, **columns: object
) -> Contest:
    """Return a contest of new jobs of one GPU and an hour's work, unless columns say more."""
    n_jobs, types = len(speeds), ("A", "B", "C")[: len(capacity)]
    about = {
        "gpus": np.ones(n_jobs),
        "weights": np.ones(n_jobs),
        "elapsed_s": np.zeros(n_jobs),
        "remaining_work": np.array(speeds).max(axis=1) * HOUR_S,
        "done_work": np.zeros(n_jobs),
        "on_type": np.full(n_jobs, -1),
        "loss_s": np.zeros(n_jobs),
        "deadline_s": np.full(n_jobs, np.inf),
        "priority": np.zeros(n_jobs, int),
        "is_described": np.ones(n_jobs, bool),
        "queue": np.zeros(n_jobs, int),
        "price_usd_per_h": np.zeros(len(types)),
        "held_elsewhere": np.zeros((max(len(queues), 1), len(types))),
    } | {name: np.array(column) for name, column in columns.items()}
    return Contest(
        rows=np.arange(n_jobs),
        gpu_types=types,
        capacity=np.array(capacity),
        speeds=np.array(speeds),
        tree=QueueTree.of(queues or [DEFAULT_QUEUE], types),
        **about,
    )


def shares(contest: Contest, terms: Terms = FREE) -> np.ndarray:
    answer = lepton_shares(contest, terms)
    assert answer.status is Status.OPTIMAL
    fractions = answer.fractions
    assert (fractions >= 0).all()
    assert (fractions.sum(axis=1) <= 1 + 1e-9).all()
    assert (contest.gpus @ fractions <= contest.capacity * (1 + 1e-9)).all()
    return fractions


# Closed forms


def test_the_short_go_first_among_those_who_have_what_is_fair() -> None:
    contest = contest_of([[1.0], [1.0]], [1.0], remaining_work=[HOUR_S, 4 * HOUR_S])
    # Each on half a GPU ends within 1.5 of its fair finish at a third of its speed.
    np.testing.assert_allclose(shares(contest)[:, 0], [2 / 3, 1 / 3], atol=1e-7)


def test_who_waited_beyond_what_is_fair_goes_first() -> None:
    contest = contest_of(
        [[1.0], [1.0]],
        [1.0],
        remaining_work=[HOUR_S, 4 * HOUR_S],
        elapsed_s=[0.0, 12 * HOUR_S],
    )
    np.testing.assert_allclose(shares(contest)[:, 0], [0.0, 1.0], atol=1e-7)


def test_weight_is_of_the_fair_share() -> None:
    contest = contest_of([[1.0], [1.0]], [1.0], weights=[3.0, 1.0])
    # Fair are 3/4 and 1/4, two thirds of them are needed; the rest is worth as much for both.
    had = shares(contest)[:, 0]
    assert had.sum() == pytest.approx(1)
    assert (had >= np.array([1 / 2, 1 / 6]) - 1e-7).all()


def test_jobs_go_where_they_are_fastest_beside_each_other() -> None:
    fractions = shares(contest_of([[10.0, 1.0], [2.0, 1.0]], [1.0, 1.0]))
    np.testing.assert_allclose(fractions, [[1, 0], [0, 1]], atol=1e-6)


def test_a_deadline_is_met_at_others_cost_but_no_more_than_met() -> None:
    contest = contest_of(
        [[1.0], [1.0]],
        [1.0],
        remaining_work=[HOUR_S, 4 * HOUR_S],
        deadline_s=[np.inf, 5 * HOUR_S],
    )
    np.testing.assert_allclose(shares(contest)[:, 0], [0.2, 0.8], atol=1e-7)


def test_dear_gpus_are_for_who_gains_by_them() -> None:
    speeds = [[2.0, 1.8], [2.0, 0.5]]
    contest = contest_of(speeds, [2.0, 2.0], price_usd_per_h=[4.0, 1.0])
    np.testing.assert_allclose(shares(contest), [[1, 0], [1, 0]], atol=1e-6)
    np.testing.assert_allclose(shares(contest, Terms(cost=0.6)), [[0, 1], [1, 0]], atol=1e-6)


def test_only_what_pays_within_the_hour_moves() -> None:
    speeds = [[1.0, 1.2]]
    stay = contest_of(speeds, [1.0, 1.0], on_type=[0], loss_s=[1800.0])
    np.testing.assert_allclose(shares(stay), [[1, 0]], atol=1e-7)
    move = replace(stay, loss_s=np.array([300.0]))
    np.testing.assert_allclose(shares(move), [[0, 1]], atol=1e-7)


def test_what_a_queue_is_guaranteed_it_gets_if_it_wants_it() -> None:
    ours = Queue(name=QueueName("ours"), guaranteed=(("gpu_milli", 2_500),))
    theirs = Queue(name=QueueName("theirs"))
    # Twenty jobs of theirs are shorter and better, five of ours wait.
    contest = contest_of(
        [[1.0]] * 25,
        [4.0],
        ours,
        theirs,
        queue=[0] * 5 + [1] * 20,
        remaining_work=[100 * HOUR_S] * 5 + [HOUR_S] * 20,
    )
    assert shares(contest)[:5].sum() == pytest.approx(2.5)
    few = replace(contest, queue=np.array([0] + [1] * 24))
    assert shares(few)[0].sum() == pytest.approx(1.0)
    held = replace(contest, held_elsewhere=np.array([[1.5], [0.0]]))
    assert shares(held)[:5].sum() == pytest.approx(1.0)


def test_a_guarantee_of_a_type_is_of_that_type() -> None:
    ours = Queue(name=QueueName("ours"), guaranteed=(("gpu_milli:A", 1_000),))
    contest = contest_of(
        [[1.0, 1.0], [5.0, 1.0]],
        [1.0, 1.0],
        ours,
        Queue(name=QueueName("theirs")),
        queue=[0, 1],
    )
    np.testing.assert_allclose(shares(contest), [[1, 0], [0, 1]], atol=1e-6)


def test_priority_classes_are_served_one_after_another() -> None:
    contest = contest_of([[1.0]] * 3, [1.5], priority=[0, 1, 0])
    np.testing.assert_allclose(shares(contest)[:, 0], [0.25, 1.0, 0.25], atol=0.0834)
    assert shares(contest)[1, 0] == pytest.approx(1.0)


def test_nobody() -> None:
    empty = replace(
        contest_of([[1.0]], [1.0]),
        speeds=np.zeros((0, 1)),
        **{
            name: np.zeros(0)
            for name in ("gpus", "weights", "elapsed_s", "remaining_work", "done_work")
        },
        priority=np.zeros(0, int),
        queue=np.zeros(0, int),
    )
    assert shares(empty).shape == (0, 1)


# Properties, on drawn contests


def drawn(seed: int, n_jobs: int = 14) -> Contest:
    draw = np.random.default_rng(seed)
    speeds = np.exp(draw.normal(0, 1, (n_jobs, 3))) * (draw.random((n_jobs, 3)) > 0.2)
    speeds[:, 0] = np.maximum(speeds[:, 0], 0.1)
    gpus = draw.choice([1.0, 2.0, 4.0], n_jobs)
    remaining = speeds.max(axis=1) * draw.uniform(100, 1e5, n_jobs)
    queues = (
        Queue(name=QueueName("a"), guaranteed=(("gpu_milli", 4_000),)),
        Queue(name=QueueName("b"), guaranteed=(("gpu_milli:B", 2_000),)),
        Queue(name=QueueName("c"), parent=QueueName("b")),
    )
    return contest_of(
        speeds.tolist(),
        (gpus.sum() / 2 * np.array([0.2, 0.3, 0.5])).tolist(),
        *queues,
        gpus=gpus,
        weights=draw.uniform(0.5, 2, n_jobs),
        elapsed_s=draw.uniform(0, 1e5, n_jobs),
        remaining_work=remaining,
        done_work=remaining * draw.random(n_jobs),
        on_type=draw.integers(-1, 1, n_jobs),
        loss_s=draw.uniform(0, 600, n_jobs),
        deadline_s=np.where(draw.random(n_jobs) < 0.3, draw.uniform(100, 1e5, n_jobs), np.inf),
        queue=draw.integers(0, 3, n_jobs),
        price_usd_per_h=[4.0, 2.0, 1.0],
    )


def earned(contest: Contest, terms: Terms) -> np.ndarray:
    return (contest.speeds * shares(contest, terms)).sum(axis=1)


@pytest.mark.parametrize("seed", range(4))
def test_units_and_the_order_of_jobs_do_not_matter(seed: int) -> None:
    contest = drawn(seed)
    expected = lepton_shares(contest)
    order = np.random.default_rng(seed).permutation(14)
    by_job = ("gpus", "weights", "elapsed_s", "remaining_work", "done_work", "on_type")
    by_job += ("loss_s", "deadline_s", "priority", "queue", "speeds")
    mixed = replace(contest, **{name: getattr(contest, name)[order] for name in by_job})
    mixed = replace(
        mixed,
        speeds=mixed.speeds * 3.0,
        remaining_work=mixed.remaining_work * 3.0,
        done_work=mixed.done_work * 3.0,
        weights=mixed.weights * 2.0,
        price_usd_per_h=mixed.price_usd_per_h * 7.0,
    )
    answer = lepton_shares(mixed)
    # Doubled weights double what progress is worth, and all that is weighed against it.
    assert answer.value == pytest.approx(2 * expected.value, rel=1e-6)
    np.testing.assert_allclose(answer.fractions, expected.fractions[order], atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_pool_of_two_names_is_one(seed: int) -> None:
    contest = replace(drawn(seed), queue=np.zeros(14, int), on_type=np.full(14, -1))
    contest = replace(contest, tree=QueueTree.of([DEFAULT_QUEUE], contest.gpu_types))
    split = replace(
        contest,
        gpu_types=("A", "A2", "B", "C"),
        capacity=contest.capacity[[0, 0, 1, 2]] * [0.3, 0.7, 1.0, 1.0],
        speeds=contest.speeds[:, [0, 0, 1, 2]],
        tree=QueueTree.of([DEFAULT_QUEUE], ("A", "A2", "B", "C")),
        price_usd_per_h=np.zeros(4),
        held_elsewhere=np.zeros((1, 4)),
    )
    one = replace(contest, price_usd_per_h=np.zeros(3), held_elsewhere=np.zeros((1, 3)))
    assert lepton_shares(split).value == pytest.approx(lepton_shares(one).value, rel=1e-6)


def test_out_of_time_it_says_so() -> None:
    queues = [
        Queue(name=QueueName(f"q{i}"), guaranteed=(("gpu_milli", 1_000),))
        for i in range(MANY + 1)
    ]
    n_jobs = 3_000
    contest = contest_of(
        np.random.default_rng(0).uniform(1, 2, (n_jobs, 1)).tolist(),
        [100.0],
        *queues,
        queue=np.arange(n_jobs) % len(queues),
    )
    assert lepton_shares(contest, time_limit_s=1e-9).status is Status.LIMIT


# Jobs that say nothing


def test_what_the_silent_are_granted_together_goes_to_who_came_first() -> None:
    contest = contest_of([[1.0]] * 5, [3.0], is_described=[False] * 4 + [True])
    # The fifth says an hour, as all are guessed to take; each has its fair 3/5, or near it.
    had = shares(contest)[:, 0]
    assert had[4] == pytest.approx(3 - had[:4].sum())
    assert 0.4 - 1e-6 <= had[4] <= 1
    np.testing.assert_allclose(had[:2], 1.0, atol=1e-6)
    assert 0 <= had[2] < 1
    assert had[3] < 1e-6


def test_the_silent_who_run_have_theirs_before_those_who_came_first() -> None:
    contest = contest_of([[1.0]] * 3, [1.0], is_described=[False] * 3, on_type=[-1, -1, 0])
    np.testing.assert_allclose(shares(contest)[:, 0], [0, 0, 1], atol=1e-6)


def test_a_wide_job_that_says_nothing_is_dealt_its_gpus_in_turn() -> None:
    contest = contest_of([[1.0]] * 3, [6.0], is_described=[False] * 3, gpus=[1.0, 4.0, 2.0])
    np.testing.assert_allclose(shares(contest)[:, 0], [1, 1, 0.5], atol=1e-6)


# The same program by cvxpy


def drawn_needs(seed: int, n_jobs: int = 12) -> Needs:
    draw = np.random.default_rng(seed)
    speeds = np.exp(draw.normal(0, 1, (n_jobs, 3))) * (draw.random((n_jobs, 3)) > 0.2)
    speeds[:, 0] = np.maximum(speeds[:, 0], 0.1)
    full, gpus = speeds.max(axis=1), draw.choice([1.0, 2.0, 4.0], n_jobs)
    fair = full * draw.uniform(0, 1, n_jobs) * (draw.random(n_jobs) < 0.8)
    due = full * draw.uniform(0, 1, n_jobs) * (draw.random(n_jobs) < 0.4)
    return Needs(
        speeds=speeds,
        gpus=gpus,
        capacity=gpus.sum() / 3 * np.array([0.2, 0.3, 0.5]),
        worth=np.where(speeds > 0, draw.normal(1, 1, (n_jobs, 3)), 0.0),
        fair=fair,
        unfair=10 * gpus * fair / full,
        due=due,
        missed=10 * DEADLINE * gpus * due / full,
        guaranteed=np.array([2.0, 1.0]),
        is_in=(draw.random((2, n_jobs)) < 0.5).astype(float),
        counts=np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]),
        lacking=10 * GUARANTEE,
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_optimum_is_as_cvxpy_finds_it(seed: int) -> None:
    needs = drawn_needs(seed)
    x = cp.Variable(needs.speeds.shape, nonneg=True)
    unfair, missed = cp.Variable(12, nonneg=True), cp.Variable(12, nonneg=True)
    lacking = cp.Variable(2, nonneg=True)
    got = cp.sum(cp.multiply(needs.speeds, x), axis=1)
    held = cp.multiply(needs.gpus[:, None], x)
    limits = [
        cp.sum(x, axis=1) <= 1,
        needs.gpus @ x <= needs.capacity,
        unfair <= 1,
        missed <= 1,
    ]
    limits += [got + cp.multiply(needs.fair, unfair) >= needs.fair]
    limits += [got + cp.multiply(needs.due, missed) >= needs.due]
    for i in range(2):
        counted = np.outer(needs.is_in[i], needs.counts[i])
        limits.append(cp.sum(cp.multiply(counted, held)) + lacking[i] >= needs.guaranteed[i])
    value = cp.sum(cp.multiply(needs.worth, x)) - needs.unfair @ unfair
    value += -needs.missed @ missed - needs.lacking * cp.sum(lacking)
    expected = optimum(cp.Maximize(value), limits)
    answer = solve(needs)
    assert answer.status is Status.OPTIMAL
    assert answer.value == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert (answer.prices >= -1e-9).all()
