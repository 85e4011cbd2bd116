"""Weights, throughputs, work and deadlines at the edge: the wire, job files, commands."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_testing import FakeCluster, fake_cluster, lepton
from rpc_testing import message_of

from policies.registry import POLICIES
from policies.rounds import Rounds
from scheduler.cli.daemon import policy_for
from scheduler.config import parse_config
from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobSpec
from scheduler.daemon.codec import spec_from
from scheduler.daemon.codec_views import spec_message
from scheduler.daemon.limits import Limits
from scheduler.job_file import parse_job_file
from scheduler.wire import cluster_pb2 as pb

LIMITS = Limits()
SPEEDS = {"V100": 4.0, "K80": 0.5}


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as cluster:
        yield cluster


def said(spec: JobSpec | pb.JobSpec) -> tuple[float, dict[str, float], float, float]:
    return spec.weight, dict(spec.throughputs), spec.total_work, spec.deadline_at_s


def test_they_survive_the_wire() -> None:
    message = message_of(weight=2.0, throughputs=SPEEDS, total_work=1e6, deadline_at_s=5e9)
    spec = spec_from(message, LIMITS)
    assert said(spec) == (2.0, SPEEDS, 1e6, 5e9)
    assert spec.throughputs == (("K80", 0.5), ("V100", 4.0))
    assert spec_from(spec_message(spec), LIMITS) == spec


def test_who_says_nothing_weighs_one_and_runs_alike_everywhere() -> None:
    spec = spec_from(message_of(), LIMITS)
    assert said(spec) == (1.0, {}, 0.0, 0.0)
    assert spec.speed_on("V100") == spec.speed_on("K80") == 1.0


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("weight", {"weight": 0.0}),
        ("weight", {"weight": float("nan")}),
        ("throughputs[V100]", {"throughputs": {"V100": 0.0}}),
        ("throughputs[V100]", {"throughputs": {"V100": float("inf")}}),
        ("throughputs", {"throughputs": {"": 1.0}}),
        ("throughputs", {"throughputs": {f"type-{i}": 1.0 for i in range(100)}}),
        ("total_work", {"total_work": -1.0}),
        ("deadline_at_s", {"deadline_at_s": -1.0}),
    ],
)
def test_nonsense_is_refused_by_name(field: str, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as refused:
        spec_from(message_of(**fields), LIMITS)
    assert refused.value.field == field


def test_a_job_file_says_them() -> None:
    text = (
        "command: ./run\nweight: 2\nthroughputs: {V100: 4, K80: 0.5}\n"
        "total_work: 1000\ndeadline: 2026-03-01T18:00+00:00\n"
    )
    (found,) = parse_job_file(text, "job.yaml", folder=Path("/work"))
    assert said(found.spec) == (2.0, SPEEDS, 1000.0, 1772388000.0)


def test_options_of_submit_say_them(cluster: FakeCluster) -> None:
    words = ["--weight", "2", "--throughput", "V100=4", "--throughput", "K80=0.5"]
    words += ["--total-work", "1000", "--deadline", "2026-03-01T18:00+00:00"]
    assert lepton("submit", *words, "--", "true", cluster=cluster).exit_code == 0
    (request,) = cluster.of(pb.SubmitJobRequest)
    assert said(request.spec) == (2.0, SPEEDS, 1000.0, 1772388000.0)
    result = lepton("submit", "--throughput", "V100=fast", "--", "true", cluster=cluster)
    assert result.exit_code == 64
    assert "write TYPE=NUMBER" in result.stderr


def test_policies_are_listed_without_a_daemon() -> None:
    assert "NSDI '11" in lepton("policies").stdout
    found = json.loads(lepton("policies", "-o", "json").stdout)["policies"]
    assert [policy["name"] for policy in found] == list(POLICIES)
    assert {policy["name"] for policy in found if not policy["takes_turns"]} >= {"fifo", "drf"}


def test_the_configuration_says_how_long_a_round_is() -> None:
    text = "policy: water_filling\nround_s: 60"
    policy = policy_for(parse_config(text, "lepton.yaml", folder=Path("/work")))
    assert isinstance(policy.rounds, Rounds)
    assert policy.rounds.round_s == 60
