"""`lepton config`: is a file right, and what may stand in it. Needs no daemon."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scheduler.cli.command import LeptonCommand, LeptonFamily
from scheduler.cli.errors import CommandError, ExitCode

app = typer.Typer(
    cls=LeptonFamily, no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


class FileKind(StrEnum):
    """The files that people write."""

    DAEMON = "daemon"
    JOB = "job"


@app.callback()
def config() -> None:
    """Check the daemon's configuration or a job file; print their schemas."""


@app.command(cls=LeptonCommand)
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="YAML files.")],
    kind: Annotated[
        FileKind | None,
        typer.Option(help="What they are; without it, the fields in them tell."),
    ] = None,
) -> None:
    """Check configuration and job files: every mistake is told with its line.

    Exits with 64 if a file is wrong. Nothing is sent to a daemon.

    Examples:
      lepton config check lepton.yaml
      lepton config check --kind job jobs/*.yaml
    """
    from scheduler.cli.terminal import note, say
    from scheduler.yaml_source import InvalidSource

    n_wrong = 0
    for path in files:
        try:
            say(f"{path}: {_checked(path, kind)}")
        except InvalidSource as error:
            note(str(error))
            n_wrong += 1
        except (OSError, UnicodeDecodeError) as error:
            note(f"{path}: cannot be read: {error}")
            n_wrong += 1
    if n_wrong:
        raise CommandError(
            f"{n_wrong} of {len(files)} file{'' if len(files) == 1 else 's'} cannot be used",
            hint="`lepton config schema job` and `... daemon` print what is allowed.",
            code=ExitCode.USAGE,
        )


def _checked(path: Path, kind: FileKind | None) -> str:
    """Return what the file is, in a few words; raise what is wrong with it."""
    from scheduler.config import DaemonConfig, load_config
    from scheduler.job_file import load_job_files
    from scheduler.yaml_source import InvalidSource, load_yaml_with_lines

    if kind is None:
        kind = FileKind.JOB
        try:
            data, _ = load_yaml_with_lines(path.read_text(encoding="utf-8"), str(path))
        except InvalidSource:  # several documents, or no YAML at all
            data = {}
        if data.keys() & DaemonConfig.model_fields.keys():
            kind = FileKind.DAEMON
    if kind is FileKind.JOB:
        jobs = load_job_files(path)
        names = ", ".join(job.spec.name for job in jobs)
        return f"{len(jobs)} job{'' if len(jobs) == 1 else 's'}: {names}"
    loaded = load_config(path)
    n_nodes = len(loaded.declared_nodes())
    nodes = f"{n_nodes} nodes declared" if n_nodes else "this machine as its node"
    return f"a daemon on {loaded.listen}, policy {loaded.policy}, {nodes}"


@app.command(cls=LeptonCommand)
def schema(
    kind: Annotated[FileKind, typer.Argument(help="Which file.")],
) -> None:
    """Print the JSON schema of a file, for editors that complete and check YAML.

    Examples:
      lepton config schema job > job.schema.json
    """
    import json

    from scheduler.cli.terminal import say

    if kind is FileKind.JOB:
        from scheduler.job_file import job_file_schema

        data = job_file_schema()
    else:
        from scheduler.config import DaemonConfig

        data = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **DaemonConfig.model_json_schema(),
        }
    say(json.dumps(data, indent=2))


@app.command(cls=LeptonCommand)
def token(
    user: Annotated[str, typer.Argument(metavar="USER", help="Who will show the token.")],
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add its line to this token file of the daemon."),
    ] = None,
) -> None:
    """Make a token for a user: printed once, and kept by the daemon only as a hash.

    Without --file, the line for the token file goes to stderr. A running daemon reads the
    file again when it changes; taking a line out of it revokes the token.

    Examples:
      lepton config token ada --file tokens > ada.token
      LEPTON_TOKEN_FILE=ada.token lepton info --server gpu-head:7070
    """
    from scheduler.cli.terminal import note, say
    from scheduler.daemon.security import new_token

    if not user or any(c.isspace() or c == "#" for c in user):
        raise typer.BadParameter(f"{user!r} is not one word", param_hint="USER")
    secret, line = new_token(user)
    if file is None:
        note(line)
    else:
        _append_line(file, line)
    say(secret)


def _append_line(path: Path, line: str) -> None:
    """Add a line to a file that only its owner may read."""
    import os

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
            before = file.read()
            file.write(line + "\n" if not before or before.endswith("\n") else f"\n{line}\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be written: {error}") from error
