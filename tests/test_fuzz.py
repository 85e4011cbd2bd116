"""Whatever arrives at the port, the daemon answers with a proper code and goes on.

Messages are made from the descriptors of the contract, so a new field is fuzzed from the day it
is added: fields at random, valid requests with one field spoilt, valid bytes with some bytes
changed, and bytes at random. A refused request changes nothing.
"""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rpc_testing import Served, message_of, serving

from scheduler.wire import agent_pb2 as agents
from scheduler.wire import cluster_pb2 as pb

SERVICES = [
    *pb.DESCRIPTOR.services_by_name.values(),
    *agents.DESCRIPTOR.services_by_name.values(),
]
METHODS = {f"/{s.full_name}/{m.name}": m for s in SERVICES for m in s.methods}
CALL_TIMEOUT_S = 0.5
"""Streams that go on for ever end here; everything else must be faster than this by far."""

PROPER = {
    grpc.StatusCode.OK,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
UNHEARD = "Internal error from Core"
"""What grpc.aio's client says, with INTERNAL, when a stream ended while it was still writing to
it: it never heard the server's own answer, so the call is made again."""
TRIES = 5
READS = {"DryRun", "GetJob", "ListJobs", "ExplainJob", "ListNodes", "ListQueues"}

FIELD = FieldDescriptor
INTEGERS = {
    FIELD.TYPE_INT32: (-(2**31), 2**31 - 1),
    FIELD.TYPE_INT64: (-(2**63), 2**63 - 1),
}
WORDS = ["", "1", "1_0", "2", "train", "worker", "default", "node-0", "a" * 300, "\0", "é\n"]
WORDS += ["🦆", "phase=live", 'name~"', "label.x=1 AND", "priority desc,", "../../etc", "-1"]


HINTS = {"job_id": ["1", "2", "2_1"], "on": ["1"], "role": ["worker"], "request_id": ["a"]}
HINTS |= {"name": ["node-0", "default", "train"], "node": ["node-0"], "queue": ["default"]}
"""What a field often says when it means something that is there."""


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Return any value of one field, the awkward ones more often."""
    if field.type in INTEGERS:
        low, high = INTEGERS[field.type]
        return st.sampled_from([0, 1, 2, 15, -1, 1000, low, high]) | st.integers(low, high)
    match field.type:
        case FIELD.TYPE_STRING if field.name in HINTS:
            return st.sampled_from(HINTS[field.name] * 3 + WORDS)
        case FIELD.TYPE_STRING:
            return st.sampled_from(WORDS) | st.text(max_size=30).filter(_is_unicode)
        case FIELD.TYPE_DOUBLE:
            return st.sampled_from([0.0, 1.0, 60.0]) | st.floats()
        case FIELD.TYPE_BOOL:
            return st.booleans()
        case FIELD.TYPE_ENUM:
            return st.integers(-1, 12)
        case FIELD.TYPE_BYTES:
            return st.binary(max_size=30)
        case FIELD.TYPE_MESSAGE:
            return messages(field.message_type, depth + 1)
    raise AssertionError(field.type)


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(character) < 0xE000 for character in text)


def fields(kind: Descriptor) -> list[FieldDescriptor]:
    # What a watch or a follower would wait for is fuzzed too, just not the waiting itself.
    return [field for field in kind.fields if field.name != "follow"]


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor, depth: int = 0) -> Message:
    """Return a message with some of its fields set to something."""
    message = GetMessageClass(kind)()
    chosen = fields(kind)
    if depth > 2:
        chosen = [field for field in chosen if field.type != FIELD.TYPE_MESSAGE]
    for field in draw(st.lists(st.sampled_from(chosen), unique=True)) if chosen else ():
        _set(draw, message, field, depth)
    return message


def _set(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    value = getattr(message, field.name)
    if field.is_repeated and field.type == FIELD.TYPE_MESSAGE:
        if field.message_type.GetOptions().map_entry:
            key, item = field.message_type.fields
            value.update(
                draw(st.dictionaries(values(key, depth), values(item, depth), max_size=3))
            )
        else:
            value.extend(draw(st.lists(messages(field.message_type, depth + 1), max_size=3)))
    elif field.is_repeated:
        value.extend(draw(st.lists(values(field, depth), max_size=4)))
    elif field.type == FIELD.TYPE_MESSAGE:
        value.CopyFrom(draw(messages(field.message_type, depth + 1)))
    else:
        setattr(message, field.name, draw(values(field, depth)))


@st.composite
def spoilt_submits(draw: st.DrawFn) -> Message:
    """Return a valid submit in which one message has one field set to something."""
    request = pb.SubmitJobRequest(spec=message_of("train", labels={"team": "vision"}))
    role = request.spec.roles[0]
    role.shape.cpu_milli = 100
    target = draw(st.sampled_from([request, request.spec, role, role.launch, role.shape]))
    _set(draw, target, draw(st.sampled_from(fields(target.DESCRIPTOR))), 0)
    return request


@st.composite
def damaged_bytes(draw: st.DrawFn) -> bytes:
    """Return a valid submit with some bytes changed, cut or repeated."""
    request = pb.SubmitJobRequest(spec=message_of("train", array_size=3), request_id="r")
    data = bytearray(request.SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 2)):
            case 0:
                data[place] = draw(st.integers(0, 255))
            case 1:
                data = data[: place + 1]
            case 2:
                data += data[place:]
    return bytes(data)


class Port:
    """The port of a daemon, called with bytes from a test that is no coroutine."""

    def __init__(self, loop: asyncio.AbstractEventLoop, served: Served) -> None:
        self._loop = loop
        self._served = served
        self._channel = loop.run_until_complete(self._opened())

    async def _opened(self) -> grpc.aio.Channel:
        return self._served.channel()  # belongs to the loop it is made on

    def send(self, method: str, *requests: bytes) -> grpc.StatusCode:
        """Return how a call ends, having checked that it ends properly."""
        for _ in range(TRIES):
            code = self._loop.run_until_complete(self._send(method, requests))
            if code is not None:
                return code
        pytest.fail(f"{method}: the client heard no answer, {TRIES} times in a row")

    async def _send(self, path: str, requests: tuple[bytes, ...]) -> grpc.StatusCode | None:
        method = METHODS[path]
        revision = self._served.daemon.engine.revision
        before = self._state()
        details: str | None = ""
        try:
            if method.client_streaming:
                await self._channel.stream_unary(path)(iter(requests), timeout=30)
            elif method.server_streaming:
                stream = self._channel.unary_stream(path)(requests[0], timeout=CALL_TIMEOUT_S)
                await stream.read()
                stream.cancel()
            else:
                await self._channel.unary_unary(path)(requests[0], timeout=30)
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details()
        if details == UNHEARD:
            return None
        assert code in PROPER, f"{path}: {code}: {details}"
        if code is not grpc.StatusCode.OK:
            assert self._state() == before, (
                f"{path} was refused with {code} and changed something"
            )
        if method.name in READS:
            assert self._served.daemon.engine.revision == revision
        return code

    def send_at_once(
        self, calls: list[tuple[str, bytes]], timeouts_s: list[float]
    ) -> list[grpc.StatusCode]:
        """Return how calls end that are given little time, all at once."""

        async def one(path: str, request: bytes, timeout_s: float) -> grpc.StatusCode:
            if METHODS[path].server_streaming:
                call = self._channel.unary_stream(path)(request, timeout=timeout_s)
            else:
                call = self._channel.unary_unary(path)(request, timeout=timeout_s)
            return await call.code()

        async def all_of_them() -> list[grpc.StatusCode]:
            each = (one(*call, limit) for call, limit in zip(calls, timeouts_s, strict=True))
            return await asyncio.gather(*each)

        return self._loop.run_until_complete(all_of_them())

    def _state(self) -> tuple[object, ...]:
        engine = self._served.daemon.engine
        dump = engine.dump()
        return (dump.jobs, dump.queues, dump.nodes, dump.requests, dump.next_sequence)

    def close(self) -> None:
        self._loop.run_until_complete(self._channel.close())


@contextmanager
def a_port(folder: Path) -> Iterator[Port]:
    """Serve a daemon that decides nothing, so that only requests change its state."""
    loop = asyncio.new_event_loop()
    context = serving(folder, plans=False)
    try:
        served = loop.run_until_complete(context.__aenter__())
        port = Port(loop, served)
        try:
            for size in (0, 2):
                spec = message_of("train", array_size=size)
                request = pb.SubmitJobRequest(spec=spec).SerializeToString()
                port.send("/lepton.v1.Cluster/SubmitJob", request)
            yield port
            assert port.send("/lepton.v1.Cluster/GetServerInfo", b"") is grpc.StatusCode.OK
        finally:
            port.close()
            loop.run_until_complete(context.__aexit__(None, None, None))
    finally:
        loop.close()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    with a_port(tmp_path_factory.mktemp("fuzz")) as port:
        yield port


quick = settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
any_method = st.sampled_from(sorted(METHODS))


@quick
@given(data=st.data(), path=any_method)
def test_any_message_gets_a_proper_answer(port: Port, data: st.DataObject, path: str) -> None:
    request = data.draw(messages(METHODS[path].input_type))
    port.send(path, request.SerializeToString())


@quick
@given(request=spoilt_submits())
def test_a_spoilt_submit_gets_a_proper_answer(port: Port, request: Message) -> None:
    port.send("/lepton.v1.Cluster/SubmitJob", request.SerializeToString())
    port.send(
        "/lepton.v1.Cluster/DryRun", pb.DryRunRequest(spec=request.spec).SerializeToString()
    )


@quick
@given(path=any_method, junk=st.binary(max_size=200) | damaged_bytes())
def test_any_bytes_get_a_proper_answer(port: Port, path: str, junk: bytes) -> None:
    port.send(path, junk)


@settings(quick, max_examples=30)
@given(st.lists(damaged_bytes() | spoilt_submits().map(lambda m: m.SerializeToString())))
def test_any_stream_gets_a_proper_answer(port: Port, requests: list[bytes]) -> None:
    port.send("/lepton.v1.Cluster/SubmitJobs", *requests)


def test_calls_cut_off_at_any_moment_leave_a_daemon_that_serves(port: Port) -> None:
    draw = random.Random(1)
    submit = pb.SubmitJobRequest(spec=message_of()).SerializeToString()
    paths = [path for path, method in METHODS.items() if not method.client_streaming]
    calls = [
        (draw.choice(paths), submit if number % 2 else draw.randbytes(number % 40))
        for number in range(400)
    ]
    codes = port.send_at_once(calls, [draw.uniform(0.0, 0.05) for _ in calls])
    assert set(codes) <= {*PROPER, grpc.StatusCode.DEADLINE_EXCEEDED}
