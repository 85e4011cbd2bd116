"""`lepton queues` and `lepton queue`: where jobs wait, and who may put them there."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.command import LeptonCommand, LeptonFamily
from scheduler.cli.completion import complete_queue
from scheduler.cli.settings import Settings

if TYPE_CHECKING:
    from scheduler.client import Client
    from scheduler.wire import cluster_pb2 as pb

Name = Annotated[
    str,
    typer.Argument(metavar="QUEUE", help="Name of the queue.", autocompletion=complete_queue),
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
      lepton queue put vision --stopped           its jobs wait from now on
      lepton queue put vision --closed            it takes no new jobs
      lepton queue put vision --parent lab --guaranteed gpus=8,gpus:A100=4
      lepton queue put vision --borrow gpus=4     at most 4 GPUs of others
      lepton queue put vision --limit none        no limits any more
      lepton queue put vision --policy drf        its jobs are served by another policy
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
