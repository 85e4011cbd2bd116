"""A real daemon in this process, on a real port, whose tasks are not real.

    async with serving(tmp_path) as served:
        async with served.client() as client: ...

The executor only writes down what it is told; a test reports what tasks do.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from policies.registry import policy_named
from scheduler.client import Client
from scheduler.clock import SystemClock
from scheduler.config import DaemonConfig, LimitsConfig
from scheduler.core.events import NodeRegistered, TaskEnded, TaskStarted
from scheduler.core.model import Gpu, JobSpec, Launch, Node, NodeName, Role, Shape, Task, TaskId
from scheduler.core.plan import Accepted, Start
from scheduler.daemon.daemon import Daemon
from scheduler.daemon.journal import Journal
from scheduler.daemon.planning import Planner
from scheduler.daemon.rpc import serve_rpc
from scheduler.wire import cluster_pb2 as pb


@dataclass
class PaperExecutor:
    """Keeps the books of an executor, and runs nothing."""

    report: Callable[[Any], None]
    folder: Path
    starts: list[Start] = field(default_factory=list)
    stops: list[TaskId] = field(default_factory=list)
    signals: list[tuple[TaskId, int]] = field(default_factory=list)

    async def recover(self, live: Sequence[Start]) -> None:
        self.starts += live

    def submit(self, accepted: Accepted) -> None:
        for start in accepted.starts:
            self.starts.append(start)
            self.report(TaskStarted(at_s=time.time(), task=start.task.id))
        for eviction in accepted.evictions:
            for task in eviction.tasks:
                self.stops.append(task)
                self.report(TaskEnded(at_s=time.time(), task=task, signal=15))

    async def signal(self, tasks: Sequence[Task], signal_number: int) -> None:
        self.signals += [(task.id, signal_number) for task in tasks]

    async def close(self) -> None:
        pass

    def task_folder(self, task: TaskId) -> Path:
        return self.folder / f"{task.job}-{task.role}-{task.index}-{task.attempt}"


@dataclass
class Served:
    """A daemon that serves, and how to reach it."""

    daemon: Daemon
    executor: PaperExecutor
    address: str

    def client(self, **options: Any) -> Client:
        return Client(self.address, **{"timeout_s": 10.0, **options})

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address)

    async def end(self, job_id: str, *, exit_code: int = 0) -> None:
        """Report that the tasks of a job have ended, and wait until it shows."""
        for task in self.daemon.engine.job(job_id).live_tasks():
            self.daemon.report(TaskEnded(at_s=time.time(), task=task.id, exit_code=exit_code))
        await until(lambda: self.daemon.engine.job(job_id) is None)

    async def running(self, job_id: str) -> list[Task]:
        """Return the tasks of a job once all of them run."""

        def tasks() -> list[Task]:
            record = self.daemon.engine.job(job_id)
            live = record.live_tasks() if record else []
            return live if live and all(t.phase == "running" for t in live) else []

        return await until(tasks)


async def until(condition: Callable[[], Any], *, timeout_s: float = 10.0) -> Any:
    """Return the first true value of a condition."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "not in time"
        await asyncio.sleep(0.005)
    return value


def config_of(folder: Path, **fields: Any) -> DaemonConfig:
    """Return a configuration for a daemon in a folder, on a free port."""
    limits = fields.pop("limits", {})
    return DaemonConfig(
        **{
            "listen": "127.0.0.1:0",
            "web_listen": None,
            "folder": folder,
            "debounce_s": 0.001,
            "limits": LimitsConfig(**limits),
            **fields,
        }
    )


@asynccontextmanager
async def serving(
    folder: Path, *, nodes: int = 2, gpus: int = 4, plans: bool = True, **config: Any
) -> AsyncIterator[Served]:
    """Serve a daemon with some nodes until the context ends."""
    clock = SystemClock()
    journal = Journal.open(folder / "journal", clock=clock)
    executors: list[PaperExecutor] = []

    def make(report: Callable[[Any], None]) -> PaperExecutor:
        executors.append(PaperExecutor(report=report, folder=folder / "tasks"))
        return executors[0]

    daemon = Daemon(
        config_of(folder, **config),
        journal=journal,
        policy=policy_named("lepton"),
        clock=clock,
        make_executor=make,
    )
    try:
        await daemon.recover()
        for number in range(nodes):
            await daemon.execute(_node_registered(number, gpus))
        background = [asyncio.create_task(daemon.record_facts())]
        if plans:
            background.append(asyncio.create_task(Planner(daemon).run()))
        async with serve_rpc(daemon) as address:
            yield Served(daemon, executors[0], address)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
    finally:
        daemon.store.close()
        journal.close()


def _node_registered(number: int, gpus: int) -> NodeRegistered:
    devices = tuple(Gpu(uuid=f"gpu-{number}-{i}", memory_mib=40_000) for i in range(gpus))
    node = Node(
        name=NodeName(f"node-{number}"),
        cpu_milli=16_000,
        memory_mib=64_000,
        gpu_type="A100" if gpus else "",
        gpus=devices,
    )
    return NodeRegistered(at_s=time.time(), node=node)


def spec_of(name: str = "train", **fields: Any) -> JobSpec:
    """Return a spec of one role; `count`, `command` and fields of shape are the role's."""
    shape = Shape(**{k: fields.pop(k) for k in list(fields) if k in Shape.__slots__})
    count = fields.pop("count", 1)
    role = Role(
        name="worker",
        launch=Launch(command=fields.pop("command", ("python", "train.py"))),
        count=count,
        min_count=fields.pop("min_count", count),
        max_count=fields.pop("max_count", count),
        shape=shape,
    )
    return JobSpec(name=name, roles=(role,), **fields)


def message_of(name: str = "train", **fields: Any) -> pb.JobSpec:
    """Return the smallest valid spec message."""
    role = pb.Role(launch=pb.Launch(command=["python", "train.py"]))
    return pb.JobSpec(**{"name": name, "roles": [role], **fields})
