"""Services as people write them: what is asked of them, how fast they are, their targets.

One YAML file; mistakes are told as `file:line: field: rule`. A service names a job of the trace
by its key, or says what it submits when the simulation begins.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from scheduler.core.model import MILLI, JobKind, JobSpec, QueueName, Role, Shape
from scheduler.quantities import MOST
from scheduler.yaml_source import InvalidSource, Problem, load_yaml_with_lines, validated
from simulator.cluster_file import Seconds
from simulator.inference import ReplicaSpeed, Service
from simulator.load import Load, profiled, repeated, scaled, starting_at
from simulator.traces.jobs import TRACE_LAUNCH
from simulator.traces.requests import TokenCounts, read_load
from simulator.workload import FOREVER, Steady, TraceJob

_HOURS = 24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Offered:
    """A service of a simulation, and the job that it is unless the trace has it."""

    key: str
    service: Service
    job: TraceJob | None = None


def beginning_at(offered: Iterable[Offered], at_s: float) -> tuple[Offered, ...]:
    """Return the services with their loads, and the jobs that they are, from a moment on."""
    return tuple(
        replace(
            one,
            service=replace(one.service, load=starting_at(one.service.load, at_s)),
            job=None if one.job is None else replace(one.job, at_s=at_s),
        )
        for one in offered
    )


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TokensConfig(_Section):
    """Tokens of a request."""

    prompt: NonNegativeFloat = 1000.0
    output: NonNegativeFloat = 250.0
    scv: NonNegativeFloat = 1.0  # variance over squared mean


class ProfileConfig(_Section):
    """A load by hour of the day, the same every day."""

    rate_per_s: NonNegativeFloat  # in the mean
    hourly: Annotated[
        tuple[NonNegativeFloat, ...], Field(min_length=_HOURS, max_length=_HOURS)
    ] = (1.0,) * _HOURS
    arrival_scv: NonNegativeFloat = 1.0


class ReplicaConfig(_Section):
    """How a replica answers on a type of GPU."""

    gpu_type: str = ""
    at_once: PositiveInt = 1
    overhead_s: Seconds = 0.0
    prompt_tokens_per_s: PositiveFloat
    output_tokens_per_s: PositiveFloat

    def as_speed(self) -> ReplicaSpeed:
        """Return it for the queueing model."""
        return ReplicaSpeed(
            gpu_type=self.gpu_type,
            n_at_once=self.at_once,
            overhead_s=self.overhead_s,
            prompt_tokens_per_s=self.prompt_tokens_per_s,
            output_tokens_per_s=self.output_tokens_per_s,
        )


class SubmitConfig(_Section):
    """The job that is submitted for a service."""

    replicas: Annotated[int, Field(ge=1, le=100_000)] = 1
    min_replicas: PositiveInt = 1
    gpus: Annotated[int, Field(ge=0, le=100_000)] = 0  # of each replica
    gpu_milli: Annotated[int, Field(ge=0, lt=MILLI)] = 0
    cpus: Annotated[float, Field(gt=0.0, le=100_000)] = 1.0
    memory_mib: Annotated[int, Field(ge=0, le=MOST)] = 0
    gpu_types: tuple[str, ...] = ()
    queue: str = "default"
    priority: Annotated[int, Field(ge=-MOST, le=MOST)] = 0
    startup_s: Seconds = 0.0

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.min_replicas > self.replicas:
            raise ValueError("min_replicas must be at most replicas")
        if self.gpus and self.gpu_milli:
            raise ValueError("gpus and gpu_milli must not both be given")
        return self


class ServiceConfig(_Section):
    """One service."""

    job: Annotated[str, Field(min_length=1)]  # its key
    trace: str = ""  # of requests: a path, from this file's folder
    models: tuple[str, ...] = ()  # of a trace of many
    every_s: Annotated[Seconds, Field(gt=0.0)] = (
        600.0  # intervals of a trace of single requests
    )
    profile: ProfileConfig | None = None
    tokens: TokensConfig = TokensConfig()
    scale: PositiveFloat = 1.0
    repeat: Annotated[int, Field(ge=1, le=10_000)] = 1
    target_s: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    first_token: bool = False
    replicas: Annotated[tuple[ReplicaConfig, ...], Field(min_length=1)]
    submit: SubmitConfig | None = None

    @model_validator(mode="after")
    def _has_one_load(self) -> Self:
        if bool(self.trace) == (self.profile is not None):
            raise ValueError("give one of trace and profile")
        types = [replica.gpu_type for replica in self.replicas]
        if len(set(types)) < len(types):
            raise ValueError("replicas must name each gpu_type once")
        return self

    def as_offered(self, folder: Path) -> Offered:
        """Return the service; reads its trace."""
        service = Service(
            load=repeated(scaled(self._load(folder), self.scale), self.repeat),
            speeds=tuple(replica.as_speed() for replica in self.replicas),
            target_s=self.target_s,
            is_first_token=self.first_token,
        )
        job = None if self.submit is None else _job(self.job, self.submit)
        return Offered(key=self.job, service=service, job=job)

    def _load(self, folder: Path) -> Load:
        tokens = TokenCounts(self.tokens.prompt, self.tokens.output, self.tokens.scv)
        if self.profile is None:
            path = folder / self.trace
            return read_load(path, every_s=self.every_s, models=self.models, tokens=tokens)
        return profiled(
            self.profile.rate_per_s,
            hourly=self.profile.hourly,
            prompt_tokens=tokens.prompt,
            output_tokens=tokens.output,
            token_scv=tokens.scv,
            arrival_scv=self.profile.arrival_scv,
        )


class ServicesConfig(_Section):
    """The file."""

    services: Annotated[tuple[ServiceConfig, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        keys = [service.job for service in self.services]
        if len(set(keys)) < len(keys):
            raise ValueError("services must name each job once")
        return self


def load_services(path: Path) -> tuple[Offered, ...]:
    """Read a file of services. Raises `InvalidSource` and `TraceError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        rule = f"cannot be read: {error}"
        raise InvalidSource([Problem(source=str(path), line=0, field="", rule=rule)]) from error
    data, lines = load_yaml_with_lines(text, str(path))
    config = validated(ServicesConfig, data, lines=lines)
    return tuple(service.as_offered(path.parent) for service in config.services)


def _job(key: str, submit: SubmitConfig) -> TraceJob:
    role = Role(
        name="replica",
        launch=TRACE_LAUNCH,
        count=submit.replicas,
        min_count=submit.min_replicas,
        max_count=submit.replicas,
        shape=Shape(
            cpu_milli=max(1, round(submit.cpus * MILLI)),
            memory_mib=submit.memory_mib,
            gpus=submit.gpus,
            gpu_milli=submit.gpu_milli,
            gpu_types=submit.gpu_types,
        ),
    )
    spec = JobSpec(
        name=key,
        roles=(role,),
        kind=JobKind.INFERENCE,
        queue=QueueName(submit.queue),
        priority=submit.priority,
    )
    return TraceJob(
        at_s=0.0,
        key=key,
        spec=spec,
        behaviour=Steady(work=FOREVER, n_tasks=submit.replicas),
        startup_s=submit.startup_s,
    )
