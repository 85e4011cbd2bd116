"""The machines of a simulated cluster: what they hold, what they cost, whether they are up."""

from dataclasses import dataclass, field

from scheduler.core.model import Node, NodeName
from simulator.cluster import RACK, Pool
from simulator.power import GpuPower, gpu_power
from simulator.run import PoolFigures

SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6


@dataclass(slots=True, kw_only=True, eq=False)
class Group:
    """The machines of one pool with one type of GPU, and the integrals of what they did."""

    pool: Pool
    gpu_type: str
    power: GpuPower | None
    n_up: int = 0
    gpus_up: float = 0.0
    price_per_s: float = 0.0  # of all that are up
    gpus_held: float = 0.0
    since_s: float = 0.0
    node_s: float = 0.0
    gpu_s: float = 0.0
    held_gpu_s: float = 0.0
    cost_usd: float = 0.0
    n_launches: int = 0
    n_interruptions: int = 0

    def pass_time(self, now_s: float) -> None:
        """Add up what was since the last change."""
        took_s = now_s - self.since_s
        if took_s > 0.0:
            self.node_s += self.n_up * took_s
            self.gpu_s += self.gpus_up * took_s
            self.held_gpu_s += self.gpus_held * took_s
            self.cost_usd += self.price_per_s * took_s
            self.since_s = now_s

    def energy_kwh(self) -> float:
        """Return what the machines drew; NaN: unknown."""
        energy_j = self.pool.node_w * self.node_s
        if self.gpu_s:
            if self.power is None:
                return float("nan")
            idle_gpu_s = self.gpu_s - self.held_gpu_s
            energy_j += self.power.idle_w * idle_gpu_s + self.power.busy_w * self.held_gpu_s
        return energy_j / JOULES_PER_KWH


@dataclass(slots=True, kw_only=True, eq=False)
class Machine:
    """One node of the cluster, as the world sees it."""

    node: Node
    group: Group = field(repr=False)
    rack: str
    price_per_gpu_s: float
    price_per_cpu_s: float  # per thousandth; of nodes without GPUs
    is_up: bool = False
    is_leaving: bool = False  # closed to new tasks, and drained
    is_retiring: bool = False  # gone for good once it is empty
    slowness: float = 1.0  # factor of the speed of whatever runs here
    broken_gpus: set[int] = field(default_factory=set)
    images: set[str] = field(default_factory=set)  # pulled before
    down_until_s: float = 0.0


class Machines:
    """All machines, by name and by pool."""

    def __init__(self, pools: tuple[Pool, ...], from_s: float) -> None:
        self._from_s = from_s
        self._groups: dict[tuple[str, str], Group] = {}
        self.by_name: dict[NodeName, Machine] = {}
        self.widest: dict[str, int] = {}  # GPUs of the widest node, by type
        self.by_pool: dict[str, list[Machine]] = {pool.name: [] for pool in pools}
        self.n_made = {pool.name: len(pool.nodes) for pool in pools}

    def add(self, node: Node, pool: Pool) -> Machine:
        """Make the machine known; it is not up yet."""
        price_per_s = node.price_usd_per_h / SECONDS_PER_HOUR
        n_gpus = len(node.gpus)
        machine = Machine(
            node=node,
            group=self._group(pool, node.gpu_type if n_gpus else ""),
            rack=dict(node.labels).get(RACK, ""),
            price_per_gpu_s=price_per_s / n_gpus if n_gpus else 0.0,
            price_per_cpu_s=0.0 if n_gpus else price_per_s / max(node.cpu_milli, 1),
        )
        self.by_name[node.name] = machine
        if n_gpus:
            widest = self.widest.get(node.gpu_type, 0)
            self.widest[node.gpu_type] = max(widest, n_gpus)
        self.by_pool[pool.name].append(machine)
        return machine

    def _group(self, pool: Pool, gpu_type: str) -> Group:
        key = (pool.name, gpu_type)
        if key not in self._groups:
            power = gpu_power(gpu_type)
            if pool.gpu_idle_w is not None and pool.gpu_busy_w is not None:
                power = GpuPower(pool.gpu_idle_w, pool.gpu_busy_w)
            self._groups[key] = Group(
                pool=pool, gpu_type=gpu_type, power=power, since_s=self._from_s
            )
        return self._groups[key]

    def drop(self, machine: Machine) -> None:
        """Forget a machine that is gone for good."""
        del self.by_name[machine.node.name]
        self.by_pool[machine.group.pool.name].remove(machine)

    def set_up(self, machine: Machine, is_up: bool, *, now_s: float) -> None:
        """Count a machine as up, or no longer."""
        if machine.is_up == is_up:
            return
        machine.is_up = is_up
        sign = 1 if is_up else -1
        group = machine.group
        group.pass_time(now_s)
        group.n_up += sign
        group.gpus_up += sign * len(machine.node.gpus)
        group.price_per_s += sign * machine.node.price_usd_per_h / SECONDS_PER_HOUR

    def gpus_up(self) -> dict[str, float]:
        """Return the GPUs on nodes that are up, by type."""
        found: dict[str, float] = {}
        for group in self._groups.values():
            if group.gpu_type:
                found[group.gpu_type] = found.get(group.gpu_type, 0.0) + group.gpus_up
        return found

    def gpus_held(self) -> dict[str, float]:
        """Return the GPUs that tasks hold, by type."""
        found: dict[str, float] = {}
        for group in self._groups.values():
            if group.gpu_type:
                found[group.gpu_type] = found.get(group.gpu_type, 0.0) + group.gpus_held
        return found

    def figures(self, now_s: float) -> tuple[PoolFigures, ...]:
        """Return what each pool did until now; one with several GPU types in several rows."""
        for group in self._groups.values():
            group.pass_time(now_s)
        return tuple(
            PoolFigures(
                name=group.pool.name,
                gpu_type=group.gpu_type,
                is_spot=group.pool.is_spot,
                node_s=group.node_s,
                gpu_s=group.gpu_s,
                held_gpu_s=group.held_gpu_s,
                cost_usd=group.cost_usd,
                energy_kwh=group.energy_kwh(),
                n_launches=group.n_launches,
                n_interruptions=group.n_interruptions,
            )
            for group in self._groups.values()
        )
