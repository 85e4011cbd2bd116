"""The daemon's configuration: one YAML file, every field with a default.

`load_config` reads it and reports mistakes as `file:line: field: rule`. Units are in names.
Whether an address may be served as configured is left to `daemon.security`.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationInfo,
    model_validator,
)

from scheduler.core.errors import InvalidInput
from scheduler.core.model import (
    DEFAULT_LEVELS,
    HOST,
    MILLI,
    NVLINK,
    Gpu,
    Level,
    Levels,
    Node,
    NodeName,
    Taint,
    TaintEffect,
)
from scheduler.quantities import MOST
from scheduler.yaml_source import InvalidSource, Problem, load_yaml_with_lines, validated

DEFAULT_LISTEN = "127.0.0.1:7070"
DEFAULT_WEB_LISTEN = "127.0.0.1:7071"

_MIB_PER_GIB = 1024
_MAX_PORT = 65_535


def _host_and_port(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > _MAX_PORT:
        raise ValueError(f"must be HOST:PORT, not {value!r}")
    return value


def _from_file(value: Path, info: ValidationInfo) -> Path:
    """Read `~` and paths relative to the configuration file."""
    folder: Path = (info.context or {}).get("folder", Path())
    return (folder / value.expanduser()).absolute()


_Named = TypeVar("_Named", str, str | Mapping[str, float])


def _known_policy(value: str) -> str:
    from policies.registry import policy_named  # numpy comes with it: only if there is a config

    return _known(policy_named, value)


def _known_score(value: str | Mapping[str, float]) -> str | Mapping[str, float]:
    from policies.registry import score_named

    return _known(score_named, value)


def _known(find: Callable[[_Named], object], value: _Named) -> _Named:
    try:
        find(value)
    except InvalidInput as error:
        raise ValueError(error.rule) from error
    return value


def _device_ranges(value: str) -> str:
    if value and re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", value) is None:
        raise ValueError(f"must be ranges of linked GPUs like 0-3,4-7, not {value!r}")
    return value


def _cliques(ranges: str) -> tuple[tuple[int, ...], ...]:
    """Return the devices of each range of `0-3,4-7`."""
    ends = [text.partition("-") for text in ranges.split(",") if text]
    return tuple(tuple(range(int(a), int(b or a) + 1)) for a, _, b in ends)


HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
"""`HOST:PORT`; port 0 takes a free one, told in `daemon.json`."""
FilePath = Annotated[Path, AfterValidator(_from_file)]
"""A path; a relative one starts at the folder of the configuration file."""
Name = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$", max_length=63)
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class TaintConfig(_Section):
    """A mark on a node that keeps tasks away unless they tolerate it."""

    key: Name
    value: str = ""
    effect: TaintEffect = TaintEffect.NO_SCHEDULE


class NodeConfig(_Section):
    """One declared node, or `count` alike named `NAME-0`, `NAME-1`, ..."""

    name: Name
    count: Annotated[int, Field(ge=1, le=100_000)] | None = None
    cpus: Annotated[float, Field(gt=0.0, le=MOST // MILLI)] = 1.0
    memory_mib: Annotated[int, Field(ge=0, le=MOST)] = 4 * _MIB_PER_GIB
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    gpu_type: str = ""
    gpu_memory_mib: Annotated[int, Field(ge=0, le=MOST)] = 0
    gpu_uuids: tuple[str, ...] = ()  # of real devices; empty: logical ones
    labels: Mapping[str, str] = {}
    taints: tuple[TaintConfig, ...] = ()
    address: str = "127.0.0.1"
    pool: str = ""  # of interchangeable nodes; empty: none
    price_usd_per_h: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0  # of the node
    nvlink: Annotated[str, AfterValidator(_device_ranges)] = ""  # "0-3,4-7"; empty: all linked

    @model_validator(mode="after")
    def _gpus_agree(self) -> Self:
        if self.gpu_uuids and (self.count is not None or len(self.gpu_uuids) != self.gpus):
            raise ValueError("gpu_uuids must name each GPU of one node")
        if self.gpus and not self.gpu_type:
            raise ValueError("gpu_type must be given for a node with GPUs")
        devices = [device for clique in _cliques(self.nvlink) for device in clique]
        if len(set(devices)) < len(devices) or any(d >= self.gpus for d in devices):
            raise ValueError(f"nvlink must name GPUs from 0 to {self.gpus - 1}, each once")
        return self

    def nodes(self) -> list[Node]:
        """Return the nodes that this declares."""
        if self.count is None:
            return [self._node(self.name)]
        return [self._node(f"{self.name}-{index}") for index in range(self.count)]

    def _node(self, name: str) -> Node:
        uuids = self.gpu_uuids or [f"logical-{name}-{index}" for index in range(self.gpus)]
        return Node(
            name=NodeName(name),
            cpu_milli=round(self.cpus * MILLI),
            memory_mib=self.memory_mib,
            gpu_type=self.gpu_type,
            gpus=tuple(Gpu(uuid=uuid, memory_mib=self.gpu_memory_mib) for uuid in uuids),
            labels=tuple(sorted(self.labels.items())),
            taints=tuple(
                Taint(key=taint.key, value=taint.value, effect=taint.effect)
                for taint in self.taints
            ),
            address=self.address,
            pool=self.pool,
            price_usd_per_h=self.price_usd_per_h,
            nvlink=_cliques(self.nvlink),
        )


class LevelConfig(_Section):
    """A level of the topology above the node."""

    name: Name  # as jobs name it
    label: str  # of nodes; its values are the domains

    @model_validator(mode="after")
    def _is_no_level_of_its_own(self) -> Self:
        if self.name in {HOST, NVLINK}:
            raise ValueError(f"name: {self.name} is there always, below the levels named here")
        return self


class DataConfig(_Section):
    """Where data sets lie, for the score `locality`."""

    # By level of the topology, `host` included: how fast the way into a domain is.
    gbit_per_s: Mapping[str, PositiveFloat] = {}
    # By data set, the places of its parts, which are of equal size: level to domain.
    sets: Mapping[str, tuple[Mapping[str, str], ...]] = {}


class LocalConfig(_Section):
    """How tasks run as processes of this machine."""

    unix_users: Mapping[str, str] = {}  # submitter to the user its tasks run as; "*": the rest
    log_max_mib: PositiveInt = 64  # of one log file before it is rotated
    log_files: PositiveInt = 4  # kept per stream, the current one included
    max_grace_s: PositiveFloat = 600.0  # bounds what a job may ask for


class LimitsConfig(_Section):
    """What one request may ask for; `daemon.limits` has the finer ones."""

    max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=1 << 30)] = 4 << 20
    max_tasks_per_job: PositiveInt = 10_000
    max_array_size: PositiveInt = 10_000
    max_page_size: PositiveInt = 1_000
    requests_per_s: NonNegativeFloat = 500.0  # of one caller who is no admin; 0: any number
    request_burst: PositiveInt = 2_000  # so many at once, after a pause


class SecurityConfig(_Section):
    """Who may talk to the daemon, and as whom."""

    tls_cert: FilePath | None = None
    tls_key: FilePath | None = None
    client_ca: FilePath | None = None  # client certificates signed by it are required
    token_file: FilePath | None = None
    admins: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()  # may report what GPUs do, beside admins
    local_user: str = ""  # the caller over plain loopback; empty: who runs the daemon

    @property
    def identifies_callers(self) -> bool:
        """Whether every caller must show who they are; else all are the local user."""
        return self.token_file is not None or self.client_ca is not None


class RetentionConfig(_Section):
    """How long the past is kept."""

    finished_days: PositiveFloat = 30.0  # finished jobs in lists
    outcomes_days: PositiveFloat = 7.0  # request ids, and outcomes that dependencies name
    events_days: PositiveFloat = 7.0  # journalled events that a dump has made redundant


class BackfillConfig(_Section):
    """Who may start before a gang that comes first and fits nowhere yet."""

    kind: Literal["none", "easy", "conservative"] = "easy"
    depth: Annotated[int, Field(ge=1, le=64)] = 8  # gangs that conservative keeps places for
    patience_s: PositiveFloat = 600.0  # then places are kept for it without known ends, too
    starvation_s: PositiveFloat = 86_400.0  # then nobody passes it on its places any more


class PriorityClassConfig(_Section):
    """A named priority, and what comes with it."""

    value: Annotated[int, Field(ge=-1_000_000_000, le=1_000_000_000)]
    may_preempt: bool = True  # its jobs stop others, where policy and queue allow it
    preemptible: bool | None = None  # whether they may be stopped; null: as each job says


ClassName = Annotated[Name, StringConstraints(pattern=r"^[A-Za-z]")]
"""Begins with a letter: `--priority` takes numbers and names."""


class SharesConfig(_Section):
    """How policies of shares weigh things, and how long they may think."""

    solve_limit_s: PositiveFloat = 5.0  # of a solve by simplex; then the last shares hold on
    fair_within: Annotated[float, Field(ge=1.0, le=100.0)] = 1.3
    """`lepton`: a job should take at most so many times as long as on its equal share."""
    cost: Annotated[float, Field(ge=0.0, le=100.0)] = 0.1
    """`lepton`: an hour on GPUs of the mean price, in hours of progress at the fair speed."""


class DaemonConfig(_Section):
    """Everything `lepton daemon` can be told."""

    listen: HostAndPort = DEFAULT_LISTEN
    web_listen: HostAndPort | None = DEFAULT_WEB_LISTEN  # metrics and health; null: off
    folder: FilePath = Field(default_factory=lambda: platformdirs.user_state_path("lepton"))
    policy: Annotated[str, AfterValidator(_known_policy)] = "lepton"
    queue_policies: tuple[Annotated[str, AfterValidator(_known_policy)], ...] = ()
    """Policies from outside that queues may name; they may name Lepton's own anyway."""
    # Where tasks go best: the name of a score, or several with their weights.
    score: Annotated[str | Mapping[str, float], AfterValidator(_known_score)] = "best-fit"
    backfill: BackfillConfig = BackfillConfig()
    data: DataConfig = DataConfig()
    defragment: bool = True  # move jobs that keep checkpoints when that lets a wide one start
    topology: tuple[LevelConfig, ...] = tuple(  # outermost first; nodes are the level `host`
        LevelConfig(name=level.name, label=level.label) for level in DEFAULT_LEVELS
    )
    priority_classes: Mapping[ClassName, PriorityClassConfig] = {}
    round_s: Annotated[float, Field(ge=10.0, le=86_400.0)] = 360.0  # of policies with turns
    shares: SharesConfig = SharesConfig()
    # What queues used counts half after so long (Slurm's default is 7d); 0: it does not count.
    usage_half_life_s: Annotated[float, Field(ge=0.0, le=366 * 86_400.0)] = 0.0
    cycle_s: PositiveFloat = 10.0  # the longest time between two decisions
    debounce_s: Annotated[float, Field(ge=0.0, le=10.0)] = 0.01
    dump_every_events: PositiveInt = 20_000
    agent_timeout_s: NonNegativeFloat = 60.0  # of silence, then its node is down; 0: never
    nodes: tuple[NodeConfig, ...] = ()  # empty: this machine, as discovered
    local: LocalConfig = LocalConfig()
    limits: LimitsConfig = LimitsConfig()
    security: SecurityConfig = SecurityConfig()
    retention: RetentionConfig = RetentionConfig()

    @model_validator(mode="after")
    def _node_names_differ(self) -> Self:
        counts = Counter(node.name for node in self.declared_nodes())
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"nodes: {twice[0]} is declared twice")
        return self

    @model_validator(mode="after")
    def _levels_differ(self) -> Self:
        counts = Counter(level.name for level in self.topology)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"topology: {twice[0]} is named twice")
        return self

    @model_validator(mode="after")
    def _data_is_somewhere(self) -> Self:
        names = [*(level.name for level in self.topology), HOST]
        places = {
            level for parts in self.data.sets.values() for part in parts for level in part
        }
        for level in sorted({*self.data.gbit_per_s, *places}):
            if level not in names:
                raise ValueError(
                    f"data: {level} is no level; must be one of {', '.join(names)}"
                )
        return self

    def levels(self) -> Levels:
        """Return the levels of the topology above the node, outermost first."""
        return tuple(Level(name=level.name, label=level.label) for level in self.topology)

    def declared_nodes(self) -> list[Node]:
        """Return every declared node, in the order of the file."""
        return [node for declared in self.nodes for node in declared.nodes()]


def load_config(path: Path | None) -> DaemonConfig:
    """Read a configuration file; None gives the defaults. Raises `InvalidSource`."""
    if path is None:
        return DaemonConfig()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        rule = f"cannot be read: {error}"
        raise InvalidSource([Problem(source=str(path), line=0, field="", rule=rule)]) from error
    return parse_config(text, str(path), folder=path.parent)


def parse_config(text: str, source: str, *, folder: Path) -> DaemonConfig:
    """Read a configuration; relative paths in it start at `folder`."""
    data, lines = load_yaml_with_lines(text, source)
    context: dict[str, Any] = {"folder": folder}
    return validated(DaemonConfig, data, lines=lines, context=context)
