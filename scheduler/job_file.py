"""Job files: what a user writes in YAML becomes the specs that are submitted.

Reads one job, several `---` documents or a `jobs:` list; yields them in the order in which
they can be submitted, with dependencies by name inside the file kept apart until ids exist.
Every mistake is reported at once with its line. What a cluster allows is the daemon's to judge.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    WithJsonSchema,
)

from scheduler.quantities import (
    parse_cpu_milli,
    parse_duration_s,
    parse_gpus,
    parse_memory_mib,
)
from scheduler.wire import cluster_pb2 as pb
from scheduler.yaml_source import InvalidSource, Lines, Problem, load_yaml_with_lines, validated

JOB_ID = re.compile(r"\d+(_\d+)?")
"""What a job's id looks like; anything else names a job."""

_Kind = Literal["ok", "any", "not_ok"]
_KINDS: dict[_Kind, pb.DependencyKind.ValueType] = {
    "ok": pb.DEPENDENCY_KIND_AFTER_OK,
    "any": pb.DEPENDENCY_KIND_AFTER_ANY,
    "not_ok": pb.DEPENDENCY_KIND_AFTER_NOT_OK,
}
_DOCUMENT_START = re.compile(r"^---(?=\s|$)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """A condition on another job, which is named by its id or, inside a file, by its name."""

    on: str
    kind: _Kind = "ok"

    def to_dependency(self, job_id: str) -> pb.Dependency:
        """Return the condition, now that the other job has an id."""
        return pb.Dependency(on=job_id, kind=_KINDS[self.kind])


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob:
    """One job of a file. `after_names` are to be put into the spec once they have ids."""

    spec: pb.JobSpec
    after_names: tuple[After, ...] = ()
    source: str = ""
    line: int = 0


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


def load_job_files(path: Path) -> list[FileJob]:
    """Return the jobs of a file in the order of their dependencies. Raises `InvalidSource`."""
    return parse_job_file(path.read_text(encoding="utf-8"), str(path), folder=path.parent)


def parse_job_file(text: str, source: str, *, folder: Path) -> list[FileJob]:
    """Return the jobs in `text`; relative working folders are below `folder`."""
    problems: list[Problem] = []
    entries: list[_Located] = []
    for document in _documents(text):
        try:
            data, lines = load_yaml_with_lines(document, source)
            if data:
                entries.extend(_entries(data, lines))
        except InvalidSource as error:
            problems.extend(error.problems)
    if not entries and not problems:
        problems.append(Problem(source=source, line=0, field="", rule="has no job in it"))
    if not problems:  # a job that did not parse would look like one that is missing
        problems.extend(_naming_problems(entries, default=_default_name(source)))
    if problems:
        raise InvalidSource(problems)
    return _in_order(entries, default=_default_name(source), folder=folder)


def job_file_schema() -> dict[str, Any]:
    """Return the JSON schema of a document of a job file, for editors."""
    adapter: TypeAdapter[Any] = TypeAdapter(JobEntry | JobList)
    schema = adapter.json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Lepton job file",
        **schema,
    }


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
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


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
    tasks: Annotated[int | None, Field(ge=1, description="how many; default 1")] = None
    min_tasks: Annotated[
        int | None, Field(ge=1, description="start with at least these; default: all")
    ] = None
    max_tasks: Annotated[
        int | None, Field(ge=1, description="the most an update may ask for")
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


class JobEntry(TaskFields):
    """A job. One with a single role may put the role's fields here instead of in `roles`."""

    name: Annotated[
        Name | None, Field(description="default: the file's name; others refer to it")
    ] = None
    kind: Literal["training", "inference", "batch"] = "training"
    queue: Name = "default"
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = 0
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
    start_after: Annotated[
        float,
        BeforeValidator(lambda value: parse_moment_s(_text(value))),
        WithJsonSchema({"type": "string", "format": "date-time"}),
    ] = 0.0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Located:
    """A job with its place in the file."""

    entry: JobEntry
    lines: Lines
    loc: tuple[str | int, ...]

    def problem(self, *field: str | int, rule: str) -> Problem:
        found = self.lines.problem((*self.loc, *field), rule)
        is_there = field and field[0] in self.entry.model_fields_set
        return found if is_there else replace(found, line=self.line)

    @property
    def line(self) -> int:
        """Where the job begins: its first field."""
        return min(
            (self.lines.of((*self.loc, name)) for name in self.entry.model_fields_set),
            default=1,
        )


def _documents(text: str) -> Iterator[str]:
    """Yield each document after as many empty lines as stood before it, to keep its lines."""
    starts = [match.start() for match in _DOCUMENT_START.finditer(text)]
    for start, end in zip([0, *starts], [*starts, len(text)], strict=True):
        yield "\n" * text.count("\n", 0, start) + text[start:end]


def _entries(data: dict[str, Any], lines: Lines) -> list[_Located]:
    """Return the jobs of one document, or raise all that is wrong with them."""
    model: type[JobEntry | JobList] = JobList if "jobs" in data else JobEntry
    found = validated(model, data, lines=lines)
    if isinstance(found, JobEntry):
        entries = [_Located(entry=found, lines=lines, loc=())]
    else:
        entries = [
            _Located(entry=entry, lines=lines, loc=("jobs", i))
            for i, entry in enumerate(found.jobs)
        ]
    if problems := [problem for entry in entries for problem in _role_problems(entry)]:
        raise InvalidSource(problems)
    return entries


def _role_problems(located: _Located) -> Iterator[Problem]:
    """Yield what is wrong between the fields of one job."""
    entry = located.entry
    given = entry.model_fields_set & TaskFields.model_fields.keys()
    if entry.roles and given:
        for name in sorted(given):
            yield located.problem(name, rule="belongs in a role, as this job has `roles`")
    elif not entry.roles and entry.command is None:
        yield located.problem(rule="needs a command, or roles that have one")
    seen: set[str] = set()
    for i, role in enumerate(entry.roles):
        if role.command is None:
            yield located.problem("roles", i, "command", rule="is required")
        if role.name in seen:
            yield located.problem("roles", i, "name", rule=f"{role.name} is taken")
        seen.add(role.name)
    for tasks, loc in _task_fields(entry):
        wanted = tasks.tasks or 1
        if tasks.min_tasks is not None and tasks.min_tasks > wanted:
            yield located.problem(*loc, "min_tasks", rule=f"is more than tasks ({wanted})")
        if tasks.max_tasks is not None and tasks.max_tasks < wanted:
            yield located.problem(*loc, "max_tasks", rule=f"is less than tasks ({wanted})")


def _task_fields(entry: JobEntry) -> list[tuple[TaskFields, tuple[str | int, ...]]]:
    if entry.roles:
        return [(role, ("roles", i)) for i, role in enumerate(entry.roles)]
    return [(entry, ())]


def _default_name(source: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).stem).strip("-") or "job"


def _naming_problems(entries: Sequence[_Located], *, default: str) -> Iterator[Problem]:
    """Yield jobs without a name of their own, and dependencies that cannot be met."""
    names: set[str] = set()
    for located in entries:
        name = located.entry.name
        if name is None and len(entries) > 1:
            yield located.problem("name", rule="is required where a file has several jobs")
        elif (name or default) in names:
            yield located.problem("name", rule=f"{name} is taken by another job of this file")
        names.add(name or default)
    for located in entries:
        for after in located.entry.after:
            if after.on not in names and not JOB_ID.fullmatch(after.on):
                near = get_close_matches(after.on, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else ", and is no job id"
                yield located.problem(
                    "after", rule=f"{after.on} is not a job of this file{hint}"
                )
    try:
        tuple(TopologicalSorter(_graph(entries, default)).static_order())
    except CycleError as error:
        ring = " after ".join(error.args[1])
        first = next(e for e in entries if (e.entry.name or default) in error.args[1])
        yield first.problem("after", rule=f"never starts: {ring}")


def _graph(entries: Iterable[_Located], default: str) -> dict[str, list[str]]:
    names = {located.entry.name or default for located in entries}
    return {
        located.entry.name or default: [a.on for a in located.entry.after if a.on in names]
        for located in entries
    }


def _in_order(entries: Sequence[_Located], *, default: str, folder: Path) -> list[FileJob]:
    """Return the jobs with every job after those of the file that it depends on."""
    by_name = {located.entry.name or default: located for located in entries}
    waiting = _graph(entries, default)
    ordered: list[FileJob] = []
    while waiting:  # in the order of the file, as far as dependencies allow
        name = next(n for n, on in waiting.items() if not waiting.keys() & set(on))
        del waiting[name]
        located = by_name[name]
        ordered.append(
            FileJob(
                spec=_spec(located.entry, name, by_name, folder),
                after_names=tuple(a for a in located.entry.after if a.on in by_name),
                source=located.lines.source,
                line=located.line,
            )
        )
    return ordered


def _spec(
    entry: JobEntry, name: str, by_name: Mapping[str, _Located], folder: Path
) -> pb.JobSpec:
    return pb.JobSpec(
        name=name,
        roles=[
            _role(
                tasks, tasks.name if isinstance(tasks, RoleEntry) else "worker", folder=folder
            )
            for tasks, _ in _task_fields(entry)
        ],
        kind=pb.JobKind.Value(f"JOB_KIND_{entry.kind.upper()}"),
        queue=entry.queue,
        priority=entry.priority,
        preemptible=entry.preemptible,
        checkpoint_interval_s=entry.checkpoint_interval,
        grace_s=entry.grace,
        max_retries=entry.retries,
        backoff_s=entry.backoff,
        time_limit_s=entry.time_limit,
        start_after_s=entry.start_after,
        dependencies=[
            after.to_dependency(after.on) for after in entry.after if after.on not in by_name
        ],
        array_size=entry.array,
        suspended=entry.suspended,
        labels=entry.labels,
    )


def _role(tasks: TaskFields, name: str, *, folder: Path) -> pb.Role:
    gpus, gpu_milli = tasks.gpus
    working_dir = str((folder / tasks.working_dir).resolve()) if tasks.working_dir else ""
    return pb.Role(
        name=name,
        launch=pb.Launch(
            command=tasks.command, env=tasks.env, working_dir=working_dir, image=tasks.image
        ),
        count=tasks.tasks,
        min_count=tasks.min_tasks,
        max_count=tasks.max_tasks,
        shape=pb.Shape(
            cpu_milli=tasks.cpus,
            memory_mib=tasks.memory,
            gpus=gpus,
            gpu_milli=gpu_milli,
            gpu_memory_mib=tasks.gpu_memory,
            gpu_types=tasks.gpu_types,
            node_labels=tasks.node_labels,
            tolerations=[
                pb.Toleration(key=toleration.key, value=toleration.value)
                for toleration in tasks.tolerations
            ],
        ),
    )
