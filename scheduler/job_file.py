"""Job files: what a user writes in YAML becomes the specs that are submitted.

Reads one job, several `---` documents or a `jobs:` list; yields them in the order in which
they can be submitted, with dependencies by name inside the file kept apart until ids exist.
Every mistake is reported at once with its line. What a cluster allows is the daemon's to judge.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from scheduler.job_fields import After, JobEntry, JobList, RoleEntry, TaskFields
from scheduler.wire import cluster_pb2 as pb
from scheduler.yaml_source import InvalidSource, Lines, Problem, load_yaml_with_lines, validated

JOB_ID = re.compile(r"\d+(_\d+)?")
"""What a job's id looks like; anything else names a job."""

_DOCUMENT_START = re.compile(r"^---(?=\s|$)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob:
    """One job of a file. `after_names` are to be put into the spec once they have ids."""

    spec: pb.JobSpec
    after_names: tuple[After, ...] = ()
    source: str = ""
    line: int = 0


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
        priority=entry.priority.value,
        priority_class=entry.priority.name,
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
        expected_run_s=entry.expect,
        expected_run_spread=entry.expect_spread,
        min_runtime_s=entry.min_runtime,
        weight=entry.weight,
        throughputs=entry.throughputs,
        deadline_at_s=entry.deadline,
        total_work=entry.total_work,
        elastic=entry.elastic,
        resize_cooldown_s=entry.resize_cooldown,
        scaling=entry.scaling,
        topology_required=entry.topology_required,
        topology_preferred=entry.topology_preferred,
        topology_balanced=entry.topology_balanced,
        inputs_mib=entry.inputs,
        profile=entry.profile,
        shared_throughputs=[
            pb.SharedThroughput(gpu_type=s.gpu_type, beside=s.beside, per_s=s.per_s)
            for s in entry.shared_throughputs
        ],
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
