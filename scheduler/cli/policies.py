"""`lepton policies`: what a configuration may name as its policy, or as its score."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.output import Format, FormatOption

if TYPE_CHECKING:
    from policies.outside import Outsider

BUILT_IN = "lepton"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One name, and what is known of it."""

    name: str
    aim: str
    source: str
    takes_turns: bool
    origin: str


def policies(
    output: FormatOption = Format.TABLE,
    scores: Annotated[bool, typer.Option("--scores", help="List the scores instead.")] = False,
) -> None:
    """List the policies: what each aims at, and where it comes from.

    `policy: NAME` in the daemon's configuration chooses one, `score: NAME` a score. Those that
    other packages bring are listed with their origin; docs/extending.md says how to write one.

    Examples:
      lepton policies
      lepton policies --scores
      lepton policies -o json | jq -r '.policies[].name'
    """
    from dataclasses import asdict

    from scheduler.cli.output import print_data

    entries = _scores() if scores else _policies()
    if output.is_for_people:
        _print_table(entries, is_wide=output is Format.WIDE, are_scores=scores)
    elif scores:
        print_data({"scores": [{"name": e.name, "origin": e.origin} for e in entries]}, output)
    else:
        print_data({"policies": [asdict(entry) for entry in entries]}, output)


def _print_table(entries: list[_Entry], *, is_wide: bool, are_scores: bool) -> None:
    import sys

    from scheduler.cli.output import print_lines
    from scheduler.cli.table import Column, table_lines
    from scheduler.cli.terminal import width_of

    columns = [Column(title="NAME")]
    fields = ["name"]
    if not are_scores:
        columns += [Column(title=t, is_flexible=True) for t in ("AIM", "SOURCE")]
        fields += ["aim", "source"]
    if are_scores or is_wide or any(entry.origin != BUILT_IN for entry in entries):
        columns.append(Column(title="ORIGIN"))
        fields.append("origin")
    rows = [[getattr(entry, field) for field in fields] for entry in entries]
    print_lines(table_lines(columns, rows, width=width_of(sys.stdout), is_wide=is_wide))


def _policies() -> list[_Entry]:
    from policies import outside
    from policies.registry import ABOUT, POLICIES

    built_in = [
        _Entry(
            name=name,
            aim=about.aim,
            source=about.source,
            takes_turns=POLICIES[name].rounds is not None,
            origin=BUILT_IN,
        )
        for name, about in ABOUT.items()
    ]
    others = []
    for found in outside.outsiders(outside.POLICY_GROUP).values():
        aim, takes_turns = outside.described(found)
        others.append(
            _Entry(
                name=found.name,
                aim=aim,
                source="",
                takes_turns=takes_turns,
                origin=_origin(found, POLICIES),
            )
        )
    return built_in + others


def _origin(found: "Outsider", known: Collection[str]) -> str:
    return f"{found.origin}, hidden by Lepton's" if found.name in known else found.origin


def _scores() -> list[_Entry]:
    from policies import outside
    from policies.registry import AIMED_SCORES, SCORES, TIMED_SCORES

    known = [*SCORES, *AIMED_SCORES, *TIMED_SCORES]
    found = outside.outsiders(outside.SCORE_GROUP).values()
    listed = [(name, BUILT_IN) for name in known]
    listed += [(other.name, _origin(other, known)) for other in found]
    return [
        _Entry(name=name, aim="", source="", takes_turns=False, origin=origin)
        for name, origin in listed
    ]
