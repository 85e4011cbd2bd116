"""The gRPC port of a daemon: every service behind one guard, with limits, health, reflection.

    async with serve_rpc(daemon) as address: ...

Refuses to serve what `security` forbids. When the context ends, watches and followed logs are
told at once, other requests get some seconds to finish, and the audit log is written out.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from scheduler.core.errors import InvalidInput
from scheduler.core.model import TaskId
from scheduler.daemon.agent_rpc import AgentService
from scheduler.daemon.audit import AuditLog
from scheduler.daemon.limits import Limits
from scheduler.daemon.logs import LogFiles, LogSource, TaskFolderLogs
from scheduler.daemon.rate_limit import RateLimit
from scheduler.daemon.rpc_calls import Audited, Calls, Method
from scheduler.daemon.rpc_cluster import ClusterService
from scheduler.daemon.rpc_jobs import JobService
from scheduler.daemon.rpc_logs import LogService
from scheduler.daemon.rpc_port import DaemonPort
from scheduler.daemon.rpc_submit import SubmitService
from scheduler.daemon.security import Guard
from scheduler.wire import agent_pb2
from scheduler.wire import cluster_pb2 as pb

CLUSTER = "lepton.v1.Cluster"
AGENT = "lepton.v1.Agent"
STOP_GRACE_S = 3.0
"""For requests in flight: a submit is durable within one fsync."""
MAX_SEND_BYTES = 64 * 1024 * 1024
MIN_PING_INTERVAL_MS = 10_000


@asynccontextmanager
async def serve_rpc(daemon: DaemonPort) -> AsyncIterator[str]:
    """Serve until the context ends; yield the address, with the port that was taken.

    Raises `InvalidInput` if the address cannot or must not be served as configured.
    """
    guard = Guard.from_config(daemon.config)
    audit = AuditLog(daemon.config.folder, clock=daemon.clock)
    server = GrpcServer(daemon, guard=guard, audit=audit, logs=_logs_of(daemon))
    try:
        yield await server.start()
    finally:
        await server.stop(STOP_GRACE_S)
        await audit.close()


class GrpcServer:
    """All services of a daemon on one port."""

    def __init__(
        self, daemon: DaemonPort, *, guard: Guard, audit: AuditLog, logs: LogSource
    ) -> None:
        limits = Limits.from_config(daemon.config.limits)
        self._guard = guard
        self._listen = daemon.config.listen
        rate = RateLimit(limits, clock=daemon.clock)
        self._calls = Calls(guard, audit, metrics=daemon.metrics, clock=daemon.clock, rate=rate)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=_options(limits), maximum_concurrent_rpcs=limits.max_concurrent_rpcs
        )
        cluster = _cluster_methods(daemon, self._calls, limits=limits, logs=logs)
        agent = {
            "Report": self._calls.unary(
                AgentService(daemon).report, agent_pb2.ReportRequest, is_limited=False
            )
        }
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(CLUSTER, cluster),
                grpc.method_handlers_generic_handler(AGENT, agent),
            )
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (CLUSTER, AGENT, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> str:
        """Listen, and return the address."""
        host = self._listen.rpartition(":")[0]
        try:
            if self._guard.credentials is None:
                port = self._server.add_insecure_port(self._listen)
            else:
                port = self._server.add_secure_port(self._listen, self._guard.credentials)
        except RuntimeError as error:
            raise InvalidInput("listen", f"{self._listen} cannot be served: {error}") from error
        await self._server.start()
        for name in ("", CLUSTER, AGENT):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return f"{host}:{port}"

    async def stop(self, grace_s: float) -> None:
        """Take no new requests, end the streams, and let the rest finish."""
        await self._health.enter_graceful_shutdown()
        self._calls.end_streams()
        await self._server.stop(grace_s)


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", MAX_SEND_BYTES),
        ("grpc.so_reuseport", 0),  # a second daemon on the port is a mistake, not a helper
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _cluster_methods(
    daemon: DaemonPort, calls: Calls, *, limits: Limits, logs: LogSource
) -> dict[str, Method]:
    submits = SubmitService(daemon, calls, limits)
    jobs = JobService(daemon, limits)
    cluster = ClusterService(daemon, limits)
    job_logs = LogService(daemon, logs, limits)
    reads = {
        "DryRun": calls.unary(submits.dry_run, pb.DryRunRequest),
        "GetJob": calls.unary(jobs.get_job, pb.GetJobRequest),
        "ListJobs": calls.unary(jobs.list_jobs, pb.ListJobsRequest),
        "WatchJobs": calls.server_stream(jobs.watch_jobs, pb.WatchJobsRequest),
        "ReadLogs": calls.server_stream(job_logs.read_logs, pb.ReadLogsRequest),
        "ExplainJob": calls.unary(jobs.explain_job, pb.ExplainJobRequest),
        "ListNodes": calls.unary(cluster.list_nodes, pb.ListNodesRequest),
        "ListQueues": calls.unary(cluster.list_queues, pb.ListQueuesRequest),
        "GetServerInfo": calls.unary(cluster.get_server_info, pb.GetServerInfoRequest),
    }
    submitted = Audited("SubmitJob", _submitted)
    queue_put = Audited("PutQueue", lambda request, _: request.queue.name)

    def of_job(what: str) -> Audited:
        return Audited(what, lambda request, _: request.job_id)

    def of_name(what: str) -> Audited:
        return Audited(what, lambda request, _: request.name)

    return reads | {
        "SubmitJob": calls.unary(submits.submit_job, pb.SubmitJobRequest, audited=submitted),
        "SubmitJobs": calls.client_stream(submits.submit_jobs, pb.SubmitJobRequest),
        "CancelJob": calls.unary(
            jobs.cancel_job, pb.CancelJobRequest, audited=of_job("CancelJob")
        ),
        "SuspendJob": calls.unary(
            jobs.suspend_job, pb.SuspendJobRequest, audited=of_job("SuspendJob")
        ),
        "ResumeJob": calls.unary(
            jobs.resume_job, pb.ResumeJobRequest, audited=of_job("ResumeJob")
        ),
        "UpdateJob": calls.unary(
            jobs.update_job, pb.UpdateJobRequest, audited=of_job("UpdateJob")
        ),
        "SignalJob": calls.unary(
            jobs.signal_job, pb.SignalJobRequest, audited=of_job("SignalJob")
        ),
        "CordonNode": calls.unary(
            cluster.cordon_node, pb.CordonNodeRequest, audited=of_name("CordonNode")
        ),
        "UncordonNode": calls.unary(
            cluster.uncordon_node, pb.UncordonNodeRequest, audited=of_name("UncordonNode")
        ),
        "DrainNode": calls.unary(
            cluster.drain_node, pb.DrainNodeRequest, audited=of_name("DrainNode")
        ),
        "PutQueue": calls.unary(cluster.put_queue, pb.PutQueueRequest, audited=queue_put),
        "SetQueueState": calls.unary(
            cluster.set_queue_state,
            pb.SetQueueStateRequest,
            audited=of_name("SetQueueState"),
        ),
        "DeleteQueue": calls.unary(
            cluster.delete_queue, pb.DeleteQueueRequest, audited=of_name("DeleteQueue")
        ),
    }


def _submitted(request: pb.SubmitJobRequest, response: pb.SubmitJobResponse | None) -> str:
    return request.spec.name[:80] if response is None else response.job_id


@runtime_checkable
class _KeepsTaskFolders(Protocol):
    def task_folder(self, task: TaskId) -> Path: ...


class _NoLogs:
    """For executors that keep no logs here."""

    def files(self, task: TaskId) -> LogFiles:
        return LogFiles()


def _logs_of(daemon: DaemonPort) -> LogSource:
    executor = daemon.executor
    if isinstance(executor, _KeepsTaskFolders):
        return TaskFolderLogs(executor.task_folder)
    return _NoLogs()
