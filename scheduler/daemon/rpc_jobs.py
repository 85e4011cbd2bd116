"""Reading jobs, following them, and steering those that a caller may manage."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from typing import Any

import grpc

from scheduler.core.cycle import FORESEEN, expected_start, explain, n_ahead
from scheduler.core.errors import InvalidInput
from scheduler.core.events import Event, JobCancelled, JobResumed, JobSuspended, JobUpdated
from scheduler.core.model import JobId, JobPhase, QueueName, Task, TaskPhase
from scheduler.core.plan import Unplaced
from scheduler.core.ports import Policy
from scheduler.core.records import JobRecord
from scheduler.core.snapshot import Snapshot
from scheduler.daemon.codec import replicas_from
from scheduler.daemon.codec_views import explanation_message, hide_env, job_message
from scheduler.daemon.job_store import DEFAULT_PAGE_SIZE, Page
from scheduler.daemon.limits import (
    Limits,
    check_count,
    check_int,
    check_job_id,
    check_name,
    check_seconds,
    check_text,
)
from scheduler.daemon.priority_classes import class_named
from scheduler.daemon.rpc_calls import Call
from scheduler.daemon.rpc_errors import RpcRefused
from scheduler.daemon.rpc_port import DaemonPort, accepted
from scheduler.daemon.security import PermissionDenied, may_manage
from scheduler.wire import cluster_pb2

_SIGNALS = frozenset(int(number) for number in signal.valid_signals())


class JobService:
    """The jobs of one daemon."""

    def __init__(self, daemon: DaemonPort, limits: Limits) -> None:
        self._daemon = daemon
        self._limits = limits

    # Reading

    async def get_job(self, request: cluster_pb2.GetJobRequest, call: Call) -> cluster_pb2.Job:
        """Return one job, live or finished."""
        return self._message(await self._found(request.job_id), call)

    async def list_jobs(
        self, request: cluster_pb2.ListJobsRequest, call: Call
    ) -> cluster_pb2.ListJobsResponse:
        """Return a page of jobs; a short one where jobs are large."""
        check_text("filter", request.filter, self._limits.max_text_length)
        check_text("order_by", request.order_by, self._limits.max_text_length)
        check_text("page_token", request.page_token, self._limits.max_text_length)
        check_int("page_size", request.page_size, 0, 2**31)
        size = min(request.page_size or DEFAULT_PAGE_SIZE, self._limits.max_page_size)
        page = await self._page(request, size)
        jobs, n_bytes = [], 0
        for record in page.records:
            jobs.append(self._message(record, call))
            n_bytes += jobs[-1].ByteSize()
            if n_bytes > self._limits.max_page_bytes and len(jobs) < len(page.records):
                page = await self._page(request, len(jobs))
                jobs = [self._message(record, call) for record in page.records]
                break
        return cluster_pb2.ListJobsResponse(
            jobs=jobs,
            next_page_token=page.next_page_token,
            revision=page.revision,
            total_size=page.total_size,
        )

    async def _page(self, request: cluster_pb2.ListJobsRequest, size: int) -> Page:
        return await self._daemon.store.list(
            self._daemon.engine,
            filter=request.filter,
            order_by=request.order_by,
            page_size=size,
            page_token=request.page_token,
        )

    async def watch_jobs(
        self, request: cluster_pb2.WatchJobsRequest, call: Call
    ) -> AsyncGenerator[cluster_pb2.JobEvent, None]:
        """Yield what happens to jobs, until the caller has enough."""
        hub = self._daemon.watch
        check_int("after_revision", request.after_revision, 0, 2**63)
        check_count("job_ids", len(request.job_ids), self._limits.max_watched_jobs)
        for index, job_id in enumerate(request.job_ids):
            check_job_id(f"job_ids[{index}]", job_id)
        if request.queue:
            check_name("queue", request.queue, self._limits.max_name_length)
        if hub.n_readers >= self._limits.max_watches:
            rule = f"there are {hub.n_readers} watches already"
            raise RpcRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, rule)
        with hub.subscribe(
            request.after_revision, job_ids=request.job_ids, queue=request.queue
        ) as reader:
            while True:
                for event in await reader.batch():
                    yield self._as_seen_by(call, event)

    async def explain_job(
        self, request: cluster_pb2.ExplainJobRequest, call: Call
    ) -> cluster_pb2.Explanation:
        """Say why a job waits, how many are served before it, and when it should start."""
        record = await self._found(request.job_id)
        if record.phase not in {JobPhase.PENDING, JobPhase.SUSPENDED}:
            note = self._daemon.notes.get(record.id, "")
            return explanation_message(record, unplaced=None, n_ahead=0, note=note)
        daemon = self._daemon
        snapshot = daemon.snapshot()
        known = daemon.unplaced.get(record.id)
        unplaced, ahead, start_s = await asyncio.to_thread(
            _explained, snapshot, daemon.policy, record.id, known
        )
        return explanation_message(
            record,
            unplaced=unplaced,
            n_ahead=ahead,
            expected_start_at_s=start_s,
            note=daemon.notes.get(record.id, ""),
        )

    # Steering

    async def cancel_job(
        self, request: cluster_pb2.CancelJobRequest, call: Call
    ) -> cluster_pb2.JobsChanged:
        """Give a job, or all of an array, up."""
        job_id = self._manageable(request.job_id, call)
        at_s, by = self._daemon.now_s(), call.caller.user
        return await self._change(JobCancelled(at_s=at_s, job_id=job_id, by=by))

    async def suspend_job(
        self, request: cluster_pb2.SuspendJobRequest, call: Call
    ) -> cluster_pb2.JobsChanged:
        """Put a job, or all of an array, on hold."""
        job_id = self._manageable(request.job_id, call)
        at_s, by = self._daemon.now_s(), call.caller.user
        return await self._change(JobSuspended(at_s=at_s, job_id=job_id, by=by))

    async def resume_job(
        self, request: cluster_pb2.ResumeJobRequest, call: Call
    ) -> cluster_pb2.JobsChanged:
        """Let a suspended job, or array, wait for capacity again."""
        job_id = self._manageable(request.job_id, call)
        at_s, by = self._daemon.now_s(), call.caller.user
        return await self._change(JobResumed(at_s=at_s, job_id=job_id, by=by))

    async def update_job(
        self, request: cluster_pb2.UpdateJobRequest, call: Call
    ) -> cluster_pb2.JobsChanged:
        """Change what is given of a job, or of all of an array."""
        limits = self._limits
        job_id = self._manageable(request.job_id, call)
        priority = self._new_priority(request)
        time_limit_s = request.time_limit_s if request.HasField("time_limit_s") else None
        if time_limit_s is not None:
            check_seconds("time_limit_s", time_limit_s, limits.max_duration_s)
        replicas = replicas_from("replicas", request.replicas, limits)
        if not priority and time_limit_s is None and not replicas:
            raise InvalidInput("", "nothing to change is given")
        event = JobUpdated(
            at_s=self._daemon.now_s(),
            job_id=job_id,
            by=call.caller.user,
            time_limit_s=time_limit_s,
            replicas=replicas,
            **priority,
        )
        return await self._change(event)

    def _new_priority(self, request: cluster_pb2.UpdateJobRequest) -> dict[str, Any]:
        """Return what is to be said of a job's priority, as `JobUpdated` has it."""
        is_given, name = request.HasField("priority"), request.priority_class
        if is_given and name:
            raise InvalidInput("priority_class", "must not be given together with priority")
        if name:
            found = class_named(name, self._daemon.config.priority_classes)
            return {
                "priority": found.value,
                "priority_class": name,
                "may_preempt": found.may_preempt,
                "preemptible": found.preemptible,
            }
        most = self._limits.max_priority
        check_int("priority", request.priority, -most, most)
        return {"priority": request.priority} if is_given else {}

    async def signal_job(
        self, request: cluster_pb2.SignalJobRequest, call: Call
    ) -> cluster_pb2.SignalJobResponse:
        """Send a signal to the running tasks of a job, or of all of an array."""
        job_id = self._manageable(request.job_id, call)
        if request.signal not in _SIGNALS:
            raise InvalidInput("signal", "must be the number of a signal, 1 to 64")
        index = request.index if request.HasField("index") else None
        records = self._live(job_id)
        tasks = [
            task
            for record in records
            for task in record.live_tasks()
            if _is_meant(task, request.role, index)
        ]
        if not tasks:
            self._raise_if_unknown(job_id, records)
            message = f"job {job_id} has no such running tasks"
            raise RpcRefused(grpc.StatusCode.FAILED_PRECONDITION, message, field="job_id")
        await self._daemon.executor.signal(tasks, request.signal)
        return cluster_pb2.SignalJobResponse(n_tasks=len(tasks))

    async def _change(self, event: Event) -> cluster_pb2.JobsChanged:
        outcome = accepted(await self._daemon.execute(event))
        ended = (record.id for record in outcome.finished)
        return cluster_pb2.JobsChanged(
            job_ids=[*outcome.changed, *ended], revision=outcome.revision
        )

    # Finding

    def _manageable(self, text: str, call: Call) -> JobId:
        """Return the id of a job, or array, that the caller may change.

        An unknown or ended one is the engine's to refuse: nothing would change.
        """
        job_id = JobId(check_job_id("job_id", text))
        if not call.caller.is_admin:
            for record in self._live(job_id)[:1]:  # elements are alike
                refuse_strangers(self._daemon, record, call)
        return job_id

    def _live(self, job_id: JobId) -> list[JobRecord]:
        """Return the live job, or the live elements of the array, of that id."""
        engine = self._daemon.engine
        ids = engine.array(job_id) or (job_id,)
        return [record for each in ids if (record := engine.job(each)) is not None]

    async def _found(self, text: str) -> JobRecord:
        return await found(self._daemon, text)

    def _raise_if_unknown(self, job_id: JobId, records: list[JobRecord]) -> None:
        if not records and not self._daemon.engine.is_known(job_id):
            raise no_job(job_id)

    def _message(self, record: JobRecord, call: Call) -> cluster_pb2.Job:
        daemon = self._daemon
        message = job_message(
            record,
            now_s=daemon.now_s(),
            unplaced=daemon.unplaced.get(record.id),
            expected_start_at_s=daemon.expected_start_at_s.get(record.id),
        )
        if not _is_managed(daemon, message, call):
            hide_env(message)
        return message

    def _as_seen_by(self, call: Call, event: cluster_pb2.JobEvent) -> cluster_pb2.JobEvent:
        if event.is_bookmark or _is_managed(self._daemon, event.job, call):
            return event
        own = cluster_pb2.JobEvent()
        own.CopyFrom(event)  # the event is shared with other watches
        hide_env(own.job)
        return own


async def found(daemon: DaemonPort, text: str) -> JobRecord:
    """Return the job of an id that a caller gave, live or finished."""
    job_id = JobId(check_job_id("job_id", text))
    record = await daemon.find(job_id)
    if record is None:
        if daemon.engine.array(job_id):
            message = f"{job_id} is an array: its elements are {job_id}_0 and so on"
            raise RpcRefused(grpc.StatusCode.NOT_FOUND, message, field="job_id")
        raise no_job(job_id)
    return record


def no_job(job_id: JobId) -> RpcRefused:
    """Return the refusal of an id that names no job."""
    message = f"there is no job {job_id!r}"
    return RpcRefused(grpc.StatusCode.NOT_FOUND, message, field="job_id")


def refuse_strangers(daemon: DaemonPort, record: JobRecord, call: Call) -> None:
    """Raise `PermissionDenied` unless the caller may manage the job."""
    job = record.job
    if not may_manage(call.caller, job.submitter, daemon.engine.queue(job.spec.queue)):
        raise PermissionDenied(
            f"job {job.id} belongs to {job.submitter}; {call.caller.user} is no admin of "
            f"queue {job.spec.queue!r}"
        )


def _is_managed(daemon: DaemonPort, job: cluster_pb2.Job, call: Call) -> bool:
    if call.caller.is_admin:
        return True
    queue = daemon.engine.queue(QueueName(job.spec.queue))
    return may_manage(call.caller, job.submitter, queue)


def _is_meant(task: Task, role: str, index: int | None) -> bool:
    return (
        task.phase in {TaskPhase.RUNNING, TaskPhase.STOPPING}
        and role in ("", task.id.role)
        and index in (None, task.id.index)
    )


def _explained(
    snapshot: Snapshot, policy: Policy, job_id: JobId, known: Unplaced | None
) -> tuple[Unplaced | None, int, float | None]:
    """Return why a job waits, how many are ahead, and when it should start.

    The reason that the last decision knew, if it did.
    """
    unplaced = known if known is not None else explain(snapshot, policy, job_id)
    ahead = n_ahead(snapshot, policy, job_id)
    is_near = unplaced is not None and ahead < FORESEEN
    start_s = expected_start(snapshot, policy, job_id) if is_near else None
    return unplaced, ahead, start_s
