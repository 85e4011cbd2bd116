"""A daemon of cardboard for tests of the command line: the real wire, canned answers.

    with fake_cluster() as cluster:
        cluster.jobs["17"] = job("17", phase=pb.JOB_PHASE_RUNNING)
        result = lepton("jobs", cluster=cluster)

It remembers the requests it got. What a daemon decides is tested elsewhere.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from typer.testing import CliRunner, Result

from scheduler.cli.main import app
from scheduler.wire import cluster_pb2 as pb
from scheduler.wire import cluster_pb2_grpc

NOW_S = 1_700_000_000.0


def job(job_id: str, *, name: str = "train", **fields: Any) -> pb.Job:
    """Return a job as a daemon shows it; `spec` fields are given as `spec_*`."""
    of_spec = {key[5:]: fields.pop(key) for key in list(fields) if key.startswith("spec_")}
    role = pb.Role(
        name="worker",
        launch=pb.Launch(command=["python", "train.py"]),
        count=1,
        min_count=1,
        max_count=1,
        shape=pb.Shape(cpu_milli=1000),
    )
    spec = pb.JobSpec(
        **{"name": name, "queue": "default", "roles": [role], "preemptible": True, **of_spec}
    )
    return pb.Job(
        **{
            "id": job_id,
            "spec": spec,
            "phase": pb.JOB_PHASE_PENDING,
            "submitter": "ada",
            "submitted_at_s": NOW_S,
            "revision": 1,
            **fields,
        }
    )


class FakeCluster(cluster_pb2_grpc.ClusterServicer):
    """Answers from what a test put into it."""

    def __init__(self) -> None:
        self.address = ""
        self.requests: list[Any] = []
        self.jobs: dict[str, pb.Job] = {}
        self.nodes: list[pb.Node] = []
        self.queues: dict[str, pb.Queue] = {"default": pb.Queue(name="default")}
        self.dry_run = pb.DryRunResponse(starts_now=True)
        self.explanation = pb.Explanation()
        self.info = pb.ServerInfo(version="9.9", user="ada", policy="fifo", revision=1)
        self.events: list[pb.JobEvent] = []
        self.chunks: list[pb.LogChunk] = []
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.page_size = 1000
        self.submits_allowed = 1000
        self.stopped = threading.Event()

    def of(self, kind: type) -> list[Any]:
        """Return the requests of one kind, in order."""
        return [request for request in self.requests if isinstance(request, kind)]

    def _took(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if self.refusal is not None:
            context.abort(*self.refusal)

    def SubmitJob(self, request, context):  # noqa: N802
        self._took(request, context)
        number = len(self.of(pb.SubmitJobRequest))
        if number > self.submits_allowed:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more")
        job_id = str(100 + number)
        n = request.spec.array_size
        self.jobs.setdefault(job_id, job(job_id, name=request.spec.name))
        return pb.SubmitJobResponse(
            job_id=job_id, job_ids=[f"{job_id}_{i}" for i in range(n)], revision=2
        )

    def DryRun(self, request, context):  # noqa: N802
        self._took(request, context)
        return self.dry_run

    def GetJob(self, request, context):  # noqa: N802
        self._took(request, context)
        if request.job_id not in self.jobs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no job {request.job_id}")
        return self.jobs[request.job_id]

    def ListJobs(self, request, context):  # noqa: N802
        self._took(request, context)
        start = int(request.page_token or 0)
        end = start + min(request.page_size or 100, self.page_size)
        found = list(self.jobs.values())
        if request.filter.startswith("name="):
            found = [j for j in found if f'"{j.spec.name}"' in request.filter]
        if request.filter.startswith("array_id="):
            found = [j for j in found if j.array_id == request.filter.removeprefix("array_id=")]
        token = str(end) if end < len(found) else ""
        return pb.ListJobsResponse(
            jobs=found[start:end], next_page_token=token, revision=1, total_size=len(found)
        )

    def WatchJobs(self, request, context):  # noqa: N802
        self._took(request, context)
        yield from self.events
        self.stopped.wait(30)

    def CancelJob(self, request, context):  # noqa: N802
        return self._changed(request, context)

    def SuspendJob(self, request, context):  # noqa: N802
        return self._changed(request, context)

    def ResumeJob(self, request, context):  # noqa: N802
        return self._changed(request, context)

    def UpdateJob(self, request, context):  # noqa: N802
        return self._changed(request, context)

    def _changed(self, request, context):
        self._took(request, context)
        if request.job_id not in self.jobs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no job {request.job_id}")
        return pb.JobsChanged(job_ids=[request.job_id], revision=3)

    def SignalJob(self, request, context):  # noqa: N802
        self._took(request, context)
        return pb.SignalJobResponse(n_tasks=2)

    def ReadLogs(self, request, context):  # noqa: N802
        self._took(request, context)
        yield from self.chunks

    def ExplainJob(self, request, context):  # noqa: N802
        self._took(request, context)
        return self.explanation

    def ListNodes(self, request, context):  # noqa: N802
        self._took(request, context)
        return pb.ListNodesResponse(nodes=self.nodes, total_size=len(self.nodes))

    def _node(self, request, context):
        self._took(request, context)
        return next(node for node in self.nodes if node.name == request.name)

    CordonNode = UncordonNode = DrainNode = _node

    def PutQueue(self, request, context):  # noqa: N802
        self._took(request, context)
        self.queues[request.queue.name] = request.queue
        return request.queue

    def ListQueues(self, request, context):  # noqa: N802
        self._took(request, context)
        return pb.ListQueuesResponse(queues=self.queues.values())

    def SetQueueState(self, request, context):  # noqa: N802
        self._took(request, context)
        queue = self.queues[request.name]
        queue.is_open, queue.is_started = request.is_open, request.is_started
        return queue

    def DeleteQueue(self, request, context):  # noqa: N802
        self._took(request, context)
        return pb.DeleteQueueResponse(revision=4)

    def GetServerInfo(self, request, context):  # noqa: N802
        self._took(request, context)
        return self.info


@contextmanager
def fake_cluster() -> Iterator[FakeCluster]:
    """Serve a fake cluster on a free port of the loopback."""
    cluster = FakeCluster()
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    cluster_pb2_grpc.add_ClusterServicer_to_server(cluster, server)
    cluster.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield cluster
    finally:
        cluster.stopped.set()
        server.stop(0).wait()


def lepton(
    *words: str,
    cluster: FakeCluster | None = None,
    server: str = "",
    stdin: str = "",
    **env: str,
) -> Result:
    """Run a command line in this process; output is not a terminal."""
    address = server or (cluster.address if cluster else "127.0.0.1:1")
    return CliRunner().invoke(
        app, list(words), input=stdin, env={"LEPTON_SERVER": address, **env}, prog_name="lepton"
    )
