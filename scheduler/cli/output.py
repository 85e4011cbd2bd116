"""What a command prints: a table for people, JSON or YAML for programs.

Messages of the wire become plain data with the names of the wire: numbers as numbers, enums
as their lower-case words, absent optional fields as null, so that scripts see every field.
"""

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scheduler.cli.terminal import say

if TYPE_CHECKING:
    from google.protobuf.message import Message


class Format(StrEnum):
    """The choices of `-o`."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"

    @property
    def is_for_people(self) -> bool:
        """Whether it is a table."""
        return self in {Format.TABLE, Format.WIDE}


FormatOption = Annotated[
    Format, typer.Option("--output", "-o", help="table, wide, json or yaml.")
]


def plain(message: "Message") -> dict[str, Any]:
    """Return a message as dictionaries, lists, strings and numbers."""
    return {
        field.name: _field(message, field)
        for field in message.DESCRIPTOR.fields  # in the order of the contract
    }


def _field(message: "Message", field: Any) -> Any:  # noqa: ANN401 - protobuf has no types here
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    value = getattr(message, field.name)
    if is_map:
        return dict(sorted(value.items()))
    if field.is_repeated:
        return [_value(item, field) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _value(value, field)


def _value(value: Any, field: Any) -> Any:  # noqa: ANN401
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value


def enum_word(enum: Any, number: int) -> str:  # noqa: ANN401
    """Return `timed_out` for JOB_PHASE_TIMED_OUT."""
    known = enum.values_by_number.get(number)
    if known is None:
        return str(number)
    first: str = enum.values_by_number[0].name
    name: str = known.name
    return name.removeprefix(first.removesuffix("UNSPECIFIED")).lower()


def print_data(
    data: Mapping[str, Any] | list[Any], form: Format, *, line: bool = False
) -> None:
    """Print plain data as JSON or YAML; `line` is for streams: one line, one document each."""
    if form is Format.YAML:
        import yaml

        dumper = getattr(
            yaml, "CSafeDumper", yaml.SafeDumper
        )  # C is optional, and twice as fast
        text = yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=True, width=10**9)
        say(("---\n" if line else "") + text.rstrip("\n"))
    else:
        say(json.dumps(data, ensure_ascii=False, indent=None if line else 2))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines as one write."""
    say("\n".join(lines))
