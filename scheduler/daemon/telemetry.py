"""What the agents last said of each node's GPUs. In memory only: it is stale after a restart.

Health is not kept here: a change of it is an event, and the engine knows.
"""

from collections.abc import Iterable, Mapping

from scheduler.core.model import NodeName
from scheduler.wire import cluster_pb2


class Telemetry:
    """The latest figures of each GPU, as they came over the wire."""

    def __init__(self) -> None:
        self._gpus: dict[NodeName, dict[int, cluster_pb2.GpuTelemetry]] = {}
        self._heard_s: dict[NodeName, float] = {}  # by the monotonic clock

    def put(
        self, node: NodeName, gpus: dict[int, cluster_pb2.GpuTelemetry], *, heard_s: float
    ) -> None:
        """Replace what is known of a node's GPUs, by their index, and note when it was told."""
        self._gpus[node] = gpus
        self._heard_s[node] = heard_s

    def silent_since(self, before_s: float) -> list[NodeName]:
        """Return the nodes whose agents once reported, but not since that moment."""
        return [node for node, heard_s in self._heard_s.items() if heard_s < before_s]

    def excuse(self, for_s: float) -> None:
        """Let all agents be silent for so much longer: it was us who did not listen."""
        self._heard_s = {node: heard_s + for_s for node, heard_s in self._heard_s.items()}

    def of(self, node: NodeName) -> Mapping[int, cluster_pb2.GpuTelemetry]:
        """Return the latest figures of a node's GPUs, by their index."""
        return self._gpus.get(node, {})

    def forget(self, node: NodeName) -> None:
        """Drop what is known of a node that left."""
        self._gpus.pop(node, None)
        self._heard_s.pop(node, None)

    def all(self) -> Iterable[tuple[NodeName, int, cluster_pb2.GpuTelemetry]]:
        """Yield the figures of every GPU, with its node and index."""
        for node, gpus in self._gpus.items():
            for index, figures in gpus.items():
                yield node, index, figures
