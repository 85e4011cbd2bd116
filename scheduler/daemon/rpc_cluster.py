"""Nodes, queues and the daemon itself: reading them, and what their admins may change."""

from importlib.metadata import PackageNotFoundError, version

import numpy as np

from scheduler.core.errors import InvalidInput
from scheduler.core.events import NodeCordoned, QueueDeleted, QueuePut, QueueStateSet
from scheduler.core.job_columns import PHASE_CODE
from scheduler.core.model import JobPhase, NodeName, QueueName
from scheduler.core.plan import Granted
from scheduler.core.queue_tree import lineage
from scheduler.daemon.codec_queues import queue_from, queue_message
from scheduler.daemon.codec_views import node_message
from scheduler.daemon.job_store import DEFAULT_PAGE_SIZE
from scheduler.daemon.limits import Limits, check_int, check_name, check_text, within
from scheduler.daemon.rpc_calls import Call
from scheduler.daemon.rpc_port import DaemonPort, accepted
from scheduler.daemon.security import PermissionDenied
from scheduler.wire import cluster_pb2


class ClusterService:
    """The nodes, queues and figures of one daemon."""

    def __init__(self, daemon: DaemonPort, limits: Limits) -> None:
        self._daemon = daemon
        self._limits = limits

    # Nodes

    async def list_nodes(
        self, request: cluster_pb2.ListNodesRequest, call: Call
    ) -> cluster_pb2.ListNodesResponse:
        """Return a page of nodes in the order of their registration."""
        check_int("page_size", request.page_size, 0, 2**31)
        check_text("page_token", request.page_token, self._limits.max_text_length)
        engine = self._daemon.engine
        nodes = engine.snapshot(self._daemon.now_s()).nodes
        names = [
            node.name
            for node, is_gone in zip(nodes.nodes, nodes.is_removed.tolist(), strict=True)
            if not is_gone
        ]
        start = _place_after(names, request.page_token)
        size = min(request.page_size or DEFAULT_PAGE_SIZE, self._limits.max_page_size)
        shown = names[start : start + size]
        is_last = start + size >= len(names)
        return cluster_pb2.ListNodesResponse(
            nodes=[self._node(name) for name in shown],
            next_page_token="" if is_last else shown[-1],
            revision=engine.revision,
            total_size=len(names),
        )

    async def cordon_node(
        self, request: cluster_pb2.CordonNodeRequest, call: Call
    ) -> cluster_pb2.Node:
        """Close a node to new tasks."""
        return await self._cordon(request.name, call, is_cordoned=True, is_draining=False)

    async def uncordon_node(
        self, request: cluster_pb2.UncordonNodeRequest, call: Call
    ) -> cluster_pb2.Node:
        """Open a node again."""
        return await self._cordon(request.name, call, is_cordoned=False, is_draining=False)

    async def drain_node(
        self, request: cluster_pb2.DrainNodeRequest, call: Call
    ) -> cluster_pb2.Node:
        """Close a node, and have its tasks stop."""
        return await self._cordon(request.name, call, is_cordoned=True, is_draining=True)

    async def _cordon(
        self, text: str, call: Call, *, is_cordoned: bool, is_draining: bool
    ) -> cluster_pb2.Node:
        _refuse_users(call, "change nodes")
        name = NodeName(check_name("name", text, self._limits.max_key_length))
        event = NodeCordoned(
            at_s=self._daemon.now_s(),
            name=name,
            by=call.caller.user,
            is_cordoned=is_cordoned,
            is_draining=is_draining,
        )
        accepted(await self._daemon.execute(event))
        return self._node(name)

    def _node(self, name: NodeName) -> cluster_pb2.Node:
        view = self._daemon.engine.node(name)
        if view is None:  # removed between its change and this look
            return cluster_pb2.Node(name=name)
        return node_message(view, telemetry=self._daemon.telemetry.of(name))

    # Queues

    async def put_queue(
        self, request: cluster_pb2.PutQueueRequest, call: Call
    ) -> cluster_pb2.Queue:
        """Make a queue, or replace it."""
        try:
            queue = queue_from(request.queue, self._limits)
        except InvalidInput as error:
            raise within("queue", error) from None
        known = self._daemon.policy.inside
        if queue.policy and queue.policy not in known:
            rule = f"must be one of {', '.join(known)}, not {queue.policy!r}"
            raise InvalidInput("queue.policy", rule)
        self._refuse_strangers(call, queue.name, queue.parent)
        event = QueuePut(at_s=self._daemon.now_s(), queue=queue, by=call.caller.user)
        accepted(await self._daemon.execute(event))
        shown = self._queues(queue.name)
        return shown[0] if shown else queue_message(queue)  # deleted again meanwhile

    async def list_queues(
        self, request: cluster_pb2.ListQueuesRequest, call: Call
    ) -> cluster_pb2.ListQueuesResponse:
        """Return every queue with its figures."""
        revision = self._daemon.engine.revision
        return cluster_pb2.ListQueuesResponse(queues=self._queues(), revision=revision)

    async def set_queue_state(
        self, request: cluster_pb2.SetQueueStateRequest, call: Call
    ) -> cluster_pb2.Queue:
        """Open, close, start or stop a queue."""
        name = QueueName(check_name("name", request.name, self._limits.max_name_length))
        queue = self._daemon.engine.queue(name)  # an unknown one is the engine's to refuse
        if queue is not None and call.caller.user not in queue.admins:
            self._refuse_strangers(call, name, None)
        event = QueueStateSet(
            at_s=self._daemon.now_s(),
            name=name,
            is_open=request.is_open if request.HasField("is_open") else None,
            is_started=request.is_started if request.HasField("is_started") else None,
            by=call.caller.user,
        )
        accepted(await self._daemon.execute(event))
        return self._queues(name)[0] if self._queues(name) else cluster_pb2.Queue(name=name)

    async def delete_queue(
        self, request: cluster_pb2.DeleteQueueRequest, call: Call
    ) -> cluster_pb2.DeleteQueueResponse:
        """Remove an empty queue."""
        name = QueueName(check_name("name", request.name, self._limits.max_name_length))
        self._refuse_strangers(call, name, None)
        event = QueueDeleted(at_s=self._daemon.now_s(), name=name, by=call.caller.user)
        outcome = accepted(await self._daemon.execute(event))
        return cluster_pb2.DeleteQueueResponse(revision=outcome.revision)

    def _refuse_strangers(self, call: Call, name: QueueName, parent: QueueName | None) -> None:
        """Let admins of the cluster and of queues above change a queue, where it is and goes.

        Not its own admins: they could raise its limits.
        """
        if call.caller.is_admin:
            return
        engine = self._daemon.engine
        known = {queue.name: queue for queue in engine.queues()}
        above = []
        if name in known or parent is None:
            above.append(known[name].parent if name in known else QueueName(""))
        if parent is not None:
            above.append(parent)
        for place in above:
            line = lineage(known[place], known) if place in known else []
            if not any(call.caller.user in queue.admins for queue in line):
                _refuse_users(call, "change queues")

    def _queues(self, *names: QueueName) -> list[cluster_pb2.Queue]:
        """Return the named queues, or all."""
        engine = self._daemon.engine
        figures, used = engine.figures(), engine.queue_used()
        average = engine.queue_average(self._daemon.now_s())
        return [
            queue_message(
                queue,
                n_pending=figures[queue.name].n_pending,
                n_running=figures[queue.name].n_running,
                gpu_milli_used=figures[queue.name].gpu_milli_used,
                used=used[queue.name],
                average=average.get(queue.name, {}),
            )
            for queue in engine.queues()
            if not names or queue.name in names
        ]

    # The daemon

    async def get_server_info(
        self, request: cluster_pb2.GetServerInfoRequest, call: Call
    ) -> cluster_pb2.ServerInfo:
        """Say what this daemon is, how it does, and for whom it takes the caller."""
        daemon, limits = self._daemon, self._limits
        snapshot = daemon.snapshot()
        n_of = np.bincount(snapshot.jobs.phase.clip(-1) + 1, minlength=len(PHASE_CODE) + 1)
        n_running = sum(
            n_of[PHASE_CODE[phase] + 1] for phase in (JobPhase.RUNNING, JobPhase.STOPPING)
        )
        return cluster_pb2.ServerInfo(
            version=_version(),
            started_at_s=daemon.started_at_s,
            now_s=daemon.now_s(),
            revision=daemon.engine.revision,
            policy=daemon.policy.name,
            user=call.caller.user,
            is_degraded=daemon.degraded_reason is not None,
            degraded_reason=daemon.degraded_reason or "",
            n_nodes=int(np.count_nonzero(~snapshot.nodes.is_removed)),
            n_pending=int(n_of[PHASE_CODE[JobPhase.PENDING] + 1]),
            n_running=int(n_running),
            max_message_bytes=limits.max_message_bytes,
            max_tasks_per_job=limits.max_tasks_per_job,
            max_array_size=limits.max_array_size,
            max_page_size=limits.max_page_size,
            shares=[_shares_message(name, one) for name, one in daemon.granted.items()],
        )


def _shares_message(queue: str, granted: Granted) -> cluster_pb2.SharesInfo:
    return cluster_pb2.SharesInfo(
        queue=queue,
        status=granted.status,
        solved_at_s=granted.solved_at_s,
        n_fallbacks=granted.n_fallbacks,
        prices=dict(zip(granted.gpu_types, granted.prices, strict=True)),
    )


def _refuse_users(call: Call, what: str) -> None:
    if not call.caller.is_admin:
        raise PermissionDenied(f"{call.caller.user} is no admin and may not {what}")


def _place_after(names: list[NodeName], token: str) -> int:
    """Return where the page after the node named by the token begins."""
    if not token:
        return 0
    try:
        return names.index(NodeName(token)) + 1
    except ValueError:
        raise InvalidInput("page_token", "its node has left: list from the start") from None


def _version() -> str:
    try:
        return version("lepton-scheduler")
    except PackageNotFoundError:  # a checkout that nobody installed
        return "unknown"
