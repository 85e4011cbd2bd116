"""A verb of the command line: how its help looks, and the options it shares with all others."""

import textwrap
from functools import cache
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from scheduler.cli.settings import shared_options

SECTION_TITLES = ("Arguments", "Options", "Everywhere")


class LeptonCommand(TyperCommand):
    """A verb: its help is printed as it is written, shared options apart from its own."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write the docstring, keeping its examples as they are."""
        write_text(formatter, self.help or "")

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write arguments and options; those of every command last."""
        write_options(formatter, self.get_params(ctx), ctx)


class LeptonFamily(TyperGroup):
    """A verb with verbs of its own, as `lepton queue put`."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write the docstring."""
        write_text(formatter, self.help or "")

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write each verb with the first line of its docstring, whole."""
        records = [
            (name, (command.help or "").partition("\n")[0])
            for name, command in self.commands.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(records)


def write_text(formatter: Any, text: str) -> None:  # noqa: ANN401
    """Write paragraphs filled to the width, those with indented lines as they are."""
    for paragraph in filter(None, text.split("\n\n")):
        lines = paragraph.splitlines()
        if not any(line.startswith(" ") for line in lines):
            lines = textwrap.wrap(paragraph, formatter.width - 2, break_on_hyphens=False)
        formatter.write("\n" + "".join(f"  {line}\n" for line in lines))


def write_options(formatter: Any, params: list[Any], ctx: Any) -> None:  # noqa: ANN401
    """Write parameters in sections."""
    sections: dict[str, list[tuple[str, str]]] = {}
    shared = {param.name for param in shared_params()}
    for param in params:
        record = param.get_help_record(ctx)
        if record is not None:
            is_argument = param.param_type_name == "argument"
            own = "Arguments" if is_argument else "Options"
            sections.setdefault("Everywhere" if param.name in shared else own, []).append(
                record
            )
    for title in SECTION_TITLES:
        if records := sections.get(title):
            with formatter.section(title):
                formatter.write_dl(records)


@cache
def shared_params() -> tuple[Any, ...]:
    """Return the options that every verb takes."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(shared_options)
    return tuple(typer.main.get_command(app).params)
