"""The cluster that a simulation starts with: pools of nodes, and queues.

A pool is what the machines of it have in common: their price, whether they are lent on the
spot market, how long a new one takes to come, and how many more there are. The rack of a node
is its label `rack`. `cluster_file` reads one from YAML.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from scheduler.core.errors import InvalidInput
from scheduler.core.model import Gpu, Node, NodeName, Queue

RACK = "rack"
"""The label of a node that names its rack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolChange:
    """So long after the start of the run a pool is to have so many nodes."""

    at_s: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Between two moments after the start nobody gets a new machine of the pool."""

    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Machines of one kind. New ones are like the first node, in racks of `nodes_per_rack`."""

    name: str
    nodes: tuple[Node, ...]  # up at the start
    is_spot: bool = False
    launch_s: float = 0.0  # from asking for a machine until it is up
    most: int | None = None  # nodes at any moment; None: no bound
    changes: tuple[PoolChange, ...] = ()
    shortages: tuple[Shortage, ...] = ()
    nodes_per_rack: int = 0  # 0: nobody says where racks are
    template: Node | None = None  # None: the first node
    node_w: float = 0.0  # what a node draws besides its GPUs
    gpu_idle_w: float | None = None  # None: by type, see `power`
    gpu_busy_w: float | None = None

    def new_node(self, index: int) -> Node:
        """Return the machine of that number, alike but for its name, devices and rack."""
        like = self.template or (self.nodes[0] if self.nodes else None)
        if like is None:
            raise InvalidInput(f"pools[{self.name}]", "has no node that new ones could be like")
        return node_of_pool(like, self.name, index, nodes_per_rack=self.nodes_per_rack)

    def up_from_s(self, asked_at_s: float) -> float:
        """Return when a machine asked for at a moment is up, both since the start of the run.

        Who asks in a shortage gets it when that is over.
        """
        for shortage in sorted(self.shortages, key=lambda s: (s.from_s, s.until_s)):
            if shortage.from_s <= asked_at_s < shortage.until_s:
                asked_at_s = shortage.until_s
        return asked_at_s + self.launch_s


def node_of_pool(like: Node, pool: str, index: int, *, nodes_per_rack: int = 0) -> Node:
    """Return node `POOL-INDEX`, like another one."""
    name = f"{pool}-{index}"
    labels = dict(like.labels)
    if nodes_per_rack:
        labels[RACK] = f"{pool}-rack-{index // nodes_per_rack}"
    gpus = tuple(
        Gpu(uuid=f"{name}-{i}", memory_mib=gpu.memory_mib) for i, gpu in enumerate(like.gpus)
    )
    return replace(
        like,
        name=NodeName(name),
        gpus=gpus,
        labels=tuple(sorted(labels.items())),
        pool=pool,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCluster:
    """What there is when a simulation begins."""

    pools: tuple[Pool, ...]
    queues: tuple[Queue, ...] = ()  # besides `default`, parents first

    def nodes(self) -> list[Node]:
        """Return all nodes of the start, pool by pool."""
        return [node for pool in self.pools for node in pool.nodes]


def cluster_of(nodes: Iterable[Node], queues: Iterable[Queue] = ()) -> SimulatedCluster:
    """Return a cluster of ready-made nodes, in one pool for each that they name.

    Nodes that name none are in a pool named after their GPU type, or `cpu`. The order of nodes
    within a pool is kept.
    """
    by_pool: dict[str, list[Node]] = {}
    for node in nodes:
        by_pool.setdefault(node.pool or node.gpu_type or "cpu", []).append(node)
    pools = tuple(Pool(name=name, nodes=tuple(group)) for name, group in by_pool.items())
    return SimulatedCluster(pools=pools, queues=tuple(queues))


def uniform_cluster(
    n_nodes: int,
    *,
    gpus: int = 8,
    gpu_type: str = "A100",
    price_usd_per_h: float = 0.0,
    nodes_per_rack: int = 0,
) -> SimulatedCluster:
    """Return a cluster of one pool of equal nodes: 128 CPUs and 1 TiB each, 80 GiB a GPU."""
    name = gpu_type.lower() or "cpu"
    like = Node(
        name=NodeName(name),
        cpu_milli=128_000,
        memory_mib=1 << 20,
        gpu_type=gpu_type,
        gpus=tuple(Gpu(uuid="", memory_mib=81_920) for _ in range(gpus)),
        price_usd_per_h=price_usd_per_h,
    )
    nodes = tuple(
        node_of_pool(like, name, i, nodes_per_rack=nodes_per_rack) for i in range(n_nodes)
    )
    pool = Pool(name=name, nodes=nodes, nodes_per_rack=nodes_per_rack, template=like)
    return SimulatedCluster(pools=(pool,))
