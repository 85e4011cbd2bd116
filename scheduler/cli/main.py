"""The `lepton` command: its verbs, what they share, and how it ends.

Verbs are imported when they are used, so that `lepton --help` and completion answer at once.
Here also errors become a line for people and an exit code.
"""

import io
import os
import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any, NamedTuple, cast

import typer
from typer.core import CompletionItem, TyperGroup  # type: ignore[attr-defined]

from scheduler.cli.command import LeptonCommand, shared_params, write_options, write_text
from scheduler.cli.errors import EXIT_CODES_HELP, CommandError, ExitCode, ReaderGone
from scheduler.cli.terminal import note, styled


class Verb(NamedTuple):
    """A command: its name, where it is, and what it does in a line."""

    name: str
    target: str
    summary: str
    is_local: bool = False  # needs no daemon, so takes no shared options


SECTIONS: dict[str, tuple[Verb, ...]] = {
    "Jobs": (
        Verb("submit", "submit:submit", "Submit a job file, or a command after --."),
        Verb("jobs", "jobs:jobs", "List jobs."),
        Verb("job", "jobs:job", "Show one job and its tasks."),
        Verb("explain", "explain:explain", "Say why a job waits, and until when."),
        Verb("logs", "logs:logs", "Print what a job writes."),
        Verb("wait", "follow:wait", "Wait until jobs end; exit as they did."),
        Verb("watch", "follow:watch", "Print changes of jobs as they happen."),
        Verb("cancel", "control:cancel", "Give jobs up."),
        Verb("suspend", "control:suspend", "Put jobs on hold; they keep their place."),
        Verb("resume", "control:resume", "Let suspended jobs go on."),
        Verb("update", "control:update", "Change priority, time limit or replicas."),
        Verb("signal", "control:signal", "Send a signal to a job's processes."),
    ),
    "Cluster": (
        Verb("top", "top:top", "Watch the cluster live."),
        Verb("nodes", "nodes:nodes", "List nodes."),
        Verb("node", "nodes:node", "Show one node and its GPUs."),
        Verb("cordon", "nodes:cordon", "Close nodes to new tasks."),
        Verb("uncordon", "nodes:uncordon", "Open nodes again."),
        Verb("drain", "nodes:drain", "Empty nodes: stop their tasks and close them."),
        Verb("queues", "queues:queues", "List queues."),
        Verb("queue", "queues:app", "Make, change, start, stop, drain or delete a queue."),
        Verb("info", "info:info", "Show the daemon: version, policy, load."),
    ),
    "Simulator": (
        Verb("simulate", "simulate:simulate", "Compare policies on a trace.", is_local=True),
        Verb("plan", "plan:plan", "Find the cheapest machines for goals.", is_local=True),
        Verb("replay", "replay:replay", "Try policies on the daemon's past.", is_local=True),
    ),
    "Daemon": (
        Verb("daemon", "daemon:daemon", "Run the daemon.", is_local=True),
        Verb("policies", "policies:policies", "List the policies there are.", is_local=True),
        Verb("config", "config:app", "Check files; print their schemas.", is_local=True),
        Verb(
            "journal",
            "journal:app",
            "Verify, dump, export or restore a journal.",
            is_local=True,
        ),
    ),
}
VERBS = {verb.name: verb for verbs in SECTIONS.values() for verb in verbs}


class LeptonGroup(TyperGroup):
    """`lepton` itself: verbs by section, errors for people, exit codes as documented."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401
        super().__init__(**attributes)
        self.commands = cast("Any", _LazyCommands())
        self.params = [*self.params, *shared_params()]

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401
        """Return the names without importing the verbs."""
        return list(self.commands)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write the docstring."""
        write_text(formatter, self.help or "")

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write the verbs by section, then the options, then the exit codes."""
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{verb.name:<9}", verb.summary) for verb in verbs])
        write_options(formatter, self.get_params(ctx), ctx)
        with formatter.section("Exit codes"):
            formatter.write_dl([(f"{code:<9}", meaning) for code, meaning in EXIT_CODES_HELP])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:  # noqa: ANN401
        """Offer verbs, without importing them, and options."""
        verbs = [verb for verb in VERBS.values() if verb.name.startswith(incomplete)]
        items = [CompletionItem(verb.name, help=verb.summary) for verb in verbs]
        return [*items, *super(TyperGroup, self).shell_complete(ctx, incomplete)]

    def main(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401
        """Run a command line and exit."""
        extra["standalone_mode"] = False
        sys.exit(_guarded(super().main, *args, **extra))


class _LazyCommands(MutableMapping[str, Any]):
    """The verbs by name, imported when they are looked up."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        if name not in self._loaded:
            self._loaded[name] = _load(VERBS[name])
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:  # noqa: ANN401
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


def _load(verb: Verb) -> Any:  # noqa: ANN401
    module_name, attribute = verb.target.split(":")
    module = import_module(f"scheduler.cli.{module_name}")
    found = getattr(module, attribute)
    if isinstance(found, typer.Typer):
        command = typer.main.get_command(found)
        leaves = list(getattr(command, "commands", {}).values())
    else:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        cls = getattr(module, "COMMAND_CLASS", LeptonCommand)
        app.command(verb.name, cls=cls)(found)
        command = typer.main.get_command(app)
        leaves = [command]
    for leaf in leaves if not verb.is_local else []:
        leaf.params.extend(shared_params())
    _allow_short_help(command, *leaves)
    command.short_help = verb.summary
    return command


def _allow_short_help(*commands: Any) -> None:  # noqa: ANN401
    for command in commands:
        command.context_settings.setdefault("help_option_names", ["-h", "--help"])


def _guarded(run: Any, *args: Any, **extra: Any) -> int:  # noqa: ANN401
    """Run, and turn whatever ends it into a message and an exit code."""
    try:
        result = run(*args, **extra)
        sys.stdout.flush()
    except typer.TyperException as error:
        return _usage_error(error)
    except CommandError as error:
        note(f"{styled('Error:', 'red', sys.stderr)} {error.message}")
        if error.hint:
            note(error.hint)
        return int(error.code)
    except typer.Abort:
        return int(ExitCode.INTERRUPTED)
    except (BrokenPipeError, ReaderGone):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.BROKEN_PIPE)
    except Exception as error:
        if os.environ.get("LEPTON_DEBUG"):
            raise
        note(f"{styled('Error:', 'red', sys.stderr)} {type(error).__name__}: {error}")
        note("This is a bug in lepton. LEPTON_DEBUG=1 shows where; please report it.")
        return int(ExitCode.ERROR)
    return result if isinstance(result, int) else int(ExitCode.DONE)


def _usage_error(error: typer.TyperException) -> int:
    ctx = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        note(error.format_message())
        return int(ExitCode.USAGE)
    message = error.format_message().replace("Value error, ", "")  # pydantic's, in typer
    note(f"{styled('Error:', 'red', sys.stderr)} {message}")
    if ctx is not None:
        note(f"Try: {ctx.command_path} --help")
    return int(
        ExitCode.USAGE if error.exit_code == ExitCode.CANNOT_BE_PLACED else error.exit_code
    )


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        sys.stdout.write(f"lepton {version('lepton-scheduler')}\n")
        raise typer.Exit


app = typer.Typer(
    cls=LeptonGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def lepton(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Lepton schedules GPU training and inference.

    Examples:
      lepton daemon                              start the daemon on this machine
      lepton submit --gpus 2 -- python train.py  run it when 2 GPUs are free
      lepton jobs                                see what runs and what waits
      lepton explain 17                          why job 17 waits, until when
    """


def main() -> None:
    """Run `lepton` on the command line's arguments."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal without Unicode is no reason to fail
    typer.main.get_command(app)(prog_name="lepton")
