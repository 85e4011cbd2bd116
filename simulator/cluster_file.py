"""A cluster as people write it: pools of nodes and queues, in one YAML file.

Mistakes are told as `file:line: field: rule`. A pool takes the fields of a node of the daemon's
configuration and what a simulation needs besides: racks, the spot market, launches, power.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    model_validator,
)

from scheduler.config import Name, NodeConfig
from scheduler.core.model import Amounts, Node, Queue, QueueName, QueuePreemption
from scheduler.quantities import parse_cpu_milli, parse_duration_s, parse_memory_mib
from scheduler.yaml_source import InvalidSource, Problem, load_yaml_with_lines, validated
from simulator.cluster import Pool, PoolChange, Shortage, SimulatedCluster, node_of_pool
from simulator.workload import FOREVER

_RESOURCES = {"cpus": "cpu_milli", "memory": "memory_mib", "gpus": "gpu_milli"}
_OF_TYPE = "gpus:"


def _amounts(value: object) -> Amounts:
    """Read `{gpus: 16, "gpus:A100": 8, cpus: 64, memory: 512Gi}`."""
    if not isinstance(value, Mapping):
        rule = "must be a mapping such as {gpus: 16, cpus: 64, memory: 512Gi}"
        raise ValueError(rule)  # noqa: TRY004  # pydantic tells ValueErrors only
    amounts = {}
    for name, amount in value.items():
        is_typed = str(name).startswith(_OF_TYPE) and len(str(name)) > len(_OF_TYPE)
        if name not in _RESOURCES and not is_typed:
            raise ValueError(f"knows no {name!r}; write cpus, memory, gpus or gpus:TYPE")
        parse = parse_memory_mib if name == "memory" else parse_cpu_milli
        wire = str(name).replace(_OF_TYPE, "gpu_milli:") if is_typed else _RESOURCES[name]
        amounts[wire] = parse(amount)
    return tuple(sorted(amounts.items()))


def _duration(value: object) -> object:
    """Read `90s` or `3h`; plain numbers are seconds, as the field's name says."""
    return parse_duration_s(value) if isinstance(value, str) else value


AmountsField = Annotated[Amounts, BeforeValidator(_amounts)]
Seconds = Annotated[float, BeforeValidator(_duration), Field(ge=0.0, allow_inf_nan=False)]
Watts = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
QueueNameField = Annotated[Name, AfterValidator(QueueName)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ChangeConfig(_Section):
    """From a moment on the pool is to have so many nodes."""

    at_s: Seconds
    count: NonNegativeInt


class ShortageConfig(_Section):
    """Between two moments nobody gets a new machine."""

    from_s: Seconds
    until_s: Seconds | None = None  # none: for ever

    @model_validator(mode="after")
    def _is_ahead(self) -> Self:
        if self.until_s is not None and self.until_s <= self.from_s:
            raise ValueError("until_s must be after from_s")
        return self


class PoolConfig(NodeConfig):
    """Nodes that are alike, `NAME-0` to `NAME-(count - 1)`."""

    count: Annotated[int, Field(ge=0, le=100_000)] = 1
    spot: bool = False
    launch_s: Seconds = 0.0
    most: NonNegativeInt | None = None
    changes: tuple[ChangeConfig, ...] = ()
    shortages: tuple[ShortageConfig, ...] = ()
    nodes_per_rack: NonNegativeInt = 0
    node_w: Watts = 0.0
    gpu_idle_w: Annotated[Watts, Field(gt=0.0)] | None = None
    gpu_busy_w: Annotated[Watts, Field(gt=0.0)] | None = None

    @model_validator(mode="after")
    def _pool_agrees(self) -> Self:
        if self.pool not in {"", self.name}:
            raise ValueError("pool must not be given: the pool is named by its name")
        if self.gpu_uuids:
            raise ValueError("gpu_uuids must not be given for a pool")
        if (self.gpu_idle_w is None) != (self.gpu_busy_w is None):
            raise ValueError("gpu_idle_w and gpu_busy_w must be given together")
        if self.most is not None and self.most < self.count:
            raise ValueError(f"most must be at least count, {self.count}")
        return self

    def as_pool(self) -> Pool:
        """Return the pool."""
        like = self._like()
        nodes = tuple(
            node_of_pool(like, self.name, i, nodes_per_rack=self.nodes_per_rack)
            for i in range(self.count)
        )
        return Pool(
            name=self.name,
            nodes=nodes,
            is_spot=self.spot,
            launch_s=self.launch_s,
            most=self.most,
            changes=tuple(PoolChange(at_s=c.at_s, count=c.count) for c in self.changes),
            shortages=tuple(
                Shortage(from_s=s.from_s, until_s=FOREVER if s.until_s is None else s.until_s)
                for s in self.shortages
            ),
            nodes_per_rack=self.nodes_per_rack,
            template=like,
            node_w=self.node_w,
            gpu_idle_w=self.gpu_idle_w,
            gpu_busy_w=self.gpu_busy_w,
        )

    def _like(self) -> Node:
        return self.model_copy(update={"count": None}).nodes()[0]


class QueueConfig(_Section):
    """A queue; see `Queue`."""

    name: QueueNameField
    parent: str = ""
    weight: PositiveFloat = 1.0
    guaranteed: AmountsField = ()
    limit: AmountsField = ()
    borrow_limit: AmountsField = ()
    lends: bool = True
    default_priority: int = 0
    max_priority: int | None = None
    max_jobs: NonNegativeInt = 0
    may_preempt: QueuePreemption = QueuePreemption.ANYWHERE

    def as_queue(self) -> Queue:
        """Return the queue."""
        return Queue(
            name=QueueName(self.name),
            parent=QueueName(self.parent),
            weight=self.weight,
            guaranteed=self.guaranteed,
            limit=self.limit,
            borrow_limit=self.borrow_limit,
            is_lender=self.lends,
            default_priority=self.default_priority,
            max_priority=self.max_priority,
            max_jobs=self.max_jobs,
            may_preempt=self.may_preempt,
        )


class ClusterConfig(_Section):
    """The whole file."""

    pools: Annotated[tuple[PoolConfig, ...], Field(min_length=1)]
    queues: tuple[QueueConfig, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for field, names in (
            ("pools", [pool.name for pool in self.pools]),
            ("queues", [queue.name for queue in self.queues]),
        ):
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise ValueError(f"{field}: {twice[0]} is declared twice")
        return self


def load_cluster(path: Path) -> SimulatedCluster:
    """Read a cluster file. Raises `InvalidSource`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        rule = f"cannot be read: {error}"
        raise InvalidSource([Problem(source=str(path), line=0, field="", rule=rule)]) from error
    return parse_cluster(text, str(path))


def parse_cluster(text: str, source: str) -> SimulatedCluster:
    """Read a cluster from text; `source` is how mistakes name it."""
    data, lines = load_yaml_with_lines(text, source)
    config = validated(ClusterConfig, data, lines=lines)
    return SimulatedCluster(
        pools=tuple(pool.as_pool() for pool in config.pools),
        queues=_parents_first([queue.as_queue() for queue in config.queues]),
    )


def _parents_first(queues: list[Queue]) -> tuple[Queue, ...]:
    """Return the queues, each after its parent, else as they stand in the file."""
    ordered: list[Queue] = []
    while ready := [q for q in queues if q.parent not in {other.name for other in queues}]:
        ordered += ready
        queues = [queue for queue in queues if queue not in ready]
    return (*ordered, *queues)  # those that are left are in a circle, which is refused later
