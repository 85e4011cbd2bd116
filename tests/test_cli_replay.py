"""`lepton replay`: what happened, beside what would have happened."""

import json
from dataclasses import replace
from pathlib import Path

import cli_testing
import msgspec
import pytest
from cli_testing import lepton
from cluster_testing import Cluster, node_of, role_of
from daemon_testing import running_daemon

from scheduler.core.events import NodeRegistered
from simulator.recorded import read_recorded
from simulator.report import summarised


def exported(cluster: Cluster, folder: Path) -> Path:
    """Write the story of a cluster as `lepton journal export` would."""
    path = folder / "week.jsonl"
    with path.open("wb") as lines:
        for sequence, event in enumerate(cluster.events, start=1):
            values = {"sequence": sequence, "at_s": event.at_s, "kind": type(event).__name__}
            lines.write(msgspec.json.encode({**values, "event": event}) + b"\n")
    return path


@pytest.fixture
def week(tmp_path: Path) -> Path:
    """A long job, then a short one that waited for it, on one node of two GPUs."""
    cluster = Cluster("priority")
    node = node_of("a", gpus=2, gpu_type="A100")
    node = replace(node, pool="mine", price_usd_per_h=7.2)
    cluster.observe(NodeRegistered(at_s=cluster.now_s, node=node))
    cluster.submit("long", role_of(gpus=2), priority=5, expected_run_s=300.0)
    cluster.advance(10.0)
    cluster.submit("middle", role_of(gpus=2), expected_run_s=200.0)
    cluster.advance(10.0)
    cluster.submit("short", role_of(gpus=1), expected_run_s=20.0)
    for name, work_s in (("long", 300.0), ("middle", 200.0), ("short", 20.0)):
        cluster.cycle()
        cluster.run_all()
        cluster.advance(work_s)
        cluster.end(name)
    return exported(cluster, tmp_path)


def test_what_was_recorded_has_the_figures_of_a_run(week: Path):
    recording, run = read_recorded(week, "week")

    assert [job.key for job in recording.jobs] == ["1", "2", "3"]
    figures = summarised(run).figures
    # Nothing was decided in the first 20 s; then 300, 200 and 20 s of work, in this order.
    assert figures["wait_mean_s"] == (20 + 310 + 500) / 3
    assert figures["jct_mean_s"] == (320 + 510 + 520) / 3
    assert figures["gpu_h"] == pytest.approx((600 + 400 + 20) / 3600)
    assert figures["allocation"] == pytest.approx((600 + 400 + 20) / (2 * 540))
    assert figures["cost_usd"] == pytest.approx(540 * 7.2 / 3600)
    [pool] = run.pools
    assert (pool.name, pool.held_gpu_s, pool.node_s) == ("mine", 1020.0, 540.0)
    assert run.jobs.cost_usd.sum() == pytest.approx(1020 * 3.6 / 3600)
    assert run.timeline.n_pending.tolist() == [1, 2, 2, 1, 0, 0]
    assert run.timeline.n_pending[-1] == 0


def test_other_policies_stand_beside_what_happened(week: Path, tmp_path: Path):
    result = lepton(
        "replay", str(week), "--policy", "fifo,shortest_job", "-o", "json",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    recorded, fifo, shortest = data["policies"]
    assert (data["baseline"], recorded["policy"]) == ("recorded", "recorded")
    # Without the 20 s of silence: 0, 290 and 480 s; the shortest first: 0, 310, 280.
    assert fifo["figures"]["wait_mean_s"]["mean"] == pytest.approx((0 + 290 + 480) / 3)
    assert shortest["figures"]["wait_mean_s"]["mean"] == pytest.approx((0 + 310 + 280) / 3)
    assert shortest["differences"]["jct_mean_s"]["mean"] < 0
    assert "recorded" in (tmp_path / "out" / "report.html").read_text()


def test_a_past_that_happened_once_has_no_seeds_to_try(week: Path):
    result = lepton("replay", str(week), "--policy", "fifo")

    assert "Against recorded:" in result.stdout
    assert "--seeds" not in result.stdout


def test_a_folder_of_a_running_daemon_is_replayed(tmp_path: Path):
    with running_daemon(tmp_path, nodes=[{"name": "n", "cpus": 4}]) as daemon:
        waited = cli_testing.lepton("submit", "--wait", "--", "true", server=daemon.address)
        assert waited.exit_code == 0, waited.stderr

        result = lepton("replay", str(daemon.folder), "--policy", "priority")

    assert result.exit_code == 0, result.stderr
    names = [line.split()[0] for line in result.stdout.splitlines() if line]
    assert names[:3] == ["POLICY", "recorded", "priority"]


def test_an_empty_past_is_told(tmp_path: Path):
    cluster = Cluster()
    cluster.add_node("a", gpus=1, gpu_type="T4")

    result = lepton("replay", str(exported(cluster, tmp_path)))

    assert result.exit_code == 1
    assert "there is no job that ran in it" in result.stderr


def test_what_is_no_journal_is_told(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text("{}\n")

    assert lepton("replay", str(tmp_path / "x.jsonl")).exit_code == 64
    assert lepton("replay", str(tmp_path / "nowhere")).exit_code in {1, 64}


def test_the_help_has_examples_and_fits_a_terminal():
    result = lepton("replay", "--help")

    assert "Examples:\n" in result.stdout
    assert [line for line in result.stdout.splitlines() if len(line) > 80] == []
