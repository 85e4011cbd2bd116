"""Capacity planning: goals, prices, the programs, and a search against brute force."""

import itertools
import math
import random
from pathlib import Path

import pytest
from planning_testing import demand, offer
from report_testing import NONE, job, run_of
from simulation_testing import trace_job

from scheduler.core.errors import InvalidInput
from simulator.demand import cheapest_mix, demand_of, worths
from simulator.goals import check_goals, parse_goals
from simulator.planning import Search, chosen_offers, driven
from simulator.prices import PriceError, load_prices, parse_prices
from simulator.report import summarised
from simulator.run import ServiceFigures
from simulator.workload import FOREVER, Steady

# Goals


@pytest.mark.parametrize(
    ("text", "figure", "limit", "is_at_most", "queue"),
    [
        ("p95 wait < 10m in research", "wait_p95_s", 600.0, True, "research"),
        ("p95 wait of research under 10 min", "wait_p95_s", 600.0, True, "research"),
        ("mean jct at most 4h", "jct_mean_s", 14_400.0, True, ""),
        ("utilisation > 60%", "utilisation", 0.6, False, ""),
        ("lost_share <= 0.05", "lost_share", 0.05, True, ""),
        ("ftf max < 3", "ftf_max", 3.0, True, ""),
        ("95% of jobs within deadline", "deadlines_met", 0.95, False, ""),
        ("95 % of research within their deadlines", "deadlines_met", 0.95, False, "research"),
        ("99.9% of requests within latency", "within_target", 0.999, False, ""),
    ],
)
def test_goals_are_read(text: str, figure: str, limit: float, is_at_most: bool, queue: str):
    [goal] = parse_goals(text)

    assert (goal.figure, goal.queue, goal.is_at_most) == (figure, queue, is_at_most)
    assert goal.limit == pytest.approx(limit)


def test_several_goals_are_joined_by_and():
    goals = parse_goals("p95 wait < 10m in research and 99.9 % of chat within its latency")

    assert [goal.queue for goal in goals] == ["research", ""]
    assert goals[1].service == "chat"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("be quick", "write for example"),
        ("p95 speed < 10m", "'p95 speed' is no figure; there are: mean wait"),
        ("p95 wait < 10", "10 of what? write 10s, 10m or 10h"),
        ("utilisation > lots", "write for example"),
        ("utilisation > 5x", "'5x' is not an amount of share"),
        ("makespan_s < 3d in research", ""),
        ("utilisation > 60% in research", "is not known per queue"),
        ("120% of jobs within deadline", "more than 100 %"),
        ("", "write for example"),
    ],
)
def test_what_is_no_goal_is_told_with_the_rule(text: str, rule: str):
    if not rule:
        assert parse_goals(text)[0].queue == "research"
        return
    with pytest.raises(InvalidInput) as told:
        parse_goals(text)
    assert "goal" in str(told.value)
    assert rule in str(told.value)


def test_a_goal_judges_its_queue_and_says_how_far_off_it_is():
    rows = [job(0, 0, 100, queue="a"), job(0, 300, 400, queue="b"), job(0, 0, 9, queue="a")]
    summary = summarised(run_of(rows))
    [of_b, of_all, use] = parse_goals(
        "mean wait < 10m in b and mean wait < 50s and utilisation > 99%"
    )

    assert (of_b.value(summary), of_b.shortfall(300.0)) == (300.0, 0.5)
    assert of_all.shortfall(of_all.value(summary)) == pytest.approx(2.0)
    assert use.shortfall(0.98) == pytest.approx(2.0)
    assert use.shortfall(NONE) == math.inf


@pytest.mark.parametrize("text", ["p95 wait < 1h", "makespan_s < 1d", "ftf_max < 2"])
def test_who_never_starts_fails_every_goal_of_time(text: str):
    rows = [job(0, 0, 100), job(99, NONE, NONE, phase="pending", waited_s=1.0)]
    [goal] = parse_goals(text)

    assert goal.value(summarised(run_of(rows, until_s=100.0))) == math.inf


def test_goals_about_what_is_not_there_are_refused():
    chat = ServiceFigures(
        name="chat", n_requests=1.0, within_target=0.99, p99_latency_s=1.0, replica_s=1.0
    )
    summary = summarised(run_of([job(0, 0, 1, queue="a")], services=(chat,)))

    check_goals(parse_goals("99% of chat within latency"), summary)
    for text, rule in (
        ("p95 wait < 1h in b", "no job is in queue b; queues: a"),
        ("99% of talk within latency", "there is no service talk; services: chat"),
    ):
        with pytest.raises(InvalidInput, match=rule):
            check_goals(parse_goals(text), summary)


# Prices


HEADER = "pool,gpu_type,gpus,gpu_memory_gib,cpus,memory_gib,usd_per_h,spot,where"


def test_the_list_that_comes_along_can_be_read():
    offers = {offer.name: offer for offer in load_prices(None)}

    h100 = offers["aws-p5.48xlarge"]
    assert (h100.n_gpus, h100.like.gpu_type, h100.usd_per_h) == (8, "H100", 55.04)
    assert h100.like.gpus[0].memory_mib == 80 * 1024
    assert offers["aws-p5.48xlarge-spot"].is_spot
    assert h100.pool(3).nodes[2].name == "aws-p5.48xlarge-2"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([HEADER, "a,T4,1,16,4,16,much,no,"], "p.csv:2: usd_per_h: 'much' is not a number"),
        ([HEADER, "a,T4,1,16,4,16,-1,no,"], "p.csv:2: usd_per_h: -1 must be finite and not"),
        ([HEADER, "a,,1,16,4,16,1,no,"], "p.csv:2: gpu_type: must be given"),
        ([HEADER, "a,T4,1,16,4,16,1,maybe,"], "p.csv:2: spot: 'maybe' must be yes or no"),
        ([HEADER, ",T4,1,16,4,16,1,no,"], "p.csv:2: pool: must be given"),
        ([HEADER, *["a,T4,1,16,4,16,1,no,"] * 2], "p.csv:3: pool: a is listed twice"),
        (
            [HEADER, "a,T4,1,16,4,16,1,no,", "", "a,T4,1,16,4,16,1,no,"],
            "p.csv:4: pool: a is listed twice",
        ),
        ([HEADER, "a,T4,1.5,16,4,16,1,no,"], "p.csv:2: gpus: 1.5 must be a whole number"),
        ([HEADER, "a,T4,1000,16,4,16,1,no,"], "p.csv:2: gpus: 1000 must be a whole number"),
        ([HEADER, "a,T4,1,16,4,16,1e300,no,"], "p.csv:2: usd_per_h: 1e300 must be at most"),
        (["pool,gpus"], "p.csv:1: gpu_type: there is no such column"),
        ([HEADER], "p.csv: lists nothing"),
    ],
)
def test_mistakes_in_prices_are_told_by_line_and_column(rows: list[str], told: str):
    with pytest.raises(PriceError) as error:
        parse_prices(rows, Path("p.csv"))
    assert str(error.value).startswith(told)


def test_prices_may_come_from_a_spreadsheet(tmp_path):
    path = tmp_path / "p.csv"
    text = f"{HEADER}\r\na,T4,1,16,4,16,1,no,\r\n".replace(",", ", ")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())

    [offer] = load_prices(path)

    assert (offer.name, offer.like.gpu_type, offer.is_spot) == ("a", "T4", False)


# The programs


def test_work_goes_where_it_is_cheapest_per_gpu_hour():
    # Two of a, for 20 USD; of b, where work takes 2.5 or 1.5 times as long, 5 or 3 for 5 each.
    offers = [offer("a", usd_per_h=10.0), offer("b", usd_per_h=5.0)]

    assert cheapest_mix(demand(offers, {"q": [16.0, 40.0]})).mix == (2, 0)
    assert cheapest_mix(demand(offers, {"q": [16.0, 24.0]})).mix == (0, 3)
    assert cheapest_mix(demand(offers, {"q": [math.inf, 20.0]})).mix == (0, 3)


@pytest.mark.parametrize("seed", range(8))
def test_machines_are_whole_and_as_cheap_as_whole_machines_can_be(seed: int):
    draw = random.Random(seed)
    offers = [
        offer(f"t{i}", gpus=draw.choice([1, 4, 8]), usd_per_h=draw.uniform(1, 20), high=5)
        for i in range(3)
    ]
    work = demand(offers, {"q": [draw.uniform(4, 40) for _ in offers]})
    [asked] = work.classes

    def is_done(mix: tuple[int, ...]) -> bool:
        return sum(
            n * o.n_gpus * 3600 / gpu_s
            for n, o, gpu_s in zip(mix, offers, asked.gpu_s, strict=True)
        ) >= 1 - 1e-9  # fmt: skip

    mixes = itertools.product(range(6), repeat=3)
    best = min((work.cost(mix) for mix in mixes if is_done(mix)), default=None)
    cheapest = cheapest_mix(work)

    assert (cheapest.unmet > 1e-9) == (best is None)
    if best is not None:
        assert is_done(cheapest.mix)
        assert work.cost(cheapest.mix) == pytest.approx(best)


def test_work_beyond_the_bounds_is_left_undone_and_told():
    cheapest = cheapest_mix(demand([offer("a", high=2)], {"q": [32.0]}))

    assert cheapest.mix == (2,)
    assert cheapest.unmet == pytest.approx(0.5)


def test_more_work_of_one_queue_needs_more_of_its_machines_only():
    offers = [offer("a"), offer("b")]
    both = demand(offers, {"x": [8.0, math.inf], "y": [math.inf, 8.0]})

    assert cheapest_mix(both, {"x": 3.0}).mix == (3, 1)


def test_duals_say_which_machine_is_worth_most_per_usd():
    offers = [offer("a", usd_per_h=10.0), offer("b", usd_per_h=4.0)]
    work = demand(offers, {"q": [16.0, 16.0]})

    # One more machine of either adds half of the work: 0.05 and 0.125 per USD.
    assert worths(work, (1, 1), {}) == pytest.approx((0.05, 0.125))


def test_only_the_work_of_the_queues_in_question_counts():
    offers = [offer("a"), offer("b")]
    both = demand(offers, {"x": [8.0, math.inf], "y": [math.inf, 8.0]})

    on_a, on_b = worths(both, (1, 1), {}, ["x"])
    assert on_a > 0
    assert on_b == pytest.approx(0.0)


def test_demand_adds_up_what_jobs_take_on_each_type():
    offers = [offer("a", gpus=8), offer("b", gpus=1)]
    jobs = [
        trace_job("wide", gpus=2, work_s=100),
        trace_job("fast", at_s=50, behaviour=Steady(work=100, speeds=(("a", 2.0), ("b", 1.0)))),
        trace_job("service", at_s=100, behaviour=Steady(work=FOREVER)),
    ]

    found = demand_of(jobs, offers)

    assert found.span_s == 100.0
    assert sorted(c.gpu_s for c in found.classes) == [
        (50.0, 100.0), (100.0, 100.0), (200.0, math.inf),
    ]  # fmt: skip
    assert found.impossible() == []
    assert found.only([1]).impossible()[0].n_jobs == 1


def test_it_is_known_whether_jobs_say_where_they_are_fast():
    offers = [offer("a"), offer("b")]

    assert demand(offers, {"x": [8.0, 8.0], "y": [math.inf, 8.0]}).knows_no_speeds()
    assert not demand(offers, {"x": [8.0, 4.0]}).knows_no_speeds()
    assert not demand(offers[:1], {"x": [8.0]}).knows_no_speeds()


def test_of_many_offers_those_are_kept_that_programs_use():
    offers = [offer(f"t{i}", usd_per_h=10.0 + i) for i in range(9)]
    rows = [8.0] * 9
    rows[7] = 1.0  # eight times as fast
    kept = chosen_offers(demand(offers, {"q": rows}))

    assert 7 in kept
    assert len(kept) == 5


# The search


def searched(work, goals, shortfalls, *, tries: int = 400):
    search = Search(demand=work, goals=parse_goals(goals), most_tries=tries)
    return driven(search, lambda mixes: [shortfalls(mix) for mix in mixes])


@pytest.mark.parametrize("seed", range(12))
def test_the_search_finds_what_trying_everything_finds(seed: int):
    """Two queues that get in each other's way on machines that both use."""
    draw = random.Random(seed)
    offers = [
        offer(f"t{i}", gpus=draw.choice([1, 4, 8]), usd_per_h=round(draw.uniform(1, 20), 2),
              high=6) for i in range(draw.choice([2, 3]))
    ]  # fmt: skip
    speed = {q: [draw.uniform(0.5, 3) for _ in offers] for q in "ab"}
    need = {
        q: draw.uniform(0.1, 0.4)
        * sum(o.n_gpus * s * 6 for o, s in zip(offers, speed[q], strict=True))
        for q in "ab"
    }
    work = demand(offers, {q: [0.5 * need[q] / s for s in speed[q]] for q in "ab"})

    def shortfalls(mix: tuple[int, ...]) -> tuple[float, ...]:
        rooms = [
            sum(n * o.n_gpus * s for n, o, s in zip(mix, offers, speed[q], strict=True)) * 0.8
            for q in "ab"
        ]
        return tuple(
            (need[q] / room) ** 3 if room else math.inf
            for q, room in zip("ab", rooms, strict=True)
        )

    found = searched(work, "p95 wait < 10m in a and p99 wait < 20m in b", shortfalls)

    mixes = itertools.product(range(7), repeat=len(offers))
    best = min((work.cost(mix) for mix in mixes if max(shortfalls(mix)) <= 1), default=None)
    if best is None:
        assert found.best is None
    else:
        assert found.best is not None
        assert found.best.usd_per_h <= best * 1.05
        assert len(found.tried) <= 40


def test_goals_out_of_reach_are_told_with_what_is_nearest():
    work = demand([offer("a", high=3)], {"q": [8.0]})

    found = searched(work, "p95 wait < 10m", lambda mix: (6.0 / max(sum(mix), 1),))

    assert found.best is None
    assert (found.nearest.mix, found.nearest.worst) == ((3,), 2.0)


def test_the_number_of_tries_is_kept():
    work = demand([offer("a", high=500)], {"q": [8.0]})

    found = searched(work, "p95 wait < 10m", lambda mix: (317 / max(sum(mix), 1),), tries=6)

    assert len(found.tried) <= 6
    assert not found.is_complete


def test_the_search_repeats():
    work = demand([offer("a"), offer("b", usd_per_h=3.0)], {"q": [20.0, 30.0]})

    def shortfalls(mix: tuple[int, ...]) -> tuple[float, ...]:
        return (5.0 / max(mix[0] + 0.7 * mix[1], 0.1),)

    first, second = (searched(work, "mean wait < 1h", shortfalls) for _ in range(2))
    assert first == second
    assert first.best is not None
    assert first.best.mix == (0, 8)  # 5.6 for 24 USD; 5 of the others cost 50
