"""Data locality as a score: the nearer a node is to what its task reads, the better.

Data sets lie in places that a configuration names; the network is a tree of the topology's
levels with a bandwidth into each domain. A node that reads by itself takes as long as its
slowest way: all bytes from outside a domain of its own come through the way into it. On such a
tree that is what `data_locality.seconds_alone` computes from links, without its matrices.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from policies.scoring import Scores
from scheduler.core.model import Node, NodeName, Shape
from scheduler.core.node_columns import NodeColumns, Rows
from scheduler.core.topology import HOST_LABEL

BYTES_PER_MIB = 1 << 20
BYTES_PER_GBIT = 1e9 / 8

HALF_AT_S = 60.0
"""A node that needs a minute for reading gets half of the points of one that needs no time."""

Place = tuple[tuple[str, str], ...]
"""Node labels and their values, outermost first; `HOST_LABEL` for a node by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataMap:
    """Where data sets lie, each in equal parts, and how fast the ways into domains are."""

    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    bytes_per_s: tuple[tuple[str, float], ...] = ()  # by label of the level, outermost first


NOWHERE = DataMap()


@dataclass(frozen=True, kw_only=True)
class Locality:
    """Take the node that reads a task's data soonest."""

    data: DataMap = NOWHERE
    _by_kind: dict[tuple[tuple[str, int], ...], list[float]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _kinds: list[list[Node]] = field(
        init=False, repr=False, compare=False, default_factory=list
    )

    def __call__(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return minus the seconds that each node needs to read the data."""
        if not shape.reads or not self.data.places:
            return np.zeros(len(rows))
        seconds = np.array(self._of_kinds(nodes, shape))[nodes.kind[rows]]
        for name in self._hosts(shape):
            row = nodes.row_of.get(NodeName(name))
            if row is not None:
                there = seconds_to_read(self.data, shape, nodes.nodes[row], host=name)
                seconds[rows == row] = there
        return -seconds

    def points(self, nodes: NodeColumns, shape: Shape, rows: Rows) -> Scores:
        """Return 1 for a node that needs no time, half of that for a minute, and so on."""
        points: Scores = 1.0 / (1.0 - self(nodes, shape, rows) / HALF_AT_S)
        return points

    def _of_kinds(self, nodes: NodeColumns, shape: Shape) -> list[float]:
        # The list of kinds is only ever appended to, and shared by the tables of one cluster.
        if not self._kinds or self._kinds[0] is not nodes.kinds:
            self._by_kind.clear()
            self._kinds[:] = [nodes.kinds]
        known = self._by_kind.setdefault(shape.reads, [])
        for kind in nodes.kinds[len(known) :]:
            known.append(seconds_to_read(self.data, shape, kind))
        return known

    def _hosts(self, shape: Shape) -> list[str]:
        places = (p for name, _ in shape.reads for p in self.data.places.get(name, ()))
        return sorted(
            {dict(place)[HOST_LABEL] for place in places if HOST_LABEL in dict(place)}
        )


def seconds_to_read(data: DataMap, shape: Shape, node: Node, *, host: str = "") -> float:
    """Return how long the node needs to read what a task of the shape reads."""
    labels = {**dict(node.labels), HOST_LABEL: host}
    parts = [
        (place, mib * BYTES_PER_MIB / len(data.places[name]))
        for name, mib in shape.reads
        if data.places.get(name)
        for place in data.places[name]
    ]
    return max(
        (
            sum(n_bytes for place, n_bytes in parts if not _is_inside(labels, place, level))
            / bytes_per_s
            for level, bytes_per_s in data.bytes_per_s
        ),
        default=0.0,
    )


def _is_inside(labels: Mapping[str, str], place: Place, level: str) -> bool:
    """Return whether a place is known to be in the node's domain of a level."""
    for label, value in place:
        if labels.get(label) != value:
            return False
        if label == level:
            return True
    return False
