"""Where nodes are: a tree of domains, from zones down to devices that are linked directly.

The levels above the node are named by node labels, outermost first; below them come the node
itself (`host`) and the cliques of its devices (`nvlink`). A `Tree` has the domain of every node
at every level as columns. What a job asks of places is its `Near`; `subtrees` sees to it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scheduler.core.errors import InvalidInput
from scheduler.core.model import HOST, NVLINK, JobSpec, Levels, Node

IntColumn = NDArray[np.int64]
Rows = NDArray[np.intp]

Place = tuple[int, tuple[int, ...]]
"""The row of a node, and devices of it."""

HOST_LABEL = "kubernetes.io/hostname"
"""Stands for the node itself, whether or not it has such a label."""

ROOT = -1
"""The level above all: anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """How near to each other the tasks of a job are to be."""

    required: str = ""  # level of which one domain must hold them all; empty: none
    preferred: str = ""  # level of which as few domains as possible should hold them
    is_balanced: bool = False  # spread evenly over as few domains as hold them
    beside: int = -1  # node row of tasks that are there already; -1: none
    linked: tuple[int, ...] = ()  # devices of that node in the clique of those tasks


def near_of(spec: JobSpec) -> Near | None:
    """Return how near to each other a job wants its tasks, None if it does not care."""
    if not spec.topology_required and not spec.topology_preferred:
        return None
    return Near(
        required=spec.topology_required,
        preferred=spec.topology_preferred,
        is_balanced=spec.topology_balanced,
    )


def beside(near: Near, nodes: Sequence[Node], places: Sequence[Place]) -> Near:
    """Return what is asked of places beside those where tasks of the job are already."""
    row, devices = next((place for place in places if place[1]), places[0])
    linked = (clique for clique in cliques_of(nodes[row]) if set(devices[:1]) & set(clique))
    return replace(near, beside=row, linked=next(linked, ()))


def check_levels(spec: JobSpec, levels: Levels) -> None:
    """Raise InvalidInput if a job names a level that there is not."""
    names = level_names(levels)
    for field in ("topology_required", "topology_preferred"):
        level = getattr(spec, field)
        if level and level not in names:
            raise InvalidInput(field, f"is {level!r}; must be one of {', '.join(names)}")


def level_names(levels: Levels) -> list[str]:
    """Return what a job may name as a level, outermost first."""
    return [*(level.name for level in levels), HOST, NVLINK]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """The domains of all nodes.

    Domains of a level are numbered by their names, those of the levels above first.
    """

    levels: Levels
    domain: IntColumn  # [levels and host, N] number of the domain; -1: in none
    n_domains: tuple[int, ...]  # of each level
    position: IntColumn  # [N] along the tree
    clique: IntColumn  # [N, D] of each device within its node; -1: there is no such device
    members: tuple[
        tuple[Rows, IntColumn], ...
    ]  # of each level above: nodes in domains, and which

    @property
    def host(self) -> int:
        """The number of the level of nodes."""
        return len(self.levels)

    @property
    def nvlink(self) -> int:
        """The number of the level of linked devices."""
        return len(self.levels) + 1

    def number(self, name: str) -> int | None:
        """Return the number of a level, `ROOT` for no name, None if there is no such level."""
        if not name:
            return ROOT
        names = level_names(self.levels)
        return names.index(name) if name in names else None

    def labels(self, number: int) -> tuple[str, ...]:
        """Return what nodes in one domain of a level have in common, for `are_together`."""
        above = [level.label for level in self.levels[: number + 1]]
        if number >= self.host:
            above = [HOST_LABEL]
        return (*above, NVLINK) if number == self.nvlink else tuple(above)


def tree_of(
    levels: Levels,
    nodes: Sequence[Node],
    *,
    kinds: Sequence[Node],
    kind: IntColumn,
    n_devices: int,
) -> Tree:
    """Return the tree of the nodes, given one node of each kind and the kind of each."""
    rows = np.arange(len(nodes))
    by_kind = [dict(node.labels) for node in kinds]
    domain = np.empty((len(levels) + 1, len(nodes)), np.int64)
    n_domains = []
    for number, level in enumerate(levels):
        paths = [
            tuple(labels.get(above.label, "") for above in levels[: number + 1])
            if level.label in labels
            else None
            for labels in by_kind
        ]
        numbers = {path: i for i, path in enumerate(sorted({p for p in paths if p}))}
        of_kind = np.array([-1 if p is None else numbers[p] for p in paths], np.int64)
        domain[number] = of_kind[kind]
        n_domains.append(len(numbers))
    domain[len(levels)] = rows
    along = np.lexsort((rows, *domain[: len(levels)][::-1]))
    position = np.empty(len(nodes), np.int64)
    position[along] = rows
    within = [np.flatnonzero(numbers >= 0) for numbers in domain[: len(levels)]]
    return Tree(
        levels=levels,
        domain=domain,
        n_domains=(*n_domains, len(nodes)),
        position=position,
        clique=_cliques(nodes, n_devices),
        members=tuple((there, domain[level][there]) for level, there in enumerate(within)),
    )


def _cliques(nodes: Sequence[Node], n_devices: int) -> IntColumn:
    n_of = np.array([len(node.gpus) for node in nodes], np.int64)
    clique = np.where(np.arange(n_devices) < n_of[:, None], 0, -1)
    for row, node in enumerate(nodes):
        if node.nvlink:
            for number, devices in enumerate(cliques_of(node)):
                clique[row, list(devices)] = number
    return clique


def cliques_of(node: Node) -> list[tuple[int, ...]]:
    """Return the devices of a node that are linked, clique by clique; others stand alone."""
    if not node.nvlink:
        return [tuple(range(len(node.gpus)))]
    linked = [tuple(d for d in clique if d < len(node.gpus)) for clique in node.nvlink]
    alone = set(range(len(node.gpus))).difference(*linked)
    return [*filter(None, linked), *((device,) for device in sorted(alone))]


def are_together(places: Iterable[tuple[Node, tuple[int, ...]]], labels: Sequence[str]) -> bool:
    """Return whether nodes agree on all these labels, and have the last one.

    With `NVLINK` in place of the last, the devices taken must be of one clique, too.
    """
    taken = list(places)
    if labels[-1] == NVLINK:
        cliques = {
            next((c for c in cliques_of(node) if set(devices) <= set(c)), None)
            for node, devices in taken
            if devices
        }
        labels = labels[:-1]
        if len(cliques) > 1 or None in cliques:
            return False
    values = {tuple(_value(node, label) for label in labels) for node, _ in taken}
    return len(values) <= 1 and all(path[-1] is not None for path in values)


def _value(node: Node, label: str) -> str | None:
    return node.name if label == HOST_LABEL else dict(node.labels).get(label)
