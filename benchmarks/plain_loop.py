"""A scheduler as most are written: loops over objects, one job after the other.

The baseline of `decide.everything`: it does the same job on the same nodes, queues and specs.
Queues take turns by guarantee, then by dominant share per weight, down the tree and within its
limits; every node that fits is scored by the fragmentation gradient, the best is taken; a gang
goes to the rack with the least room that holds it, or anywhere if it may. Scores are remembered
by the state of a node, as a careful author would do. Nobody is promised places, so there is
nothing to backfill around.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from scheduler.core.model import MILLI, JobSpec, Node, Queue, QueueName, Shape

Workload = list[tuple[Shape, float]]
"""Shapes to come, and how popular each is."""


@dataclass(slots=True)
class Machine:
    """What a node has left."""

    gpu_type: str
    rack: str
    cpu_milli: int
    memory_mib: int
    left: list[int]  # thousandths of each device

    def fits(self, shape: Shape) -> bool:
        """Return whether one more such task has room."""
        if self.cpu_milli < shape.cpu_milli or self.memory_mib < shape.memory_mib:
            return False
        if shape.gpu_types and self.gpu_type not in shape.gpu_types:
            return False
        if shape.gpus:
            return self.left.count(MILLI) >= shape.gpus
        return not shape.gpu_milli or max(self.left) >= shape.gpu_milli

    def options(self, shape: Shape) -> list[list[int]]:
        """Return the devices that one more task may get."""
        if shape.gpus:
            return [[i for i, left in enumerate(self.left) if left == MILLI][: shape.gpus]]
        if shape.gpu_milli:
            return [[i] for i, left in enumerate(self.left) if left >= shape.gpu_milli]
        return [[]]

    def book(self, shape: Shape, devices: Iterable[int], sign: int = 1) -> None:
        """Take what a task needs; with sign -1 give it back."""
        self.cpu_milli -= sign * shape.cpu_milli
        self.memory_mib -= sign * shape.memory_mib
        for device in devices:
            self.left[device] -= sign * (MILLI if shape.gpus else shape.gpu_milli)

    def fragments(self, workload: Workload) -> float:
        """Return what is free of the GPUs and of no use to the tasks to come, on average."""
        free, n_whole = sum(self.left), self.left.count(MILLI)
        total = 0.0
        for shape, popularity in workload:
            usable = 0
            if self.cpu_milli >= shape.cpu_milli and (
                not shape.gpu_types or self.gpu_type in shape.gpu_types
            ):
                if shape.gpu_milli:
                    usable = sum(left for left in self.left if left >= shape.gpu_milli)
                elif shape.gpus and n_whole >= shape.gpus:
                    usable = n_whole * MILLI
            total += popularity * (free - usable)
        return total


@dataclass(slots=True)
class Tenant:
    """A queue with what waits in it, and what it uses with all below it."""

    queue: Queue | None  # None: the root
    parent: "Tenant | None" = None
    children: "list[Tenant]" = field(default_factory=list)
    waiting: deque[JobSpec] = field(default_factory=deque)
    n_waiting: int = 0  # with all below
    used: Counter[str] = field(default_factory=Counter)

    def line(self) -> "list[Tenant]":
        """Return the queue and all above it."""
        return [self, *(self.parent.line() if self.parent is not None else [])]

    def turn(self, capacity: Counter[str]) -> tuple[bool, float]:
        """Return whether it borrows, and its dominant share per weight: less goes first."""
        assert self.queue is not None
        share = max(self.used[name] / amount for name, amount in capacity.items())
        borrows = any(self.used[name] >= most for name, most in self.queue.guaranteed)
        return borrows, share / self.queue.weight

    def has_room(self, amounts: Counter[str]) -> bool:
        """Return whether it stays within its limits."""
        limits = self.queue.limit if self.queue is not None else ()
        return all(self.used[name] + amounts[name] <= most for name, most in limits)


class PlainLoop:
    """The whole scheduler."""

    def __init__(self, machines: list[Machine], root: Tenant, workload: Workload) -> None:
        self._machines = machines
        self._root = root
        self._workload = workload
        self._gpu_types = {machine.gpu_type for machine in machines}
        self._capacity: Counter[str] = Counter()
        self._racks: dict[str, list[Machine]] = {}
        self._known: dict[tuple[object, ...], tuple[float, list[int]]] = {}
        for machine in machines:
            self._capacity.update(
                cpu_milli=machine.cpu_milli,
                memory_mib=machine.memory_mib,
                gpu_milli=sum(machine.left),
            )
            self._racks.setdefault(machine.rack, []).append(machine)

    @classmethod
    def of(
        cls,
        nodes: Iterable[Node],
        queues: Iterable[Queue],
        specs: Sequence[JobSpec],
        *,
        rack_label: str,
    ) -> Self:
        """Return a scheduler of empty nodes with the jobs waiting in their queues."""
        machines = [
            Machine(
                node.gpu_type,
                dict(node.labels)[rack_label],
                node.cpu_milli,
                node.memory_mib,
                [MILLI] * len(node.gpus),
            )
            for node in nodes
        ]
        root = Tenant(None)
        tenants: dict[QueueName, Tenant] = {}
        for queue in queues:
            tenant = Tenant(queue, parent=tenants.get(queue.parent, root))
            tenants[queue.name] = tenant
            assert tenant.parent is not None
            tenant.parent.children.append(tenant)
        counts: Counter[Shape] = Counter()
        for spec in specs:
            tenants[spec.queue].waiting.append(spec)
            for tenant in tenants[spec.queue].line():
                tenant.n_waiting += 1
            counts[spec.roles[0].shape] += spec.roles[0].count
        workload = [(shape, n / counts.total()) for shape, n in counts.items()]
        return cls(machines, root, workload)

    def placements_per_s(self, n_jobs: int) -> float:
        """Return how many tasks it places in a second, over the first so many jobs."""
        start_s = time.perf_counter()
        n_placed = sum(self._serve_next() for _ in range(n_jobs))
        return n_placed / (time.perf_counter() - start_s)

    def _serve_next(self) -> int:
        """Serve the job whose turn it is; return how many of its tasks were placed."""
        tenant = self._root
        while not tenant.waiting:
            waiting = [child for child in tenant.children if child.n_waiting]
            tenant = min(waiting, key=lambda child: child.turn(self._capacity))
        spec = tenant.waiting.popleft()
        line = tenant.line()
        for each in line:
            each.n_waiting -= 1
        placed = self._placed(spec, line)
        return len(placed)

    def _placed(self, spec: JobSpec, line: list[Tenant]) -> list[Machine]:
        role = spec.roles[0]
        for nodes in self._domains(spec):
            placed: list[tuple[Machine, list[int]]] = []
            for _ in range(role.count):
                found = self._best(role.shape, nodes, line)
                if found is None:
                    break
                self._book(role.shape, *found, line)
                placed.append(found)
            if len(placed) == role.count:
                return [machine for machine, _ in placed]
            for machine, devices in placed:
                self._book(role.shape, machine, devices, line, sign=-1)
        return []

    def _domains(self, spec: JobSpec) -> Iterable[list[Machine]]:
        """Yield where to look for places: for a gang the fullest rack that holds it first."""
        role = spec.roles[0]
        if role.count > 1:
            rooms = [
                (sum(self._copies(role.shape, m) for m in rack), i)
                for i, rack in enumerate(self._racks.values())
            ]
            enough = [room for room in rooms if room[0] >= role.count]
            if enough:
                yield list(self._racks.values())[min(enough)[1]]
        if role.count == 1 or not spec.topology_required:
            yield self._machines

    def _copies(self, shape: Shape, machine: Machine) -> int:
        """Return how many such tasks fit on a node."""
        if not machine.fits(shape):
            return 0
        copies = machine.cpu_milli // shape.cpu_milli
        copies = min(copies, machine.memory_mib // shape.memory_mib)
        if shape.gpus:
            copies = min(copies, machine.left.count(MILLI) // shape.gpus)
        if shape.gpu_milli:
            copies = min(copies, sum(left // shape.gpu_milli for left in machine.left))
        return copies

    def _best(
        self, shape: Shape, nodes: list[Machine], line: list[Tenant]
    ) -> tuple[Machine, list[int]] | None:
        """Return the node, and devices, where fragments grow least."""
        has_room = {
            gpu_type: all(tenant.has_room(amounts_of(shape, gpu_type)) for tenant in line)
            for gpu_type in self._gpu_types
        }
        best, best_score = None, float("-inf")
        for machine in nodes:
            if has_room[machine.gpu_type] and machine.fits(shape):
                score, devices = self._score(shape, machine)
                if score > best_score:
                    best, best_score = (machine, devices), score
        return best

    def _score(self, shape: Shape, machine: Machine) -> tuple[float, list[int]]:
        state = (shape, machine.gpu_type, machine.cpu_milli, *machine.left)
        known = self._known.get(state)
        if known is None:
            before, found = machine.fragments(self._workload), []
            for devices in machine.options(shape):
                machine.book(shape, devices)
                found.append((before - machine.fragments(self._workload), devices))
                machine.book(shape, devices, sign=-1)
            known = self._known[state] = max(found, key=lambda option: option[0])
        return known

    def _book(
        self,
        shape: Shape,
        machine: Machine,
        devices: list[int],
        line: list[Tenant],
        sign: int = 1,
    ) -> None:
        machine.book(shape, devices, sign)
        for tenant in line:
            for name, amount in amounts_of(shape, machine.gpu_type).items():
                tenant.used[name] += sign * amount


def amounts_of(shape: Shape, gpu_type: str) -> Counter[str]:
    """Return what one task takes of what queues are limited in."""
    gpu_milli = shape.total_gpu_milli
    return Counter(
        {
            "cpu_milli": shape.cpu_milli,
            "memory_mib": shape.memory_mib,
            "gpu_milli": gpu_milli,
            f"gpu_milli:{gpu_type}": gpu_milli,
        }
    )
