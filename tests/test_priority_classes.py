"""Priorities by name: configured, given, resolved once, and what comes with them."""

from pathlib import Path

import grpc
import pytest
from cli_testing import fake_cluster, lepton
from cluster_testing import Cluster
from rpc_testing import serving, spec_of

from scheduler.client import ClientError
from scheduler.config import PriorityClassConfig, parse_config
from scheduler.core.errors import InvalidInput
from scheduler.core.model import StopCause
from scheduler.daemon.priority_classes import with_class
from scheduler.job_file import parse_job_file
from scheduler.quantities import Priority, parse_priority
from scheduler.wire import cluster_pb2 as pb
from scheduler.yaml_source import InvalidSource

CLASSES = {
    "high": PriorityClassConfig(value=1000, preemptible=False),
    "calm": PriorityClassConfig(value=10, may_preempt=False),
    "zero": PriorityClassConfig(value=0),
}


def test_a_class_says_what_a_job_may_do() -> None:
    cluster = Cluster()
    spec = with_class(cluster.spec("job", priority_class="high"), CLASSES)
    assert (spec.priority, spec.preemptible, spec.may_preempt) == (1000, False, True)
    spec = with_class(cluster.spec("job", priority_class="calm", preemptible=False), CLASSES)
    assert (spec.priority, spec.preemptible, spec.may_preempt) == (10, False, False)
    plain = cluster.spec("job", priority=3)
    assert with_class(plain, CLASSES) is plain
    for about, rule in (
        ({"priority_class": "hihg"}, "must be one of high, calm, zero, not 'hihg'"),
        ({"priority_class": "high", "priority": 3}, "must not be given together"),
    ):
        with pytest.raises(InvalidInput, match=rule) as caught:
            with_class(cluster.spec("job", **about), CLASSES)
        assert caught.value.field == "priority_class"
    with pytest.raises(InvalidInput, match="there are none here"):
        with_class(cluster.spec("job", priority_class="high"), {})


def test_a_class_of_value_0_is_no_default() -> None:
    cluster = Cluster()
    cluster.put_queue("a", default_priority=5)
    for name, about in (("named", {"priority_class": "zero"}), ("plain", {})):
        cluster.submit_spec(with_class(cluster.spec(name, queue="a", **about), CLASSES))
    assert [cluster.job(n).job.spec.priority for n in ("named", "plain")] == [0, 5]


class TestStoppingNobody:
    def test_it_is_served_first_and_waits(self) -> None:
        cluster = Cluster("priority")
        cluster.add_nodes(1, gpus=1)
        cluster.submit("low", gpus=1)
        cluster.settle()
        cluster.submit("calm", gpus=1, priority=10, may_preempt=False)
        cluster.submit("middle", gpus=1, priority=5)
        decided = cluster.cycle()
        assert decided.evicted == {"low": StopCause.PREEMPTED}
        cluster.let_go()
        assert cluster.cycle().started == ["calm"]
        cluster.validate()

    @pytest.mark.parametrize("calm_first", [True, False])
    def test_its_like_of_the_same_priority_may_stop_others_all_the_same(
        self, calm_first: bool
    ) -> None:
        cluster = Cluster("priority")
        cluster.add_nodes(1, gpus=1)
        cluster.submit("low", gpus=1)
        cluster.settle()
        for may_preempt in (not calm_first, calm_first):
            name = "keen" if may_preempt else "calm"
            cluster.submit(name, gpus=1, priority=5, may_preempt=may_preempt)
        (eviction,) = cluster.decide().evictions
        assert eviction.detail == f"makes room for {cluster.ids['keen']}"

    def test_a_reclaim_is_none_of_its_rights_either(self) -> None:
        cluster = Cluster("priority")
        cluster.add_nodes(1, gpus=2)
        cluster.put_queue("a", guaranteed=(("gpu_milli", 2000),))
        cluster.submit("borrows", gpus=2)
        cluster.settle()
        cluster.submit("calm", queue="a", gpus=1, may_preempt=False)
        assert cluster.cycle().evicted == {}
        cluster.submit("keen", queue="a", gpus=1)
        assert cluster.cycle().evicted == {"borrows": StopCause.PREEMPTED}


async def test_classes_are_resolved_when_jobs_are_submitted_and_updated(tmp_path: Path) -> None:
    async with serving(tmp_path, priority_classes=CLASSES) as served, served.client() as client:
        answer = await client.submit(spec_of(priority_class="high"))
        spec = (await client.job(answer.job_id)).spec
        assert (spec.priority, spec.priority_class, spec.preemptible) == (1000, "high", False)
        await client.update(answer.job_id, priority_class="calm")
        spec = (await client.job(answer.job_id)).spec
        assert (spec.priority, spec.priority_class, spec.may_preempt) == (10, "calm", False)
        await client.update(answer.job_id, priority=7)
        spec = (await client.job(answer.job_id)).spec
        assert (spec.priority, spec.priority_class, spec.may_preempt) == (7, "", True)
        for wrong in (
            client.submit(spec_of(priority_class="top")),
            client.dry_run(spec_of(priority_class="top")),
            client.update(answer.job_id, priority_class="top"),
            client.update(answer.job_id, priority_class="high", priority=3),
        ):
            with pytest.raises(ClientError) as caught:
                await wrong
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.field.endswith("priority_class")


def test_priorities_are_numbers_or_names() -> None:
    assert parse_priority(" -3 ") == Priority(value=-3)
    assert parse_priority(10) == Priority(value=10)
    assert parse_priority("high") == Priority(name="high")
    for wrong in ("", "1.5", "9" * 20, "-high", "two words", True):
        with pytest.raises(ValueError, match="must be"):
            parse_priority(wrong)


def test_the_command_line_and_job_files_take_names() -> None:
    with fake_cluster() as cluster:
        lepton("submit", "--priority", "high", "--", "true", cluster=cluster)
        lepton("submit", "-p", "-3", "--", "true", cluster=cluster)
        named, numbered = (r.spec for r in cluster.of(pb.SubmitJobRequest))
        assert (named.priority, named.priority_class) == (0, "high")
        assert (numbered.priority, numbered.priority_class) == (-3, "")
        lepton("update", "17", "--priority", "calm", cluster=cluster)
        assert cluster.of(pb.UpdateJobRequest)[-1] == pb.UpdateJobRequest(
            job_id="17", priority_class="calm"
        )
        assert lepton("submit", "-p", "1.5", "--", "true", cluster=cluster).exit_code == 64
    (job,) = parse_job_file("command: x\npriority: high\n", "a.yaml", folder=Path())
    assert (job.spec.priority, job.spec.priority_class) == (0, "high")


def test_a_class_is_checked_with_the_configuration() -> None:
    text = "priority_classes:\n  high: {value: 5, may_preempt: false}\n"
    config = parse_config(text, "x", folder=Path())
    assert config.priority_classes["high"] == PriorityClassConfig(value=5, may_preempt=False)
    for wrong in ("{7: {value: 5}}", "{a: {}}", "{a: {value: 5, colour: red}}"):
        with pytest.raises(InvalidSource):
            parse_config(f"priority_classes: {wrong}\n", "x", folder=Path())
