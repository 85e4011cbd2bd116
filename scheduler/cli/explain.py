"""`lepton explain`: why a job waits, and until when."""

from typing import TYPE_CHECKING, Annotated

import typer

from scheduler.cli.completion import complete_live_job
from scheduler.cli.errors import ExitCode
from scheduler.cli.settings import Settings

if TYPE_CHECKING:
    from scheduler.client import Client
    from scheduler.wire import cluster_pb2 as pb


def explain(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="JOB", help="Id or name.", autocompletion=complete_live_job)
    ],
) -> None:
    """Say why a job waits, until when, and what happened to it so far.

    Exits with 2 if the job is pending and cannot be placed now, else with 0.

    Examples:
      lepton explain 17
      lepton explain train -o json | jq .counts
    """
    from scheduler.cli.cluster_views import explanation_lines
    from scheduler.cli.connection import job_id_of, run
    from scheduler.cli.output import plain, print_data, print_lines
    from scheduler.clock import SystemClock
    from scheduler.wire import cluster_pb2 as pb

    settings = Settings.of(ctx)

    async def work(client: "Client") -> "pb.Explanation":
        return await client.explain(await job_id_of(client, name))

    told = run(settings, work, what="asking why")
    if settings.output.is_for_people:
        print_lines(explanation_lines(told, SystemClock().now_s()))
    else:
        print_data(plain(told), settings.output)
    if told.phase == pb.JOB_PHASE_PENDING and told.cause:
        raise typer.Exit(int(ExitCode.CANNOT_BE_PLACED))
