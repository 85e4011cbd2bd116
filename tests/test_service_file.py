"""Files of services: mistakes by line, and a simulation that says how well they answered."""

import json
from pathlib import Path

import pytest
from cli_testing import lepton

from scheduler.core.model import JobKind
from scheduler.yaml_source import InvalidSource
from simulator.cases import Case, Deciding, Source, run_case
from simulator.cluster import uniform_cluster
from simulator.samples import SAMPLE
from simulator.service_file import beginning_at, load_services

EXAMPLE = Path(__file__).parent.parent / "examples" / "services.yaml"


def written(folder, text):
    path = folder / "services.yaml"
    path.write_text(text)
    return path


def test_the_example_is_valid():
    (chat,) = load_services(EXAMPLE)
    assert chat.job is not None
    assert (chat.key, chat.job.spec.kind, chat.job.spec.n_tasks) == (
        "chat",
        JobKind.INFERENCE,
        6,
    )
    assert chat.service.load.at_s[-1] == 7 * 86_400
    (moved,) = beginning_at([chat], 500.0)
    assert (moved.job.at_s, moved.service.load.at_s[0]) == (500.0, 500.0)


def test_a_trace_is_found_beside_the_file(tmp_path):
    (tmp_path / "m.jsonl").write_text(
        '{"timestamp": 0, "input_length": 10, "output_length": 5}\n'
        '{"timestamp": 900000, "input_length": 10, "output_length": 5}\n'
    )
    (one,) = load_services(
        written(
            tmp_path,
            "services:\n"
            "  - job: '17'\n    trace: m.jsonl\n    every_s: 5m\n"
            "    scale: 3\n    target_s: 2\n"
            "    replicas: [{prompt_tokens_per_s: 10, output_tokens_per_s: 10}]\n",
        )
    )
    assert one.job is None
    assert one.service.load.n_requests == pytest.approx(6)
    assert len(one.service.load.rate_per_s) == 4


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("services: []\n", "services: "),
        (
            "services:\n  - job: a\n    target_s: 1\n    replicas: []\n",
            ":4: services[0].replicas",
        ),
        (
            "services:\n  - job: a\n    target_s: 1\n    replicas:\n"
            "      - {prompt_tokens_per_s: 1, output_tokens_per_s: 1}\n",
            "give one of trace and profile",
        ),
        ("services:\n  - job: a\n    targets: 1\n", "services[0].targets"),
        (
            "services:\n  - job: a\n    target_s: 1\n    profile: {rate_per_s: .inf}\n",
            "services[0].profile.rate_per_s: should be a finite number",
        ),
        (
            "services:\n  - job: a\n    target_s: 1\n    trace: a.csv\n    every_s: 0\n",
            "services[0].every_s: should be greater than 0",
        ),
        (
            "services:\n  - job: a\n    target_s: 1\n    submit: {cpus: .inf}\n",
            "services[0].submit.cpus: should be ",
        ),
    ],
)
def test_mistakes_are_told_by_line(tmp_path, text, what):
    with pytest.raises(InvalidSource) as raised:
        load_services(written(tmp_path, text))
    assert what in str(raised.value)


def test_a_simulation_says_how_well_a_service_answered(tmp_path):
    def figures(n_replicas):
        text = (
            "services:\n"
            "  - job: chat\n"
            "    profile: {rate_per_s: 0.5}\n"
            "    tokens: {prompt: 100, output: 100, scv: 0.5}\n"
            "    target_s: 6\n"
            "    replicas:\n"
            "      - {gpu_type: A100, prompt_tokens_per_s: 1000, output_tokens_per_s: 50}\n"
            f"    submit: {{replicas: {n_replicas}, gpus: 1}}\n"
        )
        case = Case(
            cluster=uniform_cluster(2, gpus=4),
            source=Source(preset="pai", n_jobs=60),
            deciding=Deciding(policy="fifo"),
            services=load_services(written(tmp_path, text)),
        )
        (chat,) = run_case(case).services
        return chat

    enough, too_few = figures(4), figures(1)
    assert enough.name == "chat"
    assert enough.n_requests > 10_000
    assert too_few.within_target < 0.2 < 0.9 < enough.within_target < 1.0
    assert too_few.replica_s == pytest.approx(enough.replica_s / 4, rel=0.5)


def test_a_service_that_never_starts_answers_nobody(tmp_path):
    text = (
        "services:\n"
        "  - job: chat\n"
        "    profile: {rate_per_s: 1}\n"
        "    target_s: 6\n"
        "    replicas: [{gpu_type: A100, prompt_tokens_per_s: 9, output_tokens_per_s: 9}]\n"
        "    submit: {gpus: 9}\n"
    )
    case = Case(
        cluster=uniform_cluster(1, gpus=4),
        source=Source(preset="pai", n_jobs=60),
        deciding=Deciding(policy="fifo"),
        services=load_services(written(tmp_path, text)),
    )
    summary = run_case(case)
    (chat,) = summary.services
    assert summary.curves.span_s > 86_400  # the day of the profile
    assert chat.n_requests == 86_400
    assert (chat.within_target, chat.replica_s) == (0.0, 0.0)
    assert summary.figures["within_target_worst"] == 0.0


def test_what_ships_runs_from_the_command_line_without_downloads():
    examples = EXAMPLE.parent
    result = lepton(
        "simulate", "--cluster", str(examples / "cluster.yaml"), "--trace", str(SAMPLE),
        "--jobs", "60", "--services", str(EXAMPLE), "-o", "json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    (run,) = json.loads(result.stdout)["runs"]
    (chat,) = run["services"]
    assert chat["name"] == "chat"
    assert chat["n_requests"] > 1000
    assert 0.5 < chat["within_target"] < 1.0


def test_a_service_that_the_trace_does_not_have_is_told(tmp_path):
    services = written(
        tmp_path,
        "services:\n  - job: caht\n    target_s: 2\n    profile: {rate_per_s: 1}\n"
        "    replicas: [{prompt_tokens_per_s: 10, output_tokens_per_s: 10}]\n",
    )
    result = lepton(
        "simulate", "--cluster", "1x8xA100", "--preset", "pai", "--jobs", "5",
        "--estimates", "0", "--services", str(services),
    )  # fmt: skip
    assert result.exit_code == 0
    assert "1 of 1 services are no service of the trace (of caht)" in result.stderr


def test_the_machines_of_a_trace_are_a_cluster(tmp_path):
    machines = tmp_path / "pai_machine_spec.csv"
    machines.write_text("a,T4,96,512,2\nb,T4,96,512,2\n")
    result = lepton(
        "simulate", "--cluster", str(machines), "--preset", "pai", "--jobs", "20", "-o", "json"
    )
    assert result.exit_code == 0, result.stderr
    (run,) = json.loads(result.stdout)["runs"]
    assert [pool["gpu_type"] for pool in run["pools"]] == ["T4"]
