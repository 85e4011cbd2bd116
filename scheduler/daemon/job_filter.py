"""The language in which jobs are listed: `queue=prod AND label.team="vision" AND priority>=5`.

One parse gives two readings that agree: a predicate for live jobs, which are in memory, and a
WHERE clause for finished ones, which are rows. Likewise an order gives a sort key and an ORDER
BY, and a place in it (`after`) a comparison and a WHERE clause. Text is compared by code point.
`!=` is "not `=`": a job on several nodes has `node!=x` if it is on no node x, and a job without
a label has `label.k!=x`; every other condition on a label that is missing is false.
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from scheduler.core.errors import InvalidInput
from scheduler.core.model import FINAL_JOB_PHASES, JobKind, JobPhase
from scheduler.core.records import JobRecord

Value = str | int | float
Predicate = Callable[[JobRecord], bool]

MAX_FILTER_LENGTH = 4096
MAX_CONDITIONS = 32

_READ: dict[str, Callable[[JobRecord], Value]] = {
    "id": lambda record: record.job.id,
    "name": lambda record: record.job.spec.name,
    "phase": lambda record: record.phase.value,
    "queue": lambda record: record.job.spec.queue,
    "submitter": lambda record: record.job.submitter,
    "kind": lambda record: record.job.spec.kind.value,
    "array_id": lambda record: record.job.array_id or "",
    "priority": lambda record: record.job.spec.priority,
    "submitted_at_s": lambda record: record.job.submitted_at_s,
    "ended_at_s": lambda record: record.ended_at_s,
    "sequence": lambda record: record.job.sequence,
}
_TEXT_FIELDS = ("id", "name", "queue", "submitter", "array_id")
_NUMBER_FIELDS = ("priority", "submitted_at_s", "ended_at_s")
_CHOICES: dict[str, type[StrEnum]] = {"phase": JobPhase, "kind": JobKind}
_FIELDS = ("id", "name", "phase", "queue", "submitter", "kind", "node", "array_id", "priority",
           "submitted_at_s", "ended_at_s", "label.KEY")  # fmt: skip
ORDER_FIELDS = tuple(_READ)
"""What jobs can be ordered by. Each is a column of `finished_jobs` too."""

_COMPARE: dict[str, Callable[[Value, Value], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(
    r"""\s*(?P<field>label\.[^\s=!<>~"]+|[a-z_]+)
        \s*(?P<op>!=|<=|>=|[=<>~])
        \s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s"]+))
        (?=\s|$)""",
    re.VERBOSE | re.DOTALL,
)
_AND = re.compile(r"\s+AND(?=\s)")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Where:
    """A condition in SQL over `finished_jobs AS j`, and its parameters."""

    sql: str = "1"
    parameters: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class JobFilter:
    """A parsed filter, read in two ways. `phases` are those it lets through."""

    accepts: Predicate
    where: Where
    phases: frozenset[JobPhase]

    @property
    def can_be_live(self) -> bool:
        """Whether a live job could be accepted."""
        return not self.phases <= FINAL_JOB_PHASES

    @property
    def can_be_finished(self) -> bool:
        """Whether a finished job could be accepted."""
        return not self.phases.isdisjoint(FINAL_JOB_PHASES)


@dataclass(frozen=True, slots=True)
class _Condition:
    accepts: Predicate
    where: Where
    phases: frozenset[JobPhase] = frozenset(JobPhase)


def parse_filter(text: str) -> JobFilter:
    """Return what a filter means; raises `InvalidInput` for the field `filter`."""
    conditions = [_condition(*parts) for parts in _split(text)]
    phases = frozenset(JobPhase).intersection(*(c.phases for c in conditions))
    tests = [condition.accepts for condition in conditions]
    return JobFilter(
        accepts=_all_of(tests),
        where=Where(
            " AND ".join(condition.where.sql for condition in conditions) or "1",
            tuple(p for condition in conditions for p in condition.where.parameters),
        ),
        phases=phases,
    )


@dataclass(frozen=True, slots=True)
class JobOrder:
    """A total order of jobs: fields, each with whether it descends; the last is sequence."""

    keys: tuple[tuple[str, bool], ...]

    @property
    def sql(self) -> str:
        """The order as an ORDER BY clause over `finished_jobs AS j`."""
        return ", ".join(f"j.{field} {'DESC' if desc else 'ASC'}" for field, desc in self.keys)

    def place(self, record: JobRecord) -> tuple[Value, ...]:
        """Return where a job stands, for `after`."""
        return tuple(_READ[field](record) for field, _ in self.keys)

    def sort(self, records: Sequence[JobRecord]) -> list[JobRecord]:
        """Return the records in this order; quick if they come in order of sequence."""
        result = list(records)
        for field, desc in reversed(self.keys):
            result.sort(key=_READ[field], reverse=desc)
        return result

    def is_after(self, place: Sequence[Value]) -> Predicate:
        """Return the test for jobs that stand behind a place."""
        steps = [
            (_READ[field], desc, value)
            for (field, desc), value in zip(self.keys, place, strict=True)
        ]

        def test(record: JobRecord) -> bool:
            for read, desc, value in steps:
                mine = read(record)
                if mine != value:
                    return bool(mine < value) is desc  # type: ignore[operator]
            return False

        return test

    def where_after(self, place: Sequence[Value]) -> Where:
        """Return the condition for rows that stand behind a place."""
        sql = "0"
        parameters: tuple[Value, ...] = ()
        for (field, desc), value in reversed(list(zip(self.keys, place, strict=True))):
            sign = "<" if desc else ">"
            # Said twice, so that an index on the first key finds the place at once.
            sql = f"(j.{field} {sign}= ? AND (j.{field} {sign} ? OR {sql}))"
            parameters = (value, value, *parameters)
        return Where(sql, parameters)


def parse_order(text: str) -> JobOrder:
    """Return what an order means; raises `InvalidInput` for the field `order_by`."""
    keys: list[tuple[str, bool]] = []
    for part in filter(None, (part.split() for part in text.split(","))):
        field, *direction = part
        if field not in ORDER_FIELDS:
            known = ", ".join(ORDER_FIELDS)
            raise InvalidInput("order_by", f"{field!r} is not one of {known}")
        if direction not in ([], ["asc"], ["desc"]):
            raise InvalidInput("order_by", f"after {field!r} may come asc or desc")
        if field in dict(keys):
            raise InvalidInput("order_by", f"{field!r} comes twice")
        keys.append((field, direction == ["desc"]))
        if field == "sequence":  # unique: what follows it could not matter
            return JobOrder(tuple(keys))
    return JobOrder((*keys, ("sequence", False)))


def _split(text: str) -> list[tuple[str, str, str]]:
    if len(text) > MAX_FILTER_LENGTH:
        raise InvalidInput("filter", f"is longer than {MAX_FILTER_LENGTH} characters")
    parts: list[tuple[str, str, str]] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        if parts:
            link = _AND.match(text, position)
            if link is None:
                raise InvalidInput("filter", f"expected AND at {text[position:][:40]!r}")
            position = link.end()
        found = _CONDITION.match(text, position)
        if found is None:
            here = text[position:].strip()[:40]
            raise InvalidInput("filter", f"expected FIELD OP VALUE at {here!r}")
        quoted = found["quoted"]
        value = found["bare"] if quoted is None else _ESCAPE.sub(r"\1", quoted)
        parts.append((found["field"], found["op"], value))
        position = found.end()
    if len(parts) > MAX_CONDITIONS:
        raise InvalidInput("filter", f"has more than {MAX_CONDITIONS} conditions")
    return parts


def _condition(field: str, op: str, text: str) -> _Condition:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("filter", f"{field}: not a valid text") from error
    if field in _CHOICES:
        return _choice(field, op, text)
    if field == "node":
        return _on_nodes(op, text)
    if field.startswith("label."):
        return _on_label(field.removeprefix("label."), op, text)
    if field in _TEXT_FIELDS:
        return _on_column(field, op, text)
    if field in _NUMBER_FIELDS and op != "~":
        return _on_column(field, op, _number(field, text))
    if field in _NUMBER_FIELDS:
        raise InvalidInput("filter", f"{field} is a number and cannot contain (~) something")
    raise InvalidInput("filter", f"{field!r} is not one of {', '.join(_FIELDS)}")


def _number(field: str, text: str) -> int | float:
    try:
        value = int(text) if field == "priority" else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) >= 1 << 63:  # what a column can hold
        kind = "a whole number" if field == "priority" else "a number"
        raise InvalidInput("filter", f"{field} is compared with {kind}, not {text[:40]!r}")
    return value


def _choice(field: str, op: str, text: str) -> _Condition:
    """Conditions on phase and kind: membership of a set, never an order."""
    choices = _CHOICES[field]
    known = [choice.value for choice in choices] + (
        ["live", "finished"] if field == "phase" else []
    )
    if text not in known:
        raise InvalidInput("filter", f"{field}: {text[:40]!r} is not one of {', '.join(known)}")
    if op not in {"=", "!="}:
        raise InvalidInput("filter", f"{field} is compared with = or !=, not {op}")
    wanted = _meant_by(field, text)
    if op == "!=":
        wanted = frozenset(choice.value for choice in choices) - wanted
    read = _READ[field]
    marks = ",".join("?" * len(wanted))
    return _Condition(
        lambda record: read(record) in wanted,
        Where(f"j.{field} IN ({marks})", tuple(sorted(wanted))),
        frozenset(JobPhase(value) for value in wanted)
        if field == "phase"
        else frozenset(JobPhase),
    )


def _meant_by(field: str, text: str) -> frozenset[str]:
    finals = frozenset(phase.value for phase in FINAL_JOB_PHASES)
    if field == "phase" and text == "finished":
        return finals
    if field == "phase" and text == "live":
        return frozenset(phase.value for phase in JobPhase) - finals
    return frozenset({text})


def _on_column(field: str, op: str, value: Value) -> _Condition:
    read = _READ[field]
    if op == "~":
        text = str(value)
        return _Condition(
            lambda record: text in str(read(record)), Where(f"instr(j.{field}, ?) > 0", (text,))
        )
    if op == "!=":
        return _Condition(
            lambda record: read(record) != value, Where(f"j.{field} <> ?", (value,))
        )
    compare = _COMPARE[op]
    return _Condition(
        lambda record: compare(read(record), value), Where(f"j.{field} {op} ?", (value,))
    )


def _on_nodes(op: str, text: str) -> _Condition:
    matches = _text_test("=" if op == "!=" else op, text)
    where = _text_where("node", "=" if op == "!=" else op)

    def on_one(record: JobRecord) -> bool:
        return any(matches(task.node) for task in record.tasks.values())

    return _maybe_not(
        op,
        on_one,
        Where(
            "j.sequence IN"  # noqa: S608 - an operator of ours; values are parameters
            f" (SELECT sequence FROM finished_nodes WHERE {where})",
            (text,),
        ),
    )


def _on_label(key: str, op: str, text: str) -> _Condition:
    matches = _text_test("=" if op == "!=" else op, text)
    where = _text_where("value", "=" if op == "!=" else op)

    def has_it(record: JobRecord) -> bool:
        return any(k == key and matches(value) for k, value in record.job.spec.labels)

    return _maybe_not(
        op,
        has_it,
        Where(
            "j.sequence IN"  # noqa: S608 - an operator of ours; values are parameters
            f" (SELECT sequence FROM finished_labels WHERE key = ? AND {where})",
            (key, text),
        ),
    )


def _maybe_not(op: str, test: Predicate, where: Where) -> _Condition:
    if op != "!=":
        return _Condition(test, where)
    return _Condition(
        lambda record: not test(record), Where(f"NOT ({where.sql})", where.parameters)
    )


def _text_test(op: str, text: str) -> Callable[[str], bool]:
    if op == "~":
        return lambda value: text in value
    compare = _COMPARE[op]
    return lambda value: compare(value, text)


def _text_where(column: str, op: str) -> str:
    return f"instr({column}, ?) > 0" if op == "~" else f"{column} {op} ?"


def _all_of(tests: Sequence[Predicate]) -> Predicate:
    match tests:
        case []:
            return lambda _: True
        case [test]:
            return test
        case _:
            return lambda record: all(test(record) for test in tests)
