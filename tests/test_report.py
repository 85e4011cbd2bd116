"""The figures of a run, against numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from report_testing import NONE, job, run_of

from simulator.fairness import finish_time_ratios, jain_index
from simulator.figures import FIGURES, GROUP_FIGURES, HEADLINES
from simulator.report import N_POINTS, summarised
from simulator.run import PoolFigures, ServiceFigures
from simulator.steps import integral, mean_curve

POOL = PoolFigures(
    name="t4", gpu_type="T4", is_spot=False, node_s=100.0, gpu_s=200.0, held_gpu_s=150.0,
    cost_usd=8.0, energy_kwh=3.0,
)  # fmt: skip


def figures(*rows, **extra):
    return summarised(run_of(list(rows), **extra)).figures


def test_completion_and_wait_are_counted_from_submission():
    found = figures(job(0, 0, 100), job(0, 50, 150), job(100, 100, 400), job(150, 250, 350))

    assert found["jct_mean_s"] == (100 + 150 + 300 + 200) / 4
    assert found["jct_p50_s"] == 175.0
    assert found["wait_mean_s"] == (0 + 50 + 0 + 100) / 4
    assert found["wait_p90_s"] == pytest.approx(85.0)  # 7 tenths of the way from 50 to 100
    assert found["makespan_s"] == 400.0
    assert found["slowdown_mean"] == pytest.approx((1 + 1.5 + 1 + 2) / 4)


def test_who_has_not_ended_waits_but_completes_nothing():
    found = figures(
        job(0, 0, 100),
        job(0, 40, NONE, phase="running"),
        job(20, NONE, NONE, phase="pending", waited_s=80.0),
        until_s=100.0,
    )

    assert (found["n_jobs"], found["n_ended"], found["n_never_started"]) == (3, 1, 1)
    assert found["jct_mean_s"] == 100.0
    assert found["wait_mean_s"] == (0 + 40 + 80) / 3


def test_a_service_has_no_time_to_completion():
    found = figures(job(0, 0, 100), job(0, 0, 900, kind="inference"))

    assert (found["jct_mean_s"], found["n_jobs"]) == (100.0, 2)
    assert found["ftf_max"] == pytest.approx(1.0)


def test_allocation_is_held_of_up_and_utilisation_what_counted():
    row = job(0, 0, 100, n_gpus=2.0, useful_gpu_s=120.0, lost_gpu_s=60.0, overhead_gpu_s=20.0)
    found = figures(row, job(100, 100, 200), gpus=4.0)

    assert found["allocation"] == pytest.approx((200 + 100) / 800)
    assert found["utilisation"] == pytest.approx((120 + 100) / 800)
    assert found["lost_share"] == pytest.approx(80 / 300)
    assert found["lost_gpu_h"] == pytest.approx(60 / 3600)
    assert np.isnan(found["fragmentation"])


def test_allocation_while_jobs_wait_leaves_quiet_times_out():
    found = figures(job(0, 0, 100, n_gpus=2.0), job(0, 100, 300), gpus=2.0)

    assert found["allocation"] == pytest.approx(400 / 600)
    assert found["allocation_when_pending"] == 1.0


def test_fragmentation_is_a_mean_over_the_time_it_was_measured():
    run = run_of([job(0, 0, 100), job(50, 100, 200)])  # steps at 0, 50, 100 and 200
    line = replace(run.timeline, fragmentation=np.array([0.2, 0.5, NONE, NONE]))

    assert summarised(replace(run, timeline=line)).figures["fragmentation"] == pytest.approx(
        (0.2 * 50 + 0.5 * 50) / 100
    )


def test_the_finish_time_ratio_is_against_a_share_of_one_nth():
    # Two jobs of 2 GPUs on 2 GPUs, one after the other. The first has 1.0 beside it over its
    # life: n = 2, so that alone on half of the GPUs it takes 200 s. The second: n = 1.5.
    run = run_of([job(0, 0, 100, n_gpus=2.0), job(0, 100, 200, n_gpus=2.0)])

    assert finish_time_ratios(run) == pytest.approx([100 / 200, 200 / 150])
    found = summarised(run).figures
    assert found["ftf_max"] == pytest.approx(4 / 3)
    assert found["ftf_unfair_share"] == 0.5
    assert found["jain_jobs"] == pytest.approx((2 + 0.75) ** 2 / (2 * (2**2 + 0.75**2)))


def test_a_share_larger_than_the_job_makes_it_no_faster_than_alone():
    run = run_of([job(0, 0, 100), job(0, 0, 100)], gpus=8.0)

    assert finish_time_ratios(run) == pytest.approx([1.0, 1.0])


def test_a_job_of_unknown_length_has_no_ratio():
    assert np.isnan(finish_time_ratios(run_of([job(0, 0, 100, alone_s=NONE)]))).all()


@pytest.mark.parametrize(
    ("values", "index"), [([1, 1, 1], 1.0), ([5, 0, 0, 0], 0.25), ([1, 3], 16 / 20)]
)
def test_jains_index(values, index):
    assert jain_index(np.array(values, float)) == pytest.approx(index)


def test_deadlines_are_met_by_who_ended_well_in_time():
    found = figures(
        job(0, 0, 100, deadline_at_s=100.0),
        job(0, 0, 100, deadline_at_s=90.0),
        job(0, 0, 100, deadline_at_s=200.0, phase="failed"),
        job(0, 0, NONE, deadline_at_s=150.0, phase="running"),
        job(0, 0, NONE, deadline_at_s=999.0, phase="running"),  # nobody knows yet
        until_s=200.0,
    )

    assert found["n_deadlines"] == 4
    assert found["deadlines_met"] == 1 / 4
    assert found["tardiness_mean_s"] == (0 + 10 + 0 + 50) / 4


def test_services_are_weighed_by_their_requests():
    def service(name: str, n: float, within: float) -> ServiceFigures:
        return ServiceFigures(
            name=name, n_requests=n, within_target=within, p99_latency_s=1.0, replica_s=1.0
        )

    services = (service("a", 300, 1.0), service("b", 100, 0.8), service("c", 0, NONE))
    found = figures(job(0, 0, 1), services=services)

    assert found["within_target"] == pytest.approx(0.95)
    assert found["within_target_worst"] == 0.8


def test_pools_know_exactly_what_a_thinned_timeline_forgot():
    other = replace(POOL, name="p4", gpu_type="P4", gpu_s=600.0, held_gpu_s=300.0)
    run = run_of([job(0, 0, 100, gpu_s=90.0, useful_gpu_s=80.0)], pools=(POOL, other))

    found = summarised(run)
    assert found.figures["allocation"] == pytest.approx(450 / 800)
    assert found.figures["utilisation"] == pytest.approx(80 / 800)
    assert found.groups["gpu_type"]["T4"]["allocation"] == pytest.approx(90 / 200)
    assert found.groups["size"]["1"]["allocation"] == pytest.approx(90 / 800)


def test_cost_is_split_by_pool_and_by_what_was_held():
    spot = replace(POOL, name="spot", is_spot=True, cost_usd=2.0, held_gpu_s=200.0)
    found = figures(job(0, 0, 3600.0, n_gpus=2.0), pools=(POOL, spot))

    assert (found["cost_usd"], found["cost_spot_usd"]) == (10.0, 2.0)
    assert found["idle_cost_share"] == pytest.approx(8.0 * 0.25 / 10.0)
    assert found["usd_per_useful_gpu_h"] == pytest.approx(10.0 / 2.0)
    assert found["energy_kwh"] == 6.0


def test_groups_are_queues_types_and_sizes_in_their_order():
    rows = [
        job(0, 0, 100, queue="b", n_gpus=16.0, cost_usd=4.0),
        job(0, 10, 100, queue="a", n_gpus=2.0),
        job(0, 30, 100, queue="a", n_gpus=0.5, gpu_type=""),
    ]
    groups = summarised(run_of(rows, gpus=20.0)).groups

    assert {name: list(found) for name, found in groups.items()} == {
        "queue": ["a", "b"],
        "gpu_type": ["T4", "none"],
        "size": ["part of one", "2 to 4", "9 to 32"],
    }
    assert groups["queue"]["a"]["wait_mean_s"] == 20.0
    assert groups["queue"]["b"]["cost_usd"] == 4.0
    assert groups["queue"]["b"]["allocation"] == pytest.approx(1600 / 2000)
    assert groups["gpu_type"]["T4"]["allocation"] == pytest.approx((1600 + 180) / 2000)
    assert list(groups["size"]["9 to 32"]) == list(GROUP_FIGURES)


@pytest.mark.parametrize(
    ("n_gpus", "name"),
    [(0, "no GPU"), (0.999, "part of one"), (1, "1"), (1.5, "2 to 4"), (8, "5 to 8"),
     (32, "9 to 32"), (129, "over 128")],
)  # fmt: skip
def test_size_classes(n_gpus, name):
    [(found, _)] = summarised(run_of([job(0, 0, 1, n_gpus=n_gpus)])).groups["size"].items()
    assert found == name


def test_curves_are_means_over_pieces_of_the_run():
    curves = summarised(run_of([job(0, 0, 120, n_gpus=2.0), job(0, 120, 240)])).curves

    assert curves.span_s == 240.0
    assert curves.allocation == pytest.approx([1.0] * (N_POINTS // 2) + [0.5] * (N_POINTS // 2))
    assert curves.pending == pytest.approx([1.0] * (N_POINTS // 2) + [0.0] * (N_POINTS // 2))
    assert curves.gpus_by_queue["default"][0] == pytest.approx(2.0)


def test_steps_are_integrated_from_where_they_begin():
    at_s, values = np.array([10.0, 20.0]), np.array([2.0, 5.0])

    assert integral(at_s, values, 5.0) == 0.0
    assert integral(at_s, values, 24.0) == 2.0 * 10 + 5.0 * 4
    assert mean_curve(at_s, values, np.array([0.0, 20.0, 30.0])) == pytest.approx([1.0, 5.0])


def test_every_figure_is_given_and_every_headline_exists():
    assert list(figures(job(0, 0, 1))) == list(FIGURES)
    assert set(HEADLINES) <= set(FIGURES)
    assert set(GROUP_FIGURES) <= set(FIGURES)


def test_a_run_in_which_nothing_happened_has_no_figures_but_counts():
    found = figures(job(0, NONE, NONE, phase="pending", waited_s=0.0, n_gpus=0.0), until_s=0.0)

    assert (found["n_jobs"], found["n_ended"]) == (1, 0)
    assert np.isnan(found["jct_mean_s"])
    assert np.isnan(found["allocation"])
