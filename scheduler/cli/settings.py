"""The options that every command takes, before or after its name: output and server.

They are kept in the context's `meta`, which a command shares with `lepton` itself; what
stands after the command wins. Environment variables fill what no option says.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from scheduler.cli.errors import CommandError, ExitCode
from scheduler.cli.output import Format

_META = "lepton."


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the shared options and the environment say."""

    output: Format = Format.TABLE
    server: str = ""  # empty: the daemon of this user on this machine
    token: str = ""
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    @classmethod
    def of(cls, ctx: typer.Context) -> "Settings":
        """Return the settings of a command that runs in this context."""
        return cls.from_values(
            {
                name.removeprefix(_META): value
                for name, value in ctx.meta.items()
                if name.startswith(_META)
            },
            os.environ,
        )

    @classmethod
    def from_values(cls, given: Mapping[str, Any], env: Mapping[str, str]) -> "Settings":
        """Return the settings for these options in this environment."""
        return cls(
            output=given.get("output") or Format.TABLE,
            server=given.get("server") or env.get("LEPTON_SERVER", ""),
            token=given.get("token") or _token(env),
            ca=given.get("ca") or _path(env, "LEPTON_CA"),
            cert=given.get("cert") or _path(env, "LEPTON_CERT"),
            key=given.get("key") or _path(env, "LEPTON_KEY"),
        )


def _path(env: Mapping[str, str], name: str) -> Path | None:
    return Path(env[name]) if env.get(name) else None


def _token(env: Mapping[str, str]) -> str:
    if env.get("LEPTON_TOKEN"):
        return env["LEPTON_TOKEN"]
    path = _path(env, "LEPTON_TOKEN_FILE")
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(
            f"the token cannot be read: {error}",
            hint="LEPTON_TOKEN_FILE must name a file that you may read",
            code=ExitCode.USAGE,
        ) from error


def _remember(ctx: typer.Context, param: typer.CallbackParam, value: object) -> object:
    if value is not None:
        ctx.meta[f"{_META}{param.name}"] = value
    return value


def shared_options(
    output: Annotated[
        Format | None,
        typer.Option(
            "--output",
            "-o",
            callback=_remember,
            expose_value=False,
            metavar="table|wide|json|yaml",
            help="How to print the result.",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            callback=_remember,
            expose_value=False,
            metavar="HOST:PORT",
            help="The daemon. [LEPTON_SERVER; default: the one on this machine]",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            callback=_remember,
            expose_value=False,
            metavar="TEXT",
            help="Who you are. [LEPTON_TOKEN, LEPTON_TOKEN_FILE]",
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            callback=_remember,
            expose_value=False,
            metavar="FILE",
            help="Certificates that vouch for the daemon. [LEPTON_CA]",
        ),
    ] = None,
    cert: Annotated[
        Path | None,
        typer.Option(
            callback=_remember,
            expose_value=False,
            metavar="FILE",
            help="Your client certificate. [LEPTON_CERT]",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            callback=_remember,
            expose_value=False,
            metavar="FILE",
            help="The key of your client certificate. [LEPTON_KEY]",
        ),
    ] = None,
) -> None:
    """Declare the shared options; never called."""
