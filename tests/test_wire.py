"""Between the wire and the core: what is accepted, what is refused, by which field."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rpc_testing import message_of

from scheduler.core.errors import InvalidInput
from scheduler.core.model import (
    Dependency,
    DependencyKind,
    JobId,
    JobKind,
    JobSpec,
    Launch,
    QueueName,
    Role,
    Shape,
    Toleration,
)
from scheduler.daemon.codec import fingerprint, spec_from
from scheduler.daemon.codec_queues import queue_from
from scheduler.daemon.codec_views import spec_message
from scheduler.daemon.limits import Limits
from scheduler.wire import cluster_pb2 as pb

LIMITS = Limits()
ROOT = Path(__file__).resolve().parent.parent


def test_the_generated_code_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "proto" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_defaults_are_filled_in() -> None:
    spec = spec_from(message_of(), LIMITS)
    role = Role(name="worker", launch=Launch(command=("python", "train.py")))
    assert spec == JobSpec(name="train", roles=(role,))


names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True)
texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], max_codepoint=0x2FFF), max_size=20
)
seconds = st.floats(0, 1e6)
pairs = st.dictionaries(names, texts, max_size=3).map(lambda d: tuple(sorted(d.items())))
env = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), texts, max_size=3
).map(lambda d: tuple(sorted(d.items())))
gpus = st.one_of(
    st.fixed_dictionaries({"gpus": st.integers(1, 8), "gpu_memory_mib": st.integers(0, 99)}),
    st.fixed_dictionaries({"gpu_milli": st.integers(1, 999)}),
    st.just({}),
)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    return Shape(
        cpu_milli=draw(st.integers(0, 10**6)),
        memory_mib=draw(st.integers(0, 10**6)),
        gpu_types=tuple(draw(st.lists(names, max_size=2, unique=True))),
        node_labels=draw(pairs),
        tolerations=tuple(
            draw(
                st.lists(st.builds(Toleration, key=names, value=st.none() | texts), max_size=2)
            )
        ),
        **draw(gpus),
    )


@st.composite
def roles(draw: st.DrawFn) -> Role:
    low, count, high = sorted(draw(st.tuples(*[st.integers(1, 50)] * 3)))
    return Role(
        name=draw(names),
        launch=Launch(
            command=("run", *draw(st.lists(texts, max_size=3))),
            env=draw(env),
            working_dir=draw(st.sampled_from(["", "/data"])),
            image=draw(texts),
        ),
        count=count,
        min_count=low,
        max_count=high,
        shape=draw(shapes()),
    )


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    return JobSpec(
        name=draw(names),
        roles=tuple(
            draw(st.lists(roles(), min_size=1, max_size=3, unique_by=lambda r: r.name))
        ),
        kind=draw(st.sampled_from(JobKind)),
        queue=QueueName(draw(names)),
        priority=draw(st.integers(-1000, 1000)),
        preemptible=draw(st.booleans()),
        checkpoint_interval_s=draw(seconds),
        grace_s=draw(seconds),
        max_retries=draw(st.integers(0, 9)),
        backoff_s=draw(seconds),
        time_limit_s=draw(seconds),
        start_after_s=draw(seconds),
        dependencies=tuple(
            draw(
                st.lists(
                    st.builds(
                        Dependency,
                        on=st.integers(1, 99).map(lambda n: JobId(str(n))),
                        kind=st.sampled_from(DependencyKind),
                    ),
                    max_size=2,
                )
            )
        ),
        array_size=draw(st.integers(0, 99)),
        suspended=draw(st.booleans()),
        labels=draw(pairs),
    )


@given(specs())
def test_a_spec_survives_the_wire(spec: JobSpec) -> None:
    data = spec_message(spec).SerializeToString()
    assert spec_from(pb.JobSpec.FromString(data), LIMITS) == spec


def test_equal_requests_have_equal_fingerprints() -> None:
    one = message_of(labels={"a": "1", "b": "2"})
    other = message_of(labels={"b": "2", "a": "1"})
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(message_of(labels={"a": "1"}))


def shaped(**fields) -> pb.JobSpec:
    return in_role(shape=pb.Shape(**fields))


def launched(**fields) -> pb.JobSpec:
    return in_role(launch=pb.Launch(**{"command": ["x"], **fields}))


def in_role(**fields) -> pb.JobSpec:
    return message_of(roles=[pb.Role(**{"launch": pb.Launch(command=["x"]), **fields})])


MANY = 10**9
REFUSED = {
    "name": [message_of(""), message_of("a b"), message_of("-a"), message_of("x" * 129)],
    "kind": [message_of(kind=9)],
    "queue": [message_of(queue="a/b"), message_of(queue="q" * 64)],
    "priority": [message_of(priority=2**31 - 1), message_of(priority=-(2**31))],
    "roles": [
        pb.JobSpec(name="a"),
        message_of(roles=[pb.Role(launch=pb.Launch(command=["x"]))] * 33),
        message_of(
            roles=[
                pb.Role(name=n, count=9000, launch=pb.Launch(command=["x"])) for n in ("a", "b")
            ]
        ),
        in_role(min_count=0),
    ],
    "roles[1].name": [message_of(roles=[pb.Role(launch=pb.Launch(command=["x"]))] * 2)],
    "roles[0].name": [in_role(name="a b"), in_role(name="../etc")],
    "roles[0].count": [in_role(count=0), in_role(count=-1), in_role(count=10_001)],
    "roles[0].min_count": [in_role(count=2, min_count=3), in_role(min_count=-1)],
    "roles[0].max_count": [in_role(count=2, max_count=1), in_role(max_count=2**31 - 1)],
    "roles[0].launch.command": [
        in_role(launch=pb.Launch()),
        launched(command=[""]),
        launched(command=["a", "b\0c"]),
        launched(command=["a"] * 1025),
        launched(command=["a", "é" * 300_000]),
    ],
    "roles[0].launch.env": [
        launched(env={"A B": "1"}),
        launched(env={"": "1"}),
        launched(env={"1A": "1"}),
        launched(env={"A": "x" * 300_000}),
        launched(env={f"A{i}": "" for i in range(600)}),
    ],
    "roles[0].launch.env[A]": [launched(env={"A": "\0"})],
    "roles[0].launch.working_dir": [
        launched(working_dir="data"),
        launched(working_dir="/a\0b"),
        launched(working_dir="/" + "a" * 5000),
    ],
    "roles[0].launch.image": [launched(image="a\nb")],
    "roles[0].shape.cpu_milli": [shaped(cpu_milli=-1), shaped(cpu_milli=2**62)],
    "roles[0].shape.memory_mib": [shaped(memory_mib=-1), shaped(memory_mib=2**62)],
    "roles[0].shape.gpus": [shaped(gpus=-1), shaped(gpus=2000)],
    "roles[0].shape.gpu_milli": [
        shaped(gpu_milli=1000),
        shaped(gpu_milli=-1),
        shaped(gpus=1, gpu_milli=500),
    ],
    "roles[0].shape.gpu_memory_mib": [
        shaped(gpu_memory_mib=5),
        shaped(gpus=1, gpu_memory_mib=-1),
    ],
    "roles[0].shape.gpu_types": [shaped(gpu_types=["a"] * 33)],
    "roles[0].shape.gpu_types[0]": [shaped(gpu_types=[""]), shaped(gpu_types=["\n"])],
    "roles[0].shape.node_labels": [shaped(node_labels={"a b": "c"})],
    "roles[0].shape.node_labels[a]": [shaped(node_labels={"a": "\t"})],
    "roles[0].shape.tolerations[0].key": [shaped(tolerations=[pb.Toleration()])],
    "checkpoint_interval_s": [message_of(checkpoint_interval_s=float("nan"))],
    "grace_s": [message_of(grace_s=-1.0), message_of(grace_s=float("inf"))],
    "max_retries": [message_of(max_retries=-1), message_of(max_retries=MANY)],
    "backoff_s": [message_of(backoff_s=float("-inf"))],
    "time_limit_s": [message_of(time_limit_s=1e300)],
    "start_after_s": [message_of(start_after_s=-1.0), message_of(start_after_s=1e12)],
    "dependencies": [message_of(dependencies=[pb.Dependency(on="1")] * 1001)],
    "dependencies[0].on": [
        message_of(dependencies=[pb.Dependency()]),
        message_of(dependencies=[pb.Dependency(on="\uff11\uff17")]),
        message_of(dependencies=[pb.Dependency(on="1; DROP")]),
    ],
    "dependencies[0].kind": [message_of(dependencies=[pb.Dependency(on="1", kind=7)])],
    "array_size": [message_of(array_size=-1), message_of(array_size=10_001)],
    "labels": [message_of(labels={"a b": ""}), message_of(labels={"": ""})],
    "labels[a]": [message_of(labels={"a": "x" * 300}), message_of(labels={"a": "\x7f"})],
}


@pytest.mark.parametrize(
    ("field", "message"),
    [(field, message) for field, messages in REFUSED.items() for message in messages],
)
def test_a_bad_field_is_named(field: str, message: pb.JobSpec) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec_from(message, LIMITS)
    assert caught.value.field == field


def test_an_array_of_too_many_tasks_is_refused() -> None:
    message = in_role(count=1000)
    message.array_size = 1000
    with pytest.raises(InvalidInput, match="array_size"):
        spec_from(message, LIMITS)


def test_limits_bound_shared_shapes_too() -> None:
    message = shaped(gpus=8)
    assert spec_from(message, LIMITS).roles[0].shape.gpus == 8
    with pytest.raises(InvalidInput):
        spec_from(message, Limits(max_gpus_per_task=4))


def test_a_queue_names_each_user_once() -> None:
    queue = queue_from(pb.Queue(name="q", submitters=["ada"], is_started=False), LIMITS)
    assert (queue.submitters, queue.is_open, queue.is_started) == (("ada",), True, False)
    for field, message in {
        "submitters": pb.Queue(name="q", submitters=["ada", "ada"]),
        "admins[0]": pb.Queue(name="q", admins=["a b"]),
        "name": pb.Queue(),
    }.items():
        with pytest.raises(InvalidInput) as caught:
            queue_from(message, LIMITS)
        assert caught.value.field == field


def test_equal_shapes_are_one() -> None:
    first, second = (spec_from(shaped(gpus=2), LIMITS) for _ in range(2))
    assert first.roles[0].shape is second.roles[0].shape
