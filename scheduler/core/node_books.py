"""The books of one node in plain integers: numpy is slow on a handful of numbers.

Whoever books on nodes, one task after another, opens them for these, and writes them back to
the columns before somebody reads those: the state, and every `Space`. They book as `capacity`
does.
"""

from collections.abc import Sequence

from scheduler.core import capacity
from scheduler.core.capacity import Devices
from scheduler.core.model import MILLI, Shape
from scheduler.core.node_columns import NodeColumns, memory_of_fraction_mib

WITHOUT_END = 1 << 40
"""Copies of a shape that asks for nothing."""


class NodeBooks:
    """What one node has left, and what is taken of its devices."""

    __slots__ = (
        "cpu_milli",
        "device_free",
        "device_memory_free",
        "device_memory_mib",
        "device_used",
        "is_healthy",
        "is_open",
        "kind",
        "kinds",
        "memory_mib",
        "most_milli",
        "n_by_width",
        "n_gpus",
        "n_tasks",
        "n_whole",
        "node",
    )

    def __init__(self, nodes: NodeColumns, row: int) -> None:
        """Read the books of a row."""
        self.node = nodes.nodes[row]
        self.kinds = nodes.kinds
        self.kind = int(nodes.kind[row])
        self.n_gpus = int(nodes.n_gpus[row])
        is_closed = nodes.is_cordoned[row] or nodes.is_draining[row] or nodes.is_removed[row]
        self.is_open = bool(nodes.is_up[row] and not is_closed)  # to new tasks
        self.is_healthy: list[bool] = nodes.is_healthy[row].tolist()
        self.device_memory_mib = int(nodes.device_memory_mib[row])
        self.read(
            nodes.free[row].tolist(),
            nodes.device_free[row].tolist(),
            nodes.device_used[row].tolist(),
            nodes.device_memory_free[row].tolist(),
            nodes.n_tasks.item(row),
            nodes.n_by_width[row].tolist(),
        )

    def read(
        self,
        free: list[int],
        device_free: list[int],
        device_used: list[int],
        device_memory_free: list[int],
        n_tasks: int,
        n_by_width: list[int],
    ) -> None:
        """Take over what is free and taken, as it is in a row of the columns."""
        self.cpu_milli: int
        self.memory_mib: int
        self.n_whole: int  # devices of which nothing is taken
        self.most_milli: int  # that one device can still give
        self.cpu_milli, self.memory_mib, self.n_whole, self.most_milli = free
        self.device_free = device_free
        self.device_used = device_used
        self.device_memory_free = device_memory_free
        self.n_tasks = n_tasks
        self.n_by_width = n_by_width

    def copy(self) -> "NodeBooks":
        """Return books that go their own way."""
        other = object.__new__(NodeBooks)
        other.node, other.kinds, other.kind = self.node, self.kinds, self.kind
        other.n_gpus, other.is_healthy = self.n_gpus, self.is_healthy
        other.is_open = self.is_open
        other.device_memory_mib = self.device_memory_mib
        other.cpu_milli, other.memory_mib = self.cpu_milli, self.memory_mib
        other.n_whole, other.most_milli = self.n_whole, self.most_milli
        other.device_free = self.device_free.copy()
        other.device_used = self.device_used.copy()
        other.device_memory_free = self.device_memory_free.copy()
        other.n_tasks, other.n_by_width = self.n_tasks, self.n_by_width.copy()
        return other

    @property
    def free(self) -> tuple[int, int, int, int]:
        """What is free, in the columns of `NodeColumns.free`."""
        return self.cpu_milli, self.memory_mib, self.n_whole, self.most_milli

    # What fits

    def has_fraction(self, shape: Shape) -> bool:
        """Return whether one device has both the fraction and the memory that goes with it."""
        milli, memory_mib = (
            shape.gpu_milli,
            memory_of_fraction_mib(shape, self.device_memory_mib),
        )
        for left, left_mib in zip(self.device_free, self.device_memory_free, strict=True):
            if left >= milli and left_mib >= memory_mib:
                return True
        return False

    def has_fraction_on(self, device: int, shape: Shape) -> bool:
        """Return whether the node has room for the fraction on that device."""
        return (
            self.cpu_milli >= shape.cpu_milli
            and self.memory_mib >= shape.memory_mib
            and device < len(self.node.gpus)
            and self.device_free[device] >= shape.gpu_milli
            and self.device_memory_free[device]
            >= memory_of_fraction_mib(shape, self.device_memory_mib)
        )

    def can_take(self, shape: Shape, devices: Devices) -> bool:
        """Return whether the node has what a task needs, on exactly these devices."""
        if self.cpu_milli < shape.cpu_milli or self.memory_mib < shape.memory_mib:
            return False
        if len(devices) != (shape.gpus or (1 if shape.gpu_milli else 0)):
            return False
        if len(set(devices)) < len(devices):
            return False
        milli, memory_mib = capacity.per_device(shape, self.device_memory_mib)
        left, memory_free, n_gpus = self.device_free, self.device_memory_free, self.n_gpus
        for device in devices:
            if not 0 <= device < n_gpus or left[device] < milli:
                return False
            if memory_free[device] < memory_mib:
                return False
        return True

    def copies(self, shape: Shape) -> int:
        """Return how many more such tasks have room."""
        copies = WITHOUT_END
        if shape.cpu_milli:
            copies = min(copies, self.cpu_milli // shape.cpu_milli)
        if shape.memory_mib:
            copies = min(copies, self.memory_mib // shape.memory_mib)
        if shape.gpus:
            copies = min(copies, self.n_whole // shape.gpus)
        if shape.gpu_milli:
            milli = shape.gpu_milli
            memory_mib = memory_of_fraction_mib(shape, self.device_memory_mib)
            n_fractions = 0
            for left, left_mib in zip(self.device_free, self.device_memory_free, strict=True):
                n_here = left // milli
                n_in_memory = max(left_mib, 0) // memory_mib if memory_mib else n_here
                n_fractions += min(n_here, n_in_memory)
            copies = min(copies, n_fractions)
        return copies

    def choose_devices(self, shape: Shape, among: Devices | None = None) -> Devices | None:
        """Return the devices that one more task gets, as `capacity.choose_devices` does."""
        return capacity.chosen(
            self.node,
            shape,
            milli=self.device_free,
            mib=self.device_memory_free,
            device_memory_mib=self.device_memory_mib,
            among=among,
        )

    # Booking

    def take(self, shape: Shape, devices: Devices) -> None:
        """Book one task."""
        self._book(shape, devices, 1)

    def give(self, shape: Shape, devices: Devices) -> None:
        """Undo `take`."""
        self._book(shape, devices, -1)

    def _book(self, shape: Shape, devices: Devices, sign: int) -> None:
        self.cpu_milli -= sign * shape.cpu_milli
        self.memory_mib -= sign * shape.memory_mib
        self.n_tasks += sign
        if devices:
            milli, memory_mib = capacity.per_device(shape, self.device_memory_mib)
            milli, memory_mib = sign * milli, sign * memory_mib
            self.n_by_width[capacity.width_of(shape)] += sign
            used, memory_free = self.device_used, self.device_memory_free
            left, is_healthy = self.device_free, self.is_healthy
            for device in devices:
                used[device] = taken = used[device] + milli
                memory_free[device] -= memory_mib
                if is_healthy[device]:
                    left[device] = MILLI - taken if taken < MILLI else 0
            self.n_whole = left.count(MILLI)
            self.most_milli = MILLI if self.n_whole else max(left)

    def lower_to(self, other: "NodeBooks") -> None:
        """Offer at most what the other books of the node offer."""
        self.cpu_milli = min(self.cpu_milli, other.cpu_milli)
        self.memory_mib = min(self.memory_mib, other.memory_mib)
        used = zip(self.device_used, other.device_used, strict=True)
        self.device_used = [max(theirs, mine) for mine, theirs in used]
        left = zip(self.device_memory_free, other.device_memory_free, strict=True)
        self.device_memory_free = [min(theirs, mine) for mine, theirs in left]
        self._count()

    def _count(self) -> None:
        """Derive what the devices can still give from what is taken and healthy."""
        devices = zip(self.is_healthy, self.device_used, strict=True)
        left = [MILLI - taken if ok and taken < MILLI else 0 for ok, taken in devices]
        self.device_free = left
        self.n_whole = left.count(MILLI)
        self.most_milli = max(left, default=0)


def read_again(books: Sequence[NodeBooks], nodes: NodeColumns, rows: Sequence[int]) -> None:
    """Take over what is free and taken on many nodes, each in the row of its books."""
    columns = (
        nodes.free[rows].tolist(),
        nodes.device_free[rows].tolist(),
        nodes.device_used[rows].tolist(),
        nodes.device_memory_free[rows].tolist(),
        nodes.n_tasks[rows].tolist(),
        nodes.n_by_width[rows].tolist(),
    )
    for each, *values in zip(books, *columns, strict=True):
        each.read(*values)


def write_back(books: Sequence[NodeBooks], nodes: NodeColumns, rows: Sequence[int]) -> None:
    """Write the books of many nodes to the columns, each to its row."""
    nodes.free[rows] = [b.free for b in books]
    nodes.device_free[rows] = [b.device_free for b in books]
    nodes.device_used[rows] = [b.device_used for b in books]
    nodes.device_memory_free[rows] = [b.device_memory_free for b in books]
    nodes.n_tasks[rows] = [b.n_tasks for b in books]
    nodes.n_by_width[rows] = [b.n_by_width for b in books]
