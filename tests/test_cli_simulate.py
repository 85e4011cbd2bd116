"""`lepton simulate`: what it prints, what it writes, and what it says of mistakes."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from cli_testing import lepton
from daemon_testing import LEPTON
from simulation_testing import trace_job
from test_cli_terminal import terminal

from simulator.cases import Source
from simulator.presets import preset
from simulator.synthetic import generate, scaled_to
from simulator.traces.own import write_trace

CLUSTER = """\
pools:
  - {name: t4, count: 1, gpus: 2, gpu_type: T4, cpus: 8, price_usd_per_h: 3.6}
queues:
  - {name: research}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster of two GPUs, and four jobs that fill it for 100 s each."""
    folder = tmp_path_factory.mktemp("simulate")
    (folder / "cluster.yaml").write_text(CLUSTER)
    jobs = [
        trace_job("long", work_s=300, gpus=2, spec={"expected_run_s": 300.0}),
        trace_job("a", at_s=10, work_s=200, gpus=2, spec={"expected_run_s": 200.0}),
        trace_job("b", at_s=20, gpus=2, spec={"expected_run_s": 100.0, "queue": "research"}),
    ]
    write_trace(jobs, folder / "jobs.jsonl")
    return folder


def simulated(files: Path, *words: str):
    return lepton(
        "simulate", "--cluster", str(files / "cluster.yaml"),
        "--trace", str(files / "jobs.jsonl"), *words,
    )  # fmt: skip


@pytest.fixture(scope="module")
def compared(files: Path):
    """Two policies, two seeds, on two workers, with everything written."""
    words = ("--policy", "fifo,shortest_job", "--seeds", "2", "--out", str(files / "report"))
    return simulated(files, *words, "-o", "json", "--workers", "2")


def test_figures_are_those_of_the_schedule(files: Path, compared):
    data = json.loads(compared.stdout)
    fifo, shortest = data["policies"]

    # fifo: 0-300, 300-500, 500-600. Shortest first: 0-300, b 300-400, a 400-600.
    assert fifo["figures"]["jct_mean_s"]["mean"] == pytest.approx((300 + 490 + 580) / 3, 1e-8)
    assert shortest["figures"]["jct_mean_s"]["mean"] == pytest.approx(
        (300 + 380 + 590) / 3, 1e-8
    )
    assert shortest["differences"]["wait_mean_s"]["mean"] == pytest.approx(-100 / 3, 1e-8)
    assert fifo["figures"]["allocation"]["mean"] == 1
    assert fifo["figures"]["cost_usd"]["mean"] == 0.6  # 600 s of 3.6 USD/h
    assert fifo["groups"]["queue"]["research"]["wait_mean_s"]["mean"] == 480
    # b lives for 580 s, with 3 jobs present for 280 s of them, 2 for 200 s, 1 for 100 s.
    beside = (3 * 280 + 2 * 200 + 100) / 580
    assert fifo["figures"]["ftf_max"]["mean"] == pytest.approx(580 / (100 * beside), 1e-8)


def test_the_report_is_written_as_json_csv_and_a_page(files: Path, compared):
    report = files / "report"

    assert sorted(path.name for path in report.iterdir()) == [
        "figures.csv", "report.html", "report.json",
    ]  # fmt: skip
    assert compared.stderr.splitlines() == [
        f"Written to {report}: figures.csv, report.html, report.json"
    ]
    assert json.loads((report / "report.json").read_text()) == json.loads(compared.stdout)
    with (report / "figures.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert {(row["policy"], row["seed"]) for row in rows} == {
        ("fifo", "0"), ("fifo", "1"), ("shortest_job", "0"), ("shortest_job", "1"),
    }  # fmt: skip
    page = (report / "report.html").read_text()
    assert "shortest_job" in page
    assert "cluster.yaml" in page


def test_other_workers_give_the_same_bytes(files: Path, compared):
    again = simulated(
        files, "--policy", "fifo,shortest_job", "--seeds", "2", "-o", "json", "--workers", "1"
    )

    assert again.stdout == compared.stdout


def test_hash_seeds_change_nothing(files: Path):
    words = [
        *LEPTON, "simulate", "--cluster", "2x8xT4,1x8xA100", "--preset", "helios",
        "--jobs", "40", "--policy", "max_min_fairness", "--load", "9", "-o", "json",
    ]  # fmt: skip

    first, second = (
        subprocess.run(
            words, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, timeout=120
        ).stdout
        for seed in ("1", "2")
    )

    assert len(first) > 1000
    assert first == second


def test_chance_is_drawn_from_the_seed():
    words = ("--cluster", "2x8xT4", "--preset", "philly", "--jobs", "30", "-o", "json")

    first, second = (lepton("simulate", *words).stdout for _ in range(2))
    assert first == second
    figures = json.loads(first)["policies"][0]["figures"]
    assert figures["n_jobs"]["mean"] == 30
    assert figures["ftf_mean"]["mean"] > 0


def test_people_get_a_table_with_differences(files: Path):
    result = simulated(files, "--policy", "fifo,shortest_job:best-fit:conservative")

    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["POLICY", "JCT", "MEAN"]
    assert [line.split()[0] for line in lines[1:3]] == [
        "fifo", "shortest_job:best-fit:conservative",
    ]  # fmt: skip
    assert lines[4].startswith("Against fifo, one seed")


def test_wide_tables_have_every_figure(files: Path):
    result = simulated(files, "-o", "wide")

    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert {"FIGURE", "wait_p95_s", "idle_cost_share", "jain_queues"} <= set(names)


def test_parts_of_a_trace_are_taken(files: Path):
    def n_jobs(*words: str) -> float:
        data = json.loads(simulated(files, *words, "-o", "json").stdout)
        return data["policies"][0]["figures"]["n_jobs"]["mean"]

    assert n_jobs("--jobs", "2") == 2
    assert n_jobs("--queue", "research") == 1
    assert n_jobs("--after", "10s") == 2
    assert n_jobs("--span", "15s") == 2
    assert n_jobs("--max-gpus", "2", "--gpu-type", "H100") == 3  # they run on any type


def test_a_run_may_be_cut_off(files: Path):
    result = simulated(files, "--until", "350s", "-o", "json")

    figures = json.loads(result.stdout)["policies"][0]["figures"]
    assert (figures["n_ended"]["mean"], figures["n_never_started"]["mean"]) == (1, 1)
    assert "1 of 3 jobs never started" in result.stderr


def test_who_goes_by_estimates_without_any_is_told():
    result = lepton(
        "simulate", "--cluster", "1x8xT4", "--preset", "philly", "--jobs", "5",
        "--policy", "shortest_job",
    )  # fmt: skip

    assert "--estimates 0" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--policy", "fair"), "'fair'; must be one of fifo"),
        (("--policy", "fifo:tight"), "must be one of best-fit, "),
        (("--policy", ","), "name at least one"),
        (("--policy", "fifo:fgd:lepton"), "fifo:fgd:lepton names more than one score"),
        (("--policy", "fifo:easy:none"), "fifo:easy:none names more than one backfill"),
        (("--until", "0s"), "--until 0s: must be above 0"),
        (("--cluster", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("--cluster", "1x2xT4,2x2xT4"), "twice"),
        (("--preset", "philly"), "one of --trace and --preset"),
        (("--load", "0"), "--load 0: must be above 0"),
        (("--sample", "2"), "--sample 2: must be above 0 and at most 1"),
        (("--estimates", "-1"), "--estimates -1: must not be negative"),
        (("--estimates", "1e200"), "--estimates 1e+200: must not be negative, and below 1e+06"),
        (("--estimates", "nan"), "--estimates nan: must not be negative"),
        (("--max-gpus", "-1"), "--max-gpus -1: must not be negative"),
        (("--scale-to", "inf"), "--scale-to inf: must not be negative"),
        (("--load", "inf"), "--load inf: must be above 0, and below 1e+06"),
        (("--speeds", "T4=1,T4=2"), "--speeds: names T4 twice"),
        (("--node-fails", "0s"), "--node-fails 0s: must be above 0"),
        (("--cluster", "100001x1xT4"), "a pool has at most 100,000 nodes"),
        (("--until", "90"), "90 of what? write 90s, 90m or 90h"),
        (("--queue", "nobody"), "no jobs in it, or none left"),
        (("--format", "xls"), "no format 'xls'"),
        (("--engine", "abacus"), "abacus"),
        (("--seeds", "2", "--address", "127.0.0.1:1"), "--address: is that of a cluster"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_are_told(files: Path, words: tuple[str, ...], told: str):
    result = simulated(files, *words)

    assert result.exit_code == 64
    assert told in result.stderr
    assert "bug in lepton" not in result.stderr


def test_an_out_that_cannot_be_is_told_before_anything_runs(files: Path):
    out = files / "jobs.jsonl" / "report"

    result = simulated(files, "--trace", str(files / "nowhere.jsonl"), "--out", str(out))

    assert result.exit_code == 64
    assert f"--out {out}: {files / 'jobs.jsonl'} is not a folder" in result.stderr


def test_a_preset_needs_an_end():
    result = lepton("simulate", "--cluster", "1x8xT4", "--preset", "philly")

    assert (result.exit_code, "--jobs" in result.stderr) == (64, True)


@pytest.mark.parametrize(
    ("words", "n_jobs"),
    [
        (("--jobs", "7", "--after", "5h"), 7),
        (("--jobs", "7", "--queue", "vc-b"), 7),
        (("--jobs", "7", "--sample", "0.5"), 7),
        (("--jobs", "7", "--span", "10000h"), 7),
        (("--jobs", "700", "--span", "1s", "--min-gpus", "0"), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_parts_of_a_preset_are_taken(words: tuple[str, ...], n_jobs: int):
    words = ("--cluster", "1x8xT4", "--preset", "philly", "--policy", "fifo", *words)
    result = lepton("simulate", *words, "-o", "json")

    assert result.exit_code == 0, result.stderr
    [policy] = json.loads(result.stdout)["policies"]
    assert policy["figures"]["n_jobs"]["mean"] == n_jobs


def test_a_part_of_a_preset_that_never_comes_is_told():
    words = ("--cluster", "1x8xT4", "--preset", "philly", "--jobs", "5", "--queue", "nobody")
    result = lepton("simulate", *words)

    assert result.exit_code == 64
    assert "none is wanted" in result.stderr


def test_the_span_of_a_preset_begins_with_its_first_job():
    source = Source(preset="philly", span_s=86_400.0)

    jobs = list(source.jobs(n_gpus=8.0, seed=3))
    again = list(replace(source, n_jobs=len(jobs) + 1).jobs(n_gpus=8.0, seed=3))

    assert jobs[0].at_s > 900  # it does not come at once
    assert len(again) == len(jobs)
    made = generate(scaled_to(preset("philly"), 8.0), seed=3, until_s=jobs[0].at_s + 86_400.0)
    assert [job.at_s for job in jobs] == [job.at_s for job in made]


def test_a_preset_needs_gpus():
    result = lepton("simulate", "--cluster", "1x0xcpu", "--preset", "philly", "--jobs", "5")

    assert (result.exit_code, "has no GPUs" in result.stderr) == (64, True)


def test_a_bad_cluster_file_is_told_by_line(files: Path):
    (files / "bad.yaml").write_text(
        "pools:\n  - {name: t4, gpus: 2, gpu_type: T4, spott: yes}\n"
    )

    result = simulated(files, "--cluster", str(files / "bad.yaml"))

    assert result.exit_code == 64
    assert "bad.yaml:2: pools[0].spott: is not a known field" in result.stderr


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_a_missing_engine_says_what_to_install(files: Path):
    result = simulated(files, "--engine", "ray", "--seeds", "2")

    assert result.exit_code == 1
    assert "engine ray needs ray: pip install ray" in result.stderr


@pytest.mark.parametrize("engine", ["ray", "dask", "spark"])
def test_a_cluster_that_is_not_there_is_told_at_once(files: Path, engine: str):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

    result = simulated(files, "--engine", engine, "--address", address)

    assert result.exit_code == 1
    assert f"no {engine} cluster at {address}" in result.stderr


def test_a_case_that_fails_elsewhere_is_told_like_one_that_fails_here(files: Path):
    lines = (files / "jobs.jsonl").read_text().splitlines()
    bad = files / "bad.jsonl"
    bad.write_text("\n".join([*lines[:2], '{"at_s": "noon"}', *lines[2:]]) + "\n")

    told = [
        simulated(files, "--trace", str(bad), "--seeds", seeds, "--workers", "2")
        for seeds in ("1", "2")
    ]

    assert [result.exit_code for result in told] == [64, 64]
    assert "bad.jsonl:3" in told[0].stderr
    assert told[0].stderr == told[1].stderr


def test_the_help_has_examples_and_fits_a_terminal():
    result = lepton("simulate", "--help")

    assert result.exit_code == 0
    assert "Examples:\n" in result.stdout
    assert [line for line in result.stdout.splitlines() if len(line) > 80] == []


def test_a_long_run_shows_how_far_it_is_and_leaves_calmly():
    words = ("--cluster", "16x8xA100", "--preset", "philly", "--jobs", "60000", "--seeds", "2")
    with terminal(None, "simulate", *words, columns=100) as screen:
        screen.read(until="jobs/s", timeout_s=60)
        screen.process.send_signal(2)
        text = screen.read(timeout_s=60)

        assert screen.process.wait(30) == 130
    assert "of 2 runs" in text
    assert "Traceback" not in text


def test_a_table_folds_on_a_narrow_terminal_and_keeps_its_names(files: Path):
    words = ("--cluster", "2x8xT4", "--preset", "philly", "--jobs", "3", "--until", "1h")
    long = "shortest_job:best-fit:conservative"
    with terminal(None, "simulate", *words, "--policy", f"fifo,{long}", columns=80) as screen:
        lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.read(timeout_s=60)).splitlines()

    tables = [line for line in lines if line.startswith("POLICY")]
    assert len(tables) > 2
    assert sum(line.startswith(long) for line in lines) == len(tables)
    assert all(len(line) <= 80 for line in lines if line.startswith(("POLICY", "fifo", long)))


def test_what_cannot_be_written_is_told_after_the_table(files: Path, tmp_path: Path):
    (tmp_path / "report.json").mkdir()

    result = simulated(files, "--out", str(tmp_path), "-o", "json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["format"] == "lepton.report/1"
    assert result.stderr == f"Error: --out {tmp_path}: Is a directory\n"


def workers_of(pid: int) -> list[int]:
    """The processes of a sweep that simulate."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid and b"popen_loky" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.fixture
def sweeping() -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """A sweep of two workers that takes far longer than a test."""
    words = ("--cluster", "16x8xA100", "--preset", "philly", "--jobs", "20000", "--seeds", "2")
    with subprocess.Popen(
        [*LEPTON, "simulate", *words, "--workers", "2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        workers: list[int] = []
        until_s = time.monotonic() + 60
        while len(workers) < 2 and time.monotonic() < until_s:
            time.sleep(0.1)
            workers = workers_of(process.pid)
        while sum(map(cpu_s, workers)) < 6.0 and time.monotonic() < until_s:
            time.sleep(0.1)  # beyond their imports
        yield process, workers
        process.kill()
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_worker_that_was_killed_is_told(sweeping):
    process, workers = sweeping
    os.kill(workers[0], signal.SIGKILL)

    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 1
    assert stderr.startswith("Error: a process that simulated was killed, with 0 of 2 runs")
    assert "fewer --workers need less" in stderr


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_do_not_outlive_the_command(sweeping):
    process, workers = sweeping
    process.kill()

    until_s = time.monotonic() + 30
    while any(map(is_at_work, workers)) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert [pid for pid in workers if is_at_work(pid)] == []


def cpu_s(pid: int) -> float:
    cells = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(cells[11]) + int(cells[12])) / os.sysconf("SC_CLK_TCK")


def is_at_work(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


SERVED = """
services:
  - job: chat
    profile: {rate_per_s: 1}
    target_s: 12
    replicas: [{gpu_type: T4, prompt_tokens_per_s: 9000, output_tokens_per_s: 600}]
    submit: {gpus: 1}
"""


@pytest.mark.parametrize(("until", "gpu_h"), [((), 24.0), (("--until", "2h"), 2.0)])
def test_services_alone_are_served_as_long_as_their_loads(tmp_path: Path, until, gpu_h):
    (tmp_path / "services.yaml").write_text(SERVED)

    result = lepton(
        "simulate", "--cluster", "1x8xT4", "--services", str(tmp_path / "services.yaml"),
        *until, "-o", "json",
    )  # fmt: skip

    figures = json.loads(result.stdout)["policies"][0]["figures"]
    assert figures["gpu_h"]["mean"] == gpu_h
    assert figures["n_requests"]["mean"] == pytest.approx(3600.0 * gpu_h)


def test_a_service_without_a_load_needs_an_end(tmp_path: Path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        '{"format": "lepton-trace", "version": 1}\n'
        '{"at_s": 0, "spec": {"name": "a", "kind": "inference", "roles": [{"name": "w"}]},'
        ' "behaviour": {"kind": "steady", "work": null}}\n'
    )
    words = ("simulate", "--cluster", "1x8xT4", "--trace", str(trace))

    refused = lepton(*words)
    assert refused.exit_code == 64
    assert "there are only services, which do not end: say how long to run" in refused.stderr
    assert lepton(*words, "--until", "1h").exit_code == 0


def test_failures_by_the_second_do_not_keep_a_run_from_its_end(files: Path):
    result = simulated(files, "--node-fails", "1s", "-o", "json")

    figures = json.loads(result.stdout)["policies"][0]["figures"]
    assert figures["n_jobs"]["mean"] == 3
