"""`lepton plan`: from a trace, prices and goals to machines, through real simulations."""

import json
from pathlib import Path

import pytest
from cli_testing import lepton
from simulation_testing import trace_job

from simulator.page import plotly_js
from simulator.traces.own import write_trace

PRICES = """\
pool,gpu_type,gpus,gpu_memory_gib,cpus,memory_gib,usd_per_h,spot
big,A100,8,80,64,512,20,no
small,A100,1,80,8,64,3,no
cheap,A100,8,80,64,512,5,yes
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight single jobs at once, every 1000 s, and a gang of four GPUs on one node."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "prices.csv").write_text(PRICES)
    jobs = [
        trace_job(f"{burst}-{i}", at_s=1000.0 * burst, work_s=500)
        for burst in range(4)
        for i in range(7)
    ]
    jobs.append(trace_job("wide", at_s=3500, gpus=4, work_s=300, spec={"queue": "research"}))
    write_trace(jobs, folder / "jobs.jsonl")
    return folder


def planned(files: Path, *words: str):
    return lepton(
        "plan", "--trace", str(files / "jobs.jsonl"), "--prices", str(files / "prices.csv"),
        "--policy", "fifo", *words,
    )  # fmt: skip


def test_the_cheapest_machines_that_meet_the_goals_are_found(files: Path):
    result = planned(
        files, "--goal", "p99 wait < 1s", "-o", "json", "--out", str(files / "out")
    )

    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    # Seven at once and four on one node: one big one (20 USD) does; seven small ones cost more.
    assert data["best"]["nodes"] == {"big": 1, "small": 0}
    assert data["best"]["usd_per_h"] == 20
    assert data["best"]["values"] == [0]
    assert data["format"] == "lepton.plan/1"
    costs = [tried["usd_per_h"] for tried in data["tried"]]
    assert costs == sorted(costs)
    assert json.loads((files / "out" / "plan.json").read_text()) == data
    page = (files / "out" / "plan.html").read_text()
    assert "1 x big" in page
    assert "http" not in page.replace(plotly_js(), "")


def test_a_looser_goal_is_cheaper_and_a_queue_can_be_meant(files: Path):
    result = planned(
        files, "--goal", "mean wait < 30m in default", "--queue", "default", "-o", "json"
    )

    # Without the gang, three small ones (9 USD) work off a burst before the next.
    assert json.loads(result.stdout)["best"]["nodes"]["big"] == 0
    assert json.loads(result.stdout)["best"]["usd_per_h"] <= 9


def test_spot_machines_are_bought_if_that_is_allowed(files: Path):
    result = planned(files, "--goal", "p99 wait < 1s", "--spot", "-o", "json")

    assert json.loads(result.stdout)["best"]["nodes"]["cheap"] == 1


def test_people_get_the_verdict_and_the_options(files: Path):
    result = planned(files, "--goal", "p99 wait < 1s", "--pool", "big=0..4")

    lines = result.stdout.splitlines()
    assert lines[0].startswith("Cheapest: 1 x big, 20.0 USD/h (")
    assert lines[2].split()[:3] == ["MACHINES", "USD/H", "USD/MONTH"]


def test_goals_out_of_reach_exit_with_2_and_name_the_nearest(files: Path):
    result = planned(
        files, "--goal", "p99 wait < 1s", "--pool", "small=4", "--queue", "default"
    )

    assert result.exit_code == 2
    assert "No mix within the bounds meets the goals." in result.stdout
    assert "Nearest: 4 x small" in result.stdout


def test_what_is_owned_counts(files: Path):
    (files / "now.yaml").write_text(
        "pools: [{name: owned, count: 1, gpus: 4, gpu_type: A100, cpus: 64, memory_mib: 99999}]"
    )

    result = planned(
        files, "--goal", "p99 wait < 1s", "--pool", "small=0..8", "-o", "json",
        "--cluster", str(files / "now.yaml"),
    )  # fmt: skip

    assert json.loads(result.stdout)["best"]["nodes"] == {"small": 3}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--goal", "p99 wait < 1s", "--max-gpus", "0.5"), "no job in it asks for GPUs"),
        (
            ("--goal", "p99 wait < 1s", "--pool", "big=1..2", "--pool", "big=0..3"),
            "--pool big: is given twice",
        ),
        (("--goal", "lost_share < 5"), "5 is more than all: write 60% or 0.6"),
        (("--goal", "95% of jobs within deadline"), "no job has a deadline"),
        (("--goal", "fast"), "write for example"),
        (("--goal", "p95 wait < 1h in nowhere"), "no job is in queue nowhere"),
        (("--goal", "99% of chat within latency"), "there is no service chat"),
        (("--goal", "p95 wait < 1h", "--pool", "bigg"), "--pool bigg: is not in the list"),
        (("--goal", "p95 wait < 1h", "--pool", "big=few"), "write NAME, NAME=8 or NAME=2..8"),
        (("--goal", "p95 wait < 1h", "--pool", "big=4..2"), "4 is more than 2"),
        (("--goal", "p95 wait < 1h", "--pool", "small"), "fit on none of the machines"),
        (("--goal", "p95 wait < 1h", "--policy", "fifo,priority"), "for one policy"),
        (("--goal", "p95 wait < 1h", "--speeds", "A100"), "write TYPE=FACTOR"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_told(files: Path, words: tuple[str, ...], told: str):
    result = planned(files, *words)

    assert result.exit_code == 64
    assert told in result.stderr


def test_a_preset_needs_a_size():
    result = lepton("plan", "--preset", "philly", "--jobs", "5", "--goal", "mean wait < 1h")

    assert result.exit_code == 64
    assert "--scale-to 64" in result.stderr


def test_the_help_has_examples_and_fits_a_terminal():
    result = lepton("plan", "--help")

    assert "Examples:\n" in result.stdout
    assert [line for line in result.stdout.splitlines() if len(line) > 80] == []


def test_a_mix_on_which_a_service_never_starts_misses_its_goal(files: Path):
    services = files / "wide.yaml"
    services.write_text(
        "services:\n"
        "  - job: chat\n    profile: {rate_per_s: 0.1}\n    target_s: 60\n"
        "    tokens: {prompt: 10, output: 10, scv: 0}\n"
        "    replicas: [{gpu_type: A100, prompt_tokens_per_s: 90, output_tokens_per_s: 90}]\n"
        "    submit: {gpus: 8}\n"
    )
    words = ("--goal", "90% of chat within latency", "--services", str(services))

    result = planned(files, *words, "--queue", "research", "--max-gpus", "8", "-o", "json")

    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["best"]["nodes"]["big"] >= 1
    small = planned(files, *words, "--pool", "small=1..3", "--cluster", "1x4xA100")
    assert small.exit_code == 2, small.stderr


def test_services_are_planned_for_by_their_latency(files: Path):
    (files / "services.yaml").write_text(
        "services:\n"
        "  - job: chat\n"
        "    profile: {rate_per_s: 1.0}\n"
        "    tokens: {prompt: 100, output: 100, scv: 0}\n"
        "    target_s: 4\n"
        "    replicas:\n"
        "      - {gpu_type: A100, prompt_tokens_per_s: 1000, output_tokens_per_s: 100}\n"
        "    submit: {replicas: 4, min_replicas: 1, gpus: 1}\n"
    )

    result = planned(
        files, "--goal", "99% of chat within latency", "--pool", "small=0..12", "-o", "json",
        "--policy", "priority", "--max-gpus", "1", "--services", str(files / "services.yaml"),
    )  # fmt: skip

    # An answer takes 1.1 s: one replica drowns, and jobs take what services leave.
    assert result.exit_code == 0, result.stderr
    best = json.loads(result.stdout)["best"]
    assert 2 <= best["nodes"]["small"] <= 4
    assert 0.99 <= best["values"][0] <= 1
