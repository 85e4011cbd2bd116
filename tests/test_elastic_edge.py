"""Elastic jobs at the edge: the wire, job files, commands, and what they look like."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_testing import FakeCluster, fake_cluster, lepton
from rpc_testing import message_of

from scheduler.core.errors import InvalidInput
from scheduler.core.events import PlanCommitted
from scheduler.core.model import JobId, NodeName
from scheduler.core.plan import Resize
from scheduler.core.records import Seat
from scheduler.daemon.codec import spec_from
from scheduler.daemon.codec_views import spec_message
from scheduler.daemon.event_codec import decode_event, encode_event
from scheduler.daemon.limits import Limits
from scheduler.job_file import parse_job_file
from scheduler.wire import cluster_pb2 as pb

LIMITS = Limits()
SCALING = {1: 1.0, 4: 3.5}


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as cluster:
        yield cluster


def elastic(**about: Any) -> pb.JobSpec:
    message = message_of(elastic=True, **about)
    message.roles[0].count, message.roles[0].max_count = 2, 8
    return message


def test_it_survives_the_wire() -> None:
    spec = spec_from(elastic(resize_cooldown_s=60.0, scaling=SCALING), LIMITS)
    assert (spec.elastic, spec.resize_cooldown_s) == (True, 60.0)
    assert spec.scaling == ((1, 1.0), (4, 3.5))
    assert spec_from(spec_message(spec), LIMITS) == spec


def test_who_says_nothing_keeps_its_size() -> None:
    spec = spec_from(message_of(), LIMITS)
    assert (spec.elastic, spec.resize_cooldown_s, spec.scaling) == (False, 600.0, ())


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("elastic", message_of(elastic=True)),
        ("resize_cooldown_s", elastic(resize_cooldown_s=-1.0)),
        ("scaling[0]", elastic(scaling={0: 1.0})),
        ("scaling[2]", elastic(scaling={2: float("nan")})),
        ("scaling[2]", elastic(scaling={2: 0.0})),
        ("scaling", elastic(scaling=dict.fromkeys(range(1, 200), 1.0))),
    ],
)
def test_nonsense_is_refused_by_name(field: str, message: pb.JobSpec) -> None:
    with pytest.raises(InvalidInput) as refused:
        spec_from(message, LIMITS)
    assert refused.value.field == field


def test_a_job_file_says_it() -> None:
    text = "command: ./run\ntasks: 2\nmax_tasks: 8\nelastic: true\nresize_cooldown: 5m\n"
    text += "scaling: {1: 1, 4: 3.5}\n"
    (found,) = parse_job_file(text, "job.yaml", folder=Path("/work"))
    spec = found.spec
    assert (spec.elastic, spec.resize_cooldown_s, dict(spec.scaling)) == (True, 300.0, SCALING)


def test_options_of_submit_say_it(cluster: FakeCluster) -> None:
    words = ["--elastic", "--tasks", "2", "--max-tasks", "8", "--resize-cooldown", "5m"]
    words += ["--scaling", "1=1", "--scaling", "4=3.5"]
    assert lepton("submit", *words, "--", "true", cluster=cluster).exit_code == 0
    (request,) = cluster.of(pb.SubmitJobRequest)
    spec = request.spec
    assert (spec.elastic, spec.resize_cooldown_s, dict(spec.scaling)) == (True, 300.0, SCALING)
    assert spec.roles[0].max_count == 8
    result = lepton("submit", "--scaling", "two=2", "--", "true", cluster=cluster)
    assert result.exit_code == 64
    assert "write TASKS=NUMBER" in result.stderr


def test_a_resize_is_journalled_as_it_is() -> None:
    seats = (Seat(role="worker", node=NodeName("n"), devices=(0, 1)),)
    resize = Resize(job_id=JobId("1"), attempt=2, seats=seats, detail="why")
    event = PlanCommitted(at_s=1.0, resizes=(resize,))
    assert decode_event(*encode_event(event)) == event
    old = decode_event("PlanCommitted", b'{"at_s":1.0,"placements":[],"evictions":[]}')
    assert old == PlanCommitted(at_s=1.0)
