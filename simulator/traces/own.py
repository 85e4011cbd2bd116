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
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, cast

import msgspec

from scheduler.core.errors import InvalidInput
from scheduler.core.model import JobPhase, JobSpec, Role, Shape
from simulator.traces.format import Assumptions, Format
from simulator.traces.jobs import TRACE_LAUNCH
from simulator.traces.source import Opening, Source
from simulator.workload import FOREVER, Behaviour, Steady, TraceJob, TraceJobs

_HEADER = {"format": "lepton-trace", "version": 1}

BEHAVIOURS: dict[str, type[Behaviour]] = {"steady": Steady}
"""How jobs may go, by the `kind` it is written under: frozen dataclasses. To be added to."""

_ENDS = frozenset({JobPhase.SUCCEEDED, JobPhase.FAILED, JobPhase.CANCELLED})
_LAUNCH = {"command": list(TRACE_LAUNCH.command)}


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
    values = _plain(job)
    values["behaviour"] = _plain_behaviour(job.behaviour)
    return msgspec.json.encode(values)


def decode_job(line: str) -> TraceJob:
    """Return the job of a line; raises `InvalidInput` or msgspec's error."""
    values = msgspec.json.decode(line)
    if not isinstance(values, dict):
        raise InvalidInput("", "a job is an object")
    behaviour = _behaviour(values.pop("behaviour", None))
    spec = values.pop("spec", None)
    if not isinstance(spec, dict):
        raise InvalidInput("spec", "must be an object")
    _complete(spec)
    if unknown := sorted(values.keys() - _field_names(TraceJob)):
        raise InvalidInput(unknown[0], "there is no such field")
    read = msgspec.convert(spec, JobSpec)
    rest = msgspec.convert(values, _Rest)
    _check(read, rest)
    return TraceJob(
        spec=read, behaviour=behaviour, **{name: getattr(rest, name) for name in _REST}
    )


def _complete(spec: dict[str, Any]) -> None:
    """Check the names in a spec, and let its roles launch what they do not say."""
    _check_names(spec, JobSpec, "spec")
    roles = spec.get("roles")
    for number, role in enumerate(roles if isinstance(roles, list) else ()):
        if isinstance(role, dict):
            role.setdefault("launch", _LAUNCH)
            _check_names(role, Role, f"spec.roles[{number}]")
            shape = role.get("shape")
            if isinstance(shape, dict):
                _check_names(shape, Shape, f"spec.roles[{number}].shape")


class _Rest(msgspec.Struct, kw_only=True):
    at_s: float
    key: str = ""
    submitter: str = ""
    startup_s: float = 0.0
    restore_s: float = 0.0
    ends_as: JobPhase = JobPhase.SUCCEEDED


_REST = _Rest.__struct_fields__


def _check(spec: JobSpec, rest: _Rest) -> None:
    if not spec.roles:
        raise InvalidInput("spec.roles", "a job has at least one role")
    if rest.ends_as not in _ENDS:
        raise InvalidInput("ends_as", f"one of {', '.join(sorted(_ENDS))}")
    for name in ("startup_s", "restore_s"):
        if getattr(rest, name) < 0:
            raise InvalidInput(name, "must not be negative")


def _behaviour(values: object) -> Behaviour:
    if not isinstance(values, dict):
        raise InvalidInput("behaviour", "must be an object")
    kind = values.pop("kind", None)
    chosen = BEHAVIOURS.get(kind) if isinstance(kind, str) else None
    if chosen is None:
        raise InvalidInput("behaviour.kind", f"one of {', '.join(sorted(BEHAVIOURS))}")
    if values.get("work", 0.0) is None:
        values["work"] = FOREVER
    _check_names(values, chosen, "behaviour")
    try:
        behaviour = msgspec.convert(values, chosen)
    except msgspec.ValidationError as error:
        raise InvalidInput("behaviour", str(error)) from error
    if not behaviour.work >= 0:
        raise InvalidInput("behaviour.work", "must not be negative")
    return behaviour


def _check_names(values: Mapping[str, Any], kind: type, where: str) -> None:
    """Refuse names that the type does not have: a typing error must not pass as a default."""
    if unknown := sorted(values.keys() - _field_names(kind)):
        raise InvalidInput(f"{where}.{unknown[0]}", "there is no such field")


@cache
def _field_names(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind))


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
        is_said = default is MISSING or part != default
        if is_said and part != TRACE_LAUNCH and name != "behaviour":
            values[name] = _plain_part(part)
    return values


def _plain_part(part: object) -> object:
    if isinstance(part, tuple):
        return [_plain_part(item) for item in part]
    if is_dataclass(part):
        return _plain(part)
    return part.value if isinstance(part, Enum) else part


@cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...]:  # noqa: ANN401  # any dataclass
    return tuple((field.name, field.default) for field in fields(kind))


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
