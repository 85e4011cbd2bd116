"""`lepton cancel`, `suspend`, `resume`, `update` and `signal`: steering jobs."""

import signal as signals
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.completion import complete_live_job
from scheduler.cli.settings import Settings
from scheduler.quantities import MOST, Priority, parse_duration_s, parse_priority

if TYPE_CHECKING:
    from scheduler.client import Client
    from scheduler.wire import cluster_pb2 as pb

Jobs = Annotated[
    list[str],
    typer.Argument(metavar="JOB", help="Ids or names.", autocompletion=complete_live_job),
]
Job = Annotated[
    str, typer.Argument(metavar="JOB", help="Id or name.", autocompletion=complete_live_job)
]


def cancel(ctx: typer.Context, names: Jobs) -> None:
    """Give jobs up: those that run are asked to stop (TERM, then KILL after their grace).

    The id of an array means all its elements, 17_3 means one of them.

    Examples:
      lepton cancel 17
      lepton cancel 17_3 train
      lepton jobs --mine -o json | jq -r '.jobs[].id' | xargs lepton cancel
    """
    _change(ctx, names, lambda client, job_id: client.cancel(job_id), "Cancelled")


def suspend(ctx: typer.Context, names: Jobs) -> None:
    """Put jobs on hold: they stop, hold nothing, and keep their place in the order.

    Examples:
      lepton suspend 17
      lepton resume 17
    """
    _change(ctx, names, lambda client, job_id: client.suspend(job_id), "Suspended")


def resume(ctx: typer.Context, names: Jobs) -> None:
    """Let suspended jobs wait for capacity again.

    Examples:
      lepton resume 17
      lepton jobs --phase suspended
    """
    _change(ctx, names, lambda client, job_id: client.resume(job_id), "Resumed")


def update(
    ctx: typer.Context,
    name: Job,
    priority: Annotated[
        Priority | None,
        typer.Option(parser=parse_priority, metavar="N|CLASS", help="Higher is served first."),
    ] = None,
    time: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration_s,
            metavar="TIME",
            help="New time limit: 90m, 1:30:00; 0: none.",
        ),
    ] = None,
    replicas: Annotated[
        list[str] | None,
        typer.Option(metavar="[ROLE=]N", help="New number of tasks, within its min and max."),
    ] = None,
) -> None:
    """Change a job that has not ended; what you do not name stays as it is.

    Examples:
      lepton update 17 --priority 100
      lepton update 17 --priority high        a class of the configuration
      lepton update 17 --time 4h
      lepton update serve --replicas replica=3
    """
    wanted = dict(_replicas(text) for text in replicas or ())
    if priority is None and time is None and not wanted:
        raise typer.BadParameter("say what to change: --priority, --time or --replicas")

    async def change(client: "Client", job_id: str) -> "pb.JobsChanged":
        counts = dict(wanted)
        if "" in counts:
            job = (await client.members(job_id))[0]
            counts[job.spec.roles[0].name] = counts.pop("")
        is_named = priority is not None and bool(priority.name)
        return await client.update(
            job_id,
            priority=None if priority is None or is_named else priority.value,
            priority_class=priority.name if priority is not None else "",
            time_limit_s=time,
            replicas=counts,
        )

    _change(ctx, [name], change, "Updated")


def _replicas(text: str) -> tuple[str, int]:
    role, _, count = text.rpartition("=")
    if not count.isascii() or not count.isdigit() or len(count) > len(str(MOST)) - 1:
        raise typer.BadParameter(f"{text!r}: write 3, or ROLE=3", param_hint="--replicas")
    return role, int(count)


def signal(
    ctx: typer.Context,
    name: Job,
    which: Annotated[str, typer.Argument(metavar="SIGNAL", help="USR1, SIGTERM or 15.")],
    role: Annotated[str, typer.Option(help="Only tasks of this role.")] = "",
    index: Annotated[
        int | None, typer.Option(min=0, max=MOST, help="Only this task of the role.")
    ] = None,
) -> None:
    """Send a signal to the processes of a job.

    Examples:
      lepton signal 17 USR1                   have it write a checkpoint, say
      lepton signal 17 TERM --role worker --index 0
    """
    from scheduler.cli.connection import job_id_of, run
    from scheduler.cli.output import print_data
    from scheduler.cli.terminal import say

    number = _signal_number(which)
    settings = Settings.of(ctx)

    async def work(client: "Client") -> tuple[str, int]:
        job_id = await job_id_of(client, name, to_change=True)
        return job_id, await client.signal(job_id, number, role=role, index=index)

    job_id, n_tasks = run(settings, work, what="sending")
    if not settings.output.is_for_people:
        print_data({"job_id": job_id, "signal": number, "n_tasks": n_tasks}, settings.output)
        return
    known = {member.value: member.name for member in signals.Signals}
    word = known.get(number, str(number))
    say(f"Sent {word} to {n_tasks} task{'' if n_tasks == 1 else 's'} of job {job_id}.")


def _signal_number(text: str) -> int:
    if text.isdigit() and 0 < int(text) <= signals.SIGRTMAX:
        return int(text)
    name = text.upper()
    try:
        return signals.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except KeyError:
        raise typer.BadParameter(
            f"{text!r} is no signal: write USR1, SIGUSR1 or 10", param_hint="SIGNAL"
        ) from None


def _change(
    ctx: typer.Context,
    names: list[str],
    change: "Callable[[Client, str], Awaitable[pb.JobsChanged]]",
    verb: str,
) -> None:
    """Change every named job; a refusal is told at the end and stops no other."""
    from scheduler.cli.connection import command_error, job_id_of, run, server_address
    from scheduler.cli.errors import CommandError
    from scheduler.cli.output import plain, print_data
    from scheduler.cli.terminal import note, say
    from scheduler.client import ClientError

    settings = Settings.of(ctx)
    errors: list[CommandError] = []

    async def work(client: "Client") -> "list[tuple[str, pb.JobsChanged]]":
        done = []
        for name in names:
            try:
                job_id = await job_id_of(client, name, to_change=True)
                done.append((job_id, await change(client, job_id)))
            except CommandError as error:
                errors.append(error)
            except ClientError as error:
                if error.is_transient:
                    raise
                errors.append(command_error(error, server_address(settings)))
        return done

    done = run(settings, work, what="waiting for the daemon")
    if not settings.output.is_for_people:
        changes = [{"job_id": job_id, **plain(changed)} for job_id, changed in done]
        print_data(changes[0] if len(names) == 1 and changes else changes, settings.output)
    else:
        for job_id, changed in done:
            say(_change_sentence(job_id, list(changed.job_ids), verb))
    for error in errors[:-1]:
        note(f"Error: {error.message}", "red")
    if errors:
        raise errors[-1]


def _change_sentence(job_id: str, changed: list[str], verb: str) -> str:
    if not changed:
        return f"Job {job_id}: nothing to change."
    if changed == [job_id]:
        return f"{verb} job {job_id}."
    return f"{verb} {len(changed)} jobs of array {job_id}."
