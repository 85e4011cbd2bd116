"""A node whose agent goes silent is down until it reports again; what runs there stays."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from rpc_testing import Served, serving, spec_of

from scheduler.clock import SystemClock
from scheduler.core.model import NodeName, TaskPhase
from scheduler.core.records import NodeView
from scheduler.daemon.housekeeping import LOOK_S, SILENT, Housekeeping
from scheduler.wire import agent_pb2, agent_pb2_grpc

NAME = NodeName("node-0")
Report = Callable[..., Awaitable[None]]


class LaterClock(SystemClock):
    """The machine's clock, which tests put forward."""

    passed_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.passed_s


class Story:
    """A daemon with agents, and its upkeep, looked at by hand."""

    def __init__(self, served: Served, agent: agent_pb2_grpc.AgentStub) -> None:
        self.daemon, self._agent = served.daemon, agent
        self.served = served
        self.clock = LaterClock()
        self.daemon.clock = self.clock
        nodes = [view.node for view in self.daemon.engine.nodes()]
        self.housekeeping = Housekeeping(self.daemon, nodes)

    async def report(self, *, healthy: bool = True) -> None:
        gpu = agent_pb2.GpuReport(index=0, is_healthy=healthy)
        await self._agent.Report(agent_pb2.ReportRequest(node=NAME, gpus=[gpu]))

    async def pass_time(self, seconds: float) -> None:
        """Look every two seconds, as the daemon does."""
        for _ in range(int(seconds / LOOK_S)):
            self.clock.passed_s += LOOK_S
            await self.housekeeping.mark_silent_nodes()

    @property
    def node(self) -> NodeView:
        view = self.daemon.engine.node(NAME)
        assert view is not None
        return view


@asynccontextmanager
async def story(folder: Path, *, timeout_s: float = 60.0) -> AsyncIterator[Story]:
    async with (
        serving(folder, agent_timeout_s=timeout_s) as served,
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        yield Story(served, agent_pb2_grpc.AgentStub(channel))


async def test_a_silent_node_is_down_until_its_agent_reports_again(tmp_path: Path) -> None:
    async with story(tmp_path) as told, told.served.client() as client:
        answer = await client.submit(spec_of(gpus=1))
        [task] = await told.served.running(answer.job_id)
        assert task.node == NAME
        await told.report(healthy=False)
        await told.pass_time(58)
        assert told.node.is_up
        await told.pass_time(6)
        assert not told.node.is_up
        assert told.node.reason == f"{SILENT} 60 s"
        assert told.node.gpu_is_healthy[0] is False
        record = told.daemon.engine.job(answer.job_id)
        assert record is not None
        assert [t.phase for t in record.live_tasks()] == [TaskPhase.RUNNING]
        revision = told.daemon.engine.revision
        await told.pass_time(60)
        assert told.daemon.engine.revision == revision, "it is told once"
        await told.report()
        assert told.node.is_up
        assert told.node.reason == ""
        await told.pass_time(58)
        assert told.node.is_up


async def test_nodes_without_an_agent_are_not_waited_for(tmp_path: Path) -> None:
    async with story(tmp_path) as told:
        await told.pass_time(600)
        assert told.node.is_up
        await told.report()
        told.daemon.telemetry.forget(NAME)
        await told.pass_time(600)
        assert told.node.is_up


async def test_zero_waits_for_ever(tmp_path: Path) -> None:
    async with story(tmp_path, timeout_s=0.0) as told:
        await told.report()
        await told.pass_time(600)
        assert told.node.is_up


async def test_a_daemon_that_stood_still_blames_nobody(tmp_path: Path) -> None:
    async with story(tmp_path) as told:
        await told.report()
        told.clock.passed_s += 3600.0
        await told.housekeeping.mark_silent_nodes()
        assert told.node.is_up
        await told.pass_time(70)
        assert not told.node.is_up


async def test_a_restart_does_not_bring_a_silent_node_back(tmp_path: Path) -> None:
    async with story(tmp_path) as told:
        await told.report()
        await told.pass_time(70)
        await told.housekeeping.register_nodes()
        assert not told.node.is_up
        told.daemon.config = told.daemon.config.model_copy(update={"agent_timeout_s": 0.0})
        await told.housekeeping.register_nodes()
        assert told.node.is_up
