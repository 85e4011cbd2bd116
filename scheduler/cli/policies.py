"""`lepton policies`: what a configuration may name as its policy."""

from typing import Annotated

import typer

from scheduler.cli.output import Format


def policies(
    output: Annotated[
        Format, typer.Option("--output", "-o", help="table, wide, json or yaml.")
    ] = Format.TABLE,
) -> None:
    """List the policies: what each aims at, and where it comes from.

    `policy: NAME` in the daemon's configuration chooses one; docs/policies.md explains them.

    Examples:
      lepton policies
      lepton policies -o json | jq -r '.policies[].name'
    """
    import sys

    from policies.registry import ABOUT, POLICIES
    from scheduler.cli.output import print_data, print_lines
    from scheduler.cli.table import Column, table_lines
    from scheduler.cli.terminal import width_of

    if output.is_for_people:
        columns = (
            Column(title="NAME"),
            Column(title="AIM", is_flexible=True),
            Column(title="SOURCE", is_flexible=True),
        )
        rows = [(name, about.aim, about.source) for name, about in ABOUT.items()]
        is_wide = output is Format.WIDE
        print_lines(table_lines(columns, rows, width=width_of(sys.stdout), is_wide=is_wide))
        return
    listed = [
        {
            "name": name,
            "aim": about.aim,
            "source": about.source,
            "takes_turns": POLICIES[name].rounds is not None,
        }
        for name, about in ABOUT.items()
    ]
    print_data({"policies": listed}, output)
