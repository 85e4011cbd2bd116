"""The project's own traces: JSON Lines that keep all that a `TraceJob` says.

The first line is `{"format": "lepton-trace", "version": 1}`; each other line is a job:

    {"at_s": 12.5, "key": "a", "submitter": "ada", "spec": {"name": "a", "roles": [
     {"name": "worker", "count": 2, "min_count": 2, "max_count": 2, "shape": {"gpus": 4}}]},
     "behaviour": {"kind": "steady", "work": 3600.0, "n_tasks": 2}}

Fields are those of `simulator.workload` and `scheduler.core.model`; what equals a default is
left out, and a role need not say what it launches. `"work": null` never ends.
"""

import gzip
import math
from collections.abc import Hashable, Iterable
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast, get_type_hints

import msgspec

from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobPhase, JobSpec, Launch, Role, Shape
from simulator.traces.format import Assumptions, Format
from simulator.traces.jobs import TRACE_LAUNCH
from simulator.traces.rules import check_behaviour, check_roles, check_spec, check_times
from simulator.traces.source import Opening, Source
from simulator.workload import FOREVER, Behaviour, Steady, TraceJob, TraceJobs

_HEADER = {"format": "lepton-trace", "version": 1}

BEHAVIOURS: dict[str, type[Behaviour]] = {"steady": Steady}
"""How jobs may go, by the `kind` it is written under: frozen dataclasses. To be added to."""

_PARTS = frozenset({"spec", "behaviour"})
_ENDS = frozenset({JobPhase.SUCCEEDED, JobPhase.FAILED, JobPhase.CANCELLED})


def write_trace(jobs: Iterable[TraceJob], path: Path | str) -> int:
    """Write jobs as a trace of the project's own and return how many; `.gz` packs it."""
    path = Path(path)
    count = 0
    # No name and no time in the gzip header: equal jobs give equal bytes.
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.suffix == ".gz" else file as out,
    ):
        out.write(msgspec.json.encode(_HEADER) + b"\n")
        for job in jobs:
            out.write(encode_job(job) + b"\n")
            count += 1
    return count


def encode_job(job: TraceJob) -> bytes:
    """Return the job as one line, without its end."""
    rest = {
        name: _plain_part(getattr(job, name))
        for name, default in _defaults(TraceJob)
        if name not in _PARTS and getattr(job, name) != default
    }
    spec = {
        name: _plain_part(getattr(job.spec, name))
        for name, default in _defaults(JobSpec)
        if name != "roles" and getattr(job.spec, name) != default
    }
    spec["roles"] = _plain_roles(job.spec.roles)
    return msgspec.json.encode(
        {**rest, "spec": spec, "behaviour": _plain_behaviour(job.behaviour)}
    )


def decode_job(line: str) -> TraceJob:
    """Return the job of a line; raises `InvalidInput` or msgspec's error."""
    values = msgspec.structs.asdict(_JOB.decode(line))
    spec = msgspec.structs.asdict(values["spec"])
    made = JobSpec(**{**spec, "roles": _roles(bytes(spec["roles"]))})
    check_spec(made)
    behaviour = _behaviour(values["behaviour"])
    if values["ends_as"] not in _ENDS:
        raise InvalidInput("ends_as", f"one of {', '.join(sorted(_ENDS))}")
    for name in ("startup_s", "restore_s", "save_s"):
        if values[name] < 0:
            raise InvalidInput(name, "must not be negative")
    job = TraceJob(**{**values, "spec": made, "behaviour": behaviour})
    check_times(job)
    return job


@cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...]:  # noqa: ANN401  # any dataclass
    return tuple((field.name, field.default) for field in fields(kind))


def _strict(kind: Any, **types: Any) -> type[msgspec.Struct]:  # noqa: ANN401  # any dataclass
    """Return a struct with the fields of a dataclass, of other types for some of them.

    Unlike a dataclass it refuses names that it does not have: a typing error must not pass as
    a default.
    """
    hints = {**get_type_hints(kind), **types}
    made = [
        (name, hints[name]) if default is MISSING else (name, hints[name], default)
        for name, default in _defaults(kind)
    ]
    return msgspec.defstruct(
        kind.__name__, made, kw_only=True, forbid_unknown_fields=True, module=__name__
    )


_SPEC = _strict(JobSpec, roles=msgspec.Raw)
_JOB: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    _strict(TraceJob, spec=_SPEC, behaviour=msgspec.Raw)
)
_ROLE = msgspec.defstruct(
    "Role",
    [("launch", Launch, TRACE_LAUNCH)],
    bases=(_strict(Role, shape=_strict(Shape)),),
    kw_only=True,
    forbid_unknown_fields=True,
)
_ROLES: msgspec.json.Decoder[Any] = msgspec.json.Decoder(list[_ROLE])  # type: ignore[valid-type]


@lru_cache(maxsize=65_536)
def _roles(text: bytes) -> tuple[Role, ...]:
    """Return roles; equal ones are one object, however many jobs have them."""
    try:
        read = [msgspec.structs.asdict(role) for role in _ROLES.decode(text)]
    except msgspec.ValidationError as error:
        raise InvalidInput("spec.roles", str(error)) from error
    if not read:
        raise InvalidInput("spec.roles", "a job has at least one role")
    for role in read:
        if not isinstance(role["shape"], Shape):
            role["shape"] = Shape(**msgspec.structs.asdict(role["shape"]))
    roles = tuple(Role(**role) for role in read)
    check_roles(roles)
    return roles


class _Kind(msgspec.Struct):
    kind: str


_KIND = msgspec.json.Decoder(_Kind)


def _behaviour(text: msgspec.Raw) -> Behaviour:
    chosen = BEHAVIOURS.get(_KIND.decode(text).kind)
    if chosen is None:
        raise InvalidInput("behaviour.kind", f"one of {', '.join(sorted(BEHAVIOURS))}")
    try:
        values = msgspec.structs.asdict(_behaviour_decoder(chosen).decode(text))
    except msgspec.ValidationError as error:
        raise InvalidInput("behaviour", str(error)) from error
    del values["kind"]
    if values.get("work", 0.0) is None:
        values["work"] = FOREVER
    behaviour = chosen(**values)
    check_behaviour(behaviour)
    return behaviour


@cache
def _behaviour_decoder(kind: Any) -> msgspec.json.Decoder[Any]:  # noqa: ANN401  # any dataclass
    names = {field.name for field in fields(kind)}
    types = {"work": float | None} if "work" in names else {}
    told = msgspec.defstruct(
        kind.__name__,
        [("kind", str)],
        bases=(_strict(kind, **types),),
        kw_only=True,
        forbid_unknown_fields=True,
    )
    return msgspec.json.Decoder(told)


def _plain_behaviour(behaviour: Behaviour) -> dict[str, Any]:
    kinds = [kind for kind, of in BEHAVIOURS.items() if type(behaviour) is of]
    if not kinds:
        raise InvalidInput(
            "behaviour", f"a {type(behaviour).__name__} has no name to be written as"
        )
    values = {"kind": kinds[0], **_plain(behaviour)}
    if values.get("work") == math.inf:
        values["work"] = None
    return values


def _plain(value: Any) -> dict[str, Any]:  # noqa: ANN401  # any dataclass
    """Return a dataclass as a dictionary without what equals its defaults."""
    values = {}
    for name, default in _defaults(cast(Hashable, type(value))):
        part = getattr(value, name)
        if part is not default and part != default:
            values[name] = _plain_part(part)
    return values


@lru_cache(maxsize=65_536)
def _plain_roles(roles: tuple[Role, ...]) -> list[dict[str, Any]]:
    plain = [_plain(role) for role in roles]
    for role in plain:
        if role["launch"] == _LAUNCH:
            del role["launch"]
    return plain


_LAUNCH = {"command": list(TRACE_LAUNCH.command)}


def _plain_part(part: object) -> object:
    if isinstance(part, (str, float, int)):
        return part.value if isinstance(part, Enum) else part
    if isinstance(part, tuple):
        return [_plain_part(item) for item in part]
    return _plain(part)


def _recognises(shown: Opening) -> bool:
    return shown.first_object().get("format") == _HEADER["format"]


def _read(source: Source, assume: Assumptions) -> TraceJobs:
    del assume  # such a trace says all
    for number, line in source.lines():
        if number == 1:
            _check_header(source, line)
        elif line:
            try:
                yield decode_job(line)
            except (InvalidInput, msgspec.MsgspecError) as error:
                raise source.error(str(error), line=number) from error


def _check_header(source: Source, line: str) -> None:
    try:
        header = msgspec.json.decode(line)
    except msgspec.MsgspecError as error:
        raise source.error(str(error), line=1) from error
    if not isinstance(header, dict) or header.get("format") != _HEADER["format"]:
        raise source.error(
            f"the first line must be {msgspec.json.encode(_HEADER).decode()}", line=1
        )
    if header.get("version") != _HEADER["version"]:
        raise source.error(
            f"version {header.get('version')!r}; this program reads {_HEADER['version']}",
            line=1,
            column="version",
        )


FORMAT = Format(
    name="lepton",
    title="the project's own JSON Lines",
    recognises=_recognises,
    read=_read,
)
