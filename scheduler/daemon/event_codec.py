"""Events, dumps and finished jobs as bytes, and back.

JSON over the frozen dataclasses of the core: an event is its class name and its fields.
Fields that a newer version added are ignored, fields that an older one lacked take their
defaults; an unknown class is an error, because a replay without it would be another history.
"""

import gc
import zlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Literal, cast, get_args

import msgspec

from scheduler.core.dump import DUMP_FORMAT, Dump, JobDump, OutcomeDump, RequestDump
from scheduler.core.errors import InvalidInput, SchedulerError
from scheduler.core.events import Event
from scheduler.core.records import JobRecord

_ENCODER = msgspec.json.Encoder()
_EVENT_DECODERS: dict[str, msgspec.json.Decoder[Event]] = {
    kind.__name__: msgspec.json.Decoder(kind) for kind in get_args(Event)
}
_JOB_DECODER = msgspec.json.Decoder(JobDump)

EVENT_KINDS = frozenset(_EVENT_DECODERS)
"""The class names under which events are stored."""


class Unreadable(SchedulerError):
    """Stored bytes do not say what this version can understand."""


def encode_event(event: Event) -> tuple[str, bytes]:
    """Return the event's kind and payload.

    Raises `InvalidInput` for a value that would come back as another one (not a number,
    infinite, a lone surrogate, a list): what is journalled must replay as what was observed.
    """
    kind = type(event).__name__
    try:
        payload = _ENCODER.encode(event)
        is_faithful = _EVENT_DECODERS[kind].decode(payload) == event
    except (ValueError, OverflowError, TypeError) as error:
        raise InvalidInput("event", f"{kind} cannot be stored: {error}") from error
    if not is_faithful:
        raise InvalidInput("event", f"{kind} cannot be stored without changing it")
    return kind, payload


def decode_event(kind: str, payload: bytes) -> Event:
    """Return the event of this kind and payload."""
    decoder = _EVENT_DECODERS.get(kind)
    if decoder is None:
        raise Unreadable(f"unknown kind of event {kind!r}; did a newer version write it?")
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Unreadable(f"{kind} is not readable: {error}") from error


def event_crc(sequence: int, kind: str, payload: bytes) -> int:
    """Return the checksum stored beside an event; it covers the event's place too."""
    return zlib.crc32(payload, zlib.crc32(f"{sequence} {kind} ".encode()))


def dump_crc(sequence: int, blob: bytes) -> int:
    """Return the checksum stored beside a dump."""
    return zlib.crc32(blob, sequence & 0xFFFF_FFFF)


def encode_record(record: JobRecord) -> bytes:
    """Return a job's record as bytes."""
    return _ENCODER.encode(_job_dump(record))


def decode_record(payload: bytes) -> JobRecord:
    """Return the record that these bytes describe."""
    try:
        dump = _JOB_DECODER.decode(payload)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Unreadable(f"a finished job is not readable: {error}") from error
    values = {name: getattr(dump, name) for name in _RECORD_FIELDS}
    values["tasks"] = {task.id: task for task in dump.tasks}
    values["history"] = list(dump.history)
    return JobRecord(**values)


_RECORD_FIELDS = tuple(field.name for field in fields(JobDump))


def _job_dump(record: JobRecord) -> JobDump:
    values: dict[str, Any] = {name: getattr(record, name) for name in _RECORD_FIELDS}
    values["tasks"] = tuple(record.tasks.values())
    values["history"] = tuple(record.history)
    return JobDump(**values)


# A dump is lines: first everything but the long lists, then slices of those. Encoding in
# slices lets other threads run in between, which one call over 200,000 outcomes would not.
_SLICE = 250
_LongField = Literal["jobs", "outcomes", "requests"]
_LONG_FIELDS: dict[_LongField, msgspec.json.Decoder[Any]] = {
    "jobs": msgspec.json.Decoder(tuple[Literal["jobs"], list[JobDump]]),
    "outcomes": msgspec.json.Decoder(tuple[Literal["outcomes"], list[OutcomeDump]]),
    "requests": msgspec.json.Decoder(tuple[Literal["requests"], list[RequestDump]]),
}
_HEAD_DECODER = msgspec.json.Decoder(Dump)


def encode_dump(dump: Dump) -> bytes:
    """Return a dump as compressed bytes."""
    compressor = zlib.compressobj(1)
    parts = [compressor.compress(line + b"\n") for line in _dump_lines(dump)]
    return b"".join([*parts, compressor.flush()])


def decode_dump(blob: bytes) -> Dump:
    """Return the dump that these bytes describe."""
    # Hundreds of thousands of objects are made and none dies: looking for garbage between
    # them would take two thirds of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _decode_dump(blob)
    finally:
        if was_enabled:
            gc.enable()


def _decode_dump(blob: bytes) -> Dump:
    try:
        head_line, *lines = zlib.decompress(blob).splitlines()
        head = _HEAD_DECODER.decode(head_line)
        values: dict[_LongField, list[Any]] = {name: [] for name in _LONG_FIELDS}
        for line in lines:
            name = cast(_LongField, line[2 : line.index(b'"', 2)].decode())
            values[name].extend(_LONG_FIELDS[name].decode(line)[1])
    except (zlib.error, msgspec.MsgspecError, ValueError, KeyError) as error:
        raise Unreadable(f"the dump is not readable: {error}") from error
    if head.format != DUMP_FORMAT:
        raise Unreadable(f"the dump has format {head.format}, this version reads {DUMP_FORMAT}")
    return replace(
        head,
        jobs=tuple(values["jobs"]),
        outcomes=tuple(values["outcomes"]),
        requests=tuple(values["requests"]),
    )


def _dump_lines(dump: Dump) -> Iterator[bytes]:
    yield _ENCODER.encode(replace(dump, jobs=(), outcomes=(), requests=()))
    for name in _LONG_FIELDS:
        items = getattr(dump, name)
        for start in range(0, len(items), _SLICE):
            yield _ENCODER.encode((name, items[start : start + _SLICE]))
