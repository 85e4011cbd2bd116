"""The service that agents on GPU nodes call: telemetry in memory, changes of health as events.

A report that changes no health costs a dictionary update; nothing is journalled for it.
"""

import math
from collections.abc import Collection

import grpc

from scheduler.core.errors import InvalidInput
from scheduler.core.events import NodeHealthChanged
from scheduler.core.model import NodeName
from scheduler.core.plan import Rejected
from scheduler.core.records import NodeView
from scheduler.daemon.rpc_calls import Call
from scheduler.daemon.rpc_errors import CommandRefused, RpcRefused
from scheduler.daemon.rpc_port import DaemonPort
from scheduler.daemon.security import PermissionDenied
from scheduler.wire import agent_pb2, cluster_pb2

REPORT_INTERVAL_S = 10.0
"""How often agents are asked to report: often enough to see a GPU fail within a cycle."""
SLOT_S = 1.0
"""Reports are asked for at multiples of this. Waking up is most of what a lone request costs,
so many at one moment cost the daemon a fraction of the same many spread evenly."""


class AgentService:
    """Hears from the agents."""

    def __init__(self, daemon: DaemonPort) -> None:
        self._daemon = daemon
        self._agents: Collection[str] = frozenset(daemon.config.security.agents)

    async def report(
        self, request: agent_pb2.ReportRequest, call: Call
    ) -> agent_pb2.ReportResponse:
        """Keep a node's figures, and note which of its GPUs failed or recovered."""
        caller = call.caller
        if not caller.is_admin and caller.user not in self._agents:
            raise PermissionDenied(f"{caller.user} is neither an agent nor an admin")
        node = self._daemon.engine.node(NodeName(request.node))
        if node is None:
            message = f"there is no node {request.node!r}"
            raise RpcRefused(grpc.StatusCode.NOT_FOUND, message, field="node")
        _check(request, len(node.node.gpus))
        self._keep(node, request)
        await self._note_health(node, request)
        return agent_pb2.ReportResponse(next_report_in_s=self._next_report_in_s())

    def _next_report_in_s(self) -> float:
        now_s = self._daemon.clock.now_s()
        return round((now_s + REPORT_INTERVAL_S) / SLOT_S) * SLOT_S - now_s

    def _keep(self, node: NodeView, request: agent_pb2.ReportRequest) -> None:
        now_s = self._daemon.clock.now_s()
        figures: dict[int, cluster_pb2.GpuTelemetry] = {}
        for gpu in request.gpus:
            gpu.telemetry.at_s = gpu.telemetry.at_s or now_s
            figures[gpu.index] = gpu.telemetry
        heard_s = self._daemon.clock.monotonic_s()
        self._daemon.telemetry.put(node.node.name, figures, heard_s=heard_s)

    async def _note_health(self, node: NodeView, request: agent_pb2.ReportRequest) -> None:
        is_healthy = list(node.gpu_is_healthy)
        for gpu in request.gpus:
            is_healthy[gpu.index] = gpu.is_healthy
        if node.is_up and is_healthy == list(node.gpu_is_healthy):
            return
        unhealthy = tuple(index for index, healthy in enumerate(is_healthy) if not healthy)
        event = NodeHealthChanged(
            at_s=self._daemon.clock.now_s(),
            name=node.node.name,
            is_up=True,
            unhealthy_gpus=unhealthy,
            reason=f"its agent reports unhealthy GPUs {list(unhealthy)}" if unhealthy else "",
        )
        outcome = await self._daemon.execute(event)
        if isinstance(outcome, Rejected):
            raise CommandRefused(outcome)


def _check(request: agent_pb2.ReportRequest, n_gpus: int) -> None:
    """Refuse a report that makes no sense, naming the field."""
    for position, gpu in enumerate(request.gpus):
        field = f"gpus[{position}]"
        if not 0 <= gpu.index < n_gpus:
            raise InvalidInput(f"{field}.index", f"must be below {n_gpus}, the node's GPUs")
        figures = gpu.telemetry
        if not 0.0 <= figures.busy_fraction <= 1.0:
            raise InvalidInput(f"{field}.telemetry.busy_fraction", "must be from 0 to 1")
        if not math.isfinite(figures.power_w + figures.temperature_c + figures.at_s):
            raise InvalidInput(f"{field}.telemetry", "must be finite")
