"""The options of `lepton submit` that say what a job is, and how they change a spec.

They make a job of a command, and change what a job file says. What concerns the tasks needs a
job with a single role, because it would be a guess otherwise.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from scheduler.cli.errors import CommandError, ExitCode
from scheduler.quantities import MILLI, Priority, parse_memory_mib
from scheduler.wire import cluster_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecOptions:
    """What the user said on the command line; None and empty: nothing."""

    name: str | None = None
    kind: str | None = None
    queue: str | None = None
    priority: Priority | None = None
    time_limit_s: float | None = None
    expected_run_s: float | None = None
    expected_run_spread: float | None = None
    min_runtime_s: float | None = None
    weight: float | None = None
    throughputs: Sequence[str] = ()
    profile: str | None = None
    shared_throughputs: Sequence[str] = ()
    total_work: float | None = None
    elastic: bool | None = None
    resize_cooldown_s: float | None = None
    scaling: Sequence[str] = ()
    topology_required: str | None = None
    topology_preferred: str | None = None
    topology_balanced: bool | None = None
    inputs: Sequence[str] = ()
    deadline_at_s: float | None = None
    start_after_s: float | None = None
    array_size: int | None = None
    max_retries: int | None = None
    grace_s: float | None = None
    checkpoint_interval_s: float | None = None
    preemptible: bool | None = None
    suspended: bool | None = None
    labels: Sequence[str] = ()
    # of each task
    tasks: int | None = None
    min_tasks: int | None = None
    max_tasks: int | None = None
    gpu_milli: int | None = None
    gpu_types: Sequence[str] = ()
    gpu_memory_mib: int | None = None
    cpu_milli: int | None = None
    memory_mib: int | None = None
    node_labels: Sequence[str] = ()
    env: Sequence[str] = ()
    working_dir: str | None = None
    image: str | None = None

    def apply(self, spec: pb.JobSpec) -> None:
        """Change the spec to what was said."""
        self._apply_to_job(spec)
        if not self._says_something_of_tasks():
            return
        if len(spec.roles) != 1:
            raise CommandError(
                f"{spec.name} has {len(spec.roles)} roles: options of tasks need a single one",
                hint="Change the job file instead.",
                code=ExitCode.USAGE,
            )
        self._apply_to_role(spec.roles[0])

    def _apply_to_job(self, spec: pb.JobSpec) -> None:
        for field, value in (
            ("name", self.name),
            ("queue", self.queue),
            ("time_limit_s", self.time_limit_s),
            ("expected_run_s", self.expected_run_s),
            ("expected_run_spread", self.expected_run_spread),
            ("min_runtime_s", self.min_runtime_s),
            ("weight", self.weight),
            ("profile", self.profile),
            ("total_work", self.total_work),
            ("elastic", self.elastic),
            ("resize_cooldown_s", self.resize_cooldown_s),
            ("topology_required", self.topology_required),
            ("topology_preferred", self.topology_preferred),
            ("topology_balanced", self.topology_balanced),
            ("deadline_at_s", self.deadline_at_s),
            ("start_after_s", self.start_after_s),
            ("array_size", self.array_size),
            ("max_retries", self.max_retries),
            ("grace_s", self.grace_s),
            ("checkpoint_interval_s", self.checkpoint_interval_s),
            ("preemptible", self.preemptible),
            ("suspended", self.suspended),
        ):
            if value is not None:
                setattr(spec, field, value)
        if self.priority is not None:
            spec.priority, spec.priority_class = self.priority
        if self.kind is not None:
            spec.kind = pb.JobKind.Value(f"JOB_KIND_{self.kind.upper()}")
        spec.labels.update(pairs(self.labels, "--label"))
        for data_set, size in pairs(self.inputs, "--input").items():
            try:
                spec.inputs_mib[data_set] = parse_memory_mib(size)
            except ValueError as error:
                raise typer.BadParameter(str(error), param_hint="--input") from None
        for gpu_type, speed in pairs(self.throughputs, "--throughput").items():
            try:
                spec.throughputs[gpu_type] = float(speed)
            except ValueError:
                rule = f"{speed!r} is no number: write TYPE=NUMBER"
                raise typer.BadParameter(rule, param_hint="--throughput") from None
        spec.shared_throughputs.extend(map(_shared_throughput, self.shared_throughputs))
        for n_tasks, speed in pairs(self.scaling, "--scaling").items():
            try:
                spec.scaling[int(n_tasks)] = float(speed)
            except ValueError:
                rule = f"{n_tasks}={speed}: write TASKS=NUMBER"
                raise typer.BadParameter(rule, param_hint="--scaling") from None

    def _says_something_of_tasks(self) -> bool:
        some = (
            self.tasks,
            self.min_tasks,
            self.max_tasks,
            self.gpu_milli,
            self.gpu_memory_mib,
            self.cpu_milli,
        )
        rest = (self.memory_mib, self.working_dir, self.image)
        return any(value is not None for value in (*some, *rest)) or any(
            (self.gpu_types, self.node_labels, self.env)
        )

    def _apply_to_role(self, role: pb.Role) -> None:
        for field, count in (
            ("count", self.tasks),
            ("min_count", self.min_tasks),
            ("max_count", self.max_tasks),
        ):
            if count is not None:
                setattr(role, field, count)
        if self.tasks is not None and role.HasField("max_count"):
            role.max_count = max(role.max_count, self.tasks)
        shape = role.shape
        if self.gpu_milli is not None:
            shape.gpus, shape.gpu_milli = divmod(self.gpu_milli, MILLI)
        for field, amount in (
            ("gpu_memory_mib", self.gpu_memory_mib),
            ("cpu_milli", self.cpu_milli),
            ("memory_mib", self.memory_mib),
        ):
            if amount is not None:
                setattr(shape, field, amount)
        if self.gpu_types:
            types = [name.strip() for text in self.gpu_types for name in text.split(",")]
            shape.ClearField("gpu_types")
            shape.gpu_types.extend(filter(None, types))
        shape.node_labels.update(pairs(self.node_labels, "--node-label"))
        role.launch.env.update(_environment(self.env))
        if self.working_dir is not None:
            role.launch.working_dir = self.working_dir
        if self.image is not None:
            role.launch.image = self.image


def command_spec(command: Sequence[str]) -> pb.JobSpec:
    """Return a job of one task that runs the command, named after it."""
    # Of `python train.py` the script tells more than the interpreter.
    words = [os.path.basename(word) for word in command if not word.startswith("-")]
    is_script = len(words) > 1 and re.fullmatch(r"(python|bash|sh|node)[\d.]*", words[0])
    name = words[1] if is_script and "." in words[1] and " " not in words[1] else words[0]
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:63]
    launch = pb.Launch(command=command)
    return pb.JobSpec(
        name=clean or "job", queue="default", roles=[pb.Role(name="worker", launch=launch)]
    )


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return the mapping in `KEY=VALUE` texts."""
    found = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{text!r}: write KEY=VALUE", param_hint=option)
        found[key] = value
    return found


def _shared_throughput(text: str) -> pb.SharedThroughput:
    """Return how fast a job is beside another, from `TYPE:PROFILE=NUMBER`."""
    place, _, speed = text.rpartition("=")
    gpu_type, _, profile = place.partition(":")
    try:
        return pb.SharedThroughput(gpu_type=gpu_type, beside=profile, per_s=float(speed))
    except ValueError:
        rule = f"{text!r}: write TYPE:PROFILE=NUMBER"
        raise typer.BadParameter(rule, param_hint="--shared-throughput") from None


def _environment(texts: Sequence[str]) -> dict[str, str]:
    """Return variables from `NAME=VALUE`, or from `NAME` alone: as it is here and now."""
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            if name not in os.environ:
                raise typer.BadParameter(f"{name} is not set here", param_hint="--env")
            value = os.environ[name]
        found[name] = value
    return found
