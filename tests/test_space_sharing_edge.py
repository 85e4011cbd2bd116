"""Profiles and shared throughputs at the edge: the wire, job files, commands."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_testing import FakeCluster, fake_cluster, lepton
from rpc_testing import message_of

from scheduler.core.errors import InvalidInput
from scheduler.core.model import SharedThroughput
from scheduler.daemon.codec import spec_from
from scheduler.daemon.codec_views import spec_message
from scheduler.daemon.limits import Limits
from scheduler.job_file import parse_job_file
from scheduler.wire import cluster_pb2 as pb

LIMITS = Limits()
ON_V100 = pb.SharedThroughput(gpu_type="V100", beside="transformer-b16", per_s=3.1)
ON_K80 = pb.SharedThroughput(gpu_type="K80", beside="transformer-b16", per_s=0.4)
TASK = pb.Role(launch=pb.Launch(command=["true"]), shape=pb.Shape(gpus=1))


def shared(**fields: object) -> pb.JobSpec:
    about = {"profile": "resnet50-b64", "shared_throughputs": [ON_V100, ON_K80], **fields}
    message = message_of(**about)
    if "roles" not in fields:
        message.ClearField("roles")
        message.roles.append(TASK)
    return message


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as cluster:
        yield cluster


def test_they_survive_the_wire() -> None:
    spec = spec_from(shared(), LIMITS)
    assert spec.profile == "resnet50-b64"
    assert spec.shared_throughputs == (
        SharedThroughput(gpu_type="K80", beside="transformer-b16", per_s=0.4),
        SharedThroughput(gpu_type="V100", beside="transformer-b16", per_s=3.1),
    )
    assert spec.speed_beside("transformer-b16", "V100") == 3.1
    assert spec.speed_beside("transformer-b16", "A100") == 0.0
    assert spec_from(spec_message(spec), LIMITS) == spec


def about(**fields: object) -> pb.SharedThroughput:
    known = {"gpu_type": "V100", "beside": "lm", "per_s": 1.0}
    return pb.SharedThroughput(**{**known, **fields})


@pytest.mark.parametrize(
    ("field", "rule", "fields"),
    [
        ("profile", "one line", {"profile": "a\nb"}),
        ("shared_throughputs", "needs a profile", {"profile": ""}),
        ("shared_throughputs", "no service", {"kind": pb.JOB_KIND_INFERENCE}),
        ("shared_throughputs", "single task", {"roles": [TASK, pb.Role(name="ps")]}),
        ("shared_throughputs", "whole GPUs", {"roles": [pb.Role(launch=TASK.launch)]}),
        (
            "shared_throughputs[0].beside",
            "not be empty",
            {"shared_throughputs": [about(beside="")]},
        ),
        ("shared_throughputs[0].per_s", "from", {"shared_throughputs": [about(per_s=0.0)]}),
        ("shared_throughputs[1]", "says twice", {"shared_throughputs": [about(), about()]}),
        (
            "shared_throughputs[0].gpu_type",
            "must be one that throughputs name",
            {"shared_throughputs": [about()], "throughputs": {"K80": 1.0}},
        ),
        ("shared_throughputs", "at most", {"shared_throughputs": [about()] * 2000}),
    ],
)
def test_nonsense_is_refused_by_name(field: str, rule: str, fields: dict[str, object]) -> None:
    message = shared(**fields)
    for role in message.roles:
        role.launch.CopyFrom(TASK.launch)
    with pytest.raises(InvalidInput) as refused:
        spec_from(message, LIMITS)
    assert refused.value.field == field
    assert rule in refused.value.rule


def test_a_job_file_says_them() -> None:
    text = (
        "command: ./run\ngpus: 1\nprofile: resnet50-b64\nshared_throughputs:\n"
        "- {gpu_type: V100, beside: transformer-b16, per_s: 3.1}\n"
        "- {gpu_type: K80, beside: transformer-b16, per_s: 0.4}\n"
    )
    (found,) = parse_job_file(text, "job.yaml", folder=Path("/work"))
    assert found.spec.profile == "resnet50-b64"
    assert list(found.spec.shared_throughputs) == [ON_V100, ON_K80]


def test_options_of_submit_say_them(cluster: FakeCluster) -> None:
    words = ["--gpus", "1", "--profile", "resnet50-b64"]
    words += ["--shared-throughput", "V100:transformer-b16=3.1"]
    assert lepton("submit", *words, "--", "true", cluster=cluster).exit_code == 0
    (request,) = cluster.of(pb.SubmitJobRequest)
    assert request.spec.profile == "resnet50-b64"
    assert list(request.spec.shared_throughputs) == [ON_V100]
    result = lepton("submit", "--shared-throughput", "V100=3.1x", "--", "true", cluster=cluster)
    assert result.exit_code == 64
    assert "write TYPE:PROFILE=NUMBER" in result.stderr
