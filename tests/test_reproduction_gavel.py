"""Gavel's rounds by hand, and its policies on a trace small enough to follow."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from policies.contest import Contest
from simulator.reproduction.gavel import (
    STATIC_GPUS,
    Experiment,
    generated,
    in_whole_steps,
    run,
)
from simulator.reproduction.gavel_rounds import NewJob, Rounds
from simulator.reproduction.gavel_shares import (
    GAVEL_POLICIES,
    FinishTimeFairness,
    FirstComeFirstServed,
    TieBreak,
    first_come_first_served_perf,
)
from simulator.traces.gavel import JobType

TYPES = ("K80", "V100")


def contest(speeds, *, capacity=(1.0, 1.0), gpus=None, rows=None, left=None, elapsed=None):
    n = len(speeds)
    return Contest.of_one_queue(
        np.arange(n) if rows is None else np.array(rows),
        gpu_types=TYPES,
        capacity=np.array(capacity),
        gpus=np.ones(n) if gpus is None else np.array(gpus, float),
        weights=np.ones(n),
        speeds=np.array(speeds, float),
        elapsed_s=np.zeros(n) if elapsed is None else np.array(elapsed, float),
        remaining_work=np.ones(n) if left is None else np.array(left, float),
        done_work=np.zeros(n),
        price_usd_per_h=np.zeros(2),
    )


def rounds(share, **options) -> Rounds:
    """Return rounds on one GPU of each type, with shares that never change."""
    return Rounds(
        gpu_types=TYPES,
        capacity=np.ones(2),
        program=lambda contest: np.array(share, float)[contest.rows],
        **options,
    )


def jobs(*speeds, steps=10_000.0):
    def meet(numbers):
        return [
            NewJob(number=n, at_s=0.0, gpus=1.0, weight=1.0, speeds=speeds[n], steps=steps)
            for n in numbers
        ]

    return meet


def test_who_had_least_of_its_share_of_a_type_goes_first():
    meet = jobs((1.0, 2.0), (1.0, 2.0))
    mechanism = rounds([[0.0, 0.5], [0.0, 0.5]])
    live = np.arange(2)
    on_v100 = []
    for number in range(4):
        mechanism.next_round(360.0 * number, live, meet)
        on_v100.append([job for job, kind in mechanism.turns().items() if kind == 1])
    assert on_v100 == [[0], [1], [0], [1]], "equal shares take turns"
    assert mechanism.n_solves == 1


def test_who_has_no_share_fills_what_is_left_unless_the_policy_is_first_come_first_served():
    meet = jobs((1.0, 2.0), (1.0, 2.0))
    share = [[0.0, 1.0], [0.0, 0.0]]
    fills, waits = rounds(share), rounds(share, fills=False)
    for mechanism in (fills, waits):
        mechanism.next_round(0.0, np.arange(2), meet)
    assert fills.turns() == {0: 1, 1: 0}
    assert waits.turns() == {0: 1}


def test_who_has_no_share_of_a_type_can_be_made_to_wait_for_its_own():
    meet = jobs((1.0, 2.0), (1.0, 2.0), (1.0, 2.0))
    share = [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    at_once, last = rounds(share), rounds(share, fills_last=True)
    for mechanism in (at_once, last):
        mechanism.next_round(0.0, np.arange(3), meet)
    assert at_once.turns() == {0: 1, 1: 0}, "job 0 fills the V100, which comes first"
    assert last.turns() == {0: 0, 1: 1}, "it has its K80, and others fill the V100"


def test_a_job_never_runs_where_it_has_no_speed():
    mechanism = rounds([[0.0, 1.0], [0.0, 1.0]])
    mechanism.next_round(0.0, np.arange(2), jobs((0.0, 2.0), (0.0, 2.0)))
    assert mechanism.turns() == {0: 1}


def test_a_round_ends_with_its_latest_job_and_jobs_do_whole_steps():
    mechanism = rounds([[0.0, 1.0], [1.0, 0.0]])
    meet = jobs((0.3, 0.014), (0.013, 1.0))
    mechanism.next_round(0.0, np.arange(2), meet)
    # Job 0 does 5 steps in 357.1 s on a V100, job 1 does 4 in 307.7 s on a K80.
    assert mechanism.ends_s == pytest.approx(5 / 0.014)
    assert mechanism.left_after(0) == 10_000 - 5
    assert mechanism.left_after(1) == 10_000 - 4
    mechanism.next_round(mechanism.ends_s, np.arange(2), meet)
    assert mechanism.left_after(0) == 10_000 - 10


def test_shares_are_solved_again_once_jobs_changed_and_1920_s_have_passed():
    meet = jobs(*[(1.0, 2.0)] * 3)
    mechanism = rounds([[0.5, 0.5]] * 3)
    mechanism.next_round(1000.0, np.arange(2), meet)
    assert mechanism.n_solves == 1
    for number in range(1, 6):
        mechanism.next_round(1000.0 + 360.0 * number, np.arange(3), meet)
        assert mechanism.n_solves == 1
        assert 2 not in mechanism.turns(), "it came after the solve"
    mechanism.next_round(1000.0 + 360.0 * 6, np.arange(3), meet)
    assert mechanism.n_solves == 2
    for number in range(7, 15):
        mechanism.next_round(1000.0 + 360.0 * number, np.arange(3), meet)
    assert mechanism.n_solves == 2, "nobody came or went"


def test_who_came_since_the_solve_takes_a_place_that_others_lack():
    meet = jobs(*[(1.0, 2.0)] * 3)
    mechanism = Rounds(
        gpu_types=TYPES,
        capacity=np.array([1.0, 2.0]),
        program=lambda contest: np.array([[0.0, 1.0], [0.0, 0.0]])[contest.rows],
    )
    mechanism.next_round(1000.0, np.arange(1), meet)
    mechanism.next_round(1360.0, np.arange(2), meet)
    assert mechanism.turns() == {0: 1}


def test_deficits_break_ties():
    meet = jobs(*[(0.0, 2.0)] * 3)
    mechanism = rounds([[0.0, 0.5], [0.0, 0.5], [0.0, 0.0]])
    turns = []
    for number in range(8):
        # A third job comes, so that shares are solved again after seven rounds.
        mechanism.next_round(360.0 * number, np.arange(3 if number == 7 else 2), meet)
        turns += mechanism.turns()
    assert turns[:7] == [0, 1, 0, 1, 0, 1, 0]
    assert turns[7] == 1, "it had three of the seven, and is owed half a turn"


def test_blind_policies_go_through_the_types_in_random_order():
    meet = jobs((1.0, 1.0))
    mechanism = rounds([[0.5, 0.5]], sees_speeds=False)
    seen = []
    for number in range(8):
        mechanism.next_round(360.0 * number, np.arange(1), meet)
        seen += mechanism.turns().values()
    assert set(seen) == {0, 1}


# Shares


def test_first_come_first_served_with_speeds_stops_at_who_must_wait():
    share = first_come_first_served_perf(
        contest([(1, 3), (1, 3), (1, 3), (1, 3)], capacity=(1, 2), gpus=[1, 2, 1, 1])
    )
    np.testing.assert_array_equal(share, [[0, 1], [0, 0], [0, 0], [0, 0]])
    share = first_come_first_served_perf(contest([(1, 3), (1, 3), (0, 3)]))
    np.testing.assert_array_equal(share, [[0, 1], [1, 0], [0, 0]])


def test_first_come_first_served_without_speeds_keeps_places_and_hands_them_on():
    policy = FirstComeFirstServed()
    both = contest([(1, 1), (1, 1)], capacity=(1.0, 1.0), rows=[0, 1])
    before = policy(both)
    assert before[0].tolist() == [0, 1], "the last type with room"
    after = policy(contest([(1, 1), (1, 1)], rows=[1, 2]))
    assert after[:, 1].sum() >= 1


def test_finish_time_fairness_counts_the_time_alone_from_the_work_done():
    policy = FinishTimeFairness()
    speeds = [(0, 1), (0, 1)]
    equal = policy(contest(speeds, capacity=(0, 1), left=[100, 100]))
    np.testing.assert_allclose(equal[:, 1], [0.5, 0.5], atol=1e-6)
    # Job 0 did nothing in 100 s: it is late, and gets more than half.
    later = policy(contest(speeds, capacity=(0, 1), left=[100, 50], elapsed=[100, 100]))
    # Alone it would take 200 s in all, job 1 too, of which half are over.
    np.testing.assert_allclose(later[:, 1], [2 / 3, 1 / 3], atol=1e-5)


def test_zeros_of_the_cost_program_are_ranked_by_what_running_there_loses():
    speeds = [(1.0, 3.0), (0.1, 10.0), (0.6, 2.0)]
    big = contest(speeds, capacity=(3.0, 3.0))
    program = GAVEL_POLICIES["max_sum_throughput_normalized_by_cost_perf"].program
    plain, ranked = program(TieBreak.OTHER)(big), program(TieBreak.OWN)(big)
    # Dollars: a K80 costs 0.135, a V100 0.74, so jobs 0 and 2 do more per dollar on a K80.
    np.testing.assert_allclose(plain, [[1, 0], [0, 1], [1, 0]], atol=1e-9)
    np.testing.assert_allclose(ranked, plain, atol=1e-5)
    assert ranked[2, 1] > ranked[0, 1] > 0, "1.7 a dollar less, against 3.4"


def test_blind_max_min_gives_each_job_the_clusters_mix():
    program = GAVEL_POLICIES["max_min_fairness"].program(TieBreak.OWN)
    share = program(contest([(1, 5), (2, 3), (1, 1), (1, 9)], capacity=(1.0, 1.0)))
    np.testing.assert_allclose(share, np.full((4, 2), 0.25), atol=1e-6)


# Through the scheduler

THROUGHPUTS = {
    "v100": {"('A', 1)": {"null": 2.0}, "('B', 2)": {"null": 1.0}},
    "p100": {"('A', 1)": {"null": 1.0}, "('B', 2)": {"null": 0.5}},
    "k80": {"('A', 1)": {"null": 0.5}, "('B', 2)": {"null": 0.0}},
}


def write_trace(folder, *lines):
    text = json.dumps(THROUGHPUTS).encode()
    (folder / "physical_cluster_throughputs.json.gz").write_bytes(gzip.compress(text))
    rows = [
        f"{name}\tcommand\tfolder\t-n\t1\t{steps}\t{gpus}\t1\t-1\t{at_s}\n"
        for name, gpus, steps, at_s in lines
    ]
    (folder / "tiny.trace.gz").write_bytes(gzip.compress("".join(rows).encode()))


TINY = Experiment(name="static_tiny", gpus={"V100": 1, "P100": 2, "K80": 1})


def test_first_come_first_served_on_a_trace_that_can_be_followed(tmp_path):
    write_trace(tmp_path, ("A", 1, 1440, 0), ("B", 2, 360, 0), ("A", 1, 720, 0))
    figures = run(TINY, "fifo_perf", tmp_path)
    # For 720 s the jobs are on the V100, on both P100, and on the K80, where half of job 2 is
    # done. A first solve at 0 is followed by another one as soon as anything changes, so that
    # job 2 does the rest on the V100, in 180 s.
    assert figures.jct_s == pytest.approx((720 + 720 + 900) / 3)
    assert figures.makespan_s == pytest.approx(900)
    usd = (720 * 0.74 + 720 * 2 * 0.43 + 720 * 0.135 + 180 * 0.74) / 3600
    assert figures.cost_usd == pytest.approx(usd)
    assert (figures.n_rounds, figures.n_turns, figures.n_solves) == (3, 7, 2)


def test_who_comes_between_solves_waits_for_the_next(tmp_path):
    write_trace(tmp_path, ("A", 1, 14400, 0), ("A", 1, 720, 400))
    figures = run(TINY, "fifo_perf", tmp_path)
    # It came during the second round; the solve at 720 s is the second, as the first was at 0.
    assert figures.jct_s == pytest.approx((7200 + 1040) / 2)


def test_when_all_have_come_and_nobody_runs_there_is_a_solve_at_once(tmp_path):
    write_trace(tmp_path, ("A", 1, 720, 100), ("A", 1, 720, 200))
    figures = run(TINY, "fifo_perf", tmp_path)
    # Job 0 runs from 100 to 460 s on the V100; the next solve would be due at 2,020 s.
    assert figures.makespan_s == pytest.approx(820)


@pytest.mark.parametrize("policy", sorted(GAVEL_POLICIES))
def test_every_policy_ends_all_jobs_and_repeats_itself(tmp_path, policy):
    lines = [("A" if n % 3 else "B", 1 if n % 3 else 2, 700 + 40 * n, 50 * n) for n in range(9)]
    write_trace(tmp_path, *lines)
    small = replace(TINY, gpus={"V100": 2, "P100": 2, "K80": 1})
    first, again = (run(small, policy, tmp_path) for _ in range(2))
    assert first == again
    assert np.isfinite(first.jct_s)
    least = sum(steps / (2.0 if name == "A" else 1.0) for name, _, steps, _ in lines)
    assert first.makespan_s > least / 4


def test_jobs_of_the_window_end_the_run(tmp_path, monkeypatch):
    throughputs = {JobType("A", 1): (("K80", 0.5), ("P100", 1.0), ("V100", 2.0))}
    monkeypatch.setattr("simulator.reproduction.gavel.MODELS", ("A",))
    monkeypatch.setattr(
        "simulator.reproduction.gavel._generated_jobs", lambda folder: generated(throughputs)
    )
    window = Experiment(name="made", gpus=STATIC_GPUS, window=range(2, 5))
    figures = run(window, "fifo_perf", tmp_path)
    assert 0 < figures.n_turns < 10_000, "later jobs come without end"


def test_jobs_as_fast_as_whole_steps_allow(monkeypatch):
    monkeypatch.setattr("simulator.reproduction.gavel.MODELS", ("A",))
    job = next(generated({JobType("A", 1): (("V100", 0.999),)}))
    assert in_whole_steps(job).behaviour.speeds == (("V100", 359 / 360),)
