"""`lepton queues` and `lepton queue`: where jobs wait, and who may put them there."""

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
      lepton queues -o json | jq '.queues[] | {name, n_pending}'
    """
    import sys

    from scheduler.cli.cluster_views import queues_lines
    from scheduler.cli.connection import run
    from scheduler.cli.output import plain, print_data, print_lines
    from scheduler.cli.terminal import width_of

    settings = Settings.of(ctx)
    found = run(settings, lambda client: client.queues(), what="listing queues")
    if settings.output.is_for_people:
        print_lines(queues_lines(found, width=width_of(sys.stdout)))
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
) -> None:
    """Make a queue, or change one: what you do not name stays as it is.

    Examples:
      lepton queue put vision --submitters ada,bob --admins ada
      lepton queue put vision --stopped           its jobs wait from now on
      lepton queue put vision --closed            it takes no new jobs
    """
    from scheduler.cli.connection import run
    from scheduler.cli.output import plain, print_data
    from scheduler.cli.terminal import say
    from scheduler.wire import cluster_pb2 as pb

    settings = Settings.of(ctx)

    async def work(client: "Client") -> "tuple[bool, pb.Queue]":
        known = {queue.name: queue for queue in await client.queues()}
        before = known.get(name)
        wanted = pb.Queue(
            name=name,
            submitters=_users(submitters, before.submitters if before else ()),
            admins=_users(admins, before.admins if before else ()),
            is_open=_first(is_open, before.is_open if before else True),
            is_started=_first(is_started, before.is_started if before else True),
        )
        return before is None, await client.put_queue(wanted)

    is_new, queue = run(settings, work, what="waiting for the daemon")
    if settings.output.is_for_people:
        say(f"{'Made' if is_new else 'Changed'} queue {queue.name}.")
    else:
        print_data(plain(queue), settings.output)


def _users(given: "str | None", before: "object") -> list[str]:
    if given is None:
        return list(before)  # type: ignore[call-overload,no-any-return]
    return [user.strip() for user in given.split(",") if user.strip() not in {"", "*"}]


def _first(given: bool | None, otherwise: bool) -> bool:
    return otherwise if given is None else given


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
