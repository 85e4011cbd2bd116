"""Every rpc over a real port: what it answers, and how it refuses."""

import sqlite3
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from rpc_testing import message_of, serving, spec_of, until

from scheduler.client import ClientError
from scheduler.core.model import Queue, QueueName
from scheduler.daemon.journal_errors import JournalUnavailable
from scheduler.wire import cluster_pb2 as pb
from scheduler.wire.cluster_pb2_grpc import ClusterStub

Code = grpc.StatusCode


async def refused(awaitable) -> ClientError:
    """Return the refusal that a call ends in."""
    with pytest.raises(ClientError) as caught:
        await awaitable
    return caught.value


async def test_a_submitted_job_runs_and_ends(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        submitted = await client.submit(spec_of("mnist", gpus=2, count=2))
        await served.running(submitted.job_id)
        job = await client.job(submitted.job_id)
        assert job.phase == pb.JOB_PHASE_RUNNING
        assert [len(task.devices) for task in job.tasks] == [2, 2]

        await served.end(submitted.job_id)
        job = await client.wait(submitted.job_id, timeout_s=5)
        assert (job.phase, job.exit_code) == (pb.JOB_PHASE_SUCCEEDED, 0)


async def test_a_repeated_request_id_gets_the_first_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        first = await client.submit(message_of("a"), request_id="r1")
        again = await client.submit(message_of("a"), request_id="r1")
        assert (again.job_id, again.is_repeat) == (first.job_id, True)
        error = await refused(client.submit(message_of("b"), request_id="r1"))
        assert (error.code, error.field) == (Code.ALREADY_EXISTS, "request_id")

    async with serving(tmp_path, nodes=0) as served, served.client() as client:
        again = await client.submit(message_of("a"), request_id="r1")
        assert (again.job_id, again.is_repeat) == (first.job_id, True)


async def test_an_array_answers_with_its_elements(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=0) as served, served.client() as client:
        submitted = await client.submit(spec_of(array_size=3))
        array_id = submitted.job_id
        assert submitted.job_ids == [f"{array_id}_{i}" for i in range(3)]
        assert [j.id for j in await client.members(array_id)] == submitted.job_ids
        assert "is an array" in str(await refused(client.job(array_id)))

        changed = await client.cancel(array_id)
        assert sorted(changed.job_ids) == submitted.job_ids
        job = await client.wait(array_id, timeout_s=5)
        assert job.phase == pb.JOB_PHASE_CANCELLED


async def test_bulk_submits_stand_alone(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=0) as served, served.client() as client:
        specs = [message_of(f"job-{i}") for i in range(1200)]
        specs[7].roles[0].shape.gpu_milli = 1000
        specs[900].queue = "nowhere"
        answer = await client.submit_many(specs)
        assert [(r.index, r.error.code, r.error.field) for r in answer.refused] == [
            (7, Code.INVALID_ARGUMENT, "spec.roles[0].shape.gpu_milli"),
            (900, Code.NOT_FOUND, "spec.queue"),
        ]
        assert [i for i, job_id in enumerate(answer.job_ids) if not job_id] == [7, 900]
        names = [job.spec.name async for job in client.jobs()]
        assert names == [f"job-{i}" for i in range(1200) if i not in (7, 900)]


async def test_bulk_repeats_get_the_first_answers(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=0) as served, served.channel() as channel:
        requests = [
            pb.SubmitJobRequest(spec=message_of(f"j{i}"), request_id=f"r{i}") for i in range(9)
        ]
        stub = ClusterStub(channel)
        first = await stub.SubmitJobs(iter(requests))
        again = await stub.SubmitJobs(iter(requests))
        assert again.job_ids == first.job_ids
        assert len(served.daemon.engine.jobs()) == 9


async def test_submits_of_a_stream_share_messages(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=0) as served, served.channel() as channel:

        def submit(name: str, *more: pb.SubmitJobRequest) -> pb.SubmitJobRequest:
            return pb.SubmitJobRequest(spec=message_of(name), request_id=name, more=more)

        nested = submit("c", submit("never"))
        requests = [submit("a", submit("b"), nested, submit("no good")), submit("d")]
        stub = ClusterStub(channel)
        answer = await stub.SubmitJobs(iter(requests))
        assert [bool(job_id) for job_id in answer.job_ids] == [True, True, False, False, True]
        assert [(r.request_index, r.field) for r in answer.refused] == [
            (2, "more"),
            (3, "spec.name"),
        ]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SubmitJob(submit("e", submit("f")))
        assert caught.value.code() is Code.INVALID_ARGUMENT
        jobs = served.daemon.engine.jobs()
        assert [record.job.spec.name for record in jobs] == ["a", "b", "d"]


async def test_lists_filter_order_and_page(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=0) as served, served.client() as client:
        for number in range(7):
            await client.submit(spec_of(f"job-{number}", priority=number % 3))
        names = [
            job.spec.name
            async for job in client.jobs(
                filter="priority>=1", order_by="priority desc, name", page_size=2
            )
        ]
        assert names == ["job-2", "job-5", "job-1", "job-4"]
        page = await client.list_jobs(pb.ListJobsRequest(page_size=2))
        assert (page.total_size, len(page.jobs)) == (7, 2)
        for field, request in {
            "filter": pb.ListJobsRequest(filter="colour=red"),
            "order_by": pb.ListJobsRequest(order_by="colour"),
            "page_size": pb.ListJobsRequest(page_size=-1),
            "page_token": pb.ListJobsRequest(page_token="Zm9v"),
        }.items():
            error = await refused(client.list_jobs(request))
            assert (error.code, error.field) == (Code.INVALID_ARGUMENT, field)


async def test_a_page_of_large_jobs_is_cut_short(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=0) as served, served.client() as client:
        for number in range(60):
            await client.submit(spec_of(f"job-{number}", command=("x", "y" * 500_000)))
        page = await client.list_jobs(pb.ListJobsRequest(page_size=60))
        assert 1 < len(page.jobs) < 60
        assert len([job async for job in client.jobs(page_size=60)]) == 60


async def test_a_watch_tells_what_happens_and_resumes(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        before = (await client.server_info()).revision
        job_id = (await client.submit(spec_of())).job_id
        await served.running(job_id)
        await served.end(job_id)
        phases = []
        async for event in client.watch(after_revision=before, job_ids=[job_id]):
            phases.append(event.job.phase)
            if event.job.phase == pb.JOB_PHASE_SUCCEEDED:
                break
        assert phases[-1] == pb.JOB_PHASE_SUCCEEDED

        async with served.channel() as channel:
            stream = ClusterStub(channel).WatchJobs(pb.WatchJobsRequest(after_revision=10**9))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is Code.OUT_OF_RANGE


async def test_jobs_are_suspended_resumed_updated_and_signalled(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        job_id = (await client.submit(spec_of(count=2, min_count=1, max_count=4))).job_id
        first, _ = await served.running(job_id)
        assert await client.signal(job_id, 10) == 2
        assert await client.signal(job_id, 12, role="worker", index=0) == 1
        assert (first.id, 12) in served.executor.signals
        error = await refused(client.signal(job_id, 99))
        assert (error.code, error.field) == (Code.INVALID_ARGUMENT, "signal")
        error = await refused(client.signal(job_id, 10, role="driver"))
        assert error.code is Code.FAILED_PRECONDITION

        await client.suspend(job_id)
        await until(lambda: served.daemon.engine.job(job_id).phase == "suspended")
        await client.update(job_id, priority=5, time_limit_s=60, replicas={"worker": 3})
        await client.resume(job_id)
        assert len(await served.running(job_id)) == 3
        job = await client.job(job_id)
        assert (job.spec.priority, job.spec.time_limit_s, job.attempt) == (5, 60, 2)
        error = await refused(client.update(job_id, replicas={"worker": 9}))
        assert (error.code, error.field) == (Code.INVALID_ARGUMENT, "replicas['worker']")
        assert (await refused(client.update(job_id))).code is Code.INVALID_ARGUMENT


async def test_what_does_not_exist_is_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        for call in (
            client.job("99"),
            client.cancel("99"),
            client.suspend("99_1"),
            client.resume("99"),
            client.update("99", priority=1),
            client.signal("99", 15),
            client.explain("99"),
            client.cordon("nowhere"),
            client.delete_queue("nobody"),
        ):
            assert (await refused(call)).code is Code.NOT_FOUND
        error = await refused(client.job("seventeen"))
        assert (error.code, error.field) == (Code.INVALID_ARGUMENT, "job_id")


async def test_a_waiting_job_is_explained(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        small = (await client.submit(spec_of(gpus=8, priority=5))).job_id
        large = (await client.submit(spec_of(gpus=9))).job_id
        await until(lambda: large in served.daemon.unplaced)
        explanation = await client.explain(large)
        assert explanation.n_nodes == 2
        assert explanation.n_fit == 0
        assert explanation.n_ahead == 1
        assert explanation.counts
        assert explanation.history
        assert (await client.job(small)).reason == (await client.explain(small)).sentence


async def test_a_dry_run_says_what_a_submit_would_do_and_changes_nothing(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        for _ in range(2):
            await served.running((await client.submit(spec_of(gpus=4))).job_id)
        before = served.daemon.engine.revision
        assert (await client.dry_run(spec_of())).starts_now
        waits = await client.dry_run(spec_of(gpus=1))
        assert not waits.starts_now
        assert waits.explanation.sentence
        urgent = await client.dry_run(spec_of(gpus=4, priority=9))
        assert len(urgent.preempts_job_ids) == 1
        dependency = pb.Dependency(on="1")
        waits = await client.dry_run(message_of(dependencies=[dependency]))
        assert (waits.starts_now, waits.explanation.cause) == (False, "dependency")
        waits = await client.dry_run(message_of(suspended=True))
        assert (waits.starts_now, waits.explanation.cause) == (False, "suspended")
        error = await refused(client.dry_run(message_of(queue="nowhere")))
        assert (error.code, error.field) == (Code.NOT_FOUND, "spec.queue")
        assert served.daemon.engine.revision == before


async def test_nodes_are_listed_and_closed(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=5) as served, served.client() as client:
        assert [n.name for n in await client.nodes()] == [f"node-{i}" for i in range(5)]
        async with served.channel() as channel:
            stub = ClusterStub(channel)
            page = await stub.ListNodes(pb.ListNodesRequest(page_size=2))
            rest = await stub.ListNodes(
                pb.ListNodesRequest(page_size=9, page_token=page.next_page_token)
            )
            assert [n.name for n in rest.nodes] == ["node-2", "node-3", "node-4"]
        assert (await client.cordon("node-1")).is_cordoned
        assert (await client.drain("node-2")).is_draining
        node = await client.uncordon("node-2")
        assert (node.is_cordoned, node.is_draining) == (False, False)
        assert (node.gpus[0].uuid, node.gpus[0].free_milli) == ("gpu-2-0", 1000)


async def test_queues_are_made_listed_and_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        await client.put_queue(Queue(name=QueueName("vision"), admins=("ada",)))
        job_id = (await client.submit(spec_of(queue="vision"))).job_id
        await served.running(job_id)
        vision = next(q for q in await client.queues() if q.name == "vision")
        assert (vision.n_running, list(vision.admins)) == (1, ["ada"])
        assert (await refused(client.delete_queue("vision"))).code is Code.FAILED_PRECONDITION
        await served.end(job_id)
        await client.delete_queue("vision")
        assert [q.name for q in await client.queues()] == ["default"]
        await client.put_queue(pb.Queue(name="shut", is_open=False))
        error = await refused(client.submit(spec_of(queue="shut")))
        assert (error.code, error.field) == (Code.FAILED_PRECONDITION, "spec.queue")


async def test_the_server_says_what_it_is(tmp_path: Path) -> None:
    config = {"security": {"local_user": "ada"}, "limits": {"max_array_size": 7}}
    async with serving(tmp_path, **config) as served, served.client() as client:
        info = await client.server_info()
        assert (info.user, info.policy, info.n_nodes) == ("ada", "lepton", 2)
        assert (info.max_array_size, info.is_degraded) == (7, False)
        error = await refused(client.submit(spec_of(array_size=8)))
        assert (error.code, error.field) == (Code.INVALID_ARGUMENT, "spec.array_size")


async def test_a_journal_that_cannot_be_written_leaves_reads(
    tmp_path: Path, monkeypatch
) -> None:
    async with serving(tmp_path) as served, served.client(timeout_s=0.5) as client:
        job_id = (await client.submit(spec_of())).job_id

        def full(_):
            raise JournalUnavailable("the disk is full")

        monkeypatch.setattr(served.daemon.journal, "append", full)
        error = await refused(client.submit(spec_of()))
        assert (error.code, error.retry_after_s) == (Code.UNAVAILABLE, 1.0)
        assert (await client.job(job_id)).id == job_id


async def test_a_disk_that_cannot_be_read_is_no_bug(tmp_path: Path, monkeypatch) -> None:
    async with serving(tmp_path) as served, served.client(timeout_s=0.5) as client:

        async def broken(_):
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(served.daemon.store, "get", broken)
        error = await refused(client.job("99"))
        assert error.code is Code.UNAVAILABLE
        assert "disk I/O error" in error.message


async def test_a_message_that_is_too_large_is_refused(tmp_path: Path) -> None:
    limits = {"max_message_bytes": 65_536}
    async with serving(tmp_path, limits=limits) as served, served.client() as client:
        error = await refused(client.submit(spec_of(command=("x", "y" * 100_000))))
        assert error.code is Code.RESOURCE_EXHAUSTED
        await client.submit(spec_of())


async def test_errors_carry_a_bad_request_for_any_client(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ClusterStub(channel).SubmitJob(
                pb.SubmitJobRequest(spec=message_of("no good"))
            )
        trailers = dict(caught.value.trailing_metadata())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        bad = error_details_pb2.BadRequest()
        assert status.details[0].Unpack(bad)
        assert bad.field_violations[0].field == "spec.name"


async def test_health_and_reflection_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="lepton.v1.Cluster"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for answer in stub.ServerReflectionInfo(iter([request])):
            names = [s.name for s in answer.list_services_response.service]
            assert "lepton.v1.Cluster" in names


async def test_a_stopping_daemon_tells_its_watchers(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        channel = served.channel()
        stream = ClusterStub(channel).WatchJobs(pb.WatchJobsRequest())
        assert (await stream.read()).is_bookmark
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is Code.UNAVAILABLE
    await channel.close()


async def test_a_second_server_on_the_port_is_refused(tmp_path: Path) -> None:
    from scheduler.core.errors import InvalidInput

    async with serving(tmp_path / "a") as served:
        with pytest.raises(InvalidInput, match="listen"):
            async with serving(tmp_path / "b", listen=served.address):
                pass


async def test_a_submit_without_time_left_is_done_or_not_done(tmp_path: Path) -> None:
    async with serving(tmp_path, nodes=0) as served, served.client() as client:
        for number in range(20):
            with suppress(ClientError):
                await client.submit(
                    message_of("hasty"), request_id=f"h{number}", timeout_s=0.001 * number
                )
        for number in range(20):
            await client.submit(message_of("hasty"), request_id=f"h{number}")
        assert len(served.daemon.engine.jobs()) == 20
