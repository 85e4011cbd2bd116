"""Estimates and expected starts at the edge: the wire, job files, configuration, commands."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_testing import NOW_S, FakeCluster, fake_cluster, job, lepton
from rpc_testing import message_of, serving, spec_of, until

from scheduler.cli.daemon import policy_for
from scheduler.config import DaemonConfig, parse_config
from scheduler.core.errors import InvalidInput
from scheduler.core.ports import Backfilling
from scheduler.daemon.codec import spec_from
from scheduler.daemon.codec_views import spec_message
from scheduler.daemon.limits import Limits
from scheduler.job_file import parse_job_file
from scheduler.wire import cluster_pb2 as pb
from scheduler.yaml_source import InvalidSource

LIMITS = Limits()


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as cluster:
        yield cluster


async def test_a_blocked_job_is_told_when_it_starts(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        both = spec_of("both", count=2, gpus=4, expected_run_s=1000.0)
        running = (await client.submit(both)).job_id
        await served.running(running)
        first = (await client.submit(both)).job_id
        second = (await client.submit(both)).job_id
        await until(lambda: first in served.daemon.expected_start_at_s)
        started_at_s = (await client.job(running)).last_started_at_s
        ends_at_s = [started_at_s + 1000.0 * n for n in (1, 2, 3)]

        assert (await client.job(first)).expected_start_at_s == pytest.approx(ends_at_s[0])
        told = await client.explain(second)
        assert (told.expected_start_at_s, told.n_ahead) == (pytest.approx(ends_at_s[1]), 1)
        told = (await client.dry_run(both)).explanation
        assert (told.expected_start_at_s, told.n_ahead) == (pytest.approx(ends_at_s[2]), 2)
        assert (await client.job(running)).expected_start_at_s == 0


def test_estimates_survive_the_wire() -> None:
    message = message_of(expected_run_s=90.5, expected_run_spread=0.25, min_runtime_s=7.0)
    spec = spec_from(message, LIMITS)
    assert (spec.expected_run_s, spec.expected_run_spread, spec.min_runtime_s) == (
        90.5,
        0.25,
        7,
    )
    assert spec_from(spec_message(spec), LIMITS) == spec


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("expected_run_s", {"expected_run_s": -1.0}),
        ("expected_run_s", {"expected_run_s": float("nan")}),
        ("expected_run_spread", {"expected_run_s": 1.0, "expected_run_spread": -0.1}),
        ("expected_run_spread", {"expected_run_s": 1.0, "expected_run_spread": 11.0}),
        ("expected_run_spread", {"expected_run_s": 1.0, "expected_run_spread": float("nan")}),
        ("expected_run_spread", {"expected_run_spread": 0.1}),
        ("min_runtime_s", {"min_runtime_s": float("inf")}),
    ],
)
def test_what_cannot_be_an_estimate_is_refused_by_name(
    field: str, fields: dict[str, float]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        spec_from(message_of(**fields), LIMITS)
    assert refused.value.field == field


def test_a_job_file_says_how_long_it_should_run() -> None:
    text = "command: ./run\nexpect: 90m\nexpect_spread: 0.2\nmin_runtime: 10m\n"
    (found,) = parse_job_file(text, "job.yaml", folder=Path("/work"))
    spec = found.spec
    assert (spec.expected_run_s, spec.expected_run_spread, spec.min_runtime_s) == (
        5400,
        0.2,
        600,
    )


def test_options_of_submit_say_how_long_it_should_run(cluster: FakeCluster) -> None:
    words = ("--expect", "90m", "--expect-spread", "0.5", "--min-runtime", "5m")
    assert lepton("submit", *words, "--", "true", cluster=cluster).exit_code == 0
    (request,) = cluster.of(pb.SubmitJobRequest)
    spec = request.spec
    assert (spec.expected_run_s, spec.expected_run_spread, spec.min_runtime_s) == (
        5400,
        0.5,
        300,
    )


def test_starts_are_listed_by_time_the_unknown_ones_last(cluster: FakeCluster) -> None:
    for job_id, start_s in (("1", 0.0), ("2", NOW_S + 1e9), ("3", NOW_S + 5e8)):
        cluster.jobs[job_id] = job(
            job_id, phase=pb.JOB_PHASE_PENDING, expected_start_at_s=start_s, reason="full"
        )
    result = lepton("jobs", "--start", cluster=cluster)
    lines = result.stdout.splitlines()
    assert "EXPECTED START" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["3", "2", "1"]
    assert "(in " in lines[1]
    assert "unknown" in lines[3]
    (request,) = cluster.of(pb.ListJobsRequest)
    assert request.filter == "phase=pending"


def test_the_configuration_chooses_who_may_pass() -> None:
    text = "backfill: {kind: conservative, depth: 3, patience_s: 60, starvation_s: 600}"
    policy = policy_for(parse_config(text, "lepton.yaml", folder=Path("/work")))
    assert policy.backfill is Backfilling.CONSERVATIVE
    assert (policy.backfill_depth, policy.patience_s, policy.starvation_s) == (3, 60, 600)
    default = policy_for(DaemonConfig())
    assert (default.name, default.backfill) == ("lepton", Backfilling.EASY)
    assert default.defragments


def test_a_kind_of_backfill_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidSource):
        parse_config("backfill: {kind: hard}", "lepton.yaml", folder=Path("/work"))
