"""`lepton queues` and `lepton queue`: where jobs wait, and who may put them there."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.command import LeptonCommand, LeptonFamily
from scheduler.cli.completion import complete_queue
from scheduler.cli.settings import Settings
from scheduler.quantities import parse_duration_s

if TYPE_CHECKING:
    from scheduler.client import Client
    from scheduler.wire import cluster_pb2 as pb

Name = Annotated[
    str,
    typer.Argument(metavar="QUEUE", help="Name of the queue.", autocompletion=complete_queue),
]
Names = Annotated[
    list[str],
    typer.Argument(metavar="QUEUE...", help="Their names.", autocompletion=complete_queue),
]


class Preempt(StrEnum):
    """Whom jobs of a queue may stop, as the option says it."""

    NEVER = "never"
    IN_QUEUE = "in_queue"
    ANYWHERE = "anywhere"


app = typer.Typer(
    cls=LeptonFamily, no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@app.callback()
def queue() -> None:
    """Make, change or delete a queue; `lepton queues` lists them."""


def queues(ctx: typer.Context) -> None:
    """List queues: what waits and runs in them, and who may submit.

    Examples:
      lepton queues
      lepton queues -o wide                  what they use, may use and borrow
      lepton queues -o json | jq '.queues[] | {name, n_pending}'
    """
    import sys

    from scheduler.cli.cluster_views import queues_lines
    from scheduler.cli.connection import run
    from scheduler.cli.output import Format, plain, print_data, print_lines
    from scheduler.cli.terminal import width_of

    settings = Settings.of(ctx)
    found = run(settings, lambda client: client.queues(), what="listing queues")
    if settings.output.is_for_people:
        is_wide = settings.output is Format.WIDE
        print_lines(queues_lines(found, width=width_of(sys.stdout), is_wide=is_wide))
    else:
        print_data({"queues": [plain(queue) for queue in found]}, settings.output)


@app.command(cls=LeptonCommand)
def put(
    ctx: typer.Context,
    name: Name,
    submitters: Annotated[
        str | None, typer.Option(help="Who may submit: ada,bob; * for everybody.")
    ] = None,
    admins: Annotated[str | None, typer.Option(help="Who may steer its jobs: ada,bob.")] = None,
    is_open: Annotated[
        bool | None, typer.Option("--open/--closed", help="Whether it takes new jobs.")
    ] = None,
    is_started: Annotated[
        bool | None, typer.Option("--started/--stopped", help="Whether its jobs may start.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option(help="The queue above it; none for the root.")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Of its share beside its siblings.")
    ] = None,
    guaranteed: Annotated[
        str | None, typer.Option(help="What it gets if it asks: gpus=16,gpus:A100=8.")
    ] = None,
    limit: Annotated[
        str | None, typer.Option(help="What it may use at most: gpus=32,cpus=512.")
    ] = None,
    borrow: Annotated[
        str | None, typer.Option(help="What it may use beyond its guarantee; none: any.")
    ] = None,
    is_lender: Annotated[
        bool | None,
        typer.Option("--lend/--keep", help="Whether others use what is guaranteed and idle."),
    ] = None,
    default_priority: Annotated[
        int | None, typer.Option(help="Of jobs that ask for priority 0.")
    ] = None,
    max_priority: Annotated[
        int | None, typer.Option(help="The highest priority that jobs may ask for.")
    ] = None,
    max_jobs: Annotated[
        int | None, typer.Option(help="Live jobs at most; 0 for any number.")
    ] = None,
    max_jobs_each: Annotated[
        int | None, typer.Option(help="Live jobs of one submitter at most; 0 for any number.")
    ] = None,
    default_time: Annotated[
        float | None,
        typer.Option(parser=parse_duration_s, metavar="TIME", help="Limit of jobs without."),
    ] = None,
    max_time: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration_s, metavar="TIME", help="The longest limit; 0: any."
        ),
    ] = None,
    min_runtime: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration_s, metavar="TIME", help="Not preempted before, without own."
        ),
    ] = None,
    is_preemptible: Annotated[
        bool | None,
        typer.Option(
            "--preemptible/--no-preemptible", help="Whether its jobs may be stopped for others."
        ),
    ] = None,
    preempt: Annotated[
        Preempt | None, typer.Option(help="Whom its jobs may stop, if the policy allows.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="By which its jobs are served; none: the parent's.")
    ] = None,
) -> None:
    """Make a queue, or change one: what you do not name stays as it is.

    Examples:
      lepton queue put vision --submitters ada,bob --admins ada
      lepton queue put vision --default-time 4h --max-time 2d --max-jobs-each 50
      lepton queue put vision --parent lab --guaranteed gpus=8,gpus:A100=4
      lepton queue put vision --borrow gpus=4     at most 4 GPUs of others
      lepton queue put vision --limit none        no limits any more
      lepton queue put vision --policy drf        served by another policy
    """
    from scheduler.cli.amounts import parse_amounts
    from scheduler.cli.connection import run
    from scheduler.cli.output import plain, print_data
    from scheduler.cli.terminal import say
    from scheduler.wire import cluster_pb2 as pb

    settings = Settings.of(ctx)
    given = {"guaranteed": guaranteed, "limit": limit, "borrow": borrow}
    amounts = {
        "borrow_limit" if option == "borrow" else option: parse_amounts(text, option)
        for option, text in given.items()
        if text is not None
    }
    changes = {
        "is_open": is_open,
        "is_started": is_started,
        "parent": "" if parent == "none" else parent,
        "weight": weight,
        "is_lender": is_lender,
        "default_priority": default_priority,
        "max_priority": max_priority,
        "max_jobs": max_jobs,
        "max_jobs_per_submitter": max_jobs_each,
        "default_time_limit_s": default_time,
        "max_time_limit_s": max_time,
        "default_min_runtime_s": min_runtime,
        "is_preemptible": is_preemptible,
        "policy": "" if policy == "none" else policy,
        "may_preempt": preempt and getattr(pb, f"QUEUE_PREEMPTION_{preempt.upper()}"),
    }

    async def work(client: "Client") -> "tuple[bool, pb.Queue]":
        known = {queue.name: queue for queue in await client.queues()}
        wanted = pb.Queue(name=name, is_open=True, is_started=True)
        if name in known:
            wanted.CopyFrom(known[name])
        for field, value in changes.items():
            if value is not None:
                setattr(wanted, field, value)
        for field, users in {"submitters": submitters, "admins": admins}.items():
            if users is not None:
                wanted.ClearField(field)  # type: ignore[arg-type]
                getattr(wanted, field).extend(_users(users))
        for field, some in amounts.items():
            wanted.ClearField(field)  # type: ignore[arg-type]
            getattr(wanted, field).update(some)
        return name not in known, await client.put_queue(wanted)

    is_new, queue = run(settings, work, what="waiting for the daemon")
    if settings.output.is_for_people:
        say(f"{'Made' if is_new else 'Changed'} queue {queue.name}.")
    else:
        print_data(plain(queue), settings.output)


def _users(given: str) -> list[str]:
    return [user.strip() for user in given.split(",") if user.strip() not in {"", "*"}]


@app.command(cls=LeptonCommand)
def start(ctx: typer.Context, names: Names) -> None:
    """Let queues take jobs and start them (Slurm: UP).

    Examples:
      lepton queue start vision
    """
    _set_state(ctx, names, "Started", is_open=True, is_started=True)


@app.command(cls=LeptonCommand)
def stop(ctx: typer.Context, names: Names) -> None:
    """Hold queues: they take jobs and start none; what runs goes on (Slurm: DOWN).

    Examples:
      lepton queue stop vision
    """
    _set_state(ctx, names, "Stopped", is_open=True, is_started=False)


@app.command(cls=LeptonCommand)
def drain(ctx: typer.Context, names: Names) -> None:
    """Empty queues: they take no jobs and start those that wait (Slurm: DRAIN).

    Examples:
      lepton queue drain vision && lepton queues
    """
    _set_state(ctx, names, "Draining", is_open=False, is_started=True)


@app.command(cls=LeptonCommand)
def close(ctx: typer.Context, names: Names) -> None:
    """Close queues: they take no jobs and start none; what runs goes on (Slurm: INACTIVE).

    Examples:
      lepton queue close vision
    """
    _set_state(ctx, names, "Closed", is_open=False, is_started=False)


def _set_state(
    ctx: typer.Context, names: list[str], verb: str, *, is_open: bool, is_started: bool
) -> None:
    from scheduler.cli.connection import run
    from scheduler.cli.output import plain, print_data
    from scheduler.cli.terminal import say

    settings = Settings.of(ctx)

    async def work(client: "Client") -> "list[pb.Queue]":
        return [
            await client.set_queue_state(name, is_open=is_open, is_started=is_started)
            for name in names
        ]

    changed = run(settings, work, what="waiting for the daemon")
    if settings.output.is_for_people:
        for queue in changed:
            say(f"{verb} queue {queue.name}.")
    else:
        shown = [plain(queue) for queue in changed]
        print_data(shown[0] if len(shown) == 1 else shown, settings.output)


@app.command(cls=LeptonCommand)
def delete(ctx: typer.Context, name: Name) -> None:
    """Delete a queue that has no jobs in it.

    Examples:
      lepton queue delete vision
    """
    from scheduler.cli.connection import run
    from scheduler.cli.output import print_data
    from scheduler.cli.terminal import say

    settings = Settings.of(ctx)
    run(settings, lambda client: client.delete_queue(name), what="waiting for the daemon")
    if settings.output.is_for_people:
        say(f"Deleted queue {name}.")
    else:
        print_data({"name": name, "is_deleted": True}, settings.output)
