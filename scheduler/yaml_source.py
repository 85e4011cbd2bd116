"""YAML that people write, with the line of every value, so that a mistake can be pointed at.

Reads one document whose root is a mapping; yields plain data and `Lines`. The scalars are
those of YAML 1.2: `on`, `yes` and `1:30` are strings. What the data must look like is left
to the caller's pydantic model; `validated` turns its complaints into `file:line` ones.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scheduler.core.errors import InvalidInput

Loc = Sequence[str | int]
"""The way from the root to a value: keys and indexes, as pydantic gives them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake in a file. Line 0: of the file as a whole."""

    source: str
    line: int
    field: str
    rule: str

    def __str__(self) -> str:
        """Return `jobs.yaml:3: roles[0].count: must be greater than 0`."""
        place = f"{self.source}:{self.line}" if self.line else self.source
        return ": ".join(part for part in (place, self.field, self.rule) if part)


class InvalidSource(InvalidInput):
    """A file that cannot be used: every mistake found in it, in order of lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(
            sorted(problems, key=lambda problem: (problem.line, problem.field))
        )
        super().__init__(self.problems[0].field, self.problems[0].rule)
        self.args = ("\n".join(map(str, self.problems)),)


class Lines:
    """Where in the file each value is."""

    def __init__(self, source: str, root: yaml.Node | None) -> None:
        self.source = source
        self._root = root

    def of(self, loc: Loc) -> int:
        """Return the line of the value at `loc`, or of the nearest one around it, from 1.

        Parts that are not in the file (a union's tag, a missing field) are passed over.
        """
        node, line = self._root, 1
        for part in loc:
            found = _child(node, part) if node is not None else None
            if found is not None:
                line, node = found
        return line

    def problem(self, loc: Loc, rule: str) -> Problem:
        """Return a mistake at `loc`."""
        return Problem(source=self.source, line=self.of(loc), field=field_path(loc), rule=rule)


_Model = TypeVar("_Model", bound=BaseModel)


def validated(
    model: type[_Model], data: object, *, lines: Lines, context: Mapping[str, Any] | None = None
) -> _Model:
    """Return `data` as a `model`; raise `InvalidSource` with every mistake and its line.

    `context` is what the model's validators find in their `info.context`.
    """
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        names = sorted(_field_names(model))
        found = error.errors()
        raise InvalidSource(
            lines.problem(details["loc"], _rule(details, names))
            for details in found
            if not _follows(details, found)
        ) from error


def load_yaml_with_lines(text: str, source: str) -> tuple[dict[str, Any], Lines]:
    """Return the document's data and its lines; an empty document is an empty mapping.

    Raises `InvalidSource` for bad syntax, duplicate keys and a root that is no mapping.
    """
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        duplicates = list(_duplicate_keys(root, source)) if root is not None else []
        if duplicates:
            raise InvalidSource(duplicates)
        data = loader.construct_document(root) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        raise InvalidSource([_syntax_problem(error, source)]) from error
    except yaml.reader.ReaderError as error:
        rule = f"must be text: there is a character {chr(error.character)!r} in it"
        line = text.count("\n", 0, error.position) + 1
        raise InvalidSource([Problem(source=source, line=line, field="", rule=rule)]) from error
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidSource([_file_problem(source, str(error))]) from error
    except RecursionError as error:
        raise InvalidSource([_file_problem(source, "is nested too deeply")]) from error
    finally:
        if loader is not None:
            loader.dispose()
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise InvalidSource([_file_problem(source, "must be a mapping of fields to values")])
    return data, Lines(source, root)


def field_path(loc: Loc) -> str:
    """Return `roles[0].count` for `("roles", 0, "count")`."""
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


class _Loader(yaml.SafeLoader):
    """A safe loader that knows the scalars of YAML 1.2, and merge keys, only."""


_NUMBER = "-+.0123456789"
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$", _NUMBER),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        _NUMBER,
    ),
    ("merge", r"<<$", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first)
    )


def _child(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node] | None:
    """Return the line and node of a key or an index of `node`."""
    if isinstance(node, yaml.MappingNode):
        # From the end: merged keys stand before the mapping's own ones, which win.
        for key, value in reversed(node.value):
            if key.value == str(part):
                return key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode) and part in range(len(node.value)):
        item = node.value[int(part)]
        return item.start_mark.line + 1, item
    return None


def _duplicate_keys(root: yaml.Node, source: str) -> Iterator[Problem]:
    """Yield every key that stands twice in one mapping, which YAML forbids."""
    seen_nodes: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen_nodes:  # an alias
            continue
        seen_nodes.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                waiting.append(value)
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in lines:
                        rule = f"is given twice, first in line {lines[key.value]}"
                        yield Problem(source=source, line=line, field=key.value, rule=rule)
                    lines.setdefault(key.value, line)


def _syntax_problem(error: yaml.MarkedYAMLError, source: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    rule = error.problem or error.context or "is no YAML"
    return Problem(source=source, line=mark.line + 1 if mark else 0, field="", rule=rule)


def _file_problem(source: str, rule: str) -> Problem:
    return Problem(source=source, line=0, field="", rule=rule)


def _follows(error: ErrorDetails, found: list[ErrorDetails]) -> bool:
    """Return whether a list is told to be too short because of a mistake in an item of it."""
    loc = error["loc"]
    return error["type"] == "too_short" and any(
        len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in found
    )


def _rule(error: ErrorDetails, known_fields: list[str]) -> str:
    """Return pydantic's complaint in our words."""
    match error["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            near = get_close_matches(str(error["loc"][-1]), known_fields, n=1)
            return "is not a known field" + (f"; did you mean {near[0]}?" if near else "")
        case "value_error":
            return error["msg"].removeprefix("Value error, ")
        case _:
            message = error["msg"].replace("Input should", "should", 1)
            return f"{message}, not {error['input']!r}"[:300]


def _field_names(model: type[BaseModel]) -> set[str]:
    """Return the names of all fields of the model and of the models in it."""
    names: set[str] = set()
    waiting: list[Any] = [model]
    while waiting:
        kind = waiting.pop()
        waiting.extend(get_args(kind))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names.update(kind.model_fields)
            waiting.extend(field.annotation for field in kind.model_fields.values())
    return names
