"""Queues at the edge: on the wire, by right, and on the command line."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cli_testing import FakeCluster, fake_cluster, lepton
from rpc_testing import serving, spec_of
from test_security import USERS, code_of, token_file

from scheduler.config import SecurityConfig
from scheduler.core.errors import InvalidInput
from scheduler.core.events import QueuePut
from scheduler.core.model import Queue, QueueName, QueuePreemption
from scheduler.daemon.codec_queues import queue_from, queue_message
from scheduler.daemon.event_codec import decode_event, encode_event
from scheduler.daemon.limits import Limits
from scheduler.wire import cluster_pb2 as pb

Code = grpc.StatusCode
LIMITS = Limits()

EVERYTHING = Queue(
    name=QueueName("vision"),
    submitters=("ada",),
    admins=("bob",),
    is_open=False,
    is_started=False,
    parent=QueueName("lab"),
    weight=2.5,
    guaranteed=(("cpu_milli", 64_000), ("gpu_milli:A100", 8_000)),
    limit=(("gpu_milli", 16_000), ("memory_mib", 1024)),
    borrow_limit=(("gpu_milli:A100", 4_000),),
    is_lender=False,
    default_priority=3,
    max_priority=0,
    max_jobs=100,
    may_preempt=QueuePreemption.IN_QUEUE,
    policy="drf",
    default_time_limit_s=3600.0,
    max_time_limit_s=7200.5,
    default_min_runtime_s=60.0,
    is_preemptible=False,
    max_jobs_per_submitter=7,
)


@pytest.mark.parametrize("queue", [EVERYTHING, Queue(name=QueueName("plain"))])
def test_a_queue_survives_the_wire_and_the_journal(queue: Queue) -> None:
    assert queue_from(queue_message(queue, n_pending=3), LIMITS) == queue
    event = QueuePut(at_s=1.0, queue=queue)
    assert decode_event(*encode_event(event)) == event


def test_a_queue_of_an_older_version_is_read_with_defaults() -> None:
    payload = b'{"at_s":1.0,"queue":{"name":"old","submitters":["ada"]}}'
    event = decode_event("QueuePut", payload)
    queue = Queue(name=QueueName("old"), submitters=("ada",))
    assert event == QueuePut(at_s=1.0, queue=queue)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("parent", pb.Queue(name="q", parent="no good")),
        ("weight", pb.Queue(name="q", weight=0)),
        ("weight", pb.Queue(name="q", weight=float("nan"))),
        ("guaranteed", pb.Queue(name="q", guaranteed={"gpus": 1})),
        ("limit", pb.Queue(name="q", limit={"gpu_milli:": 1})),
        ("limit[cpu_milli]", pb.Queue(name="q", limit={"cpu_milli": -1})),
        ("borrow_limit[cpu_milli]", pb.Queue(name="q", borrow_limit={"cpu_milli": 1 << 60})),
        ("max_priority", pb.Queue(name="q", max_priority=2_000_000_000)),
        ("max_jobs", pb.Queue(name="q", max_jobs=-1)),
        ("may_preempt", pb.Queue(name="q", may_preempt=9)),
        ("policy", pb.Queue(name="q", policy="no good")),
        ("default_time_limit_s", pb.Queue(name="q", default_time_limit_s=-1)),
        ("max_time_limit_s", pb.Queue(name="q", max_time_limit_s=float("inf"))),
        ("default_min_runtime_s", pb.Queue(name="q", default_min_runtime_s=float("nan"))),
        ("max_jobs_per_submitter", pb.Queue(name="q", max_jobs_per_submitter=-1)),
    ],
)
def test_bad_fields_are_named(field: str, message: pb.Queue) -> None:
    with pytest.raises(InvalidInput) as caught:
        queue_from(message, LIMITS)
    assert caught.value.field == field


async def test_admins_of_the_parent_put_and_delete_what_is_below(tmp_path: Path) -> None:
    security = SecurityConfig(token_file=token_file(tmp_path, **USERS), admins=("root",))
    async with serving(tmp_path, security=security) as served:
        clients = {user: served.client(token=token) for user, token in USERS.items()}
        root, ada, eve = clients["root"], clients["ada"], clients["eve"]
        await root.put_queue(pb.Queue(name="lab", admins=["ada"], limit={"cpu_milli": 500}))
        child = pb.Queue(name="vision", parent="lab", admins=["eve"])
        denied, invalid = Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT
        assert await code_of(eve.put_queue(child)) is denied
        assert await code_of(ada.put_queue(child)) is Code.OK
        assert await code_of(eve.put_queue(child)) is denied  # its own admin, not above it
        below = pb.Queue(name="deep", parent="vision")
        assert await code_of(eve.put_queue(below)) is Code.OK
        assert await code_of(ada.delete_queue("lab")) is denied
        assert await code_of(ada.put_queue(pb.Queue(name="lab"))) is denied
        assert await code_of(ada.put_queue(pb.Queue(name="vision"))) is denied  # out of the lab
        assert await code_of(ada.put_queue(pb.Queue(name="default", parent="lab"))) is denied
        assert await code_of(root.put_queue(pb.Queue(name="x", parent="nobody"))) is invalid
        too_much = pb.Queue(name="vision", parent="lab", guaranteed={"cpu_milli": 501})
        assert await code_of(ada.put_queue(too_much)) is invalid
        assert await code_of(ada.delete_queue("vision")) is Code.FAILED_PRECONDITION
        assert await code_of(ada.delete_queue("deep")) is Code.OK
        job_id = (await root.submit(spec_of(queue="vision", count=1))).job_id
        told = await root.explain(job_id)
        assert told.cause == "quota"
        shown = {queue.name: queue for queue in await root.queues()}
        assert shown["vision"].n_pending == 1
        assert dict(shown["lab"].limit) == {"cpu_milli": 500}
        for client in clients.values():
            await client.close()


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as cluster:
        yield cluster


def test_a_queue_is_put_as_people_write_it(cluster: FakeCluster) -> None:
    words = "--parent lab --guaranteed gpus:A100=8,cpus=64 --limit gpus=16,memory=1Ti"
    more = "--borrow none --weight 2 --keep --max-priority 5 --max-jobs 9 --preempt never"
    rules = "--policy drf --default-time 1h --max-time 2:00:00 --min-runtime 5m"
    rules += " --no-preemptible --max-jobs-each 3"
    put = ("queue", "put", "vision", *words.split(), *more.split(), *rules.split())
    assert lepton(*put, cluster=cluster).exit_code == 0
    queue = cluster.queues["vision"]
    assert dict(queue.guaranteed) == {"gpu_milli:A100": 8_000, "cpu_milli": 64_000}
    assert dict(queue.limit) == {"gpu_milli": 16_000, "memory_mib": 1 << 20}
    assert (queue.parent, queue.weight, queue.is_lender) == ("lab", 2.0, False)
    assert queue.may_preempt == pb.QUEUE_PREEMPTION_NEVER
    assert queue.policy == "drf"
    times = (queue.default_time_limit_s, queue.max_time_limit_s, queue.default_min_runtime_s)
    assert times == (3600.0, 7200.0, 300.0)
    assert (queue.is_preemptible, queue.max_jobs_per_submitter) == (False, 3)
    assert lepton("queue", "put", "vision", "--policy", "none", cluster=cluster).exit_code == 0
    assert not cluster.queues["vision"].policy
    assert lepton("queue", "put", "vision", "--limit", "none", cluster=cluster).exit_code == 0
    queue = cluster.queues["vision"]
    assert not queue.limit
    assert dict(queue.guaranteed) == {"gpu_milli:A100": 8_000, "cpu_milli": 64_000}
    assert queue.max_jobs == 9
    for wrong in ("gpus", "gpus:=1", "disk=1", "memory=1", "cpus=many"):
        refused = lepton("queue", "put", "vision", "--limit", wrong, cluster=cluster)
        assert refused.exit_code == 64, wrong


def test_queues_are_shown_as_a_tree(cluster: FakeCluster) -> None:
    cluster.queues = {
        "b": pb.Queue(name="b", parent="a"),
        "c": pb.Queue(
            name="c",
            parent="b",
            guaranteed={"gpu_milli": 2_000, "cpu_milli": 8_000},
            used={"gpu_milli": 3_000, "cpu_milli": 4_000, "memory_mib": 2048},
        ),
        "a": pb.Queue(name="a", limit={"gpu_milli:A100": 8_000}),
        "z": pb.Queue(name="z"),
    }
    shown = lepton("queues", "-o", "wide", cluster=cluster).stdout.splitlines()
    assert [line.split()[0] for line in shown[1:]] == ["a", "b", "c", "z"]
    assert [len(line) - len(line.lstrip()) for line in shown[1:]] == [0, 2, 4, 0]
    assert "gpus:A100=8" in shown[1]
    for text in ("gpus=3,cpus=4,memory=2Gi", "gpus=2,cpus=8", "gpus=1 "):
        assert text in shown[3] + " "


STATES = {  # Slurm's word: what is told, and what is shown of an empty queue
    "start": (True, True, "open"),  # UP
    "stop": (True, False, "stopped"),  # DOWN
    "drain": (False, True, "drained"),  # DRAIN
    "close": (False, False, "closed"),  # INACTIVE
}


@pytest.mark.parametrize("verb", STATES)
def test_queues_are_started_stopped_drained_and_closed(cluster: FakeCluster, verb: str) -> None:
    is_open, is_started, shown = STATES[verb]
    for name in ("a", "b"):
        cluster.queues[name] = pb.Queue(name=name, is_open=True, is_started=True)
    assert lepton("queue", verb, "a", "b", cluster=cluster).exit_code == 0
    asked = cluster.of(pb.SetQueueStateRequest)
    assert [(r.name, r.is_open, r.is_started) for r in asked] == [
        ("a", is_open, is_started),
        ("b", is_open, is_started),
    ]
    cluster.queues["b"].n_running = 1
    lines = lepton("queues", cluster=cluster).stdout.splitlines()
    states = {line.split()[0]: line.split()[1] for line in lines[1:]}
    assert states["a"] == shown
    assert states["b"] == ("draining" if verb == "drain" else shown)
    told = lepton("queue", verb, "a", "-o", "json", cluster=cluster).stdout
    assert f'"is_open": {str(is_open).lower()}' in told


async def test_a_queues_own_admins_start_and_stop_it_but_do_not_put_it(tmp_path: Path) -> None:
    security = SecurityConfig(token_file=token_file(tmp_path, **USERS), admins=("root",))
    async with serving(tmp_path, security=security) as served:
        clients = {user: served.client(token=token) for user, token in USERS.items()}
        root, ada, bob = clients["root"], clients["ada"], clients["bob"]
        await root.put_queue(Queue(name=QueueName("vision"), admins=("ada",)))
        stopped = await ada.set_queue_state("vision", is_started=False)
        assert (stopped.is_open, stopped.is_started) == (True, False)
        closed = await root.set_queue_state("vision", is_open=False)
        assert (closed.is_open, closed.is_started) == (False, False)
        assert await code_of(bob.set_queue_state("vision")) is Code.PERMISSION_DENIED
        assert await code_of(ada.put_queue(Queue(name=QueueName("vision")))) is (
            Code.PERMISSION_DENIED
        )
        assert await code_of(root.set_queue_state("nobody")) is Code.NOT_FOUND
        assert await code_of(root.set_queue_state("no good")) is Code.INVALID_ARGUMENT
        for client in clients.values():
            await client.close()


async def test_a_dry_run_is_refused_what_a_submit_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        await client.put_queue(
            Queue(name=QueueName("a"), max_time_limit_s=60.0, max_priority=5)
        )
        await client.put_queue(Queue(name=QueueName("b"), parent=QueueName("a")))
        for spec in (
            spec_of(queue="b", time_limit_s=61.0),
            spec_of(queue="b", priority=6),
        ):
            assert await code_of(client.dry_run(spec)) is Code.FAILED_PRECONDITION
            assert await code_of(client.submit(spec)) is Code.FAILED_PRECONDITION
        assert (await client.dry_run(spec_of(queue="b"))).starts_now
        answer = await client.submit(spec_of(queue="b"))
        assert (await client.job(answer.job_id)).spec.time_limit_s == 60.0
