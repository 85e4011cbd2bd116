"""Reading what tasks printed, and following them while they print.

Without an attempt, a follower goes on with the next one for as long as the job may have one: a
preempted job is followed through its wait until it has ended.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobId, Role, TaskId
from scheduler.core.records import JobRecord
from scheduler.daemon.limits import Limits, check_int
from scheduler.daemon.logs import POLL_S, LogSource, read_log
from scheduler.daemon.rpc_calls import Call
from scheduler.daemon.rpc_errors import RpcRefused
from scheduler.daemon.rpc_jobs import found, refuse_strangers
from scheduler.daemon.rpc_port import DaemonPort
from scheduler.wire import cluster_pb2

BOTH = cluster_pb2.ReadLogsRequest.STREAM_UNSPECIFIED
STDOUT = cluster_pb2.ReadLogsRequest.STREAM_STDOUT
STDERR = cluster_pb2.ReadLogsRequest.STREAM_STDERR
Stream: TypeAlias = cluster_pb2.ReadLogsRequest.Stream.ValueType

WAITING_CHUNKS = 16
"""Chunks of 64 KiB that may wait for a slow reader of many tasks."""


@dataclass(frozen=True, slots=True)
class _Member:
    """One member of a job, whatever the attempt."""

    role: str
    index: int


class LogService:
    """The logs of one daemon's tasks."""

    def __init__(self, daemon: DaemonPort, logs: LogSource, limits: Limits) -> None:
        self._daemon = daemon
        self._logs = logs
        self._limits = limits

    async def read_logs(
        self, request: cluster_pb2.ReadLogsRequest, call: Call
    ) -> AsyncGenerator[cluster_pb2.LogChunk, None]:
        """Yield what one task, or all of a job, printed; with `follow`, until they end."""
        record = await found(self._daemon, request.job_id)
        refuse_strangers(self._daemon, record, call)
        self._check(request)
        members = _members(record, request)
        streams = (STDOUT, STDERR) if request.stream == BOTH else (request.stream,)
        sources = [
            self._member_log(record, member, stream, request)
            for member in members
            for stream in streams
        ]
        if request.follow and len(sources) > 1:
            if len(sources) > self._limits.max_followed_logs:
                rule = f"at most {self._limits.max_followed_logs} logs can be followed at once"
                raise RpcRefused(grpc.StatusCode.RESOURCE_EXHAUSTED, rule, field="all_tasks")
            sources = [_merged(sources)]
        for source in sources:
            async with aclosing(source) as chunks:
                async for chunk in chunks:
                    yield chunk

    def _check(self, request: cluster_pb2.ReadLogsRequest) -> None:
        if request.stream not in {BOTH, STDOUT, STDERR}:
            raise InvalidInput("stream", "must be a known stream")
        if request.HasField("tail_lines"):
            check_int("tail_lines", request.tail_lines, 0, self._limits.max_tail_lines)
        if request.HasField("attempt"):
            check_int("attempt", request.attempt, 1, 2**31)

    async def _member_log(
        self,
        record: JobRecord,
        member: _Member,
        stream: Stream,
        request: cluster_pb2.ReadLogsRequest,
    ) -> AsyncGenerator[cluster_pb2.LogChunk, None]:
        """Yield what one member printed, in one attempt or in the last and those to come."""
        job_id = record.id
        is_one = request.HasField("attempt")
        attempt = request.attempt if is_one else self._attempt_of(record, member)
        tail_lines = request.tail_lines if request.HasField("tail_lines") else None
        while True:
            if attempt:
                task = TaskId(job=job_id, role=member.role, index=member.index, attempt=attempt)
                is_followed = request.follow
                async for data in self._task_log(task, stream, tail_lines, is_followed):
                    yield _chunk(task, stream, data)
                tail_lines = None
            if is_one or not request.follow:
                return
            next_attempt = await self._next_attempt(job_id, member, attempt)
            if next_attempt is None:
                return
            attempt = next_attempt

    def _task_log(
        self, task: TaskId, stream: Stream, tail_lines: int | None, is_followed: bool
    ) -> AsyncIterator[bytes]:
        def is_over() -> bool:
            record = self._daemon.engine.job(task.job) if is_followed else None
            mine = record.tasks.get(task) if record is not None else None
            return mine is None or mine.phase.is_final

        def files() -> tuple[Path, ...]:
            files = self._logs.files(task)
            return files.stdout if stream == STDOUT else files.stderr

        return read_log(files, clock=self._daemon.clock, tail_lines=tail_lines, is_over=is_over)

    async def _next_attempt(self, job_id: JobId, member: _Member, after: int) -> int | None:
        """Return the member's next attempt once there is one, None once there will be none."""
        while (record := self._daemon.engine.job(job_id)) is not None:
            attempt = self._attempt_of(record, member)
            if attempt > after:
                return attempt
            await self._daemon.clock.sleep_s(POLL_S)
        final = await self._daemon.find(job_id)
        if final is not None and (attempt := self._attempt_of(final, member)) > after:
            return attempt
        return None

    def _attempt_of(self, record: JobRecord, member: _Member) -> int:
        """Return the member's last attempt; 0: it never had a place."""
        attempts = (
            task.attempt
            for task in record.tasks
            if task.role == member.role and task.index == member.index
        )
        return max(attempts, default=0)


def _members(record: JobRecord, request: cluster_pb2.ReadLogsRequest) -> list[_Member]:
    roles = _roles(record, request)
    if request.all_tasks:
        if request.HasField("index"):
            raise InvalidInput("index", "must not be given together with all_tasks")
        return [_Member(role.name, index) for role in roles for index in range(role.count)]
    index = request.index if request.HasField("index") else 0
    if not 0 <= index < roles[0].max_count:
        raise InvalidInput("index", f"must be below {roles[0].max_count}")
    return [_Member(roles[0].name, index)]


def _roles(record: JobRecord, request: cluster_pb2.ReadLogsRequest) -> list[Role]:
    roles = record.job.spec.roles
    if request.role:
        named = [role for role in roles if role.name == request.role]
        if not named:
            message = f"job {record.id} has no role {request.role!r}"
            raise RpcRefused(grpc.StatusCode.NOT_FOUND, message, field="role")
        return named
    return list(roles) if request.all_tasks else [roles[0]]


def _chunk(task: TaskId, stream: Stream, data: bytes) -> cluster_pb2.LogChunk:
    return cluster_pb2.LogChunk(
        data=data, stream=stream, role=task.role, index=task.index, attempt=task.attempt
    )


async def _merged(
    sources: list[AsyncGenerator[cluster_pb2.LogChunk, None]],
) -> AsyncGenerator[cluster_pb2.LogChunk, None]:
    """Yield what comes from any of the sources, until all have ended."""
    waiting: asyncio.Queue[cluster_pb2.LogChunk | None] = asyncio.Queue(WAITING_CHUNKS)

    async def pump(source: AsyncGenerator[cluster_pb2.LogChunk, None]) -> None:
        async with aclosing(source) as chunks:
            async for chunk in chunks:
                await waiting.put(chunk)
        await waiting.put(None)

    n_open = len(sources)
    async with asyncio.TaskGroup() as tasks:
        pumps = [tasks.create_task(pump(source), name="follow-log") for source in sources]
        try:
            while n_open:
                chunk = await waiting.get()
                if chunk is None:
                    n_open -= 1
                else:
                    yield chunk
        finally:
            for task in pumps:
                task.cancel()
