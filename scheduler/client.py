"""The Python client: submit, follow and steer jobs from a program.

    async with Client("127.0.0.1:7070") as client:
        submitted = await client.submit(spec)
        job = await client.wait(submitted.job_id)

Answers are the messages of `scheduler.wire.cluster_pb2`; specs may be the core's `JobSpec` or a
message. Every call has a deadline. What is safe to repeat is repeated while the daemon is
away, with growing pauses: submits too, because each carries a request id.
"""

import asyncio
import secrets
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from scheduler.client_bulk import Numbered, Spec, as_message, batches, messages
from scheduler.client_connection import Connection, Metadata, Tls
from scheduler.client_errors import ClientError, client_error, code_named
from scheduler.clock import Clock, SystemClock
from scheduler.core.model import FINAL_JOB_PHASES, Queue
from scheduler.daemon.codec_queues import queue_message
from scheduler.daemon.codec_views import JOB_PHASE_TO_WIRE
from scheduler.wire import cluster_pb2

__all__ = ["Client", "ClientError", "RefusedJob", "SubmittedJobs", "Tls"]

DEFAULT_SERVER = "127.0.0.1:7070"
DEFAULT_TIMEOUT_S = 30.0
PAGE_SIZE = 500

FINAL_PHASES = frozenset(JOB_PHASE_TO_WIRE[phase] for phase in FINAL_JOB_PHASES)
"""The phases, as on the wire, in which a job never moves again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedJob:
    """One job of many that was not taken."""

    index: int  # in the order given
    error: ClientError


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedJobs:
    """What became of many submits: an id for each, empty for one that was refused."""

    job_ids: tuple[str, ...]
    refused: tuple[RefusedJob, ...]
    revision: int


class Client:
    """A connection to one daemon. Use it as an async context manager, from one event loop."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        clock: Clock | None = None,
    ) -> None:
        self.server = server
        self._link = Connection(
            server, token=token, tls=tls, timeout_s=timeout_s, clock=clock or SystemClock()
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection, and the calls that are still open."""
        await self._link.close()

    # Jobs

    async def submit(
        self, spec: Spec, *, request_id: str = "", timeout_s: float | None = None
    ) -> cluster_pb2.SubmitJobResponse:
        """Submit a job or an array, and return its `job_id` once it is durable.

        The answer to a repeated `request_id` is the first one; without one given, each call
        makes its own, which covers the repeats of this call.
        """
        request = cluster_pb2.SubmitJobRequest(
            spec=as_message(spec), request_id=request_id or secrets.token_hex(16)
        )
        return await self._link.repeated(self._link.stub.SubmitJob, request, timeout_s)

    async def submit_many(
        self, specs: Iterable[Spec] | AsyncIterable[Spec], *, timeout_s: float | None = None
    ) -> SubmittedJobs:
        """Submit many jobs at once, thousands a second; one that is refused stops no other.

        The deadline is of each batch of `client_bulk.BATCH_SIZE`.
        """
        job_ids: list[str] = []
        refused: list[RefusedJob] = []
        revision = 0
        async for batch in batches(specs):
            answer = await self._submit_batch(batch, timeout_s)
            for no in answer.refused:
                index = len(job_ids) + no.request_index
                error = ClientError(code_named(no.code), no.message, field=no.field)
                refused.append(RefusedJob(index=index, error=error))
            job_ids += answer.job_ids
            revision = answer.revision
        return SubmittedJobs(job_ids=tuple(job_ids), refused=tuple(refused), revision=revision)

    async def _submit_batch(
        self, batch: Sequence[Numbered], timeout_s: float | None
    ) -> cluster_pb2.SubmitJobsResponse:
        stub = self._link.stub

        def send(
            batch: Sequence[Numbered], *, timeout: float, metadata: Metadata
        ) -> Awaitable[cluster_pb2.SubmitJobsResponse]:
            return stub.SubmitJobs(messages(batch), timeout=timeout, metadata=metadata)

        return await self._link.repeated(send, batch, timeout_s)

    async def dry_run(
        self, spec: Spec, *, timeout_s: float | None = None
    ) -> cluster_pb2.DryRunResponse:
        """Return what a submit would do right now; changes nothing."""
        request = cluster_pb2.DryRunRequest(spec=as_message(spec))
        return await self._link.repeated(self._link.stub.DryRun, request, timeout_s)

    async def job(self, job_id: str, *, timeout_s: float | None = None) -> cluster_pb2.Job:
        """Return one job, live or finished."""
        request = cluster_pb2.GetJobRequest(job_id=job_id)
        return await self._link.repeated(self._link.stub.GetJob, request, timeout_s)

    async def list_jobs(
        self, request: cluster_pb2.ListJobsRequest, *, timeout_s: float | None = None
    ) -> cluster_pb2.ListJobsResponse:
        """Return one page; `jobs` walks all of them."""
        return await self._link.repeated(self._link.stub.ListJobs, request, timeout_s)

    async def jobs(
        self,
        *,
        filter: str = "",  # noqa: A002  the word of the wire
        order_by: str = "",
        page_size: int = PAGE_SIZE,
    ) -> AsyncGenerator[cluster_pb2.Job, None]:
        """Yield every job that the filter lets through, page by page.

        A filter is like `phase=live AND queue=vision AND label.team=nlp`.
        """
        request = cluster_pb2.ListJobsRequest(
            filter=filter, order_by=order_by, page_size=page_size
        )
        while True:
            page = await self.list_jobs(request)
            for job in page.jobs:
                yield job
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def members(self, job_id: str) -> list[cluster_pb2.Job]:
        """Return the job, or every element of the array, of that id."""
        try:
            return [await self.job(job_id)]
        except ClientError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            elements = [job async for job in self.jobs(filter=f"array_id={job_id}")]
            if not elements:
                raise
            return elements

    async def watch(
        self,
        *,
        after_revision: int = 0,
        job_ids: Iterable[str] = (),
        queue: str = "",
    ) -> AsyncGenerator[cluster_pb2.JobEvent, None]:
        """Yield what happens to jobs after a revision (0: from now on), for ever.

        Goes on from the last revision seen when the daemon was away. Where that is no longer
        kept, every job is listed again instead, so a caller sees each job's latest state but
        maybe not every state before it, and may see one twice. Bookmarks are passed on.
        """
        wanted = tuple(job_ids)
        revision = after_revision
        pauses = self._link.pauses()
        while True:
            request = cluster_pb2.WatchJobsRequest(
                after_revision=revision, job_ids=wanted, queue=queue
            )
            call = self._link.stub.WatchJobs(request, metadata=self._link.metadata)
            error = ClientError(grpc.StatusCode.UNAVAILABLE, "the watch has ended")
            try:
                async for event in call:
                    revision = max(revision, event.revision)
                    pauses.reset()
                    yield event
            except grpc.aio.AioRpcError as raised:
                error = client_error(raised)
            finally:
                call.cancel()
            if error.code is grpc.StatusCode.OUT_OF_RANGE:
                listed_revision, missed = await self._relist(revision, wanted, queue)
                for job in missed:
                    yield cluster_pb2.JobEvent(revision=job.revision, job=job)
                revision = listed_revision
            elif error.is_transient:
                await self._link.clock.sleep_s(pauses.next_s(error.retry_after_s))
            else:
                raise error

    async def _relist(
        self, after_revision: int, job_ids: Sequence[str], queue: str
    ) -> tuple[int, list[cluster_pb2.Job]]:
        """Return a revision to watch from, and the jobs that changed since `after_revision`."""
        info = await self.server_info()
        if job_ids:
            jobs = [job for job_id in job_ids for job in await self.members(job_id)]
        else:
            condition = f"queue={queue}" if queue else ""
            jobs = [job async for job in self.jobs(filter=condition)]
        # A revision from before the daemon lost its state means nothing now: show everything.
        is_foreign = after_revision > info.revision
        return info.revision, [j for j in jobs if is_foreign or j.revision > after_revision]

    async def wait(self, *job_ids: str, timeout_s: float | None = None) -> cluster_pb2.Job:
        """Return the job once it has ended; of several, or of an array, the first bad one.

        Without a bad one, the last to end. Waits for ever unless told otherwise; after
        `timeout_s`, raises `ClientError` with DEADLINE_EXCEEDED.
        """
        jobs = await self.wait_all(*job_ids, timeout_s=timeout_s)
        bad = [job for job in jobs if job.phase != cluster_pb2.JOB_PHASE_SUCCEEDED]
        if bad:
            return min(bad, key=lambda job: (job.ended_at_s, job.id))
        return max(jobs, key=lambda job: (job.ended_at_s, job.id))

    async def wait_all(
        self, *job_ids: str, timeout_s: float | None = None
    ) -> list[cluster_pb2.Job]:
        """Return every job, or array element, once all have ended."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._wait_all(job_ids)
        except TimeoutError:
            message = f"still waiting for {', '.join(job_ids)} after {timeout_s:g} s"
            raise ClientError(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None

    async def _wait_all(self, job_ids: Sequence[str]) -> list[cluster_pb2.Job]:
        revision = (await self.server_info()).revision
        jobs = {job.id: job for job_id in job_ids for job in await self.members(job_id)}
        n_open = sum(job.phase not in FINAL_PHASES for job in jobs.values())
        if not n_open:
            return list(jobs.values())
        async with aclosing(self.watch(after_revision=revision, job_ids=job_ids)) as events:
            async for event in events:
                if event.is_bookmark or event.job.revision < jobs[event.job.id].revision:
                    continue
                jobs[event.job.id] = event.job
                if all(job.phase in FINAL_PHASES for job in jobs.values()):
                    break
        return list(jobs.values())

    async def cancel(
        self, job_id: str, *, timeout_s: float | None = None
    ) -> cluster_pb2.JobsChanged:
        """Give a job, or all of an array, up."""
        request = cluster_pb2.CancelJobRequest(job_id=job_id)
        return await self._link.repeated(self._link.stub.CancelJob, request, timeout_s)

    async def suspend(
        self, job_id: str, *, timeout_s: float | None = None
    ) -> cluster_pb2.JobsChanged:
        """Put a job, or all of an array, on hold: it stops and keeps its place."""
        request = cluster_pb2.SuspendJobRequest(job_id=job_id)
        return await self._link.repeated(self._link.stub.SuspendJob, request, timeout_s)

    async def resume(
        self, job_id: str, *, timeout_s: float | None = None
    ) -> cluster_pb2.JobsChanged:
        """Let a suspended job, or array, wait for capacity again."""
        request = cluster_pb2.ResumeJobRequest(job_id=job_id)
        return await self._link.repeated(self._link.stub.ResumeJob, request, timeout_s)

    async def update(
        self,
        job_id: str,
        *,
        priority: int | None = None,
        priority_class: str = "",
        time_limit_s: float | None = None,
        replicas: Mapping[str, int] | None = None,
        timeout_s: float | None = None,
    ) -> cluster_pb2.JobsChanged:
        """Change a job; what is not given stays as it is."""
        request = cluster_pb2.UpdateJobRequest(
            job_id=job_id,
            priority=priority,
            priority_class=priority_class,
            time_limit_s=time_limit_s,
            replicas=replicas,
        )
        return await self._link.repeated(self._link.stub.UpdateJob, request, timeout_s)

    async def signal(
        self,
        job_id: str,
        signal_number: int,
        *,
        role: str = "",
        index: int | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Send a signal to a job's tasks, and return to how many. Never repeated."""
        request = cluster_pb2.SignalJobRequest(
            job_id=job_id, signal=signal_number, role=role, index=index
        )
        call = self._link.stub.SignalJob
        return (await self._link.once(call, request, timeout_s)).n_tasks

    async def logs(
        self, request: cluster_pb2.ReadLogsRequest
    ) -> AsyncGenerator[cluster_pb2.LogChunk, None]:
        """Yield what tasks printed; with `follow`, until they have ended."""
        call = self._link.stub.ReadLogs(request, metadata=self._link.metadata)
        try:
            async for chunk in call:
                yield chunk
        except grpc.aio.AioRpcError as error:
            raise client_error(error) from None
        finally:
            call.cancel()

    async def explain(
        self, job_id: str, *, timeout_s: float | None = None
    ) -> cluster_pb2.Explanation:
        """Return why a job waits, and until when if that is known."""
        request = cluster_pb2.ExplainJobRequest(job_id=job_id)
        return await self._link.repeated(self._link.stub.ExplainJob, request, timeout_s)

    # Nodes and queues

    async def nodes(self) -> list[cluster_pb2.Node]:
        """Return every node."""
        nodes: list[cluster_pb2.Node] = []
        request = cluster_pb2.ListNodesRequest(page_size=PAGE_SIZE)
        while True:
            page = await self._link.repeated(self._link.stub.ListNodes, request, None)
            nodes += page.nodes
            if not page.next_page_token:
                return nodes
            request.page_token = page.next_page_token

    async def cordon(self, node: str) -> cluster_pb2.Node:
        """Close a node to new tasks."""
        request = cluster_pb2.CordonNodeRequest(name=node)
        return await self._link.repeated(self._link.stub.CordonNode, request, None)

    async def uncordon(self, node: str) -> cluster_pb2.Node:
        """Open a node again."""
        request = cluster_pb2.UncordonNodeRequest(name=node)
        return await self._link.repeated(self._link.stub.UncordonNode, request, None)

    async def drain(self, node: str) -> cluster_pb2.Node:
        """Close a node and ask its tasks to stop; their jobs go elsewhere."""
        request = cluster_pb2.DrainNodeRequest(name=node)
        return await self._link.repeated(self._link.stub.DrainNode, request, None)

    async def put_queue(self, queue: Queue | cluster_pb2.Queue) -> cluster_pb2.Queue:
        """Make a queue, or replace it."""
        message = queue_message(queue) if isinstance(queue, Queue) else queue
        request = cluster_pb2.PutQueueRequest(queue=message)
        return await self._link.repeated(self._link.stub.PutQueue, request, None)

    async def queues(self) -> list[cluster_pb2.Queue]:
        """Return every queue, with its figures."""
        request = cluster_pb2.ListQueuesRequest()
        answer = await self._link.repeated(self._link.stub.ListQueues, request, None)
        return list(answer.queues)

    async def set_queue_state(
        self, name: str, *, is_open: bool | None = None, is_started: bool | None = None
    ) -> cluster_pb2.Queue:
        """Open, close, start or stop a queue; what is not given stays as it is."""
        request = cluster_pb2.SetQueueStateRequest(
            name=name, is_open=is_open, is_started=is_started
        )
        return await self._link.repeated(self._link.stub.SetQueueState, request, None)

    async def delete_queue(self, name: str) -> None:
        """Remove an empty queue."""
        request = cluster_pb2.DeleteQueueRequest(name=name)
        await self._link.repeated(self._link.stub.DeleteQueue, request, None)

    async def server_info(self, *, timeout_s: float | None = None) -> cluster_pb2.ServerInfo:
        """Return what the daemon says of itself, and for whom it takes us."""
        request = cluster_pb2.GetServerInfoRequest()
        return await self._link.repeated(self._link.stub.GetServerInfo, request, timeout_s)
