"""The Python client against a daemon that comes and goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from rpc_testing import message_of, serving, spec_of, until

from scheduler.client import Client, ClientError
from scheduler.client_bulk import MESSAGE_BYTES, Numbered, messages
from scheduler.client_errors import LONGEST_PAUSE_S, Pauses, client_error
from scheduler.core.events import QueuePut
from scheduler.core.model import Queue, QueueName
from scheduler.wire import cluster_pb2 as pb
from scheduler.wire.cluster_pb2_grpc import ClusterServicer, add_ClusterServicer_to_server

Code = grpc.StatusCode


class Flaky(ClusterServicer):
    """Refuses some calls before it answers one, and remembers all of them."""

    def __init__(self, *codes: Code) -> None:
        self.codes = list(codes)
        self.requests: list[Any] = []

    async def _take(self, request: Any, context: grpc.aio.ServicerContext) -> None:
        self.requests.append(request)
        if self.codes:
            await context.abort(self.codes.pop(0), "not now")

    async def SubmitJob(self, request, context):  # noqa: N802
        await self._take(request, context)
        return pb.SubmitJobResponse(job_id="1")

    async def SubmitJobs(self, requests, context):  # noqa: N802
        await self._take([request async for request in requests], context)
        n_jobs = sum(1 + len(request.more) for request in self.requests[-1])
        return pb.SubmitJobsResponse(job_ids=["1"] * n_jobs)

    async def SignalJob(self, request, context):  # noqa: N802
        await self._take(request, context)
        return pb.SignalJobResponse(n_tasks=1)


async def flaky(*codes: Code) -> AsyncIterator[tuple[Flaky, Client]]:
    server = grpc.aio.server()
    service = Flaky(*codes)
    add_ClusterServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(f"127.0.0.1:{port}", timeout_s=5.0) as client:
            yield service, client
    finally:
        await server.stop(None)


async def test_a_submit_is_repeated_under_one_request_id() -> None:
    async for service, client in flaky(Code.UNAVAILABLE, Code.UNAVAILABLE):
        assert (await client.submit(message_of())).job_id == "1"
        assert len(service.requests) == 3
        assert len({request.request_id for request in service.requests}) == 1
        await client.submit(message_of())
        assert len({request.request_id for request in service.requests}) == 2


async def test_a_bulk_is_repeated_under_the_same_request_ids() -> None:
    async for service, client in flaky(Code.UNAVAILABLE):
        answer = await client.submit_many(message_of(f"j{i}") for i in range(500))
        assert len(answer.job_ids) == 500
        first, second = service.requests
        assert first == second
        assert len(first) < 10


async def test_what_is_not_safe_to_repeat_is_not_repeated() -> None:
    async for service, client in flaky(Code.UNAVAILABLE, Code.INVALID_ARGUMENT):
        with pytest.raises(ClientError) as caught:
            await client.signal("1", 15)
        assert caught.value.code is Code.UNAVAILABLE
        with pytest.raises(ClientError) as caught:
            await client.submit(message_of())
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert len(service.requests) == 2


async def test_the_deadline_covers_all_repeats() -> None:
    async for service, client in flaky(*[Code.UNAVAILABLE] * 1000):
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        with pytest.raises(ClientError) as caught:
            await client.submit(message_of(), timeout_s=0.5)
        assert caught.value.code is Code.UNAVAILABLE
        assert loop.time() - start_s < 2.0
        assert 2 < len(service.requests) < 30


def test_pauses_grow_up_to_a_limit() -> None:
    import random

    pauses = Pauses(random.Random(1))
    drawn = [pauses.next_s() for _ in range(20)]
    assert drawn[0] <= 0.05
    assert LONGEST_PAUSE_S / 2 <= drawn[-1] <= LONGEST_PAUSE_S
    assert pauses.next_s(at_least_s=9.0) == 9.0
    pauses.reset()
    assert pauses.next_s() <= 0.05


def test_messages_stay_small_and_keep_every_submit() -> None:
    batch = [Numbered(message_of(f"j{i}"), f"r{i}") for i in range(3000)]
    batch.insert(5, Numbered(message_of("large", labels={"a": "x" * 100_000}), "large"))
    sent = list(messages(batch))
    ids = [each.request_id for request in sent for each in (request, *request.more)]
    assert ids == [numbered.request_id for numbered in batch]
    large = next(request for request in sent if request.request_id == "large")
    assert not large.more
    assert all(r.ByteSize() < 2 * MESSAGE_BYTES for r in sent if r is not large)


async def test_submits_survive_a_restart_of_the_daemon(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=0) as served:
        address = served.address
        client = served.client(timeout_s=20.0)
        first = await client.submit(message_of(), request_id="a")
    waiting = asyncio.create_task(client.submit(message_of(), request_id="a"))
    await asyncio.sleep(0.2)
    async with serving(tmp_path, nodes=0, listen=address):
        again = await waiting
        assert (again.job_id, again.is_repeat) == (first.job_id, True)
        await client.close()


async def test_a_watch_goes_on_over_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=1) as served:
        address = served.address
        client = served.client()
        job_id = (await client.submit(spec_of())).job_id
        seen: list[pb.Job] = []

        async def follow() -> None:
            async with aclosing(client.watch(job_ids=[job_id])) as events:
                async for event in events:
                    if not event.is_bookmark:
                        seen.append(event.job)
                    if event.job.phase == pb.JOB_PHASE_SUCCEEDED:
                        return

        follower = asyncio.create_task(follow())
        await served.running(job_id)
        waiter = asyncio.create_task(client.wait(job_id))
        await until(lambda: served.daemon.watch.n_readers == 2)
    async with serving(tmp_path, nodes=0, listen=address) as served:
        await served.running(job_id)
        await served.end(job_id)
        await asyncio.wait_for(follower, 10)
        job = await asyncio.wait_for(waiter, 10)
        assert job.phase == pb.JOB_PHASE_SUCCEEDED
        assert seen[-1].revision == job.revision
        await client.close()


async def test_a_watch_that_fell_behind_lists_again(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=0) as served, served.client() as client:
        await client.submit(message_of("old"))
        revision = (await client.server_info()).revision
        await client.submit(message_of("new"))
        served.daemon.watch._floor = served.daemon.engine.revision + 1  # all is forgotten
        async with aclosing(client.watch(after_revision=revision)) as events:
            event = await anext(events)
            assert event.job.spec.name == "new"


async def test_waiting_for_several_tells_the_first_that_failed(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        good = (await client.submit(spec_of("good"))).job_id
        bad = (await client.submit(spec_of("bad", array_size=2))).job_id
        for job_id, exit_code in ((good, 0), (f"{bad}_1", 3), (f"{bad}_0", 4)):
            await served.running(job_id)
            await served.end(job_id, exit_code=exit_code)
        job = await client.wait(good, bad, timeout_s=5)
        assert (job.id, job.exit_code) == (f"{bad}_1", 3)
        assert len(await client.wait_all(good, bad)) == 3
        held = (await client.submit(message_of(suspended=True))).job_id
        with pytest.raises(ClientError) as caught:
            await client.wait(held, timeout_s=0.2)
        assert caught.value.code is Code.DEADLINE_EXCEEDED


async def test_specs_and_queues_may_be_the_cores_or_the_wires(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=0) as served, served.client() as client:
        await client.put_queue(Queue(name=QueueName("a")))
        await client.put_queue(pb.Queue(name="b"))
        await served.daemon.execute(QueuePut(at_s=0.0, queue=Queue(name=QueueName("c"))))
        assert [q.name for q in await client.queues()] == ["default", "a", "b", "c"]

        async def specs():
            yield spec_of("one")
            yield message_of("two")

        assert len((await client.submit_many(specs())).job_ids) == 2
        assert (await client.submit_many([])).job_ids == ()


def test_errors_without_details_are_told_too() -> None:
    raised = grpc.aio.AioRpcError(
        Code.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), details="no job"
    )
    error = client_error(raised)
    assert (error.code, error.message, error.field) == (Code.NOT_FOUND, "no job", "")
