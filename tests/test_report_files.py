"""Comparisons: means, intervals and differences over seeds; files for programs; the page."""

import csv
import io
import json
import math
import re

import pytest
from report_testing import NONE, job, run_of

from simulator.comparison import Comparison, Verdict, compared, estimated
from simulator.figures import FIGURES, GROUP_FIGURES
from simulator.page import SERIES, plotly_js
from simulator.report import summarised
from simulator.report_files import figures_csv, report_json
from simulator.report_page import report_page
from simulator.run import PoolFigures, ServiceFigures
from simulator.scales import MINUS, NO_VALUE, duration_words, number_text, percent_text


def comparison(waits: dict[str, tuple[float, ...]], *, has_pool: bool = True) -> Comparison:
    """Compare policies under which the one job of each seed waits so long, then runs 100 s."""
    pool = PoolFigures(name="t4", gpu_type="T4", is_spot=True, node_s=10.0, gpu_s=20.0,
                       held_gpu_s=10.0, cost_usd=5.0, energy_kwh=NONE)  # fmt: skip
    service = ServiceFigures(
        name="chat", n_requests=10.0, within_target=0.9, p99_latency_s=1.0, replica_s=9.0
    )
    return compared(
        summarised(
            run_of(
                [job(0, wait, wait + 100, queue="<b>&"), job(0, 0, 10)],
                policy=policy,
                seed=seed,
                pools=(pool,) if has_pool else (),
                services=(service,),
            )
        )
        for policy, by_seed in waits.items()
        for seed, wait in enumerate(by_seed)
    )


def test_the_interval_is_students():
    estimate = estimated([1.0, 2.0, 3.0, NONE])

    # t(0.975, 2) = 4.302653; standard error 1 / sqrt(3)
    assert (estimate.mean, estimate.n) == (2.0, 3)
    assert estimate.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(estimated([1.0]).low)
    assert estimated([]).n == 0


def test_differences_are_taken_seed_by_seed():
    found = comparison({"a": (100, 200, 300), "b": (91, 190, 289)})

    [_, other] = found.policies
    difference = other.differences["jct_mean_s"]  # of the two jobs: half of 9, 10 and 11
    assert difference.by.mean == pytest.approx(-5.0)
    half = 4.302653 * 0.5 / math.sqrt(3)
    assert difference.by.low == pytest.approx(-5.0 - half, rel=1e-6)
    assert difference.verdict is Verdict.BETTER
    assert difference.relative == pytest.approx(-5.0 / 155.0)
    assert other.differences["n_jobs"].verdict is Verdict.ALIKE
    assert found.baseline.differences == {}


def test_without_a_second_seed_nothing_is_sure():
    [_, other] = comparison({"a": (100,), "b": (10,)}).policies

    assert other.differences["jct_mean_s"].verdict is Verdict.OPEN
    assert other.differences["jct_mean_s"].by.mean == pytest.approx(-45.0)


def test_what_may_as_well_be_chance_is_open():
    [_, other] = comparison({"a": (100, 100, 100), "b": (90, 130, 85)}).policies

    assert other.differences["wait_mean_s"].verdict is Verdict.OPEN


def test_more_of_what_should_be_high_is_better():
    waits = {"a": (100.0, 200.0, 300.0), "b": (1.0, 2.0, 3.0)}
    [_, other] = comparison(waits, has_pool=False).policies

    assert other.differences["jain_jobs"].verdict in {Verdict.BETTER, Verdict.OPEN}
    assert other.differences["allocation"].verdict is Verdict.BETTER
    assert other.differences["gpu_h"].verdict is Verdict.ALIKE


def test_the_json_names_every_figure_with_its_unit():
    data = json.loads(report_json(comparison({"a": (0, 5), "b": (1, 2)}), {"load": 1.5}))

    assert data["format"] == "lepton.report/1"
    assert list(data["figures"]) == list(FIGURES)
    assert data["figures"]["wait_p95_s"]["unit"] == "s"
    assert [policy["policy"] for policy in data["policies"]] == ["a", "b"]
    assert data["policies"][0]["figures"]["wait_mean_s"]["mean"] == 1.25
    assert data["policies"][0]["figures"]["energy_kwh"]["mean"] is None
    assert data["policies"][0]["groups"]["queue"]["<b>&"]["wait_mean_s"]["mean"] == 2.5
    assert data["policies"][1]["differences"]["wait_mean_s"]["mean"] == -0.5
    assert (data["arguments"], data["seeds"]) == ({"load": 1.5}, [0, 1])
    assert [(run["policy"], run["seed"]) for run in data["runs"]] == [
        ("a", 0), ("a", 1), ("b", 0), ("b", 1),
    ]  # fmt: skip


def test_the_csv_has_a_row_per_seed_group_and_figure():
    text = figures_csv(comparison({"a": (0, 5)}))

    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == [
        "format", "policy", "seed", "dimension", "group", "figure", "unit", "value",
    ]  # fmt: skip
    assert len(rows) == 2 * (len(FIGURES) + 4 * len(GROUP_FIGURES))  # 2 queues, 1 type, 1 size
    [row] = [
        row for row in rows
        if (row["seed"], row["group"], row["figure"]) == ("1", "<b>&", "jct_mean_s")
    ]  # fmt: skip
    assert row == {
        "format": "lepton.figures/1", "policy": "a", "seed": "1", "dimension": "queue",
        "group": "<b>&", "figure": "jct_mean_s", "unit": "s", "value": "105",
    }  # fmt: skip


def test_the_first_lines_of_the_csv_stay_as_they_are():
    assert figures_csv(comparison({"a": (20,)})).splitlines()[:6] == [
        "format,policy,seed,dimension,group,figure,unit,value",
        "lepton.figures/1,a,0,all,,n_jobs,jobs,2",
        "lepton.figures/1,a,0,all,,n_ended,jobs,2",
        "lepton.figures/1,a,0,all,,n_succeeded,jobs,2",
        "lepton.figures/1,a,0,all,,n_never_started,jobs,0",
        "lepton.figures/1,a,0,all,,jct_mean_s,s,65",
    ]


def test_the_order_in_which_seeds_come_home_does_not_matter():
    found = comparison({"a": (0, 5, 9), "b": (1, 2, 3)})
    runs = [run for policy in found.policies for run in policy.runs]
    shuffled = compared([runs[i] for i in (2, 0, 1, 5, 4, 3)])

    assert report_json(shuffled, {}) == report_json(found, {})
    assert report_page(shuffled, {}) == report_page(found, {})


def test_the_page_stands_alone_and_names_every_policy():
    text = report_page(comparison({"fifo": (0, 5), "x<y": (1, 2)}), {"trace": "</script>"})
    ours = text.replace(plotly_js(), "")

    assert text.count(plotly_js()) == 1
    assert re.findall(r"https?:|src=|@import|url\(", ours) == []
    assert "fifo" in ours
    assert "x&lt;y" in ours
    assert "<b>&" not in ours.replace("\\u003c", "<").partition("<script")[0]
    assert ours.count("</script>") == 3
    for chart in re.findall(r'class="chart" id="([^"]+)"', ours):
        assert f'"{chart}": {{"data"' in ours
    assert '<meta name="viewport" content="width=device-width' in ours


def test_the_page_of_one_policy_and_one_seed_is_a_page_too():
    run = run_of([job(0, NONE, NONE, phase="pending", waited_s=5.0)], until_s=5.0)

    text = report_page(compared([summarised(run)]), {})

    assert "One seed" in text
    assert "nan" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL).lower()


def test_a_trace_without_chance_is_told_apart_from_agreement():
    assert "nothing in this trace and cluster is left to chance" in report_page(
        comparison({"a": (5, 5, 5)}), {}
    )


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("ground", ["#ffffff", "#181b21"])
def test_every_series_can_be_seen_on_light_and_dark(ground: str):
    for colour, _ in SERIES:
        light, dark = sorted([luminance(colour), luminance(ground)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3.0, colour


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.004, "0.004"), (0.126, "0.13"), (9.996, "10.0"), (99.96, "100"),
     (12345.6, "12,346"), (-3.0, f"{MINUS}3.00"), (NONE, NO_VALUE), (-0.00001, "0.00")],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str):
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123, "+12 %"),
        (-0.0123, f"{MINUS}1.2 %"),
        (0.0, "0.0 %"),
        (-0.00001, "0.0 %"),
        (NONE, NO_VALUE),
    ],
)
def test_changes_have_a_sign(value: float, text: str):
    assert percent_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(59, "59.0 s"), (120, "2.00 min"), (9000, "2.50 h"), (864000, "10.0 d")]
)
def test_times_are_in_a_unit_of_which_there_are_two(value: float, text: str):
    assert duration_words(value) == text


def test_the_same_difference_the_other_way_round_is_worse():
    [_, other] = comparison({"b": (91, 190, 289), "a": (100, 200, 300)}).policies

    assert other.differences["jct_mean_s"].verdict is Verdict.WORSE
