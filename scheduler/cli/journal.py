"""`lepton journal`: look into a journal's folder, beside a running daemon or without one.

`verify` checks everything and exits 1 if anything is wrong, `dump` prints the state after an
event as JSON, `export` the events as JSON Lines, which the simulator can replay; these only
read. `restore` makes a damaged journal one to start from, and keeps the damaged files.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from scheduler.cli.errors import CommandError, ExitCode
from scheduler.cli.terminal import note, say
from scheduler.core.dump import Dump
from scheduler.core.engine import Engine
from scheduler.core.errors import SchedulerError
from scheduler.core.events import Event
from scheduler.daemon.event_codec import EVENT_KINDS
from scheduler.daemon.journal import JournalTooNew
from scheduler.daemon.journal_reading import (
    Findings,
    oldest_state,
    replay_until,
    salvage_events,
    stored_history,
)
from scheduler.daemon.journal_reading import verify as examine
from scheduler.daemon.journal_restoring import Restored
from scheduler.daemon.journal_restoring import restore as restore_journal

app = typer.Typer(
    name="journal",
    help="Verify, dump, export or restore a journal.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Report(StrEnum):
    """How `verify` prints what it found."""

    TABLE = "table"
    JSON = "json"


Folder = Annotated[
    Path, typer.Argument(help="The daemon's state folder, which holds journal.sqlite.")
]


@app.command()
def verify(
    folder: Folder,
    output: Annotated[
        Report, typer.Option("-o", "--output", help="How to print it.")
    ] = Report.TABLE,
) -> None:
    """Check every event, dump and finished job; exit 1 if anything is wrong."""
    findings = _examine(folder)
    if output is Report.JSON:
        say(json.dumps({**asdict(findings), "is_sound": findings.is_sound}))
    else:
        say(_described(findings))
    if not findings.is_sound:
        raise typer.Exit(int(ExitCode.ERROR))


@app.command()
def dump(
    folder: Folder,
    at: Annotated[
        int | None,
        typer.Option(min=0, metavar="SEQ", help="After this event instead of the last."),
    ] = None,
) -> None:
    """Print the state as JSON: nodes, queues, live jobs, remembered outcomes."""
    with _clear_errors():
        start, events = replay_until(folder, at)
    engine = Engine.restore(start) if start is not None else Engine()
    for event in events:
        engine.observe(event)
    say(msgspec.json.format(msgspec.json.encode(engine.dump()), indent=2).decode())


@app.command()
def export(
    folder: Folder,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="From here on: epoch seconds or ISO 8601 (UTC).")
    ] = "",
    until: Annotated[
        str, typer.Option(metavar="TIME", help="Before this: epoch seconds or ISO 8601 (UTC).")
    ] = "",
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="Only events of this kind; may be repeated."),
    ] = None,
    recover: Annotated[
        bool, typer.Option("--recover", help="Pass over damage; print whatever can be read.")
    ] = False,
) -> None:
    """Print the events that are kept as JSON Lines: sequence, at_s, kind, event.

    Where the first events are gone, and no option leaves others out, a line of the kind State
    says in its place what had come of them by then, so that the simulator can go on from it.
    """
    since_s, until_s = _moment(since, "--since"), _moment(until, "--until")
    kinds = frozenset(kind or EVENT_KINDS)
    if unknown := sorted(kinds - EVENT_KINDS):
        known = ", ".join(sorted(EVENT_KINDS))
        raise CommandError(
            f"--kind {unknown[0]}: no such event", hint=f"One of {known}", code=ExitCode.USAGE
        )
    with _clear_errors():
        if not (since or until or kind or recover):
            for line in whole_lines(folder):
                say(line)
            return
        events = salvage_events(folder) if recover else stored_history(folder)
        for sequence, event in _noting_gaps(events) if recover else events:
            at_s = event.at_s
            is_in_time = (since_s is None or at_s >= since_s) and (
                until_s is None or at_s < until_s
            )
            if is_in_time and type(event).__name__ in kinds:
                say(_line(sequence, event))


def whole_lines(folder: Path) -> Iterator[str]:
    """Yield all events that are kept, as `export` prints them without options."""
    state = oldest_state(folder)
    for sequence, event in stored_history(folder):
        if state is not None and sequence > state.revision:
            yield _state_line(state)
            state = None
        yield _line(sequence, event)


@app.command()
def restore(folder: Folder) -> None:
    """Make a damaged journal one to start from: all up to the first damage.

    What comes after it cannot be replayed and is lost to the daemon; it stays in the damaged
    files, which are put aside. Stop the daemon first.

    Examples:
      lepton journal verify /var/lib/lepton
      lepton journal restore /var/lib/lepton
    """
    with _clear_errors():
        restored = restore_journal(folder)
    say(_sentence(restored))
    if restored.n_finished_lost:
        note(f"{restored.n_finished_lost} finished jobs could not be read and are lost.")
    note(f"The damaged files are in {restored.damaged}.")


def _sentence(restored: Restored) -> str:
    last, lost_until = restored.last_sequence, restored.lost_until
    kept = f"Restored everything up to event {last}, with {restored.n_finished} finished jobs"
    return (
        f"{kept}; events {last + 1} to {lost_until} are lost."
        if lost_until > last
        else (f"{kept}; nothing is lost.")
    )


def _examine(folder: Path) -> Findings:
    try:
        return examine(folder)
    except JournalTooNew as error:
        raise CommandError(str(error)) from error


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except (SchedulerError, OSError) as error:
        raise CommandError(str(error)) from error


def _described(findings: Findings) -> str:
    rows = [
        ("events", f"{findings.n_events}, from {findings.first_sequence} to"
                   f" {findings.last_sequence}"),
        ("acknowledged", f"up to {findings.acknowledged}"),
        ("dumps", ", ".join(map(str, findings.dumps)) or "none"),
        ("finished jobs", str(findings.n_finished)),
        ("schema", str(findings.schema)),
        ("a start replays", "nothing: it refuses" if findings.replay_from is None
                            else f"from event {findings.replay_from + 1}"),
    ]  # fmt: skip
    lines = [f"{name:<16} {value}" for name, value in rows]
    lines += [f"problem: {problem}" for problem in findings.problems]
    return "\n".join([*lines, "sound" if findings.is_sound else "damaged"])


def _line(sequence: int, event: Event) -> str:
    return msgspec.json.encode(
        {
            "sequence": sequence,
            "at_s": event.at_s,
            "kind": type(event).__name__,
            "event": event,
        }
    ).decode()


def _state_line(dump: Dump) -> str:
    line = {"sequence": dump.revision, "at_s": dump.now_s, "kind": "State", "event": dump}
    return msgspec.json.encode(line).decode()


def _noting_gaps(events: Iterator[tuple[int, Event]]) -> Iterator[tuple[int, Event]]:
    count, last = 0, 0
    for sequence, event in events:
        if sequence > last + 1:
            note(f"missing: events {last + 1} to {sequence - 1}")
        count, last = count + 1, sequence
        yield sequence, event
    note(f"recovered {count} events, up to {last}")


def _moment(text: str, option: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(
            f"{option} {text}: not a moment",
            hint="Epoch seconds, or for example 2025-06-01T12:00:00",
            code=ExitCode.USAGE,
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
