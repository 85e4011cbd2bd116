"""The fields of a job file: what may stand there, how it is read, what it means.

Pydantic models with the amounts that people write; `job_file` puts files of them together.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from scheduler.quantities import (
    MOST,
    Priority,
    parse_cpu_milli,
    parse_duration_s,
    parse_gpus,
    parse_memory_mib,
    parse_priority,
)
from scheduler.wire import cluster_pb2 as pb

_Kind = Literal["ok", "any", "not_ok"]
_KINDS: dict[_Kind, pb.DependencyKind.ValueType] = {
    "ok": pb.DEPENDENCY_KIND_AFTER_OK,
    "any": pb.DEPENDENCY_KIND_AFTER_ANY,
    "not_ok": pb.DEPENDENCY_KIND_AFTER_NOT_OK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """A condition on another job, which is named by its id or, inside a file, by its name."""

    on: str
    kind: _Kind = "ok"

    def to_dependency(self, job_id: str) -> pb.Dependency:
        """Return the condition, now that the other job has an id."""
        return pb.Dependency(on=job_id, kind=_KINDS[self.kind])


def parse_after(text: str) -> tuple[After, ...]:
    """Return the conditions in `17`, `ok:17,any:18` or Slurm's `afterok:17:18`."""
    found: list[After] = []
    for condition in text.split(","):
        kind, *names = condition.strip().split(":")
        if not names:
            kind, names = "ok", [kind]
        word = kind.removeprefix("after").removeprefix("_").replace("notok", "not_ok")
        if word not in _KINDS or not all(names):
            raise ValueError(f"{condition!r}: write JOB, ok:JOB, any:JOB or not_ok:JOB")
        found.extend(After(on=name, kind=word) for name in names)
    return tuple(found)


def parse_moment_s(text: str) -> float:
    """Return epoch seconds for an ISO date and time, local unless it names its zone."""
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        raise ValueError(f"{text!r} is not a moment: write 2026-03-01T18:00") from None


def _command(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty")
        return ("sh", "-c", value)
    if not isinstance(value, list) or not value:
        raise ValueError("must be a text for sh, or a list of arguments")
    return tuple(_text(part) for part in value)


def _text(value: object) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{json.dumps(value, default=str)} must be a text: put it in quotes")


def _texts(value: object) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {_text(key): _text(item) for key, item in value.items()}
    raise ValueError("must be a mapping of names to texts")


def _list(value: object) -> list[str]:
    return [_text(part) for part in (value if isinstance(value, list) else [value])]


def _after(value: object) -> tuple[After, ...]:
    return tuple(after for text in _list(value) for after in parse_after(text))


_DURATION_SCHEMA = {"type": "string", "examples": ["90m", "1h30m", "1:30:00"]}
_MEMORY_SCHEMA = {"type": "string", "examples": ["512Mi", "4Gi"]}
_MAPPING_SCHEMA = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
_LIST_SCHEMA = {"type": ["string", "array"], "items": {"type": "string"}}

Duration = Annotated[float, BeforeValidator(parse_duration_s), WithJsonSchema(_DURATION_SCHEMA)]
Memory = Annotated[int, BeforeValidator(parse_memory_mib), WithJsonSchema(_MEMORY_SCHEMA)]
Cpus = Annotated[
    int,
    BeforeValidator(parse_cpu_milli),
    WithJsonSchema({"type": ["number", "string"], "examples": [2, 0.5, "500m"]}),
]
Gpus = Annotated[
    tuple[int, int],
    BeforeValidator(parse_gpus),
    WithJsonSchema({"type": "number", "minimum": 0, "examples": [2, 0.5]}),
]
Command = Annotated[
    tuple[str, ...],
    BeforeValidator(_command),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": ["string", "number"]}}),
]
Texts = Annotated[dict[str, str], BeforeValidator(_texts), WithJsonSchema(_MAPPING_SCHEMA)]
Words = Annotated[list[str], BeforeValidator(_list), WithJsonSchema(_LIST_SCHEMA)]
Name = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
Count = Annotated[int, Field(ge=0, le=MOST)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TolerationEntry(_Entry):
    """Permission to run despite a taint."""

    key: Name
    value: Annotated[str | None, Field(description="absent: any value of the key")] = None


class TaskFields(_Entry):
    """What the tasks of one role run, and what each of them asks of its node."""

    command: Annotated[
        Command | None, Field(description="a text for `sh -c`, or a list of arguments")
    ] = None
    env: Annotated[Texts, Field(description="environment variables")] = Field(
        default_factory=dict
    )
    working_dir: Annotated[
        str, Field(description="relative to this file; absent: the task's own folder")
    ] = ""
    image: Annotated[str, Field(description="for executors that run containers")] = ""
    tasks: Annotated[int | None, Field(ge=1, le=MOST, description="how many; default 1")] = None
    min_tasks: Annotated[
        int | None, Field(ge=1, le=MOST, description="start with at least these; default: all")
    ] = None
    max_tasks: Annotated[
        int | None,
        Field(ge=1, le=MOST, description="the most an update may ask for, or it grows to"),
    ] = None
    cpus: Annotated[Cpus | None, Field(description="per task; default 1")] = None
    memory: Annotated[Memory, Field(description="per task")] = 0
    gpus: Annotated[
        Gpus, Field(description="per task: whole ones, or a fraction of one as 0.5")
    ] = (0, 0)
    gpu_memory: Annotated[
        Memory, Field(description="of each GPU; of a fraction: what it takes")
    ] = 0
    gpu_types: Annotated[Words, Field(description="any of these")] = Field(default_factory=list)
    node_labels: Annotated[Texts, Field(description="all of these")] = Field(
        default_factory=dict
    )
    tolerations: list[TolerationEntry] = Field(default_factory=list)


class RoleEntry(TaskFields):
    """A group of identical tasks of a job."""

    name: Annotated[Name, Field(description="worker, ps, driver, replica, ...")]


Moment = Annotated[
    float,
    BeforeValidator(lambda value: parse_moment_s(_text(value))),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class SharedThroughputEntry(_Entry):
    """How fast a job is beside another on the same GPUs."""

    gpu_type: Annotated[str, Field(min_length=1)]
    beside: Annotated[str, Field(min_length=1, description="the profile of the other job")]
    per_s: Annotated[float, Field(gt=0.0, description="in units of `throughputs`")]


class JobEntry(TaskFields):
    """A job. One with a single role may put the role's fields here instead of in `roles`."""

    name: Annotated[
        Name | None, Field(description="default: the file's name; others refer to it")
    ] = None
    kind: Literal["training", "inference", "batch"] = "training"
    queue: Name = "default"
    priority: Annotated[
        Priority,
        BeforeValidator(parse_priority),
        WithJsonSchema({"type": ["integer", "string"], "examples": [10, "high"]}),
        Field(description="a number, or the name of a class of the daemon's configuration"),
    ] = Priority()
    preemptible: bool | None = None
    checkpoint_interval: Annotated[
        Duration, Field(description="how often it saves its work; 0: never")
    ] = 0.0
    grace: Annotated[Duration | None, Field(description="from TERM to KILL; default 30s")] = (
        None
    )
    retries: Annotated[Count, Field(description="starts again after failing so often")] = 0
    backoff: Annotated[
        Duration | None, Field(description="before the first retry, then doubled; default 10s")
    ] = None
    time_limit: Annotated[
        Duration, Field(description="of running; after it the job is stopped; 0: none")
    ] = 0.0
    expect: Annotated[
        Duration,
        Field(description="how long it should run; helps it to start early; 0: unknown"),
    ] = 0.0
    expect_spread: Annotated[
        float, Field(ge=0.0, le=10.0, description="relative standard deviation of `expect`")
    ] = 0.0
    min_runtime: Annotated[
        Duration, Field(description="is not preempted before it has run so long")
    ] = 0.0
    weight: Annotated[
        float, Field(gt=0.0, description="of its share of time beside other jobs")
    ] = 1.0
    throughputs: Annotated[
        dict[str, Annotated[float, Field(gt=0.0)]],
        Field(
            description="work per second of all tasks together by GPU type; it cannot run on"
            " types that are not named; none: all types are alike"
        ),
    ] = Field(default_factory=dict)
    profile: Annotated[
        str, Field(description="the kind of work it is, by which other jobs refer to it")
    ] = ""
    shared_throughputs: Annotated[
        list[SharedThroughputEntry],
        Field(
            description="how fast it is beside jobs of a profile on the same GPUs: policies"
            " that share GPUs put two together if both say"
        ),
    ] = Field(default_factory=list)
    total_work: Annotated[
        float, Field(ge=0.0, description="in units of throughput times seconds; 0: unknown")
    ] = 0.0
    elastic: Annotated[
        bool,
        Field(
            description="the scheduler sizes it between min_tasks and max_tasks: up while GPUs"
            " are idle, down for others"
        ),
    ] = False
    resize_cooldown: Annotated[
        Duration | None, Field(description="between two resizes of its; default 10m")
    ] = None
    scaling: Annotated[
        dict[Annotated[int, Field(ge=1, le=MOST)], Annotated[float, Field(gt=0.0)]],
        Field(
            description="work per second by number of tasks, in any unit; none: proportional"
        ),
    ] = Field(default_factory=dict)
    deadline: Moment = 0.0
    topology_required: Annotated[
        str,
        Field(description="level of which one domain holds all tasks: nvlink, host, rack, ..."),
    ] = ""
    topology_preferred: Annotated[
        str, Field(description="level of which as few domains as possible hold the tasks")
    ] = ""
    inputs: Annotated[
        dict[str, Memory],
        Field(description="data sets that it reads, and how much of each: {imagenet: 150Gi}"),
    ] = Field(default_factory=dict)
    topology_balanced: Annotated[
        bool, Field(description="spread evenly over as few domains as hold the tasks")
    ] = False
    start_after: Moment = 0.0
    after: Annotated[
        tuple[After, ...],
        BeforeValidator(_after),
        WithJsonSchema({**_LIST_SCHEMA, "examples": ["ok:prepare", ["ok:17", "any:18"]]}),
    ] = ()
    array: Annotated[Count, Field(description="that many copies with an index each")] = 0
    suspended: Annotated[bool, Field(description="submit it on hold")] = False
    labels: Texts = Field(default_factory=dict)
    roles: list[RoleEntry] = Field(default_factory=list)


class JobList(_Entry):
    """Several jobs in one document."""

    jobs: Annotated[list[JobEntry], Field(min_length=1)]
